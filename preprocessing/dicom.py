"""DICOM series, as scanners and archives write them, to NIfTI files, each named and accounted for.

    paths, problems = convert_dicom("raw", "prepared/converted")

Every file that begins as DICOM is in a series or is named, and every series gets one line: converted, there
already, passed over (what is no scan: localisers, projections, screenshots), or refused with the reason. One
file is read in dicom_files.py; what belongs together, and where it lies, is decided in dicom_stacks.py.
"""

import contextlib
import gzip
import hashlib
import os
import re
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from volumetric.cli import UserError
from volumetric.collection import walk
from volumetric.files import NIFTI_SUFFIXES, SYNTHETIC, atomic_path, file_digest, read_json, write_json
from volumetric.machine import usable_cores
from volumetric.tables import write_records

import nibabel as nib
import numpy as np
from pydicom import config
from tqdm import tqdm

from preprocessing.dicom_files import read_file, stored_values
from preprocessing.dicom_stacks import Stack, stacks_of

RULES = 1  # number of the rules by which series are converted: files made by others are made anew
DIGITS = 6  # of the digest of a series' UID, in its name
LONGEST = 120  # characters of a name before those
PACKED = 1  # level of compression: time counts for more than size
MARKED = "no patient's scan: --allow_synthetic takes what is marked as synthetic"
REFUSED, PASSED_OVER, CONVERTED, KEPT = "refused", "passed over", "converted", "there already"


@dataclass
class Outcome:
    """What became of a series, or of a stack of one.

    Args:
        name: Name of its NIfTI file; of a file that is in no series, its path.
        verdict: REFUSED, PASSED_OVER, CONVERTED or KEPT.
        reason: Why it is not converted.
        files, slices, copies: How many; copies are files that equal others.
        description: Of the series.
    """

    name: str
    verdict: str
    reason: str = ""
    files: int = 1
    slices: int = 0
    copies: int = 0
    description: str = ""

    def line(self):
        """For the screen."""
        if self.reason:
            return f"{self.verdict}: {self.name}: {self.reason}"
        copies = f", copies left out: {self.copies}" if self.copies else ""
        return f"{self.verdict}: {self.name}: {self.slices} slices, files: {self.files}{copies}"


@dataclass
class Series:
    """Files of one series.

    Args:
        place: Folder that holds all of them, relative to the folder that was searched.
        files: List of DicomFile.
        copies: Files that equal one of these, of all series of its UID.
        fault: What is wrong with one of them, or with a file beside them, or "".
    """

    place: Path
    files: list
    copies: int = 0
    fault: str = ""

    @property
    def description(self):
        """Of the series, by its first file."""
        return self.files[0].description

    def name(self, part=""):
        """Folder, description, number, and a digest of the UID: the same at every call."""
        first = self.files[0]
        words = [*self.place.parts, first.description or "series", *([part] if part else [])]
        text = sanitised(words)[:LONGEST]
        number = "" if first.number is None else f"{first.number}-"
        return f"{text}_{number}{hashlib.sha256(first.series.encode()).hexdigest()[:DIGITS]}"


def convert_dicom(folder, output, wanted=None, allow_synthetic=False):
    """Convert every DICOM series below a folder to one NIfTI file each; prints one line for every series.

    Args:
        folder: Folder with DICOM files, in any order and depth.
        output: Folder for <patient folder>_<description>_<number>-<digest>.nii.gz, and for series.csv, which
            has the lines of all series. A file that is there is kept if it was made of the same slices by the
            same rules, which the .json beside it tells; else it is made anew.
        wanted: Text that the description of a series must contain; None takes all.
        allow_synthetic: Take what is marked as synthetic (0008,001C).

    Returns:
        (paths of the NIfTI files, {name: what is wrong with a series that was not converted}).
    """
    outcomes = convert_all(Path(folder), Path(output), wanted, allow_synthetic)
    if outcomes:
        print("\n".join(f"DICOM {outcome.line()}" for outcome in outcomes))
        Path(output).mkdir(parents=True, exist_ok=True)
        write_records(Path(output) / "series.csv", map(asdict, outcomes))
    taken = [o.name for o in outcomes if o.verdict in (CONVERTED, KEPT)]
    problems = {o.name: o.reason for o in outcomes if o.verdict == REFUSED}
    return [Path(output) / f"{name}.nii.gz" for name in taken], problems


