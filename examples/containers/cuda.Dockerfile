# From a checkout: docker build -f examples/containers/cuda.Dockerfile -t hanlin:0.1.0 .
# docker run --gpus all --ipc host -v $PWD:/work hanlin:0.1.0 hanlin doctor
# PyPI's torch brings CUDA, cuDNN and NCCL along; the machine needs NVIDIA's driver and container toolkit alone.
FROM python:3.12-slim
ARG PIP_INDEX_URL=https://pypi.org/simple
ENV PIP_NO_CACHE_DIR=1 PIP_INDEX_URL=${PIP_INDEX_URL} PYTHONUNBUFFERED=1
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/hanlin
COPY constraints.txt ./
RUN pip install -c constraints.txt torch
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY src src
COPY recipes recipes
COPY examples examples
RUN pip install -c constraints.txt '.[arrow,gguf,glm4,serve,zstd]'
WORKDIR /work
CMD ["hanlin", "--help"]
