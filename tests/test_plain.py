"""The fast formulation against the plain one: volumes, logits, losses and gradients."""

import pytest
import torch

from tests.benchmarks.step import PHASES, FixedTrainer, PlainTrainer

# Every published shape and width, scaled down: 128 x 128 x 32 with four ratios of capacity to fmap_max, and
# the variant of 256 x 256 x 4.
SHAPES = {
    "small": {"image_size": 32, "image_depth": 8, "network_capacity": 2, "fmap_max": 16},
    "medium_v1": {"image_size": 32, "image_depth": 8, "network_capacity": 2, "fmap_max": 32},
    "medium_v2": {"image_size": 32, "image_depth": 8, "network_capacity": 2, "fmap_max": 64},
    "large": {"image_size": 32, "image_depth": 8, "network_capacity": 4, "fmap_max": 64},
    "flat": {"image_size": 64, "image_depth": 4, "network_capacity": 2, "fmap_max": 32},
}


def relative(a, b):
    """Largest difference, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    """A trainer and its plain counterpart, with the same weights (noise weights other than 0) and inputs."""
    torch.manual_seed(0)
    fixed = FixedTrainer(SHAPES[request.param], batch_size=2)
    with torch.no_grad():
        for name, p in fixed.GAN.G.named_parameters():
            if "to_noise" in name:
                p.normal_(0, 0.3)
    return fixed, PlainTrainer(SHAPES[request.param], fixed)


def test_volumes_and_logits_are_those_of_the_plain_formulation(pair):
    fixed, plain = pair
    styles, noise = fixed.sample_inputs(None, None)
    volumes = fixed.GAN.G(styles, noise)
    expected, _ = plain.GAN.generate(fixed.z, fixed.cube)
    assert relative(volumes, expected) < 1e-4
    assert relative(fixed.GAN.D(fixed.real)[0], plain.GAN.D(fixed.real)) < 1e-4


@pytest.mark.parametrize("phase", PHASES)
def test_losses_and_gradients_are_those_of_the_plain_formulation(pair, phase):
    fixed, plain = pair
    regularized, generator = PHASES[phase]
    for one in pair:
        one.GAN.zero_grad(set_to_none=True)
    accumulate = fixed.accumulate_generator if generator else fixed.accumulate_discriminator
    losses = accumulate(regularized, 1)
    total = sum(losses[name] for name in ("D", "GP", "G", "PL") if name in losses)
    if generator:
        y = fixed.path_noise() if regularized else None
        loss = plain.GAN.generator_losses(fixed.z, fixed.cube, y)
    else:
        loss = plain.GAN.discriminator_losses(fixed.real, fixed.z, fixed.cube, regularized)
    loss.backward()
    assert float(total) == pytest.approx(float(loss), rel=1e-4)
    for network in "SG" if generator else "D":
        expected = dict(getattr(plain.GAN, network).named_parameters())
        largest = max(float(p.grad.abs().max()) for p in expected.values())
        for name, p in getattr(fixed.GAN, network).named_parameters():
            difference = (p.grad - expected[name].grad).abs().max() / max(
                float(expected[name].grad.abs().max()), 1e-3 * largest
            )
            assert difference < 1e-4, (network, name, float(difference))
