"""Label maps that volumes are drawn for: pairs with volumes, what is held out, ids, edits, grids, pictures.

Class numbers stand for ids: 0 is the background, n the n-th id of the table, 255 unknown.

What a run holds out it never trains on, and what it was trained on it never holds out: its checkpoint knows
both by content, of volume and of label map. Pairs that it does not know are trained on, but for those of a
subject, or with a label map, that it holds out.
"""

import functools
import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

from volumetric import parallel, runs
from volumetric.cli import UserError
from volumetric.collection import content_of_labels, pair_up, read, refuse_other_grid, refuse_unusable
from volumetric.files import (
    array_to_volume,
    as_damaged,
    file_digest,
    naming,
    read_json,
    reading,
    volume_to_array,
)
from volumetric.generation import Drawn, Item, Writer
from volumetric.geometry import axes_of, left_right_axis, turn
from volumetric.names import in_folder, name_of
from volumetric.pictures import axial_pictures, labelled_views
from volumetric.sidecars import drawn_for, write_drawn_for
from volumetric.tables import Split, rows_of, subjects_of, write_table
from volumetric.vessels import EVERYWHERE, centre_line, deepest, same_topology

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from segmentation.cases import Classes
from segmentation.labels import TABLES, is_label_map, read_labels, save_labels

UNKNOWN = 255  # class number of voxels that nobody has labelled
STREAM_HELD_OUT = 100
NEARER = 0.01  # of voxels as deep as others, those nearer to the centre line go last
OPERATIONS = {"drop": 1, "thin": 2, "thicken": 2, "swap_sides": 0}  # {name: arguments}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Pairs                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass
class Pairs:
    """Label maps of the volumes of an Audit.

    Args:
        maps: Class numbers, (N, 1, Z, X, Y) uint8, in the order of the volumes.
        table: {id: name}.
        trained: Indices of the pairs that are trained on, (n,).
        held_out: Indices of the others.
        contents: What every label map is known by, [text].
        rows: What every pair is, [{"file": place of the volume, "content": its own, "subject", "labels":
            content of the label map, "part": training or held_out}], and what is held out and not there.
        center: Where the middle of the labels is on average, (3,) voxels of X, Y and Z.
    """

    maps: torch.Tensor
    table: dict
    trained: np.ndarray
    held_out: np.ndarray
    contents: list
    rows: list
    center: np.ndarray

    def summary(self):
        """Lines for a person to read."""
        names = ["background", *(self.table[n] for n in sorted(self.table))]
        counts = torch.bincount(self.maps.flatten(), minlength=UNKNOWN + 1)[: len(names)]
        shares = (counts / self.maps.numel()).tolist()
        told = ", ".join(f"{name} {share:.2%}" for name, share in zip(names, shares, strict=True) if share)
        never = [name for name, share in zip(names, shares, strict=True) if not share]
        lines = [f"pairs: {len(self.trained)} trained on, {len(self.held_out)} held out", f"voxels: {told}"]
        return lines + ([f"never seen: {', '.join(never)}"] if never else [])


def read_table(name):
    """{id: name} of `--table`; None without one.

    Raises:
        UserError: It is neither the name of a table nor a JSON file of ids and names.
    """
    if name is None or name in TABLES:
        return None if name is None else dict(TABLES[name])
    if not Path(name).is_file():
        raise UserError(f"--table {name} is no file: give {', '.join(TABLES)}, or a JSON file {{id: name}}.")
    with as_damaged("expected {id: name} with ids from 1 to 254", name):
        table = {int(key): str(value).strip() for key, value in read_json(name).items()}
        if not table or not all(0 < n < UNKNOWN for n in table) or len(set(table.values())) < len(table):
            raise UserError(f"{name} must give ids from 1 to 254 different names: correct it.")
    return table


