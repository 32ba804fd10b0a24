"""The one door for volumes and label maps: finding, reading, telling apart, and what must not be in two sets.

    paths = find_volumes("volumes")            every file of the folder is taken, or named with the reason
    volume = read(paths[0])                    array along R, A, S, affine in mm
    volume.content                             what it is known by, whatever its name, axes or compression
    unique_names(paths)                        a name for each that no other has

A volume is known by its content: the SHA-256 of its voxels along right, front and up, scaled to [0, 1] by
their own range, wherever its header places them. A label map is known by its ids, unscaled.
"""

import functools
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from volumetric.cli import UserError, trainable_shape
from volumetric.files import (
    NIFTI_SUFFIXES,
    array_to_volume,
    as_damaged,
    by,
    load_with_header,
    naming,
    read_header,
    volume_to_array,
)
from volumetric.geometry import (
    CANONICAL,
    affine_of,
    apart,
    axes_of,
    same_grid,
    same_spacing,
    spacing_of,
    turn,
)
from volumetric.machine import usable_cores
from volumetric.names import names_in, refuse_alone
from volumetric.tables import Split

import nibabel as nib
import numpy as np
from tqdm import tqdm

Say = Callable[[str], object]  # what takes a line for the user, as print
Placed = tuple[Sequence[int], np.ndarray, Path | str]  # shape, affine in mm, and file of a volume
E = TypeVar("E", bound=Any)  # with `content` and `labels`, as a VolumeFile

MAX_FILES_NAMED = 50  # files listed in one message
FEW_NAMED = 8  # files named in a line of what is passed over
READERS = min(8, usable_cores())  # threads
FEW_VALUES = 64  # whole numbers, of which fewer make a label map
WHOLE = 1e-3  # of a whole number, that a slope in the header leaves of it
MAPS = tuple(f"_deviation{suffix}" for suffix in NIFTI_SUFFIXES)  # that the generator writes beside volumes
# Formats of images that are not read, and what converts them to NIfTI.
FOREIGN = dict.fromkeys((".mgz", ".mgh"), "mri_convert") | dict.fromkeys((".hdr", ".img"), "nib-convert")
FOREIGN |= dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd"), "3D Slicer") | {".mnc": "mnc2nii"}
FOREIGN |= {".nii.bz2": "bunzip2", ".nii.xz": "unxz", ".nii.zst": "zstd -d", ".nii.zip": "unzip"}
DICOM = dict.fromkeys((".dcm", ".dcm.gz", ".ima"), "preprocessing/preprocessing.py")
# What lies beside volumes and is none.
BESIDE: tuple[str, ...] = (".json", ".csv", ".tsv", ".txt", ".md", ".pdf", ".html", ".png", ".jpg", ".gif")
BESIDE += (".svg", ".log", ".mat", ".bval", ".bvec", ".yaml", ".yml", ".npy", ".npz", ".xml", ".xlsx", ".py")
BESIDE += (".sh", ".pt")
LABELS = "labels-"  # begins what a label map is known by: in a list of contents it is no volume


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Finding                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass
class Found:
    """What a folder holds: nothing is left out without a word.

    Args:
        paths: NIfTI files, sorted.
        lost: {path: why} of what stands in the place of a volume that is not here.
        passed_over: {path: why} of images that are not read.
        others: Number of other files by ending, of kinds that do not lie beside volumes as a rule.
    """

    paths: list[Path] = field(default_factory=list)
    lost: dict[Path, str] = field(default_factory=dict)
    passed_over: dict[Path, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """Lines on what was passed over, one for each reason."""
        reasons = defaultdict(list)
        for path, why in self.passed_over.items():
            reasons[why].append(str(path))
        lines = []
        for why, paths in reasons.items():
            more = f" and {len(paths) - FEW_NAMED} more" if len(paths) > FEW_NAMED else ""
            lines.append(f"passed over: {', '.join(paths[:FEW_NAMED])}{more}: {why}")
        if self.others:
            kinds = ", ".join(f"{number} {ending}" for ending, number in sorted(self.others.items()))
            lines.append(f"passed over: {kinds}: no NIfTI files")
        return lines


def find(
    folder: Path | str, flag: str = "--data", dicom: bool = False, left_out: Sequence[Path | str] = ()
) -> Found:
    """Found: every file below a folder, links followed; hidden files and folders are passed over.

    What can be reached by its own path and by a link to its folder has its own path.

    Args:
        folder: Folder.
        flag: Flag that names it, for messages.
        dicom: DICOM files are read elsewhere: they are not named.
        left_out: Names of folders that are not entered.

    Raises:
        UserError: There is no such folder, or a name in it is no text.
    """
    folder = Path(folder)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{flag} {folder} {state}: give the folder that holds the .nii or .nii.gz volumes.")
    found, foreign = Found(), FOREIGN if dicom else FOREIGN | DICOM
    for path in walk(folder, left_out, found):
        refuse_odd_name(path, flag)
        sort_in(path, found, foreign)
    found.paths.sort()
    return found


def walk(
    folder: Path | str, left_out: Sequence[Path | str] = (), found: Found | None = None
) -> Iterator[Path]:
    """Yield every file below a folder, links followed, each folder once; hidden ones are passed over.

    Args:
        folder, left_out: As for `find`.
        found: Found, which is told of the folders that are not entered for another reason.
    """
    entered, starts, found = set(), [Path(folder)], found or Found()

    def closed(error: OSError) -> None:
        found.lost[Path(error.filename)] = f"cannot be looked into ({error.strerror}): change its permissions"

    for start in starts:  # it grows by the links to folders that are met
        for name, folders, files in os.walk(start, onerror=closed):
            place, real = Path(name), os.path.realpath(name)
            if real in entered:
                found.passed_over[place] = "a link to a folder that is read already"
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in left_out)
            starts += [place / name for name in folders if (place / name).is_symlink()]
            yield from (place / name for name in sorted(files) if not name.startswith("."))


