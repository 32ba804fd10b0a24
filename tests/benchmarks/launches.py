"""Operations, memory and time of a training step by the number of micro-batches in a pass.

    python tests/benchmarks/launches.py --config medium_v1
    python tests/benchmarks/launches.py --config medium_v1 --device cuda --amp float16 --plain
    python tests/benchmarks/launches.py --config phantom --recipe robust --batch_size 16 --micro_batches 1

A row for every number of micro-batches that go through the networks together. On a GPU the step is run, as
usual and replayed as CUDA graphs: seconds until the host has launched an ordinary one, until it is done, and
of a run's steps on average, penalties included, peak memory, and the share of the GPU's matrix peak that the
products of that average make use of. With --plain, the plain formulation of the published model follows, and
what the rows above take of its time. On a CPU the step is followed on tensors without data, along the paths
that a GPU takes: operations (not views, without Adam's) and predicted memory.
"""

import gc
import itertools
import re
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from volumetric import layers, memory, parallel, timing  # noqa: E402
from volumetric.arrangement import Arrangement  # noqa: E402
from volumetric.cli import (  # noqa: E402
    UserError,
    check_device_name,
    check_fields,
    one_line_errors,
    option,
    parse_cli,
)
from volumetric.dataset import Audit  # noqa: E402
from volumetric.timing import NoLog, seconds  # noqa: E402

from stylegan2_pytorch import PRECISIONS, RECIPES, TrainConfig, Trainer  # noqa: E402
from tests.benchmarks.step import CONFIGS, PHASES, SHARES, FixedTrainer, PlainTrainer, peak_of  # noqa: E402

REPEATS = 5  # steps that are measured
PLAIN_REPEATS = 2  # of every phase of the plain step, after one that is not counted
# TFLOP/s of products of half-precision matrices, summed in float32, none sparse, by NVIDIA's data sheets, of
# cards that PyTorch calls so.
DENSE = {
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H200": 989,
    "NVIDIA A100.*": 312,
    "NVIDIA GeForce RTX 4090": 165,
    "NVIDIA GeForce RTX 3090": 71,
}


@dataclass(kw_only=True)
class LaunchesConfig:
    """Measure passes of several micro-batches."""

    config: str = option("medium_v1", "Networks.", choices=CONFIGS)
    recipe: str = option("published", "Of the step.", choices=RECIPES)
    penalty_precision: str = option("float32", "Of penalties.", choices=PRECISIONS)
    batch_size: int = option(8, "Volumes in a micro-batch.")
    micro_batches: int = option(4, "Micro-batches in a step.")
    only: int | None = option(None, "Only this number of micro-batches in a pass; None: all that divide.")
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)
    amp: str = option("bfloat16", "Type of mixed precision.", choices=("bfloat16", "float16"))
    plain: bool = option(False, "On a GPU, measure the plain formulation too.")

    def __post_init__(self):
        check_fields(self)

    @property
    def passes(self):
        """Numbers of micro-batches in a pass."""
        numbers = range(1, self.micro_batches + 1)
        return [n for n in numbers if self.micro_batches % n == 0 and self.only in (None, n)]


class Operations(TorchDispatchMode):
    """Counts what computes: neither views nor empty tensors."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = [one.alias_info for one in func._schema.returns]
        viewed = any(alias is not None and not alias.is_write for alias in returned)
        self.number += not (viewed or func.namespace == "prim" or "empty" in func.__name__)
        return func(*args, **(kwargs or {}))


class Work(TorchDispatchMode):
    """Counts FLOP of products and convolutions, two for a multiplication with its addition.

    As FlopCounterMode, which fails on a gradient penalty (findings/flop_counter_input_gradient.sh).
    """

    flop = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flop += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def make(config, at_once):
    """A trainer with volumes of zeros."""
    batch = {"batch_size": config.batch_size, "gradient_accumulate_every": config.micro_batches}
    how = {"recipe": config.recipe, "penalty_precision": config.penalty_precision}
    settings = TrainConfig(
        **CONFIGS[config.config], **batch, **how, device=config.device, amp_dtype=config.amp
    )
    trainer = Trainer(settings, Audit(range(64), None, np.eye(4), "", [], settings.shape))
    *_, (_, trainer.penalty_part) = trainer.arrangements()
    trainer.at_once, trainer.step = at_once, 1
    trainer.loader = endless(trainer, torch.zeros)
    return trainer


def endless(trainer, draw):
    """A loader of the same volumes again and again."""
    volumes = draw(trainer.batch_size, 1, *trainer.config.shape, device=trainer.device)
    return itertools.repeat((volumes, torch.zeros(trainer.batch_size, dtype=torch.int64)))


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


def work_of(config):
    """TFLOP of the products and convolutions of a run's step on average, counted on tensors without data.

    Of the formulations of a CPU, whose blur and enlargement are no products: what a GPU does for these with
    small matrices is no work that it has to do.
    """
    on_cpu = replace(config, device="cpu", micro_batches=1)
    with FakeTensorMode():
        trainer, total = make(on_cpu, at_once=1), 0.0
        trainer.pl_mean, trainer.rehearsing, trainer.penalty_part = 0.0, True, config.batch_size
        for share, work in trainer.gradients():
            with Work() as counted:
                work()
            total += share * counted.flop * config.micro_batches
    return total / 1e12


def dense_peak(name):
    """TFLOP/s of a card's half-precision products, or None if they are not in the table."""
    return next((peak for card, peak in DENSE.items() if re.fullmatch(card, name)), None)


