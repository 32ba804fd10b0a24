"""A release: what it refuses, what it writes, and what it says of a folder that was received."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from volumetric.collection import contents_of, volumes_in
from volumetric.files import file_digest
from volumetric.released import generator_of, read_safetensors, write_safetensors
from volumetric.runs import read_state
from volumetric.sidecars import models_of

import pytest
import torch

import stylegan2_pytorch as sg
from sample_data import release as pickled
from tests.conftest import ROOT, tiny_flags, write_data
from trust import release, release_files

STATED = {
    "name": "Phantom circles",
    "licence": "CC BY 4.0",
    "consent": "none is needed: phantoms",
    "contact": "nobody@example.org",
    "intended use": "trying things out",
    "training data": "phantoms",
}


def argv_of(flags):
    """{"name": value} as a command line."""
    return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]


def write_statement(path, stated):
    """CSV of --statement."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("field", "value"), *stated.items()])
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A checkpoint of two steps, its .pt, four volumes of it, and a statement."""
    folder = tmp_path_factory.mktemp("release")
    data = write_data(folder)
    sg.main(tiny_flags(data, folder, num_train_steps=2))
    checkpoint = folder / "models" / "t" / "model_0.pt"
    pickled.main(argv_of({"checkpoint": checkpoint, "output": folder / "small.pt"}))
    generate(checkpoint, folder / "made")
    write_statement(folder / "statement.csv", STATED)
    return folder


def generate(checkpoint, output, **more):
    """Four volumes of a checkpoint by the trainer's command."""
    flags = {"generate": True, "checkpoint": checkpoint, "output": output, "num_generate": 4, "seed": 0}
    sg.main(argv_of(flags | {"device": "cpu"} | more))


def write_proofs(home, folder, **other):
    """replicas.json and membership.json, as their programs write them, of the volumes in made/."""
    generated = volumes_in(home / "made", "--generated")
    sets = {"training": volumes_in(home / "data", "--training"), "held_out": [], "generated": generated}
    record = {
        "verdict": "passed",
        "reasons": [],
        "contents": contents_of(sets),
        "models": models_of(generated),
    }
    record |= {"n": {"generated": 4, "training": 6, "held_out": 0}, "settings": {"training": str(home)}}
    gate = record | {"flagged": [], "explained_by_chance": 0, "controls": {}}
    test = record | {"auc": 0.5, "power": {"share": 0.05, "flagged": 1.0}}
    for name, found in (("replicas", gate), ("membership", test)):
        (folder / name).mkdir(parents=True)
        found |= other.get(name, {})
        (folder / name / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    return {"replicas": folder / "replicas", "membership": folder / "membership"}


@pytest.fixture
def flags(home, tmp_path):
    """Flags of a release that is as it must be."""
    for name in release.PACKAGES:
        pytest.importorskip(name, reason=f"{name} is not installed: pip install .[release]")
    given = {"checkpoint": home / "models" / "t" / "model_0.pt", "volumes": home / "made"}
    given |= {"statement": home / "statement.csv", "output": tmp_path / "out"}
    return given | write_proofs(home, tmp_path)


@pytest.fixture(scope="module")
def made(home, tmp_path_factory):
    """A release of the model and its four volumes."""
    for name in release.PACKAGES:
        pytest.importorskip(name, reason=f"{name} is not installed: pip install .[release]")
    folder = tmp_path_factory.mktemp("made")
    given = {"checkpoint": home / "models" / "t" / "model_0.pt", "volumes": home / "made"}
    given |= {"statement": home / "statement.csv", "output": folder / "out"}
    release.main(argv_of(given | write_proofs(home, folder)))
    return folder / "out"


@pytest.mark.parametrize("kind", ["enhanced", "classic"])
def test_volumes_are_also_written_as_dicom_on_request(flags, kind):
    import pydicom

    release.main(argv_of(flags | {"dicom": kind}))
    folder = Path(flags["output"]) / "dicom"
    files = sorted(path for path in folder.rglob("*.dcm"))
    volumes = sorted((Path(flags["output"]) / "volumes" / "generated").rglob("*.nii.gz"))
    assert len(files) == len(volumes) * (1 if kind == "enhanced" else 4)
    assert "synthetic" in pydicom.dcmread(files[0]).SeriesDescription.lower()
    release.main(["--verify", str(flags["output"])])


# ---- the model without pickles


def test_safetensors_are_the_pickle_bit_for_bit(home, tmp_path):
    pytest.importorskip("safetensors")
    path, pickle = tmp_path / "m.safetensors", home / "small.pt"
    write_safetensors(generator_of(read_state(home / "models" / "t" / "model_0.pt")), path)
    one, other = read_state(pickle), read_state(path)
    assert one.keys() == other.keys() and one["config"] == other["config"]
    assert one["GAN"].keys() == other["GAN"].keys()
    for name, tensor in one["GAN"].items():
        assert tensor.dtype == other["GAN"][name].dtype == torch.float16
        assert torch.equal(tensor, other["GAN"][name])
    assert [one[name] for name in ("step", "affine", "trained_on")] == [
        other[name] for name in ("step", "affine", "trained_on")
    ]
    for kind, checkpoint in (("a", pickle), ("b", path)):
        generate(checkpoint, tmp_path / kind)
    names = sorted(p.name for p in (tmp_path / "a").iterdir() if p.suffix in (".gz", ".png"))
    assert len(names) == 9
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_kernels_with_channels_last_and_shared_tensors_can_be_written(home, tmp_path):
    pytest.importorskip("safetensors")
    state = generator_of(read_state(home / "small.pt"))
    name = next(n for n, t in state["GAN"].items() if t.ndim == 5)
    kernel = state["GAN"][name].contiguous(memory_format=torch.channels_last_3d)
    state["GAN"] |= {name: kernel, "GE.again": kernel}
    write_safetensors(state, tmp_path / "m.safetensors")
    read = read_safetensors(tmp_path / "m.safetensors")["GAN"]
    assert torch.equal(read[name], kernel) and torch.equal(read["GE.again"], kernel)


@pytest.mark.parametrize("how", ["cut off", "of another program"])
def test_safetensors_that_cannot_be_used_get_one_line(tmp_path, how):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "m.safetensors"
    safetensors.save_file({"weight": torch.zeros(4)}, path)
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"m\.safetensors (cannot be read|is of another)") as error:
        sg.ModelLoader(checkpoint=path, device="cpu")
    assert "\n" not in str(error.value)


