"""How time and memory of a training step grow with volume size, batch and capacity: a plot and exponents.

    python tests/benchmarks/scaling.py --output scaling.png
    python tests/benchmarks/scaling.py --output scaling.png --device cuda --amp float16 --repeats 9

Every point is a process of its own. Seconds are of a step on average, penalties at their share; memory is the
peak of the process (on a GPU: of its tensors) above that of one that has trained a tiny model.
"""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import check_device_name, check_fields, one_line_errors, option, parse_cli
from volumetric.parallel import choose_device, prepare_process

import numpy as np
import torch

from stylegan2_pytorch import LATENT_DIM

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from volumetric.timing import seconds  # noqa: E402

from tests.benchmarks.step import (  # noqa: E402
    CONFIGS,
    PHASES,
    SHARES,
    FixedTrainer,
    peak_of,
)

BASE = {"image_size": 64, "image_depth": 16, "network_capacity": 8, "fmap_max": 512, "batch_size": 4}
AXES = {
    "voxels": [{"image_size": n, "image_depth": n // 4} for n in (32, 64, 128)],
    "batch": [{"batch_size": n} for n in (1, 2, 4, 8, 16)],
    "capacity": [{"network_capacity": n, "fmap_max": 64 * n} for n in (2, 4, 8, 16)],
}


@dataclass(kw_only=True)
class ScalingConfig:
    """Measure how a training step scales."""

    output: str = option("scaling.png", "New PNG file for the plot.")
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)
    amp: str = option(
        "bfloat16", "Type of mixed precision, bfloat16 or float16.", choices=("bfloat16", "float16")
    )
    repeats: int = option(2, "Measurements of every phase, after one that is not counted.")
    only: str | None = option(None, "JSON of one point: measure it in this process.")

    def __post_init__(self):
        check_fields(self)


def point(config):
    """Print {"seconds", "mib"} of one point as JSON."""
    device = choose_device(config.device)
    settings = json.loads(config.only)
    batch_size = settings.pop("batch_size")
    tiny = FixedTrainer(CONFIGS["demo"], 1, config.device, config.amp)
    for phase in PHASES:
        tiny.run(phase)
    del tiny
    before = peak_of(device)
    trainer = FixedTrainer(settings, batch_size, config.device, config.amp)
    times = {phase: [] for phase in PHASES}
    for _ in range(config.repeats + 1):
        for phase, found in times.items():
            found.append(seconds(lambda p=phase: trainer.run(p), device))
    step = sum(SHARES[phase] * float(np.median(found[1:])) for phase, found in times.items())
    print(json.dumps({"seconds": step, "mib": peak_of(device) - before}))


def value_of(axis, settings):
    """Where a point lies on its axis."""
    if axis == "voxels":
        return settings["image_size"] ** 2 * settings["image_depth"]
    return settings["batch_size" if axis == "batch" else "network_capacity"]


def measure(config):
    """{axis: [(value, seconds, MiB)]}, every point once."""
    known, found = {}, {}
    for axis, changes in AXES.items():
        found[axis] = []
        for change in changes:
            settings = {**BASE, **change}
            key = json.dumps(settings)
            if key not in known:
                flags = {"only": key, "device": config.device, "amp": config.amp, "repeats": config.repeats}
                command = [
                    sys.executable,
                    __file__,
                    *(str(p) for k, v in flags.items() for p in (f"--{k}", v)),
                ]
                known[key] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            result = known[key]
            found[axis].append((value_of(axis, settings), result["seconds"], result["mib"]))
            print(f"{axis} {found[axis][-1][0]}: {result['seconds']:.3f} s, {result['mib']} MiB")
    return found


def exponent(points, column):
    """Slope of the straight line through the logarithms."""
    x, y = (np.log([p[i] for p in points]) for i in (0, column))
    return float(np.polyfit(x, y, 1)[0])


def plot(found, config, path):
    """One panel for each axis, time and memory on logarithmic scales."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(13, 4), layout="constrained")
    for panel, (axis, points) in zip(panels, found.items(), strict=True):
        x, times, memory = zip(*points, strict=True)
        panel.loglog(x, times, "o-", color="C0", label=f"seconds, exponent {exponent(points, 1):.2f}")
        gib = [m / 1024 for m in memory]
        panel.loglog(x, gib, "s--", color="C1", label=f"GiB, exponent {exponent(points, 2):.2f}")
        ticks = [f"$2^{{{round(math.log2(v))}}}$" if axis == "voxels" else f"{v}" for v in x]
        panel.set_xticks(x, ticks)
        panel.minorticks_off()
        panel.set_xlabel(axis)
        panel.set_ylabel("a step")
        panel.grid(alpha=0.3)
        panel.legend()
    where = "GPU" if choose_device(config.device).type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    base = f"{BASE['image_size']} x {BASE['image_size']} x {BASE['image_depth']} voxels"
    figure.suptitle(
        f"One micro-batch in mixed precision ({config.amp}) on {where}; around {base}, "
        f"batch {BASE['batch_size']}, capacity {BASE['network_capacity']} (latent {LATENT_DIM})"
    )
    figure.savefig(path, dpi=80)


def main(argv=None):
    """The command line."""
    config = parse_cli(ScalingConfig, argv)
    with one_line_errors():
        prepare_process(config.device)
        if config.only:
            point(config)
            return
        if Path(config.output).exists():
            raise ValueError(f"--output {config.output} exists: give a new name.")
        found = measure(config)
        for axis, points in found.items():
            print(f"{axis}: seconds ~ n^{exponent(points, 1):.2f}, memory ~ n^{exponent(points, 2):.2f}")
        plot(found, config, config.output)


if __name__ == "__main__":
    main()
