"""CoW_generator.py --accept: conditions, what is kept and why, what the selection does, marks, messages."""

import json
import math

from volumetric.cli import UserError

import numpy as np
import pytest
import torch

import CoW_generator as cow
import stylegan2_pytorch as sg
from MedicalNet import acceptance
from MedicalNet.acceptance import Condition, Spread, parse_conditions
from tests.conftest import interrupted, random_array, tiny_flags, write_volume


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Checkpoint of a tiny model."""
    folder = tmp_path_factory.mktemp("model")
    for n in range(4):
        write_volume(folder / "data" / f"v{n}.nii.gz", random_array(n))
    sg.main([str(f) for f in tiny_flags(folder / "data", folder, num_train_steps=1)])
    return str(folder / "models" / "t" / "model_0.pt")


@pytest.fixture
def make(checkpoint, tmp_path):
    """Function that generates with the tiny model, and returns the folder."""

    def run(folder="gated", **settings):
        fixed = {"checkpoint": checkpoint, "device": "cpu", "seed": 42}
        return cow.generate(
            cow.GenerateConfig(**{"save_directory": str(tmp_path / folder), **fixed, **settings})
        )

    return run


@pytest.fixture
def measured(monkeypatch):
    """The volumes drawn have 5, 1, 4, 2, 6, 3 components, and so on, and each a tenth of that in ml."""
    drawn, components = [], [5, 1, 4, 2, 6, 3]

    def measures_of(array, affine):
        assert array.shape == (8, 8, 4) and affine.shape == (4, 4)
        drawn.append(components[len(drawn) % 6])
        found = dict.fromkeys(acceptance.MEASURES, math.nan)
        return found | {"components": float(drawn[-1]), "vessel_ml": drawn[-1] / 10}

    monkeypatch.setattr(acceptance, "measures_of", measures_of)
    return drawn


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def seeds(folder):
    """Seeds of the volumes in a folder."""
    return sorted(int(path.name[4:10]) for path in folder.glob("seed*.nii.gz"))


# ---- conditions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("components<=3", [Condition("components", most=3)]),
        (" vessel_ml >= .5 ", [Condition("vessel_ml", least=0.5)]),
        ("asymmetry -0.2..0.2", [Condition("asymmetry", -0.2, 0.2)]),
        ("branches 3..3", [Condition("branches", 3, 3)]),
        (
            "components<=9, radius_mm>=1e-1, components>=2",
            [Condition("components", 2, 9), Condition("radius_mm", 0.1)],
        ),
    ],
)
def test_conditions(text, expected):
    assert parse_conditions(text) == expected
    assert parse_conditions(", ".join(map(str, expected))) == expected


def test_reasons():
    condition = Condition("vessel_ml", 0.8, 2.5)
    assert [condition.reason(x) for x in (0.8, 2.5)] == [None, None]
    assert condition.reason(0.79) == "vessel_ml < 0.8" and condition.reason(3) == "vessel_ml > 2.5"
    assert Condition("radius_mm", most=9).reason(math.nan) == "radius_mm is undefined: no vessels"


WRONG = {
    "unknown": ({"accept": "component<=3"}, "names 'component', expected one of components, vessel_ml"),
    "no condition": (
        {"accept": "components<3"},
        "--accept has 'components<3', expected name<=x, name>=x or name a..b",
    ),
    "empty part": ({"accept": "components<=3,"}, "--accept has '', expected name<=x"),
    "empty": ({"accept": " "}, "--accept is empty"),
    "backwards": ({"accept": "vessel_ml 2..1"}, "cannot be met, no volume has vessel_ml 2..1"),
    "two": ({"accept": "components<=3, components>=5"}, "no volume has components 5..3"),
    "between": ({"accept": "components 2.2..2.8"}, "is a whole number, 0 or more"),
    "negative": ({"accept": "vessel_ml<=-1"}, "is 0 or more"),
    "share": ({"accept": "saturated>=2"}, "is between 0 and 1"),
    "mode": (
        {"accept": "branches<=3", "mode": "truncation"},
        "--accept is for --mode normal, got --mode truncation",
    ),
    "seeds": ({"accept": "branches<=3", "seeds": "1-3"}, "--accept draws seeds from --seed on, got --seeds"),
    "few": (
        {"accept": "branches<=3", "most": 3},
        "--most 3 volumes cannot have 4 that pass: give at least --most 4",
    ),
    "alone": ({"most": 3}, "--most needs --accept"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_mistakes_get_one_line_before_any_work(tmp_path, kind):
    settings, text = WRONG[kind]
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as stop:
        cow.main([*flags, "--save_directory", str(tmp_path / "out")])
    assert text in str(stop.value.code) and len(str(stop.value.code).splitlines()) == 1
    assert not (tmp_path / "out").exists()


# ---- what is measured


def test_measures_are_those_of_the_evaluation():
    array = np.zeros((24, 24, 12), np.float32)
    array[4:7, 4:20, 4:7] = 1  # a bar of 3 x 16 x 3 voxels on the left, if the first axis is to the right
    found = acceptance.measures_of(array, np.diag([0.5, 0.5, 0.5, 1]))
    assert found["components"] == 1 and found["asymmetry"] == 1
    assert found["vessel_ml"] == pytest.approx(144 * 0.125 / 1000)
    assert found["saturated"] == pytest.approx(144 / array.size)
    none = acceptance.measures_of(0 * array, np.eye(4))
    assert (
        none["components"] == 0 and math.isnan(none["radius_mm"]) and list(none) == list(acceptance.MEASURES)
    )


def test_spread_is_the_variance_of_all_at_once():
    volumes = np.random.default_rng(0).random((5, 1, 2, 3, 4))
    spread = Spread()
    assert spread.variance is None
    for volume in volumes:
        spread.add(volume)
    assert spread.variance == pytest.approx(volumes.var(axis=0, ddof=1).mean())


# ---- the gate


@pytest.mark.parametrize("batch_size", [2, 4])
def test_kept_volumes_are_those_of_the_same_seeds_without_a_gate(make, measured, batch_size):
    gated = make(num_generate=2, accept="components<=2", batch_size=batch_size)
    assert seeds(gated) == [43, 45]
    assert measured == [5, 1, 4, 2]  # no volume more, whatever the batch
    plain = make("plain", num_generate=4)
    files = [path.relative_to(gated) for path in gated.rglob("seed*") if path.suffix != ".json"]
    assert len(files) == 2 * 4  # volume, picture, style, noise
    for file in files:
        assert (gated / file).read_bytes() == (plain / file).read_bytes()
    assert not (plain / "acceptance.json").exists() and (gated / "contact_sheet.png").exists()
    for seed in (43, 45):
        with_mark, without = (read(folder / f"seed0000{seed}.json") for folder in (gated, plain))
        assert with_mark.pop("accepted_by") == "components<=2"
        assert with_mark.pop("measures")["components"] <= 2
        for record in (with_mark, without):
            record["position"] = record["recipe"]["position"] = None
        assert with_mark == without


def test_what_the_selection_did_is_told(make, measured, capsys):
    folder = make(num_generate=2, accept="components 2..3, vessel_ml<=0.55")
    record = read(folder / "acceptance.json")
    assert (record["drawn"], record["kept"], record["asked_for"], record["most"]) == (6, 2, 2, 8)
    assert record["rejections"] == {"components > 3": 3, "components < 2": 1, "vessel_ml > 0.55": 1}
    assert [row["seed"] for row in record["accepted"]] == [45, 47]
    assert [(row["seed"], row["reasons"]) for row in record["rejected"]] == [
        (42, ["components > 3"]),
        (43, ["components < 2"]),
        (44, ["components > 3"]),
        (46, ["components > 3", "vessel_ml > 0.55"]),
    ]
    spread = record["spread"]["components"]
    assert spread["drawn"] == {"n": 6, "mean": 3.5, "std": pytest.approx(3.5**0.5)}
    assert spread["kept"] == {"n": 2, "mean": 2.5, "std": pytest.approx(0.5**0.5)}
    assert record["spread"]["radius_mm"]["drawn"] == {"n": 0, "mean": None, "std": None}
    volumes = [cow.load_with_header(folder / f"seed0000{s}.nii.gz")[0].get_fdata() for s in (45, 47)]
    assert record["voxel_variance"]["kept"] == pytest.approx(np.var(volumes, axis=0, ddof=1).mean(), rel=1e-4)
    said = capsys.readouterr().out
    assert "6 volumes were drawn, 2 kept (33%) by components 2..3, vessel_ml<=0.55." in said
    assert "rejected, components > 3: 3" in said and "a selection, no sample" in said


def test_a_quota_that_is_not_met_fails_and_keeps_what_passed(make, measured, checkpoint, tmp_path):
    flags = ["--checkpoint", checkpoint, "--device", "cpu", "--seed", "42", "--num_generate", "2"]
    flags += ["--save_directory", str(tmp_path / "gated"), "--accept", "components<=1", "--most", "5"]
    with pytest.raises(SystemExit) as stop:
        cow.main(flags)
    text = str(stop.value.code)
    assert "1 of the 5 volumes that were drawn pass --accept, 2 were asked for" in text
    assert "(most often: components > 1): raise --most" in text and len(text.splitlines()) == 1
    folder = tmp_path / "gated" / "normal"
    assert seeds(folder) == [43] and read(folder / "acceptance.json")["kept"] == 1
    measured.clear()
    make(num_generate=2, accept="components<=1", most=9)  # goes on
    assert seeds(folder) == [43, 49] and read(folder / "acceptance.json")["drawn"] == 8


def test_nothing_passes(make, measured):
    with pytest.raises(UserError, match=r"^0 of the 8 volumes"):
        make(num_generate=2, accept="components>=7")


def test_the_same_command_again_writes_what_is_missing(make, measured, tmp_path, capsys):
    command = {"num_generate": 2, "accept": "components<=2"}
    folder = make(**command)
    first = read(folder / "acceptance.json")
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("seed*")}
    (folder / "seed000045.nii.gz").unlink()
    measured.clear()
    make(**command)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("seed*")}
    assert {name[:10] for name in before if before[name] != after[name]} == {"seed000045"}
    assert read(folder / "acceptance.json") == first
    assert "1 volumes are there already" in capsys.readouterr().out


def test_a_folder_holds_one_selection(make, measured):
    make(num_generate=2, accept="components<=2")
    with pytest.raises(UserError, match=r"made with another accepted_by: choose another --save_directory"):
        make(num_generate=2, accept="components<=3")
    with pytest.raises(UserError, match=r"made with another recipe: choose another"):
        make(num_generate=2, accept="components<=2", seed=43)
    with pytest.raises(UserError, match=r"made with another number, 2 of 4 drawn: choose another"):
        make(num_generate=1, accept="components<=2")
    with pytest.raises(UserError, match=r"seed000043\.json was made with another accepted_by"):
        make(num_generate=2)  # no sample among a selection
    make("plain", num_generate=2)
    with pytest.raises(UserError, match=r"seed000042\.json was made with another accepted_by"):
        make("plain", num_generate=2, accept="components<=2")
    with pytest.raises(UserError, match=r"passed conditions, as acceptance\.json says, and takes no others"):
        make(num_generate=2, seed=60)  # nor beside one, of other names
    with pytest.raises(UserError, match=r"that no conditions selected, as seed000042\.json: choose another"):
        make("plain", num_generate=2, accept="components<=2", seed=60)
    assert not (make("plain", num_generate=2) / "acceptance.json").exists()


def test_a_file_of_another_program_is_in_no_way(make, measured, tmp_path):
    (tmp_path / "gated" / "normal").mkdir(parents=True)
    (tmp_path / "gated" / "normal" / "notes.json").write_text("[1", encoding="utf-8")
    assert seeds(make(num_generate=2, accept="components<=2")) == [43, 45]


def test_a_run_that_was_killed_is_not_mixed_with_another(make, measured, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(acceptance.Gate, "passing", interrupted)
        make(num_generate=2, accept="components<=2")
    with pytest.raises(UserError, match=r"acceptance.json was made with another accepted_by: choose another"):
        make(num_generate=2, accept="components<=3")
    with pytest.raises(UserError, match=r"another number, 2 of at most 8, which was stopped: choose another"):
        make(num_generate=1, accept="components<=2")
    assert seeds(make(num_generate=2, accept="components<=2")) == [43, 45]


def test_a_selection_that_grows_is_unfinished_until_it_ends(make, measured, monkeypatch):
    """Killed, its file must not go on saying that the smaller one, of which it tells, is all there is."""
    folder = make(num_generate=1, accept="components<=2")
    measured.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(acceptance.Gate, "record", interrupted)
        make(num_generate=2, accept="components<=2")
    record = read(folder / "acceptance.json")
    assert seeds(folder) == [43, 45] and not record["finished"]
    assert (record["kept"], record["asked_for"]) == (1, 2)
    measured.clear()
    make(num_generate=2, accept="components<=2")
    record = read(folder / "acceptance.json")
    assert record["finished"] and (record["kept"], record["drawn"]) == (2, 4)


def test_recreate_of_a_kept_volume(make, measured, capsys):
    folder = make(num_generate=1, accept="components<=2")
    cow.recreate(cow.GenerateConfig(recreate=str(folder / "seed000043.json"), device="cpu"))
    assert "seed000043.nii.gz: identical" in capsys.readouterr().out


def test_the_model_that_comes_along(tmp_path):
    """Its first volume has vessels, and is measured as it is written."""
    torch.set_num_threads(1)
    config = {"save_directory": str(tmp_path), "device": "cpu", "num_generate": 1, "picture_format": "none"}
    folder = cow.generate(cow.GenerateConfig(**config, accept="vessel_ml 0.5..5, radius_mm 0.3..3"))
    sidecar = read(folder / "seed000000.json")
    image, header = cow.load_with_header(folder / "seed000000.nii.gz")
    again = acceptance.measures_of(image.get_fdata(dtype=np.float32), cow.affine_of(image, header))
    assert sidecar["measures"] == pytest.approx(again, rel=1e-6)