def class_numbers(array, classes, ignore, path):
    """Ids as class numbers; a UserError for a map without labels, or of one class alone.

    Shapes: (X, Y, Z) -> the same
    """
    numbers = classes.from_ids(array)
    if ignore is not None:
        numbers[array == ignore] = UNKNOWN
    if (numbers == numbers.flat[0]).all():
        raise UserError(f"{path} has one class alone, expected labels and background: remove it.")
    if not labelled(numbers).size:
        raise UserError(f"{path} has background and unknown voxels alone, expected labels: remove it.")
    return numbers


def ids_of(numbers, classes, ignore):
    """Class numbers as ids, what is unknown as `ignore`. Shapes: (X, Y, Z) uint8 -> the same"""
    ids = classes.to_ids(np.where(numbers == UNKNOWN, 0, numbers))
    ids[numbers == UNKNOWN] = ignore or 0
    return ids


def read_pairs(config, audit, known=None):
    """The label maps of the volumes of an audit, all checked, and which pairs are held out.

    Args:
        config: LabelToVolumeConfig.
        audit: Audit of its volumes.
        known: Known, of the checkpoint that the run continues or starts from; None without one.

    Raises:
        UserError: One line for every pair that cannot be used; or what is held out contradicts the past.
    """
    if config.labels is None:
        raise UserError("--labels is missing: give the folder of the label maps.")
    names = None if config.split is None else {in_folder(path, config.data) for path in audit.paths}
    paths = pair_up({"data": config.data, "labels": config.labels}, names)
    table, problems, found, axes = read_table(config.table), [], {}, axes_of(audit.affine)
    if table is not None and config.mirror:
        with naming(f"--table {config.table}"):
            _ = Classes(table).other_side
    for volume, path in tqdm(paths.values(), "Checking label maps", leave=False):
        try:
            array, affine = read_labels(path, table, axes, config.ignore)
            with naming(volume):
                image = read(volume, axes=axes)
            refuse_other_grid((array.shape, affine, path), (image.array.shape, image.affine, volume))
            found[volume] = (path, array, content_of_labels(turn(array, affine)[0]))
        except UserError as error:
            problems.append(str(error).rstrip("."))
    if table is None:
        ids = {int(n) for _, array, _ in found.values() for n in np.unique(array)} - {0, config.ignore}
        table = {n: str(n) for n in sorted(ids)}
    classes, maps = Classes(table), {}
    for volume, (path, array, _) in found.items():
        try:
            maps[volume] = class_numbers(array, classes, config.ignore, path)
        except UserError as error:
            problems.append(str(error).rstrip("."))
    refuse_unusable(problems, len(paths), config.labels)
    maps, contents = [maps[path] for path in audit.paths], [found[path][2] for path in audit.paths]
    held_out, rows = hold_out(config, audit, contents, known or Known())
    trained = np.flatnonzero(~held_out)
    middles = [np.mean([p.min(axis=1), p.max(axis=1)], axis=0) for p in map(labelled, maps)]
    maps = torch.from_numpy(np.stack([array_to_volume(one) for one in maps]))
    center = np.mean(middles, axis=0)
    return Pairs(maps, table, trained, np.flatnonzero(held_out), contents, rows, center)


def labelled(numbers):
    """Positions of the voxels of any class. Shapes: (X, Y, Z) -> (3, n)"""
    return np.array(np.nonzero((numbers > 0) & (numbers != UNKNOWN)))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ What is held out                                                                                         ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Known:
    """What a checkpoint was trained on, and what it holds out.

    Args:
        path: The checkpoint; None without one.
        goes_on: The run continues: what the checkpoint does not know is trained on.
        trained_on: Contents of volumes and of label maps, a set.
        held_out: Rows of Pairs; those of earlier versions, which knew names alone, have nothing but "file".
    """

    path: Path | None = None
    goes_on: bool = False
    trained_on: frozenset = frozenset()
    held_out: tuple = ()

    @classmethod
    def read(cls, path, goes_on):
        """What the checkpoint of a path knows."""
        with as_damaged("it is damaged or of another program", path):
            state = runs.read_state(path, check=False)
            rows = tuple(
                {"file": of} if isinstance(of, str) else dict(of) for of in state.get("held_out", ())
            )
        return cls(Path(path), goes_on, frozenset(state.get("trained_on", ())), rows)

    def was_trained_on(self, row):
        """True if the volume or the label map of a pair was trained on."""
        return not self.trained_on.isdisjoint((row["content"], row["labels"]))

    def holds_out(self, row):
        """True if a pair is held out: its volume, its label map, or its subject."""
        for former in self.held_out:
            if former.keys() == {"file"} and former["file"] == name_of(row["file"]):
                return True
            if any(former.get(key) and former[key] == row[key] for key in ("content", "labels", "subject")):
                return True
        return False


