"""The region that is cut out: where it lies in the template, and whether the circle is in it.

Millimetres about a landmark mean the same on every template; voxels mean it on one alone.
"""

import sys
from dataclasses import dataclass

from volumetric.cli import UserError
from volumetric.files import read_json, reading, write_json
from volumetric.geometry import spacing_of, turn
from volumetric.vessels import vessel_mask

import nibabel as nib
import numpy as np
from scipy import ndimage

from preprocessing.images import Grid, check_bounds, crop_or_pad, fitted, grid_of, read_image
from preprocessing.quality import draw_region
from preprocessing.registration import COARSE_MM, at_spacing, mirror_of, resample

HEAD_SMOOTHING_MM, HEAD_SHARE = 2.0, 0.2  # a head is brighter than this share of its 99th percentile
NEAR_MM = 45.0  # of the head's centre, to the sides and to front and back: where vessels are looked for
CENTER_MM = (15.0, 35.0)  # of the head's centre: where the middle of the circle can be
UNBALANCED = 0.1  # weight of vessels that the other side does not match
STEADY_MM = 3.0  # smoothing of the sum over boxes
FARTHEST_MM = 15.0  # between the region's middle and the circle that is found on the template
LEAST_VESSELS = 0.002  # of the region's voxels
LEAST_SIDE = 0.15  # of the vessels' voxels, in the half that has less
OFF_MIDDLE = 0.25  # of the region's edge, between its middle and that of its vessels


@dataclass
class Vessels:
    """Bright vessels of a region.

    Args:
        share: Of the voxels.
        side: Share of them in the half, left or right, that has less.
        off: Distance of their centre from the region's, as share of its edge, along the worst axis.
    """

    share: float
    side: float
    off: float

    def problems(self):
        """What does not look like a circle of Willis, a phrase each."""
        if self.share < LEAST_VESSELS:
            return [f"{self.share:.2%} of the region is vessels, expected at least {LEAST_VESSELS:.1%}"]
        found = []
        if self.side < LEAST_SIDE:
            found.append(
                f"{self.side:.0%} of the vessels lie in one half of the region, expected at least "
                f"{LEAST_SIDE:.0%} left and right"
            )
        if self.off > OFF_MIDDLE:
            found.append(
                f"the vessels lie off the middle by {self.off:.0%} of the region, expected at most "
                f"{OFF_MIDDLE:.0%}"
            )
        return found


def vessels_of(array, affine):
    """Vessels of a volume. Shapes: (X, Y, Z), affine (4, 4) RAS"""
    array, affine = turn(array, affine)
    mask = vessel_mask(np.asarray(array, dtype=np.float32), spacing_of(affine))
    if not mask.any():
        return Vessels(0.0, 0.0, 0.0)
    places = np.argwhere(mask) / (np.array(mask.shape) - 1) - 0.5
    right = float((places[:, 0] > 0).mean())
    return Vessels(float(mask.mean()), min(right, 1 - right), float(np.abs(places.mean(axis=0)).max()))


