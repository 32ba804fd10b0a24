"""Distances between two sets of features or measurements, and how sure one can be of them.

Every distance of a set is a function of how often each volume counts: `distance(real_counts,
generated_counts)`. Counts of one give the distance itself, multinomial counts a bootstrap resample of whole
volumes. Slices of a volume are never separated: they are not independent.

Papers: Frechet distance of features (Heusel et al. 2017, arXiv:1706.08500), kernel distance (Binkowski et al.
2018, arXiv:1801.01401), precision and recall for distributions (Sajjadi et al. 2018, arXiv:1806.00035),
density and coverage (Naeem et al. 2020, arXiv:2002.09797).
"""

import numpy as np

from volumetric.cli import UserError

NEAREST = 5  # neighbours of precision, recall, density and coverage (Naeem et al. 2020, Sec. 5)
PRD_CLUSTERS = 10
PRD_RUNS = 10
PRD_ANGLES = 1001
PRINCIPAL_COMPONENTS = 256  # of the features, for the resamples of a Frechet distance
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000  # volumes, at most


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Frechet distance                                                                                         ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """Frechet distance of two Gaussians (arXiv:1706.08500, Eq. 6).

        |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

    With S1 = A A^T and S2 = B B^T, by symmetric eigenvalues, the trace of the root is the sum of the singular
    values of A^T B: real and finite where the root of the product is not, with fewer samples than dimensions,
    and without the digits that squaring small eigenvalues would lose.

    Shapes: (d,), (d, d), (d,), (d, d) -> float

    Raises:
        UserError: A value is not finite, or the sizes differ.
    """
    mu1, sigma1, mu2, sigma2 = (np.asarray(a, dtype=np.float64) for a in (mu1, sigma1, mu2, sigma2))
    if mu1.shape != mu2.shape or sigma1.shape != sigma2.shape:
        raise UserError(f"The two Gaussians have {mu1.shape} and {mu2.shape} means, expected equal sizes.")
    if not all(np.isfinite(a).all() for a in (mu1, sigma1, mu2, sigma2)):
        raise UserError("A mean or covariance of the features is not finite.")
    trace = np.linalg.svd(square_root(sigma1).T @ square_root(sigma2), compute_uv=False).sum()
    return float(np.sum((mu1 - mu2) ** 2) + np.trace(sigma1) + np.trace(sigma2) - 2 * trace)


def square_root(sigma):
    """R with R R^T = sigma, without the eigenvalues that rounding alone explains. Shapes: (d, d) -> (d, r)"""
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    kept = values > len(values) * np.finfo(np.float64).eps * np.abs(values).max(initial=0)
    return vectors[:, kept] * np.sqrt(values[kept])


def moments(features, counts):
    """Mean and covariance of features, of each volume as often as it counts.

    Shapes: (n, s, d), (n,) -> (d,), (d, d)
    """
    rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
    weights = np.repeat(np.asarray(counts, dtype=np.float64), features.shape[1])
    total = weights.sum()
    mean = weights @ rows / total
    centred = (rows - mean) * np.sqrt(weights)[:, None]
    return mean, centred.T @ centred / (total - 1)


class Frechet:
    """Frechet distance of the features of two sets of volumes, of s feature vectors each.

    Resamples are taken in the leading PRINCIPAL_COMPONENTS of both sets together: what the others contribute
    is left out of the spread, not of the distance.

    Shapes: real (n, s, d), generated (m, s, d)
    """

    bounds = (0, np.inf)

    def __init__(self, real, generated):
        self.real, self.generated = real, generated
        self.reduced = None

    def exact(self):
        """The distance in all dimensions."""
        real, generated = self.real, self.generated
        n, m, d = len(real) * real.shape[1], len(generated) * generated.shape[1], real.shape[2]
        if n + m > 2 * d:
            pairs = [moments(f, np.ones(len(f))) for f in (real, generated)]
            return frechet_distance(*pairs[0], *pairs[1])
        # Fewer samples than dimensions: tr (S1 S2)^(1/2) is the nuclear norm of an (n, m) matrix.
        a, b = (f.reshape(-1, d).astype(np.float64) for f in (real, generated))
        mean = a.mean(axis=0) - b.mean(axis=0)
        a, b = (f - f.mean(axis=0) for f in (a, b))
        a, b = a / np.sqrt(n - 1), b / np.sqrt(m - 1)
        trace = np.linalg.svd(a @ b.T, compute_uv=False).sum()
        return float(mean @ mean + (a**2).sum() + (b**2).sum() - 2 * trace)

    def __call__(self, real_counts, generated_counts):
        """The distance of a resample, in the leading principal components."""
        if self.reduced is None:
            self.reduced = principal_components(self.real, self.generated)
        real, generated = self.reduced
        return frechet_distance(*moments(real, real_counts), *moments(generated, generated_counts))


