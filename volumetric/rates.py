"""Shares and how sure they are."""

from statistics import NormalDist

CONFIDENCE = 0.95


def wilson(hits, number):
    """95 % interval of a share (Wilson 1927). Returns (low, high); (0, 1) of nothing."""
    if not number:
        return 0.0, 1.0
    p, z = hits / number, NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    middle = p + z**2 / (2 * number)
    reach = z * (p * (1 - p) / number + z**2 / (4 * number**2)) ** 0.5
    return tuple(min(max(v / (1 + z**2 / number), 0.0), 1.0) for v in (middle - reach, middle + reach))
