"""Every loss and regulariser against values worked out by hand."""

import functools
import itertools
import math

from volumetric import parallel

import pytest
import torch
import torch.nn.functional as F

import stylegan2_pytorch as sg


def test_hinge_loss_drives_real_to_minus_one_and_fake_to_plus_one():
    assert sg.hinge_loss(torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 2.0])).item() == 0
    real, fake = torch.tensor([0.0, -2.0]), torch.tensor([0.5, -0.5])
    assert sg.hinge_loss(real, fake).item() == (1 + 0) / 2 + (0.5 + 1.5) / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "penalty", [sg.gradient_penalty, functools.partial(sg.zero_centered_penalty, gamma=1)]
)
def test_penalties_of_half_precision_are_those_of_float32(dtype, penalty):
    torch.manual_seed(0)
    D, volumes, found = (
        sg.Discriminator(16, 8, network_capacity=4, fmap_max=16),
        torch.rand(2, 1, 8, 16, 16),
        [],
    )
    for half in (False, True):
        with torch.autocast("cpu", dtype, enabled=half):
            logits, _ = D(volumes.requires_grad_())
        value = penalty(volumes, logits, scale=2.0**10 if half else 1.0)
        gradients = torch.autograd.grad(value, [*D.blocks.parameters()], allow_unused=True)
        found.append((value.item(), torch.cat([g.flatten() for g in gradients if g is not None])))
    (exact, right), (value, gradient) = found
    assert value == pytest.approx(exact, rel=0.04)  # (norm - 1)^2 doubles an error
    assert torch.cosine_similarity(gradient, right, dim=0) > 0.99
    assert float(gradient.norm() / right.norm()) == pytest.approx(1, abs=0.03)


def test_relativistic_logits():
    real, fake = sg.relativistic(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]))
    assert real.tolist() == [-3.0, -2.0] and fake.tolist() == [1.5, 3.5]


def test_dual_contrastive_loss_by_hand():
    t1, t2 = torch.tensor([1.0, 2.0]), torch.tensor([0.0, -1.0])

    def cross_entropy(one, others):
        return math.log(math.exp(one) + sum(map(math.exp, others))) - one

    first = sum(cross_entropy(a, (0.0, -1.0)) for a in (1.0, 2.0)) / 2
    second = sum(cross_entropy(-b, (-1.0, -2.0)) for b in (0.0, -1.0)) / 2
    assert sg.dual_contrastive_loss(t1, t2).item() == pytest.approx(first + second, rel=1e-6)
    same = torch.zeros(3)
    assert sg.dual_contrastive_loss(same, same).item() == pytest.approx(2 * math.log(4), rel=1e-6)


@pytest.mark.parametrize(("epochs", "kept"), [(0, 4), (10, 4), (40, 3), (1000, 2)])
def test_top_k_keeps_the_most_real_logits(epochs, kept):
    logits = torch.tensor([3.0, -1.0, 2.0, 0.0])
    low, high = (sg.most_real(logits, epochs, gamma=0.99, frac=0.5, sense=sense) for sense in (-1, 1))
    assert sorted(low.tolist()) == sorted(logits.tolist())[:kept]
    assert sorted(high.tolist()) == sorted(logits.tolist())[-kept:]


def test_top_k_keeps_one_at_least():
    assert sg.most_real(torch.tensor([3.0, -1.0]), 5, gamma=0.0, frac=0.0, sense=-1).tolist() == [-1]


def test_logistic_and_relativistic_losses_of_known_logits():
    real, fake = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0])
    softplus = [math.log(1 + math.exp(x)) for x in (-1.0, 1.0, 0.0, 2.0)]
    assert sg.logistic_loss(real, fake).item() == pytest.approx(sum(softplus) / 2, rel=1e-6)
    pairs = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(3.0))) / 2
    assert sg.relativistic_pairs(real, fake).item() == pytest.approx(pairs, rel=1e-6)
    groups = [F.softplus(fake[i] - real[j]) for i, j in itertools.product(range(2), repeat=2)]
    assert sg.relativistic_pairs(real[:2], fake[:2], 2).item() == pytest.approx(sum(groups).item() / 4)
    assert sg.relativistic_pairs(real + 5, fake + 5).item() == pytest.approx(pairs, rel=1e-6)


