"""Is the anatomy right, artery by artery? Two sets of label maps compared, of a network or given.

What is asked, in the order of the report: can generated volumes be segmented as reliably as real ones; is
every artery there as often, and every variant; are arteries as long and as wide; are all regional measures
together distributed alike; is the tree as connected, and do arteries touch that touch in no real volume?

Every answer is a distance of two sets in the sense of distances.py, with the floor of real halves.

Papers: shares by Wilson (1927), their difference by Newcombe (Statistics in Medicine 17, 1998, 873, method
10) and Fisher's exact test with Holm's correction (1979); the joint distance after WASABI (Jafrasteh et al.
2025, arXiv:2504.21771).
"""

from dataclasses import replace
from functools import cached_property

from volumetric.files import finite
from volumetric.parallel import host_random
from volumetric.rates import wilson

import numpy as np
from scipy import stats

from MedicalNet.arteries import PROTOCOL
from MedicalNet.comparing import Number, entry_of
from MedicalNet.covariance_free import Energy
from MedicalNet.distances import Wasserstein
from segmentation.comparison import holm
from segmentation.report import balanced_accuracy
from segmentation.teacher import FEWEST, fences, limits_of, reasons

FIRST = 1000  # place of the first number, far behind those of comparing.py
STREAM_HALVES, STREAM_DRAWS = 5, 6
DRAWS = 10  # subsets of the larger set, for the transport of as many
LEAST_TRIED = (0, 1, 2, 4, 8, 16, 32)  # mm3, of the table of how right the rule of presence is
ROUNDING = 1e-9  # of a measure, below which it does not differ
UNITS = {"length": "mm", "radius": "mm"}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Distances                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class OfSets:
    """What the distances below have in common: sizes, and the distance of all volumes."""

    bounds = (0, 1)

    @property
    def sizes(self):
        """Numbers of real and generated volumes."""
        return len(self.real), len(self.generated)

    def exact(self):
        """The distance of all volumes."""
        return self(*(np.ones(size) for size in self.sizes))

    def between_real(self):
        """The same of the real set and itself."""
        return type(self)(self.real, self.real)


class ShareDifference(OfSets):
    """Difference of the shares of two sets that have something, without its sign. Shapes: (n,), (m,) bool"""

    def __init__(self, real, generated):
        self.real, self.generated = real, generated

    def __call__(self, real_counts, generated_counts):
        shares = [
            counts @ has / counts.sum()
            for counts, has in ((real_counts, self.real), (generated_counts, self.generated))
        ]
        return float(abs(shares[0] - shares[1]))


class Strangers(OfSets):
    """Share of the generated volumes in which two classes touch that touch in no real one.

    Shapes: real (n, C, C), generated (m, C, C) bool
    """

    def __init__(self, real, generated):
        self.real, self.generated = real, generated

    def which(self, real_counts):
        """Touching pairs of the generated volumes that no counted real one has. Shapes: (n,) -> (m, C, C)"""
        return self.generated & ~self.real[real_counts > 0].any(axis=0)

    def __call__(self, real_counts, generated_counts):
        hits = self.which(real_counts).any(axis=(1, 2))
        return float(generated_counts @ hits / generated_counts.sum())


class Gate(OfSets):
    """Share of the generated volumes whose label map the teacher's gate keeps, by limits of real ones.

    Limits are of the real volumes that count: volume, pieces and presence of every class as in
    segmentation/teacher.py, and confidence by the same fences.

    Args:
        real, generated: Arteries.
    """

    def __init__(self, real, generated):
        self.real, self.generated = real, generated

    def reasons(self, real_counts, of=None):
        """For every generated volume, or of other Arteries, why its map would be withheld. -> [[text]]"""
        of = of or self.generated
        chosen = np.flatnonzero(real_counts > 0)
        limits = limits_of([self.real_found[n] for n in chosen], self.real.names)
        least = -1.0
        if self.real.confidence is not None:
            sure = self.real.confidence[chosen]
            least = fences(sure[np.isfinite(sure)])[0] if np.isfinite(sure).any() else 0.0
        found = self.real_found if of is self.real else self.generated_found
        return [
            reasons(one, confidence, limits, least)
            for one, confidence in zip(found, confidences_of(of), strict=True)
        ]

    @cached_property
    def real_found(self):
        """What the gate looks at in every real volume."""
        return [self.real.found(n) for n in range(len(self.real))]

    @cached_property
    def generated_found(self):
        """The same of the generated ones."""
        return [self.generated.found(n) for n in range(len(self.generated))]

    def __call__(self, real_counts, generated_counts):
        kept = np.array([not told for told in self.reasons(real_counts)])
        return float(generated_counts @ kept / generated_counts.sum())


