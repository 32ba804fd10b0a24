"""Can it be told from synthetic volumes who was in the training set? A membership test with a control.

    python trust/membership.py --training volumes --held_out unseen --generated synthetic --output membership

or edit the settings below and run it. A real volume's score is its largest similarity to a generated one less
its mean similarity to its NEAREST neighbours among other real volumes. As many training as held-out volumes
are compared by the area under the ROC curve. What random halves of the training set give is the control,
without which a difference could be pure split bias; copies that are planted among the generated volumes show
whether the test would see a leak. With --checkpoint, how well the generator can be made to reproduce volumes
of both kinds is a second statistic. membership.json and report.html hold the result. Inputs are never written
to.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats
from tqdm import tqdm

from trust.controls import KINDS
from trust.pages import write_membership
from trust.rates import auc_delong, normal_interval, true_positive_rate
from trust.sets import check_held_out, read_sets
from trust.similarity import Library, print_of
from trust.workers import LIBRARY, prepare, spread_out
from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import contents_of
from volumetric.files import __version__, atomic_path, finite, next_free, read_json

# Edit these, or pass them as flags; a flag wins.
# folder of the volumes that the generator was trained on
training = "volumes"
# folder of real volumes of other subjects, prepared alike; None: what --split holds out of `training`
held_out = None
# folder of generated volumes
generated = "synthetic"
# new folder
output = "membership"

FEWEST = 10
NEAREST = 5  # other real volumes
CONTROLS = 20  # random halves of the training set
PLANTED = 0.05  # share of the members of which copies are planted
MANY_HELD_OUT = 300  # from which a false-positive rate of 1 % can be measured
RESAMPLES = 1000
GENERATOR = Path(__file__).resolve().parent.parent / "CoW_generator.py"


@dataclass(kw_only=True)
class MembershipConfig:
    """Test whether training volumes are more similar to generated ones than unseen real volumes are."""

    training: str = option(training, "Folder of the volumes that the generator was trained on.")
    held_out: str | None = option(
        held_out, "Folder of real volumes of other subjects, prepared alike; None: by --split."
    )
    generated: str = option(generated, "Folder of generated volumes.")
    split: str | None = option(
        None, "Table of preprocessing/split.py, whose parts `training` and `held_out` are taken.", file=True
    )
    output: str = option(output, "New folder for membership.json and report.html.", folder=True)
    checkpoint: str | None = option(
        None, "Generator: also compare how well it can be made to reproduce both kinds.", file=True
    )
    inversions: int = option(20, "Volumes of each kind that it is made to reproduce.", least=4, most=1000)
    inversion_steps: int = option(300, "Steps of each.")
    workers: int | None = option(None, "Processes; None is one for each core.", least=1, most=256)
    seed: int = option(0, "Seed of everything random.", least=0)

    def __post_init__(self):
        check_fields(self)
        check_held_out(self)


def closest(volume):
    """Largest similarity, by anatomy, of a Volume to those of the worker's Library."""
    return LIBRARY[0].search(prepare(volume))["anatomy"][0]


def crowd(task):
    """Mean similarity of a volume to its nearest others in the worker's Library, without itself."""
    volume, own = task
    found = LIBRARY[0].compare(prepare(volume), without=(own,))
    return float(np.mean(sorted(values["anatomy"] for values in found.values())[-NEAREST:]))


def closest_copy(volume):
    """Similarity of a Volume to a slightly noisy copy of itself."""
    array = volume.read()
    copy = KINDS["noise 5 %"](array, array, np.random.default_rng(int(volume.content[:8], 16)))
    return Library([print_of(copy)], volume.shape).search(print_of(array))["anatomy"][0]


def scores_of(sets, workers, seed):
    """(scores of all training volumes, of all held-out ones, those of the former if each had a copy).

    Args:
        sets: {"training", "held_out", "generated": [Volume]}.
    """
    shape = sets["generated"][0].shape
    made = Library(spread_out(prepare, sets["generated"], "Generated volumes", workers), shape)
    real = [*sets["training"], *sets["held_out"]]
    near = np.array(spread_out(closest, real, "Real volumes to generated", workers, made))
    others = Library(spread_out(prepare, real, "Real volumes", workers), shape)
    tasks = [(volume, place) for place, volume in enumerate(real)]
    among = np.array(spread_out(crowd, tasks, "Real volumes to real", workers, others))
    number = len(sets["training"])
    planted = np.array(spread_out(closest_copy, sets["training"], "Planted copies", workers))
    scores = near - among
    return scores[:number], scores[number:], np.maximum(near[:number], planted) - among[:number]


