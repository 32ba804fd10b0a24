#!/bin/sh
# SimpleITK (GDCM) reads the frames of an Enhanced MR file in the order of the file, wherever their positions say
# that they lie; a gap between two of them is closed, and all spacings, in the plane too, become 1 mm. Nothing is
# said.
# A guess would be that frames are sorted by their place, as the slices of a series are, or an error.
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
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid


def one(**values):
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return [item]


def read(places):
    """What SimpleITK says of a file whose frames hold their place, in mm, as their grey value."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = EnhancedMRImageStorage, generate_uid(), "1.2.3"
    data.Modality, data.Rows, data.Columns, data.NumberOfFrames = "MR", 8, 8, len(places)
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    shared = Dataset()
    shared.PixelMeasuresSequence = one(PixelSpacing=[0.5, 0.5], SliceThickness=2, SpacingBetweenSlices=2)
    shared.PlaneOrientationSequence = one(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = [
        one(PlanePositionSequence=one(ImagePositionPatient=[0, 0, place]))[0] for place in places
    ]
    data.PixelData = np.repeat(np.array(places, np.uint16), 64).tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(f"{sys.argv[1]}/x.dcm", enforce_file_format=True)
    image = sitk.ReadImage(f"{sys.argv[1]}/x.dcm")
    said = [image.TransformIndexToPhysicalPoint((0, 0, k))[2] for k in range(len(places))]
    print(f"frames at {places} mm: spacing {image.GetSpacing()}, read at {np.round(said, 3).tolist()} mm")
    return np.allclose(said, sitk.GetArrayFromImage(image)[:, 0, 0])


print(f"SimpleITK {sitk.Version_VersionString()}")
right = [read([0, 2, 4, 6, 8]), read([4, 0, 8, 2, 6]), read([0, 2, 4, 10, 12])]
sys.exit(int(all(right)))
PYTHON
