"""Every number that two measured sets give, its interval, and its floor between halves of the real set."""

from dataclasses import replace

import numpy as np

from MedicalNet.anatomy import MEASURES
from MedicalNet.distances import (
    Frechet,
    Kernel,
    Neighbours,
    OfNeighbours,
    PairMean,
    PrecisionRecallCurve,
    Wasserstein,
    interval,
    resampled,
)
from MedicalNet.extractors import PLANES
from MedicalNet.volumes import progress
from volumetric.parallel import host_random

STREAM_BOOTSTRAP, STREAM_SUBSETS, STREAM_SPLIT = range(1, 4)
BETTER = {"density": "near 1", "nearest-real": "near 1", "MS-SSIM-real": "-", "MS-SSIM-generated": "as real"}
HIGHER = {"AUC-PRD", "precision", "recall", "coverage"}
OF_VOLUMES = ("AUC-PRD", "precision", "recall", "density", "coverage", "nearest-real")


def named(metric, embedding):
    """Name of a number; one of random networks can never be taken for FID or MD."""
    if embedding == "pretrained" or metric.startswith(("MS-SSIM", "W1-")):
        return metric
    if metric == "MD":
        return "FD-random-volume"
    if metric.startswith(("FID", "KID")):
        return metric.replace("FID", "FD-random").replace("KID", "KD-random")
    return f"{metric}-random"


def distances_between(real_set, generated_set, config):
    """{metric: distance} of everything that was measured in both sets; see distances.py."""
    found = {}
    for plane in PLANES:
        if plane in real_set.features:
            name = "FID" if plane == "axial" else f"FID-{plane}"
            found[name] = Frechet(real_set.features[plane], generated_set.features[plane])
    if "axial" in real_set.features:
        found["KID"] = Kernel(real_set.features["axial"], generated_set.features["axial"])
    if "volume" in real_set.features:
        pair = real_set.features["volume"], generated_set.features["volume"]
        found["MD"] = Frechet(*pair)
        flat = [f[:, 0] for f in pair]
        found["AUC-PRD"] = PrecisionRecallCurve(*flat, config.seed)
        neighbours = Neighbours(*flat)
        for name, bounds in (("precision", 1), ("recall", 1), ("density", np.inf), ("coverage", 1)):
            found[name] = OfNeighbours(neighbours, name, (0, bounds))
        found["nearest-real"] = OfNeighbours(neighbours, "nearest_ratio", (0, np.inf))
    sizes = len(real_set.names), len(generated_set.names)
    for name, one in (("MS-SSIM-real", real_set), ("MS-SSIM-generated", generated_set)):
        if one.similarity is not None:
            found[name] = PairMean(one.similarity, one.pairs, one is real_set, sizes)
    if real_set.anatomy and generated_set.anatomy:
        for name in MEASURES:
            values = [[volume[name] for volume in one.anatomy] for one in (real_set, generated_set)]
            found[f"W1-{name}"] = Wasserstein(*values)
    return found


def compare(real_set, generated_set, config):
    """Every number that can be had from two sets, with its interval.

    Args:
        real_set, generated_set: Measured.
        config: EvaluateConfig.

    Returns:
        {name: {"value", "interval_95", "better", "n_real", "n_generated", ...}}, and the curve (precision,
        recall) behind AUC-PRD or None.
    """
    distances = distances_between(real_set, generated_set, config)
    sizes = len(real_set.names), len(generated_set.names)
    results, curve = {}, None
    for index, (metric, distance) in enumerate(progress(distances.items(), "Comparing", "metric")):
        value = distance.exact()
        result = {"value": value, "interval_95": None, "n_real": sizes[0], "n_generated": sizes[1]}
        if config.bootstrap:
            rng = host_random(config.seed, STREAM_BOOTSTRAP, index)
            values = resampled(distance, sizes, config.bootstrap, rng)
            result["interval_95"] = interval(value, values, distance.bounds)
        if metric == "KID":
            result["standard_deviation"] = distance.standard_deviation(
                host_random(config.seed, STREAM_SUBSETS)
            )
        if metric == "AUC-PRD":
            curve = distance.curve(*(np.ones(n) for n in sizes))
        result["better"] = "higher" if metric in HIGHER else BETTER.get(metric, "lower")
        results[named(metric, config.embedding)] = result
    return results, curve


def split_floor(real_set, config):
    """{name: mean, standard deviation and n of a metric between random halves of the real set}."""
    values = {}
    silent = replace(config, bootstrap=0)
    for repeat in progress(range(config.real_split_repeats), "Real against real", "split"):
        order = host_random(config.seed, STREAM_SPLIT, repeat).permutation(len(real_set.names))
        half = len(order) // 2
        results, _ = compare(real_set.subset(order[:half]), real_set.subset(order[half : 2 * half]), silent)
        for name, result in results.items():
            values.setdefault(name, []).append(result["value"])
    return {
        name: {
            "mean": float(np.mean(v)),
            "standard_deviation": float(np.std(v)),
            "n": half,
            "repeats": len(v),
        }
        for name, v in values.items()
    }


def few_samples(measured_sets, extractors, config):
    """Warnings where a Frechet distance has no more samples than dimensions."""
    warnings = []
    for extractor in extractors:
        if extractor.name in measured_sets[0].features:
            n = min(
                m.features[extractor.name].shape[0] * m.features[extractor.name].shape[1]
                for m in measured_sets
            )
            if n <= extractor.dimension:
                metric = {"volume": "MD", "axial": "FID"}.get(extractor.name, f"FID-{extractor.name}")
                warnings.append(
                    f"{named(metric, config.embedding)} has {n} samples for {extractor.dimension} "
                    f"dimensions: it is "
                    f"biased upwards, compare it at equal numbers alone"
                )
    return warnings
