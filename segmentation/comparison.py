"""What the scores of an experiment say: curves with intervals, tests against real alone, exchange rates.

A subject's score is the mean over the seeds; intervals come from drawing subjects again (bootstrap,
percentile), tests are Wilcoxon's on the pairs of a subject, all differences of a score corrected together
(Holm 1979). Each seed's own mean stands beside: two or three are an indication, not an interval.
"""

import itertools
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from segmentation.labels import TABLES
from segmentation.metrics import DETECTED

NAMES = TABLES["topcow2024"]
RARE = tuple(NAMES[c] for c in DETECTED)  # the arteries that not everybody has
AVERAGE = "Dice_ClsAvgDice"
SCORES = (AVERAGE, "Dice_MergedBin", "clDice", "HD95_ClsAvgHD95")
DETECTION = ("sensitivity", "specificity")  # of the arteries that not everybody has
LOWER_IS_BETTER = ("HD95_ClsAvgHD95",)
LEVEL = 0.05  # of a test
STREAM = 17  # of the bootstrap


@dataclass(frozen=True)
class Cell:
    """A cell of the grid: of how many real and synthetic volumes its networks are trained."""

    real: int
    synthetic: int


def of_subjects(of_seeds, score):
    """A score of every test subject, the mean over seeds; NaN where its class is on neither side.

    Args:
        of_seeds: {seed: {subject: {score: value}}}.
    """
    seeds = list(of_seeds.values())
    table = [[one[subject].get(score, np.nan) for subject in seeds[0]] for one in seeds]
    values = np.array(table, dtype=float)  # (seeds, subjects)
    there = np.isfinite(values)
    total = np.where(there, values, 0).sum(axis=0)
    return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)


def mean_of(values):
    """Mean of the finite values, NaN without."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan


def interval(values, resamples):
    """95 % interval of the mean over subjects. Shapes: (subjects,) -> (low, high) or None"""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return None
    rng = np.random.default_rng(STREAM)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return [float(low), float(high)]


def summary(of_seeds, score, resamples):
    """{"mean", "interval_95", "n", "seeds"} of a score in one cell of the grid."""
    values = of_subjects(of_seeds, score)
    alone = [mean_of(of_subjects({seed: one}, score)) for seed, one in of_seeds.items()]
    n = int(np.isfinite(values).sum())
    return {"mean": mean_of(values), "interval_95": interval(values, resamples), "n": n, "seeds": alone}


def seed_spread(of_seeds, score):
    """Largest difference between the seeds' means of a score."""
    return float(np.ptp([mean_of(of_subjects({seed: one}, score)) for seed, one in of_seeds.items()]))


def holm(p_values):
    """Adjusted p-values (Holm 1979): the smallest times their number, and so on, never falling."""
    order, adjusted, least = np.argsort(p_values), np.empty(len(p_values)), 0.0
    for rank, n in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[n]))
        adjusted[n] = least
    return adjusted.tolist()


def wilcoxon(change):
    """p-value of Wilcoxon's signed-rank test of differences, 1 if there is none. Shapes: (subjects,)"""
    change = change[np.isfinite(change)]
    return float(stats.wilcoxon(change).pvalue) if change.any() else 1.0


def differences(results, score, resamples):
    """A score with synthetic volumes against the same number of real ones alone, or the most, for none.

    Returns:
        [{"real", "synthetic", "against", "difference", "interval_95", "n", "seed_spread", "p", "p_holm"}],
        without cells whose comparison is not in the grid.
    """
    alone = sorted(cell.real for cell in results if cell.synthetic == 0)
    rows, p_values = [], []
    for cell, of_seeds in results.items():
        against = cell.real if cell.real in alone else (alone[-1] if alone else None)
        if cell.synthetic == 0 or against is None:
            continue
        real_alone = results[Cell(against, 0)]
        change = of_subjects(of_seeds, score) - of_subjects(real_alone, score)
        rows.append({**asdict(cell), "against": against})
        rows[-1] |= {"difference": mean_of(change), "interval_95": interval(change, resamples)}
        rows[-1]["n"] = int(np.isfinite(change).sum())
        rows[-1]["seed_spread"] = max(seed_spread(of_seeds, score), seed_spread(real_alone, score))
        p_values.append(wilcoxon(change))
    for row, p, adjusted in zip(rows, p_values, holm(p_values) if rows else (), strict=True):
        row |= {"p": p, "p_holm": adjusted}
    return rows