def sort_in(path: Path, found: Found, foreign: dict[str, str]) -> None:
    """Put a file where it belongs in Found."""
    name = path.name.lower()
    kind = next((suffix for suffix in sorted(foreign, key=len, reverse=True) if name.endswith(suffix)), None)
    if name.endswith(MAPS):
        found.passed_over[path] = "a map of deviation, which is no volume"
    elif name.endswith(NIFTI_SUFFIXES) and path.is_file():
        found.paths.append(path)
    elif name.endswith(NIFTI_SUFFIXES):
        found.lost[path] = "is a link to a file that is not here: fetch it (datalad get), or remove it"
    elif kind is not None:
        found.passed_over[path] = f"a format that is not read; convert it to NIfTI ({foreign[kind]})"
    elif not name.endswith(BESIDE):
        found.others[path.suffix or "without an ending"] += 1


def refuse_odd_name(path: Path, flag: str) -> None:
    """Raise a UserError for a path that is not UTF-8: it cannot be printed or written down."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{flag} holds file names that are not UTF-8: rename {str(path)!a}.") from None


def find_volumes(folder: Path | str, flag: str = "--data", say: Say = print) -> list[Path]:
    """Sorted paths of all volumes below a folder; tells what was passed over.

    Args:
        folder: Folder.
        flag: Flag that names it, for messages.
        say: Function that is given each line about what was passed over.

    Raises:
        UserError: There are none, or a link leads to a volume that is not here.
    """
    found = find(folder, flag)
    lost = [f"{path} {why}" for path, why in found.lost.items()]
    refuse_unusable(lost, len(found.paths) + len(lost), folder)
    if not found.paths:
        more = "".join(f"\n  {line}" for line in found.notes())
        raise UserError(f"{flag} {folder} holds no .nii or .nii.gz file.{more}")
    for line in found.notes():
        say(line)
    return found.paths


def choose(
    folder: Path | str,
    flag: str = "--data",
    split: Path | str | None = None,
    parts: Sequence[str] = ("training",),
    say: Say = print,
) -> tuple[list[Path], dict[Path, str]]:
    """Volumes of a folder, or of parts of its split: ([path], {path: content that the split states}).

    Args:
        folder, flag, say: As for `find_volumes`.
        split: Table of preprocessing/split.py; None takes all.
        parts: Which of tables.PARTS.
    """
    paths = find_volumes(folder, flag, say)
    if split is None:
        return paths, {}
    stated = Split.read(split).contents(paths, parts)
    named = " and ".join(parts)
    say(f"{flag} {folder}: {len(stated)} of {len(paths)} volumes are for {named} in {split}")
    return list(stated), stated


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Reading                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Volume:
    """A volume that was read.

    Args:
        array: (X, Y, Z) along right, front and up, or the axes that were asked for.
        affine: (4, 4), voxels of `array` to RAS mm.
        stored: Affine of the file, in mm; `as_stored` takes an array back to it.
        described: Description in its header.
    """

    array: np.ndarray
    affine: np.ndarray
    stored: np.ndarray
    described: str = ""

    def __repr__(self) -> str:
        size = f"{by(self.array.shape)} voxels of {by(self.spacing.round(3))} mm"
        return f"Volume({size}, stored along {self.axes})"

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size, (3,) mm."""
        return spacing_of(self.affine)

    @property
    def axes(self) -> str:
        """Codes of the axes in the file, for example LPS."""
        return axes_of(self.stored)

    def as_stored(self, array: np.ndarray) -> np.ndarray:
        """An array of this volume's grid along the file's axes. Shapes: (X, Y, Z) -> (X', Y', Z')"""
        return turn(array, self.affine, self.axes)[0]

    @property
    def content(self) -> str:
        """What the volume is known by; see the module."""
        return content_of(scaled(turn(self.array, self.affine)[0]))