# ---- what is refused


REFUSED = {
    "no gate": (
        lambda f: f.pop("replicas"),
        "Give --replicas DIR: nothing is released before trust/replicas",
    ),
    "no test": (lambda f: f.pop("membership"), "Give --membership DIR: nothing is released before"),
    "no statement": (lambda f: f.pop("statement"), "Give --statement FILE, a CSV of field,value with name"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_without_a_proof_nothing_is_released(flags, what):
    change, text = REFUSED[what]
    change(flags)
    refused(flags, text)


def refused(flags, text):
    """The release is refused in one line, and nothing is written."""
    with pytest.raises(SystemExit) as stop:
        release.main(argv_of(flags))
    assert text in str(stop.value) and "\n" not in str(stop.value)
    assert not list(flags["output"].parent.glob("*out*")) and not list(flags["output"].parent.glob(".part*"))


@pytest.mark.parametrize("name", ["replicas", "membership"])
def test_a_proof_of_another_model_or_that_failed_is_refused(flags, home, tmp_path, name):
    for n, (other, text) in enumerate(
        (
            ({"models": ["f" * 64]}, f"is of another model ({'f' * 12}, not "),
            ({"models": [""]}, "is of another model (volumes without a sidecar, not "),
            (
                {"verdict": "failed", "reasons": ["members are told"]},
                "has not passed: failed; members are told. This",
            ),
            ({"verdict": "inconclusive"}, "has not passed: inconclusive. This model is"),
            (
                {"contents": {"training": ["x"], "held_out": [], "generated": []}},
                "searched 1 volumes that the mod",
            ),
        )
    ):
        refused(flags | write_proofs(home, tmp_path / str(n), **{name: other}), text)
    record = json.loads((flags[name] / f"{name}.json").read_text(encoding="utf-8"))
    del record["models"]
    (flags[name] / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    refused(flags, f"cannot be read (KeyError 'models'): run trust/{name}.py on volumes of this model")


def test_withheld_foreign_and_unseen_volumes_are_refused(flags, home, tmp_path):
    volumes = volumes_in(home / "made", "--volumes")
    flagged = {"flagged": [{"content": volumes[1].content}]}
    text = f"1 of the 4 volumes in --volumes {home / 'made'} were withheld by the replica gate, the first "
    refused(flags | write_proofs(home, tmp_path / "a", replicas=flagged), f"{text}{volumes[1].path}")
    folder = tmp_path / "volumes"
    shutil.copytree(home / "made", folder)
    generate(flags["checkpoint"], folder, seed=9, num_generate=1)
    refused(flags | {"volumes": folder}, "--replicas did not look at 1 of the 5 volumes in --volumes")
    for path in folder.glob("seed000009*"):
        path.unlink()
    (folder / "seed000000.json").unlink()
    refused(flags | {"volumes": folder}, "seed000000.nii.gz has no seed000000.json beside it")
    shutil.copyfile(folder / "seed000001.json", folder / "seed000000.json")
    refused(flags | {"volumes": folder}, "is not the volume that ")
    sidecar = json.loads((folder / "seed000001.json").read_text(encoding="utf-8"))
    sidecar["checkpoint"]["sha256"] = "0" * 64
    (folder / "seed000000.json").write_text(json.dumps(sidecar), encoding="utf-8")
    refused(flags | {"volumes": folder}, "seed000000.nii.gz is of another model (000000000000, not ")


@pytest.mark.parametrize("field", ["licence", "consent", "contact", "intended use"])
def test_what_is_not_stated_is_asked_for(flags, tmp_path, field):
    for value in (None, "TODO"):
        stated = {n: v for n, v in (STATED | {field: value}).items() if v is not None}
        own = write_statement(tmp_path / "own.csv", stated)
        refused(flags | {"statement": own}, f"does not state {field}: add a line for each.")
    own = write_statement(tmp_path / "own.csv", STATED | {"license": "MIT"})
    refused(flags | {"statement": own}, "has the field 'license', expected one of name, licence, consent")


def test_missing_packages_are_asked_for_by_name(flags, monkeypatch):
    monkeypatch.setattr(release, "PACKAGES", ("numpy", "no_such_package"))
    refused(flags, "A release needs no_such_package: pip install no_such_package.")


# ---- what is written


def test_what_the_package_reads_beside_its_modules_is_in_the_wheel():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert release_files.CARD.is_file() and f'trust = ["{release_files.CARD.name}", ' in text
    assert "Caveats and recommendations" in release_files.sections_of_card()


def test_a_release_holds_no_training_volume_and_no_path(made, home):
    assert {path.name for path in made.iterdir()} == {
        *("README.md", "configs", "croissant.json", "evidence.json", "manifest.json"),
        *("model.safetensors", "volumes", "volumes.csv"),
    }
    known = [volume.content for volume in volumes_in(home / "data", "--training")]
    for path in (path for path in made.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        assert not any(text.encode() in raw for text in [*known, str(home), str(ROOT)]), path
    assert not sg.ModelLoader(checkpoint=made / "model.safetensors", device="cpu").trained_on


def test_card_is_read_by_the_hub(made):
    from huggingface_hub import ModelCard

    card = ModelCard.load(made / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "stylegan2-pytorch-3d"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"replica-gate-flagged": 0, "membership-auc": 0.5}
    for text in (
        "# Phantom circles",
        "none is needed: phantoms",
        "- Out of scope: diagnosis",
        "8 x 8 x 4 voxels",
    ):
        assert text in card.text
    assert "](docs/" not in card.text and "phantom model that comes along" not in card.text


def test_data_set_is_read_by_croissant(made):
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    data = mlcroissant.Dataset(jsonld=str(made / "croissant.json"))
    assert not data.metadata.issues.report() and data.metadata.data_biases
    rows = list(data.records("volumes"))
    assert len(rows) == 4
    for row in rows:
        path = made / row["volumes/file"].decode()
        assert (
            row["volumes/sha256"].decode() == file_digest(path)
            and path.stat().st_size == row["volumes/bytes"]
        )


def test_data_set_is_a_bids_derivative_without_participants(made, home):
    about = json.loads((made / "volumes" / "dataset_description.json").read_text(encoding="utf-8"))
    assert about["DatasetType"] == "derivative" and about["License"] == "CC-BY-4.0"
    assert about["GeneratedBy"][0]["Name"].startswith("3D StyleGAN2") and about["SourceDatasets"]
    assert not [path for path in made.rglob("*") if path.name.startswith(("sub-", "participants"))]
    (path, *_) = sorted((made / "volumes" / "generated").glob("*.nii.gz"))
    assert path.read_bytes() == (home / "made" / path.name).read_bytes()
    sidecar = json.loads(path.with_name("seed000000.json").read_text(encoding="utf-8"))
    assert sidecar["checkpoint"]["path"] == "model_0.pt"
    assert sidecar["released_model"]["sha256"] == file_digest(made / "model.safetensors")


def test_monai_bundle_generates_the_same_bytes(made, home, tmp_path):
    metadata = json.loads((made / "configs" / "metadata.json").read_text(encoding="utf-8"))
    needed = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description")
    needed += ("required_packages_version", "authors", "copyright", "network_data_format")  # of the schema
    assert metadata.keys() >= set(needed)
    generate(home / "small.pt", tmp_path / "ours")
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", made, "--device", "cpu"]
    command += ["--meta_file", made / "configs" / "metadata.json"]
    command += ["--config_file", made / "configs" / "inference.json", "--output_dir", tmp_path / "theirs"]
    where = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=where, capture_output=True, encoding="utf-8", timeout=1800
    )
    assert run.returncode == 0, run.stderr
    for path in (tmp_path / "ours").glob("*.nii.gz"):
        assert path.read_bytes() == (tmp_path / "theirs" / path.name).read_bytes()
    assert len(list((tmp_path / "theirs").glob("*.nii.gz"))) == 4


def test_a_scorecard_must_be_of_this_release(flags, home, tmp_path):
    found = {name: [] for name in ("congruence", "coverage", "comprehension")}
    found["congruence"] = [
        {"state": "", "text": "FID 12.3, MD 0.0042"},
        {"state": "bad", "text": "No: blurred."},
    ]
    contents = contents_of({"released": volumes_in(home / "made", "--volumes")})
    path = tmp_path / "scorecard.json"
    path.write_text(json.dumps({"criteria": found, "contents": {"released": ["x"]}}), encoding="utf-8")
    refused(flags | {"scorecard": path}, "is of another release: run trust/scorecard.py on this one")
    path.write_text(json.dumps({"criteria": found, "contents": contents}), encoding="utf-8")
    release.main(argv_of(flags | {"scorecard": path}))
    text = (flags["output"] / "README.md").read_text(encoding="utf-8")
    assert "FID 12.3, MD 0.0042; No: blurred." in text and "metric" in text and "value: 0.0042" in text


# ---- a folder that was received


def test_a_received_folder_is_compared_with_its_manifest(made, tmp_path, capsys):
    folder = tmp_path / "received"
    shutil.copytree(made, folder)
    release.main(["--verify", str(folder)])
    assert "received holds the 18 files of its manifest, unchanged." in capsys.readouterr().out
    model = folder / "model.safetensors"
    raw = bytearray(model.read_bytes())
    raw[-1] ^= 1
    model.write_bytes(raw)
    (folder / "volumes" / "generated" / "seed000001.nii.gz").unlink()
    (folder / "volumes" / ".hidden").write_text("x", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        release.main(["--verify", str(folder)])
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines()[:3] == [
        "changed: model.safetensors",
        "missing: volumes/generated/seed000001.nii.gz",
        "added: volumes/.hidden",
    ]
    (folder / "manifest.json").unlink()
    with pytest.raises(SystemExit, match=r"has no manifest\.json: it is no release"):
        release.main(["--verify", str(folder)])


def test_the_same_release_is_not_written_twice(flags):
    flags["output"].mkdir()
    with pytest.raises(SystemExit, match="is there: give the name of a new folder"):
        release.main(argv_of(flags))
    assert not list(flags["output"].iterdir())
