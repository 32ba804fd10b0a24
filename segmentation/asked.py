"""Circles of Willis on request: anatomy by name, its exact label map, and a volume that is drawn for it.

    python label_to_volume.py --anatomy "absent L-Pcom" --num 20 --output made
    python label_to_volume.py --anatomy complete --aneurysm "Acom: 6" --num 8 --only_passing True --most 30

The phantom's laws draw an arterial tree by the request (sample_data/anatomy.py), its label map is voxelised
on the model's own grid, and a segmentation network says whether what was asked for is in the volume. In the
map that is exact, by TopCoW's rule of which segments are there. Sections: options, circles, the check,
writing, only what passes.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from volumetric import generation
from volumetric.cli import UserError, option
from volumetric.collection import Volume, content_of_labels
from volumetric.files import array_to_volume, by, file_digest, read_json, volume_to_array, write_json
from volumetric.generation import DRAWN_PER_KEPT, Drawn, Item, Model, drawn_in_batches
from volumetric.geometry import same_spacing, spacing_of
from volumetric.parallel import process_group
from volumetric.runs import checkpoint_numbers
from volumetric.sidecars import SELECTION, begin_selection, refuse_other_selection, versions, volume_digest

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from tqdm import tqdm

from sample_data import anatomy, phantom
from sample_data.centrelines import write_graph
from segmentation import metrics
from segmentation.cases import Classes, Scan
from segmentation.labels import BASE, as_topcow, table_of
from segmentation.maps import PairWriter

SAMPLES = Path(phantom.__file__).parent
MODEL, SEGMENTER = SAMPLES / "label_model.pt", SAMPLES / "segmenter.pt"  # that come along
MOST, CIRCLES = 10**6, 8  # circles of one command: at most, and where no number is given
THERE, ABSENT = 0.5, 0.25  # share of an artery's voxels: at least, and at most
STATES = ("normal", "thin", "absent", "fetal")
PASSED = "the check that what was asked for is there"
SHOWN = 16  # circles on a contact sheet, at most


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Options                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(kw_only=True)
class AnatomyOptions:
    """Options of a program that draws circles of Willis by name; a mixin of RunConfig."""

    anatomy: str | None = option(
        None,
        "Variants to draw circles of, as in 'absent L-Pcom, fetal R-PCA'; any: nothing in particular.",
        section="Anatomy by name",
    )
    radius: str | None = option(None, "Mean radii of segments in mm, as in 'BA: 1.9, R-ICA: 2.2'.")
    aneurysm: str | None = option(None, "Sacs, diameter and neck in mm, as in 'Acom: 6, neck 3'.")
    stenosis: str | None = option(None, "Stenoses, per cent of the diameter, as in 'L-MCA: 60'.")
    variants: str | None = option(
        None, "CSV of columns variant, radius, aneurysm, stenosis: a row for each circle.", file=True
    )
    chiral: bool = option(False, "The two sides differ as in people, with two vertebral arteries.")
    num: int | None = option(None, "Circles; None: 8, or one for each row of --variants.", most=MOST)
    segmenter: str = option(
        "shipped", "Network of segmentation.py that checks the volumes; None: they are not checked."
    )
    only_passing: bool = option(False, "Keep what passes the check alone, and draw until there are num.")
    most: int | None = option(None, "Circles drawn at most for that; None is four times num.", most=MOST)

    def __post_init__(self):
        super().__post_init__()
        asked = (self.anatomy, self.radius, self.aneurysm, self.stenosis, self.variants)
        self.asks = any(text is not None for text in asked)
        alone = [name for name in ("num", "chiral", "only_passing", "most") if getattr(self, name)]
        alone += ["segmenter"] if self.segmenter != type(self).segmenter else []
        if alone and not self.asks:
            raise UserError(f"--{alone[0]} is of circles by name: give --anatomy too, any for no variant.")
        if self.asks:
            self.check_anatomy()

    def check_anatomy(self):
        """Raise a UserError if what is asked for cannot be read, or cannot be."""
        for name in ("generate", "recreate", "edit", "fit", "vary"):
            if getattr(self, name, None) != getattr(type(self), name, None):
                raise UserError(f"--anatomy draws its own label maps: leave --{name} out.")
        if getattr(self, "num_per_map", 1) != 1:
            raise UserError("--anatomy draws a circle for each volume: give --num, not --num_per_map.")
        anatomy.read_request(
            self.anatomy, self.radius, self.aneurysm, self.stenosis, chiral=self.chiral, called="anatomy"
        )
        if self.variants is None:
            self.num = self.num or CIRCLES
        if self.only_passing and self.segmenter.lower() == "none":
            raise UserError("--only_passing needs a --segmenter, which says what passes.")
        if self.most is not None and not self.only_passing:
            raise UserError("--most needs --only_passing True: without it as many are drawn as are kept.")
        if self.num is not None:
            self.refuse_too_few(self.num)

    def refuse_too_few(self, wanted):
        """Raise a UserError if --most is less than the number of circles that are to be kept."""
        if self.most is not None and self.most < wanted:
            raise UserError(
                f"--most {self.most} circles cannot have {wanted} that pass: give at least --most {wanted}, "
                "or a smaller --num."
            )


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Circles                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(eq=False)
class Circle:
    """A circle of Willis by name; its tree and its label map are made when they are looked at.

    The same seed and number are the same subject, whatever is asked of it: the phantom of this number.

    Args:
        request: anatomy.Request.
        seed, number: Whole numbers >= 0.
        chiral: As of `phantom.build_tree`.
        shape: (X, Y, Z) of its label map, voxels.
        classes: cases.Classes of the model.
    """

    request: anatomy.Request
    seed: int
    number: int
    chiral: bool
    shape: tuple[int, int, int]
    classes: Classes

    @functools.cached_property
    def tree(self):
        """Its Tree."""
        rng = np.random.default_rng((self.seed, self.number))
        return phantom.build_tree(rng, request=self.request, chiral=self.chiral)

    @functools.cached_property
    def ids(self):
        """Its label map, (X, Y, Z) uint8, TopCoW ids."""
        return phantom.render_labels(self.tree, self.shape)

    @property
    def numbers(self):
        """Class numbers of its label map, (X, Y, Z) uint8."""
        return self.classes.from_ids(self.ids)

    @property
    def affine(self):
        """Affine of its label map, (4, 4), RAS mm."""
        return phantom.phantom_affine(self.shape)

    stored = affine

    def as_stored(self, array):
        """Along the axes of what is written, which are R, A, S. Shapes: (X, Y, Z) -> the same"""
        return array

    as_written = as_stored

    @property
    def states(self):
        """State of every variable segment, {name: normal, thin, absent or fetal}."""
        return {anatomy.shown(key): of for key, of in self.tree.variants.items() if of in STATES}

    @property
    def radii(self):
        """Mean radius of every labelled segment, {name: mm}, 0 for one that is absent."""
        radii = {key: of for key, of in self.tree.variants.items() if key.startswith("radius_")}
        return {anatomy.shown(key.removeprefix("radius_")): of for key, of in radii.items()}

    def told(self):
        """What a sidecar says, by which `of_record` makes it again."""
        texts = self.request.texts()
        return {"request": texts, "seed": self.seed, "number": self.number, "chiral": self.chiral}

    @classmethod
    def of_record(cls, told, model):
        """The Circle of a sidecar's `anatomy`, for a model."""
        request = anatomy.read_request(**told["request"], chiral=told["chiral"])
        return cls(request, told["seed"], told["number"], told["chiral"], model.array_shape, model.classes)

    def forget(self):
        """Leave the tree to be drawn again: many are asked for at once."""
        self.__dict__.pop("tree", None)


