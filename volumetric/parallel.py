"""Several processes as one, devices, precision, and random numbers that their number does not change."""

import contextlib
import ctypes
import functools
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from volumetric.cli import RunConfig, UserError, check_device_name

import numpy as np
import torch

T = TypeVar("T")  # anything that can be sent
S = TypeVar("S", bound=Any)  # something with one entry per volume: a tensor, an array, a list

MESSAGE_BYTES = 32 * 2**20  # of gradients sent at once between processes
# What gloo says when a peer is gone or does not answer; NCCL has an error class of its own.
LOST_PEER = re.compile(r"gloo|[Cc]onnection|[Tt]imed out|[Tt]imeout|socket|EOF|[Bb]roken pipe")
MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_THRESHOLD = -1, -3  # of malloc.h
SMALL_LAYER = (16, (4, 8, 8))  # channels and voxels of the layer that half precision is tried with on a CPU
REMEDY = {"cpu": "PyTorch", "cuda": "PyTorch, or nvidia-cudnn 9.16 or newer"}  # where a convolution is wrong
HALF_ERROR = 0.05  # of a convolution in half precision, relative; bfloat16's is 0.004
WAIT = timedelta(minutes=10)  # for the gradients of another process before it counts as hanging
LONG_WAIT = timedelta(hours=6)  # for what the first process does alone: downloads, packing, evaluation

# Streams of random numbers: every draw is a function of (seed, reverts, stream, step, micro-batch); several
# processes draw for the whole batch and take their part, so that their number changes nothing but rounding.
STREAM_ORDER, STREAM_FLIP, STREAM_STEP, STREAM_SECOND_STEP, STREAM_CLASS = range(5)


@dataclass(frozen=True)
class Group:
    """The processes of one training, of which each has an equal part of every batch.

    Losses are computed from the logits of all, so that they are those of the whole batch whatever they
    compare; the gradients of the processes are then summed, once a step, in few large messages.
    (DistributedDataParallel would average losses of parts, which is another loss for top-k, relativistic and
    dual contrastive training.)

    Args:
        rank: Number of this process, from 0.
        world: Number of processes.
        patient: torch.distributed group for waiting long, for what one process does alone; None without.
    """

    rank: int = 0
    world: int = 1
    patient: Any = None

    def part(self, batch: S) -> S:
        """This process's part of something with one entry per volume of the batch."""
        size = len(batch) // self.world
        return batch[self.rank * size : (self.rank + 1) * size]

    def own(self, batch_size: int, divisor: int = 1) -> int:
        """Volumes of a batch that this process has; a UserError unless it can be shared like that."""
        if batch_size % self.world:
            raise UserError(
                f"--batch_size {batch_size} cannot be shared by {self.world} processes: choose a multiple of "
                f"{self.world}."
            )
        if batch_size // self.world % divisor:
            raise UserError(
                f"--pl_batch_shrink {divisor} does not divide the {batch_size // self.world} volumes of a "
                f"process's micro-batch: choose a divisor."
            )
        return batch_size // self.world

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around what all processes do together: says so when another has ended, or hangs."""
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, torch.distributed.DistError) or LOST_PEER.search(str(error))):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"Another process of this training has ended or hangs ({reason}). The same command continues "
                f"from the last checkpoint."
            ) from None

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The values of all processes, in order; gradients flow to one's own. Shapes: (b,) -> (b * world,)"""
        if self.world == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world)]
        with self.together():
            torch.distributed.all_gather(parts, values.detach().contiguous())
        parts[self.rank] = values
        return torch.cat(parts)

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by their sums over all processes, in messages of up to MESSAGE_BYTES."""
        if self.world == 1:
            return
        waiting, size = [], 0
        for tensor in (*tensors, None):
            if tensor is None or size > MESSAGE_BYTES:
                message = torch.cat([t.reshape(-1) for t in waiting])
                with self.together():
                    torch.distributed.all_reduce(message)
                for t, summed in zip(waiting, message.split([t.numel() for t in waiting]), strict=True):
                    t.copy_(summed.view_as(t))
                waiting, size = [], 0
            if tensor is not None:
                waiting.append(tensor)
                size += tensor.nbytes

    @property
    def first(self) -> bool:
        """True for the one process that writes, prints and evaluates."""
        return self.rank == 0

    @contextlib.contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Around what the first process does before the others do it."""
        if self.rank:
            self.wait()
        yield
        if self.rank == 0:
            self.wait()

    def share(self, number: int) -> tuple[int, int]:
        """(start, stop) of this process's part of `number` things, which may be unequal."""
        return self.rank * number // self.world, (self.rank + 1) * number // self.world

    def collect(self, thing: T) -> list[T] | None:
        """What every process has, as a list, for the first; None for the others."""
        if self.world == 1:
            return [thing]
        things: list[Any] | None = [None] * self.world if self.rank == 0 else None
        with self.together():
            torch.distributed.gather_object(thing, things, group=self.patient)
        return things

    def tell(self, thing: T) -> T:
        """The first process's thing, for all."""
        if self.world == 1:
            return thing
        things = [thing]
        with self.together():
            torch.distributed.broadcast_object_list(things, group=self.patient)
        return things[0]

    def agree(self, condition: bool) -> bool:
        """True if the condition holds for all processes."""
        found = self.collect(condition)
        return self.tell(all(found or ()))

    @property
    def on_this_machine(self) -> int:
        """Number of these processes on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if self.world > 1 else 1

    def wait(self) -> None:
        """Wait for all processes, as long as it takes."""
        if self.world > 1:
            with self.together():
                torch.distributed.barrier(group=self.patient)


class Rehearsal(Group):
    """A Group that sends nothing: what the others would give is one's own."""

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """As many values as all processes would give, this one's own at their place."""
        parts = [values.detach()] * self.world
        parts[self.rank] = values
        return torch.cat(parts)

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leave the tensors as they are: this process's sums."""

    def collect(self, thing: T) -> list[T] | None:
        """[thing] of this process as often as there are processes, for the first of them; else None."""
        return [thing] * self.world if self.first else None


