"""A scan on other voxels, every point at its place in the scanner: once, and smoothed before coarser ones.

Where no voxel of a new grid lies in the scan, its smallest value stands. Interpolation is by cubic B-splines
after a Gaussian that makes voxels of the one width into voxels of the other (Cardoso et al., MICCAI 2015,
doi:10.1007/978-3-319-24571-3_81): `python tests/benchmarks/conform.py resampling` compares it with others.
"""

import itertools
import math

from volumetric.geometry import SAME_PLACE, spacing_of
from volumetric.pictures import EDGE, MARGIN, grey, marked

import nibabel as nib
import numpy as np
from scipy import ndimage

from preprocessing.images import Grid, corners_of

FWHM = math.sqrt(8 * math.log(2))  # of a Gaussian, in standard deviations
PADDED_GREY, CUT_SHARE = 96, 0.4  # in a picture: grey value of padding, brightness of what is cut


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Grids                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def directions(grid):
    """Axes of a Grid, (3, 3), columns of length 1."""
    return grid.affine[:3, :3] / spacing_of(grid.affine)


def voxel_map(one, other):
    """Voxels of one affine to voxels of another. Shapes: (4, 4), (4, 4) -> (4, 4)"""
    to = np.linalg.inv(other) @ one
    to[:3, :3][np.abs(to[:3, :3]) < 1e-9] = 0
    return to


def inside(one, other):
    """Which voxels of one Grid have their middle in a voxel of another. Shapes: -> (X, Y, Z) bool"""
    to, places = voxel_map(one.affine, other.affine), np.ogrid[tuple(map(slice, one.shape))]
    found = np.ones(one.shape, bool)
    for row, n in zip(to[:3], other.shape, strict=True):
        place = sum(row[axis] * places[axis] for axis in range(3) if row[axis]) + row[3]
        found &= (place > -0.5 - 1e-6) & (place < n - 0.5 + 1e-6)
    return found


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Resampling                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def sampled(array, affine, grid, order, outside):
    """Values of an array at the voxels of a Grid; B-splines of an order, 0 is the nearest voxel.

    Shapes: (X, Y, Z), (4, 4) -> shape of the grid, in the array's dtype
    """
    to = voxel_map(grid.affine, affine)
    values = ndimage.affine_transform(array, to[:3, :3], to[:3, 3], grid.shape, order=order, mode="reflect")
    values[~inside(grid, Grid(array.shape, affine))] = outside
    return values


def resampled(array, affine, grid):
    """A scan on another Grid: smoothed where voxels get coarser, cubic B-splines, its smallest value outside.

    The Gaussian makes a voxel of width a one of width b: FWHM^2 = b^2 - a^2. Values stay in the scan's range.
    Where all voxels lie on the scan's own, they keep their values.

    Shapes: (X, Y, Z) float32, (4, 4) -> shape of the grid
    """
    to = voxel_map(grid.affine, affine)
    low, high = array.min(), array.max()
    places = nib.affines.apply_affine(to, list(itertools.product(*((0, n - 1) for n in grid.shape))))
    if np.allclose(to[:3, :3], np.eye(3), atol=1e-3) and np.abs(places - np.rint(places)).max() <= SAME_PLACE:
        return sampled(array, affine, grid, 0, low)
    wider = np.linalg.norm(to[:3, :3], axis=1)  # a new voxel, in voxels of the scan along each of its axes
    sigmas = np.sqrt(np.maximum(wider**2 - 1, 0)) / FWHM
    smooth = ndimage.gaussian_filter(array, sigmas, mode="reflect") if sigmas.any() else array
    return sampled(smooth, affine, grid, 3, low).clip(low, high)


def clipped(array, known, percentiles):
    """An array between percentiles of its known voxels, and the share of these that was beyond.

    Shapes: (X, Y, Z), (X, Y, Z) bool -> (X, Y, Z), ()
    """
    if not percentiles:
        return array, 0.0
    low, high = np.percentile(array[known], percentiles).astype(np.float32)
    share = ((array[known] < low) | (array[known] > high)).mean()
    return array.clip(low, high), float(share)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Pictures                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def framed_planes(array, affine, grid, window, edge):
    """Axial, coronal and sagittal plane of a scan through the middle of a Grid, whose outline is drawn.

    Radiological view along the grid's axes, in one scale. What lies outside of the grid is dim, padding grey.

    Args:
        array, affine: The scan, (X, Y, Z) and (4, 4).
        grid: Grid.
        window: Grey values that are black and white.
        edge: Pixels of a picture's edges.

    Returns:
        Three arrays (edge, edge) uint8.
    """
    scan, size, axes = Grid(array.shape, affine), spacing_of(grid.affine), directions(grid)
    corners = np.concatenate([corners_of(scan), corners_of(grid)])
    places = nib.affines.apply_affine(np.linalg.inv(grid.affine), corners) * size
    low, high = places.min(axis=0), places.max(axis=0)  # mm along the grid's axes from its first voxel
    pixel = (high - low).max() / (edge - 12)
    pictures = []
    for axis, sides in ((2, "RL"), (1, "RL"), (0, "AP")):
        shape, first = [max(1, round(n)) for n in (high - low) / pixel], low + pixel / 2
        shape[axis], first[axis] = 1, (grid.shape[axis] - 1) / 2 * size[axis]
        thin = np.eye(4)
        thin[:3, :3] = axes * pixel
        thin[:3, 3] = grid.affine[:3, 3] + axes @ first
        view = framed(array, scan, Grid(tuple(shape), thin), grid, window)
        pictures.append(marked(np.take(view, 0, axis)[::-1, ::-1].T, 1, (edge, edge), sides))
    return pictures


def framed(array, scan, thin, grid, window):
    """A scan on a Grid of one layer, with the outline of another. Shapes: -> that of `thin`, uint8"""
    low, high = window
    values = sampled(array, scan.affine, thin, 1, low)
    known, kept = inside(thin, scan), inside(thin, grid)
    view = grey((values - low) / max(high - low, 1e-12)) * np.where(kept, 1, CUT_SHARE)
    view[~known] = np.where(kept, PADDED_GREY, MARGIN)[~known]
    layer = np.ones([1 if n == 1 else 3 for n in thin.shape], bool)
    view[kept & ~ndimage.binary_erosion(kept, layer, border_value=0)] = EDGE
    return view.astype(np.uint8)