def refuse_other_model(model: Model) -> None:
    """Raise a UserError unless a model draws the phantom's field of view for TopCoW's ids."""
    spacing = spacing_of(model.affine)
    wanted = phantom.FIELD_OF_VIEW / np.array(model.array_shape)
    if not same_spacing(spacing, wanted):
        size = (spacing * model.array_shape).round(2)
        raise UserError(
            f"{model.path} draws {by(size)} mm, but circles by name have {by(phantom.FIELD_OF_VIEW)} mm: "
            "give a model of such volumes, or --generate your own label maps."
        )
    missing = [name for n, name in BASE.items() if model.table.get(n) != name]
    if missing:
        names = ", ".join(model.table.values())
        raise UserError(
            f"{model.path} has the classes {names}, but circles by name have the ids of topcow2024 "
            f"({missing[0]} is none of them): give a model trained with --table topcow2024."
        )


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The check                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def tube(points: np.ndarray, radius: np.ndarray, shape) -> np.ndarray:
    """Voxels within half a voxel of a vessel. Shapes: (N, 3) mm, (N,) mm, (3,) voxels -> (X, Y, Z) bool"""
    spacing, mask = phantom.FIELD_OF_VIEW / shape, np.zeros(shape, bool)
    voxels = phantom.voxels_near(points, radius.max() + spacing.max(), np.array(shape))
    distance, nearest = cKDTree(points).query((voxels + 0.5) * spacing - phantom.FIELD_OF_VIEW / 2)
    mask[tuple(voxels[distance <= radius[nearest] + spacing.max() / 2].T)] = True
    return mask


