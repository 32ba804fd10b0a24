"""From a folder of any scans to one that can be trained on: along R, A, S, of one voxel size and one shape.

    python preprocessing/conform.py --data scans --output conformed --dry_run
    python preprocessing/conform.py --data scans --output conformed
    python preprocessing/conform.py --data scans --output conformed --size 128,128,64 --spacing 0.5,0.5,0.8 \\
        --labels labels

or edit the settings below and run it. Voxel size and shape that are not given are proposed from the data, and
the reasons said. Sections of this file:

    settings and configuration    every option
    scans                         what is known of each, and where its content lies
    grids                         where the voxels of a volume lie, what is cut and padded
    proposal                      voxel size and shape, with reasons
    the folder                    volumes/, labels/, conform.csv, conform.txt, cut_1.png, ...
    entry point

Nothing is registered: a scan keeps its own axes, the nearest ones to right, front and up, and every point its
place in the scanner. Each is resampled once, as resampling.py says. Scans are never written to.
"""

import math
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

# Run as a script, preprocessing.py beside this file would hide its package.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from volumetric import __version__
from volumetric.cli import (
    LONGEST_NAME,
    PACKED,
    UserError,
    check_fields,
    check_networks,
    one_line_errors,
    option,
    parse_cli,
)
from volumetric.collection import (
    check_values,
    content_of,
    find_volumes,
    is_label_map,
    pair_up,
    read,
    read_all,
    read_whole,
    refuse_other_grid,
    scaled,
)
from volumetric.files import atomic_path, by, clear_parts, naming, part_of
from volumetric.geometry import SAME_PLACE, spacing_of
from volumetric.machine import usable_cores
from volumetric.names import plain, unique_names
from volumetric.pictures import captioned, save_picture, tile
from volumetric.tables import write_records

import nibabel as nib
import numpy as np

from preprocessing.background import content_bounds
from preprocessing.images import Grid, check_percentiles, corners_of, write_image
from preprocessing.resampling import (
    clipped,
    directions,
    framed_planes,
    inside,
    resampled,
    sampled,
    voxel_map,
)
from preprocessing.workers import default_workers

# Edit these, or pass them as flags; a flag wins.
# folder of scans
data = "scans"
# new folder: volumes/ in it is the training folder
output = "conformed"
# voxels of every volume; None proposes them
size = None
# their size, mm; None proposes it
spacing = None

MOST_THREADS = 2  # scans at a time
COVERED = 90  # percentile of the scans whose content a proposal covers
COARSER = 1.25  # times the scans' voxels, for which an edge of half as many voxels is worth it
LARGEST_EDGE = 1024  # voxels, of the networks
BATCH = 8  # volumes in a micro-batch, the trainer's default
# GiB of the tensors of the worst training step, {(image_size, image_depth): GiB}: what `--recipe robust
# --dry_run --device cpu` prints for micro-batches of 8 (tests/benchmarks/conform.py memory, November 2026).
MEMORY = {(32, 32): 0.6, (64, 16): 1.3, (64, 32): 1.8, (64, 64): 2.7, (128, 16): 3.7, (128, 32): 5.8}
MEMORY |= {(128, 64): 9.8, (128, 128): 16.7, (256, 32): 19.8, (256, 64): 37.0, (256, 128): 69.0}
PANEL, SHEET = 200, 24  # pixels of a plane's longer edge; scans in a picture
FACES = ("left", "right", "back", "front", "below", "above")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Settings and configuration                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(kw_only=True)
class ConformConfig:
    """Bring scans of any kind to one voxel size and one shape that can be trained on."""

    data: str = option(data, "Folder of scans, .nii or .nii.gz.")
    output: str = option(output, "New folder for volumes/, labels/, the table and the pictures.", folder=True)
    size: tuple | None = option(size, "Voxels X,Y,Z of every volume, powers of two; None proposes them.")
    spacing: tuple | None = option(spacing, "Their size X,Y,Z, mm; None proposes it.")
    center: str = option(
        "content",
        "Middle of a volume: content (of what is not background), image (of the scan), or x,y,z, mm in the "
        "scanner's space to the right, front and up.",
    )
    labels: str | None = option(None, "Folder of label maps, named as the scans are, to bring along.")
    upright: bool = option(False, "Turn oblique scans to the scanner's axes; False keeps their own.")
    clip_percentiles: tuple = option(
        (), "Two percentiles of each volume to which its values are clipped; () clips nothing."
    )
    memory_gib: float = option(24.0, "Memory of a training on what is proposed.")
    dry_run: bool = option(False, "Only say what is proposed.")

    def __post_init__(self):
        check_fields(self)
        for name in ("size", "spacing"):
            check_three(f"--{name}", getattr(self, name), whole=name == "size")
        if self.size is not None:
            if self.size[0] != self.size[1]:
                raise UserError(
                    f"--size must have as many voxels to the right as to the front, got {by(self.size)}."
                )
            check_networks(self.size[0], self.size[2])
        check_percentiles("--clip_percentiles", self.clip_percentiles)
        if self.center not in ("content", "image"):
            self.point()

    def point(self):
        """The point of --center x,y,z, (3,) mm."""
        try:
            point = np.array([float(word) for word in self.center.strip("()[]").split(",")])
        except ValueError:
            point = np.empty(0)
        if point.shape != (3,) or not np.isfinite(point).all():
            raise UserError(f"--center must be content, image, or x,y,z in mm, got {self.center!r}.")
        return point


