"""What grey values tell of two kinds: taken away by matching, and found by the check where they are not."""

from math import comb

from volumetric.cli import UserError

import numpy as np
import pytest
from scipy import ndimage, stats

from trust import greys


def volumes(number, seed, change=lambda array: array):
    """Smooth volumes with noise, of 20 x 20 x 8 voxels in [0, 1], float32."""
    found, rng = [], np.random.default_rng(seed)
    for _ in range(number):
        array = ndimage.gaussian_filter(rng.standard_normal((20, 20, 8)), 1.5)
        array = array / array.std() + 0.2 * rng.standard_normal(array.shape)
        array = change((array - array.min()) / (array.max() - array.min()))
        found.append(((array - array.min()) / (array.max() - array.min())).astype(np.float32))
    return found


CHANGES = {
    "rounded": lambda array: np.rint(40 * array),
    "black": lambda array: np.maximum(array, np.quantile(array, 0.2)),
    "white": lambda array: np.minimum(array, np.quantile(array, 0.98)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("each", [8, 25])
def test_what_differs_is_found_and_matching_takes_it_away(change, each):
    arrays = volumes(each, 0) + volumes(each, 1, CHANGES[change])
    kinds = each * [True] + each * [False]
    with pytest.raises(UserError, match="Grey values alone tell real from generated volumes"):
        greys.check(greys.levelled(arrays), kinds, 0)
    levels, done = greys.matched(arrays, 0)
    assert greys.check(levels, kinds, 0)["p"] > greys.LEAK_P
    first = np.sort(levels[0], axis=None)
    assert all((np.sort(level, axis=None) == first).all() for level in levels)
    assert done["grey_values"] == len(np.unique(first)) and done["black"] == (first == 0).mean()
    for end, value in (("black", 0), ("white", 1)):
        most = max((array == value).mean() for array in arrays)
        assert done[end] >= most - 1e-6 if most > greys.FEW else done[end] < greys.FEW
    assert stats.spearmanr(levels[0].ravel(), arrays[0].ravel()).statistic > 0.98


def test_the_check_holds_its_level():
    """Of 200 pairs of one kind, about 1 % are refused, and no more than 1 % by more than chance."""
    pool, refused = greys.levelled(volumes(120, 2)), 0
    looks = np.stack([greys.looks_of(level) for level in pool])
    for run in range(200):
        chosen = np.random.default_rng(run).permutation(120)[:24]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(greys, "looks_of", lambda n: looks[n])
            patch.setattr(greys, "SHUFFLES", 999)  # the time of it
            try:
                greys.check(chosen.tolist(), 12 * [True] + 12 * [False], run)
            except UserError:
                refused += 1
    assert refused <= stats.binom.ppf(0.999, 200, greys.LEAK_P)


def test_fewer_volumes_could_not_tell():
    """Of FEWEST of each kind a number that parts them is below the limit, of one less it cannot be."""
    smallest = [2 * len(greys.NAMES) / comb(2 * n, n) for n in (greys.FEWEST - 1, greys.FEWEST)]
    assert smallest[0] > greys.LEAK_P / 2 > smallest[1] and 1 / greys.SHUFFLES < greys.LEAK_P / 20
    arrays = volumes(greys.FEWEST, 0) + volumes(greys.FEWEST - 1, 1, CHANGES["rounded"])
    kinds = [*greys.FEWEST * [True], *(greys.FEWEST - 1) * [False]]
    with pytest.raises(UserError, match=r"8 real and 7 generated volumes are too few to tell .* 8 of each"):
        greys.check(greys.levelled(arrays), kinds, 0)


def test_rank_sums_and_holm_are_those_of_scipy():
    rng = np.random.default_rng(0)
    values, kinds = rng.integers(0, 9, (20, 3)).astype(float), np.arange(20) < 9
    values[:9, 2] += 8
    draws = np.stack([kinds, *(rng.permutation(kinds) for _ in range(4000))])
    sums = greys.rank_sums(values, draws)
    for n in range(3):
        expected = stats.mannwhitneyu(values[:9, n], values[9:, n])
        assert sums[0, n] + 9 * 11 / 2 == pytest.approx(expected.statistic)
        p = greys.at_least(np.abs(sums[1:]), np.abs(sums[0]))[n]
        assert p == pytest.approx(expected.pvalue, abs=0.03)
    assert greys.holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert greys.holm(np.array([0.5, 0.9])).tolist() == [1, 1]


def test_the_classifier_never_sees_what_it_predicts():
    features = np.random.default_rng(0).normal(size=(20, 4))
    matrix = greys.predictor(features, np.random.default_rng(0))
    assert (np.diag(matrix) == 0).all() and ((matrix == 0).sum(axis=1) == 4).all()
