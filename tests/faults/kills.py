"""Trainings and generations killed at random moments: what they come to is what they come to undisturbed."""

import os
import random
import signal
import time
from pathlib import Path

from volumetric.files import file_digest

import numpy as np

import CoW_generator
import label_to_volume
import progressive_wgan
import stylegan2_pytorch as sg
from tests.conftest import write_volume
from tests.faults.children import run, start, wait
from tests.faults.jobs import difference, finished, table, training, whole

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
    for program, generate in generators(folder, truth).items():
        found = kill_generation(folder, program, generate, rng, counts, max(1, number // 20))
        faults += [f"{fault} (seed {seed})" for fault in found]
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


def generators(folder, models):
    """{program: function that generates into the folder of a name}, of tiny models that it trains."""
    maps = folder / "labels"
    for n in range(6):
        ids = (np.random.default_rng(n).random((16, 16, 4)) > 0.7).astype(np.uint8) + 1
        write_volume(maps / f"{n}.nii.gz", ids, np.eye(4))
    size = {"image_size": 16, "image_depth": 4, "device": "cpu"}
    run_of = {"results_dir": folder / "results", "models_dir": folder / "models", "data": folder / "volumes"}
    progressive = {"name": "progressive", "fmap_base": 8, "fmap_max": 4, "latent_dim": 4, "batch_size": 1}
    progressive |= {"volumes_per_phase": 2, "volumes_at_start": 2}
    drawing = {
        "name": "drawing",
        "width": 2,
        "disc_width": 2,
        "fmap_max": 4,
        "spade_width": 2,
        "batch_size": 2,
    }
    drawing |= {"num_train_steps": 1, "labels": maps}
    checkpoint = {"checkpoint": models / f"model_{STEPS // 2}.pt", "device": "cpu", "num_generate": 24}
    commands = {
        CoW_generator: checkpoint | {"batch_size": 1},
        sg: checkpoint | {"batch_size": 1, "generate": True},
        progressive_wgan: size | run_of | progressive | {"generate": True, "num_generate": 24},
        label_to_volume: size | run_of | drawing | {"generate": maps, "num_per_map": 4},
    }
    for module, settings in ((progressive_wgan, progressive), (label_to_volume, drawing)):
        ended = run(lambda m=module, s=settings: m.main(words(size | run_of | s)), folder / "log")
        assert ended.status == 0, ended.text

    def generator(module, settings):
        flag = "save_directory" if module is CoW_generator else "output"
        return lambda name: module.main(words(settings | {flag: folder / module.__name__ / name}))

    return {module.__name__: generator(module, settings) for module, settings in commands.items()}


def words(settings):
    """Command line of {flag: value}."""
    return [f"--{flag}={value}" for flag, value in settings.items()]


def files_in(folder):
    """{place: digest} of volumes, label maps and arrays in the folders that begin with a folder's name."""
    found = {}
    for place in folder.parent.glob(f"{folder.name}*"):
        files = (p for p in place.rglob("*") if p.suffix in (".gz", ".npy", ".json"))
        for path in files:
            digest = file_digest(path) if path.suffix != ".json" else None  # it says where the model lies
            found[str(path.relative_to(folder.parent)).removeprefix(folder.name)] = digest
    return found


def kill_generation(folder, program, generate, rng, counts, number):
    """Kill a generation so often, and let it end. Returns what went wrong."""
    began = time.monotonic()
    ended = run(lambda: generate("made"), folder / "log")
    usual = time.monotonic() - began
    if ended.status:
        return [f"{program}: {ended.text}"]
    for _ in range(number):
        seconds = rng.uniform(0.1, 0.9) * usual
        interrupted(lambda: generate("killed"), folder / "log", [signal.SIGKILL], seconds)
        counts[f"{program} killed"] = counts.get(f"{program} killed", 0) + 1
    ended = run(lambda: generate("killed"), folder / "log")
    there, wanted = (files_in(folder / program / name) for name in ("killed", "made"))
    hidden = [p.name for p in (folder / program).rglob(".part-*")]
    if ended.status == 0 and there == wanted and not hidden:
        return []
    return [f"{program}: not as undisturbed, {len(hidden)} parts\n{ended.text}"]
