"""Circle-of-Willis phantoms: synthetic time-of-flight MR angiograms with known anatomy, to try everything on.

    python sample_data/phantom.py --output phantoms --num 64
    python sample_data/phantom.py --output phantoms --labels labels --num 64 --image_size 64 --image_depth 16
    python sample_data/phantom.py --output heads --whole_head --num 8
    python sample_data/phantom.py --output asked --graphs graphs --variant "absent L-Pcom, fetal R-PCA"
    python sample_data/phantom.py --output classes --classes --num 96 --image_size 64 --image_depth 16
    python sample_data/phantom.py --output nodules --nodules --num 96 --image_size 32 --image_depth 32

A parametric arterial tree in millimetres (scipy splines, radii that taper and vary), rendered from the
distance to the centrelines: laminar flow, partial volume, tissue, cerebrospinal fluid, bias field, Rician
noise. No patient's image is in it. Sections: configuration, anatomy, arterial tree, rendering, whole heads,
entry point. What is asked for by name is read by anatomy.py, graphs are written by centrelines.py, lung
nodules are drawn by nodules.py.

World coordinates are RAS in mm (x to the patient's right, y to the front, z up), with the origin between the
carotid termini and the tip of the basilar artery, moved by WORLD_ORIGIN in the affine.
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.files import by
from volumetric.tables import write_records

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from sample_data import anatomy, nodules
from sample_data.centrelines import Tree, write_graph

FIELD_OF_VIEW = np.array([79.36, 79.36, 19.84])  # mm: 128 x 128 x 32 voxels of 0.62 mm
BASE_GRID = np.array([128, 128, 32])  # coarser volumes are means over this grid, so that they show the same
WORLD_ORIGIN = np.array([0.0, -4.0, -14.0])  # mm, about where the circle lies in MNI space (assumption)
SAMPLING = 0.25  # mm between points of a centreline
INTENSITY = {"float32": 600.0, "uint8": 180.0}  # grey value of full flow


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Configuration                                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(kw_only=True)
class PhantomConfig:
    """Generate phantoms of the Circle of Willis or of lung nodules, their table, and label maps if asked."""

    output: str = option("phantoms", "New folder for phantom_<number>.nii.gz and variants.csv.", folder=True)
    labels: str | None = option(
        None, "New folder for label maps (TopCoW ids), brain masks of heads, masks of nodules; None: none."
    )
    arteries: str | None = option(None, "New folder for label maps (TopCoW ids) of whole heads.")
    graphs: str | None = option(
        None, "New folder for centre lines with radii, as graphs (.json) and .swc, RAS mm; None: none."
    )
    num: int | None = option(
        None, "Number of phantoms; None: 64, or one for each row of --variants.", most=10**6
    )
    image_size: int = option(
        128,
        "In-plane edge in voxels; the field of view is always 79.36 x 79.36 x 19.84 mm.",
        least=4,
        most=1024,
    )
    image_depth: int = option(32, "Number of axial slices.", least=4, most=1024)
    seed: int = option(0, "Seed, >= 0; phantom number n depends on the seed and n alone.", least=0)
    dtype: str = option("float32", "Voxel type.", choices=INTENSITY)
    whole_head: bool = option(
        False, "Whole heads as they come from the scanner, with their poses, in place of the circle alone."
    )
    head_spacing: float | None = option(
        None, "Voxel edge of whole heads in mm; None takes that of each scanner.", least=0.2, most=10
    )
    classes: bool = option(
        False,
        "Three classes in folders of their names, in turn: full, missing_A1 (one side), missing_Pcom (both "
        "sides); all other vessels are normal.",
    )
    nodules: bool = option(
        False,
        "Lung nodules in CT numbers, fields of 40 mm, in folders of their kinds, in turn: ground_glass, "
        "part_solid, solid.",
    )
    variant: str | None = option(
        None,
        "Variants by name, as in 'absent L-Pcom, fetal R-PCA': absent, thin, normal or fetal; complete: all "
        "others are normal.",
    )
    variants: str | None = option(
        None,
        "CSV table with columns variant, radius, aneurysm, stenosis, or some: a row for each phantom.",
        file=True,
    )
    radius: str | None = option(None, "Mean radii of segments in mm, as in 'BA: 1.9, R-ICA: 2.2'.")
    aneurysm: str | None = option(
        None, "Sacs at junctions, diameter and neck in mm, as in 'Acom: 6, neck 3'."
    )
    stenosis: str | None = option(
        None, "Stenoses in the middle of segments, per cent of the diameter, as in 'L-MCA: 60'."
    )
    chiral: bool = option(
        False, "The two sides differ as in people, with two vertebral arteries, the left one often wider."
    )
    degrees: float = option(15.0, "Largest rotation of a head.", least=0)
    shift: float = option(15.0, "Largest shift of a head, mm.", least=0)

    def __post_init__(self):
        check_fields(self)
        if self.arteries is not None and not self.whole_head:
            raise UserError("--arteries are of whole heads; the label maps of circles are --labels.")
        if self.classes and self.whole_head:
            raise UserError("--classes makes circles alone: leave --whole_head out.")
        if self.nodules and (self.classes or self.whole_head or self.dtype != "float32"):
            raise UserError("--nodules have classes and CT numbers: leave other flags of what is drawn out.")
        anatomy.check_asked(self)
        self.num = 64 if self.num is None and self.variants is None else self.num


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Anatomy                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

# Variants. Absent A1 and Pcom: Enyedi et al. 2023 (Folia Morphol 82:24, n = 126: one Pcom absent in 28, one
# A1 in 17, so 0.13 and 0.07 a side). Fetal PCA: the same (one side in 14, both in 6, so 0.10 a side). Thin A1
# and P1: Tanaka et al. 2006 (AJNR 27:1770, n = 117: 6 each, so 0.03 a side). The others are assumptions.
PROBABILITY = {
    "A1": {"absent": 0.07, "thin": 0.03},
    "P1": {"absent": 0.00, "thin": 0.03},  # absent P1 comes with a fetal PCA
    "Pcom": {"absent": 0.13, "thin": 0.20},  # thin: assumption
    "Acom": {"absent": 0.03, "thin": 0.10},  # assumption
}
PROBABILITY_FETAL = 0.10
THIN = 0.5  # factor on the radius of a thin (hypoplastic) segment: assumption

# Junctions and way points of the right side, RAS mm; the left side is its mirror image. Assumptions, in the
# proportions of atlases; every subject moves them.
POINTS = {
    "ica_low": (12.0, -4.0, -12.0),
    "ica_petrous": (11.5, 2.0, -10.0),
    "ica_genu": (9.8, 8.6, -8.0),
    "ica_clinoid": (8.8, 9.4, -4.2),
    "ica_ophthalmic": (9.4, 7.2, -1.0),
    "ica_terminus": (11.5, 4.0, 2.8),
    "m1_middle": (18.5, 5.0, 4.2),
    "m1_lateral": (26.0, 7.6, 4.6),
    "mca_fork": (31.5, 7.4, 3.6),
    "m2_upper_a": (35.0, 7.8, 5.2),
    "m2_upper_b": (37.0, 2.5, 8.0),
    "m2_upper_end": (37.5, -6.0, 12.0),
    "m2_lower_a": (33.5, 3.0, 3.4),
    "m2_lower_b": (33.5, -6.0, 5.0),
    "m2_lower_end": (36.0, -18.0, 10.5),
    "a1_middle": (6.5, 7.6, 4.6),
    "acom_side": (1.8, 11.0, 5.6),
    "a2_a": (1.7, 15.0, 5.8),
    "a2_b": (1.6, 21.0, 7.6),
    "a2_end": (1.4, 28.0, 11.5),
    "p1_middle": (4.2, -12.2, 1.2),
    "pca_joint": (8.6, -12.6, 1.6),
    "p2_a": (14.0, -15.4, 2.0),
    "p2_b": (16.6, -21.5, 3.0),
    "p2_c": (14.8, -28.5, 4.6),
    "p2_end": (9.5, -39.5, 8.0),
    "pcom_front": (10.3, 5.2, 0.9),
    "pcom_a": (9.8, -1.0, 0.2),
    "pcom_b": (9.0, -7.5, 0.7),
    "sca_a": (5.5, -13.6, -3.0),
    "sca_b": (12.5, -18.5, -3.6),
    "sca_end": (12.0, -31.0, -1.5),
    "ophthalmic_a": (9.2, 14.0, -4.2),
    "ophthalmic_end": (13.0, 23.0, -6.0),
    "choroidal_a": (13.0, -1.0, 2.6),
    "choroidal_end": (17.0, -12.0, 5.0),
}
MIDLINE = {
    "ba_low": (0.8, -9.6, -12.0),
    "ba_middle": (0.4, -11.4, -6.0),
    "ba_sca": (0.1, -12.2, -2.6),
    "ba_tip": (0.0, -12.4, 0.4),
}


LANDMARKS = ("ica_terminus", "mca_fork", "acom_side", "pca_joint", "ba_tip")  # junctions, for registrations


@dataclass
class Segment:
    """One artery between two junctions.

    Args:
        path: Names of its points; those of MIDLINE or of POINTS on its side.
        radius: Radius at its start and end, mm (mean of the population).
        label: TopCoW id on the right and on the left side, 0 for none.
        flow: Brightness of its flow, 1 for the carotid: slow and saturated blood is darker (assumption).
        wander: Standard deviation of its tortuosity, mm (assumption).
    """

    path: tuple
    radius: tuple
    label: tuple = (0, 0)
    flow: float = 1.0
    wander: float = 0.5


# Mean radii: half of the diameters of carotid terminus and M1, 3.6 and 3.1 mm, and of the basilar artery, 3.6
# to 3.1 mm (two morphometric studies in the Journal of NeuroInterventional Surgery, as tabulated at
# medtune.com/notes/sizes-arteries); the others are assumptions.
PAIRED = {
    "ICA": Segment(
        ("ica_low", "ica_petrous", "ica_genu", "ica_clinoid", "ica_ophthalmic", "ica_terminus"),
        (2.3, 1.8),
        (4, 6),
        wander=0.3,
    ),
    "M1": Segment(("ica_terminus", "m1_middle", "m1_lateral", "mca_fork"), (1.55, 1.3), (5, 7), 0.97, 0.9),
    "M2_upper": Segment(
        ("mca_fork", "m2_upper_a", "m2_upper_b", "m2_upper_end"), (1.05, 0.8), (5, 7), 0.9, 0.9
    ),
    "M2_lower": Segment(
        ("mca_fork", "m2_lower_a", "m2_lower_b", "m2_lower_end"), (1.05, 0.8), (5, 7), 0.9, 0.9
    ),
    "A1": Segment(("ica_terminus", "a1_middle", "acom_side"), (1.15, 1.05), (11, 12), 0.93, 0.7),
    "A2": Segment(("acom_side", "a2_a", "a2_b", "a2_end"), (1.05, 0.9), (11, 12), 0.9, 0.6),
    "P1": Segment(("ba_tip", "p1_middle", "pca_joint"), (1.1, 1.05), (2, 3), 0.92, 0.4),
    "P2": Segment(("pca_joint", "p2_a", "p2_b", "p2_c", "p2_end"), (1.05, 0.8), (2, 3), 0.88, 0.8),
    "Pcom": Segment(("pcom_front", "pcom_a", "pcom_b", "pca_joint"), (0.75, 0.7), (8, 9), 0.78, 0.6),
    "SCA": Segment(("ba_sca", "sca_a", "sca_b", "sca_end"), (0.65, 0.45), flow=0.7, wander=0.7),
    "ophthalmic": Segment(("ica_clinoid", "ophthalmic_a", "ophthalmic_end"), (0.6, 0.45), flow=0.65),
    "choroidal": Segment(("ica_ophthalmic", "choroidal_a", "choroidal_end"), (0.42, 0.35), flow=0.55),
}
UNPAIRED = {"BA": Segment(("ba_low", "ba_middle", "ba_sca", "ba_tip"), (1.8, 1.6), (1, 1), 0.96, 1.0)}
ACOM = Segment(("acom_side",), (0.8, 0.8), (10, 10), 0.88, 0.3)  # from its right point to the left one
TWIG_PARENTS = ("M2_upper", "M2_lower", "A2", "P2", "M1", "SCA")  # where small distal vessels spring from
TWIGS = (14, 26)  # fewest and most of them (assumption)


@dataclass
class Scanner:
    """Protocol of one scanner; the figures are assumptions within the range of clinical TOF protocols.

    Args:
        spacing: Acquired voxel, (in plane, slice), mm; it blurs the volume.
        noise: Standard deviation of the noise, in units of full flow.
        tissue: Brightness of brain, in units of full flow (background suppression differs).
        bias: Strength of the bias field, natural logarithm.
    """

    spacing: tuple
    noise: float
    tissue: float
    bias: float


SCANNERS = {
    "1.5T-a": Scanner((0.70, 1.00), 0.045, 0.36, 0.08),
    "1.5T-b": Scanner((0.60, 0.80), 0.040, 0.33, 0.10),
    "3T-a": Scanner((0.47, 0.70), 0.028, 0.29, 0.16),
    "3T-b": Scanner((0.35, 0.60), 0.024, 0.26, 0.18),
}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Arterial tree                                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def draw_variants(rng, factors=anatomy.BOTH_ALIKE):
    """State of every variable segment, {name: normal, thin, absent or fetal}.

    Args:
        rng: numpy Generator.
        factors: {side: {name: factor on its probabilities}}.
    """
    variants = {}
    for side in "RL":
        for name in ("A1", "P1", "Pcom"):
            variants[f"{name}_{side}"] = draw_state(rng, PROBABILITY[name], factors[side][name])
        if rng.random() < PROBABILITY_FETAL * factors[side]["fetal"]:
            variants[f"Pcom_{side}"] = "fetal"
            variants[f"P1_{side}"] = "absent" if rng.random() < anatomy.ABSENT_P1_IF_FETAL else "thin"
    if variants["A1_R"] == variants["A1_L"] == "absent":
        variants["A1_L"] = "normal"  # one A1 must feed both A2
    variants["Acom"] = draw_state(rng, PROBABILITY["Acom"])
    if "absent" in (variants["A1_R"], variants["A1_L"]):
        variants["Acom"] = "normal"  # the only feeder of an A2 without A1
    return variants


CLASSES = ("full", "missing_A1", "missing_Pcom")


def variants_of_class(name, variants, number):
    """The variants of a phantom that is to show a class and nothing else; the side of an A1 alternates."""
    missing = {"full": (), "missing_A1": (f"A1_{'RL'[number // len(CLASSES) % 2]}",)}
    missing["missing_Pcom"] = ("Pcom_R", "Pcom_L")
    return {key: "absent" if key in missing[name] else "normal" for key in variants}


def draw_state(rng, probability, factor=1.0):
    """normal, thin or absent."""
    u = rng.random()
    if u < probability["absent"] * factor:
        return "absent"
    return "thin" if u < (probability["absent"] + probability["thin"]) * factor else "normal"


def draw_points(rng):
    """Positions of all named points of one subject, {(name, side): mm}; midline points have side ''."""
    angles = np.radians(rng.normal(0, (2.5, 1.5, 3.0)))
    scale = rng.normal((1, 1, 1), (0.05, 0.05, 0.06))
    rotation = rotation_matrix(*angles)
    shift = rng.normal(0, (0.8, 1.2, 0.9))
    points = {}
    for side, mirror in (("R", 1), ("L", -1)):
        for name, position in POINTS.items():
            jitter = rng.normal(0, (0.9, 0.9, 0.6))
            points[name, side] = np.array(position) * (mirror, 1, 1) + jitter
    for name, position in MIDLINE.items():
        points[name, ""] = np.array(position) + rng.normal(0, (1.0, 0.8, 0.5))
    for side, mirror in (("R", 1), ("L", -1)):  # the Acom, between the two A1, has a length
        points["acom_side", side][0] = mirror * max(1.8, mirror * points["acom_side", side][0])
    return {key: rotation @ (scale * p) + shift for key, p in points.items()}


def rotation_matrix(a, b, c):
    """Rotation about x, then y, then z, by angles in radians."""
    x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


def centreline(way, wander, rng):
    """Smooth curve through way points, wandering between its ends.

    Shapes: way (K, 3) mm -> points (N, 3) mm, SAMPLING mm apart, and position along it (N,) in [0, 1]
    """
    way = np.asarray(way)
    knots = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=1))])
    t = np.linspace(0, 1, max(8, int(1.1 * knots[-1] / SAMPLING)))
    points = CubicSpline(knots, way)(t * knots[-1])
    for waves in (1, 2, 3):  # half waves: zero at both ends, so that junctions stay joined
        points += np.sin(math.pi * waves * t)[:, None] * rng.normal(0, wander / waves, 3)
    return points, t


def build_tree(rng, known=None, request=anatomy.NOTHING, chiral=False):
    """The arteries of one subject.

    Args:
        rng: numpy Generator; with a request, all that is not asked for is drawn as without.
        known: Function from the variants that were drawn to those that are wanted, or None.
        request: anatomy.Request.
        chiral: Whether the sides differ, and there are vertebral arteries.

    Returns:
        Tree, whose `variants` also holds the mean radius of every labelled segment, mm.
    """
    own = rng.spawn(3)
    variants = draw_variants(rng, anatomy.FACTORS if chiral else anatomy.BOTH_ALIKE)
    tree = Tree(variants=request.settle(variants if known is None else known(variants), own[0]))
    points = draw_points(rng)
    junctions = {key: point for key, point in points.items() if key[0] in LANDMARKS}
    tree.landmarks = {"_".join(filter(None, key)): point for key, point in junctions.items()}
    widths = {}
    if chiral:
        tree.variants["VA_dominant"], widths = anatomy.place_vertebrals(points, own[1])
    size = rng.normal(1, 0.08)  # of all the subject's arteries
    segments = [(f"{name}_{side}", s) for name, s in PAIRED.items() for side in "RL"]
    for key, segment in [*segments, *UNPAIRED.items()]:
        side = anatomy.split_name(key)[1]
        way = [points[p, side if (p, side) in points else ""] for p in segment.path]
        grow(tree, key, segment, way, size, rng, request)
    grow(tree, "Acom", ACOM, [points["acom_side", side] for side in "RL"], size, rng, request)
    for side, width in widths.items():
        way = [points["va_low", side], points["va_middle", side], points["ba_low", ""]]
        segment = Segment((), (width, width), flow=0.94, wander=0.3)
        grow(tree, f"VA_{side}", segment, way, size, own[1], request)
    grown = {name: (p, r) for name, p, r in zip(tree.names, tree.points, tree.radius, strict=True)}
    add_twigs(tree, {key: path for key, (path, _) in grown.items()}, rng)
    for junction, measures in request.aneurysms.items():
        sac = anatomy.aneurysm(junction, measures, grown, own[2])
        number = tree.names.index(sac["artery"])
        flow = anatomy.SAC_FLOW * tree.flow[number].mean()
        tree.sacs.append(sac | {"flow": flow, "label": tree.label[number][0]})
    return tree


def grow(tree, key, segment, way, size, rng, request):
    """Add a segment to a tree, unless it is absent, and its mean radius to the tree's variants.

    Args:
        tree: Tree with its variants.
        key: Name of the segment with its side, as A1_L.
        segment: Segment.
        way: Way points, (K, 3) mm.
        size: Factor on the radius.
        rng: numpy Generator.
        request: anatomy.Request.
    """
    path, t = centreline(way, segment.wander, rng)
    radius = size * rng.normal(1, 0.08) * np.interp(t, (0, 1), segment.radius)
    radius *= 1 + 0.05 * np.sin(2 * math.pi * (rng.random() + rng.uniform(0.5, 2) * t))
    state = tree.variants.get(key, "normal")
    if state == "fetal":
        radius *= anatomy.FETAL_RADIUS / segment.radius[0]
    if state == "thin":
        radius *= THIN
    radius = request.radii(key, radius)
    label = segment.label[key.endswith("_L")]
    if label:
        tree.variants[f"radius_{key}"] = 0.0 if state == "absent" else round(float(radius.mean()), 3)
    if state == "absent":
        return
    if key in request.stenoses:
        normal, percent = radius, request.stenoses[key]
        radius, index = anatomy.narrowed(path, radius, percent)
        tree.stenoses.append((key, percent, index, normal[index]))
    tree.add(path, radius, segment.flow * (1 - 0.08 * t), label, key)


def add_twigs(tree, grown, rng):
    """Small distal vessels that leave the larger ones at random places and grow away from the circle."""
    parents = [key for key in grown if key.rsplit("_", 1)[0] in TWIG_PARENTS]
    for _ in range(rng.integers(*TWIGS)):
        parent = parents[rng.integers(len(parents))]
        path = grown[parent]
        start = path[rng.integers(len(path) // 3, len(path))]
        outward = start / np.linalg.norm(start[:2])
        direction = outward * (0.8, 0.8, 0.1) + rng.normal(0, (0.6, 0.6, 0.35))
        way = [start]
        for _ in range(3):
            direction = direction + rng.normal(0, 0.35, 3)
            way.append(way[-1] + rng.uniform(3, 6) * direction / np.linalg.norm(direction))
        points, t = centreline(way, 0.5, rng)
        radius = rng.uniform(0.32, 0.5) * (1 - 0.35 * t)
        tree.add(points, radius, rng.uniform(0.5, 0.7) * (1 - 0.2 * t), 0, "twig", parent)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Rendering                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def grid_axes(shape):
    """Coordinates of voxel centres along x, y and z, in mm, about the origin of the phantom."""
    return [((np.arange(n) + 0.5) / n - 0.5) * extent for n, extent in zip(shape, FIELD_OF_VIEW, strict=True)]


def render_vessels(tree, shape):
    """Flow signal, its partial volume and the labels, on a grid, from the distance to the centrelines.

    With d the distance to the nearest centreline and r its radius, the signal of laminar flow falls to the
    wall as 0.55 + 0.45 (1 - (d / r)^2), a parabola, damped because inflow saturates; a voxel of edge h is
    filled to 0.5 - (d - r) / h, between 0 and 1.

    Returns:
        signal, filled: float32 (X, Y, Z).
        label: uint8 (X, Y, Z), for voxels whose centre is inside a vessel or which a thin vessel crosses.
    """
    points, radius, flow, label = tree.joined()
    spacing = FIELD_OF_VIEW / shape
    step = spacing.max()
    depth = np.full(shape, np.inf, np.float32)  # signed distance to the nearest wall, mm
    nearest = np.zeros(shape, np.int32)
    lines = len(radius) - len(tree.sacs)
    parts = np.array_split(np.argsort(radius[:lines]), 6)
    for part in [*parts, *np.arange(lines, len(radius))[:, None]]:  # the nearest wall is not the nearest line
        voxels = voxels_near(points[part], radius[part].max() + step, shape)
        distance, index = cKDTree(points[part]).query((voxels + 0.5) * spacing - FIELD_OF_VIEW / 2)
        wall = (distance - radius[part][index]).astype(np.float32)
        where = tuple(voxels.T)
        closer = wall < depth[where]
        if part[0] >= lines:  # a sac has a label, whatever small vessel runs into it
            closer |= (wall <= 0) & (label[nearest[where]] == 0)
        where = tuple(axis[closer] for axis in where)
        depth[where], nearest[where] = wall[closer], part[index[closer]]
    filled = np.clip(0.5 - depth / spacing.mean(), 0, 1)
    relative = np.clip(1 + depth / radius[nearest], 0, 1)
    signal = flow[nearest] * (0.55 + 0.45 * (1 - relative**2))
    crossed = spacing.mean() / 2 - radius[nearest]  # a vessel thinner than a voxel keeps its label
    return signal, filled, np.where(depth <= np.maximum(0, crossed), label[nearest], 0)


def voxels_near(points, reach, shape):
    """Indices (M, 3) of the voxels within about `reach` mm of any of the points."""
    spacing = FIELD_OF_VIEW / shape
    ball = np.stack(
        np.meshgrid(*(np.arange(-n, n + 1) for n in np.ceil(reach / spacing)), indexing="ij"), axis=-1
    )
    ball = ball[np.linalg.norm(ball * spacing, axis=-1) <= reach + spacing.max() / 2]
    seeds = np.unique(np.floor((points + FIELD_OF_VIEW / 2) / spacing), axis=0)
    mask = np.zeros(shape, bool)
    indices = (seeds[:, None] + ball).reshape(-1, 3).astype(np.int64)
    inside = ((indices >= 0) & (indices < shape)).all(axis=1)
    mask[tuple(indices[inside].T)] = True
    return np.argwhere(mask)


def smooth_field(rng, axes, waves):
    """Random field of unit variance, made of `waves` cosines along each axis. (X, Y, Z)"""
    bases = []
    for axis, extent, n in zip(axes, FIELD_OF_VIEW, waves, strict=True):
        phase = math.pi * (axis / extent + 0.5)
        bases.append(np.cos(np.arange(n)[:, None] * phase).astype(np.float32))
    weights = rng.normal(size=waves) / np.sqrt(1 + np.sum(np.square(np.indices(waves)), axis=0))
    values = np.einsum("abc,ax,by,cz->xyz", weights.astype(np.float32), *bases, optimize=True)
    return (values - values.mean()) / values.std()


def ellipsoid(place, center, radii, softness=0.12):
    """Soft inside of an ellipsoid, 1 inside and 0 outside, at place (x, y, z); all in mm. (X, Y, Z)"""
    squares = (((a - c) / r) ** 2 for a, c, r in zip(place, center, radii, strict=True))
    return np.clip(0.5 + (1 - np.sqrt(sum(squares))) / (2 * softness), 0, 1).astype(np.float32)


def render_tissue(rng, shape, brain):
    """Brain, cerebrospinal fluid and bone around the circle, in units of full flow. (X, Y, Z) float32"""
    axes = grid_axes(shape)
    straight = np.meshgrid(*axes, indexing="ij", sparse=True)
    place = [a + 1.6 * smooth_field(rng, axes, (7, 7, 3)) for a in straight]  # no outline is the same twice
    drop = rng.normal(0, 0.8)
    folds = smooth_field(rng, axes, (14, 14, 5))
    central = ellipsoid(place, (0, 0, 0), (22, 26, 14), softness=0.4)
    sulci = 0.8 * np.exp(-((folds / 0.16) ** 2)) * (1 - central)  # where a smooth field changes sign
    cisterns, bone = skull_base(place, drop)
    fluid = np.maximum(sulci, cisterns)
    texture = 1 + 0.05 * smooth_field(rng, axes, (6, 6, 3)) + 0.03 * folds
    values = brain * texture * (1 - 0.72 * fluid)
    return (values * (1 - bone) + 0.25 * brain * bone * (1 + 0.3 * folds)).astype(np.float32)


def skull_base(place, drop):
    """Cisterns and fissures about the circle, and the bone below it, as shares of a voxel.

    Args:
        place: Coordinates x, y and z, mm; arrays that broadcast.
        drop: By how much the interpeduncular cistern and the sphenoid lie higher, mm.

    Returns:
        (fluid, bone) at these places.
    """
    x, y, z = place
    angle = np.arctan2(y - 1, x)
    star = 13 + 2.2 * np.cos(5 * (angle - math.pi / 2))  # the suprasellar cistern is a five-pointed star
    cistern = np.clip((star - np.hypot(x, y - 1)) / 2 + 0.5, 0, 1) * np.clip((9 - np.abs(z + 1)) / 3, 0, 1)
    fluid = np.maximum(
        cistern, ellipsoid(place, (0, -10, -3 + drop), (8, 4.5, 14))
    )  # interpeduncular cistern
    stem = np.hypot(x / 15.5, (y + 23) / 11.5)
    fluid = np.maximum(
        fluid, np.clip(1.4 - np.abs(stem - 1.08) * 13, 0, 1)
    )  # ambient cisterns about the stem
    for side in (1, -1):
        fissure = ellipsoid(place, (side * 25, 6.5, 4), (14, 3.6, 4.5), 0.4)  # Sylvian fissure
        fluid = np.maximum(fluid, 0.8 * fissure)
        fluid = np.maximum(fluid, 0.8 * ellipsoid(place, (side * 36.5, -3, 8), (2.6, 15, 8), 0.5))
    between = np.clip(1.3 - np.abs(x) / 1.1, 0, 1) * np.clip((y - 9) / 4, 0, 1)  # interhemispheric fissure
    fluid = np.maximum(fluid, 0.8 * between * np.clip((z + 3) / 3, 0, 1))
    bone = ellipsoid(place, (0, 14, -13 + drop), (15, 13, 8.5), 0.2)  # sphenoid and its sinus
    bone = np.maximum(bone, ellipsoid(place, (0, -4, -14), (9, 5, 7), 0.25))  # dorsum sellae and clivus
    return fluid, bone


def render_phantom(tree, scanner, shape, rng):
    """One TOF volume and its label map, (X, Y, Z) float32 in units of full flow, and uint8."""
    factor = -(-BASE_GRID // np.asarray(shape))  # how much finer than asked it is rendered, by axis
    fine = np.asarray(shape) * factor
    signal, filled, label = render_vessels(tree, fine)
    tissue = render_tissue(rng, np.maximum(fine // 2, 1), scanner.tissue)
    tissue = ndimage.zoom(tissue, fine / tissue.shape, order=1, grid_mode=True, mode="nearest")
    volume = tissue * (1 - filled) + signal * filled
    spacing = FIELD_OF_VIEW / fine
    acquired = np.array([scanner.spacing[0], scanner.spacing[0], scanner.spacing[1]])
    volume = ndimage.gaussian_filter(volume, 0.42 * acquired / spacing, truncate=2.5)
    volume *= np.exp(scanner.bias * smooth_field(rng, grid_axes(fine), (3, 3, 2)))
    volume = pool(volume, factor)
    noise = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(scanner.noise)
    return np.hypot(volume + noise[0], noise[1]), pool_labels(label, factor)


def blocks(array, factor):
    """(X, Y, Z) -> (x, y, z, voxels of a block), for blocks of `factor` voxels."""
    x, y, z = np.asarray(array.shape) // factor
    split = array.reshape(x, factor[0], y, factor[1], z, factor[2])
    return split.transpose(0, 2, 4, 1, 3, 5).reshape(x, y, z, -1)


def pool(volume, factor):
    """Mean over blocks of `factor` voxels."""
    return volume if factor.max() == 1 else blocks(volume, factor).mean(axis=-1)


def pool_labels(label, factor):
    """The most frequent label of each block in which at least half of the voxels are labelled."""
    if factor.max() == 1:
        return label
    parts = blocks(label, factor)
    counts = np.stack([(parts == n).sum(axis=-1) for n in range(1, 13)], axis=-1)
    enough = 2 * counts.sum(axis=-1) >= parts.shape[-1]
    return np.where(enough, counts.argmax(axis=-1) + 1, 0).astype(np.uint8)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Whole heads                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

HEAD_CENTER = np.array(
    [0.0, -14.0, 30.0]
)  # mm from the circle's origin to the middle of the brain (assumption)
BRAIN_RADII = np.array([67.0, 85.0, 62.0])  # mm, half axes of the brain (assumption)
NEAR = (45.0, 45.0, 24.0)  # mm about the circle where cisterns and skull base are drawn
SLAB_IN_PLANE = 200.0  # mm, field of view (assumption)
SLAB_HEIGHT = (80.0, 110.0)  # mm, least and greatest (assumption)


@dataclass
class Pose:
    """Where a head lies in the scanner: a point p of the head is at rotation @ p + shift, RAS mm."""

    rotation: np.ndarray
    shift: np.ndarray

    @classmethod
    def draw(cls, rng, degrees, mm):
        """Random pose with an angle of up to `degrees` about a random axis and a shift of up to `mm`."""
        axis = rng.normal(size=3)
        rotation = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.radians(rng.uniform(0, degrees)))
        direction = rng.normal(size=3)
        shift = direction / np.linalg.norm(direction) * rng.uniform(0, mm)
        return cls(rotation.as_matrix(), shift)

    def matrix(self):
        """(4, 4), head to scanner, RAS mm."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation, self.shift
        return matrix