class SharedRandom:
    """A numpy Generator whose draws are this process's part of those for the whole batch.

    Single draws are the same in all processes.
    """

    def __init__(self, rng: np.random.Generator, group: Group) -> None:
        self.rng, self.group = rng, group

    def integers(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        """Whole numbers as of numpy. Shapes: -> (size,); without a size one, for all processes"""
        if size is None:
            return self.rng.integers(low, high)
        return self.group.part(self.rng.integers(low, high, size * self.group.world))

    def random(self, size: int | None = None) -> Any:
        """Numbers in [0, 1). Shapes: -> (size,); without a size one, for all processes"""
        return (
            self.rng.random() if size is None else self.group.part(self.rng.random(size * self.group.world))
        )


@contextlib.contextmanager
def process_group(device: str = "cpu") -> Iterator[Group]:
    """Join the processes that torchrun has started, if it has; yields their Group.

    Args:
        device: cpu for messages by gloo; auto or cuda for NCCL where there are GPUs, one for each process.
    """
    if "WORLD_SIZE" not in os.environ:
        yield Group()
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=WAIT)
    patient = torch.distributed.new_group(backend="gloo", timeout=LONG_WAIT)
    yield Group(torch.distributed.get_rank(), torch.distributed.get_world_size(), patient)
    torch.distributed.destroy_process_group()  # not after an error: it would wait for those who are gone


@contextlib.contextmanager
def only_first_prints(group: Group) -> Iterator[None]:
    """Keep all processes but the first from printing what the first prints."""
    with contextlib.ExitStack() as stack:
        if group.rank:
            stack.enter_context(
                contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8")))
            )
        yield


