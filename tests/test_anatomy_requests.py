"""What is asked of a phantom by name is in its graph and in its label map, to half a voxel."""

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from sample_data import anatomy, centrelines
from tests.conftest import ROOT, run_script

sys.path.insert(0, str(ROOT / "sample_data"))
import phantom

SHAPE = np.array([128, 128, 32])
EDGE = phantom.FIELD_OF_VIEW[0] / SHAPE[0]  # mm, of a voxel
IDS = {"BA": 1, "R-PCA": 2, "L-PCA": 3, "R-ICA": 4, "L-ICA": 6, "R-Pcom": 8, "L-Pcom": 9, "Acom": 10}
IDS |= {"R-ACA": 11, "L-ACA": 12}
SEED = 3

# Ten variants: what is asked for, segments that are absent, thin and fetal.
VARIANTS = {
    "complete": ((), (), ()),
    "absent L-Pcom": (("L-Pcom",), (), ()),
    "absent R-Pcom, absent L-Pcom": (("R-Pcom", "L-Pcom"), (), ()),
    "hypoplastic R-Pcom": ((), ("R-Pcom",), ()),
    "fetal R-PCA, thin R-P1": ((), ("R-P1",), ("R-Pcom",)),
    "absent L-P1": (("L-P1",), (), ("L-Pcom",)),
    "absent L-A1": (("L-A1",), (), ()),
    "hypoplastic R-A1": ((), ("R-A1",), ()),
    "absent Acom": (("Acom",), (), ()),
    "absent L-Pcom, fetal R-PCA, absent R-P1, thin L-A1": (("L-Pcom", "R-P1"), ("L-A1",), ("R-Pcom",)),
}


def subject(number=0, chiral=False, seed=SEED, **asked):
    """Tree and graph of a phantom, in the tree's own mm."""
    request = anatomy.read_request(**asked, chiral=chiral)
    tree = phantom.build_tree(np.random.default_rng((seed, number)), request=request, chiral=chiral)
    return tree, centrelines.graph_of(tree, np.eye(4))


def label_map(tree):
    """(X, Y, Z) uint8."""
    return phantom.render_vessels(tree, SHAPE)[2]


def line_of(graph, segment):
    """Points (N, 3) and radii (N,) of all edges of a segment, mm."""
    edges = [edge for edge in graph["edges"] if edge["segment"] == segment]
    return [np.concatenate([np.array(edge[k]) for edge in edges]) for k in ("points_mm", "radius_mm")]


def value_at(label, points):
    """Labels at points in mm. Shapes: (X, Y, Z), (N, 3) -> (N,)"""
    voxels = (points + phantom.FIELD_OF_VIEW / 2) / EDGE - 0.5
    return ndimage.map_coordinates(label, voxels.T, order=0)


def touching(label, one, other):
    """Whether voxels of two classes are neighbours, as TopCoW decides on A1 and P1."""
    return bool(
        (ndimage.binary_dilation(label == IDS[one], np.ones((3, 3, 3))) & (label == IDS[other])).any()
    )


