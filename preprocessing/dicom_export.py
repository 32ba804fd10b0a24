"""Volumes of the scanner's space, and those that a model made, as DICOM."""

from pathlib import Path

from volumetric.cli import UserError
from volumetric.collection import is_label_map, read
from volumetric.dicom_writing import Origin, write_dicom
from volumetric.files import SYNTHETIC, naming
from volumetric.names import name_of


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
    name = name_of(path)
    target = config.folder / "dicom" / (f"{name}.dcm" if config.dicom_format == "enhanced" else name)
    with naming(f"--to_dicom {path}"):
        volume = read(path)
        if is_label_map(volume.array):
            raise UserError("is a label map, which DICOM keeps as a segmentation: give a volume")
        synthetic = volume.described.startswith(SYNTHETIC)
        origin = Origin(name, "preprocessing", synthetic, config.subject or name)
        array = volume.as_stored(volume.array)
        return write_dicom(array, volume.stored, target, origin, config.dicom_format)
