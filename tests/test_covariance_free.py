"""Distances without a covariance, and features that know where something is."""

import numpy as np
import pytest
import torch
from scipy import stats

from MedicalNet import comparing, evaluation, extractors, measuring
from MedicalNet.covariance_free import Energy, SlicedWasserstein
from tests.conftest import random_array


def normal(seed, *shape):
    """Standard-normal float64 array."""
    return np.random.default_rng(seed).standard_normal(shape)


def sliced(real, generated):
    """SlicedWasserstein of a seed."""
    return SlicedWasserstein(real, generated, 0)


BOTH = pytest.mark.parametrize("distance", [Energy, sliced])


def test_energy_distance_by_hand():
    real, generated = np.array([[0.0, 0], [3, 4]])[:, None], np.array([[0.0, 0], [0, 2]])[:, None]
    across = (0 + 2 + 5 + np.sqrt(9 + 4)) / 4
    assert Energy(real, generated).exact() == pytest.approx(2 * across - 5 - 2)


def test_energy_distance_of_slices_leaves_out_those_of_one_volume():
    real, generated = np.array([[[0.0], [10]], [[1], [1]]]), np.array([[[0.0], [0]], [[2], [2]]])
    within, across = (1 + 9) / 2, (0 + 2 + 10 + 8 + 2 * (1 + 1)) / 8
    assert Energy(real, generated).exact() == pytest.approx(2 * across - within - 2)


def test_energy_distance_equals_scipy_in_one_dimension():
    a, b = normal(0, 30), normal(1, 20) + 1
    found = Energy(a[:, None, None], b[:, None, None])
    own = [-k.sum() / len(k) ** 2 for k in (found.rr, found.gg)]  # scipy counts a value and itself as a pair
    assert -2 * found.rg.mean() - sum(own) == pytest.approx(stats.energy_distance(a, b) ** 2)
    unbiased = own[0] * 30 / 29 + own[1] * 20 / 19
    assert found.exact() == pytest.approx(-2 * found.rg.mean() - unbiased)


@pytest.mark.parametrize("sizes", [(30, 20), (7, 7), (1, 5)])
def test_sliced_distance_equals_scipy_in_one_dimension(sizes):
    a, b = normal(0, sizes[0]).round(1), normal(1, sizes[1]).round(1) + 1  # some values are equal
    found = sliced(a[:, None, None], b[:, None, None]).exact()
    assert found == pytest.approx(stats.wasserstein_distance(a, b))


def test_sliced_distance_of_two_points_is_the_mean_length_of_their_shadow():
    real, generated = np.zeros((1, 1, 2)), np.array([[[3.0, 4]]])
    assert sliced(real, generated).exact() == pytest.approx(5 * 2 / np.pi, rel=0.05)  # mean |cos|


def test_sliced_distance_equals_the_definition_along_every_direction():
    real, generated = normal(0, 6, 3, 4), normal(1, 9, 3, 4) + 0.5
    directions = np.random.default_rng(0).standard_normal((4, 512))
    directions /= np.linalg.norm(directions, axis=0)
    along = [(f.reshape(-1, 4) @ directions).T for f in (real, generated)]
    expected = np.mean([stats.wasserstein_distance(*pair) for pair in zip(*along, strict=True)])
    assert sliced(real, generated).exact() == pytest.approx(expected)


@BOTH
def test_distances_are_symmetric_and_grow_with_a_shift(distance):
    real, generated = normal(0, 12, 2, 5), normal(1, 15, 2, 5)
    one, other = distance(real, generated).exact(), distance(generated, real).exact()
    assert one == pytest.approx(other)
    assert distance(real, generated + 1).exact() > distance(real, generated + 0.5).exact() > one


def test_a_resample_of_volumes_is_the_set_with_copies():
    real, generated = normal(0, 4, 2, 5), normal(1, 5, 2, 5) + 0.3
    counts = np.array([2, 0, 1, 3.0]), np.array([1, 1, 0, 2, 2.0])
    copies = [np.repeat(f, c.astype(int), axis=0) for f, c in zip((real, generated), counts, strict=True)]
    assert sliced(real, generated)(*counts) == pytest.approx(sliced(*copies).exact())
    real, generated = real[:, :1], generated[:, :1]
    whole = Energy(*(one[:, :1] for one in copies))
    own = [k[k < 0].mean() for k in (whole.rr, whole.gg)]  # a volume and its copy are no two volumes
    assert Energy(real, generated)(*counts) == pytest.approx(sum(own) - 2 * whole.rg.mean())


