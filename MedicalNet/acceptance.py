"""A gate with a quota: of the volumes that a generator draws, those are kept that pass conditions.

    python CoW_generator.py --num_generate 100 --accept "components<=3, vessel_ml 0.8..2.5"

What passes is a selection, no sample of the model: every kept volume's sidecar says so, and acceptance.json
beside them says how many were drawn, why the others were rejected, and what the selection did to the spread
of every measure and of the voxels. Sections: conditions, what is measured, what the selection does, the gate.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from volumetric.cli import UserError
from volumetric.files import exact, volume_to_array, write_json
from volumetric.generation import Item, Writer, drawn_in_batches
from volumetric.sidecars import SELECTION, begin_selection, refuse_other_selection, versions

import numpy as np
from tqdm import tqdm

from MedicalNet.anatomy import PROTOCOL, measure_anatomy
from MedicalNet.looks import share_at_maximum

# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Conditions                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

# What a condition can name: {name: (name in anatomy.py or None, smallest and largest value, what it is)}
MEASURES = {
    "components": ("components", 0, math.inf, "connected components of the vessels"),
    "vessel_ml": ("vessel-volume-ml", 0, math.inf, "vessel volume, ml"),
    "centreline_mm": ("centreline-mm", 0, math.inf, "length of the centreline, mm"),
    "branches": ("branches", 0, math.inf, "branches of the centreline"),
    "radius_mm": ("radius-mm", 0, math.inf, "mean radius along the centreline, mm"),
    "asymmetry": ("asymmetry", -1, 1, "(left - right) / (left + right) of the vessel volume"),
    "saturated": (None, 0, 1, "share of the voxels at the maximum"),
}
WHOLE = ("components", "branches")  # numbers that are counts
NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
LIMIT = re.compile(rf"(\w+)\s*(<=|>=)\s*({NUMBER})")
RANGE = re.compile(rf"(\w+)\s+({NUMBER})\s*\.\.\s*({NUMBER})")


@dataclass(frozen=True)
class Condition:
    """least <= measure <= most; infinite where there is no limit."""

    name: str
    least: float = -math.inf
    most: float = math.inf

    def __str__(self):
        if self.least == -math.inf:
            return f"{self.name}<={exact(self.most)}"
        if self.most == math.inf:
            return f"{self.name}>={exact(self.least)}"
        return f"{self.name} {exact(self.least)}..{exact(self.most)}"

    def reason(self, value: float) -> str | None:
        """Why a value does not pass; None if it does."""
        if math.isnan(value):
            return f"{self.name} is undefined: no vessels"
        if value < self.least:
            return f"{self.name} < {exact(self.least)}"
        return f"{self.name} > {exact(self.most)}" if value > self.most else None


def parse_conditions(text: str) -> list[Condition]:
    """'components<=3, vessel_ml 0.8..2.5' -> a Condition for every measure that is named.

    Raises:
        UserError: A part is no condition, a measure is unknown, or nothing can pass.
    """
    found = {}
    for part in text.split(","):
        limit, span = LIMIT.fullmatch(part.strip()), RANGE.fullmatch(part.strip())
        if not limit and not span:
            raise UserError(
                f"--accept has {part.strip()!r}, expected name<=x, name>=x or name a..b, between commas: "
                f"give for example --accept 'components<=3, vessel_ml 0.8..2.5'."
            )
        name = (limit or span)[1]
        if name not in MEASURES:
            raise UserError(f"--accept names {name!r}, expected one of {', '.join(MEASURES)}: correct it.")
        low, high = (float(span[2]), float(span[3])) if span else (-math.inf, math.inf)
        if limit:
            low, high = (low, float(limit[3])) if limit[2] == "<=" else (float(limit[3]), high)
        before = found.get(name, Condition(name))
        found[name] = Condition(name, max(before.least, low), min(before.most, high))
        refuse_impossible(found[name], text)
    return list(found.values())


def refuse_impossible(condition, text):
    """Raise a UserError for a condition that no volume can pass."""
    _, smallest, largest, meaning = MEASURES[condition.name]
    low, high = max(condition.least, smallest), min(condition.most, largest)
    if condition.name in WHOLE:
        low, high = np.ceil(low), np.floor(high)
    if low > high:
        kind = "a whole number, 0 or more" if condition.name in WHOLE else f"{smallest} or more"
        kind = kind if largest == math.inf else f"between {smallest} and {largest}"
        raise UserError(
            f"--accept {text!r} cannot be met, no volume has {condition}: {condition.name} ({meaning}) is "
            f"{kind}, and all conditions on it must hold. Give a range that volumes can have."
        )


def check_gate(config):
    """Raise a UserError unless the gate's options of a GenerateConfig fit together; nothing without them."""
    if config.accept is None:
        if config.most is not None:
            raise UserError("--most needs --accept, the conditions that the drawn volumes must pass.")
        return
    if config.mode != "normal":
        raise UserError(f"--accept is for --mode normal, got --mode {config.mode}: leave one of them out.")
    if config.seeds is not None:
        raise UserError("--accept draws seeds from --seed on, got --seeds: give --seed in its place.")
    parse_conditions(config.accept)
    if config.most is not None and config.most < config.num_generate:
        raise UserError(
            f"--most {config.most} volumes cannot have {config.num_generate} that pass: give at least "
            f"--most {config.num_generate}, or a smaller --num_generate."
        )


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ What is measured                                                                                         ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def measures_of(array, affine) -> dict[str, float]:
    """{name out of MEASURES: value} of a volume; nan for what only a vessel has.

    Shapes: (X, Y, Z), (4, 4) voxels to mm
    """
    found = measure_anatomy(array, affine)
    values = {"saturated": share_at_maximum(array)}
    for name, (theirs, *_) in MEASURES.items():
        if theirs is not None:
            values[name] = float(found[theirs].mean()) if len(found[theirs]) else math.nan
    return {name: values[name] for name in MEASURES}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ What the selection does                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass
class Spread:
    """Mean and variance of volumes, voxel by voxel, one volume after the other (Welford 1962)."""

    n: int = 0
    mean: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0

    def add(self, volume):
        """Add one volume. Shapes: (1, Z, X, Y)"""
        self.n += 1
        away = np.asarray(volume, dtype=float) - self.mean
        self.mean = self.mean + away / self.n
        self.squares = self.squares + away * (np.asarray(volume, dtype=float) - self.mean)

    @property
    def variance(self):
        """Mean over the voxels of their variance from volume to volume; None of fewer than two volumes."""
        return float(np.mean(self.squares) / (self.n - 1)) if self.n > 1 else None


def spread_of(rows) -> dict[str, dict]:
    """{measure: {"n", "mean", "std"}} of rows with `measures`, of those that have it."""
    found = {}
    for name in MEASURES:
        values = np.array([row["measures"][name] for row in rows], dtype=float)
        values = values[~np.isnan(values)]
        mean = float(values.mean()) if len(values) else None
        std = float(values.std(ddof=1)) if len(values) > 1 else None
        found[name] = {"n": len(values), "mean": mean, "std": std}
    return found


def told(record) -> list[str]:
    """What is said at the end, line by line, of what acceptance.json holds."""
    drawn, kept = record["drawn"], record["kept"]
    lines = [f"{drawn} volumes were drawn, {kept} kept ({kept / drawn:.0%}) by {record['accepted_by']}."]
    lines += [f"  rejected, {reason}: {count}" for reason, count in record["rejections"].items()]
    lines.append("mean and standard deviation of what was drawn, and of what was kept:")
    for name, of in record["spread"].items():
        pairs = [f"{number(of[which][k])}" for which in ("drawn", "kept") for k in ("mean", "std")]
        lines.append("  {:<14}{:>9} {:>9}   {:>9} {:>9}".format(name, *pairs))
    voxels = record["voxel_variance"]
    if voxels["drawn"] and voxels["kept"] is not None:
        share = voxels["kept"] / voxels["drawn"]
        lines.append(f"Voxels vary from volume to volume {share:.2f} times as much as before the selection.")
    lines.append("The kept volumes are a selection, no sample of the model.")
    return lines


def number(value):
    """A number for people; a dash for none."""
    return "-" if value is None else f"{value:.4g}"


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The gate                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def marked(item: Item, conditions: Sequence[Condition]) -> Item:
    """An item whose sidecar says what its volume was accepted by."""
    return replace(item, record=item.record | {"accepted_by": ", ".join(map(str, conditions))})


