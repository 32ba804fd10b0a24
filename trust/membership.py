"""Can it be told from synthetic volumes who was in the training set? A membership test that knows its power.

    python trust/membership.py --training volumes --held_out unseen --generated synthetic --output membership

or edit the settings below and run it. A real volume's score is its largest similarity to a generated one less
its mean similarity to its NEAREST neighbours among other real volumes. As many training as held-out volumes
are compared by two one-sided tests, at 5 % together: the area under the ROC curve against the mean of what
random halves of the training volumes give, and the true-positive rate at a low false-positive rate
(arXiv:2112.03570), which sees a few copies among many. On every run copies are planted, to see whether the
same tests would flag them: if they flag nothing, and would not have flagged these, the verdict is
inconclusive. With --checkpoint, how well the generator can be made to reproduce volumes of both kinds is
shown too. membership.json and report.html hold the result; the exit status is 0 (passed), 1 (failed) or 2
(inconclusive). Inputs are never written to.
"""

import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from volumetric import __version__
from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import contents_of
from volumetric.files import new_folder, read_json, write_json
from volumetric.machine import usable_cores
from volumetric.rates import wilson
from volumetric.sidecars import models_of

import numpy as np
from scipy import stats
from tqdm import tqdm

from trust import EXIT
from trust.controls import KINDS
from trust.pages import told_of_power, write_membership
from trust.rates import (
    allowed_of,
    auc_delong,
    normal_interval,
    spread_of_auc,
    tail_p,
    true_positive_rate,
)
from trust.sets import check_held_out, read_sets
from trust.similarity import Library, print_of
from trust.workers import LIBRARY, prepare, spread_out

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
LEVEL = 0.05  # one-sided, of both tests together
CONTROLS = 100  # random halves of the training volumes
WEIGHT = (
    0.6  # share of the level that the true-positive rate has: five of 50 or 100 above all others are found
)
MOST_FALSE = 0.005  # share of the held-out volumes above the threshold of the true-positive rate
RUNS = 300  # with planted copies
LEAST_POWER = 0.8  # share of them that must be flagged
SHARES = (0.05, 0.1, 0.2)  # of the members, of which copies are planted beside --planted
SPLIT_P = 0.01  # below which training and held-out volumes differ without any generated one
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
    planted: float = option(
        0.05, "Share of members whose copies the test must be able to see.", least=0.001, most=1
    )
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


@dataclass
class Scores:
    """What is known of real volumes, each an array over them.

    Args:
        score: Largest similarity to a generated volume, less that to other real ones.
        with_copy: The same if there were a copy of it among the generated volumes.
        among: Similarity to other real ones.
    """

    score: np.ndarray
    with_copy: np.ndarray
    among: np.ndarray


def scores_of(sets, workers, seed):
    """Scores of training and of held-out volumes, as many of each.

    Args:
        sets: {"training", "held_out", "generated": [Volume]}.
        workers: Processes.
        seed: Of the choice of the larger set.

    Returns:
        {"training", "held_out": Scores}.
    """
    rng, shape = np.random.default_rng(seed), sets["generated"][0].shape
    known, number = [*sets["training"], *sets["held_out"]], len(sets["training"])
    each = min(number, len(known) - number)
    members = rng.permutation(number)[:each].tolist()
    places = members + (number + rng.permutation(len(known) - number)[:each]).tolist()
    real = [known[place] for place in places]
    made = Library(spread_out(prepare, sets["generated"], "Generated volumes", workers), shape)
    near = np.array(spread_out(closest, real, "Real volumes to generated", workers, made))
    others = Library(spread_out(prepare, known, "Real volumes", workers), shape)
    tasks = list(zip(real, places, strict=True))
    among = np.array(spread_out(crowd, tasks, "Real volumes to real", workers, others))
    planted = np.array(spread_out(closest_copy, real, "Planted copies", workers))
    arrays = (near - among, np.maximum(near, planted) - among, among)
    return {"training": Scores(*(a[:each] for a in arrays)), "held_out": Scores(*(a[each:] for a in arrays))}


def halves_against_each_other(members, rng):
    """AUC of CONTROLS random halves of the members against the other half. Shapes: (n,) -> (CONTROLS,)"""
    half = len(members) // 2
    ranks = stats.rankdata(members[: 2 * half])
    picked = rng.random((CONTROLS, 2 * half)).argsort(axis=1)[:, :half]
    return (ranks[picked].sum(axis=1) - half * (half + 1) / 2) / half**2


def compare(members, unseen, rng):
    """The test: {"p", "p_auc", "p_tail", "auc", "control": AUCs (CONTROLS,), "spread"}.

    The AUC less the mean of its controls is about normal if members are like others, with a variance that the
    mean's is part of; the true-positive rate has an exact p. p is that of both (Bonferroni, weighted).

    Shapes: (n,), (m,)
    """
    n, m, half = len(members), len(unseen), len(members) // 2
    ranks = stats.rankdata(np.concatenate([members, unseen]))
    auc = (ranks[:n].sum() - n * (n + 1) / 2) / (n * m)
    control = halves_against_each_other(members, rng)
    spread = np.hypot(spread_of_auc(n, m), spread_of_auc(half, half) / CONTROLS**0.5)
    p_auc, p_tail = float(stats.norm.sf((auc - control.mean()) / spread)), tail_p(members, unseen, MOST_FALSE)
    p = min(1.0, p_auc / (1 - WEIGHT), p_tail / WEIGHT)
    return {"p": p, "p_auc": p_auc, "p_tail": p_tail, "auc": float(auc), "control": control, "spread": spread}


