"""MedicalNet's ResNet-10 against values of the published code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from MedicalNet.resnet import resnet10
from tests.golden.fill import fill_state_dict

GOLDEN = Path(__file__).parent / "golden"


def test_golden_features():
    shapes = json.loads((GOLDEN / "medicalnet_resnet10.json").read_text(encoding="utf-8"))["state_dict"]
    network = resnet10()
    assert {n: list(t.shape) for n, t in network.state_dict().items()} == shapes
    network.load_state_dict(fill_state_dict(shapes))
    volumes = [
        np.random.Generator(np.random.PCG64(seed)).standard_normal((1, 1, 64, 64, 32)) for seed in (0, 1)
    ]
    with torch.no_grad():
        features = network(torch.from_numpy(np.concatenate(volumes).astype(np.float32)))
    np.testing.assert_allclose(features, np.load(GOLDEN / "metrics.npz")["features"], rtol=1e-4, atol=1e-4)


def test_weights_of_a_parallel_segmentation_network_load(tmp_path):
    source = resnet10()
    state = {f"module.{n}": t for n, t in source.state_dict().items()} | {
        "module.conv_seg.0.weight": torch.ones(2)
    }
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    loaded = resnet10(tmp_path / "w.pth").state_dict()
    assert all(torch.equal(t, loaded[n]) for n, t in source.state_dict().items())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: None, "do not exist"),
        (lambda p: p.write_bytes(b"x"), "cannot be read"),
        (lambda p: torch.save({"state_dict": {}}, p), "are not those of ResNet-10: conv1.weight is missing"),
    ],
    ids=["missing", "damaged", "other"],
)
def test_wrong_weights_are_named(tmp_path, make, text):
    make(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=text):
        resnet10(tmp_path / "w.pth")
