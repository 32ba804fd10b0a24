"""Volumes to be measured, in files or just generated, and what a set of them must be like."""

import hashlib
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from tqdm import tqdm

from volumetric.cli import UserError
from volumetric.dataset import FEWEST_EVALUATED
from volumetric.files import by, file_digest, find_volumes, read_array, volume_to_array

READER = 1  # protocol of reading, part of every cached result: raise it when arrays are read differently


def progress(items, title, unit, total=None):
    """Progress bar with the time left; in a log file, a line every half minute."""
    quiet = 0.1 if sys.stderr.isatty() else 30
    return tqdm(items, title, total, unit=unit, leave=False, mininterval=quiet)


@dataclass
class VolumeFile:
    """A volume in a file.

    Args:
        name: Path.
        digest: SHA-256 of the file.
        shape: (X, Y, Z), voxels.
        affine: (4, 4), voxels to mm.
    """

    name: str
    digest: str
    shape: tuple
    affine: np.ndarray

    def read(self):
        """The array (X, Y, Z), float32, as it is in the file."""
        return read_array(self.name)[0]


@dataclass
class VolumeInMemory:
    """A volume that was just generated; as `VolumeFile`."""

    name: str
    array: np.ndarray
    affine: np.ndarray
    digest: str = field(init=False)

    def __post_init__(self):
        self.digest = hashlib.sha256(np.ascontiguousarray(self.array)).hexdigest()

    def read(self):
        """The array (X, Y, Z), float32."""
        return self.array


def in_memory(volumes, affine):
    """Yield generated volumes, pairs of a seed and a volume (1, Z, X, Y), as VolumeInMemory."""
    for seed, volume in volumes:
        array = np.ascontiguousarray(volume_to_array(np.asarray(volume)))
        yield VolumeInMemory(f"the volume of seed {seed}", array, affine)


def list_volumes(folder, flag, cache):
    """Check every volume of a folder, by its content if that was checked before.

    Returns:
        List of VolumeFile, sorted by name.

    Raises:
        UserError: One line for every file that cannot be used, or what is wrong with the folder.
    """
    paths = find_volumes(folder, flag)

    def check(path):
        digest = file_digest(path)
        key = ["checked", READER, digest]
        found = cache.get(key)
        if found is None:
            try:
                array, image = read_array(path)
            except UserError as error:
                return f"{path} {error}"
            found = {"shape": np.array(array.shape), "affine": image.affine}
            cache.put(key, found)
        return VolumeFile(str(path), digest, tuple(map(int, found["shape"])), found["affine"])

    with ThreadPoolExecutor(8) as pool:
        title = f"Checking {flag.removeprefix('--')} volumes"
        found = list(progress(pool.map(check, paths), title, "volume", len(paths)))
    problems = [f for f in found if isinstance(f, str)]
    files = [f for f in found if not isinstance(f, str)]
    if files:
        common = Counter(f.shape for f in files).most_common(1)[0][0]
        problems += [
            f"{f.name} has {by(f.shape)} voxels, most others have {by(common)}: resample or crop it"
            for f in files
            if f.shape != common
        ]
    if problems:
        listed = "\n  ".join(problems)
        raise UserError(
            f"{len(problems)} of the {len(paths)} volumes in {folder} cannot be used:\n  {listed}"
        )
    if len(files) < FEWEST_EVALUATED:
        raise UserError(
            f"{flag} {folder} holds {len(files)} volumes, at least {FEWEST_EVALUATED} are needed."
        )
    return files


def compare_geometry(real_files, generated_files):
    """Warnings on spacing; a UserError if the shapes of the two sets differ."""
    a, b = real_files[0], generated_files[0]
    if a.shape != b.shape:
        raise UserError(
            f"The real volumes have {by(a.shape)} voxels ({a.name}), the generated ones {by(b.shape)} "
            f"({b.name}): resample one set."
        )
    spacings = [
        np.median([nib.affines.voxel_sizes(f.affine) for f in fs], 0) for fs in (real_files, generated_files)
    ]
    if np.allclose(*spacings, rtol=0.01):
        return []
    return [
        f"the spacing of the real volumes is {by(spacings[0].round(3))} mm, of the generated ones "
        f"{by(spacings[1].round(3))} mm: lengths and volumes of vessels are not comparable"
    ]


def copies(files, which):
    """Warning if a set has files of equal content."""
    repeated = len(files) - len({f.digest for f in files})
    return [f"{repeated} of the {len(files)} {which} volumes are copies of others"] if repeated else []