def summarise(members, unseen, with_copies, seed):
    """All numbers of the test.

    Args:
        members: Scores of the training volumes, (|T|,).
        unseen: Of the held-out ones, (|H|,).
        with_copies: Of the training volumes, if each had a copy among the generated, (|T|,).
        seed: Of the draws.
    """
    rng, each = np.random.default_rng(seed), min(len(members), len(unseen))
    chosen = rng.permutation(len(members))[:each]
    one, other = members[chosen], unseen[rng.permutation(len(unseen))[:each]]
    auc, error = auc_delong(one, other)
    draws = [
        auc_delong(one[rng.integers(each, size=each)], other[rng.integers(each, size=each)])[0]
        for _ in range(RESAMPLES)
    ]
    half = min(each, len(members) // 2)
    control = []
    for _ in range(CONTROLS):
        order = rng.permutation(len(members))
        control.append(auc_delong(members[order[:half]], members[order[half : 2 * half]])[0])
    control_mean = float(np.mean(control))
    differences = np.array(draws) - rng.choice(control, len(draws))
    number = max(1, round(PLANTED * each))
    copied = one.copy()
    copied[:number] = with_copies[chosen[:number]]
    most_false = 0.01 if each >= MANY_HELD_OUT else 0.1
    low_high = np.percentile(differences, (2.5, 97.5)).tolist()
    return {
        "auc": auc,
        "auc_delong_95": normal_interval(auc, error),
        "auc_bootstrap_95": np.percentile(draws, (2.5, 97.5)).tolist(),
        "control_auc": control_mean,
        "control_95": np.percentile(control, (2.5, 97.5)).tolist(),
        "auc_minus_control_95": low_high,
        "leak": bool(low_high[0] > 0),
        "mann_whitney_p": float(stats.mannwhitneyu(one, other).pvalue),
        "most_false": most_false,
        "true_positive_rate": true_positive_rate(one, other, most_false),
        "power": {"share": number / each, "auc": auc_delong(copied, other)[0]},
        "n": {"each": each},
    }


def inversion_error(volume, config):
    """Mean absolute difference of a Volume and what the generator makes at best, in shares of its range."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--mode", "projection", "--target", volume.path, "--checkpoint", config.checkpoint]
        flags += ["--projection_steps", config.inversion_steps, "--save_directory", folder]
        flags += ["--picture_format", "none", "--seed", config.seed]
        command = [sys.executable, GENERATOR, *flags]
        run = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8")
        if run.returncode:
            raise UserError(f"{volume.path} could not be reproduced: {run.stderr.strip().splitlines()[-1]}")
        (sidecar,) = Path(folder).glob("projection/*_projection.json")
        return float(read_json(sidecar)["recipe"]["position"]["l1"])


def compare_inversions(sets, config):
    """Can members be told by how well the generator reproduces them? {"auc", "auc_delong_95", ...}"""
    rng, errors = np.random.default_rng(config.seed), {}
    for name in ("training", "held_out"):
        volumes = sets[name]
        chosen = [volumes[n] for n in rng.permutation(len(volumes))[: config.inversions]]
        shown = tqdm(chosen, f"Reproducing {name} volumes", unit="volume")
        errors[name] = np.array([inversion_error(volume, config) for volume in shown])
    auc, error = auc_delong(-errors["training"], -errors["held_out"])
    found = {"auc": auc, "auc_delong_95": normal_interval(auc, error), "n": len(errors["training"])}
    return found | {f"mean_{name}": float(values.mean()) for name, values in errors.items()}


def run_test(config):
    """Compare, and write what was found; returns (record of membership.json, the new folder)."""
    sets, left = read_sets(config, dict.fromkeys(("training", "held_out", "generated"), FEWEST))
    workers = config.workers or len(os.sched_getaffinity(0))
    members, unseen, with_copies = scores_of(sets, workers, config.seed)
    record = summarise(members, unseen, with_copies, config.seed)
    record["n"] |= {name: len(volumes) for name, volumes in sets.items()} | {"left_of_training": left}
    record["inversion"] = None if config.checkpoint is None else compare_inversions(sets, config)
    record |= {"contents": contents_of(sets), "settings": asdict(config), "version": __version__}
    folder = next_free(Path(config.output))
    folder.mkdir(parents=True)
    with atomic_path(folder / "membership.json") as part:
        part.write_text(json.dumps(finite(record), indent=1, allow_nan=False), encoding="utf-8")
    write_membership(record, {"training": members, "held_out": unseen}, folder)
    return record, folder


def main(argv=None):
    """The command line."""
    config = parse_cli(MembershipConfig, argv)
    with one_line_errors():
        record, folder = run_test(config)
        verdict = "Members can be told" if record["leak"] else "No leak is seen"
        print(f"{verdict}: AUC {record['auc']:.3f}, control {record['control_auc']:.3f}.")
        print(f"{folder / 'report.html'} shows more.")


if __name__ == "__main__":
    main()
