"""A page that shows the volumes of a folder: planes, rendering, projections and facts, without a network.

    python CoW_generator.py --view generated/normal

One file, view.html, holds the volumes and NiiVue (niivue/LICENSE), which shows them; view.html beside this
file is its text. Grey values are stored in LEVELS levels between a volume's smallest and largest: off by at
most half a level, whole numbers of no larger range not at all. What does not fit on the page is named on it.
Volumes are never written to. Sections:

    a volume          its voxels and its facts, as the page has them
    a report          of trust/replicas.py: how near each volume is to the training volumes
    the page
"""

import base64
import gzip
import html
import json
import math
import string
from dataclasses import dataclass, field
from pathlib import Path

from volumetric.cli import UserError
from volumetric.collection import find, read
from volumetric.files import SYNTHETIC, atomic_path, by, naming, read_header, read_json
from volumetric.names import name_of
from volumetric.pages import niivue

import nibabel as nib
import numpy as np

PAGE = "view.html"
MARK = '<meta name="generator" content="CoW_generator --view">'  # what a page is known by as ours
MARKED_WITHIN = 1000  # bytes at its start
LEVELS = 4096
MOST_VOLUMES = 100
MOST_BYTES = 60 * 10**6  # of the page
OF_TEXT, OF_FACTS = 50_000, 2_000  # bytes kept free for what is left out, and for the facts of a volume
MOST_VOXELS = 2**25  # of a volume
MOST_PICTURE = 4 * 10**6  # bytes of the contact sheet
MOST_NAMED = 50  # files left out, of which the page says why
MOST_LETTERS = 200  # of a fact
BRIGHT = 99.9  # percentile of the grey values that is white at first
SHEETS = {"contact_sheet.png": "png", "contact_sheet.jpg": "jpeg"}
REPORT = "replicas.json"
# What the page says of a sidecar: the first of a label's places that it has.
FACTS = (
    ("Mode", "mode"),
    ("Seed", "seed"),
    ("Seeds", "seeds"),
    ("Accepted by", "accepted_by"),
    ("From seed to seed, in z", "recipe.style.slerp"),
    ("From seed to seed, in w", "recipe.style.lerp"),
    ("Coarse and fine seed", "recipe.style.mix"),
    ("Place on the way", "recipe.style.t"),
    ("Place on the way", "t"),
    ("Noise", "recipe.noise.variation"),
    ("Class", "recipe.style.labels"),
    ("Class", "labels"),
    ("Class", "label"),
    ("Truncation psi", "truncation_psi"),
    ("Truncation psi", "trunc_psi"),
    ("Checkpoint", "checkpoint.path"),
    ("Its SHA-256", "checkpoint.sha256"),
    ("Its step", "checkpoint.step"),
    ("Networks", "checkpoint.networks"),
    ("Precision", "precision"),
)
DIGITS = 12  # of a digest


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ A volume                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Shown:
    """A volume as the page has it.

    Args:
        name: Its path below the folder.
        data: NIfTI, compressed, in base64.
        content: What it is known by.
        synthetic: Its sidecar or its header says that it was generated.
        facts: [(label, text)] of its geometry and its sidecar.
    """

    name: str
    data: str
    content: str
    synthetic: bool
    facts: list


def levels_of(array):
    """A volume in LEVELS levels, and what they stand for: value = slope * level + intercept.

    Shapes: (X, Y, Z) float32 -> (X, Y, Z) int16, slope, intercept
    """
    low, high = float(array.min()), float(array.max())
    whole = high - low < LEVELS and bool((array == np.rint(array)).all())
    slope = 1.0 if whole else max((high - low) / (LEVELS - 1), float(np.finfo(np.float32).tiny))
    levels = np.rint((array.astype(np.float64) - low) / slope)
    return np.clip(levels, 0, LEVELS - 1).astype(np.int16), slope, low


def as_base64(volume):
    """A Volume as compressed NIfTI along R, A, S, whose header says its place, window and scale alone."""
    levels, slope, intercept = levels_of(volume.array)
    image = nib.Nifti1Image(levels, volume.affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, intercept)
    white = float(np.percentile(levels, BRIGHT)) or float(levels.max())
    image.header["cal_min"], image.header["cal_max"] = intercept, intercept + slope * max(white, 1)
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()