def voxels_of(points: np.ndarray, radius: np.ndarray, shape) -> float:
    """How many voxels the volume of a vessel fills. Shapes: (N, 3) mm, (N,) mm, (3,) voxels -> number"""
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return float(np.pi * (lengths * radius[:-1] ** 2).sum() / np.prod(phantom.FIELD_OF_VIEW / shape))


def with_neighbours(mask: np.ndarray) -> np.ndarray:
    """A mask and all voxels that touch it. Shapes: (X, Y, Z) bool -> the same"""
    return ndimage.binary_dilation(mask, metrics.EVERY_NEIGHBOUR)


@dataclass(frozen=True)
class Place:
    """Where an artery is looked for in a volume.

    Args:
        label: Its id.
        where: (X, Y, Z) bool.
        voxels: How many it has in the map, or would have if it were there.
        state: What it is: normal, thin, fetal, absent; there, of an aneurysm.
        asked: Whether that is asked for.
    """

    label: int
    where: np.ndarray
    voxels: float
    state: str = "there"
    asked: bool = True


def place_of(circle: Circle, key: str) -> Place | None:
    """Place of a segment; None for one without a label.

    One that is there is looked for where the map has it, and a voxel around. One that is not is looked for
    everywhere, but for those whose id goes on in another segment (A1 in A2, P1 in P2): where it would run.
    """
    tree = circle.tree
    if key in tree.left_out:
        points, radius = tree.left_out[key]
        name, side = anatomy.split_name(key)
        label = {**phantom.PAIRED, "Acom": phantom.ACOM}[name].label[side == "L"]
        where = ~with_neighbours(circle.ids == label)
        if (circle.ids == label).any():
            where &= tube(points, radius, circle.shape)
        return Place(label, where, voxels_of(points, radius, circle.shape))
    number = tree.names.index(key)
    label = int(tree.label[number][0])
    if not label:
        return None
    own = (circle.ids == label) & tube(tree.points[number], tree.radius[number], circle.shape)
    return Place(label, with_neighbours(own), int(own.sum()))


def place_of_sac(circle: Circle, sac: dict) -> Place:
    """Place of an aneurysm, artery included where it lies within the sphere."""
    radius = np.array([sac["diameter"] / 2])
    own = (circle.ids == sac["label"]) & tube(sac["center"][None], radius, circle.shape)
    return Place(int(sac["label"]), with_neighbours(own), int(own.sum()))


