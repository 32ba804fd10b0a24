#!/bin/sh
# torch.utils.flop_counter.FlopCounterMode cannot count a gradient penalty as it is usually written: autograd.grad of a
# network's output for its own input raises a RuntimeError about _will_engine_execute_node where that input is a leaf, as
# a batch with requires_grad_() is. The mode's hooks on modules, which only name the module of an operation, raise it.
# A guess would be that counting changes nothing. The same operations behind x * 1 are counted, and so they are by a
# TorchDispatchMode of one's own that asks flop_registry: the same number.
# Seen with PyTorch 2.13.0. Exit status 0 while it is so. It installs what it needs in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.3.5 torch==2.13.0
"$folder/env/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

torch.manual_seed(0)
network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv3d(2, 1, 3, padding=1))


class Counter(TorchDispatchMode):
    """Counts FLOP by the same table, without modules."""

    flop = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function._overloadpacket in flop_registry:
            self.flop += flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def penalty(through):
    """Backward of the squared gradient of the network's output for its input."""
    volumes = torch.rand(2, 1, 8, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(through(volumes)).sum(), volumes, create_graph=True)
    gradient.square().sum().backward()


def counted(mode, through):
    """FLOP by a mode, or the message of the error that it raises."""
    with mode:
        try:
            penalty(through)
        except RuntimeError as error:
            return str(error)
    return mode.get_total_flops() if isinstance(mode, FlopCounterMode) else mode.flop


penalty(lambda x: x)  # without a counter
print(f"PyTorch {torch.__version__}, a gradient penalty of two convolutions")
leaf = counted(FlopCounterMode(display=False), lambda x: x)
behind = counted(FlopCounterMode(display=False), lambda x: x * 1)
own = counted(Counter(), lambda x: x)
print(f"FlopCounterMode, the input a leaf: {leaf}")
print(f"FlopCounterMode, the input behind x * 1: {behind}")
print(f"flop_registry without modules, the input a leaf: {own}")
sys.exit(int(not ("_will_engine_execute_node" in str(leaf) and behind == own > 0)))
PYTHON
