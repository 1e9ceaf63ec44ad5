# Two images of one program: `roles` (nodes, platform, requester, provider, the command line) and `train` (pools and miners:
# with torch and Flower). Without --target `train` is built, and it can do everything.
#
#   docker build --target roles -t pofl:0.1.0 .
#   docker build --target train -t pofl-train:0.1.0 --build-arg TORCH_INDEX=<index with the processor-only torch> .
#
# Everything is installed at the versions of constraints.txt, as `make setup` does it. docs/deploy.md says how they are run.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# What both stages of dependencies begin with: an environment without pip, filled by the pip of the base image.
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv --without-pip /opt/pofl
WORKDIR /build
# These two and the list decide what is installed: a change of the code leaves the layers below as they are.
COPY constraints.txt pyproject.toml tools/requirements.py ./
RUN python3 requirements.py pyproject.toml tracing > roles.txt && python3 requirements.py pyproject.toml train data tracing > train.txt

FROM build AS roles-packages
RUN pip --python /opt/pofl/bin/python install --only-binary :all: --constraint constraints.txt --requirement roles.txt

FROM build AS train-packages
# Torch comes first, and from the processor-only index where one is given, so that no CUDA libraries are fetched.
ARG TORCH_INDEX=
RUN pip --python /opt/pofl/bin/python install --only-binary :all: --constraint constraints.txt \
        ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
 && pip --python /opt/pofl/bin/python install --only-binary :all: --constraint constraints.txt --requirement train.txt

# The program itself: a few megabytes, laid over the environment by the final stages.
FROM build AS program
RUN pip install --constraint constraints.txt hatchling editables
COPY LICENSE README.md ./
COPY proto/pofl proto/pofl
COPY core core
COPY services services
COPY node node
COPY pool pool
COPY requester requester
COPY provider provider
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
 && pip --python /opt/pofl/bin/python install --no-deps --no-index --prefix /opt/program /wheel/*.whl

FROM ${PYTHON_IMAGE} AS base
# Some Python images come without compiled modules. Nothing can be compiled later: the root is read-only.
RUN python3 -m compileall -q "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
        -x '/test/|/tests/|lib2to3|idlelib|site-packages|dist-packages'
# A number, so that a volume's owner is the same on every host; no home, no shell, no password.
RUN groupadd --gid 10001 pofl && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /pofl --shell /usr/sbin/nologin pofl \
 && mkdir --mode 0700 /pofl && chown pofl:pofl /pofl
ENV PATH=/opt/pofl/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8 \
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
WORKDIR /pofl
VOLUME /pofl
USER pofl
STOPSIGNAL SIGTERM
# Asks the process's own port on loopback, and rests between two questions; see services/runtime/probe.py.
HEALTHCHECK --interval=1s --timeout=30s --start-period=120s --retries=3 CMD ["python", "-I", "-m", "services.runtime.probe", "--patient", "127.0.0.1:7001"]
ENTRYPOINT ["pofl"]
CMD ["--help"]

FROM base AS roles
COPY --from=roles-packages /opt/pofl /opt/pofl
COPY --from=program /opt/program /opt/pofl

FROM base AS train
COPY --from=train-packages /opt/pofl /opt/pofl
COPY --from=program /opt/program /opt/pofl