def convert_all(folder, output, wanted, allow_synthetic):
    """Outcome of every series, and of every file that is in none."""
    series, lone = sorted_out(survey(folder), folder)
    outcomes, jobs, names = [], [], set()
    for file in lone:
        name = reserved(sanitised(file.path.relative_to(folder).parts), names)
        verdict, reason = REFUSED if file.fault else PASSED_OVER, file.fault or no_image(file)
        outcomes.append(Outcome(name, verdict, reason, description=file.description))
    for one in series:
        for stack in stacks_in(one, wanted, allow_synthetic):
            name = reserved(one.name(stack.part), names)
            verdict = REFUSED if stack.reason else PASSED_OVER if stack.passed_over else CONVERTED
            files = len({frame.file.path for frame in stack.frames}) or len(one.files)
            counts = files, len(stack.frames), one.copies
            outcomes.append(
                Outcome(name, verdict, stack.reason or stack.passed_over, *counts, one.description)
            )
            if verdict == CONVERTED:
                jobs.append((outcomes[-1], stack, output / f"{name}.nii.gz"))
    if jobs:
        output.mkdir(parents=True, exist_ok=True)
        with quiet(), ThreadPoolExecutor(min(4, usable_cores())) as pool:
            done = pool.map(lambda job: convert(*job), jobs)
            list(tqdm(done, "Converting DICOM", len(jobs), leave=False))
    return outcomes


