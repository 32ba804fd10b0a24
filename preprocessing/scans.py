"""Raw scans: finding them, and saying what is wrong with a file before any work.

Nothing is repaired: a file that is wrong is named, with the remedy, and left alone. What is asked of every
volume is asked by volumetric.collection and volumetric.geometry; here is what only a raw scan must be.
"""

import contextlib
import fnmatch
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import UserError
from volumetric.collection import FEW_NAMED, content_of, copies_among, find, is_label_map, read
from volumetric.files import array_to_volume, by, file_digest, is_marked_synthetic, read_header
from volumetric.machine import usable_cores
from volumetric.names import in_folder, told_apart

import numpy as np
from tqdm import tqdm

from preprocessing.dicom import MARKED, convert_dicom

SMALLEST_EDGE = 16  # voxels; a registration of less succeeds and means nothing
BIDS_PATTERNS = ("*_angio.nii*", "*TOF*.nii*")
NOT_RAW = ("derivatives", "sourcedata", "code")  # of a BIDS tree
FAR_ABOVE = 50.0  # times the 99.99th percentile: no tissue
LEAST_BELOW = -0.05  # of the range of values: less is an offset
INVERTED = 0.7  # of the range of values, below which the border of a scan lies
HEAD_SHARE = 0.1  # of the 99th percentile: what is brighter is no air
LEAST_TISSUE = 0.1  # of the voxels, to say what a scan looks like
LEAST_BRIGHT = 2.0  # times the tissue, the brightest 0.1 %: TOF phantoms 2.7 to 3.6, T1 of MNI152 1.8
LEAST_UNEVEN = 0.1  # of the tissue's median, its quartiles apart: CT, whose air is at 0, has less
UNLIKE = {
    "CT": "all tissue has nearly one grey value",
    "T1, or an average": f"what is brightest is less than {LEAST_BRIGHT:g} times as bright as the tissue",
}


@dataclass
class Scan:
    """One raw scan.

    Args:
        name: Name of its outputs.
        path: NIfTI file.
        digest: SHA-256 of the file.
        content: SHA-256 of the voxels along right, front and up: grey values as they are.
        shape: Voxels along right, front and up.
        spacing: The same, mm.
        orientation: Codes of the axes in the file, for example LAS.
        like: What it looks like, of UNLIKE, or "".
    """

    name: str
    path: Path
    digest: str
    content: str
    shape: tuple
    spacing: tuple
    orientation: str
    like: str = ""


def find_scans(folder, pattern=None):
    """NIfTI files of a flat folder, of one folder per subject, or of a BIDS tree; links are followed.

    Args:
        folder: Folder of scans.
        pattern: Shell pattern of the names of files that are scans. None takes every NIfTI file, in a BIDS
            tree those of BIDS_PATTERNS, outside of derivatives.

    Returns:
        ({name: path}, {name: what is wrong with a file that looks like a scan}); names as of `names_below`.

    Raises:
        UserError: There is no such folder.
    """
    folder = Path(folder)
    bids = (folder / "dataset_description.json").exists() or any(folder.glob("sub-*/**/anat"))
    patterns = (pattern,) if pattern is not None else BIDS_PATTERNS if bids else ("*",)
    found = find(folder, dicom=True, left_out=NOT_RAW if bids else ())
    wrong = found.lost | {path: f"is {why}" for path, why in found.passed_over.items()}

    def wanted(path):
        return path.is_dir() or any(fnmatch.fnmatch(path.name.lower(), p.lower()) for p in patterns)

    names = names_below(filter(wanted, [*found.paths, *wrong]), folder)
    problems = {name: wrong[path] for path, name in names.items() if path in wrong}
    return {name: path for path, name in names.items() if path not in wrong}, problems


def names_below(paths, folder):
    """{path: name} of files by their place in a folder: sub-01/tof.nii.gz is sub-01_tof; no two are alike.

    The files of a folder come before those of the folders in it.
    """
    names = {}
    for path in paths:
        place = in_folder(path, folder).replace("/", "_")
        names[path.relative_to(folder)] = re.sub(r"[^\w.-]+", "_", place)
    order = sorted(names, key=lambda path: [*((1, part) for part in path.parts[:-1]), (0, path.name)])
    names = told_apart(names)
    return {folder / path: names[path] for path in order}


def audit_scan(name, path):
    """Read one scan and check all that only a raw scan must be, beside what every volume must.

    Returns:
        Scan.

    Raises:
        UserError: What was found, what is expected and what to do; the file's name is not in the text.
    """
    path = Path(path)
    volume = read(path, scan=True)
    shape = volume.array.shape
    if min(shape) < SMALLEST_EDGE:
        raise UserError(
            f"has {by(shape)} voxels, expected at least {SMALLEST_EDGE} along each axis: not a whole scan"
        )
    check_contrast(volume.array)
    spacing = tuple(float(s) for s in volume.spacing.round(4))
    like = unlike_tof(volume.array)
    content = content_of(array_to_volume(volume.array))
    return Scan(name, path, file_digest(path), content, shape, spacing, volume.axes, like)


