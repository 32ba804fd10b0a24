#!/bin/sh
# SimpleITK (GDCM) inverts the numbers of an image that is MONOCHROME1, compressed or not; pydicom and dcm2niix do
# not. A guess would be that MONOCHROME1 says how to show numbers, and leaves them alone (PS3.3 C.7.6.3.1.2).
# Seen with SimpleITK 2.5.7. Exit status 0 while it is so. It installs what it needs in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 simpleitk==2.5.7 numpy==2.3.5
"$folder/env/bin/python" - "$folder" <<'PYTHON'
import sys

import numpy as np
import SimpleITK as sitk
from pydicom import dcmread

found = {}
image = sitk.GetImageFromArray(np.arange(256, dtype=np.uint16).reshape(1, 16, 16))
for packed in (False, True):
    name = f"{sys.argv[1]}/{packed}.dcm"
    sitk.WriteImage(image, name, useCompression=packed)
    for kind in ("MONOCHROME2", "MONOCHROME1"):
        data = dcmread(name)
        data.PhotometricInterpretation = kind
        data.save_as(name)
        found[packed, kind] = sitk.GetArrayFromImage(sitk.ReadImage(name)).ravel()[:4].tolist()
print(f"SimpleITK {sitk.Version_VersionString()}, first numbers, right are 0, 1, 2, 3:")
for (packed, kind), numbers in found.items():
    print("compressed" if packed else "plain     ", kind, numbers)
sys.exit(int(all(numbers == [0, 1, 2, 3] for numbers in found.values())))
PYTHON
