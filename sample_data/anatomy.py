"""Anatomy by name: variants, radii, aneurysms and stenoses that are asked of a phantom, and its two sides.

    python sample_data/phantom.py --output asked --variant "absent L-Pcom, fetal R-PCA" --num 20
    python sample_data/phantom.py --output wide --radius "BA: 1.9, R-ICA: 2.2" --stenosis "L-MCA: 60"
    python sample_data/phantom.py --output sacs --aneurysm "Acom: 6, neck 3" --graphs sacs_graphs --chiral

What is not asked for follows the laws of the phantom. Sections: names, reading, requests, aneurysms and
stenoses, chirality. Keys of segments are the phantom's own (A1_L); people write them with the side in front
(L-A1), as TopCoW does. All lengths are in mm.
"""

import difflib
import math
import re
from dataclasses import dataclass, field

from volumetric.cli import UserError
from volumetric.files import exact
from volumetric.tables import read_table

import numpy as np

# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Names                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

PAIRED = ("ICA", "M1", "M2_upper", "M2_lower", "A1", "A2", "P1", "P2", "Pcom")
PAIRED += ("SCA", "ophthalmic", "choroidal", "VA")
MAIN = {"MCA": "M1", "ACA": "A1", "PCA": "P2"}  # what a vessel's name means where a segment is asked for
SYNONYMS = {"pcoa": "Pcom", "acoa": "Acom"}
STATES = {"absent": "absent", "missing": "absent", "aplastic": "absent", "thin": "thin"}
STATES |= {"hypoplastic": "thin", "fetal": "fetal", "normal": "normal"}
BRANCHES = {"SCA": "BA", "Pcom": "ICA", "ophthalmic": "ICA", "choroidal": "ICA"}  # {branch: where it leaves}

# Names that an option knows: of both sides, and without a side.
KNOWN = {
    "variant": (("A1", "P1", "Pcom", "PCA"), ("Acom",)),
    "radius": ((*PAIRED, *MAIN), ("BA", "Acom")),
    "stenosis": ((*PAIRED, *MAIN), ("BA", "Acom")),
    "aneurysm": (("ICA", "MCA", "Pcom", "SCA", "ophthalmic"), ("BA", "Acom")),
}
COLUMNS = tuple(KNOWN)


def shown(key):
    """A1_L -> L-A1, as people write it; names without a side stay."""
    name, _, side = key.rpartition("_")
    return f"{side}-{name}" if side in ("R", "L") and name else key


def split_name(key):
    """(name, side) of a key; side '' for those in the middle."""
    name, _, side = key.rpartition("_")
    return (name, side) if side in ("R", "L") and name else (key, "")


def key_of(text, option, told):
    """Key of a segment or junction as people write it: L-A1, left A1 or A1_L.

    Args:
        text: The name.
        option: Entry of KNOWN that it is read for.
        told: What it stands in, for messages.
    """
    paired, single = KNOWN[option]
    found = re.fullmatch(r"(?:(r|l|right|left)[-_ ]+)?([\w]+?)(?:_(r|l))?", text.strip().lower())
    before, word, after = found.groups() if found else (None, text.strip().lower(), None)
    name = {n.lower(): n for n in (*paired, *single)}.get(SYNONYMS.get(word, word).lower())
    side = (before or after or "").upper()[:1]
    if name is None or (before and after):
        names = [*(f"{s}-{n}" for n in paired for s in "RL"), *single]
        near = difflib.get_close_matches(text.strip(), names, 1)
        hint = f"do you mean {near[0]}?" if near else "correct the name."
        listed = f"R- or L- with {', '.join(paired)}; {' or '.join(single)}"
        raise UserError(f"{told}: the phantom knows no {text.strip()!r} there, expected {listed}: {hint}")
    if name in single and side:
        raise UserError(f"{told}: {name} lies in the middle, found a side: write {name}.")
    if name in paired and not side:
        raise UserError(f"{told}: {name} is on both sides, expected one: write R-{name} or L-{name}.")
    if option in ("radius", "stenosis"):
        name = MAIN.get(name, name)
    return f"{name}_{side}" if side else name


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Reading                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