def wave(place, direction, phase):
    """A plane wave at points. Shapes: 3 x (X, Y, Z), direction (3,) rad per mm -> (X, Y, Z)"""
    return np.cos(sum(p * np.float32(d) for p, d in zip(place, direction, strict=True)) + np.float32(phase))


def render_head(place, tissue, rng):
    """Brain, ventricles, skull, scalp, eyes and airways at points of the head.

    Shapes: 3 x (X, Y, Z) mm -> values (X, Y, Z) float32, brain (X, Y, Z) uint8: 1 in the brain

    Args:
        place: Coordinates of the voxels in the head, mm from the circle.
        tissue: Brightness of brain, in units of full flow.
        rng: numpy Generator of the subject: no two heads have the same outline.
    """
    radii = BRAIN_RADII * rng.normal(1, 0.03, 3)
    waves, phases = rng.normal(0, 1 / 45, (6, 3)), rng.uniform(0, 2 * math.pi, (6, 2))
    bumps = 0.012 * sum(wave(place, w, p[0]) for w, p in zip(waves, phases, strict=True))
    fine = sum(wave(place, 9 * w, p[1]) for w, p in zip(waves, phases, strict=True))
    x, y, z = place[0] - HEAD_CENTER[0], place[1] - HEAD_CENTER[1], place[2] - HEAD_CENTER[2]
    level = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2) + bumps

    def inside(edge, soft):
        return np.clip((edge - level) / soft + 0.5, 0, 1)

    gyri = np.clip(1 - np.abs(fine) * 1.5, 0, 1) * np.clip((level - 0.75) / 0.15, 0, 1)  # sulci
    values = 0.85 * tissue * inside(1.24, 0.04)  # scalp
    values = values * (1 - inside(1.15, 0.04)) + 0.18 * tissue * inside(1.15, 0.04)  # skull
    values = values * (1 - inside(1.06, 0.03)) + 0.3 * tissue * inside(1.06, 0.03)  # fluid about the brain
    brain = tissue * (1 + 0.03 * fine) * (1 - 0.6 * gyri)
    values = values * (1 - inside(1.0, 0.03)) + brain * inside(1.0, 0.03)
    for side in (1, -1):
        horn = ellipsoid(
            place, (side * 9, -8 + rng.normal(0, 1), 32), (5.5, 26, 8), 0.3
        )  # lateral ventricles
        values = values * (1 - 0.7 * horn)
        eye = ellipsoid(place, (side * 32, 58, -4 + rng.normal(0, 1)), (12, 12, 12), 0.15)
        values = values * (1 - eye) + 0.55 * tissue * eye
    fissure = np.clip(1.2 - np.abs(place[0]), 0, 1) * np.clip((z - 5) / 10, 0, 1)  # between the hemispheres
    values = values * (1 - 0.6 * fissure)
    near = np.logical_and.reduce([np.abs(p) < edge for p, edge in zip(place, NEAR, strict=True)])
    inner = [p[near] for p in place]
    bent = [p + 1.6 * wave(inner, waves[i], phases[i, 0]) for i, p in enumerate(inner)]
    fluid, bone = skull_base(bent, rng.normal(0, 0.8))
    values[near] = values[near] * (1 - 0.72 * fluid) * (1 - bone) + 0.25 * tissue * bone
    airway = ellipsoid(place, (0, 48, -28), (16, 26, 20), 0.2)
    neck = np.clip((-34 - place[2]) / 4, 0, 1) * np.clip((np.hypot(place[0], place[1] + 30) - 45) / 6, 0, 1)
    values = values * (1 - 0.95 * airway) * (1 - 0.9 * neck)
    return values.astype(np.float32), ((level < 1) & (airway < 0.5) & (neck < 0.5)).astype(np.uint8)


