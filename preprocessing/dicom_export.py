"""Volumes of the scanner's space, and those that a model made, as DICOM."""

import re
from pathlib import Path

import numpy as np

from preprocessing.scans import MOST_LABELS
from volumetric.cli import UserError
from volumetric.dicom_writing import Origin, write_dicom
from volumetric.files import check_array, is_marked_synthetic, load_nifti, naming


def to_dicom(config):
    """Write a volume as DICOM: a file or a folder of slices, dicom/<name> in the output folder.

    What says in its header that it is synthetic is marked so; another one has the PatientID --subject.

    Args:
        config: PreprocessConfig.

    Returns:
        Path of the file or folder.

    Raises:
        UserError: It is a label map, or cannot be written, or is there already.
    """
    path = Path(config.to_dicom)
    name = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    target = config.folder / "dicom" / (f"{name}.dcm" if config.dicom_format == "enhanced" else name)
    with naming(f"--to_dicom {path}"):
        image = load_nifti(path, check_array)
        array = np.asarray(image.dataobj).reshape(image.shape[:3])
        values = np.unique(array[:: max(len(array) // 16, 1)])
        if len(values) <= MOST_LABELS and (values == np.rint(values)).all() and not np.ptp(values) == 0:
            raise UserError("is a label map, which DICOM keeps as a segmentation: give a volume")
        synthetic = is_marked_synthetic(image.header)
        origin = Origin(name, "preprocessing", synthetic, config.subject or name)
        return write_dicom(array, image.affine, target, origin, config.dicom_format)