def read(
    path: Path | str,
    shape: Sequence[int] | None = None,
    axes: str = CANONICAL,
    scan: bool = False,
    constant: bool = False,
) -> Volume:
    """Read a NIfTI volume, and check that it can be used.

    Args:
        path: .nii or .nii.gz file; further axes of length 1, as in (X, Y, Z, 1), are dropped.
        shape: Expected shape (X, Y, Z) along `axes`, voxels, or None for any.
        axes: Codes of the wanted axes.
        scan: It is a raw scan; see `geometry.affine_of`.
        constant: It may be, as an empty mask is.

    Returns:
        Volume, float32; a view of what was read where its axes allow it.

    Raises:
        UserError: It cannot be used; the text says what was found, what is expected and what to do.
    """
    image, header = load_with_header(path, functools.partial(check_array, shape=shape, scan=scan))
    stored = affine_of(image, header, scan)
    with as_damaged(), np.errstate(all="ignore"):
        array = image.get_fdata(dtype=np.float32, caching="unchanged")
    array = array.reshape(array.shape[:3])
    check_values(array, constant)
    array, affine = turn(array, stored, axes)
    if shape is not None and array.shape != tuple(shape):
        refuse_shape(array.shape, shape)
    return Volume(array, affine, stored, description_of(header))


def stored_axes(path: Path | str) -> str:
    """Codes of the axes along which a volume is stored, read off its header; text."""
    with naming(path), as_damaged():
        header = read_header(path)
        return axes_of(type(header)(header.binaryblock).get_best_affine())  # as nibabel repairs it


def read_whole(path: Path | str, axes: str = CANONICAL) -> tuple[Volume, str]:
    """Read a NIfTI file of whole numbers: a label map, or a mask; as `read`.

    Returns:
        (Volume, int64, of values within 1e-3 of whole numbers; text of its header's description).

    Raises:
        UserError: It cannot be read, or its values are no whole numbers.
    """
    image, header = load_with_header(path, check_array)
    stored = affine_of(image, header)
    with as_damaged(), np.errstate(all="ignore"):
        array = np.asanyarray(image.dataobj)
    array = array.reshape(array.shape[:3])
    whole = np.rint(array)
    if not np.isfinite(array).all() or (np.abs(array - whole) > WHOLE).any():
        raise UserError(f"has values that are no whole numbers: {why_not_whole(array, header)}")
    array, affine = turn(whole.astype(np.int64), stored, axes)
    volume = Volume(array, affine, stored, description_of(header))
    return volume, volume.described


def description_of(header: nib.Nifti1Header) -> str:
    """Text of a header's description."""
    return bytes(header["descrip"]).split(b"\0")[0].decode(errors="replace").strip()


def why_not_whole(array: np.ndarray, header: nib.Nifti1Header) -> str:
    """What values that are no labels come from, and the remedy."""
    slope = float(header["scl_slope"])
    if np.isfinite(slope) and slope not in (0, 1) and np.isfinite(array).all():
        return (
            f"its header scales what is stored by {slope:.6g} (scl_slope), as for a picture; save the labels "
            f"as whole numbers"
        )
    return "labels were interpolated; resample anew, by nearest neighbour"


