"""Volumes and label maps as a segmentation network reads them, and its answers as files.

Inside, axes run to the right, to the front and up, voxels have the model's size, grey values have mean 0 and
standard deviation 1 in each volume, and ids are consecutive. Files keep their own grid and ids.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from segmentation.labels import read_labels, table_of
from volumetric.cli import UserError
from volumetric.collection import Volume, pair_up, read, refuse_other_grid, refuse_unusable
from volumetric.files import naming
from volumetric.geometry import same_spacing, turn


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
        """Class of the other side for every class, the background first: itself for one without a side."""
        names, swap = ["", *self.names], {"R-": "L-", "L-": "R-"}
        return [names.index(swap.get(name[:2], name[:2]) + name[2:]) for name in names]

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


@dataclass
class Case:
    """A volume and its label map, ready to be trained on.

    Args:
        name: Of the files.
        image: (X, Y, Z) float32, standardised.
        labels: (X, Y, Z) uint8, class numbers.
        digest: What the volume is known by; see collection.py.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    digest: str


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


def read_case(name, paths, classes):
    """(Scan, labels (X, Y, Z) as class numbers, what it is known by) of a volume and its label map.

    Raises:
        UserError: They cannot be used, or are of different grids.
    """
    scan = read_scan(paths[0])
    labels, affine = read_labels(paths[1], classes.table)
    refuse_other_grid((labels.shape, affine, paths[1]), (scan.array.shape, scan.frame, paths[0]))
    if not labels.any():
        raise UserError(f"{paths[1]} is empty, expected labels of {name}: remove the pair.")
    return scan, classes.from_ids(labels), scan.volume.content


def read_cases(data, labels, classes, only=None):
    """Every volume of a folder with its label map, at the median voxel size.

    Args:
        data, labels: Folders with files of the same names.
        classes: Classes of the label maps.
        only: Names of the cases that are wanted; None is all.

    Returns:
        ([Case], voxel size (3,) mm).

    Raises:
        UserError: One line for every pair that cannot be used.
    """
    pairs, read, problems = pair_up({"data": data, "labels": labels}, only), {}, []
    for name, paths in pairs.items():
        try:
            read[name] = read_case(name, paths, classes)
        except UserError as error:
            problems.append(str(error).rstrip("."))
    refuse_unusable(problems, len(pairs), data)
    target = np.median([scan.spacing for scan, _, _ in read.values()], axis=0)
    cases = [
        Case(name, scan.image(target), resampled(map_, scan.spacing, target, order=0), digest)
        for name, (scan, map_, digest) in read.items()
    ]
    return cases, target
