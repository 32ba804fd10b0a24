"""Numbers of a run as curves: its table read as it grows, thinned, and drawn as SVG."""

import csv
import io
import math
import os
from collections import deque
from dataclasses import dataclass

from volumetric.pages import three

import numpy as np

BINS = 320  # points of a curve, at most
LATEST = 200  # steps that the present speed is of


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Numbers                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Series:
    """A number over steps, in at most BINS bins of equal width, which doubles when they are full."""

    def __init__(self):
        self.width = 1  # steps in a bin
        self.sums, self.counts = np.zeros(BINS), np.zeros(BINS)
        self.lows, self.highs = np.full(BINS, np.inf), np.full(BINS, -np.inf)

    def add(self, steps, values):
        """Count the values of steps. Shapes: (N,) whole numbers, (N,)"""
        steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
        while len(steps) and steps.max() // self.width >= BINS:
            self.widen()
        bins = steps // self.width
        np.add.at(self.sums, bins, values)
        np.add.at(self.counts, bins, 1)
        np.minimum.at(self.lows, bins, values)
        np.maximum.at(self.highs, bins, values)

    def widen(self):
        """Take two bins together."""
        self.width *= 2
        for name, both in (("sums", np.sum), ("counts", np.sum), ("lows", np.min), ("highs", np.max)):
            bins = getattr(self, name)
            empty = {"lows": np.inf, "highs": -np.inf}.get(name, 0.0)
            half = both(bins.reshape(-1, 2), axis=1)
            setattr(self, name, np.concatenate([half, np.full(BINS - len(half), empty)]))

    def points(self):
        """Middle, mean, lowest and highest value of every bin that has some. Shapes: -> four of (N,)"""
        filled = np.flatnonzero(self.counts)
        middles = filled * self.width + (self.width - 1) / 2
        return middles, self.sums[filled] / self.counts[filled], self.lows[filled], self.highs[filled]


class Metrics:
    """metrics.csv, of which every look reads what is new; from the start when it is another file."""

    def __init__(self, path):
        self.path = path
        self.forget()

    def forget(self):
        """Begin from the start."""
        self.file, self.offset, self.names = None, 0, []
        self.series, self.latest, self.seconds = {}, {}, deque(maxlen=LATEST)
        self.speeds = deque(maxlen=LATEST)  # volumes per second
        self.total = 0.0  # seconds of all steps

    def look(self):
        """Read the rows that have come."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            stat = os.fstat(file.fileno())
            if self.file != stat.st_ino or stat.st_size < self.offset:
                self.forget()
                self.file = stat.st_ino
            file.seek(self.offset)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self.offset += len(text)
        rows = list(csv.reader(io.StringIO(text.decode(errors="replace").replace("\0", ""), newline="")))
        if not self.names and rows:
            self.names = rows.pop(0)
        self.take([row for row in rows if len(row) == len(self.names) and row[0].isdecimal()])

    def take(self, rows):
        """Count rows of the table."""
        if not rows:
            return
        steps = np.array([int(row[0]) for row in rows])
        for index, name in enumerate(self.names[1:], 1):
            values = np.array([number(row[index]) for row in rows])
            known = values[np.isfinite(values)]
            if len(known):
                self.series.setdefault(name, Series()).add(steps, values)
                self.latest[name] = float(known[-1])
                if name == "volumes_per_second":
                    self.speeds.extend(known[-LATEST:])
                if name == "seconds":
                    self.seconds.extend(known[-LATEST:])
                    self.total += float(known.sum())

    def speed(self):
        """Volumes per second in the latest steps, of equal numbers of volumes; None at first."""
        speeds = [one for one in self.speeds if one > 0]
        return len(speeds) / sum(1 / one for one in speeds) if speeds else None


def number(text):
    """The number in a text, or NaN."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def read_scores(path, last):
    """{metric: ([steps], [values])} of fid_scores.txt, up to a step."""
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        step, _, rest = line.partition(",")
        name, _, value = rest.rpartition(",")
        if step.isdecimal() and int(step) <= last and math.isfinite(number(value)):
            steps, values = found.setdefault(name, ([], []))
            steps.append(int(step))
            values.append(number(value))
    return found


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Drawings                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

WIDE, HIGH, LEFT, BELOW = 360, 150, 50, 18  # of a drawing: size, and room for its scales
RIGHT, TOP = 8, 8


def ticks(low, high):
    """Two to five round numbers between two others."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span))
    for part in (1, 0.5, 0.25, 0.2):
        first, last = math.ceil(low / (step * part)), math.floor(high / (step * part))
        if last - first >= 1:
            break
    between = math.ceil((last - first + 1) / 5)
    return [n * step * part for n in range(first, last + 1, between)]


@dataclass(frozen=True)
class Scale:
    """Height of a value in a drawing: along its logarithm if values differ by more than 30 times."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, values, level=None):
        """Scale of values but for a hundredth at each end."""
        low, high = np.quantile(values, (0.01, 0.99)).tolist()
        logarithmic = low > 0 and high > 30 * low
        if level is not None and not logarithmic:
            low, high = min(low, level), max(high, level)
        room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        return cls(low, high, True) if logarithmic else cls(low - room, high + room, False)

    def __call__(self, value):
        """From the top; what lies outside is at the edge."""
        value, low, high = np.clip(value, self.low, self.high), self.low, self.high
        if self.logarithmic:
            value, low, high = np.log10(value), np.log10(low), np.log10(high)
        return TOP + (HIGH - TOP - BELOW) * (1 - (value - low) / (high - low))

    def ticks(self):
        """Numbers that are written beside it."""
        if not self.logarithmic:
            return ticks(self.low, self.high)
        powers = [
            10.0**n for n in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        ]
        powers = powers[:: -(-len(powers) // 4) or 1]
        return powers if len(powers) > 1 else [self.low, self.high]


def curve(points, last, level=None, dots=False):
    """SVG of a number over the steps 0 to `last`.

    Args:
        points: Steps, values, and the lowest and highest ones around each, four arrays (N,).
        last: Step at the right end.
        level: Value that is marked.
        dots: Mark every value.
    """
    steps, values, lows, highs = np.asarray(points, dtype=float)
    scale = Scale.of(values, level)
    across = LEFT + (WIDE - LEFT - RIGHT) * steps / max(last, 1)
    parts = []
    for tick in scale.ticks():
        y = float(scale(tick))
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDE - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{three(tick)}</text>')
    if level is not None:
        parts.append(f'<path class="level" d="M{LEFT} {float(scale(level)):.1f}H{WIDE - RIGHT}"/>')
    if not dots:
        around = [*zip(across, scale(highs), strict=True), *zip(across[::-1], scale(lows)[::-1], strict=True)]
        parts.append(f'<path class="band" d="{path_of(around)}Z"/>')
    line = list(zip(across, scale(values), strict=True))
    parts.append(f'<path class="line" d="{path_of(line)}"/>')
    if dots or len(line) == 1:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in line]
    parts.append(f'<path class="at" d="M0 {TOP}V{HIGH - BELOW}"/>')
    for x, text, anchor in ((LEFT, 0, "start"), (WIDE - RIGHT, f"step {last:,}", "end")):
        parts.append(f'<text x="{x}" y="{HIGH - 4}" text-anchor="{anchor}">{text}</text>')
    return f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img">{"".join(parts)}</svg>'


def path_of(points):
    """Path through points (x, y) of an SVG."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
