"""A trainer of another kind of model is a small subclass of VolumeTrainer: the rectified flow of flow.py."""

import json

from volumetric import generation, runs, sidecars, training
from volumetric.cli import UserError, one_line_errors

import nibabel as nib
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from tests import flow
from tests.conftest import ROOT, interrupted_at, write_data, write_labels
from tests.test_training import assert_same_state


def config_of(folder, **settings):
    where = {name: str(folder / name) for name in ("data", "results_dir", "models_dir")}
    tiny = {"image_size": 8, "image_depth": 4, "batch_size": 2, "gradient_accumulate_every": 2, "width": 4}
    tiny["fp16"] = False
    return flow.FlowConfig(**{"name": "flow", "device": "cpu", **where, **tiny, **settings})


def train(config, group=None):
    return training.train_from_folder(flow.FlowTrainer, config, group)


def test_it_is_short():
    assert len((ROOT / "tests" / "flow.py").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("classes", [False, True])
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, classes):
    data = write_data(tmp_path)
    labels = {"labels": str(write_labels(tmp_path, data)), "balance_classes": True} if classes else {}
    settings = {**labels, "final_rate": 0.1, "num_train_steps": 6}
    whole = train(config_of(tmp_path, name="whole", **settings))
    with interrupted_at(flow.FlowTrainer, 3):
        assert train(config_of(tmp_path, name="parts", **settings)).ended_by == 15
    parts = train(config_of(tmp_path, name="parts", **settings))
    assert_same_state(*(runs.read_state(t.config.models / "model_0.pt") for t in (whole, parts)))
    assert whole.optimizers["opt"].param_groups[0]["lr"] == pytest.approx(1e-3 * (1 - 0.9 * 5 / 6))
    pairs = zip(whole.networks.VE.parameters(), whole.networks.V.parameters(), strict=True)
    assert any(not torch.equal(average, current) for average, current in pairs)


def test_it_is_checked_before_it_runs(tmp_path, capsys):
    write_data(tmp_path)
    small = train(config_of(tmp_path, dry_run=True))
    assert all(isinstance(p, FakeTensor) for p in small.networks.VE.parameters())
    text = capsys.readouterr().out
    assert "peak memory, step" in text and "parameters (million): flow 0.1" in text
    with pytest.raises(UserError, match=r"holds 6 volumes, fewer than a batch of 8.*--batch_size 6"):
        train(config_of(tmp_path, batch_size=8))
    train(config_of(tmp_path, num_train_steps=1, width=8))
    with pytest.raises(UserError, match=r"--width is 4, but .* has 8"):
        train(config_of(tmp_path, num_train_steps=2))


def test_it_evaluates_generates_and_makes_again(tmp_path, capsys):
    data = write_data(tmp_path, shape=(16, 16, 8))
    settings = {"image_size": 16, "image_depth": 8, "labels": str(write_labels(tmp_path, data))}
    settings |= {"num_train_steps": 2, "calculate_fid_every": 2, "calculate_fid_num_images": 6}
    config = config_of(tmp_path, embedding="random", **settings)
    train(config)
    assert float(runs.read_state(config.models / "model_best.pt")["best"]["value"]) > 0
    assert (config.results / "previews").is_dir()
    options = {"num_generate": 3, "label": "whole", "seed": 5}
    made = generation.generate(config_of(tmp_path, **settings | options), flow.FlowModel)
    record = json.loads((made / "seed000006_whole.json").read_text(encoding="utf-8"))
    assert (record["seed"], record["label"], record["checkpoint"]["networks"]) == (6, "whole", "VE")
    image = nib.load(made / "seed000006_whole.nii.gz")
    assert image.shape == (16, 16, 8) and np.ptp(image.get_fdata()) > 0.1
    assert (made / "contact_sheet.png").is_file() and len(sidecars.trained_on(made)) == 6
    again = config_of(tmp_path, **settings, recreate=str(made / "seed000006_whole.json"))
    generation.recreate_volume(again, flow.FlowModel)
    assert "seed000006_whole.nii.gz: identical" in capsys.readouterr().out


def test_its_command_line(tmp_path):
    write_data(tmp_path)
    flags = ["--data", tmp_path / "data", "--results_dir", tmp_path, "--models_dir", tmp_path / "models"]
    flags += ["--image_size", 8, "--image_depth", 4, "--batch_size", 2, "--width", 4, "--device", "cpu"]
    with interrupted_at(flow.FlowTrainer, 2), pytest.raises(SystemExit) as ended, one_line_errors():
        flow.main(list(map(str, flags)))
    assert ended.value.code == 143
