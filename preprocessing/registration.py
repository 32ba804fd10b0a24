"""Registration with ANTs: to a template at 2 mm, a gate, new starts, and a look at the region.

At 2 mm a rigid registration takes a fifteenth of the time of one at full resolution, and errs by a small
fraction of a voxel. Between subjects, the error at a region comes from anatomy: a second stage whose metric
sees a box around the region alone lessens it.

ANTs is LPS, nibabel RAS: matrices here are RAS, and only world coordinates are compared.
"""

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from preprocessing.images import LPS_RAS, SEED, grid_of, import_ants

COARSE_MM = 2.0  # spacing of the registration
START_MM = 4.0  # spacing of the trial starts
REGION_MM = 1.25  # spacing of the stage that looks at the region
START_DEGREES = 30.0
NMI_GATE = 1.15  # phantom heads: 1.17 to 1.7 when right, at most 1.14 when 10 degrees or 10 mm wrong
NMI_BINS = 32
NMI_SMOOTHING = 1.0  # voxels at 2 mm; without it, noise hides the difference
LEAST_OVERLAP = 0.3  # of the template, below which two images tell nothing
FARTHEST_LOOK_MM = 15.0  # by which the second look may move the middle of the region
LEVELS = {"iterations": (500, 250, 100), "shrink": (4, 2, 1)}
QUICK_LEVELS = {"iterations": (500, 250), "shrink": (4, 2)}  # where a deformable registration follows
TYPES = {6: "Rigid", 12: "Affine"}


@dataclass
class Registered:
    """A registration.

    Args:
        matrix: (4, 4), points of the template to points of the scan, RAS mm.
        nmi: Normalised mutual information of the two, from 1 (independent) to 2 (equal).
        start: How it was found: centres of mass, or which of the trial starts.
    """

    matrix: np.ndarray
    nmi: float
    start: str


def at_spacing(image, mm):
    """An ANTs image resampled linearly to isotropic voxels of `mm`."""
    ants = import_ants()
    return ants.resample_image(image, (mm, mm, mm), use_voxels=False, interp_type=0)


def register(fixed, moving, dof=6, iterations=(500, 250, 100), shrink=(4, 2, 1), initial=None, mask=None):
    """One ANTs registration by Mattes mutual information; reproducible.

    Args:
        fixed, moving: ANTs images.
        dof: 6 (rigid) or 12 (affine).
        iterations, shrink: One number for every level, coarse to fine.
        initial: (4, 4) start, points of `fixed` to points of `moving`, RAS; None aligns the centres of mass.
        mask: ANTs image of where the metric looks, on the grid of `fixed`.

    Returns:
        (4, 4) matrix, points of `fixed` to points of `moving`, RAS mm.
    """
    ants = import_ants()
    with tempfile.TemporaryDirectory() as scratch:
        start = None
        if initial is not None:
            start = str(Path(scratch) / "start.mat")
            write_transform(initial, start)
        found = ants.registration(
            fixed,
            moving,
            type_of_transform=TYPES[dof],
            initial_transform=None if start is None else [start],
            mask=mask,
            aff_metric="mattes",
            aff_random_sampling_rate=0.25,
            aff_iterations=iterations,
            aff_shrink_factors=shrink,
            aff_smoothing_sigmas=tuple(s // 2 for s in shrink),
            random_seed=SEED,
            outprefix=str(Path(scratch) / "out"),
        )
        return chained(found["fwdtransforms"])


def chained(paths):
    """Matrix of a list of ANTs transforms, the last applied first. Shapes: -> (4, 4) RAS"""
    matrix = np.eye(4)
    for path in paths:
        matrix = matrix @ read_transform(path)
    return matrix


def read_transform(path):
    """(4, 4) matrix of an ITK affine .mat file, RAS: points of the fixed image to those of the moving one."""
    ants = import_ants()
    transform = ants.read_transform(str(path))
    parameters, center = np.array(transform.parameters), np.array(transform.fixed_parameters)
    linear, translation = parameters[:9].reshape(3, 3), parameters[9:]
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = translation + center - linear @ center
    return LPS_RAS @ matrix @ LPS_RAS


def write_transform(matrix, path):
    """Write a (4, 4) RAS matrix as an ITK affine .mat file."""
    ants = import_ants()
    lps = LPS_RAS @ np.asarray(matrix) @ LPS_RAS
    transform = ants.create_ants_transform(
        transform_type="AffineTransform",
        dimension=3,
        matrix=lps[:3, :3],
        offset=lps[:3, 3],
    )
    ants.write_transform(transform, str(path))


def normalized_mutual_information(fixed, moving, matrix, mask=None):
    """(H(a) + H(b)) / H(a, b) of two images under a transform, where they overlap (Studholme et al. 1999).

    Args:
        fixed, moving: ANTs images.
        matrix: (4, 4), points of `fixed` to points of `moving`, RAS.
        mask: (X, Y, Z) bool, the voxels of `fixed` that count; None is all.
    """
    warped = resample(moving, fixed, matrix).numpy()
    both = covered_by(moving, fixed, matrix)
    if mask is None:
        mask = np.ones(fixed.shape, bool)
    both &= mask
    if both.sum() < LEAST_OVERLAP * mask.sum():
        return 1.0
    a, b = (ndimage.gaussian_filter(v, NMI_SMOOTHING)[both] for v in (fixed.numpy(), warped))
    edges = [np.linspace(*np.percentile(v, (0.5, 99.5)), NMI_BINS + 1) for v in (a, b)]
    if any(e[0] == e[-1] for e in edges):
        return 1.0
    joint = np.histogram2d(a.clip(edges[0][0], edges[0][-1]), b.clip(edges[1][0], edges[1][-1]), edges)[0]
    joint /= joint.sum()
    together = entropy(joint)
    return float((entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0))) / together) if together else 1.0


