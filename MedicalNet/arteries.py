"""The arteries of a label map by name: what each is like, which touch, and which variant of the circle it is.

Both sets are measured alike: the numbers are for comparing them, not for a diagnosis. Volumes and pieces are
those of the teacher's gate (segmentation/teacher.py), the circle's segments those of the TopCoW challenge
(segmentation/metrics.py, arXiv:2312.17670): A1 is there if ACA and ICA touch, P1 if PCA and BA do.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from MedicalNet.anatomy import branches_of
from segmentation.cases import Classes
from segmentation.labels import BASE, TABLES, translation
from segmentation.metrics import GRAPH, box_of, graph_of, touching
from segmentation.teacher import sizes_of

ALL = "all"  # the vessels of all classes as one
PER_CLASS = ("ml", "pieces", "length", "touch")  # what is measured of every class
SIDES = {"right": "R", "left": "L"}
PROTOCOL = (
    "length: centreline of the artery's voxels as in `anatomy`; radius: of the tube of that volume and "
    "length, (volume / pi / length)^(1/2), finer than a voxel; loops: first Betti number of all vessels as "
    "one, by the Euler characteristic, 26 neighbours"
)


def measure_map(labels, spacing, table):
    """Measures of one label map.

    Args:
        labels: (X, Y, Z), ids of the table.
        spacing: (3,) mm.
        table: Name of the table.

    Returns:
        {"ml": (C + 1,), "pieces": (C + 1,), "length": (C,) mm, "touch": (C, C) bool, "loops": (1,)}; the last
        of C + 1 is of all classes as one. Without an artery its numbers are 0.
    """
    classes = Classes(table)
    found = sizes_of(labels, spacing, TABLES[table])
    rows = [found.get(name, (0.0, 0)) for name in (*classes.names, ALL)]
    ml = np.array([volume for volume, _ in rows], dtype=float)
    pieces = np.array([count for _, count in rows], dtype=float)
    lengths = [length_of(labels == n, spacing) for n in classes.ids]
    place = {n: index for index, n in enumerate(classes.ids)}
    touch = np.zeros((len(place), len(place)), bool)
    for one, other in touching(labels):
        touch[place[one], place[other]] = True
    return {
        "ml": ml,
        "pieces": pieces,
        "length": np.array(lengths),
        "touch": touch,
        "loops": np.array([loops(labels > 0)], dtype=float),
    }


def length_of(mask, spacing):
    """Length of a mask's centreline, mm; 0 of one that has none."""
    box = box_of(mask)
    return float(branches_of(mask[box], spacing)[0].sum()) if box is not None else 0.0


def loops(mask):
    """First Betti number: components + cavities - Euler characteristic, with 26 neighbours. (X, Y, Z) bool"""
    from skimage.measure import euler_number

    box = box_of(mask)
    if box is None:
        return 0
    mask = np.pad(mask[box], 1)
    components = ndimage.label(mask, np.ones((3, 3, 3)))[1]
    cavities = ndimage.label(~mask)[1] - 1  # 6 neighbours; the outside is none
    return components + cavities - int(euler_number(mask, connectivity=3))


