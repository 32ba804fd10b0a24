"""Volumes in files: NIfTI in and out, what is wrong with one, and writing that leaves no half file.

A NIfTI array is (X, Y, Z); inside the networks a volume is (B, 1, D, H, W) = (B, 1, Z, X, Y), with values in
[0, 1].
"""

import contextlib
import errno
import functools
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
from pathlib import Path

import nibabel as nib
import numpy as np
from einops import rearrange

from volumetric.cli import UserError

try:
    import fcntl
except ModuleNotFoundError:  # Windows has no such locks
    fcntl = None

__version__ = "0.1.0"

SYNTHETIC = "SYNTHETIC"  # how the description of a made volume begins
NIFTI_SUFFIXES = (".nii", ".nii.gz")
MAX_FILES_NAMED = 50  # offending files listed in one message
MAX_REASON = 300  # characters of an error of a library's

MAX_VOXELS = 2**30  # 4 GiB as float32, a head at 0.2 mm
HEADER_BYTES = 540  # of a NIfTI-2 header, the longer of the two
DEFLATE = 1032  # times that a .gz can grow at most
MAX_EXTRA = 2**20  # bytes before and behind the voxels, beside the header
WEEK = 7 * 24 * 3600.0  # seconds
NOT_A_LINK = getattr(os, "O_NOFOLLOW", 0)


def array_to_volume(array):
    """NIfTI array (X, Y, Z) -> network volume (1, Z, X, Y), in C order."""
    return rearrange(array, "x y z -> 1 z x y")


def volume_to_array(volume):
    """Network volume (1, Z, X, Y) -> NIfTI array (X, Y, Z)."""
    return rearrange(volume, "1 z x y -> x y z")


def find_volumes(folder, flag="--data"):
    """Sorted paths of all NIfTI files below `folder`; a UserError that names the flag if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{flag} {folder} {state}: give the folder that holds the .nii or .nii.gz volumes.")
    names = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    odd = [p for p in names if not is_text(p)]
    if odd:
        raise UserError(f"{flag} holds file names that are not UTF-8: rename {str(odd[0])!a}.")
    paths = sorted(p for p in names if p.name.lower().endswith(NIFTI_SUFFIXES))
    if not paths:
        raise UserError(f"{flag} {folder} holds no .nii or .nii.gz file ({len(names)} other files).")
    return paths


def is_text(path):
    """True if a path is UTF-8, so that it can be printed and written down."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_array(path, shape=None):
    """Read one NIfTI volume as it is, and check that it can be used.

    Args:
        path: .nii or .nii.gz file; further axes of length 1, as in (X, Y, Z, 1), are dropped.
        shape: Expected array shape (X, Y, Z) in voxels, or None for any.

    Returns:
        (array, image): float32 array (X, Y, Z), and the nibabel image for its affine.

    Raises:
        UserError: The file cannot be used; the text says what was found, what is expected and what to do.
    """
    image = load_nifti(path, functools.partial(check_array, shape=shape))
    with as_damaged(), np.errstate(all="ignore"):
        array = image.get_fdata(dtype=np.float32, caching="unchanged")
    array = array.reshape(array.shape[:3])
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise UserError(f"has NaN or Inf in {bad} of {array.size} voxels: repair or remove it")
    check_affine(image.affine)
    if array.min() == array.max():
        raise UserError(f"is constant (every voxel {array.min():g}): remove it")
    return array, image


def read_volume(path, shape=None):
    """Read one NIfTI volume and scale it to [0, 1] by its own minimum and maximum.

    Arguments and errors are those of `read_array`.

    Returns:
        (volume, image): float32 array (1, Z, X, Y) in [0, 1], and the nibabel image for its affine.
    """
    array, image = read_array(path, shape)
    low, high = array.min(), array.max()
    volume = np.ascontiguousarray(array_to_volume(array))
    volume -= low
    volume /= high - low
    return volume, image


