"""Volumes and label maps as a segmentation network reads them, and its answers as files.

Inside, axes run to the right, to the front and up, voxels have the model's size, grey values have mean 0 and
standard deviation 1 in each volume, and ids are consecutive. Files keep their own grid and ids.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from volumetric.cli import UserError
from volumetric.collection import (
    Volume,
    choose,
    content_of_labels,
    copies_among,
    find,
    find_volumes,
    pair_up,
    read,
    refuse_other_grid,
    refuse_unusable,
)
from volumetric.files import naming
from volumetric.geometry import same_spacing, turn
from volumetric.names import in_folder, names_in

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from segmentation.labels import read_labels, table_of


@dataclass(frozen=True)
class Classes:
    """The classes of a table of ids, numbered from 1 on; 0 is the background.

    Args:
        table: A name out of TABLES, or {id: name}.
    """

    table: "str | dict"

    @property
    def ids(self):
        """Ids in files, in order; that of class n is ids[n - 1]."""
        return sorted(table_of(self.table))

    @property
    def names(self):
        """Names, in the same order."""
        return [table_of(self.table)[n] for n in self.ids]

    @property
    def other_side(self):
        """Class of the other side for every class, the background first: itself for one without a side.

        Raises:
            UserError: A class has no other side; the text begins with the table.
        """
        names, swap = ["", *self.names], {"R-": "L-", "L-": "R-"}
        others = [swap.get(name[:2], name[:2]) + name[2:] for name in names]
        for name, other in zip(names, others, strict=True):
            if other not in names:
                raise UserError(
                    f"has {name} and no {other} to exchange it with: add it, or leave sides as they are "
                    f"(--mirror False)."
                )
        return [names.index(other) for other in others]

    def from_ids(self, labels):
        """Ids as class numbers. Shapes: (X, Y, Z) uint8 -> the same"""
        table = np.zeros(256, np.uint8)
        table[self.ids] = np.arange(1, 1 + len(self.ids))
        return table[labels]

    def to_ids(self, numbers):
        """Class numbers as ids. Shapes: (X, Y, Z) uint8 -> the same"""
        return np.array([0, *self.ids], np.uint8)[numbers]


@dataclass
class Scan:
    """A volume in the network's frame, and how to get back to its file's.

    Args:
        path: The file.
        volume: collection.Volume along right, front and up, at the file's voxel size.
    """

    path: Path
    volume: Volume

    @property
    def array(self):
        """The voxels, (X, Y, Z) float32."""
        return self.volume.array

    @property
    def frame(self):
        """Affine of `array`, (4, 4), mm."""
        return self.volume.affine

    @property
    def affine(self):
        """Affine of the file, (4, 4), mm."""
        return self.volume.stored

    @property
    def spacing(self):
        """Voxel size, (3,) mm."""
        return self.volume.spacing

    def as_stored(self, labels):
        """A label map of this frame along the file's axes. Shapes: (X, Y, Z) -> (X', Y', Z')"""
        return self.volume.as_stored(labels)

    def as_read(self, labels):
        """A label map along the file's axes, in this frame. Shapes: (X', Y', Z') -> (X, Y, Z)"""
        return turn(labels, self.affine)[0]

    def image(self, spacing):
        """The volume at a voxel size, standardised. Shapes: (3,) mm -> (X', Y', Z') float32"""
        array = resampled(self.array, self.spacing, spacing, order=1)
        return (array - array.mean()) / array.std()


@dataclass(frozen=True)
class Identity:
    """What a volume and its label map are known by; see collection.py.

    Args:
        volume: Content of the volume.
        labels: Content of the label map.
        spacing: Voxel size, (3,) mm.
        former: SHA-256 of the voxels as they are, by which networks of earlier versions know the volume.
    """

    volume: str
    labels: str
    spacing: tuple
    former: str

    @property
    def pair(self):
        """Text that tells the pair from others: another label map, or another voxel size, makes it another.

        Sizes have the eleven bits of float16: those that differ by rounding are one.
        """
        return f"{self.volume} {self.labels} {'x'.join(f'{np.float16(n):.4g}' for n in self.spacing)}"


@dataclass
class Pair:
    """A volume and its label map, as files have them.

    Args:
        volume_path, labels_path: The files.
        scan: The volume.
        labels: Class numbers, (X, Y, Z) uint8, in the frame of `scan`.
        identity: Identity of both.
    """

    volume_path: Path
    labels_path: Path
    scan: Scan
    labels: np.ndarray
    identity: Identity


@dataclass
class Case:
    """A volume and its label map, ready to be trained on.

    Args:
        name: Of the files,
        volume_path, labels_path: which are these.
        image: (X, Y, Z) float32, standardised.
        labels: (X, Y, Z) uint8, class numbers.
        identity: Identity of the files.
    """

    name: str
    volume_path: Path
    labels_path: Path
    image: np.ndarray
    labels: np.ndarray
    identity: Identity


def read_scan(path):
    """Read a volume; a UserError names the file that cannot be used."""
    with naming(path):
        volume = read(path)
    return Scan(Path(path), replace(volume, array=np.ascontiguousarray(volume.array)))


def resampled(array, spacing, target, order):
    """An array at another voxel size; its corners stay. Shapes: (X, Y, Z), (3,), (3,) mm -> (X', Y', Z')"""
    if same_spacing(spacing, target):
        return array
    shape = np.maximum(1, np.rint(np.array(array.shape) * spacing / target)).astype(int)
    return brought_to(array, shape, order)


def brought_to(array, shape, order):
    """An array with another number of voxels in the same box. Shapes: (X, Y, Z), (3,) -> shape"""
    factors = np.array(shape) / array.shape
    return ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)