RADIUS = (0.2, 4.0)  # mm, least and greatest that can be asked for
DIAMETER = (1.0, 12.0)  # mm, of an aneurysm; the field of view is 19.84 mm high
PERCENT = (5.0, 95.0)  # of a stenosis
NECK = 0.5  # of the diameter, where no neck is stated (assumption)
WIDEST_NECK = 0.9  # of the diameter: with a wider one the sac would come out behind its artery
UNITS = {"radius": "mm", "aneurysm": "mm", "stenosis": "%"}
RANGES = {"radius": RADIUS, "aneurysm": DIAMETER, "stenosis": PERCENT}


def items_of(text, told):
    """Items of a list with commas or semicolons; `neck 3` belongs to the item before it."""
    items = []
    for item in (part.strip() for part in re.split("[,;]", text)):
        if not item:
            raise UserError(f"{told} {text!r} has an empty item: remove a comma.")
        if item.lower().startswith("neck") and items:
            items[-1] += f", {item}"
        else:
            items.append(item)
    return items


def number_of(text, unit, limits, told):
    """A number, with or without its unit, within limits."""
    found = re.fullmatch(rf"([0-9]*\.?[0-9]+)\s*(?:{unit})?", text.strip().lower())
    if not found:
        raise UserError(f"{told}: {text.strip()!r} is no number of {unit}: write it as in 'BA: 1.9'.")
    value = float(found[1])
    if not limits[0] <= value <= limits[1]:
        raise UserError(
            f"{told}: {value:g} {unit}, expected {limits[0]:g} to {limits[1]:g} {unit}: change it."
        )
    return value


def put(said, key, value, told):
    """Enter what is said of a key, which may not be said twice with another value."""
    if said.get(key, value) != value:
        raise UserError(f"{told}: {shown(key)} is asked for twice, as {said[key]} and as {value}: keep one.")
    said[key] = value


def read_variants(text, told):
    """{key: state} and whether all others are normal, of a text as 'complete, absent L-Pcom'."""
    said, complete = {}, False
    for item in items_of(text, told):
        where = f"{told} {item!r}"
        if item.lower() in ("any", "complete"):  # any: as drawn
            complete = complete or item.lower() == "complete"
            continue
        word, _, name = item.partition(" ")
        state = STATES.get(word.lower())
        if state is None or not name:
            raise UserError(
                f"{where}: expected a state ({', '.join(STATES)}) and a name, or complete, or any: "
                "write it as in 'absent L-Pcom'."
            )
        key = key_of(name, "variant", where)
        kind, side = split_name(key)
        if state == "fetal" and kind not in ("PCA", "Pcom"):
            raise UserError(f"{where}: only R-PCA and L-PCA can be fetal, got {shown(key)}: change it.")
        if kind == "PCA" and state != "fetal":
            raise UserError(
                f"{where}: a PCA is fetal or not, found {word}: name P1 or Pcom, as in '{word} {side}-P1'."
            )
        put(said, f"Pcom_{side}" if kind == "PCA" else key, state, where)
    return said, complete


def read_amounts(option, text, told):
    """{key: number} of a text as 'BA: 1.9, R-ICA: 2.2'; of aneurysms {key: (diameter, neck)}."""
    said = {}
    for item in items_of(text, told):
        where = f"{told} {item!r}"
        name, colon, amount = item.partition(":")
        if not colon:
            raise UserError(f"{where}: expected a name, a colon and a number: write it as in 'BA: 1.9'.")
        key = key_of(name, option, where)
        amount, _, neck = amount.partition(",")
        value = number_of(amount, UNITS[option], RANGES[option], where)
        if option == "aneurysm":
            words = neck.strip().lower().removeprefix("neck").lstrip(": ")
            limits = (0.5, round(WIDEST_NECK * value, 3))
            value = (value, number_of(words, "mm", limits, f"{where}, neck") if neck else NECK * value)
        elif neck:
            raise UserError(f"{where}: only an aneurysm has a neck: leave it out.")
        put(said, key, value, where)
    return said