def hold_out(config, audit, contents, known):
    """Which pairs are held out, and the rows that tell it; see the module.

    Args:
        config: LabelToVolumeConfig.
        audit: Audit of the volumes.
        contents: Of their label maps.
        known: Known.

    Returns:
        ((N,) bool, rows of Pairs).

    Raises:
        UserError: What was trained on would be held out, or what is held out trained on.
    """
    rows = [
        {"file": path.relative_to(config.data).as_posix(), "content": content, "labels": labels}
        for path, content, labels in zip(audit.paths, audit.contents, contents, strict=True)
    ]
    for row, subject in zip(rows, subjects_of_pairs(config, audit.paths), strict=True):
        row["subject"] = subject
    former = np.array([known.holds_out(row) for row in rows])
    trained = np.array([known.was_trained_on(row) for row in rows])
    held_out = former
    if config.split is not None:
        held_out = by_split(config, audit.paths, known)
    elif not known.goes_on:
        held_out = drawn(config, rows, former, trained)
    refuse_contradictions(audit.paths, rows, held_out, former, trained, known)
    for row, out in zip(rows, held_out, strict=True):
        row["part"] = "held_out" if out else "training"
    there = {key for row in rows for key in (row["content"], name_of(row["file"]))}
    gone = [row for row in known.held_out if row.get("content", row["file"]) not in there]
    return held_out, rows + gone


def subjects_of_pairs(config, paths):
    """Subject of every volume, in order; an empty text where no table gives one."""
    if config.split is None:
        told = {} if config.subjects is None else subjects_of(config.subjects, paths)
        return [told.get(path, "") for path in paths]
    if config.subjects is not None:
        raise UserError("--split has the subjects already: leave --subjects out.")
    found, _ = rows_of(Split.read(config.split).rows, paths, f"--split {config.split}")
    return [row["subject"] for row in found]


def by_split(config, paths, known):
    """Which volumes the split holds out, (N,) bool; a UserError if what it sets aside was trained on."""
    split = Split.read(config.split)
    for row in split.rows:
        if row["part"] != "training" and row["content"] in known.trained_on:
            raise UserError(
                f"--split {split.path} sets {row['file']} aside, and {known.path} was trained on it: give "
                f"the split that it was trained with, or start another run."
            )
    found, _ = rows_of(split.rows, paths, f"--split {split.path}")
    return np.array([row["part"] == "held_out" for row in found])


def drawn(config, rows, former, trained):
    """Which pairs a run that begins holds out, by its seed: what is known already is not drawn again.

    Shapes: rows [N], former and trained (N,) bool -> (N,) bool
    """
    groups = groups_of(rows)
    names = sorted(set(groups))
    number = min(math.ceil(config.held_out * len(names)), len(names) - 1) if config.held_out else 0
    taken = {group for group, out in zip(groups, former, strict=True) if out}
    free = set(names) - {group for group, seen in zip(groups, trained, strict=True) if seen} - taken
    order = parallel.host_random(config.seed, STREAM_HELD_OUT).permutation(len(names))
    free = [names[n] for n in order if names[n] in free]
    chosen = taken.union(free[: max(0, number - len(taken))])
    return np.array([group in chosen for group in groups])


def groups_of(rows):
    """Group of every pair, [text]: those of one subject, or with one label map, are never parted."""
    groups, first = [row["subject"] or in_folder(row["file"], "") for row in rows], {}
    for n, row in enumerate(rows):
        same, own = groups[first.setdefault(row["labels"], n)], groups[n]
        if same != own:
            groups = [same if group == own else group for group in groups]
    return groups


