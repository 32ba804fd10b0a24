"""Bytes of files: NIfTI in and out, JSON, digests, locks, and writing that leaves no half file.

A NIfTI array is (X, Y, Z); inside the networks a volume is (B, 1, D, H, W) = (B, 1, Z, X, Y), with values in
[0, 1].
"""

import contextlib
import errno
import gzip
import hashlib
import itertools
import json
import math
import os
import platform
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from volumetric import __version__
from volumetric.cli import UserError

import nibabel as nib
import numpy as np
from einops import rearrange
from numpy.typing import ArrayLike

try:
    import fcntl
except ModuleNotFoundError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]  # a module or nothing


Record = dict[str, Any]  # what a JSON file or a checkpoint holds: {name: value}
Check = Callable[[nib.Nifti1Header], None]  # raises a UserError for what is not wanted

SYNTHETIC = "SYNTHETIC"  # how the description of a made volume begins
NIFTI_SUFFIXES = (".nii", ".nii.gz")
MAX_REASON = 300  # characters of an error of a library's

MAX_VOXELS = 2**30  # 4 GiB as float32, a head at 0.2 mm
HEADER_BYTES = 540  # of a NIfTI-2 header, the longer of the two
DEFLATE = 1032  # times that a .gz can grow at most
MAX_BEFORE = 2**26  # bytes before the voxels: header extensions, in which tools keep all tags of a DICOM file
MAX_BEHIND = 2**20  # bytes behind the voxels
GZIP = b"\x1f\x8b"  # that every gzip file begins with
# What stands in the place of a file whose content was not fetched.
POINTERS = {b"/annex/objects/": "git-annex: fetch it (datalad get)"}
POINTERS |= {b"version https://git-lfs": "Git LFS: fetch it (git lfs pull)"}
WEEK = 7 * 24 * 3600.0  # seconds
KINDS = (nib.Nifti2Image, nib.Nifti1Image)
NOT_A_LINK = getattr(os, "O_NOFOLLOW", 0)


def array_to_volume(array: np.ndarray) -> np.ndarray:
    """NIfTI array (X, Y, Z) -> network volume (1, Z, X, Y), in C order."""
    return rearrange(array, "x y z -> 1 z x y")


def volume_to_array(volume: np.ndarray) -> np.ndarray:
    """Network volume (1, Z, X, Y) -> NIfTI array (X, Y, Z)."""
    return rearrange(volume, "1 z x y -> x y z")


def load_nifti(path: Path | str, check: Check | None = None) -> nib.Nifti1Image:
    """nibabel image of a NIfTI file; see `load_with_header`."""
    return load_with_header(path, check)[0]


def load_with_header(
    path: Path | str, check: Check | None = None
) -> tuple[nib.Nifti1Image, nib.Nifti1Header]:
    """nibabel image of a NIfTI-1 or NIfTI-2 file, read as a whole and to the checksum at its end.

    The header comes first: what it states must fit the file, before anything of that size is read. Of a .gz,
    no more is decompressed than it states.

    Args:
        path: .nii or .nii.gz file.
        check: Function of the header that raises a UserError.

    Returns:
        (image, its header as it was written: nibabel repairs some faults without a word).

    Raises:
        UserError: The file is damaged, larger than MAX_VOXELS, named wrongly, or not what `check` wants.
    """
    path = Path(path)
    with as_damaged():
        packed = is_packed(path)
        size = path.stat().st_size * (DEFLATE if packed else 1)
        with gzip.open(path) if packed else open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
            kind, header, needed = stated_size(head, check)
            refuse_cut_off(needed, size)
            raw = head + file.read(max(needed - len(head), 0))
            refuse_cut_off(needed, len(raw))
            if len(file.read(MAX_BEHIND)) == MAX_BEHIND:
                raise UserError("holds more than its header states: export it again")
        return kind.from_bytes(raw), header