def read_request(
    variant=None, radius=None, aneurysm=None, stenosis=None, where="", chiral=False, called="variant"
):
    """What is asked of a phantom, from the texts of the options or of a table's row.

    Args:
        variant, radius, aneurysm, stenosis: Texts, or None; '' is None.
        where: Of the table and its row, for messages.
        chiral: Whether there are vertebral arteries.
        called: Option that gives `variant`, for messages.

    Returns:
        Request.

    Raises:
        UserError: A text cannot be read, or what it asks contradicts itself.
    """
    told = {name: f"{where} {name}" if where else f"--{name}" for name in COLUMNS}
    told["variant"] = told["variant"] if where else f"--{called}"
    said, complete = read_variants(variant, told["variant"]) if variant else ({}, False)
    amounts = {
        name: read_amounts(name, text, told[name]) if text else {}
        for name, text in (("radius", radius), ("aneurysm", aneurysm), ("stenosis", stenosis))
    }
    request = Request(said, complete, amounts["radius"], amounts["aneurysm"], amounts["stenosis"])
    request.check(where, chiral)
    return request


def asked_by(config):
    """{option: text} of what a configuration asks for, its table apart."""
    options = ("variants", *COLUMNS)
    return {name: getattr(config, name) for name in options if getattr(config, name) is not None}


def check_asked(config):
    """Raise a UserError if the options of a PhantomConfig cannot be read, or not be together."""
    asked = [*asked_by(config)]
    other = [f"--{name}" for name in ("classes", "nodules") if getattr(config, name)]
    asked += [name for name in ("graphs", "chiral") if config.nodules and getattr(config, name)]
    if asked and other:
        raise UserError(f"--{asked[0]} and {other[0]} both say what is drawn: leave one out.")
    texts = {name: getattr(config, name) for name in COLUMNS}
    read_request(**texts, chiral=config.chiral)


def requests_of(config, called="variant"):
    """What a configuration asks of every phantom, [Request].

    With a table, its rows decide how many there are; what flags ask for holds for every row.

    Args:
        config: PhantomConfig, or one with its options of anatomy.
        called: Its option that gives the variants.

    Raises:
        UserError: The table cannot be read, asks for what cannot be, or has another number of rows.
    """
    texts = {name: getattr(config, called if name == "variant" else name) for name in COLUMNS}
    if config.variants is None:
        return [read_request(**texts, chiral=config.chiral, called=called)] * config.num
    called = f"--variants {config.variants}"
    rows = read_table(config.variants, flag="--variants")
    unknown = [name for name in rows[0] if name not in COLUMNS]
    if unknown:
        raise UserError(f"{called} has a column {unknown[0]!r}, expected {', '.join(COLUMNS)}: remove it.")
    requests = []
    for number, row in enumerate(rows, start=1):
        both = {name: ", ".join(filter(None, (texts[name], row.get(name)))) for name in COLUMNS}
        requests.append(read_request(**both, where=f"{called}, row {number}:", chiral=config.chiral))
    if config.num not in (None, len(rows)):
        raise UserError(f"--num {config.num}, but {called} has {len(rows)} rows: leave --num out.")
    return requests


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Requests                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

FETAL_RADIUS = 1.05  # mm, mean of a fetal Pcom where none is stated, as wide as the P2 it feeds
ABSENT_P1_IF_FETAL = 0.4  # share of full among fetal types: assumption


