"""Bright vessels of a volume: what stands out from the tissue around it."""

import numpy as np
from scipy import ndimage

BACKGROUND_MM = 5.0  # width of the Gaussian that estimates the tissue around a voxel
BACKGROUND_PERCENTILE = 95  # voxels above do not add to that estimate
SEED_SIGMAS = 6.0  # a vessel has a voxel this far above its surroundings, in robust standard deviations,
GROW_SIGMAS = 3.0  # and extends over the connected voxels this far above,
GROW_SHARE = 0.35  # and at least this share of the brightness of the seeds: else less noise is more vessel
SMALLEST_MM3 = 2.0  # components below are noise
EVERYWHERE = np.ones((3, 3, 3))  # 26 neighbours
PROTOCOL = (
    f"tissue = Gaussian ({BACKGROUND_MM:g} mm) of the volume clipped at its {BACKGROUND_PERCENTILE}th "
    f"percentile; vessel = connected voxels more than {GROW_SIGMAS:g} sigma, and {GROW_SHARE:g} of the "
    f"median seed, above it, with one more than {SEED_SIGMAS:g} sigma above, the seed, at least "
    f"{SMALLEST_MM3:g} mm3; sigma = 1.4826 MAD"
)


def vessel_mask(array, spacing):
    """Voxels of bright vessels. Shapes: (X, Y, Z), spacing (3,) mm -> (X, Y, Z) bool"""
    from skimage.filters import apply_hysteresis_threshold

    array = np.asarray(array, dtype=np.float32)
    tissue = np.minimum(array, np.percentile(array, BACKGROUND_PERCENTILE))
    above = array - ndimage.gaussian_filter(tissue, BACKGROUND_MM / spacing)
    middle = np.median(above)
    sigma = 1.4826 * np.median(np.abs(above - middle))
    low, high = (middle + k * sigma for k in (GROW_SIGMAS, SEED_SIGMAS))
    if (above > high).any():
        low = max(low, middle + GROW_SHARE * (np.median(above[above > high]) - middle))
    mask = apply_hysteresis_threshold(above, low, high) & (above > low)  # sigma 0: nothing is above
    components, number = ndimage.label(mask, EVERYWHERE)
    sizes = np.bincount(components.ravel(), minlength=number + 1) * np.prod(spacing)
    kept = sizes >= SMALLEST_MM3
    kept[0] = False
    return kept[components]
