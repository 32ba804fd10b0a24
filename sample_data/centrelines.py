"""Centre lines of a phantom with their radii: a graph in JSON, and SWC for other tools.

    tree = Tree()                                all vessels of one subject, which phantom.py grows
    graph = graph_of(tree, place)                nodes and edges, RAS mm
    swc_text(graph)                              the same as trees, parents before children

`phantom.py --graphs folder` writes both beside every phantom. An edge is a piece of a segment between two
nodes: junctions, places where a branch leaves, and ends. Branches begin on the centre line that they leave.
"""

import itertools
import json
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from sample_data.anatomy import BRANCHES, shown, split_name

SAME = 1e-3  # mm, within which two ends are one node
ROOTS = ("ICA", "VA", "BA")  # where blood comes in, so far as they begin at a free end
SWC_ARTERY = 7  # SWC leaves types from 7 on to its users: this, plus the TopCoW id


@dataclass
class Tree:
    """All centreline points of one subject: lists of arrays of position and radius (mm), flow and label.

    Of every vessel also its key (A1_L; twig) and, if it leaves another between its ends, that one's key.
    """

    points: list = field(default_factory=list)
    radius: list = field(default_factory=list)
    flow: list = field(default_factory=list)
    label: list = field(default_factory=list)
    variants: dict = field(default_factory=dict)
    landmarks: dict = field(default_factory=dict)
    names: list = field(default_factory=list)
    parents: list = field(default_factory=list)
    left_out: dict = field(default_factory=dict)  # {key of an absent segment: its (points, radius)}
    sacs: list = field(default_factory=list)  # of `anatomy.aneurysm`, with flow and label
    stenoses: list = field(default_factory=list)  # (key, per cent, index of the point, radius without it)

    def add(self, points, radius, flow, label, name, parent=None):
        """Add the centreline of one vessel."""
        self.names.append(name)
        self.parents.append(parent)
        self.points.append(points)
        self.radius.append(radius)
        self.flow.append(flow * np.ones(len(points)))
        self.label.append(np.full(len(points), label))

    def joined(self):
        """The four arrays over all vessels and, last, a point for every sac."""
        sacs = [[], [], [], []]
        for sac in self.sacs:
            sacs[0].append(sac["center"][None])
            for values, value in zip(sacs[1:], (sac["diameter"] / 2, sac["flow"], sac["label"]), strict=True):
                values.append([value])
        kinds = (self.points, self.radius, self.flow, self.label)
        arrays = [np.concatenate([*a, *b]) for a, b in zip(kinds, sacs, strict=True)]
        return (
            arrays[0],
            arrays[1].astype(np.float32),
            arrays[2].astype(np.float32),
            arrays[3].astype(np.uint8),
        )


def node_at(nodes, point):
    """Number of the node at a point, (3,) mm; a new one is appended."""
    for number, node in enumerate(nodes):
        if np.linalg.norm(node - point) < SAME:
            return number
    nodes.append(np.asarray(point))
    return len(nodes) - 1


def parent_of(tree, number):
    """Key of the artery that a vessel leaves between its ends, or None."""
    if tree.parents[number] is not None:
        return tree.parents[number]
    name, side = split_name(tree.names[number])
    parent = BRANCHES.get(name)
    return parent if parent is None or parent in tree.names else f"{parent}_{side}"


def curves_of(tree):
    """Vessels that begin on the centre line they leave, and where others leave them.

    Returns:
        curves: [(points (N, 3), radius (N,))] mm, in the order of the tree.
        cuts: [indices of points at which branches leave].
    """
    curves, cuts = [], [set() for _ in tree.names]
    for number, (points, radius) in enumerate(zip(tree.points, tree.radius, strict=True)):
        parent = parent_of(tree, number)
        if parent is not None:
            of = tree.names.index(parent)
            index = int(np.argmin(np.linalg.norm(tree.points[of] - points[0], axis=1)))
            foot = tree.points[of][index]
            cuts[of].add(index)
            if np.linalg.norm(foot - points[0]) > SAME:
                points, radius = np.vstack([foot, points]), np.concatenate([radius[:1], radius])
        curves.append((points, radius))
    first = [len(curve[0]) - len(points) for curve, points in zip(curves, tree.points, strict=True)]
    return curves, [sorted(i + add for i in cut) for cut, add in zip(cuts, first, strict=True)]


def graph_of(tree, place):
    """Graph of all vessels.

    Args:
        tree: Tree of a phantom.
        place: (4, 4), from the tree's mm to RAS mm of the volume.

    Returns:
        {nodes: [{id, position_mm}], edges: [{segment, label, nodes: [from, to], points_mm, radius_mm}],
        roots: [nodes], aneurysms, stenoses}, of plain numbers.
    """
    nodes, edges, roots = [], [], []
    curves, cuts = curves_of(tree)
    for number, ((points, radius), cut) in enumerate(zip(curves, cuts, strict=True)):
        moved = points @ place[:3, :3].T + place[:3, 3]
        bounds = sorted({0, *cut, len(points) - 1})
        ends = [node_at(nodes, moved[i]) for i in bounds]
        for k, (a, b) in enumerate(itertools.pairwise(bounds)):
            edge = {"segment": shown(tree.names[number]), "label": int(tree.label[number][0])}
            edge |= {"nodes": [ends[k], ends[k + 1]], "points_mm": moved[a : b + 1].round(4).tolist()}
            edges.append(edge | {"radius_mm": radius[a : b + 1].round(4).tolist()})
        if split_name(tree.names[number])[0] in ROOTS:
            roots.append(ends[0])
    arrived = {edge["nodes"][1] for edge in edges}
    listed = [{"id": n, "position_mm": node.round(4).tolist()} for n, node in enumerate(nodes)]
    found = {"nodes": listed, "edges": edges, "roots": [n for n in roots if n not in arrived]}
    return found | {
        "aneurysms": [sac_row(s, place) for s in tree.sacs],
        "stenoses": stenosis_rows(tree, place),
    }


