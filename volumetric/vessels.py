"""Bright vessels of a volume, what stands out from the tissue around it; centre lines, and topology."""

import functools

import numpy as np
from scipy import ndimage

BACKGROUND_MM = 5.0  # width of the Gaussian that estimates the tissue around a voxel
BACKGROUND_PERCENTILE = 95  # voxels above do not add to that estimate
SEED_SIGMAS = 6.0  # a vessel has a voxel this far above its surroundings, in robust standard deviations,
GROW_SIGMAS = 3.0  # and extends over the connected voxels this far above,
GROW_SHARE = 0.35  # and at least this share of the brightness of the seeds: else less noise is more vessel
SMALLEST_MM3 = 2.0  # components below are noise
EVERYWHERE = np.ones((3, 3, 3))  # 26 neighbours
FACES = ndimage.generate_binary_structure(3, 1)  # 6 neighbours, and the voxel itself
EDGES = ndimage.generate_binary_structure(3, 2)  # 18
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
    low, high = middle + GROW_SIGMAS * sigma, middle + SEED_SIGMAS * sigma
    if (above > high).any():
        low = max(low, middle + GROW_SHARE * (np.median(above[above > high]) - middle))
    mask = apply_hysteresis_threshold(above, low, high) & (above > low)  # sigma 0: nothing is above
    components, number = ndimage.label(mask, EVERYWHERE)
    sizes = np.bincount(components.ravel(), minlength=number + 1) * np.prod(spacing)
    kept = sizes >= SMALLEST_MM3
    kept[0] = False
    return kept[components]


def finer(mask, whole=False):
    """A mask on the lattice of half voxels: its voxels' centres, and what lies between, w voxels as 2 w + 1.

    scikit-image's thinning in 3D loses bars whose widths are even (its issue 3757): here all widths are odd.
    Point d lies on voxel d / 2 of the mask padded by 1 if d is even, else on the border of two of them.

    Args:
        mask: (X, Y, Z) bool.
        whole: A point between voxels counts if all of them are of the mask, not any: what is left out is its
            surface.

    Returns:
        (2 X + 4, 2 Y + 4, 2 Z + 4) bool.
    """
    double = np.pad(mask, 1).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    join = np.logical_and if whole else np.logical_or
    for axis in range(3):
        along = np.moveaxis(double, axis, 0)
        join(along[:-1], along[1:], out=along[:-1])
    return double


def deepest(parts, depth):
    """One voxel of every numbered part, the deepest. Shapes: (X, Y, Z) ints, (X, Y, Z) -> (X, Y, Z) bool"""
    places = np.flatnonzero(parts)
    places = places[np.argsort(depth.flat[places], kind="stable")]
    last = dict(zip(parts.flat[places].tolist(), places.tolist(), strict=True))  # the deepest overwrites
    found = np.zeros(parts.shape, bool)
    found.flat[list(last.values())] = True
    return found


def centre_line(mask, spacing):
    """Voxels of a mask's skeleton (Lee et al. 1994), one or more of every 26-connected component.

    Of the voxels around a point between voxels the one furthest from the mask's edge is taken: points that
    are neighbours give voxels that are.

    Shapes: (X, Y, Z) bool, spacing (3,) mm -> (X, Y, Z) bool
    """
    from skimage.morphology import skeletonize

    line = np.zeros_like(mask)
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return line
    inside = np.pad(mask[boxes[0]], 1)
    depth = ndimage.distance_transform_edt(inside, spacing)
    points = np.argwhere(skeletonize(finer(mask[boxes[0]])))
    around = np.array([(points + shift) // 2 for shift in np.ndindex(2, 2, 2)])  # (8, n, 3)
    inner = depth[tuple(np.moveaxis(around, -1, 0))].argmax(axis=0)
    there = np.zeros_like(inside)
    there[tuple(around[inner, np.arange(len(points))].T)] = True
    parts, number = ndimage.label(inside, EVERYWHERE)
    lost = np.setdiff1d(np.arange(1, number + 1), parts[there])
    there[np.isin(parts, lost) & deepest(parts, depth)] = True
    line[boxes[0]] = there[1:-1, 1:-1, 1:-1]
    return line


@functools.lru_cache(maxsize=1 << 16)
def is_simple(neighbours):
    """True if a mask has the same components, tunnels and cavities with a voxel and without it.

    By Bertrand and Malandain (1994, doi:10.1016/0167-8655(94)90046-9): one 26-component of the mask around
    it, and one 6-component of the rest, within its 18 neighbours, that it meets by a face.

    Args:
        neighbours: The 3 x 3 x 3 voxels around it, bool, as bytes.
    """
    near = np.frombuffer(neighbours, bool).reshape(3, 3, 3).copy()
    near[1, 1, 1] = False
    if ndimage.label(near, EVERYWHERE)[1] != 1:
        return False
    rest = ~near & EDGES
    rest[1, 1, 1] = False
    parts, _ = ndimage.label(rest, FACES)
    return len(np.unique(parts[FACES & rest])) == 1


def same_topology(masks, voxels, order, value):
    """The first of some masks, after as many of some voxels as the topology of all allows have got a value.

    Args:
        masks: [(X, Y, Z) bool].
        voxels: (X, Y, Z) bool.
        order: (X, Y, Z), lowest first.
        value: What the voxels become in all masks, bool.

    Returns:
        (X, Y, Z) bool.
    """
    masks = [np.pad(mask, 1) for mask in masks]
    left = np.argwhere(voxels)[np.argsort(order[voxels], kind="stable")].tolist()
    number = None
    while len(left) != number:
        number, kept = len(left), []
        for x, y, z in left:
            near = (slice(x, x + 3), slice(y, y + 3), slice(z, z + 3))
            if all(is_simple(mask[near].tobytes()) for mask in masks):
                for mask in masks:
                    mask[x + 1, y + 1, z + 1] = value
            else:
                kept.append((x, y, z))
        left = kept
    return masks[0][1:-1, 1:-1, 1:-1]
