"""3D StyleGAN2: train a generator of medical volumes from a folder of NIfTI files.

    python stylegan2_pytorch.py --data volumes --name cow --image_size 128 --image_depth 32
    python stylegan2_pytorch.py --data volumes --name cow --dry_run
    python stylegan2_pytorch.py --name cow --generate --num_generate 16

Sections of this file, in order:

    configuration and command line    every option, its check and its parsing
    processes                         several devices and machines as one
    volumes and datasets              NIfTI in and out, the audit of a folder, the order of samples
    differentiable augmentation       3D DiffAugment and beyond, the adaptive probability
    layers                            blur, modulated convolution, noise, attention, feature quantisation
    networks                          mapping network, generator, discriminator
    losses and regularisers           hinge, relativistic, dual contrastive, NT-Xent, penalties
    latents and styles                random draws, truncation, interpolation
    pictures                          preview grids and GIFs
    checkpoints                       writing, finding and reading them, the originals' included
    memory                            the peak of the worst step, measured or predicted
    trainer                           the training step, logs, previews, evaluation, resuming
    inference                         ModelLoader, generation
    entry points                      what the command line calls

A NIfTI array is (X, Y, Z); inside the networks a volume is (B, 1, D, H, W) = (B, 1, Z, X, Y), with values in
[0, 1].

Papers: StyleGAN2 (arXiv:1912.04958), DiffAugment (arXiv:2006.10738), WGAN-GP (arXiv:1704.00028), the
relativistic discriminator (arXiv:1807.00734), dual contrastive loss (arXiv:2103.09742), top-k training
(arXiv:2002.06224), linear attention (arXiv:1812.01243), feature quantisation (arXiv:2004.02088), NT-Xent
(arXiv:2002.05709), StyleGAN2-ADA (arXiv:2006.06676), projection discriminator (arXiv:1802.05637), TTUR
(arXiv:1706.08500), and the 3D model for the Circle of Willis (Aydin et al., NeuroImage 304 (2024) 120936).
"""

import contextlib
import csv
import functools
import gzip
import hashlib
import inspect
import itertools
import json
import math
import os
import pickle
import shutil
import signal
import sys
import threading
import time
import weakref
import zipfile
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from retry.api import retry_call
from scipy.spatial.transform import Rotation
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.weak import WeakIdKeyDictionary
from tqdm import tqdm

__version__ = "0.1.0"

FORMAT_VERSION = 1  # of our checkpoints
NIFTI_SUFFIXES = (".nii", ".nii.gz")
SLOPE = 0.2  # of LeakyReLU
LATENT_DIM = 512  # of z and w, as published
STYLE_DEPTH = 8  # layers of the mapping network, as published

# The training schedule of the published model, in steps.
GRADIENT_PENALTY_EVERY = 16
PATH_LENGTH_EVERY = 32
PATH_LENGTH_AFTER = 5000
PATH_LENGTH_DECAY = 0.99
AVERAGE_DECAY = 0.995
ADA_EVERY = 4
CONTRAST_FAKES_AFTER = 20000
AVERAGE_EVERY = 10
AVERAGE_AFTER = 20000
AVERAGE_COPY_EVERY = 1000  # before the averages start, SE and GE are copies made at step % 1000 == 2
AVERAGE_COPY_UNTIL = 25000
PREVIEW_EVERY_EARLY = 100
PREVIEW_EARLY_UNTIL = 2500

READ_EVERY = {
    "cpu": 1,
    "cuda": 10,
}  # steps between readings of the losses, for which a GPU must be waited for
PENALTY_PARTS = 4  # of a micro-batch, whose penalties are computed one after the other to save memory
PENALTY_VOXELS = 2**19  # in such a part, at least, unless the micro-batch has fewer
TRUNCATION_SAMPLES = 2000  # styles averaged for the truncation centre
NAN_REVERTS = 3  # returns to the last checkpoint before training gives up
FEWEST_EVALUATED = 6  # volumes in a set: more than the neighbours that precision and recall ask for
MESSAGE_BYTES = 32 * 2**20  # of gradients sent at once between processes
LONGEST_WAIT = timedelta(hours=6)  # of processes for the first one's evaluation
MAX_FILES_NAMED = 50  # offending files listed in one message

# Streams of random numbers: every draw is a function of (seed, reverts, stream, step, micro-batch); several
# processes draw for the whole batch and take their part, so that their number changes nothing but rounding.
STREAM_ORDER, STREAM_FLIP, STREAM_D, STREAM_G, STREAM_CLASS = range(5)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Configuration and command line                                                                           ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


SIZES = ("image_size", "image_depth", "network_capacity", "fmap_max")
NETWORK_SETTINGS = (*SIZES, "lr_mlp", "no_const", "attn_layers", "fq_layers", "fq_dict_size", "cl_reg")
CHOICES = {
    "cache": ("ram", "disk", "none"),
    "amp_dtype": ("auto", "float16", "bfloat16"),
    "aug_types": ("translation", "cutout", "contrast", "rotation", "scaling", "bias_field", "noise", "blur"),
    "embedding": ("pretrained", "random"),
}


@dataclass(kw_only=True)
class TrainConfig:
    """Train a 3D StyleGAN2 on a folder of NIfTI volumes, or generate from a trained one.

    The same command given again continues the run. In a flag's name - and _ are the same.

    Args:
        data: Folder of .nii or .nii.gz volumes, each of (image_size, image_size, image_depth) voxels.
        results_dir: Folder for previews, logs and generated volumes; the run uses the sub-folder `name`.
        models_dir: Folder for checkpoints; the run uses the sub-folder `name`.
        name: Name of the run.
        new: Start afresh; an earlier run of this name is moved aside, never deleted.
        load_from: Number n of the checkpoint model_<n>.pt to continue or generate from; -1 is the newest.
        init_from: Checkpoint file whose network weights a new run starts from (fine-tuning).
        image_size: In-plane edge in voxels, a power of two.
        image_depth: Number of axial slices, a power of two, 4 <= image_depth <= image_size.
        network_capacity: Width of the networks: the generator's last block has 2 * network_capacity channels.
        fmap_max: Largest number of channels of any layer.
        lr_mlp: Learning-rate multiplier of the mapping network.
        batch_size: Volumes in a micro-batch, of all processes together.
        gradient_accumulate_every: Micro-batches in a training step.
        num_train_steps: Steps in the whole run, those of earlier sessions included.
        learning_rate: Adam's learning rate of the generator and the mapping network.
        ttur_mult: The discriminator's learning rate is learning_rate times this.
        mixed_prob: Probability of style mixing, for a micro-batch.
        no_pl_reg: Switch path-length regularisation off.
        pl_batch_shrink: Path lengths are measured on every pl_batch_shrink-th volume of a micro-batch.
        rel_disc_loss: Relativistic discriminator loss.
        dual_contrast_loss: Dual contrastive loss in place of the hinge loss.
        top_k_training: Train the generator on the fakes that the discriminator finds most real.
        generator_top_k_gamma: Share of fakes kept falls by this factor per epoch.
        generator_top_k_frac: Smallest share of fakes kept.
        aug_prob: Probability of augmentation before the discriminator, for a micro-batch; with ada_target,
            at the start.
        aug_types: Augmentations, a list of translation, cutout, contrast, rotation, scaling, bias_field,
            noise and blur; a left-right flip comes with them.
        ada_target: Adapt aug_prob so that D takes this share of real volumes for real, beyond guessing; None
            keeps it.
        ada_volumes: Real volumes in which an adapted aug_prob can rise from 0 to 1.
        dataset_aug_prob: Probability that a training volume is flipped left-right when it is read.
        labels: Train for classes: folders takes the names of data's sub-folders, FILE.csv has columns file
            and label.
        balance_classes: Show every class equally often, whatever the number of its volumes.
        cl_reg: Contrastive regularisation of the discriminator.
        fq_layers: Blocks of the discriminator with feature quantisation, a list; 1 is the one at the volume.
        fq_dict_size: Codes of each feature quantisation.
        attn_layers: Blocks with linear attention, in generator and discriminator, a list; 1 as above.
        no_const: Start the generator from the mean style in place of a learned constant.
        transparent: Not available: a one-channel volume has no alpha channel.
        device: auto, cpu, cuda or cuda:<n>.
        multi_gpus: Train on all GPUs of this machine, as by torchrun; the batch is shared out.
        fp16: Train with mixed precision; penalties are always computed in float32.
        amp_dtype: auto, float16 or bfloat16; auto is float16 on a GPU and bfloat16 on a CPU.
        cache: ram keeps decoded volumes in memory; disk packs them into a file in results_dir, which all runs
            share; none decodes them again in every epoch.
        num_workers: Processes that read volumes; None is 0 with a cache and at most 4 without.
        seed: Seed of everything random, >= 0; also of the first generated volume.
        save_every: Steps between checkpoints.
        keep_checkpoints: Number of newest checkpoints kept; None keeps all.
        evaluate_every: Steps between previews (below step 2500 every 100).
        num_image_tiles: Previews show num_image_tiles x num_image_tiles volumes.
        trunc_psi: Truncation psi of previews and generated volumes; 1 is no truncation.
        log: Write TensorBoard files beside metrics.csv; they need no server.
        calculate_fid_every: Steps between evaluations by FID, MD, AUC-PRD and anatomy; None is never.
        calculate_fid_num_images: Volumes generated for such an evaluation.
        clear_fid_cache: Compute the features of the real volumes again for such an evaluation.
        embedding: pretrained, or random: evaluate with networks without training, which need no download.
        medicalnet_weights: File resnet_10_23dataset.pth; None takes the downloaded one, or downloads it.
        inception_weights: File weights-inception-2015-12-05-6726825d.pth; None as above.
        generate: Generate volumes from the newest checkpoint instead of training.
        num_generate: Volumes to generate, with seeds seed, seed + 1, ...
        generate_interpolation: Generate an interpolation between two volumes instead of training.
        interpolation_num_steps: Volumes of an interpolation.
        save_frames: Save every frame of an interpolation also as PNG.
        label: Class of generated volumes; None draws one for each, as often as it was shown in training.
        use_average: Generate from the averaged networks (SE, GE); False takes the current ones (S, G).
        checkpoint_activations: Compute the blocks again in the backward pass: less memory, more time.
        dry_run: Check data and settings, print sizes and peak memory, and stop before the first step.
    """

    data: str = "./data"
    results_dir: str = "./results"
    models_dir: str = "./models"
    name: str = "default"
    new: bool = False
    load_from: int = -1
    init_from: str | None = None
    image_size: int = 128
    image_depth: int = 32
    network_capacity: int = 8
    fmap_max: int = 512
    lr_mlp: float = 0.1
    batch_size: int = 8
    gradient_accumulate_every: int = 4
    num_train_steps: int = 100000
    learning_rate: float = 1e-4
    ttur_mult: float = 1.5
    mixed_prob: float = 0.9
    no_pl_reg: bool = False
    pl_batch_shrink: int = 1
    rel_disc_loss: bool = False
    dual_contrast_loss: bool = False
    top_k_training: bool = False
    generator_top_k_gamma: float = 0.99
    generator_top_k_frac: float = 0.5
    aug_prob: float = 0.5
    aug_types: tuple = ("translation", "cutout")
    ada_target: float | None = None
    ada_volumes: int = 500000
    dataset_aug_prob: float = 0.5
    labels: str | None = None
    balance_classes: bool = False
    cl_reg: bool = False
    fq_layers: tuple = ()
    fq_dict_size: int = 256
    attn_layers: tuple = ()
    no_const: bool = False
    transparent: bool = False
    device: str = "auto"
    multi_gpus: bool = False
    fp16: bool = True
    amp_dtype: str = "auto"
    cache: str = "ram"
    num_workers: int | None = None
    seed: int = 42
    save_every: int = 3000
    keep_checkpoints: int | None = None
    evaluate_every: int = 3000
    num_image_tiles: int = 8
    trunc_psi: float = 1.0
    log: bool = False
    calculate_fid_every: int | None = None
    calculate_fid_num_images: int = 1782
    clear_fid_cache: bool = False
    embedding: str = "pretrained"
    medicalnet_weights: str | None = None
    inception_weights: str | None = None
    generate: bool = False
    num_generate: int = 1
    generate_interpolation: bool = False
    interpolation_num_steps: int = 100
    save_frames: bool = False
    label: str | None = None
    use_average: bool = True
    checkpoint_activations: bool = False
    dry_run: bool = False

    def __post_init__(self):
        if self.log == "aim":
            raise ValueError("--log aim is not supported: --log alone writes TensorBoard files.")
        check_fields(self, CHOICES)
        check_networks(self.image_size, self.image_depth)
        if self.transparent:
            raise ValueError("--transparent is not possible: a one-channel volume has no alpha channel.")
        blocks = len(growth_schedule(self.image_size, self.image_depth))
        for name in ("attn_layers", "fq_layers"):
            check_layers(name, getattr(self, name), blocks)
        for name in ("cl_reg", "ada_target"):
            if getattr(self, name) and not self.aug_types:
                raise ValueError(f"--{name} needs augmentations: give --aug_types.")
        if self.balance_classes and self.labels is None:
            raise ValueError("--balance_classes needs classes: give --labels.")
        if self.name in ("", ".", "..") or {"/", "\\"} & set(self.name):
            raise ValueError(f"--name must be the name of a folder, without a path, got {self.name!r}.")
        if self.new and self.load_from != -1:
            raise ValueError("--new starts afresh and --load_from continues: give one of them.")
        if self.calculate_fid_num_images < FEWEST_EVALUATED:
            raise ValueError(
                f"--calculate_fid_num_images must be {FEWEST_EVALUATED} or more, "
                f"got {self.calculate_fid_num_images}."
            )

    @property
    def results(self):
        """Folder of this run's previews and logs."""
        return Path(self.results_dir) / self.name

    @property
    def packs(self):
        """Folder of the volumes packed by `--cache disk`, of all runs."""
        return Path(self.results_dir) / "packed"

    @property
    def models(self):
        """Folder of this run's checkpoints."""
        return Path(self.models_dir) / self.name

    @property
    def shape(self):
        """Shape (D, H, W) of a volume inside the networks, voxels."""
        return (self.image_depth, self.image_size, self.image_size)

    @property
    def chosen_depth(self):
        """The depth if another than the default was asked for, else None."""
        return None if self.image_depth == TrainConfig.image_depth else self.image_depth

    def network(self):
        """Keyword arguments of `StyleGAN2` for this run."""
        return {name: getattr(self, name) for name in NETWORK_SETTINGS}


# Ranges of numbers, for all programs; every other number must be greater than 0.
LEAST = {
    "seed": 0,
    "volumes": 0,
    "num_workers": 0,
    "bootstrap": 0,
    "degrees": 0,
    "shift": 0,
    "load_from": -1,
    "model_from_epoch": -1,
}
SHARES = {"mixed_prob", "aug_prob", "dataset_aug_prob", "trunc_psi", "truncation_psi"}
SHARES |= {"generator_top_k_gamma", "generator_top_k_frac", "ada_target"}


def check_fields(config, choices):
    """Bring every field of a configuration into its type, or raise a ValueError that names the flag.

    Args:
        config: Dataclass; LEAST and SHARES hold the ranges of its numbers.
        choices: {field: words it knows}.
    """
    for field in fields(config):
        value = typed_value(field, getattr(config, field.name))
        setattr(config, field.name, value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            check_range(field.name, value)
        for word in value if isinstance(value, tuple) else (value,):
            if word is not None and field.name in choices and word not in choices[field.name]:
                raise ValueError(f"--{field.name} must be {' or '.join(choices[field.name])}, got {word!r}.")
        if field.name == "device":
            check_device_name(value)


def typed_value(field, value):
    """Value of a configuration field in the field's type, or a ValueError that names the flag."""
    optional = field.default is None
    kind = field.type if isinstance(field.type, type) else field.type.__args__[0]
    if optional and value is None:
        return None
    if kind is tuple:
        value = value.split(",") if isinstance(value, str) else value
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}[kind]
        raise ValueError(f"--{field.name} must be {expected}, got {value!r}.")
    return value


def check_range(name, value):
    """Raise a ValueError for a number outside its range."""
    if name in SHARES:
        if not 0 <= value <= 1:
            raise ValueError(f"--{name} must be between 0 and 1, got {value}.")
    elif name in LEAST:
        if value < LEAST[name]:
            raise ValueError(f"--{name} must be {LEAST[name]} or more, got {value}.")
    elif not (value > 0 and math.isfinite(value)):
        raise ValueError(f"--{name} must be greater than 0, got {value}.")


def check_networks(image_size, image_depth):
    """Raise a ValueError unless both sizes are powers of two and 4 <= image_depth <= image_size."""
    for name, value in (("image_size", image_size), ("image_depth", image_depth)):
        if value < 4 or value & (value - 1):
            raise ValueError(f"--{name} must be a power of two, at least 4 voxels, got {value}.")
    if image_depth > image_size:
        raise ValueError(
            f"--image_depth {image_depth} is larger than --image_size {image_size}: "
            f"choose 4 <= image_depth <= image_size."
        )


def check_layers(name, layers, blocks):
    """Raise a ValueError unless `layers` are different numbers of blocks, 1 to `blocks`."""
    numbers = all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= blocks for n in layers)
    if not numbers or len(set(layers)) < len(layers):
        given = ",".join(map(str, layers))
        raise ValueError(f"--{name} must be different numbers of blocks, 1 to {blocks}, got {given}.")


def check_device_name(name):
    """Raise a ValueError unless a name is auto, cpu, cuda or cuda:<n>."""
    kind, _, index = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdigit()):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:<n>, got {name!r}.")