def test_energy_distance_of_equal_distributions_is_zero_on_average_and_so_is_its_floor():
    values, floors = [], []
    for n in range(80):
        found = Energy(normal(2 * n, 20, 1, 4), normal(2 * n + 1, 20, 1, 4))
        half = np.arange(20) < 10
        values.append(found.exact())
        floors.append(found.between_real()(half.astype(float), (~half).astype(float)))
    for one in (values, floors):
        assert abs(np.mean(one)) < 3 * np.std(one) / np.sqrt(80)


def test_interval_of_the_energy_distance_holds_that_of_the_populations():
    held = []
    for n in range(60):
        real, generated = normal(2 * n, 40, 1, 1), normal(2 * n + 1, 40, 1, 1) + 1
        low, high = Energy(real, generated).interval()
        held.append(low < 0.5412 < high)  # of N(0, 1) and N(1, 1): 2 E|N(1, 2)| - 2 E|N(0, 2)|
    assert np.mean(held) > 0.85


def seen(features, number, build):
    """Whether a number is outside what real halves give."""
    sets = [measuring.Measured([str(n) for n in range(len(f))], {number.of: f}, []) for f in features]
    config = evaluation.EvaluateConfig(real="a", generated="b", bootstrap=0)
    return comparing.at_equal_n(build(comparing.Pair(*sets, 0)), number, config, 0)["outside"]


@pytest.fixture(scope="module")
def volume_features():
    """VolumeFeatures of random weights."""
    return extractors.VolumeFeatures(extractors.build_medicalnet(None, torch.device("cpu")), "random")


def front_and_back(number, seed):
    """Feature maps (512, 4, 4, 1) that are one thing in front and another behind, with noise."""
    law, rng = np.random.default_rng(0).standard_normal((2, 512)), np.random.default_rng(seed)
    maps = np.repeat(law.T[:, None, :, None], 4, axis=1).repeat(2, axis=2)
    return torch.from_numpy((maps + 3 * rng.standard_normal((number, *maps.shape))).astype(np.float32))


def test_placed_features_tell_front_from_back(volume_features):
    numbers = {number.name: number for number in comparing.NUMBERS}
    maps = front_and_back(24, 1), front_and_back(24, 2)
    for flipped, placed_see in ((False, False), (True, True)):
        real, generated = maps[0], maps[1].flip(3) if flipped else maps[1]
        placed = [np.stack([volume_features.placed(m).numpy() for m in one]) for one in (real, generated)]
        pooled = [one.mean(dim=(2, 3, 4)).numpy()[:, None] for one in (real, generated)]
        assert seen(placed, numbers["energy-placed"], numbers["energy-placed"].build) == placed_see
        assert not seen(pooled, numbers["energy"], numbers["energy"].build)


def test_placed_features_keep_distances(volume_features):
    maps = front_and_back(6, 1)
    flat = maps.flatten(1).double().numpy()
    placed = np.concatenate([volume_features.placed(m).double().numpy() for m in maps])
    for i, j in ((0, 1), (2, 3), (4, 5)):
        before, after = np.linalg.norm(flat[i] - flat[j]), np.linalg.norm(placed[i] - placed[j])
        assert after == pytest.approx(before, rel=0.15)


def test_features_of_a_volume_do_not_depend_on_the_others(volume_features):
    arrays = [random_array(n, (16, 24, 8)) for n in range(4)]
    alone, together = volume_features(arrays[2], np.eye(4)), volume_features.of_batch(arrays)[2]
    for name in ("features", "placed"):
        assert np.array_equal(alone[name], together[name]) and alone[name].shape == (1, 512)
    turned = volume_features(np.ascontiguousarray(arrays[2][:, ::-1]), np.eye(4))
    away = {k: np.linalg.norm(turned[k] - alone[k]) / np.linalg.norm(alone[k]) for k in alone}
    assert away["placed"] > away["features"]
