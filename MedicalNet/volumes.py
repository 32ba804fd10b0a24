"""Volumes to be measured, in files or just generated, and what a set of them must be like."""

import hashlib
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from tqdm import tqdm

from volumetric.cli import UserError
from volumetric.dataset import FEWEST_EVALUATED
from volumetric.files import (
    by,
    file_digest,
    find_volumes,
    naming,
    read_array,
    refuse_unusable,
    volume_to_array,
)

READER = 2  # of `prepared`, part of every cached result: raise it when arrays are read differently
PROTOCOLS = {
    "scaled": "axes to RAS, grey values to [0, 1] by each volume's own range, as the trainer sees them",
    "published": "axes and grey values as stored, as in the paper",
}
SAME_SPACING = 0.01  # relative difference of voxel sizes that counts as none
OBLIQUE = 20.0  # degrees between the axes and the nearest of right, front and up that are worth a warning
MAPS = ("_deviation.nii.gz", "_deviation.nii")  # that the generator writes beside volumes


def progress(items, title, unit, total=None):
    """Progress bar with the time left; in a log file, a line every half minute."""
    quiet = 0.1 if sys.stderr.isatty() else 30
    return tqdm(items, title, total, unit=unit, leave=False, mininterval=quiet)


def prepared(array, affine, protocol):
    """A volume as it is measured: see PROTOCOLS.

    Shapes: (X, Y, Z), (4, 4) -> (X', Y', Z') float32, (4, 4)
    """
    if protocol == "published":
        return array, affine
    image = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    array = np.ascontiguousarray(image.get_fdata(dtype=np.float32))
    low, high = array.min(), array.max()
    least = np.finfo(np.float32).tiny  # a generated volume may be constant
    return (array - low) / max(high - low, least), image.affine


@dataclass
class VolumeFile:
    """A volume in a file.

    Args:
        name: Path.
        digest: SHA-256 of the file.
        shape: (X, Y, Z) as measured, voxels.
        affine: (4, 4) as measured, voxels to mm.
        content: SHA-256 of the voxels as measured.
        protocol: A name out of PROTOCOLS.
        axes: Codes of the axes as stored, for example LAS.
    """

    name: str
    digest: str
    shape: tuple
    affine: np.ndarray
    content: str
    protocol: str = "scaled"
    axes: str = "RAS"

    def read(self):
        """The array (X, Y, Z) as measured, float32."""
        with naming(self.name):
            array, image = read_array(self.name)
        return prepared(array, image.affine, self.protocol)[0]


class VolumeInMemory:
    """A volume that was just generated; as `VolumeFile`.

    Args:
        name: What it is called.
        array: (X, Y, Z).
        affine: (4, 4), voxels to mm.
        protocol: A name out of PROTOCOLS.
    """

    def __init__(self, name, array, affine, protocol="scaled"):
        self.name = name
        self.array, self.affine = prepared(array, affine, protocol)
        self.digest = self.content = digest_of(self.array)
        self.shape = self.array.shape

    def read(self):
        """The array (X, Y, Z) as measured, float32."""
        return self.array


