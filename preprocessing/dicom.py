"""DICOM series to NIfTI files, by SimpleITK."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np

from volumetric.cli import UserError
from volumetric.files import NIFTI_SUFFIXES, atomic_path, file_digest, read_json

SLICE_TOLERANCE = 0.02  # of the distance between two slices
TURN_TOLERANCE = 1e-3  # of the cosines of a slice's axes
NOT_DICOM = (*NIFTI_SUFFIXES, ".json", ".csv", ".tsv", ".txt", ".bval", ".bvec", ".mat", ".png", ".md")


def convert_dicom(folder, output, wanted=None):
    """Convert every DICOM series below a folder to one NIfTI file each.

    Args:
        folder: Folder with DICOM files, in any order and depth.
        output: Folder for <patient folder>_<series description>.nii.gz. A file that is there is kept if it
            was made of the same slices, which the .json beside it tells; else it is made anew.
        wanted: Text that the description of a series must contain; None takes all.

    Returns:
        (paths of the NIfTI files, {name: what is wrong with a series that was not converted}).
    """
    folder = Path(folder)
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    places = sorted({p.parent for p in files if not p.name.lower().endswith(NOT_DICOM)})
    if not places:
        return [], {}
    import SimpleITK as sitk

    written, problems = [], {}
    for place in places:
        for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(place)):
            files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place), series)
            slices = [dicom_header(path) for path in files]
            description = slices[0].get("0008|103e", series)
            if wanted is not None and wanted.lower() not in description.lower():
                continue
            parts = (*place.relative_to(folder).parts, description)
            name = re.sub(r"[^\w.-]+", "_", "_".join(parts))
            path = Path(output) / f"{name}.nii.gz"
            if path in written:  # two series of one description
                name = f"{name}_{series.rsplit('.', 1)[-1]}"
                path = path.with_name(f"{name}.nii.gz")
            try:
                check_slices(slices)
                convert_series(files, path)
                written.append(path)
            except (UserError, RuntimeError) as error:
                problems[name] = " ".join(str(error).split())
    return written, problems


def convert_series(files, path):
    """Write the slices of a series as one NIfTI file, unless it is there and was made of the same ones."""
    import SimpleITK as sitk

    slices = hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()
    beside = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
    if path.exists() and beside.exists():
        record = read_json(beside)
        if record.get("slices_sha256") == slices and record.get("sha256") == file_digest(path):
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.unlink(missing_ok=True)
    with atomic_path(path) as part:
        sitk.WriteImage(sitk.ReadImage(files), str(part))
    with atomic_path(beside) as part:
        record = {"slices": len(files), "slices_sha256": slices, "sha256": file_digest(path)}
        part.write_text(json.dumps(record, indent=1), encoding="utf-8")


def dicom_header(path):
    """{tag: text} of a DICOM file."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}


def check_slices(slices):
    """Raise a UserError unless the slices of a DICOM series lie at even distances, all turned alike.

    Args:
        slices: {tag: text} of every slice, in order; a file with several slices is not checked.
    """
    if len(slices) < 3 or any("0020|0032" not in s or "0020|0037" not in s for s in slices):
        return
    places = np.array([[float(n) for n in s["0020|0032"].split("\\")] for s in slices])
    turns = np.array([[float(n) for n in s["0020|0037"].split("\\")] for s in slices])
    others = int((np.abs(turns - turns[0]).max(axis=1) > TURN_TOLERANCE).sum())
    if others:
        raise UserError(
            f"has {others} of {len(slices)} slices turned otherwise than its first: a localiser, or several "
            f"series under one number; export it again"
        )
    rows, columns = turns[0].reshape(2, 3)
    gaps = np.diff(places @ np.cross(rows, columns))
    if np.ptp(gaps) > SLICE_TOLERANCE * np.abs(gaps).max():
        raise UserError(
            f"has slices {np.abs(gaps).min():.3g} to {np.abs(gaps).max():.3g} mm apart, expected one "
            f"distance: slices are missing or of several series; export it again"
        )
