"""Circles of Willis on request: pairs by name, their check, drawn again from the sidecar alone, refusals."""

import json
import shutil
from dataclasses import replace

from volumetric.cli import UserError
from volumetric.runs import read_state

import nibabel as nib
import numpy as np
import pytest
import torch

import label_to_volume as l2v
from sample_data import phantom, release
from sample_data.anatomy import read_request
from segmentation import asked, segmentation
from segmentation.cases import Classes
from segmentation.labels import BASE, TABLES
from tests.conftest import interrupted, run_script

SHAPE = (64, 64, 16)
TABLE = TABLES["topcow2024"]
TINY = {"image_size": 64, "image_depth": 16, "width": 2, "disc_width": 2, "fmap_max": 4, "spade_width": 4}
TINY |= {"z_dim": 4}


def write_model(path, affine=None, table=TABLE):
    """Checkpoint of a generator with random weights, as label_to_volume.py writes it."""
    torch.manual_seed(0)
    config = l2v.LabelToVolumeConfig(**TINY, device="cpu")
    G = l2v.SpadeGenerator(len(table), config.network())
    state = {"label_to_volume": {f"GE.{n}": t for n, t in G.state_dict().items()}, "step": 3}
    settings = {name: getattr(config, name) for name in l2v.NETWORK_SETTINGS}
    state["config"] = settings | {"table": "topcow2024", "ignore": None, "data": "/home/someone/scans"}
    affine = phantom.phantom_affine(SHAPE) if affine is None else affine
    state |= {"table": {str(n): name for n, name in table.items()}, "affine": affine.tolist()}
    torch.save(state | {"center": [32, 32, 8], "trained_on": ["a"], "held_out": []}, path)
    return path


