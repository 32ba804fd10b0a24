#!/bin/sh
# The weight gradient of a 3D convolution is one kernel of its own in an ordinary backward pass. In the gradient of an
# input gradient (R1, path lengths), PyTorch takes it another way: it swaps batch and channels and convolves the volumes
# with kernels as large as they are. So a layer of 3 x 3 x 3 weights asks there for a convolution with kernels of 64 x
# 64 x 64. It is the same sum of products; on a CPU it takes more than twice as long for large volumes.
# A guess would be that the same quantity is computed by the same kernel. torch.ops.aten.convolution_backward, called in
# a torch.autograd.Function of one's own, does that.
# Seen with PyTorch 2.14.1. Exit status 0 while it is so (times are printed, not judged). It installs what it needs in a
# temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.3.5 torch==2.14.1
"$folder/env/bin/python" - <<'PYTHON'
import sys
import time

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

torch.manual_seed(0)
torch.set_num_threads(1)


class Recorder(TorchDispatchMode):
    """Notes the shapes of every convolution's kernel, and which weight gradients have a kernel of their own."""

    def __init__(self):
        super().__init__()
        self.kernels, self.own = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._overloadpacket is torch.ops.aten.convolution:
            self.kernels.append(tuple(args[1].shape))
        if function._overloadpacket is torch.ops.aten.convolution_backward:
            self.own += bool(args[-1][1])
        return function(*args, **(kwargs or {}))


def layer_and_volume(size):
    """A convolution from 32 to 16 channels, and a volume for it."""
    layer = nn.Conv3d(32, 16, 3, padding=1, bias=False)
    return layer, torch.rand(1, 32, *3 * [size], requires_grad=True)


def ordinary(layer, volume):
    """Returns a function that makes the weight gradient of a loss."""
    loss = layer(volume).square().sum()
    return lambda: torch.autograd.grad(loss, layer.weight, retain_graph=True)


def of_a_gradient(layer, volume):
    """Returns a function that makes the weight gradient of a squared input gradient."""
    y = layer(volume)
    (gradient,) = torch.autograd.grad((y * torch.rand_like(y)).sum(), volume, create_graph=True)
    penalty = gradient.square().sum()
    return lambda: torch.autograd.grad(penalty, layer.weight, retain_graph=True)


print(f"PyTorch {torch.__version__}, Conv3d of 32 to 16 channels, 3 x 3 x 3, on a CPU")
kernels = {}
for size in (8, 32, 64):
    for name, kind in (("a loss", ordinary), ("an input gradient", of_a_gradient)):
        compute = kind(*layer_and_volume(size))
        with Recorder() as recorder:
            compute()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            compute()
            times.append(time.perf_counter() - start)
        kernels[name, size] = [kernel for kernel in recorder.kernels if kernel[-1] == size]
        print(
            f"{size}^3 voxels, of {name}: {min(times):.4f} s, weight gradients by their own kernel: {recorder.own}, "
            f"convolutions with kernels of {kernels[name, size] or 'no such size'}"
        )
as_seen = all(kernels["an input gradient", n] and not kernels["a loss", n] for n in (8, 32, 64))
sys.exit(int(not as_seen))
PYTHON