@dataclass(frozen=True)
class Head:
    """A whole head in the scanner.

    Args:
        volume: float32 (X, Y, Z), 1 is full flow.
        brain: uint8 (X, Y, Z), 1 in the brain.
        arteries: uint8 (X, Y, Z), TopCoW ids of the circle.
        affine: (4, 4), voxels to scanner RAS mm.
        landmarks: {name: junction of the circle in the scanner, RAS mm}.
        row: Its line of variants.csv.
        tree: Tree, in the head.
    """

    volume: np.ndarray
    brain: np.ndarray
    arteries: np.ndarray
    affine: np.ndarray
    landmarks: dict
    row: dict
    tree: Tree


def make_head(seed, number, pose, spacing=None, request=anatomy.NOTHING, chiral=False):
    """Head `number` of a series, in a pose.

    Args:
        seed, number: As of `make_phantom`: the same numbers are the same head.
        pose: Pose.
        spacing: Voxel edge in mm, for all axes; None takes the scanner's.
        request, chiral: As of `build_tree`.

    Returns:
        Head.
    """
    rng = np.random.default_rng((seed, number, 1))
    tree = build_tree(rng, request=request, chiral=chiral)
    name = list(SCANNERS)[rng.integers(len(SCANNERS))]
    scanner = SCANNERS[name]
    voxel = (
        np.array([scanner.spacing[0]] * 2 + [scanner.spacing[1]]) if spacing is None else np.full(3, spacing)
    )
    extent = np.array([SLAB_IN_PLANE, SLAB_IN_PLANE, rng.uniform(*SLAB_HEIGHT)])
    planned = np.array([0, -14, 8])  # the slab's centre in the head: the circle lies a little below it
    center = pose.rotation @ planned + pose.shift + rng.normal(0, 4, 3)
    shape = np.ceil(extent / voxel).astype(int)
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = center - (shape - 1) / 2 * voxel
    axes = [(affine[a, a] * np.arange(n) + affine[a, 3]).astype(np.float32) for a, n in enumerate(shape)]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    back = pose.rotation.T
    place = [
        sum(np.float32(back[a, b]) * (grid[b] - np.float32(pose.shift[b])) for b in range(3))
        for a in range(3)
    ]
    volume, brain = render_head(place, scanner.tissue, rng)
    signal, filled, label = render_vessels(tree, BASE_GRID)
    voxels = [(p + e / 2) * n / e - 0.5 for p, e, n in zip(place, FIELD_OF_VIEW, BASE_GRID, strict=True)]
    near = np.logical_and.reduce([(v > -1) & (v < n) for v, n in zip(voxels, BASE_GRID, strict=True)])
    points = [v[near] for v in voxels]
    share = ndimage.map_coordinates(filled, points, order=1)
    flow = ndimage.map_coordinates(filled * signal, points, order=1)
    volume[near] = volume[near] * (1 - share) + flow
    arteries = np.zeros(volume.shape, np.uint8)
    arteries[near] = ndimage.map_coordinates(label, points, order=0)
    field = sum(
        wave(grid, w, p) for w, p in zip(rng.normal(0, 1 / 80, (4, 3)), rng.uniform(0, 6, 4), strict=True)
    )
    volume *= np.exp(np.float32(0.5 * scanner.bias) * field)
    noise = rng.standard_normal((2, *volume.shape), dtype=np.float32) * np.float32(scanner.noise)
    landmarks = {name: pose.rotation @ point + pose.shift for name, point in tree.landmarks.items()}
    row = {"seed": seed, "number": number, "scanner": name, **tree.variants}
    return Head(np.hypot(volume + noise[0], noise[1]), brain, arteries, affine, landmarks, row, tree)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Entry point                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def make_phantom(seed, number, shape, name=None, **asked):
    """Phantom `number` of a series, of a class if it is named; the rest is as of `make_subject`.

    Returns:
        volume: float32 (X, Y, Z), 1 is full flow.
        label: uint8 (X, Y, Z), TopCoW ids.
        row: Its line of variants.csv.
    """
    return make_subject(seed, number, shape, name, **asked)[:3]