def sac_row(sac, place):
    """An aneurysm of `anatomy.aneurysm` in plain numbers, RAS mm."""
    rotation, shift = place[:3, :3], place[:3, 3]
    row = {"junction": shown(sac["junction"]), "artery": shown(sac["artery"])}
    row |= {f"{k}_mm": (rotation @ sac[k] + shift).round(4).tolist() for k in ("start", "center")}
    row["direction"] = (rotation @ sac["direction"]).round(4).tolist()
    return row | {f"{name}_mm": round(float(sac[name]), 4) for name in ("diameter", "neck", "wall")}


def stenosis_rows(tree, place):
    """Stenoses in plain numbers: segment, per cent, place, radius there and without it, RAS mm."""
    rows = []
    for key, percent, index, normal in tree.stenoses:
        number = tree.names.index(key)
        position = place[:3, :3] @ tree.points[number][index] + place[:3, 3]
        row = {"segment": shown(key), "percent": percent, "position_mm": position.round(4).tolist()}
        row |= {"radius_mm": round(float(tree.radius[number][index]), 4)}
        rows.append(row | {"radius_without_mm": round(float(normal), 4)})
    return rows


def samples_of(graph):
    """Points of a graph as trees: [(TopCoW id, point (3,), radius, place of its parent in the list or -1)].

    Edges are walked from all roots in turn, breadth first; one whose end is known by another way ends there.
    """
    edges, at = graph["edges"], {}
    for number, edge in enumerate(edges):
        for node in edge["nodes"]:
            at.setdefault(node, []).append(number)
    samples, reached, done = [], {}, set()
    for starts in (graph["roots"], *([node] for node in at)):  # all roots at once: each keeps what it feeds
        waiting = deque(starts)
        while waiting:
            node = waiting.popleft()
            for number in at[node]:
                if number in done:
                    continue
                done.add(number)
                first, last, points = oriented(edges[number], node)
                if first not in reached:
                    samples.append((edges[number]["label"], *points[0], -1))
                    reached[first] = len(samples) - 1
                parent = reached[first]
                for point, radius in points[1:]:
                    samples.append((edges[number]["label"], point, radius, parent))
                    parent = len(samples) - 1
                if last not in reached:
                    reached[last] = parent
                    waiting.append(last)
    return samples


def oriented(edge, node):
    """An edge from one of its nodes: (node, other node, [(point, radius)])."""
    points = list(zip(edge["points_mm"], edge["radius_mm"], strict=True))
    first, last = edge["nodes"]
    return (first, last, points) if first == node else (last, first, points[::-1])


def swc_text(graph):
    """A graph as SWC: number, type, x, y, z, radius, parent; a parent stands before its children.

    SWC holds trees alone, so that a ring is open where two ways from the heart meet: the last point of one
    of them lies on a point of the other. A sac is one point, as wide as it is.
    """
    samples = samples_of(graph)
    places = np.array([point for _, point, _, _ in samples])
    for sac in graph["aneurysms"]:
        near = int(np.argmin(np.linalg.norm(places - sac["start_mm"], axis=1)))
        samples.append((samples[near][0], sac["center_mm"], sac["diameter_mm"] / 2, near))
    lines = ["# Centre lines of a synthetic phantom, RAS mm; rings are open where two ways meet"]
    lines += [f"# type {SWC_ARTERY}: artery; {SWC_ARTERY} + n: artery of TopCoW id n"]
    for number, (label, (x, y, z), radius, parent) in enumerate(samples, start=1):
        kind, above = SWC_ARTERY + label, parent + 1 if parent >= 0 else -1
        lines.append(f"{number} {kind} {x:.4f} {y:.4f} {z:.4f} {radius:.4f} {above}")
    return "\n".join([*lines, ""])


def write_graph(tree, place, path, row):
    """Write `path`.json and `path`.swc of a phantom.

    Args:
        tree, place: As of `graph_of`.
        path: Path without an ending.
        row: What else the JSON file tells, {name: value}.
    """
    states = ("normal", "thin", "absent", "fetal")
    variants = {shown(key): state for key, state in tree.variants.items() if state in states}
    graph = {**row, "space": "RAS, mm, of the volume", "variants": variants} | graph_of(tree, place)
    path.with_name(path.name + ".json").write_text(json.dumps(graph), encoding="utf-8")
    path.with_name(path.name + ".swc").write_text(swc_text(graph), encoding="utf-8")
