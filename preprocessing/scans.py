"""Raw scans: finding them, converting DICOM series, and saying what is wrong with a file before any work.

Nothing is repaired. nibabel and ITK repair the same fault in different ways and would place one file metres
apart; a file that is wrong is named, with the remedy, and left alone.
"""

import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from stylegan2_pytorch import NIFTI_SUFFIXES, UNREADABLE, by, is_grey, load_nifti

SMALLEST_EDGE = 16  # voxels; a registration of less succeeds and means nothing
GEOMETRY_TOLERANCE = 0.1  # mm, between the corners of the volume as sform and qform place them
SHEAR_TOLERANCE = 1e-4  # of the cosine between two axes; ITK refuses more
HEADER_SIZE = 540  # bytes of a NIfTI-2 header, the longer of the two


@dataclass
class Scan:
    """One raw scan.

    Args:
        name: Name of its outputs.
        path: NIfTI file.
        digest: SHA-256 of the file.
        shape: Voxels.
        spacing: mm.
        orientation: Axis codes, for example LAS.
    """

    name: str
    path: Path
    digest: str
    shape: tuple
    spacing: tuple
    orientation: str


def find_scans(folder):
    """NIfTI files of a flat folder or of one folder per subject, {name: path}; the name is the path's.

    Raises:
        ValueError: There is no such folder or no file in it, or two files would have one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"--data {folder} does not exist: give the folder that holds the raw scans.")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    paths = [p for p in files if p.name.lower().endswith(NIFTI_SUFFIXES)]
    named = {}
    for path in paths:
        stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        parts = [*path.relative_to(folder).parts[:-1], stem]
        name = re.sub(r"[^\w.-]+", "_", "_".join(parts))
        if name in named:
            raise ValueError(f"{path} and {named[name]} would both be called {name}: rename one.")
        named[name] = path
    return named


def audit_scan(name, path):
    """Read one scan and check all that nibabel and ITK would understand differently.

    Returns:
        Scan.

    Raises:
        ValueError: What was found, what is expected and what to do; the file's name is not in the text.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        image = load_nifti(path)
        header = raw_header(content)
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot be read ({reason}): copy it again or remove it") from None
    if not is_grey(image):
        raise ValueError(f"holds voxels of type {image.get_data_dtype()}, expected one number per voxel")
    check_shape(image.shape)
    check_geometry(header, image)
    try:
        array = np.asarray(image.dataobj, dtype=np.float32)
    except UNREADABLE as error:
        raise ValueError(
            f"cannot be read ({' '.join(str(error).split())}): copy it again or remove it"
        ) from None
    check_values(array)
    spacing = tuple(float(s) for s in nib.affines.voxel_sizes(image.affine).round(4))
    orientation = "".join(nib.aff2axcodes(image.affine))
    return Scan(name, path, hashlib.sha256(content).hexdigest(), image.shape, spacing, orientation)


def raw_header(content):
    """Header of a NIfTI file as it was written, before nibabel repairs it."""
    head = gzip.decompress(content)[:HEADER_SIZE] if content[:2] == b"\x1f\x8b" else content[:HEADER_SIZE]
    kinds = (nib.Nifti2Header, nib.Nifti1Header)
    kind = next(k for k in kinds if k.may_contain_header(head))
    size = kind.template_dtype.itemsize
    return kind(head[:size], check=False)


def check_shape(shape):
    """Raise a ValueError unless a scan is 3D and large enough to register."""
    if len(shape) == 4 and shape[3] == 1:
        raise ValueError(
            f"is 4D with one volume {shape}: ITK takes it for 3D and others do not; save it as 3D"
        )
    if len(shape) == 4:
        raise ValueError(
            f"is 4D with {shape[3]} volumes {shape}, expected one 3D scan: extract the right one"
        )
    if len(shape) != 3:
        raise ValueError(f"is {len(shape)}D {shape}, expected 3D")
    if min(shape) < SMALLEST_EDGE:
        raise ValueError(
            f"has {by(shape)} voxels, expected at least {SMALLEST_EDGE} along each axis: not a whole scan"
        )


