#!/bin/sh
# `image.header.set_zooms` of nibabel, on a file that has a sform and no qform, changes pixdim alone. Of such a file
# ITK takes the lengths of the voxels from pixdim and their directions from the sform; nibabel takes both from the
# sform. So the two read voxels of two sizes; ITK warns of "unexpected scales in sform" and goes on.
# A guess would be that set_zooms changes the voxels' size for all, or that such a file is refused.
# Seen with nibabel 5.4.2 and SimpleITK 2.5.7: nibabel (0.5, 0.5, 0.8), SimpleITK (1.0, 1.0, 1.6).
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

image = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.diag([-0.5, 0.5, 0.8, 1]))
image.header.set_zooms((1, 1, 1.6))
nib.save(image, f"{sys.argv[1]}/x.nii")
one = nib.affines.voxel_sizes(nib.load(f"{sys.argv[1]}/x.nii").affine)
other = sitk.ReadImage(f"{sys.argv[1]}/x.nii").GetSpacing()
print("nibabel", tuple(np.round(one, 3).tolist()), "SimpleITK", tuple(np.round(other, 3).tolist()))
sys.exit(int(not (np.allclose(one, (0.5, 0.5, 0.8)) and np.allclose(other, (1, 1, 1.6)))))
PYTHON
