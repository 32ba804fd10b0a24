"""How alike two volumes are, whatever their grey values, mirror state and small shifts.

Three similarities, each the largest over both mirror states and shifts up to SHIFT voxels: the correlation of
the band-passed volumes ("anatomy"), of their vessel masks ("vessels"), and of one half of both ("half", for
partial copies). A coarse search over all pairs names the training volumes that are compared closely; what it
misses shows in the recall of the planted copies, which go through it too.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

FINE, WIDE = 0.7, 3.0  # voxels, standard deviations of the band-pass' Gaussians
SHIFT = 4  # voxels, to either side along every axis
VESSEL_SHARE = 0.03  # of the voxels, the brightest of the band-passed volume
COARSE = (32, 32, 16)  # voxels of the volumes of the coarse search, at most
THUMBNAIL = (32, 32, 16)  # voxels of what the encoder takes
COARSE_FINE, COARSE_WIDE = 1.0, 4.0  # voxels of the coarse volumes
CANDIDATES = 4  # training volumes compared closely, for the whole and for each half
STATISTICS = ("anatomy", "vessels", "half")


def band_pass(array, fine=FINE, wide=WIDE):
    """What is wider than noise and narrower than tissue. Shapes: (X, Y, Z) -> the same, float32"""
    array = np.asarray(array, dtype=np.float32)
    return ndimage.gaussian_filter(array, fine) - ndimage.gaussian_filter(array, wide)


def vessels(passed):
    """Mask of the brightest voxels of a band-passed volume. Shapes: (X, Y, Z) -> the same, bool"""
    return passed > np.quantile(passed, 1 - VESSEL_SHARE)


def unit(array):
    """An array with mean 0 and norm 1, all 0 if it is constant."""
    array = array - array.mean()
    norm = np.sqrt(np.square(array, dtype=np.float64).sum())
    return (array / norm if norm > 0 else array).astype(np.float32)


def halves(array):
    """A volume's two halves along the first axis, the other half 0. Shapes: (X, Y, Z) -> two of it"""
    middle = array.shape[0] // 2
    left, right = array.copy(), array.copy()
    left[middle:], right[: array.shape[0] - middle] = 0, 0
    return left, right


def shrunken(array, shape):
    """A volume of fewer voxels. Shapes: (X, Y, Z) -> shape, float32"""
    factors = [n / whole for n, whole in zip(shape, array.shape, strict=True)]
    blurred = ndimage.gaussian_filter(
        np.asarray(array, np.float32), [0.5 / f if f < 1 else 0 for f in factors]
    )
    return ndimage.zoom(blurred, factors, order=1, mode="nearest", grid_mode=True)


def coarse(array):
    """A volume for the coarse search. Shapes: (X, Y, Z) -> at most COARSE, float32"""
    shape = [min(n, most) for n, most in zip(array.shape, COARSE, strict=True)]
    return band_pass(shrunken(array, shape), COARSE_FINE, COARSE_WIDE)


@dataclass
class Print:
    """What is compared of one volume, (X, Y, Z) with the first axis between left and right.

    Args:
        passed: The band-passed volume, mean 0 and standard deviation 1, float16.
        mask: Of its vessels, bool.
        small: (3, voxels) of the coarse volume and of its halves, norm 1 each.
        thumbnail: THUMBNAIL, the volume as the encoder takes it, mean 0 and standard deviation 1, float16.
    """

    passed: np.ndarray
    mask: np.ndarray
    small: np.ndarray
    thumbnail: np.ndarray

    def parts(self):
        """{"anatomy", "vessels", "left", "right"}: arrays (X, Y, Z) of norm 1."""
        passed = self.passed.astype(np.float32)
        left, right = halves(passed)
        found = {"anatomy": passed, "vessels": self.mask.astype(np.float32), "left": left, "right": right}
        return {name: unit(array) for name, array in found.items()}