@dataclass(frozen=True)
class Request:
    """What is asked of one phantom; all else follows its laws.

    Args:
        variants: {key: normal, thin, absent or fetal}.
        complete: Segments that `variants` does not name are normal.
        radius: {key: mean radius of the segment, mm}.
        aneurysms: {junction: (diameter, neck), mm}.
        stenoses: {key: reduction of the diameter in the middle of the segment, per cent}.
    """

    variants: dict = field(default_factory=dict)
    complete: bool = False
    radius: dict = field(default_factory=dict)
    aneurysms: dict = field(default_factory=dict)
    stenoses: dict = field(default_factory=dict)

    def needed(self):
        """{key of a segment that has to be there: the option that asks for it}."""
        at = {key: "an aneurysm" for key in self.aneurysms}
        return at | dict.fromkeys(self.stenoses, "a stenosis") | dict.fromkeys(self.radius, "a radius")

    def texts(self):
        """{option: text} that asks for the same."""
        lists = {
            "variant": ["complete"] * self.complete + [f"{s} {shown(k)}" for k, s in self.variants.items()],
            "radius": [f"{shown(key)}: {exact(value)}" for key, value in self.radius.items()],
            "aneurysm": [f"{shown(k)}: {exact(d)}, neck {exact(n)}" for k, (d, n) in self.aneurysms.items()],
            "stenosis": [f"{shown(key)}: {exact(value)}" for key, value in self.stenoses.items()],
        }
        return {name: ", ".join(items) for name, items in lists.items() if items}

    def text(self):
        """One line that asks for the same; '' for nothing."""
        return "; ".join(f"{name} {text}" for name, text in self.texts().items())

    def check(self, where="", chiral=False):
        """Raise a UserError if it asks for what cannot be together."""
        said, start = self.variants, f"{where} " if where else ""
        for key, what in self.needed().items():
            if said.get(key) == "absent":
                raise UserError(f"{start}{shown(key)} is asked to be absent and to have {what}: keep one.")
            if split_name(key)[0] == "VA" and not chiral:
                raise UserError(
                    f"{start}{shown(key)} is asked for, but only --chiral draws it: add --chiral."
                )
        for key in self.radius:
            if said.get(key) == "thin":
                raise UserError(f"{start}{shown(key)} is asked to be thin and to have a radius: keep one.")
        if said.get("A1_R") == said.get("A1_L") == "absent":
            raise UserError(f"{start}R-A1 and L-A1 are asked to be absent, one must feed both A2: keep one.")
        for side in "RL":
            if said.get(f"A1_{side}") == said.get("Acom") == "absent":
                raise UserError(
                    f"{start}{side}-A1 and Acom are asked to be absent, nothing feeds {side}-A2: keep one."
                )
            self.check_posterior(side, start)

    def check_posterior(self, side, start):
        """Raise a UserError if P1 and Pcom of a side cannot be together."""
        p1, pcom = self.variants.get(f"P1_{side}"), self.variants.get(f"Pcom_{side}")
        if p1 == "absent" and pcom not in (None, "fetal"):
            raise UserError(
                f"{start}{side}-P1 is asked to be absent and {side}-Pcom {pcom}, but a PCA without P1 is "
                f"fetal: write fetal {side}-PCA, or leave one out."
            )
        if pcom == "fetal" and p1 == "normal":
            raise UserError(
                f"{start}{side}-PCA is asked to be fetal and {side}-P1 normal, but with a fetal PCA it is "
                "thin or absent: leave one out."
            )
        widths = (self.radius.get(f"P1_{side}"), self.radius.get(f"Pcom_{side}", FETAL_RADIUS))
        if pcom == "fetal" and widths[0] and widths[0] >= widths[1]:
            raise UserError(
                f"{start}{side}-PCA is asked to be fetal and {side}-P1 {widths[0]:g} mm, but its Pcom "
                f"({widths[1]:g} mm) is the wider one: change a radius."
            )

    def settle(self, drawn, rng):
        """Variants of a phantom: those asked for, those that follow from them, and else those drawn.

        Args:
            drawn: {key: state} by the law.
            rng: numpy Generator of its own, so that all else is drawn as without a request.
        """
        if self == Request():
            return drawn
        states = {**(dict.fromkeys(drawn, "normal") if self.complete else drawn), **self.variants}
        for side in "RL":
            states |= self.settled_posterior(states, drawn, side, rng)
        for key in self.needed():
            if states.get(key) == "absent":
                fetal = key.startswith("P1") and states[f"Pcom_{key[-1]}"] == "fetal"
                states[key] = "thin" if fetal else "normal"
        fixed = {key for key, state in self.variants.items() if state == "absent"}
        if states["A1_R"] == states["A1_L"] == "absent":
            states["A1_R" if "A1_L" in fixed else "A1_L"] = "normal"  # one A1 must feed both A2
        lacking = [key for key in ("A1_R", "A1_L") if states[key] == "absent"]
        if lacking and states["Acom"] == "absent":  # the only feeder of an A2 without A1
            states |= dict.fromkeys(lacking if "Acom" in fixed else ["Acom"], "normal")
        return states

    def settled_posterior(self, states, drawn, side, rng):
        """States of P1 and Pcom of a side that can be together."""
        p1, pcom = f"P1_{side}", f"Pcom_{side}"
        found = {p1: states[p1], pcom: states[pcom]}
        if self.variants.get(p1) == "absent":
            found[pcom] = "fetal"
        if found[pcom] == "fetal" and self.variants.get(p1) == "normal":
            found[pcom] = "normal"  # drawn as fetal, not asked for
        if p1 in self.variants:
            return found
        if found[pcom] == "fetal" and (self.complete or drawn[pcom] != "fetal"):
            found[p1] = "absent" if rng.random() < ABSENT_P1_IF_FETAL else "thin"
        if found[pcom] != "fetal" and drawn[pcom] == "fetal":
            found[p1] = "normal"
        return found

    def radii(self, key, radius):
        """Radii along a segment, with the mean that is asked for. Shapes: (N,) mm -> (N,) mm"""
        return radius * (self.radius[key] / radius.mean()) if key in self.radius else radius