def make_subject(seed, number, shape, name=None, request=anatomy.NOTHING, chiral=False):
    """Phantom `number` of a series, as of `make_phantom`, and its Tree.

    Args:
        seed, number: Whole numbers >= 0; a phantom depends on these and on what is asked for.
        shape: (X, Y, Z), voxels.
        name: One of CLASSES, or None.
        request, chiral: As of `build_tree`.
    """
    rng = np.random.default_rng((seed, number))
    known = None if name is None else functools.partial(variants_of_class, name, number=number)
    tree = build_tree(rng, known, request, chiral)
    maker = list(SCANNERS)[rng.integers(len(SCANNERS))]
    standard = SCANNERS[maker]
    varied = rng.normal(1, 0.1, 5)
    scanner = Scanner(
        spacing=(standard.spacing[0] * varied[0], standard.spacing[1] * varied[1]),
        noise=standard.noise * varied[2],
        tissue=standard.tissue * varied[3],
        bias=standard.bias * varied[4],
    )
    volume, label = render_phantom(tree, scanner, shape, rng)
    described = {
        "scanner": maker,
        "acquired_in_plane_mm": scanner.spacing[0],
        "acquired_slice_mm": scanner.spacing[1],
    }
    described |= {"noise": scanner.noise, "tissue": scanner.tissue}
    described = {k: v if isinstance(v, str) else round(float(v), 4) for k, v in described.items()}
    return volume, label, {"seed": seed, "number": number, **described, **tree.variants}, tree


