#!/bin/sh
# The gradient of an input gradient (R1, gradient penalties) through relu or leaky_relu costs a whole backward pass on
# zeros. Both are linear wherever they have a derivative, so the input gradient does not depend on what they were given;
# PyTorch takes their backward for a function of it all the same, makes zeros of its size, and goes backward with them
# through every 3D convolution before: biases and the input get gradients of zero, weights sums with zero.
# A guess would be that nothing flows there, as where the slopes are constants in a product: the same gradients.
# Seen with PyTorch 2.13.0. Exit status 0 while it is so. It installs what it needs in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.3.5 torch==2.13.0
"$folder/env/bin/python" - <<'PYTHON'
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

torch.manual_seed(0)
torch.set_num_threads(1)
layers = [nn.Conv3d(1 if n == 0 else 8, 8, 3, padding=1) for n in range(4)]


class Counter(TorchDispatchMode):
    """Counts convolutions that go backward."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function is torch.ops.aten.convolution_backward.default
        return function(*args, **(kwargs or {}))


def by_constants(x):
    """leaky_relu as a product with constants."""
    return x * torch.where(x > 0, 1.0, 0.2).detach()


def penalty(activation):
    """(backward convolutions, seconds, gradients of weights, of biases) of the squared input gradient."""
    for layer in layers:
        layer.zero_grad()
    x = torch.randn(2, 1, 24, 24, 24, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = x
    for layer in layers:
        y = activation(layer(y))
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    loss, start = gradient.square().sum(), time.perf_counter()
    with Counter() as counter:
        loss.backward()
    seconds = time.perf_counter() - start
    weights = torch.cat([layer.weight.grad.flatten() for layer in layers])
    return counter.calls, seconds, weights, [layer.bias.grad for layer in layers[:-1]]


print(f"PyTorch {torch.__version__}, four convolutions")
found = {}
for name, activation in (("leaky_relu", lambda x: F.leaky_relu(x, 0.2)), ("constants", by_constants)):
    penalty(activation)
    found[name] = penalty(activation)
    calls, seconds, _, biases = found[name]
    told = "none" if biases[0] is None else f"{max(float(b.abs().max()) for b in biases):g}"
    print(f"{name}: {calls} of them go backward, {seconds:.3f} s; gradients of biases: {told}")
same = torch.allclose(found["leaky_relu"][2], found["constants"][2], rtol=1e-4, atol=1e-4)
print(f"gradients of weights are the same: {same}")
zeros = all(b is not None and not b.any() for b in found["leaky_relu"][3])
sys.exit(int(not (same and zeros and found["leaky_relu"][0] > found["constants"][0] and found["constants"][3][0] is None)))
PYTHON