def read_volume(
    path: Path | str, shape: Sequence[int] | None = None, axes: str = CANONICAL
) -> tuple[np.ndarray, Volume]:
    """Read a NIfTI volume as the networks see it, scaled to [0, 1] by its own minimum and maximum.

    Arguments and errors are those of `read`.

    Returns:
        (float32 array (1, Z, X, Y) in [0, 1], Volume with the array as it was read).
    """
    volume = read(path, shape, axes)
    return scaled(volume.array), volume


def scaled(array: np.ndarray) -> np.ndarray:
    """A volume as the networks see it. Shapes: (X, Y, Z) -> (1, Z, X, Y) float32 in [0, 1], a copy"""
    low, high = array.min(), array.max()
    volume = np.array(array_to_volume(array), dtype=np.float32, order="C")
    volume -= low
    volume /= max(high - low, np.finfo(np.float32).tiny)  # a generated volume may be constant
    return volume


def check_array(header: nib.Nifti1Header, shape: Sequence[int] | None = None, scan: bool = False) -> None:
    """Raise a UserError unless a NIfTI header is of one 3D array that can have a shape (X, Y, Z).

    Of a raw scan, which other programs read too, there must be no further axes, of length 1 or not.
    """
    if not is_grey(header):
        raise UserError(f"holds voxels of type {header.get_data_dtype()}, expected one number per voxel")
    found = tuple(map(int, header.get_data_shape()))
    if len(found) < 3 or any(n != 1 or scan for n in found[3:]):
        raise UserError(f"is {len(found)}D {found}, expected 3D (X, Y, Z): extract one volume")
    if shape is not None and sorted(found[:3]) != sorted(shape):  # before anything of that size is read
        refuse_shape(found[:3], shape)


def refuse_shape(found: Sequence[int], shape: Sequence[int]) -> None:
    """Raise a UserError for a volume of another shape; the remedy has values that can be typed."""
    own = ""
    if tuple(found) == trainable_shape(found):
        own = f", or train at its own: --image_size {found[0]} --image_depth {found[2]}"
    size = ",".join(map(str, shape))
    raise UserError(
        f"has {by(found)} voxels, expected {by(shape)}: bring all there with preprocessing/conform.py "
        f"--size {size}{own}"
    )


def check_values(array: np.ndarray, constant: bool = False) -> None:
    """Raise a UserError unless all voxels are finite, and not all are equal if they must not be."""
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise UserError(
            f"has NaN or Inf in {bad} of {array.size} voxels: repair or remove it (numbers beyond 3e38 are "
            f"Inf: scale them down)"
        )
    if not constant and array.min() == array.max():
        raise UserError(f"is constant (every voxel {array.min():g}): remove it")


def is_grey(image: nib.Nifti1Image | nib.Nifti1Header) -> bool:
    """True if a nibabel image or header has one real number per voxel."""
    return image.get_data_dtype().names is None and image.get_data_dtype().kind != "c"