@dataclass
class Gate:
    """Draws the volumes of items in their order, and keeps those that pass until there are enough.

    Args:
        writer: Writer of the volumes.
        conditions: Of `parse_conditions`.
        wanted: Number of volumes to be kept.
    """

    writer: Writer
    conditions: Sequence[Condition]
    wanted: int
    kept: list[Item] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)  # a drawn volume each
    before: Spread = field(default_factory=Spread)
    after: Spread = field(default_factory=Spread)

    def reasons(self, measures) -> list[str]:
        """Why a volume does not pass; empty if it does."""
        found = [condition.reason(measures[condition.name]) for condition in self.conditions]
        return list(dict.fromkeys(reason for reason in found if reason))

    def passing(self, drawn, complete):
        """Yield (item, Drawn) of what passes and is not complete; ends when enough is kept."""
        for item, one in drawn:
            volume = np.asarray(one.volume)
            measures = measures_of(volume_to_array(volume), self.writer.affine_of(item))
            reasons = self.reasons(measures)
            self.before.add(volume)
            self.rows.append({"seed": item.about["seed"], "reasons": reasons, "measures": measures})
            if not reasons:
                self.after.add(volume)
                self.kept.append(item)
                if item.name not in complete:
                    yield replace(item, about=item.about | {"measures": measures}), one
            if len(self.kept) == self.wanted:
                return

    def record(self, items) -> dict:
        """What acceptance.json holds."""
        kept = [row for row in self.rows if not row["reasons"]]
        rejections = Counter(reason for row in self.rows for reason in row["reasons"])
        spreads = {"drawn": spread_of(self.rows), "kept": spread_of(kept)}
        return {
            "synthetic": True,
            "finished": True,
            **self.made_of(items),
            "asked_for": self.wanted,
            "most": len(items),
            "drawn": len(self.rows),
            "kept": len(kept),
            "rejections": dict(rejections.most_common()),
            "spread": {name: {k: s[name] for k, s in spreads.items()} for name in MEASURES},
            "voxel_variance": {"drawn": self.before.variance, "kept": self.after.variance},
            "accepted": [{"seed": row["seed"], "measures": row["measures"]} for row in kept],
            "rejected": [row for row in self.rows if row["reasons"]],
            "protocol": PROTOCOL,
            "versions": versions(),
        }

    def made_of(self, items) -> dict:
        """What another selection has otherwise: what its first volume is made of, but for its own file."""
        first = self.writer.made_of(items[0])
        return {key: value for key, value in first.items() if key != "file"}

    def run(self, items: Sequence[Item], draw, batch_size=None) -> dict:
        """Draw, keep and write; returns what acceptance.json holds.

        Args:
            items: Of `marked`, in the order in which they are drawn, as many as may be.
            draw: Function of some items that gives their Drawn.
            batch_size: Volumes at a time; None is as many as suit the device.

        Raises:
            UserError: The folder has other volumes or another selection, or the disk is full.
        """
        selection = (self.writer.folder, self.writer.flag, self.made_of(items), self.wanted, len(items))
        refuse_other_selection(*selection)
        complete = {item.name for item in items if self.writer.is_complete(item)}
        if complete:
            print(f"{len(complete)} volumes are there already.")
        self.writer.prepare(items, max(0, self.wanted - len(complete)))
        begin_selection(*selection)
        batch_size = self.writer.at_once(batch_size)
        drawn = drawn_in_batches(items, draw, batch_size)
        with tqdm(total=self.wanted, desc="Accepted", unit="volume", initial=len(complete)) as bar:
            self.writer.write_drawn(self.passing(drawn, complete), 2 * batch_size, bar)
        record = self.record(items)
        write_json(self.writer.folder / SELECTION, record)
        return record


def refuse_too_few(record, folder):
    """Raise a UserError if fewer volumes passed than were asked for; those stay."""
    if record["kept"] < record["asked_for"]:
        common = next(iter(record["rejections"]))
        raise UserError(
            f"{record['kept']} of the {record['drawn']} volumes that were drawn pass --accept, "
            f"{record['asked_for']} were asked for (most often: {common}): raise --most, or accept more."
            + (f" The {record['kept']} are in {folder}." if record["kept"] else "")
        )
