"""Does the anatomy of generated volumes come from the latent z, or from the noise input of every voxel?"""

from volumetric.collection import scaled
from volumetric.files import volume_to_array

import numpy as np
from scipy import ndimage

TISSUE = 3.0  # voxels, width of the Gaussian that is taken for tissue in a projection
LATENTS, NOISES = 24, 8  # of which the share is estimated
SHARES = {"voxels": "noise-share-voxels", "vessels": "noise-share-vessels"}


def vessels_in(volumes):
    """Maximum-intensity projection of each volume, without its tissue: vessels alone.

    Shapes: (N, Z, X, Y) -> (N, X * Y)
    """
    projections = volumes.max(axis=1)
    tissue = ndimage.gaussian_filter(np.minimum(projections, np.median(projections)), (0, TISSUE, TISSUE))
    return np.clip(projections - tissue, 0, None).reshape(len(volumes), -1)


def noise_share(values):
    """Share of the variance between volumes that their noise explains, from 0 to 1.

        within  = mean over z of the variance over noises, summed over voxels
        between = variance over z of the mean over noises, summed over voxels, - within / noises
        share   = within / (within + between)

    Both are estimates without bias (one-way analysis of variance with random effects); a negative one is 0.

    Shapes: (latents, noises, ...) -> scalar
    """
    latents, noises = values.shape[:2]
    values = values.reshape(latents, noises, -1)
    within = float(values.var(axis=1, ddof=1).mean(axis=0).sum())
    between = float(values.mean(axis=1).var(axis=0, ddof=1).sum()) - within / noises
    total = within + max(between, 0.0)
    return within / total if total else 0.0


def noise_shares(volumes):
    """{name: noise share} of the voxels of volumes and of their vessels.

    Shapes: (latents, noises, Z, X, Y), scaled as training volumes are read
    """
    vessels = vessels_in(volumes.reshape(-1, *volumes.shape[2:]))
    views = {"voxels": volumes, "vessels": vessels.reshape(*volumes.shape[:2], -1)}
    return {name: noise_share(views[view]) for view, name in SHARES.items()}


def as_read(volumes):
    """Generated volumes as training volumes are read, each scaled by its own range; see `collection.scaled`.

    Shapes: iterable of (1, Z, X, Y) -> (N, Z, X, Y)
    """
    return np.stack([scaled(volume_to_array(np.asarray(volume)))[0] for volume in volumes])


def shares_of(model, seed=0, batch_size=8, **how):
    """Noise shares of a model whose `volumes_of` takes the noise's seed: LATENTS latents with NOISES noises.

    Args:
        model: generation.Model with a noise input.
        seed: First seed, of the latents as of the noises.
        batch_size, how: As for `volumes_of`.
    """
    seeds, drawn = range(seed, seed + LATENTS), {"batch_size": batch_size, **how}
    noises = [as_read(model.volumes_of(seeds, noise_seed=seed + n, **drawn)) for n in range(NOISES)]
    return noise_shares(np.stack(noises, axis=1))
