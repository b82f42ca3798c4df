# docker build --target train -t imgrec .
# docker run --gpus all --shm-size 8g -v "$PWD/data:/imgrec/data" -v "$PWD/runs:/imgrec/runs" imgrec train data=mnist model=vgg
# docker build --target serve -t imgrec-serve .
# docker run -p 127.0.0.1:8000:8000 -e IMGREC_TOKEN -v "$PWD/runs:/imgrec/runs:ro" imgrec-serve ckpt=runs/mnist_vgg/1
FROM python:3.11-slim AS source
COPY pyproject.toml README.md LICENSE /src/
COPY conf /src/conf
COPY launch /src/launch
COPY imgrec /src/imgrec
WORKDIR /imgrec

FROM source AS serve
# PyTorch's wheels for CPUs are a tenth of those with CUDA: --build-arg TORCH="--index-url URL torch torchvision", with the URL of
# pytorch.org's page of installation.
ARG TORCH="torch torchvision"
RUN pip install --no-cache-dir $TORCH && pip install --no-cache-dir "/src[serve,export,timm]"
# Without rights, and nothing to write: the checkpoint is mounted read-only.
USER 65534
ENV HOME=/tmp
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
# exec form: SIGTERM of `docker stop` reaches the server, which answers what it has accepted.
ENTRYPOINT ["imgrec", "serve", "host=0.0.0.0"]

FROM source AS train
# The wheels of torch bring CUDA; the driver comes from the host with --gpus.
RUN pip install --no-cache-dir torch torchvision "/src[timm]"
ENTRYPOINT ["imgrec"]
CMD ["--help"]