def refuse_contradictions(paths, rows, held_out, former, trained, known):
    """Raise a UserError if a pair is on both sides, now or in the past; arguments as in `hold_out`."""
    for path, out, before, seen in zip(paths, held_out, former, trained, strict=True):
        if out and seen:
            raise UserError(
                f"{path} would be held out, and {known.path} was trained on it or on its label map: give the "
                f"--subjects or --split that it was trained with."
            )
        if before and not out:
            raise UserError(
                f"{path} would be trained on, and {known.path} holds it out, or its label map or subject: "
                f"give the --split that it was trained with."
            )
    for key, what in (("labels", "label map"), ("subject", "subject")):
        sides = {}
        for row, path, out in zip(rows, paths, held_out, strict=True):
            other, side = sides.setdefault(row[key] or path, (path, out))
            if side != out:
                raise UserError(
                    f"{path} and {other} have one {what}, and one of them is held out: give both one "
                    f"subject, in --split, or in --subjects when the run begins."
                )


def write_split(rows, path):
    """Write rows of Pairs, of those that are there, as a table that --split takes."""
    columns = ("file", "content", "subject", "part", "labels")
    table = [row | {"subject": row["subject"] or row["file"]} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, columns, [[row[name] for name in columns] for row in table])


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Edits and grids                                                                                          ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Variation:
    """Which variation of a label map a map is; see variation.py.

    Args:
        k: Its number, from 1 on.
        asked: What it follows from, in JSON's types.
        drawn: What came of that, in JSON's types.
    """

    k: int
    asked: dict
    drawn: dict


@dataclass(frozen=True)
class MapToDraw:
    """A label map on a model's grid.

    Args:
        numbers: Class numbers (X, Y, Z) uint8, after edits and variation.
        affine: (4, 4), mm.
        content: What the map in the file is known by, before edits; see collection.py.
        axes: Codes of the axes of its file, along which all that is drawn is written.
        variation: Variation; None for a map as it is.
    """

    numbers: np.ndarray
    affine: np.ndarray
    content: str
    axes: str
    variation: Variation | None = None

    @property
    def known_as(self):
        """Text that the seeds of its volumes follow from."""
        return self.content + (f" vary {self.variation.k}" if self.variation else "")

    @property
    def suffix(self):
        """What follows the map's name in those of its volumes."""
        return f"_vary{self.variation.k}" if self.variation else ""

    @property
    def stored(self):
        """Affine of what is written, (4, 4), mm."""
        return turn(self.numbers, self.affine, self.axes)[1]

    def as_stored(self, array):
        """Along the axes of what is written. Shapes: (X, Y, Z) -> (X', Y', Z')"""
        return turn(array, self.affine, self.axes)[0]

    def as_written(self, volume):
        """A volume along the axes of what is written. Shapes: (1, Z, X, Y) -> (1, Z', X', Y')"""
        return array_to_volume(self.as_stored(volume_to_array(volume)))


def read_edit(text):
    """(operation, class name or None, mm or None) of a text like thin:L-Pcom:0.4.

    Raises:
        UserError: It is none.
    """
    operation, *arguments = str(text).split(":")
    form = "--edit takes drop:NAME, thin:NAME:MM, thicken:NAME:MM or swap_sides"
    if operation not in OPERATIONS or len(arguments) != OPERATIONS[operation]:
        raise UserError(f"{form}, got {text!r}.")
    try:
        mm = float(arguments[1]) if len(arguments) == 2 else None
    except ValueError:
        mm = math.nan
    if mm is not None and not 0 < mm < 1000:
        raise UserError(f"{form}; {text!r} has no length in mm.")
    return operation, arguments[0] if arguments else None, mm


def vessels_of(numbers):
    """Voxels of any class, not the unknown ones. Shapes: (X, Y, Z) uint8 -> (X, Y, Z) bool"""
    return (numbers > 0) & (numbers != UNKNOWN)


