"""What an eye sees at once in a volume and no distance of features tells: saturated, or without a vessel."""

from concurrent.futures import ThreadPoolExecutor

from volumetric.machine import usable_cores

import numpy as np

TOP = 0.001  # part of a volume's range below its maximum that counts as the maximum
SATURATED = 0.001  # share of voxels at the maximum above which a volume is looked at,
FEWEST_VOXELS = 20  # and their number, for a small volume has its one maximum too
REAL_SHARES = 64  # real volumes, evenly chosen, that say what is usual


def share_at_maximum(array):
    """Share of an array's voxels at its maximum; 0 where they are too few to see."""
    low, high = float(array.min()), float(array.max())
    number = int(np.count_nonzero(array >= high - TOP * (high - low)))
    return number / array.size if number >= FEWEST_VOXELS else 0.0


def shares_at_maximum(files):
    """`share_at_maximum` of every VolumeFile. Shapes: -> (n,)"""
    with ThreadPoolExecutor(usable_cores()) as pool:
        return np.array(list(pool.map(lambda file: share_at_maximum(file.read()), files)))


def saturated(files):
    """The generated volumes with more voxels at their maximum than any real one, and than SATURATED.

    Args:
        files: VolumeFile of the real and of the generated volumes.

    Returns:
        ([(index, share)], the worst first; the largest share of a real one).
    """
    real, generated = files
    chosen = np.unique(np.linspace(0, len(real) - 1, min(REAL_SHARES, len(real))).astype(int))
    usual = float(shares_at_maximum([real[n] for n in chosen]).max())
    shares = shares_at_maximum(generated)
    order = np.argsort(-shares, kind="stable")
    return [(int(n), float(shares[n])) for n in order if shares[n] > max(SATURATED, usual)], usual


def without_vessels(measured):
    """Indices of the volumes of a Measured in which no vessel was found."""
    return [n for n, volume in enumerate(measured.anatomy) if not len(volume["radius-mm"])]