def phantom_affine(shape):
    """Affine of a phantom of (X, Y, Z) voxels: RAS, mm, voxel centres of the fixed field of view."""
    spacing = FIELD_OF_VIEW / np.asarray(shape)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = WORLD_ORIGIN - FIELD_OF_VIEW / 2 + spacing / 2
    return affine


def save_image(array, affine, path, description):
    """Write a NIfTI with its geometry; the same array gives the same bytes."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nib.save(image, path)


def check_new(folder):
    """Raise a UserError if a folder holds anything but phantoms of an interrupted call."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a new folder.")
    known = [
        p for p in folder.glob("*") if p.name.startswith("phantom_") or p.name in (*CLASSES, *nodules.KINDS)
    ]
    others = sorted(set(folder.glob("*")) - set(known))
    if others:
        raise UserError(f"{folder} is in use ({others[0].name} is in it): give a new folder.")


def generate_circles(config, requests):
    """Yield (volume, affine, label, row) of every volume of the circle that a PhantomConfig asks for."""
    shape = (config.image_size, config.image_size, config.image_depth)
    for number, request in enumerate(requests):
        name = CLASSES[number % len(CLASSES)] if config.classes else None
        volume, label, row, tree = make_subject(config.seed, number, shape, name, request, config.chiral)
        row |= {"class": name} if config.classes else {}
        place = np.eye(4)
        place[:3, 3] = WORLD_ORIGIN
        save_graph(config, tree, place, row, request)
        yield volume, phantom_affine(shape), label, row


