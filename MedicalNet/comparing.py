"""Every number that two measured sets give: what it is, its value, how sure, and its floor at equal n.

A number is one row of NUMBERS: what it is of, how it is computed, what it estimates and how to read it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from volumetric.files import finite
from volumetric.parallel import host_random

import numpy as np

from MedicalNet.anatomy import MEASURES
from MedicalNet.covariance_free import Energy, SlicedWasserstein
from MedicalNet.distances import (
    AtInfinity,
    Frechet,
    Kernel,
    Neighbours,
    OfNeighbours,
    PairMean,
    PrecisionRecallCurve,
    Vendi,
    Wasserstein,
    resampled,
    spread,
)
from MedicalNet.extractors import PLANES
from MedicalNet.radiomics import FrechetRadiomics, standardized_by_real
from MedicalNet.volumes import progress

STREAM_BOOTSTRAP, STREAM_SUBSETS, STREAM_SPLIT = range(1, 4)
OUTSIDE = 4.0  # standard deviations; both sets are draws, and some twenty numbers are looked at
FURTHEST = 10.0  # standard deviations of a radiomic feature: single ones of blurred volumes are at thousands
FEW_VESSELS = 0.9  # share of volumes with vessels below which a set is warned of


@dataclass(frozen=True)
class Number:
    """A number of two sets.

    Args:
        name: Its name, with the published weights.
        of: What must be measured for it: volume, placed, a plane, pairs or anatomy.
        estimand: What it estimates, and with what bias.
        build: Function of a Pair that gives the distance.
        question: realistic, diverse, copies or anatomy.
        better: lower, higher, or in words.
        unbiased: Its interval holds what it estimates at its rate.
    """

    name: str
    of: str
    estimand: str
    build: Callable
    question: str = "realistic"
    better: str = "lower"
    unbiased: bool = False


class Pair:
    """Two measured sets, and what several numbers share.

    Args:
        real, generated: Measured.
        seed: Of everything random.
    """

    def __init__(self, real, generated, seed):
        self.real, self.generated, self.seed = real, generated, seed
        self.sizes = len(real.names), len(generated.names)
        self.known = {}

    def features(self, name):
        """Features of both sets. Shapes: -> (n, s, d), (m, s, d)"""
        return self.real.features[name], self.generated.features[name]

    def flat(self):
        """Volume features of both sets. Shapes: -> (n, d), (m, d)"""
        real, generated = self.features("volume")
        return real[:, 0], generated[:, 0]

    def radiomics(self, distance, most=np.inf):
        """A distance of radiomic features, in standard deviations of the real ones, `most` at most."""
        both = self.once("radiomics", lambda: standardized_by_real(*self.features("radiomics")))
        return distance(*(f.clip(-most, most) for f in both))

    def once(self, key, build):
        """What build() gives, computed once."""
        if key not in self.known:
            self.known[key] = build()
        return self.known[key]

    def neighbours(self, name, most):
        """One of the numbers of the nearest neighbours."""
        return OfNeighbours(self.once("neighbours", lambda: Neighbours(*self.flat())), name, (0, most))

    def similarity(self, of_real):
        """MS-SSIM of one of the sets."""
        one = self.real if of_real else self.generated
        twin = None if of_real else self.similarity(True)
        return PairMean(one.similarity, one.pairs, of_real, self.sizes, twin)

    def vendi(self, of_real):
        """Vendi score of one of the sets."""
        real, generated = self.flat()
        twin = None if of_real else self.vendi(True)
        return Vendi(real if of_real else generated, of_real, self.sizes, twin)

    def wasserstein(self, measure):
        """Wasserstein distance of one vessel measure."""
        real = [volume[measure] for volume in self.real.anatomy]
        generated = [volume[measure] for volume in self.generated.anatomy]
        return Wasserstein(real, generated)

    def has(self, of):
        """True if both sets were measured for a number."""
        if of == "pairs":
            return self.real.similarity is not None and self.generated.similarity is not None
        if of == "anatomy":
            return bool(self.real.anatomy and self.generated.anatomy)
        return of in self.real.features and of in self.generated.features


UP = "biased upwards by the number of volumes: compare at equal n"
FRECHET = f"Frechet distance of these two sets of features; {UP}"
AT_INFINITY = "Frechet distance of the populations, in the leading principal components; without bias"
KERNEL = "squared kernel distance of the populations, without bias; no pairs of slices of one volume"
PRD = "area under precision and recall of clusters of both sets; falls with fewer volumes"
AMONG = "among these volumes; depends on n"
PRECISION = f"share of the generated within reach of a real volume, {AMONG}"
RECALL = f"share of the real within reach of a generated volume, {AMONG}"
DENSITY = f"real volumes in reach of a generated one, in fifths, {AMONG}"
COVERAGE = f"share of the real that have a generated one within reach, {AMONG}"
NEAREST_REAL = f"median distance to a real volume, over that among real, {AMONG}"
SIMILARITY = "mean similarity of two volumes of the population; without bias"
VENDI = "effective number of different volumes in this set; grows with n"
ENERGY = "are volumes as far from the other set's as from their own? energy distance of the populations; "
ENERGY += "without bias"
SLICED = (
    "is every direction of the features distributed alike? Wasserstein distance of these two sets, averaged "
)
SLICED += f"over random directions; {UP}"
PLACED = "is everything where it is in real volumes? energy distance of the populations, of the features of "
PLACED += "4 x 4 places in-plane; without bias"
FRD = f"log of the Frechet distance of these two sets' radiomic features (arXiv:2412.01496, Eq. 3); {UP}"
WASSERSTEIN = f"Wasserstein distance of these two sets' values, in their unit; {UP}"


def frechet(of):
    """How the Frechet distance of some features is built of a Pair."""
    return lambda pair: Frechet(*pair.features(of))


def at_infinity(of):
    """How the Frechet distance of the populations is: extrapolated to all volumes."""
    return lambda pair: AtInfinity(*pair.features(of), pair.seed)


def kernel(of):
    """The kernel distance."""
    return lambda pair: Kernel(*pair.features(of))


def energy(of):
    """The energy distance."""
    return lambda pair: Energy(*pair.features(of))


def sliced(of):
    """The sliced Wasserstein distance."""
    return lambda pair: SlicedWasserstein(*pair.features(of), pair.seed)


def radiomic(distance, most=np.inf):
    """A distance of radiomic features."""
    return lambda pair: pair.radiomics(distance, most)


def prd(pair):
    """The area under precision and recall."""
    return PrecisionRecallCurve(*pair.flat(), pair.seed)


def neighbours(name, most):
    """A number of the nearest neighbours, at most `most`."""
    return lambda pair: pair.neighbours(name, most)


def similarity(of_real):
    """MS-SSIM of the real set, or of the generated one."""
    return lambda pair: pair.similarity(of_real)


def vendi(of_real):
    """The Vendi score of the real set, or of the generated one."""
    return lambda pair: pair.vendi(of_real)


def diversity_of(which, better):
    """The numbers of one set alone: how alike its pairs are, and how many different volumes it has."""
    real = which == "real"
    how = {"question": "diverse", "better": better}
    return [
        Number(f"MS-SSIM-{which}", "pairs", SIMILARITY, similarity(real), unbiased=True, **how),
        Number(f"Vendi-{which}", "volume", VENDI, vendi(real), **how),
    ]


def wasserstein(measure):
    """The Wasserstein distance of a vessel measure."""
    return lambda pair: pair.wasserstein(measure)


# The random numbers of each follow from its place.
NUMBERS = [
    *(
        Number("FID" if plane == "axial" else f"FID-{plane}", plane, FRECHET, frechet(plane))
        for plane in PLANES
    ),
    Number("FID-inf", "axial", AT_INFINITY, at_infinity("axial"), unbiased=True),
    Number("KID", "axial", KERNEL, kernel("axial"), unbiased=True),
    Number("FID-RadImageNet", "radimagenet", FRECHET, frechet("radimagenet")),
    Number("KID-RadImageNet", "radimagenet", KERNEL, kernel("radimagenet"), unbiased=True),
    Number("MD", "volume", FRECHET, frechet("volume")),
    Number("MD-inf", "volume", AT_INFINITY, at_infinity("volume"), unbiased=True),
    Number("KD-volume", "volume", KERNEL, kernel("volume"), unbiased=True),
    Number("AUC-PRD", "volume", PRD, prd, better="higher"),
    Number("precision", "volume", PRECISION, neighbours("precision", 1), better="higher"),
    Number("recall", "volume", RECALL, neighbours("recall", 1), question="diverse", better="higher"),
    Number("density", "volume", DENSITY, neighbours("density", np.inf), better="near 1"),
    Number("coverage", "volume", COVERAGE, neighbours("coverage", 1), question="diverse", better="higher"),
    Number(
        "nearest-real",
        "volume",
        NEAREST_REAL,
        neighbours("nearest_ratio", np.inf),
        question="copies",
        better="near 1",
    ),
    *diversity_of("real", "-"),
    *diversity_of("generated", "as real"),
    *(
        Number(f"W1-{name}", "anatomy", WASSERSTEIN, wasserstein(name), question="anatomy")
        for name in MEASURES
    ),
    Number("energy", "volume", ENERGY, energy("volume"), unbiased=True),
    Number("sliced-W1", "volume", SLICED, sliced("volume")),
    Number("energy-placed", "placed", PLACED, energy("placed"), unbiased=True),
    Number("energy-OpenMind", "openmind", ENERGY, energy("openmind"), unbiased=True),
    Number("sliced-W1-OpenMind", "openmind", SLICED, sliced("openmind")),
    Number("FD-OpenMind", "openmind", FRECHET, frechet("openmind")),
    Number("energy-radiomics", "radiomics", ENERGY, radiomic(Energy, FURTHEST), unbiased=True),
    Number("FRD", "radiomics", FRD, radiomic(FrechetRadiomics)),
]


def named(metric, embedding):
    """Name of a number; one of random networks can never be taken for FID or MD."""
    of_no_network = metric.startswith(("MS-SSIM", "W1-", "FRD")) or "radiomics" in metric
    if embedding == "pretrained" or of_no_network or "RadImageNet" in metric:
        return metric
    if metric.startswith("MD"):
        return metric.replace("MD", "FD-random-volume")
    if metric == "KD-volume":
        return "KD-random-volume"
    if metric.startswith(("FID", "KID")):
        return metric.replace("FID", "FD-random").replace("KID", "KD-random")
    return f"{metric}-random"


def compare(real_set, generated_set, config):
    """Every number that can be had from two sets.

    Args:
        real_set, generated_set: Measured.
        config: EvaluateConfig.

    Returns:
        {name: {"value", "interval_95", "spread_95", "equal_n", "better", "n_real", "n_generated", ...}}, and
        the curve (precision, recall) behind AUC-PRD or None. `interval_95` is a confidence interval, of
        unbiased numbers alone; `spread_95` is what resampling of volumes moves the others by.
    """
    pair = Pair(real_set, generated_set, config.seed)
    wanted = [(index, number) for index, number in enumerate(NUMBERS) if pair.has(number.of)]
    results, curve = {}, None
    for index, number in progress(wanted, "Comparing", "metric"):
        result, found = entry_of(number.build(pair), number, config, index)
        curve = found if number.name == "AUC-PRD" else curve
        results[named(number.name, config.embedding)] = result
    return results, curve


def entry_of(distance, number, config, index):
    """What metrics.json says of a number.

    Args:
        distance: Of two sets; see distances.py.
        number: Number.
        config: EvaluateConfig.
        index: Its place, from which its random numbers follow.

    Returns:
        ({"value", "interval_95", ...} as of `compare`, the curve behind AUC-PRD or None).
    """
    value, curve = distance.exact(), None
    result = {"value": value, "interval_95": None, "spread_95": None}
    if config.bootstrap and number.unbiased:
        result["interval_95"] = distance.interval()
    elif config.bootstrap:
        rng = host_random(config.seed, STREAM_BOOTSTRAP, index)
        values = resampled(distance, distance.sizes, config.bootstrap, rng)
        result["spread_95"] = spread(value, values, distance.bounds)
    if number.name == "KID":
        rng = host_random(config.seed, STREAM_SUBSETS)
        result["standard_deviation"] = distance.standard_deviation(rng)
    if number.name == "AUC-PRD":
        curve = distance.curve(np.ones(distance.sizes[0]), np.ones(distance.sizes[1]))
    result["equal_n"] = at_equal_n(distance, number, config, index) if config.real_split else None
    result["real_split"] = result["equal_n"] and {
        key: result["equal_n"][f"floor_{key}"] for key in ("mean", "standard_deviation")
    } | {key: result["equal_n"][key] for key in ("n", "repeats")}
    result |= {"n_real": distance.sizes[0], "n_generated": distance.sizes[1], "better": number.better}
    return finite(result | {"question": number.question, "estimand": number.estimand}), curve


def at_equal_n(distance, number, config, index):
    """A number of subsets of n volumes of both sets, and of n real against n other real ones.

    Returns:
        {"n", "mean", "standard_deviation", "floor_mean", "floor_standard_deviation", "floor", "outside"}:
        `floor` are the values of the real halves, lowest and highest; `outside` is whether the mean is worse
        than all of them and OUTSIDE standard deviations from their mean. None where there is no floor: of the
        real set's own numbers, and of what is extrapolated from all sizes.
    """
    if not hasattr(distance, "between_real"):
        return None
    sizes = distance.sizes
    n = min(sizes[0] // 2, sizes[1])
    of_real = distance.between_real()
    values, floor = [], []
    for repeat in range(config.real_split_repeats):
        rng = host_random(config.seed, STREAM_SPLIT, repeat, index)
        halves = rng.permutation(sizes[0])
        real = counts_of(rng.permutation(sizes[0])[:n], sizes[0])
        generated = counts_of(rng.permutation(sizes[1])[:n], sizes[1])
        values.append(distance(real, generated))
        floor.append(of_real(counts_of(halves[:n], sizes[0]), counts_of(halves[n : 2 * n], sizes[0])))
    values = np.array(values)[np.isfinite(values)]
    floor = np.array(floor)[np.isfinite(floor)]
    if not len(values) or not len(floor):
        return None
    mean, low, high = float(values.mean()), float(floor.min()), float(floor.max())
    counts = distance.bounds == (0, 1) or getattr(distance, "counts", False)
    least = 1 / n if counts else 0  # a share, or a mean of whole numbers, cannot be told more finely
    away = OUTSIDE * max(float(floor.std()), least)
    lower = mean < low and floor.mean() - mean > away
    higher = mean > high and mean - floor.mean() > away
    outside = {"lower": higher, "higher": lower}.get(number.better, lower or higher)
    return {
        "n": int(n),
        "repeats": len(values),
        "mean": mean,
        "standard_deviation": float(values.std()),
        "floor_mean": float(floor.mean()),
        "floor_standard_deviation": float(floor.std()),
        "floor": [low, high],
        "outside": bool(outside),
    }


def counts_of(indices, length):
    """Counts of 1 for some volumes, 0 for the others. Shapes: (n,) -> (length,)"""
    counts = np.zeros(length)
    counts[indices] = 1
    return counts


def with_vessels(measured_set):
    """Number of volumes in which a vessel was found."""
    return sum(len(volume["radius-mm"]) > 0 for volume in measured_set.anatomy)


def only(found, number):
    """only 89 of the 128; none of the 128"""
    return f"only {found} of the {number}" if found else f"none of the {number}"


def few_samples(measured_sets, extractors, config):
    """Warnings where a Frechet distance has no more volumes than dimensions, or a set few vessels."""
    warnings = []
    for extractor in extractors:
        if hasattr(extractor, "dimension"):
            n = min(len(m.names) for m in measured_sets)
            if n <= extractor.dimension:
                special = {"volume": "MD", "axial": "FID", "radimagenet": "FID-RadImageNet"}
                special |= {"openmind": "FD-OpenMind", "radiomics": "FRD"}
                metric = special.get(extractor.name, f"FID-{extractor.name}")
                warnings.append(
                    f"{named(metric, config.embedding)} has {n} volumes for {extractor.dimension} "
                    f"dimensions: it is biased upwards, compare it at equal numbers alone"
                )
    for which, one in zip(("real", "generated"), measured_sets, strict=True):
        number = with_vessels(one)
        if one.anatomy and number < FEW_VESSELS * len(one.names):
            warnings.append(f"vessels were found in {only(number, len(one.names))} {which} volumes")
    return warnings