def check_three(flag, values, whole):
    """Raise a UserError unless a flag holds nothing, or three numbers above 0."""
    kinds = int if whole else int | float
    if values is None:
        return
    if len(values) != 3 or any(isinstance(v, bool) or not isinstance(v, kinds) or v <= 0 for v in values):
        what = "whole numbers of voxels" if whole else "numbers of mm"
        raise UserError(f"{flag} must be three {what} above 0, as X,Y,Z, got {values}.")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Scans                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Scan:
    """What is known of a scan, without its voxels.

    Args:
        path: NIfTI file.
        grid: Grid of its voxels along the nearest axes to right, front and up.
        stored: Codes of the axes in the file.
        content: What it is known by.
        labels: It is a label map.
        bounds: Of the part that is not background, ((x0, x1), (y0, y1), (z0, z1)), half-open, voxels.
    """

    path: Path
    grid: Grid
    stored: str
    content: str
    labels: bool
    bounds: tuple

    @property
    def inner(self):
        """Grid of the part that is not background."""
        return self.grid.crop(self.bounds)

    @property
    def spacing(self):
        """Voxel size, (3,) mm."""
        return spacing_of(self.grid.affine)


def survey(path):
    """The Scan of a path; a UserError, without the name, if it cannot be used."""
    volume = read(path, scan=True)
    grid = Grid(volume.array.shape, volume.affine)
    labels, bounds = is_label_map(volume.array), content_bounds(volume.array)
    return Scan(path, grid, volume.axes, volume.content, labels, bounds)


def copies_of(volumes):
    """{path: path of an earlier one of equal content} of (path, content); each is named."""
    first = {}
    copies = {path: first[content] for path, content in volumes if first.setdefault(content, path) != path}
    for path, other in copies.items():
        print(f"left out: {path} has the same voxels as {other}")
    return copies


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Grids                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def center_of(scan, config):
    """Middle of a scan's volume, (3,) RAS mm."""
    if config.center not in ("content", "image"):
        point = config.point()
        voxel = nib.affines.apply_affine(np.linalg.inv(scan.grid.affine), point)
        if (voxel < -0.5).any() or (voxel > np.array(scan.grid.shape) - 0.5).any():
            raise UserError(
                f"{scan.path} does not reach to --center {config.center}: give a point in all scans."
            )
        return point
    grid = scan.inner if config.center == "content" else scan.grid
    return nib.affines.apply_affine(grid.affine, (np.array(grid.shape) - 1) / 2)


def axes_of_volume(scan, config):
    """Axes of a scan's volume, (3, 3), columns of length 1: its own, or the scanner's."""
    return np.eye(3) if config.upright else directions(scan.grid)


def reach(scan, config):
    """Edges of the box about the volume's middle that has all of a scan's content, (3,) mm."""
    offsets = (corners_of(scan.inner) - center_of(scan, config)) @ axes_of_volume(scan, config)
    return 2 * np.abs(offsets).max(axis=0)


