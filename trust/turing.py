"""A visual Turing test: a page on which readers tell real from synthetic volumes, and what their answers say.

    python trust/turing.py --mode build --real volumes --generated synthetic --output reading
    python trust/turing.py --mode score --results answers --key reading/key.json --output scores

or edit the settings below and run it. `build` makes one page that works offline (turing.html, to be sent to
readers) and its key (key.json, to be kept: the page does not hold it). What would tell the volumes apart
without looking is taken away, and whether it is gone is checked by a classifier on the grey values; the page
is not built otherwise. `score` reads the files that readers saved. Volumes are shown by NiiVue
(niivue/LICENSE). Inputs are never written to.
"""

import base64
import gzip
import json
import string
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from trust.reading import read_answers, summarise, told_of_training, write_scores
from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import contents_of, known_by_content, refuse_overlap, same_geometry, volumes_in
from volumetric.files import atomic_path, next_free
from volumetric.parallel import host_random
from volumetric.sidecars import trained_on

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
LEVELS = 256  # grey values of every volume that is shown
QUANTILES = 33  # of the grey values, that the check looks at
LEAK_P = 0.01  # of the check
SHUFFLES = 100  # of the check
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


def levelled(arrays):
    """Volumes with one histogram, the median of all theirs: ranks stay, grey values tell nothing.

    Equal voxels of a volume stay equal, so that rounding which differs is not hidden but found by `check`.

    Shapes: n of (X, Y, Z) -> n of (X, Y, Z) uint8
    """
    common = np.median([np.sort(array, axis=None) for array in arrays], axis=0)
    common = np.rint((LEVELS - 1) * (common - common[0]) / (common[-1] - common[0]))
    levels = []
    for array in arrays:
        _, place, count = np.unique(array, return_inverse=True, return_counts=True)
        middle = np.cumsum(count) - (count + 1) // 2
        levels.append(common[middle][place.reshape(array.shape)].astype(np.uint8))
    return levels


def looks_of(array):
    """What a reader must not tell volumes apart by: grey values. Shapes: (X, Y, Z) uint8 -> (features,)"""
    flat = array.ravel().astype(float)
    same = [(np.diff(array.astype(int), axis=axis) == 0).mean() for axis in range(3)]
    edge = np.concatenate([array.take(n, axis).ravel() for axis in range(3) for n in (0, -1)])
    found = [len(np.unique(array)), (array == array.min()).mean(), (array == array.max()).mean()]
    found += [flat.mean(), flat.std(), min(same), (edge == array.min()).mean()]
    return np.array([*found, *np.quantile(flat, np.linspace(0, 1, QUANTILES))])


def check(levels, is_real, seed):
    """How well grey values alone tell the kinds apart: {"auc", "p"}.

    A logistic regression on `looks_of`, cross-validated; p by shuffling the kinds.

    Raises:
        UserError: They do.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, permutation_test_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.stack([looks_of(array) for array in levels])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    settings = {"scoring": "roc_auc", "cv": folds, "n_permutations": SHUFFLES, "random_state": seed}
    auc, _, p = permutation_test_score(model, features, is_real, **settings)
    if p < LEAK_P:
        kinds = np.array(is_real)
        gap = np.abs(features[kinds].mean(0) - features[~kinds].mean(0)) / (features.std(0) + 1e-9)
        names = ["numbers of grey values", "shares of black", "shares of white", "means", "contrasts"]
        names += ["flat regions", "borders", *(QUANTILES * ["histograms"])]
        raise UserError(
            f"Grey values alone tell real from generated volumes (AUC {auc:.2f}, p {p:.3f}): they differ in "
            f"their {names[int(gap.argmax())]}. Store both alike (type, rounding, scaling, cropping) first."
        )
    return {"auc": float(auc), "p": float(p)}


def as_base64(array, spacing):
    """A volume as compressed NIfTI whose header says nothing but its voxels' size."""
    image = nib.Nifti1Image(array, np.diag([*spacing, 1]))
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = 0, LEVELS - 1
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()


def shown_of(items, generated):
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
    items = [
        (kind, volumes[n])
        for kind, volumes in sets.items()
        for n in sorted(rng.permutation(len(volumes))[:half].tolist())
    ]
    levels = levelled([volume.read() for _, volume in items])
    found = check(levels, [kind == "real" for kind, _ in items], config.seed)
    names = [rng.bytes(6).hex() for _ in items]
    first = rng.permutation(len(items)).tolist()
    order = first + rng.permutation(first[: len(first) // 2 or 1])[: config.repeats].tolist()
    page = rng.bytes(8).hex()
    spacing = sets["real"][0].spacing.round(4)
    shown = [(names[n], as_base64(levels[n], spacing)) for n in order]
    folder = next_free(Path(config.output))
    folder.mkdir(parents=True)
    template = string.Template((HERE / "turing.html").read_text(encoding="utf-8"))
    script = (HERE / "niivue" / "niivue.umd.js").read_text(encoding="utf-8").replace("</script", "<\\/script")
    with atomic_path(folder / "turing.html") as part:
        text = template.substitute(niivue=script, page=json.dumps(page), items=json.dumps(shown))
        part.write_text(text, encoding="utf-8")
    key = {name: {"kind": kind, "file": str(v.path)} for name, (kind, v) in zip(names, items, strict=True)}
    record = {"page": page, "items": key, "order": [names[n] for n in order], "check": found}
    record |= shown_of(items, config.generated)
    with atomic_path(folder / "key.json") as part:
        part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    twice = len(order) - len(items)
    print(f"{folder / 'turing.html'} shows {half} real and {half} generated volumes, {twice} of them twice.")
    print(f"{told_of_training(record['trained_on'], half)}.")
    print(f"Grey values alone do not tell them apart: AUC {found['auc']:.2f}, p {found['p']:.2f}.")
    print(f"Keep {folder / 'key.json'} from the readers.")
    return folder


def score(config):
    """Read the answers and write turing.json and report.html; returns the new folder."""
    readers, key = read_answers(config.results, config.key)
    record = summarise(readers, key, config.seed)
    folder = next_free(Path(config.output))
    folder.mkdir(parents=True)
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
