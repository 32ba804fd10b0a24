"""Files damaged on purpose: checkpoints, sidecars, tables."""

import contextlib
import copy
import io
import json
import math
import random
from pathlib import Path

from volumetric.cli import UserError

import torch

import CoW_generator
import stylegan2_pytorch as sg
from tests.faults.children import limit_memory, run
from tests.faults.commands import MEMORY, outcome_of
from tests.faults.jobs import finished, first_difference, training

LIMIT = 240.0  # seconds, of a tiny job on a busy machine
ODD = [None, -1, 0, 2**70, 1.5, math.nan, math.inf, "x", "", b"x", True, [], {}, [[1]], {"a": 1}, (), 10**9]


def check_flips(folder, number, seed):
    """Flip a bit of a checkpoint, so often. Returns ({outcome: count}, [what went wrong])."""
    folder, rng = Path(folder).resolve(), random.Random(seed)
    path = finished(folder, "flips", 1, "--save_every", "1") / "model_1.pt"
    truth, content = sg.read_checkpoint(path), bytearray(path.read_bytes())
    truth = copy.deepcopy(truth)
    counts, faults = {"found": 0, "harmless": 0}, []
    damaged = path.with_name("model_2.pt")
    for _ in range(number):
        place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        content[place] ^= bit
        damaged.write_bytes(content)
        content[place] ^= bit
        try:
            state = sg.read_checkpoint(damaged)
        except UserError:
            counts["found"] += 1
            continue
        unequal = first_difference(truth, state)
        if unequal:
            faults.append(f"a flipped bit at byte {place} changes {unequal} and is not found (seed {seed})")
        else:
            counts["harmless"] += 1
    return counts, faults


def places(state, place=()):
    """Paths to all entries of a nested state, but not into more than a few of many."""
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in list(items)[:12]:
        yield (*place, key)
        if isinstance(value, dict | list) and value and len(place) < 3:
            yield from places(value, (*place, key))


def changed(state, place, rng):
    """A copy of a nested state with one entry gone, or odd, and what was done."""
    state = copy.deepcopy(state)
    parent = state
    for key in place[:-1]:
        parent = parent[key]
    old = parent[place[-1]]
    way = rng.random()
    if way < 0.25:
        del parent[place[-1]]
        return state, "gone"
    if way < 0.5 and isinstance(old, torch.Tensor) and old.ndim:
        new = rng.choice((old[:-1], old.double(), torch.full_like(old, 1).fill_(0)[None], old.flatten()[:1]))
        if old.is_floating_point() and way < 0.3:
            new = torch.full_like(old, math.nan)
    else:
        new = rng.choice(ODD)
    parent[place[-1]] = new
    return state, ascii(new)[:60]


def check_fields(folder, number, seed):
    """Change entries of a checkpoint, and resume from it or generate with it."""
    folder, rng = Path(folder).resolve(), random.Random(seed)
    path = finished(folder, "fields", 1, "--save_every", "1") / "model_1.pt"
    state = torch.load(path, weights_only=True)
    everywhere = list(places(state))
    models = folder / "models" / "changed"
    models.mkdir()
    (folder / "models" / "changed" / "model_1.pt").touch()
    counts, faults = {}, []
    for _ in range(number):
        place = rng.choice(everywhere)
        other, what = changed(state, place, rng)
        for old in models.glob("*"):
            old.unlink()
        with contextlib.suppress(OSError):
            torch.save(other, models / "model_1.pt")
        generation = rng.random() < 0.5
        flags = ["--checkpoint", str(models / "model_1.pt"), "--num_generate", "1", "--device", "cpu"]
        flags += ["--save_directory", str(folder / f"made{len(counts)}_{rng.random()}")]

        def work(generation=generation, flags=flags):
            limit_memory(MEMORY)
            if generation:
                CoW_generator.main(flags)
            else:
                sg.main(training(folder, "changed", 2, "--save_every", "1"))

        note(
            outcome_of(run(work, folder / "log", LIMIT)),
            f"checkpoint {place} {what}",
            folder,
            counts,
            faults,
            seed,
        )
    return counts, faults


def note(outcome, what, folder, counts, faults, seed):
    """Count an outcome; one that must not be is a fault."""
    counts[outcome] = counts.get(outcome, 0) + 1
    if outcome not in ("done", "refused"):
        log = (folder / "log").read_text(errors="replace", encoding="utf-8")
        faults.append(f"{outcome}: {what} (seed {seed})\n{log[-3000:]}")


def spoiled(content, rng):
    """Content of a text file, damaged in one of many ways."""
    text = content.decode()
    ways = [
        lambda: content[: rng.randrange(len(content))],
        lambda: b"",
        lambda: text.encode("utf-16"),
        lambda: bytes(rng.randrange(256) for _ in range(200)),
        lambda: content.replace(b",", b"\x00,", 3),
        lambda: content + b"x" * 200000,
        lambda: content.replace(b"\n", b"\r"),
        lambda: b"\xff\xfe" + content,
        lambda: content[::-1],
        lambda: b'"' + content,
        lambda: text.replace("step", "stop").encode(),
    ]
    with contextlib.suppress(ValueError):
        record = json.loads(text)
        if isinstance(record, dict):
            other, _ = changed(record, rng.choice(list(places(record))), rng)
            way = io.StringIO()
            with contextlib.suppress(TypeError):
                json.dump(other, way)
                ways += 12 * [lambda: way.getvalue().encode()]
    return rng.choice(ways)()


def check_texts(folder, number, seed):
    """Damage sidecars, metrics.csv, label tables and settings, and go on with what they belong to."""
    folder, rng = Path(folder).resolve(), random.Random(seed)
    models = finished(folder, "texts", 1, "--save_every", "1")
    made = ["--checkpoint", models / "model_1.pt", "--save_directory", folder / "made", "--num_generate", "1"]
    made = list(map(str, [*made, "--device", "cpu"]))
    assert run(lambda: CoW_generator.main(made), folder / "log").status == 0
    sidecar, labels = folder / "made" / "normal" / "seed000000.json", folder / "labels.csv"
    labels.write_text(
        "file,label\n" + "".join(f"{n}.nii.gz,{'ab'[n % 2]}\n" for n in range(6)), encoding="utf-8"
    )
    metrics, config = folder / "results" / "texts" / "metrics.csv", models / ".config.json"
    counts, faults = {}, []
    targets = {
        sidecar: (lambda: CoW_generator.main(made), lambda: CoW_generator.main(["--recreate", str(sidecar)])),
        metrics: (lambda: sg.main(training(folder, "texts", rng.randrange(2, 4), "--save_every", "1")),),
        labels: (lambda: sg.main(training(folder, "labels", 1, "--labels", str(labels), "--dry_run")),),
        config: (lambda: CoW_generator.main(made),),
    }
    contents = {path: path.read_bytes() for path in targets}
    for _ in range(number):
        path = rng.choice(list(targets))
        damaged, work = spoiled(contents[path], rng), rng.choice(targets[path])
        path.write_bytes(damaged)
        what = f"{path.name} {damaged[:60]!r}"
        note(outcome_of(run(work, folder / "log", LIMIT)), what, folder, counts, faults, seed)
        path.write_bytes(contents[path])
        for n in (2, 3):
            for old in models.glob(f"model_{n}*.pt"):
                old.unlink()
    return counts, faults
