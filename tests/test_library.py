"""What a notebook meets: one line for a mistake in a call, and one line for what is shown."""

from volumetric.cli import UserError
from volumetric.collection import examined, read
from volumetric.dataset import open_data
from volumetric.parallel import Group
from volumetric.tables import Split

import numpy as np
import pytest
import torch

from CoW_generator import SHIPPED
from MedicalNet.evaluation import EvaluateConfig, Evaluation
from segmentation.metrics import score_case
from stylegan2_pytorch import ModelLoader, Trainer
from tests.conftest import write_split


@pytest.fixture(scope="module")
def model():
    """The model that comes along."""
    return ModelLoader(checkpoint=SHIPPED, device="cpu")


MISTAKES = {
    "a number for seeds": (lambda m: next(m.volumes_of(5)), r"list of whole numbers, got 5: give \[5\]"),
    "a negative seed": (lambda m: next(m.volumes_of([3, -1])), r"from 0 on, got -1 among them"),
    "half a seed": (lambda m: next(m.volumes_of([0.5])), r"from 0 on, got 0\.5 among them"),
    "three ends": (lambda m: m.between([1, 2, 3], [0.5]), r"seeds must be 2, got 3"),
    "psi 2": (lambda m: next(m.volumes_of([0], trunc_psi=2)), r"trunc_psi must be from 0 .* to 1 .*, got 2"),
    "psi a word": (lambda m: m.styles_of([0], "1"), r"trunc_psi must be .*, got '1'"),
    "one latent": (lambda m: m.noise_to_styles(torch.zeros(512)), r"shape \(B, 512\), got \(512,\)"),
    "numpy": (lambda m: m.noise_to_styles(np.zeros((1, 512))), r"tensor, got ndarray: torch\.as_tensor"),
    "whole numbers": (
        lambda m: m.noise_to_styles(torch.zeros(1, 512, dtype=torch.int64)),
        r"latents must be of floating numbers, got torch\.int64",
    ),
    "styles": (lambda m: m.styles_to_images(torch.zeros(1, 3, 512)), r"\(B, 512\) or \(B, 5, 512\), got"),
    "noise": (
        lambda m: m.styles_to_images_ext_noise(torch.zeros(1, 512), torch.zeros(1, 8, 8, 8, 1)),
        r"noise has the shape \(1, 8, 8, 8, 1\), expected \(1, 16, 64, 64, 1\) or more voxels",
    ),
    "a device": (
        lambda m: ModelLoader(checkpoint=SHIPPED, device="gpu"),
        r"auto, cpu, cuda or cuda:<n>, got",
    ),
    "no file": (lambda m: ModelLoader(checkpoint="none.pt"), r"none\.pt"),
    "spacing": (
        lambda m: score_case(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), (1, 1)),
        r"spacing must be three numbers above 0, mm along X, Y, Z, got \[1\.0, 1\.0\]",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_call_is_told_in_one_line(model, name):
    call, told = MISTAKES[name]
    with pytest.raises(UserError, match=told) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_a_path_is_taken_for_a_text(tmp_path):
    assert EvaluateConfig(real=tmp_path).real == str(tmp_path)


def test_a_model_says_which_it_is(model):
    networks = f"networks SE, GE, step {model.step}"
    assert repr(model) == f"ModelLoader({SHIPPED}, {networks}, 64 x 64 x 16 voxels, cpu)"


def test_what_is_shown_is_one_line(make_config, data, tmp_path):
    first = sorted(data.iterdir())[0]
    assert repr(read(first)) == "Volume(8 x 8 x 4 voxels of 0.6 x 0.6 x 0.8 mm, stored along RAS)"
    size = "8 x 8 x 4 voxels of 0.6 x 0.6 x 0.8 mm"
    content = examined(first).content[:8]
    assert repr(examined(first)) == f"VolumeFile({first}: volume, {size}, content {content})"
    parts = {path: "training" if n else "test" for n, path in enumerate(sorted(data.iterdir()))}
    split = write_split(tmp_path / "split.csv", parts)
    assert repr(Split.read(split)) == f"Split({split}: 1 test, 5 training)"
    config = make_config(num_train_steps=7)
    audit = open_data(config.data, config.array_shape, "ram", None, Group())
    told = f"({config.models}, step 0 of 7, 6 volumes of 8 x 8 x 4 voxels, cpu)"
    assert repr(Trainer(config, audit)) == f"Trainer{told}"
    numbers = {"metrics": {"FID": {"value": 34.21}}, "generated": {"n": 6}, "real": {"n": 8}, "folder": "e"}
    told = "Evaluation(6 generated against 8 real volumes: FID 34.2; all in e)"
    assert repr(Evaluation(numbers)) == told
