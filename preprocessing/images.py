"""Images with their place in the scanner: between NIfTI files, arrays and ANTs; grids, crops and padding.

An affine is (4, 4), voxels to RAS mm, as nibabel has it; ANTs is LPS.
"""

import itertools
import os
from dataclasses import dataclass

from volumetric.cli import UserError
from volumetric.collection import read
from volumetric.files import by, naming

import nibabel as nib
import numpy as np

SEED = 1  # of ANTs
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def import_ants():
    """ANTs with one thread: with more, the same registration gives other numbers."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    os.environ["ANTS_RANDOM_SEED"] = str(SEED)
    import ants

    return ants


@dataclass
class Grid:
    """Where the voxels of a volume lie.

    Args:
        shape: (X, Y, Z), voxels.
        affine: (4, 4), voxels to RAS mm.
    """

    shape: tuple
    affine: np.ndarray

    def crop(self, bounds):
        """The part of the grid between voxel bounds, every voxel at its place.

        Dropping `start` voxels moves the origin: origin' = A[:3, :3] @ start + A[:3, 3].

        Args:
            bounds: ((x0, x1), (y0, y1), (z0, z1)), half-open; negative starts extend the grid.
        """
        affine = self.affine.copy()
        affine[:3, 3] = affine[:3, :3] @ [start for start, _ in bounds] + affine[:3, 3]
        return Grid(tuple(stop - start for start, stop in bounds), affine)

    def image(self, value=0.0):
        """ANTs image of one value on this grid."""
        return to_ants(np.full(self.shape, value, np.float32), self.affine)


def to_ants(array, affine):
    """ANTs image of an array. Shapes: (X, Y, Z), affine (4, 4) RAS"""
    lps = LPS_RAS @ affine
    spacing = nib.affines.voxel_sizes(affine)
    u, _, v = np.linalg.svd(lps[:3, :3] / spacing)  # the nearest orthonormal axes: headers hold float32
    return import_ants().from_numpy(
        np.ascontiguousarray(array, np.float32),
        origin=tuple(map(float, lps[:3, 3])),
        spacing=tuple(map(float, spacing)),
        direction=u @ v,
    )


def grid_of(image):
    """Grid of an ANTs image."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.direction) * image.spacing
    affine[:3, 3] = image.origin
    return Grid(tuple(image.shape), LPS_RAS @ affine)


def stored_grid(volume):
    """Grid of a Volume's voxels as its file has them."""
    return Grid(volume.as_stored(volume.array).shape, volume.stored)


def read_image(path, canonical=True):
    """ANTs image of a NIfTI file, float32.

    Args:
        path: .nii or .nii.gz.
        canonical: Turn the voxel axes to the nearest of right, anterior and superior; every voxel stays at
            its place. False keeps the axes as stored.
    """
    with naming(path):
        volume = read(path, constant=True)
    if canonical:
        return to_ants(volume.array, volume.affine)
    return to_ants(volume.as_stored(volume.array), volume.stored)


def write_image(array, affine, path, description="", code=2):
    """Write a NIfTI file whose sform and qform agree; the same array gives the same bytes.

    Args:
        code: Of both: 2, aligned to another image; 1, the scanner's own space.
    """
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()
    image.set_sform(affine, code=code)
    image.set_qform(affine, code=code)
    nib.save(image, path)


def corners_of(grid):
    """World coordinates of a grid's corners, voxel edges included. Shapes: -> (8, 3)"""
    corners = itertools.product(*((-0.5, n - 0.5) for n in grid.shape))
    return np.array([(grid.affine @ [*c, 1])[:3] for c in corners])


def fitted(shape, target):
    """Voxel bounds that crop or pad a shape about its middle to a target shape."""
    starts = [(n - t) // 2 for n, t in zip(shape, target, strict=True)]
    return tuple((start, start + t) for start, t in zip(starts, target, strict=True))


def within(bounds, shape):
    """Slices of the part of voxel bounds that a shape has."""
    return tuple(slice(max(a, 0), min(b, n)) for (a, b), n in zip(bounds, shape, strict=True))


def crop_or_pad(array, bounds):
    """The voxels between bounds, and zeros where the array has none.

    Shapes: (X, Y, Z), bounds ((x0, x1), (y0, y1), (z0, z1)) -> (x1 - x0, y1 - y0, z1 - z0)
    """
    inside = array[within(bounds, array.shape)]
    before = [max(-a, 0) for a, _ in bounds]
    missing = [b - a - n for (a, b), n in zip(bounds, inside.shape, strict=True)]
    return np.pad(inside, [(start, gap - start) for start, gap in zip(before, missing, strict=True)])


def check_bounds(bounds, grid, what):
    """Raise a UserError unless voxel bounds lie in a grid."""
    pairs = isinstance(bounds, tuple) and len(bounds) == 3 and all(len(b) == 2 for b in bounds)
    if not pairs or not all(isinstance(n, int) for b in bounds for n in b):
        raise UserError(
            f"--cropping_bound_slices must be ((x0, x1), (y0, y1), (z0, z1)), in voxels, got {bounds}."
        )
    if any(not 0 <= a < b <= n for (a, b), n in zip(bounds, grid.shape, strict=True)):
        spacing = by(nib.affines.voxel_sizes(grid.affine).round(3))
        raise UserError(
            f"{what} has {by(grid.shape)} voxels of {spacing} mm, and --cropping_bound_slices {bounds} are "
            f"of another grid: give bounds within it, or the template they were made for."
        )


def check_percentiles(flag, values):
    """Raise a UserError unless a flag holds nothing, or two percentiles that rise."""
    if values and not (len(values) == 2 and all(isinstance(p, int | float) for p in values)):
        raise UserError(f"{flag} must be two numbers, got {values}.")
    if values and not 0 <= values[0] < values[1] <= 100:
        raise UserError(f"{flag} must rise, between 0 and 100, got {values}.")
