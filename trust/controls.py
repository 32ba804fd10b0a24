"""Copies that are planted on purpose, to see which of them a search finds."""

import numpy as np
from scipy import ndimage

SMOOTH = 8.0  # voxels, width of the Gaussian that smooths a field of displacements


def scaled(array):
    """Grey values to [0, 1]."""
    low, high = array.min(), array.max()
    return (array - low) / max(high - low, np.finfo(np.float32).tiny)


def noisy(share):
    """With Gaussian noise of a share of the grey values' range."""
    return lambda array, other, rng: array + share * rng.standard_normal(array.shape)


def moved(array, other, rng):
    """Shifted by (3, 2, 1) voxels."""
    return ndimage.shift(array, (3, 2, 1), order=0, mode="nearest")


def mirrored(array, other, rng):
    """Left and right exchanged."""
    return array[::-1].copy()


def gamma(array, other, rng):
    """Squared grey values."""
    return array**2


def biased(array, other, rng):
    """Times a smooth field from 0.4 to 1.6."""
    field = ndimage.gaussian_filter(rng.standard_normal(array.shape), np.array(array.shape) / 4)
    return array * (0.4 + 1.2 * scaled(field))


def smoothed(array, other, rng):
    """Blurred by 1 voxel."""
    return ndimage.gaussian_filter(array, 1.0)


def turned(array, other, rng):
    """Rotated by 5 degrees in the plane."""
    return ndimage.rotate(array, 5, axes=(0, 1), reshape=False, order=1, mode="nearest")


def elastic(voxels):
    """Deformed by a smooth random field that moves no voxel further than so many voxels along an axis."""

    def deform(array, other, rng):
        grid = np.indices(array.shape).astype(float)
        for axis in range(3):
            field = ndimage.gaussian_filter(rng.standard_normal(array.shape), SMOOTH)
            grid[axis] += voxels * field / np.abs(field).max()
        return ndimage.map_coordinates(array, grid, order=1, mode="nearest")

    return deform


def half(array, other, rng):
    """One half of it, the other half of another volume."""
    middle = array.shape[0] // 2
    return np.concatenate([array[:middle], other[middle:]])


# {name: function of (volume (X, Y, Z) in [0, 1], another volume, random generator)}
KINDS = {
    "exact": lambda array, other, rng: array.copy(),
    "noise 5 %": noisy(0.05),
    "noise 10 %": noisy(0.1),
    "noise 30 %": noisy(0.3),
    "shift": moved,
    "mirrored": mirrored,
    "gamma 2": gamma,
    "bias field": biased,
    "smoothed": smoothed,
    "rotated": turned,
    "elastic 2": elastic(2),
    "elastic 4": elastic(4),
    "half pasted": half,
}
# A gate that does not find these is inconclusive.
REQUIRED = ("exact", "noise 5 %", "shift", "mirrored", "gamma 2", "elastic 2")
LEAST_RECALL = 0.9