def show(path, folder):
    """The Shown of a file below a folder; a UserError that says why there is none."""
    voxels = math.prod(map(int, read_header(path).get_data_shape()))
    if voxels > MOST_VOXELS:
        raise UserError(f"has {voxels} voxels, a page can hold {MOST_VOXELS} of a volume")
    volume = read(path, constant=True)
    sidecar = path.with_name(f"{name_of(path)}.json")
    record, facts = {}, geometry_facts(volume)
    if sidecar.is_file():
        try:
            record = read_json(sidecar)
        except UserError:
            facts.append(("Sidecar", f"{sidecar.name} cannot be read"))
    generated = record.get("synthetic") is True
    if generated:
        facts = sidecar_facts(record) + facts
    elif record:
        facts.append(("Sidecar", f"{sidecar.name} is of another program"))
    synthetic = generated or volume.described.startswith(SYNTHETIC)
    name = path.relative_to(folder).as_posix()
    return Shown(name, as_base64(volume), volume.content, synthetic, facts)


def geometry_facts(volume):
    """[(label, text)] of what a Volume's file says of its voxels."""
    low, high = float(volume.array.min()), float(volume.array.max())
    return [
        ("Voxels", by(volume.array.shape)),
        ("Voxel size", f"{by(volume.spacing.round(3))} mm"),
        ("Stored along", volume.axes),
        ("Grey values", f"{low:.4g} to {high:.4g}"),
    ]


def sidecar_facts(record):
    """[(label, text)] of a sidecar: of paths the file's name, of digests the first digits."""
    facts = {}
    for label, place in FACTS:
        value = record
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None or value == [] or label in facts:
            continue
        text = ", ".join(map(told, value)) if isinstance(value, list) else told(value)
        if place.endswith(".path"):
            text = text.replace("\\", "/").rpartition("/")[2]
        elif place.endswith(".sha256"):
            text = f"{text[:DIGITS]}..."
        facts[label] = text[:MOST_LETTERS]
    return list(facts.items())


def told(value):
    """A number or a word of a sidecar as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ A report of replicas                                                                                     ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def report_of(folder, contents, given=None):
    """The report of trust/replicas.py on some volumes, or {} where none lies in, above or beside the folder.

    Args:
        folder: Folder of the volumes.
        contents: What they are known by.
        given: Path of the report.

    Raises:
        UserError: The given one is none, or looked at none of the volumes.
    """
    folder = Path(folder).resolve()
    beside = [place / name for place in (folder, folder.parent) for name in (REPORT, f"replicas/{REPORT}")]
    for path in [Path(given)] if given else filter(Path.is_file, beside):
        try:
            record = read_json(path)
            if searched(record) & contents:
                return record
            reason = "looked at none of the volumes"
        except UserError as error:
            reason = str(error)
        if given:
            reason = reason.removeprefix(f"{path} ")
            raise UserError(f"--replicas {path} {reason}: give the {REPORT} of trust/replicas.py on them.")
    return {}


def searched(record):
    """Contents of the generated volumes that a report of replicas looked at; a UserError if it is none."""
    contents = record.get("contents")
    found = contents.get("generated") if isinstance(contents, dict) else None
    lists = (found, record.get("flagged"))
    if not all(isinstance(rows, list) for rows in lists) or not isinstance(record.get("verdict"), str):
        raise UserError("is no report of replicas")
    return set(map(str, found))


def nearest_facts(content, record):
    """[(label, text)] of how near a volume is to the nearest training volume, which is not named."""
    if not record:
        return []
    label, rows = "Nearest training volume", record.get("nearest")
    if content not in searched(record):
        return [(label, f"the report of replicas ({record['verdict']}) did not look at this volume")]
    flagged = {row.get("content"): row for row in record["flagged"] if isinstance(row, dict)}
    row = flagged.get(content) or (rows.get(content) if isinstance(rows, dict) else None)
    similarity = row.get("similarity") if isinstance(row, dict) else None
    judged = "flagged as too similar" if content in flagged else "not flagged"
    if isinstance(similarity, int | float):
        p, statistic = row.get("p"), told(row.get("statistic"))
        sure = f", p {p:.2g}" if isinstance(p, int | float) else ""
        distance = f"distance {1 - similarity:.3f} (1 - similarity by {statistic}{sure})"
    else:
        distance = "its distance is not in the report"
    return [(label, distance), ("Replica search", f"{judged}; the folder {record['verdict']}")]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The page                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass
class Gathered:
    """What of a folder is on the page.

    Args:
        shown: [Shown].
        left_out: {name: why} of the others.
        number: Of all volumes of the folder.
    """

    shown: list = field(default_factory=list)
    left_out: dict = field(default_factory=dict)
    number: int = 0

    def sentence(self):
        """What the page shows, and how much it leaves out."""
        word = "volume" if self.number == 1 else "volumes"
        text = f"{len(self.shown)} of {self.number} {word}"
        return f"{text}; {len(self.left_out)} left out" if self.left_out else text


def gather(folder, room):
    """Gathered of the volumes below a folder, in order, as many as fit.

    Args:
        folder: The folder.
        room: Bytes that the page has for them.

    Raises:
        UserError: There is none that can be shown.
    """
    found = find(folder, "--view")
    for line in found.notes():
        print(line)
    paths, full = found.paths, ""
    gathered = Gathered(number=len(paths) + len(found.lost))
    gathered.left_out = {path.relative_to(folder).as_posix(): why for path, why in found.lost.items()}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if not full and len(gathered.shown) == MOST_VOLUMES:
            full = f"the page is full: it holds at most {MOST_VOLUMES} volumes"
        if full:
            gathered.left_out[name] = full
            continue
        try:
            shown = show(path, folder)
        except UserError as error:
            gathered.left_out[name] = str(error)
            continue
        if len(shown.data) + OF_FACTS > room:
            full = f"the page is full: it holds at most {MOST_BYTES // 10**6} MB"
            gathered.left_out[name] = full
            continue
        room -= len(shown.data) + OF_FACTS
        gathered.shown.append(shown)
    if not gathered.shown:
        refuse_empty(folder, gathered)
    return gathered


def refuse_empty(folder, gathered):
    """Raise a UserError for a folder of which nothing can be shown."""
    if not gathered.left_out:
        raise UserError(f"--view {folder} holds no .nii or .nii.gz file: give the folder of the volumes.")
    name, why = next(iter(gathered.left_out.items()))
    more = len(gathered.left_out) - 1
    others = f" ({more} more cannot be shown either)" if more else ""
    raise UserError(f"--view {folder} has nothing to show: {name} {why}{others}.")


def refuse_foreign(path):
    """Raise a UserError if there is something at a path that is no page of ours."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_file():
        with open(path, "rb") as file:
            if MARK.encode() in file.read(MARKED_WITHIN):
                return
    raise UserError(f"{path} is there, and --view did not write it: rename it or move it away.")