def parse_cli(config_class, argv=None):
    """Build `config_class` from flags, and exit on an unknown flag or a wrong value before any work."""
    built = []

    def build(**flags):
        built.append(config_class(**flags))

    build.__doc__ = config_class.__doc__
    build.__signature__ = inspect.signature(config_class)
    keep_text = {f.name: str for f in fields(config_class) if f.type in (str, str | None)}
    fire.decorators.SetParseFns(**keep_text)(build)  # else `--name 20240101_1` becomes a number
    with one_line_errors():
        fire.Fire(build, command=argv)
    return built[0]


@contextlib.contextmanager
def one_line_errors():
    """Turn a user's mistake (ValueError) into one line on stderr and a non-zero exit."""
    try:
        yield
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from None


def choose_device(name):
    """torch.device for `--device`; auto takes the GPU where there is one, under torchrun one's own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name} is not there: PyTorch {torch.__version__} sees {torch.cuda.device_count()} "
            f"GPUs on this machine. Use --device cpu, or install a CUDA build of PyTorch."
        )
    return device


def choose_amp_dtype(name, device):
    """torch.dtype of mixed precision for `--amp_dtype`: float16 on a GPU, as published, bfloat16 on a CPU."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.bfloat16
    return getattr(torch, name)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Processes                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


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
    """

    rank: int = 0
    world: int = 1

    def part(self, batch):
        """This process's part of something with one entry per volume of the batch."""
        size = len(batch) // self.world
        return batch[self.rank * size : (self.rank + 1) * size]

    @contextlib.contextmanager
    def together(self):
        """Around what all processes do together: says so when another has ended."""
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"Another process of this training has ended ({reason}). The same command continues from the "
                f"last checkpoint."
            ) from None

    def gather(self, values):
        """The values of all processes, in order; gradients flow to one's own. Shapes: (b,) -> (b * world,)"""
        if self.world == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world)]
        with self.together():
            torch.distributed.all_gather(parts, values.detach().contiguous())
        parts[self.rank] = values
        return torch.cat(parts)

    def sum_(self, tensors):
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

    @contextlib.contextmanager
    def first_before_others(self):
        """Around what the first process does before the others do it."""
        if self.rank:
            self.wait()
        yield
        if self.rank == 0:
            self.wait()

    def share(self, number):
        """This process's range of `number` things that need not be equally many for all."""
        return range(self.rank * number // self.world, (self.rank + 1) * number // self.world)

    def collect(self, thing):
        """What every process has, as a list, for the first; None for the others."""
        if self.world == 1:
            return [thing]
        things = [None] * self.world if self.rank == 0 else None
        with self.together():
            torch.distributed.gather_object(thing, things)
        return things

    def wait(self):
        """Wait for all processes."""
        if self.world > 1:
            with self.together():
                torch.distributed.barrier()


class SharedRandom:
    """A numpy Generator whose draws are this process's part of those for the whole batch.

    Single draws are the same in all processes.
    """

    def __init__(self, rng, group):
        self.rng, self.group = rng, group

    def integers(self, low, high=None, size=None):
        """As numpy's."""
        if size is None:
            return self.rng.integers(low, high)
        return self.group.part(self.rng.integers(low, high, size * self.group.world))

    def random(self, size=None):
        """As numpy's."""
        return (
            self.rng.random() if size is None else self.group.part(self.rng.random(size * self.group.world))
        )


@contextlib.contextmanager
def process_group(device="cpu"):
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
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Group(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def only_first_prints(group):
    """Keep all processes but the first from printing what the first prints."""
    with contextlib.ExitStack() as stack:
        if group.rank:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield


def start_on_all_gpus():
    """`--multi_gpus`: start this command again by torchrun, with one process for each GPU of this machine."""
    number = torch.cuda.device_count()
    if number < 2:
        raise ValueError(f"--multi_gpus needs at least 2 GPUs, PyTorch {torch.__version__} sees {number}.")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Volumes and datasets                                                                                     ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def array_to_volume(array):
    """NIfTI array (X, Y, Z) -> network volume (1, Z, X, Y), in C order."""
    return rearrange(array, "x y z -> 1 z x y")


def volume_to_array(volume):
    """Network volume (1, Z, X, Y) -> NIfTI array (X, Y, Z)."""
    return rearrange(volume, "1 z x y -> x y z")


def find_volumes(folder, flag="--data"):
    """Sorted paths of all NIfTI files below `folder`; a ValueError that names the flag if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{flag} {folder} {state}: give the folder that holds the .nii or .nii.gz volumes.")
    names = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    paths = sorted(p for p in names if p.name.lower().endswith(NIFTI_SUFFIXES))
    if not paths:
        raise ValueError(f"{flag} {folder} holds no .nii or .nii.gz file ({len(names)} other files).")
    return paths


# What nibabel raises for damaged files.
UNREADABLE = (
    *(OSError, EOFError, ValueError, zlib.error),
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
)


def read_array(path, shape=None):
    """Read one NIfTI volume as it is, and check that it can be used.

    Args:
        path: .nii or .nii.gz file; further axes of length 1, as in (X, Y, Z, 1), are dropped.
        shape: Expected array shape (X, Y, Z) in voxels, or None for any.

    Returns:
        (array, image): float32 array (X, Y, Z), and the nibabel image for its affine.

    Raises:
        ValueError: The file cannot be used; the text says what was found, what is expected and what to do.
    """
    try:
        image = load_nifti(Path(path))
        array = image.get_fdata(dtype=np.float32, caching="unchanged") if is_grey(image) else None
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot be read ({reason}): copy it again or remove it") from None
    if array is None:
        raise ValueError(f"holds voxels of type {image.get_data_dtype()}, expected one number per voxel")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise ValueError(f"is {array.ndim}D {array.shape}, expected 3D (X, Y, Z): extract one volume")
    if shape is not None and array.shape != tuple(shape):
        raise ValueError(
            f"has {by(array.shape)} voxels, expected {by(shape)}: resample or crop it, "
            f"or set --image_size and --image_depth"
        )
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise ValueError(f"has NaN or Inf in {bad} of {array.size} voxels: repair or remove it")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise ValueError("has an affine that is singular or not finite: repair its header")
    if array.min() == array.max():
        raise ValueError(f"is constant (every voxel {array.min():g}): remove it")
    return array, image


def read_volume(path, shape=None):
    """Read one NIfTI volume and scale it to [0, 1] by its own minimum and maximum.

    Arguments and errors are those of `read_array`.

    Returns:
        (volume, image): float32 array (1, Z, X, Y) in [0, 1], and the nibabel image for its affine.
    """
    array, image = read_array(path, shape)
    low, high = array.min(), array.max()
    volume = np.ascontiguousarray(array_to_volume(array))
    volume -= low
    volume /= high - low
    return volume, image


def load_nifti(path):
    """nibabel image of a NIfTI-1 or NIfTI-2 file.

    A .gz is decompressed as a whole: nibabel would stop before the checksum at its end, and miss damage.
    """
    if not path.name.lower().endswith(".gz"):
        return nib.load(path)
    raw = gzip.decompress(path.read_bytes())
    kinds = [k for k in (nib.Nifti2Image, nib.Nifti1Image) if k.header_class.may_contain_header(raw[:540])]
    if not kinds:
        raise ValueError("no NIfTI header" if raw else "it is empty")
    return kinds[0].from_bytes(raw)


def is_grey(image):
    """True if a nibabel image holds one real number per voxel."""
    return image.get_data_dtype().names is None and image.get_data_dtype().kind != "c"


def file_digest(path):
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def by(shape):
    """(128, 128, 32) -> '128 x 128 x 32'."""
    return " x ".join(f"{n:g}" for n in shape)


def save_nifti(volume, affine, path):
    """Write a network volume (1, Z, X, Y) as 3D float32 NIfTI (X, Y, Z), marked as synthetic, atomically."""
    image = nib.Nifti1Image(volume_to_array(np.asarray(volume, dtype=np.float32)), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"SYNTHETIC 3D StyleGAN2 {__version__}".encode()
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    with atomic_path(path) as part:
        nib.save(image, part)


@contextlib.contextmanager
def atomic_path(path):
    """Path of a hidden file beside `path` that takes its place when the block ends without an error."""
    path = Path(path)
    part = path.with_name(
        f".part-{path.name}"
    )  # keeps the suffix, by which nibabel and PIL choose the format
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def next_free(path):
    """`path`, or the first of path-1, path-2, ... that does not exist."""
    path = Path(path)
    candidates = itertools.chain([path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(1)))
    return next(p for p in candidates if not p.exists())


@dataclass
class Audit:
    """What the check of a data folder found.

    Args:
        paths: The volumes, sorted.
        volumes: float32 tensor (N, 1, Z, X, Y) in [0, 1], a Pack of as many, or None without a cache.
        affine: The affine that most volumes have, (4, 4), mm.
        digest: SHA-256 over the contents of all volumes.
        summary: Lines for a person to read.
        classes: Classes of the volumes, or None.
    """

    paths: list
    volumes: "torch.Tensor | Pack | None"
    affine: np.ndarray
    digest: str
    summary: list
    classes: "Classes | None" = None


@dataclass
class Classes:
    """The classes of a data set.

    Args:
        names: Their names, sorted.
        of_volumes: Number of every volume's class, (N,) int64.
        balanced: All are shown equally often.
    """

    names: list
    of_volumes: np.ndarray
    balanced: bool = False

    def shares(self):
        """How often each class is shown. Shapes: -> (classes,), sum 1"""
        counts = np.bincount(self.of_volumes, minlength=len(self.names))
        return np.full(len(self.names), 1 / len(self.names)) if self.balanced else counts / counts.sum()

    def summary(self):
        """Line for a person to read."""
        counts = np.bincount(self.of_volumes, minlength=len(self.names))
        return "classes: " + ", ".join(f"{name} ({n})" for name, n in zip(self.names, counts, strict=True))


def draw_classes(shares, uniform):
    """Classes drawn by uniform numbers in [0, 1). Shapes: (classes,), (B,) -> (B,) int64"""
    return np.searchsorted(np.cumsum(shares)[:-1], uniform, side="right")


def read_classes(labels, folder, balanced=False):
    """The class of every volume, in the order of `find_volumes`.

    Args:
        labels: "folders" for the first folder below `folder`, or a CSV file with columns file and label, of
            which file is the path below `folder`.
        folder: Data folder.
        balanced: Show all equally often.

    Raises:
        ValueError: A volume has no class, or there are fewer than two classes.
    """
    names = [path.relative_to(folder).as_posix() for path in find_volumes(folder)]
    if labels == "folders":
        of = {name: name.split("/")[0] for name in names if "/" in name}
        remedy = "put it into a folder named after its class"
    else:
        of = read_label_table(labels)
        remedy = f"add a row to {labels}"
    lacking = [name for name in names if not of.get(name)]
    if lacking:
        listed = ", ".join(lacking[:MAX_FILES_NAMED])
        found = f"{len(lacking)} of {len(names)} volumes in {folder} have no class"
        raise ValueError(f"{found}: {remedy}: {listed}.")
    found = sorted({of[name] for name in names})
    if len(found) < 2:
        raise ValueError(f"--labels {labels} gives every volume the class {found[0]}: it needs two or more.")
    return Classes(found, np.array([found.index(of[name]) for name in names]), balanced)


def read_label_table(path):
    """{file: label} of a CSV file."""
    if not Path(path).is_file():
        raise ValueError(f"--labels {path} is no file: give folders, or a CSV file of file and label.")
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"file", "label"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} has columns {rows.fieldnames}, expected file and label.")
        of = {}
        for row in rows:
            name, label = row["file"], (row["label"] or "").strip()
            if of.setdefault(name, label) != label:
                raise ValueError(f"{path} gives {name} two labels, {of[name]} and {label}: keep one.")
    return of


def audit_volumes(folder, shape, batch_size=1, keep=True, store=None):
    """Read every volume of a folder once, check it, and keep it if asked.

    Args:
        folder: Folder of NIfTI files.
        shape: Expected shape (X, Y, Z), voxels.
        batch_size: Fewest volumes that training needs.
        keep: Keep the decoded volumes in memory.
        store: Function of (index, volume, image) that keeps them elsewhere.

    Returns:
        Audit.

    Raises:
        ValueError: One line for every file that cannot be used, or what is wrong with the folder.
    """
    paths = find_volumes(folder)
    size = packed_shape(len(paths), shape)
    keep = keep and store is None
    check_memory(4 * math.prod(size), keep)
    volumes = torch.empty(size) if keep else None

    def check(index):
        try:
            volume, image = read_volume(paths[index], shape)
        except ValueError as error:
            return f"{paths[index]} {error}"
        if keep:
            volumes[index] = torch.from_numpy(volume)
        if store is not None:
            store(index, volume, image)
        spacing = tuple(np.round(nib.affines.voxel_sizes(image.affine), 3))
        return (
            hashlib.sha256(volume).hexdigest(),
            spacing,
            "".join(nib.aff2axcodes(image.affine)),
            image.affine,
        )

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(tqdm(pool.map(check, range(len(paths))), "Checking volumes", len(paths), leave=False))
    problems = [f for f in found if isinstance(f, str)]
    good = [(path, *f) for path, f in zip(paths, found, strict=True) if not isinstance(f, str)]
    problems += duplicates_among([(path, digest) for path, digest, *_ in good])
    refuse_unusable(problems, len(paths), folder)
    check_number(len(paths), batch_size, folder)
    affines = Counter(tuple(np.round(affine, 4).ravel()) for *_, affine in good)
    return Audit(
        paths=paths,
        volumes=volumes,
        affine=np.reshape(affines.most_common(1)[0][0], (4, 4)),
        digest=hashlib.sha256("".join(digest for _, digest, *_ in good).encode()).hexdigest(),
        summary=summarize(shape, good),
    )


def refuse_unusable(problems, number, folder):
    """Raise a ValueError with one line for every problem, if there is any."""
    if problems:
        more = [f"... and {len(problems) - MAX_FILES_NAMED} more"] if len(problems) > MAX_FILES_NAMED else []
        listed = "\n  ".join(problems[:MAX_FILES_NAMED] + more)
        raise ValueError(f"{len(problems)} of the {number} volumes in {folder} cannot be used:\n  {listed}")


def check_number(number, batch_size, folder):
    """Raise a ValueError if the volumes of a folder do not make one batch."""
    if number < batch_size:
        raise ValueError(
            f"{folder} holds {number} volumes, fewer than a batch of {batch_size}: "
            f"add volumes or set --batch_size {number}."
        )


def check_memory(needed, keep):
    """Raise a ValueError if caching `needed` bytes cannot fit into this machine's memory."""
    if keep and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > 0.9 * total:
            raise ValueError(
                f"The decoded volumes need {needed / 2**30:.1f} GiB, this machine has "
                f"{total / 2**30:.1f}: use --cache disk."
            )


def duplicates_among(digests):
    """Lines that name every file whose voxels equal an earlier file's; `digests` are (path, digest) pairs."""
    first = {}
    for path, digest in digests:
        first.setdefault(digest, path)
    return [
        f"{path} has the same voxels as {first[digest]}: remove one"
        for path, digest in digests
        if path != first[digest]
    ]


def summarize(shape, good):
    """Lines on number, shape, spacing and orientation of checked volumes; more than one kind is a warning."""
    spacings = Counter(spacing for _, _, spacing, _, _ in good)
    orientations = Counter(orientation for _, _, _, orientation, _ in good)
    lines = [f"{len(good)} volumes of {by(shape)} voxels"]
    lines.append("spacing (mm): " + ", ".join(f"{by(s)} ({n})" for s, n in spacings.most_common(5)))
    lines.append("orientation: " + ", ".join(f"{o} ({n})" for o, n in orientations.most_common(5)))
    if len(spacings) > 1:
        lines.append(f"warning: {len(spacings)} different spacings; the model knows voxels, not mm.")
    if len(orientations) > 1:
        lines.append("warning: volumes of different orientation; the model will mix them up. Reorient them.")
    return lines


def packed_shape(number, shape):
    """Shape of `number` network volumes for NIfTI arrays of a shape (X, Y, Z)."""
    return (number, 1, shape[2], shape[0], shape[1])


class Pack:
    """Volumes in one memory-mapped file, for data sets larger than memory; made by `pack_volumes`.

    volumes.npy holds (N, 1, Z, X, Y) numbers. If every source has integers of at most 16 bits, they are uint8
    or uint16, counted from the volume's minimum, and exact; else float16 in [0, 1], within 2^-12.

    Args:
        folder: Folder with volumes.npy and index.json.

    Raises:
        ValueError: The files do not belong together.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            self.index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            self.voxels = np.load(self.folder / "volumes.npy", mmap_mode="r")
            fits = self.voxels.shape == packed_shape(len(self.index["files"]), self.index["shape"])
        except (OSError, ValueError, KeyError):
            fits = False
        if not fits:
            self.refuse("is not complete")

    def refuse(self, reason):
        """Raise a ValueError with the remedy."""
        raise ValueError(f"{self.folder} {reason}: remove this folder; the volumes are then packed again.")

    def __reduce__(self):
        return Pack, (self.folder,)  # else a process that reads volumes would be sent them all

    def __len__(self):
        return len(self.voxels)

    def __getitem__(self, index):
        volume = torch.from_numpy(self.voxels[index].astype(np.float32))
        return volume.div_(self.index["files"][index]["levels"])

    def check(self):
        """Compare every volume with its checksum; a ValueError names what is damaged."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            sums = tqdm(pool.map(zlib.crc32, self.voxels), "Checking the pack", len(self), leave=False)
            for file, found in zip(self.index["files"], sums, strict=True):
                if file["crc32"] != found:
                    self.refuse(f"is damaged in the volume of {file['name']}")

    def audit(self, folder):
        """The Audit that was made of the sources, which are in `folder` now."""
        index = self.index
        paths = [Path(folder) / file["name"] for file in index["files"]]
        return Audit(paths, self, np.array(index["affine"]), index["digest"], index["summary"])


def stamps_of(folder):
    """What tells without reading whether the files of a data folder changed: names, sizes, times."""
    found = [(path, path.stat()) for path in find_volumes(folder)]
    return [
        {"name": p.relative_to(folder).as_posix(), "size": s.st_size, "mtime_ns": s.st_mtime_ns}
        for p, s in found
    ]


def find_pack(stamps, shape, packs):
    """The Pack of the files with these stamps among those in the folder `packs`, or None."""
    for path in sorted(Path(packs).glob("[!.]*/index.json")):
        index = json.loads(path.read_text(encoding="utf-8"))
        known = [{name: file[name] for name in stamps[0]} for file in index["files"]]
        if known == stamps and index["shape"] == list(shape):
            return Pack(path.parent)
    return None


def packed_dtype(paths):
    """Type that holds the voxels of all these files: uint8, uint16 or float16."""

    def needed(path):
        try:
            kind = nib.load(path).get_data_dtype()
        except UNREADABLE:
            return np.float16  # the audit names the file
        return {1: np.uint8, 2: np.uint16}.get(kind.itemsize, np.float16) if kind.kind in "iu" else np.float16

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        types = set(pool.map(needed, paths))
    return np.dtype(next(t for t in (np.float16, np.uint16, np.uint8) if t in types))


def pack_volumes(folder, shape, batch_size, packs):
    """`audit_volumes` whose volumes are in a Pack: the one that there is, or a new one.

    A pack is named after the volumes' content, so that runs share it; names, sizes and times of the files
    tell whether it can be taken without reading them.

    Args:
        folder, shape, batch_size: As for `audit_volumes`.
        packs: Folder of all packs.

    Raises:
        ValueError: The volumes cannot be used, the pack is damaged, or the disk is full.
    """
    packs, files = Path(packs), stamps_of(folder)
    pack = find_pack(files, shape, packs)
    if pack is not None:
        check_number(len(pack), batch_size, folder)
        pack.check()
        return pack.audit(folder)
    paths = [Path(folder) / file["name"] for file in files]
    dtype, size = packed_dtype(paths), packed_shape(len(paths), shape)
    packs.mkdir(parents=True, exist_ok=True)
    needed, free = dtype.itemsize * math.prod(size), shutil.disk_usage(packs).free
    if needed > free:
        raise ValueError(
            f"The packed volumes need {needed / 2**30:.1f} GiB, {packs} has {free / 2**30:.1f} free: make "
            f"room, or give another --results_dir."
        )
    part = packs / f".part-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        voxels = np.lib.format.open_memmap(part / "volumes.npy", "w+", dtype, size)

        def store(index, volume, image):
            levels = 1
            if dtype.kind == "u":
                raw = np.asanyarray(image.dataobj.get_unscaled())
                levels = int(raw.max()) - int(raw.min())
                volume = np.rint(volume * levels)
            voxels[index] = volume
            files[index] |= {"levels": levels, "crc32": zlib.crc32(voxels[index])}

        audit = audit_volumes(folder, shape, batch_size, store=store)
        voxels.flush()
        index = {"shape": list(shape), "digest": audit.digest, "affine": audit.affine.tolist()}
        index |= {"summary": audit.summary, "files": files}
        (part / "index.json").write_text(json.dumps(index), encoding="utf-8")
        final = packs / f"{audit.digest[:16]}-{dtype}"
        if final.exists():  # the same volumes, in files of other names or times
            os.replace(part / "index.json", final / "index.json")
        else:
            part.rename(final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Pack(final).audit(folder)


class VolumeDataset(Dataset):
    """Training volumes; an item is asked for by (index, flip), so that who reads it changes nothing.

    Shapes: (index, flip) -> (1, Z, X, Y) float32 in [0, 1], index
    """

    def __init__(self, audit):
        self.paths = audit.paths
        self.volumes = audit.volumes

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, key):
        index, flip = key
        if self.volumes is not None:
            volume = self.volumes[index]
        else:
            volume = torch.from_numpy(read_volume(self.paths[index])[0])
        return (volume.flip(LEFT_RIGHT) if flip else volume), index


LEFT_RIGHT = -2  # axis H of (..., D, H, W): the NIfTI array's first axis


class SeededBatches(Sampler):
    """Endless batches of (index, flip), a function of seed and batch number; an epoch repeats no volume.

    Args:
        length: Volumes in the data set.
        batch_size: Volumes in a batch, of all processes together; the rest of an epoch is dropped.
        flip_prob: Probability of a left-right flip.
        key: Seed of the order, a tuple of integers >= 0.
        start: Number of the first batch, counted from the start of the training.
        group: Group; every process gets its part of each batch.
        classes: Classes; if they are balanced, an epoch has as many volumes of each, some of them again.
    """

    def __init__(self, length, batch_size, flip_prob, key, start=0, group=None, classes=None):
        self.length, self.batch_size, self.flip_prob = length, batch_size, flip_prob
        self.key, self.start, self.group, self.classes = key, start, group or Group(), classes

    def __iter__(self):
        per_epoch = self.length // self.batch_size
        for number in itertools.count(self.start):
            epoch, batch = divmod(number, per_epoch)
            if batch == 0 or number == self.start:
                order = self.order(host_random(*self.key, STREAM_ORDER, epoch))
            flips = host_random(*self.key, STREAM_FLIP, number).random(self.batch_size) < self.flip_prob
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self.group.part(list(zip(chosen.tolist(), flips.tolist(), strict=True)))

    def order(self, rng):
        """Indices of the volumes of an epoch. Shapes: -> (length,)"""
        if self.classes is None or not self.classes.balanced:
            return rng.permutation(self.length)
        number = len(self.classes.names)
        chosen = []
        for place, c in enumerate(rng.permutation(number)):
            members = np.flatnonzero(self.classes.of_volumes == c)
            quota = self.length // number + (place < self.length % number)
            rounds = [rng.permutation(members) for _ in range(-(-quota // len(members)))]
            chosen.append(np.concatenate(rounds)[:quota])
        return rng.permutation(np.concatenate(chosen))


def ignore_interrupts(_):
    """Leave Ctrl-C to the main process: a decoding worker must not die of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def make_loader(dataset, batches, num_workers, device):
    """Iterator of (volumes (B, 1, Z, X, Y), indices (B,)) in the order of `batches`."""
    if num_workers is None:
        num_workers = 0 if dataset.volumes is not None else min(4, os.cpu_count() or 1)
    return iter(
        DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_interrupts,
            generator=torch.Generator(),  # else opening a loader would advance the global random state
        )
    )


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Differentiable augmentation                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def diff_augment(volumes, types, rng, spacing=(1, 1, 1)):
    """Augment a micro-batch with gradients (DiffAugment, Zhao et al. 2020, arXiv:2006.10738, Sec. 3).

    Args:
        volumes: (B, 1, D, H, W).
        types: Names out of AUGMENTATIONS, applied in this order.
        rng: numpy Generator; every volume gets its own draw.
        spacing: Size (d, h, w) of a voxel, mm.
    """
    for name in types:
        if name in ("translation", "cutout", "contrast"):
            volumes = AUGMENTATIONS[name](volumes, rng)
            continue
        known_size = {"spacing": spacing} if name in ("rotation", "scaling") else {}
        with torch.autocast(volumes.device.type, enabled=False):  # interpolation needs float32
            volumes = AUGMENTATIONS[name](volumes.float(), rng, **known_size).to(volumes.dtype)
    return volumes


def translate(volumes, rng, ratio=0.125):
    """Shift every volume by up to `ratio` of each axis, in whole voxels; zeros enter."""
    sizes = volumes.shape[2:]
    reach = [int(size * ratio + 0.5) for size in sizes]
    shifts = [rng.integers(-r, r + 1, len(volumes)) for r in reach]
    return shift_volumes(volumes, np.stack(shifts, axis=1))


def shift_volumes(volumes, shifts):
    """Move volume b by shifts[b] = (d, h, w) voxels; zeros enter, and shift 0 is the identity."""
    if not np.any(shifts):
        return volumes
    reach = np.abs(shifts).max(axis=0)
    padded = F.pad(volumes, [int(r) for r in reach[::-1] for _ in range(2)])
    moved = []
    for volume, shift in zip(padded, shifts, strict=True):
        window = (
            slice(int(r - s), int(r - s) + n) for r, s, n in zip(reach, shift, volumes.shape[2:], strict=True)
        )
        moved.append(volume[(slice(None), *window)])
    return torch.stack(moved)


def cutout(volumes, rng, ratio=0.5):
    """Set a box of `ratio` of each edge to zero, at a random place that may lie partly outside."""
    inside = volumes.new_ones(())
    for axis, size in enumerate(volumes.shape[2:], start=2):
        box = int(size * ratio + 0.5)
        start = rng.integers(0, size + 1 - box % 2, len(volumes)) - box // 2
        start = torch.from_numpy(start).to(volumes.device).view(-1, 1)
        position = torch.arange(size, device=volumes.device)
        covered = (position >= start) & (position < start + box)  # (B, size)
        shape = [len(volumes), 1, 1, 1, 1]
        shape[axis] = size
        inside = inside * covered.view(shape)
    return volumes * (1 - inside).to(volumes.dtype)


def contrast(volumes, rng):
    """Scale every volume about its mean by a factor in [0.5, 1.5)."""
    factor = torch.from_numpy(rng.random(len(volumes)) + 0.5).to(volumes).view(-1, 1, 1, 1, 1)
    mean = volumes.mean(dim=(1, 2, 3, 4), keepdim=True)
    return (volumes - mean) * factor + mean


class Resampling(torch.autograd.Function):
    """Trilinear sampling of x at `grid`, zeros outside; unlike PyTorch's, with gradients of any order in x.

    Sampling is linear in x, so that the gradient of its gradient is the sampling again.
    """

    @staticmethod
    def forward(ctx, x, grid):
        ctx.save_for_backward(grid)
        ctx.shape = x.shape
        return F.grid_sample(x, grid, align_corners=False)

    @staticmethod
    def backward(ctx, gradient):
        return ResamplingAdjoint.apply(gradient, ctx.saved_tensors[0], ctx.shape), None


class ResamplingAdjoint(torch.autograd.Function):
    """The transposed matrix of `Resampling`."""

    @staticmethod
    def forward(ctx, gradient, grid, shape):
        ctx.save_for_backward(grid)
        like = gradient.new_empty(1).expand(shape)
        wanted = (True, False)
        return torch.ops.aten.grid_sampler_3d_backward(gradient, like, grid, 0, 0, False, wanted)[0]

    @staticmethod
    def backward(ctx, gradient):
        return Resampling.apply(gradient, ctx.saved_tensors[0]), None, None


def transform_volumes(volumes, matrices, spacing):
    """Volumes seen through linear maps of millimetres about their centre; zeros enter.

    Shapes:
        volumes:  (B, 1, D, H, W)
        matrices: (B, 3, 3) numpy, from a place (d, h, w) in the result to its place in the source, mm
        return:   (B, 1, D, H, W)
    """
    half = np.array(volumes.shape[2:]) * np.array(spacing) / 2  # mm that are 1 in grid_sample's coordinates
    scaled = matrices * half / half[:, None]
    theta = np.zeros((len(volumes), 3, 4), np.float32)
    theta[:, :, :3] = scaled[:, ::-1, ::-1]  # its axes are (w, h, d)
    grid = F.affine_grid(torch.from_numpy(theta).to(volumes.device), list(volumes.shape), align_corners=False)
    return Resampling.apply(volumes, grid)


def rotate(volumes, rng, spacing, degrees=10):
    """Turn every volume about a random axis by up to `degrees`, in millimetres, about its centre."""
    height, around, turn = (rng.random(len(volumes)) for _ in range(3))
    z = 2 * height - 1  # an axis uniform on the sphere
    radius, around = np.sqrt(1 - z**2), 2 * np.pi * around
    axes = np.stack([z, radius * np.cos(around), radius * np.sin(around)], axis=1)
    turns = Rotation.from_rotvec(axes * ((2 * turn - 1) * degrees)[:, None], degrees=True)
    return transform_volumes(volumes, turns.as_matrix(), spacing)


def scale(volumes, rng, spacing, strength=0.1):
    """Enlarge or shrink every volume by exp(u), u uniform in +-strength, about its centre."""
    factors = np.exp((2 * rng.random(len(volumes)) - 1) * strength)
    return transform_volumes(volumes, np.eye(3) * factors[:, None, None], spacing)


def bias_field(volumes, rng, strength=0.2, points=4):
    """Multiply every volume by a smooth field exp(f), f of points^3 uniform values in +-strength."""
    shape = (len(volumes), 1, points, points, points)
    coarse = torch.from_numpy(2 * rng.random(math.prod(shape)) - 1).reshape(shape).to(volumes)
    field = F.interpolate(coarse * strength, volumes.shape[2:], mode="trilinear", align_corners=True)
    return volumes * field.exp()


def rician_noise(volumes, rng, strength=0.05):
    """Noise of a magnitude image (Gudbjartsson & Patz 1995), of a deviation up to `strength` for each volume.

    x + |max(x, 0) + n1 + i n2| - max(x, 0), with n1, n2 normal; a generated voxel below 0 stays below.
    """
    deviation = rng.random(len(volumes)) * strength
    seeds = rng.integers(0, 2**31, len(volumes))
    noisy = []
    for volume, sigma, seed in zip(volumes, deviation, seeds, strict=True):
        if sigma == 0:
            noisy.append(volume)
            continue
        generator = device_random(volume.device, int(seed))
        n1, n2 = (torch.randn(volume.shape, device=volume.device, generator=generator) for _ in range(2))
        signal = volume.clamp_min(0)
        noisy.append(volume - signal + torch.hypot(signal + float(sigma) * n1, float(sigma) * n2))
    return torch.stack(noisy)


def blur(volumes, rng, strength=1.0):
    """Smooth every volume by a Gaussian of a deviation up to `strength` voxels; borders are replicated."""
    from kornia.filters import get_gaussian_kernel1d

    sigma = torch.from_numpy(rng.random(len(volumes)) * strength).to(volumes).clamp_min(1e-3)
    reach = math.ceil(3 * strength)
    kernels = get_gaussian_kernel1d(2 * reach + 1, sigma[:, None])  # (B, taps)
    x = volumes.transpose(0, 1)  # (1, B, D, H, W): one group for each volume
    for axis in range(3):
        shape, padding = [1, 1, 1], [0] * 6
        shape[axis] = -1
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = reach
        weight = kernels.view(len(volumes), 1, *shape)
        x = F.conv3d(F.pad(x, padding, mode="replicate"), weight, groups=len(volumes))
    return x.transpose(0, 1)


AUGMENTATIONS = {
    "translation": translate,
    "cutout": cutout,
    "contrast": contrast,
    "rotation": rotate,
    "scaling": scale,
    "bias_field": bias_field,
    "noise": rician_noise,
    "blur": blur,
}


class AdaptiveAugmentation:
    """Adaptive discriminator augmentation (Karras et al. 2020, arXiv:2006.06676, Sec. 3, Eq. 1).

    r = mean of the sign of D's output for real volumes, positive where it takes them for real: 0 without
    overfitting, 1 when none is mistaken. The probability of augmentation rises while r is above its target.

    Args:
        prob: Probability at the start.
        target: The wanted r.
        volumes: Volumes in which the probability can go from 0 to 1.
    """

    def __init__(self, prob, target, volumes):
        self.prob, self.target, self.volumes = prob, target, volumes
        self.signs, self.seen = 0.0, 0

    def observe(self, real_logits):
        """Count D's outputs for real volumes, which are negative for what it takes for real. Shapes: (B,)"""
        self.signs = self.signs - real_logits.detach().sign().sum()
        self.seen += len(real_logits)

    def update(self):
        """Move the probability by the share of `volumes` that was seen since the last time."""
        change = math.copysign(self.seen / self.volumes, float(self.signs) / self.seen - self.target)
        self.prob = min(max(self.prob + change, 0.0), 1.0)
        self.signs, self.seen = 0.0, 0

    def state(self):
        """What a checkpoint holds."""
        return {"prob": self.prob, "signs": float(self.signs), "seen": self.seen}

    def load(self, state):
        """Take up the state of a checkpoint."""
        self.prob, self.signs, self.seen = state["prob"], state["signs"], state["seen"]


def augment(volumes, prob, types, rng, spacing=(1, 1, 1)):
    """With probability `prob`, a left-right flip with probability 0.5, and `diff_augment`; else no change."""
    if prob and rng.random() < prob:
        if rng.random() < 0.5:
            volumes = volumes.flip(LEFT_RIGHT)
        volumes = diff_augment(volumes, types, rng, spacing)
    return volumes


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Layers                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def leaky_relu():
    """The networks' only nonlinearity: LeakyReLU of slope 0.2, no gain, in place."""
    return nn.LeakyReLU(SLOPE, inplace=True)


class Smoothing(torch.autograd.Function):
    """[1, 2, 1] / 4 along three axes with replicated borders, as shifted sums: no kernel of 27 taps.

    With such borders the filter is a symmetric matrix, so it is its own gradient, of any order.
    """

    @staticmethod
    def forward(ctx, x):
        for axis in (2, 3, 4):
            last = x.shape[axis] - 1
            y = x * 0.5
            for to, source, length in ((1, 0, last), (0, 1, last), (0, 0, 1), (last, last, 1)):
                y.narrow(axis, to, length).add_(x.narrow(axis, source, length), alpha=0.25)
            x = y
        return x

    @staticmethod
    def backward(ctx, gradient):
        return Smoothing.apply(gradient)


class Blur(nn.Module):
    """Low-pass filter: the outer product of [1, 2, 1] three times, normalised to sum 1, replicated borders.

    Shapes: (B, C, D, H, W) -> (B, C, D, H, W)
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))  # as in the original's state dict

    def forward(self, x):
        return Smoothing.apply(x)


class MappingLinear(nn.Module):
    """Linear layer whose weight and bias are multiplied by `lr_mul`, with N(0, 1) weights.

    Differs from the paper: no 1 / sqrt(fan_in).

    Shapes: (B, in) -> (B, out)
    """

    def __init__(self, in_features, out_features, lr_mul=0.1):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.lr_mul = lr_mul

    def forward(self, x):
        return F.linear(x, self.weight * self.lr_mul, self.bias * self.lr_mul)


def product_dtype():
    """Type for small matrix products: float64 without gradients, so that batches do not change a volume.

    The rounding of a float32 product changes with its number of rows.
    """
    return torch.float32 if torch.is_grad_enabled() else torch.float64


class StyleLinear(nn.Linear):
    """Affine map from w to one layer's style ("A" in StyleGAN2's Fig. 2), never in half precision."""

    def forward(self, w):
        dtype = product_dtype()
        with torch.autocast(w.device.type, enabled=False):
            return F.linear(w.to(dtype), self.weight.to(dtype), self.bias.to(dtype)).float()


class Conv3DMod(nn.Module):
    """Modulated 3D convolution (Karras et al. 2020, arXiv:1912.04958, Sec. 2.2).

    The style scales the input channels of the kernel; demodulation restores unit norm per output channel:

        w'[o,i,k]  = s[i] * w[o,i,k]
        w''[o,i,k] = w'[o,i,k] / sqrt(sum_ik w'[o,i,k]^2 + eps)

    Computed by scaling the channels of x before and after one convolution that the whole batch shares;
    sum_ik w'^2 = sum_i s[i]^2 * sum_k w[o,i,k]^2 needs no kernel per sample.

    Differs from the paper: s = 1 + style, as in lucidrains/stylegan2-pytorch, so that a zero style leaves the
    kernel as it is.

    Shapes:
        x:      (B, C_in, D, H, W); without gradients, it is overwritten
        style:  (B, C_in)
        return: (B, C_out, D, H, W)
    """

    def __init__(self, in_channels, out_channels, kernel_size, eps=1e-8):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *3 * [kernel_size]))
        nn.init.kaiming_normal_(self.weight, a=0, mode="fan_in", nonlinearity="leaky_relu")
        self.padding = kernel_size // 2
        self.eps = eps

    def forward(self, x, style):
        s = 1 + style
        with torch.autocast(x.device.type, enabled=False):  # a sum of squares overflows float16
            dtype = product_dtype()
            kernel_power = self.weight.float().square().sum(dim=(2, 3, 4)).to(dtype)  # (C_out, C_in)
            norm = (s.to(dtype).square() @ kernel_power.T + self.eps).rsqrt().float()  # (B, C_out)
            largest = s.detach().abs().amax(dim=1, keepdim=True).clamp_min(self.eps)  # keeps float16 in range
        x = F.conv3d(times_(x, as_channels(s / largest, x)), self.weight, padding=self.padding)
        return times_(x, as_channels(norm * largest, x))


def reliably(layer, x):
    """layer(x), without autocast where the CPU's bfloat16 convolution is wrong.

    On a CPU, PyTorch 2.15.0 returns garbage as the weight gradient of a bfloat16 3x3x3 convolution over 2
    slices. Layers that small cost next to nothing in float32.
    """
    if x.device.type != "cpu" or x.shape[2] > 2:
        return layer(x)
    with torch.autocast("cpu", enabled=False):
        return layer(x.to(torch.promote_types(x.dtype, torch.float32)))


def as_channels(values, x):
    """(B, C) or (C,) values as factors or terms for the channels of x (B, C, D, H, W), in x's dtype."""
    return values.to(x.dtype).view(*values.shape, 1, 1, 1)


def times_(x, factor):
    """x * factor, in x's own memory where no gradient needs it."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def voxels_first(x):
    """(B, C, D, H, W) -> (B, D * H * W, C), a view where the channels come last in memory."""
    return x.movedim(1, -1).flatten(1, 3)


def add_noise_(x, noise, layer):
    """x + Linear(1, C)(noise), in x's own memory.

    As a product of matrices, [noise, 1] @ [weight, bias], added to x in one pass; on a CPU in bfloat16,
    adding the bias and the noise by broadcasting takes forty times as long.

    Shapes:
        x:      (B, C, D, H, W), overwritten
        noise:  (B, D * H * W, 2), of which the second is 1
        return: (B, C, D, H, W)
    """
    factors = torch.stack([layer.weight.squeeze(1), layer.bias]).to(x.dtype)  # (2, C)
    with torch.autocast(x.device.type, enabled=False):
        voxels = voxels_first(x).baddbmm_(noise.to(x.dtype), factors.expand(len(x), -1, -1))
    return voxels.unflatten(1, x.shape[2:]).movedim(-1, 1)


class ModulatedSum(nn.Module):
    """Modulated 1x1x1 convolution to one channel, without demodulation: a sum over channels for each sample.

    As a product of matrices it reads x once; the convolution would need x times the style first.

    Shapes:
        x:      (B, C, D, H, W)
        style:  (B, C)
        return: (B, 1, D, H, W)
    """

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, 1, 1, 1))
        nn.init.kaiming_normal_(self.weight, a=0, mode="fan_in", nonlinearity="leaky_relu")

    def forward(self, x, style):
        factors = (1 + style) * self.weight.view(1, -1)  # (B, C)
        return (voxels_first(x) @ factors.to(x.dtype)[..., None]).view(len(x), 1, *x.shape[2:])


class ChannelNorm(nn.Module):
    """Every voxel's channels with mean 0 and variance 1, then a learned factor and term for each channel.

    Shapes: (B, C, D, H, W) -> the same
    """

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(channels))
        self.term = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x):
        variance, mean = torch.var_mean(x.float(), dim=1, correction=0, keepdim=True)
        x = (x - mean) * (variance + self.eps).rsqrt()
        return x * as_channels(self.factor, x) + as_channels(self.term, x)


class LinearAttention(nn.Module):
    """Attention of every voxel to all voxels, at linear cost (Shen et al. 2018, arXiv:1812.01243, Sec. 3).

        softmax_channels(Q) / sqrt(c) (softmax_voxels(K)^T V), for each head of c channels

    K and V come from a depthwise and a pointwise convolution. Differs from the 2D ancestor: heads of C / 4
    channels, from 8 to 64, where it has 64; a volume has so many more voxels than an image.

    Shapes: (B, C, D, H, W) -> the same
    """

    def __init__(self, channels, heads=8):
        super().__init__()
        head = min(64, max(8, channels // 4))
        self.heads = heads
        self.to_q = nn.Conv3d(channels, heads * head, 1, bias=False)
        self.to_kv = nn.Sequential(
            nn.Conv3d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv3d(channels, 2 * heads * head, 1, bias=False),
        )
        self.to_out = nn.Conv3d(heads * head, channels, 1)

    def forward(self, x):
        q, k, v = (
            rearrange(t, "b (h c) x y z -> b h (x y z) c", h=self.heads)
            for t in (self.to_q(x), *self.to_kv(x).chunk(2, dim=1))
        )
        q = (q.float().softmax(dim=-1) * q.shape[-1] ** -0.5).to(v.dtype)
        k = k.float().softmax(dim=-2).to(v.dtype)
        out = F.gelu(q @ (k.transpose(-1, -2) @ v))  # (B, heads, voxels, c)
        out = out.transpose(-1, -2).reshape(len(x), -1, *x.shape[2:])
        return self.to_out(out)


class AttentionBlock(nn.Module):
    """Residual linear attention, then two residual pointwise convolutions, each after a ChannelNorm.

    Shapes: (B, C, D, H, W) -> the same
    """

    def __init__(self, channels):
        super().__init__()
        self.attention = nn.Sequential(ChannelNorm(channels), LinearAttention(channels))
        self.feed_forward = nn.Sequential(
            ChannelNorm(channels),
            nn.Conv3d(channels, 2 * channels, 1),
            leaky_relu(),
            nn.Conv3d(2 * channels, channels, 1),
        )

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.feed_forward(x)


class FeatureQuantizer(nn.Module):
    """Replace every voxel's features by the nearest code (Zhao et al. 2020, arXiv:2004.02088, Sec. 3).

    Gradients pass straight through; the codes are moving averages of what they replaced, and move only while
    `learning` is True.

    Shapes: (B, C, D, H, W) -> the same, commitment loss scalar
    """

    def __init__(self, channels, codes):
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.quantize = VectorQuantize(channels, codes, rotation_trick=False, accept_3d_fmap=True)
        self.learning = False
        self.taken = None  # 1 for each code that the last volumes took, else 0

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            quantized, indices, loss = self.quantize(x.float(), freeze_codebook=not self.learning)
        taken = torch.zeros(self.quantize.codebook_size, device=x.device)
        self.taken = taken.index_fill(0, indices.flatten(), 1)
        return quantized.to(x.dtype), loss.sum()


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Networks                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def growth_schedule(image_size, image_depth):
    """Factors (d, h, w) by which the generator's blocks enlarge their input: every axis not yet at its size.

    (128, 32) -> (1, 1, 1), then (2, 2, 2) three times, then (1, 2, 2) twice: 4 voxels grow to 32 x 128 x 128.
    """
    check_networks(image_size, image_depth)
    sizes, target, factors = (4, 4, 4), (image_depth, image_size, image_size), [(1, 1, 1)]
    while sizes != target:
        factors.append(tuple(2 if size < end else 1 for size, end in zip(sizes, target, strict=True)))
        sizes = tuple(size * factor for size, factor in zip(sizes, factors[-1], strict=True))
    return factors


def shrink_schedule(image_size, image_depth):
    """Strides (d, h, w) of the discriminator's blocks: every axis above 2 is halved, until all are 2."""
    check_networks(image_size, image_depth)
    sizes, strides = (image_depth, image_size, image_size), []
    while max(sizes) > 2:
        strides.append(tuple(2 if size > 2 else 1 for size in sizes))
        sizes = tuple(size // stride for size, stride in zip(sizes, strides[-1], strict=True))
    return strides


def run_block(block, *inputs, again=False):
    """A block's result; with `again`, what its gradient needs is computed again in the backward pass.

    Without gradients there is nothing to keep.
    """
    if not (again and torch.is_grad_enabled()):
        return block(*inputs)
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


def initialize(module):
    """Kaiming-normal weights of a convolution or linear layer, as published; biases as PyTorch has them."""
    if isinstance(module, nn.Conv3d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, a=0, mode="fan_in", nonlinearity="leaky_relu")


class StyleVectorizer(nn.Module):
    """Mapping network: z to the intermediate latent w (StyleGAN2, Fig. 2).

    With classes, z and an embedding of the class are normalised and joined, as in StyleGAN2-ADA
    (arXiv:2006.06676).

    Shapes: z (B, latent_dim), labels (B,) or None -> w (B, latent_dim)
    """

    def __init__(self, latent_dim=LATENT_DIM, style_depth=STYLE_DEPTH, lr_mlp=0.1, num_classes=0):
        super().__init__()
        widths = [latent_dim * (2 if num_classes else 1), *style_depth * [latent_dim]]
        layers = [(MappingLinear(*pair, lr_mlp), leaky_relu()) for pair in itertools.pairwise(widths)]
        self.net = nn.Sequential(*itertools.chain(*layers))
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None

    def forward(self, z, labels=None):
        x = F.normalize(z, dim=1)
        if self.embedding is not None:
            x = torch.cat([x, F.normalize(self.embedding(labels), dim=1)], dim=1)
        return self.net(x)


class ToGrayscale(nn.Module):
    """Grey volume of one block, added to the enlarged grey volume of the block before.

    Shapes:
        x:        (B, C, D, H, W)
        previous: (B, 1, D, H, W) or None
        w:        (B, latent_dim)
        return:   (B, 1, D', H', W'), enlarged unless this is the last block
    """

    def __init__(self, latent_dim, channels, enlarge):
        super().__init__()
        self.to_style = StyleLinear(latent_dim, channels)
        self.conv = ModulatedSum(channels)
        self.upsample = nn.Sequential(upsampling(enlarge), Blur()) if enlarge else None

    def forward(self, x, previous, w):
        x = self.conv(x, self.to_style(w))
        if previous is not None:
            x = x + previous
        return x if self.upsample is None else self.upsample(x)


def upsampling(factors):
    """Trilinear enlargement by (d, h, w) factors."""
    return nn.Upsample(scale_factor=tuple(map(float, factors)), mode="trilinear", align_corners=False)


class GeneratorBlock(nn.Module):
    """Enlarge, then twice: modulated convolution, noise, LeakyReLU.

    Shapes:
        x:        (B, C_in, D, H, W)
        grey:     (B, 1, D', H', W') or None, at this block's size
        w:        (B, latent_dim)
        noise:    (B, >= D', >= H', >= W', 1), its first corner is used
        return:   (B, C_out, D', H', W'), grey volume at the next block's size
    """

    def __init__(self, latent_dim, in_channels, out_channels, enlarge, enlarge_next):
        super().__init__()
        self.upsample = upsampling(enlarge) if max(enlarge) > 1 else None
        self.to_style1 = StyleLinear(latent_dim, in_channels)
        self.to_noise1 = nn.Linear(1, out_channels)
        self.conv1 = Conv3DMod(in_channels, out_channels, kernel_size=3)
        self.to_style2 = StyleLinear(latent_dim, out_channels)
        self.to_noise2 = nn.Linear(1, out_channels)
        self.conv2 = Conv3DMod(out_channels, out_channels, kernel_size=3)
        self.activation = leaky_relu()
        self.to_grayscale = ToGrayscale(latent_dim, out_channels, enlarge_next)

    def forward(self, x, grey, w, noise):
        if self.upsample is not None:
            x = self.upsample(x)
        d, h, w_axis = x.shape[2:]
        noise = noise[:, :d, :h, :w_axis].flatten(1, 3)
        noise = torch.cat([noise, torch.ones_like(noise)], dim=-1)  # (B, D' * H' * W', 2)
        x = self.activation(add_noise_(self.conv1(x, self.to_style1(w)), noise, self.to_noise1))
        x = self.activation(add_noise_(self.conv2(x, self.to_style2(w)), noise, self.to_noise2))
        return x, self.to_grayscale(x, grey, w)


class Generator(nn.Module):
    """Synthesis network: styles and noise to volumes.

    Shapes:
        styles: (B, num_layers, latent_dim), one w for each block
        noise:  (B, >= Z, >= S, >= S, 1), uniform in [0, 1); the original's cube (B, S, S, S, 1) is accepted
        return: (B, 1, Z, S, S), not clamped
    """

    def __init__(
        self,
        image_size,
        image_depth,
        latent_dim=LATENT_DIM,
        network_capacity=8,
        fmap_max=512,
        attn_layers=(),
        no_const=False,
    ):
        super().__init__()
        self.checkpoint_activations = False
        factors = growth_schedule(image_size, image_depth)
        self.image_size, self.image_depth, self.latent_dim = image_size, image_depth, latent_dim
        self.num_layers = len(factors)
        widths = [min(fmap_max, network_capacity * 2 ** (i + 1)) for i in reversed(range(self.num_layers))]
        if no_const:
            self.to_initial_block = nn.ConvTranspose3d(latent_dim, widths[0], 4, bias=False)
        else:
            self.initial_block = nn.Parameter(torch.randn(1, widths[0], 4, 4, 4))
        self.initial_conv = nn.Conv3d(widths[0], widths[0], 3, padding=1)
        widths = [widths[0], *widths]
        self.blocks = nn.ModuleList(
            GeneratorBlock(latent_dim, *channels, enlarge, enlarge_next)
            for channels, enlarge, enlarge_next in zip(
                itertools.pairwise(widths), factors, [*factors[1:], None], strict=True
            )
        )
        self.attention = attention_blocks(attn_layers, [*reversed(widths[:-1])])
        self.apply(initialize)
        for block in self.blocks:
            for layer in (block.to_noise1, block.to_noise2):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def initial(self, styles):
        """What the first block starts from. Shapes: (B, num_layers, latent_dim) -> (B, C, 4, 4, 4)"""
        if hasattr(self, "initial_block"):
            return self.initial_block.expand(len(styles), -1, -1, -1, -1)
        return self.to_initial_block(styles.mean(dim=1)[:, :, None, None, None])

    def forward(self, styles, noise):
        x, grey, again = self.initial_conv(self.initial(styles)), None, self.checkpoint_activations
        layers = range(self.num_layers, 0, -1)
        for layer, w, block in zip(layers, styles.unbind(dim=1), self.blocks, strict=True):
            if str(layer) in self.attention:
                x = run_block(self.attention[str(layer)], x, again=again)
            x, grey = run_block(block, x, grey, w, noise, again=again)
        return grey


def attention_blocks(layers, channels):
    """ModuleDict of an AttentionBlock for each layer, 1 the first of `channels`."""
    return nn.ModuleDict({str(layer): AttentionBlock(channels[layer - 1]) for layer in sorted(layers)})


class DiscriminatorBlock(nn.Module):
    """Residual block: two convolutions and a strided one, beside a strided 1x1x1 convolution.

    Shapes: (B, C_in, D, H, W) -> (B, C_out, D / stride, H / stride, W / stride)
    """

    def __init__(self, in_channels, out_channels, stride, downsample=True):
        super().__init__()
        self.conv_res = nn.Conv3d(in_channels, out_channels, 1, stride=stride)
        self.net = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, padding=1),
            leaky_relu(),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
            leaky_relu(),
        )
        self.downsample = None
        if downsample:
            self.downsample = nn.Sequential(
                Blur(), nn.Conv3d(out_channels, out_channels, 3, padding=1, stride=stride)
            )

    def forward(self, x):
        skip = self.conv_res(x)
        x = self.net(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return (x + skip).mul_(math.sqrt(0.5))


class Discriminator(nn.Module):
    """Residual discriminator; training drives its output to -1 for real volumes and to +1 for generated ones.

    The last block keeps its size while its skip has stride (1, 2, 2), so a (2, 1, 1) skip is broadcast over
    (2, 2, 2). Kept, because released checkpoints were trained with it.

    With classes, the logit is joined by the product of the mean features with an embedding of the class
    (Miyato & Koyama 2018, arXiv:1802.05637, Eq. 3).

    Shapes: volumes (B, 1, Z, S, S), labels (B,) or None -> logits (B,), quantize_loss (1,)
    """

    def __init__(
        self,
        image_size,
        image_depth,
        network_capacity=8,
        fmap_max=512,
        attn_layers=(),
        fq_layers=(),
        fq_dict_size=256,
        num_classes=0,
    ):
        super().__init__()
        self.checkpoint_activations = False
        strides = shrink_schedule(image_size, image_depth)
        widths = [1, *(min(fmap_max, 4 * network_capacity * 2**i) for i in range(len(strides) + 1))]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(*channels, stride, downsample=i < len(strides))
            for i, (channels, stride) in enumerate(
                zip(itertools.pairwise(widths), [*strides, (1, 2, 2)], strict=True)
            )
        )
        self.attention = attention_blocks(attn_layers, widths[1:])
        self.quantizers = nn.ModuleDict(
            {str(layer): FeatureQuantizer(widths[layer], fq_dict_size) for layer in sorted(fq_layers)}
        )
        self.final_conv = nn.Conv3d(widths[-1], widths[-1], 3, padding=1)
        self.num_features = 8 * widths[-1]
        self.to_logit = nn.Linear(self.num_features, 1)
        self.class_embedding = nn.Embedding(num_classes, widths[-1]) if num_classes else None
        self.apply(initialize)
        if num_classes:
            nn.init.normal_(self.class_embedding.weight, std=widths[-1] ** -0.5)

    def features(self, volumes):
        """What the logits are made of, and the loss of quantisation. Shapes: -> (B, C, 2, 2, 2), (1,)"""
        x, again = volumes, self.checkpoint_activations
        loss = torch.zeros(1, device=x.device)
        for layer, block in enumerate(self.blocks, start=1):
            x = run_block(functools.partial(reliably, block), x, again=again)
            if str(layer) in self.attention:
                x = run_block(functools.partial(reliably, self.attention[str(layer)]), x, again=again)
            if str(layer) in self.quantizers:
                x, commitment = self.quantizers[str(layer)](x)
                loss = loss + commitment
        return reliably(self.final_conv, x), loss

    def forward(self, volumes, labels=None):
        x, loss = self.features(volumes)
        logits = self.to_logit(x.flatten(1)).squeeze(1)
        if self.class_embedding is not None:
            logits = logits + (x.mean(dim=(2, 3, 4)) * self.class_embedding(labels)).sum(dim=1)
        return logits, loss

    @contextlib.contextmanager
    def learning_codes(self, enabled=True):
        """Around the passes in which quantisers may move their codes."""
        for quantizer in self.quantizers.values():
            quantizer.learning = enabled
        yield
        for quantizer in self.quantizers.values():
            quantizer.learning = False

    def taken_codes(self):
        """1 for each code of all quantisers that the last volumes took, else 0. Shapes: -> (codes,)"""
        return torch.cat([quantizer.taken for quantizer in self.quantizers.values()])


class AugmentedDiscriminator(nn.Module):
    """D behind differentiable augmentation; the whole micro-batch is augmented or none of it.

    Shapes: volumes (B, 1, Z, S, S) -> logits (B,), quantize_loss (1,)
    """

    def __init__(self, D):
        super().__init__()
        self.D = D

    def forward(self, volumes, prob=0.0, types=(), rng=None):
        return self.D(augment(volumes, prob, types, rng))


class ContrastiveHead(nn.Module):
    """Projection of D's features for contrastive regularisation (SimCLR, arXiv:2002.05709, Sec. 2.1).

    Shapes: (B, features) -> (B, size)
    """

    def __init__(self, features, hidden=256, size=128):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, hidden), leaky_relu(), nn.Linear(hidden, size))

    def forward(self, x):
        return self.net(x)


