"""Raw scans: finding them, and saying what is wrong with a file before any work.

Nothing is repaired. nibabel and ITK repair the same fault in different ways and would place one file metres
apart; a file that is wrong is named, with the remedy, and left alone.
"""

import contextlib
import fnmatch
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

from preprocessing.dicom import MARKED, convert_dicom
from volumetric.cli import UserError
from volumetric.files import (
    HEADER_BYTES,
    NIFTI_SUFFIXES,
    as_damaged,
    by,
    duplicates_among,
    file_digest,
    is_grey,
    is_marked_synthetic,
    load_nifti,
)

SMALLEST_EDGE = 16  # voxels; a registration of less succeeds and means nothing
BIDS_PATTERNS = ("*_angio.nii*", "*TOF*.nii*")
NOT_RAW = ("derivatives", "sourcedata", "code")  # of a BIDS tree
OTHER_FORMATS = {".hdr": "nib-convert", ".mgz": "mri_convert", ".mgh": "mri_convert", ".nrrd": "3D Slicer"}
UNITS = {1: "metres", 3: "micrometres"}  # of the NIfTI header
MOST_LABELS = 64  # whole numbers, of which fewer make a label map
FAR_ABOVE = 50.0  # times the 99.99th percentile: no tissue
LEAST_BELOW = -0.05  # of the range of values: less is an offset
INVERTED = 0.7  # of the range of values, below which the border of a scan lies
GEOMETRY_TOLERANCE = 0.1  # mm, between the corners of the volume as sform and qform place them
SHEAR_TOLERANCE = 1e-4  # of the cosine between two axes; ITK refuses more


@dataclass
class Scan:
    """One raw scan.

    Args:
        name: Name of its outputs.
        path: NIfTI file.
        digest: SHA-256 of the file.
        content: SHA-256 of the voxels, wherever the header places them.
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


def find_scans(folder, pattern=None):
    """NIfTI files of a flat folder, of one folder per subject, or of a BIDS tree.

    Args:
        folder: Folder of scans.
        pattern: Shell pattern of the names of files that are scans. None takes every NIfTI file, in a BIDS
            tree those of BIDS_PATTERNS, outside of derivatives.

    Returns:
        ({name: path}, {name: what is wrong with a file that looks like a scan}); a name is that of the path.

    Raises:
        UserError: There is no such folder, or two files would have one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--data {folder} does not exist: give the folder that holds the raw scans.")
    bids = (folder / "dataset_description.json").exists() or any(folder.glob("sub-*/**/anat"))
    patterns = (pattern,) if pattern is not None else BIDS_PATTERNS if bids else ("*",)
    named, problems = {}, {}
    for path, problem in entries(folder, NOT_RAW if bids else ()):
        if not any(fnmatch.fnmatch(path.name.lower(), p.lower()) for p in patterns) and not path.is_dir():
            continue
        stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        name = re.sub(r"[^\w.-]+", "_", "_".join([*path.relative_to(folder).parts[:-1], stem]))
        if name in named:
            raise UserError(f"{path} and {named[name]} would both be called {name}: rename one.")
        if problem:
            problems[name] = problem
        else:
            named[name] = path
    return named, problems


