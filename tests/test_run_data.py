"""What a run is trained on: along which axes, and which part of a split."""

from dataclasses import replace

from volumetric import collection, parallel, runs, sidecars, training
from volumetric.cli import UserError
from volumetric.geometry import axes_of

import numpy as np
import pytest
import torch

import stylegan2_pytorch as sg
from tests.conftest import random_array, write_volume


def test_a_run_goes_on_along_the_axes_that_it_began_with(make_config, data, tmp_path, capsys):
    """Versions before read volumes along the axes that they were stored along."""
    for n in range(6):
        write_volume(data / f"v{n}.nii.gz", random_array(n), np.diag([-0.6, -0.6, 0.8, 1]))
    config, about = make_config(), (torch.device("cpu"), parallel.Group())
    new = training.open_audit(config, *about)
    assert axes_of(new.affine) == "RAS" and capsys.readouterr().out == ""
    torch.save({"step": 1, "affine": np.diag([-0.6, -0.6, 0.8, 1]).tolist()}, tmp_path / "before.pt")
    before = training.open_audit(config, *about, tmp_path / "before.pt")
    assert axes_of(before.affine) == "LPS" and torch.equal(before.volumes, new.volumes.flip(3, 4))
    assert "was trained along LPS: the run goes on along them" in capsys.readouterr().out
    assert before.contents == new.contents
    torch.save({"step": 0}, tmp_path / "original.pt")  # it states none: as most of the data are stored
    original = training.open_audit(config, *about, tmp_path / "original.pt")
    assert torch.equal(original.volumes, before.volumes)
    assert "states no axes; most of the data are stored along LPS" in capsys.readouterr().out


def test_a_part_of_the_data_is_trained_on_with_a_split(make_config, data, tmp_path, capsys):
    contents = [collection.content_of(collection.scaled(random_array(n))) for n in range(6)]
    parts = ["training", "training", "held_out", "training", "test", "training"]
    rows = [f"v{n}.nii.gz,{contents[n]},s{n},{parts[n]}" for n in range(6)]
    (tmp_path / "split.csv").write_text("\n".join(["file,content,subject,part", *rows]), encoding="utf-8")
    config = make_config(split=str(tmp_path / "split.csv"))
    for cache in ("ram", "disk"):
        audit = training.open_audit(replace(config, cache=cache), torch.device("cpu"), parallel.Group())
        assert [p.name for p in audit.paths] == ["v0.nii.gz", "v1.nii.gz", "v3.nii.gz", "v5.nii.gz"]
        assert audit.contents == [contents[n] for n in (0, 1, 3, 5)]
        assert any("4 of 6 volumes are for training" in line for line in audit.summary)
    write_volume(data / "v3.nii.gz", random_array(77))
    with pytest.raises(UserError, match=r"v3\.nii\.gz has other voxels than the split knows"):
        training.open_audit(config, torch.device("cpu"), parallel.Group())
    write_volume(data / "v6.nii.gz", random_array(6))
    with pytest.raises(UserError, match=r"no row for 1 of 7 volumes, the first .*v6\.nii\.gz"):
        training.open_audit(config, torch.device("cpu"), parallel.Group())


def test_what_is_not_known_of_earlier_volumes_is_not_claimed(make_config, data, tmp_path):
    """A checkpoint that does not say what it was trained on makes one that does not say it either."""
    first = sg.train_from_folder(make_config(num_train_steps=1))
    path = first.config.models / "model_0.pt"
    state = torch.load(path, weights_only=True)
    known = state.pop("trained_on")
    torch.save(state, path)
    assert sorted(sg.train_from_folder(make_config(num_train_steps=2)).trained_on) == known  # the same data
    torch.save(state, path)
    write_volume(data / "more.nii.gz", random_array(50))
    config = make_config(num_train_steps=2)
    assert not sg.train_from_folder(config).trained_on
    assert runs.read_state(path)["trained_on"] == []
    assert not sg.train_from_folder(make_config(num_train_steps=3)).trained_on  # nor later
    sidecars.write_trained_on(tmp_path, sg.ModelLoader(checkpoint=path, device="cpu").trained_on, path)
    assert sidecars.trained_on(tmp_path / "data") == {} and not list(tmp_path.glob("trained_on*"))


def test_a_split_cannot_set_aside_what_a_checkpoint_was_trained_on(make_config, data, tmp_path):
    sg.train_from_folder(make_config(num_train_steps=1))
    contents = [collection.content_of(collection.scaled(random_array(n))) for n in range(6)]
    rows = [f"v{n}.nii.gz,{contents[n]},s{n},{'test' if n == 3 else 'training'}" for n in range(6)]
    (tmp_path / "split.csv").write_text("\n".join(["file,content,subject,part", *rows]), encoding="utf-8")
    with pytest.raises(UserError, match=r"aside 1 volumes that .* was trained on, the first v3\.nii\.gz"):
        sg.train_from_folder(make_config(num_train_steps=2, split=str(tmp_path / "split.csv")))


def test_a_pack_is_compared_with_the_split_too(make_config, data, tmp_path):
    contents = [collection.content_of(collection.scaled(random_array(n))) for n in range(6)]
    about = (torch.device("cpu"), parallel.Group())
    for wrong in (False, True):
        rows = [f"v{n}.nii.gz,{contents[n] if n or not wrong else 64 * '0'},s{n},training" for n in range(6)]
        (tmp_path / "split.csv").write_text("\n".join(["file,content,subject,part", *rows]), encoding="utf-8")
        config = make_config(split=str(tmp_path / "split.csv"), cache="disk")
        if not wrong:
            assert sum("6 of 6 volumes" in line for line in training.open_audit(config, *about).summary) == 1
            assert sum("6 of 6 volumes" in line for line in training.open_audit(config, *about).summary) == 1
            continue
        with pytest.raises(UserError, match=r"v0\.nii\.gz has other voxels than the split knows"):
            training.open_audit(config, *about)
