"""Which arteries and variants are in generated volumes, by label maps of a network that knows phantoms.

    python segmentation/segmentation.py --mode predict --data unseen --model segmenter.pt --output unseen_maps
    python segmentation/segmentation.py --mode predict --data synthetic --model segmenter.pt --output maps
    python tests/benchmarks/variants.py --truth unseen_labels --phantoms unseen_maps --generated maps

The same network labels phantoms that it has not seen, whose label maps are known, and generated volumes. An
artery is there if it has at least half as many voxels as in the tenth of the phantoms that have the least of
it. How often that is right on the phantoms stands beside every number. Intervals are Wilson's, 95 %.

counts.json and counts.md are written into --output.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import find_volumes
from volumetric.files import atomic_path
from volumetric.rates import wilson

import nibabel as nib
import numpy as np

from segmentation.labels import BASE as ARTERIES

LEAST, QUANTILE = 0.5, 0.1  # of the voxels in the phantoms that have an artery


@dataclass(kw_only=True)
class VariantsConfig:
    """Count arteries and variants in label maps."""

    truth: str = option("unseen_labels", "Label maps of phantoms that the network has not seen.")
    phantoms: str = option("unseen_maps", "The network's maps of the same phantoms.")
    generated: str = option("maps", "The network's maps of generated volumes.")
    output: str = option("variants", "Folder for the counts.")

    def __post_init__(self):
        check_fields(self)


def voxels(paths):
    """Voxels of every artery in label maps. Shapes: -> (N, arteries)"""
    maps = (np.asarray(nib.load(path).dataobj) for path in paths)
    return np.array([[np.count_nonzero(ids == n) for n in ARTERIES] for ids in maps])


def variants(there):
    """{name: which volumes have it (N,)}: every artery, and how the ring is closed.

    Shapes: (N, arteries) bool
    """
    found = dict(zip(ARTERIES.values(), there.T, strict=True))
    right, left = found["R-Pcom"], found["L-Pcom"]
    found |= {"both Pcom": right & left, "right Pcom alone": right & ~left, "left Pcom alone": left & ~right}
    return found | {"no Pcom": ~right & ~left, "every artery": there.all(axis=1)}


def balanced(found, true):
    """Mean share of right answers where it is there and where it is not: 0.5 for one answer to everything."""
    return float(np.mean([(found == true)[true == value].mean() for value in np.unique(true)]))


def share(hits):
    """Share of volumes and its 95 % interval. Shapes: (N,) bool"""
    return {"share": float(hits.mean()), "interval_95": wilson(int(hits.sum()), len(hits))}


def compare(truth, phantoms, generated):
    """{name: {"balanced_accuracy", "truth", "phantoms", "generated"}} of numbers of voxels.

    Shapes: three of (N, arteries); the first two are of the same phantoms
    """
    there = truth > 0
    of_those = [
        count[has] if has.any() else np.zeros(1) for count, has in zip(phantoms.T, there.T, strict=True)
    ]
    least = LEAST * np.array([np.quantile(count, QUANTILE) for count in of_those])
    known, counted, made = variants(there), variants(phantoms > least), variants(generated > least)
    return {
        name: {
            "balanced_accuracy": balanced(counted[name], known[name]),
            **{"truth": share(known[name]), "phantoms": share(counted[name]), "generated": share(made[name])},
        }
        for name in known
    }


def write(table, folder):
    """counts.json, and counts.md as it is printed."""
    lines = [
        "| | phantoms, truth | phantoms, counted | balanced accuracy | generated, counted |",
        5 * "|---" + "|",
    ]
    for name, row in table.items():
        truth, phantoms, made = (row[kind] for kind in ("truth", "phantoms", "generated"))
        low, high = made["interval_95"]
        cells = [f"{truth['share']:.2f}", f"{phantoms['share']:.2f}", f"{row['balanced_accuracy']:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {made['share']:.2f} [{low:.2f}, {high:.2f}] |")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("counts.json", json.dumps(table, indent=1)), ("counts.md", "\n".join([*lines, ""]))):
        with atomic_path(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    print("\n".join(lines))


def main(argv=None):
    """The command line."""
    config = parse_cli(VariantsConfig, argv)
    with one_line_errors():
        names = ("truth", "phantoms", "generated")
        paths = {name: sorted(find_volumes(getattr(config, name), f"--{name}")) for name in names}
        known, labelled = ([path.name for path in paths[name]] for name in names[:2])
        if known != labelled:
            odd = min(set(known) ^ set(labelled))
            raise UserError(
                f"{odd} is in one of --truth and --phantoms alone: they must be of the same volumes."
            )
        write(compare(*(voxels(paths[name]) for name in names)), Path(config.output))


if __name__ == "__main__":
    main()
