"""Trainings and generations killed at random moments: what they come to is what they come to undisturbed."""

import os
import random
import signal
import time
from pathlib import Path

import CoW_generator
import stylegan2_pytorch as sg
from tests.faults.children import run, start, wait
from tests.faults.jobs import difference, finished, table, training, whole
from volumetric.files import file_digest

STEPS = 8
OPTIONS = ["--save_every", "2", "--keep_checkpoints", "3", "--recipe", "robust"]


def interrupted(function, log, signals, seconds):
    """Ended of function() in a process that gets some signals after some seconds, if it is there then."""
    child = start(function, log)
    time.sleep(seconds)
    for number in signals:
        try:
            os.kill(child.number, number)
        except ProcessLookupError:
            break
    return wait(child)


def check(folder, number, seed):
    """Kill a training until it has been killed so often. Returns ({outcome: count}, [what went wrong])."""
    folder, rng = Path(folder).resolve(), random.Random(seed)
    began = time.monotonic()
    truth = finished(folder, "truth", STEPS, *OPTIONS)
    usual = time.monotonic() - began
    counts, faults, rounds = {"killed": 0, "terminated": 0, "ends equal": 0}, [], 0
    while counts["killed"] + counts["terminated"] < number and not faults:
        name = f"round{rounds}"
        rounds += 1
        faults += one_round(folder, name, truth, usual, rng, counts)
    faults += [
        f"{fault} (seed {seed})" for fault in kill_generation(folder, truth, rng, counts, max(1, number // 8))
    ]
    return counts, faults


def one_round(folder, name, truth, usual, rng, counts):
    """Kill one training until it comes to its end. Returns what went wrong."""
    flags = training(folder, name, STEPS, *OPTIONS)
    while True:
        signals = rng.choice(([signal.SIGKILL], [signal.SIGKILL], [signal.SIGTERM], [signal.SIGINT]))
        ended = interrupted(lambda: sg.main(flags), folder / "log", signals, rng.uniform(0.1, 1.1) * usual)
        if ended.raised and signals != [signal.SIGINT]:
            return [f"{name}: traceback\n{ended.text}"]
        if not whole(folder / "models" / name):
            return [f"{name}: a checkpoint is not whole"]
        there = (folder / "models" / name).glob("model_*.pt")
        if ended.status == 0 and any(p.name == f"model_{STEPS // 2}.pt" for p in there):
            break
        counts["killed" if signals == [signal.SIGKILL] else "terminated"] += 1
    unequal = difference(truth, folder / "models" / name)
    if unequal:
        return [f"{name}: {unequal} differs from an undisturbed run's"]
    if table(folder, name) != table(folder, "truth"):
        return [f"{name}: metrics.csv differs from an undisturbed run's"]
    pictures = [
        sorted(p.name for p in (folder / "results" / n / "previews").iterdir()) for n in (name, "truth")
    ]
    if pictures[0] != pictures[1]:
        return [f"{name}: previews {pictures[0]}, undisturbed {pictures[1]}"]
    counts["ends equal"] += 1
    return []


def kill_generation(folder, models, rng, counts, number):
    """Kill a generation so often, and let it end. Returns what went wrong."""

    def flags(name):
        given = ["--checkpoint", models / f"model_{STEPS // 2}.pt", "--save_directory", folder / name]
        return list(map(str, [*given, "--num_generate", 24, "--batch_size", 1, "--device", "cpu"]))

    began = time.monotonic()
    ended = run(lambda: CoW_generator.main(flags("made")), folder / "log")
    usual = time.monotonic() - began
    if ended.status:
        return [f"generation: {ended.text}"]
    for _ in range(number):
        seconds = rng.uniform(0.1, 0.9) * usual
        interrupted(lambda: CoW_generator.main(flags("killed")), folder / "log", [signal.SIGKILL], seconds)
        counts["generations killed"] = counts.get("generations killed", 0) + 1
    ended = run(lambda: CoW_generator.main(flags("killed")), folder / "log")
    there, wanted = (
        {
            p.relative_to(folder / n): file_digest(p)
            for p in (folder / n).rglob("*")
            if p.suffix in (".gz", ".npy")
        }
        for n in ("killed", "made")
    )
    hidden = [p.name for p in (folder / "killed").rglob(".part-*")]
    right = ended.status == 0 and {str(k): v for k, v in there.items()} == {
        str(k): v for k, v in wanted.items()
    }
    return (
        [] if right and not hidden else [f"generation: not as undisturbed, {len(hidden)} parts\n{ended.text}"]
    )
