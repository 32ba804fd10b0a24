"""What a run is trained on: along which axes, and which part of a split."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import random_array, write_volume
from volumetric import collection, parallel, training
from volumetric.cli import UserError
from volumetric.geometry import axes_of


def test_a_run_goes_on_along_the_axes_that_it_began_with(make_config, data, tmp_path, capsys):
    """Versions before read volumes along the axes that they were stored along."""
    for n in range(6):
        write_volume(data / f"v{n}.nii.gz", random_array(n), np.diag([-0.6, -0.6, 0.8, 1]))
    config, about = make_config(), (torch.device("cpu"), parallel.Group(), 2)
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
        audit = training.open_audit(replace(config, cache=cache), torch.device("cpu"), parallel.Group(), 2)
        assert [p.name for p in audit.paths] == ["v0.nii.gz", "v1.nii.gz", "v3.nii.gz", "v5.nii.gz"]
        assert audit.contents == [contents[n] for n in (0, 1, 3, 5)]
        assert any("4 of 6 volumes are for training" in line for line in audit.summary)
    write_volume(data / "v3.nii.gz", random_array(77))
    with pytest.raises(UserError, match=r"v3\.nii\.gz has other voxels than the split knows"):
        training.open_audit(config, torch.device("cpu"), parallel.Group(), 2)
    write_volume(data / "v6.nii.gz", random_array(6))
    with pytest.raises(UserError, match=r"no row for 1 of 7 volumes, the first .*v6\.nii\.gz"):
        training.open_audit(config, torch.device("cpu"), parallel.Group(), 2)
