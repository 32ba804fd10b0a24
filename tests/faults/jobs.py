"""Tiny jobs that faults are done to."""

from pathlib import Path

from volumetric.runs import find_checkpoint, read_state

import nibabel as nib
import numpy as np
import torch

import stylegan2_pytorch as sg
from tests.faults.children import run

TINY = ["--image_size", "16", "--image_depth", "4", "--network_capacity", "1", "--fmap_max", "4"]
TIMES = {"seconds", "volumes_per_second"}  # columns of metrics.csv that no two runs share


def make_volumes(folder, number=6, shape=(16, 16, 4), seed=0):
    """Folder of noise volumes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(number):
        image = nib.Nifti1Image(rng.random(shape, dtype=np.float32), np.eye(4))
        nib.save(image, folder / f"{n}.nii.gz")
    return folder


def training(folder, name, steps, *more):
    """Command line of a tiny training below a folder, on the volumes in it."""
    if not (folder / "volumes").exists():
        make_volumes(folder / "volumes")
    flags = [
        "--data",
        folder / "volumes",
        "--results_dir",
        folder / "results",
        "--models_dir",
        folder / "models",
    ]
    flags += [*TINY, "--name", name, "--num_train_steps", steps, "--batch_size", 2, "--device", "cpu"]
    flags += ["--gradient_accumulate_every", 1, "--num_image_tiles", 1, "--evaluate_every", 3, *more]
    return list(map(str, flags))


def finished(folder, name, steps, *more):
    """Folder of the checkpoints of a tiny training that ran through."""
    ended = run(lambda: sg.main(training(folder, name, steps, *more)), folder / "log")
    assert ended.status == 0, ended.text
    return folder / "models" / name


def difference(one, other):
    """What first differs between two runs' newest checkpoints, or None if they are equal bit for bit."""
    states = [read_state(find_checkpoint(folder)) for folder in (one, other)]
    return first_difference(*({k: s[k] for k in s if k not in ("command", "config")} for s in states))


def first_difference(one, other, place=""):
    """Path to the first leaf that differs between two nested states, or None."""
    if isinstance(one, torch.Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
        return None if same else place
    if isinstance(one, dict | list | tuple):
        if type(one) is not type(other) or len(one) != len(other):
            return place
        keys = one if isinstance(one, dict) else range(len(one))
        found = (first_difference(one[k], other[k], f"{place}.{k}") for k in keys)
        return next((f for f in found if f is not None), None)
    return None if one == other or one != one else place


def table(folder, name):
    """Rows of a run's metrics.csv without the times."""
    lines = (folder / "results" / name / "metrics.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split(",") for line in lines]
    kept = [n for n, column in enumerate(rows[0]) if column not in TIMES]
    return [[row[n] for n in kept] for row in rows]


def whole(folder):
    """True if every checkpoint in a folder can be read."""
    return all(read_state(path) for path in Path(folder).glob("model_*.pt"))
