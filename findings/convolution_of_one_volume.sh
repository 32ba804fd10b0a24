#!/bin/sh
# On a CPU, PyTorch's float32 3D convolution of one volume takes longer than that of a batch of two, with and without
# channels last, and rounds differently: a batch of one is not given to oneDNN. Who generates volumes one by one waits
# for it, and gets other bits than who generates them two by two.
# A guess would be half the time, and the same numbers.
# Seen with PyTorch 2.13.0: 2.5 to 3.5 times as long for one as for both. Exit status 0 while it is so. It installs
# what it needs in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.3.5 torch==2.13.0
"$folder/env/bin/python" - <<'PYTHON'
import sys
import time

import torch
from torch.nn.functional import conv3d

torch.set_num_threads(1)
generator, slower = torch.Generator().manual_seed(0), []
for memory_format in (torch.contiguous_format, torch.channels_last_3d):
    one = torch.randn(1, 16, 16, 32, 32, generator=generator).contiguous(memory_format=memory_format)
    two = torch.cat([one, one]).contiguous(memory_format=memory_format)
    weight = torch.randn(16, 16, 3, 3, 3, generator=generator).contiguous(memory_format=memory_format)
    seconds = []
    for x in (one, two):
        conv3d(x, weight, padding=1)
        times = []
        for _ in range(15):
            start = time.perf_counter()
            conv3d(x, weight, padding=1)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    same = torch.equal(conv3d(one, weight, padding=1)[0], conv3d(two, weight, padding=1)[0])
    slower.append(seconds[0] > 1.2 * seconds[1] and not same)
    told = f"one volume {1e3 * seconds[0]:.1f} ms, two {1e3 * seconds[1]:.1f} ms, equal numbers: {same}"
    print(f"PyTorch {torch.__version__}, {memory_format}: {told}")
sys.exit(int(not all(slower)))
PYTHON
