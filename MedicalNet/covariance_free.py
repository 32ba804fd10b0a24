"""Distances of two sets of features that need no covariance: what few volumes of many dimensions can give.

A covariance of 512 dimensions cannot be had from 50 volumes. Distances between volumes, and distributions
along single directions, can. Both are functions of how often each volume counts, as those of distances.py.

Papers: energy distance (Szekely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018), sliced Wasserstein distance
(Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3), and the latter of features of a network in place of the
Frechet distance (Berthet et al. 2026, arXiv:2605.06797).
"""

import numpy as np

from MedicalNet.distances import Kernel

DIRECTIONS = 512  # of the sliced distance


class Energy(Kernel):
    """Energy distance of two sets of volumes (doi:10.1016/j.jspi.2013.03.018, Eq. 5 and 6).

        2 E|X - Y| - E|X - X'| - E|Y - Y'|

    It is 0 for equal distributions and above 0 for any others: the squared mean discrepancy of the kernel
    -|x - y|, so that everything else is Kernel's. Without bias: X and X' are always different volumes.

    Shapes: real (n, s, d), generated (m, s, d)
    """

    def __init__(self, real, generated, kernels=None):
        pairs = (real, real), (generated, generated), (real, generated)
        super().__init__(None, None, kernels or [-mean_distances(*pair) for pair in pairs])


def mean_distances(a, b):
    """Mean distance over all pairs of vectors of two volumes. Shapes: (n, s, d), (m, t, d) -> (n, m)"""
    from scipy.spatial.distance import cdist

    (n, s, d), (m, t, _) = a.shape, b.shape
    away = cdist(a.reshape(n * s, d), b.reshape(m * t, d))
    return away.reshape(n, s, m, t).mean(axis=(1, 3))


class SlicedWasserstein:
    """Mean Wasserstein-1 distance along DIRECTIONS random directions (doi:10.1007/s10851-014-0506-3, Sec. 3).

    In one dimension it is the area between the two distribution functions, exact for sets of any size.

    Args:
        real, generated: (n, s, d), (m, s, d).
        seed: Of the directions.
    """

    bounds = (0, np.inf)

    def __init__(self, real, generated, seed):
        self.real, self.generated, self.seed = real, generated, seed
        self.sizes = len(real), len(generated)
        slices, dimensions = real.shape[1:]
        directions = np.random.default_rng(seed).standard_normal((dimensions, DIRECTIONS))
        directions /= np.linalg.norm(directions, axis=0)
        along = np.concatenate([f.reshape(-1, dimensions) @ directions for f in (real, generated)])
        order = np.argsort(along, axis=0, kind="stable")
        self.gaps = np.diff(np.take_along_axis(along, order, axis=0), axis=0)  # (rows - 1, directions)
        self.owners = order[:-1] // slices  # volume of each value, the generated after the real

    def between_real(self):
        """The same of the real set and itself."""
        return SlicedWasserstein(self.real, self.real, self.seed)

    def exact(self):
        """The distance of all volumes."""
        return self(*(np.ones(size) for size in self.sizes))

    def __call__(self, real_counts, generated_counts):
        slices = (len(self.gaps) + 1) // sum(self.sizes)
        shares = real_counts / real_counts.sum(), -generated_counts / generated_counts.sum()
        ahead = np.cumsum(np.concatenate(shares)[self.owners], axis=0) / slices
        return float(np.vdot(np.abs(ahead), self.gaps) / self.gaps.shape[1])