def check_affine(affine):
    """Raise a UserError unless an affine (4, 4) is finite and can be inverted."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError("has an affine that is singular or not finite: repair its header")


def check_array(header, shape=None):
    """Raise a UserError unless a NIfTI header is of one 3D array, of a shape (X, Y, Z) if one is given."""
    if not is_grey(header):
        raise UserError(f"holds voxels of type {header.get_data_dtype()}, expected one number per voxel")
    found = tuple(map(int, header.get_data_shape()))
    if len(found) < 3 or any(n != 1 for n in found[3:]):
        raise UserError(f"is {len(found)}D {found}, expected 3D (X, Y, Z): extract one volume")
    if shape is not None and found[:3] != tuple(shape):
        raise UserError(
            f"has {by(found[:3])} voxels, expected {by(shape)}: resample or crop it, "
            f"or set --image_size and --image_depth"
        )


def load_nifti(path, check=None):
    """nibabel image of a NIfTI-1 or NIfTI-2 file, read as a whole and to the checksum at its end.

    The header comes first: what it states must fit the file, before anything of that size is read. Of a .gz,
    no more is decompressed than it states.

    Args:
        path: .nii or .nii.gz file.
        check: Function of the header that raises a UserError.

    Raises:
        UserError: The file is damaged, larger than MAX_VOXELS, or not what `check` wants.
    """
    path = Path(path)
    packed = path.name.lower().endswith(".gz")
    with as_damaged():
        size = path.stat().st_size * (DEFLATE if packed else 1)
        with gzip.open(path) if packed else open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
            kind, needed = stated_size(head, check)
            refuse_cut_off(needed, size)
            raw = head + file.read(max(needed - len(head), 0))
            refuse_cut_off(needed, len(raw))
            if len(file.read(MAX_EXTRA)) == MAX_EXTRA:
                raise UserError("holds more than its header states: export it again")
        return kind.from_bytes(raw)


def refuse_cut_off(needed, there):
    """Raise a UserError unless a file has the bytes that it needs."""
    if there < needed:
        raise UserError(
            f"cannot be read (its header asks for {needed} bytes, it has at most {there}): copy it again or "
            f"remove it"
        )


def stated_size(head, check=None):
    """(nibabel class, bytes up to the last voxel) as a NIfTI header states them; see `load_nifti`."""
    kinds = [k for k in (nib.Nifti2Image, nib.Nifti1Image) if k.header_class.may_contain_header(head)]
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
    if not 0 <= start <= MAX_EXTRA:
        raise UserError(f"states that its voxels start at byte {start:g}: its header is damaged")
    return kinds[0], int(start) + math.prod(shape) * header.get_data_dtype().itemsize


@contextlib.contextmanager
def as_damaged(remedy="copy it again or remove it", path=""):
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
def reading(path, remedy="copy it again or remove it"):
    """`as_damaged`, and the error begins with the path."""
    with naming(path), as_damaged(remedy):
        yield


def read_json(path):
    """The JSON object in a file, a dictionary; a UserError that names the file if there is none."""
    with reading(path):
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise UserError("holds no JSON object: remove it")
    return record


def one_line(error):
    """First sentence of an error, with its kind where the text alone says too little."""
    text = " ".join(str(error).split()).split(". ")[0]
    if not text or not isinstance(error, OSError | ValueError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def is_grey(image):
    """True if a nibabel image or header has one real number per voxel."""
    return image.get_data_dtype().names is None and image.get_data_dtype().kind != "c"


def left_right_axis(affine):
    """Axis of a NIfTI array that runs between the patient's left and right. Shapes: (4, 4) -> 0, 1 or 2"""
    codes = nib.aff2axcodes(affine)
    return next(axis for axis, code in enumerate(codes) if code in ("L", "R"))


def file_digest(path):
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def by(shape):
    """(128, 128, 32) -> '128 x 128 x 32'."""
    return " x ".join(f"{n:g}" for n in shape)


def save_nifti(volume, affine, path):
    """Write a network volume (1, Z, X, Y) as 3D float32 NIfTI (X, Y, Z), marked as synthetic, atomically."""
    image = nib.Nifti1Image(volume_to_array(np.asarray(volume, dtype=np.float32)), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"{SYNTHETIC} 3D StyleGAN2 {__version__}".encode()
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_path(path) as part:
        nib.save(image, part)


def is_marked_synthetic(header):
    """True if the description in a NIfTI header says that the volume was made, not scanned."""
    return bytes(header["descrip"]).startswith(SYNTHETIC.encode())


def refuse_unusable(problems, number, folder):
    """Raise a UserError with one line for every problem, if there is any."""
    if problems:
        more = [f"... and {len(problems) - MAX_FILES_NAMED} more"] if len(problems) > MAX_FILES_NAMED else []
        listed = "\n  ".join(problems[:MAX_FILES_NAMED] + more)
        raise UserError(f"{len(problems)} of the {number} volumes in {folder} cannot be used:\n  {listed}")


def duplicates_among(digests):
    """Lines that name every file whose voxels equal an earlier file's; `digests` are (path, digest) pairs."""
    first = {}
    for path, digest in digests:
        first.setdefault(digest, path)
    return [
        f"{path} has the same voxels as {first[digest]}: remove one"
        for path, digest in digests
        if path != first[digest]
    ]


@contextlib.contextmanager
def atomic_path(path):
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


def to_disk(path):
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
def locked(path, what, remedy="give another --name"):
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


def take_lock(path):
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


def part_of(path):
    """Hidden path beside `path` for what is not complete yet; its name tells machine and process."""
    machine = zlib.crc32(platform.node().encode())
    return path.with_name(f".part-{machine:08x}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}")


def clear_parts(folder):
    """Remove what killed processes have left in a folder: of this machine, or untouched for a week."""
    for path in Path(folder).glob(".part-*"):
        with contextlib.suppress(FileNotFoundError):  # its writer has just finished
            _, machine, process, *_ = [*path.name.split("-"), "", ""]
            here = machine == f"{zlib.crc32(platform.node().encode()):08x}" and process.isdecimal()
            alive = is_running(int(process)) if here else time.time() - path.lstat().st_mtime < WEEK
            if not alive:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_running(process):
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
def naming(path):
    """Around what reads a file: a UserError begins with its path."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path} {error}") from None


def next_free(path):
    """`path`, or the first of path-1, path-2, ... that does not exist."""
    path = Path(path)
    candidates = itertools.chain([path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(1)))
    return next(p for p in candidates if not p.exists())


def new_folder(path):
    """The folder `next_free` of a path, made."""
    folder = next_free(path)
    folder.mkdir(parents=True)
    return folder


def finite(record):
    """A record with None in place of numbers that are not finite, which JSON does not have."""
    if isinstance(record, dict):
        return {key: finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [finite(value) for value in record]
    return None if isinstance(record, float) and not np.isfinite(record) else record