NOTHING = Request()


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Aneurysms and stenoses                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

# Where an aneurysm grows: the segment, the place on it as a share, and the direction of the sac on the right
# side (RAS; assumptions, chosen where there is room).
JUNCTIONS = {
    "Acom": ("Acom", 0.5, (0.0, 0.3, -1.0)),
    "BA": ("BA", 1.0, (0.0, 0.0, 1.0)),
    "ICA": ("ICA", 1.0, (0.0, -0.7, 0.7)),
    "MCA": ("M1", 1.0, (0.6, 0.5, -0.7)),
    "Pcom": ("Pcom", 0.0, (0.7, -0.5, -0.6)),
    "SCA": ("SCA", 0.0, (1.0, 0.4, 0.1)),
    "ophthalmic": ("ophthalmic", 0.0, (-0.8, 0.5, 0.6)),
}
DIRECTIONS = 24  # directions tried; the one in which the sac touches least is taken
SPREAD = 0.25  # standard deviation of a direction's components (assumption)
SAC_FLOW = 0.8  # brightness, of that of its artery: blood in a sac is slow (assumption)
STENOSIS_LENGTH = 4.0  # of a stenosis, in radii of the artery; at least 3 mm (assumption)


def narrowed(path, radius, percent):
    """Radii along a segment with a stenosis in its middle, 1 - (1 + cos) / 2 wide.

    The diameter in its middle is `percent` less than without it, as NASCET and WASID define a degree.

    Shapes: path (N, 3) mm, radius (N,) mm -> radius (N,) mm, index of the narrowest point
    """
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    middle = int(np.argmin(np.abs(along - along[-1] / 2)))
    length = min(max(STENOSIS_LENGTH * radius[middle], 3.0), along[-1])
    place = np.clip(2 * (along - along[middle]) / length, -1, 1)
    return radius * (1 - percent / 100 * (1 + np.cos(math.pi * place)) / 2), middle


def wall_distance(start, direction, points, radius):
    """How far from a point inside the arteries their surface is in a direction, mm.

    Shapes: start (3,), direction (3,) of length 1, points (N, 3), radius (N,) mm -> scalar
    """
    for step in np.arange(0, 10, 0.02):
        if (np.linalg.norm(points - start - step * direction, axis=1) > radius).all():
            return step
    return 0.0


