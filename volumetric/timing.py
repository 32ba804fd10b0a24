"""How long a run will take, on which GPUs it fits, and whether a CPU's threads are in each other's way."""

import os
import time
from dataclasses import replace

from volumetric.machine import usable_cores, usable_memory
from volumetric.pages import duration

import torch

GPU_SIZES = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)  # GiB of cards that there are
BESIDE_TENSORS = 1.1  # of a peak: what a GPU's context and allocator take
ORDINARY, TIMED = 4, 4  # steps of a kind on a GPU: while it tries algorithms and captures graphs, and then
VOXELS_ON_CPU = 2**19  # of the volumes of a step that is timed on a CPU, or one group of volumes
ROOM_ON_CPU = 0.5  # of this machine's memory that a step may take to be timed there
BUSY = 0.5  # cores that others use, from which it is said


class NoLog:
    """Takes a step's losses and leaves them unread."""

    def add(self, *_):
        """Forget a step's losses: to read them would wait for the device."""


def seconds(function, device):
    """Time of a call, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def seconds_of(trainer, step):
    """Time of one training step, with its batches and all updates."""
    trainer.step = step
    return seconds(lambda: trainer.train_step(NoLog()), trainer.device)


def seconds_a_step(trainer):
    """Mean time of a run's steps; the trainer's weights are changed.

    Of every kind of step one on a CPU, after one that is not counted, and some on a GPU.
    """
    kinds, total = trainer.step_kinds(), 0.0
    runs = (ORDINARY, TIMED) if trainer.device.type == "cuda" else (0, 1)
    try:
        seconds_of(trainer, next(iter(kinds)))
        for step, share in kinds.items():
            times = [seconds_of(trainer, step) for _ in range(sum(runs))]
            total += share * sum(times[runs[0] :]) / runs[1]
    finally:
        trainer.loader = None  # ends its workers
    return total


def seconds_on_cpu(make, config, audit, peaks):
    """Mean time of a run's steps on the CPU, from those of fewer volumes; None if its memory is short."""
    if max(peaks.values(), default=0) > ROOM_ON_CPU * usable_memory():
        return None
    voxels, least = config.image_size**2 * config.image_depth, config.least_batch
    volumes = min(config.batch_size, max(1, VOXELS_ON_CPU // voxels // least) * least)
    small = replace(config, batch_size=volumes, gradient_accumulate_every=1)
    larger = config.batch_size * config.gradient_accumulate_every / volumes
    return seconds_a_step(make(small, audit, None)) * larger


def print_expectations(config, device, seconds, peaks):
    """Say how long the run takes and which GPUs hold it.

    Args:
        config: RunConfig.
        device: torch.device of the run.
        seconds: Mean time of a step, or None if it is not known.
        peaks: {phase: bytes}.
    """
    steps, volumes = config.num_train_steps, config.batch_size * config.gradient_accumulate_every
    gib = max(peaks.values()) / 2**30
    if seconds is None:
        print(f"How long? Not timed: a step takes {gib:.1f} GiB of this machine's memory.")
    else:
        speed = f"{seconds:.3g} s a step, {volumes / seconds:.3g} volumes/s"
        print(f"How long? About {duration(steps * seconds)} for {steps} steps on {device} ({speed}).")
    holds = next((size for size in GPU_SIZES if BESIDE_TENSORS * gib < size), None)
    said = f"of {holds} GiB or more" if holds else "of a larger memory than there are: lower --batch_size"
    print(f"Which GPU? The peak is {gib:.1f} GiB; it fits on a GPU {said}.")


def threads_in_the_way(threads=None, cores=None, load=None):
    """One line if more threads compute than this machine has free cores, else "".

    Args:
        threads: Of PyTorch.
        cores: That this process may use.
        load: Processes that the machine ran in the last minute, on average.
    """
    threads, cores = threads or torch.get_num_threads(), cores or usable_cores()
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
        return ""
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    others = max(0.0, load - max(0, (os.cpu_count() or cores) - cores))
    free = max(1, round(cores - others))
    if threads > cores or (others > BUSY and threads > free):
        return (
            f"{threads} threads compute on {cores} usable cores, of which others keep {others:.1f} busy: "
            f"steps can take ten times as long. OMP_NUM_THREADS={min(free, cores)} or "
            f"OMP_WAIT_POLICY=PASSIVE helps."
        )
    return ""