def read_header(path: Path | str) -> nib.Nifti1Header:
    """Header of a NIfTI file as it was written; a UserError if it is damaged."""
    with as_damaged(), gzip.open(path) if is_packed(Path(path)) else open(path, "rb") as file:
        return stated_size(file.read(HEADER_BYTES))[1]


def is_packed(path: Path) -> bool:
    """True if a file is compressed, as its name says.

    Raises:
        UserError: The name says otherwise, and others go by it; or the file is a pointer to one elsewhere.
    """
    with open(path, "rb") as file:
        start = file.read(HEADER_BYTES)
    for text, remedy in POINTERS.items():
        if start.startswith(text):
            raise UserError(f"is a pointer of {remedy}")
    named = path.name.lower().endswith(".gz")
    if start.startswith(GZIP) and not named:
        raise UserError(f"is compressed, and its name does not say so: rename it to {path.name}.gz")
    if named and any(kind.header_class.may_contain_header(start) for kind in KINDS):
        raise UserError(f"is not compressed, as its name says: rename it to {path.name[:-3]}")
    return named


def refuse_cut_off(needed: int, there: int) -> None:
    """Raise a UserError unless a file has the bytes that it needs."""
    if there < needed:
        raise UserError(
            f"cannot be read (its header asks for {needed} bytes, it has at most {there}): copy it again or "
            f"remove it"
        )


def stated_size(
    head: bytes, check: Check | None = None
) -> tuple[type[nib.Nifti1Image], nib.Nifti1Header, int]:
    """(nibabel class, header, bytes up to the last voxel) as a NIfTI header states them; see `load_nifti`."""
    kinds = [kind for kind in KINDS if kind.header_class.may_contain_header(head)]
    if not kinds:
        found = "no NIfTI header" if head else "it is empty"
        raise UserError(f"cannot be read ({found}): copy it again or remove it")
    header_class = kinds[0].header_class
    header = header_class(head[: header_class.template_dtype.itemsize], check=False)
    shape = [int(n) for n in header.get_data_shape()]
    if not shape or min(shape) < 1 or math.prod(shape) > MAX_VOXELS:
        raise UserError(f"states {by(shape)} voxels, expected 1 to {MAX_VOXELS}: its header is damaged")
    if check is not None:
        check(header)
    start = float(header["vox_offset"])
    if not 0 <= start <= MAX_BEFORE:
        raise UserError(f"states that its voxels start at byte {start:g}: its header is damaged")
    return kinds[0], header, int(start) + math.prod(shape) * header.get_data_dtype().itemsize


