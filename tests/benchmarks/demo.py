"""The README's table of what `make demo` gives, from the two evaluations that the demo ends with.

    python tests/benchmarks/demo.py --shipped demo/evaluation-shipped --trained demo/evaluation-demo-600
    python tests/benchmarks/demo.py --keep True

Numbers are means over 20 draws of equal numbers of volumes, beside those of two halves of the phantoms.
--keep puts them into demo.json beside this file, which a test compares the README with.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import check_fields, one_line_errors, option, parse_cli
from volumetric.files import atomic_path, read_json

KEPT = Path(__file__).with_suffix(".json")
COLUMNS = {"recall": "recall-random", "coverage": "coverage-random", "MS-SSIM": "MS-SSIM-generated"}
TITLES = {"trained": "`make demo`'s own model", "shipped": "the model that comes along"}


@dataclass(kw_only=True)
class DemoConfig:
    """Print the table of a demo."""

    shipped: str = option("demo/evaluation-shipped", "Evaluation of the model that comes along.")
    trained: str = option("demo/evaluation-demo-600", "Evaluation of the trained one.")
    keep: bool = option(False, "Keep the numbers, for the README.")

    def __post_init__(self):
        check_fields(self)


def newest(folder):
    """Of an evaluation's folder and its repetitions, folder-1, folder-2, ..., that which was written last."""
    folder = Path(folder)
    again = [p for p in folder.parent.glob(f"{folder.name}-*") if p.name[len(folder.name) + 1 :].isdigit()]
    return max([p for p in (folder, *again) if p.exists()] or [folder], key=lambda p: p.stat().st_mtime)


def numbers_of(folder):
    """{column: [of generated volumes, of phantoms]} and the number of volumes, of one evaluation."""
    metrics = read_json(newest(folder) / "metrics.json")["metrics"]
    found = {name: metrics[key]["equal_n"] for name, key in COLUMNS.items()}
    pairs = {name: [round(equal["mean"], 2), round(equal["floor_mean"], 2)] for name, equal in found.items()}
    return pairs | {"n": found["recall"]["n"]}


def table_of(numbers):
    """Markdown of {trained or shipped: of `numbers_of`}."""
    lines = [f"| by random networks; in brackets phantoms | {' | '.join(COLUMNS)} |", "|---" * 4 + "|"]
    for kind, found in numbers.items():
        cells = [f"{found[name][0]:.2f} ({found[name][1]:.2f})" for name in COLUMNS]
        lines.append(f"| {TITLES[kind]}, n = {found['n']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv=None):
    """The command line."""
    config = parse_cli(DemoConfig, argv)
    with one_line_errors():
        numbers = {kind: numbers_of(getattr(config, kind)) for kind in TITLES}
        print(table_of(numbers))
        if config.keep:
            with atomic_path(KEPT) as part:
                part.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
