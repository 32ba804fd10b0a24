"""Volumes in files: NIfTI in and out, what is wrong with one, and writing that leaves no half file.

A NIfTI array is (X, Y, Z); inside the networks a volume is (B, 1, D, H, W) = (B, 1, Z, X, Y), with values in
[0, 1].
"""

import contextlib
import errno
import gzip
import hashlib
import itertools
import os
import platform
import shutil
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

NIFTI_SUFFIXES = (".nii", ".nii.gz")
MAX_FILES_NAMED = 50  # offending files listed in one message

# What nibabel raises for damaged files.
UNREADABLE = (
    *(OSError, EOFError, ValueError, zlib.error),
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
)


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
    paths = sorted(p for p in names if p.name.lower().endswith(NIFTI_SUFFIXES))
    if not paths:
        raise UserError(f"{flag} {folder} holds no .nii or .nii.gz file ({len(names)} other files).")
    return paths


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
    try:
        image = load_nifti(Path(path))
        array = image.get_fdata(dtype=np.float32, caching="unchanged") if is_grey(image) else None
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot be read ({reason}): copy it again or remove it") from None
    if array is None:
        raise UserError(f"holds voxels of type {image.get_data_dtype()}, expected one number per voxel")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise UserError(f"is {array.ndim}D {array.shape}, expected 3D (X, Y, Z): extract one volume")
    if shape is not None and array.shape != tuple(shape):
        raise UserError(
            f"has {by(array.shape)} voxels, expected {by(shape)}: resample or crop it, "
            f"or set --image_size and --image_depth"
        )
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise UserError(f"has NaN or Inf in {bad} of {array.size} voxels: repair or remove it")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise UserError("has an affine that is singular or not finite: repair its header")
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


def load_nifti(path):
    """nibabel image of a NIfTI-1 or NIfTI-2 file.

    A .gz is decompressed as a whole: nibabel would stop before the checksum at its end, and miss damage.
    """
    if not path.name.lower().endswith(".gz"):
        return nib.load(path)
    raw = gzip.decompress(path.read_bytes())
    kinds = [k for k in (nib.Nifti2Image, nib.Nifti1Image) if k.header_class.may_contain_header(raw[:540])]
    if not kinds:
        raise UserError("no NIfTI header" if raw else "it is empty")
    return kinds[0].from_bytes(raw)


def is_grey(image):
    """True if a nibabel image holds one real number per voxel."""
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
    image.header["descrip"] = f"SYNTHETIC 3D StyleGAN2 {__version__}".encode()
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_path(path) as part:
        nib.save(image, part)


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
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path, what):
    """Hold a lock that ends with this process, however it ends; the file is gone afterwards.

    Args:
        path: Lock file.
        what: What is locked, for the message.

    Raises:
        UserError: Another process holds it; the text names machine and process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = take_lock(path)
    if file is None:
        holder = path.read_text(errors="replace").strip() or "another process"
        raise UserError(f"{what} is in use by {holder}: wait for it, end it, or give another --name.")
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
        file = open(path, "a")  # noqa: SIM115  the caller closes it, and so gives the lock back
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
    """Remove what killed processes of this machine have left in a folder."""
    for path in Path(folder).glob(".part-*"):
        _, machine, process, *_ = [*path.name.split("-"), "", ""]
        if machine != f"{zlib.crc32(platform.node().encode()):08x}" or not process.isdecimal():
            continue
        if not is_running(int(process)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_running(process):
    """True if a process of this number is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
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
