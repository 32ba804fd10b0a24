# The project in a container that needs no network once it is built.
#
#   docker build -t stylegan2-3d .
#   docker build -t stylegan2-3d --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .    with CUDA
#   docker run --rm --network none stylegan2-3d make demo
#   docker run --rm --network none stylegan2-3d make test
#   docker run --rm --network none --shm-size 4g -v "$PWD/data:/data:ro" -v "$PWD/runs:/runs" stylegan2-3d \
#       cow-train --data /data --results_dir /runs/results --models_dir /runs/models
#
# For CUDA, `docker run --gpus all` with NVIDIA's container toolkit on the host. The user in it has the number 1000:
# runs/ must be a folder that 1000 may write (mkdir runs before, or docker makes it root's).
FROM python:3.11-slim-bookworm

# Where PyTorch's wheels come from: .../whl/cpu, or .../whl/cu128 and others for CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Versions of Debian's make are as good as each other.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 cow \
    && install --directory --owner=cow --group=cow /home/cow/project /data /runs

USER 1000
WORKDIR /home/cow/project
ENV PIP_NO_CACHE_DIR=1 OMP_WAIT_POLICY=PASSIVE

# The gigabytes first and alone, so that a change of the code does not fetch them again. pyproject.toml has the
# versions that fit, which a test compares; torchvision, for the evaluation, must be of the same index.
RUN python3 -m venv .venv \
    && .venv/bin/pip install --disable-pip-version-check --index-url "$TORCH_INDEX" "torch>=2.6,!=2.9.*" torchvision

# As `make install` does it for anyone; `make demo` and `make test` then find it done.
COPY --chown=cow:cow . .
RUN make install

ENV PATH=/home/cow/project/.venv/bin:$PATH
VOLUME ["/data", "/runs"]
CMD ["cow-generate", "--save_directory", "/runs/generated"]
