"""Peak memory of the heaviest steps of a training: predicted on the CPU, measured on a GPU."""

import contextlib
import math
import weakref

from volumetric.cli import UserError

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

COMFORTABLE = 0.75  # of a GPU's memory, up to which more is computed at once


@contextlib.contextmanager
def swapped(owner, **values):
    """While it lasts, attributes of an object have other values."""
    former = {name: getattr(owner, name) for name in values}
    vars(owner).update(values)
    try:
        yield
    finally:
        vars(owner).update(former)


@contextlib.contextmanager
def fake_tensors():
    """FakeTensorMode in which a module can be deep-copied too: PyTorch would copy the memory it has not."""
    FakeTensor.__deepcopy__ = copied
    try:
        with FakeTensorMode():
            yield
    finally:
        del FakeTensor.__deepcopy__


def copied(tensor, memo):
    """`copy.deepcopy` of a fake tensor or parameter."""
    copy = tensor.detach().clone()
    copy = nn.Parameter(copy) if isinstance(tensor, nn.Parameter) else copy
    return memo.setdefault(id(tensor), copy.requires_grad_(tensor.requires_grad))


class AllocationTracker(TorchDispatchMode):
    """Bytes of all tensors alive, and their peak, while the mode is on.

    With fake tensors nothing is allocated: a step of any size is followed in seconds.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        """Add a storage that was not seen before; it is subtracted when it is freed."""
        if storage in self.known:
            return
        size = storage.nbytes()
        self.known[storage] = size
        weakref.finalize(storage, self.free, size)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def free(self, size):
        """Subtract a storage that is gone."""
        self.bytes -= size


def predict_peak_memory(build):
    """Peak bytes of the worst steps on the CPU, {phase: bytes}, found on fake tensors.

    Args:
        build: Function that makes the trainer; it must not move tensors.
    """
    tracker, peaks = AllocationTracker(), {}
    with fake_tensors(), tracker:
        trainer = build()
        for phase, work in trainer.rehearsals():
            tracker.peak = tracker.bytes
            work()
            peaks[phase] = tracker.peak
    return peaks


def comfortable(device):
    """Bytes of a GPU's memory up to which more is computed at once."""
    return COMFORTABLE * torch.cuda.get_device_properties(device).total_memory


def measure_peak_memory(trainer):
    """Peak bytes of the worst steps on the GPU, {phase: bytes}, found by running each once without an update.

    Raises:
        UserError: A step does not fit into the GPU's memory.
    """
    total = torch.cuda.get_device_properties(trainer.device).total_memory
    try:
        return peaks_of(trainer)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{error.__notes__[0]} does not fit into the {total / 2**30:.1f} GiB of {trainer.device}: lower "
            f"--batch_size and raise --gradient_accumulate_every by the same factor."
        ) from None


def peaks_within(trainer, most):
    """As `measure_peak_memory`, but {} if a phase takes more than `most`, or than there is."""
    peaks = {}
    with contextlib.suppress(torch.OutOfMemoryError):
        peaks = peaks_of(trainer, most)
    torch.cuda.empty_cache()
    return peaks


def peaks_of(trainer, most=math.inf):
    """Peak bytes of each phase, {phase: bytes}, or {} as soon as one is over `most`.

    An OutOfMemoryError is noted with the phase.
    """
    peaks = {}
    for phase, work in trainer.rehearsals():
        torch.cuda.reset_peak_memory_stats(trainer.device)
        try:
            work()
        except torch.OutOfMemoryError as error:
            error.__notes__ = [f"The step with {phase}"]
            raise
        peaks[phase] = torch.cuda.max_memory_allocated(trainer.device)
        if peaks[phase] > most:
            return {}
    torch.cuda.empty_cache()
    return peaks


def print_peaks(peaks, device):
    """Print peak bytes, {phase: bytes}, if any are known."""
    if peaks and device.type == "cpu":
        print("Memory of the tensors (a process on the CPU takes about a third more):")
    for phase, peak in peaks.items():
        print(f"peak memory, {phase}: {peak / 2**30:.2f} GiB")
