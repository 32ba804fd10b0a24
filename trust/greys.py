"""What grey values tell of two kinds of volumes without looking: taken away, and checked.

    levels = levelled(arrays)             one histogram for all; equal voxels of a volume stay equal
    levels, done = matched(arrays, seed)  the very same grey values for all
    check(levels, is_real, seed)          a UserError if the kinds can still be told

Whether kinds can be told is asked of every number of `looks_of` (rank sums, Holm over the numbers) and of all
together (a linear classifier, cross-validated); p are by drawing the kinds again.
"""

from volumetric.cli import UserError

import numpy as np
from scipy import ndimage, stats

LEVELS = 256  # grey values of a volume that is shown, at most
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # of the grey values, that the check looks at
NAMES = ("numbers of grey values", "shares of black", "shares of white", "means", "contrasts", "flat regions")
NAMES += ("black borders", *(len(QUANTILES) * ["histograms"]))
LEAK_P = 0.01  # of the check, for numbers and classifier together
SHUFFLES = 9999  # of the kinds
FOLDS = 5
RIDGE = 0.1  # penalty, in shares of the number of volumes
REMEDY = "Store both alike (type, rounding, scaling, cropping) first"
FEWEST = 8  # volumes of each kind; of fewer, equally many, no p of a number can be below half of LEAK_P
FEW = 0.01  # of the voxels: so many equal ones at an end of the range are put in order like all others
NEIGHBOURS = (0.7, 2.0)  # voxels, Gaussians whose values put equal voxels in order


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Taking away                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def common_values(arrays, number=LEVELS):
    """Sorted grey values that all volumes get, the median of all theirs. Shapes: -> (voxels,) in [0, 255]"""
    common = np.median([np.sort(array, axis=None) for array in arrays], axis=0)
    steps = np.rint((number - 1) * (common - common[0]) / (common[-1] - common[0]))
    return np.rint(steps * (LEVELS - 1) / (number - 1))


def levelled(arrays):
    """Volumes with one histogram: ranks stay, grey values tell little.

    Equal voxels of a volume stay equal, so that rounding and clipping which differ are not hidden but found
    by `check`.

    Shapes: n of (X, Y, Z) -> n of (X, Y, Z) uint8
    """
    common, levels = common_values(arrays), []
    for array in arrays:
        _, place, count = np.unique(array, return_inverse=True, return_counts=True)
        middle = np.cumsum(count) - (count + 1) // 2
        levels.append(common[middle][place.reshape(array.shape)].astype(np.uint8))
    return levels


def stored_as(array):
    """How a volume is stored: {"grey_values", "black", "white"}, a number and shares of the voxels.

    The grey values are those of its range in its finest step, LEVELS at most.

    Shapes: (X, Y, Z) in [0, 1]
    """
    values, count = np.unique(array, return_counts=True)
    steps = round(1 / max(np.diff(values).min(), 1 / (LEVELS - 1)))
    return {"grey_values": steps + 1, "black": count[0] / array.size, "white": count[-1] / array.size}


def matched(arrays, seed):
    """Volumes with the very same grey values, as often each: exact histogram specification.

    All are rounded as the most coarsely stored one is. Equal voxels are put in order by the means of their
    neighbours (Coltuc et al. 2006, doi:10.1109/TIP.2005.864170), but where a volume is black, or white, in
    more than FEW of its voxels: then as many are in all.

    Shapes: n of (X, Y, Z) in [0, 1] -> n of (X, Y, Z) uint8

    Returns:
        (volumes, {"grey_values", "black", "white"} of each of them).
    """
    number = min(stored_as(array)["grey_values"] for array in arrays)
    rounded = [np.rint(array * (number - 1)).astype(np.float32) for array in arrays]
    ends = [stored_as(array / (number - 1)) for array in rounded]
    black = max(one["black"] for one in ends)
    white = max(one["white"] for one in ends)
    common = common_values(arrays, number)
    if black > FEW:
        common[: round(black * common.size)] = 0
    if white > FEW:
        common[common.size - round(white * common.size) :] = LEVELS - 1
    rng, levels = np.random.default_rng(seed), []
    for array in rounded:
        near = [ndimage.gaussian_filter(array, width).ravel() for width in NEIGHBOURS]
        order = np.lexsort((rng.random(array.size), *near[::-1], array.ravel()))
        level = np.empty(array.size, np.uint8)
        level[order] = common
        levels.append(level.reshape(array.shape))
    ends = {"black": float((common == 0).mean()), "white": float((common == LEVELS - 1).mean())}
    return levels, {"grey_values": len(np.unique(common)), **ends}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Checking                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def looks_of(array):
    """What a reader must not tell volumes apart by; NAMES. Shapes: (X, Y, Z) uint8 -> (numbers,)"""
    flat = array.ravel().astype(float)
    same = [(np.diff(array.astype(int), axis=axis) == 0).mean() for axis in range(3)]
    edge = np.concatenate([array.take(n, axis).ravel() for axis in range(3) for n in (0, -1)])
    found = [len(np.unique(array)), (array == array.min()).mean(), (array == array.max()).mean()]
    found += [flat.mean(), flat.std(), min(same), (edge == array.min()).mean()]
    return np.array([*found, *np.quantile(flat, QUANTILES)])


