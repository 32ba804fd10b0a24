"""Distances between two sets of features or measurements, and how sure one can be of them.

Every distance of a set is a function of how often each volume counts: `distance(real_counts,
generated_counts)`. Counts of one give the distance itself, multinomial counts a bootstrap resample of whole
volumes. Slices of a volume are never separated: they are not independent.

Papers: Frechet distance of features (Heusel et al. 2017, arXiv:1706.08500), kernel distance (Binkowski et al.
2018, arXiv:1801.01401), precision and recall for distributions (Sajjadi et al. 2018, arXiv:1806.00035),
density and coverage (Naeem et al. 2020, arXiv:2002.09797), Frechet distance of infinitely many samples (Chong
& Forsyth 2020, arXiv:1911.07023), Vendi score (Friedman & Dieng 2022, arXiv:2210.02410).

`between_real()` gives the same distance of the real set to itself, whose disjoint subsets are the floor that
a perfect generator would reach.
"""

from volumetric.cli import UserError

import numpy as np
from scipy.stats import t as student
from scipy.stats import wasserstein_distance

NEAREST = 5  # neighbours of precision, recall, density and coverage (Naeem et al. 2020, Sec. 5)
PRD_CLUSTERS = 10
PRD_RUNS = 10
PRD_ANGLES = 1001
PRINCIPAL_COMPONENTS = 128  # of the features, for the resamples of a Frechet distance
SIZES, DRAWS = 8, 8  # numbers of volumes, and subsets of each, behind the distance of infinitely many
FOLDS = 10  # of the jackknife of that distance
VOLUMES_A_COMPONENT = 4
MOST_BYTES = 2**29  # of the products of the features of every volume
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
    mu1, mu2 = np.asarray(mu1, dtype=np.float64), np.asarray(mu2, dtype=np.float64)
    sigma1, sigma2 = np.asarray(sigma1, dtype=np.float64), np.asarray(sigma2, dtype=np.float64)
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


class OfVolumes:
    """Moments of features, of each volume as often as it counts, from sums over the slices of each volume.

    Args:
        features: (n, s, k), centred but for rounding.
    """

    def __init__(self, features):
        n, self.slices, k = features.shape
        self.features = features
        self.sums = self.products = None
        if n * k**2 * 8 <= MOST_BYTES:
            self.sums = features.sum(axis=1)
            self.products = np.einsum("nsi,nsj->nij", features, features, optimize=True).reshape(n, -1)

    def __call__(self, counts):
        """Mean and covariance. Shapes: (n,) -> (k,), (k, k)"""
        if self.sums is None:
            return moments(self.features, counts)
        total = counts.sum() * self.slices
        mean = counts @ self.sums / total
        products = (counts @ self.products).reshape(len(mean), -1)
        return mean, (products - total * np.outer(mean, mean)) / (total - 1)


class Frechet:
    """Frechet distance of the features of two sets of volumes, of s feature vectors each.

    Resamples are taken in the leading PRINCIPAL_COMPONENTS of both sets together: what the others contribute
    is left out of the spread, not of the distance.

    Shapes: real (n, s, d), generated (m, s, d)
    """

    bounds = (0, np.inf)

    def __init__(self, real, generated, reduced=None):
        self.real, self.generated = real, generated
        self.sizes = len(real), len(generated)
        self.reduced = reduced

    def between_real(self):
        """The same of the real set and itself, in the same principal components."""
        real, _ = self.components()
        return type(self)(self.real, self.real, (real, real))

    def components(self):
        """Moments of both sets in the leading principal components of both together."""
        if self.reduced is None:
            self.reduced = tuple(map(OfVolumes, principal_components(self.real, self.generated)))
        return self.reduced

    def exact(self):
        """The distance in all dimensions."""
        real, generated = self.real, self.generated
        n, m, d = len(real) * real.shape[1], len(generated) * generated.shape[1], real.shape[2]
        if n + m > 2 * d:
            pairs = [moments(f, np.ones(len(f))) for f in (real, generated)]
            return frechet_distance(*pairs[0], *pairs[1])
        # Fewer samples than dimensions: tr (S1 S2)^(1/2) is the nuclear norm of an (n, m) matrix.
        a, b = real.reshape(-1, d).astype(np.float64), generated.reshape(-1, d).astype(np.float64)
        mean = a.mean(axis=0) - b.mean(axis=0)
        a, b = (a - a.mean(axis=0)) / np.sqrt(n - 1), (b - b.mean(axis=0)) / np.sqrt(m - 1)
        trace = np.linalg.svd(a @ b.T, compute_uv=False).sum()
        return float(mean @ mean + (a**2).sum() + (b**2).sum() - 2 * trace)

    def __call__(self, real_counts, generated_counts):
        """The distance of a resample, in the leading principal components."""
        real, generated = self.components()
        return frechet_distance(*real(real_counts), *generated(generated_counts))


