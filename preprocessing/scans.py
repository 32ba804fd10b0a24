"""Raw scans: finding them, converting DICOM series, and saying what is wrong with a file before any work.

Nothing is repaired. nibabel and ITK repair the same fault in different ways and would place one file metres
apart; a file that is wrong is named, with the remedy, and left alone.
"""

import gzip
import hashlib
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from volumetric.cli import UserError
from volumetric.files import (
    HEADER_BYTES,
    NIFTI_SUFFIXES,
    as_damaged,
    atomic_path,
    by,
    duplicates_among,
    file_digest,
    is_grey,
    load_nifti,
)

SMALLEST_EDGE = 16  # voxels; a registration of less succeeds and means nothing
GEOMETRY_TOLERANCE = 0.1  # mm, between the corners of the volume as sform and qform place them
SHEAR_TOLERANCE = 1e-4  # of the cosine between two axes; ITK refuses more
SLICE_TOLERANCE = 0.02  # of the distance between two slices
NOT_DICOM = (*NIFTI_SUFFIXES, ".json", ".csv", ".tsv", ".txt", ".bval", ".bvec", ".mat", ".png", ".md")


@dataclass
class Scan:
    """One raw scan.

    Args:
        name: Name of its outputs.
        path: NIfTI file.
        digest: SHA-256 of the file.
        content: SHA-256 of voxels and geometry.
        shape: Voxels.
        spacing: mm.
        orientation: Axis codes, for example LAS.
    """

    name: str
    path: Path
    digest: str
    content: str
    shape: tuple
    spacing: tuple
    orientation: str


def find_scans(folder):
    """NIfTI files of a flat folder or of one folder per subject, {name: path}; the name is the path's.

    Raises:
        UserError: There is no such folder or no file in it, or two files would have one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--data {folder} does not exist: give the folder that holds the raw scans.")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    paths = [p for p in files if p.name.lower().endswith(NIFTI_SUFFIXES)]
    named = {}
    for path in paths:
        stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        parts = [*path.relative_to(folder).parts[:-1], stem]
        name = re.sub(r"[^\w.-]+", "_", "_".join(parts))
        if name in named:
            raise UserError(f"{path} and {named[name]} would both be called {name}: rename one.")
        named[name] = path
    return named


def audit_scan(name, path):
    """Read one scan and check all that nibabel and ITK would understand differently.

    Returns:
        Scan.

    Raises:
        UserError: What was found, what is expected and what to do; the file's name is not in the text.
    """
    path = Path(path)
    image = load_nifti(path, check_grid)
    with as_damaged(), np.errstate(all="ignore"):
        check_geometry(raw_header(path), image)
        array = np.asarray(image.dataobj, dtype=np.float32)
    check_values(array)
    spacing = tuple(float(s) for s in nib.affines.voxel_sizes(image.affine).round(4))
    orientation = "".join(nib.aff2axcodes(image.affine))
    voxels = hashlib.sha256(array.tobytes() + image.affine.tobytes()).hexdigest()
    return Scan(name, path, file_digest(path), voxels, image.shape, spacing, orientation)


def raw_header(path):
    """Header of a NIfTI file as it was written, before nibabel repairs it."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
    kinds = (nib.Nifti2Header, nib.Nifti1Header)
    kind = next(k for k in kinds if k.may_contain_header(head))
    size = kind.template_dtype.itemsize
    return kind(head[:size], check=False)


def check_grid(header):
    """Raise a UserError unless a scan is 3D, of one number a voxel, and large enough to register."""
    if not is_grey(header):
        raise UserError(f"holds voxels of type {header.get_data_dtype()}, expected one number per voxel")
    shape = tuple(map(int, header.get_data_shape()))
    if len(shape) == 4 and shape[3] == 1:
        raise UserError(
            f"is 4D with one volume {shape}: ITK takes it for 3D and others do not; save it as 3D"
        )
    if len(shape) == 4:
        raise UserError(f"is 4D with {shape[3]} volumes {shape}, expected one 3D scan: extract the right one")
    if len(shape) != 3:
        raise UserError(f"is {len(shape)}D {shape}, expected 3D")
    if min(shape) < SMALLEST_EDGE:
        raise UserError(
            f"has {by(shape)} voxels, expected at least {SMALLEST_EDGE} along each axis: not a whole scan"
        )


def check_geometry(header, image):
    """Raise a UserError unless a scan's place in the scanner is beyond doubt."""
    pixdim = np.asarray(header["pixdim"][1:4], dtype=float)
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        raise UserError(f"has pixdim {by(pixdim)} mm, expected numbers above 0: repair its header")
    codes = int(header["sform_code"]), int(header["qform_code"])
    if codes == (0, 0):
        raise UserError(
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
            raise UserError(
                f"has a sform and a qform that place it {apart:.3g} mm apart, and programs disagree on which "
                f"counts: copy the right one onto the other"
            )


def check_affine(affine, which):
    """Raise a UserError unless an affine is finite, invertible and without shear."""
    if not np.isfinite(affine).all():
        raise UserError(f"has a {which} that is not finite: repair its header")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths < 1e-6).any() or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * lengths.prod():
        raise UserError(f"has a {which} that is singular: repair its header")
    cosines = affine[:3, :3] / lengths
    shear = np.abs(cosines.T @ cosines - np.eye(3)).max()
    if shear > SHEAR_TOLERANCE:
        raise UserError(
            f"has a {which} with sheared axes (cosine {shear:.2g}), which ITK refuses: resample it"
        )


