"""Is what was asked for there? Ten variants by name, in label maps, in drawn volumes and in phantoms.

    python tests/benchmarks/anatomy.py --num 50 --output anatomy
    python tests/benchmarks/anatomy.py --checkpoint models/labels/model_14.pt --segmenter segmenter.pt

For each variant, circles by name as `label_to_volume.py --anatomy` draws them. In the map: the segments that
TopCoW's rule finds there are those of the graph. In the volume: the segmenter finds what was asked for, by
the rule of segmentation/asked.py. The same of the phantom's own volume of the same tree is what a perfect
generator would reach with this segmenter. Intervals are Wilson's, 95 %.

anatomy.json and anatomy.md are written into --output.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from volumetric.cli import check_fields, one_line_errors, option, parse_cli  # noqa: E402
from volumetric.files import array_to_volume, atomic_path, file_digest  # noqa: E402
from volumetric.rates import wilson  # noqa: E402

from label_to_volume import LabelModel  # noqa: E402
from sample_data import phantom  # noqa: E402
from sample_data.anatomy import read_request, shown  # noqa: E402
from segmentation import asked  # noqa: E402
from segmentation.labels import BASE  # noqa: E402

VARIANTS = {
    "complete": "complete",
    "absent L-Pcom": "complete, absent L-Pcom",
    "absent R-Pcom": "complete, absent R-Pcom",
    "absent both Pcom": "complete, absent L-Pcom, absent R-Pcom",
    "absent Acom": "complete, absent Acom",
    "fetal R-PCA": "complete, fetal R-PCA",
    "fetal L-PCA": "complete, fetal L-PCA",
    "absent R-P1 (fetal)": "complete, absent R-P1",
    "absent R-A1": "complete, absent R-A1",
    "absent L-A1": "complete, absent L-A1",
}


@dataclass(kw_only=True)
class AnatomyConfig:
    """Ask for ten variants, and count where they are there."""

    checkpoint: str = option(str(asked.MODEL), "Checkpoint of label_to_volume.py.", file=True)
    segmenter: str = option(str(asked.SEGMENTER), "Network of segmentation.py.", file=True)
    num: int = option(20, "Circles of each variant.")
    seed: int = option(9000, "Seed of the circles: one whose phantoms nothing was trained on.", least=0)
    at_once: int = option(4, "Volumes drawn at a time.")
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.")
    output: str = option("anatomy", "Folder for the counts.")

    def __post_init__(self):
        check_fields(self)


def drawn_volumes(model, circles, at_once):
    """Yield the volume of every Circle, (1, Z, X, Y); its number is the seed of z."""
    for start in range(0, len(circles), at_once):
        batch = circles[start : start + at_once]
        numbers = np.stack([array_to_volume(circle.numbers)[0] for circle in batch])
        yield from model.draw(numbers, len(model.table), [circle.number for circle in batch])


def count(model, checker, name, config):
    """Checks of a variant: {"drawn", "phantom": [Of asked.check], "seconds": of drawing and of checking}."""
    request = read_request(VARIANTS[name])
    shape, first = model.array_shape, list(VARIANTS).index(name) * config.num
    numbers = range(first, first + config.num)
    circles = [asked.Circle(request, config.seed, n, False, shape, model.classes) for n in numbers]
    start = time.perf_counter()
    volumes = list(drawn_volumes(model, circles, config.at_once))
    drawn = time.perf_counter()
    found = {"drawn": [checker.check(*pair) for pair in zip(circles, volumes, strict=True)]}
    found["seconds"] = {"pairs": drawn - start, "checks": time.perf_counter() - drawn}
    found["phantom"] = []
    for circle in circles:
        array = phantom.make_subject(config.seed, circle.number, shape, request=request)[0]
        found["phantom"].append(checker.check(circle, array_to_volume(array)))
    return found | {"named": [shown(key) for key in request.variants] or None}


def hits(checks, column, named=None):
    """[bool]: whether the named segments, or all of them, are as asked for, in the map or in the volume."""
    rows = [{n: row for n, row in one["segments"].items() if not named or n in named} for one in checks]
    return [all(row[column] for row in of.values()) for of in rows]


def share(found):
    """12 of 20 [0.39, 0.78]"""
    low, high = wilson(sum(found), len(found))
    return f"{sum(found)} of {len(found)} [{low:.2f}, {high:.2f}]"


def page(table):
    """Lines of anatomy.md, of {variant: what `count` gives}."""
    lines = ["| | map, all seven | volume, what is named | volume, all seven | phantom, named | all seven |"]
    lines.append(6 * "|---" + "|")
    for name, row in table.items():
        named, cells = row["named"], [hits(row["drawn"], "in_map")]
        for kind in ("drawn", "phantom"):
            cells += [hits(row[kind], "in_volume", named), hits(row[kind], "in_volume")]
        lines.append(f"| {name} | {' | '.join(map(share, cells))} |")
    lines += ["", "| Dice | " + " | ".join(BASE.values()) + " |", (1 + len(BASE)) * "|---" + "|"]
    for kind in ("drawn", "phantom"):
        dice = [one["dice"] for row in table.values() for one in row[kind]]
        means = [np.mean([one[name] for one in dice if name in one]) for name in BASE.values()]
        lines.append(f"| {kind} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    number = sum(len(row["drawn"]) for row in table.values())
    rates = {
        kind: number / sum(row["seconds"][kind] for row in table.values()) for kind in ("pairs", "checks")
    }
    return [
        *lines,
        "",
        f"{rates['pairs']:.2f} pairs and {rates['checks']:.2f} checks per second, {number} circles.",
    ]


def main(argv=None):
    """The command line."""
    config = parse_cli(AnatomyConfig, argv)
    with one_line_errors():
        model = LabelModel(config.checkpoint, config.device)
        asked.refuse_other_model(model)
        checker = asked.Checker(config.segmenter, config.device)
        table = {name: count(model, checker, name, config) for name in tqdm(VARIANTS)}
        folder, lines = Path(config.output), page(table)
        folder.mkdir(parents=True, exist_ok=True)
        made_of = {"model": file_digest(config.checkpoint), "segmenter": file_digest(config.segmenter)}
        record = {"made_of": made_of, "num": config.num, "seed": config.seed, "variants": table}
        for file, text in (
            ("anatomy.json", json.dumps(record, indent=1)),
            ("anatomy.md", "\n".join([*lines, ""])),
        ):
            with atomic_path(folder / file) as part:
                part.write_text(text, encoding="utf-8")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
