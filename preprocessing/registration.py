"""Registration with ANTs: to a template at 2 mm, what tells if it is right, new starts, the second look.

At 2 mm a rigid registration takes a fifteenth of the time of one at full resolution, and errs by a small
fraction of a voxel. Between subjects, the error at a region comes from anatomy: a second stage whose metric
sees a box around the region alone lessens it.

Normalised mutual information has no value that every right registration reaches: it depends on contrast,
slab and anatomy. So each is compared with the same scan displaced, turned and mirrored on purpose.

ANTs is LPS, nibabel RAS: matrices here are RAS, and only world coordinates are compared.
"""

import inspect
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import UserError
from volumetric.files import reading

import numpy as np
from scipy import ndimage
from scipy.stats import median_abs_deviation

from preprocessing.images import LPS_RAS, grid_of, import_ants, to_ants, within

COARSE_MM = 2.0  # spacing of the registration
SWAPPED = 1.03  # NMI - 1 with sides exchanged, over that as it is, above which they are swapped
LEAST_COHORT = 4  # scans, from which on swapped sides are looked for
LEAST_APART = 2.0  # of right sides from none, in standard deviations of the cohort, that they can be told
START_MM = 4.0  # spacing of the trial starts
REGION_MM = 1.25  # spacing of the stage that looks at the region
START_DEGREES = 30.0
TURNS_TRIED = 3  # quarter and half turns, the most alike ones, that are tried
MASSES = "centres of mass"
LIKENESS_MM = 3.0  # spacing at which mutual information is taken
NMI_BINS = 32
NMI_SMOOTHING = 1.0  # voxels; without it, noise hides the difference
LEAST_OVERLAP = 0.6  # of the smaller image: a slab that lies across the other has less
DISTINCT = 1.25  # NMI - 1 of a right registration over that of the same displaced by 10 mm or degrees
STEP_MM, FAR_MM, TURN_DEGREES = 4.0, 10.0, 10.0  # displacements, none of which must be better
LOOK_MARGIN_MM = 20.0  # around the box of the second look
FARTHEST_LOOK_MM = 15.0  # by which the second look may move the middle of the region
LEVELS = {"iterations": (500, 250, 100), "shrink": (4, 2, 1)}
QUICK_LEVELS = {"iterations": (500, 250), "shrink": (4, 2)}  # where a deformable registration follows
TYPES = {6: "Rigid", 12: "Affine"}
TRANSFORM_BYTES = 4096  # in which a transform says of what kind it is
DEFORMATIONS = (b"DisplacementField", b"BSpline")  # in the names of ITK's kinds


@dataclass
class Fit:
    """How far a registration stands out from displaced versions of itself.

    Args:
        nmi: Normalised mutual information, from 1 (independent) to 2 (equal).
        overlap: Share of the smaller image that lies in the other.
        distinct: NMI - 1 over its mean where displaced by FAR_MM or turned by TURN_DEGREES.
        better: The displacement that is most alike, if it is more alike, or "".
        mirrored: NMI - 1 with left and right of the template exchanged, over that as it is; 0: not asked.
    """

    nmi: float
    overlap: float
    distinct: float
    better: str
    mirrored: float

    def problems(self, nmi_gate=1.0, distinct=DISTINCT):
        """What is wrong with the registration, a phrase each."""
        found = []
        if self.overlap < LEAST_OVERLAP:
            found.append(
                f"only {self.overlap:.0%} of the smaller image lies in the other, at least "
                f"{LEAST_OVERLAP:.0%} are expected"
            )
        if self.better:
            found.append(f"the scan fits better {self.better}")
        if self.distinct < distinct:
            found.append(
                f"the match does not stand out: {self.distinct:.2f} times as good as displaced by "
                f"{FAR_MM:g} mm or turned by {TURN_DEGREES:g} degrees, expected at least {distinct:g}"
            )
        if self.nmi < nmi_gate:
            found.append(
                f"normalised mutual information {self.nmi:.3f}, expected at least {nmi_gate:g} (--nmi_gate)"
            )
        return found


@dataclass
class Registered:
    """A registration.

    Args:
        matrix: (4, 4), points of the template to points of the scan, RAS mm.
        fit: Fit.
        start: How it was found: centres of mass, or which of the trial starts.
    """

    matrix: np.ndarray
    fit: Fit
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
    with tempfile.TemporaryDirectory() as scratch:
        start = None
        if initial is not None:
            start = str(Path(scratch) / "start.mat")
            write_transform(initial, start)
        found = by_ants(
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
            outprefix=str(Path(scratch) / "out"),
        )
        return chained(found)


