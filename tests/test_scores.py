"""The evaluation of a training: logged, keeping the best, changing nothing, failing harmlessly; the sweep."""

import csv
import json
from dataclasses import replace

from volumetric.cli import UserError

import numpy as np
import pytest
import torch
from PIL import Image

import stylegan2_pytorch as sg
from MedicalNet import extractors, scores
from tests.conftest import random_array, write_split, write_volume
from tests.test_evaluation import NUMBERS


@pytest.fixture
def evaluated(make_config):
    """Function that builds a tiny run with evaluations by the volume network alone, and trains it."""

    def train(**changed):
        given = {"calculate_fid_num_images": 6, "embedding": "random", "num_train_steps": 2, **changed}
        return sg.train_from_folder(make_config(**given))

    return train


@pytest.fixture
def without_slices(monkeypatch):
    """Leave Inception out: it costs seconds and changes nothing in these tests."""
    config = scores.EvaluateConfig
    monkeypatch.setattr(
        scores, "EvaluateConfig", lambda **given: config(**{**given, "metrics": ("md", "anatomy")})
    )


def test_evaluation_in_training_is_logged_and_keeps_the_best(evaluated, tmp_path):
    trainer = evaluated(calculate_fid_every=1, log=True)
    with open(tmp_path / "results" / "t" / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    distances_seen = [float(row["FD-random-volume"]) for row in rows]
    lacking = {name for name in NUMBERS if any(row[name] == "" for row in rows)}
    assert all(name.startswith("W1-") for name in lacking)  # noise has no vessels: nothing to compare
    best = torch.load(tmp_path / "models" / "t" / "model_best.pt", weights_only=True)
    assert best["best"]["value"] == pytest.approx(min(distances_seen), rel=1e-4)
    assert best["step"] == best["best"]["step"] == 1 + int(np.argmin(distances_seen))
    scores = (tmp_path / "results" / "t" / "fid_scores.txt").read_text(encoding="utf-8").splitlines()
    assert scores[0] == "step,metric,value" and len(scores) >= 1 + 2 * (len(NUMBERS) - len(lacking))
    assert scores[1].startswith("1,FD-random")
    assert trainer.best == best["best"]
    assert sg.ModelLoader(checkpoint=tmp_path / "models" / "t" / "model_best.pt").step == best["step"]


def test_evaluation_changes_nothing_in_training(evaluated, without_slices):
    plain = evaluated(name="plain")
    watched = evaluated(name="watched", calculate_fid_every=1)
    for name, tensor in plain.GAN.state_dict().items():
        assert torch.equal(tensor, watched.GAN.state_dict()[name]), name


def test_a_resumed_run_remembers_its_best(evaluated, without_slices, tmp_path):
    first = evaluated(calculate_fid_every=1, save_every=1)
    best = first.best
    resumed = evaluated(save_every=1, num_train_steps=3)
    assert resumed.best == best
    with open(tmp_path / "results" / "t" / "metrics.csv", encoding="utf-8") as file:  # the columns stay
        assert [row["FD-random-volume"] != "" for row in csv.DictReader(file)] == [True, True, False]
    evaluated(save_every=1, load_from=0, num_train_steps=1)
    assert (tmp_path / "models" / "t" / "after-model_0" / "model_best.pt").exists()


def test_a_failing_evaluation_does_not_end_the_training(evaluated, without_slices, monkeypatch, capsys):
    def fail(*_):
        raise np.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(scores, "compare", fail)
    assert evaluated(calculate_fid_every=1).step == 2
    assert "Step 1 could not be evaluated: did not converge" in capsys.readouterr().err


def test_missing_weights_are_said_at_the_start_and_the_rest_is_measured(
    evaluated, monkeypatch, capsys, tmp_path
):
    for name in extractors.PUBLISHED:
        missing = replace(extractors.PUBLISHED[name], url=(tmp_path / "nowhere.pth").as_uri())
        monkeypatch.setitem(extractors.PUBLISHED, name, missing)
    trainer = evaluated(calculate_fid_every=2, embedding="pretrained")
    out = capsys.readouterr().out
    assert out.count("Warning: training without the metrics of this network.") == 2 and trainer.step == 2
    text = (tmp_path / "results" / "t" / "fid_scores.txt").read_text(encoding="utf-8")
    assert "2,W1-vessel-volume-ml" in text and "FID" not in text and "MD," not in text


def sweep(config):
    """`--evaluate_checkpoints`."""
    return scores.evaluate_checkpoints(config, sg.open_generator, trunc_psi=config.trunc_psi)


def test_sweep_over_the_checkpoints_of_a_run(evaluated, without_slices, make_config, monkeypatch):
    evaluated(save_every=1)
    settings = {"embedding": "random", "calculate_fid_num_images": 6, "use_average": False}
    folder = sweep(make_config(**settings))
    with open(folder / "sweep.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert len({row["FD-random-volume"] for row in rows}) == 3
    assert np.ptp(np.array(Image.open(folder / "sweep.png").convert("L"))) > 100
    monkeypatch.setattr("MedicalNet.report.draw_sweep", lambda *_: None)  # seconds; it is the same picture
    assert json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["n_generated"] == 6
    with (
        monkeypatch.context() as patch
    ):  # the same command measures nothing again, and goes on where it stopped
        patch.setattr(sg.ModelLoader, "volumes_of", None)
        assert sweep(make_config(**settings)) == folder
    record = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    del record["checkpoints"][1]
    (folder / "sweep.json").write_text(json.dumps(record), encoding="utf-8")
    assert sweep(make_config(**settings)) == folder
    with open(folder / "sweep.csv", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows
    assert 0 < float(rows[2]["noise-share-voxels"]) < 1 and 0 < float(rows[2]["maximum-generated"]) <= 1
    assert {"noise-share-vessels", "FD-random-volume-one-noise", "recall-random-one-noise"} <= set(rows[0])
    one = make_config().models / "model_1.pt"
    alone = sweep(make_config(**settings, name="alone", checkpoint=str(one)))
    with open(alone / "sweep.csv", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [rows[1]]
    other = sweep(make_config(**settings | {"calculate_fid_num_images": 7}, checkpoint=str(one)))
    assert other != folder
    for number, row in enumerate(rows):  # the same volumes that --generate makes
        model = sg.ModelLoader(
            checkpoint=make_config().models / f"model_{number}.pt", use_average=False, device="cpu"
        )
        assert float(row["FD-random-volume"]) > 0 and model.step == number


def test_scores_of_a_training_are_against_its_part_of_the_split(without_slices, data, tmp_path):
    held = [write_volume(data / f"w{n}.nii.gz", random_array(50 + n)) for n in range(2)]
    parts = {path: "test" if path in held else "training" for path in sorted(data.iterdir())}
    settings = {"embedding": "random", "device": "cpu"}
    every = scores.TrainingScores(data, **settings).evaluator.real_files
    chosen = scores.TrainingScores(data, split=write_split(tmp_path / "split.csv", parts), **settings)
    assert len(every) == 8 and [f.path for f in chosen.evaluator.real_files] == sorted(parts)[:6]


def test_a_sweep_without_checkpoints_or_of_another_size_is_refused(
    evaluated, without_slices, make_config, data
):
    settings = {"embedding": "random", "calculate_fid_num_images": 6}
    with pytest.raises(UserError, match=r"There is no checkpoint model_<n>\.pt in"):
        sweep(make_config(**settings))
    evaluated()
    for path in data.iterdir():
        write_volume(
            path, random_array(path.stat().st_size + len(path.name) + ord(path.name[1]), (16, 16, 4))
        )
    with pytest.raises(UserError, match=r"generates 8 x 8 x 4 voxels, the real volumes have 16 x 16 x 4"):
        sweep(make_config(**settings))


def test_truncation_centre_is_computed_once_for_all_evaluated_volumes(evaluated, without_slices, monkeypatch):
    seen = []
    center = sg.truncation_center
    monkeypatch.setattr(sg, "truncation_center", lambda *a: seen.append(1) or center(*a))
    trainer = sg.Trainer(evaluated().config)
    seen.clear()
    assert len(list(trainer.synthesizer().volumes_of(range(9), 0.5, batch_size=2))) == 9
    assert len(seen) == 1