def check_geometry(header, image):
    """Raise a ValueError unless a scan's place in the scanner is beyond doubt."""
    pixdim = np.asarray(header["pixdim"][1:4], dtype=float)
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        raise ValueError(f"has pixdim {by(pixdim)} mm, expected numbers above 0: repair its header")
    codes = int(header["sform_code"]), int(header["qform_code"])
    if codes == (0, 0):
        raise ValueError(
            "has neither sform nor qform (both codes are 0): where it lies is unknown; "
            "convert it again from DICOM"
        )
    affines = []
    if codes[0] > 0:
        affines.append(
            np.vstack([header["srow_x"], header["srow_y"], header["srow_z"], [0, 0, 0, 1]]).astype(float)
        )
        check_affine(affines[-1], "sform")
    if codes[1] > 0:
        affines.append(np.asarray(header.get_qform(), dtype=float))
        check_affine(affines[-1], "qform")
    if len(affines) == 2:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape])).reshape(3, -1)
        apart = np.abs(np.diff([a[:3, :3] @ corners + a[:3, 3:] for a in affines], axis=0)).max()
        if apart > GEOMETRY_TOLERANCE:
            raise ValueError(
                f"has a sform and a qform that place it {apart:.3g} mm apart, and programs disagree on which "
                f"counts: copy the right one onto the other"
            )


def check_affine(affine, which):
    """Raise a ValueError unless an affine is finite, invertible and without shear."""
    if not np.isfinite(affine).all():
        raise ValueError(f"has a {which} that is not finite: repair its header")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths < 1e-6).any() or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * lengths.prod():
        raise ValueError(f"has a {which} that is singular: repair its header")
    cosines = affine[:3, :3] / lengths
    shear = np.abs(cosines.T @ cosines - np.eye(3)).max()
    if shear > SHEAR_TOLERANCE:
        raise ValueError(
            f"has a {which} with sheared axes (cosine {shear:.2g}), which ITK refuses: resample it"
        )


def check_values(array):
    """Raise a ValueError unless all voxels are finite and not all are equal."""
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad == array.size:
        raise ValueError("has NaN or Inf in every voxel: export it again")
    if bad:
        raise ValueError(
            f"has NaN or Inf in {bad} of {array.size} voxels, which ITK silently reads as 0: repair it"
        )
    if array.min() == array.max():
        found = "zero everywhere" if array.max() == 0 else f"constant (every voxel {array.max():g})"
        raise ValueError(f"is {found}: export it again or remove it")


def convert_dicom(folder, output):
    """Convert every DICOM series below a folder to one NIfTI file each.

    Args:
        folder: Folder with DICOM files, in any order and depth.
        output: Folder for <patient folder>_<series description>.nii.gz; files that are there are kept.

    Returns:
        Paths of the NIfTI files.
    """
    import SimpleITK as sitk

    written = []
    folders = sorted({p.parent for p in Path(folder).rglob("*") if p.is_file()})
    for place in folders:
        for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(place)):
            files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place), series)
            reader = sitk.ImageFileReader()
            reader.SetFileName(files[0])
            reader.ReadImageInformation()
            has = reader.HasMetaDataKey("0008|103e")
            description = reader.GetMetaData("0008|103e").strip() if has else series
            relative = "_".join(place.relative_to(folder).parts)
            name = re.sub(r"[^\w.-]+", "_", "_".join(part for part in (relative, description) if part))
            path = Path(output) / f"{name}.nii.gz"
            if path in written:  # two series of one description
                path = path.with_name(f"{name}_{series.rsplit('.', 1)[-1]}.nii.gz")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f".part-{path.name}")
                sitk.WriteImage(sitk.ReadImage(files), str(part))
                part.replace(path)
            written.append(path)
    return written
