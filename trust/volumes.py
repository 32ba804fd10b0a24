"""Volumes as trust looks at them: axes to the right, front and up, grey values in [0, 1]."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from volumetric.cli import UserError
from volumetric.files import by, find_volumes, naming, read_array, refuse_unusable

SAME_SPACING = 0.01  # relative difference of voxel sizes that counts as none
MAPS = ("_deviation.nii.gz", "_deviation.nii")  # that the generator writes beside volumes


@dataclass
class Volume:
    """A volume in a file.

    Args:
        path: The file.
        shape: (X, Y, Z), voxels, axes near right, front and up.
        spacing: Voxel size, (3,) mm.
        content: SHA-256 of the voxels.
    """

    path: Path
    shape: tuple
    spacing: np.ndarray
    content: str

    def read(self):
        """The array (X, Y, Z) in [0, 1], float32."""
        return canonical_array(self.path)[0]


def canonical_array(path):
    """(array (X, Y, Z) in [0, 1] float32, affine (4, 4)) of a file, axes near right, front and up."""
    with naming(path):
        array, image = read_array(path)
    image = nib.as_closest_canonical(nib.Nifti1Image(array, image.affine))
    array = np.ascontiguousarray(image.get_fdata(dtype=np.float32))
    low, high = array.min(), array.max()
    return (array - low) / (high - low), image.affine


def volumes_of(folder, flag, fewest=1):
    """Every volume of a folder, sorted by name; maps of deviations are left out.

    Raises:
        UserError: One line for every file that cannot be used, or there are too few.
    """
    paths = [path for path in find_volumes(folder, flag) if not path.name.endswith(MAPS)]

    def check(path):
        try:
            array, affine = canonical_array(path)
        except UserError as error:
            return str(error).rstrip(".")
        digest = hashlib.sha256(array).hexdigest()
        return Volume(path, array.shape, nib.affines.voxel_sizes(affine), digest)

    with ThreadPoolExecutor(4) as pool:
        found = list(tqdm(pool.map(check, paths), f"Checking {flag}", len(paths), leave=False))
    refuse_unusable([one for one in found if isinstance(one, str)], len(paths), folder)
    if len(found) < fewest:
        raise UserError(f"{flag} {folder} holds {len(found)} volumes, at least {fewest} are needed.")
    return found


def same_geometry(sets):
    """Raise a UserError unless all volumes of several sets have one shape and one voxel size.

    Args:
        sets: {flag: [Volume]}.
    """
    first = next(iter(sets.values()))[0]
    for volume in (volume for volumes in sets.values() for volume in volumes):
        alike = np.allclose(volume.spacing, first.spacing, rtol=SAME_SPACING)
        if volume.shape != first.shape or not alike:
            raise UserError(
                f"{volume.path} has {by(volume.shape)} voxels of {by(volume.spacing.round(3))} mm, "
                f"{first.path} has {by(first.shape)} of {by(first.spacing.round(3))}: resample one set."
            )


def refuse_overlap(one, other, flag, other_flag):
    """Raise a UserError if a volume's voxels are in both sets."""
    known = {volume.content: volume.path for volume in one}
    for volume in other:
        if volume.content in known:
            raise UserError(
                f"{volume.path} in {other_flag} is {known[volume.content]} in {flag}: they must be of other "
                f"subjects."
            )