def launched(trainer):
    """Seconds until the host has launched an ordinary step."""
    seconds(lambda: None, trainer.device)  # the device has nothing else to do
    start = time.perf_counter()
    trainer.step = 1
    trainer.train_step(NoLog())
    return time.perf_counter() - start


@dataclass(frozen=True)
class Measured:
    """Seconds of a step: an ordinary one until it is launched, and done; on average, with penalties; MiB."""

    host: float
    ordinary: float
    mean: float
    mib: int

    def cells(self, work, peak):
        """Cells of a row, of TFLOP a step, and TFLOP/s of the card or None."""
        speed = work / self.mean
        share = "" if peak is None else f"{speed / peak:.3f}"
        times = f"{self.host:.3f} | {self.ordinary:.3f} | {self.mean:.3f}"
        return f"{times} | {self.mib / 1024:.1f} | {speed:.1f} | {share}"


def measure(config, at_once, replayed):
    """Measured steps, of random volumes on the device."""
    gc.collect()  # a trainer that replays, and its Replay, hold each other
    trainer = make(config, at_once)
    trainer.arrange(Arrangement(at_once, trainer.penalty_part, replayed))
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.loader = endless(trainer, torch.rand)
    mean = timing.seconds_a_step(trainer)  # also what comes before a capture
    trainer.loader = endless(trainer, torch.rand)
    host = statistics.median(launched(trainer) for _ in range(REPEATS))
    ordinary = statistics.median(timing.seconds_of(trainer, 1) for _ in range(REPEATS))
    return Measured(host, ordinary, mean, peak_of(trainer.device))


def measure_plain(config, dtype):
    """Seconds of an ordinary step of the plain formulation, and on average; None if in half precision."""
    settings = CONFIGS[config.config]
    plain = PlainTrainer(settings, FixedTrainer(settings, config.batch_size, config.device), dtype)
    device, found = plain.fixed.device, {}
    for phase in PHASES if dtype == torch.float32 else ("D", "G"):
        times = [
            seconds(lambda p=phase: plain.run(p, config.micro_batches), device)
            for _ in range(1 + PLAIN_REPEATS)
        ]
        found[phase] = statistics.median(times[1:])
    mean = sum(SHARES[phase] * found[phase] for phase in PHASES) if len(found) == len(PHASES) else None
    return found["D"] + found["G"], mean


def print_measured(config):
    """Print a row for every way to compute the step, and the plain formulation."""
    device = parallel.choose_device(config.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    work, peak, rows = work_of(config), dense_peak(name), {}
    about = f"{config.recipe} {config.config}, {config.batch_size} x {config.micro_batches} volumes"
    print(f"{about}, {config.amp}, penalties {config.penalty_precision}, {name}, PyTorch {torch.__version__}")
    known = f"{peak} TFLOP/s dense" if peak else f"not known of {name}: no share of it"
    print(f"{work:.2f} TFLOP a step on average; the card's peak: {known}\n")
    names = "host, s | ordinary step, s | mean step, s | peak, GiB | TFLOP/s | of the peak"
    print(f"| micro-batches in a pass | graphs | {names} |\n|{8 * '---|'}", flush=True)
    for at_once, replayed in itertools.product(config.passes, (False, True)):
        try:
            found = rows[at_once, replayed] = measure(config, at_once, replayed)
            cells = found.cells(work, peak)
        except (torch.OutOfMemoryError, UserError) as error:  # memory, or a capture
            cells = type(error).__name__ + 5 * " | "
        print(f"| {at_once} | {'yes' if replayed else 'no'} | {cells} |", flush=True)
    for dtype in (torch.float32, getattr(torch, config.amp)) if config.plain else ():
        print_plain(config, dtype, rows)


def print_plain(config, dtype, rows):
    """Print what the plain formulation takes, and {(micro-batches in a pass, graphs): Measured} of that."""
    kind = str(dtype).removeprefix("torch.")
    try:
        ordinary, mean = measure_plain(config, dtype)
    except RuntimeError as error:  # of memory, or no such kernel
        print(f"\nThe plain formulation in {kind}: {type(error).__name__}", flush=True)
        return
    print(f"\nThe plain formulation in {kind}: an ordinary step {ordinary:.3f} s", end="")
    print("" if mean is None else f", on average {mean:.3f} s", end=". Of that take, by the rows above:")
    for (at_once, replayed), row in rows.items():
        share = f" {row.ordinary / ordinary:.3f}"
        share += "" if mean is None else f" and {row.mean / mean:.3f}"
        print(f"{share} ({at_once}{', graphs' * replayed})", end=";")
    print(flush=True)


def main(argv=None):
    """The command line."""
    config = parse_cli(LaunchesConfig, argv)
    with one_line_errors():
        parallel.prepare_process(config.device)
        if parallel.choose_device(config.device).type == "cuda":
            print_measured(config)
            return
        print("| micro-batches in a pass | operations | worst step, GiB |\n|---|---|---|")
        for at_once in config.passes:
            print(f"| {at_once} | {follow(config, at_once)} |", flush=True)


if __name__ == "__main__":
    main()
