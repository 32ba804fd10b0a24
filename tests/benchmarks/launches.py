"""Operations, memory and time of a training step by the number of micro-batches in a pass.

    python tests/benchmarks/launches.py --config medium_v1
    python tests/benchmarks/launches.py --config medium_v2 --device cuda --amp float16

A row for every number of micro-batches that go through the networks together. On a GPU the step is run:
seconds until the host has launched it, seconds until it is done, peak memory. On a CPU it is followed on
tensors without data, along the paths that a GPU takes: operations (not views, without Adam's) and predicted
memory.
"""

import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from volumetric import layers, memory, parallel  # noqa: E402
from volumetric.cli import check_device_name, check_fields, one_line_errors, option, parse_cli  # noqa: E402
from volumetric.dataset import Audit  # noqa: E402
from volumetric.timing import NoLog  # noqa: E402

from stylegan2_pytorch import TrainConfig, Trainer  # noqa: E402
from tests.benchmarks.step import CONFIGS  # noqa: E402

REPEATS = 5  # steps that are measured, after two that are not


@dataclass(kw_only=True)
class LaunchesConfig:
    """Measure passes of several micro-batches."""

    config: str = option("medium_v1", "Networks.", choices=CONFIGS)
    batch_size: int = option(8, "Volumes in a micro-batch.")
    micro_batches: int = option(4, "Micro-batches in a step.")
    only: int | None = option(None, "Only this number of micro-batches in a pass; None: all that divide.")
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)
    amp: str = option("bfloat16", "Type of mixed precision.", choices=("bfloat16", "float16"))

    def __post_init__(self):
        check_fields(self)


class Operations(TorchDispatchMode):
    """Counts what computes: neither views nor empty tensors."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = [one.alias_info for one in func._schema.returns]
        viewed = any(alias is not None and not alias.is_write for alias in returned)
        self.number += not (viewed or func.namespace == "prim" or "empty" in func.__name__)
        return func(*args, **(kwargs or {}))


def make(config, at_once):
    """A trainer with volumes of zeros."""
    batch = {"batch_size": config.batch_size, "gradient_accumulate_every": config.micro_batches}
    settings = TrainConfig(**CONFIGS[config.config], **batch, device=config.device, amp_dtype=config.amp)
    trainer = Trainer(settings, Audit(range(64), None, np.eye(4), "", [], settings.shape))
    *_, (_, trainer.penalty_part) = trainer.arrangements()
    trainer.at_once, trainer.step = at_once, 1
    volumes = torch.zeros(config.batch_size, 1, *settings.shape, device=trainer.device)
    trainer.loader = itertools.repeat((volumes, torch.zeros(config.batch_size, dtype=torch.int64)))
    return trainer


def follow(config, at_once):
    """Cells of a row: operations and predicted GiB of the worst step, without data."""
    with mock.patch.object(layers, "on_cpu", lambda x: False), FakeTensorMode():
        trainer = make(config, at_once)
        trainer.rehearsing = True
        with Operations() as operations:
            trainer.accumulate_discriminator(False, config.micro_batches)
            trainer.accumulate_generator(False, config.micro_batches)
    peaks = memory.predict_peak_memory(lambda: make(config, at_once))
    for cached in (layers.smoothing_matrix, layers.doubling_matrix):
        cached.cache_clear()  # they would be fake
    return f"{operations.number} | {max(peaks.values()) / 2**30:.1f}"


def measure(config, at_once):
    """Cells of a row: seconds of the host and of the device, and GiB, of an ordinary step on a GPU."""
    trainer, found = make(config, at_once), []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2 + REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        trainer.step = 1
        trainer.train_step(NoLog())
        launched = time.perf_counter() - start
        torch.cuda.synchronize()
        found.append((launched, time.perf_counter() - start))
    host, device = np.median(found[2:], axis=0)
    return f"{host:.3f} | {device:.3f} | {torch.cuda.max_memory_allocated() / 2**30:.1f}"


def main(argv=None):
    """The command line."""
    config = parse_cli(LaunchesConfig, argv)
    with one_line_errors():
        parallel.prepare_process(config.device)
        on_gpu = parallel.choose_device(config.device).type == "cuda"
        names = "host, s | step, s | peak, GiB" if on_gpu else "operations | worst step, GiB"
        print(f"| micro-batches in a pass | {names} |\n|{(2 + names.count('|')) * '---|'}")
        for at_once in range(1, config.micro_batches + 1):
            if config.micro_batches % at_once == 0 and config.only in (None, at_once):
                cells = (measure if on_gpu else follow)(config, at_once)
                print(f"| {at_once} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
