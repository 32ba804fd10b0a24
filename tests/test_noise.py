"""The share of the variance between volumes that their noise explains."""

import numpy as np
import pytest
import torch

import stylegan2_pytorch as sg
from MedicalNet.noise import as_read, noise_share, noise_shares, shares_of, vessels_in
from tests.conftest import SMALL


def test_noise_share_of_known_variances():
    """Sums of a normal value of the latent and one of the noise, of variances 4 and 1: a share of 1 / 5."""
    rng = np.random.default_rng(0)
    z, noise = 2 * rng.standard_normal((24, 1, 20000)), rng.standard_normal((24, 8, 20000))
    assert noise_share(z + noise) == pytest.approx(0.2, abs=0.005)
    assert noise_share(np.broadcast_to(z, noise.shape)) == pytest.approx(0, abs=1e-12)
    assert noise_share(noise) == pytest.approx(1, abs=0.005)  # without bias, though the means differ
    assert noise_share(np.ones((3, 2, 4))) == 0


def test_vessels_are_what_stands_out_of_the_tissue():
    volumes = np.zeros((2, 4, 16, 16), np.float32) + 0.3
    volumes[1, 2, 5:9, 8] = 1
    vessels = vessels_in(volumes).reshape(2, 16, 16)
    assert np.allclose(vessels[0], 0, atol=1e-6)
    assert np.allclose(vessels[1, 5:9, 8], 0.7, atol=1e-6) and vessels[1].sum() == pytest.approx(
        2.8, abs=1e-5
    )


def test_shares_of_volumes_are_of_their_voxels_and_vessels():
    rng = np.random.default_rng(0)
    volumes = rng.random((5, 4, 2, 8, 8)).astype(np.float32)
    shares = noise_shares(volumes)
    assert shares["noise-share-voxels"] == noise_share(volumes)
    assert shares["noise-share-vessels"] == noise_share(
        vessels_in(volumes.reshape(20, 2, 8, 8)).reshape(5, 4, -1)
    )


def test_one_noise_for_all_seeds_and_the_share_of_a_generator():
    """A seed with its own noise is its own volume; without noise weights nothing is of the noise."""
    torch.manual_seed(0)
    gan = sg.StyleGAN2(**SMALL)
    center = sg.truncation_center(gan.S, sg.LATENT_DIM, torch.device("cpu"))
    model = sg.Synthesizer(gan.S, gan.G, center)
    assert all(share < 1e-9 for share in shares_of(model).values())
    for block in gan.G.blocks:
        torch.nn.init.normal_(block.to_noise2.weight)
    own, fixed = list(model.volumes_of([3, 5])), list(model.volumes_of([3, 5], noise_seed=3))
    assert torch.equal(own[0], fixed[0]) and not torch.equal(own[1], fixed[1])
    assert 0 < shares_of(model)["noise-share-voxels"] < 1
    read = as_read(own)
    assert read.shape == (2, *own[0].shape[1:]) and read.min() == 0 and read.max() == 1