def without_cavities(numbers, number):
    """A label map of which cavities within a class are that class. Shapes: (X, Y, Z) uint8 -> the same"""
    parts, _ = ndimage.label(ndimage.binary_fill_holes(vessels_of(numbers)) & (numbers == 0))
    others = ndimage.binary_dilation((numbers > 0) & (numbers != number), EVERYWHERE)
    beside = ndimage.binary_dilation(numbers == number, EVERYWHERE)
    within = np.setdiff1d(parts[beside], (0, *np.unique(parts[others])))
    return np.where(np.isin(parts, within), np.uint8(number), numbers)


def around(mask, margin):
    """Slices of the box of a mask with a margin, voxels. Shapes: (X, Y, Z) bool -> three slices"""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(slice(max(0, part.start - margin), part.stop + margin) for part in box)


def meetings(numbers, number, depth):
    """The deepest voxel of every place where a class meets another one, or the edge of the volume.

    Shapes: numbers (X, Y, Z) uint8, depth (X, Y, Z) mm -> (X, Y, Z) bool
    """
    there, edge = numbers == number, np.ones(numbers.shape, bool)
    edge[1:-1, 1:-1, 1:-1] = False
    found, box = np.zeros_like(there), around(there, 1)
    there, depth, inside = there[box], depth[box], numbers[box]
    others = [inside == other for other in np.setdiff1d(inside, (0, number, UNKNOWN))]
    for near in [edge[box], *(ndimage.binary_dilation(other, EVERYWHERE) for other in others)]:
        found[box] |= deepest(ndimage.label(near & there, EVERYWHERE)[0], depth)
    return found


def thin(numbers, number, spacing, mm):
    """A label map of which a class is thinned by mm, from where no vessel is, of whichever class.

    There stay the centre line of all classes together, that of the class alone where the other one is not
    within it, a voxel wherever it meets another class or the volume's edge, and those without which the
    class, or the vessels together, would fall apart or have other loops. Cavities within it are filled.

    Shapes: numbers (X, Y, Z) uint8, spacing (3,) mm -> (X, Y, Z) uint8
    """
    numbers = without_cavities(numbers, number)
    there, vessels = numbers == number, vessels_of(numbers)
    if vessels.all() or not there.any():
        return numbers
    depth = ndimage.distance_transform_edt(vessels, spacing)
    line, own = np.zeros_like(there), centre_line(there, spacing)
    near = around(there, 2 + 2 * math.ceil(depth[there].max() / min(spacing)))
    line[near] = centre_line(vessels[near], spacing) & there[near]
    if line.any():
        apart, nearest_of = ndimage.distance_transform_edt(~line, spacing, return_indices=True)
        own &= apart > depth[tuple(nearest_of)] + max(spacing)
    line |= own
    inner = depth - NEARER * ndimage.distance_transform_edt(~line, spacing)
    kept = line | meetings(numbers, number, inner)
    left = same_topology([there, vessels], there & (depth <= mm) & ~kept, inner, False)
    return np.where(there & ~left, np.uint8(0), numbers)


def thicken(numbers, number, spacing, mm):
    """A label map of which a class takes the background within mm, but for what would join vessels.

    It neither meets classes, or pieces of its own, that it did not meet before, nor closes loops, nor lies
    behind another vessel. Cavities within it are filled.

    Shapes: numbers (X, Y, Z) uint8, spacing (3,) mm -> (X, Y, Z) uint8
    """
    numbers = without_cavities(numbers, number)
    there = numbers == number
    if not there.any():
        return numbers
    apart = ndimage.distance_transform_edt(~there, spacing)
    beside = np.unique(numbers[ndimage.binary_dilation(there, EVERYWHERE)])
    free = (numbers == 0) & (apart <= mm)
    for other in np.setdiff1d(numbers, (0, number, UNKNOWN, *beside)):
        free &= ~ndimage.binary_dilation(numbers == other, EVERYWHERE)
    grown = same_topology([there, vessels_of(numbers)], free, apart, True)
    return np.where(free & grown, np.uint8(number), numbers)