def test_zero_centred_penalty_of_a_linear_discriminator():
    x = torch.randn(2, 1, 2, 2, 2, requires_grad=True)
    logits = 3 * x.flatten(1).sum(dim=1)  # squared gradient 9 in 8 voxels
    torch.testing.assert_close(sg.zero_centered_penalty(x, logits, gamma=0.1), torch.tensor(0.05 * 72))


def test_gradient_penalty_of_a_linear_discriminator():
    x = torch.randn(2, 1, 2, 2, 2, requires_grad=True)
    logits = 3 * x.flatten(1).sum(dim=1)  # gradient 3 in 8 voxels, norm 3 * sqrt(8)
    expected = 10 * (3 * 8**0.5 - 1) ** 2
    torch.testing.assert_close(sg.gradient_penalty(x, logits), torch.tensor(expected))


def test_path_length_of_a_linear_generator():
    styles = torch.randn(2, 3, 5, requires_grad=True)
    gain = torch.tensor([1.0, 2.0, 3.0])  # of the three layers
    scalar = torch.einsum("blk,l->b", styles, gain)
    volumes = scalar[:, None, None, None, None].expand(-1, 1, 2, 2, 2)  # every voxel is the same sum
    y = torch.ones_like(volumes)
    # d(sum y . volume) / dw = 8 voxels * gain / 8^(1/3) for each of the 5 entries of a layer
    expected = math.sqrt(sum(5 * (8 * g / 2) ** 2 for g in (1, 2, 3)) / 3)
    torch.testing.assert_close(sg.path_lengths(styles, volumes, y), torch.full((2,), expected))


def test_path_length_penalty_reaches_the_weights():
    gan = sg.StyleGAN2(8, 4, latent_dim=8, style_depth=2, network_capacity=1, fmap_max=4)
    styles = sg.same_style(gan.S(torch.randn(2, 8)), gan.G.num_layers)
    volumes = gan.G(styles, torch.rand(2, 4, 8, 8, 1))
    sg.path_lengths(styles, volumes, torch.randn_like(volumes)).square().mean().backward()
    assert gan.G.blocks[0].conv1.weight.grad.any() and gan.S.net[0].weight.grad.any()


def test_slerp_keeps_the_norm_and_meets_its_ends():
    low, high = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    middle = sg.slerp(low, high, torch.tensor(0.5))
    torch.testing.assert_close(middle, torch.full((2,), 0.5**0.5))
    torch.testing.assert_close(sg.slerp(low, high, torch.tensor(0.0)), low)
    torch.testing.assert_close(sg.slerp(low, high, torch.tensor(1.0)), high)
    torch.testing.assert_close(sg.slerp(low, 2 * low, torch.tensor(0.5)), 1.5 * low)


def test_truncation():
    center, w = torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 5.0]])
    assert sg.truncate(w, center, 1).tolist() == w.tolist()
    assert sg.truncate(w, center, 0).tolist() == center.tolist()
    assert sg.truncate(w, center, 0.5).tolist() == [[2.0, 3.0]]


def test_mixed_styles_switch_at_the_crossover():
    styles = sg.mix_styles(torch.zeros(1, 2), torch.ones(1, 2), layers=4, crossover=1)
    assert styles[0, :, 0].tolist() == [0, 1, 1, 1]


def test_a_volumes_inputs_depend_on_its_seed_alone():
    z, noise = parallel.batch_inputs([5, 9], 16, (2, 4, 4))
    alone, its_noise = parallel.volume_inputs(9, 16, (2, 4, 4))
    assert torch.equal(z[1], alone) and torch.equal(noise[1], its_noise)