def power_of(members, unseen, share, rng):
    """Would copies of a share of the members be flagged?

    RUNS times, members and others are mixed, so that nothing else tells them apart; copies are planted of
    some of the half that is called members; and `compare` judges.

    Args:
        members, unseen: Scores.
        share: Of the members.
        rng: Of the draws.

    Returns:
        {"share", "copies": their number, "runs", "flagged": share of the runs, "interval_95": Wilson's,
        "auc": mean over the runs}.
    """
    score = np.concatenate([members.score, unseen.score])
    with_copy = np.concatenate([members.with_copy, unseen.with_copy])
    each, aucs, flagged = len(members.score), [], 0
    number = max(1, round(share * each))
    for _ in range(RUNS):
        order = rng.permutation(len(score))
        one = np.concatenate([with_copy[order[:number]], score[order[number:each]]])
        found = compare(one, score[order[each:]], rng)
        flagged += found["p"] <= LEVEL
        aucs.append(found["auc"])
    about = {"share": share, "copies": number, "runs": RUNS, "flagged": flagged / RUNS}
    return about | {"interval_95": wilson(flagged, RUNS), "auc": float(np.mean(aucs))}


def summarise(members, unseen, planted, seed):
    """All numbers of the test, its verdict and the reasons for it.

    Args:
        members, unseen: Scores of as many training as held-out volumes.
        planted: Share of the members whose copies must be seen.
        seed: Of the draws.
    """
    rng, each = np.random.default_rng(seed), len(members.score)
    found = compare(members.score, unseen.score, rng)
    control, spread = found.pop("control"), found.pop("spread")
    power = power_of(members, unseen, planted, rng) | {"needed": LEAST_POWER}
    power["of_other_shares"] = {
        f"{share:g}": power_of(members, unseen, share, rng)["flagged"] for share in SHARES if share != planted
    }
    split = {
        "auc": auc_delong(members.among, unseen.among)[0],
        "p": float(stats.mannwhitneyu(members.among, unseen.among).pvalue),
    }
    verdict, reasons = verdict_of(found["p"], power, split)
    return {
        "verdict": verdict,
        "reasons": reasons,
        **found,
        "level": LEVEL,
        "auc_delong_95": normal_interval(*auc_delong(members.score, unseen.score)),
        "control_auc": float(control.mean()),
        "control_95": np.percentile(control, (2.5, 97.5)).tolist(),
        "auc_minus_control_95": normal_interval(found["auc"] - float(control.mean()), float(spread)),
        "false_positives": allowed_of(each, MOST_FALSE),
        "true_positive_rate": true_positive_rate(members.score, unseen.score, MOST_FALSE),
        "power": power,
        "split": split,
        "n": {"each": each},
    }


def verdict_of(p, power, split):
    """(verdict, reasons): what was found, and what could not have been."""
    differ = f"training and held-out volumes differ without any generated one (p {split['p']:.2g})"
    doubts = [f"{differ}: they are no fair comparison"] if split["p"] < SPLIT_P else []
    if p <= LEVEL:
        return "failed", [f"members are told from others (p {p:.2g})", *doubts]
    if power["flagged"] < LEAST_POWER:
        doubts.append(f"{told_of_power(power)}, {LEAST_POWER:.0%} are needed")
    return "inconclusive" if doubts else "passed", doubts


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
    workers = config.workers or usable_cores()
    scores = scores_of(sets, workers, config.seed)
    record = summarise(scores["training"], scores["held_out"], config.planted, config.seed)
    record["n"] |= {name: len(volumes) for name, volumes in sets.items()} | {"left_of_training": left}
    record["inversion"] = None if config.checkpoint is None else compare_inversions(sets, config)
    record |= {"contents": contents_of(sets), "models": models_of(sets["generated"])}
    record |= {"settings": asdict(config), "version": __version__}
    with new_folder(config.output) as folder:
        write_json(folder / "membership.json", record)
        write_membership(record, {name: one.score for name, one in scores.items()}, folder)
    return record, folder


def main(argv=None):
    """The command line."""
    config = parse_cli(MembershipConfig, argv)
    with one_line_errors():
        record, folder = run_test(config)
        reasons = "; ".join(record["reasons"]) or "members are not told from others"
        print(f"{record['verdict'].capitalize()}: {reasons}.")
        print(f"AUC {record['auc']:.3f}, control {record['control_auc']:.3f}, p {record['p']:.2g}.")
        print(f"{folder / 'report.html'} shows more.")
    sys.exit(EXIT[record["verdict"]])


if __name__ == "__main__":
    main()
