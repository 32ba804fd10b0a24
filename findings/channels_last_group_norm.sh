#!/bin/sh
# On a CPU, torch.nn.functional.group_norm of channels-last activations takes the variance for the mean square less
# the square of the mean, in float32: it loses digits as (mean / deviation)^2. With a mean of 100 deviations values are
# wrong by a tenth of a deviation and more, with 1,000 by more than a thousand. The same numbers with the channels first
# are right to 1e-4, and so is instance_norm in both layouts. Networks of channels-last volumes come to it by themselves.
# A guess would be the same numbers, whichever way they lie in memory. Subtracting the mean before is a way around it.
# Seen with PyTorch 2.13.0. Exit status 0 while it is so. It installs what it needs in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.3.5 torch==2.13.0
"$folder/env/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn.functional import group_norm, instance_norm

torch.set_num_threads(1)


def errors(mean):
    """Largest errors, in deviations: channels first, channels last, the mean subtracted before, instance_norm."""
    first = torch.randn(2, 16, 16, 32, 32, generator=torch.Generator().manual_seed(0)) + mean
    last = first.contiguous(memory_format=torch.channels_last_3d)
    right = group_norm(first.double(), 16)
    centred = last - last.mean(dim=(2, 3, 4), keepdim=True)
    found = [group_norm(x, 16) for x in (first, last, centred)] + [instance_norm(last)]
    return [float((one.double() - right).abs().max()) for one in found]


print(f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
wrong, others = {}, []
for mean in (0, 10, 100, 1000):
    first, wrong[mean], centred, instance = errors(mean)
    others += [first, centred, instance]
    told = f"channels first {first:.1g}, last {wrong[mean]:.2g}, last without its mean {centred:.1g}"
    print(f"a mean of {mean} deviations: errors {told}, instance_norm of channels last {instance:.1g}")
sys.exit(int(not (wrong[100] > 0.01 and wrong[1000] > 1 and max(others) < 1e-3)))
PYTHON
