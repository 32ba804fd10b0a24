"""Lung-nodule phantoms: small synthetic CT volumes of three kinds of nodules, with their masks.

    python sample_data/phantom.py --nodules --output nodules --labels masks --num 96

Kinds, after the Fleischner Society's terms (Hansell et al. 2008, doi:10.1148/radiol.2462070712): pure ground
glass, part-solid, solid. Values in Hounsfield units. From the literature: ground glass of -675 to -560 HU
(cut-offs between pre-invasive and invasive part-solid nodules, Wang et al. 2018,
doi:10.5812/iranjradiol.61846); what is brighter than -160 HU counts as solid (Lee et al. 2018,
doi:10.1371/journal.pone.0205490); a nodule is smaller than 30 mm. The rest (shapes, vessels, noise) is an
assumption. No patient's image is in it.
"""

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

KINDS = ("ground_glass", "part_solid", "solid")
FIELD = 40.0  # mm, edge of every volume
MASK = {"ground_glass": 1, "solid": 2}  # ids of a mask
LUNG, SOFT, VESSEL = -860.0, 45.0, 40.0  # HU: parenchyma, chest wall, blood
GROUND_GLASS = (-675.0, -560.0)
SOLID = (-10.0, 50.0)
RADIUS = {"ground_glass": (4.0, 9.0), "part_solid": (5.0, 11.0), "solid": (3.5, 10.0)}  # mm
CORE = (0.35, 0.7)  # radius of the solid part, as a share
BLUR = 0.6  # mm, standard deviation of the scanner's point spread
FINEST = 0.8  # mm, edge of the voxels that are drawn and averaged


def make_nodule(seed, number, shape):
    """Nodule `number` of a series; its kind is the next of KINDS in turn.

    Args:
        seed, number: Whole numbers >= 0; a nodule depends on these and the shape alone.
        shape: (X, Y, Z), voxels.

    Returns:
        volume: float32 (X, Y, Z), HU.
        mask: uint8 (X, Y, Z), ids of MASK.
        row: Its line of variants.csv.
    """
    rng, kind = np.random.default_rng((seed, number, 7)), KINDS[number % len(KINDS)]
    spacing = FIELD / np.array(shape)
    finer = np.maximum(1, np.ceil(spacing / FINEST)).astype(int)
    axes = [((np.arange(n * f) + 0.5) / (n * f) - 0.5) * FIELD for n, f in zip(shape, finer, strict=True)]
    place = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)
    step = spacing / finer
    texture = ndimage.gaussian_filter(rng.standard_normal(place.shape[:3], dtype=np.float32), 1.5 / step)
    volume = np.float32(rng.normal(LUNG, 20)) + 25 * texture / texture.std()
    center = rng.uniform(-4, 4, 3)
    for _ in range(rng.integers(2, 6)):
        draw_vessel(volume, place, rng, rng.uniform(-16, 16, 3), rng.normal(size=3))
    fed = rng.random() < 0.6
    if fed:
        draw_vessel(volume, place, rng, center, rng.normal(size=3))
    radius, spiculated = rng.uniform(*RADIUS[kind]), kind != "ground_glass" and rng.random() < 0.4
    depth = depth_of(place - center, radius, rng, spiculated)  # mm, positive inside
    glass, solid = np.zeros(1, np.float32), np.zeros(1, np.float32)
    if kind != "solid":
        glass = inside(depth, 1.0)
        level = rng.uniform(*GROUND_GLASS)
        volume += glass * (np.maximum(volume, level) - volume)
    if kind != "ground_glass":
        core = depth
        if kind == "part_solid":
            shift = rng.uniform(-0.2, 0.2, 3) * radius
            core = depth_of(place - center - shift, radius * rng.uniform(*CORE), rng, False)
        solid = inside(core, 0.4)
        volume += solid * (np.float32(rng.uniform(*SOLID)) - volume)
    wall = rng.random() < 0.35
    if wall:
        lung = 1 - draw_wall(volume, place, rng, center, radius)
        solid, glass = solid * lung, glass * lung
    volume = ndimage.gaussian_filter(volume, BLUR / step)
    volume = block_mean(volume, finer) + rng.normal(0, rng.uniform(15, 35), shape).astype(np.float32)
    solid = block_mean(np.broadcast_to(solid, place.shape[:3]), finer)
    glass = block_mean(np.broadcast_to(glass, place.shape[:3]), finer)
    mask = np.where(solid > 0.5, MASK["solid"], np.where(glass > 0.5, MASK["ground_glass"], 0)).astype(
        np.uint8
    )
    row = {"seed": seed, "number": number, "class": kind, "radius_mm": round(float(radius), 2)}
    row |= {"spiculated": spiculated, "fed_by_vessel": fed, "at_pleura": wall}
    return volume.clip(-1024, 600).astype(np.float32), mask, row