def places_of(circle: Circle) -> dict[str, Place]:
    """{name: Place} of the variable segments, and of all that is asked for."""
    tree, request = circle.tree, circle.request
    variable = [key for key, state in tree.variants.items() if state in STATES]
    further = [key for key in (*request.stenoses, *request.radius) if key not in variable]
    found = {}
    for key in dict.fromkeys((*variable, *further)):
        asked = request.complete or key in request.variants or key in request.needed()
        place = place_of(circle, key)
        if place is not None:
            state = tree.variants.get(key, "normal")
            found[anatomy.shown(key)] = replace(place, state=state, asked=asked)
    for sac in tree.sacs:
        found[f"aneurysm of {anatomy.shown(sac['junction'])}"] = place_of_sac(circle, sac)
    return found


def in_map(circle: Circle) -> dict[str, bool]:
    """{segment of the circle: whether the map has it}, by TopCoW's rule; see `metrics.graph_of`."""
    graph = metrics.graph_of(circle.ids, metrics.touching(circle.ids))
    names = (name for part in metrics.GRAPH.values() for name in part)
    return dict(zip(names, (bool(n) for part in graph.values() for n in part), strict=True))


def check(circle: Circle, found: np.ndarray | None = None) -> dict:
    """Whether what is asked of a circle is in its map, and in what a network finds in its volume.

    Args:
        circle: Circle.
        found: The network's label map, (X, Y, Z) TopCoW ids; None if there is none.

    Returns:
        {"segments": {name: {"state", "asked", "in_map", "voxels", "found", "in_volume"}}, "reasons": [text],
        "dice": {artery: Dice}}, in JSON's types; `reasons` says what is not as it was asked for.
    """
    there, rows, reasons = in_map(circle), {}, []
    for name, place in places_of(circle).items():
        state, absent = place.state, place.state == "absent"
        mapped = there.get(name, place.voxels > 0) != absent
        row = {"state": state, "asked": place.asked, "in_map": mapped, "voxels": round(place.voxels, 1)}
        number = None if found is None else int(((found == place.label) & place.where).sum())
        right = None
        if number is not None:
            right = number <= ABSENT * place.voxels if absent else number >= max(1, THERE * place.voxels)
        rows[name] = row | {"found": number, "in_volume": right}
        if place.asked and not mapped:
            reasons.append(f"{name} is {'' if absent else 'not '}in the map, asked to be {state}")
        elif place.asked and right is False:
            reasons.append(f"{name} is {'' if absent else 'not '}in the volume, asked to be {state}")
    record = {"segments": rows, "reasons": reasons}
    if found is not None:
        both = {name: (circle.ids == n, found == n) for n, name in BASE.items()}
        record["dice"] = {name: metrics.dice(*of) for name, of in both.items() if of[0].any() or of[1].any()}
    return record


class Checker:
    """A segmentation network that looks for arteries in volumes.

    Args:
        path: File of segmentation.py.
        device: As of `parallel.choose_device`.

    Raises:
        UserError: It is none, or has other ids than TopCoW's.
    """

    def __init__(self, path, device):
        from segmentation.segmentation import read_model

        self.path = Path(path)
        self.predictor, _ = read_model(self.path, device)
        self.table = self.predictor.classes.table
        if not set(BASE.values()) <= set(table_of(self.table).values()):
            raise UserError(f"--segmenter {path} has the ids of {self.table}, expected those of topcow2024.")

    @property
    def record(self):
        """What sidecars say of it."""
        return {"path": str(self.path), "sha256": file_digest(self.path)}

    def ids_in(self, volume, affine: np.ndarray) -> np.ndarray:
        """TopCoW ids that it finds.

        Shapes: (1, Z, X, Y) in [0, 1], affine (4, 4) along R, A, S -> (X, Y, Z) uint8
        """
        array = np.ascontiguousarray(volume_to_array(np.asarray(volume, np.float32)))
        found, _ = self.predictor.label(Scan(self.path, Volume(array, affine, affine)))
        return as_topcow(found, self.table)

    def check(self, circle: Circle, volume) -> dict:
        """`check` of a volume, (1, Z, X, Y), that was drawn for a Circle."""
        return check(circle, self.ids_in(volume, circle.affine))