@contextlib.contextmanager
def quiet():
    """pydicom warns of every value that breaks the rules: what matters is told as a fault of its file."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def sanitised(words):
    """Some words as a name of a file."""
    return re.sub(r"[^\w.-]+", "_", "_".join(words)).strip("_")


def reserved(name, names):
    """A name that no other series has, by a number at its end if it must be."""
    free, number = name, 1
    while free.lower() in names:
        number += 1
        free = f"{name}-{number}"
    names.add(free.lower())
    return free


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Finding series                                                                                           ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def survey(folder):
    """DicomFile of every file below a folder that begins as DICOM or is named so, but for hidden ones."""
    paths = [path for path in walk(folder) if not path.name.lower().endswith(NIFTI_SUFFIXES)]
    bar = tqdm(paths, "Reading DICOM headers", leave=False, disable=len(paths) < 1000)
    with quiet():
        return [file for file in map(read_file, bar) if file is not None]


def sorted_out(found, folder):
    """Files by series.

    Returns:
        ([Series], [DicomFile that is in none]).
    """
    by_uid, series = defaultdict(list), []
    lone = [file for file in found if not file.series]
    for file in found:
        if file.series:
            by_uid[file.series].append(file)
    for files in by_uid.values():
        kept = without_copies(files)
        for members in apart(kept):
            places = [file.path.parent.relative_to(folder) for file in members]
            series.append(Series(Path(os.path.commonpath(places)), members, len(files) - len(kept)))
    for file in lone:
        if file.shape and not file.fault:
            file.fault = "states no series (SeriesInstanceUID): export it again"
    blame(series, lone)
    return sorted(series, key=lambda s: (s.place.parts, s.files[0].number or 0, s.files[0].series)), lone


def without_copies(files):
    """Files of a series, but for those that equal another one byte by byte."""
    uids = Counter(file.uid for file in files)
    kept, digests = [], set()
    for file in files:
        digest = file_digest(file.path) if uids[file.uid] > 1 and not file.fault else None
        if digest is None or digest not in digests:
            kept.append(file)
        digests.add(digest)
    return kept


def apart(files):
    """Files of one series, by folder if each folder has slices of the same places; else as one.

    A series may be spread over folders; but anonymisers give one UID to several patients.
    """
    by_folder = defaultdict(list)
    for file in files:
        by_folder[file.path.parent].append(file)
    places = [
        {(file.instance, file.frames[0].position) for file in members if file.frames}
        for members in by_folder.values()
    ]
    most = max(places, key=len)
    return list(by_folder.values()) if all(p and p <= most for p in places) else [files]


def blame(series, lone):
    """Note faults: a damaged file that does not say of which series it is may be of any beside it."""
    for one in series:
        for file in one.files:
            if file.fault:
                one.fault = f"its file {file.name} {file.fault}"
        folders = {file.path.parent for file in one.files}
        for file in lone:
            if file.fault and file.path.parent in folders and not one.fault:
                one.fault = f"{file.name} beside it {file.fault}"


def no_image(file):
    """What a file without pixels is."""
    return f"no image ({file.sort.name})" if file.sort else "no image"


def stacks_in(series, wanted, allow_synthetic):
    """Stacks of a series, each with what it is or what is wrong with it."""
    frames = [frame for file in series.files for frame in file.frames]
    if wanted is not None and wanted.lower() not in series.description.lower():
        return [Stack(frames, passed_over=f"its description is {series.description!r}, without {wanted!r}")]
    if series.fault:
        return [Stack(frames, reason=series.fault)]
    if not frames:
        return [Stack(frames, passed_over=no_image(series.files[0]))]
    stacks = stacks_of(frames)
    for stack in stacks:
        synthetic = any(frame.file.synthetic for frame in stack.frames)
        if synthetic and not allow_synthetic and not stack.passed_over:
            stack.reason = f"{MARKED} (0008,001C)"
    return stacks


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Conversion                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def convert(outcome, stack, path):
    """Write a stack as one NIfTI file, unless it is there, made of the same slices by the same rules."""
    beside = path.with_name(f"{outcome.name}.json")
    try:
        if path.exists() and beside.exists():
            record = read_json(beside)
            digests = {file.path: file_digest(file.path) for file in files_of(stack)}
            slices = slices_digest(stack, digests)
            same = record.get("rules") == RULES and record.get("slices_sha256") == slices
            if same and record.get("sha256") == file_digest(path):
                outcome.verdict = KEPT
                return
            beside.unlink()
        digests = write_stack(stack, path)
    except (UserError, OSError) as error:
        outcome.verdict, outcome.reason = REFUSED, " ".join(str(error).split())
        return
    record = {"slices": len(stack.frames), "slices_sha256": slices_digest(stack, digests), "rules": RULES}
    write_json(beside, record | {"sha256": file_digest(path)})


def files_of(stack):
    """The different DicomFile of a stack, in order."""
    return list({frame.file.path: frame.file for frame in stack.frames}.values())


def slices_digest(stack, digests):
    """SHA-256 of which frames of which files make a stack; `digests` are those of the files, by path."""
    lines = [f"{digests[frame.file.path]} {frame.index}" for frame in stack.frames]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_stack(stack, path):
    """Write a stack; returns {path of a file: its SHA-256}.

    Numbers stay those of the files, and slope and intercept go to the header, where all frames have the same;
    else the values are float32.
    """
    digests, planes = {}, {}
    for file in files_of(stack):
        digests[file.path] = file_digest(file.path)
        for index, plane in enumerate(stored_values(file)):
            planes[file.path, index] = plane
    planes = [planes[frame.file.path, frame.index] for frame in stack.frames]
    slopes = {(frame.slope, frame.intercept) for frame in stack.frames}
    if len(slopes) > 1:
        scaled = zip(planes, stack.frames, strict=True)
        planes = [(p * f.slope + f.intercept).astype(np.float32) for p, f in scaled]
    slope, intercept = slopes.pop() if len(slopes) == 1 else (1.0, 0.0)
    synthetic = any(frame.file.synthetic for frame in stack.frames)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.result_type(*{plane.dtype.newbyteorder("=") for plane in planes}))
    header.set_data_shape((*planes[0].shape[::-1], len(planes)))
    header.set_xyzt_units("mm")
    header.set_sform(stack.affine, code=1)
    header.set_qform(stack.affine, code=1)
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["descrip"] = f"{SYNTHETIC}, from DICOM" if synthetic else "from DICOM"
    header["vox_offset"] = header.single_vox_offset
    with (
        atomic_path(path) as part,
        open(part, "wb") as file,
        gzip.GzipFile("", "wb", PACKED, file, mtime=0) as packed,
    ):
        packed.write(header.binaryblock + b"\0" * 4)
        for plane in planes:  # (rows, columns) in C order is a plane of (X, Y, Z) in Fortran order
            packed.write(plane.astype(header.get_data_dtype()).tobytes())
    return digests
