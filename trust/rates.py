"""Intervals, tests and rates that trust rests on; each with its source."""

from volumetric.rates import CONFIDENCE

import numpy as np
from scipy import stats


def conformal(scores, held_out):
    """Conformal p-values: how often an unseen real subject scores as high (Vovk et al. 2005).

        p(x) = (1 + #{h: s(h) >= s(x)}) / (|H| + 1)

    Shapes: (n,), (|H|,) -> (n,)
    """
    held_out = np.sort(held_out)
    above = len(held_out) - np.searchsorted(held_out, scores, side="left")
    return (1 + above) / (len(held_out) + 1)


def realised_rate(k, held_out):
    """Mean and 95 % limit of the false-alarm rate that a threshold at the k-th largest of |H| realises.

    Given the held-out subjects it is distributed as Beta(k, |H| + 1 - k).
    """
    law = stats.beta(k, held_out + 1 - k)
    return float(law.mean()), float(law.ppf(CONFIDENCE))


def auc_delong(positive, negative):
    """Area under the ROC curve and its standard error (DeLong et al. 1988).

    Shapes: (n,), (m,) -> (auc, standard error)
    """
    positive, negative = np.asarray(positive, float), np.asarray(negative, float)
    n, m = len(positive), len(negative)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    of_positive = (ranks[:n] - stats.rankdata(positive)) / m
    of_negative = 1 - (ranks[n:] - stats.rankdata(negative)) / n
    spread = of_positive.var(ddof=1) / n + of_negative.var(ddof=1) / m
    return float(of_positive.mean()), float(np.sqrt(spread))


def normal_interval(value, error):
    """95 % interval of an estimate with a standard error."""
    reach = stats.norm.ppf(0.5 + CONFIDENCE / 2) * error
    return value - reach, value + reach


def true_positive_rate(positive, negative, most_false):
    """Largest share of positives found while at most a share of negatives is called positive."""
    positive, negative = np.asarray(positive), np.sort(negative)[::-1]
    allowed = allowed_of(len(negative), most_false)
    threshold = negative[allowed] if allowed < len(negative) else -np.inf
    return float((positive > threshold).mean())


def allowed_of(number, most_false):
    """How many of so many negatives may be called positive."""
    return int(np.floor(most_false * number + 1e-9))


def tail_p(positive, negative, most_false):
    """Exact one-sided p of `true_positive_rate`, if both are of one distribution.

    The threshold is the k-th largest negative. At least x positives lie above it where at most k - 1 of the
    x + k - 1 largest of all are negative, and their number is hypergeometric.
    """
    n, m = len(positive), len(negative)
    k, above = allowed_of(m, most_false) + 1, round(true_positive_rate(positive, negative, most_false) * n)
    return float(stats.hypergeom.cdf(k - 1, n + m, m, above + k - 1))


def spread_of_auc(n, m):
    """Standard deviation of the AUC of n against m if both are of one distribution (Mann & Whitney 1947)."""
    return float(np.sqrt((n + m + 1) / (12 * n * m)))


def detectability(hits, signals, false_alarms, noises):
    """d' and criterion with the log-linear correction (Hautus 1995).

    Returns:
        {"hit_rate", "false_alarm_rate", "dprime", "criterion"}.
    """
    hit, false = (hits + 0.5) / (signals + 1), (false_alarms + 0.5) / (noises + 1)
    z_hit, z_false = stats.norm.ppf(hit), stats.norm.ppf(false)
    found = {"hit_rate": hit, "false_alarm_rate": false, "dprime": z_hit - z_false}
    return {name: float(v) for name, v in (found | {"criterion": -(z_hit + z_false) / 2}).items()}


def fleiss_kappa(ratings, categories):
    """Agreement of readers beyond chance (Fleiss 1971), and the percent agreement.

    Args:
        ratings: (items, readers), whole numbers below `categories`.
        categories: Number of answers.

    Returns:
        (kappa, agreement); kappa is NaN where all answers are the same.
    """
    ratings = np.asarray(ratings)
    counts = np.stack([(ratings == c).sum(axis=1) for c in range(categories)], axis=1)
    readers = ratings.shape[1]
    agreement = ((counts**2).sum(axis=1) - readers).mean() / (readers * (readers - 1))
    chance = ((counts.sum(axis=0) / counts.sum()) ** 2).sum()
    return (float((agreement - chance) / (1 - chance)) if chance < 1 else np.nan), float(agreement)


def equivalence(hits, number, margin=0.1):
    """Two one-sided exact tests that a share lies within a margin of one half (TOST, Schuirmann 1987).

    Returns:
        p-value; below 0.05, equivalence is shown.
    """
    low = stats.binomtest(hits, number, 0.5 - margin, alternative="greater").pvalue
    high = stats.binomtest(hits, number, 0.5 + margin, alternative="less").pvalue
    return float(max(low, high))


def power_of_equivalence(number, margin=0.1):
    """Probability that `equivalence` is shown when the share is one half."""
    counts = np.arange(number + 1)
    shown = np.array([equivalence(int(k), number, margin) < 1 - CONFIDENCE for k in counts])
    return float(stats.binom.pmf(counts, number, 0.5)[shown].sum())