def checker_of(config) -> Checker | None:
    """Checker of --segmenter; None if volumes are not to be checked."""
    if config.segmenter.lower() == "none":
        return None
    path = SEGMENTER if config.segmenter == "shipped" else Path(config.segmenter)
    if not path.is_file():
        raise UserError(
            f"--segmenter {path} does not exist: give a network of segmentation.py, or None: volumes are "
            "then not checked."
        )
    return Checker(path, config.device)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Writing                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class CircleWriter(PairWriter):
    """Draws and writes volumes of circles with their label maps and graphs, under the volumes' names.

    Args:
        model: LabelModel.
        folder: Of the volumes; label maps go to <folder>_labels, graphs to <folder>_graphs.
        checker: Checker, or None.
    """

    def __init__(self, model, folder, checker):
        super().__init__(model, folder)
        self.graphs, self.checker = self.folder_beside("graphs"), checker
        self.record["segmenter"] = checker and checker.record

    def item_of(self, circle, name, seed, passing=False):
        """Item of a Circle and of the seed of its z."""
        record = {"anatomy": circle.told(), "recipe": {"noise": self.model.noise}, "seed": seed}
        record |= {"accepted_by": PASSED} if passing else {}
        texts = circle.request.texts().items()
        what = ", ".join(text if kind == "variant" else f"{kind} {text}" for kind, text in texts)
        return Item(f"{name}_seed{seed:06d}", circle, what or name, record, affine=circle.affine)

    def folders(self, items):
        """Those of a pair, and that of the graphs."""
        return super().folders(items) | {self.graphs}

    def files_of(self, item):
        """Those of a pair, and the graph."""
        return [*super().files_of(item), *(self.graphs / f"{item.name}.{end}" for end in ("json", "swc"))]

    def draw(self, items):
        """The volumes of some items, and whether what was asked for is in them."""
        drawn = []
        for item, one in zip(items, super().draw(items), strict=True):
            circle = item.source
            found = self.checker.check(circle, one.volume) if self.checker else check(circle)
            drawn.append(Drawn(one.volume, found))
        return drawn

    def write_more(self, item, drawn):
        """Label map and graph; the sidecar says what the circle is, and what the check found."""
        super().write_more(item, drawn)
        circle, place = item.source, np.eye(4)
        place[:3, 3] = phantom.WORLD_ORIGIN
        told = {"file": self.path(item, self.volume_format).name, "seed": circle.seed}
        told |= {"number": circle.number, "request": circle.request.text()}
        write_graph(circle.tree, place, self.graphs / item.name, told)
        passed = None if self.checker is None else not drawn.more["reasons"]
        label_map = {"content": content_of_labels(circle.ids), "drawn_sha256": volume_digest(circle.numbers)}
        details = {"label_map": label_map, "settled": circle.states, "radii_mm": circle.radii}
        circle.forget()
        return details | {"asked_for_is_there": passed, "check": drawn.more}

    @property
    def places(self):
        """Where everything is, for a person to read."""
        return f"volumes are in {self.folder}, label maps in {self.labels}, graphs in {self.graphs}."

    def check_of(self, item):
        """What a sidecar that is there says of the check."""
        return read_json(self.path(item, "json"))["check"]


