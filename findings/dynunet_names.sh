#!/bin/sh
# The state dict of MONAI's DynUNet names every tensor of its blocks twice: once below skip_layers, once below the
# lists that they were built from. torch.save writes shared tensors once, so nobody sees it, until the tensors are made
# new ones: in half precision the file is as large as in float32, and safetensors refuses to write the network's dict.
# A guess would be one name for each parameter, and half the bytes in half precision.
# Seen with MONAI 1.5.1, PyTorch 2.13.0, safetensors 0.6.2. Exit status 0 while it is so. It installs what it needs in a
# temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.3.5 torch==2.13.0 monai==1.5.1 safetensors==0.6.2 packaging==25.0
"$folder/env/bin/python" - "$folder" <<'PYTHON'
import io
import sys
from importlib.metadata import version

import safetensors.torch
import torch
from monai.networks.nets import DynUNet

network = DynUNet(3, 1, 3, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[16, 32, 64])
state = network.state_dict()
names, tensors = len(state), len({tensor.data_ptr() for tensor in state.values()})


def size(tensors):
    """Bytes of a file of tensors."""
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.tell()


full, half = size(state), size({name: tensor.half() for name, tensor in state.items()})
try:
    safetensors.torch.save_file(state, f"{sys.argv[1]}/network.safetensors")
    refused = False
except RuntimeError as error:
    refused = "share memory" in str(error)
print(f"MONAI {version('monai')}: {names} names of {tensors} tensors; {full:,} bytes, in half precision {half:,}")
print(f"safetensors refuses it for tensors that share memory: {refused}")
sys.exit(int(not (names > 1.5 * tensors and half > 0.9 * full and refused)))
PYTHON