def confidences_of(arteries):
    """Confidence of every volume as the gate takes it: None without vessels, 1 where nobody knows."""
    known = arteries.confidence
    sure = np.ones(len(arteries)) if known is None else known
    there = arteries.pieces[:, -1] > 0
    return [float(c) if has and np.isfinite(c) else None for c, has in zip(sure, there, strict=True)]


class WholeNumbers(Wasserstein):
    """Wasserstein distance of whole numbers, of which a mean cannot be told more finely than 1 / n."""

    counts = True

    def between_real(self):
        """The same of the real set and itself."""
        return WholeNumbers(self.sets[0], self.sets[0])


class Transport(OfSets):
    """Squared Wasserstein-2 distance of two sets of vectors, in their number of dimensions: as WASABI.

        min over one-to-one pairings of mean_i |x_i - y_p(i)|^2 / d

    Exact for as many vectors of both sets; of sets of unequal size the mean over DRAWS subsets of the larger.

    Differs from the paper (arXiv:2504.21771), whose code takes the exact transport of regional volumes of the
    brain, in parts of the intracranial volume, over draws of 500: a vessel tree has no such whole. Here every
    measure is in standard deviations of the real set, so that small arteries count as much as large ones, and
    lengths and radii are among them.

    Shapes: real (n, d), generated (m, d)
    """

    bounds = (0, np.inf)

    def __init__(self, real, generated):
        from scipy.spatial.distance import cdist

        self.real, self.generated = real, generated
        self.costs = cdist(real, generated, "sqeuclidean") / max(1, real.shape[1])

    def exact(self):
        """The distance of all volumes, or of as many as the smaller set has."""
        n, drawn = min(self.sizes), []
        for draw in range(DRAWS if len(set(self.sizes)) > 1 else 1):
            rng = host_random(0, STREAM_DRAWS, draw)
            counts = [np.zeros(size) for size in self.sizes]
            for one, size in zip(counts, self.sizes, strict=True):
                one[rng.permutation(size)[:n]] = 1
            drawn.append(self(*counts))
        return float(np.mean(drawn))

    def __call__(self, real_counts, generated_counts):
        from scipy.optimize import linear_sum_assignment

        rows = np.repeat(np.arange(len(real_counts)), real_counts.astype(int))
        columns = np.repeat(np.arange(len(generated_counts)), generated_counts.astype(int))
        costs = self.costs[np.ix_(rows, columns)]
        return float(costs[linear_sum_assignment(costs)].mean())


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Shares                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def share_of(has):
    """{"share", "interval_95" (Wilson), "hits", "n"} of volumes. Shapes: (n,) bool"""
    hits, n = int(np.sum(has)), len(has)
    return {"share": hits / n, "interval_95": wilson(hits, n), "hits": hits, "n": n}


