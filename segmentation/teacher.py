"""Label maps for synthetic volumes: a network that was trained on real ones labels them, a gate judges them.

    python segmentation/teacher.py --data synthetic --model segmenter.pt --reference labels --output labelled

or edit the settings below and run it. In the new folder lie `labels` with the maps that can be trained on,
`withheld` with the others, gate.csv with what was measured of each and why it was withheld, gate.json with
the limits, and pictures of both kinds. What is common among real maps sets the limits: the volume of every
class (fences of Tukey, FENCE interquartile ranges outside the quartiles), the pieces that a class falls into,
and the classes that all real maps have. Inputs are never written to.
"""

import contextlib
import csv
import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

# Run as a script, segmentation.py beside this file would hide its package.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from volumetric.cli import UserError, check_device_name, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import find, find_volumes
from volumetric.files import new_folder, write_json
from volumetric.names import names_in
from volumetric.parallel import prepare_process
from volumetric.pictures import new_axes, save_figure
from volumetric.tables import write_records

import numpy as np
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from segmentation.cases import read_scan
from segmentation.labels import TABLES, read_labels, save_labels
from segmentation.metrics import components
from segmentation.report import coloured
from segmentation.segmentation import content_of_model, read_model

# Edit these, or pass them as flags; a flag wins.
# folder of synthetic volumes
data = "synthetic"
# network of segmentation.py, trained on real volumes
model = "segmenter.pt"
# folder of real label maps
reference = "labels"
# new folder
output = "labelled"

FENCE = 3.0  # interquartile ranges outside the quartiles
FEWEST = 5  # real label maps
SHOWN = 8  # maps of each kind in a picture
# Of gate.csv; the last tells that a row is whole, and what its label map is made of.
COLUMNS = ("case", "content", "kept", "confidence", "volume_ml", "pieces", "reasons", "origin")


@dataclass(kw_only=True)
class TeacherConfig:
    """Label synthetic volumes, and withhold maps that no real one looks like."""

    data: str = option(data, "Folder of synthetic volumes.")
    model: str = option(model, "Network of segmentation.py that labels them.", file=True)
    reference: str = option(reference, "Folder of real label maps, whose range is the limit.")
    output: str = option(output, "New folder for label maps and the gate's table.", folder=True)
    least_confidence: float = option(
        0.75, "Mean probability of the vessels' voxels from which a map is kept.", least=0, most=1
    )
    withhold: bool = option(True, "Withhold what the gate doubts; False only lists it in gate.csv.")
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)

    def __post_init__(self):
        check_fields(self)


@dataclass
class Limits:
    """What real label maps are like.

    Args:
        volume_ml: {class: (lowest, highest)}, and of "all".
        pieces: {class: most connected components}.
        always: Classes that every real map has.
        n: Number of real maps.
    """

    volume_ml: dict
    pieces: dict
    always: list
    n: int


def sizes_of(labels, spacing, names):
    """{class: (ml, pieces)} of a label map, and of "all"; (X, Y, Z), (3,) mm, {id: name}."""
    voxel_ml = float(np.prod(spacing)) / 1000
    masks = {names[n]: labels == n for n in map(int, np.unique(labels)) if n} | {"all": labels > 0}
    return {name: (float(mask.sum()) * voxel_ml, components(mask)) for name, mask in masks.items()}


def fences(values):
    """What is usual among values: Tukey's fences, or lowest and highest where these are further out."""
    low, high = np.percentile(values, (25, 75))
    reach = FENCE * (high - low)
    return float(min(np.min(values), low - reach)), float(max(np.max(values), high + reach))


def limits_of(maps, names):
    """Limits of some real label maps.

    Args:
        maps: [{class: (ml, pieces)}], as `sizes_of` gives them.
        names: Of the classes.
    """
    volume, pieces = {}, {}
    for name in (*names, "all"):
        found = [one[name] for one in maps if name in one]
        if not found:
            continue
        volume[name] = fences(np.array([ml for ml, _ in found]))
        pieces[name] = int(max(number for _, number in found))
    always = [name for name in names if all(name in one for one in maps)]
    return Limits(volume, pieces, always, len(maps))


def read_limits(paths, table):
    """Limits of real label maps; a UserError if they are too few."""
    names = TABLES[table]
    if len(paths) < FEWEST:
        raise UserError(f"--reference has {len(paths)} label maps, at least {FEWEST} are needed.")
    maps = [read_labels(path, table) for path in tqdm(paths, "Measuring real maps", leave=False)]
    found = [sizes_of(array, voxel_sizes(affine), names) for array, affine in maps]
    return limits_of(found, list(names.values()))


def reasons(found, confidence, limits, least):
    """Why a label map is withheld, sentences; none if it is kept.

    Args:
        found: {class: (ml, pieces)} of the map.
        confidence: Mean probability of its vessels' voxels, or None without vessels.
        limits: Limits.
        least: Confidence from which a map is kept.
    """
    if confidence is None:
        return ["no vessel"]
    told = [f"confidence {confidence:.2f} below {least:g}"] if confidence < least else []
    told += [f"no {name}, which all real maps have" for name in limits.always if name not in found]
    for name, (ml, pieces) in found.items():
        if name not in limits.volume_ml:
            told.append(f"{name}, which no real map has")
            continue
        low, high = limits.volume_ml[name]
        if not low <= ml <= high:
            told.append(f"{ml:.2f} ml of {name}, real maps {max(low, 0):.2f} to {high:.2f}")
        if pieces > limits.pieces[name]:
            told.append(f"{name} in {pieces} pieces, in real maps {limits.pieces[name]} at most")
    return told