def print_of(array):
    """Print of a volume. Shapes: (X, Y, Z)"""
    passed, small = unit(band_pass(array)), coarse(array)
    rows = np.stack([unit(part).ravel() for part in (small, *halves(small))])
    scale = passed.size**0.5  # float16 has no small numbers
    thumbnail = unit(shrunken(array, THUMBNAIL)) * np.prod(THUMBNAIL) ** 0.5
    return Print((passed * scale).astype(np.float16), vessels(passed), rows, thumbnail.astype(np.float16))


def shifted(small, shape, mirrored):
    """Coarse volumes at all shifts by one voxel, mirrored or not. Shapes: (voxels,) -> (27, voxels)"""
    array = small.reshape(shape)
    array = array[::-1] if mirrored else array
    padded = np.pad(array, 1)
    places = [(x, y, z) for x in range(3) for y in range(3) for z in range(3)]
    return np.stack(
        [padded[x : x + shape[0], y : y + shape[1], z : z + shape[2]].ravel() for x, y, z in places]
    )


class Library:
    """Prints of the training volumes, to search for the nearest ones of others.

    Args:
        prints: [Print].
        shape: Of the volumes, (X, Y, Z).
    """

    def __init__(self, prints, shape):
        self.prints = prints
        self.small_shape = coarse(np.zeros(shape, np.float32)).shape
        self.small = np.stack([p.small for p in prints])  # (n, parts, voxels)
        self.padded = [fft.next_fast_len(n + SHIFT, real=True) for n in shape]

    def alike(self, one, part=0):
        """Coarse similarity of a Print to every training volume, whole (0) or a half. Shapes: -> (n,)"""
        best = np.full(len(self.prints), -1.0, np.float32)
        for mirrored in (False, True):
            source = (0, 2, 1)[part] if mirrored else part  # a half of the mirror image is the other half
            views = shifted(one.small[source], self.small_shape, mirrored)
            np.maximum(best, (self.small[:, part] @ views.T).max(axis=1), out=best)
        return best

    def candidates(self, one, without=()):
        """Indices of the training volumes that a Print is compared with closely."""
        chosen = set()
        for part in range(len(one.small)):
            order = np.argsort(-self.alike(one, part), kind="stable")
            order = [n for n in order[: CANDIDATES + len(without)].tolist() if n not in without]
            chosen |= set(order[:CANDIDATES])
        return sorted(chosen)

    def compare(self, one, without=()):
        """Similarities of a Print to its candidates: {index: {statistic: similarity}}."""
        views = [spectra(one.parts(), self.padded, mirrored) for mirrored in (False, True)]
        found = {}
        for index in self.candidates(one, without):
            values = dict.fromkeys(STATISTICS, -1.0)
            for name, spectrum in spectra(self.prints[index].parts(), self.padded).items():
                statistic = "half" if name in ("left", "right") else name
                peaks = [peak(view[name] * np.conj(spectrum), self.padded) for view in views]
                values[statistic] = max(values[statistic], *peaks)
            found[index] = values
        return found

    def search(self, one, without=()):
        """{statistic: (largest similarity, index of that training volume)} of a Print.

        Args:
            one: Print.
            without: Indices that are left out, for example of the volume itself.
        """
        found = self.compare(one, without)
        return {s: max((values[s], index) for index, values in found.items()) for s in STATISTICS}


def spectra(parts, padded, mirrored=False):
    """Fourier transforms of a Print's parts, or of its mirror image's, padded so that no shift wraps."""
    swap = {"left": "right", "right": "left"} if mirrored else {}
    arrays = {name: parts[swap.get(name, name)] for name in parts}
    return {name: fft.rfftn(a[::-1] if mirrored else a, padded) for name, a in arrays.items()}


def peak(product, padded):
    """Largest correlation over the allowed shifts, of a cross-spectrum."""
    found, near = fft.irfftn(product, padded), np.r_[0 : SHIFT + 1, -SHIFT:0]
    return float(found[np.ix_(near, near, near)].max())