def check_values(array):
    """Raise a UserError unless all voxels are finite and not all are equal."""
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad == array.size:
        raise UserError("has NaN or Inf in every voxel: export it again")
    if bad:
        raise UserError(
            f"has NaN or Inf in {bad} of {array.size} voxels, which ITK silently reads as 0: repair it"
        )
    if array.min() == array.max():
        found = "zero everywhere" if array.max() == 0 else f"constant (every voxel {array.max():g})"
        raise UserError(f"is {found}: export it again or remove it")


def convert_dicom(folder, output, wanted=None):
    """Convert every DICOM series below a folder to one NIfTI file each.

    Args:
        folder: Folder with DICOM files, in any order and depth.
        output: Folder for <patient folder>_<series description>.nii.gz; files that are there are kept.
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
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with atomic_path(path) as part:
                        sitk.WriteImage(sitk.ReadImage(files), str(part))
                written.append(path)
            except (UserError, RuntimeError) as error:
                problems[name] = " ".join(str(error).split())
    return written, problems


def dicom_header(path):
    """{tag: text} of a DICOM file."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}


def check_slices(slices):
    """Raise a UserError unless the slices of a DICOM series lie at even distances.

    Args:
        slices: {tag: text} of every slice, in order; a file with several slices is not checked.
    """
    if len(slices) < 3 or any("0020|0032" not in s or "0020|0037" not in s for s in slices):
        return
    places = np.array([[float(n) for n in s["0020|0032"].split("\\")] for s in slices])
    rows, columns = np.array([float(n) for n in slices[0]["0020|0037"].split("\\")]).reshape(2, 3)
    gaps = np.diff(places @ np.cross(rows, columns))
    if np.ptp(gaps) > SLICE_TOLERANCE * np.abs(gaps).max():
        raise UserError(
            f"has slices {np.abs(gaps).min():.3g} to {np.abs(gaps).max():.3g} mm apart, expected one "
            f"distance: slices are missing or of several series; export it again"
        )


def collect(data, output, series=None):
    """Every scan of a data folder: NIfTI files, and those that DICOM series are converted to.

    Args:
        data: Folder of scans.
        output: Folder of the results; converted scans go to converted/ in it.
        series: Text that the description of a DICOM series must contain.

    Returns:
        ({name: path}, {name: what is wrong with a DICOM series}).

    Raises:
        UserError: There are none, two have one name, or one folder lies in the other.
    """
    folder, source = Path(output).resolve(), Path(data).resolve()
    if source == folder or source in folder.parents or folder in source.parents:
        raise UserError(f"--output {output} and --data {data} lie in each other: give folders apart.")
    scans = find_scans(data)
    converted, problems = convert_dicom(data, Path(output) / "converted", series)
    for path in converted:
        name = path.name.removesuffix(".nii.gz")
        if name in scans:
            raise UserError(f"A DICOM series and {scans[name]} would both be called {name}: rename one.")
        scans[name] = path
    if not scans and not problems:
        raise UserError(f"--data {data} holds no .nii or .nii.gz file and no DICOM series.")
    return scans, problems


def audit(named):
    """Check every scan.

    Args:
        named: {name: path}.

    Returns:
        ([Scan], {name: reason}): what can be used, and what is wrong with the others, copies included.
    """

    def check(item):
        try:
            return audit_scan(*item)
        except UserError as error:
            return item[0], str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(tqdm(pool.map(check, named.items()), "Checking scans", len(named), leave=False))
    problems = dict(f for f in found if isinstance(f, tuple))
    scans = [f for f in found if not isinstance(f, tuple)]
    for line in duplicates_among([(s.name, s.content) for s in scans]):
        name, text = line.split(" ", 1)
        problems[name] = text
    return [s for s in scans if s.name not in problems], problems


def summary(scans):
    """Lines on the shapes, spacings and orientations of the scans."""
    lines = [f"{len(scans)} scans can be used"]
    for title, values in (
        ("voxels", [by(s.shape) for s in scans]),
        ("spacing (mm)", [by(s.spacing) for s in scans]),
        ("orientation", [s.orientation for s in scans]),
    ):
        counts = Counter(values).most_common()
        shown = ", ".join(f"{value} ({number})" for value, number in counts[:5])
        lines.append(f"{title}: {shown}" + (f" and {len(counts) - 5} more" if len(counts) > 5 else ""))
    return lines