def write_sheet(maps, path):
    """Picture of label maps from above, four in a row.

    Args:
        maps: [(name, labels (X, Y, Z), affine)].
    """
    columns = min(4, len(maps))
    figure, axes = new_axes(columns, -(-len(maps) // columns), width=2.6, height=2.8)
    for one in axes:
        one.set_axis_off()
    for one, (name, labels, affine) in zip(axes, maps, strict=False):
        one.imshow(coloured(labels, affine))
        one.set_title(name, fontsize=8)
    save_figure(figure, path)


def origin_of(config, about, limits):
    """Digest of all but the volume that makes a label map and its verdict: network, real maps, settings."""
    made_of = [content_of_model(about), asdict(limits), config.least_confidence, config.withhold]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def place_of(folder, row):
    """Path of the label map of a row of gate.csv."""
    kind = "labels" if str(row["kept"]) == "True" else "withheld"
    return folder / kind / f"{row['case']}.nii.gz"


def rows_there(folder, origin):
    """{(case, content of its volume): row of gate.csv} of the label maps of an origin that a folder has."""
    if not (folder / "gate.csv").exists():
        return {}
    with open(folder / "gate.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("origin") == origin]
    return {(row["case"], row["content"]): row for row in rows if place_of(folder, row).is_file()}


def label_and_check(scan, predictor, limits, config):
    """(label map along the file's axes, {column of gate.csv: what the gate says of it})."""
    labels, sure = predictor.label(scan)
    found = sizes_of(labels, scan.spacing, TABLES[predictor.classes.table])
    why = reasons(found if labels.any() else {}, sure["confidence"], limits, config.least_confidence)
    verdict = {"kept": not (why and config.withhold), "confidence": sure["confidence"]}
    verdict |= {"volume_ml": found["all"][0], "pieces": found["all"][1], "reasons": "; ".join(why)}
    return labels, verdict


def label_folder(config, folder=None, reference=None):
    """Label every volume of a folder and keep or withhold its map.

    Args:
        config: TeacherConfig.
        folder: Folder to go on in: the label maps stay that it has of the same volumes, network, real maps
            and settings, by content; all others go. None is a new one.
        reference: Paths of the real label maps; None is all of --reference.

    Returns:
        The folder.
    """
    predictor, about = read_model(config.model, config.device)
    if reference is None:
        reference = find_volumes(config.reference, "--reference")
    limits = read_limits(reference, about["table"])
    names, rows = names_in(config.data, find_volumes(config.data)), []
    origin = origin_of(config, about, limits)
    with contextlib.nullcontext(folder) if folder else new_folder(config.output) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        there = rows_there(folder, origin)
        write_gate(folder, there.values())
        for path, name in tqdm(names.items(), "Labelling", unit="volume"):
            scan = read_scan(path)
            known = name, scan.volume.content
            if known not in there:
                labels, verdict = label_and_check(scan, predictor, limits, config)
                row = {"case": name, "content": scan.volume.content, **verdict, "origin": origin}
                others = [one for one in there if one[0] == name]  # volumes that were called so:
                if others:  # their rows end before their maps
                    there = {one: there[one] for one in there if one not in others}
                    write_gate(folder, there.values())
                save_labels(labels, scan.affine, place_of(folder, row), about["table"])
                there[known] = row
                add_to_gate(folder, row)
            rows.append(there[known])
        keep_only(folder, [place_of(folder, row) for row in rows])
        write_gate(folder, rows)
        kept = sum(str(row["kept"]) == "True" for row in rows)
        record = {"limits": asdict(limits), "settings": asdict(config), "kept": kept}
        write_json(folder / "gate.json", record)
    tell(folder, rows, about["table"])
    return folder


def keep_only(folder, paths):
    """Remove the label maps of other volumes, or of another verdict, that a folder has from earlier."""
    for kind in ("labels", "withheld"):
        (folder / kind).mkdir(exist_ok=True)
        for path in set(find(folder / kind).paths) - set(paths):
            path.unlink()


def write_gate(folder, rows):
    """Write gate.csv."""
    write_records(folder / "gate.csv", rows, COLUMNS)


def add_to_gate(folder, row):
    """Add a row to gate.csv: what is noted is not made again if the labelling stops here."""
    with open(folder / "gate.csv", "a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([row[name] for name in COLUMNS])


def tell(folder, rows, table):
    """Write pictures of what was kept and of what was withheld, and print what the gate doubts."""
    for kind in ("labels", "withheld"):
        shown = [row for row in rows if place_of(folder, row).is_relative_to(folder / kind)][:SHOWN]
        if shown:
            maps = [(row["case"], *read_labels(place_of(folder, row), table)) for row in shown]
            write_sheet(maps, folder / f"{kind}.png")
    doubted = [row for row in rows if row["reasons"]]
    print(f"The gate doubts {len(doubted)} of {len(rows)} label maps; those to train on: {folder / 'labels'}")
    for row in doubted[:5]:
        print(f"Doubted: {row['case']} ({row['reasons']}).")
    if len(doubted) > 5:
        print(f"... and {len(doubted) - 5} more; gate.csv lists them.")


def main(argv=None):
    """The command line."""
    config = parse_cli(TeacherConfig, argv)
    with one_line_errors():
        prepare_process(config.device)
        label_folder(config)


if __name__ == "__main__":
    main()