def generate_heads(config, requests, poses):
    """Yield (volume, affine, brain mask, row) of every head.

    Its pose and landmarks go into `poses`, its label map to --arteries, if that is asked for.
    """
    for number, request in enumerate(requests):
        pose = Pose.draw(np.random.default_rng((config.seed, number, 2)), config.degrees, config.shift)
        head = make_head(config.seed, number, pose, config.head_spacing, request, config.chiral)
        if config.arteries is not None:
            path = Path(config.arteries) / phantom_name(number)
            save_image(head.arteries, head.affine, path, "SYNTHETIC phantom labels, TopCoW ids")
        poses[phantom_name(number)] = {
            "head_to_scanner": pose.matrix().round(6).tolist(),
            "landmarks_mm": {name: point.round(4).tolist() for name, point in head.landmarks.items()},
        }
        save_graph(config, head.tree, pose.matrix(), head.row, request)
        yield head.volume, head.affine, head.brain, head.row


def save_graph(config, tree, place, row, request):
    """Write the graph of a phantom if --graphs asks for it, and what was asked for into its row."""
    if anatomy.asked_by(config):
        row["request"] = request.text()
    if config.graphs is not None:
        folder = Path(config.graphs) / row.get("class", "")
        folder.mkdir(exist_ok=True)
        name = phantom_name(row["number"])
        told = {"file": name, "seed": row["seed"], "number": row["number"], "request": request.text()}
        write_graph(tree, place, folder / name.removesuffix(".nii.gz"), told)


