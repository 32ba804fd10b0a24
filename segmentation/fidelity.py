"""Does a generated volume show what its label map says? Dice of a segmenter, and distances to real volumes.

    python segmentation/fidelity.py --generated made --labels made_labels --model segmenter.pt
    python segmentation/fidelity.py --generated made --labels made_labels --real volumes --real_labels labels

or edit the settings below and run it. Volumes and label maps are those that label_to_volume.py writes, or any
others of the same names. A segmenter that never saw generated volumes labels them; its Dice against the maps
that they were drawn for is compared with its Dice on real volumes of the same maps. With --real, PSNR, RMSE
and SSIM (Wang et al. 2004, doi:10.1109/TIP.2003.819861, in 3D) to the real volume of the map: all volumes in
[0, 1] by their own minimum and maximum, data range 1. Inputs are never written to.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

# Run as a script, segmentation.py beside this file would hide its package.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from volumetric.cli import UserError, check_device_name, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import find_volumes, pair_up, read, refuse_other_grid, scaled
from volumetric.files import array_to_volume, atomic_path, by, naming, new_folder, write_json
from volumetric.geometry import same_spacing
from volumetric.names import names_in
from volumetric.parallel import prepare_process
from volumetric.tables import write_records

import numpy as np
import torch
from tqdm import tqdm

from segmentation.labels import TABLES, read_labels

# Edit these, or pass them as flags; a flag wins.
# folder of generated volumes
generated = "made"
# folder of the label maps that they were drawn for, of the same names
labels = "made_labels"
# new folder for the scores
output = "fidelity"

SSIM_WINDOW = 7  # voxels, at most; smaller where a volume is


@dataclass(kw_only=True)
class FidelityConfig:
    """Score generated volumes against the label maps, and the real volumes, that they were drawn for."""

    generated: str = option(generated, "Folder of generated volumes.")
    labels: str = option(labels, "Folder of their label maps, files of the same names.")
    model: str | None = option(None, "Trained network of segmentation.py; None leaves Dice out.", file=True)
    real: str | None = option(None, "Folder of the real volumes of the same label maps.")
    real_labels: str | None = option(None, "Folder of the label maps of the real volumes.")
    output: str = option(output, "New folder for the scores.", folder=True)
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)

    def __post_init__(self):
        check_fields(self)
        if self.model is None and self.real is None:
            raise UserError("There is nothing to score against: give --model, --real, or both.")
        if self.model is not None and (self.real is None) != (self.real_labels is None):
            raise UserError("--real and --real_labels go together: the Dice of real volumes needs both.")


def source_of(name):
    """Name of the label map that a volume was drawn for: before _seed and a number."""
    stem, _, seed = name.rpartition("_seed")
    return stem if stem and seed.isdigit() else name


def dice_scores(found, truth):
    """Dice of all labels as one, and the mean over the labels of either. Shapes: two of (X, Y, Z) ids"""

    def dice(one, other):
        return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))

    ids = sorted(({int(n) for n in np.unique(found)} | {int(n) for n in np.unique(truth)}) - {0})
    return {
        "dice": dice(found > 0, truth > 0),
        "class_dice": float(np.mean([dice(found == n, truth == n) for n in ids])) if ids else None,
    }


def dice_of_folder(config, folders, only=None):
    """{case: scores} of what a segmenter finds in volumes, against label maps; {flag: folder} of both."""
    from segmentation.segmentation import label_volumes, read_model

    predictor, state = read_model(config.model, config.device)
    pairs = pair_up(folders, only)
    for paths in tqdm(pairs.values(), "Checking", leave=False):
        ids, table = set(np.unique(read_pair(paths)[1]).tolist()) - {0}, predictor.classes.table
        if ids.isdisjoint(predictor.classes.ids):
            raise UserError(
                f"{paths[1]} has no label that {config.model} knows: give a network of its table."
            )
        if any(ids <= known.keys() for known in TABLES.values()):
            read_labels(paths[1], table)  # the network's table, where 2 may be another artery than there
    names = {volume: name for name, (volume, _) in pairs.items()}
    scores = {}
    for path, scan, found, _ in label_volumes(predictor, names):
        truth, _ = read_labels(pairs[names[path]][1], None)
        found = scan.as_read(found)
        known = np.isin(truth, [0, *predictor.classes.ids])
        scores[names[path]] = dice_scores(np.where(known, found, 0), np.where(known, truth, 0))
    return scores, state


def read_pair(paths):
    """(Volume, ids (X, Y, Z)) of a volume and its label map; a UserError for other grids or an empty map."""
    with naming(paths[0]):
        volume = read(paths[0])
    ids, affine = read_labels(paths[1], None)
    refuse_other_grid((ids.shape, affine, paths[1]), (volume.array.shape, volume.affine, paths[0]))
    if not ids.any():
        raise UserError(f"{paths[1]} is empty, expected labels of {paths[0]}: remove the pair.")
    return volume, ids


def refuse_unlike(one, other):
    """Raise a UserError unless volumes, each (path, Volume), have as many voxels of one size."""
    shapes = [volume.array.shape for _, volume in (one, other)]
    sizes = [volume.spacing for _, volume in (one, other)]
    if shapes[0] != shapes[1] or not same_spacing(*sizes):
        raise UserError(
            f"{one[0]} has {by(shapes[0])} voxels of {by(sizes[0].round(3))} mm, {other[0]} has "
            f"{by(shapes[1])} of {by(sizes[1].round(3))}: they are compared voxel by voxel, resample one."
        )


def paired_scores(volume, real):
    """PSNR (dB), RMSE and SSIM of two volumes in [0, 1], data range 1. Shapes: two of (1, Z, X, Y)"""
    from monai.metrics import SSIMMetric

    error = float(np.sqrt(np.square(volume - real).mean()))
    window = min(SSIM_WINDOW, *volume.shape[1:])
    window -= 1 - window % 2  # odd
    ssim = SSIMMetric(spatial_dims=3, data_range=1.0, win_size=window)
    value = ssim(*(torch.from_numpy(v)[None] for v in (volume, real)))
    psnr = -20 * np.log10(error) if error else np.inf
    return {"psnr": float(psnr), "rmse": error, "ssim": float(value.mean())}


def diversity(volumes, inside):
    """Standard deviation over the seeds of one label map, mean over its labels and over the rest.

    Shapes: [(1, Z, X, Y)], (1, Z, X, Y) bool -> {"labels", "background"}
    """
    deviation = np.stack(volumes).std(axis=0)
    return {"labels": float(deviation[inside].mean()), "background": float(deviation[~inside].mean())}


def score(config):
    """Scores of every generated volume, and their means; written to a new folder.

    Returns:
        (record, folder).

    Raises:
        UserError: Files have no partners or cannot be used; nothing has been written.
    """
    made = {"generated": config.generated, "labels": config.labels}
    pairs = pair_up(made)
    cases = {name: {"map": source_of(name)} for name in pairs}
    sources = {case["map"] for case in cases.values()}
    real = {}
    if config.real is not None:
        real = names_in(config.real, find_volumes(config.real, "--real"), "--real")
        real = {name: path for path, name in real.items()}
        missing = sorted(sources - real.keys())
        if missing:
            raise UserError(f"--real {config.real} has no volume {missing[0]}, for which one was generated.")
    groups = {}
    for name, paths in tqdm(pairs.items(), "Comparing", leave=False):
        volume, ids = read_pair(paths)
        group = groups.setdefault(source_of(name), [])
        group.append((paths[0], volume, ids))
        refuse_unlike((paths[0], volume), group[0][:2])
        if real:
            with naming(real[source_of(name)]):
                partner = read(real[source_of(name)])
            refuse_unlike((real[source_of(name)], partner), (paths[0], volume))
            cases[name] |= paired_scores(scaled(volume.array), scaled(partner.array))
    record = {"generated": len(cases), "maps": len(sources), "data_range": 1.0}
    if config.model is not None:
        scores, state = dice_of_folder(config, made)
        for name, one in scores.items():
            cases[name] |= one
        record["segmenter"] = {"file": config.model, "patch": list(state["patch"])}
        if real:
            of_real = {"real": config.real, "real_labels": config.real_labels}
            on_real, _ = dice_of_folder(config, of_real, sources)
            record["real"] = means(on_real.values())
    spreads = []
    for group in (group for group in groups.values() if len(group) > 1):
        inside = array_to_volume(group[0][2] > 0)
        spreads.append(diversity([scaled(volume.array) for _, volume, _ in group], inside))
    record |= {"means": means(cases.values()), "diversity": means(spreads) if spreads else None}
    return record, write_scores(config, record, cases)


def means(rows):
    """Mean of every number of some rows, those that are there. [{name: number}] -> {name: number}"""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name, v in row.items() if isinstance(v, float))
    return {name: float(np.mean([row[name] for row in rows if row.get(name) is not None])) for name in names}


def write_scores(config, record, cases):
    """fidelity.json, fidelity.csv and summary.md; returns the new folder."""
    lines = [f"# {record['generated']} volumes of {record['maps']} label maps", ""]
    lines += ["| | generated | real |", "|---|---|---|"]
    titles = {"dice": "Dice, all labels as one", "class_dice": "Dice, mean over labels", "psnr": "PSNR, dB"}
    titles |= {"rmse": "RMSE", "ssim": "SSIM"}
    for name, title in titles.items():
        if name in record["means"]:
            there = record.get("real", {}).get(name)
            lines.append(
                f"| {title} | {record['means'][name]:.3f} | {'' if there is None else f'{there:.3f}'} |"
            )
    if record["diversity"]:
        spread = record["diversity"]
        lines += ["", f"Standard deviation over seeds: {spread['labels']:.3f} in the labels, "]
        lines[-1] += f"{spread['background']:.3f} elsewhere; grey values are in [0, 1]."
    with new_folder(config.output) as folder:
        write_json(folder / "fidelity.json", record | {"cases": cases})
        write_records(folder / "fidelity.csv", [{"case": name, **case} for name, case in cases.items()])
        with atomic_path(folder / "summary.md") as part:
            part.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines), f"Scores are in {folder}", sep="\n")
    return folder


def main(argv=None):
    """The command line."""
    config = parse_cli(FidelityConfig, argv)
    with one_line_errors():
        prepare_process(config.device)
        score(config)


if __name__ == "__main__":
    main()
