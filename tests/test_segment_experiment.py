"""The experiment: everything is known by content; what is the same goes on, what is not is made again."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

from volumetric.cli import UserError
from volumetric.collection import content_of_set
from volumetric.files import part_of
from volumetric.sidecars import write_drawn_for, write_trained_on

import nibabel as nib
import numpy as np
import pytest

from segmentation import experiment, experiment_page, segmentation
from segmentation.comparison import Cell
from segmentation.labels import contents_of, remap, save_labels
from tests.conftest import write_split, write_volume
from tests.pairs import AFFINE, CLASSES, SHAPE, experiment_config, one_pair

ONE_CELL = {"real_numbers": (2,), "synthetic_numbers": (3,)}


def result(config):
    """Record of an experiment that ran through; its page has no curves, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_page, "curves", lambda _: None)
        patch.setattr(experiment_page, "drawing", lambda _: "")
        folder = experiment.run_experiment(config)
    return json.loads((folder / "experiment.json").read_text(encoding="utf-8"))


def means(record):
    """{score: mean} of every cell."""
    return [{name: one["mean"] for name, one in cell["scores"].items()} for cell in record["cells"]]


def counted(monkeypatch, owner, name):
    """List that grows by the first argument of every call of a method from now on."""
    calls, made = [], getattr(owner, name)

    def call(self, *args):
        calls.append(args[0])
        return made(self, *args)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_an_experiment_goes_on_and_writes_its_page(tmp_path, monkeypatch):
    config = experiment_config(tmp_path)
    folder = experiment.run_experiment(config)
    record = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    assert [(c["real"], c["synthetic"]) for c in record["cells"]] == [(0, 3), (2, 0), (2, 3)]
    page = (folder / "report.html").read_text(encoding="utf-8")
    for part in ("Added to 2 real volumes", "Synthetic volumes alone", "Learning curves", "best: case2"):
        assert part in page
    assert len(list((folder / "runs" / "real0002_synthetic0003_seed0" / "predicted").iterdir())) == 6
    monkeypatch.setattr(experiment.runs, "run", None)  # nothing is trained again
    part = part_of(folder / "runs" / "scores.json")
    part = part.with_name(part.name.replace(f"-{os.getpid()}-", "-99999999-"))  # of a process that is no more
    part.write_bytes(b"half")
    result(config)
    assert not list(folder.rglob(".part-*"))
    with pytest.raises(UserError, match="was begun with --width 2"):
        experiment.run_experiment(experiment_config(tmp_path, width=4))


def test_an_experiment_refuses_overlap_by_content(tmp_path):
    config = experiment_config(tmp_path)
    copied = nib.load(Path(config.real) / "case1.nii.gz")
    nib.save(nib.Nifti1Image(copied.get_fdata(dtype=np.float32), AFFINE), Path(config.test) / "case20.nii")
    (Path(config.test) / "case20.nii.gz").unlink()
    with pytest.raises(UserError, match=r"case20\.nii is in the test set and in --real"):
        experiment.run_experiment(config)


