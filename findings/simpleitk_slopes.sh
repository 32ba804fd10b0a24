#!/bin/sh
# SimpleITK (GDCM) reads a DICOM series whose slices have rescale slopes of their own into the pixel type of the
# first slice: values that do not fit wrap around, fractions are cut off, and nothing is said.
# A guess would be that values are right, or an error.
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
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

plane = np.full((8, 8), 3000, np.uint16)
series, slopes, names = generate_uid(), [1 + 2 * k for k in range(24)], []
for k, slope in enumerate(slopes):
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = MRImageStorage, generate_uid(), series
    data.Modality, data.Rows, data.Columns = "MR", 8, 8
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, k], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [1, 1], slope, 0
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = plane.tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    names.append(f"{sys.argv[1]}/{k:02d}.dcm")
    data.save_as(names[-1], enforce_file_format=True)
read = sitk.GetArrayFromImage(sitk.ReadImage(names))
right = [3000 * slope for slope in slopes]
print(f"SimpleITK {sitk.Version_VersionString()}: {read.dtype}")
print("right:", right[::6], "read:", read[::6, 0, 0].tolist())
sys.exit(int(read[:, 0, 0].tolist() == right))
PYTHON
