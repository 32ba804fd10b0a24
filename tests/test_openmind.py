"""The second network of whole volumes: its layout, its weights, how volumes are prepared, its numbers."""

import numpy as np
import pytest
import torch

from MedicalNet import evaluation, extractors, measuring, openmind
from tests.conftest import random_array, write_volume

CPU = torch.device("cpu")


def test_a_block_averages_and_projects_beside_its_convolutions():
    block = openmind.ResidualBlock(2, 3, stride=2)
    for parameter in block.conv2.norm.parameters():
        torch.nn.init.zeros_(parameter)  # the convolutions add nothing
    x = torch.randn(1, 2, 4, 4, 4)
    projected = torch.einsum("oi,bixyz->boxyz", block.skip[1].conv.weight.flatten(1), x)
    halved = projected.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).mean(dim=(5, 6, 7))
    away = halved - halved.mean(dim=(2, 3, 4), keepdim=True)
    expected = away / (away.square().mean(dim=(2, 3, 4), keepdim=True) + 1e-5).sqrt()
    expected = torch.where(expected < 0, 0.01 * expected, expected)
    torch.testing.assert_close(block(x), expected)
    assert len(openmind.ResidualBlock(2, 2).skip) == 0 and len(openmind.ResidualBlock(2, 2, 2).skip) == 1


def test_tensors_are_those_of_the_published_file():
    """Counts of the public ResEnc-L: 90,296,576 weights of the encoder, 24,388,736 up to its fourth stage."""
    with torch.device("meta"):
        networks = openmind.ResidualEncoder(6), openmind.ResidualEncoder()
    counts = [sum(p.numel() for p in n.parameters()) for n in networks]
    assert counts == [90_296_576, 24_388_736]
    shapes = {name: tuple(t.shape) for name, t in networks[0].state_dict().items()}
    assert shapes["stem.convs.0.conv.weight"] == (32, 1, 3, 3, 3)
    assert shapes["stages.1.blocks.0.skip.1.conv.weight"] == (64, 32, 1, 1, 1)
    assert shapes["stages.3.blocks.5.conv2.norm.bias"] == (256,)
    assert "stages.1.blocks.0.skip.1.conv.bias" not in shapes and "stages.5.blocks.0.skip.1" not in shapes
    assert "stages.5.blocks.5.conv1.conv.weight" in shapes and len(shapes) == 224


def test_the_encoder_equals_the_public_one():
    theirs = pytest.importorskip("dynamic_network_architectures.building_blocks.residual_encoders")
    channels, blocks = openmind.CHANNELS[:4], openmind.BLOCKS[:4]
    norm, nonlinear = (torch.nn.InstanceNorm3d, {"affine": True}), (torch.nn.LeakyReLU, {"inplace": True})
    public = theirs.ResidualEncoder(
        1, 4, channels, torch.nn.Conv3d, 3, (1, 2, 2, 2), blocks, True, *norm, None, None, *nonlinear
    )
    ours, state = openmind.ResidualEncoder(), public.state_dict()
    ours.load_state_dict({name: state[name] for name in ours.state_dict()})
    x = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(ours(x), public(x))


def test_volumes_are_standardised_and_of_one_millimetre():
    array = random_array(0, (20, 10, 10)) * 7 + 3
    found = openmind.prepared(array, (1.0, 1, 1))
    assert found.shape == openmind.LEAST and found.dtype == np.float32
    inside = found[11:21, 27:37, 22:42]  # 10, 10 and 20 voxels in the middle of 32, 64 and 64
    expected = ((array - array.mean()) / array.std()).transpose(2, 1, 0)
    np.testing.assert_allclose(inside, expected, atol=1e-4)
    assert np.count_nonzero(found) == np.count_nonzero(expected)
    assert openmind.prepared(array, (5.0, 5, 5)).shape == (64, 64, 128)  # 50, 50 and 100 mm
    assert np.isfinite(openmind.prepared(np.ones((4, 4, 4), np.float32), (1, 1, 1))).all()


def test_published_weights_load_and_others_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(openmind, "CHANNELS", (2, 4, 4, 8))  # a small file
    state = openmind.ResidualEncoder().state_dict()
    kept = {f"encoder.{name}": tensor for name, tensor in state.items()}
    more = {"encoder.stages.4.blocks.0.conv1.conv.weight": torch.zeros(1), "decoder.x": torch.zeros(1)}
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": kept | more, "trainer_name": "BaseMAETrainer"}, path)
    loaded = openmind.build_openmind(path, CPU).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    torch.save({"network_weights": more}, path)
    with pytest.raises(ValueError, match=r"OpenMind weights .* are not those of the encoder ResEnc-L: enc"):
        openmind.build_openmind(path, CPU)


def test_its_numbers_are_there_when_asked_for_and_of_other_names_with_random_weights(tmp_path, monkeypatch):
    def small(path, device):
        torch.manual_seed(0)
        return torch.nn.Conv3d(1, 256, 16, stride=16)

    monkeypatch.setattr(measuring, "build_openmind", small)
    for which in ("real", "generated"):
        for n in range(6):
            write_volume(tmp_path / which / f"v{n}.nii", random_array(n + 6 * len(which)))
    given = {"real": str(tmp_path / "real"), "generated": str(tmp_path / "generated"), "device": "cpu"}
    given |= {"metrics": ("openmind",), "bootstrap": 20, "cache_dir": str(tmp_path / "cache")}
    random = evaluation.EvaluateConfig(**given, embedding="random", output=str(tmp_path / "out"))
    record = evaluation.evaluate(random)
    names = [f"{name}-OpenMind-random" for name in ("energy", "sliced-W1", "FD")]
    assert list(record["metrics"]) == names and "stage 4 of 6" in record["protocol"]["openmind"]
    low, high = record["metrics"][names[0]]["interval_95"]
    assert low < record["metrics"][names[0]]["value"] < high
    assert any("FD-OpenMind-random has 6 volumes for 256 dimensions" in w for w in record["warnings"])
    assert "openmind" not in evaluation.EvaluateConfig().metrics
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    lost = {name: "http://127.0.0.1:9/weights.pth" for name in ("url",)}
    weights = extractors.Weights(**{**vars(extractors.PUBLISHED["openmind"]), **lost})
    monkeypatch.setitem(extractors.PUBLISHED, "openmind", weights)
    with pytest.raises(ValueError, match=r"ResEncL-OpenMind-MAE.pth, or give its path with --openmind_weig"):
        evaluation.evaluate(evaluation.EvaluateConfig(**given))