def holm(p):
    """p-values of several tests that hold for all together (Holm 1979). Shapes: (n,) -> (n,)"""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def rank_sums(values, kinds):
    """Rank sums of one kind, less their mean. Shapes: (volumes, n), (draws, volumes) bool -> (draws, n)"""
    middle = kinds[0].sum() * (len(values) + 1) / 2
    return kinds.astype(float) @ stats.rankdata(values, axis=0) - middle


def predictor(features, rng):
    """Matrix from kinds (+1, -1) to what a ridge regression on all other folds predicts of every volume.

    Shapes: (volumes, n) -> (volumes, volumes)
    """
    number = len(features)
    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    matrix = np.zeros((number, number))
    for fold in np.array_split(rng.permutation(number), FOLDS):
        known = np.setdiff1d(np.arange(number), fold)
        centred = scaled[known] - scaled[known].mean(axis=0)
        inner = centred.T @ centred + RIDGE * number * np.eye(features.shape[1])
        matrix[np.ix_(fold, known)] = (scaled[fold] - scaled[known].mean(axis=0)) @ np.linalg.solve(
            inner, centred.T
        )
    return matrix


def at_least(draws, own):
    """p-values: how often a draw, or what was found, is as large. Shapes: (draws, n), (n,) -> (n,)"""
    return (1 + (draws >= own - 1e-9).sum(axis=0)) / (1 + len(draws))


def check(levels, is_real, seed, remedy=REMEDY):
    """How well grey values alone tell the kinds apart.

    Args:
        levels: Volumes as they are shown, (X, Y, Z) uint8 each.
        is_real: For each.
        seed: Of folds and draws.
        remedy: What to do if they do, for the message.

    Returns:
        {"p": of numbers and classifier together (Bonferroni), "auc", "p_classifier", "p_numbers": smallest
        of all numbers (Holm), "number": which, "volumes": [real, generated]}.

    Raises:
        UserError: They do, or they are too few to tell.
    """
    kinds, rng = np.array(is_real), np.random.default_rng(seed)
    volumes = [int(kinds.sum()), int((~kinds).sum())]  # real, generated
    if min(volumes) < FEWEST:
        raise UserError(
            f"{volumes[0]} real and {volumes[1]} generated volumes are too few to tell whether grey values "
            f"give them away: at least {FEWEST} of each are needed."
        )
    features = np.stack([looks_of(array) for array in levels])
    vary = np.flatnonzero(features.min(axis=0) < features.max(axis=0))
    draws = np.stack([kinds, *(rng.permutation(kinds) for _ in range(SHUFFLES))])
    sums = np.abs(rank_sums(features[:, vary], draws))
    of_numbers = holm(at_least(sums[1:], sums[0]))
    told = predictor(features, rng) @ (2.0 * draws.T - 1)  # (volumes, draws)
    ranks = stats.rankdata(told, axis=0)
    above = (ranks * draws.T).sum(axis=0) - volumes[0] * (volumes[0] + 1) / 2
    aucs = above / (volumes[0] * volumes[1])
    p_classifier, p_numbers = float(at_least(aucs[1:], aucs[0])), float(of_numbers.min(initial=1))
    p = min(1.0, 2 * min(p_classifier, p_numbers))
    most = NAMES[vary[of_numbers.argmin()]] if len(vary) else NAMES[0]
    if p <= LEAK_P:
        raise UserError(
            f"Grey values alone tell real from generated volumes (AUC {aucs[0]:.2f}, p {p:.2g}): they differ "
            f"most in their {most}. {remedy}."
        )
    found = {"p": p, "auc": float(aucs[0]), "p_classifier": p_classifier, "p_numbers": p_numbers}
    return found | {"number": most, "volumes": volumes}