def difference_of(real, generated):
    """Generated less real share, its 95 % interval and the p-value of Fisher's exact test.

    The interval is Newcombe's of two Wilson intervals: the difference less or more the root of the squared
    distances of both shares to the ends that make it extreme.

    Args:
        real, generated: Of `share_of`.
    """
    p, q = generated["share"], real["share"]
    (low_p, high_p), (low_q, high_q) = generated["interval_95"], real["interval_95"]
    below, above = np.hypot(p - low_p, high_q - q), np.hypot(high_p - p, q - low_q)
    table = [[one["hits"], one["n"] - one["hits"]] for one in (real, generated)]
    return {
        "difference": p - q,
        "difference_95": (float(p - q - below), float(p - q + above)),
        "p": float(stats.fisher_exact(table).pvalue),
    }


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Comparison                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Comparison:
    """All that two sets of label maps say.

    Args:
        real, generated: Arteries.
        config: EvaluateConfig.
        truth: Arteries of the real volumes' true label maps, or None.
    """

    def __init__(self, real, generated, config, truth=None):
        self.real, self.generated, self.config, self.truth = real, generated, config, truth
        self.least = config.least_mm3
        self.rows, self.warnings = {}, []

    def add(self, name, kind, distance, estimand, better="lower", unbiased=False, **more):
        """One row, with a place of its own for its random numbers."""
        number = Number(name, "labels", estimand, lambda _: distance, "anatomy", better, unbiased)
        plain = isinstance(distance, Transport | OneHalf)  # of which a resample is another thing
        config = replace(self.config, bootstrap=0) if plain else self.config
        one, _ = entry_of(distance, number, config, FIRST + len(self.rows))
        counts = distance.bounds == (0, 1) or hasattr(distance, "counts")
        self.rows[name] = one | finite({"kind": kind, "counts": counts, **more})

    def record(self):
        """What metrics.json holds as `named_anatomy`."""
        self.reliable()
        self.frequencies()
        self.regional()
        self.joint()
        self.topology()
        return {
            "table": self.real.table,
            "presence": f"an artery is there if its label has at least {self.least:g} mm3",
            "measures": PROTOCOL,
            "rows": self.rows,
            "truth": self.against_truth() if self.truth is not None else None,
            "warnings": self.warnings,
        }

    @cached_property
    def half(self):
        """Counts of the real volumes whose maps set the gate's limits: a random half. Shapes: -> (n,)"""
        order = host_random(self.config.seed, STREAM_HALVES).permutation(len(self.real))
        counts = np.zeros(len(self.real))
        counts[order[: len(order) // 2]] = 1
        return counts

    @cached_property
    def doubts(self):
        """Why the gate would withhold maps, by limits of the half: {"real", "generated": [[text]]}."""
        gate = Gate(self.real, self.generated)
        return {"real": gate.reasons(self.half, self.real), "generated": gate.reasons(self.half)}

    def reliable(self):
        """Can generated volumes be segmented as reliably as real ones?"""
        if len(self.real) < 2 * FEWEST:
            told = f"{len(self.real)} real volumes are too few for the limits of reliable label maps"
            self.warnings.append(f"{told}, which need {2 * FEWEST}")
            return
        kept = {which: np.array([not told for told in found]) for which, found in self.doubts.items()}
        shares = {"real": share_of(kept["real"][self.half == 0]), "generated": share_of(kept["generated"])}
        told = (
            "Share of the generated volumes whose label maps are as those of real ones: confidence, volume "
        )
        told += "and pieces of every artery within the limits of a half of these"
        gate, tested = OneHalf(Gate(self.real, self.generated), self.half), shares | difference_of(**shares)
        self.add("segmentable", "reliable", gate, told, better="higher", **tested)

    def frequencies(self):
        """Every artery and every variant: how often it is there."""
        found = [one.frequencies(self.least) for one in (self.real, self.generated)]
        for name, has in found[0].items():
            shares = {"real": share_of(has), "generated": share_of(found[1][name])}
            kind, title = ("artery", "there") if name in self.real.names else ("variant", "variant")
            estimand = f"How often {name} is found: difference of the two shares"
            distance = ShareDifference(has, found[1][name])
            self.add(f"{title}: {name}", kind, distance, estimand, **shares, **difference_of(**shares))
        tested = [row for row in self.rows.values() if row["kind"] in ("artery", "variant")]
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = p

    def regional(self):
        """Length and radius of every artery."""
        real = self.real.regional(self.least)
        generated = self.generated.regional(self.least)
        for kind, unit in UNITS.items():
            for n, name in enumerate(self.real.names):
                values = [one[kind][:, n] for one in (real, generated)]
                medians = [float(np.nanmedian(v)) if np.isfinite(v).any() else None for v in values]
                if medians[0] is None:
                    continue
                distance = Wasserstein(*([v[np.isfinite(v)] for v in one[:, None]] for one in values))
                estimand = f"Difference in the {kind} of {name}, where it is there, {unit}"
                told = dict(zip(("real", "generated"), medians, strict=True))
                self.add(f"{kind}: {name}", kind, distance, estimand, **told)

    def joint(self):
        """All regional measures together."""
        real, generated, names = joint_vectors(self.real, self.generated, self.least)
        if not names:
            return
        of = f"volumes, lengths and radii of all arteries ({len(names)} measures in standard deviations)"
        estimand = f"Are the {of} as far from the other set's as from their own? Energy distance"
        energy = Energy(real[:, None], generated[:, None])
        self.add("joint: energy", "joint", energy, estimand, unbiased=True)
        estimand = f"Squared Wasserstein-2 distance of the {of}, in parts of their number"
        self.add("joint: transport", "joint", Transport(real, generated), estimand)

    def topology(self):
        """Pieces and loops of all arteries as one, and neighbours that no real volume has."""
        both = {"real": self.real, "generated": self.generated}
        measures = {"components": lambda one: one.pieces[:, -1], "loops": lambda one: one.loops}
        for name, of in measures.items():
            values = {which: of(one) for which, one in both.items()}
            medians = {which: float(np.median(v)) for which, v in values.items()}
            distance = WholeNumbers(*(list(v[:, None]) for v in values.values()))
            told = "separate pieces" if name == "components" else name
            estimand = f"Difference in the number of {told} of all arteries as one"
            self.add(f"topology: {name}", "topology", distance, estimand, **medians)
        strangers = Strangers(self.real.touch, self.generated.touch)
        pairs, names = strangers.which(np.ones(len(self.real))).sum(axis=0), self.real.names
        found = np.argwhere(np.triu(pairs))
        named = {f"{names[a]} and {names[b]}": int(pairs[a, b]) for a, b in found}
        estimand = "Share of the generated volumes in which two arteries touch that touch in no real one"
        self.add("topology: strangers", "topology", strangers, estimand, pairs=named)

    def against_truth(self):
        """How right the real volumes' label maps are: balanced accuracy of every presence and variant."""
        true = self.truth.frequencies(0)
        found = {least: self.real.frequencies(least) for least in {*LEAST_TRIED, self.least}}
        right = {
            least: {name: balanced_accuracy(has.tolist(), one[name].tolist()) for name, has in true.items()}
            for least, one in found.items()
        }
        varying = [name for name, has in true.items() if 0 < has.mean() < 1]
        by_least = {f"{least:g}": [right[least][name] for name in varying] for least in sorted(right)}
        return {
            "balanced_accuracy": right[self.least],
            "share": {name: share_of(has) for name, has in true.items()},
            "varying": varying,
            "mean_by_least_mm3": {k: float(np.mean(v)) if v else None for k, v in by_least.items()},
        }


class OneHalf:
    """The Gate, whose value is of the limits of one half; everything else is the Gate's.

    Args:
        gate: Gate.
        half: Counts of the real volumes, (n,).
    """

    bounds = (0, 1)

    def __init__(self, gate, half):
        self.gate, self.half, self.sizes = gate, half, gate.sizes

    def exact(self):
        """Share of the generated volumes within the limits of the half."""
        return self.gate(self.half, np.ones(self.sizes[1]))

    def between_real(self):
        """The same of real volumes."""
        return self.gate.between_real()

    def __call__(self, real_counts, generated_counts):
        return self.gate(real_counts, generated_counts)


def joint_vectors(real, generated, least):
    """All regional measures of every volume in standard deviations of the real set.

    An artery that is not there has volume and length 0, and the mean radius of the real ones: its absence
    counts by two of three measures. Measures that do not differ between real volumes are left out.

    Returns:
        ((n, d), (m, d), names of the measures).
    """
    names, vectors = [], ([], [])
    both = [one.regional(least) for one in (real, generated)]
    for kind in both[0]:
        for n, name in enumerate(real.names):
            values = [one[kind][:, n] for one in both]
            there = values[0][np.isfinite(values[0])]
            absent = there.mean() if kind == "radius" and len(there) else 0.0
            filled = [np.where(np.isfinite(v), v, absent) for v in values]
            middle, deviation = filled[0].mean(), filled[0].std()
            if deviation > ROUNDING * max(1, abs(middle)):
                names.append(f"{kind} of {name}")
                for columns, v in zip(vectors, filled, strict=True):
                    columns.append((v - middle) / deviation)
    of_real = np.reshape(vectors[0], (len(names), len(real))).T
    of_generated = np.reshape(vectors[1], (len(names), len(generated))).T
    return of_real, of_generated, names


def named_anatomy(sources, config):
    """(what metrics.json holds as `named_anatomy`, Comparison) of the label maps of both sets.

    Args:
        sources: labelling.Sources.
        config: EvaluateConfig.
    """
    sets = {which: sources.arteries(which) for which in ("real", "generated")}
    truth = sources.arteries("truth") if config.real_truth is not None else None
    comparison = Comparison(sets["real"], sets["generated"], config, truth)
    record = comparison.record() | {"label_maps": sources.described()}
    record["warnings"] += sources.warnings
    record["protocol"] = sources.network.protocol if sources.network else "label maps that were given"
    return record, comparison
