#!/bin/sh
# torch.utils.checkpoint around a layer with torch.nn.utils.parametrizations.spectral_norm gives other gradients than
# the layer alone, and says nothing: each pass moves the layer's singular vectors by a step of the power iteration,
# the pass that is computed again moves them once more, and the gradient is that of another weight than was used.
# A guess would be equal gradients, as for all layers without randomness, or the error that checkpoint raises when
# what is computed again differs (it compares shapes and types, not values).
# Seen with PyTorch 2.13.0. Exit status 0 while it is so. It installs what it needs in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.3.5 torch==2.13.0
"$folder/env/bin/python" - <<'PYTHON'
import copy
import sys

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

torch.manual_seed(0)
plain = spectral_norm(nn.Conv3d(8, 8, 3, padding=1))
again, twice = copy.deepcopy(plain), copy.deepcopy(plain)
x = torch.randn(2, 8, 8, 8, 8)
plain(x).square().mean().backward()
checkpoint(again, x, use_reentrant=False).square().mean().backward()
with torch.no_grad():
    twice(x)
    twice(x)
vectors = [layer.parametrizations.weight[0]._u for layer in (plain, again, twice)]
weights = [layer.parametrizations.weight.original.grad for layer in (plain, again)]
error = float((weights[1] - weights[0]).norm() / weights[0].norm())
print(f"PyTorch {torch.__version__}: gradients differ by {error:.2%}")
print(f"vectors are those of one pass: {torch.equal(vectors[0], vectors[1])}, of two passes: {torch.equal(*vectors[1:])}")
sys.exit(int(not (error > 1e-3 and torch.equal(*vectors[1:]))))
PYTHON