def by_ants(fixed, moving, **settings):
    """Paths of the transforms that ants.registration finds, the last applied first.

    It takes any keyword without a word, as a misspelt one. What makes it reproducible is no keyword, but
    ANTS_RANDOM_SEED and one thread, which `import_ants` sets.
    """
    registration = import_ants().registration
    unknown = settings.keys() - inspect.signature(registration).parameters.keys()
    if unknown:
        raise TypeError(f"ants.registration has no {', '.join(sorted(unknown))}")
    return registration(fixed, moving, **settings)["fwdtransforms"]


def chained(paths):
    """Matrix of a list of ANTs transforms, the last applied first. Shapes: -> (4, 4) RAS"""
    matrix = np.eye(4)
    for path in paths:
        matrix = matrix @ read_transform(path)
    return matrix


def read_transform(path):
    """(4, 4) matrix of an ITK linear transform, RAS: points of the fixed image to those of the moving one.

    Raises:
        UserError: It is no linear transform of 3D points.
    """
    ants = import_ants()
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [40, 50, 60]], float)
    with reading(path, "write a linear ITK transform"):
        refuse_other_kinds(path)
        transform = ants.read_transform(str(path))
        moved = np.array([transform.apply_to_point(tuple(point)) for point in corners])
        matrix = np.eye(4)
        matrix[:3, 3] = moved[0]
        matrix[:3, :3] = (moved[1:4] - moved[0]).T
        if not np.allclose(matrix[:3, :3] @ corners[4] + moved[0], moved[4], atol=1e-2):
            raise UserError("is no linear transform")
    return LPS_RAS @ matrix @ LPS_RAS


def refuse_other_kinds(path):
    """Raise a UserError for what other programs call a transform: a matrix of FSL, a deformation."""
    start = Path(path).read_bytes()[:TRANSFORM_BYTES]
    if any(kind in start for kind in DEFORMATIONS):
        raise UserError("is a deformation, expected a linear transform: register linearly, and save that")
    try:
        numbers = np.array(start.split(), dtype=float)
    except ValueError:
        return
    if numbers.size == 16 and (numbers[12:] == (0, 0, 0, 1)).all():
        raise UserError(
            f"is a matrix of FSL, which ITK does not read: convert it (c3d_affine_tool -ref TEMPLATE "
            f"-src SCAN {path} -fsl2ras -oitk {Path(path).stem}.txt)"
        )


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


class Likeness:
    """Normalised mutual information of two images (Studholme et al. 1999), under any transform.

    Args:
        fixed, moving: ANTs images.
        mm: Spacing at which they are compared.
        mask: ANTs image on the grid of `fixed`: where it counts.
    """

    def __init__(self, fixed, moving, mm=LIKENESS_MM, mask=None):
        images = [at_spacing(image, mm) for image in (fixed, moving)]
        self.grids = [grid_of(image) for image in images]
        values = [ndimage.gaussian_filter(image.numpy(), NMI_SMOOTHING) for image in images]
        self.ranges = [np.percentile(v, (0.5, 99.5)) for v in values]
        self.codes = codes(values[0], self.ranges[0])
        self.moving = values[1]
        self.covered = np.ones(self.codes.shape, bool)
        if mask is not None:
            there = import_ants().resample_image_to_target(mask, images[0], interp_type="nearestNeighbor")
            self.covered = there.numpy() > 0
        sizes = [np.prod(g.shape) * abs(np.linalg.det(g.affine[:3, :3])) for g in self.grids]
        self.smaller = min(sizes) / abs(np.linalg.det(self.grids[0].affine[:3, :3]))  # in voxels of `fixed`

    @property
    def middle(self):
        """Middle of the fixed image, RAS mm."""
        return (self.grids[0].affine @ [*((np.array(self.grids[0].shape) - 1) / 2), 1])[:3]

    def __call__(self, matrix):
        """(NMI, share of the smaller image that lies in the other) at a matrix from `fixed` to `moving`."""
        to_moving = np.linalg.inv(self.grids[1].affine) @ matrix @ self.grids[0].affine
        warped = ndimage.affine_transform(
            self.moving, to_moving[:3, :3], to_moving[:3, 3], self.covered.shape, order=1, cval=np.nan
        )
        both = np.isfinite(warped)
        overlap = float(both.sum() / self.smaller)
        both &= self.covered
        if overlap < LEAST_OVERLAP / 2 or not both.any():
            return 1.0, overlap
        pairs = self.codes[both] * NMI_BINS + codes(warped[both], self.ranges[1])
        joint = np.bincount(pairs, minlength=NMI_BINS**2).reshape(NMI_BINS, NMI_BINS) / both.sum()
        together = entropy(joint)
        apart = entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))
        return (float(apart / together) if together else 1.0), overlap