def generate_nodules(config):
    """Yield (volume, affine, mask, row) of every nodule that a PhantomConfig asks for."""
    shape = (config.image_size, config.image_size, config.image_depth)
    for number in range(config.num):
        volume, mask, row = nodules.make_nodule(config.seed, number, shape)
        yield volume, nodules.nodule_affine(shape), mask, row


def phantom_name(number):
    """File name of a phantom."""
    return f"phantom_{number:04d}.nii.gz"


def generate(config):
    """Write the phantoms of a PhantomConfig, their variants.csv and, if asked, label maps or poses.json.

    Raises:
        UserError: A folder is in use, or a table asks for what cannot be; nothing has been written.
    """
    requests = [] if config.nodules else anatomy.requests_of(config)
    config.num = config.num or len(requests)
    asked = (config.output, config.labels, config.arteries, config.graphs)
    folders = [Path(f) for f in asked if f is not None]
    if len({f.resolve() for f in folders}) < len(folders):
        raise UserError("--output, --labels, --arteries and --graphs must be different folders.")
    for folder in folders:
        check_new(folder)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    rows, poses = [], {}
    phantoms = generate_circles(config, requests)
    phantoms = generate_heads(config, requests, poses) if config.whole_head else phantoms
    phantoms = generate_nodules(config) if config.nodules else phantoms
    told = ("phantom of a lung nodule, HU", "mask: 1 ground glass, 2 solid")
    told = told if config.nodules else ("TOF MRA phantom", "phantom labels, TopCoW ids")
    told = (told[0], "phantom brain mask") if config.whole_head else told
    for number, (volume, affine, label, row) in enumerate(
        tqdm(phantoms, "Phantoms", config.num, unit="volume")
    ):
        volume = volume if config.nodules else volume * INTENSITY[config.dtype]
        if config.dtype == "uint8":
            volume = volume.round().clip(0, 255)
        name = phantom_name(number)
        if "class" in row:
            name = f"{row['class']}/{name}"
            for folder in folders:
                (folder / row["class"]).mkdir(exist_ok=True)
        save_image(volume.astype(config.dtype), affine, folders[0] / name, f"SYNTHETIC {told[0]}")
        if config.labels is not None:
            save_image(label, affine, folders[1] / name, f"SYNTHETIC {told[1]}")
        rows.append({"file": name, **row})
    write_records(folders[0] / "variants.csv", rows, rows[0])
    if poses:
        (folders[0] / "poses.json").write_text(json.dumps(poses, indent=1), encoding="utf-8")
    what = "whole heads" if config.whole_head else f"phantoms of {by(volume.shape)} voxels"
    print(f"{config.num} {what} are in {config.output}")


def main(argv=None):
    """The command line."""
    config = parse_cli(PhantomConfig, argv)
    with one_line_errors():
        generate(config)


if __name__ == "__main__":
    main()