def worth(curve, value):
    """Number of real volumes that would give a score, between measured numbers on a logarithmic scale.

    Args:
        curve: {number of real volumes: score}, real alone.
        value: The score.

    Returns:
        (number, "") or, outside the curve, (its end, "fewer than" or "more than"); (None, "") if the curve
        does not rise.
    """
    numbers = sorted(curve)
    scores = [curve[n] for n in numbers]
    if len(numbers) < 2 or any(b <= a for a, b in itertools.pairwise(scores)):
        return None, ""
    if value <= scores[0]:
        return numbers[0], "" if value == scores[0] else "fewer than"
    if value > scores[-1]:
        return numbers[-1], "more than"
    return float(np.exp(np.interp(value, scores, np.log(numbers)))), ""


def exchange(results, score=AVERAGE):
    """[{"real", "synthetic", "as_real", "bound"}]: how many real volumes alone give as much."""
    means = {cell: mean_of(of_subjects(of_seeds, score)) for cell, of_seeds in results.items()}
    curve = {cell.real: mean for cell, mean in means.items() if cell.synthetic == 0}
    rows = []
    for cell, mean in means.items():
        if cell.synthetic:
            number, bound = worth(curve, mean)
            rows.append({**asdict(cell), "as_real": number, "bound": bound})
    return rows


def verdict(row, lower_is_better=False):
    """(state, sentence) of one difference: good, bad or neither."""
    what = f"{row['real']} real + {row['synthetic']} synthetic against {row['against']} real alone"
    change = f"{row['difference']:+.3f} (p {row['p_holm']:.2g} after Holm)"
    if row["p_holm"] >= LEVEL or not np.isfinite(row["difference"]):
        return "", f"{what}: no difference that {row['n']} subjects could show, {change}."
    if abs(row["difference"]) <= row["seed_spread"]:
        return "", f"{what}: {change}, but two seeds differ by {row['seed_spread']:.3f}: nothing is shown."
    better = (row["difference"] < 0) == lower_is_better
    return ("good", f"{what}: better, {change}.") if better else ("bad", f"{what}: worse, {change}.")


def compare_runs(results, resamples):
    """All that an experiment says.

    Args:
        results: {Cell: {seed: {subject: {score: value}}}}.
        resamples: Of the bootstrap.

    Returns:
        {"cells": [{"real", "synthetic", "scores": {score: summary}}], "differences": {score: rows},
        "exchange": rows, "subjects": names, "per_subject": {cell: {subject: average Dice}}}.
    """
    of_runs = [of_subject for of_seeds in results.values() for of_subject in of_seeds.values()]
    subjects = list(of_runs[0])
    scored = {name for of_subject in of_runs for scores in of_subject.values() for name in scores}
    there = [f"Dice_{name}" for name in NAMES.values() if f"Dice_{name}" in scored]
    told = [f"{kind}_{name}" for kind in DETECTION for name in RARE if f"{kind}_{name}" in scored]
    names = [*SCORES, *there, *(name.replace("Dice_", "HD95_") for name in there), *told]
    cells, per_subject = [], {}
    for cell, of_seeds in results.items():
        cells.append({**asdict(cell), "scores": {n: summary(of_seeds, n, resamples) for n in names}})
        average = of_subjects(of_seeds, AVERAGE).tolist()
        per_subject[f"{cell.real}+{cell.synthetic}"] = dict(zip(subjects, average, strict=True))
    return {
        "cells": cells,
        "differences": {n: differences(results, n, resamples) for n in (*SCORES, *there, *told)},
        "exchange": exchange(results),
        "subjects": subjects,
        "per_subject": per_subject,
    }