@contextlib.contextmanager
def as_damaged(remedy: str = "copy it again or remove it", path: Path | str = "") -> Iterator[None]:
    """Around the reading of a file: whatever its parser raises becomes a UserError of one line.

    What comes from elsewhere can be wrong in more ways than parsers have errors for.

    Args:
        remedy: What to do.
        path: What the line begins with.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): {remedy}".strip()) from None


@contextlib.contextmanager
def reading(path: Path | str, remedy: str = "copy it again or remove it") -> Iterator[None]:
    """`as_damaged`, and the error begins with the path."""
    with naming(path), as_damaged(remedy):
        yield


def read_json(path: Path | str) -> Record:
    """The JSON object in a file, a dictionary; a UserError that names the file if there is none."""
    with reading(path):
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise UserError("holds no JSON object: remove it")
    return record


def one_line(error: BaseException) -> str:
    """First sentence of an error, with its kind where the text alone says too little."""
    text = " ".join(str(error).split()).split(". ")[0]
    if not text or not isinstance(error, OSError | ValueError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def by(shape: Sequence[float] | np.ndarray) -> str:
    """(128, 128, 32) -> '128 x 128 x 32'."""
    return " x ".join(f"{n:g}" for n in shape)


def exact(value: float) -> str:
    """A number in as few digits as say it."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def save_nifti(volume: ArrayLike, affine: np.ndarray, path: Path | str) -> None:
    """Write a network volume (1, Z, X, Y) as 3D float32 NIfTI (X, Y, Z), marked as synthetic, atomically."""
    image = nib.Nifti1Image(volume_to_array(np.asarray(volume, dtype=np.float32)), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"{SYNTHETIC} 3D StyleGAN2 {__version__}".encode()
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_path(path) as part:
        nib.save(image, part)


def is_marked_synthetic(header: nib.Nifti1Header) -> bool:
    """True if the description in a NIfTI header says that the volume was made, not scanned."""
    return bytes(header["descrip"]).startswith(SYNTHETIC.encode())


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Path of a new hidden file beside `path` that takes its place when the block ends without an error.

    Every writer has a file of its own, which ends like `path`: nibabel and PIL choose the format by that.
    """
    path = Path(path)
    part = part_of(path)
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | NOT_A_LINK, 0o666))
        yield part
        to_disk(part)
        os.replace(part, path)
        to_disk(path.parent)
    finally:
        part.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    if os.name != "posix" and Path(path).is_dir():
        return  # Windows opens no folders
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks sync no folders
            raise
    finally:
        os.close(file)


@contextlib.contextmanager
def locked(path: Path, what: str, remedy: str = "give another --name") -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends; the file is gone afterwards.

    Args:
        path: Lock file.
        what: What is locked, for the message.
        remedy: What else can be done, for the message.

    Raises:
        UserError: Another process holds it; the text names machine and process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = take_lock(path)
    if file is None:
        holder = path.read_text(errors="replace", encoding="utf-8").strip() or "another process"
        raise UserError(f"{what} is in use by {holder}: wait for it, end it, or {remedy}.")
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def take_lock(path: Path) -> IO[str] | None:
    """The open and locked file, or None if another process has it."""
    while True:
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115  the caller closes it
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except OSError as error:
            file.close()
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise
        file.close()  # its holder has removed the file since it was opened


def part_of(path: Path) -> Path:
    """Hidden path beside `path` for what is not complete yet; its name tells machine and process."""
    machine = zlib.crc32(platform.node().encode())
    return path.with_name(f".part-{machine:08x}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}")


def clear_parts(folder: Path | str) -> None:
    """Remove what killed processes have left in a folder: of this machine, or untouched for a week."""
    for path in Path(folder).glob(".part-*"):
        with contextlib.suppress(FileNotFoundError):  # its writer has just finished
            _, machine, process, *_ = [*path.name.split("-"), "", ""]
            here = machine == f"{zlib.crc32(platform.node().encode()):08x}" and process.isdecimal()
            alive = is_running(int(process)) if here else time.time() - path.lstat().st_mtime < WEEK
            if not alive:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_running(process: int) -> bool:
    """True if a process of this number is there and, where Linux tells, has not ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    with contextlib.suppress(OSError, IndexError):
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        return state not in "ZX"
    return True


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Around what reads a file: a UserError begins with its path."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path} {error}") from None


def next_free(path: Path | str) -> Path:
    """`path`, or the first of path-1, path-2, ... that does not exist."""
    path = Path(path)
    candidates = itertools.chain([path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(1)))
    return next(p for p in candidates if not p.exists())


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """The folder `next_free` of a path, made; after an error, Ctrl-C too, its name ends in -failed."""
    folder = next_free(path)
    folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        folder.rename(next_free(folder.with_name(f"{folder.name}-failed")))
        raise


def write_json(path: Path | str, record: object, indent: int = 1) -> None:
    """Write a record as JSON in one piece, or not at all; numbers that are not finite become null."""
    text = json.dumps(finite(record), indent=indent, allow_nan=False)
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def finite(record: object) -> Any:
    """A record with None in place of numbers that are not finite, which JSON does not have."""
    if isinstance(record, dict):
        return {key: finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [finite(value) for value in record]
    return None if isinstance(record, float) and not np.isfinite(record) else record
