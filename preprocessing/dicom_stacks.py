"""From the frames of a DICOM series to stacks: slices that lie behind each other at even distances.

    for stack in stacks_of(frames):
        stack.affine                  (4, 4), RAS mm, where nothing is wrong with it
        stack.passed_over, stack.reason      what it is in place of a scan; what is wrong with it

All is compared for all frames, never for the first alone. What differs where it must not refuses the stack;
echoes, components and stacks of one series are told apart.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

from volumetric.cli import UserError
from volumetric.files import by

import numpy as np

PLACE_TOLERANCE = 0.1  # mm, between where a voxel lies and where a grid of right angles puts it
GAP_TOLERANCE = 0.02  # of the distance between two slices
LEAST_GAP = 0.025  # mm, what rounded positions may differ by
TURN_TOLERANCE = 2e-4  # of cosines: 0.05 mm at the far end of a slice
PLANES = 3  # directions of a localiser
FILES_NAMED = 3
LOCALISERS = ("LOCALIZER", "LOCALISER", "SCOUT", "SURVEY")
PROJECTIONS = ("MIP", "MINIP", "MNIP", "CSA MIP", "PROJECTION", "PROJECTION IMAGE", "MAX_IP", "MIN_IP")
# What tells volumes of one series apart, in this order, and what a volume of it is called.
TELLING = {"kind": "", "echo": "echo", "stack": "stack", "weighting": "b", "time": "time"}
SERIES_OF_VOLUMES = {"weighting": "diffusion weightings", "time": "points of time"}
SCANS = ("MR", "CT", "PT")
NO_SCANS = ("Segmentation", "RT Dose", "Parametric Map", "Surface")  # in the names of their classes


@dataclass
class Stack:
    """Some frames of a series, and what they are.

    Args:
        frames: Frame of each slice; along the normal, where nothing is wrong.
        part: What it is called beside the other stacks of its series, "" where it is the only one.
        affine: (4, 4), voxels (column, row, slice) to RAS mm, or None.
        passed_over: What it is in place of a scan, or "".
        reason: What is wrong with it, or "".
    """

    frames: list = field(repr=False)
    part: str = ""
    affine: np.ndarray | None = None
    passed_over: str = ""
    reason: str = ""


def stacks_of(frames):
    """Stacks of all frames of a series, each placed, or with what is wrong with it."""
    try:
        parts = told_apart(frames)
    except UserError as error:
        return [Stack(frames, reason=str(error))]
    return [placed_or_refused(Stack(members, part)) for part, members in parts.items()]


def placed_or_refused(stack):
    """The stack, with its affine, or what it is, or what is wrong with it."""
    stack.passed_over = no_scan(stack.frames)
    if not stack.passed_over:
        try:
            check_alike(stack.frames)
            stack.frames, stack.affine = placed(stack.frames)
        except UserError as error:
            stack.reason = str(error)
    return stack


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Telling apart                                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def told_apart(frames):
    """{part: frames}: the volumes in a series; {"": frames} where it is one, or nothing tells them apart.

    What could tell them apart does so only where the frames are not one stack without it: some scanners give
    every slab of one volume a name of its own.

    Raises:
        UserError: It is a series of volumes in time, or of diffusion weightings.
    """
    parts = {"": frames}
    for name, title in TELLING.items():
        finer = {}
        for part, members in parts.items():
            values = values_of(members, name)
            if len(values) < 2 or is_one(members):
                finer[part] = members
                continue
            if name in SERIES_OF_VOLUMES and repeats(members):
                raise UserError(
                    f"holds {len(values)} volumes, of {len(values)} {SERIES_OF_VOLUMES[name]}, expected one: "
                    f"convert it with dcm2niix and extract one volume"
                )
            for value in values:
                word = words_of(value, values) if name == "kind" else f"{title}{value}"
                key = "_".join(w for w in (part, word) if w)
                finer[key] = [frame for frame in members if value_of(frame, name) == value]
        parts = finer
    return parts


def value_of(frame, name):
    """What could tell a frame from others; echo times that differ by less than 0.01 ms are one."""
    value = getattr(frame, name)
    return round(value, 2) if isinstance(value, float) else value


def values_of(frames, name):
    """All different values of what could tell frames apart, sorted."""
    return sorted({value_of(frame, name) for frame in frames}, key=lambda v: (v is not None, v))


def words_of(kind, kinds):
    """Words of an image type that not all types have, to call it by."""
    common = set.intersection(*map(set, kinds))
    return "-".join(dict.fromkeys(word for word in kind if word and word not in common)) or "plain"


def is_one(frames):
    """True if frames are one stack as far as it can be told: alike in size and turn, no place taken twice."""
    return (
        len({frame.file.shape[1:] for frame in frames}) == 1
        and not repeats(frames)
        and not turned_otherwise(frames)
    )


def repeats(frames):
    """How many frames lie where another one lies."""
    places = Counter(
        tuple(np.round([*frame.position, *frame.turn], 3) + 0.0)
        for frame in frames
        if frame.position is not None and frame.turn is not None
    )
    return places.total() - len(places)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ What is no scan, and what differs                                                                        ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def no_scan(frames):
    """What frames are in place of a scan: a localiser, a projection, a picture; "" for a scan."""
    file = frames[0].file
    words = set.intersection(*({word.upper() for word in frame.kind} for frame in frames))
    turns = {tuple(np.round(frame.turn, 2) + 0.0) for frame in frames if frame.turn is not None}
    placed = all(frame.position is not None and frame.turn is not None for frame in frames)
    if all(f.file.samples > 1 or not f.file.photometric.startswith("MONOCHROME") for f in frames):
        return f"in colour ({file.photometric})"
    if any(word in file.sort.name for word in NO_SCANS) or (not placed and not is_scan(file)):
        return f"no scan ({file.sort.name or file.modality})"
    if words & set(LOCALISERS) or any(w in file.description.upper() for w in LOCALISERS):
        return "a localiser"
    if words & set(PROJECTIONS):
        return "projections"
    planes = {int(np.argmax(np.abs(np.cross(turn[:3], turn[3:])))) for turn in turns}
    if len(planes) == PLANES:
        return "a localiser (slices in three planes)"
    if len(frames) > 3 and len(turns) > len(frames) // 2:
        return "projections, each turned otherwise"
    if len(frames) == 1 and "DERIVED" in words:
        return "a single image, derived from others"
    return ""


def is_scan(file):
    """True for what comes from a scanner that makes volumes."""
    return file.modality in SCANS and "Secondary Capture" not in file.sort.name


def check_alike(frames):
    """Raise a UserError if anything differs among the slices of a volume that must not.

    The text names the files of the slices that are fewer.
    """
    if any("MOSAIC" in frame.kind for frame in frames):
        raise UserError("has mosaics of slices (Siemens), expected slices: convert it with dcm2niix")
    nowhere = [frame for frame in frames if frame.position is None or frame.turn is None]
    if nowhere:
        some = f" in {len(nowhere)} slices{named(nowhere)}" if len(nowhere) < len(frames) else ""
        raise UserError(
            f"has no position or orientation (ImagePositionPatient, ImageOrientationPatient){some}: where it "
            f"lies is unknown; export it again"
        )
    if any(frame.spacing is None or min(frame.spacing) <= 0 for frame in frames):
        raise UserError("has no spacing of its voxels (PixelSpacing): export it again")
    for what, unit, value in (
        ("sizes", " voxels", lambda f: by(f.file.shape[:0:-1])),
        ("spacings", " mm", lambda f: by(np.round(f.spacing[::-1], 4))),
        ("kinds of grey", "", lambda f: f.file.photometric),
        ("units", "", lambda f: f.units or "none"),
        ("patients", "", lambda f: f.file.patient),
        ("frames of reference", "", lambda f: f.file.space),
        ("echo times", " ms", lambda f: value_of(f, "echo") or "none"),
        ("b-values", "", lambda f: f.weighting if f.weighting is not None else "none"),
    ):
        check_one(frames, what, unit, value)
    others = turned_otherwise(frames)
    if others:
        raise UserError(
            f"has {len(others)} of {len(frames)} slices turned otherwise than the others{named(others)}: "
            f"several series under one number; export it again"
        )
    if frames[0].file.photometric != "MONOCHROME2":
        raise UserError("is stored inverted (MONOCHROME1): export it again")
    if any(not np.isfinite([frame.slope, frame.intercept]).all() or frame.slope == 0 for frame in frames):
        raise UserError("has a slope of its values (RescaleSlope) that is 0 or no number: export it again")
    if len(frames) < 2:
        raise UserError("has one slice: no volume; export all of them")
    if repeats(frames):
        raise UserError(
            f"has {repeats(frames)} of {len(frames)} slices where another one lies: export one volume"
        )


def check_one(frames, what, unit, value):
    """Raise a UserError if a value is not the same for all frames."""
    values = Counter(map(value, frames))
    if len(values) < 2:
        return
    (most, _), *rest = values.most_common()
    others = [frame for frame in frames if value(frame) != most]
    if what in ("patients", "frames of reference"):  # long, and not for a screen
        raise UserError(f"has slices of {len(values)} {what}{named(others)}: export it again")
    found = f"{most} and {rest[0][0]}{unit}" if len(rest) == 1 else f"{most}, {rest[0][0]}, ...{unit}"
    count = "two" if len(values) == 2 else str(len(values))
    raise UserError(f"has slices of {count} {what}, {found}{named(others)}: export it again")


def turned_otherwise(frames):
    """Frames whose orientation is not that of most, of those that have one."""
    known = [frame for frame in frames if frame.turn is not None]
    if not known:
        return []
    turns = np.array([frame.turn for frame in known])
    rounded = list(map(tuple, turns.round(3) + 0.0))
    usual = turns[rounded.index(Counter(rounded).most_common(1)[0][0])]
    return [f for f, turn in zip(known, turns, strict=True) if np.abs(turn - usual).max() > TURN_TOLERANCE]


def named(frames):
    """' (a.dcm, b.dcm, ...)': files of some frames, or their numbers where all are in one file."""
    files = sorted({frame.file.name for frame in frames})
    if len(files) == 1 and frames[0].file.shape[0] > 1:
        files = [f"frame {frame.index + 1}" for frame in frames]
    return f" ({', '.join(files[:FILES_NAMED])}{', ...' if len(files) > FILES_NAMED else ''})"


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Geometry                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def placed(frames):
    """Frames along the normal of their plane, and the affine that puts every voxel where its header does.

    A voxel (column i, row j) of a frame lies at
    position + i * spacing[1] * turn[:3] + j * spacing[0] * turn[3:] (PS3.3 C.7.6.2.1.1), LPS mm. The grid has
    right angles, which ITK asks for.

    Returns:
        (frames in order, affine (4, 4) to RAS mm).

    Raises:
        UserError: A grid of even slices would put a voxel more than PLACE_TOLERANCE from its place.
    """
    row, column, normal = axes_of(frames[0])
    places = np.array([frame.position for frame in frames])
    order = np.argsort(places @ normal, kind="stable")
    frames, places = [frames[i] for i in order], places[order]
    along = (places - places[0]) @ normal
    check_straight(places - places[0], along, normal)
    check_even(along)
    step = along[-1] / (len(frames) - 1)
    affine = np.eye(4)
    between_rows, between_columns = frames[0].spacing
    affine[:3, :3] = np.stack([row * between_columns, column * between_rows, normal * step], axis=1)
    affine[:3, 3] = places[0]
    return frames, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def axes_of(frame):
    """Unit vectors along a row, along a column, and from slice to slice, at right angles.

    Raises:
        UserError: The orientation that is stated is none, beyond what rounding does.
    """
    stated = np.array(frame.turn).reshape(2, 3)
    row = stated[0] / max(np.linalg.norm(stated[0]), 1e-9)
    column = stated[1] - row * (row @ stated[1])
    column /= max(np.linalg.norm(column), 1e-9)
    _, rows, columns = frame.file.shape
    off = np.linalg.norm(row - stated[0]) * columns * frame.spacing[1]
    off += np.linalg.norm(column - stated[1]) * rows * frame.spacing[0]
    if not off < PLACE_TOLERANCE:
        raise UserError(
            f"has an orientation (ImageOrientationPatient) that is not of two unit vectors at a right angle: "
            f"{off:.2g} mm off at the corner; export it again"
        )
    return row, column, np.cross(row, column)


def check_straight(places, along, normal):
    """Raise a UserError if slices are shifted in their plane: a tilted gantry, a sheared stack."""
    shifts = np.linalg.norm(places - np.outer(along, normal), axis=1)
    if shifts.max() > PLACE_TOLERANCE:
        length = np.linalg.norm(places, axis=1).max()
        angle = math.degrees(math.asin(min(shifts.max() / length, 1)))
        raise UserError(
            f"has slices that are shifted against each other, by {shifts.max():.2g} mm over the stack, as of "
            f"a gantry tilted by {angle:.2g} degrees: resample it to an upright grid, as dcm2niix does for CT"
        )


def check_even(along):
    """Raise a UserError unless slices lie at one distance."""
    gaps = np.diff(along)
    grid = np.linspace(0, along[-1], len(along))
    uneven = np.ptp(gaps) > max(GAP_TOLERANCE * np.median(gaps), LEAST_GAP)
    if uneven or np.abs(along - grid).max() > PLACE_TOLERANCE:
        raise UserError(
            f"has slices {gaps.min():.3g} to {gaps.max():.3g} mm apart, expected one distance: slices are "
            f"missing or of several series; export it again"
        )
