"""The whole way, as docs/walkthrough.md has it: its commands, with fewer voxels and steps, in one process.

No file is copied or renamed; what is tested is what one program hands on to the next.
"""

import csv
import re
import shlex
from pathlib import Path

from volumetric import sidecars
from volumetric.runs import read_state

import nibabel as nib
import numpy as np
import pytest

import label_to_volume
import stylegan2_pytorch
from MedicalNet import evaluation
from preprocessing import preprocessing, split
from sample_data import phantom
from segmentation import experiment
from tests.conftest import ROOT

PROGRAMS = {f"{name}.py": program for name, program in (("label_to_volume", label_to_volume),)}
PROGRAMS |= {"sample_data/phantom.py": phantom, "preprocessing/preprocessing.py": preprocessing}
PROGRAMS |= {"preprocessing/split.py": split, "stylegan2_pytorch.py": stylegan2_pytorch}
PROGRAMS |= {"MedicalNet/evaluation.py": evaluation, "segmentation/experiment.py": experiment}
# What makes it quick: coarse heads that lie still need no registration, which has tests of its own.
QUICK = {"sample_data/phantom.py": ("--head_spacing", "4", "--degrees", "0", "--shift", "0")}
QUICK |= {"--to_region": (), "--generate": ("--device", "cpu"), "preprocessing/split.py": ()}
QUICK |= {"preprocessing/preprocessing.py": ("--perform_registration", "False", "--n_workers", "1")}
QUICK |= dict.fromkeys(
    ("stylegan2_pytorch.py", "label_to_volume.py"), ("--num_train_steps", "2", "--device", "cpu")
)
QUICK |= {"MedicalNet/evaluation.py": ("--bootstrap", "0", "--device", "cpu", "--cache_dir", "none")}
QUICK |= {"segmentation/experiment.py": ("--num_train_steps", "2", "--device", "cpu", "--fp16", "False")}


def commands():
    """[(script, arguments)] of the page."""
    text = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    return [(words[1], words[2:]) for words in map(shlex.split, lines) if words]


def quickened(script, arguments):
    """Arguments with those of QUICK in the place of their own."""
    more = QUICK[next((flag for flag in ("--to_region", "--generate") if flag in arguments), script)]
    kept = list(arguments)
    for flag, value in zip(more[::2], more[1::2], strict=True):
        if flag in kept:
            place = kept.index(flag)
            kept[place : place + 2] = []
        kept += [flag, value]
    return kept


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Folder in which all commands of the page were typed."""
    folder = tmp_path_factory.mktemp("walk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for script, arguments in commands():
            if script == "preprocessing/preprocessing.py" and "--data" in arguments:
                with pytest.raises(SystemExit):  # unregistered heads are flagged; accepted, they are volumes
                    PROGRAMS[script].main(quickened(script, arguments))
                flagged = [row["subject"] for row in rows("prepared/status.csv") if row["step"] == "flagged"]
                Path("prepared/accept.txt").write_text("\n".join(flagged), encoding="utf-8")
            PROGRAMS[script].main(quickened(script, arguments))
    return folder


def rows(path):
    """Rows of a table."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_walk_hands_on_what_is_known(walked):
    parts = {row["file"]: row for row in rows(walked / "split.csv")}
    of = {
        part: {r["content"] for r in parts.values() if r["part"] == part} for part in ("training", "held_out")
    }
    model = read_state(walked / "models" / "walk" / "model_0.pt")
    assert set(model["trained_on"]) == of["training"] and len(of["training"]) == 7
    assert set(sidecars.trained_on(walked / "results" / "walk" / "generated" / "model_0")) == of["training"]
    pairs = read_state(walked / "models" / "pairs" / "model_0.pt")
    assert of["training"] <= set(pairs["trained_on"]) and not of["held_out"] & set(pairs["trained_on"])


def test_label_maps_lie_on_the_volumes_that_they_came_with(walked):
    for path in sorted((walked / "prepared" / "volumes").glob("*.nii.gz")):
        volume, labels = nib.load(path), nib.load(walked / "prepared" / "labels" / path.name)
        assert volume.shape == labels.shape == (32, 32, 8)
        np.testing.assert_allclose(labels.affine, volume.affine, atol=1e-4)
        inside = np.asarray(labels.dataobj) > 0
        array = volume.get_fdata()
        assert inside.any() and array[inside].mean() > 1.3 * array[~inside].mean(), path.name


def test_what_is_drawn_is_of_training_subjects_and_the_test_is_not(walked):
    drawn = sorted(p.name for p in (walked / "drawn_labels").glob("*.nii.gz"))
    training = {
        r["file"].removesuffix(".nii.gz") for r in rows(walked / "split.csv") if r["part"] == "training"
    }
    assert len(drawn) == 7 and {name.split("_seed")[0] for name in drawn} == training
    assert (walked / "experiment" / "report.html").exists()
    assert (walked / "evaluation" / "metrics.json").exists()


def test_label_maps_of_test_subjects_are_refused_by_their_content(walked, monkeypatch, capsys):
    monkeypatch.chdir(walked)
    maps = [(script, args) for script, args in commands() if "--generate" in args and "--split" in args]
    ((_, arguments),) = maps
    cheat = [a for a in quickened("label_to_volume.py", arguments) if a not in ("--split", "split.csv")]
    label_to_volume.main([a.replace("drawn", "cheat") for a in cheat])
    (train,) = [args for script, args in commands() if script == "segmentation/experiment.py"]
    train = [a.replace("drawn", "cheat").replace("experiment", "other") for a in train]
    with pytest.raises(SystemExit, match=r"label map.* of test subject"):
        experiment.main(quickened("segmentation/experiment.py", train))