def covered_by(moving, fixed, matrix):
    """Voxels of an ANTs image that lie inside another. Shapes: -> (X, Y, Z) bool, on the grid of `fixed`"""
    grid, other = grid_of(fixed), grid_of(moving)
    to_moving = np.linalg.inv(other.affine) @ matrix @ grid.affine
    inside = np.ones(fixed.shape, bool)
    axes = np.meshgrid(*map(np.arange, fixed.shape), indexing="ij", sparse=True)
    for row, edge in zip(to_moving[:3], moving.shape, strict=True):
        place = row[3] + sum(factor * axis for factor, axis in zip(row, axes, strict=False))
        inside &= (place >= 0) & (place <= edge - 1)
    return inside


def entropy(shares):
    """Entropy of a distribution, nats."""
    shares = shares[shares > 0]
    return -float(np.sum(shares * np.log(shares)))


def resample(moving, fixed, matrix, interpolator="linear"):
    """An ANTs image on the grid of another, through a (4, 4) matrix from `fixed` to `moving`, RAS."""
    ants = import_ants()
    with tempfile.TemporaryDirectory() as scratch:
        path = str(Path(scratch) / "t.mat")
        write_transform(matrix, path)
        return ants.apply_transforms(fixed, moving, [path], interpolator=interpolator)


def starts():
    """Seven rotations about the centre: none, and START_DEGREES each way about each axis."""
    from scipy.spatial.transform import Rotation

    yield np.eye(3)
    for axis, sign in itertools.product("xyz", (1, -1)):
        yield Rotation.from_euler(axis, sign * START_DEGREES, degrees=True).as_matrix()


def center_of_mass(image):
    """Centre of mass of an ANTs image, RAS mm."""
    ants = import_ants()
    return np.array(ants.get_center_of_mass(image)) * (-1, -1, 1)


def align(fixed, moving, dof=6, gate=NMI_GATE, levels=LEVELS):
    """Register from centres of mass; if the gate says that it failed, from seven starts, the best by NMI.

    Args:
        fixed, moving: ANTs images at COARSE_MM.
        dof: 6 or 12.
        gate: Normalised mutual information that a success reaches.
        levels: Iterations and shrink factors, as of `register`.

    Returns:
        Registered; its nmi may still be below the gate.
    """
    matrix = register(fixed, moving, dof, **levels)
    nmi = normalized_mutual_information(fixed, moving, matrix)
    if nmi >= gate:
        return Registered(matrix, nmi, "centres of mass")
    small = [at_spacing(image, START_MM) for image in (fixed, moving)]
    centers = [center_of_mass(image) for image in small]
    trials = []
    for number, rotation in enumerate(starts()):
        initial = np.eye(4)
        initial[:3, :3] = rotation
        initial[:3, 3] = centers[1] - rotation @ centers[0]
        found = register(*small, 6, iterations=(200, 100), shrink=(2, 1), initial=initial)
        trials.append((normalized_mutual_information(*small, found), number, found))
    _, number, best = max(trials, key=lambda trial: trial[0])
    again = register(fixed, moving, dof, **levels, initial=best)
    again_nmi = normalized_mutual_information(fixed, moving, again)
    if again_nmi > nmi:
        return Registered(again, again_nmi, f"start {number}")
    return Registered(matrix, nmi, "centres of mass")


def look_again(fixed, moving, matrix, box):
    """Rigid registration that starts at `matrix` and sees the template inside a box alone.

    Args:
        fixed, moving: ANTs images at any spacing.
        matrix: (4, 4), points of `fixed` to points of `moving`, RAS.
        box: ANTs image on the grid of `fixed`, 1 inside the box.

    Returns:
        (4, 4) matrix; `matrix` itself if the box is not more alike, or moved by more than FARTHEST_LOOK_MM.
    """
    pair = [at_spacing(image, REGION_MM) for image in (fixed, moving)]
    ants = import_ants()
    mask = ants.resample_image_to_target(box, pair[0], interp_type="nearestNeighbor")
    found = register(*pair, 6, iterations=(200, 100), shrink=(2, 1), initial=matrix, mask=mask)
    seen = mask.numpy() > 0
    before, after = (normalized_mutual_information(*pair, m, seen) for m in (matrix, found))
    middle = grid_of(pair[0]).affine @ [*np.argwhere(seen).mean(axis=0), 1]
    moved = np.linalg.norm(((found - matrix) @ middle)[:3])
    return found if after > before and moved <= FARTHEST_LOOK_MM else matrix


def unbiased(image):
    """An ANTs image without its bias field, which N4 (Tustison et al. 2010) finds on a shrunken copy."""
    ants = import_ants()
    small = at_spacing(image, START_MM)
    field = ants.n4_bias_field_correction(small, mask=ants.get_mask(small), return_bias_field=True)
    whole = ants.resample_image_to_target(field, image, interp_type="linear").numpy()
    return image.new_image_like(image.numpy() / np.maximum(whole, 0.1 * field.mean()))