def codes(values, limits):
    """Number of the bin of each value, between two limits."""
    low, high = limits
    scaled = (values - low) * (NMI_BINS / max(high - low, 1e-12))
    return scaled.clip(0, NMI_BINS - 1).astype(np.int32)


def displaced(center):
    """Yield (name, matrix) of displacements about a point: shifts of two lengths, and turns."""
    for mm in (STEP_MM, FAR_MM):
        for axis, (low, high) in enumerate((("left", "right"), ("back", "front"), ("down", "up"))):
            for sign, name in ((-1, low), (1, high)):
                matrix = np.eye(4)
                matrix[axis, 3] = sign * mm
                yield f"{mm:g} mm {name}", matrix
    for axis, sign in itertools.product("xyz", (1, -1)):
        degrees = sign * TURN_DEGREES
        yield f"turned by {degrees:g} degrees about {axis}", turned(axis, degrees, center)


def turned(axis, degrees, center):
    """Rotation about an axis through a point, RAS. Shapes: -> (4, 4)"""
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    matrix[:3, 3] = center - matrix[:3, :3] @ center
    return matrix


def assess(likeness, matrix, mirror=None):
    """Compare a registration with displaced versions of itself.

    Args:
        likeness: Likeness of the template and the scan.
        matrix: (4, 4), points of the template to points of the scan.
        mirror: (4, 4) of `mirror_of`, or None: the sides are not asked for.

    Returns:
        Fit.
    """
    nmi, overlap = likeness(matrix)
    found = {name: likeness(matrix @ step)[0] for name, step in displaced(likeness.middle)}
    best = max(found, key=found.get)
    far = np.mean([value for name, value in found.items() if not name.startswith(f"{STEP_MM:g} mm")])
    mirrored = 0.0
    if mirror is not None and found[best] <= nmi:
        exchanged = max(likeness(matrix @ step @ mirror)[0] for step in small_steps())
        mirrored = (exchanged - 1) / max(nmi - 1, 1e-6)
    distinct = float(min((nmi - 1) / max(far - 1, 1e-6), 99.0))
    return Fit(nmi, overlap, distinct, best if found[best] > nmi else "", mirrored)


def small_steps():
    """No step, and one of half STEP_MM each way along each axis. Shapes: (4, 4) each"""
    yield np.eye(4)
    for axis, sign in itertools.product(range(3), (1, -1)):
        matrix = np.eye(4)
        matrix[axis, 3] = sign * STEP_MM / 2
        yield matrix


def mirror_of(image):
    """The transform that exchanges left and right of a head about its own middle plane, RAS.

    Shapes: ANTs image -> (4, 4), points to mirrored points
    """
    center = center_of_mass(image)[0]
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 2 * center
    grid = grid_of(image)
    mirrored = to_ants(image.numpy(), flip @ grid.affine)
    return flip @ register(image, mirrored, 6, **QUICK_LEVELS)


def sides_can_be_told(ratios):
    """True if scans agree, beyond their spread, on which side of the template is which.

    Args:
        ratios: `mirrored` of each Fit; None or 0 counts for nothing.
    """
    logs = np.log([ratio for ratio in ratios if ratio])
    if len(logs) < LEAST_COHORT:
        return False
    spread = median_abs_deviation(logs, scale="normal")
    return bool(np.median(logs) < -max(np.log(SWAPPED), LEAST_APART * spread))


def covered_by(moving, fixed, matrix):
    """Voxels of a Grid that lie inside another. Shapes: -> (X, Y, Z) bool, on the grid `fixed`"""
    to_moving = np.linalg.inv(moving.affine) @ matrix @ fixed.affine
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
    """Rotations to start from: none, START_DEGREES about each axis, quarter and half turns of the head."""
    from scipy.spatial.transform import Rotation

    yield np.eye(3)
    for axis, sign in itertools.product("xyz", (1, -1)):
        yield Rotation.from_euler(axis, sign * START_DEGREES, degrees=True).as_matrix()
    for rotation in Rotation.create_group("O"):
        if rotation.magnitude() > 0.1:
            yield rotation.as_matrix()


def center_of_mass(image):
    """Centre of mass of an ANTs image, RAS mm."""
    ants = import_ants()
    return np.array(ants.get_center_of_mass(image)) * (-1, -1, 1)


