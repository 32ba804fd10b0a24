"""A visual Turing test: a page on which readers tell real from synthetic volumes, and what their answers say.

    python trust/turing.py --mode build --real volumes --generated synthetic --output reading
    python trust/turing.py --mode score --results answers --key reading/key.json --output scores

or edit the settings below and run it. `build` makes one page that works offline (turing.html, to be sent to
readers) and its key (key.json, to be kept: the page does not hold it). What would tell the volumes apart
without looking is taken away (greys.py; all of it by `--match True`), and whether it is gone is checked on
the grey values of up to CHECKED volumes of each kind; the page is not built otherwise, nor where they are too
few to tell. Key and page say what was done. `score` reads the files that readers saved. Volumes are shown by
NiiVue (volumetric/niivue/LICENSE). Inputs are never written to.
"""

import base64
import gzip
import json
import string
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import contents_of, known_by_content, refuse_overlap, same_geometry, volumes_in
from volumetric.files import atomic_path, new_folder, write_json
from volumetric.pages import niivue
from volumetric.parallel import host_random
from volumetric.sidecars import trained_on

import nibabel as nib
import numpy as np

from trust.greys import FEW, LEVELS, REMEDY, check, levelled, matched, stored_as
from trust.reading import read_answers, summarise, told_of_training, write_scores

# Edit these, or pass them as flags; a flag wins.
# build or score
mode = "build"
# folder of real volumes
real = "volumes"
# folder of generated volumes
generated = "synthetic"
# new folder
output = "reading"

MODES = {"build": "the page and its key", "score": "what readers answered"}
CHECKED = 50  # volumes of each kind that the grey values are checked on, those shown among them
HERE = Path(__file__).resolve().parent


@dataclass(kw_only=True)
class TuringConfig:
    """Build a page for a visual Turing test, or score what readers answered on it."""

    mode: str = option(mode, "What to do.", choices=MODES)
    real: str = option(real, "Folder of real volumes.")
    generated: str = option(generated, "Folder of generated volumes of the same shape.")
    split: str | None = option(
        None, "Table of preprocessing/split.py: --real is its parts `held_out` and `test`.", file=True
    )
    output: str = option(output, "New folder.", folder=True)
    num_items: int = option(50, "Volumes shown, half of each kind.", least=10, most=1000)
    repeats: int = option(5, "Of them, how many come twice.", least=0, most=100)
    match: bool = option(
        False, "Give all volumes the same grey values, whatever their type, rounding and clipping."
    )
    results: str | None = option(None, "Folder of the files that readers saved.")
    key: str | None = option(None, "key.json of the page.", file=True)
    seed: int = option(0, "Seed of choice and order.", least=0)

    def __post_init__(self):
        check_fields(self)
        if self.mode == "score" and (self.results is None or self.key is None):
            raise UserError("--mode score needs --results DIR and --key FILE.")
        if self.num_items % 2:
            raise UserError(f"--num_items must be even, half of each kind, got {self.num_items}.")
        if self.repeats > self.num_items:
            raise UserError(f"--repeats {self.repeats} are more than --num_items {self.num_items}.")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ What the page shows                                                                                      ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def treated(volumes, is_real, config):
    """Volumes as the page shows them, what was done to them, and what their grey values still tell.

    Args:
        volumes: [VolumeFile].
        is_real: For each.
        config: TuringConfig.

    Returns:
        ([(X, Y, Z) uint8], {"match", "told": in words, "stored": {kind: means of `stored_as`}}, of `check`).
    """
    arrays = [volume.read() for volume in volumes]
    if config.match:
        levels, done = matched(arrays, config.seed)
        ends = [f"{done[end]:.0%} {end}" for end in ("black", "white") if done[end] > FEW]
        ends = f", {' and '.join(ends)} among them" if ends else ""
        told = (
            f"Every volume was rounded to {done['grey_values']} grey values and has as many voxels of each "
            f"as every other{ends}; voxels of one value were put in order by their neighbours."
        )
    else:
        levels, done = levelled(arrays), {}
        told = "All volumes were brought to one histogram; voxels of one value kept one value."
    stored = {}
    for name, real in (("real", True), ("generated", False)):
        rows = [stored_as(array) for array, r in zip(arrays, is_real, strict=True) if r == real]
        stored[name] = {part: float(np.mean([row[part] for row in rows])) for part in rows[0]}
    about = {"match": config.match, "told": told, **done, "stored": stored}
    remedy = REMEDY if config.match else f"{REMEDY}, or take it away by --match True"
    return levels, about, check(levels, is_real, config.seed, remedy)


