"""Whether the gate of replicas keeps its promises, and how long it takes, on phantoms.

    python tests/benchmarks/trust.py calibration     false alarms over random splits, recall of planted copies
    python tests/benchmarks/trust.py speed           seconds and memory of 200 against 200 volumes

Both print Markdown. `calibration` compares 700 phantoms with 100 others once, and draws the held-out and the
innocent ones among them again and again.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fire
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from volumetric.collection import volumes_in  # noqa: E402
from volumetric.rates import wilson  # noqa: E402

from trust.controls import KINDS  # noqa: E402
from trust.rates import realised_rate  # noqa: E402
from trust.replicas import Copying, Threshold, look, look_at_copy, table_of  # noqa: E402
from trust.similarity import STATISTICS, Library  # noqa: E402
from trust.workers import prepare, spread_out  # noqa: E402

TRAINING, POOL, COPIED = 100, 700, 30
HELD_OUT = (25, 100, 300)
SPLITS, ALPHA = 20, 0.01


def make_phantoms(folder, number, seed, size, depth):
    """Folder of phantoms."""
    command = [sys.executable, ROOT / "sample_data" / "phantom.py", "--output", folder, "--num", number]
    command += ["--seed", seed, "--image_size", size, "--image_depth", depth]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return folder


def calibration(training=None, pool=None, workers=2):
    """False alarms and recall; folders of phantoms take the place of those that are made."""
    with tempfile.TemporaryDirectory() as place:
        training = training or make_phantoms(Path(place) / "training", TRAINING, 0, 64, 16)
        pool = pool or make_phantoms(Path(place) / "pool", POOL, 10**6, 64, 16)
        known, others = volumes_in(training, "--training")[:TRAINING], volumes_in(pool, "--pool")[:POOL]
        library = Library(spread_out(prepare, known, "Training", workers), known[0].shape)
        looked = spread_out(look, others, "Others", workers, library)
        values = {name: v for name, (v, _) in table_of(looked).items()}
        tasks = [Copying(known[n], others[n], kind, [n]) for kind in KINDS for n in range(COPIED)]
        copies = spread_out(look_at_copy, tasks, "Copies", workers, library)
    print("| held-out | rate of each | realised, mean of 20 splits | largest | its 95 % limit |")
    print("|---|---|---|---|---|")
    recalls = {}
    for number in HELD_OUT:
        rates, failed = [], 0
        for split in range(SPLITS):
            order = np.random.default_rng(split).permutation(len(others))
            held, made = order[:number], order[number:]
            threshold = Threshold({name: v[held] for name, v in values.items()}, ALPHA)
            flags = threshold.flags({name: v[made] for name, v in values.items()})
            rates += [float(flag.mean()) for flag in flags.values()]
            failed += any(flag.sum() > threshold.most(len(made)) for flag in flags.values())
            for place, kind in enumerate(KINDS):
                ours = copies[place * COPIED : (place + 1) * COPIED]
                table = table_of(ours)
                found = threshold.flags({name: v for name, (v, _) in table.items()})
                hits = np.any(list(found.values()), axis=0)
                recalls.setdefault((number, kind), []).append(
                    [*(found[n].mean() for n in STATISTICS), hits.mean()]
                )
        _, limit = realised_rate(threshold.k, number)
        over = f"{np.mean(np.array(rates) > limit):.0%} above"
        cells = [f"{value:.4f}" for value in (threshold.rate, np.mean(rates), max(rates), limit)]
        print(f"| {number} | {' | '.join(cells)}, {over} |")
        print(f"<!-- {failed} of {SPLITS} splits would fail by their number of flagged volumes -->")
    print(f"\n| copy | {' | '.join(f'{n} held out' for n in HELD_OUT)} | by {', '.join(STATISTICS)} |")
    print("|---" * (2 + len(HELD_OUT)) + "|")
    for kind in KINDS:
        means = [np.mean(recalls[n, kind], axis=0) for n in HELD_OUT]
        cells = []
        for mean in means:
            low, high = wilson(round(mean[-1] * COPIED), COPIED)
            cells.append(f"{mean[-1]:.2f} [{low:.2f}, {high:.2f}]")
        each = ", ".join(f"{m:.2f}" for m in means[0][:-1])
        print(f"| {kind} | {' | '.join(cells)} | {each} |")


def speed(number=200, size=128, depth=32, workers=2):
    """Seconds and peak memory of the gate for as many generated as training volumes, and 50 held-out ones."""
    with tempfile.TemporaryDirectory() as place:
        folders = {"training": 0, "generated": 2 * 10**6, "held_out": 10**6}
        flags = []
        for name, seed in folders.items():
            folder = make_phantoms(
                Path(place) / name, 50 if name == "held_out" else number, seed, size, depth
            )
            flags += [f"--{name}", folder]
        started = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        command = [sys.executable, ROOT / "trust" / "replicas.py", *flags, "--output", Path(place) / "out"]
        subprocess.run([str(part) for part in (*command, "--workers", workers)], capture_output=True)
        seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{number} against {number} volumes of {size} x {size} x {depth}, 50 held out, {workers} processes: "
    )
    cpu, peak = used.ru_utime - before, used.ru_maxrss / 2**20
    print(f"{seconds:.0f} s, {cpu:.0f} s of processors, {peak:.1f} GiB in the largest process")


if __name__ == "__main__":
    fire.Fire({"calibration": calibration, "speed": speed})