def test_a_teacher_labels_what_has_no_labels(tmp_path):
    config = experiment_config(tmp_path, synthetic_labels=None, synthetic_numbers=(0, 1))
    with pytest.raises(UserError, match=r"has 0 volumes with a label map in .*--gate False"):
        experiment.run_experiment(config)  # two steps teach nothing: the gate withholds every map
    with open(tmp_path / "out" / "labelled" / "gate.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {row["kept"] for row in rows} == {"False"} and all(r["reasons"] for r in rows)
    doubted = experiment_config(
        tmp_path / "all", synthetic_labels=None, synthetic_numbers=(0, 1), real_numbers=(0,), gate=False
    )
    record = json.loads((experiment.run_experiment(doubted) / "experiment.json").read_text(encoding="utf-8"))
    assert record["teacher"] and record["doubted"] == 6


def test_test_subjects_are_in_nothing_that_was_seen(tmp_path):
    """By their volumes and label maps: those drawn for, those of the generator's training, of any table."""
    config = experiment_config(tmp_path)
    ids, test = one_pair(20)[1], Path(config.test_labels) / "case20.nii.gz"
    grid = experiment.open_grid(config)
    label_map, volume = grid.tests["case20"].identity.labels, grid.tests["case20"].identity.volume
    write_trained_on(config.synthetic, [volume], "model_1.pt")
    with pytest.raises(UserError, match="in the training of the generator"):
        experiment.open_grid(config)
    next(Path(config.synthetic).glob("trained_on-*.json")).unlink()
    sidecar = Path(config.synthetic) / "case10.json"
    sidecar.write_text(json.dumps({"label_map": {"content": label_map}}), encoding="utf-8")
    with pytest.raises(UserError, match="in the making of synthetic volumes"):
        experiment.open_grid(config)
    sidecar.unlink()
    write_drawn_for(config.synthetic_labels, [label_map])  # as beside varied maps
    with pytest.raises(UserError, match=r"in the making of synthetic volumes \(a label map of which others"):
        experiment.open_grid(config)
    next(Path(config.synthetic_labels).glob("drawn_for-*.json")).unlink()
    save_labels(ids, AFFINE, Path(config.synthetic_labels) / "case11.nii.gz", "topcow2024")
    with pytest.raises(UserError, match=f"{test}, the label map of test subject case20, .*case11"):
        experiment.open_grid(config)
    assert contents_of(ids, "topcow2024") & contents_of(remap(ids, "topcow2024", "nnunet"), "nnunet")


def test_one_voxel_size_for_all_networks(tmp_path):
    config = experiment_config(tmp_path)
    for n in range(10, 16):
        array, labels = (np.kron(one, np.ones((2, 2, 2), one.dtype)) for one in one_pair(n))
        fine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
        write_volume(Path(config.synthetic) / f"case{n}.nii.gz", array, fine)
        save_labels(labels, fine, Path(config.synthetic_labels) / f"case{n}.nii.gz", "topcow2024")
    grid = experiment.open_grid(config)
    assert np.allclose(grid.spacing, [0.6, 0.6, 0.8])
    assert {case.image.shape for case in grid.real + grid.synthetic} == {SHAPE}
    (case,) = (case for case in grid.synthetic if case.name == "case10")
    assert np.array_equal(CLASSES.to_ids(case.labels), one_pair(10)[1])


def test_a_run_is_known_by_what_it_was_trained_on(tmp_path, capsys):
    config = experiment_config(tmp_path)
    grid, cell = experiment.open_grid(config), Cell(0, 3)
    folder = experiment.folder_of_run(config, cell, 0, grid.cases(cell, 0))
    (folder / "scores.json").write_text("{}", encoding="utf-8")
    assert experiment.folder_of_run(config, cell, 0, grid.cases(cell, 0)) == folder
    assert (folder / "scores.json").exists()
    for n in range(10, 16):  # other volumes under the same names
        write_volume(Path(config.synthetic) / f"case{n}.nii.gz", one_pair(n)[0][:, ::-1], AFFINE)
    grid = experiment.open_grid(config)
    folder = experiment.folder_of_run(config, cell, 0, grid.cases(cell, 0))
    assert not (folder / "scores.json").exists() and (folder.parent / f"{folder.name}.earlier").exists()
    assert "was trained on other volumes or label maps" in capsys.readouterr().out
    write_volume(Path(config.real) / "case1.nii.gz", one_pair(29)[0], AFFINE)
    with pytest.raises(UserError, match="begun with other volumes or label maps than"):
        experiment.open_grid(config)


def renamed(folder, prefix):
    """Other names for the files of a folder, in another order."""
    paths = sorted(Path(folder).glob("*.nii.gz"))
    for n, path in enumerate(paths):
        path.rename(path.with_name(f"{prefix}{len(paths) - n}.nii.gz"))


def test_names_and_places_change_nothing(tmp_path, monkeypatch):
    """Renamed files, a moved folder, another way to write its path: nothing is trained again."""
    monkeypatch.chdir(tmp_path)
    config = experiment_config(tmp_path, output="ex", **ONE_CELL)
    truth = result(config)
    for kind in ("real", "synthetic", "test"):
        for folder in (getattr(config, kind), getattr(config, f"{kind}_labels")):
            renamed(folder, "sub")
    (tmp_path / "real_volumes").rename(tmp_path / "moved")
    (tmp_path / "ex").rename(tmp_path / "other")
    monkeypatch.setattr(experiment.runs, "run", None)
    again = result(replace(config, output="./other/", real="moved"))
    for one, other in zip(means(again), means(truth), strict=True):
        assert one == pytest.approx(other, nan_ok=True)
    assert sorted(again["per_subject"]["2+3"].values()) == sorted(truth["per_subject"]["2+3"].values())
    assert again["made_of"] == truth["made_of"] and again["subjects"][0] == "sub1"
    assert not list(tmp_path.glob("**/*.earlier"))


def test_a_test_subject_that_comes_later_is_all_that_is_labelled(tmp_path, monkeypatch):
    config = experiment_config(tmp_path, **ONE_CELL)
    paths = [Path(folder) / "case25.nii.gz" for folder in (config.test, config.test_labels)]
    kept = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    former = result(config)
    for path, whole in zip(paths, kept, strict=True):
        path.write_bytes(whole)
    labelled = counted(monkeypatch, segmentation.Predictor, "label")
    monkeypatch.setattr(experiment.runs, "run", None)
    record = result(config)
    assert [scan.path.name for scan in labelled] == ["case25.nii.gz"]
    assert len(record["subjects"]) == 6 and len(record["contents"]["held_out"]) == 6
    told = record["cells"][0]["scores"]["specificity_3rd-A2"]
    assert told["n"] == 6 and 0 <= told["mean"] <= 1
    for cell, scores in former["per_subject"].items():
        assert {name: record["per_subject"][cell][name] for name in scores} == scores
    write_volume(paths[0], one_pair(29)[0], AFFINE)  # another volume under its name
    result(config)
    assert len(labelled) == 2


def test_another_voxel_size_is_another_pair(tmp_path):
    """A header says it, the voxels do not: distances and networks are others."""
    config = experiment_config(tmp_path, **ONE_CELL)
    former = result(config)
    wide = AFFINE @ np.diag([2, 2, 2, 1])
    for n in range(20, 26):
        write_volume(Path(config.test) / f"case{n}.nii.gz", one_pair(n)[0], wide)
        save_labels(one_pair(n)[1], wide, Path(config.test_labels) / f"case{n}.nii.gz", "topcow2024")
    assert result(config)["cells"][0]["scores"]["clDice"] != former["cells"][0]["scores"]["clDice"]
    for n in range(6):
        write_volume(Path(config.real) / f"case{n}.nii.gz", one_pair(n)[0], wide)
        save_labels(one_pair(n)[1], wide, Path(config.real_labels) / f"case{n}.nii.gz", "topcow2024")
    with pytest.raises(UserError, match="begun with other volumes or label maps than"):
        experiment.open_grid(config)


NO_REAL = {"real_numbers": (0,), "synthetic_numbers": (2,)}


def taught_config(folder, **settings):
    """Configuration of a tiny experiment whose synthetic volumes a teacher labels, each as it can."""
    return experiment_config(folder, synthetic_labels=None, gate=False, **(NO_REAL | settings))


def test_replaced_volumes_of_the_same_names_are_labelled_and_trained_on_again(tmp_path, monkeypatch):
    config = taught_config(tmp_path)
    former = result(config)
    for n in range(10, 16):
        write_volume(Path(config.synthetic) / f"case{n}.nii.gz", one_pair(n)[0][:, ::-1], AFFINE)
    labelled = counted(monkeypatch, segmentation.Predictor, "label")
    record = result(config)
    assert len([scan for scan in labelled if scan.path.is_relative_to(config.synthetic)]) == 6
    assert means(record) != means(former)
    assert not set(record["contents"]["generated"]) & set(former["contents"]["generated"])
    assert record["made_of"]["teacher"] == former["made_of"]["teacher"]
    assert [path.name for path in (tmp_path / "out").glob("labelled*")] == ["labelled"]


def test_new_volumes_of_a_grown_grid_get_label_maps_of_their_own(tmp_path):
    config = taught_config(tmp_path)
    result(config)
    for n in (16, 17):
        write_volume(Path(config.synthetic) / f"case{n}.nii.gz", one_pair(n)[0], AFFINE)
    (Path(config.synthetic) / "case10.nii.gz").unlink()
    record = result(replace(config, synthetic_numbers=(7,)))
    maps = sorted(path.name for path in (tmp_path / "out" / "labelled" / "labels").iterdir())
    assert maps == [f"case{n}.nii.gz" for n in range(11, 18)]
    assert len(record["contents"]["generated"]) == len(record["made_of"]["synthetic"]) == 7


def test_the_gate_knows_no_label_map_of_a_test_subject(tmp_path):
    """With a split, --real and --test may be one folder: the limits are those of its training part."""
    config = taught_config(tmp_path)
    for n in range(20, 26):
        for name, test in (("real", config.test), ("real_labels", config.test_labels)):
            path = Path(test) / f"case{n}.nii.gz"
            path.rename(Path(getattr(config, name)) / path.name)
    parts = {path: "training" if int(path.name[4:-7]) < 6 else "test" for path in Path(config.real).iterdir()}
    split = write_split(tmp_path / "split.csv", parts)
    one = {"test": config.real, "test_labels": config.real_labels}
    result(replace(config, split=split, **one))
    gate = json.loads((tmp_path / "out" / "labelled" / "gate.json").read_text(encoding="utf-8"))
    assert gate["limits"]["n"] == 6


def write_gate(folder, **record):
    """A replicas.json that trust/replicas.py might have written."""
    whole = {"verdict": "passed", "flagged": [], "contents": {"training": [], "generated": []}} | record
    (Path(folder) / "replicas.json").write_text(json.dumps(whole), encoding="utf-8")


def test_the_page_says_what_the_replica_gate_said(tmp_path):
    config = experiment_config(tmp_path, **ONE_CELL)
    record = result(config)
    assert record["replicas"] is None
    page = tmp_path / "out" / "report.html"
    assert "No replica gate (trust/replicas.py) has looked" in page.read_text(encoding="utf-8")
    used = record["contents"]["generated"]
    write_gate(config.synthetic, contents={"training": [], "generated": used})
    assert result(config)["replicas"]["verdict"] == "passed"
    told = "it looked at 3 of the 3 synthetic volumes that networks were trained on, and flagged 0 of them."
    assert f"<p>The replica gate passed: {told}</p>" in page.read_text(encoding="utf-8")
    looked = {"training": [], "generated": used[:2]}
    write_gate(tmp_path, verdict="failed", contents=looked, flagged=[{"content": used[1]}])
    given = replace(config, replicas=str(tmp_path / "replicas.json"))
    assert result(given)["replicas"]["flagged"] == 1
    assert '<p class="warning">The replica gate failed: it looked at 2 of the 3' in page.read_text(
        encoding="utf-8"
    )
    write_gate(tmp_path, contents={"training": record["contents"]["held_out"][:1], "generated": used})
    with pytest.raises(UserError, match="in the training set of the replica gate"):
        experiment.open_grid(given)
    (tmp_path / "replicas.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"replicas\.json has no entry 'verdict': give replicas\.json of"):
        experiment.open_grid(given)


def test_the_record_says_of_which_contents_it_is(tmp_path):
    config = experiment_config(tmp_path, **ONE_CELL)
    record = result(config)
    grid = experiment.open_grid(config)
    real, generated, held_out = (record["contents"][name] for name in ("training", "generated", "held_out"))
    assert set(held_out) == {pair.identity.volume for pair in grid.tests.values()}
    for used, pool, number in ((real, grid.real, 2), (generated, grid.synthetic, 3)):
        assert len(used) == number and set(used) <= {case.identity.volume for case in pool}
    settings = json.loads((tmp_path / "out" / "settings.json").read_text(encoding="utf-8"))
    assert settings["contents"] == {name: record["made_of"][name] for name in ("real", "test", "synthetic")}
    (tmp_path / "out" / "settings.json").write_text(json.dumps(settings | {"format": None}), encoding="utf-8")
    with pytest.raises(UserError, match="was begun by another version, which noted its volumes otherwise"):
        experiment.open_grid(config)
    cases = json.loads(
        (tmp_path / "out/runs/real0002_synthetic0003_seed0/made_of.json").read_text(encoding="utf-8")
    )
    digest = record["made_of"]["cells"]["real0002_synthetic0003_seed0"]
    assert content_of_set(cases["cases"]) == digest and len(cases["cases"]) == 5
    for path in (config.synthetic, config.synthetic_labels):
        assert len(list(Path(path).iterdir())) == 6  # inputs are never written to


def test_real_volumes_are_no_synthetic_ones(tmp_path):
    config = experiment_config(tmp_path)
    write_volume(Path(config.synthetic) / "case10.nii.gz", one_pair(1)[0], AFFINE)
    with pytest.raises(UserError, match=r"case10\.nii\.gz has the same voxels as .*case1\.nii\.gz"):
        experiment.open_grid(config)
    with pytest.raises(UserError, match="--seeds must be different whole numbers from 0 on, got"):
        experiment_config(tmp_path, seeds=())
