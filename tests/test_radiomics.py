"""Fréchet radiomics distance: its formula, what is left out, its features where PyRadiomics is installed."""

import sys

import numpy as np
import pytest

from MedicalNet import evaluation, measuring
from MedicalNet.radiomics import FEATURES, FrechetRadiomics, Radiomics, standardized_by_real
from tests.conftest import random_array, write_volume


def test_distance_is_the_logarithm_of_the_unsquared_one():
    real, generated = np.array([[0.0], [2]])[:, None], np.array([[3.0], [5]])[:, None]
    distance = FrechetRadiomics(real, generated)  # means 1 and 4 and equal variances: d^2 = 9
    assert distance.exact() == pytest.approx(np.log(3))
    assert distance(np.ones(2), np.ones(2)) == pytest.approx(np.log(3))
    assert isinstance(distance.between_real(), FrechetRadiomics)
    assert FrechetRadiomics(real, real).exact() == -np.inf


def test_features_are_standardised_by_the_real_volumes_and_useless_ones_left_out():
    nan = np.nan  # kept, constant among the real, no number in one volume, larger among the real
    real = np.array([[1.0, 5, 2, 0], [3, 5, nan, 4]])[:, None]
    generated = np.array([[2.0, 5, 1, 2], [5, 6, 1, 2]])[:, None]
    found = standardized_by_real(real, generated)
    np.testing.assert_allclose(found[0][:, 0], [[-1, -1], [1, 1]])
    np.testing.assert_allclose(found[1][:, 0], [[0, 0], [3, 0]])
    with pytest.raises(ValueError, match="No radiomic feature differs between the real volumes"):
        standardized_by_real(real[:1], generated)


class Few(Radiomics):
    """Three features that need no PyRadiomics."""

    def __init__(self):
        self.digest, self.protocol = "few", "three features"

    def __call__(self, array, affine):
        return {"features": np.array([[array.mean(), array.std(), array.max()]], np.float32)}


def config(tmp_path, **changed):
    """Configuration of an evaluation of 12 and 6 small volumes."""
    for which, number in (("real", 12), ("generated", 6)):
        for n in range(number):
            array = random_array(n + 20 * number) ** (1 if which == "real" else 3)
            write_volume(tmp_path / which / f"v{n}.nii", array)
    given = {"real": str(tmp_path / "real"), "generated": str(tmp_path / "generated"), "device": "cpu"}
    given |= {"metrics": ("radiomics",), "bootstrap": 20, "output": str(tmp_path / "out")}
    return evaluation.EvaluateConfig(**{**given, "cache_dir": "none", **changed})


def test_its_numbers_have_a_floor_and_their_names_with_any_embedding(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "Radiomics", Few)
    record = evaluation.evaluate(config(tmp_path, embedding="random"))
    assert list(record["metrics"]) == ["energy-radiomics", "FRD"]
    for name, kind in (("energy-radiomics", "interval_95"), ("FRD", "spread_95")):
        number = record["metrics"][name]
        assert number[kind][0] <= number["value"] <= number[kind][1] and number["equal_n"]["outside"], name
    assert record["protocol"]["radiomics"] == "three features"
    assert f"FRD has 6 volumes for {FEATURES} dimensions" in "".join(record["warnings"])
    assert "radiomics" not in evaluation.EvaluateConfig().metrics


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "radiomics", None)
    with pytest.raises(ValueError, match=r'needs PyRadiomics .*: pip install "stylegan2-pytorch-3d\[radiom'):
        evaluation.evaluate(config(tmp_path))
    _, _, missing = measuring.build_extractors(config(tmp_path), optional=True)
    assert len(missing) == 1 and "leave radiomics out" in missing[0]


def test_features_of_a_volume():
    pytest.importorskip("radiomics")
    extractor, array = Radiomics(), random_array(0, (16, 16, 8))
    affine = np.diag([0.6, 0.6, 0.8, 1])
    found = extractor(array, affine)["features"]
    assert found.shape == (1, FEATURES) and np.isfinite(found).all()
    rescaled = extractor(array * 7 + 3, affine)["features"]
    assert np.isclose(found, rescaled, rtol=1e-2, atol=1e-2).mean() > 0.95  # but for the bounds of a few bins
    with pytest.raises(ValueError, match=r"706 radiomic features, expected 1014: it is too small"):
        extractor(random_array(0, (8, 8, 4)), affine)