def as_base64(array, spacing):
    """A volume as compressed NIfTI whose header says nothing but its voxels' size."""
    image = nib.Nifti1Image(array, np.diag([*spacing, 1]))
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = 0, LEVELS - 1
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()


def record_of_items(items, generated):
    """What is shown, for the record.

    Args:
        items: [(kind, VolumeFile)].
        generated: Folder of the generated volumes.

    Returns:
        {"contents": {kind: [content]}, "trained_on": number of the real volumes that the generator was
        trained on, None if that is not known}.
    """
    kinds = {name: [volume for kind, volume in items if kind == name] for name in ("real", "generated")}
    contents, known = contents_of(kinds), trained_on(generated)
    return {
        "contents": contents,
        "trained_on": sum(content in known for content in contents["real"]) if known else None,
    }


def choose_items(sets, half, rng):
    """([(kind, VolumeFile)] that are shown, half of each kind, the same of others that are checked too)."""
    items, others = [], []
    for kind, volumes in sets.items():
        chosen = [volumes[n] for n in rng.permutation(len(volumes))[: max(half, CHECKED)].tolist()]
        items += [(kind, volume) for volume in sorted(chosen[:half], key=lambda volume: volume.path)]
        others += [(kind, volume) for volume in chosen[half:]]
    return items, others


def write_reading(record, shown, folder):
    """turing.html and key.json.

    Args:
        record: What key.json holds.
        shown: [(name, base64 of NIfTI)], in the readers' order.
        folder: New folder.
    """
    template = string.Template((HERE / "turing.html").read_text(encoding="utf-8"))
    parts = {"niivue": niivue(), "page": json.dumps(record["page"]), "items": json.dumps(shown)}
    with atomic_path(folder / "turing.html") as part:
        part.write_text(template.substitute(parts, treatment=record["treatment"]["told"]), encoding="utf-8")
    write_json(folder / "key.json", record)


def build(config):
    """Write turing.html and key.json; returns the new folder."""
    half = config.num_items // 2
    sets = {
        "real": volumes_in(config.real, "--real", half, config.split, ("held_out", "test")),
        "generated": volumes_in(config.generated, "--generated", half),
    }
    same_geometry(sets)
    refuse_overlap(known_by_content(sets["real"]), sets["generated"], "--real", "--generated")
    rng = host_random(config.seed)
    items, others = choose_items(sets, half, rng)
    checked = [*items, *others]
    levels, treatment, found = treated(
        [volume for _, volume in checked], [kind == "real" for kind, _ in checked], config
    )
    names = [rng.bytes(6).hex() for _ in items]
    first = rng.permutation(len(items)).tolist()
    order = first + rng.permutation(first[: len(first) // 2 or 1])[: config.repeats].tolist()
    key = {name: {"kind": kind, "file": str(v.path)} for name, (kind, v) in zip(names, items, strict=True)}
    record = {"page": rng.bytes(8).hex(), "items": key, "order": [names[n] for n in order]}
    record |= {"check": found, "treatment": treatment, **record_of_items(items, config.generated)}
    spacing = sets["real"][0].spacing.round(4)
    with new_folder(config.output) as folder:
        write_reading(record, [(names[n], as_base64(levels[n], spacing)) for n in order], folder)
    twice = len(order) - len(items)
    print(f"{folder / 'turing.html'} shows {half} real and {half} generated volumes, {twice} of them twice.")
    print(f"{told_of_training(record['trained_on'], half)}.")
    print(treatment["told"])
    told = "Grey values of {} real and {} generated volumes do not tell them apart".format(*found["volumes"])
    print(f"{told}: AUC {found['auc']:.2f}, p {found['p']:.2g}.")
    print(f"Keep {folder / 'key.json'} from the readers.")
    return folder


def score(config):
    """Read the answers and write turing.json and report.html; returns the new folder."""
    readers, key = read_answers(config.results, config.key)
    record = summarise(readers, key, config.seed)
    with new_folder(config.output) as folder:
        write_scores(record, folder)
    pooled = record["pooled"]
    low, high = pooled["accuracy_95"]
    print(f"{len(readers)} readers: accuracy {pooled['accuracy']:.2f} [{low:.2f}, {high:.2f}].")
    print(f"{folder / 'report.html'} shows more.")
    return folder


def main(argv=None):
    """The command line."""
    config = parse_cli(TuringConfig, argv)
    with one_line_errors():
        (build if config.mode == "build" else score)(config)


if __name__ == "__main__":
    main()
