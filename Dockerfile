# docker build -t imgrec .
# docker run --gpus all --shm-size 8g -v "$PWD/data:/imgrec/data" -v "$PWD/runs:/imgrec/runs" imgrec train data=mnist model=vgg
FROM python:3.11-slim

# The wheels of torch bring CUDA; the driver comes from the host with --gpus.
COPY pyproject.toml README.md LICENSE /src/
COPY conf /src/conf
COPY launch /src/launch
COPY imgrec /src/imgrec
RUN pip install --no-cache-dir torch torchvision "/src[timm]"

WORKDIR /imgrec
ENTRYPOINT ["imgrec"]
CMD ["--help"]