class StyleGAN2(nn.Module):
    """The trained networks: S and G, the discriminator D, the averages SE and GE, and D_aug around D.

    With cl_reg also CR, the head of contrastive regularisation.
    """

    def __init__(
        self,
        image_size,
        image_depth=32,
        latent_dim=LATENT_DIM,
        style_depth=STYLE_DEPTH,
        network_capacity=8,
        fmap_max=512,
        lr_mlp=0.1,
        no_const=False,
        attn_layers=(),
        fq_layers=(),
        fq_dict_size=256,
        cl_reg=False,
        num_classes=0,
    ):
        super().__init__()
        size = {"image_size": image_size, "image_depth": image_depth, "attn_layers": attn_layers}
        size |= {"network_capacity": network_capacity, "fmap_max": fmap_max}
        generator = {**size, "latent_dim": latent_dim, "no_const": no_const}
        mapping = (latent_dim, style_depth, lr_mlp, num_classes)
        self.S = StyleVectorizer(*mapping)
        self.G = Generator(**generator)
        quantizers = {"fq_layers": fq_layers, "fq_dict_size": fq_dict_size}
        self.D = Discriminator(**size, **quantizers, num_classes=num_classes)
        self.SE = StyleVectorizer(*mapping)
        self.GE = Generator(**generator)
        self.D_aug = AugmentedDiscriminator(self.D)
        self.CR = ContrastiveHead(self.D.num_features) if cl_reg else None
        self.SE.requires_grad_(False)
        self.GE.requires_grad_(False)
        self.copy_to_averages()

    def averages(self):
        """Parameters of (SE, GE) and of (S, G), two lists in the same order."""
        return [*self.SE.parameters(), *self.GE.parameters()], [*self.S.parameters(), *self.G.parameters()]

    @torch.no_grad()
    def copy_to_averages(self):
        """SE and GE become copies of S and G."""
        self.SE.load_state_dict(self.S.state_dict())
        self.GE.load_state_dict(self.G.state_dict())

    @torch.no_grad()
    def update_averages(self):
        """One step of the exponential moving averages: SE, GE <- 0.995 * (SE, GE) + 0.005 * (S, G)."""
        average, current = self.averages()
        torch._foreach_lerp_(average, current, 1 - AVERAGE_DECAY)


