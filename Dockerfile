# The CPU image by default. The CUDA image is this file with another index (the wheels bring CUDA's libraries along):
#   docker build --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130 --tag losseval:cuda .
# Both stages need the same Python in the same place: the virtual environment points to it.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS builder
# Empty: pip's own index.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# Without pip: the image has nothing that installs. The builder's own pip works on it from outside.
RUN python -m venv --without-pip /opt/losseval

COPY constraints.txt ./
RUN python -m pip install --quiet --constraint constraints.txt hatchling \
    && python -m pip --python /opt/losseval install --no-deps \
       ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} "$(grep '^torch==' constraints.txt)"

COPY pyproject.toml ./
RUN python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"]["otel"], sep="\n")' >requirements.txt \
    && python -m pip --python /opt/losseval install --constraint constraints.txt --requirement requirements.txt

# What serves to develop with torch and numpy, and the packages that torch imports only to compile models and extensions.
# bin/torch_shm_manager stays: without it torch refuses to be imported.
RUN python -m pip --python /opt/losseval uninstall --quiet --yes mpmath networkx setuptools sympy \
    && site=$(/opt/losseval/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
    && rm -r "$site/torch/include" "$site/torch/share" "$site/torch/test" \
    && find "$site/torch/bin" -mindepth 1 ! -name torch_shm_manager -delete \
    && find "$site" -name tests -type d -prune -exec rm -r {} + \
    && find "$site" \( -name '*.a' -o -name '*.pyi' \) -delete

COPY README.md LICENSE ./
COPY service/ service/
# Compiled here since the root is read-only at run time; unchecked, since nothing there ever changes. The file left out
# is a test of torch's with the syntax of a later Python.
RUN python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist . \
    && python -m pip --python /opt/losseval install --no-deps dist/*.whl \
    && python -m compileall -q -j 0 -x py312_intrinsics --invalidation-mode unchecked-hash /opt/losseval/lib

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="losseval" \
      org.opencontainers.image.description="Cross-entropy over HTTP: logits and labels in, losses and gradients out" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /opt/losseval /opt/losseval
# In a container the loopback address is reached by nobody.
ENV LOSSEVAL_HOST=0.0.0.0 PYTHONUNBUFFERED=1
# What losseval_build_info says, so that a change of the numbers can be told from a change of the code. Last: a new one leaves
# the layers above in the cache.
ARG COMMIT=
ENV LOSSEVAL_COMMIT=${COMMIT}
# A number, so that an orchestrator can see that it isn't root; nothing is written, so it needs no home.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Anything but a number in LOSSEVAL_PORT is a service link's address, which the service ignores too.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["/opt/losseval/bin/python", "-I", "-c", "\
import http.client, os, ssl, sys; \
port = os.environ.get('LOSSEVAL_PORT', ''); \
address = ('127.0.0.1', int(port) if port.isdigit() else 8000); \
probe = http.client.HTTPSConnection(*address, timeout=2, context=ssl._create_unverified_context()) \
  if os.environ.get('LOSSEVAL_SSL_CERTFILE') else http.client.HTTPConnection(*address, timeout=2); \
probe.request('GET', '/readyz'); \
sys.exit(probe.getresponse().status != 200)"]
ENTRYPOINT ["/opt/losseval/bin/python", "-m", "losseval_service"]
