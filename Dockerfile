# docker build -t imgrec .
# docker run --gpus all --shm-size 8g -v "$PWD/data:/work/data" -v "$PWD/runs:/work/runs" imgrec train data=mnist model=vgg
FROM python:3.11-slim

# The wheels of torch bring CUDA; the driver comes from the host with --gpus.
COPY pyproject.toml README.md LICENSE /src/
COPY conf /src/conf
COPY launch /src/launch
COPY imgrec /src/imgrec
RUN pip install --no-cache-dir torch torchvision "/src[timm,parquet]"

WORKDIR /work
ENTRYPOINT ["imgrec"]
CMD ["--help"]
