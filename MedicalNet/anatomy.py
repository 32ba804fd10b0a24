"""Anatomy of the bright vessels of a volume, measured without a ground truth.

In TOF MRA, flowing blood is bright. A vessel mask is what stands out from the tissue around it; from the mask
follow volume, connected components, centreline, radius, branches and the balance of left and right. The
numbers are for comparing two sets of volumes that are measured alike, not for a diagnosis.
"""

import itertools

import nibabel as nib
import numpy as np
from scipy import ndimage

BACKGROUND_MM = 5.0  # width of the Gaussian that estimates the tissue around a voxel
BACKGROUND_PERCENTILE = 95  # voxels above do not add to that estimate
SEED_SIGMAS = 6.0  # a vessel has a voxel this far above its surroundings, in robust standard deviations,
GROW_SIGMAS = 3.0  # and extends over the connected voxels this far above
SMALLEST_MM3 = 2.0  # components below are noise
PROTOCOL = (
    f"tissue = Gaussian ({BACKGROUND_MM:g} mm) of the volume clipped at its {BACKGROUND_PERCENTILE}th "
    f"percentile; "
    f"vessel = connected voxels more than {GROW_SIGMAS:g} sigma above it, with one more than {SEED_SIGMAS:g} "
    f"above, "
    f"at least {SMALLEST_MM3:g} mm3; sigma = 1.4826 MAD; centreline by skeletonisation (Lee et al. 1994); "
    f"radius = "
    f"distance to the mask's edge"
)

# What is measured, with its unit: one number a volume, or many.
MEASURES = {
    "vessel-volume-ml": "vessel volume (ml)",
    "components": "connected components",
    "centreline-mm": "centreline length (mm)",
    "branches": "branches",
    "asymmetry": "left-right asymmetry of vessel volume",
    "radius-mm": "radius along the centreline (mm)",
    "branch-length-mm": "length of a branch (mm)",
}


def measure_anatomy(array, affine):
    """Measures of one volume.

    Args:
        array: (X, Y, Z), bright vessels, any scale.
        affine: (4, 4), voxels to mm.

    Returns:
        {name out of MEASURES: float64 array}; without vessels every array is [0.0].
    """
    spacing = nib.affines.voxel_sizes(affine)
    mask = vessel_mask(array, spacing)
    if not mask.any():
        return {name: np.zeros(1) for name in MEASURES}
    skeleton = centreline(mask)
    radius = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    branches = branch_lengths(skeleton, spacing)
    return {
        "vessel-volume-ml": np.array([mask.sum() * np.prod(spacing) / 1000]),
        "components": np.array([ndimage.label(mask, np.ones((3, 3, 3)))[1]], dtype=float),
        "centreline-mm": np.array([length_of(skeleton, spacing)]),
        "branches": np.array([len(branches)], dtype=float),
        "asymmetry": np.array([asymmetry(mask, affine)]),
        "radius-mm": radius[skeleton],
        "branch-length-mm": branches if len(branches) else np.zeros(1),
    }


def vessel_mask(array, spacing):
    """Voxels of bright vessels. Shapes: (X, Y, Z), spacing (3,) mm -> (X, Y, Z) bool"""
    from skimage.filters import apply_hysteresis_threshold

    array = np.asarray(array, dtype=np.float32)
    tissue = np.minimum(array, np.percentile(array, BACKGROUND_PERCENTILE))
    above = array - ndimage.gaussian_filter(tissue, BACKGROUND_MM / spacing)
    middle = np.median(above)
    sigma = 1.4826 * np.median(np.abs(above - middle))
    low, high = (middle + k * sigma for k in (GROW_SIGMAS, SEED_SIGMAS))
    mask = apply_hysteresis_threshold(above, low, high) & (above > low)  # sigma 0: nothing is above
    components, number = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel(), minlength=number + 1) * np.prod(spacing)
    kept = sizes >= SMALLEST_MM3
    kept[0] = False
    return kept[components]


def centreline(mask):
    """One-voxel-wide skeleton of a mask. Shapes: (X, Y, Z) bool -> (X, Y, Z) bool"""
    from skimage.morphology import skeletonize

    return skeletonize(mask).astype(bool)


# Half of the 26 neighbours of a voxel: every pair of neighbours once.
FORWARD = [step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]


def links(skeleton):
    """For every step to a forward neighbour, where a voxel and that neighbour are both in the skeleton."""
    padded = np.pad(skeleton, 1)
    for step in FORWARD:
        moved = tuple(slice(1 + s, 1 + s + n) for s, n in zip(step, skeleton.shape, strict=True))
        yield step, skeleton & padded[moved]


def length_of(skeleton, spacing):
    """Length of a skeleton: the sum of the distances between neighbouring voxels, mm."""
    return sum(float(np.linalg.norm(step * spacing)) * both.sum() for step, both in links(skeleton))


def branch_lengths(skeleton, spacing):
    """Lengths of the branches that remain when the junctions (three or more neighbours) are taken out, mm.

    Shapes: (X, Y, Z) bool -> (branches,)
    """
    neighbours = (
        ndimage.convolve(skeleton.astype(np.uint8), np.ones((3, 3, 3), np.uint8), mode="constant") - 1
    )
    simple = skeleton & (neighbours <= 2)
    branches, number = ndimage.label(simple, np.ones((3, 3, 3)))
    lengths = np.zeros(number + 1)
    for step, both in links(simple):
        lengths += np.bincount(branches[both], minlength=number + 1) * np.linalg.norm(step * spacing)
    return lengths[1:][lengths[1:] > 0]


def asymmetry(mask, affine):
    """(left - right) / (left + right) of a mask's volume, halves by the middle of the array, in [-1, 1]."""
    codes = nib.aff2axcodes(affine)
    axis = next((i for i, code in enumerate(codes) if code in ("L", "R")), 0)
    profile = mask.sum(axis=tuple(a for a in range(3) if a != axis))
    if codes[axis] == "L":
        profile = profile[::-1]  # now from left to right
    half = len(profile) // 2
    left, right = profile[:half].sum(), profile[-half:].sum()
    return float((left - right) / max(left + right, 1))