def entries(folder, left_out):
    """Yield (path, what is wrong or "") of every NIfTI file, and of what stands in the place of one."""
    for place, folders, files in os.walk(folder):
        place = Path(place)
        for name in sorted(folders):
            if (place / name).is_symlink():
                yield place / name, "is a link to a folder, which is not followed: give the folder itself"
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in left_out)
        for name in sorted(f for f in files if not f.startswith(".")):
            path = place / name
            suffix = next((s for s in OTHER_FORMATS if name.lower().endswith(s)), None)
            if name.lower().endswith(NIFTI_SUFFIXES):
                gone = path.is_symlink() and not path.exists()
                yield path, "is a link to a file that is not here: fetch it (datalad get)" if gone else ""
            elif suffix is not None:
                yield path, f"is of a format that is not read: convert it to NIfTI ({OTHER_FORMATS[suffix]})"


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
        array = np.asarray(image.dataobj)
        check_values(array)
        array = array.astype(np.float32)
    check_contrast(array)
    spacing = tuple(float(s) for s in nib.affines.voxel_sizes(image.affine).round(4))
    orientation = "".join(nib.aff2axcodes(image.affine))
    voxels = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
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
    units = UNITS.get(int(header["xyzt_units"]) & 7)
    if units is not None:
        raise UserError(f"states its lengths in {units}, expected millimetres: convert its header")
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
    """Raise a UserError unless all voxels are finite, as float32 too, and not all are equal."""
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad == array.size:
        raise UserError("has NaN or Inf in every voxel: export it again")
    if bad:
        raise UserError(
            f"has NaN or Inf in {bad} of {array.size} voxels, which ITK silently reads as 0: repair it"
        )
    if max(abs(float(array.min())), abs(float(array.max()))) > np.finfo(np.float32).max:
        raise UserError(
            f"has values from {array.min():g} to {array.max():g}, beyond 32-bit numbers: scale them down"
        )
    if array.min() == array.max():
        found = "zero everywhere" if array.max() == 0 else f"constant (every voxel {array.max():g})"
        raise UserError(f"is {found}: export it again or remove it")


def check_contrast(array):
    """Raise a UserError for what is a NIfTI file, but no magnitude image of a scanner.

    Shapes: (X, Y, Z) float32
    """
    low, high, top = np.percentile(array, (1, 99, 99.99))
    some = np.unique(array[:: max(array.shape[0] // 16, 1)])
    if len(some) <= MOST_LABELS and (some == np.rint(some)).all():
        values = np.unique(array)
        if len(values) <= MOST_LABELS and (values == np.rint(values)).all():
            raise UserError(f"has {len(values)} values, all whole numbers: a label map or mask, not a scan")
    far = int((array > FAR_ABOVE * max(top, 1e-12)).sum()) if top > 0 else 0
    if far:
        raise UserError(
            f"has {far} voxels of up to {array.max():g}, where 99.99 % of all are below {top:g}: repair them"
        )
    if low < LEAST_BELOW * (high - low):
        raise UserError(f"has values from {array.min():g}, expected none below 0: take the offset away")
    border = np.median(np.concatenate([array[[0, -1]].ravel(), array[:, [0, -1]].ravel()]))
    if border - low > INVERTED * (high - low):
        raise UserError("is as bright at its border as anywhere: its contrast is inverted")


def refuse_synthetic(scans, problems):
    """Move the NIfTI files that are marked as synthetic from {name: path} to {name: what is wrong}."""
    for name, path in list(scans.items()):
        with contextlib.suppress(Exception):  # what else is wrong with a header, the audit says
            if is_marked_synthetic(nib.load(path).header):
                problems[name] = f"{MARKED} (its description)"
                del scans[name]


def collect(data, output, series=None, pattern=None, allow_synthetic=False):
    """Every scan of a data folder: NIfTI files, and those that DICOM series are converted to.

    Args:
        data: Folder of scans.
        output: Folder of the results; converted scans go to converted/ in it.
        series: Text that the description of a DICOM series must contain.
        pattern: Shell pattern of the names of NIfTI files, as of `find_scans`.
        allow_synthetic: Take what is marked as synthetic.

    Returns:
        ({name: path}, {name: what is wrong with a file or a DICOM series}).

    Raises:
        UserError: There are none, two have one name, or one folder lies in the other.
    """
    folder, source = Path(output).resolve(), Path(data).resolve()
    if source == folder or source in folder.parents or folder in source.parents:
        raise UserError(f"--output {output} and --data {data} lie in each other: give folders apart.")
    scans, problems = find_scans(data, pattern)
    if not allow_synthetic:
        refuse_synthetic(scans, problems)
    converted, wrong = convert_dicom(data, Path(output) / "converted", series, allow_synthetic)
    problems |= wrong
    for path in converted:
        name = path.name.removesuffix(".nii.gz")
        if name in scans:
            raise UserError(f"A DICOM series and {scans[name]} would both be called {name}: rename one.")
        scans[name] = path
    if not scans and not problems:
        asked = "" if pattern is None else f" of a name like {pattern}"
        raise UserError(f"--data {data} holds no .nii or .nii.gz file{asked} and no DICOM series.")
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
