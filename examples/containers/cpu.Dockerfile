# From a checkout: docker build -f examples/containers/cpu.Dockerfile -t hanlin:0.1.0-cpu .
# Behind a mirror: --build-arg PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple --build-arg TORCH_INDEX_URL=...
FROM python:3.12-slim
ARG PIP_INDEX_URL=https://pypi.org/simple
# PyPI's torch for x86_64 brings CUDA along; this index has the one without.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_INDEX_URL=${PIP_INDEX_URL} PYTHONUNBUFFERED=1
WORKDIR /opt/hanlin
COPY constraints.txt ./
RUN pip install --index-url ${TORCH_INDEX_URL} --extra-index-url ${PIP_INDEX_URL} -c constraints.txt torch
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY src src
COPY recipes recipes
COPY examples examples
RUN pip install -c constraints.txt '.[arrow,gguf,glm4,serve,zstd]'
WORKDIR /work
CMD ["hanlin", "--help"]
