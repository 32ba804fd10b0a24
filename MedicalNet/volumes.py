"""Volumes to be measured, in files or just generated, and what a set of them must be like."""

import sys
from collections import Counter
from dataclasses import dataclass

from volumetric import collection
from volumetric.cli import FEWEST_EVALUATED, UserError
from volumetric.collection import content_of, examined, refuse_unusable, scaled, volumes_in
from volumetric.files import by, file_digest, naming, volume_to_array
from volumetric.geometry import same_spacing, turn

import nibabel as nib
import numpy as np
from tqdm import tqdm

READER = 3  # of measured arrays, part of every cached result: raise it when arrays are read differently
PROTOCOLS = {
    "scaled": "axes to RAS, grey values to [0, 1] by each volume's own range, as the trainer sees them",
    "published": "axes and grey values as stored, as in the paper",
}
OBLIQUE = 20.0  # degrees between the axes and the nearest of right, front and up that are worth a warning


def progress(items, title, unit, total=None):
    """Progress bar with the time left; in a log file, a line every half minute."""
    quiet = 0.1 if sys.stderr.isatty() else 30
    return tqdm(items, title, total, unit=unit, leave=False, mininterval=quiet)


@dataclass(frozen=True)
class VolumeFile(collection.VolumeFile):
    """A volume in a file; shape and affine are as it is measured.

    Args:
        digest: SHA-256 of the file, the key of what is cached of it.
        protocol: A name out of PROTOCOLS.
    """

    digest: str = ""
    protocol: str = "scaled"

    def read(self):
        """The array (X, Y, Z) as measured, float32."""
        if self.protocol == "scaled":
            return super().read()
        with naming(self.path):
            return np.ascontiguousarray(collection.read(self.path, axes=self.axes).array)


class VolumeInMemory:
    """A volume that was just generated; as `VolumeFile`.

    Args:
        name: What it is called.
        array: (X, Y, Z).
        affine: (4, 4), voxels to mm.
        protocol: A name out of PROTOCOLS.
    """

    def __init__(self, name, array, affine, protocol="scaled"):
        canonical, turned = turn(array, affine)
        volume = scaled(canonical)
        self.name, self.protocol, self.content = name, protocol, content_of(volume)
        self.digest = self.content
        self.array, self.affine = array, affine
        if protocol == "scaled":
            self.array, self.affine = np.ascontiguousarray(volume_to_array(volume)), turned
        self.shape = self.array.shape

    def read(self):
        """The array (X, Y, Z) as measured, float32."""
        return self.array


def in_memory(volumes, affine, protocol="scaled"):
    """Yield generated volumes, pairs of a seed and a volume (1, Z, X, Y), as VolumeInMemory."""
    for seed, volume in volumes:
        array = np.ascontiguousarray(volume_to_array(np.asarray(volume)))
        yield VolumeInMemory(f"the volume of seed {seed}", array, affine, protocol)


def list_volumes(
    folder, flag, cache, protocol="scaled", fewest=FEWEST_EVALUATED, split=None, parts=("training",)
):
    """Check every volume of a folder; a file that was checked before is not read again.

    Args:
        folder, flag, fewest, split, parts: As for `collection.volumes_in`.
        cache: FeatureCache.
        protocol: A name out of PROTOCOLS.

    Returns:
        List of VolumeFile of one shape and one voxel size, sorted by path.

    Raises:
        UserError: One line for every file that cannot be used, or what is wrong with the folder.
    """

    def check(path):
        digest = file_digest(path)
        key = ["checked", READER, digest]
        found = cache.get(key)
        if found is None:
            one = examined(path)
            found = {"shape": np.array(one.shape), "affine": one.affine, "labels": np.array(one.labels)}
            found |= {"content": np.array(one.content), "axes": np.array(one.axes)}
            cache.put(key, found)
        shape, affine, axes = tuple(map(int, found["shape"])), found["affine"], str(found["axes"])
        if protocol == "published":
            turned, affine = turn(np.empty(shape, np.bool_), affine, axes)
            shape = turned.shape
        about = (str(found["content"]), bool(found["labels"]), digest, protocol)
        return VolumeFile(path, shape, affine, axes, *about)

    files = volumes_in(folder, flag, fewest, split, parts, check)
    refuse_unusable(odd_ones(files), len(files), folder)
    return files


def odd_ones(files):
    """A line for every volume whose shape or voxel size is not that of most others."""
    problems = []
    if files:
        shape = Counter(f.shape for f in files).most_common(1)[0][0]
        spacing = np.median([f.spacing for f in files], axis=0)
    for f in files:
        if f.shape != shape:
            problems.append(
                f"{f.name} has {by(f.shape)} voxels, most others have {by(shape)}: resample or crop it"
            )
        elif not same_spacing(f.spacing, spacing):
            problems.append(
                f"{f.name} has voxels of {by(f.spacing.round(3))} mm, most others of "
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
    if not same_spacing(a.spacing, b.spacing):
        warnings.append(
            f"the spacing of the real volumes is {by(a.spacing.round(3))} mm, of the generated ones "
            f"{by(b.spacing.round(3))} mm: lengths and volumes of vessels are not comparable"
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