def volume_grid(scan, config, size, spacing):
    """Grid of a scan's volume.

    Along an axis on which the voxels keep size and direction, they lie on the scan's own, so that values are
    not interpolated.
    """
    spacing, axes = np.array(spacing), axes_of_volume(scan, config)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = center_of(scan, config) - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    kept = np.abs(spacing - scan.spacing) * size <= SAME_PLACE * scan.spacing
    if np.allclose(axes, directions(scan.grid), atol=1e-6):
        start = voxel_map(affine, scan.grid.affine)[:3, 3]
        affine[:3, 3] = nib.affines.apply_affine(scan.grid.affine, np.where(kept, np.rint(start), start))
    return Grid(tuple(size), affine)


def beyond(inner, outer):
    """By how much one Grid reaches beyond another at FACES, mm, negative where it ends before. -> (6,)"""
    corners = nib.affines.apply_affine(np.linalg.inv(outer.affine), corners_of(inner))
    low, high = -0.5 - corners.min(axis=0), corners.max(axis=0) - (np.array(outer.shape) - 0.5)
    return np.round(np.stack([low, high], 1) * spacing_of(outer.affine)[:, None], 3).ravel() + 0.0


@dataclass(frozen=True)
class Cut:
    """What becomes of a scan.

    Args:
        grid: Grid of its volume.
        faces: By how much the scan reaches beyond it at FACES, mm; negative is padded.
        content_mm: By how much its content does, at most, mm.
        voxels: Of the scan, that are left out.
        share: Of the scan, that is left out.
        padded: Voxels of the volume outside of the scan.
    """

    grid: Grid
    faces: np.ndarray
    content_mm: float
    voxels: int
    share: float
    padded: int

    @classmethod
    def of(cls, scan, config, size, spacing):
        """What a voxel size and a shape make of a scan."""
        grid = volume_grid(scan, config, size, spacing)
        voxels = math.prod(scan.grid.shape) - int(inside(scan.grid, grid).sum())
        return cls(
            grid,
            beyond(scan.grid, grid),
            float(beyond(scan.inner, grid).max().clip(0)),
            voxels,
            voxels / math.prod(scan.grid.shape),
            math.prod(size) - int(inside(grid, scan.grid).sum()),
        )


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Proposal                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Proposal:
    """One voxel size and one shape for all.

    Args:
        size: (X, Y, Z), voxels.
        spacing: Their size, mm.
        why_size, why_spacing: Reasons.
    """

    size: tuple
    spacing: tuple
    why_size: str
    why_spacing: str


def propose(scans, config):
    """The Proposal for scans; what is given by flags stays as it is."""
    needed = np.percentile([reach(scan, config) for scan in scans], COVERED, axis=0, method="inverted_cdf")
    finest = np.median([scan.spacing for scan in scans], axis=0)
    finest = np.array([*2 * [finest[:2].min()], finest[2]])  # square pixels in the plane
    size, why_size = config.size, "as asked"
    if size is None and config.spacing is not None:
        size, why_size = covering(needed, np.array(config.spacing), 1.0), "holds the content"
    elif size is None:
        size = covering(needed, finest, COARSER)
        why_size = "holds the content in voxels of about that size"
        fitting = fitting_memory(size, needed, finest, config.memory_gib)
        if fitting != size:
            why_size = f"{by(size)} is not known to train in --memory_gib {config.memory_gib:g}"
            size = fitting
    if config.spacing is not None:
        return Proposal(size, config.spacing, why_size, "as asked")
    voxels = coarsest(needed, size, finest)
    times = voxels / finest
    why = "that of the scans (median)"
    if times.max() > 1.001:
        why = f"{by(times.round(2))} times that of the scans (median), so that the shape holds the content"
    return Proposal(size, tuple(map(rounded, voxels, finest)), why_size, why)


def covering(needed, voxels, coarser):
    """Smallest shape of powers of two, X = Y >= Z, whose voxels need be at most `coarser` times as large.

    Shapes: (3,) mm, (3,) mm -> (X, Y, Z)
    """
    edges = [math.ceil(math.log2(max(n, 4))) for n in needed / (coarser * voxels)]
    plane = min(2 ** max(edges[:2]), LARGEST_EDGE)
    return plane, plane, min(2 ** edges[2], plane)


def coarsest(needed, size, finest):
    """Voxel size at which a shape holds what is needed, no finer than the scans. Shapes: (3,) mm"""
    plane = max(max(needed[:2]) / size[0], finest[0])
    return np.array([plane, plane, max(needed[2] / size[2], finest[2])])


def rounded(voxel, finest):
    """A voxel's edge as one types it, mm: the scans' own, or rounded up."""
    return round(float(finest), 4) if voxel <= finest else math.ceil(round(voxel, 4) * 100) / 100


