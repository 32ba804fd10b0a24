"""The spread over training seeds: what a table of several runs says, and which runs are refused."""

import csv
import json

from volumetric.cli import UserError

import numpy as np
import pytest

import stylegan2_pytorch as sg
from MedicalNet import scores, spread
from tests.benchmarks import evaluation as benchmark
from tests.conftest import random_array, write_volume
from tests.test_scores import evaluated, without_slices  # noqa: F401


def result(value, interval=None, resampled=None):
    """A result as of `compare`."""
    return {"value": value, "interval_95": interval, "spread_95": resampled, "better": "lower"}


def test_summary_of_three_runs():
    given = ((1.0, [0.0, 2.0]), (2.0, [1.5, 2.5]), (6.0, [5.0, 7.5]))
    rows = [
        {"metrics": {"MD": result(v, ends), "W1": result(v if v > 1 else None), "FID": result(v, None, ends)}}
        for v, ends in given
    ]
    told = spread.summary(rows)
    assert told["MD"]["mean"] == 3 and told["MD"]["n"] == 3
    assert told["MD"]["standard_deviation"] == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert told["MD"]["kind"] == "interval_95" and told["FID"]["kind"] == "spread_95"
    assert told["MD"]["interval"] == pytest.approx([6.5 / 3, 4.0])
    assert told["W1"]["n"] == 2 and told["W1"]["mean"] == 4 and told["W1"]["interval"] is None


def evaluate_runs(config):
    """`--evaluate_checkpoints --runs`."""
    return scores.evaluate_checkpoints(config, sg.open_generator, trunc_psi=config.trunc_psi)


def test_runs_of_two_seeds_have_a_table(evaluated, without_slices, make_config, monkeypatch, capsys):  # noqa: F811
    for seed in (1, 2):
        evaluated(name=f"s{seed}", seed=seed, num_train_steps=1)
    settings = {"embedding": "random", "calculate_fid_num_images": 6, "use_average": False}
    config = make_config(**settings, evaluate_checkpoints=True, runs="s1,s2")
    folder = evaluate_runs(config)
    assert folder == config.results / "spread" and "Warning: the runs" not in capsys.readouterr().out
    with open(folder / "spread.csv", encoding="utf-8") as file:
        table = {row["number"]: row for row in csv.DictReader(file)}
    row = table["FD-random-volume"]
    both = [float(row["s1"]), float(row["s2"])]
    assert both[0] != both[1] and float(row["mean"]) == pytest.approx(np.mean(both))
    assert float(row["standard_deviation_of_runs"]) == pytest.approx(abs(both[0] - both[1]) / 2**0.5)
    assert float(row["volumes_from"]) < float(row["volumes_to"]) and row["volumes_kind"] == "spread_95"
    assert table["energy-random"]["volumes_kind"] == "interval_95"
    record = json.loads((folder / "spread.json").read_text(encoding="utf-8"))
    assert [one["run"] for one in record["checkpoints"]] == record["runs"] == ["s1", "s2"]
    assert record["summary"]["FD-random-volume"]["mean"] == pytest.approx(np.mean(both))
    monkeypatch.setattr(sg.ModelLoader, "volumes_of", None)  # the same command measures nothing again
    assert evaluate_runs(config) == folder


def test_runs_of_other_networks_or_data_are_refused(evaluated, make_config, data):  # noqa: F811
    evaluated(name="a", num_train_steps=1)
    evaluated(name="wide", num_train_steps=1, network_capacity=4)
    write_volume(data / "more.nii.gz", random_array(70))
    evaluated(name="more", num_train_steps=1)
    evaluated(name="rate", num_train_steps=2, learning_rate=1e-3)
    for names, text in (
        ("a,wide", r"--runs: a and wide have other networks \(network_capacity 2 and 4\)"),
        ("a,more", r"--runs: a and more were trained on other data \(6 and 7 volumes\)"),
        ("a,none", r"There is no checkpoint model_<n>\.pt in .*none"),
    ):
        with pytest.raises(UserError, match=text):
            evaluate_runs(make_config(evaluate_checkpoints=True, runs=names))
    states = {
        name: scores.runs.read_state(make_config(name=name).models / "model_0.pt")
        for name in ("more", "rate")
    }
    told = " ".join(spread.doubts(states, make_config()))
    assert "differ in learning_rate: " in told and "one training seed" in told


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"runs": "a,b"}, "give --evaluate_checkpoints, too"),
        ({"runs": "a", "evaluate_checkpoints": True}, "two or more, as in a,b,c, got 'a'"),
        ({"runs": "a,b,a", "evaluate_checkpoints": True}, "must be names of different runs"),
        ({"runs": "a,b/c", "evaluate_checkpoints": True}, "--runs must be the name of a folder"),
        ({"runs": "a,b", "evaluate_checkpoints": True, "load_from": 3}, "leave --checkpoint and --load_from"),
    ],
)
def test_runs_that_cannot_be_meant(make_config, settings, text):
    with pytest.raises(UserError, match=text):
        make_config(**settings)


def test_rates_of_a_pool_whose_sides_differ_tell_a_mirrored_set(tmp_path, capsys):
    for n in range(24):
        array = random_array(n, (16, 16, 4))
        array[:8] *= 0.5
        write_volume(tmp_path / "rates-chiral" / "pool" / f"v{n}.nii.gz", array)
        write_volume(tmp_path / "rates-chiral" / "labels" / f"v{n}.nii.gz", (array > 0.9).astype(np.uint8))
    names = {"rated": ("energy-placed",), "kinds": ("unharmed", "mirrored")}
    benchmark.rates(number=12, repeats=2, chiral=True, output=tmp_path / "rates", **names)
    assert "| energy-placed-random | 0 | 100 |" in capsys.readouterr().out
