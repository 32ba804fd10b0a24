"""Label maps that volumes are drawn for: pairs with volumes, tables of ids, edits, other grids, pictures.

Class numbers stand for ids: 0 is the background, n the n-th id of the table, 255 unknown.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from segmentation.cases import Classes
from segmentation.labels import TABLES, read_labels
from segmentation.nnunet import read_subjects
from volumetric import dataset, parallel
from volumetric.cli import UserError
from volumetric.collection import name_of, pair_up, read, refuse_other_grid, refuse_unusable
from volumetric.files import array_to_volume, as_damaged, naming, read_json, volume_to_array
from volumetric.geometry import axes_of, left_right_axis
from volumetric.pictures import axial_pictures

UNKNOWN = 255  # class number of voxels that nobody has labelled
STREAM_HELD_OUT = 100
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
        center: Where the middle of the labels is on average, (3,) voxels of X, Y and Z.
    """

    maps: torch.Tensor
    table: dict
    trained: np.ndarray
    held_out: np.ndarray
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
    """Ids as class numbers; a UserError for a map that has one class alone. Shapes: (X, Y, Z) -> the same"""
    numbers = classes.from_ids(array)
    if ignore is not None:
        numbers[array == ignore] = UNKNOWN
    if (numbers == numbers.flat[0]).all():
        raise UserError(f"{path} has one class alone, expected labels and background: remove the pair.")
    return numbers


def read_pairs(config, audit):
    """The label maps of the volumes of an audit, all checked.

    Raises:
        UserError: One line for every pair that cannot be used.
    """
    if config.labels is None:
        raise UserError("--labels is missing: give the folder of the label maps.")
    paths = pair_up({"data": config.data, "labels": config.labels})
    table, problems, found, axes = read_table(config.table), [], {}, axes_of(audit.affine)
    for name, (volume, path) in tqdm(paths.items(), "Checking label maps", leave=False):
        try:
            allowed = None if table is None else table | ({config.ignore: "unknown"} if config.ignore else {})
            array, affine = read_labels(path, allowed, axes)
            with naming(volume):
                image = read(volume, axes=axes)
            refuse_other_grid((array.shape, affine, path), (image.array.shape, image.affine, volume))
            found[name] = (array, affine)
        except UserError as error:
            problems.append(str(error).rstrip("."))
    if table is None:
        ids = sorted({int(n) for array, _ in found.values() for n in np.unique(array)} - {0, config.ignore})
        table = {n: str(n) for n in ids}
    classes, maps = Classes(table), []
    for name, (array, _) in found.items():
        try:
            maps.append(class_numbers(array, classes, config.ignore, paths[name][1]))
        except UserError as error:
            problems.append(str(error).rstrip("."))
    refuse_unusable(problems, len(paths), config.labels)
    by_path = {volume: numbers for (volume, _), numbers in zip(paths.values(), maps, strict=True)}
    maps = [by_path[path] for path in audit.paths]
    trained, held_out = split(config, [name_of(path) for path in audit.paths])
    dataset.check_number(len(trained), config.batch_size, f"{config.data} without what is held out")
    middles = [np.mean([p.min(axis=1), p.max(axis=1)], axis=0) for p in map(labelled, maps)]
    maps = torch.from_numpy(np.stack([array_to_volume(one) for one in maps]))
    return Pairs(maps, table, trained, held_out, np.mean(middles, axis=0))


def labelled(numbers):
    """Positions of the voxels of any class. Shapes: (X, Y, Z) -> (3, n)"""
    return np.array(np.nonzero((numbers > 0) & (numbers != UNKNOWN)))


def split(config, names):
    """Indices of the pairs to train on, and of the others: all of a subject on one side.

    Shapes: names (N,) -> (n,), (N - n,)
    """
    told = read_subjects(config.subjects, set(names)) if config.subjects else {}
    of = [told.get(name, name) for name in names]
    subjects = sorted(set(of))
    order = parallel.host_random(config.seed, STREAM_HELD_OUT).permutation(len(subjects))
    number = math.ceil(config.held_out * len(subjects)) if config.held_out else 0
    chosen = {subjects[n] for n in order[:number]}
    held_out = np.array([subject in chosen for subject in of])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Edits and grids                                                                                          ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


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


def edited(numbers, affine, edits, classes):
    """A label map after edits; what is thinned keeps its centre line, what is thickened takes background.

    Shapes: numbers (X, Y, Z) uint8, affine (4, 4) mm -> (X, Y, Z) uint8

    Raises:
        UserError: The table has no class of a name.
    """
    numbers, spacing = numbers.copy(), nib.affines.voxel_sizes(affine)
    for operation, name, mm in edits:
        if operation == "swap_sides":
            other = np.arange(UNKNOWN + 1, dtype=np.uint8)
            other[: 1 + len(classes.names)] = classes.other_side
            numbers = other[np.flip(numbers, left_right_axis(affine))]
            continue
        if name not in classes.names:
            raise UserError(f"--edit names {name}, the model's classes are {', '.join(classes.names)}.")
        number = 1 + classes.names.index(name)
        there = numbers == number
        if operation == "drop":
            numbers[there] = 0
        elif operation == "thin" and there.any():
            from skimage.morphology import skeletonize

            kept = (ndimage.distance_transform_edt(there, spacing) > mm) | skeletonize(there)
            numbers[there & ~kept] = 0
        elif there.any():
            near = ndimage.distance_transform_edt(~there, spacing) <= mm
            numbers[near & (numbers == 0)] = number
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


def row_of(numbers, volumes, affine):
    """A label map and volumes side by side, from above. Shapes: (Z, X, Y), (1, Z, X, Y) -> (H, W, 3) uint8"""
    from segmentation.report import COLOURS, coloured

    shown = np.where(numbers == UNKNOWN, 0, numbers)
    shown = np.where(shown > 0, (shown.astype(int) - 1) % len(COLOURS) + 1, 0)
    tiles = [coloured(volume_to_array(shown[None]), affine)]
    for volume in volumes:
        _, (projection,) = axial_pictures(np.asarray(volume)[None], affine)
        image = nearest(projection, tiles[0].shape[:2])
        tiles.append(np.repeat(image[..., None], 3, axis=2))
    tiles = [np.pad(tile, ((0, 2), (0, 2), (0, 0)), constant_values=64) for tile in tiles]
    return np.concatenate(tiles, axis=1)


def nearest(picture, shape):
    """A picture at another size, by nearest neighbour. Shapes: (h, w) -> shape"""
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, picture.shape, strict=True))
    return picture[rows][:, columns]
