# Pretraining, probing and Ray on NVIDIA GPUs; the driver is the host's. From the root of the project:
#     docker build --file=infra/containers/training.Dockerfile --tag=sternum:0.1.0 .
# The base is pinned by its version. To pin its bytes, add the digest that `docker pull` prints: FROM python:...@sha256:...
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# DeepSpeed is built from its sources.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/sternum
WORKDIR /source
COPY . .
RUN /opt/sternum/bin/pip install --constraint=constraints.txt '.[dali,deepspeed,dicom,gcs,parquet,ray,s3,timm]'

FROM python:3.11.14-slim-bookworm
# Triton compiles kernels when a run starts.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --uid=1000 --create-home sternum
COPY --from=build /opt/sternum /opt/sternum
ENV PATH=/opt/sternum/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/sternum
CMD ["sternum", "--help"]