def in_script(value):
    """JSON that can stand inside a script element."""
    return json.dumps(value).replace("<", "\\u003c")


def sheet_of(folder):
    """The contact sheet of a folder as an HTML picture; "" if there is none."""
    for name, kind in SHEETS.items():
        path = Path(folder) / name
        if path.is_file() and path.stat().st_size <= MOST_PICTURE:
            data = base64.b64encode(path.read_bytes()).decode()
            return f'<p><img alt="contact sheet" src="data:image/{kind};base64,{data}"></p>'
    return ""


def left_out_html(left_out):
    """What is not on the page, and why, as HTML; "" if nothing is."""
    if not left_out:
        return ""
    rows = [f"<li>{html.escape(f'{name}: {why}')}</li>" for name, why in left_out.items()]
    if len(rows) > MOST_NAMED:
        rows = [*rows[:MOST_NAMED], f"<li>and {len(rows) - MOST_NAMED} more</li>"]
    number = "1 volume is" if len(left_out) == 1 else f"{len(left_out)} volumes are"
    return f"<details><summary>{number} not on this page</summary><ul>{''.join(rows)}</ul></details>"


def write_view(folder, replicas=None):
    """Write view.html into a folder of volumes, in the place of an earlier one.

    Args:
        folder: The folder.
        replicas: Path of the report of trust/replicas.py on it; None looks in the folder and above.

    Returns:
        Path of the page.

    Raises:
        UserError: There is nothing to show, another file of that name is there, or the report is another's.
    """
    folder = Path(folder)
    path = folder / PAGE
    template = string.Template(Path(__file__).with_name(PAGE).read_text(encoding="utf-8"))
    parts = {"niivue": niivue(), "sheet": sheet_of(folder), "mark": MARK}
    refuse_foreign(path)
    room = MOST_BYTES - OF_TEXT - sum(map(len, parts.values())) - len(template.template)
    gathered = gather(folder, room)
    with naming(folder):
        report = report_of(folder, {shown.content for shown in gathered.shown}, replicas)
    items = [
        {
            "name": shown.name,
            "data": shown.data,
            "synthetic": shown.synthetic,
            "facts": nearest_facts(shown.content, report) + shown.facts,
        }
        for shown in gathered.shown
    ]
    parts |= {"title": html.escape(folder.resolve().name), "told": html.escape(gathered.sentence())}
    parts |= {
        "left_out": left_out_html(gathered.left_out),
        "off": str(2 * (LEVELS - 1)),
        "levels": str(LEVELS),
    }
    with atomic_path(path) as part:
        part.write_text(template.substitute(parts, items=in_script(items)), encoding="utf-8")
    for name, why in list(gathered.left_out.items())[:MOST_NAMED]:
        print(f"left out: {name}: {why}")
    print(f"{path} shows {gathered.sentence()} ({path.stat().st_size / 1e6:.1f} MB). Open it in a browser.")
    return path
