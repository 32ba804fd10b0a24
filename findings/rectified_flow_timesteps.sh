#!/bin/sh
# MONAI's RFlowScheduler, as it comes (whole timesteps, 1,000 of them), trains a network at the timesteps 0 to 999 and
# begins to sample at 1,000, which the network has never been told of: the first step, the one from pure noise, goes
# by an embedding that no training has touched. And set_timesteps takes its timesteps through half precision: of
# 10,000 they are rounded to multiples of 8, so that steps are unequal; of 100,000 the first ones overflow.
# A guess would be that sampling asks for timesteps that training has drawn, and for those of the formula.
# Seen with MONAI 1.6.1, PyTorch 2.13.0, NumPy 2.3.5. Exit status 0 while it is so. It installs what it needs in a
# temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.3.5 torch==2.13.0 monai==1.6.1
"$folder/env/bin/python" - 2> /dev/null <<'PYTHON'
import sys

import monai
import torch
from monai.networks.schedulers import RFlowScheduler

torch.manual_seed(0)
print(f"MONAI {monai.__version__}, PyTorch {torch.__version__}")

scheduler = RFlowScheduler()
drawn = torch.cat([scheduler.sample_timesteps(torch.zeros(1000, 1, 2, 2, 2)) for _ in range(200)])
scheduler.set_timesteps(25)
first = scheduler.timesteps[0].item()
print(f"timesteps of 200,000 draws in training: {drawn.min().item()} to {drawn.max().item()}; sampling begins at {first}")

asked = {number: [round((1 - n / 7) * number) for n in range(7)] for number in (1000, 10000, 100000)}
given = {}
for number, right in asked.items():
    scheduler = RFlowScheduler(num_train_timesteps=number)
    scheduler.set_timesteps(7)
    given[number] = scheduler.timesteps.tolist()
    print(f"7 of {number:,}: {right} by the formula, {given[number]} given")
trained = drawn.max().item() == 999 and first == 1000
halved = given[1000] == asked[1000] and given[10000] != asked[10000] and given[100000] != asked[100000]
sys.exit(int(not (trained and halved)))
PYTHON