def principal_components(real, generated, number=PRINCIPAL_COMPONENTS):
    """Two sets of features in the leading principal components of both. Shapes: (n, s, d) -> (n, s, k)"""
    dimensions = real.shape[-1]
    rows = np.concatenate([f.reshape(-1, dimensions) for f in (real, generated)]).astype(np.float64)
    mean = rows.mean(axis=0)
    rows -= mean
    if len(rows) < dimensions:
        _, _, axes = np.linalg.svd(rows, full_matrices=False)
        axes = axes[:number].T
    else:
        _, vectors = np.linalg.eigh(rows.T @ rows)
        axes = vectors[:, ::-1][:, :number]
    return tuple((f - mean) @ axes for f in (real, generated))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Kernel distance                                                                                          ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Kernel:
    """Squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (arXiv:1801.01401, Sec. 4).

    Differs from the paper: pairs of slices of one volume are left out, because they are not independent
    draws; the subsets of the standard deviation are of volumes.

    Shapes: real (n, s, d), generated (m, s, d)
    """

    bounds = (-np.inf, np.inf)

    def __init__(self, real, generated):
        self.rr, self.gg = mean_kernels(real, real), mean_kernels(generated, generated)
        self.rg = mean_kernels(real, generated)

    def exact(self):
        """The distance of all volumes."""
        return self(np.ones(len(self.rr)), np.ones(len(self.gg)))

    def __call__(self, real_counts, generated_counts):
        across = real_counts @ self.rg @ generated_counts / (real_counts.sum() * generated_counts.sum())
        return float(within(self.rr, real_counts) + within(self.gg, generated_counts) - 2 * across)

    def standard_deviation(self, rng):
        """Standard deviation over KID_SUBSETS random halves, of KID_SUBSET_SIZE volumes at most."""
        size = min(KID_SUBSET_SIZE, len(self.rr) // 2, len(self.gg) // 2)
        chosen = [[subset(len(k), size, rng) for k in (self.rr, self.gg)] for _ in range(KID_SUBSETS)]
        return float(np.std([self(real, generated) for real, generated in chosen]))


def mean_kernels(a, b):
    """Mean of the kernel over all pairs of slices of two volumes. Shapes: (n, s, d), (m, s, d) -> (n, m)"""
    (n, s, d), (m, t, _) = a.shape, b.shape
    b = np.ascontiguousarray(b.reshape(m * t, d).T)
    rows = [((v @ b / d + 1) ** 3).reshape(s, m, t).mean(axis=(0, 2), dtype=np.float64) for v in a]
    return np.stack(rows).reshape(n, m)


def within(kernels, counts):
    """Mean kernel of pairs of different volumes. Shapes: (n, n), (n,) -> scalar"""
    same = np.sum(counts**2 * np.diag(kernels))
    return (counts @ kernels @ counts - same) / (counts.sum() ** 2 - np.sum(counts**2))


def subset(length, size, rng):
    """Counts of a random subset. Shapes: -> (length,) of 0 and 1"""
    counts = np.zeros(length)
    counts[rng.choice(length, size, replace=False)] = 1
    return counts


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Precision and recall                                                                                     ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def prd_curve(eval_dist, ref_dist, num_angles=PRD_ANGLES, epsilon=1e-10):
    """Precision and recall of a distribution over clusters (arXiv:1806.00035, Eq. 8 and 9, Sec. 3.2).

        precision(l) = sum_c min(l ref_c, eval_c),  recall(l) = precision(l) / l,  l = tan(angle)

    Args:
        eval_dist: Probabilities of the clusters among the generated, (clusters,).
        ref_dist: Probabilities of the clusters among the real, (clusters,).
        num_angles: Angles between 0 and 90 degrees.
        epsilon: Distance of the first and last angle from 0 and 90 degrees, radians.

    Returns:
        (precision, recall), (num_angles,) each.
    """
    slopes = np.tan(np.linspace(epsilon, np.pi / 2 - epsilon, num_angles))[:, None]
    precision = np.minimum(slopes * np.asarray(ref_dist), np.asarray(eval_dist)).sum(axis=1)
    recall = precision / slopes[:, 0]
    return precision.clip(0, 1), recall.clip(0, 1)


def prd_area(precision, recall):
    """Area under precision over recall, by trapezoids in the order of recall.

    Where many recalls are equal but for rounding, the area depends on the order in which numpy's sort leaves
    them, by up to 1e-4 between processors. The published numbers have the same freedom.
    """
    order = np.argsort(recall)
    p, r = precision[order], recall[order]
    return float(np.sum(np.diff(r) * (p[1:] + p[:-1]) / 2))


class PrecisionRecallCurve:
    """Area under the precision-recall curve of k-means clusters of both sets, averaged over PRD_RUNS.

    Resamples keep the clusters.

    Shapes: real (n, d), generated (m, d)
    """

    bounds = (0, 1)

    def __init__(self, real, generated, seed):
        from sklearn.cluster import MiniBatchKMeans

        both = np.concatenate([real, generated]).astype(np.float64)
        self.number = len(real)
        clusters = min(PRD_CLUSTERS, len(np.unique(both, axis=0)))
        runs = [MiniBatchKMeans(clusters, n_init=10, random_state=seed + run) for run in range(PRD_RUNS)]
        self.members = np.stack([run.fit(both).labels_ for run in runs])  # (runs, n + m)
        self.clusters = clusters

    def curve(self, real_counts, generated_counts):
        """Precision and recall, averaged over the runs. Shapes: (n,), (m,) -> (angles,), (angles,)"""
        curves = []
        for members in self.members:
            real = np.bincount(members[: self.number], real_counts, self.clusters) / real_counts.sum()
            generated = np.bincount(members[self.number :], generated_counts, self.clusters)
            curves.append(prd_curve(generated / generated_counts.sum(), real))
        return np.mean(curves, axis=0)

    def exact(self):
        """The area of all volumes."""
        return self(np.ones(self.number), np.ones(self.members.shape[1] - self.number))

    def __call__(self, real_counts, generated_counts):
        return prd_area(*self.curve(real_counts, generated_counts))


class Neighbours:
    """Distances between all volumes, and what follows from the NEAREST neighbours (arXiv:2002.09797, Sec. 3).

    Shapes: real (n, d), generated (m, d)
    """

    def __init__(self, real, generated):
        from scipy.spatial.distance import cdist

        self.rr, self.gg, self.rg = cdist(real, real), cdist(generated, generated), cdist(real, generated)
        for own in (self.rr, self.gg):
            np.fill_diagonal(own, np.inf)

    def precision(self, real_counts, generated_counts):
        """Share of the generated that lie within reach of a real volume."""
        inside = self.rg < reach(self.rr, real_counts)[:, None]
        return float(np.average(inside[real_counts > 0].any(axis=0), weights=generated_counts))

    def recall(self, real_counts, generated_counts):
        """Share of the real that lie within reach of a generated volume."""
        inside = self.rg < reach(self.gg, generated_counts)
        return float(np.average(inside[:, generated_counts > 0].any(axis=1), weights=real_counts))

    def density(self, real_counts, generated_counts):
        """Real volumes within whose reach a generated one lies, in units of NEAREST, on average."""
        inside = self.rg < reach(self.rr, real_counts)[:, None]
        return float(np.average(real_counts @ inside, weights=generated_counts) / NEAREST)

    def coverage(self, real_counts, generated_counts):
        """Share of the real that have a generated volume within their reach."""
        inside = self.rg < reach(self.rr, real_counts)[:, None]
        return float(np.average(inside[:, generated_counts > 0].any(axis=1), weights=real_counts))

    def nearest_ratio(self, real_counts, generated_counts):
        """Median distance of a generated to its nearest real volume, over that of a real to another real."""
        there = real_counts > 0
        to_real = np.repeat(self.rg[there].min(axis=0), generated_counts.astype(int))
        among_real = np.repeat(self.rr[there][:, there].min(axis=0), real_counts[there].astype(int))
        return float(np.median(to_real) / np.median(among_real))


class OfNeighbours:
    """One of the numbers of `Neighbours` as a distance."""

    def __init__(self, neighbours, name, bounds):
        self.number = getattr(neighbours, name)
        self.sizes = neighbours.rg.shape
        self.bounds = bounds

    def exact(self):
        """The number for all volumes."""
        return self(*(np.ones(size) for size in self.sizes))

    def __call__(self, real_counts, generated_counts):
        return self.number(real_counts, generated_counts)


def reach(distances, counts):
    """Distance of every volume to its NEAREST-th neighbour, copies of itself apart. Shapes: (n, n), (n,) ->
    (n,)

    A neighbour that counts twice is two neighbours.
    """
    order = np.argsort(distances, axis=1)
    enough = np.cumsum(counts[order], axis=1) >= NEAREST
    nearest = np.where(enough.any(axis=1), enough.argmax(axis=1), distances.shape[1] - 1)
    return np.take_along_axis(distances, order, axis=1)[np.arange(len(distances)), nearest]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Distributions of measurements                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Wasserstein:
    """Wasserstein-1 distance between two distributions of a measurement, in the measurement's unit.

    Args:
        real: For every real volume the values measured in it, a list of arrays.
        generated: The same for the generated ones.
    """

    bounds = (0, np.inf)

    def __init__(self, real, generated):
        self.sizes = len(real), len(generated)
        values = np.concatenate([*real, *generated])
        order = np.argsort(values, kind="stable")
        self.owners = []
        for volumes, others in ((real, 0), (generated, 1)):
            owner = np.full(len(values), -1)
            first = sum(map(len, real)) if others else 0
            owner[first : first + sum(map(len, volumes))] = np.repeat(
                np.arange(len(volumes)), [len(v) for v in volumes]
            )
            self.owners.append(owner[order])
        self.steps = np.diff(values[order])

    def exact(self):
        """The distance of all volumes."""
        return self(*(np.ones(size) for size in self.sizes))

    def __call__(self, real_counts, generated_counts):
        shares = []
        for owner, counts in zip(self.owners, (real_counts, generated_counts), strict=True):
            cumulated = np.cumsum(np.append(counts, 0)[owner])  # owner -1, of the other set, counts nothing
            shares.append(cumulated / cumulated[-1])
        return float(np.abs(shares[0] - shares[1])[:-1] @ self.steps)


class PairMean:
    """Mean of a number of pairs of volumes of one set.

    Args:
        values: One number for every pair, (p,).
        pairs: Indices of the pairs, (p, 2).
        of_real: The set is the real one.
        sizes: Numbers of real and generated volumes.
    """

    bounds = (-1, 1)

    def __init__(self, values, pairs, of_real, sizes):
        self.values, self.pairs, self.of_real, self.sizes = values, pairs, of_real, sizes

    def exact(self):
        """The mean of all pairs."""
        return float(np.mean(self.values))

    def __call__(self, real_counts, generated_counts):
        counts = real_counts if self.of_real else generated_counts
        weights = counts[self.pairs].prod(axis=1)
        return float(np.average(self.values, weights=weights)) if weights.any() else self.exact()


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Uncertainty                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def resampled(distance, sizes, number, rng):
    """Values of a distance for bootstrap resamples of whole volumes. Shapes: -> (number,)"""
    counts = [[rng.multinomial(n, np.full(n, 1 / n)).astype(float) for n in sizes] for _ in range(number)]
    return np.array([distance(*pair) for pair in counts])


def interval(value, values, bounds=(-np.inf, np.inf)):
    """95 % bootstrap interval around a value: the spread of the resampled values about their own mean.

    A resample holds fewer different volumes than the set, which moves Frechet and Wasserstein distances up;
    without this shift the interval of a small set would lie above its value. The bias that the value itself
    has at this number of volumes is not in the interval: compare with two halves of the real set.
    """
    low, high = value + np.quantile(values, [0.025, 0.975]) - np.mean(values)
    return float(np.clip(low, *bounds)), float(np.clip(high, *bounds))
