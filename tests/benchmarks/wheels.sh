#!/bin/sh
# Collects in wheels/ what a machine with PyTorch and its usual companions, but without a package index, lacks for
# `make gpu`: packages for Python 3.12 on Linux, some 20 MB. There:
#   python3 -m pip install --no-index --no-deps --target site wheels/*.whl
#   PYTHONPATH=site make gpu PYTHON=python3
set -e
cd "$(dirname "$0")/../.."
for platform in manylinux_2_28 manylinux_2_17 manylinux2014 manylinux1; do
	platforms="$platforms --platform ${platform}_x86_64"
done
# shellcheck disable=SC2086
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	$platforms --dest wheels nibabel fire termcolor kornia kornia_rs retry py decorator vector-quantize-pytorch einx \
	frozendict torch-fidelity skan
du -sh wheels
