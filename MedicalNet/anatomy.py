"""Anatomy of the bright vessels of a volume, measured without a ground truth.

In TOF MRA, flowing blood is bright. A vessel mask is what stands out from the tissue around it; from the mask
follow volume, connected components, centreline, radius, branches and the balance of left and right. The
numbers are for comparing two sets of volumes that are measured alike, not for a diagnosis.
"""

from volumetric.vessels import EVERYWHERE, finer, vessel_mask
from volumetric.vessels import PROTOCOL as MASK_PROTOCOL

import nibabel as nib
import numpy as np
from scipy import ndimage

# A branch that ends and is shorter than so many radii, and a voxel, is the surface's roughness.
SPUR_RADII = 1.5
PRUNINGS = 3  # rounds
PROTOCOL = (
    f"{MASK_PROTOCOL}; centreline by skeletonisation (Lee et al. 1994) at half "
    f"the voxel size, branches by skan, without ends shorter than {SPUR_RADII:g} radii; "
    f"radius = largest distance to the mask's surface from the points within half a voxel"
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
        {name out of MEASURES: float64 array}. Without vessels volume, components, centreline and branches are
        0, and what only a vessel has is empty.
    """
    spacing = nib.affines.voxel_sizes(affine)
    mask = vessel_mask(array, spacing)
    found = {name: np.zeros(1) for name in MEASURES}
    found |= {name: np.zeros(0) for name in ("asymmetry", "radius-mm", "branch-length-mm")}
    if not mask.any():
        return found
    found["vessel-volume-ml"] = np.array([mask.sum() * np.prod(spacing) / 1000])
    found["components"] = np.array([ndimage.label(mask, EVERYWHERE)[1]], dtype=float)
    found["asymmetry"] = np.array([asymmetry(mask, affine)])
    lengths, radii = branches_of(mask, spacing)
    found |= {"branch-length-mm": lengths, "radius-mm": radii}
    found |= {"centreline-mm": np.array([lengths.sum()]), "branches": np.array([len(lengths)], dtype=float)}
    return found


def branches_of(mask, spacing):
    """Lengths of the branches of a mask's centreline, and the radii along it, mm.

    Shapes: (X, Y, Z) bool, (3,) mm -> (branches,), (points,)
    """
    from skan import Skeleton
    from skimage.morphology import skeletonize

    fine, half = finer(mask), np.asarray(spacing) / 2
    thin = skeletonize(fine).astype(bool)
    if thin.sum() < 2:
        return np.zeros(0), np.zeros(0)
    inside = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)
    skeleton = Skeleton(thin, spacing=half)
    for _ in range(PRUNINGS):
        first, last = ends_of(skeleton)
        radii = [inside[tuple(skeleton.coordinates[end].astype(int).T // 2)] for end in (first, last)]
        shorter = skeleton.path_lengths() < SPUR_RADII * np.maximum(*radii) + max(spacing)
        is_end = [skeleton.degrees[end] == 1 for end in (first, last)]
        spurs = np.flatnonzero((is_end[0] != is_end[1]) & shorter)
        if not len(spurs) or len(spurs) == skeleton.n_paths:
            break
        skeleton = skeleton.prune_paths(spurs)
    lengths = skeleton.path_lengths()
    points = np.unique(skeleton.coordinates.astype(int), axis=0)
    return lengths[lengths > 0], radii_of(mask, spacing)[tuple(points.T)]


def radii_of(mask, spacing):
    """Radius at every point of `finer`, mm: the largest distance to the surface, half a voxel around it.

    The distance is exact: the surface consists of voxels' faces, to which the nearest point is one of the
    lattice of half voxels. A point of the mask's surface, or where voxels meet by a corner, has the radius of
    a voxel that it belongs to.

    Shapes: (X, Y, Z) bool, (3,) mm -> (2 X + 4, 2 Y + 4, 2 Z + 4) mm
    """
    inside = ndimage.distance_transform_edt(finer(mask, whole=True), sampling=np.asarray(spacing) / 2)
    return ndimage.maximum_filter(inside, 3)


def ends_of(skeleton):
    """Points at both ends of every branch of a skan Skeleton. Shapes: -> (branches,), (branches,)"""
    paths = skeleton.paths
    return paths.indices[paths.indptr[:-1]], paths.indices[paths.indptr[1:] - 1]


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