@dataclass
class Arteries:
    """What was measured of the label maps of n volumes, with C classes.

    Args:
        names: Of the classes, in the order of their ids.
        table: Name of the table.
        ml: (n, C + 1), the last of all classes as one.
        pieces: (n, C + 1).
        length: (n, C) mm.
        touch: (n, C, C) bool.
        loops: (n,).
        confidence: (n,), NaN without vessels; None where maps were given and nobody knows.
    """

    names: list
    table: str
    ml: np.ndarray
    pieces: np.ndarray
    length: np.ndarray
    touch: np.ndarray
    loops: np.ndarray
    confidence: np.ndarray | None

    @classmethod
    def of(cls, rows, confidences, table):
        """Of `measure_map` of every volume, and how sure the network was of it, or None."""
        stacked = {
            name: np.stack([row[name] for row in rows]) for name in ("ml", "pieces", "length", "touch")
        }
        sure = None if any(c is None for c in confidences) else np.array(confidences)
        one = np.concatenate([row["loops"] for row in rows])
        return cls(Classes(table).names, table, **stacked, loops=one, confidence=sure)

    def __len__(self):
        return len(self.loops)

    def found(self, n):
        """{class: (ml, pieces)} of a volume, and of "all", as the teacher's gate takes it."""
        ml, pieces = self.ml[n], self.pieces[n]
        return {name: (ml[i], int(pieces[i])) for i, name in enumerate((*self.names, ALL)) if pieces[i]}

    def there(self, least_mm3):
        """Which arteries are there: those of at least so many mm3, and of any. Shapes: -> (n, C) bool"""
        mm3 = 1000 * self.ml[:, :-1]
        return (mm3 > 0) & (mm3 >= least_mm3 * (1 - 1e-9))

    def regional(self, least_mm3):
        """Volume, length and radius of every artery, NaN where it is not there.

        Shapes: -> {"volume": ml, "length": mm, "radius": mm, each (n, C)}
        """
        there = self.there(least_mm3)
        volume = np.where(there, self.ml[:, :-1], np.nan)
        length = np.where(there, self.length, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            radius = np.where(length > 0, np.sqrt(1000 * volume / np.pi / length), np.nan)
        return {"volume": volume, "length": length, "radius": radius}

    def frequencies(self, least_mm3):
        """{name: which volumes have it (n,)}: arteries, then variants, where the table parts the sides."""
        there = self.there(least_mm3)
        named = dict(zip(self.names, there.T, strict=True))
        return named | (
            variants_of(named, self.touch, self.table) if set(BASE.values()) <= named.keys() else {}
        )

    def subset(self, chosen):
        """The volumes of the given indices."""
        arrays = [getattr(self, name)[chosen] for name in (*PER_CLASS, "loops")]
        return Arteries(
            self.names, self.table, *arrays, None if self.confidence is None else self.confidence[chosen]
        )


def segments_of(named, touch, table):
    """{segment of the circle's graph: which volumes have it (n,)}; see metrics.GRAPH.

    Args:
        named: {class: (n,) bool}.
        touch: (n, C, C) bool, in the order of the classes.
        table: Name of the table.
    """
    ids = [translation(table, "topcow2024")[n] if table != "topcow2024" else n for n in Classes(table).ids]
    rows = []
    for n, pairs in enumerate(touch):
        there = {i for i, has in zip(ids, named.values(), strict=True) if has[n]}
        met = {(ids[a], ids[b]) for a, b in np.argwhere(pairs)}
        graph = graph_of(np.array(sorted(there)), {(a, b) for a, b in met if a in there and b in there})
        rows.append([value for part in GRAPH for value in graph[part]])
    keys = [segment for part in GRAPH.values() for segment in part]
    return dict(zip(keys, np.array(rows, bool).T, strict=True))


def variants_of(named, touch, table):
    """{variant: which volumes have it (n,)}, arguments as of `segments_of`.

    A fetal PCA is one that has a Pcom and no P1: one with a thin P1 cannot be told by which classes touch.
    The ring is closed if every segment of the circle but the third A2 is there.
    """
    graph = segments_of(named, touch, table)
    right, left = named["R-Pcom"], named["L-Pcom"]
    found = {"both Pcom": right & left, "right Pcom alone": right & ~left, "left Pcom alone": left & ~right}
    found["no Pcom"] = ~right & ~left
    for segment in ("A1", "P1"):
        found |= {f"{side} {segment} missing": ~graph[f"{s}-{segment}"] for side, s in SIDES.items()}
    for side, s in SIDES.items():
        found[f"{side} fetal PCA"] = named[f"{s}-PCA"] & named[f"{s}-Pcom"] & ~graph[f"{s}-P1"]
    found["every artery"] = np.all([named[name] for name in BASE.values()], axis=0)
    ring = [has for segment, has in graph.items() if segment != "3rd-A2"]
    return found | {"ring closed": np.all(ring, axis=0)}