def recreated(record: dict, model: Model):
    """The volume of a sidecar of such a writer, drawn again, its tree too. Shapes: -> (1, Z, X, Y)"""
    circle = Circle.of_record(record["anatomy"], model)
    (volume,) = model.volumes_of([record["seed"]], numbers=array_to_volume(circle.numbers)[0])
    return volume


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Only what passes                                                                                         ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass
class Passing:
    """Draws circles until every request has one that passes the check, in rounds of those that lack one.

    Args:
        writer: CircleWriter with a Checker.
        item_of: Function of the number of a request and of a round that gives the Item.
        wanted: Number of requests.
        most: Circles drawn at most.
    """

    writer: CircleWriter
    item_of: Callable
    wanted: int
    most: int
    kept: list[Item] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)  # a drawn circle each

    def passing(self, batch_size, bar):
        """Yield (item, Drawn) of what passes and is not complete."""
        waiting, tries = list(range(self.wanted)), 0
        while waiting and len(self.rows) < self.most:
            tried = waiting[: self.most - len(self.rows)]
            items, failed = [self.item_of(n, tries) for n in tried], waiting[len(tried) :]
            drawn = drawn_in_batches(items, self.writer.draw, batch_size)
            for number, (item, one) in zip(tried, drawn, strict=True):
                reasons = one.more["reasons"]
                row = {"number": item.source.number, "seed": item.record["seed"], "reasons": reasons}
                self.rows.append(row)
                if reasons:
                    failed.append(number)
                    continue
                self.kept.append(item)
                if self.writer.is_complete(item):
                    bar.update(1)
                else:
                    yield item, one
            waiting, tries = sorted(failed), tries + 1

    def run(self, batch_size=None):
        """Draw, keep and write; returns what acceptance.json holds.

        Raises:
            UserError: The folder has another selection, or volumes of none.
        """
        first = [self.item_of(n, 0) for n in range(self.wanted)]
        told = [item.record["anatomy"] for item in first]
        made_of = {**self.writer.record, "accepted_by": PASSED}
        made_of |= {key: told[0][key] for key in ("seed", "chiral")}
        requests = [one["request"] for one in told]
        place, numbers = (self.writer.folder, self.writer.flag), (self.wanted, self.most)
        refuse_other_selection(*place, made_of, *numbers, requests)
        self.writer.prepare(first, self.wanted)
        begun = made_of | {"requests": requests}
        begin_selection(*place, begun, *numbers)
        batch_size = self.writer.at_once(batch_size)
        with tqdm(total=self.wanted, desc="Passed", unit="volume") as bar:
            self.writer.write_drawn(self.passing(batch_size, bar), 2 * batch_size, bar)
        rejections = Counter(reason for row in self.rows for reason in row["reasons"])
        record = {
            "synthetic": True,
            "finished": True,
            **begun,
            "asked_for": self.wanted,
            "most": self.most,
            "drawn": len(self.rows),
            "kept": len(self.kept),
            "rejections": dict(rejections.most_common()),
            "accepted": [row for row in self.rows if not row["reasons"]],
            "rejected": [row for row in self.rows if row["reasons"]],
            "versions": versions(),
        }
        write_json(self.writer.folder / SELECTION, record)
        return record


def told_of(checks: Sequence[dict]) -> list[str]:
    """What is said at the end of the `check` of all circles, line by line."""
    counts, reasons = {}, Counter(reason for one in checks for reason in one["reasons"])
    for one in checks:
        for name, row in one["segments"].items():
            if row["asked"]:
                count = counts.setdefault(f"{row['state']} {name}", Counter())
                count.update(n=1, map=int(row["in_map"]), volume=int(bool(row["in_volume"])))
    looked = any("dice" in one for one in checks)
    dice = [value for one in checks for value in one.get("dice", {}).values()]
    passed = sum(not one["reasons"] for one in checks)
    where = f"volumes, mean Dice of the arteries {np.mean(dice):.3f}" if dice else "label maps"
    lines = [f"What was asked for is there in {passed} of {len(checks)} {where}."]
    wide = max(map(len, counts), default=0)
    lines += [f"  {'asked for':<{wide}}   in the map   in the volume"] if counts else []
    for name, count in counts.items():
        volume = f"{count['volume']} of {count['n']}" if looked else "unchecked"
        lines.append(f"  {name:<{wide}}   {count['map']} of {count['n']}".ljust(wide + 18) + volume)
    return lines + [f"  {count} times: {reason}" for reason, count in reasons.most_common()]