def channels_last(module):
    """Store kernels with the channels last; activations follow. A third faster on a CPU in bfloat16."""
    for p in module.parameters():
        if p.ndim == 5:
            p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
    return module


def count_parameters(module):
    """Number of weights of a network."""
    return sum(p.numel() for p in module.parameters())


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Losses and regularisers                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def hinge_loss(real_logits, fake_logits):
    """D's hinge loss, mean(relu(1 + D(real))) + mean(relu(1 - D(fake))): real is driven to -1, fake to +1.

    Shapes: (B,), (B,) -> scalar
    """
    return F.relu(1 + real_logits).mean() + F.relu(1 - fake_logits).mean()


def relativistic(real_logits, fake_logits):
    """Logits relative to the mean of the other kind (relativistic average, arXiv:1807.00734, Sec. 4.2).

    Shapes: (B,), (B,) -> (B,), (B,)
    """
    return real_logits - fake_logits.mean(), fake_logits - real_logits.mean()


def dual_contrastive_loss(t1, t2):
    """Tell each of one kind from all of the other, both ways (Yu et al. 2021, arXiv:2103.09742, Eq. 3 and 4).

        mean_i -log softmax([t1_i, t2_1, ..., t2_N])_1  +  mean_j -log softmax([-t2_j, -t1_1, ..., -t1_N])_1

    D minimises it for (real, fake), G for (fake, real).

    Shapes: (N,), (M,) -> scalar
    """

    def half(one, others):
        logits = torch.cat([one[:, None], others.expand(len(one), -1)], dim=1)  # (N, 1 + M)
        return (logits.logsumexp(dim=1) - one).mean()

    return half(t1, t2) + half(-t2, -t1)


