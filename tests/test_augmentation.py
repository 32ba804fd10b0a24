"""3D DiffAugment: identities, shapes with H != W, gradients, independent draws."""

from volumetric import diff_augment

import numpy as np
import pytest
import torch

VOLUMES = torch.arange(1.0, 1 + 2 * 4 * 8 * 6).view(2, 1, 4, 8, 6)


def test_zero_shift_is_the_identity():
    assert torch.equal(diff_augment.shift_volumes(VOLUMES, torch.zeros(2, 3, dtype=torch.int64)), VOLUMES)


def test_shift_moves_voxels_and_zeros_enter():
    moved = diff_augment.shift_volumes(VOLUMES, torch.tensor([[1, -2, 0], [0, 0, 3]]))
    assert torch.equal(moved[0, 0, 1:, :-2], VOLUMES[0, 0, :-1, 2:])
    assert not moved[0, 0, 0].any() and not moved[0, 0, :, -2:].any()
    assert torch.equal(moved[1, 0, :, :, 3:], VOLUMES[1, 0, :, :, :-3]) and not moved[1, 0, :, :, :3].any()


def test_shifts_lose_no_digit():
    half, shifts = (VOLUMES.half() / 7, torch.tensor([[0, 1, 0], [0, 0, -2]]))
    moved = diff_augment.shift_volumes(half, shifts)
    assert torch.equal(moved[0, :, :, 1:], half[0, :, :, :-1])
    assert torch.equal(moved[1, ..., :-2], half[1, ..., 2:])


def test_translation_reaches_an_eighth_of_each_axis():
    volumes = torch.ones(64, 1, 8, 16, 32)
    moved = diff_augment.translate(volumes, np.random.default_rng(0))
    lost = [
        int((moved.amax(dim=tuple(a for a in range(1, 5) if a != axis)) == 0).sum(1).max())
        for axis in (2, 3, 4)
    ]
    assert lost == [1, 2, 4]


def test_cutout_removes_at_most_an_eighth_of_the_volume():
    volumes = torch.ones(200, 1, 8, 16, 12)
    left = diff_augment.cutout(volumes, np.random.default_rng(0))
    removed = (left == 0).flatten(1).sum(1)
    assert removed.max() == 4 * 8 * 6 and removed.min() > 0
    assert set(left.unique().tolist()) == {0.0, 1.0}


def test_contrast_keeps_the_mean():
    changed = diff_augment.contrast(VOLUMES, np.random.default_rng(0))
    torch.testing.assert_close(changed.mean(dim=(1, 2, 3, 4)), VOLUMES.mean(dim=(1, 2, 3, 4)))
    ratio = changed.std(dim=(1, 2, 3, 4)) / VOLUMES.std(dim=(1, 2, 3, 4))
    assert ratio.min() >= 0.5 and ratio.max() <= 1.5 and ratio[0] != ratio[1]


@pytest.mark.parametrize("name", diff_augment.AUGMENTATIONS)
def test_gradients_flow_and_shapes_stay(name):
    x = VOLUMES.clone().requires_grad_()
    y = diff_augment.diff_augment(x, [name], np.random.default_rng(1))
    assert y.shape == x.shape
    y.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()


@pytest.mark.parametrize("name", diff_augment.AUGMENTATIONS)
def test_every_volume_and_every_call_has_its_own_draw(name):
    rng = np.random.default_rng(0)
    same = VOLUMES[:1].repeat(8, 1, 1, 1, 1)
    first, second = (diff_augment.diff_augment(same, [name], rng) for _ in range(2))
    assert not all(torch.equal(first[0], v) for v in first[1:])
    assert not torch.equal(first, second)


def test_probability_decides_for_the_whole_micro_batch():
    rng = np.random.default_rng(0)
    seen = [diff_augment.augment(VOLUMES, 0.5, (), rng) for _ in range(200)]
    flipped = sum(torch.equal(v, VOLUMES.flip(3)) for v in seen)
    assert all(torch.equal(v, VOLUMES) or torch.equal(v, VOLUMES.flip(3)) for v in seen)
    assert 30 <= flipped <= 70  # 0.5 augmented, half of them flipped left-right, along H
    assert diff_augment.augment(VOLUMES, 0.0, ("cutout",), rng) is VOLUMES


@pytest.mark.parametrize("each", [False, True])
def test_what_is_replayed_has_the_same_tensors_whatever_is_decided(each):
    """So that a graph can be filled with them: chosen or not, they give what an ordinary step has."""
    types, shapes = tuple(diff_augment.AUGMENTATIONS), set()
    about = (VOLUMES.shape, VOLUMES.device, 0.5, types)
    for seed in range(8):
        rng = [np.random.default_rng(seed) for _ in range(2)]
        drawn = diff_augment.draw_augmentation(*about, rng[0], each=each, fixed=True)
        shapes.add(tuple((name, tensor.shape, tensor.dtype) for name, tensor in drawn.items()))
        expected = diff_augment.augment(VOLUMES, 0.5, types, rng[1], each=each)
        assert torch.equal(diff_augment.augmented(VOLUMES, drawn), expected)
        assert rng[0].random() == rng[1].random()
    assert len(shapes) == 1


def test_each_volume_is_augmented_by_its_own_decision():
    rng = np.random.default_rng(0)
    many = torch.rand(64, 1, 4, 6, 8) + 1
    y = diff_augment.augment(many, 0.5, ("cutout",), rng, each=True)
    same = [torch.equal(a, b) for a, b in zip(y, many, strict=True)]
    assert 20 <= sum(same) <= 44
    assert diff_augment.augment(many, 0.0, ("cutout",), rng, each=True) is many
    everything = diff_augment.augment(many, 1.0, (), rng, each=True)
    flipped = sum(torch.equal(a, b.flip(2)) for a, b in zip(everything, many, strict=True))
    assert 20 <= flipped <= 44