def disc(label, center, normal, reach):
    """Diameter in mm of the circle that is as large as what is labelled in a plane, about its centre.

    Args:
        label: (X, Y, Z).
        center, normal: Of the plane, (3,) mm.
        reach: Half its width, mm.
    """
    across = np.linalg.svd(np.asarray(normal)[None])[2][1:]
    ticks = np.arange(-reach, reach, 0.05)
    plane = np.asarray(center) + sum(
        t[..., None] * a for t, a in zip(np.meshgrid(ticks, ticks), across, strict=True)
    )
    inside = value_at(label, plane.reshape(-1, 3)) > 0
    parts, _ = ndimage.label(inside.reshape(plane.shape[:2]))
    middle = parts[len(ticks) // 2, len(ticks) // 2]
    return 2 * np.sqrt((parts == middle).sum() * 0.05**2 / np.pi) if middle else 0.0


@pytest.fixture(scope="module")
def full():
    """Tree, graph and label map of the phantom with all segments."""
    tree, graph = subject(variant="complete")
    return tree, graph, label_map(tree)


@pytest.mark.parametrize("asked", VARIANTS)
def test_a_variant_is_in_the_graph_and_in_the_label_map(asked, full):
    absent, thin, fetal = VARIANTS[asked]
    tree, graph = subject(variant=f"complete, {asked}")
    label, names = label_map(tree), {edge["segment"] for edge in graph["edges"]}
    assert {edge["segment"] for edge in full[1]["edges"]} - names == set(absent)
    for segment in absent:
        points, _ = line_of(full[1], segment)  # where it would be
        assert value_at(label, points[len(points) // 2][None]) == 0
    for segment in (*thin, *fetal):
        ratio = line_of(graph, segment)[1].mean() / line_of(full[1], segment)[1].mean()
        assert ratio == pytest.approx(
            phantom.THIN if segment in thin else anatomy.FETAL_RADIUS / 0.75, rel=1e-3
        )
    for side in "RL":
        assert touching(label, f"{side}-PCA", "BA") == (f"{side}-P1" not in absent)
        assert touching(label, f"{side}-ACA", f"{side}-ICA") == (f"{side}-A1" not in absent)
    for segment in ("R-Pcom", "L-Pcom", "Acom"):
        assert (label == IDS[segment]).any() == (segment not in absent)
    for segment in fetal:
        assert (label == IDS[segment]).sum() > 1.3 * (full[2] == IDS[segment]).sum()
    for segment in set(thin) & set(IDS):
        assert (label == IDS[segment]).sum() < 0.8 * (full[2] == IDS[segment]).sum()


def test_what_is_not_asked_for_is_drawn_as_without():
    for number in range(15):
        drawn = phantom.build_tree(np.random.default_rng((SEED, number)))
        tree, _ = subject(number, variant="absent L-Pcom")
        changed = {k for k in drawn.variants if drawn.variants[k] != tree.variants[k]}
        assert changed <= {"Pcom_L", "radius_Pcom_L", "P1_L", "radius_P1_L"}
        assert tree.variants["P1_L"] != "absent"
        for name, points in zip(tree.names, tree.points, strict=True):
            if name != "twig":
                at = drawn.names.index(name) if name in drawn.names else None
                assert at is None or np.array_equal(points, drawn.points[at])


def test_settled_variants_are_possible_whatever_is_asked_for():
    rng = np.random.default_rng(0)
    wishes = ["any", *VARIANTS, "absent R-A1", "normal R-P1", "thin R-Pcom", "fetal L-PCA", "normal L-Pcom"]
    for wish in wishes:
        request = anatomy.read_request(variant=wish)
        for _ in range(200):
            states = request.settle(phantom.draw_variants(rng, anatomy.FACTORS), rng)
            assert states.items() >= request.variants.items()
            assert "normal" in (states["A1_R"], states["A1_L"]) or "thin" in (states["A1_R"], states["A1_L"])
            if "absent" in (states["A1_R"], states["A1_L"]):
                assert states["Acom"] != "absent"
            for side in "RL":
                assert (states[f"Pcom_{side}"] == "fetal") or states[f"P1_{side}"] != "absent"
                assert states[f"Pcom_{side}"] != "fetal" or states[f"P1_{side}"] != "normal"


def test_full_and_partial_fetal_types_come_as_often_as_stated():
    rng, request = np.random.default_rng(0), anatomy.read_request(variant="fetal R-PCA")
    states = [request.settle(phantom.draw_variants(rng), rng)["P1_R"] for _ in range(1000)]
    assert np.mean([s == "absent" for s in states]) == pytest.approx(anatomy.ABSENT_P1_IF_FETAL, abs=0.05)


def voxel_radius(label, tree, key):
    """Radius of a segment from the voxels that are nearest to it, mm, and the same from the tree's radii.

    Only its middle counts, in the view and where no other vessel joins: volume = length * pi * radius^2.
    """
    number = tree.names.index(key)
    points, radius = tree.points[number], tree.radius[number]
    lowest = int(np.argmax(points[:, 2] > 2.0 - phantom.FIELD_OF_VIEW[2] / 2)) if key == "BA" else 0
    inner = slice(max(lowest, len(points) // 4), 3 * len(points) // 4)
    every = np.concatenate(tree.points)
    first = sum(len(p) for p in tree.points[:number])
    voxels = np.argwhere(label > 0)
    nearest = cKDTree(every).query((voxels + 0.5) * EDGE - phantom.FIELD_OF_VIEW / 2)[1] - first
    count = np.count_nonzero((nearest >= inner.start) & (nearest < inner.stop))
    length = np.linalg.norm(np.diff(points[inner], axis=0), axis=1).sum()
    length *= (inner.stop - inner.start) / (inner.stop - inner.start - 1)
    return np.sqrt(count * EDGE**3 / length / np.pi), np.sqrt(np.mean(radius[inner] ** 2))


@pytest.mark.parametrize(
    ("segment", "key", "mm"),
    [("R-MCA", "M1_R", 1.9), ("BA", "BA", 2.2), ("L-PCA", "P2_L", 1.4), ("R-A1", "A1_R", 0.9)],
)
def test_a_radius_is_met_on_the_voxels(segment, key, mm):
    tree, graph = subject(variant="complete", radius=f"{segment}: {mm} mm")
    number = tree.names.index(key)
    assert tree.radius[number].mean() == pytest.approx(mm) and tree.variants[f"radius_{key}"] == mm
    assert {e["segment"] for e in graph["edges"]} >= {anatomy.shown(key)}
    measured, expected = voxel_radius(label_map(tree), tree, key)
    assert abs(measured - expected) < EDGE / 2 and abs(measured - mm) < EDGE / 2


@pytest.mark.parametrize(
    ("junction", "size", "neck"),
    [
        ("Acom", 6, 3),
        ("BA", 5, 4),
        ("L-MCA", 4, 2),
        ("R-Pcom", 5, 3),
        ("R-SCA", 4, 2),
        ("L-ophthalmic", 5, 2),
    ],
)
def test_an_aneurysm_is_as_large_as_asked(junction, size, neck):
    text = f"{junction}: {size}, neck {neck}"
    with_sac, graph = subject(variant="complete", aneurysm=text)
    without, _ = subject(variant="complete")
    label, before = label_map(with_sac), label_map(without)
    (sac,) = graph["aneurysms"]
    assert (sac["junction"], sac["diameter_mm"], sac["neck_mm"]) == (junction, size, neck)
    new = (label > 0) & (before == 0)
    assert set(np.unique(label[new])) == {int(with_sac.sacs[0]["label"])}
    axes = phantom.grid_axes(SHAPE)
    place = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    ball = np.linalg.norm(place - sac["center_mm"], axis=-1) <= size / 2
    assert (label[ball] > 0).all() and not new[~ball].any()
    volume = np.count_nonzero(new | (ball & (label > 0))) * EDGE**3
    assert abs((6 * volume / np.pi) ** (1 / 3) - size) < EDGE / 2
    beyond = place[new] - sac["start_mm"]
    above = beyond @ sac["direction"] - sac["wall_mm"]
    aside = np.linalg.norm(np.cross(beyond, sac["direction"]), axis=1)[np.abs(above) < EDGE / 2].max()
    half = np.sqrt(size**2 - neck**2) / 2 - EDGE / 2  # the sac half a voxel above its neck
    assert neck / 2 - EDGE / 2 < aside < np.sqrt(size**2 / 4 - half**2) + EDGE / 2


@pytest.mark.parametrize(("segment", "percent"), [("L-MCA", 60), ("BA", 50), ("R-P2", 40), ("R-ICA", 70)])
def test_a_stenosis_is_as_narrow_as_asked(segment, percent):
    tree, graph = subject(variant="complete", stenosis=f"{segment}: {percent} %")
    plain, _ = subject(variant="complete")
    (row,) = graph["stenoses"]
    assert row["radius_mm"] == pytest.approx((1 - percent / 100) * row["radius_without_mm"], abs=1e-3)
    key, _, index, _ = tree.stenoses[0]
    points = tree.points[tree.names.index(key)]
    tangent = points[index + 1] - points[index - 1]
    narrow, wide = (
        disc(label_map(t), row["position_mm"], tangent / np.linalg.norm(tangent), 3) for t in (tree, plain)
    )
    assert abs(narrow / 2 - row["radius_mm"]) < EDGE / 2
    assert abs(wide / 2 - row["radius_without_mm"]) < EDGE / 2


IMPOSSIBLE = {
    "absent L-Pcon": "do you mean L-Pcom?",
    "absent Pcom": "Pcom is on both sides, expected one: write R-Pcom or L-Pcom.",
    "absent R-Acom": "Acom lies in the middle, found a side: write Acom.",
    "absent L-ICA": "the phantom knows no 'L-ICA' there, expected R- or L- with A1, P1, Pcom, PCA; Acom",
    "azygos ACA": "expected a state (absent,",
    "fetal R-A1": "only R-PCA and L-PCA can be fetal, got R-A1",
    "absent R-PCA": "name P1 or Pcom, as in 'absent R-P1'",
    "fetal R-PCA, absent R-Pcom": "R-Pcom is asked for twice, as fetal and as absent: keep one.",
    "fetal R-PCA, normal R-P1": "R-PCA is asked to be fetal and R-P1 normal",
    "absent R-P1, thin R-Pcom": "a PCA without P1 is fetal",
    "absent R-A1, absent L-A1": "one must feed both A2",
    "absent R-A1, absent Acom": "nothing feeds R-A2",
    "absent L-Pcom,, fetal R-PCA": "has an empty item",
}
WRONG = [({"variant": text}, told) for text, told in IMPOSSIBLE.items()]
WRONG += [
    ({"radius": "BA 1.9"}, "expected a name, a colon and a number"),
    ({"radius": "BA: wide"}, "'wide' is no number of mm"),
    ({"radius": "BA: 9"}, "9 mm, expected 0.2 to 4 mm: change it."),
    ({"radius": "BA: 1.9, BA: 2"}, "BA is asked for twice"),
    ({"radius": "L-VA: 1.9"}, "L-VA is asked for, but only --chiral draws it: add --chiral."),
    ({"variant": "absent L-A1", "radius": "L-A1: 1"}, "L-A1 is asked to be absent and to have a radius"),
    ({"variant": "thin L-A1", "radius": "L-A1: 1"}, "L-A1 is asked to be thin and to have a radius"),
    ({"variant": "fetal L-PCA", "radius": "L-P1: 1.5"}, "but its Pcom (1.05 mm) is the wider one"),
    ({"variant": "absent Acom", "aneurysm": "Acom: 6"}, "Acom is asked to be absent and to have an aneurysm"),
    ({"aneurysm": "Acom: 6, neck 7"}, "neck: 7 mm, expected 0.5 to 5.4 mm: change it."),
    ({"aneurysm": "L-P2: 6"}, "the phantom knows no 'L-P2' there"),
    ({"stenosis": "L-MCA: 100"}, "100 %, expected 5 to 95 %: change it."),
    ({"stenosis": "L-MCA: 60, neck 3"}, "only an aneurysm has a neck"),
    ({"variant": "absent Acom", "classes": True}, "--variant and --classes both say what is drawn"),
    ({"graphs": "g", "nodules": True}, "--graphs and --nodules both say what is drawn"),
]


@pytest.mark.parametrize(("flags", "told"), WRONG)
def test_what_cannot_be_is_refused_in_one_line(flags, told):
    with pytest.raises(ValueError) as error:
        phantom.PhantomConfig(output="never", **flags)
    assert told in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("table", "num", "told"),
    [
        ("variant,radius\nabsent L-Pcom,\nfetal L-ICA,BA: 2\n", None, "row 2: variant 'fetal L-ICA'"),
        ("variants\nabsent L-Pcom\n", None, "has a column 'variants', expected variant, radius"),
        ("variant\nabsent L-Pcom\n", 3, "--num 3, but --variants"),
        ("variant\nabsent Acom\n", None, "row 1: R-A1 and Acom are asked to be absent"),
    ],
)
def test_a_table_that_cannot_be_is_refused_before_any_work(tmp_path, table, num, told):
    path = tmp_path / "table.csv"
    path.write_text(table, encoding="utf-8")
    variant = "absent R-A1" if "R-A1" in told else None
    config = phantom.PhantomConfig(output=str(tmp_path / "v"), variants=str(path), num=num, variant=variant)
    with pytest.raises(ValueError) as error:
        phantom.generate(config)
    assert told in str(error.value) and not (tmp_path / "v").exists()


def read_swc(path):
    """[(number, type, x, y, z, radius, parent)] of an SWC file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[float(word) for word in line.split()] for line in lines if not line.startswith("#")]


def test_a_table_by_the_command_line_and_its_graphs(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(
        'variant;aneurysm\n"absent L-Pcom, fetal R-PCA";Acom: 6, neck 3\nany;\n', encoding="utf-8"
    )
    size = ("--image_size", 32, "--image_depth", 8, "--seed", SEED, "--radius", "BA: 2")
    for run in "ab":
        folders = (
            f"--{name}" if n else tmp_path / run / kind
            for kind, name in (("v", "output"), ("l", "labels"), ("g", "graphs"))
            for n in (1, 0)
        )
        done = run_script("sample_data/phantom.py", *folders, "--variants", path, *size)
        assert done.returncode == 0, done.stderr
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 9
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    with open(tmp_path / "a" / "v" / "variants.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["Pcom_L"], rows[0]["Pcom_R"], rows[0]["radius_BA"]) == ("absent", "fetal", "2.0")
    first = "variant absent L-Pcom, fetal R-Pcom; radius BA: 2; aneurysm Acom: 6, neck 3"
    assert [row["request"] for row in rows] == [first, "radius BA: 2"]
    for number, row in enumerate(rows):
        graph = json.loads((tmp_path / "a" / "g" / f"phantom_000{number}.json").read_text(encoding="utf-8"))
        segments = {edge["segment"] for edge in graph["edges"]}
        assert graph["request"] == row["request"] and len(graph["aneurysms"]) == 1 - number
        for key, state in graph["variants"].items():
            name, _, side = key.rpartition("-")[::-1]
            assert row[f"{name}_{side}" if side else name] == state and (key in segments) == (
                state != "absent"
            )
        for edge in graph["edges"]:
            for node, point in zip(edge["nodes"], (edge["points_mm"][0], edge["points_mm"][-1]), strict=True):
                assert graph["nodes"][node]["position_mm"] == pytest.approx(point, abs=2e-4)
            assert len(edge["points_mm"]) == len(edge["radius_mm"]) >= 2


@pytest.mark.parametrize("chiral", [False, True])
def test_swc_has_parents_before_children_and_every_point(tmp_path, chiral):
    tree, graph = subject(variant="complete", aneurysm="Acom: 6, neck 3", chiral=chiral)
    centrelines.write_graph(tree, np.eye(4), tmp_path / "p", {})
    samples = read_swc(tmp_path / "p.swc")
    assert [int(s[0]) for s in samples] == list(range(1, len(samples) + 1))
    assert all(s[6] == -1 or 1 <= s[6] < s[0] for s in samples) and all(s[5] > 0 for s in samples)
    assert sum(s[6] == -1 for s in samples) == (4 if chiral else 3)  # carotids, and basilar or vertebrals
    places = np.array([s[2:5] for s in samples])
    points = np.concatenate([edge["points_mm"] for edge in graph["edges"]])
    assert cKDTree(places).query(points)[0].max() < 1e-3
    steps = [np.linalg.norm(places[int(s[0]) - 1] - places[int(s[6]) - 1]) for s in samples[:-1] if s[6] > 0]
    top = [int(s[0]) for s in samples]
    for s in samples:
        top[int(s[0]) - 1] = int(s[0]) if s[6] == -1 else top[int(s[6]) - 1]
    for side, id_ in (
        ("R", 5),
        ("L", 7),
    ):  # what the middle cerebral artery of a side hangs on: its own carotid
        begin = cKDTree(places).query(line_of(graph, f"{side}-ICA")[0][0])[1] + 1
        assert {top[int(s[0]) - 1] for s in samples if s[1] == centrelines.SWC_ARTERY + id_} == {begin}
    assert np.quantile(steps, 0.99) < 0.6 and samples[-1][5] == 3  # the sac is the last sample
    ends = {edge["nodes"][k] for edge in graph["edges"] for k in (0, 1)}
    assert ends == set(range(len(graph["nodes"])))


def test_sides_differ_with_chiral_alone():
    def share(name, state, factors):
        rng = np.random.default_rng(1)
        drawn = [phantom.draw_variants(rng, factors) for _ in range(6000)]
        return [np.mean([d[f"{name}_{side}"] == state for d in drawn]) for side in "RL"]

    for name, state, law in (("A1", "absent", 0.07), ("Pcom", "fetal", 0.10)):
        right, left = share(name, state, anatomy.FACTORS)
        assert right > left + 0.02 and (right + left) / 2 == pytest.approx(law, abs=0.01)
        right, left = share(name, state, anatomy.BOTH_ALIKE)
        assert right == pytest.approx(left, abs=0.03)


def test_the_left_vertebral_artery_is_more_often_the_wider_one():
    found, bends = [], {}
    for number in range(60):
        tree, _ = subject(number, chiral=True)
        right, left = (tree.radius[tree.names.index(f"VA_{side}")].mean() for side in "RL")
        dominant = tree.variants["VA_dominant"]
        assert {"left": left > right, "right": right > left, "none": abs(left - right) < 0.6}[dominant]
        found.append(dominant)
        basilar = tree.points[tree.names.index("BA")]
        bends.setdefault(dominant, []).append(
            (basilar - np.linspace(basilar[0], basilar[-1], len(basilar)))[:, 0].mean()
        )
        ends = [tree.points[tree.names.index(f"VA_{side}")][-1] for side in "RL"]
        assert np.allclose(ends, basilar[0])
    assert 0.3 < found.count("left") / 60 < 0.7 and found.count("left") > 1.3 * found.count("right")
    assert np.mean(bends["left"]) > 0 > np.mean(bends["right"])  # to the right, away from the wider left one


def test_graphs_lie_where_the_volumes_are():
    _, label, row = phantom.make_phantom(SEED, 0, tuple(SHAPE))
    tree = phantom.make_subject(SEED, 0, tuple(SHAPE))[3]
    place = np.eye(4)
    place[:3, 3] = phantom.WORLD_ORIGIN
    graph = centrelines.graph_of(tree, place)
    inverse = np.linalg.inv(phantom.phantom_affine(SHAPE))
    for segment, id_ in (("R-M1", 5), ("L-M1", 7), ("BA", 1)):
        points, _ = line_of(graph, segment)
        voxels = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        inside = ((voxels >= 0) & (voxels < SHAPE)).all(axis=1)
        assert inside.sum() > 20 and np.mean(label[tuple(voxels[inside].T)] == id_) > 0.8
    assert replace(anatomy.NOTHING).text() == "" and "request" not in row


def test_graphs_of_heads_lie_in_the_scanner():
    pose = phantom.Pose.draw(np.random.default_rng(0), 30, 30)
    request = anatomy.read_request(variant="complete, absent L-Pcom")
    head = phantom.make_head(SEED, 0, pose, spacing=1.2, request=request)
    assert head.row["Pcom_L"] == "absent" and not (head.arteries == IDS["L-Pcom"]).any()
    graph, inverse = centrelines.graph_of(head.tree, pose.matrix()), np.linalg.inv(head.affine)
    for segment, id_ in (("R-M1", 5), ("L-M1", 7)):
        points, _ = line_of(graph, segment)
        voxels = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        assert np.mean(head.arteries[tuple(voxels.T)] == id_) > 0.8