def aneurysm(junction, size, curves, rng):
    """A sac: a sphere that meets the wall of its artery in a circle, the neck.

    Its centre lies sqrt(diameter^2 - neck^2) / 2 above the wall, in the direction in which it touches least.

    Args:
        junction: Key, as Acom or MCA_L.
        size: (diameter, neck), mm.
        curves: {key of a segment: (points (N, 3), radius (N,))}, mm.
        rng: numpy Generator.

    Returns:
        {junction, artery, start, center, direction: (3,), diameter, neck, wall}, mm; `start` is on the centre
        line, `wall` the distance from there to the neck.
    """
    name, side = split_name(junction)
    segment, share, toward = JUNCTIONS[name]
    key = f"{segment}_{side}" if side else segment
    path = curves[key][0]
    start = path[round(share * (len(path) - 1))]
    artery = key
    if segment in BRANCHES:
        parent = BRANCHES[segment]
        artery = parent if parent in curves else f"{parent}_{side}"
        line = curves[artery][0]
        start = line[np.argmin(np.linalg.norm(line - start, axis=1))]
    points = np.concatenate([line for line, _ in curves.values()])
    radius = np.concatenate([radii for _, radii in curves.values()])
    near = np.linalg.norm(points - start, axis=1) < 2 * DIAMETER[1]
    points, radius, best = points[near], radius[near], None
    for _ in range(DIRECTIONS):
        direction = np.array(toward) * (-1 if side == "L" else 1, 1, 1) + rng.normal(0, SPREAD, 3)
        direction /= np.linalg.norm(direction)
        wall = wall_distance(start, direction, points, radius)
        center = start + (wall + math.sqrt(size[0] ** 2 - size[1] ** 2) / 2) * direction
        touched = np.count_nonzero(np.linalg.norm(points - center, axis=1) < size[0] / 2 + radius)
        if best is None or touched < best[0]:
            best = touched, wall, center, direction
    _, wall, center, direction = best
    sac = {"junction": junction, "artery": artery, "start": start, "center": center, "direction": direction}
    return sac | {"diameter": size[0], "neck": size[1], "wall": float(wall)}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Chirality                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

# How much more often than in the law of both sides a segment is absent or thin, or a PCA fetal, on a side;
# the two add up to 2, so that the frequencies of both sides together stay. That a thin A1 is more often the
# right one is from MR angiograms of 201 patients (doi:10.5115/acb.2019.52.1.43); how much more, and the
# others, are assumptions.
FACTORS = {
    "R": {"A1": 1.4, "P1": 1.0, "Pcom": 0.8, "fetal": 1.2},
    "L": {"A1": 0.6, "P1": 1.0, "Pcom": 1.2, "fetal": 0.8},
}
BOTH_ALIKE = dict.fromkeys("RL", dict.fromkeys(("A1", "P1", "Pcom", "fetal"), 1.0))

# The wider vertebral artery is more often the left one, and the basilar artery bends away from it (Hong et
# al. 2009, J Neurol Neurosurg Psychiatry 80:1087, doi:10.1136/jnnp.2008.169805). The figures are assumptions.
DOMINANT = {"left": 0.5, "right": 0.25, "none": 0.25}
VERTEBRAL_RADIUS = {"wide": 1.75, "narrow": 1.15, "none": 1.45}  # mm
BEND = 1.8  # mm, of the middle of the basilar artery
JOINED = 0.7  # where they join, as a share of the way from ba_low to ba_middle, so that both are in the view
VERTEBRAL_WAY = {"va_low": (9.5, 0.4, -6.0), "va_middle": (4.5, 0.2, -2.6)}  # mm from there, right side


def place_vertebrals(points, rng):
    """Points of two vertebral arteries and of the basilar artery that they join, into `points`.

    Args:
        points: {(name, side): (3,) mm}.
        rng: numpy Generator of its own.

    Returns:
        (dominant: left, right or none, {side: mean radius, mm}).
    """
    dominant = str(rng.choice(list(DOMINANT), p=list(DOMINANT.values())))
    low, middle = points["ba_low", ""], points["ba_middle", ""]
    away = {"left": 1.0, "right": -1.0, "none": 0.0}[dominant]
    points["ba_low", ""] = low + JOINED * (middle - low)
    points["ba_middle", ""] = middle + np.array([away * BEND, 0, 0.8])
    for name, offset in VERTEBRAL_WAY.items():
        for side, mirror in (("R", 1), ("L", -1)):
            points[name, side] = (
                points["ba_low", ""] + np.array(offset) * (mirror, 1, 1) + rng.normal(0, 0.4, 3)
            )
    widths = {"left": ("narrow", "wide"), "right": ("wide", "narrow"), "none": ("none", "none")}[dominant]
    return dominant, {side: VERTEBRAL_RADIUS[width] for side, width in zip("RL", widths, strict=True)}
