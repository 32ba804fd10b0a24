"""How a GPU computes the steps of a run: in the way that takes least time, of those whose memory fits.

All ways give the same result up to rounding. A way is tried before the run, as memory.py rehearses it: no
weight, optimiser, generator or gradient is another afterwards.
"""

import math
import statistics
from dataclasses import asdict, dataclass, replace
from itertools import islice
from time import monotonic

from volumetric import memory
from volumetric.cli import UserError
from volumetric.timing import ORDINARY, TIMED, seconds

import torch

TIE = 1.02  # times the least time: of ways up to there, the one of least memory is taken
MOST_OF_RUN = 0.02  # steps of all trials, as a share of the run's
MOST_SECONDS = 120.0  # of trials, after which no other begins
STEPS_OF_TRIAL = 2 * (ORDINARY + TIMED)  # halves of a step with and without penalties


@dataclass(frozen=True)
class Arrangement:
    """A way to compute a step.

    Args:
        at_once: Micro-batches in a pass through the networks.
        penalty_part: Volumes that are penalised at once.
        replayed: As CUDA graphs.
    """

    at_once: int
    penalty_part: int
    replayed: bool = False

    def __str__(self):
        return f"{self.at_once} x {self.penalty_part}{' replayed' * self.replayed}"

    def need(self, peaks):
        """Bytes that it takes, of {phase: bytes}: graphs have memory of their own, each."""
        return (sum if self.replayed else max)(peaks.values())


@dataclass(frozen=True)
class Choice:
    """An arrangement that was chosen, and why.

    Args:
        arrangement: The Arrangement.
        peaks: Its peak memory, {phase: bytes}.
        times: {Arrangement: seconds of a step without its updates}; empty if none was timed.
    """

    arrangement: Arrangement
    peaks: dict
    times: dict

    def lines(self):
        """What there is to tell of it, a list."""
        if not self.times:
            return []
        times = ", ".join(f"{way} {seconds:.3g}" for way, seconds in self.times.items())
        return [
            "s a step without its updates, by micro-batches in a pass x volumes penalised at once: "
            f"{times}; taken: {self.arrangement}"
        ]


def choose(trainer, former=None):
    """Arrange the steps of a trainer that has not begun; returns the Choice.

    A deterministic run is arranged by its options alone, lest time or memory decide on its rounding. Another
    one that is continued on the same kind of GPU is arranged as before. Else every way that leaves a part of
    every process's memory free is timed, if the run is long enough for that; if not, the first is taken, of
    the fewest launches.

    Args:
        trainer: VolumeTrainer on a GPU.
        former: What the run's checkpoint has as "arrangement", if it has any.

    Raises:
        UserError: No way fits into the GPU's memory.
    """
    ordinary = [Arrangement(*pair) for pair in trainer.arrangements()]
    least, ways = ordinary[-1], [] if trainer.config.deterministic else ordinary
    if trainer.may_replay():
        ways = [*(replace(way, replayed=True) for way in ways), *ways]
    card = trainer.group.tell(torch.cuda.get_device_name(trainer.device))
    remembered = {way: asdict(way) | {"card": card} for way in ways}
    trials = int(MOST_OF_RUN * trainer.config.num_train_steps / STEPS_OF_TRIAL)
    fitting, times = {}, {}
    for some in ([way for way in ways if remembered[way] == former], ways):
        fitting = fitting or dict(islice(those_that_fit(trainer, some), max(1, trials)))
    if len(fitting) > 1:
        times = timed(trainer, fitting)
    chosen = next(iter(fitting), least)
    if times:
        near = [way for way in times if times[way] <= TIE * min(times.values())]
        chosen = min(near, key=lambda way: way.need(fitting[way]))
    trainer.arrange(chosen)
    trainer.arrangement = remembered.get(chosen)
    return Choice(chosen, fitting.get(chosen) or memory.measure_peak_memory(trainer), times)


def those_that_fit(trainer, ways):
    """Yield (Arrangement, {phase: peak bytes}) of ways for which all processes have memory."""
    measured, most = {}, memory.comfortable(trainer.device)
    for way in ways:
        ordinary = replace(way, replayed=False)
        if ordinary not in measured:
            trainer.arrange(ordinary)
            measured[ordinary] = memory.peaks_within(trainer, most)
        peaks = measured[ordinary]
        if trainer.group.agree(bool(peaks) and way.need(peaks) <= most):
            yield way, peaks


def timed(trainer, ways):
    """{Arrangement: seconds of a step without its updates}, of the slowest process.

    Those that run out of memory are left out, and those that MOST_SECONDS do not suffice for: all parts of
    penalties but the largest come last.
    """
    found, end = {}, monotonic() + MOST_SECONDS
    for way in sorted(ways, key=lambda way: -way.penalty_part):
        if found and trainer.group.tell(monotonic() > end):
            break
        own = trial(trainer, way)
        trainer.arrange(replace(way, replayed=False))  # the graphs' memory is free
        torch.cuda.empty_cache()
        slowest = trainer.group.tell(max(trainer.group.collect(own) or (own,)))
        if slowest < math.inf:
            found[way] = slowest
    return found


def trial(trainer, way):
    """Seconds of a step without its updates, infinity if memory runs out."""
    trainer.arrange(way)
    try:
        with torch.random.fork_rng([trainer.device] if trainer.device.type == "cuda" else []):
            return trainer.rehearse(seconds_of_gradients, trainer)
    except torch.OutOfMemoryError:
        return math.inf
    except UserError as error:  # a capture that failed
        if isinstance(error.__cause__, torch.OutOfMemoryError):
            return math.inf
        raise


def seconds_of_gradients(trainer):
    """Mean time of the gradients of a run's steps: the median of some of every kind.

    Of volumes that are on the device, and random, for a GPU is faster with zeros.
    """
    device, shape = trainer.device, (trainer.batch_size, 1, *trainer.config.shape)
    volumes = torch.rand(shape, device=device, generator=torch.Generator(device).manual_seed(0))
    indices, total = torch.zeros(trainer.batch_size, dtype=torch.int64), 0.0
    loader = iter(lambda: (volumes.clone(), indices), None)
    with memory.swapped(trainer, loader=loader, step=0):
        for share, work in trainer.gradients():
            times = []
            for trainer.step in range(ORDINARY + TIMED):
                times.append(seconds(work, device))
                trainer.networks.zero_grad(set_to_none=True)
            total += share * statistics.median(times[ORDINARY:])
    return total