class AtInfinity:
    """Frechet distance extrapolated to infinitely many volumes (arXiv:1911.07023, Sec. 3).

    The distance of n volumes of each set is, to first order, a + b / n; a is found by a straight line through
    random subsets of several sizes. The line is straight only if n is several times the number of dimensions:
    the distance is in one leading principal component for every VOLUMES_A_COMPONENT volumes. Its 95 %
    interval is a grouped jackknife: the fit without each tenth of both sets.

    Shapes: real (n, s, d), generated (m, s, d)
    """

    bounds = (-np.inf, np.inf)

    def __init__(self, real, generated, seed, reduced=None):
        self.sizes, self.seed = (len(real), len(generated)), seed
        self.components = int(np.clip(min(self.sizes) // VOLUMES_A_COMPONENT, 2, PRINCIPAL_COMPONENTS))
        reduced = reduced or map(OfVolumes, principal_components(real, generated, self.components))
        self.frechet = Frechet(real, generated, tuple(reduced))

    def among(self, real, generated, rng):
        """The extrapolated distance of some of the volumes. Shapes: indices (n,), (m,) -> float"""
        most = min(len(real), len(generated))
        sizes = np.unique(np.linspace(max(2, most // 2), most, SIZES).astype(int))
        draws = [
            (n, self.of_subset(rng.permutation(real)[:n], rng.permutation(generated)[:n]))
            for n in sizes
            for _ in range(DRAWS)
        ]
        numbers, values = np.array(draws).T
        return float(np.polyfit(1 / numbers, values, 1)[1])

    def of_subset(self, real, generated):
        """The distance of the volumes of some indices."""
        counts = [np.zeros(n) for n in self.sizes]
        for count, chosen in zip(counts, (real, generated), strict=True):
            count[chosen] = 1
        return self.frechet(*counts)

    def exact(self):
        """The extrapolated distance of all volumes."""
        return self.among(*map(np.arange, self.sizes), np.random.default_rng(self.seed))

    def interval(self):
        """(low, high) of 95 %, by a grouped jackknife."""
        rng = np.random.default_rng(self.seed + 1)
        folds = [np.array_split(rng.permutation(n), FOLDS) for n in self.sizes]
        left = [[np.concatenate(f[:k] + f[k + 1 :]) for f in folds] for k in range(FOLDS)]
        values = np.array([self.among(*pair, rng) for pair in left])
        return jackknifed(self.exact(), values)


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

    def __init__(self, real, generated, kernels=None):
        pairs = (real, real), (generated, generated), (real, generated)
        self.rr, self.gg, self.rg = kernels or [mean_kernels(*pair) for pair in pairs]
        self.sizes = self.rg.shape

    def between_real(self):
        """The same of the real set and itself."""
        return type(self)(None, None, (self.rr, self.rr, self.rr))

    def interval(self):
        """(low, high) of 95 %, by the jackknife over volumes."""
        return leave_one_out(self)

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

    def __init__(self, real, generated, seed, members=None):
        from sklearn.cluster import MiniBatchKMeans

        self.number, self.sizes = len(real), (len(real), len(generated))
        self.clusters, self.members = PRD_CLUSTERS, members
        if members is not None:
            return
        both = np.concatenate([real, generated]).astype(np.float64)
        clusters = min(PRD_CLUSTERS, len(np.unique(both, axis=0)))
        runs = [
            MiniBatchKMeans(clusters, n_init=10, random_state=(seed + run) % 2**32) for run in range(PRD_RUNS)
        ]
        self.members = np.stack([run.fit(both).labels_ for run in runs])  # (runs, n + m)
        self.clusters = clusters

    def between_real(self):
        """The same of the real set and itself, in the same clusters."""
        own = self.members[:, : self.number]
        twice = np.concatenate([own, own], axis=1)
        again = PrecisionRecallCurve(own[0], own[0], None, twice)
        again.clusters = self.clusters
        return again

    def resampled(self, real_counts, generated_counts, rng):
        """The area of a resample, also of the runs of k-means."""
        runs = rng.integers(len(self.members), size=len(self.members))
        return prd_area(*self.curve(real_counts, generated_counts, runs))

    def curve(self, real_counts, generated_counts, runs=None):
        """Precision and recall, averaged over the runs. Shapes: (n,), (m,) -> (angles,), (angles,)"""
        curves = []
        for members in self.members if runs is None else self.members[runs]:
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

    def __init__(self, real, generated, distances=None):
        from scipy.spatial.distance import cdist

        pairs = (real, real), (generated, generated), (real, generated)
        self.rr, self.gg, self.rg = distances or [cdist(*pair) for pair in pairs]
        for own in (self.rr, self.gg):
            np.fill_diagonal(own, np.inf)

    def between_real(self):
        """The same of the real set and itself."""
        return Neighbours(None, None, (self.rr, self.rr, self.rr))

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

    def recalled(self):
        """For every real volume, whether it lies within reach of a generated one. Shapes: -> (n,) bool"""
        return (self.rg < reach(self.gg, np.ones(len(self.gg)))).any(axis=1)

    def covered(self):
        """For every real volume, whether a generated one lies within its reach. Shapes: -> (n,) bool"""
        return (self.rg < reach(self.rr, np.ones(len(self.rr)))[:, None]).any(axis=1)

    def nearest_ratio(self, real_counts, generated_counts):
        """Median distance of a generated to its nearest real volume, over that of a real to another real."""
        there = real_counts > 0
        to_real = np.repeat(self.rg[there].min(axis=0), generated_counts.astype(int))
        among_real = np.repeat(self.rr[there][:, there].min(axis=0), real_counts[there].astype(int))
        with np.errstate(divide="ignore", invalid="ignore"):  # real volumes that are all equal: no number
            return float(np.median(to_real) / np.median(among_real))


class OfNeighbours:
    """One of the numbers of `Neighbours` as a distance."""

    def __init__(self, neighbours, name, bounds):
        self.neighbours, self.name, self.bounds = neighbours, name, bounds
        self.number = getattr(neighbours, name)
        self.sizes = neighbours.rg.shape

    def between_real(self):
        """The same of the real set and itself."""
        return OfNeighbours(self.neighbours.between_real(), self.name, self.bounds)

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

    NaN where one of the sets has nothing to measure: nothing is no agreement.

    Args:
        real: For every real volume the values measured in it, a list of arrays.
        generated: The same for the generated ones.
    """

    bounds = (0, np.inf)

    def __init__(self, real, generated):
        self.sets, self.sizes = (real, generated), (len(real), len(generated))
        self.values, self.owners = [], []
        for one in self.sets:  # in order, which is quicker to sort again for every resample
            values = np.concatenate([np.zeros(0), *one])
            order = np.argsort(values)
            self.values.append(values[order])
            self.owners.append(np.repeat(np.arange(len(one)), [len(v) for v in one])[order])

    def between_real(self):
        """The same of the real set and itself."""
        return Wasserstein(self.sets[0], self.sets[0])

    def exact(self):
        """The distance of all volumes."""
        return self(*(np.ones(size) for size in self.sizes))

    def __call__(self, real_counts, generated_counts):
        values, weights = [], []
        for one, owners, counts in zip(
            self.values, self.owners, (real_counts, generated_counts), strict=True
        ):
            weight = counts[owners]
            kept = weight > 0
            if not kept.any():
                return np.nan
            values.append(one[kept])
            weights.append(weight[kept])
        return float(wasserstein_distance(*values, *weights))


class PairMean:
    """Mean of a number of pairs of volumes of one set.

    Args:
        values: One number for every pair, (p,).
        pairs: Indices of the pairs, (p, 2).
        of_real: The set is the real one.
        sizes: Numbers of real and generated volumes.
        twin: The same of the real set, for a generated one.
    """

    bounds = (-1, 1)

    def __init__(self, values, pairs, of_real, sizes, twin=None):
        self.values, self.pairs, self.of_real, self.sizes = values, pairs, of_real, sizes
        if twin is not None:
            self.between_real = lambda: twin

    def exact(self):
        """The mean of all pairs."""
        return float(np.mean(self.values))

    def __call__(self, real_counts, generated_counts):
        counts = real_counts if self.of_real else generated_counts
        weights = counts[self.pairs].prod(axis=1)
        return float(np.average(self.values, weights=weights)) if weights.any() else np.nan

    def interval(self):
        """(low, high) of 95 %, by the jackknife over volumes."""
        return leave_one_out(self)


class Vendi:
    """Vendi score: the effective number of different volumes in a set (arXiv:2210.02410, Def. 3.1).

        exp(-sum_i l_i log l_i), l the eigenvalues of K / n, K_ij the cosine of two volumes' features

    Features are centred by their mean. Grows with n: compare at equal n.

    Args:
        features: (n, d).
        of_real: The set is the real one.
        sizes: Numbers of real and generated volumes.
        twin: The same of the real set, for a generated one.
    """

    bounds = (1, np.inf)

    def __init__(self, features, of_real, sizes, twin=None):
        if twin is not None:
            self.between_real = lambda: twin
        centred = features - features.mean(axis=0, dtype=np.float64)
        unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        self.kernel, self.of_real, self.sizes = unit @ unit.T, of_real, sizes

    def exact(self):
        """The score of all volumes."""
        return self(*(np.ones(size) for size in self.sizes))

    def __call__(self, real_counts, generated_counts):
        counts = real_counts if self.of_real else generated_counts
        kept = counts > 0
        root = np.sqrt(counts[kept] / counts.sum())
        values = np.linalg.eigvalsh(self.kernel[kept][:, kept] * root[:, None] * root)
        values = values[values > 1e-12]
        return float(np.exp(-(values * np.log(values)).sum()))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Uncertainty                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def resampled(distance, sizes, number, rng):
    """Values of a distance for bootstrap resamples of whole volumes. Shapes: -> (number,)"""
    counts = [[rng.multinomial(n, np.full(n, 1 / n)).astype(float) for n in sizes] for _ in range(number)]
    if hasattr(distance, "resampled"):
        return np.array([distance.resampled(*pair, rng) for pair in counts])
    return np.array([distance(*pair) for pair in counts])


def spread(value, values, bounds=(-np.inf, np.inf)):
    """95 % of the resampled values about their own mean, put around a value; None without any.

    It is how much the number moves when other volumes are drawn, no confidence interval: the bias that a
    distance has at this number of volumes is not in it. A resample holds fewer different volumes than the
    set, which moves Frechet and Wasserstein distances up; hence the shift to the value.
    """
    values = values[np.isfinite(values)]
    if not len(values) or not np.isfinite(value):
        return None
    low, high = value + np.quantile(values, [0.025, 0.975]) - np.mean(values)
    return float(np.clip(low, *bounds)), float(np.clip(high, *bounds))


def leave_one_out(distance):
    """95 % interval of an unbiased number of two sets, by leaving out every volume of each in turn."""
    variance, value = 0.0, distance.exact()
    for which, size in enumerate(distance.sizes):
        values = []
        for left in range(size):
            counts = [np.ones(n) for n in distance.sizes]
            counts[which][left] = 0
            values.append(distance(*counts))
        values = np.array(values)[np.isfinite(values)]
        variance += (len(values) - 1) * np.var(values)
    half = 1.96 * np.sqrt(variance)
    return float(value - half), float(value + half)


def jackknifed(value, values):
    """95 % interval around a value, of its values without each group in turn (Student's t)."""
    half = student.ppf(0.975, len(values) - 1) * np.sqrt((len(values) - 1) * np.var(values))
    return float(value - half), float(value + half)
