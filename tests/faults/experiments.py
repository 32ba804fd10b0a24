"""Experiments killed at chosen moments: what they come to is what they come to undisturbed.

Moments are a training step, a labelling, half a row of a table, and both sides of every file that takes its
place. In half of the rounds the experiment was finished before, and its synthetic volumes were replaced since
then: nothing of the former ones may be left in its numbers. A kill costs the labelling that it ends, or the
steps since the last checkpoint; what more is made again was lost.
"""

import contextlib
import json
import os
import random
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

from segmentation import experiment, experiment_page, segmentation, teacher
from tests.conftest import write_volume
from tests.faults.children import run
from tests.pairs import AFFINE, experiment_config, one_pair

STEPS, SAVED = 4, 2  # of a network, and between its checkpoints
MOST_KILLS = 3  # of one experiment
NUMBERS = ("cells", "differences", "exchange", "per_subject", "subjects", "contents", "made_of", "doubted")
TRAINING, LABELLING, ROW = "in a training", "in a labelling", "in half a row"
BEFORE, AFTER = "before a file takes its place", "after a file took its place"
# What is done at a moment, and the moments from which on it is safe; of files, how their names begin.
SAFE = {
    TRAINING: ((AFTER, "model_"), (AFTER, "segmenter.pt")),
    LABELLING: ((ROW, ""), (AFTER, "scores.json")),
}