def digest_of(array):
    """SHA-256 of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def in_memory(volumes, affine, protocol="scaled"):
    """Yield generated volumes, pairs of a seed and a volume (1, Z, X, Y), as VolumeInMemory."""
    for seed, volume in volumes:
        array = np.ascontiguousarray(volume_to_array(np.asarray(volume)))
        yield VolumeInMemory(f"the volume of seed {seed}", array, affine, protocol)


def list_volumes(folder, flag, cache, protocol="scaled", fewest=FEWEST_EVALUATED):
    """Check every volume of a folder, by its content if that was checked before.

    Returns:
        List of VolumeFile of one shape and one voxel size, sorted by name; maps of deviations are left out.

    Raises:
        UserError: One line for every file that cannot be used, or what is wrong with the folder.
    """
    paths = find_volumes(folder, flag)
    maps = [path for path in paths if path.name.endswith(MAPS)]
    if maps:
        print(
            f"{flag} {folder}: {len(maps)} maps of deviations (*_deviation.nii.gz) are no volumes, left out."
        )
        paths = [path for path in paths if path not in maps]

    def check(path):
        try:
            digest = file_digest(path)
            key = ["checked", READER, protocol, digest]
            found = cache.get(key)
            if found is None:
                array, image = read_array(path)
                axes = "".join(nib.aff2axcodes(image.affine))
                array, affine = prepared(array, image.affine, protocol)
                found = {"shape": np.array(array.shape), "affine": affine}
                found |= {"content": np.array(digest_of(array)), "axes": np.array(axes)}
                cache.put(key, found)
        except (UserError, OSError) as error:
            return f"{path} {error}"
        shape, texts = tuple(map(int, found["shape"])), (str(found["content"]), protocol, str(found["axes"]))
        return VolumeFile(str(path), digest, shape, found["affine"], *texts)

    with ThreadPoolExecutor(8) as pool:
        title = f"Checking {flag.removeprefix('--')} volumes"
        found = list(progress(pool.map(check, paths), title, "volume", len(paths)))
    problems = [f for f in found if isinstance(f, str)]
    files = [f for f in found if not isinstance(f, str)]
    refuse_unusable(problems + odd_ones(files), len(paths), folder)
    if len(files) < fewest:
        raise UserError(f"{flag} {folder} holds {len(files)} volumes, at least {fewest} are needed.")
    return files


def spacing_of(file):
    """Size of a volume's voxels, mm. Shapes: -> (3,)"""
    return nib.affines.voxel_sizes(file.affine)


def odd_ones(files):
    """A line for every volume whose shape or voxel size is not that of most others."""
    problems = []
    if files:
        shape = Counter(f.shape for f in files).most_common(1)[0][0]
        spacing = np.median([spacing_of(f) for f in files], axis=0)
    for f in files:
        if f.shape != shape:
            problems.append(
                f"{f.name} has {by(f.shape)} voxels, most others have {by(shape)}: resample or crop it"
            )
        elif not np.allclose(spacing_of(f), spacing, rtol=SAME_SPACING):
            problems.append(
                f"{f.name} has voxels of {by(spacing_of(f).round(3))} mm, most others of "
                f"{by(spacing.round(3))}: resample it"
            )
    return problems


def compare_geometry(real_files, generated_files):
    """Warnings on spacing and axes; a UserError if the shapes of the two sets differ.

    Args:
        real_files, generated_files: VolumeFile, of one shape and voxel size within each set.
    """
    a, b = real_files[0], generated_files[0]
    if a.shape != b.shape:
        raise UserError(
            f"The real volumes have {by(a.shape)} voxels ({a.name}), the generated ones {by(b.shape)} "
            f"({b.name}): resample one set."
        )
    warnings, files = [], [*real_files, *generated_files]
    if not np.allclose(spacing_of(a), spacing_of(b), rtol=SAME_SPACING):
        warnings.append(
            f"the spacing of the real volumes is {by(spacing_of(a).round(3))} mm, of the generated ones "
            f"{by(spacing_of(b).round(3))} mm: lengths and volumes of vessels are not comparable"
        )
    axes = Counter(f.axes for f in files)
    if len(axes) > 1 and a.protocol == "published":
        found = ", ".join(f"{name} ({number})" for name, number in axes.most_common())
        warnings.append(f"volumes are stored along different axes ({found}) and compared as stored")
    oblique = [f for f in files if obliquity(f.affine) > OBLIQUE]
    if oblique:
        warnings.append(
            f"{len(oblique)} volumes, among them {oblique[0].name}, lie {obliquity(oblique[0].affine):.0f} "
            f"degrees askew: their slices are not axial"
        )
    return warnings


def obliquity(affine):
    """Largest angle between an axis of voxels and the nearest of right, front and up, degrees."""
    return float(np.degrees(nib.affines.obliquity(affine)).max())


def copies(files, which):
    """Warning if a set has volumes of equal content."""
    repeated = len(files) - len({f.content for f in files})
    return [f"{repeated} of the {len(files)} {which} volumes are copies of others"] if repeated else []