def write_segmenter(path, table="topcow2024"):
    """File of a segmentation network with random weights."""
    torch.manual_seed(0)
    network = segmentation.build_network(Classes(table), (32, 32, 16), 2)
    state = {"network": network.state_dict(), "spacing": [1.24] * 3, "patch": [32, 32, 16], "width": 2}
    state |= {"table": table, "mirror": False, "fp16": False, "amp_dtype": "auto", "num_train_steps": 5}
    torch.save(state | {"trained_on": []}, path)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folder with model.pt and segmenter.pt."""
    folder = tmp_path_factory.mktemp("circles")
    write_model(folder / "model.pt")
    write_segmenter(folder / "segmenter.pt")
    return folder


def config_of(home, **settings):
    """Configuration that draws circles by name with the tiny model, unchecked."""
    given = {"checkpoint": str(home / "model.pt"), "segmenter": "None", "device": "cpu", "seed": 3}
    return l2v.LabelToVolumeConfig(**{**given, **settings})


def circle_of(number=0, seed=3, **texts):
    """Circle by name on the grid of the tiny model."""
    return asked.Circle(read_request(**texts), seed, number, False, SHAPE, Classes("topcow2024"))


def answers(monkeypatch, answer):
    """Let the segmenter answer with a function of the label map of the circle."""
    monkeypatch.setattr(asked, "checker_of", lambda config: asked.Checker.__new__(asked.Checker))
    monkeypatch.setattr(asked.Checker, "record", {"path": "stub", "sha256": "0"})
    monkeypatch.setattr(asked.Checker, "check", lambda self, c, volume: asked.check(c, answer(c)))


def without(ids, *names):
    """A label map without some arteries. Shapes: (X, Y, Z) -> the same"""
    return np.where(np.isin(ids, [n for n, name in BASE.items() if name in names]), 0, ids)


def test_one_command_gives_pairs_and_what_they_are(home, tmp_path):
    flags = {"checkpoint": home / "model.pt", "segmenter": home / "segmenter.pt", "device": "cpu", "seed": 3}
    flags |= {"anatomy": "complete, absent L-Pcom", "num": 2, "output": tmp_path / "made"}
    flags |= {"radius": "R-Pcom: 1.1"}
    run = run_script("label_to_volume.py", *(part for n, v in flags.items() for part in (f"--{n}", v)))
    assert run.returncode == 0, run.stderr
    assert "absent L-Pcom   2 of 2" in run.stdout and "of 2 volumes, mean Dice" in run.stdout
    names = sorted(path.name[:-7] for path in (tmp_path / "made").glob("*.nii.gz"))
    assert [name[:10] for name in names] == ["circle0000", "circle0001"]
    for number, name in enumerate(names):
        record = json.loads((tmp_path / "made" / f"{name}.json").read_text(encoding="utf-8"))
        told = {"variant": "complete, absent L-Pcom", "radius": "R-Pcom: 1.1"}
        assert record["anatomy"] == {"request": told, "seed": 3, "number": number, "chiral": False}
        assert record["settled"] == dict.fromkeys(record["settled"], "normal") | {"L-Pcom": "absent"}
        assert len(record["settled"]) == 7 and record["radii_mm"]["R-Pcom"] == 1.1
        row = record["check"]["segments"]["L-Pcom"]
        assert row["in_map"] is True and row["in_volume"] is (row["found"] <= asked.ABSENT * row["voxels"])
        assert record["asked_for_is_there"] is (not record["check"]["reasons"])
        label = nib.load(tmp_path / "made_labels" / f"{name}.nii.gz")
        ids, volume = np.asanyarray(label.dataobj), nib.load(tmp_path / "made" / f"{name}.nii.gz")
        assert set(np.unique(ids)) == {0, *range(1, 13)} - {9}  # not a voxel of the left Pcom
        assert np.allclose(label.affine, phantom.phantom_affine(SHAPE)) and volume.shape == SHAPE
        graph = json.loads((tmp_path / "made_graphs" / f"{name}.json").read_text(encoding="utf-8"))
        assert "L-Pcom" not in {edge["segment"] for edge in graph["edges"]}
        assert (tmp_path / "made_graphs" / f"{name}.swc").is_file()
        of_phantom = phantom.make_phantom(3, number, SHAPE, request=read_request(**told))[1]
        assert np.array_equal(ids, of_phantom)  # the label map of the phantom of this number


def test_a_volume_is_drawn_again_from_its_sidecar_alone(home, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text('variant,aneurysm\n"fetal R-PCA, absent L-A1",\nany,"Acom: 5.3"\n', encoding="utf-8")
    config = config_of(home, variants=str(table), output=str(tmp_path / "made"))
    folder = asked.generate(config, l2v.LabelModel, l2v.seeds_of)
    told = capsys.readouterr().out
    assert "there in 2 of 2 label maps" in told and "fetal R-Pcom " in told and "unchecked" in told
    assert "there aneurysm of Acom" in told
    asked.generate(config, l2v.LabelModel, l2v.seeds_of)
    assert "2 volumes are there already" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "made_labels")
    shutil.rmtree(tmp_path / "made_graphs")
    for sidecar in sorted(folder.glob("circle*.json")):
        assert json.loads(sidecar.read_text(encoding="utf-8"))["asked_for_is_there"] is None
        l2v.recreate(l2v.LabelToVolumeConfig(recreate=str(sidecar), device="cpu"))
        assert f"{sidecar.stem}.nii.gz: identical" in capsys.readouterr().out
    with pytest.raises(UserError, match="was made with another anatomy"):
        asked.generate(
            replace(config, seed=4, variants=None, anatomy="any", num=2),
            l2v.LabelModel,
            lambda c, t: [one_seed(folder)],
        )


def one_seed(folder):
    """Seed of z of the first volume of a folder."""
    return int(min(folder.glob("circle0000*.json")).stem[-6:])


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("complete", None),
        ("complete, absent L-Pcom", "L-Pcom"),
        ("complete, absent Acom", "Acom"),
        ("complete, absent R-A1", "R-A1"),
        ("complete, absent L-P1", "L-P1"),
    ],
)
def test_the_check_knows_what_is_there(variant, name):
    circle = circle_of(variant=variant)
    record = asked.check(circle, circle.ids)
    assert record["reasons"] == [] and set(record["dice"].values()) == {1.0}
    assert all(row["in_map"] and row["in_volume"] and row["asked"] for row in record["segments"].values())
    full = circle_of(variant="complete").ids  # the same subject with all of it
    if name:
        wrong = asked.check(circle, full)["reasons"]
        assert f"{name} is in the volume, asked to be absent" in wrong
        assert (
            f"{name} is not in the volume, asked to be normal"
            in (asked.check(circle_of(variant="complete"), circle.ids)["reasons"])
        )
    else:
        lost = asked.check(circle, without(circle.ids, "R-Pcom", "BA"))
        assert lost["reasons"] == ["R-Pcom is not in the volume, asked to be normal"]
        assert lost["dice"]["BA"] == 0.0 and lost["dice"]["L-Pcom"] == 1.0


def test_only_what_is_asked_for_decides_and_a_sac_is_looked_for():
    circle = circle_of(variant="absent L-Pcom", aneurysm="R-MCA: 7")
    poor = asked.check(circle, without(circle.ids, "R-Pcom", "Acom"))
    assert poor["reasons"] == [] and poor["segments"]["R-Pcom"]["in_volume"] is False
    assert poor["segments"]["aneurysm of R-MCA"]["voxels"] > 50
    flat = circle_of(variant="absent L-Pcom").ids  # the same subject without the sac
    told = asked.check(circle, flat)["reasons"]
    assert told == ["aneurysm of R-MCA is not in the volume, asked to be there"]


def test_circles_are_drawn_until_enough_pass_and_reasons_are_counted(home, tmp_path, monkeypatch, capsys):
    answers(monkeypatch, lambda c: without(c.ids, *(["R-Pcom"] if c.number in (0, asked.MOST) else [])))
    config = config_of(
        home,
        anatomy="normal R-Pcom",
        num=2,
        only_passing=True,
        output=str(tmp_path / "made"),
        segmenter="stub",
    )
    folder = asked.generate(config, l2v.LabelModel, l2v.seeds_of)
    reason = "R-Pcom is not in the volume, asked to be normal"
    assert f"rejected, {reason}: 2" in capsys.readouterr().out
    record = json.loads((folder / "acceptance.json").read_text(encoding="utf-8"))
    assert (record["drawn"], record["kept"], record["rejections"]) == (4, 2, {reason: 2})
    names = sorted(path.name[:15] for path in folder.glob("*.nii.gz"))
    assert names == ["circle0000_try2", "circle0001_seed"]
    sidecar = json.loads(next(folder.glob("circle0000*.json")).read_text(encoding="utf-8"))
    assert sidecar["accepted_by"] == asked.PASSED and sidecar["asked_for_is_there"] is True
    few = replace(config, most=3, output=str(tmp_path / "few"))
    with pytest.raises(UserError, match=r"1 of the 3 circles .* pass, 2 were asked for \(most often: R-Pcom"):
        asked.generate(few, l2v.LabelModel, l2v.seeds_of)
    for another, what in (
        ({"seed": 8}, "seed"),
        ({"anatomy": "any"}, "requests"),
        ({"num": 1}, "number, 2 of 4"),
    ):
        with pytest.raises(
            UserError, match=f"acceptance.json was made with another {what}.*: choose another"
        ):
            asked.generate(replace(config, **another), l2v.LabelModel, l2v.seeds_of)
    asked.generate(replace(few, most=5), l2v.LabelModel, l2v.seeds_of)  # one more that passes
    assert json.loads((tmp_path / "few" / "acceptance.json").read_text(encoding="utf-8"))["kept"] == 2
    killed = replace(config, output=str(tmp_path / "killed"))
    monkeypatch.setattr(asked.Passing, "passing", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asked.generate(killed, l2v.LabelModel, l2v.seeds_of)
    with pytest.raises(UserError, match=r"acceptance.json was made with another seed.*: choose another"):
        asked.generate(replace(killed, seed=8), l2v.LabelModel, l2v.seeds_of)
    with pytest.raises(UserError, match="another number, 2 of at most 8, which was stopped: choose another"):
        asked.generate(replace(killed, num=1), l2v.LabelModel, l2v.seeds_of)
    plain = replace(config, only_passing=False, output=str(tmp_path / "plain"))
    asked.generate(plain, l2v.LabelModel, l2v.seeds_of)
    told = capsys.readouterr().out
    assert "is there in 1 of 2 volumes" in told and f"1 times: {reason}" in told


def test_a_pair_replaces_neither_the_label_maps_nor_the_volumes_of_another(home, tmp_path, capsys):
    config = config_of(home, anatomy="any", num=1, segmenter="None", output=str(tmp_path / "made"))
    asked.generate(config, l2v.LabelModel, l2v.seeds_of)
    (label_map,) = (tmp_path / "made_labels").glob("*.nii.gz")
    before = label_map.read_bytes()
    with pytest.raises(UserError, match=f"{label_map.name} is a label map, no volume to go on from"):
        asked.generate(replace(config, output=str(tmp_path / "made_labels")), l2v.LabelModel, l2v.seeds_of)
    assert label_map.read_bytes() == before and not (tmp_path / "made_labels_labels").exists()
    (tmp_path / "made").rename(tmp_path / "set_labels")
    with pytest.raises(UserError, match=f"{label_map.name} is a volume, where a label map belongs"):
        asked.generate(replace(config, output=str(tmp_path / "set")), l2v.LabelModel, l2v.seeds_of)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"anatomy": "absent R-A1, absent L-A1"}, "one must feed both A2: keep one"),
        ({"anatomy": "absent X-Pcom"}, r"^--anatomy 'absent X-Pcom': the phantom knows no"),
        ({"anatomy": "any", "generate": "maps"}, "leave --generate out"),
        ({"anatomy": "any", "vary": 3}, "leave --vary out"),
        ({"anatomy": "any", "num_per_map": 3}, "give --num, not --num_per_map"),
        ({"num": 3}, "give --anatomy too, any for no variant"),
        ({"generate": "maps", "segmenter": "net.pt"}, "--segmenter is of circles by name: give --anatomy"),
        ({"anatomy": "any", "most": 9}, "--most needs --only_passing True"),
        ({"anatomy": "any", "only_passing": True}, "--only_passing needs a --segmenter"),
        (
            {"anatomy": "any", "only_passing": True, "segmenter": "s", "num": 9, "most": 3},
            "at least --most 9",
        ),
        ({"radius": "BA: 90"}, r"^--radius 'BA: 90': 90 mm, expected 0.2 to 4 mm"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(settings, text):
    with pytest.raises(UserError, match=text):
        l2v.LabelToVolumeConfig(**{"segmenter": "None", "name": "none", **settings})


def test_a_model_of_something_else_is_refused_in_one_line(home, tmp_path):
    small = write_model(tmp_path / "small.pt", affine=np.diag([0.5, 0.5, 1, 1]))
    with pytest.raises(
        UserError, match=r"small.pt draws 32 x 32 x 16 mm, but .* have 79.36 x 79.36 x 19.84 mm"
    ):
        asked.generate(config_of(home, anatomy="any", checkpoint=str(small)), l2v.LabelModel, l2v.seeds_of)
    other = write_model(tmp_path / "other.pt", table={1: "R-A", 2: "L-A"})
    with pytest.raises(
        UserError, match="has the classes R-A, L-A, but circles by name have the ids of topcow2024"
    ):
        asked.generate(config_of(home, anatomy="any", checkpoint=str(other)), l2v.LabelModel, l2v.seeds_of)
    paper = write_segmenter(tmp_path / "paper.pt", "paper")
    with pytest.raises(UserError, match="has the ids of paper, expected those of topcow2024"):
        asked.generate(config_of(home, anatomy="any", segmenter=str(paper)), l2v.LabelModel, l2v.seeds_of)
    with pytest.raises(UserError, match=r"--segmenter nowhere.pt does not exist: give a network .*, or None"):
        asked.generate(config_of(home, anatomy="any", segmenter="nowhere.pt"), l2v.LabelModel, l2v.seeds_of)


def test_the_model_that_comes_along_is_taken_where_none_is_named(home, tmp_path, monkeypatch):
    monkeypatch.setattr(asked, "MODEL", home / "model.pt")
    config = config_of(home, anatomy="any", checkpoint=None, models_dir=str(tmp_path))
    assert asked.checkpoint_of(config) == home / "model.pt"
    with pytest.raises(UserError, match="no checkpoint"):
        asked.checkpoint_of(replace(config, name="mine"))
    (tmp_path / "default").mkdir()
    own = shutil.copy(home / "model.pt", tmp_path / "default" / "model_2.pt")
    assert asked.checkpoint_of(config) == own


def test_models_of_label_maps_and_segmenters_are_made_small(home, tmp_path, capsys):
    for name in ("model", "segmenter"):
        release.main(["--checkpoint", str(home / f"{name}.pt"), "--output", str(tmp_path / f"{name}.pt")])
        size, before = (f.stat().st_size for f in (tmp_path / f"{name}.pt", home / f"{name}.pt"))
        assert size < 0.75 * before
    assert "generator of label maps of step 3" in capsys.readouterr().out
    state = read_state(tmp_path / "model.pt")
    assert "data" not in state["config"] and "held_out" not in state
    numbers = np.ascontiguousarray(circle_of().numbers.transpose(2, 0, 1))[None]
    made = [l2v.LabelModel(of / "model.pt", "cpu").draw(numbers, 13, [5]) for of in (home, tmp_path)]
    assert float((made[0] - made[1]).abs().max()) < 0.01
    predictors = [segmentation.read_model(of / "segmenter.pt", "cpu")[0] for of in (home, tmp_path)]
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    found = [predictor.probabilities(image) for predictor in predictors]
    assert np.abs(found[0] - found[1]).max() < 0.01
    torch.save({"step": 1}, tmp_path / "none.pt")
    with pytest.raises(SystemExit, match=r"none.pt is no checkpoint of stylegan2_pytorch.py"):
        release.main(["--checkpoint", str(tmp_path / "none.pt"), "--output", str(tmp_path / "x.pt")])