def start_on_all_gpus() -> None:
    """`--multi_gpus`: start this command again by torchrun, with one process for each GPU of this machine."""
    number = torch.cuda.device_count()
    if number < 2:
        raise UserError(f"--multi_gpus needs at least 2 GPUs, PyTorch {torch.__version__} sees {number}.")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """TF32 for float32 products on a GPU, on or off: it keeps 10 bits of 23, and is on for convolutions else.

    Off around all that promises float32: penalties, training without mixed precision, generation, evaluation.
    """
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = enabled
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def choose_device(name: str | torch.device) -> torch.device:
    """torch.device for `--device`; auto takes the GPU where there is one, under torchrun one's own."""
    name = str(name)  # it may be a torch.device
    check_device_name("--device", name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name} is not there: PyTorch {torch.__version__} sees {torch.cuda.device_count()} "
            f"GPUs on this machine. Use --device cpu, or install a CUDA build of PyTorch."
        )
    return device


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """A numpy array or a tensor of the CPU on a device, without waiting for it. Shapes: any -> the same"""
    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Arriving:
    """A number on its way from a device to the host, while the device works on.

    Args:
        value: Tensor of one number, or a number.
    """

    def __init__(self, value: torch.Tensor | float) -> None:
        self.value, self.copied = value, None
        if isinstance(value, torch.Tensor) and value.is_cuda:
            self.value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self.value.copy_(value, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def __float__(self) -> float:
        if self.copied is not None:
            self.copied.synchronize()  # with what the device did before the copy, not with what came after
        return float(self.value)


def prepare_process(device: str = "auto", deterministic: bool = False) -> None:
    """Settings of this whole process that cost no digit, for a program's `main` alone, or a notebook's top.

    No import, constructor or other function of this project sets any: what else a process does is its own.

    All shapes of a run are fixed, so cuDNN's trials of algorithms on a GPU pay. The C library gives large
    tensors back to the system, which has to clear every page of the next one: a tenth of a step on a CPU,
    more in generation; here it keeps them.

    Args:
        device: Name as for `--device`.
        deterministic: PyTorch takes algorithms alone that give the same bits twice.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU is first used
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)  # imports PyTorch's compiler: 1.5 s
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # of PyTorch's module
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        torch.backends.cudnn.benchmark = not deterministic
    elif sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for option, value in ((MALLOPT_MMAP_THRESHOLD, 2**30), (MALLOPT_TRIM_THRESHOLD, 2**31 - 1)):
            library.mallopt(option, value)


def open_device(config: RunConfig, unsteady: Collection[str] = ()) -> torch.device:
    """torch.device of a RunConfig, ready for its training.

    Args:
        config: RunConfig.
        unsteady: Names of what the run does that no GPU does twice the same.

    Raises:
        UserError: The device is not there, or cannot do what is asked.
    """
    device = choose_device(config.device)
    if config.cache == "gpu" and device.type != "cuda":
        raise UserError(f"--cache gpu keeps the volumes on a GPU, the run is on {device}: use --cache ram.")
    if config.deterministic and device.type == "cuda" and unsteady:
        raise UserError(
            f"--deterministic is not possible with {', '.join(sorted(unsteady))}: leave one of them out."
        )
    if config.deterministic and device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        raise UserError(
            "--deterministic is of the whole process, which is not set up for it: call "
            "volumetric.parallel.prepare_process(deterministic=True) first."
        )
    if config.fp16:
        layer = config.largest_layer if device.type == "cuda" else SMALL_LAYER
        check_half_precision(choose_amp_dtype(config.amp_dtype, device), device, *layer)
    return device


def check_half_precision(
    dtype: torch.dtype,
    device: torch.device,
    channels: int = SMALL_LAYER[0],
    sizes: tuple[int, int, int] = SMALL_LAYER[1],
) -> None:
    """Raise a UserError if a convolution in half precision, or its gradients, are wrong on this machine.

    PyTorch and cuDNN had versions where they were, some for large layers alone (PyTorch issues 166122 and
    163539), and some in TF32 (167024), in which a GPU generates.

    Args:
        dtype: Half precision; float32 needs no check.
        device: torch.device.
        channels, sizes: Of the layer, that the check is made with: channels, and (D, H, W) voxels.
    """
    if dtype == torch.float32:
        return
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator)
    x, weight = draw(2, channels, *sizes), draw(channels, channels, 3, 3, 3) / (27 * channels) ** 0.5
    given = (x, weight, draw(2, channels, *sizes))
    right = convolved(*given, device, torch.float32)
    ways = {str(dtype).removeprefix("torch."): (dtype, False)}
    ways |= {"TF32": (torch.float32, True)} if device.type == "cuda" else {}
    for name, way in ways.items():
        found = convolved(*given, device, *way)
        for what in right:
            error = float((found[what] - right[what]).norm() / right[what].norm())
            if not error < HALF_ERROR:
                cudnn = f", cuDNN {torch.backends.cudnn.version()}" if device.type == "cuda" else ""
                raise UserError(
                    f"A convolution{what} in {name} is wrong on {device} by {error:.0%} with PyTorch "
                    f"{torch.__version__}{cudnn}: install another version of {REMEDY[device.type]}, use "
                    f"another --amp_dtype, or leave --fp16 out."
                )


def convolved(
    x: torch.Tensor,
    weight: torch.Tensor,
    gradient: torch.Tensor,
    device: torch.device,
    dtype: torch.dtype,
    by_tf32: bool = False,
) -> dict[str, torch.Tensor]:
    """{what: result} of a convolution and its gradients, float32 on the device."""
    layout = torch.channels_last_3d
    inputs = [t.to(device, dtype, memory_format=layout).requires_grad_() for t in (x, weight)]
    with tf32(by_tf32):
        y = torch.nn.functional.conv3d(inputs[0], inputs[1], padding=1)
        in_x, in_w = torch.autograd.grad(y, inputs, gradient.to(device, dtype))
    named = {"": y, " gradient in x": in_x, " gradient in w": in_w}
    return {what: tensor.detach().float() for what, tensor in named.items()}


def choose_amp_dtype(name: str, device: torch.device) -> torch.dtype:
    """torch.dtype of mixed precision for `--amp_dtype`: float16 on a GPU, as published, bfloat16 on a CPU.

    On a CPU without AVX-512 oneDNN has no bfloat16, and what takes its place is several times as slow as
    float32: there "auto" is float32.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16() -> bool:
    """True if this processor computes convolutions in bfloat16."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast(device: torch.device, dtype: torch.dtype, enabled: bool) -> torch.autocast:
    """Mixed precision in a dtype of `choose_amp_dtype`, if it is enabled and the dtype is a half one."""
    half = enabled and dtype != torch.float32
    return torch.autocast(device.type, dtype if half else None, enabled=half)


def host_random(*key: int) -> np.random.Generator:
    """numpy Generator for decisions on the host, seeded by a tuple of integers >= 0."""
    return np.random.default_rng(key)


def device_random(device: torch.device | str, *key: int) -> torch.Generator:
    """torch Generator on `device`, seeded by a tuple of integers >= 0."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


def volume_inputs(seed: int, latent_dim: int, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent and noise of the volume with this seed, drawn on the CPU: the same on every device.

    Shapes: z (latent_dim,), noise (D, H, W, 1)
    """
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(latent_dim, generator=generator)
    return z, torch.rand(*shape, 1, generator=generator)


def latent_of(seed: int, latent_dim: int) -> torch.Tensor:
    """The latent of `volume_inputs` alone. Shapes: -> (latent_dim,)"""
    return volume_inputs(seed, latent_dim, (0, 0, 0))[0]


def batch_inputs(
    seeds: Sequence[int], latent_dim: int, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """`volume_inputs` of several seeds. Shapes: z (B, latent_dim), noise (B, D, H, W, 1)"""
    pairs = [volume_inputs(seed, latent_dim, shape) for seed in seeds]
    return torch.stack([z for z, _ in pairs]), torch.stack([noise for _, noise in pairs])