def check_contrast(array):
    """Raise a UserError for what is a NIfTI file, but no magnitude image of a scanner.

    Shapes: (X, Y, Z) float32
    """
    low, high, top = np.percentile(array, (1, 99, 99.99))
    if is_label_map(array):
        number = len(np.unique(array))
        raise UserError(f"has {number} values, all whole numbers: a label map or mask, not a scan")
    far = int((array > FAR_ABOVE * max(top, 1e-12)).sum()) if top > 0 else 0
    if far:
        raise UserError(
            f"has {far} voxels of up to {array.max():g}, where 99.99 % of all are below {top:g}: repair them"
        )
    if low < LEAST_BELOW * (high - low):
        raise UserError(
            f"has values from {array.min():g}, expected none below 0: take the offset away (CT is no TOF)"
        )
    border = np.median(np.concatenate([array[[0, -1]].ravel(), array[:, [0, -1]].ravel()]))
    if border - low > INVERTED * (high - low):
        raise UserError("is as bright at its border as anywhere: its contrast is inverted")


def unlike_tof(array):
    """What a scan looks like if it does not look like TOF, of UNLIKE, or "": arteries are its brightest part.

    Shapes: (X, Y, Z) float32
    """
    some = array[::2, ::2, ::2]
    low, high = some.min(), np.percentile(some, 99)
    tissue = some[some > low + HEAD_SHARE * (high - low)]
    if tissue.size < LEAST_TISSUE * some.size:
        return ""
    quarter, median, three_quarters = np.percentile(tissue, (25, 50, 75))
    if three_quarters - quarter < LEAST_UNEVEN * median:
        return "CT"
    return "T1, or an average" if np.percentile(tissue, 99.9) < LEAST_BRIGHT * median else ""


def refuse_synthetic(scans, problems):
    """Move the NIfTI files that are marked as synthetic from {name: path} to {name: what is wrong}."""
    for name, path in list(scans.items()):
        with contextlib.suppress(UserError):  # what else is wrong with a file, the audit says
            if is_marked_synthetic(read_header(path)):
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
        UserError: There are none, or one folder lies in the other.
    """
    folder, source = Path(output).resolve(), Path(data).resolve()
    if source == folder or source in folder.parents or folder in source.parents:
        raise UserError(f"--output {output} and --data {data} lie in each other: give folders apart.")
    scans, problems = find_scans(data, pattern)
    if any(folder in path.resolve().parents for path in scans.values()):
        raise UserError(f"--data {data} holds a link to --output {output}: remove it.")
    if not allow_synthetic:
        refuse_synthetic(scans, problems)
    converted, wrong = convert_dicom(data, Path(output) / "converted", series, allow_synthetic)
    for path in converted:
        scans[beside(path.name.removesuffix(".nii.gz"), scans, problems)] = path
    for name, reason in wrong.items():
        problems[beside(name, scans, problems)] = reason
    if not scans and not problems:
        asked = "" if pattern is None else f" of a name like {pattern}"
        raise UserError(f"--data {data} holds no .nii or .nii.gz file{asked} and no DICOM series.")
    return scans, problems


def beside(name, *taken):
    """A name for a DICOM series that nothing else has: its own, or with _dicom behind it."""
    while any(name in names for names in taken):
        name += "_dicom"
    return name


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

    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        found = list(tqdm(pool.map(check, named.items()), "Checking scans", len(named), leave=False))
    problems = dict(f for f in found if isinstance(f, tuple))
    scans = [f for f in found if not isinstance(f, tuple)]
    for line in copies_among([(s.name, s.content) for s in scans]):
        name, text = line.split(" ", 1)
        problems[name] = text
    return [s for s in scans if s.name not in problems], problems


def summary(scans):
    """Lines on the shapes, spacings and orientations of the scans, and on those that do not look like TOF."""
    lines, unlike = [f"{len(scans)} scans can be used"], defaultdict(list)
    for title, values in (
        ("voxels", [by(s.shape) for s in scans]),
        ("spacing (mm)", [by(s.spacing) for s in scans]),
        ("orientation", [s.orientation for s in scans]),
    ):
        counts = Counter(values).most_common()
        shown = ", ".join(f"{value} ({number})" for value, number in counts[:5])
        lines.append(f"{title}: {shown}" + (f" and {len(counts) - 5} more" if len(counts) > 5 else ""))
    for scan in scans:
        unlike[scan.like].append(scan.name)
    for like in (like for like in UNLIKE if like in unlike):
        names = unlike[like]
        more = f" and {len(names) - FEW_NAMED} more" if len(names) > FEW_NAMED else ""
        lines.append(f"not like TOF, but like {like} ({UNLIKE[like]}): {', '.join(names[:FEW_NAMED])}{more}")
    return lines