def training_memory(size):
    """GiB of the worst step of a training on volumes of a shape; None if nothing as large was measured."""
    return min((g for (n, d), g in MEMORY.items() if n >= size[0] and d >= size[2]), default=None)


def fitting_memory(size, needed, finest, most):
    """A shape, halved where its voxels are finest until its training takes at most so many GiB.

    What is left is halved in depth where that leaves voxels about as deep as wide.
    """

    def halved(size, plane):
        edge = size[0] // 2 if plane else size[0]
        return edge, edge, min(edge, size[2] if plane else size[2] // 2)

    fits = size
    while (training_memory(fits) or math.inf) > most and fits[0] > 8:
        wide, _, deep = coarsest(needed, fits, finest)
        fits = halved(fits, plane=wide <= deep or fits[2] <= 4)
    flat = halved(fits, plane=False)
    if (
        fits != size
        and flat[2] >= 4
        and coarsest(needed, flat, finest)[2] <= COARSER * coarsest(needed, fits, finest)[0]
    ):
        return flat
    return fits


def told(proposal, scans, cuts):
    """Lines that say what a Proposal is, why, and what it does to the scans."""
    shapes = [by(shape) for shape in sorted({scan.grid.shape for scan in scans}, key=math.prod)]
    voxels = np.array([scan.spacing for scan in scans])
    contents = np.array([np.array(scan.inner.shape) * scan.spacing for scan in scans]).round()
    edges = (np.array(proposal.size) * proposal.spacing).round()
    memory = training_memory(proposal.size)
    takes = "was not measured" if memory is None else f"takes at most {memory:.1f} GiB (measured)"
    return [
        f"{len(scans)} scans: {span(shapes[0], shapes[-1])} voxels of "
        f"{span(f'{voxels.min():.3g}', f'{voxels.max():.3g}')} mm; content "
        f"{span(by(contents.min(0)), by(contents.max(0)))} mm",
        f"shape: {by(proposal.size)} voxels, {by(edges)} mm: {proposal.why_size}",
        f"voxels: {by(proposal.spacing)} mm: {proposal.why_spacing}",
        *what_is_cut(scans, cuts),
        f"memory: a training in micro-batches of {BATCH} {takes}; its --dry_run says what yours takes",
    ]


def span(low, high):
    """A range as text, or the one that both are."""
    return f"{low}" if low == high else f"{low} to {high}"


def what_is_cut(scans, cuts):
    """Lines on what is cut and padded: voxels and mm, of how many scans."""

    def line(title, voxels, share, mm, what):
        voxels, share = np.array(voxels), 100 * np.array(share)
        if not voxels.any():
            return f"{title}: nothing"
        some = voxels > 0
        return (
            f"{title}: {some.sum()} of {len(scans)} {what}, {span(voxels[some].min(), voxels.max())} voxels "
            f"({span(share[some].min().round(1), share.max().round(1))} %), up to {max(mm):.1f} mm at an edge"
        )

    lost = [cut.content_mm for cut in cuts]
    worst = int(np.argmax(lost))
    text = f"; of {np.count_nonzero(lost)} content, up to {lost[worst]:.1f} mm ({scans[worst].path})"
    left, padded = [cut.voxels for cut in cuts], [cut.padded for cut in cuts]
    of_volume = [cut.padded / math.prod(cut.grid.shape) for cut in cuts]
    return [
        line("cut", left, [cut.share for cut in cuts], [cut.faces.max() for cut in cuts], "scans")
        + (text if lost[worst] else "; no content" if any(left) else ""),
        line("padded", padded, of_volume, [-cut.faces.min() for cut in cuts], "volumes"),
    ]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Pictures                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def draw_cut(scan, array, cut, name):
    """Three planes of a scan through the middle of its volume, which is framed; what is cut is dim.

    Shapes: (X, Y, Z) -> (PANEL + 14, 3 * PANEL) uint8
    """
    window = np.percentile(array[tuple(slice(*b) for b in scan.bounds)], (1, 99.5))
    panels = framed_planes(array, scan.grid.affine, cut.grid, window, PANEL)
    text = f"content cut by up to {cut.content_mm:.1f} mm" if cut.content_mm else "no content cut"
    return captioned(np.concatenate(panels, axis=1), f"{name}: {by(scan.grid.shape)} voxels, {text}")


def draw_sheets(folder, tiles):
    """Write cut_1.png, ...: SHEET scans in each, those whose content is cut most first."""
    for number, start in enumerate(range(0, len(tiles), SHEET), 1):
        part = np.stack(tiles[start : start + SHEET])
        sheet = captioned(tile(part, 1 if len(part) <= 4 else 2), "frame: the volume; grey: padded; dim: cut")
        save_picture(sheet, folder / f"cut_{number}.png")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The folder                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Conformed:
    """What was made of a scan.

    Args:
        row: Of conform.csv, {column: value}.
        content: What the volume is known by.
        picture: What was cut, uint8.
        labels: It is no label map.
    """

    row: dict
    content: str
    picture: np.ndarray
    labels: bool = False


def row_of(scan, cut, volume, content, share):
    """Row of conform.csv for a scan whose volume was written."""
    middle = nib.affines.apply_affine(cut.grid.affine, (np.array(cut.grid.shape) - 1) / 2)
    row = {
        "volume": volume,
        "file": str(scan.path),
        "content": content,
        "content_before": scan.content,
        "voxels": by(scan.grid.shape),
        "spacing_mm": by(scan.spacing.round(4)),
        "axes": scan.stored,
        "center_mm": ",".join(f"{p:.2f}" for p in middle),
        "content_cut_mm": cut.content_mm,
        "cut_voxels": cut.voxels,
        "cut_percent": round(100 * cut.share, 2),
        "padded_voxels": cut.padded,
        "padded_percent": round(100 * cut.padded / math.prod(cut.grid.shape), 2),
        "clipped_percent": round(100 * share, 3),
    }
    row |= {f"beyond_{face}_mm": float(mm) for face, mm in zip(FACES, cut.faces, strict=True)}
    return row | {"note": ""}


def conform(scan, cut, config, folder, name, label_path=None):
    """Write the volume of a scan, and its label map; returns what is to be said of it, Conformed."""
    array = read(scan.path, scan=True).array
    values = resampled(array, scan.grid.affine, cut.grid)
    values, share = clipped(values, inside(cut.grid, scan.grid), config.clip_percentiles)
    check_values(values)
    volume = f"volumes/{name}.nii.gz"
    write(values, cut.grid, folder / volume, f"conformed, preprocessing {__version__}")
    if label_path is not None:
        labels, described = read_whole(label_path)
        ids = sampled(labels.array.astype(np.int16), scan.grid.affine, cut.grid, 0, 0)
        write(ids, cut.grid, folder / "labels" / f"{name}.nii.gz", described)
    content = content_of(scaled(values))
    return Conformed(row_of(scan, cut, volume, content, share), content, draw_cut(scan, array, cut, name))


def write(array, grid, path, description):
    """Write an array on a Grid as NIfTI, in the scanner's space."""
    with atomic_path(path) as part:
        write_image(array, grid.affine, part, description, code=1)


def chosen(config):
    """The scans of --data, each content once, with their label maps.

    Returns:
        ([Scan], {path: path of its label map}, {path of a copy: path of what it is a copy of}).

    Raises:
        UserError: A scan cannot be used, or is a label map; a label map is of another grid than its scan.
    """
    if config.labels is None:
        paths, partners = find_volumes(config.data), {}
    else:
        partners = dict(pair_up({"data": config.data, "labels": config.labels}).values())
        paths = list(partners)
    readers = min(MOST_THREADS, usable_cores())
    scans = read_all(paths, survey, "Looking at scans", config.data, readers=readers)
    if scans[0].labels:  # read_all refuses some among others
        raise UserError(f"--data {config.data} holds label maps: give the scans, and the maps by --labels.")
    copies = copies_of([(scan.path, scan.content) for scan in scans])
    scans = [scan for scan in scans if scan.path not in copies]
    for scan in scans if partners else ():
        check_labels(scan, partners[scan.path])
    return scans, partners, copies


def check_labels(scan, path):
    """Raise a UserError unless a label map can be read and is of its scan's grid."""
    with naming(path):
        labels, _ = read_whole(path)
    of_scan = (scan.grid.shape, scan.grid.affine, scan.path)
    refuse_other_grid((labels.array.shape, labels.affine, path), of_scan)


def refuse_folders(config):
    """Raise a UserError if --output is in use, or lies in a folder that is read, or the other way round."""
    output = Path(config.output).resolve()
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output {config.output} is there already: give a new folder.")
    for flag in ("data", "labels"):
        source = getattr(config, flag) and Path(getattr(config, flag)).resolve()
        if source and (source == output or source in output.parents or output in source.parents):
            raise UserError(
                f"--output {config.output} and --{flag} {source} lie in each other: give folders apart."
            )


def commands(config, size, number):
    """Training commands for a folder that was made: a trial for any machine, and the whole one.

    Args:
        size: (X, Y, Z), voxels.
        number: Volumes.
    """
    trainer = Path(os.path.relpath(Path(__file__).resolve().parent.parent / "stylegan2_pytorch.py"))
    name = plain(Path(config.output).resolve().name)[: LONGEST_NAME // 4]
    name = name if name.strip(".") and name != PACKED else "conformed"
    shape = ["--image_size", size[0], "--image_depth", size[2]]

    def command(name, *more):
        words = ["python", trainer, "--data", Path(config.output) / "volumes", "--name", name, *shape, *more]
        return shlex.join(map(str, words))

    # float32: many processors have no bfloat16, and few channels make it slower still
    small = ["--network_capacity", 2, "--fmap_max", 32, "--batch_size", 1, "--gradient_accumulate_every", 1]
    small += ["--fp16", False, "--num_image_tiles", 1, "--num_train_steps", 20]
    return {
        "20 steps of a small network, to see it run": command(f"{name}-trial", "--recipe", "robust", *small),
        "the training": command(name, "--recipe", "robust", "--batch_size", min(BATCH, number)),
    }


def conform_folder(config):
    """Say what is proposed, and do it; the output folder appears when it is complete.

    Returns:
        The output folder; None with --dry_run.

    Raises:
        UserError: A scan cannot be used, or the output folder is in use.
    """
    output = Path(config.output)
    if not config.dry_run:
        refuse_folders(config)
    scans, partners, copies = chosen(config)
    proposal = propose(scans, config)
    cuts = {scan.path: Cut.of(scan, config, proposal.size, proposal.spacing) for scan in scans}
    lines = told(proposal, scans, list(cuts.values()))
    print(*lines, sep="\n")
    if config.dry_run:
        return None
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    clear_parts(output.absolute().parent)
    part = part_of(output.absolute())
    try:
        for name in ("volumes", "labels") if partners else ("volumes",):
            (part / name).mkdir(parents=True)
        number = fill(part, scans, cuts, config, partners, copies)
        for title, command in commands(config, proposal.size, number).items():
            lines += ["", f"{title}:", command]
        (part / "conform.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
        if output.exists():
            output.rmdir()  # it is empty
        os.replace(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{number} volumes are in {output / 'volumes'}; look at {output / 'cut_1.png'}")
    print(*lines[lines.index("") :], sep="\n")
    return output


def fill(folder, scans, cuts, config, partners, copies):
    """Write volumes, label maps, pictures and conform.csv into a folder; returns the number of volumes."""
    names, of = unique_names([scan.path for scan in scans]), {scan.path: scan for scan in scans}

    def work(path):
        return conform(of[path], cuts[path], config, folder, names[path], partners.get(path))

    voxels = max(math.prod(scan.grid.shape) for scan in scans)
    readers = min(MOST_THREADS, default_workers(voxels))
    made = read_all(list(of), work, "Resampling", config.data, readers=readers)
    rows = [one.row for one in made]
    same = copies_of([(row["file"], row["content"]) for row in rows])
    for row in rows:
        if row["file"] in same:
            for kind in ("volumes", "labels"):
                (folder / kind / Path(row["volume"]).name).unlink(missing_ok=True)
            row |= {"volume": "", "note": f"the same volume as {same[row['file']]}"}
    kept = [one.picture for one in sorted(made, key=most_cut) if one.row["volume"]]
    draw_sheets(folder, kept)
    rows += [{"file": str(path), "note": f"the same voxels as {other}"} for path, other in copies.items()]
    write_records(folder / "conform.csv", rows)
    return len(kept)


def most_cut(one):
    """Order of a Conformed in the pictures: most content cut first."""
    return -one.row["content_cut_mm"]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Entry point                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def main(argv=None):
    """The command line."""
    config = parse_cli(ConformConfig, argv)
    with one_line_errors():
        conform_folder(config)


if __name__ == "__main__":
    main()
