# From a checkout: docker build -f examples/containers/ascend.Dockerfile -t hanlin:0.1.0-ascend .
# docker run --device /dev/davinci0 --device /dev/davinci_manager --device /dev/devmm_svm --device /dev/hisi_hdc \
#   -v /usr/local/dcmi:/usr/local/dcmi -v /usr/local/Ascend/driver:/usr/local/Ascend/driver -v $PWD:/work \
#   hanlin:0.1.0-ascend hanlin doctor --npu
# CANN: a tag of quay.io/ascend/cann for your chip (910b: Atlas A2, a3: Atlas A3) that the machine's driver takes.
# TORCH: a version for which there is a torch_npu of the same number (2.11 or newer), and which that CANN takes.
ARG CANN
FROM quay.io/ascend/cann:${CANN}
ARG TORCH=2.11.0
ARG PIP_INDEX_URL=https://pypi.org/simple
ENV PIP_NO_CACHE_DIR=1 PIP_INDEX_URL=${PIP_INDEX_URL} PYTHONUNBUFFERED=1
WORKDIR /opt/hanlin
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY src src
COPY recipes recipes
COPY examples examples
RUN pip install torch==${TORCH} torch_npu==${TORCH} '.[arrow,gguf,glm4,serve,zstd]'
# The variables of CANN, for every command.
ENTRYPOINT ["bash", "-c", "source /usr/local/Ascend/ascend-toolkit/set_env.sh && exec \"$@\"", "--"]
WORKDIR /work
CMD ["hanlin", "--help"]
