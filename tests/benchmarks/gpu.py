"""Everything that only a GPU can show, in ten minutes: tests, tables of the training step, a training.

    make gpu
    python tests/benchmarks/gpu.py --output gpu --minutes 10

What matters most comes first. Every part is a process of its own with a limit of its time; its output is in a
file of --output as it comes, and report.md has all that ended. A part that the time does not suffice for is
named there.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli  # noqa: E402

STEP = ("tests/benchmarks/step.py", "--device", "cuda", "--repeats", 3)
LAUNCHES = ("tests/benchmarks/launches.py", "--device", "cuda", "--amp", "float16")
ROBUST = ("--config", "phantom", "--recipe", "robust", "--batch_size", 16, "--micro_batches", 1)
TRAINER = ("stylegan2_pytorch.py", "--device", "cuda", "--image_size", 128, "--image_depth", 32)
TRAINER += ("--cache", "gpu", "--num_image_tiles", 4, "--seed", 0)
TRAINING = ("--recipe", "robust", "--gradient_accumulate_every", 1)
TRAINING += ("--num_train_steps", 200, "--save_every", 100)
# A published run, long enough for the choice of how its steps are computed by their time.
CHOOSING = ("--dry_run", "--name", "published", "--gradient_accumulate_every", 4, "--num_train_steps", 100000)


@dataclass(kw_only=True)
class GpuConfig:
    """Measure everything that only a GPU can show."""

    output: str = option("gpu", "Folder of the results.")
    minutes: float = option(10.0, "Time for all parts.", most=600)

    def __post_init__(self):
        check_fields(self)


def parts(folder):
    """[(name, seconds at most, command)], what matters most first."""
    python, data = sys.executable, folder / "phantoms"
    phantoms = ("sample_data/phantom.py", "--output", data, "--num", 64, "--image_size", 128)
    folders = ("--results_dir", folder / "results", "--models_dir", folder / "models")
    trainer = (*TRAINER, "--data", data, *folders)
    robust = (*LAUNCHES, *ROBUST)
    scaling = ("tests/benchmarks/scaling.py", "--output", folder / "scaling.png", "--device", "cuda")
    found = [
        ("published medium_v1", 240, (*LAUNCHES, "--config", "medium_v1", "--plain")),
        ("robust", 60, robust),
        ("robust mixed penalties", 60, (*robust, "--penalty_precision", "mixed")),
        ("tests", 150, ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py")),
        ("published medium_v2", 150, (*LAUNCHES, "--config", "medium_v2")),
        ("phantoms", 120, (*phantoms, "--image_depth", 32)),
        ("dry run", 150, (*trainer, *CHOOSING)),
        ("training", 150, (*trainer, *TRAINING)),
        ("kernels", 60, ("tests/benchmarks/kernels.py",)),
        *tables(),
        ("scaling", 150, (*scaling, "--amp", "float16")),
    ]
    return [(name, limit, [python, *map(str, command)]) for name, limit, command in found]


def tables():
    """[(name, seconds at most, arguments)] of the tables by phase."""
    kinds = (("medium_v1", "float16"), ("medium_v2", "float16"), ("medium_v1", "bfloat16"))
    return [
        (f"{config} {amp}", 100, (*STEP, "--config", config, "--amp", amp, "--batch_size", 8))
        for config, amp in kinds
    ]


def run_part(name, limit, command, folder):
    """Run a part with its output in a file; returns (how it ended, seconds, what it printed)."""
    path, start = folder / f"{name.replace(' ', '_')}.txt", time.monotonic()
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # nothing is installed
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}  # tables come as they go
    with open(path, "w", encoding="utf-8") as file:
        try:
            into = {"stdout": file, "stderr": subprocess.STDOUT, "env": environment}
            status = subprocess.run(command, cwd=ROOT, timeout=limit, **into)
            ended = "done" if status.returncode == 0 else f"failed ({status.returncode})"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
    printed = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.split("\r")[-1] for line in printed.splitlines()]
    return ended, time.monotonic() - start, "\n".join(lines[-60:])


def main(argv=None):
    """The command line; exits with 1 if a part failed."""
    config = parse_cli(GpuConfig, argv)
    with one_line_errors():
        if not torch.cuda.is_available():
            raise UserError(f"PyTorch {torch.__version__} sees no GPU on this machine.")
        folder, start, failed = Path(config.output).resolve(), time.monotonic(), False
        folder.mkdir(parents=True, exist_ok=True)
        report = folder / "report.md"
        about = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
        report.write_text(f"{about}, cuDNN {torch.backends.cudnn.version()}\n", encoding="utf-8")
        for name, limit, command in parts(folder):
            left = 60 * config.minutes - (time.monotonic() - start)
            ended, seconds, printed = "no time was left", 0.0, ""
            if left > 20:
                ended, seconds, printed = run_part(name, min(limit, left), command, folder)
            failed |= ended.startswith("failed")
            text = f"\n## {name}: {ended}, {seconds:.0f} s\n\n{printed}\n"
            print(text, flush=True)
            with open(report, "a", encoding="utf-8") as file:
                file.write(text)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