class Moments:
    """Notes the moments of a process, and kills it at one.

    Args:
        log: File of their kinds, and of the files that they are about, a line each.
        last: Number of the moment at which the process ends; None lets it live.
    """

    def __init__(self, log, last=None):
        self.log, self.last, self.count = Path(log), last, 0

    def reach(self, kind, file=""):
        """A moment of a kind, about a file."""
        self.count += 1
        ends = self.count == self.last
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"{'killed ' if ends else ''}{kind}\t{file}\n")
        if ends:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, kind, do):
        """A function that has a moment before it does something."""

        def stand_in(*args, **more):
            self.reach(kind)
            return do(*args, **more)

        return stand_in

    def between(self, do):
        """os.replace between two moments."""

        def stand_in(part, path):
            self.reach(BEFORE, Path(path).name)
            do(part, path)
            self.reach(AFTER, Path(path).name)

        return stand_in

    def half(self, do):
        """teacher.add_to_gate, that writes half of a row when the process ends there."""

        def stand_in(folder, row):
            before = (folder / "gate.csv").stat().st_size
            do(folder, row)
            if self.count + 1 == self.last:
                os.truncate(folder / "gate.csv", (before + (folder / "gate.csv").stat().st_size) // 2)
            self.reach(ROW)

        return stand_in

    def run(self, config):
        """Run an experiment; its page has no curves, which take most of the time and are no file."""
        training, trained = experiment.ExperimentConfig.training, segmentation.Segmenter.train_step
        patches = (
            (os, "replace", self.between(os.replace)),
            (Path, "rename", self.before("before a folder is moved aside", Path.rename)),
            (Path, "unlink", self.before("before a file is removed", Path.unlink)),
            (segmentation.Segmenter, "train_step", self.before(TRAINING, trained)),
            (segmentation.Predictor, "label", self.before(LABELLING, segmentation.Predictor.label)),
            (teacher, "add_to_gate", self.half(teacher.add_to_gate)),
            (
                experiment.ExperimentConfig,
                "training",
                lambda *args, **more: replace(training(*args, **more), save_every=SAVED),
            ),
            (experiment_page, "drawing", lambda _: ""),
            (experiment_page, "curves", lambda _: None),
        )
        with contextlib.ExitStack() as stack:
            for owner, name, stand_in in patches:
                stack.enter_context(mock.patch.object(owner, name, stand_in))
            experiment.run_experiment(config)


def numbers_of(config):
    """What an experiment came to: its record, without what names places, and the table of its gate."""
    folder = Path(config.output)
    record = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    gate = (folder / "labelled" / "gate.csv").read_text(encoding="utf-8")
    return {name: record[name] for name in NUMBERS} | {"gate": gate}


def moments_in(log):
    """[(kind, file)] of a log."""
    return [tuple(line.split("\t")) for line in log.read_text(encoding="utf-8").splitlines()]


def unsafe_at_kills(moments):
    """{what is done: how much of it was not safe when a process was killed}, by what `moments_in` gives."""
    unsafe, since = Counter(), Counter()
    for kind, file in moments:
        if kind.startswith("killed"):
            unsafe.update(since)
            since.clear()
        if kind in SAFE:
            since[kind] += 1
        for what, ends in SAFE.items():
            if any(kind == end and file.startswith(begin) for end, begin in ends):
                since[what] = 0
    return unsafe


def undisturbed(config):
    """(numbers, [kind of every moment]) of an experiment that is let run; a fault ends all."""
    log = Path(f"{config.output}.moments")
    ended = run(lambda: Moments(log).run(config), f"{config.output}.log")
    assert ended.status == 0, ended.text
    return numbers_of(config), [kind for kind, _ in moments_in(log)]


def check(folder, number, seed):
    """Kill experiments until so many were killed. Returns ({outcome: count}, [what went wrong])."""
    import monai.inferers
    import monai.losses
    import monai.networks.nets
    import monai.transforms  # noqa: F401  once, for all processes that are forked

    folder, rng = Path(folder).resolve(), random.Random(seed)
    begun = experiment_config(
        folder,
        synthetic_labels=None,
        gate=False,
        synthetic_numbers=(2,),
        num_train_steps=STEPS,
        teacher_steps=STEPS,
    )
    for n in range(23, 26):
        for place in (begun.test, begun.test_labels):
            (Path(place) / f"case{n}.nii.gz").unlink()
    for n in range(10, 16):
        write_volume(folder / "others" / f"case{n}.nii.gz", one_pair(n)[0][:, ::-1], AFFINE)
    replaced = replace(begun, synthetic=str(folder / "others"), output=str(folder / "replaced"))
    truths, counts, faults, rounds = [], Counter({"lost": 0, "mixed": 0}), [], 0
    while sum(n for kind, n in counts.items() if kind.startswith("killed")) < number and not faults:
        if rounds == 0:
            truths.append((begun, *undisturbed(begun)))
        elif rounds == 1:
            shutil.copytree(begun.output, replaced.output)
            truths.append((replaced, *undisturbed(replaced)))
            if undisturbed(replace(replaced, output=str(folder / "anew")))[0] != truths[1][1]:
                faults.append("replaced volumes do not come to what they come to alone")
        config, *truth = truths[rounds % 2]
        config = replace(config, output=str(folder / f"round{rounds}"))
        if rounds % 2:
            shutil.copytree(begun.output, config.output)
        faults += one_round(config, *truth, rng, counts)
        rounds += 1
    return counts, [f"{fault} (seed {seed})" for fault in faults]


def one_round(config, numbers, moments, rng, counts):
    """Kill one experiment up to MOST_KILLS times, and let it end. Returns what went wrong."""
    log, kills, folder = Path(f"{config.output}.moments"), rng.randint(1, MOST_KILLS), Path(config.output)
    for left in range(kills, -1, -1):
        kind = rng.choice(sorted(set(moments)))
        place = rng.choice([n for n, one in enumerate(moments, start=1) if one == kind])
        moment = Moments(log, place if left else None)
        ended = run(lambda moment=moment: moment.run(config), f"{config.output}.log")
        if ended.status == 0:
            break
        if ended.status != -signal.SIGKILL:
            return [f"{folder.name}: {ended.text}"]
    passed = moments_in(log)
    there, unsafe = Counter(kind for kind, _ in passed), unsafe_at_kills(passed)
    killed = {kind: n for kind, n in there.items() if kind.startswith("killed")}
    counts.update(killed)
    again, problems = {kind: there[kind] - moments.count(kind) for kind in SAFE}, []
    counts.update({"steps again": again[TRAINING], "labellings again": again[LABELLING]})
    if any(again[kind] > unsafe[kind] for kind in SAFE):
        counts["lost"] += 1
        problems.append(f"{folder.name}: made again after {killed}: {again}, unsafe were {dict(unsafe)}")
    if numbers_of(config) != numbers:
        counts["mixed"] += 1
        problems.append(f"{folder.name}: other numbers than undisturbed, after {killed}")
    if parts := [path.name for path in folder.rglob(".part-*")]:
        problems.append(f"{folder.name}: {parts} are left")
    counts["ends equal"] += not problems
    shutil.rmtree(folder)
    return problems
