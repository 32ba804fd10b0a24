#!/bin/sh
# A NIfTI header says what its lengths are in (xyzt_units). ITK converts metres and micrometres to mm; nibabel gives
# the numbers as they are, in its affine and zooms, and says nothing: the same file has voxels of 600 mm for one and
# of 0.6 mm for the other.
# A guess would be that the affine of both is in mm.
# Seen with nibabel 5.4.2 and SimpleITK 2.5.7:
#   micron: nibabel 600, SimpleITK 0.6; meter: nibabel 0.0006, SimpleITK 0.6; mm: nibabel 0.6, SimpleITK 0.6
# Exit status 0 while it is so. It installs what it needs in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check nibabel==5.4.2 simpleitk==2.5.7 numpy==2.3.5
"$folder/env/bin/python" - "$folder" <<'PYTHON'
import sys

import nibabel as nib
import numpy as np
import SimpleITK as sitk

found = []
for units, scale in (("micron", 1e3), ("meter", 1e-3), ("mm", 1.0)):
    image = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.diag([0.6 * scale] * 3 + [1]))
    image.header.set_xyzt_units(units)
    nib.save(image, f"{sys.argv[1]}/x.nii")
    one = float(nib.affines.voxel_sizes(nib.load(f"{sys.argv[1]}/x.nii").affine)[0])
    other = sitk.ReadImage(f"{sys.argv[1]}/x.nii").GetSpacing()[0]
    print(f"{units}: nibabel {one:.5g}, SimpleITK {other:.5g}")
    found.append(np.isclose(one, 0.6 * scale, rtol=1e-5) and np.isclose(other, 0.6, rtol=1e-5))
sys.exit(int(not all(found)))
PYTHON