def most_real(fake_logits, epochs, gamma, frac):
    """The share max(gamma^epochs, frac) of logits that are most real, so lowest (arXiv:2002.06224, Sec. 3).

    Shapes: (B,) -> (k,)
    """
    k = math.ceil(len(fake_logits) * max(gamma**epochs, frac))
    return fake_logits.topk(k, largest=False).values


def nt_xent(one, other, temperature=0.1):
    """Contrastive loss of two views of the same volumes (NT-Xent, arXiv:2002.05709, Eq. 1).

    Each of the 2 B features is to find its other view among the 2 B - 1 others, by cosine similarity.

    Shapes: (B, C), (B, C) -> scalar
    """
    features = F.normalize(torch.cat([one, other]).float(), dim=1)
    similarity = features @ features.T / temperature
    number = len(features)
    similarity = similarity.masked_fill(torch.eye(number, dtype=torch.bool, device=one.device), -torch.inf)
    partner = torch.arange(number, device=one.device).roll(len(one))
    return F.cross_entropy(similarity, partner)


def gradient_penalty(volumes, logits, weight=10.0):
    """Pull the norm of the discriminator's input gradient to 1 (arXiv:1704.00028, Eq. 3).

        weight * mean_b (||dD(x_b)/dx_b||_2 - 1)^2

    Differs from the paper: taken at the real volumes, not between real and fake ones.

    Shapes: (B, 1, D, H, W), (B,) -> scalar
    """
    (gradient,) = torch.autograd.grad(logits.float().sum(), volumes, create_graph=True)
    return weight * (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def path_lengths(styles, volumes, y):
    """Length of the volumes' change per change of style (arXiv:1912.04958, Sec. 3.2).

        sqrt(mean over layers of sum over latent of (d(y . G(w)) / dw)^2), y = N(0, 1) / N^(1/3), N voxels

    Differs from the paper: the scale N^(1/3) in place of N^(1/2).

    Shapes: styles (B, L, latent), volumes (B, 1, D, H, W), y standard normal like volumes -> (B,)
    """
    scale = math.prod(volumes.shape[2:]) ** (1 / 3)
    (gradient,) = torch.autograd.grad((volumes * (y / scale)).sum(), styles, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Latents and styles                                                                                       ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def host_random(*key):
    """numpy Generator for decisions on the host, seeded by a tuple of integers >= 0."""
    return np.random.default_rng(key)


def device_random(device, *key):
    """torch Generator on `device`, seeded by a tuple of integers >= 0."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


def volume_inputs(seed, latent_dim, shape):
    """Latent and noise of the volume with this seed, drawn on the CPU: the same on every device.

    Shapes: z (latent_dim,), noise (D, H, W, 1)
    """
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(latent_dim, generator=generator)
    return z, torch.rand(*shape, 1, generator=generator)


def latent_of(seed, latent_dim):
    """The latent of `volume_inputs` alone. Shapes: -> (latent_dim,)"""
    return volume_inputs(seed, latent_dim, (0, 0, 0))[0]


def batch_inputs(seeds, latent_dim, shape):
    """`volume_inputs` of several seeds. Shapes: z (B, latent_dim), noise (B, D, H, W, 1)"""
    z, noise = zip(*(volume_inputs(seed, latent_dim, shape) for seed in seeds), strict=True)
    return torch.stack(z), torch.stack(noise)


def mix_styles(w1, w2, layers, crossover):
    """Styles with w1 in the first `crossover` blocks and w2 in the rest.

    Shapes: (B, latent), (B, latent) -> (B, layers, latent)
    """
    first = torch.arange(layers, device=w1.device) < crossover
    return torch.where(first[None, :, None], w1[:, None], w2[:, None])


def same_style(w, layers):
    """One w for all blocks. Shapes: (B, latent) -> (B, layers, latent)"""
    return w[:, None].expand(-1, layers, -1)


@torch.no_grad()
def truncation_center(mapping, latent_dim, device, seed=0):
    """Mean of w over seeded latents, of every class if any: the centre of truncation.

    Shapes: -> (1 or classes, latent_dim)
    """
    z = torch.randn(TRUNCATION_SAMPLES, latent_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    if mapping.embedding is None:
        return mapping(z).mean(dim=0, keepdim=True)
    labels = torch.arange(mapping.embedding.num_embeddings, device=device)
    return torch.stack([mapping(z, label.expand(len(z))).mean(dim=0) for label in labels])


def truncate(w, center, psi, labels=None):
    """Truncation trick, center + psi * (w - center) (arXiv:1812.04948, Appendix B), the class's center."""
    center = center if labels is None else center[labels]
    return center + psi * (w - center)


def seeded_classes(seeds, shares):
    """Class of the volume of every seed, drawn as often as shown in training. Shapes: (B,) -> (B,) or None"""
    if shares is None:
        return None
    uniform = np.array([host_random(seed, STREAM_CLASS).random() for seed in seeds])
    return torch.from_numpy(draw_classes(shares, uniform))


def slerp(low, high, t):
    """Spherical interpolation, exact at its ends. Shapes: (latent,), (latent,), t in [0, 1] -> (latent,)"""
    if t in (0, 1):
        return high if t else low
    angle = torch.arccos((F.normalize(low, dim=-1) * F.normalize(high, dim=-1)).sum(-1).clamp(-1, 1))
    if angle.sin().abs() < 1e-6:  # parallel: the straight line is the same
        return torch.lerp(low, high, t)
    return (torch.sin((1 - t) * angle) * low + torch.sin(t * angle) * high) / angle.sin()


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Pictures                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def axial_pictures(volumes, affine):
    """Middle axial slice and axial maximum-intensity projection, in radiological view.

    Anterior is up and the patient's right is on the left, whatever the sign of the affine's axes.

    Shapes: (N, 1, Z, X, Y) in [0, 1] -> two arrays (N, rows, columns) uint8
    """
    volumes = np.asarray(volumes)[:, 0]
    if affine[0][0] > 0:
        volumes = volumes[:, :, ::-1]
    if affine[1][1] > 0:
        volumes = volumes[:, :, :, ::-1]
    planes = volumes[:, volumes.shape[1] // 2], volumes.max(axis=1)
    return [np.rint(plane.clip(0, 1).swapaxes(1, 2) * 255).astype(np.uint8) for plane in planes]


def tile(pictures, columns):
    """Pictures in rows of `columns`, a one-pixel gap between them. Shapes: (N, h, w) -> (H, W)"""
    rows = -(-len(pictures) // columns)
    padded = np.pad(pictures, ((0, rows * columns - len(pictures)), (0, 1), (0, 1)), constant_values=64)
    return rearrange(padded, "(r c) h w -> (r h) (c w)", r=rows)


def contact_sheet(volumes, affine, columns):
    """Axial slices on the left, their projections on the right. Shapes: (N, 1, Z, X, Y) -> (H, W)"""
    left, right = (tile(p, columns) for p in axial_pictures(volumes, affine))
    gap = np.full((len(left), 8), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def save_picture(picture, path, smallest=512):
    """Write a grey picture; a small one is enlarged to `smallest` pixels without interpolation."""
    image = Image.fromarray(picture)
    factor = -(-smallest // max(image.size))
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    with atomic_path(path) as part:
        image.save(part)


def save_gif(pictures, path, seconds_per_frame=0.08):
    """Write pictures (N, H, W) uint8 as an endless GIF."""
    first, *rest = [Image.fromarray(p) for p in pictures]
    with atomic_path(path) as part:
        first.save(part, save_all=True, append_images=rest, duration=int(1000 * seconds_per_frame), loop=0)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Checkpoints                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def checkpoint_numbers(folder):
    """Sorted numbers n of the files model_<n>.pt in a folder."""
    numbers = (p.stem.removeprefix("model_") for p in Path(folder).glob("model_*.pt"))
    return sorted(int(n) for n in numbers if n.isdigit())


def find_checkpoint(folder, load_from=-1):
    """Path of checkpoint number `load_from` in a run's folder, the newest for -1.

    Raises:
        ValueError: There is no such checkpoint; the text lists those there are.
    """
    numbers = checkpoint_numbers(folder)
    if not numbers:
        runs = sorted(p.name for p in Path(folder).parent.glob("*") if checkpoint_numbers(p))
        there = f" (there are runs {', '.join(runs)})" if runs else ""
        raise ValueError(
            f"There is no checkpoint model_<n>.pt in {folder}: train first, or correct its name{there}."
        )
    if load_from != -1 and load_from not in numbers:
        there = ", ".join(map(str, numbers))
        raise ValueError(f"There is no model_{load_from}.pt in {folder}. --load_from can be {there}.")
    return Path(folder) / f"model_{numbers[-1] if load_from == -1 else load_from}.pt"


def read_checkpoint(path):
    """Read a checkpoint onto the CPU, with `weights_only=True`, and strip `module.` from its tensors' names.

    Raises:
        ValueError: The file is missing, damaged or not a checkpoint of this program or the original.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the path of a checkpoint model_<n>.pt.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({type(error).__name__}).") from None
    if not isinstance(state, dict) or "GAN" not in state:
        raise ValueError(f"{path} is not a 3D StyleGAN2 checkpoint: it has no entry 'GAN'.")
    state["GAN"] = {name.removeprefix("module."): tensor for name, tensor in state["GAN"].items()}
    return state


def network_settings(state, path, image_depth=None):
    """Keyword arguments of `StyleGAN2` for a checkpoint; those of an original follow from its tensors.

    No tensor's shape depends on the depth, so a checkpoint that does not state it gets `image_depth`, or the
    published one, with a notice: 32 slices, or 4 for the variant of 256 voxels.

    Raises:
        ValueError: The tensors are not those of a 3D StyleGAN2.
    """
    if "config" in state:
        return {name: state["config"][name] for name in (*NETWORK_SETTINGS, "latent_dim", "style_depth")}
    original = {name: getattr(TrainConfig, name) for name in NETWORK_SETTINGS}  # it has no option
    shapes = {name: tuple(tensor.shape) for name, tensor in state["GAN"].items()}
    try:
        blocks = sum(name.startswith("G.blocks.") and name.endswith(".conv1.weight") for name in shapes)
        narrowest = shapes[f"G.blocks.{blocks - 1}.conv2.weight"][0]  # 2 * network_capacity, at most fmap_max
        widest = max(shapes[f"D.blocks.{i}.conv_res.weight"][0] for i in range(blocks + 1))
        latent_dim = shapes["S.net.0.weight"][1]
    except KeyError as error:
        raise ValueError(f"{path} is not a 3D StyleGAN2 checkpoint: it has no tensor {error}.") from None
    image_size = 2 ** (blocks + 1)
    settings = original | {
        "image_size": image_size,
        "image_depth": image_depth or min(image_size, 4 if image_size == 256 else 32),
        "network_capacity": narrowest // 2,
        "fmap_max": widest,
        "lr_mlp": 0.1,
        "latent_dim": latent_dim,
        "style_depth": sum(n.startswith("S.net.") and n.endswith(".weight") for n in shapes),
    }
    beside = Path(path).parent / ".config.json"
    stated = json.loads(beside.read_text()) if beside.is_file() else {}
    settings.update({k: stated[k] for k in ("image_depth", "lr_mlp") if k in stated})
    if image_depth is None and "image_depth" not in stated:
        print(
            f"{path} does not state its depth: taken as {settings['image_depth']} slices, as published. "
            f"--image_depth takes another."
        )
    return settings


def load_networks(module, state_dict, path):
    """Load a state dict strictly, and say in one line what does not fit."""
    try:
        module.load_state_dict(state_dict)
    except RuntimeError as error:
        first = " ".join(str(error).splitlines()[1].split())
        raise ValueError(f"{path} does not fit the networks of this run: {first}") from None


def save_checkpoint(state, path):
    """Write a checkpoint so that the file at `path` is always a whole one, the former or the new."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        torch.save(state, part)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Memory                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


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


def predict_peak_memory(config, audit, group=Group()):
    """Peak bytes of the worst steps of one process on the CPU, {phase: bytes}, found on fake tensors."""
    config = replace(config, device="cpu", batch_size=config.batch_size // group.world)
    tracker = AllocationTracker()
    with FakeTensorMode(), tracker:
        trainer = Trainer(config, classes=audit and audit.classes)
        trainer.audit = audit
        indices = torch.zeros(config.batch_size, dtype=torch.int64)
        trainer.loader = itertools.repeat((torch.empty(config.batch_size, 1, *config.shape), indices))
        peaks = {}
        for phase, run in trainer.rehearsals():
            tracker.peak = tracker.bytes
            run()
            peaks[phase] = tracker.peak
    return peaks


def measure_peak_memory(trainer):
    """Peak bytes of the worst steps on the GPU, {phase: bytes}, found by running each once without an update.

    Raises:
        ValueError: A step does not fit into the GPU's memory.
    """
    peaks = {}
    for phase, run in trainer.rehearsals():
        torch.cuda.reset_peak_memory_stats(trainer.device)
        try:
            run()
        except torch.OutOfMemoryError:
            total = torch.cuda.get_device_properties(trainer.device).total_memory / 2**30
            raise ValueError(
                f"The step with {phase} does not fit into the {total:.1f} GiB of {trainer.device}: lower "
                f"--batch_size and raise --gradient_accumulate_every by the same factor."
            ) from None
        peaks[phase] = torch.cuda.max_memory_allocated(trainer.device)
    torch.cuda.empty_cache()
    return peaks


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Trainer                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class NanException(ValueError):
    """A loss or a weight is not finite."""


@contextlib.contextmanager
def interruptions():
    """List of the signals (SIGTERM, Ctrl-C) that have arrived; a second Ctrl-C aborts."""
    received = []

    def remember(number, _):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    former = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class MetricsLog:
    """metrics.csv, one row a step, and TensorBoard files if asked.

    A resumed run continues the table and keeps its columns; one with rows beyond its step is kept beside it.

    Args:
        folder: Where to write.
        step: The step that the run is at.
        tensorboard: Write TensorBoard files too.
        metrics: Names of the columns of options and an evaluation.
    """

    COLUMNS = ("step", "D", "G", "GP", "PL", "pl_mean", "seconds", "volumes_per_second")

    def __init__(self, folder, step, tensorboard=False, metrics=()):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.csv"
        rows, columns = [], list(dict.fromkeys([*self.COLUMNS, *metrics]))
        if path.exists():
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                written = list(reader)
                columns += [name for name in reader.fieldnames or () if name not in columns]
            rows = [row for row in written if row["step"].isdigit() and int(row["step"]) <= step]
            if len(rows) < len(written):
                shutil.move(path, next_free(folder / "metrics-superseded.csv"))
        with atomic_path(path) as part, open(part, "w", newline="") as file:
            table = csv.DictWriter(file, columns, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
        self.file = open(path, "a", newline="", buffering=1)  # noqa: SIM115  closed by close()
        self.table = csv.DictWriter(self.file, columns)
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def write(self, step, values):
        """Append the values of one step, {column: number}."""
        self.table.writerow({"step": step, **{name: f"{value:.6g}" for name, value in values.items()}})
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self):
        """Write what is buffered."""
        self.file.close()
        if self.board is not None:
            self.board.close()


def append_scores(path, step, scores):
    """Add the numbers of an evaluation to fid_scores.txt, lines of step,metric,value; later steps go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    lines = [line for line in lines if int(line.split(",")[0]) < step]
    lines += [f"{step},{name},{value:.8g}" for name, value in scores.items()]
    with atomic_path(path) as part:
        part.write_text("\n".join(["step,metric,value", *lines, ""]))


class Trainer:
    """Networks, optimisers and the training loop of one run.

    Building a Trainer touches neither the data nor the disk; `prepare` does, and `train` runs.

    Args:
        config: TrainConfig.
        group: Group of the processes that train together; None is this one alone.
        classes: Classes to train for, or None.
    """

    def __init__(self, config, group=None, classes=None):
        self.config = config
        self.group = group or Group()
        self.classes = classes
        if config.batch_size % self.group.world:
            raise ValueError(
                f"--batch_size {config.batch_size} cannot be shared by {self.group.world} processes: choose "
                f"a multiple of {self.group.world}."
            )
        self.batch_size = config.batch_size // self.group.world  # of this process
        if self.batch_size % config.pl_batch_shrink:
            raise ValueError(
                f"--pl_batch_shrink {config.pl_batch_shrink} does not divide the {self.batch_size} volumes "
                f"of a process's micro-batch: choose a divisor."
            )
        self.penalty_part = max(
            -(-self.batch_size // PENALTY_PARTS), PENALTY_VOXELS // math.prod(config.shape)
        )
        self.device = choose_device(config.device)
        self.amp_dtype = choose_amp_dtype(config.amp_dtype, self.device)
        torch.manual_seed(config.seed)
        num_classes = len(classes.names) if classes else 0
        self.GAN = channels_last(StyleGAN2(**config.network(), num_classes=num_classes))
        for network in (self.GAN.G, self.GAN.D):
            network.checkpoint_activations = config.checkpoint_activations
        if self.device.type != "cpu":  # fake tensors, of `predict_peak_memory`, cannot be moved
            self.GAN.to(self.device)
        generator_parameters = [*self.GAN.G.parameters(), *self.GAN.S.parameters()]
        adam = functools.partial(torch.optim.Adam, betas=(0.5, 0.9), fused=True)
        self.G_opt = adam(generator_parameters, lr=config.learning_rate)
        head = self.GAN.CR.parameters() if config.cl_reg else ()
        self.D_opt = adam([*self.GAN.D.parameters(), *head], lr=config.learning_rate * config.ttur_mult)
        self.ada = None
        if config.ada_target is not None:
            self.ada = AdaptiveAugmentation(config.aug_prob, config.ada_target, config.ada_volumes)
        self.rehearsing = False  # what a step remembers is then left alone
        scaled = config.fp16 and self.amp_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.step = 0  # completed steps
        self.reverts = 0  # returns to a checkpoint after NaN; part of every seed, lest the NaN come again
        self.pl_mean = None  # running mean of the path length
        self.audit = None
        self.evaluator = None  # of MedicalNet.evaluation, with --calculate_fid_every
        self.best = None  # the evaluation of model_best.pt: {"metric", "value", "step"}
        self.received = []  # names of the signals that ask for an end
        self.loader = None
        self.log = None
        self.shown = {}  # the last value of every loss
        self.files = []  # indices of the volumes seen in this step
        self.unread = []  # (step, losses, files) of the steps whose losses were not read yet

    # ---- preparation

    def prepare(self):
        """Take up an earlier run of this name or start a new one, and open the data."""
        config = self.config
        if checkpoint_numbers(config.models):
            self.load(find_checkpoint(config.models, config.load_from))
        elif config.init_from is not None:
            load_networks(self.GAN, read_checkpoint(config.init_from)["GAN"], config.init_from)
        self.open_loader()

    def open_loader(self):
        """Open the endless sequence of batches at the current step."""
        config = self.config
        per_step = config.gradient_accumulate_every * (2 if config.dual_contrast_loss else 1)
        dataset = VolumeDataset(self.audit)
        key = (config.seed, self.reverts)
        start = self.step * per_step
        flip_prob = config.dataset_aug_prob
        batches = SeededBatches(
            len(dataset), config.batch_size, flip_prob, key, start, self.group, self.classes
        )
        self.loader = make_loader(dataset, batches, config.num_workers, self.device)

    def report(self):
        """Lines that describe data, networks, device and precision."""
        config = self.config
        sizes = {name: count_parameters(getattr(self.GAN, name)) / 1e6 for name in "SGD"}
        precision = str(self.amp_dtype).removeprefix("torch.") if config.fp16 else "float32"
        epoch = len(self.audit.paths) / (config.batch_size * config.gradient_accumulate_every)
        number = len(self.audit.paths) * math.prod(config.shape)  # voxels
        kept = {
            "ram": f"in memory, {4 * number / 2**30:.2f} GiB",
            "disk": f"packed in {config.packs}, at most {2 * number / 2**30:.2f} GiB",
            "none": "decoded again in every epoch",
        }
        return [
            *self.audit.summary,
            *([self.classes.summary()] if self.classes else []),
            f"volumes: {kept[config.cache]}",
            f"parameters (million): {', '.join(f'{name} {size:.1f}' for name, size in sizes.items())}",
            f"device: {self.device}, precision: {precision}, PyTorch {torch.__version__}",
            f"steps per epoch: {epoch:.1f}",
        ]

    def open_log(self):
        """Open metrics.csv, and TensorBoard if asked, at the current step."""
        if not self.first:
            return
        if self.log is not None:
            self.log.close()
        options = {"Q": self.config.fq_layers, "Q_usage": self.config.fq_layers, "CR": self.config.cl_reg}
        options["aug_prob"] = self.ada
        columns = [name for name, used in options.items() if used]
        columns += [] if self.evaluator is None else self.evaluator.names()
        self.log = MetricsLog(self.config.results, self.step, self.config.log, columns)

    # ---- one step

    def autocast(self, enabled=True):
        """Mixed precision if the run uses it and `enabled`."""
        return torch.autocast(self.device.type, self.amp_dtype, enabled=enabled and self.config.fp16)

    def random(self, stream, micro):
        """Host and device generators of one micro-batch."""
        key = (self.config.seed, self.reverts, stream, self.step, micro)
        return SharedRandom(host_random(*key), self.group), device_random(self.device, *key)

    def draw(self, function, shape, generator):
        """This process's part of a draw for the whole batch. Shapes: (...) -> (B, ...)"""
        shape = (self.config.batch_size, *shape)
        return self.group.part(function(shape, device=self.device, generator=generator))

    def draw_labels(self, rng):
        """Classes for generated volumes, drawn as they are shown. Shapes: -> (B,), or None without classes"""
        if self.classes is None:
            return None
        drawn = draw_classes(self.classes.shares(), rng.random(self.batch_size))
        return torch.from_numpy(drawn).to(self.device)

    def sample_inputs(self, rng, generator, labels=None):
        """Styles, mixed with probability mixed_prob at a random block, and noise, for one micro-batch.

        Shapes: labels (B,) or None -> styles (B, L, latent), noise (B, Z, S, S, 1)
        """
        layers = self.GAN.G.num_layers
        noise = self.draw(torch.rand, (*self.config.shape, 1), generator)
        draw = functools.partial(self.draw, torch.randn, (LATENT_DIM,), generator)
        w = self.GAN.S(draw(), labels)
        if rng.random() >= self.config.mixed_prob:
            return same_style(w, layers), noise
        return mix_styles(w, self.GAN.S(draw(), labels), layers, int(rng.integers(layers))), noise

    def next_real(self):
        """The next real volumes and their classes. Shapes: -> (B, 1, D, H, W), (B,) or None"""
        volumes, indices = next(self.loader)
        self.files.append(indices)
        labels = None
        if self.classes is not None:
            labels = torch.from_numpy(self.classes.of_volumes)[indices].to(self.device)
        return volumes.to(self.device, non_blocking=True), labels

    @property
    def spacing(self):
        """Size (d, h, w) of a voxel, mm."""
        x, y, z = (1, 1, 1) if self.audit is None else nib.affines.voxel_sizes(self.audit.affine)
        return z, x, y

    def augment(self, volumes, rng, prob=None):
        """Volumes as D sees them. Shapes: (B, 1, D, H, W) -> the same"""
        if prob is None:
            prob = self.config.aug_prob if self.ada is None else self.ada.prob
        return augment(volumes, prob, self.config.aug_types, rng, self.spacing)

    def judge(self, volumes, labels):
        """Logits of augmented volumes, float32. Shapes: (B, 1, D, H, W), (B,) or None -> (B,)"""
        logits, _ = self.GAN.D(volumes, labels)
        return logits.float()

    def discriminator_loss(self, real_logits, fake_logits):
        """The loss that the run's options choose for D. Shapes: (B,), (B,) -> scalar"""
        if self.config.rel_disc_loss:
            real_logits, fake_logits = relativistic(real_logits, fake_logits)
        loss = dual_contrastive_loss if self.config.dual_contrast_loss else hinge_loss
        return loss(real_logits, fake_logits)

    def generator_loss(self, fake_logits, rng):
        """The loss that the run's options choose for G. Shapes: (B,) -> scalar"""
        config = self.config
        if config.top_k_training:
            epochs = self.step * config.batch_size * config.gradient_accumulate_every / len(self.audit.paths)
            fake_logits = most_real(
                fake_logits, epochs, config.generator_top_k_gamma, config.generator_top_k_frac
            )
        if not config.dual_contrast_loss:
            return fake_logits.mean()
        real, labels = self.next_real()
        with torch.no_grad(), self.autocast():
            real_logits = self.group.gather(self.judge(self.augment(real, rng), labels))
        return dual_contrastive_loss(fake_logits, real_logits)

    def accumulate_discriminator(self, regularize, micro_batches):
        """Gradients of D; the loss in mixed precision, the penalty in a pass of its own in float32."""
        losses = defaultdict(float)
        for micro in range(micro_batches):
            rng, generator = self.random(STREAM_D, micro)
            fake_labels = self.draw_labels(rng)
            with torch.no_grad():
                styles, noise = self.sample_inputs(rng, generator, fake_labels)
                with self.autocast():
                    generated = self.GAN.G(styles, noise)
            volumes, labels = self.next_real()
            parts = [p.requires_grad_(regularize) for p in volumes.split(self.penalty_part)]
            real, fake = self.augment(torch.cat(parts), rng), self.augment(generated, rng)
            both = None if labels is None else torch.cat([labels, fake_labels])
            with self.autocast(), self.GAN.D.learning_codes(not self.rehearsing):
                logits, commitment = self.GAN.D(torch.cat([real.detach(), fake]), both)
            real_logits, fake_logits = map(self.group.gather, logits.float().split(len(real)))
            loss = self.discriminator_loss(real_logits, fake_logits)
            losses["D"] += loss.detach() / micro_batches
            if self.config.fq_layers:
                commitment = commitment.sum() / self.group.world
                losses["Q"] += commitment.detach() / micro_batches
                taken = self.GAN.D.taken_codes()
                self.group.sum_([taken])
                losses["Q_usage"] += (taken > 0).float().mean() / micro_batches
                loss = loss + commitment
            if self.ada is not None and not self.rehearsing:
                self.ada.observe(real_logits)
            self.scaler.scale(loss / micro_batches).backward()
            if self.config.cl_reg:
                losses["CR"] += self.contrast(volumes.detach(), rng, micro_batches)
                if self.step >= CONTRAST_FAKES_AFTER:
                    losses["CR"] += self.contrast(generated, rng, micro_batches)
            if regularize:
                losses["GP"] += self.penalize_gradient(parts, real, labels, micro_batches)
        return losses

    def contrast(self, volumes, rng, micro_batches):
        """Add the gradients of D's contrastive regularisation on two augmented views; returns its share.

        Its weight is 1 (Zhang et al. 2020, arXiv:1910.12027, regularise views to be alike; here, as in the 2D
        ancestor, they are also to differ from those of other volumes).

        Shapes: (B, 1, D, H, W)
        """
        features = []
        for _ in range(2):
            with self.autocast():
                view, _ = self.GAN.D.features(self.augment(volumes, rng, prob=1.0))
                features.append(self.group.gather(self.GAN.CR(view.flatten(1)).float()))
        loss = nt_xent(*features) / micro_batches
        self.scaler.scale(loss).backward()
        return loss.detach()

    def penalize_gradient(self, parts, augmented, labels, micro_batches):
        """Add the gradients of the gradient penalty; returns this process's share of its value.

        One part after another, so that the graph of gradients, in float32, is that of a part only.

        Shapes: parts of (b, 1, D, H, W), augmented (B, 1, D, H, W), computed from them, labels (B,) or None
        """
        weights, total = [p for p in self.GAN.D.parameters() if p.requires_grad], 0.0
        labels = len(parts) * [None] if labels is None else labels.split(self.penalty_part)
        for part, volumes, of in zip(parts, augmented.split(self.penalty_part), labels, strict=True):
            share = len(part) / self.config.batch_size / micro_batches
            penalty = gradient_penalty(part, self.judge(volumes, of)) * share
            self.scaler.scale(penalty).backward(inputs=weights)  # the augmentation is needed again
            total += penalty.detach()
        return total

    def accumulate_generator(self, regularize, micro_batches):
        """Gradients of G and S; the loss in mixed precision, path lengths in their own pass in float32."""
        losses = defaultdict(float)
        self.GAN.D.requires_grad_(False)
        for micro in range(micro_batches):
            rng, generator = self.random(STREAM_G, micro)
            labels = self.draw_labels(rng)
            mapped, noise = self.sample_inputs(rng, generator, labels)
            styles = mapped.detach().requires_grad_()  # collects the gradients of both passes for S
            with self.autocast():
                fake_logits = self.judge(self.augment(self.GAN.G(styles, noise), rng), labels)
            loss = self.generator_loss(self.group.gather(fake_logits), rng)
            losses["G"] += loss.detach() / micro_batches
            self.scaler.scale(loss / micro_batches).backward()
            if regularize:
                y = self.draw(torch.randn, (1, *self.config.shape), generator)
                for name, value in self.penalize_path_length(styles, noise, y, micro_batches).items():
                    losses[name] += value
            mapped.backward(styles.grad)
        self.GAN.D.requires_grad_(True)
        return losses

    def penalize_path_length(self, styles, noise, y, micro_batches):
        """Add the gradients of the path-length penalty; returns shares of the mean length and the penalty.

        One part after another, as `penalize_gradient`, of every pl_batch_shrink-th volume.

        Shapes: styles (B, L, latent), noise (B, Z, S, S, 1), y (B, 1, Z, S, S)
        """
        losses, chosen = defaultdict(float), slice(None, None, self.config.pl_batch_shrink)
        number = self.config.batch_size // self.config.pl_batch_shrink
        inputs = (t[chosen].split(self.penalty_part) for t in (styles, noise, y))
        for w, noise_part, y_part in zip(*inputs, strict=True):
            lengths = self.group.gather(path_lengths(w, self.GAN.G(w, noise_part), y_part))
            share = len(lengths) / number / micro_batches
            losses["pl_length"] += lengths.detach().mean() * share
            if self.pl_mean is not None:
                penalty = (lengths - self.pl_mean).square().mean() * share
                losses["PL"] += penalty.detach()
                self.scaler.scale(penalty).backward()
        return losses

    def discriminator_step(self):
        """One update of D; returns its losses."""
        regularize = self.step % GRADIENT_PENALTY_EVERY == 0
        losses = self.accumulate_discriminator(regularize, self.config.gradient_accumulate_every)
        shares = [losses[name] for name in ("GP", "Q") if name in losses]
        self.group.sum_([p.grad for p in self.D_opt.param_groups[0]["params"]] + shares)
        self.scaler.step(self.D_opt)
        self.D_opt.zero_grad(set_to_none=True)
        if self.ada is not None:
            if self.step % ADA_EVERY == ADA_EVERY - 1:
                self.ada.update()
            losses["aug_prob"] = torch.tensor(self.ada.prob, device=self.device)
        return losses

    def generator_step(self):
        """One update of G and S, and of the running mean of the path length; returns their losses."""
        regularize = (
            not self.config.no_pl_reg and self.step > PATH_LENGTH_AFTER and self.step % PATH_LENGTH_EVERY == 0
        )
        losses = self.accumulate_generator(regularize, self.config.gradient_accumulate_every)
        self.group.sum_([p.grad for p in self.G_opt.param_groups[0]["params"]])
        self.scaler.step(self.G_opt)
        self.G_opt.zero_grad(set_to_none=True)
        if regularize:
            length = losses.pop("pl_length").double()
            former = length if self.pl_mean is None else self.pl_mean
            self.pl_mean = PATH_LENGTH_DECAY * former + (1 - PATH_LENGTH_DECAY) * length
            losses["pl_mean"] = self.pl_mean
        return losses

    def update_averages(self):
        """SE and GE follow S and G: copies at first, moving averages later."""
        if self.step > AVERAGE_AFTER and self.step % AVERAGE_EVERY == 0:
            self.GAN.update_averages()
        if self.step <= AVERAGE_COPY_UNTIL and self.step % AVERAGE_COPY_EVERY == 2:
            self.GAN.copy_to_averages()

    def train_step(self):
        """One update of every network, without waiting for the device; `read_losses` reads the losses."""
        self.files = []
        losses = self.discriminator_step()
        losses |= self.generator_step()
        self.scaler.update()
        self.update_averages()
        self.unread.append((self.step, losses, self.files))
        self.step += 1

    def read_losses(self):
        """Losses of the steps since the last reading, [{"step": number, name: value}].

        Raises:
            NanException: A loss is not finite; the run is back at its last checkpoint.
        """
        unread, self.unread = self.unread, []
        numbers = iter(
            torch.stack([loss.float() for _, losses, _ in unread for loss in losses.values()]).tolist()
        )
        rows = []
        for step, losses, files in unread:
            values = {name: next(numbers) for name in losses}
            broken = [name for name, value in values.items() if not math.isfinite(value)]
            if broken:
                reason = f"{' and '.join(broken)} {'is' if len(broken) == 1 else 'are'} not finite"
                self.revert(f"{reason} in step {step}", files)
            rows.append({"step": step + 1, **values})
        return rows

    def rehearsals(self):
        """Pairs of a phase's name and a function that runs its heaviest work once, without an update."""
        # The second micro-batch finds the gradients of the first in memory.
        micro_batches = min(2, self.config.gradient_accumulate_every)
        trained = [*self.GAN.S.parameters(), *self.GAN.G.parameters(), *self.GAN.D.parameters()]
        moments = [torch.zeros_like(p) for p in trained for _ in range(2)]  # what Adam will hold
        pl_mean, self.pl_mean = self.pl_mean, 0.0
        self.rehearsing = True

        def discriminator():
            self.accumulate_discriminator(True, micro_batches)
            self.D_opt.zero_grad(set_to_none=True)

        def generator():
            self.accumulate_generator(not self.config.no_pl_reg, micro_batches)
            self.G_opt.zero_grad(set_to_none=True)

        def preview():
            rng, generator = self.random(STREAM_G, 0)
            self.preview_chunk(self.GAN.GE, self.sample_inputs(rng, generator, self.draw_labels(rng)))

        yield "gradient penalty", discriminator
        yield "generator" if self.config.no_pl_reg else "path length", generator

        def evaluation():
            ramp = np.linspace(0, 1, math.prod(self.config.shape), dtype=np.float32)
            for extractor in self.evaluator.extractors:
                extractor(volume_to_array(ramp.reshape(1, *self.config.shape)), np.eye(4))

        yield "preview", preview
        if self.evaluator is not None and self.device.type == "cuda":
            yield "evaluation", evaluation
        self.pl_mean, self.rehearsing = pl_mean, False
        del moments

    # ---- the whole run

    @property
    def first(self):
        """True for the one process that writes, prints and evaluates."""
        return self.group.rank == 0

    def train(self):
        """Train until num_train_steps, a signal or too many NaN; saves before it returns."""
        config = self.config
        self.open_log()
        if self.step == 0:
            self.save()
            self.preview()
        progress = {"initial": self.step, "total": config.num_train_steps, "dynamic_ncols": True}
        progress |= {"unit": "step", "disable": not self.first}
        progress["mininterval"] = 0.5 if sys.stderr.isatty() else 30  # seconds, when the bar goes to a file
        with interruptions() as self.received, tqdm(**progress) as self.bar:
            while self.step < config.num_train_steps and not self.received:
                retry_call(
                    self.train_to_checkpoint,
                    exceptions=NanException,
                    tries=1 + NAN_REVERTS,
                    logger=None,
                )
        if self.first:
            self.log.close()
        if self.received:
            print(f"{self.received[0]}: saved after step {self.step}. The same command continues the run.")

    def train_to_checkpoint(self):
        """Train until the next checkpoint is due, or a signal has been received, and save."""
        start = time.perf_counter()
        while True:
            self.train_step()
            saves = self.step % self.config.save_every == 0 or self.step == self.config.num_train_steps
            if not (saves or self.must_read()):
                continue
            rows = self.read_losses()
            seconds = (time.perf_counter() - start) / len(rows)
            self.agree_on_end()
            rows[-1] |= self.evaluate_if_due()
            if self.first:
                self.record(rows, seconds)
            if saves or self.received:
                self.save()
                self.preview_if_due()
                return
            self.preview_if_due()
            start = time.perf_counter()

    def must_read(self):
        """True if the losses are to be read after this step: so many are unread, or they must be known."""
        signalled = self.received and self.group.world == 1  # else `agree_on_end` decides
        return (
            len(self.unread) == READ_EVERY[self.device.type]
            or self.preview_is_due()
            or self.evaluation_is_due()
            or signalled
        )

    def record(self, rows, seconds):
        """Write the rows of `read_losses`, whose steps took so many seconds each, and show the last."""
        volumes = self.config.batch_size * self.config.gradient_accumulate_every
        for values in rows:
            values |= {"seconds": seconds, "volumes_per_second": volumes / seconds}
            self.log.write(values.pop("step"), values)
            self.shown |= values
        text = {name: f"{self.shown[name]:.3g}" for name in ("D", "G", "GP", "PL") if name in self.shown}
        self.bar.set_postfix(text | {"volumes/s": f"{volumes / seconds:.3g}"}, refresh=False)
        self.bar.update(self.step - self.bar.n)

    def agree_on_end(self):
        """End all processes after the same step when any has received a signal."""
        if self.group.world > 1:
            asked = torch.tensor([float(bool(self.received))], device=self.device)
            self.group.sum_([asked])
            if asked.item() and not self.received:
                self.received.append("A signal to another process")

    def revert(self, reason, files):
        """Go back to the last checkpoint, with other random numbers, and raise a NanException."""
        seen = sorted(set(torch.cat(files).tolist())) if files else []
        files = ", ".join(str(self.audit.paths[i]) for i in seen[:MAX_FILES_NAMED])
        last = find_checkpoint(self.config.models)
        message = (
            f"{reason}; the run went back to {last}. Volumes of the step: {files}. "
            f"If it happens again, try a lower --learning_rate or --fp16 False."
        )
        reverts = self.reverts + 1
        self.load(last)
        self.reverts = reverts
        self.open_loader()
        self.open_log()
        if self.first:
            tqdm.write(message, file=sys.stderr)
        raise NanException(message)

    # ---- previews

    def preview_is_due(self):
        """True every evaluate_every steps, and every 100 steps in the beginning."""
        early = self.step < PREVIEW_EARLY_UNTIL and self.step % PREVIEW_EVERY_EARLY == 0
        return early or self.step % self.config.evaluate_every == 0

    def preview_if_due(self):
        """Preview if it is due."""
        if self.preview_is_due():
            self.preview()

    @torch.no_grad()
    def preview_chunk(self, synthesis, inputs):
        """Volumes in [0, 1] from (styles, noise). Shapes: -> (B, 1, Z, X, Y) float32 on the CPU"""
        styles, noise = (t.to(self.device) for t in inputs)
        with self.autocast():
            volumes = synthesis(styles, noise)
        return volumes.float().clamp(0, 1).cpu()

    @torch.no_grad()
    def truncated_styles(self, mapping, z, seeds):
        """Styles of latents, of classes that follow from the seeds. Shapes: (B, latent) -> (B, latent)"""
        labels = seeded_classes(seeds, self.classes and self.classes.shares())
        labels = None if labels is None else labels.to(self.device)
        center = truncation_center(mapping, LATENT_DIM, self.device, self.config.seed)
        return truncate(mapping(z.to(self.device), labels), center, self.config.trunc_psi, labels)

    @torch.no_grad()
    def preview_volumes(self, mapping, synthesis, mixed=False):
        """The preview's volumes, a batch at a time, of seeds seed, seed + 1, ...; a mixed one has the first
        half of its blocks from its row's latent and the rest from its column's. Processes share the work.

        Shapes: -> (num_image_tiles^2, 1, Z, X, Y), or None for all processes but the first
        """
        config, tiles, layers = self.config, self.config.num_image_tiles, synthesis.num_layers
        seeds = range(config.seed, config.seed + tiles**2)
        z = torch.stack([latent_of(seed, LATENT_DIM) for seed in seeds]).to(self.device)
        w = self.truncated_styles(mapping, z, seeds)
        cells = np.arange(len(seeds))
        rows_and_columns = w[cells // tiles], w[cells % tiles]
        styles = mix_styles(*rows_and_columns, layers, layers // 2) if mixed else same_style(w, layers)
        own, chunks = self.group.share(len(seeds)), [torch.empty(0, 1, *config.shape)]
        for start in own[:: self.batch_size]:
            chunk = slice(start, min(start + self.batch_size, own.stop))
            _, noise = batch_inputs(seeds[chunk], LATENT_DIM, config.shape)
            chunks.append(self.preview_chunk(synthesis, (styles[chunk], noise)))
        parts = self.group.collect(torch.cat(chunks))
        return torch.cat(parts) if self.first else None

    def preview(self):
        """Write sheets of axial slices and projections (G, GE, mixed styles by GE), and a NIfTI of GE."""
        GAN, folder, affine = self.GAN, self.config.results / "previews", self.audit.affine
        folder.mkdir(parents=True, exist_ok=True)
        sheets = {"G": (GAN.S, GAN.G), "GE": (GAN.SE, GAN.GE), "mixed": (GAN.SE, GAN.GE, True)}
        for name, networks in sheets.items():
            volumes = self.preview_volumes(*networks)
            if not self.first:
                continue
            sheet = contact_sheet(volumes, affine, self.config.num_image_tiles)
            save_picture(sheet, folder / f"{self.step:06d}-{name}.png")
            if self.log.board is not None:
                self.log.board.add_image(f"previews/{name}", sheet[None], self.step)
            if name == "GE":
                save_nifti(volumes[0], affine, folder / f"{self.step:06d}-GE.nii.gz")

    # ---- evaluation

    def evaluation_is_due(self):
        """True every calculate_fid_every steps."""
        every = self.config.calculate_fid_every
        return every is not None and self.step % every == 0

    def evaluate_if_due(self):
        """Every calculate_fid_every steps, {metric: value} of volumes of the averaged networks, else {}.

        Processes share the volumes; the first compares them with the real ones. What fails is reported, and
        training goes on.
        """
        if not self.evaluation_is_due():
            return {}
        failed, results = [], {}
        try:
            own = self.group.share(self.config.calculate_fid_num_images)
            part = self.evaluator.measure_part(self.averaged_volumes(own), len(own), self.group.world)
        except Exception as error:  # whatever it is, it must not end a training of days
            part = " ".join(str(error).split()) or type(error).__name__
        parts = self.group.collect(part)
        if not self.first:
            return {}
        try:
            failed = [part for part in parts if isinstance(part, str)]
            results = {} if failed else self.evaluator.compare_parts(parts)
        except Exception as error:
            failed = [" ".join(str(error).split()) or type(error).__name__]
        if failed:
            tqdm.write(f"Step {self.step} could not be evaluated: {failed[0]}", file=sys.stderr)
            return {}
        scores = {name: result["value"] for name, result in results.items()}
        append_scores(self.config.results / "fid_scores.txt", self.step, scores)
        self.keep_best(scores)
        return scores

    @torch.no_grad()
    def averaged_volumes(self, numbers):
        """Yield volumes of the averaged networks, of seeds seed + number, as VolumeInMemory."""
        from MedicalNet.evaluation import in_memory

        config, mapping, synthesis = self.config, self.GAN.SE, self.GAN.GE
        for start in numbers[:: self.batch_size]:
            if self.received:
                raise InterruptedError(f"{self.received[0]} came first")
            seeds = [config.seed + n for n in range(start, min(start + self.batch_size, numbers.stop))]
            z, noise = batch_inputs(seeds, LATENT_DIM, config.shape)
            w = self.truncated_styles(mapping, z, seeds)
            volumes = self.preview_chunk(synthesis, (same_style(w, synthesis.num_layers), noise)).numpy()
            yield from in_memory(seeds, volumes, self.audit.affine)

    def keep_best(self, scores):
        """Write model_best.pt if the MedicalNet distance is the lowest so far."""
        for metric in ("MD", "FD-random-volume"):
            if metric in scores:
                same = self.best is not None and self.best["metric"] == metric
                if not same or scores[metric] < self.best["value"]:
                    self.best = {"metric": metric, "value": scores[metric], "step": self.step}
                    save_checkpoint(self.state(), self.config.models / "model_best.pt")
                    tqdm.write(f"Step {self.step} has the lowest {metric} so far, {scores[metric]:.5g}.")

    # ---- checkpoints

    def state(self):
        """All that the run needs to continue exactly."""
        config = self.config
        state = {
            "GAN": self.GAN.state_dict(),
            "G_opt": self.G_opt.state_dict(),
            "D_opt": self.D_opt.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "reverts": self.reverts,
            "pl_mean": None if self.pl_mean is None else float(self.pl_mean),
            "best": self.best,
            "ada": self.ada and self.ada.state(),
            "class_names": self.classes and self.classes.names,
            "class_shares": self.classes and self.classes.shares().tolist(),
            "random": {"cpu": torch.get_rng_state()},
            "truncation_center": {
                name: truncation_center(getattr(self.GAN, name), LATENT_DIM, self.device, config.seed).cpu()
                for name in ("S", "SE")
            },
            "config": {**asdict(config), "latent_dim": LATENT_DIM, "style_depth": STYLE_DEPTH},
            "affine": self.audit.affine.tolist(),
            "data_digest": self.audit.digest,
            "format_version": FORMAT_VERSION,
            "version": __version__,
        }
        if self.device.type == "cuda":
            state["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def save(self):
        """Write a checkpoint; remove those beyond keep_checkpoints."""
        config = self.config
        if not all(p.isfinite().all() for p in self.GAN.parameters()):
            self.revert("a weight is not finite")
        if not self.first:
            return
        state = self.state()
        save_checkpoint(state, config.models / f"model_{self.step // config.save_every}.pt")
        with atomic_path(config.models / ".config.json") as part:
            part.write_text(json.dumps(state["config"], indent=1))
        if config.keep_checkpoints is not None:
            for number in checkpoint_numbers(config.models)[: -config.keep_checkpoints]:
                (config.models / f"model_{number}.pt").unlink()

    def load(self, path):
        """Take up a checkpoint; from an original, weights alone, the optimisers start anew."""
        state = read_checkpoint(path)
        load_networks(self.GAN, state["GAN"], path)
        if "step" not in state:
            self.step = int(path.stem.removeprefix("model_")) * self.config.save_every
            print(f"{path} holds weights alone: continuing at step {self.step} with new optimisers.")
            return
        if state["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"{path} was written by version {state['version']} in format {state['format_version']}; "
                f"this is {__version__} with format {FORMAT_VERSION}: update the program."
            )
        for optimizer, saved in ((self.G_opt, state["G_opt"]), (self.D_opt, state["D_opt"])):
            rate = optimizer.param_groups[0]["lr"]
            optimizer.load_state_dict(saved)
            optimizer.param_groups[0]["lr"] = rate  # the flag's, also when it was changed
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.reverts, self.pl_mean = state["step"], state["reverts"], state["pl_mean"]
        if self.pl_mean is not None:
            self.pl_mean = torch.tensor(self.pl_mean, dtype=torch.float64, device=self.device)
        self.best = self.best or state.get("best")
        if self.ada is not None and state.get("ada"):
            self.ada.load(state["ada"])
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        if state["data_digest"] != self.audit.digest:
            print(f"The volumes in {self.config.data} are not those that {path} was trained on.")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Inference                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class ModelLoader:
    """A trained generator, ready to use.

    Args:
        base_dir: Folder that holds models/<name>/model_<n>.pt.
        name: Name of the run.
        load_from: Number n of the checkpoint, -1 for the newest.
        device: auto, cpu, cuda or cuda:<n>.
        checkpoint: Path of a checkpoint file, in place of base_dir, name and load_from.
        use_average: Take the averaged networks SE and GE; False takes S and G.
        image_depth: Axial slices, for a checkpoint of the original that does not state them.

    Raises:
        ValueError: There is no such checkpoint, or it cannot be used.
    """

    def __init__(
        self,
        base_dir=".",
        name="default",
        load_from=-1,
        device="auto",
        checkpoint=None,
        use_average=True,
        image_depth=None,
    ):
        path = checkpoint or find_checkpoint(Path(base_dir) / "models" / name, load_from)
        state = read_checkpoint(path)
        self.settings = network_settings(state, path, image_depth)
        settings = self.settings
        self.path = Path(path)
        self.device = choose_device(device)
        self.latent_dim = settings["latent_dim"]
        self.shape = (settings["image_depth"], settings["image_size"], settings["image_size"])
        self.step = state.get("step")
        self.affine = np.array(state.get("affine", np.eye(4)))
        self.class_names = state.get("class_names") or []
        self.class_shares = state.get("class_shares")
        number = len(self.class_names)
        self.S = StyleVectorizer(self.latent_dim, settings["style_depth"], settings["lr_mlp"], number)
        self.G = Generator(**{n: settings[n] for n in (*SIZES, "latent_dim", "attn_layers", "no_const")})
        names = ("SE", "GE") if use_average else ("S", "G")
        for module, prefix in zip((self.S, self.G), names, strict=True):
            tensors = {
                n.removeprefix(f"{prefix}."): t for n, t in state["GAN"].items() if n.startswith(f"{prefix}.")
            }
            load_networks(module, tensors, path)
            channels_last(module).requires_grad_(False).eval().to(self.device)
        center = state.get("truncation_center", {}).get(names[0])
        if center is None:
            center = truncation_center(self.S, self.latent_dim, self.device)
        self.truncation_center = center.to(self.device)

    def labels_of(self, seeds, name=None):
        """Classes of the volumes of some seeds: the named one, or drawn as often as shown in training.

        Shapes: (B,) -> (B,) int64, or None for a model without classes

        Raises:
            ValueError: There is no such class.
        """
        if name is None:
            return seeded_classes(seeds, self.class_shares)
        if name not in self.class_names:
            there = f"it has {', '.join(self.class_names)}" if self.class_names else "it was trained without"
            raise ValueError(f"--label {name} is no class of {self.path}: {there}.")
        return torch.full((len(seeds),), self.class_names.index(name))

    @torch.no_grad()
    def noise_to_styles(self, z, trunc_psi=None, labels=None):
        """w of latents, truncated towards the mean style if asked.

        Shapes: (B, latent), labels (B,) of `labels_of`, None without classes -> (B, latent)
        """
        if (labels is None) != (not self.class_names):
            raise ValueError(f"{self.path} has {len(self.class_names)} classes; labels go with them alone.")
        labels = None if labels is None else labels.to(self.device)
        w = self.S(z.to(self.device), labels)
        return w if trunc_psi is None else truncate(w, self.truncation_center, trunc_psi, labels)

    def styles_to_images(self, w):
        """Volumes in [0, 1] with fresh noise. Shapes: (B, latent) or (B, L, latent) -> (B, 1, Z, S, S)"""
        return self.styles_to_images_ext_noise(w, torch.rand(len(w), *self.shape, 1, device=self.device))

    @torch.no_grad()
    def styles_to_images_ext_noise(self, w, noise):
        """Volumes in [0, 1] with given noise.

        Shapes: w (B, latent) or (B, L, latent), noise (B, >= Z, >= S, >= S, 1) -> (B, 1, Z, S, S)
        """
        w = w.to(self.device)
        styles = w if w.ndim == 3 else same_style(w, self.G.num_layers)
        return self.G(styles, noise.to(self.device)).clamp(0, 1)


def open_generator(config):
    """ModelLoader of the run's checkpoint; says how old its average is."""
    path = find_checkpoint(config.models, config.load_from)
    model = ModelLoader(
        device=config.device, checkpoint=path, use_average=config.use_average, image_depth=config.chosen_depth
    )
    if config.use_average and model.step is not None and model.step < AVERAGE_AFTER:
        last_copy = (model.step - 3) // AVERAGE_COPY_EVERY * AVERAGE_COPY_EVERY + 3 if model.step > 2 else 0
        print(
            f"The average is a copy of the generator after step {last_copy}; "
            f"--use_average False takes the current one."
        )
    return model


def generate_volumes(config):
    """`--generate`: volumes of seeds seed, seed + 1, ..., each as NIfTI and PNG, and a contact sheet.

    Returns:
        The new folder with the files.
    """
    model = open_generator(config)
    folder = next_free(config.results / f"generated-{model.path.stem}")
    folder.mkdir(parents=True)
    seeds = range(config.seed, config.seed + config.num_generate)
    shown = []
    with tqdm(total=len(seeds), desc="Generating", unit="volume") as bar:
        for start in range(0, len(seeds), config.batch_size):
            chosen = seeds[start : start + config.batch_size]
            z, noise = batch_inputs(chosen, model.latent_dim, model.shape)
            w = model.noise_to_styles(z, config.trunc_psi, model.labels_of(chosen, config.label))
            volumes = model.styles_to_images_ext_noise(w, noise).cpu()
            for seed, volume in zip(chosen, volumes, strict=True):
                save_nifti(volume, model.affine, folder / f"seed{seed:06d}.nii.gz")
                save_picture(contact_sheet(volume[None], model.affine, 1), folder / f"seed{seed:06d}.png")
            shown.extend(volumes[: config.num_image_tiles**2 - len(shown)])
            bar.update(len(chosen))
    columns = min(config.num_image_tiles, math.ceil(math.sqrt(len(shown))))
    save_picture(contact_sheet(torch.stack(shown), model.affine, columns), folder / "contact_sheet.png")
    print(f"{len(seeds)} volumes and their pictures are in {folder}")
    return folder


def generate_interpolation(config):
    """`--generate_interpolation`: from the latent of seed to that of seed + 1, with the noise of seed.

    Every frame is a NIfTI volume, and a PNG too with --save_frames; one GIF shows axial slice and projection.

    Returns:
        The new folder with the files.
    """
    model = open_generator(config)
    folder = next_free(config.results / f"interpolation-{model.path.stem}")
    folder.mkdir(parents=True)
    z, noise = batch_inputs((config.seed, config.seed + 1), model.latent_dim, model.shape)
    labels = model.labels_of([config.seed], config.label)
    positions = torch.linspace(0, 1, config.interpolation_num_steps)
    pictures = []
    for frame, t in enumerate(tqdm(positions, "Interpolating", unit="volume")):
        w = model.noise_to_styles(slerp(z[0], z[1], t)[None], config.trunc_psi, labels)
        volume = model.styles_to_images_ext_noise(w, noise[:1]).cpu()
        save_nifti(volume[0], model.affine, folder / f"frame{frame:04d}.nii.gz")
        pictures.append(contact_sheet(volume, model.affine, 1))
        if config.save_frames:
            save_picture(pictures[-1], folder / f"frame{frame:04d}.png")
    save_gif(pictures, folder / "interpolation.gif")
    print(f"{len(positions)} volumes and a GIF are in {folder}")
    return folder


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Entry points                                                                                             ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


# Settings that change what a continued run computes.
RESUMED_SETTINGS = (
    *("batch_size", "gradient_accumulate_every", "learning_rate", "ttur_mult", "mixed_prob", "no_pl_reg"),
    "pl_batch_shrink",
    *("rel_disc_loss", "dual_contrast_loss", "top_k_training", "generator_top_k_gamma"),
    *("generator_top_k_frac", "aug_prob", "aug_types", "ada_target", "ada_volumes", "dataset_aug_prob"),
    *("pl_batch_shrink", "balance_classes", "fp16", "amp_dtype"),
    *("seed", "save_every"),
)


def class_names(config):
    """Names of the classes that `--labels` gives, [] without the flag."""
    return [] if config.labels is None else read_classes(config.labels, config.data).names


def adopt_settings(config, checkpoint):
    """The configuration with a checkpoint's network sizes in place of defaults; others are refused."""
    state = read_checkpoint(checkpoint)
    stored = network_settings(state, checkpoint, config.chosen_depth)
    adopted = {}
    there = state.get("class_names") or []
    if there != (names := class_names(config)):
        raise ValueError(
            f"{checkpoint} has the classes {', '.join(there) or 'none'}, --labels gives "
            f"{', '.join(names) or 'none'}: give the same, another --name, or --new."
        )
    for name in NETWORK_SETTINGS:
        asked, there = getattr(config, name), stored[name]
        if asked != there and asked != getattr(TrainConfig, name):
            raise ValueError(
                f"--{name} is {asked}, but {checkpoint} has {there}: give the same, another --name, or --new."
            )
        if asked != there:
            adopted[name] = there
    if adopted:
        print(f"Taken from {checkpoint}: " + ", ".join(f"{name} {value}" for name, value in adopted.items()))
    former = state.get("config", {})
    changed = [n for n in RESUMED_SETTINGS if n in former and former[n] != getattr(config, n)]
    for name in changed:
        print(
            f"--{name} was {former[name]} when {checkpoint} was written and is {getattr(config, name)} now."
        )
    return replace(config, **adopted)


def move_aside(config):
    """`--new`: rename the folders of an earlier run of this name."""
    for folder in (config.models, config.results):
        if folder.exists():
            aside = next_free(folder.with_name(f"{folder.name}.earlier"))
            folder.rename(aside)
            print(f"The earlier run's {folder} is now {aside}.")


def set_aside_later_checkpoints(config):
    """`--load_from`: move later checkpoints to a folder of their own, so that none is overwritten."""
    later = [n for n in checkpoint_numbers(config.models) if n > config.load_from]
    if config.load_from == -1 or not later:
        return
    aside = next_free(config.models / f"after-model_{config.load_from}")
    aside.mkdir()
    kept_step = read_checkpoint(config.models / f"model_{config.load_from}.pt").get("step", 0)
    best = config.models / "model_best.pt"
    if best.exists() and read_checkpoint(best)["step"] > kept_step:
        best.rename(aside / best.name)
    for number in later:
        (config.models / f"model_{number}.pt").rename(aside / f"model_{number}.pt")
    print(f"{len(later)} later checkpoints are now in {aside}.")


def open_evaluator(config):
    """`--calculate_fid_every`: what evaluates during training; a warning for all that cannot be had.

    Weights are looked for, and downloaded, now rather than at the first evaluation.
    """
    from MedicalNet.evaluation import EvaluateConfig, Evaluator, unpublished

    names = ("embedding", "medicalnet_weights", "inception_weights", "device")
    settings = {name: getattr(config, name) for name in names}
    settings |= {"real": config.data, "planes": ("axial",), "bootstrap": 0, "seed": config.seed}
    evaluator = Evaluator(EvaluateConfig(**settings, recompute=config.clear_fid_cache), optional=True)
    for reason in evaluator.missing:
        print(f"Warning: training without the metrics of this network. {reason}")
    for text in unpublished(evaluator.weights):
        print(f"Warning: {text}.")
    return evaluator


def open_volumes(config, group):
    """Audit of the data folder, with the volumes where `--cache` wants them; a dry run keeps nothing."""
    shape = (config.image_size, config.image_size, config.image_depth)
    if config.cache != "disk" or config.dry_run:
        keep = config.cache == "ram" and not config.dry_run
        return audit_volumes(config.data, shape, config.batch_size, keep)
    packs = config.packs
    with group.first_before_others():
        if group.rank == 0:
            return pack_volumes(config.data, shape, config.batch_size, packs)
        pack = find_pack(stamps_of(config.data), shape, packs)
    if pack is None:
        raise ValueError(f"This process does not see {packs}, where the first has packed the volumes.")
    return pack.audit(config.data)


def print_report(trainer, peaks):
    """Print the audit, sizes and peak memory."""
    print("\n".join(trainer.report()))
    if peaks and trainer.device.type == "cpu":
        print("Memory of the tensors (a process on the CPU takes about a third more):")
    for phase, peak in peaks.items():
        print(f"peak memory, {phase}: {peak / 2**30:.2f} GiB")


def train_from_folder(config, group=None):
    """Check everything, then train, or stop after the checks with `--dry_run`.

    Args:
        config: TrainConfig.
        group: Group of the processes that train together; None is this one alone.

    Returns:
        The Trainer, at its last step; after a dry run on the CPU one of fake tensors.

    Raises:
        ValueError: Data or settings cannot be used; nothing has been written.
    """
    group = group or Group()
    resumed = checkpoint_numbers(config.models) and not config.new
    if resumed and config.init_from is not None:
        raise ValueError(
            f"--init_from starts a new run, but {config.models} has one: use --new or another --name."
        )
    source = find_checkpoint(config.models, config.load_from) if resumed else config.init_from
    if source is not None:
        config = adopt_settings(config, source)
    device = choose_device(config.device)
    classes = None
    if config.labels is not None:
        classes = read_classes(config.labels, config.data, config.balance_classes)
    audit = open_volumes(config, group)
    audit.classes = classes
    evaluator = None
    if config.calculate_fid_every is not None:
        if config.calculate_fid_num_images < group.world:
            raise ValueError(
                f"--calculate_fid_num_images must be {group.world} or more for as many processes."
            )
        with group.first_before_others():  # it downloads the weights
            evaluator = open_evaluator(config)
    predict = config.dry_run and device.type == "cpu"
    with FakeTensorMode() if predict else contextlib.nullcontext():
        trainer = Trainer(config, group, classes)
    trainer.audit, trainer.evaluator = audit, evaluator
    if config.dry_run:
        print("\n".join(f"{name}: {value}" for name, value in asdict(config).items()))
    if device.type == "cuda":
        zeros = torch.zeros(trainer.batch_size, 1, *config.shape)
        trainer.loader = itertools.repeat((zeros, torch.zeros(trainer.batch_size, dtype=torch.int64)))
        print_report(trainer, measure_peak_memory(trainer))
    else:
        print_report(trainer, predict_peak_memory(config, audit, group) if predict else {})
    if config.dry_run:
        return trainer
    group.wait()  # until all have read what is there
    if trainer.first:
        if config.new:
            move_aside(config)
        set_aside_later_checkpoints(config)
    group.wait()
    trainer.prepare()
    group.wait()
    if trainer.step >= config.num_train_steps:
        print(f"{config.models} is at step {trainer.step} already: raise --num_train_steps to train on.")
        return trainer
    trainer.train()
    print(f"Checkpoints are in {config.models}, previews and metrics.csv in {config.results}.")
    return trainer


def main(argv=None):
    """The command line: train, or generate from a trained model."""
    config = parse_cli(TrainConfig, argv)
    with one_line_errors():
        if config.generate_interpolation:
            generate_interpolation(config)
        elif config.generate:
            generate_volumes(config)
        elif config.multi_gpus and "WORLD_SIZE" not in os.environ:
            start_on_all_gpus()
        else:
            with process_group(config.device) as group, only_first_prints(group):
                train_from_folder(config, group)


if __name__ == "__main__":
    main()
