"""Hostile NIfTI files: bombs, headers that lie, files cut off, bits flipped."""

import gzip
import random
import struct
from pathlib import Path

from volumetric.cli import UserError
from volumetric.collection import read

import nibabel as nib
import numpy as np

from preprocessing.scans import audit_scan
from tests.faults.children import limit_memory, run

SHAPE = (24, 20, 16)
MEMORY = 0.5  # GiB
SECONDS = 60.0
# Where the fields of a NIfTI-1 header are, and their types (nifti1.h).
FIELDS = {
    **{f"dim[{n}]": (40 + 2 * n, "<h") for n in range(8)},
    **{f"pixdim[{n}]": (76 + 4 * n, "<f") for n in range(5)},
    **{"sizeof_hdr": (0, "<i"), "datatype": (70, "<h"), "bitpix": (72, "<h"), "vox_offset": (108, "<f")},
    **{
        "scl_slope": (112, "<f"),
        "scl_inter": (116, "<f"),
        "qform_code": (252, "<h"),
        "sform_code": (254, "<h"),
    },
    **{f"srow[{n}]": (280 + 4 * n, "<f") for n in range(12)},
    **{f"magic[{n}]": (344 + n, "<b") for n in range(4)},
}
WHOLE = [0, 1, -1, 2, 3, 4, 7, 8, 64, 127, 128, 255, 256, 512, 2304, 32767, -32768]
REAL = [0.0, -1.0, 1e38, -1e38, float("nan"), float("inf"), float("-inf"), 1e-42, 352.0, 353.0, 1e6, 3.4e38]


def image_bytes(rng):
    """A sound NIfTI file."""
    array = np.random.default_rng(rng.randrange(2**32)).random(SHAPE)
    kind = rng.choice((np.float32, np.int16, np.uint8, np.float64))
    image = nib.Nifti1Image((100 * array).astype(kind), np.diag([1.0, 1.0, 2.0, 1.0]))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    return bytearray(image.to_bytes())


def hostile(rng):
    """(content of a damaged file, its suffix, what was done)."""
    raw, done = image_bytes(rng), []
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        name = rng.choice(sorted(FIELDS))
        place, kind = FIELDS[name]
        value = rng.choice(REAL) if kind == "<f" else rng.choice(WHOLE)
        struct.pack_into(kind, raw, place, max(-128, min(127, value)) if kind == "<b" else value)
        done.append(f"{name} = {value}")
    if rng.random() < 0.2:
        keep = rng.randrange(len(raw))
        raw, done = raw[:keep], [*done, f"cut to {keep}"]
    if rng.random() < 0.1:
        raw, done = raw + bytes(64 * 2**20), [*done, "64 MiB of zeros behind"]
    if rng.random() < 0.4:
        return bytes(raw), ".nii", done
    packed = bytearray(gzip.compress(bytes(raw), 1))
    way = rng.random()
    if way < 0.2:
        place = rng.randrange(len(packed))
        packed[place] ^= 1 << rng.randrange(8)
        done.append(f"bit of byte {place} of the .gz")
    elif way < 0.3:
        packed, done = packed[: rng.randrange(len(packed))], [*done, ".gz cut off"]
    elif way < 0.4:
        packed, done = packed + bytes(rng.randrange(256) for _ in range(50)), [*done, "noise behind the .gz"]
    return bytes(packed), ".nii.gz", done


def bomb(path, gib):
    """A .nii.gz with a sound header of a volume of so many GiB, all zeros, a few MB on the disk."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((1024, 1024, int(1024 * gib)))
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    block = bytes(2**26)
    with gzip.open(path, "wb", 1) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(int(16 * gib)):
            file.write(block)


def read_both_ways(path):
    """Read a file as training and as preprocessing read it; what they give must be sound."""
    said = 0
    for way in (
        lambda: read(path).array,
        lambda: read(path, SHAPE).array,
        lambda: audit_scan("x", path),
    ):
        try:
            array = way()
            if isinstance(array, np.ndarray):
                assert array.ndim == 3 and np.isfinite(array).all() and array.dtype == np.float32
        except UserError as error:
            said += 1
            assert "\n" not in str(error) and len(str(error)) < 500, error
    print(f"refused {said}")


def check(folder, number, seed):
    """Read hostile files. Returns ({outcome: count}, [what went wrong])."""
    folder, rng = Path(folder).resolve(), random.Random(seed)
    counts, faults = {}, []
    for n in range(number + 1):
        if n == 0:
            path, done = folder / "bomb.nii.gz", ["2 GiB of zeros"]
            bomb(path, 2)
        else:
            content, suffix, done = hostile(rng)
            path = folder / f"hostile{suffix}"
            path.write_bytes(content)

        def work(path=path):
            limit_memory(MEMORY)
            read_both_ways(path)

        ended = run(work, folder / "log", SECONDS)
        outcome = ended.text.strip().splitlines()[-1] if ended.status == 0 else f"ended with {ended.status}"
        counts[outcome] = counts.get(outcome, 0) + 1
        if ended.status:
            faults.append(f"{'; '.join(done)} (seed {seed}, number {n})\n{ended.text[-3000:]}")
    return counts, faults