def find_center(image, size):
    """Middle of the circle of Willis in a TOF head: the box with most vessels on both sides.

    The head's middle says where to look: the circle lies near it to the sides, and before it.

    Args:
        image: ANTs image, axes near right, front and up.
        size: Edges of the box, mm.

    Returns:
        (3,) RAS mm.

    Raises:
        UserError: There is no bright vessel where the circle should be.
    """
    spacing, values = np.array(image.spacing), image.numpy()
    smooth = ndimage.gaussian_filter(values, HEAD_SMOOTHING_MM / spacing)
    middle = np.array(ndimage.center_of_mass(smooth > HEAD_SHARE * np.percentile(smooth, 99)))
    near = NEAR_MM / spacing[:2]
    low = np.maximum(np.floor(middle[:2] - near), 0).astype(int)
    high = np.ceil(middle[:2] + near).astype(int)
    part = values[low[0] : high[0], low[1] : high[1]]
    mask = vessel_mask(part, spacing)
    bright = (part - np.median(part)).clip(0) ** 2 * mask  # less weight at the skull
    width = np.clip(np.rint(np.array(size) / spacing).astype(int), 1, part.shape)
    half = max(width[0] // 2, 1)
    mass = ndimage.uniform_filter(bright, (half, width[1], width[2]), mode="constant")
    sides = [ndimage.shift(mass, (sign * (half / 2), 0, 0), order=0) for sign in (1, -1)]
    score = ndimage.gaussian_filter(np.minimum(*sides) + UNBALANCED * sum(sides), STEADY_MM / spacing)
    here = middle[:2] - low
    for axis in range(2):
        off = np.abs(np.arange(part.shape[axis]) - here[axis]) * spacing[axis]
        score[(off > CENTER_MM[axis],) if axis == 0 else (slice(None), off > CENTER_MM[axis])] = 0
    inside = np.arange(part.shape[2])
    whole = (inside >= width[2] // 2) & (inside < part.shape[2] - width[2] // 2)
    if whole.any():
        score[:, :, ~whole] = 0
    if not score.any():
        raise UserError(
            "has no bright vessels where the circle of Willis should be: is it TOF MRA? Give --region_center"
        )
    place = np.array(np.unravel_index(score.argmax(), score.shape), float)
    place[:2] += low
    return (grid_of(image).affine @ [*place, 1])[:3]


def region_about(image, center, size, shape):
    """Grid of a region in millimetres.

    Args:
        image: ANTs image, whose axes it takes.
        center, size: (3,), RAS mm.
        shape: Voxels.
    """
    axes = np.asarray(grid_of(image).affine[:3, :3]) / image.spacing
    affine = np.eye(4)
    affine[:3, :3] = axes * (np.array(size) / shape)
    affine[:3, 3] = np.array(center) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(tuple(shape), affine)


def choose_region(config, path):
    """The region in a template's space.

    Args:
        config: PreprocessConfig.
        path: The template.

    Returns:
        (Grid, whose voxels are those of a volume or, by --cropping_bound_slices, of the template; a sentence
        on it; warnings).

    Raises:
        UserError: It does not lie in the template, or cannot be found there.
    """
    image = read_image(path)
    warnings, found = [], None
    try:
        found = find_center(image, config.region_size)
    except UserError as error:
        if config.region_center is None and config.cropping_bound_slices is None:
            raise UserError(f"The template {path} {error}.") from None
        warnings.append(f"the template {path} {error}")
    if config.cropping_bound_slices is not None:
        stored = grid_of(read_image(path, canonical=False))
        check_bounds(config.cropping_bound_slices, stored, f"The template {path}")
        grid, text = stored.crop(config.cropping_bound_slices), "by --cropping_bound_slices"
    elif config.region_center is not None:
        check_inside(config.region_center, grid_of(image), path)
        grid = region_about(image, config.region_center, config.region_size, config.target_size)
        text = "by --region_center"
    else:
        grid = region_about(image, found, config.region_size, config.target_size)
        text = "found on it"
    middle = (grid.affine @ [*((np.array(grid.shape) - 1) / 2), 1])[:3]
    edges = nib.affines.voxel_sizes(grid.affine) * grid.shape
    if found is not None and np.linalg.norm(found - middle) > FARTHEST_MM:
        warnings.append(
            f"the circle of Willis seems to lie at {at(found)} mm of the template, "
            f"{np.linalg.norm(found - middle):.0f} mm from the region's middle"
        )
    size = " x ".join(f"{edge:.1f}" for edge in edges)
    text = f"The region is {size} mm about {at(middle)} mm of the template, {text}."
    return grid, text, warnings


def check_inside(center, whole, path):
    """Raise a UserError unless --region_center lies within the template's Grid."""
    voxel = (np.linalg.inv(whole.affine) @ [*center, 1])[:3]
    if (voxel < 0).any() or (voxel > np.array(whole.shape) - 1).any():
        raise UserError(f"--region_center {center} does not lie in the template {path}.")


def at(point):
    """A point for a message, as --region_center takes it."""
    return ",".join(f"{p:.1f}" for p in point)


def volume_grid(region, target_size):
    """Grid of a volume: the region, cropped or padded about its middle to so many voxels."""
    return region.crop(fitted(region.shape, target_size))


def to_target(array, target_size):
    """A region's array, cropped or padded with zeros to `target_size`."""
    return crop_or_pad(array, fitted(array.shape, target_size)).astype(np.float32)


def place_region(config, path):
    """Region's Grid and the template's mirror, chosen at the first call and kept in region.json."""
    kept = config.folder / "region.json"
    if kept.exists():
        record = read_json(kept)
        with reading(kept):
            grid = Grid(tuple(record["shape"]), np.array(record["affine"], dtype=float))
            return grid, np.array(record["mirror"], dtype=float)
    grid, text, warnings = choose_region(config, path)
    image = read_image(path)
    mirror = mirror_of(at_spacing(image, COARSE_MM))
    volume = to_target(resample(image, grid.image(), np.eye(4)).numpy(), config.target_size)
    seen = vessels_of(volume, volume_grid(grid, config.target_size).affine).problems()
    warnings += [f"in the template's region {problem}" for problem in seen]
    draw_region(image, grid, config.folder / "region.png")
    print(f"{text} Is the circle in the frame of {config.folder / 'region.png'}? Else give --region_center.")
    for warning in warnings:
        print(f"Warning: {warning}.", file=sys.stderr)
    record = {"shape": grid.shape, "affine": grid.affine.tolist(), "mirror": mirror.tolist()}
    record |= {"about": text, "warnings": warnings}
    write_json(kept, record)
    return grid, mirror


def check_millimetres(flag, value):
    """Raise a UserError unless a flag holds three finite numbers, above 0 for a size."""
    if value is None and flag == "region_center":
        return
    numbers = isinstance(value, tuple | list) and len(value) == 3
    if not numbers or not all(isinstance(v, int | float) and np.isfinite(v) for v in value):
        raise UserError(f"--{flag} must be three numbers of mm, got {value}.")
    if flag == "region_size" and min(value) <= 0:
        raise UserError(f"--region_size must be above 0, got {value}.")