def edited(numbers, affine, edits, classes):
    """A label map after edits; see `thin` and `thicken`.

    Shapes: numbers (X, Y, Z) uint8, affine (4, 4) mm -> (X, Y, Z) uint8

    Raises:
        UserError: The table has no class of a name.
    """
    numbers, spacing = numbers.copy(), nib.affines.voxel_sizes(affine)
    for operation, name, mm in edits:
        if operation == "swap_sides":
            other = np.arange(UNKNOWN + 1, dtype=np.uint8)
            with naming("--edit swap_sides: the model's table"):
                other[: 1 + len(classes.names)] = classes.other_side
            numbers = other[np.flip(numbers, left_right_axis(affine))]
            continue
        if name not in classes.names:
            raise UserError(f"--edit names {name}, the model's classes are {', '.join(classes.names)}.")
        number = 1 + classes.names.index(name)
        if operation == "drop":
            numbers[numbers == number] = 0
        else:
            change = {"thin": thin, "thicken": thicken}[operation]
            numbers = change(numbers, number, spacing, mm)
    return numbers


def fitted(numbers, affine, wanted, shape, center):
    """A label map on another grid, by nearest neighbour, the middle of its labels where it is in training.

    Shapes: numbers (X, Y, Z), affines (4, 4), shape (3,), center (3,) voxels -> numbers of shape, affine
    """
    places = labelled(numbers)
    middle = affine[:3, :3] @ ((places.min(axis=1) + places.max(axis=1)) / 2) + affine[:3, 3]
    grid = np.array(wanted, dtype=float)
    grid[:3, 3] = middle - grid[:3, :3] @ np.round(center)
    there = np.linalg.inv(affine) @ grid
    found = ndimage.affine_transform(numbers, there[:3, :3], there[:3, 3], shape, order=0)
    return found, grid


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Pictures                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def shown_map(numbers, affine):
    """A label map from above in colours, without its unknown voxels. Shapes: (Z, X, Y) -> (H, W, 3) uint8"""
    from segmentation.report import COLOURS, coloured

    shown = np.where(numbers == UNKNOWN, 0, numbers)
    shown = np.where(shown > 0, (shown.astype(int) - 1) % len(COLOURS) + 1, 0)
    return coloured(volume_to_array(shown[None]), affine)


def row_of(numbers, volumes, affine):
    """A label map and volumes side by side, from above. Shapes: (Z, X, Y), (1, Z, X, Y) -> (H, W, 3) uint8"""
    tiles = [shown_map(numbers, affine)]
    for volume in volumes:
        _, (projection,) = axial_pictures(np.asarray(volume)[None], affine)
        image = nearest(projection, tiles[0].shape[:2])
        tiles.append(np.repeat(image[..., None], 3, axis=2))
    tiles = [np.pad(tile, ((0, 2), (0, 2), (0, 0)), constant_values=64) for tile in tiles]
    return np.concatenate(tiles, axis=1)


