"""Tiny pairs of a volume and its label map, and what is trained on them in a second."""

import numpy as np

from segmentation import cases, experiment, segmentation
from segmentation.labels import save_labels
from tests.conftest import write_volume

AFFINE = np.diag([0.6, 0.6, 0.8, 1])
SHAPE = (16, 16, 8)
CLASSES = cases.Classes("topcow2024")


def one_pair(seed):
    """A volume with a bright bar on each side, right and left ICA (4 and 6), and its label map."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    row, top = 3 + seed % 10, 5 + seed // 10 % 3  # no label map is that of another seed below 30
    labels[11:14, row - 2 : row + 2, 2:top] = 4  # x grows to the right
    labels[2:5, row - 2 : row + 2, 2:top] = 6
    array = rng.normal(size=SHAPE) * 0.1 + (labels == 4) + 2 * (labels == 6)
    return array.astype(np.float32), labels


def write_pairs(folder, number, first=0, kind="", affine=AFFINE):
    """Folders volumes and labels with so many pairs."""
    volumes, maps = folder / f"{kind}volumes", folder / f"{kind}labels"
    maps.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + number):
        array, labels = one_pair(n)
        write_volume(volumes / f"case{n}.nii.gz", array, affine)
        save_labels(labels, affine, maps / f"case{n}.nii.gz", "topcow2024")
    return volumes, maps


def small_config(folder, **settings):
    """Configuration of a tiny network."""
    given = {"mode": "train", "model": str(folder / "net.pt"), "width": 2, "fp16": False, "device": "cpu"}
    given |= {"data": str(folder / "volumes"), "labels": str(folder / "labels"), "num_train_steps": 4}
    return segmentation.SegmentationConfig(**{**given, "output": str(folder / "run"), **settings})


def new_segmenter(folder, **settings):
    config = small_config(folder, **settings)
    folders = {"data": config.data, "labels": config.labels}
    return segmentation.Segmenter(config, *cases.read_cases(folders, CLASSES))


def experiment_config(folder, **settings):
    """Configuration of a tiny experiment, whose folders are made."""
    given = {"output": str(folder / "out"), "seeds": (0,), "num_train_steps": 2, "width": 2, "fp16": False}
    for kind, first in (("real", 0), ("synthetic", 10), ("test", 20)):
        volumes, maps = write_pairs(folder, 6, first, f"{kind}_")
        given |= {kind: str(volumes), f"{kind}_labels": str(maps)}
    given |= {"real_numbers": (0, 2), "synthetic_numbers": (0, 3), "device": "cpu", "resamples": 100}
    return experiment.ExperimentConfig(**{**given, "teacher_steps": 2, **settings})