def checkpoint_of(config) -> Path:
    """Checkpoint to draw with: the run's or, where none is named or there, the one that comes along."""
    unnamed = config.checkpoint is None and config.name == "default" and config.load_from == -1
    if unnamed and MODEL.is_file() and not checkpoint_numbers(config.models):
        return MODEL
    return generation.checkpoint_of(config)


def generate(config, open_model: Callable, seeds_of: Callable) -> Path:
    """`--anatomy`: circles by name, their label maps, graphs and volumes; returns the folder of these.

    Args:
        config: Configuration with AnatomyOptions and GenerationOptions.
        open_model: Function of checkpoint, device and use_average that gives the LabelModel.
        seeds_of: Function of the configuration and of a text that gives seeds of z.
    """
    requests = anatomy.requests_of(config, "anatomy")
    config.refuse_too_few(len(requests))
    with process_group() as group:
        model = open_model(checkpoint_of(config), config.device, config.use_average)
        return write_circles(config, requests, model, lambda text: seeds_of(config, text)[0], group)


def write_circles(config, requests, model, seed_of, group):
    """Circles that are asked for, each a volume with its label map, graph and sidecar.

    Args:
        config: Configuration with AnatomyOptions and GenerationOptions.
        requests: [anatomy.Request], one for each circle.
        model: LabelModel.
        seed_of: Function of a text that gives the seed of z.
        group: parallel.Group of the processes that share the circles out.

    Returns:
        The folder of the volumes; what is there already is kept.

    Raises:
        UserError: The model is none of circles, or fewer pass than were asked for; those are written.
    """
    refuse_other_model(model)
    writer = CircleWriter(model, config.generated_folder(model.path), checker_of(config))

    def item_of(n, tries=0):
        circle = Circle(
            requests[n],
            config.seed,
            n + tries * MOST,
            config.chiral,
            model.array_shape,
            model.classes,
        )
        name = f"circle{n:04d}" + (f"_try{tries}" if tries else "")
        return writer.item_of(circle, name, seed_of(f"circle {circle.number}"), config.only_passing)

    if config.only_passing:
        return write_passing(config, writer, item_of, len(requests), group)
    items = [item_of(n) for n in range(len(requests))]
    writer.write_all(items, writer.draw, group=group)
    if group.first:
        writer.sheet(items[:SHOWN])
        print("\n".join(told_of([writer.check_of(item) for item in items])))
        print(f"{len(items)} {writer.places}")
    return writer.folder


def write_passing(config, writer, item_of, wanted, group):
    """`--only_passing`: arguments are those of `Passing`, the rest is as of `write_circles`."""
    if group.world > 1:
        raise UserError(f"--only_passing draws in turn, got {group.world} processes: start one.")
    most = config.most or min(MOST, DRAWN_PER_KEPT * wanted)
    passing = Passing(writer, item_of, wanted, most)
    record = passing.run()
    writer.sheet(passing.kept[:SHOWN])
    drawn, kept = record["drawn"], record["kept"]
    print(f"{drawn} circles were drawn, {kept} kept ({kept / drawn:.0%}) by {PASSED}.")
    print("\n".join(f"  rejected, {reason}: {count}" for reason, count in record["rejections"].items()))
    if kept < wanted:
        raise UserError(
            f"{kept} of the {drawn} circles that were drawn pass, {wanted} were asked for (most often: "
            f"{next(iter(record['rejections']))}): raise --most, or leave --only_passing out."
            + (f" The {kept} are in {writer.folder}." if kept else "")
        )
    print(f"{kept} {writer.places}")
    return writer.folder