def align(fixed, moving, dof=6, levels=LEVELS, mirror=None, initial=None):
    """Register from centres of mass, or from a start by hand; if that does not stand out, from many starts.

    Args:
        fixed, moving: ANTs images at COARSE_MM.
        dof: 6 or 12.
        levels: Iterations and shrink factors, as of `register`.
        mirror: (4, 4) of `mirror_of`, to tell swapped sides; or None.
        initial: (4, 4), from which alone to start, points of `fixed` to points of `moving`; or None.

    Returns:
        Registered; its fit may still have problems.
    """
    likeness = Likeness(fixed, moving)
    matrix = register(fixed, moving, dof, **levels, initial=initial)
    first = Registered(matrix, assess(likeness, matrix, mirror), "by hand" if initial is not None else MASSES)
    if initial is not None or not first.fit.problems():
        return first
    centers = [center_of_mass(image) for image in (fixed, moving)]
    trials = []
    for number, rotation in enumerate(starts()):
        start = np.eye(4)
        start[:3, :3] = rotation
        start[:3, 3] = centers[1] - rotation @ centers[0]
        trials.append((likeness(start)[0], number, start))
    small, found = [at_spacing(image, START_MM) for image in (fixed, moving)], []
    for _, number, start in sorted(trials, key=lambda t: (t[1] > 6, -t[0]))[: 7 + TURNS_TRIED]:
        near = register(*small, 6, iterations=(200, 100), shrink=(2, 1), initial=start)
        found.append((likeness(near)[0], number, near))
    _, number, best = max(found, key=lambda trial: trial[0])
    again = register(fixed, moving, dof, **levels, initial=best)
    second = Registered(again, assess(likeness, again, mirror), f"start {number}")
    return max((first, second), key=lambda one: (not one.fit.problems(), one.fit.nmi))


def look_again(fixed, moving, matrix, box):
    """Rigid registration that starts at `matrix` and sees the template inside a box alone.

    Args:
        fixed, moving: ANTs images at any spacing.
        matrix: (4, 4), points of `fixed` to points of `moving`, RAS.
        box: ANTs image on the grid of `fixed`, 1 inside the box.

    Returns:
        (4, 4) matrix; `matrix` itself if the box is not more alike, or moved by more than FARTHEST_LOOK_MM.
    """
    grid = grid_of(fixed)
    inside = np.argwhere(box.numpy() > 0)
    margin = np.ceil(LOOK_MARGIN_MM / np.array(fixed.spacing)).astype(int)
    bounds = [
        (int(max(a, 0)), int(b))
        for a, b in zip(inside.min(0) - margin, inside.max(0) + 1 + margin, strict=True)
    ]
    part = within(bounds, fixed.shape)
    near = grid.crop([(s.start, s.stop) for s in part])
    fixed = to_ants(fixed.numpy()[part], near.affine)
    box = to_ants(box.numpy()[part], near.affine)
    pair = [at_spacing(fixed, REGION_MM), at_spacing(cut_to(moving, near, matrix), REGION_MM)]
    mask = import_ants().resample_image_to_target(box, pair[0], interp_type="nearestNeighbor")
    found = register(*pair, 6, iterations=(200, 100), shrink=(2, 1), initial=matrix, mask=mask)
    likeness = Likeness(*pair, REGION_MM, mask)
    before, after = likeness(matrix)[0], likeness(found)[0]
    middle = np.append(likeness.middle, 1)
    moved = np.linalg.norm(((found - matrix) @ middle)[:3])
    return found if after > before and moved <= FARTHEST_LOOK_MM else matrix


def cut_to(moving, grid, matrix):
    """The part of an ANTs image that a grid covers through a matrix, with LOOK_MARGIN_MM around it."""
    own = grid_of(moving)
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in grid.shape]))) @ grid.affine[:3, :3].T
    world = (corners + grid.affine[:3, 3]) @ matrix[:3, :3].T + matrix[:3, 3]
    back = np.linalg.inv(own.affine)
    voxels = world @ back[:3, :3].T + back[:3, 3]
    margin = LOOK_MARGIN_MM / np.array(moving.spacing)
    low, high = np.floor(voxels.min(0) - margin), np.ceil(voxels.max(0) + margin) + 1
    part = within([(int(a), int(b)) for a, b in zip(low, high, strict=True)], moving.shape)
    if any(s.stop - s.start < 2 for s in part):  # the scan does not reach it
        return moving
    return to_ants(moving.numpy()[part], own.crop([(s.start, s.stop) for s in part]).affine)


def unbiased(image):
    """An ANTs image without its bias field, which N4 (Tustison et al. 2010) finds on a shrunken copy."""
    ants = import_ants()
    small = at_spacing(image, START_MM)
    field = ants.n4_bias_field_correction(small, mask=ants.get_mask(small), return_bias_field=True)
    whole = ants.resample_image_to_target(field, image, interp_type="linear").numpy()
    return image.new_image_like(image.numpy() / np.maximum(whole, 0.1 * field.mean()))