def is_label_map(array: np.ndarray) -> bool:
    """True for an array of few whole numbers; a few voxels tell that most volumes are none."""
    steps = tuple(slice(None, None, max(n // 16, 1)) for n in array.shape)
    return has_few_whole(array[steps]) and has_few_whole(array)


def has_few_whole(array: np.ndarray) -> bool:
    """True if an array has at most FEW_VALUES different values, all whole numbers."""
    values = np.unique(array)
    return len(values) <= FEW_VALUES and bool((values == np.rint(values)).all())


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Telling apart                                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def content_of(volume: np.ndarray) -> str:
    """SHA-256 of a volume as the networks see it, (1, Z, X, Y) float32 along R, A, S, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(volume).data).hexdigest()


def content_of_labels(labels: np.ndarray) -> str:
    """What a label map is known by: LABELS and the SHA-256 of its ids along R, A, S, and of its shape.

    Shapes: (X, Y, Z) whole numbers -> text
    """
    ids = np.ascontiguousarray(labels, dtype=np.int16)
    return LABELS + hashlib.sha256(repr(ids.shape).encode() + ids.tobytes()).hexdigest()


def pair_up(
    folders: dict[str, Path | str], only: Collection[str] | None = None
) -> dict[str, tuple[Path, ...]]:
    """{case: paths, in the order of the folders} of files that are called alike in several folders.

    Args:
        folders: {flag: folder}.
        only: Names of the cases that are wanted; None is all, and all must have partners.

    Raises:
        UserError: A folder has two files of one name, or a file has no partner.
    """
    found = {}
    for flag, folder in folders.items():
        names = names_in(folder, find_volumes(folder, f"--{flag}"), f"--{flag}")
        found[flag] = {name: path for path, name in names.items() if only is None or name in only}
    for flag, paths in found.items():
        for other in found.keys() - {flag}:
            refuse_alone(paths, found[other], flag, f"--{other} {folders[other]}")
    first = next(iter(found.values()))
    return {name: tuple(one[name] for one in found.values()) for name in sorted(first)}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Sets of volumes                                                                                          ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class VolumeFile:
    """A volume in a file, as it was when it was checked.

    Args:
        path: The file.
        shape: (X, Y, Z), voxels, along right, front and up.
        affine: (4, 4), mm, of these.
        axes: Codes of the axes in the file.
        content: What the volume is known by.
        labels: It is a label map.
    """

    path: Path
    shape: tuple[int, ...]
    affine: np.ndarray
    axes: str
    content: str
    labels: bool = False

    def __repr__(self) -> str:
        kind = "label map" if self.labels else "volume"
        size = f"{by(self.shape)} voxels of {by(self.spacing.round(3))} mm"
        return f"VolumeFile({self.path}: {kind}, {size}, content {self.content[:8]})"

    @property
    def name(self) -> str:
        """The path, for messages."""
        return str(self.path)

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size, (3,) mm."""
        return spacing_of(self.affine)

    def read(self) -> np.ndarray:
        """The array (X, Y, Z) along right, front and up, in [0, 1], float32."""
        with naming(self.path):
            return np.ascontiguousarray(volume_to_array(scaled(read(self.path).array)))


def examined(path: Path | str, shape: Sequence[int] | None = None) -> VolumeFile:
    """The VolumeFile of a path; a UserError, without the name, if it cannot be used."""
    volume = read(path, shape)
    labels = is_label_map(volume.array)
    return VolumeFile(Path(path), volume.array.shape, volume.affine, volume.axes, volume.content, labels)


def read_all(
    paths: Sequence[Path],
    work: Callable[[Path], E],
    title: str,
    folder: Path | str,
    stated: dict[Path, str] | None = None,
    readers: int = READERS,
) -> list[E]:
    """What a function finds in every file, in the files' order, read by several threads.

    Args:
        paths: Files.
        work: Function of a path; what it returns has `content` and `labels` as a VolumeFile.
        title: Of the progress bar.
        folder: For messages.
        stated: {path: content} of a split; None states none.
        readers: Number of threads.

    Raises:
        UserError: One line for every file of which `work` raised one; there are label maps among volumes; or
            a volume is not the one that the split knows.
    """

    def guarded(path: Path) -> E | str:
        try:
            found = work(path)
        except (UserError, OSError) as error:
            return f"{path} {error}".rstrip(".")
        return unlike_split(path, found.content, stated) or found

    with ThreadPoolExecutor(readers) as pool:
        found = list(tqdm(pool.map(guarded, paths), title, len(paths), leave=False))
    refuse_unusable([one for one in found if isinstance(one, str)], len(paths), folder)
    maps = [path for path, one in zip(paths, found, strict=True) if one.labels]
    if 0 < len(maps) < len(paths):
        raise UserError(
            f"{len(maps)} of the {len(paths)} files in {folder} are label maps or masks, the first "
            f"{maps[0]}: keep them in a folder of their own."
        )
    return found


def unlike_split(path: Path, content: str, stated: dict[Path, str] | None) -> str:
    """What is wrong with a volume that its split knows otherwise, or ""; `stated` is of `choose`."""
    if stated and content != stated[path]:
        return f"{path} has other voxels than the split knows: make the split again"
    return ""


def volumes_in(
    folder: Path | str,
    flag: str,
    fewest: int = 1,
    split: Path | str | None = None,
    parts: Sequence[str] = ("training",),
    examine: Callable[[Path], VolumeFile] = examined,
) -> list[VolumeFile]:
    """[VolumeFile] of a folder, sorted by path.

    Args:
        folder, flag, split, parts: As for `choose`.
        fewest: Volumes that are needed.
        examine: Function that gives the VolumeFile of a path, as `examined`.

    Raises:
        UserError: One line for every file that cannot be used, or there are too few.
    """
    paths, stated = choose(folder, flag, split, parts)
    found = read_all(paths, examine, f"Checking {flag}", folder, stated)
    if len(found) < fewest:
        raise UserError(f"{flag} {folder} holds {len(found)} volumes, at least {fewest} are needed.")
    return found


def refuse_unusable(problems: list[str], number: int, folder: Path | str) -> None:
    """Raise a UserError with one line for every problem, if there is any."""
    if problems:
        more = [f"... and {len(problems) - MAX_FILES_NAMED} more"] if len(problems) > MAX_FILES_NAMED else []
        listed = "\n  ".join(problems[:MAX_FILES_NAMED] + more)
        raise UserError(f"{len(problems)} of the {number} volumes in {folder} cannot be used:\n  {listed}")


def copies_among(volumes: Sequence[tuple[Path | str, str]]) -> list[str]:
    """Lines that name every volume whose content is that of an earlier one; `volumes` are (path, content)."""
    first = {}
    for path, content in volumes:
        first.setdefault(content, path)
    return [
        f"{path} has the same voxels as {first[content]}: remove one"
        for path, content in volumes
        if path != first[content]
    ]


def same_geometry(sets: dict[str, list[VolumeFile]]) -> None:
    """Raise a UserError unless all volumes of several sets have one shape and one voxel size.

    Args:
        sets: {flag: [VolumeFile]}.
    """
    first = next(iter(sets.values()))[0]
    for volume in (volume for volumes in sets.values() for volume in volumes):
        if volume.shape != first.shape or not same_spacing(volume.spacing, first.spacing):
            raise UserError(
                f"{volume.path} has {by(volume.shape)} voxels of {by(volume.spacing.round(3))} mm, "
                f"{first.path} has {by(first.shape)} of {by(first.spacing.round(3))}: resample one set."
            )


def refuse_other_grid(one: Placed, other: Placed) -> None:
    """Raise a UserError unless two volumes are of one grid; each is (shape, affine in mm, path).

    Grids that are a small part of a voxel apart are one: an affine is stored in float32, or rounded.
    """
    (shape, affine, path), (expected, place, partner) = one, other
    if shape != expected or not same_spacing(spacing_of(affine), spacing_of(place)):
        raise UserError(
            f"{path} is of another grid than {partner} ({by(shape)} voxels of "
            f"{by(spacing_of(affine).round(3))} mm, expected {by(expected)} of "
            f"{by(spacing_of(place).round(3))} mm at the same place): resample it, by nearest neighbour."
        )
    if not same_grid(place, affine, shape):
        raise UserError(
            f"{path} lies {apart(affine, place, shape):.3g} mm beside {partner}, expected the same place: "
            f"resample it, by nearest neighbour."
        )


def refuse_overlap(known: dict[str, str], others: Sequence[VolumeFile], what: str, flag: str) -> None:
    """Raise a UserError if volumes of one set are in another, by their content.

    Args:
        known: {content: what to call it}, for example its path.
        others: [VolumeFile], or what else has `path` and `content`.
        what: What the first set is, for messages: "the training set --real x".
        flag: Of the second.
    """
    shared = [volume for volume in others if volume.content in known]
    if shared:
        raise UserError(
            f"{len(shared)} of the {len(others)} volumes of {flag} are in {what}, the first {shared[0].path} "
            f"({known[shared[0].content]}): they must be of other subjects."
        )


def contents_of(sets: dict[str, list[VolumeFile]]) -> dict[str, list[str]]:
    """{name: [content]} of sets of VolumeFiles, for a record: what a result is of, whatever it is called."""
    return {name: [volume.content for volume in volumes] for name, volumes in sets.items()}


def content_of_set(contents: Iterable[str]) -> str:
    """SHA-256 of what the volumes of a set are known by, in any order, in hexadecimal."""
    return hashlib.sha256("".join(sorted(contents)).encode()).hexdigest()


def known_by_content(volumes: Iterable[VolumeFile]) -> dict[str, str]:
    """{content: path} of VolumeFiles, for `refuse_overlap`."""
    return {volume.content: str(volume.path) for volume in volumes}