def read_pair(volume_path, labels_path, classes):
    """The Pair of a volume and its label map.

    Raises:
        UserError: They cannot be used, or are of different grids.
    """
    scan = read_scan(volume_path)
    labels, affine = read_labels(labels_path, classes.table)
    refuse_other_grid((labels.shape, affine, labels_path), (scan.array.shape, scan.frame, volume_path))
    if not labels.any():
        raise UserError(f"{labels_path} is empty, expected labels of {volume_path}: remove the pair.")
    former = hashlib.sha256(scan.array).hexdigest()
    identity = Identity(scan.volume.content, content_of_labels(labels), tuple(scan.spacing), former)
    return Pair(volume_path, labels_path, scan, classes.from_ids(labels), identity)


def in_order(cases):
    """Cases in an order of their contents: renamed files are drawn as they were."""
    return sorted(cases, key=lambda case: case.identity.pair)


def pairs_among(cases):
    """What tells Pairs or Cases from others: [text], sorted; whatever their files are called."""
    return sorted(case.identity.pair for case in cases)


def refuse_real(made, real, folder):
    """Raise a UserError if volumes of a folder that are called synthetic are real ones; both are [Pair]."""
    known = {pair.identity.volume: pair.volume_path for pair in real}
    problems = [
        f"{pair.volume_path} has the same voxels as {known[pair.identity.volume]}: it is no synthetic volume"
        for pair in made
        if pair.identity.volume in known
    ]
    refuse_unusable(problems, len(made), folder)


def labelled_among(volumes, labels):
    """Names of those of the volumes of --synthetic that have a label map in --synthetic_labels, a set.

    A teacher's gate withholds some: how many have none is told.

    Args:
        volumes, labels: The two folders.
    """
    names = set(names_in(volumes, find_volumes(volumes, "--synthetic")).values())
    there = names & set(names_in(labels, find(labels, "--synthetic_labels").paths).values())
    if len(there) < len(names):
        print(f"{len(names) - len(there)} of {len(names)} synthetic volumes have no label map in {labels}.")
    return there


def find_pairs(folders, only=None, split=None, parts=("training",)):
    """({case: paths} of `pair_up`, {path: content that the split states}).

    Args:
        folders, only: As for `pair_up`.
        split, parts: As for `collection.choose`; the volumes are those of the first folder.
    """
    if split is None:
        return pair_up(folders, only), {}
    flag, folder = next(iter(folders.items()))
    told = []
    _, stated = choose(folder, f"--{flag}", split, parts, told.append)
    print(told[-1])  # `pair_up` tells the rest
    return pair_up(folders, {in_folder(path, folder) for path in stated}), stated


def refuse_changed(path, content, stated):
    """Raise a UserError unless a volume is the one that a split, {path: content} or empty, knows."""
    if stated and content != stated[path]:
        raise UserError(f"{path} has other voxels than the split knows: make the split again")


def pairs_in(folders, classes, only=None, split=None, parts=("training",)):
    """{case: Pair} of every volume of a folder with its label map; arguments are those of `find_pairs`.

    Raises:
        UserError: One line for every pair that cannot be used, and for every volume that is there twice.
    """
    pairs, stated = find_pairs(folders, only, split, parts)
    read, problems = {}, []
    for name, (volume, labels) in tqdm(pairs.items(), f"Reading --{next(iter(folders))}", leave=False):
        try:
            pair = read_pair(volume, labels, classes)
            refuse_changed(volume, pair.identity.volume, stated)
            read[name] = pair
        except UserError as error:
            problems.append(str(error).rstrip("."))
    problems += copies_among([(pair.volume_path, pair.identity.volume) for pair in read.values()])
    refuse_unusable(problems, len(pairs), next(iter(folders.values())))
    return read


def read_cases(folders, classes, spacing=None, **chosen):
    """Every volume of a folder with its label map, at one voxel size.

    Args:
        folders: {flag: folder} of volumes and of label maps, files of the same names.
        classes: Classes of the label maps.
        spacing: The voxel size, (3,) mm; None is the median of the volumes'.
        chosen: only, split and parts, as for `find_pairs`.

    Returns:
        ([Case], voxel size (3,) mm).

    Raises:
        UserError: One line for every pair that cannot be used.
    """
    pairs = pairs_in(folders, classes, **chosen)
    if spacing is None:
        spacing = np.median([pair.scan.spacing for pair in pairs.values()], axis=0)
    cases = [
        Case(
            name,
            pair.volume_path,
            pair.labels_path,
            pair.scan.image(spacing),
            resampled(pair.labels, pair.scan.spacing, spacing, order=0),
            pair.identity,
        )
        for name, pair in pairs.items()
    ]
    return cases, spacing