def nearest(picture, shape):
    """A picture at another size, by nearest neighbour. Shapes: (h, w) -> shape"""
    rows = np.arange(shape[0]) * picture.shape[0] // shape[0]
    columns = np.arange(shape[1]) * picture.shape[1] // shape[1]
    return picture[rows][:, columns]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Writing                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class PairWriter(Writer):
    """Draws and writes volumes of label maps, and the maps as drawn, under the volumes' names.

    Args:
        model: LabelModel.
        folder: Folder of the volumes; the label maps go to the folder <folder>_labels.
        maps: Folder of the label maps that volumes are drawn for, if they are of one.

    Raises:
        UserError: Label maps would be written among these.
    """

    def __init__(self, model, folder, maps=None):
        about = {"table": {str(n): name for n, name in model.table.items()}}
        super().__init__(model, folder, about=about)
        self.maps, self.digest_of = maps, functools.cache(file_digest)
        self.labels = self.folder_beside("labels")
        if maps is not None and self.labels.resolve().is_relative_to(Path(maps).resolve()):
            raise UserError(
                f"--output {folder} has its label maps in {self.labels}, which lies in --generate {maps}: "
                f"they would be read as that. Give another --output."
            )

    def folder_beside(self, what):
        """Path of the folder <folder>_<what>."""
        folder = self.folder.resolve() if self.folder.name in ("", "..") else self.folder  # "." has no name
        return folder.parent / f"{folder.name}_{what}"

    def item_of(self, path, to_draw, name, seed, config):
        """Item of a label map, of which the path is `path`, and of a seed."""
        drawn = hashlib.sha256(to_draw.numbers.tobytes()).hexdigest()
        label_map = {"path": str(path), "sha256": self.digest_of(path), "content": to_draw.content}
        recipe = {"edit": list(config.edit), "fit": config.fit, "noise": self.model.noise}
        of, about = to_draw.variation, {}
        if of is not None:
            recipe, about = recipe | {"vary": {"k": of.k, **of.asked}}, {"variation": of.drawn}
        record = {"label_map": label_map | {"drawn_sha256": drawn}, "recipe": recipe, "seed": seed}
        caption = f"seed {seed} {name}"
        return Item(f"{name}_seed{seed:06d}", to_draw, caption, record, about, to_draw.stored)

    def folders(self, items):
        """Those of volumes, and of label maps."""
        return super().folders(items) | {self.labels, *(self.labels_path(item).parent for item in items)}

    def prepare(self, items, count):
        """As a Writer does; lists beside the label maps of which others, as they were, these are made."""
        for item in items:
            self.refuse_to_replace(item)
        super().prepare(items, count)
        if self.maps is None:
            return
        earlier = drawn_for(self.maps, "--generate")  # what they were made of themselves
        write_drawn_for(self.labels, {*earlier, *(item.source.content for item in items)})

    def refuse_to_replace(self, item):
        """Raise a UserError if a volume would replace a label map, or a label map a volume, of its name."""
        volume, labels = self.files_of(item)[0], self.labels_path(item)
        if volume.exists() and not self.path(item, "json").exists() and is_label_map(volume):
            raise UserError(f"{volume} is a label map, no volume to go on from: choose another {self.flag}.")
        if labels.exists() and (self.labels / f"{item.name}.json").exists():
            raise UserError(f"{labels} is a volume, where a label map belongs: choose another {self.flag}.")

    def refuse_before_varying(self, items):
        """Raise a UserError if what is there of items, whose maps are still to be varied, is of others."""
        for item in items:
            self.refuse_to_replace(item)
            sidecar = self.path(item, "json")
            if sidecar.exists():
                with reading(sidecar, "remove it; the volume is then made again"):
                    drawn = read_json(sidecar)["label_map"]["drawn_sha256"]
                label_map = item.record["label_map"] | {"drawn_sha256": drawn}
                self.refuse_another(replace(item, record=item.record | {"label_map": label_map}))

    def draw(self, items):
        """The volumes of some items, along the axes of their label maps."""
        numbers = np.stack([array_to_volume(item.source.numbers)[0] for item in items])
        volumes = self.model.draw(numbers, len(self.model.table), [item.record["seed"] for item in items])
        return [Drawn(i.source.as_written(v)) for i, v in zip(items, volumes, strict=True)]

    def labels_path(self, item):
        """Path of the label map of an item."""
        return self.labels / f"{item.name}.nii.gz"

    def files_of(self, item):
        """Those of the volume, and the label map."""
        return [*super().files_of(item), self.labels_path(item)]

    def write_more(self, item, drawn):
        """The label map as drawn; what is unknown stays unknown."""
        to_draw = item.source
        ids = to_draw.as_stored(ids_of(to_draw.numbers, self.model.classes, self.model.ignore))
        save_labels(ids, to_draw.stored, self.labels_path(item), self.model.known_as)
        return {}

    def beside(self, item):
        """The label map in colours."""
        return shown_map(array_to_volume(item.source.numbers)[0], item.source.affine)

    def picture_of(self, item, volume):
        """Label map, slice and projection. Shapes: -> (H, W, 3) uint8"""
        return labelled_views(
            volume, self.affine_of(item), f"SYNTHETIC {item.caption}", 256, self.beside(item)
        )
