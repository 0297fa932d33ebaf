# sternum shard, verify, audit and doctor on CPUs, without torch. From the root of the project:
#     docker build --file=infra/containers/packing.Dockerfile --tag=sternum-packing:0.1.0 .
# The base is pinned by its version. To pin its bytes, add the digest that `docker pull` prints: FROM python:...@sha256:...
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/sternum
WORKDIR /source
COPY . .
RUN /opt/sternum/bin/pip install --constraint=constraints.txt --requirement=infra/containers/packing.txt \
    && /opt/sternum/bin/pip install --constraint=constraints.txt --no-deps .

FROM python:3.11.14-slim-bookworm
RUN useradd --uid=1000 --create-home sternum
COPY --from=build /opt/sternum /opt/sternum
ENV PATH=/opt/sternum/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/sternum
CMD ["sternum", "--help"]