def depth_of(place, radius, rng, spiculated):
    """Depth below the surface of a lobulated ellipsoid. Shapes: (X, Y, Z, 3) mm -> (X, Y, Z) mm"""
    turned = place @ Rotation.random(random_state=int(rng.integers(2**31))).as_matrix().astype(np.float32)
    axes = radius * rng.uniform(0.8, 1.2, 3)
    distance = np.linalg.norm(turned, axis=-1)
    direction = turned / np.maximum(distance, 1e-3)[..., None]
    surface = 1 / np.linalg.norm(direction / axes.astype(np.float32), axis=-1)
    bumps = [(rng.normal(size=3), rng.uniform(2, 4), rng.uniform(0.03, 0.1)) for _ in range(3)]
    if spiculated:
        bumps += [(rng.normal(size=3), 25.0, rng.uniform(0.2, 0.4)) for _ in range(8)]
    for toward, sharpness, height in bumps:
        cosine = direction @ (toward / np.linalg.norm(toward)).astype(np.float32)
        surface = surface + radius * height * np.exp(sharpness * (cosine - 1))
    return surface - distance


def inside(depth, width):
    """Share of a voxel inside a surface that is `width` mm soft. Shapes: (X, Y, Z) -> the same"""
    return 0.5 + 0.5 * np.tanh(depth / width)


def draw_vessel(volume, place, rng, through, direction):
    """Draw a straight vessel that narrows along its way into a volume, in place."""
    direction = direction / np.linalg.norm(direction)
    offset = place - through
    along = offset @ direction.astype(np.float32)
    across = np.linalg.norm(offset - along[..., None] * direction, axis=-1)
    radius = rng.uniform(0.6, 1.8) * np.clip(1 - along / 60, 0.3, 1.3)
    volume += inside(radius - across, 0.3) * (VESSEL - volume)


def draw_wall(volume, place, rng, center, radius):
    """Draw the chest wall, curved, beside a nodule or touching it, in place; returns its share of voxels."""
    direction = rng.normal(size=3) * (1, 1, 0.3)
    direction /= np.linalg.norm(direction)
    curved = 60.0  # mm, radius of the pleura's curvature
    gap = rng.uniform(-0.3, 0.6) * radius
    distance = np.linalg.norm(place - center + direction * (curved - radius - gap), axis=-1) - curved
    wall = inside(distance, 0.5)
    volume += wall * (SOFT - volume)
    return wall


def block_mean(array, factors):
    """Means of blocks of voxels. Shapes: (X f, Y g, Z h), (f, g, h) -> (X, Y, Z)"""
    split = [part for n, f in zip(array.shape, factors, strict=True) for part in (n // f, f)]
    return array.reshape(split).mean(axis=(1, 3, 5))


def nodule_affine(shape):
    """Affine of a nodule of (X, Y, Z) voxels: RAS, mm, its middle at 0."""
    spacing = FIELD / np.array(shape)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(FIELD - spacing) / 2
    return affine
