"""A long training: its memory, open files and threads must not grow."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np

import stylegan2_pytorch as sg
from tests.faults.children import run
from tests.faults.jobs import training

GROWTH = 20.0  # MiB that the last third may take more than the first
PAGE = os.sysconf("SC_PAGE_SIZE")


def watch(table, seen, ended):
    """Note {step: (MiB, open files, threads)} of this process until it has ended."""
    while not ended.wait(0.02):
        steps = len(table.read_text(encoding="utf-8").splitlines()) if table.exists() else 0
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        seen[steps] = (pages * PAGE / 2**20, len(os.listdir("/proc/self/fd")), threading.active_count())


def train(folder, steps):
    """Train for so many steps, and print what was seen in the last two thirds of them."""
    seen, ended = {}, threading.Event()
    watcher = threading.Thread(target=watch, args=(folder / "results" / "long" / "metrics.csv", seen, ended))
    watcher.start()
    sg.main(training(folder, "long", steps, "--save_every", max(1, steps // 9)))
    ended.set()
    watcher.join()
    print(json.dumps([seen[step] for step in sorted(seen) if steps // 3 <= step < steps]))


def check(folder, number, seed):
    """Train for so many steps. Returns ({what: where it was}, [what went wrong])."""
    folder, began = Path(folder).resolve(), time.monotonic()
    ended = run(lambda: train(folder, number), folder / "log", 7200)
    if ended.status:
        return {}, [ended.text]
    samples = np.array(json.loads(ended.text.splitlines()[-1]))
    third = max(1, len(samples) // 3)
    early, late = samples[:third].mean(axis=0), samples[-third:].mean(axis=0)
    names = ("memory (MiB)", "open files", "threads")
    figures = {
        name: f"{low:g} to {high:g}"
        for name, low, high in zip(names, samples.min(axis=0), samples.max(axis=0), strict=True)
    }
    figures = {"steps": number, "seconds": round(time.monotonic() - began), **figures}
    grown = late[0] > early[0] + GROWTH or (late[1:] > early[1:] + 1).any()
    return figures, [f"grows: {early.tolist()} then {late.tolist()} (seed {seed})"] if grown else []
