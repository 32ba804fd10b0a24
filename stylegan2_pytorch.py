"""3D StyleGAN2: train a generator of medical volumes from a folder of NIfTI files.

    python stylegan2_pytorch.py --data volumes --name cow --image_size 128 --image_depth 32
    python stylegan2_pytorch.py --data volumes --name cow --dry_run
    python stylegan2_pytorch.py --name cow --generate --num_generate 16

Sections of this file, in order:

    configuration             every option, one line each
    layers                    modulated convolutions; others are in volumetric/layers.py
    networks                  mapping network, generator, discriminator
    losses and regularisers   hinge, relativistic, dual contrastive, NT-Xent, penalties
    latents and styles        truncation, interpolation; Synthesizer: from seeds to volumes
    checkpoints               what is in one, the originals' included
    trainer                   the training step, previews, evaluation, state
    inference                 ModelLoader, generation
    entry points              what the command line calls

How a flag is parsed, a volume read, a batch shared out, a picture drawn and a run kept up is in volumetric/.

A NIfTI array is (X, Y, Z); inside the networks a volume is (B, 1, D, H, W) = (B, 1, Z, X, Y), with values in
[0, 1].

Papers: StyleGAN2 (arXiv:1912.04958), DiffAugment (arXiv:2006.10738), WGAN-GP (arXiv:1704.00028), the
relativistic discriminator (arXiv:1807.00734), dual contrastive loss (arXiv:2103.09742), top-k training
(arXiv:2002.06224), NT-Xent (arXiv:2002.05709), StyleGAN2-ADA (arXiv:2006.06676), projection discriminator
(arXiv:1802.05637), TTUR (arXiv:1706.08500), and the 3D model for the Circle of Willis (Aydin et al.,
NeuroImage 304 (2024) 120936).
"""

import contextlib
import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volumetric import dataset, generation, memory, parallel, runs, training
from volumetric.cli import (
    SHARE,
    EvaluationOptions,
    SeedOptions,
    UserError,
    VolumeConfig,
    inherited,
    one_line_errors,
    option,
    options_of,
    parse_cli,
    with_recipes,
)
from volumetric.dataset import Batch, cat
from volumetric.diff_augment import (
    AUGMENTATIONS,
    UNSTEADY,
    AdaptiveAugmentation,
    augmented,
    draw_augmentation,
)
from volumetric.files import Record, as_damaged, naming, read_json, reading
from volumetric.geometry import axes_of, check_affine
from volumetric.layers import (
    GROUP,
    Blur,
    Conv3d,
    LeakyReLU,
    MappingLinear,
    ModulatedSum,
    SquareSum,
    StyleLinear,
    Upsampling,
    activate_noisily,
    as_channels,
    channels_last,
    check_layers,
    convolve,
    equalized_scale,
    gradient_penalty,
    growth_schedule,
    minibatch_deviation,
    move_averages,
    product_dtype,
    reliably,
    run_block,
    shrink_schedule,
    slerp,
    times_,
    trained_by,
    zero_centered_penalty,
)
from volumetric.meanings import GAN_PREVIEWS, GAN_WORDS, meanings_of
from volumetric.optional_layers import FeatureQuantizer, attention_blocks, contrastive_head, nt_xent
from volumetric.pictures import contact_sheet

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Factors = tuple[int, int, int]  # of (D, H, W)
Rng = parallel.SharedRandom
Losses = dict[str, Any]  # {column of metrics.csv: tensor or number}
Randoms = list[tuple[Rng, torch.Generator]]  # of the host, and of the device

LATENT_DIM = 512  # of z and w, as published
STYLE_DEPTH = 8  # layers of the mapping network, as published

# The training schedule of the published model, in steps.
PATH_LENGTH_EVERY, PATH_LENGTH_AFTER, PATH_LENGTH_DECAY = 32, 5000, 0.99
AVERAGE_EVERY, AVERAGE_AFTER, AVERAGE_DECAY = 10, 20000, 0.995
# Before the averages start, SE and GE are copies made at step % 1000 == 2.
AVERAGE_COPY_EVERY, AVERAGE_COPY_UNTIL = 1000, 25000
ADA_EVERY = 4
MAPPING_RATE = 0.01  # of an equalised mapping network, as StyleGAN2 moves it (arXiv:1912.04958)
CONTRAST_FAKES_AFTER = 20000

PENALTY_PARTS = 4  # of a micro-batch, whose penalties are computed one after the other to save memory
PENALTY_VOXELS = 2**19  # in such a part, at least, unless the micro-batch has fewer
HALF_PENALTY_SCALE = 2.0**10  # of logits in float16, whose gradient in a voxel is some 1e-4 and less inside
CACHED_VOXELS = 2**15  # the same for a zero-centred penalty on a CPU, whose caches hold as much
STREAM_D, STREAM_G = parallel.STREAM_STEP, parallel.STREAM_SECOND_STEP
TRUNCATION_SAMPLES = 2000  # styles averaged for the truncation centre


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Configuration                                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


RECIPES = {"published": "as in the paper", "robust": "learns sooner and stays diverse"}
LOSSES = {"hinge": "as published", "logistic": "softplus", "relativistic": "pairs of real and generated"}
PENALTIES = {"one_centered": "as published", "r1": "to 0 at real volumes", "r1r2": "at generated ones too"}
NOISES = {"all": "as published", "last": "the last one, where it draws no shapes"}
PRECISIONS = {"float32": "as published", "mixed": "that of the other passes, with --fp16"}
AVERAGES = {"published": "from step 20000", "ramped": "from the first step, ever longer"}


@with_recipes
@dataclass(kw_only=True)
class TrainConfig(SeedOptions, EvaluationOptions, VolumeConfig):
    """Train a 3D StyleGAN2 on a folder of NIfTI volumes, or generate from a trained one.

    The same command given again continues the run. Ctrl-C and SIGTERM save first, and end it with exit status
    130 or 143. In a flag's name - and _ are the same.
    """

    # networks; what every training has is in RunConfig, flips and classes are in VolumeConfig
    network_capacity: int = option(
        8, "Half the channels of G's last block.", most=1024, network=True, section="Networks"
    )
    fmap_max: int = option(512, "Largest number of channels of any layer.", most=16384, network=True)
    lr_mlp: float = option(0.1, "Learning-rate multiplier of the mapping network.", most=10, network=True)
    no_const: bool = option(False, "Start G from the mean style, not a learned constant.", network=True)
    attn_layers: tuple = option((), "Blocks with linear attention, a list; 1 is at the volume.", network=True)
    fq_layers: tuple = option((), "Blocks of D with feature quantisation, a list; as above.", network=True)
    fq_dict_size: int = option(256, "Codes of each feature quantisation.", most=65536, network=True)
    cl_reg: bool = option(False, "Contrastive regularisation of the discriminator.", network=True)
    minibatch_std: bool = option(False, "D sees how volumes differ.", robust=True, network=True)
    transparent: bool = option(False, "Not available: a one-channel volume has no alpha channel.")
    # training step
    recipe: str = option("published", "Defaults.", choices=RECIPES, resumed=True, section="Training step")
    gradient_accumulate_every: int = inherited(VolumeConfig, "gradient_accumulate_every", 4)
    learning_rate: float = inherited(VolumeConfig, "learning_rate", 1e-4, robust=3e-3)
    ttur_mult: float = option(1.5, "D's rate is learning_rate times this.", robust=1.0, resumed=True)
    equalized_lr: bool = option(False, "Rates by each layer's fan-in.", robust=True, kept=True)
    noise: str = option("all", "Convolutions of G with noise.", choices=NOISES, robust="last", kept=True)
    final_rate: float = inherited(VolumeConfig, "final_rate", 1.0, robust=0.02)
    adam_betas: tuple = inherited(VolumeConfig, "adam_betas", (0.5, 0.9), robust=(0.0, 0.99))
    average: str = option("published", "Moving average.", choices=AVERAGES, robust="ramped", resumed=True)
    loss: str = option("hinge", "Loss of G and D.", choices=LOSSES, robust="relativistic", resumed=True)
    all_pairs: bool = option(False, "Relativistic: all pairs of a group.", robust=True, kept=True)
    penalty: str = option("one_centered", "Of D's gradient.", choices=PENALTIES, robust="r1r2", resumed=True)
    penalty_every: int = option(16, "Steps between gradient penalties.", robust=4, resumed=True)
    penalty_precision: str = option("float32", "Of penalties.", choices=PRECISIONS, resumed=True)
    gamma: float = option(1.0, "Weight of a zero-centred penalty.", resumed=True)
    final_gamma: float | None = option(None, "Its weight at the end; None keeps it.", resumed=True)
    mixed_prob: float = option(0.9, "Probability of style mixing.", **SHARE, robust=0.0, resumed=True)
    no_pl_reg: bool = option(False, "No path-length regularisation.", robust=True, resumed=True)
    pl_batch_shrink: int = option(1, "Measure path lengths on every so-many-th volume.", resumed=True)
    rel_disc_loss: bool = option(False, "Relativistic discriminator loss.", resumed=True)
    dual_contrast_loss: bool = option(False, "Dual contrastive loss, not the hinge loss.", resumed=True)
    top_k_training: bool = option(False, "Train G on the fakes that D finds most real.", resumed=True)
    generator_top_k_gamma: float = option(0.99, "Factor of that share per epoch.", **SHARE, resumed=True)
    generator_top_k_frac: float = option(0.5, "Smallest share of fakes kept.", **SHARE, resumed=True)
    # augmentation and memory
    aug_prob: float = option(
        0.5, "Probability of augmentation.", **SHARE, robust=0.0, resumed=True, section="Augmentation"
    )
    aug_each: bool = option(False, "Decide for each volume, not micro-batch.", robust=True, resumed=True)
    aug_types: tuple = option(("translation", "cutout"), "Kinds of it.", choices=AUGMENTATIONS, resumed=True)
    ada_target: float | None = option(None, "Overfitting that aug_prob adapts to.", **SHARE, resumed=True)
    ada_volumes: int = option(500000, "Real volumes in which aug_prob can adapt from 0 to 1.", resumed=True)
    checkpoint_activations: bool = option(False, "Compute blocks again going backward: saves memory.")
    cuda_graphs: bool = option(True, "On a GPU, replay small steps that are all alike as CUDA graphs.")
    # previews and evaluation
    num_image_tiles: int = option(8, "Rows and columns of previews.", most=64, section="Previews")
    trunc_psi: float = option(1.0, "Truncation psi of previews and generation; 1 is none.", **SHARE)
    # generation
    generate_interpolation: bool = option(False, "From one volume to another.", section="Interpolation")
    interpolation_num_steps: int = option(100, "Volumes of an interpolation.", most=10**6)
    save_frames: bool = option(False, "Save every frame of an interpolation also as PNG.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transparent:
            raise UserError("--transparent is not possible: a one-channel volume has no alpha channel.")
        for name in ("attn_layers", "fq_layers"):
            check_layers(name, getattr(self, name), self.blocks)
        for name in ("cl_reg", "ada_target"):
            if getattr(self, name) and not self.aug_types:
                raise UserError(f"--{name} needs augmentations: give --aug_types.")
        if self.loss != "hinge" and (self.rel_disc_loss or self.dual_contrast_loss):
            raise UserError(f"--loss {self.loss} stands alone: leave the flags of other losses out.")
        if self.loss == "relativistic" and self.top_k_training:
            raise UserError("--loss relativistic compares pairs: leave --top_k_training out.")

    @property
    def blocks(self) -> int:
        """Number of G's blocks."""
        return len(growth_schedule(self.image_size, self.image_depth))

    @property
    def chosen_depth(self) -> int | None:
        """The depth if another than the default was asked for, else None."""
        return None if self.image_depth == TrainConfig.image_depth else self.image_depth

    @property
    def batch_divisor(self) -> int:
        """Of a process's part of a batch."""
        return self.pl_batch_shrink

    @property
    def least_batch(self) -> int:
        """Volumes that a step can be of: a group, if groups are compared."""
        return math.lcm(GROUP if self.minibatch_std or self.all_pairs else 1, self.pl_batch_shrink)

    @property
    def largest_layer(self) -> tuple[int, tuple[int, int, int]]:
        """Channels and voxels (D, H, W) of D's first block, what half precision is tried with on a GPU."""
        return min(self.fmap_max, 4 * self.network_capacity), self.shape

    @property
    def scheduled(self) -> bool:
        """Something changes in the course of num_train_steps."""
        return super().scheduled or self.final_gamma is not None

    def plan(self, scores: Any = None) -> runs.Plan:
        """Plan of the run, with columns in its table for the options and the TrainingScores."""
        columns = ["D", "G", "GP", "PL", "pl_mean"] + (["Q", "Q_usage"] if self.fq_layers else [])
        columns += (["CR"] if self.cl_reg else []) + (["aug_prob"] if self.ada_target is not None else [])
        return runs.Plan.of(self, columns, scores, shown=("D", "G", "GP", "PL"))


NETWORK_SETTINGS = options_of(TrainConfig, network=True)
BEFORE = {"noise": "all", "all_pairs": False, "minibatch_std": False}  # where a checkpoint does not state it
GENERATOR_SETTINGS = ("image_size", "image_depth", "network_capacity", "fmap_max", "attn_layers", "no_const")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Layers                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


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

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *3 * [kernel_size]))
        nn.init.kaiming_normal_(self.weight, a=0, mode="fan_in", nonlinearity="leaky_relu")
        self.padding = kernel_size // 2
        self.eps = eps

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        s = 1 + style
        with torch.autocast(x.device.type, enabled=False):  # a sum of squares overflows float16
            dtype = product_dtype()
            kernel_power = SquareSum.apply(self.weight.float()).to(dtype)  # (C_out, C_in)
            norm = (s.to(dtype).square() @ kernel_power.T + self.eps).rsqrt().float()  # (B, C_out)
            largest = s.detach().abs().amax(dim=1, keepdim=True).clamp_min(self.eps)  # keeps float16 in range
        x = convolve(times_(x, as_channels(s / largest, x)), self.weight, padding=self.padding)
        return times_(x, as_channels(norm * largest, x))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Networks                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def initialize(module: nn.Module) -> None:
    """Kaiming-normal weights of a convolution or linear layer, as published; biases as PyTorch has them."""
    if isinstance(module, nn.Conv3d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, a=0, mode="fan_in", nonlinearity="leaky_relu")


class StyleVectorizer(nn.Module):
    """Mapping network: z to the intermediate latent w (StyleGAN2, Fig. 2).

    With classes, z and an embedding of the class are normalised and joined, as in StyleGAN2-ADA
    (arXiv:2006.06676).

    Shapes: z (B, latent_dim), labels (B,) or None -> w (B, latent_dim)
    """

    def __init__(
        self,
        latent_dim: int = LATENT_DIM,
        style_depth: int = STYLE_DEPTH,
        lr_mlp: float = 0.1,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        widths = [latent_dim * (2 if num_classes else 1), *style_depth * [latent_dim]]
        layers = [(MappingLinear(*pair, lr_mlp), LeakyReLU()) for pair in itertools.pairwise(widths)]
        self.net = nn.Sequential(*itertools.chain(*layers))
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
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

    def __init__(self, latent_dim: int, channels: int, enlarge: Factors | None) -> None:
        super().__init__()
        self.to_style = StyleLinear(latent_dim, channels)
        self.conv = ModulatedSum(channels)
        self.upsample = nn.Sequential(Upsampling(enlarge), Blur()) if enlarge else None

    def forward(self, x: Tensor, previous: Tensor | None, w: Tensor) -> Tensor:
        x = self.conv(x, self.to_style(w))
        if previous is not None:
            x = x + previous
        return x if self.upsample is None else self.upsample(x)


class GeneratorBlock(nn.Module):
    """Enlarge, then twice: modulated convolution, noise, LeakyReLU.

    Shapes:
        x:        (B, C_in, D, H, W)
        grey:     (B, 1, D', H', W') or None, at this block's size
        w:        (B, latent_dim)
        noise:    (B, >= D', >= H', >= W', 1), its first corner is used
        return:   (B, C_out, D', H', W'), grey volume at the next block's size
    """

    def __init__(
        self,
        latent_dim: int,
        in_channels: int,
        out_channels: int,
        enlarge: Factors,
        enlarge_next: Factors | None,
    ) -> None:
        super().__init__()
        self.upsample = Upsampling(enlarge) if max(enlarge) > 1 else None
        self.to_style1 = StyleLinear(latent_dim, in_channels)
        self.to_noise1 = nn.Linear(1, out_channels)
        self.conv1 = Conv3DMod(in_channels, out_channels, kernel_size=3)
        self.to_style2 = StyleLinear(latent_dim, out_channels)
        self.to_noise2 = nn.Linear(1, out_channels)
        self.conv2 = Conv3DMod(out_channels, out_channels, kernel_size=3)
        self.to_grayscale = ToGrayscale(latent_dim, out_channels, enlarge_next)

    def forward(self, x: Tensor, grey: Tensor | None, w: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        if self.upsample is not None:
            x = self.upsample(x)
        d, h, w_axis = x.shape[2:]
        noise = noise[:, :d, :h, :w_axis].flatten(1, 3)
        noise = torch.cat([noise, torch.ones_like(noise)], dim=-1)  # (B, D' * H' * W', 2)
        x = activate_noisily(self.conv1(x, self.to_style1(w)), noise, self.to_noise1)
        x = activate_noisily(self.conv2(x, self.to_style2(w)), noise, self.to_noise2)
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
        image_size: int,
        image_depth: int,
        latent_dim: int = LATENT_DIM,
        network_capacity: int = 8,
        fmap_max: int = 512,
        attn_layers: Sequence[int] = (),
        no_const: bool = False,
    ) -> None:
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
        self.initial_conv = Conv3d(widths[0], widths[0], 3, padding=1)
        widths = [widths[0], *widths]
        self.blocks = nn.ModuleList(
            GeneratorBlock(latent_dim, *channels, enlarge, enlarge_next)
            for channels, enlarge, enlarge_next in zip(
                itertools.pairwise(widths), factors, [*factors[1:], None], strict=True
            )
        )
        self.attention = attention_blocks(attn_layers, [*reversed(widths[:-1])])
        self.apply(initialize)
        for name, parameter in self.blocks.named_parameters():
            if ".to_noise" in name:
                nn.init.zeros_(parameter)

    def initial(self, styles: Tensor) -> Tensor:
        """What the first block starts from. Shapes: (B, num_layers, latent_dim) -> (B, C, 4, 4, 4)"""
        if hasattr(self, "initial_block"):
            return self.initial_block.expand(len(styles), -1, -1, -1, -1)
        return self.to_initial_block(styles.mean(dim=1)[:, :, None, None, None])

    def forward(self, styles: Tensor, noise: Tensor) -> Tensor:
        x, grey, again = self.initial_conv(self.initial(styles)), None, self.checkpoint_activations
        layers = range(self.num_layers, 0, -1)
        for layer, w, block in zip(layers, styles.unbind(dim=1), self.blocks, strict=True):
            if str(layer) in self.attention:
                x = run_block(self.attention[str(layer)], x, again=again)
            x, grey = run_block(block, x, grey, w, noise, again=again)
        return grey  # type: ignore[return-value]  # there is a block


class DiscriminatorBlock(nn.Module):
    """Residual block: two convolutions and a strided one, beside a strided 1x1x1 convolution.

    Shapes: (B, C_in, D, H, W) -> (B, C_out, D / stride, H / stride, W / stride)
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Factors, downsample: bool = True) -> None:
        super().__init__()
        self.conv_res = Conv3d(in_channels, out_channels, 1, stride=stride)
        self.net = nn.Sequential(
            Conv3d(in_channels, out_channels, 3, padding=1),
            LeakyReLU(),
            Conv3d(out_channels, out_channels, 3, padding=1),
            LeakyReLU(),
        )
        self.downsample = None
        if downsample:
            self.downsample = nn.Sequential(
                Blur(), Conv3d(out_channels, out_channels, 3, padding=1, stride=stride)
            )

    def forward(self, x: Tensor) -> Tensor:
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

    With minibatch_std, the last convolution also sees how much the volumes of a group of neighbours in the
    batch differ (arXiv:1710.10196, Sec. 3): what is too alike is then not real.

    Shapes: volumes (B, 1, Z, S, S), labels (B,) or None -> logits (B,), quantize_loss (1,)
    """

    def __init__(
        self,
        image_size: int,
        image_depth: int,
        network_capacity: int = 8,
        fmap_max: int = 512,
        attn_layers: Sequence[int] = (),
        fq_layers: Sequence[int] = (),
        fq_dict_size: int = 256,
        num_classes: int = 0,
        minibatch_std: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = False
        self.group = GROUP if minibatch_std else None  # volumes whose deviation is seen
        strides = shrink_schedule(image_size, image_depth)
        widths = [1, *(min(fmap_max, 4 * network_capacity * 2**i) for i in range(len(strides) + 1))]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(*channels, stride, downsample=i < len(strides))
            for i, (channels, stride) in enumerate(
                zip(itertools.pairwise(widths), [*strides, (1, 2, 2)], strict=True)
            )
        )
        self.attention = attention_blocks(attn_layers, widths[1:])
        self.quantizers: Any = nn.ModuleDict(
            {str(layer): FeatureQuantizer(widths[layer], fq_dict_size) for layer in sorted(fq_layers)}
        )
        self.final_conv = Conv3d(widths[-1] + minibatch_std, widths[-1], 3, padding=1)
        self.num_features = 8 * widths[-1]
        self.to_logit = nn.Linear(self.num_features, 1)
        self.class_embedding = nn.Embedding(num_classes, widths[-1]) if num_classes else None
        self.apply(initialize)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=widths[-1] ** -0.5)

    def features(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
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
        if self.group is not None:
            x = minibatch_deviation(x, self.group)
        return reliably(self.final_conv, x), loss

    def forward(self, volumes: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, loss = self.features(volumes)
        logits = self.to_logit(x.flatten(1)).squeeze(1)
        if self.class_embedding is not None:
            logits = logits + (x.mean(dim=(2, 3, 4)) * self.class_embedding(labels)).sum(dim=1)
        return logits, loss

    @contextlib.contextmanager
    def learning_codes(self, enabled: bool = True) -> Iterator[None]:
        """Around the passes in which quantisers may move their codes."""
        for quantizer in self.quantizers.values():
            quantizer.learning = enabled
        try:
            yield
        finally:
            for quantizer in self.quantizers.values():
                quantizer.learning = False

    def taken_codes(self) -> Tensor:
        """1 for each code of all quantisers that the last volumes took, else 0. Shapes: -> (codes,)"""
        return torch.cat([quantizer.taken for quantizer in self.quantizers.values()])


class StyleGAN2(nn.Module):
    """The trained networks: S and G, the discriminator D, and the averages SE and GE.

    With cl_reg also CR, the head of contrastive regularisation.
    """

    def __init__(
        self,
        image_size: int,
        image_depth: int = 32,
        latent_dim: int = LATENT_DIM,
        style_depth: int = STYLE_DEPTH,
        network_capacity: int = 8,
        fmap_max: int = 512,
        lr_mlp: float = 0.1,
        no_const: bool = False,
        attn_layers: Sequence[int] = (),
        fq_layers: Sequence[int] = (),
        fq_dict_size: int = 256,
        cl_reg: bool = False,
        minibatch_std: bool = False,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        size: Record = {"image_size": image_size, "image_depth": image_depth, "attn_layers": attn_layers}
        size |= {"network_capacity": network_capacity, "fmap_max": fmap_max}
        generator = {**size, "latent_dim": latent_dim, "no_const": no_const}
        mapping = (latent_dim, style_depth, lr_mlp, num_classes)
        self.S = StyleVectorizer(*mapping)
        self.G = Generator(**generator)
        further: Record = {"fq_layers": fq_layers, "fq_dict_size": fq_dict_size, "num_classes": num_classes}
        self.D = Discriminator(**size, **further, minibatch_std=minibatch_std)
        self.SE = StyleVectorizer(*mapping)
        self.GE = Generator(**generator)
        self.D_aug = nn.ModuleDict({"D": self.D})  # as the original's checkpoints name D a second time
        self.CR: Any = contrastive_head(self.D.num_features) if cl_reg else None
        self.SE.requires_grad_(False)
        self.GE.requires_grad_(False)
        move_averages(self.averaged(), decay=0)

    def averaged(self) -> list[tuple[nn.Module, nn.Module]]:
        """[(average, what it follows)]."""
        return [(self.SE, self.S), (self.GE, self.G)]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Losses and regularisers                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """D's hinge loss, mean(relu(1 + D(real))) + mean(relu(1 - D(fake))): real is driven to -1, fake to +1.

    Shapes: (B,), (B,) -> scalar
    """
    return F.relu(1 + real_logits).mean() + F.relu(1 - fake_logits).mean()


def logistic_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """D's logistic loss, mean(softplus(-D(real))) + mean(softplus(D(fake))) (arXiv:1406.2661, Eq. 1).

    Shapes: (B,), (B,) -> scalar
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def relativistic_pairs(one: Tensor, other: Tensor, group: int = 1) -> Tensor:
    """How much less real the one is than the other, in pairs: mean(softplus(other - one)) (arXiv:2501.05441).

    D minimises it for (real, fake), G for (fake, real). Differs from the paper: with a `group`, the pairs are
    all those within so many neighbours of the batch, which makes gradients less noisy.

    Shapes: (B,), (B,) -> scalar
    """
    return F.softplus(other.view(-1, 1, group) - one.view(-1, group, 1)).mean()


def relativistic(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits relative to the mean of the other kind (relativistic average, arXiv:1807.00734, Sec. 4.2).

    Shapes: (B,), (B,) -> (B,), (B,)
    """
    return real_logits - fake_logits.mean(), fake_logits - real_logits.mean()


def dual_contrastive_loss(t1: Tensor, t2: Tensor) -> Tensor:
    """Tell each of one kind from all of the other, both ways (Yu et al. 2021, arXiv:2103.09742, Eq. 3 and 4).

        mean_i -log softmax([t1_i, t2_1, ..., t2_N])_1  +  mean_j -log softmax([-t2_j, -t1_1, ..., -t1_N])_1

    D minimises it for (real, fake), G for (fake, real).

    Shapes: (N,), (M,) -> scalar
    """

    def half(one: Tensor, others: Tensor) -> Tensor:
        logits = torch.cat([one[:, None], others.expand(len(one), -1)], dim=1)  # (N, 1 + M)
        return (logits.logsumexp(dim=1) - one).mean()

    return half(t1, t2) + half(-t2, -t1)


def most_real(fake_logits: Tensor, epochs: float, gamma: float, frac: float, sense: int) -> Tensor:
    """The share max(gamma^epochs, frac) of logits that are most real, one at least (arXiv:2002.06224).

    `sense` is 1 if D's output is high for what it takes for real, -1 if it is low.

    Shapes: (B,) -> (k,)
    """
    k = max(1, math.ceil(len(fake_logits) * max(gamma**epochs, frac)))
    return fake_logits.topk(k, largest=sense > 0).values


def path_lengths(styles: Tensor, volumes: Tensor, y: Tensor) -> Tensor:
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


def mix_styles(w1: Tensor, w2: Tensor, layers: int, crossover: int | Tensor) -> Tensor:
    """Styles with w1 in the first `crossover` blocks and w2 in the rest.

    Shapes: (B, latent), (B, latent) -> (B, layers, latent)
    """
    first = torch.arange(layers, device=w1.device) < crossover
    return torch.where(first[None, :, None], w1[:, None], w2[:, None])


def same_style(w: Tensor, layers: int) -> Tensor:
    """One w for all blocks. Shapes: (B, latent) -> (B, layers, latent)"""
    return w[:, None].expand(-1, layers, -1)


@torch.no_grad()
def truncation_center(
    mapping: StyleVectorizer, latent_dim: int, device: torch.device, seed: int = 0
) -> Tensor:
    """Mean of w over seeded latents, of every class if any: the centre of truncation.

    Shapes: -> (1 or classes, latent_dim)
    """
    z = torch.randn(TRUNCATION_SAMPLES, latent_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    if mapping.embedding is None:
        return mapping(z).mean(dim=0, keepdim=True)
    labels = torch.arange(mapping.embedding.num_embeddings, device=device)
    return torch.stack([mapping(z, label.expand(len(z))).mean(dim=0) for label in labels])


def truncate(w: Tensor, center: Tensor, psi: float, labels: Tensor | None = None) -> Tensor:
    """Truncation trick, center + psi * (w - center) (arXiv:1812.04948, Appendix B), the class's center."""
    center = center if labels is None else center[labels]
    return center + psi * (w - center)


class Synthesizer:
    """A mapping and a synthesis network that turn latents and seeds into volumes.

    Args:
        S, G: StyleVectorizer and Generator.
        center: Truncation centre, (1 or classes, latent_dim).
        class_names: Names of the classes; empty for a model without.
        class_shares: How often each class was shown in training, or None.
        autocast: Function that opens the precision of G's passes; without, it is the caller's.
    """

    noise_input = True  # volumes_of takes the noise's seed

    def __init__(
        self,
        S: StyleVectorizer,
        G: Generator,
        center: Tensor,
        class_names: Sequence[str] = (),
        class_shares: np.ndarray | None = None,
        autocast: Callable[[], Any] = contextlib.nullcontext,
    ) -> None:
        self.S, self.G, self.truncation_center, self.autocast = S, G, center, autocast
        self.class_names, self.class_shares = list(class_names), class_shares
        self.device = center.device
        self.latent_dim = G.latent_dim
        self.shape = (G.image_depth, G.image_size, G.image_size)

    def labels_of(self, seeds: Sequence[int], name: str | None = None) -> Tensor | None:
        """Classes of the volumes of some seeds; see `dataset.labels_of_seeds`."""
        return dataset.labels_of_seeds(seeds, self.class_names, self.class_shares, name)

    @torch.no_grad()
    def noise_to_styles(
        self, z: Tensor, trunc_psi: float | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """w of latents, truncated towards the mean style if asked.

        Shapes: (B, latent), labels (B,) of `labels_of`, None without classes -> (B, latent)
        """
        generation.check_latents(z, self.latent_dim, trunc_psi)
        if (labels is None) != (not self.class_names):
            raise UserError(f"The model has {len(self.class_names)} classes; labels go with them alone.")
        labels = None if labels is None else labels.to(self.device)
        w = self.S(z.to(self.device), labels)
        return w if trunc_psi is None else truncate(w, self.truncation_center, trunc_psi, labels)

    def styles_to_images(self, w: Tensor) -> Tensor:
        """Volumes in [0, 1] with fresh noise. Shapes: (B, latent) or (B, L, latent) -> (B, 1, Z, S, S)"""
        return self.styles_to_images_ext_noise(w, torch.rand(len(w), *self.shape, 1, device=self.device))

    @torch.no_grad()
    def styles_to_images_ext_noise(self, w: Tensor, noise: Tensor) -> Tensor:
        """Volumes in [0, 1] with given noise.

        Shapes: w (B, latent) or (B, L, latent), noise (B, >= Z, >= S, >= S, 1) -> (B, 1, Z, S, S)
        """
        generation.check_styles(w, noise, self.G.num_layers, self.latent_dim, self.shape)
        w = w.to(self.device)
        styles = w if w.ndim == 3 else same_style(w, self.G.num_layers)
        with self.autocast(), parallel.tf32(torch.is_autocast_enabled(self.device.type)):
            return self.G(styles, noise.to(self.device)).clamp(0, 1)

    def render(self, w: Tensor, noise: Tensor) -> Tensor:
        """Volumes that do not depend on what else is in the batch, float32 on the CPU; shapes as above."""
        return generation.alone_as_two(self.styles_to_images_ext_noise, w, noise).float().cpu()

    def styles_of(self, seeds: Sequence[int], trunc_psi: float = 1.0, label: str | None = None) -> Tensor:
        """w of seeds, each alone, so that the others do not change it. Shapes: (B,) -> (B, latent)"""
        labels = self.labels_of(seeds, label)
        labels = len(seeds) * [None] if labels is None else labels.split(1)
        z = (parallel.latent_of(seed, self.latent_dim)[None] for seed in seeds)
        w = [self.noise_to_styles(*one) for one in zip(z, itertools.repeat(trunc_psi), labels, strict=False)]
        return torch.cat(w)

    def volumes_of(
        self,
        seeds: Sequence[int],
        trunc_psi: float = 1.0,
        batch_size: int = 8,
        label: str | None = None,
        styles: Tensor | None = None,
        noise_seed: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the volume of every seed, (1, Z, S, S) in [0, 1] on the CPU, a batch at a time.

        A seed gives latent, noise and, without a label, class; `styles` take the place of the latents', and
        the noise of `noise_seed` that of all seeds' noises.
        """
        generation.check_seeds(seeds)
        for start in range(0, len(seeds), batch_size):
            chosen = slice(start, start + batch_size)
            noisy = seeds[chosen] if noise_seed is None else len(seeds[chosen]) * [noise_seed]
            _, noise = parallel.batch_inputs(noisy, self.latent_dim, self.shape)
            w = self.styles_of(seeds[chosen], trunc_psi, label) if styles is None else styles[chosen]
            yield from self.render(w, noise)

    def between(
        self,
        ends: Sequence[int],
        positions: Sequence[float],
        labels: Sequence[str] | None = None,
        trunc_psi: float = 1.0,
    ) -> Tensor:
        """Volumes on the way from seed to seed, by spherical interpolation, with the first one's noise.

        Args:
            ends: The two seeds.
            positions: B numbers from 0 at the first to 1 at the second.
            labels: Names of the classes at both ends; None for a model without.
            trunc_psi: Truncation psi.

        Shapes: -> (B, 1, Z, S, S) in [0, 1], on the CPU
        """
        generation.check_seeds(ends, 2)
        z, noise = parallel.batch_inputs(ends, self.latent_dim, self.shape)
        of = [None] if labels is None else [self.labels_of([0], name) for name in dict.fromkeys(labels)]
        styles = []
        for t in positions:
            at = slerp(z[0], z[1], torch.tensor(t))[None]
            w = [self.noise_to_styles(at, trunc_psi, one) for one in of]
            styles.append(w[0] if len(w) == 1 else torch.lerp(w[0], w[1], t))
        return self.render(torch.cat(styles), noise[:1].expand(len(styles), *noise.shape[1:]))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Checkpoints                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def read_checkpoint(path: Path | str) -> Record:
    """Read a checkpoint onto the CPU, and strip `module.` from its tensors' names.

    Raises:
        UserError: The file is missing, damaged or not a checkpoint of this program or the original.
    """
    state = runs.read_state(path)
    with reading(path, "it is damaged or of another program"):
        return state | {"GAN": network_tensors(state)}


def network_tensors(state: Record) -> dict[str, Tensor]:
    """State dict of a checkpoint's networks."""
    if "GAN" not in state:
        raise UserError("is not a 3D StyleGAN2 checkpoint: it has no entry 'GAN'.")
    tensors = {str(name).removeprefix("module."): tensor for name, tensor in dict(state["GAN"]).items()}
    broken = [n for n, t in tensors.items() if not (isinstance(t, torch.Tensor) and t.isfinite().all())]
    if broken:
        raise UserError(f"has NaN, or no tensor, in {broken[0]}: take an earlier checkpoint.")
    return tensors


def network_settings(state: Record, path: Path | str, image_depth: int | None = None) -> Record:
    """Keyword arguments of `StyleGAN2` for a checkpoint; those of an original follow from its tensors.

    No tensor's shape depends on the depth, so a checkpoint that does not state it gets `image_depth`, or the
    published one, with a notice: 32 slices, or 4 for the variant of 256 voxels.

    Raises:
        UserError: The tensors are not those of a 3D StyleGAN2.
    """
    if "config" in state:
        stated = BEFORE | state["config"]
        return {name: stated[name] for name in (*NETWORK_SETTINGS, "latent_dim", "style_depth")}
    original = {name: getattr(TrainConfig, name) for name in NETWORK_SETTINGS}  # it has no option
    shapes = {name: tuple(tensor.shape) for name, tensor in state["GAN"].items()}
    try:
        blocks = sum(name.startswith("G.blocks.") and name.endswith(".conv1.weight") for name in shapes)
        narrowest = shapes[f"G.blocks.{blocks - 1}.conv2.weight"][0]  # 2 * network_capacity, at most fmap_max
        widest = max(shapes[f"D.blocks.{i}.conv_res.weight"][0] for i in range(blocks + 1))
        latent_dim = shapes["S.net.0.weight"][1]
    except KeyError as error:
        raise UserError(f"{path} is not a 3D StyleGAN2 checkpoint: it has no tensor {error}.") from None
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
    stated = read_json(beside) if beside.is_file() else {}
    settings.update({k: stated[k] for k in ("image_depth", "lr_mlp") if k in stated})
    if image_depth is None and "image_depth" not in stated:
        print(
            f"{path} does not state its depth: taken as {settings['image_depth']} slices, as published. "
            f"--image_depth takes another."
        )
    return settings


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Trainer                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Trainer(training.VolumeTrainer):
    """Networks, optimisers and the training step of one run.

    Args:
        config, audit, group, command: As for `VolumeTrainer`; the audit has the volumes' classes, if any.
        scores: TrainingScores for the evaluations; None without.
    """

    entry = "GAN"
    words = GAN_WORDS

    @staticmethod
    def former_settings(config: TrainConfig, source: Path | str) -> Record:
        """As `VolumeTrainer`'s; what an original's checkpoint does not state follows from its tensors."""
        with as_damaged("it is damaged or of another program", source):
            state = read_checkpoint(source)
            settings = network_settings(state, source, config.chosen_depth)
            return BEFORE | dict(state.get("config", {})) | settings

    @staticmethod
    def unsteady(config: TrainConfig) -> set[str]:
        """Augmentations of the run that no GPU does twice the same."""
        return UNSTEADY & {*config.aug_types}

    @staticmethod
    def prepare(config: TrainConfig, audit: Any, group: parallel.Group, source: Any, goes_on: bool) -> Record:
        """{"scores": TrainingScores} of a run that evaluates; complains of weights that are missing."""
        from MedicalNet.scores import scores_of

        return scores_of(config, group)

    def __init__(
        self,
        config: TrainConfig,
        audit: dataset.Audit | None = None,
        group: parallel.Group | None = None,
        scores: Any = None,
        command: Record | None = None,
    ) -> None:
        super().__init__(config, audit, group, scores, command)
        self.plan = config.plan(scores)
        self.grouped = math.gcd(GROUP, self.batch_size)  # neighbours whose pairs are compared, and deviation
        self.GAN = self.networks = self.build_networks()
        self.G_opt = self.adam("G", "S")
        self.D_opt = self.adam("D", "CR", mult=config.ttur_mult)
        self.optimizers = {"G_opt": self.G_opt, "D_opt": self.D_opt}
        self.ada = None
        if config.ada_target is not None:
            self.ada = AdaptiveAugmentation(config.aug_prob, config.ada_target, config.ada_volumes)
        self.loss = "dual" if config.dual_contrast_loss else config.loss
        self.sense = -1 if self.loss == "hinge" else 1  # D's output is low, or high, for real volumes
        self.compares = self.loss in ("dual", "relativistic")  # G's loss needs real volumes too
        self.batches_per_micro = 2 if self.compares else 1
        # D's loss and its penalty can be of one pass, part after part, if both are means over pairs.
        means = self.loss != "dual" and not config.rel_disc_loss and not config.fq_layers
        self.joint = config.penalty == "r1r2" and means
        cached = config.penalty != "one_centered" and self.device.type == "cpu"
        voxels = (CACHED_VOXELS if cached else PENALTY_VOXELS) // math.prod(config.shape)
        least = 1 if cached else -(-self.batch_size // PENALTY_PARTS)
        whole = self.grouped if config.minibatch_std or config.all_pairs else 1
        self.penalty_part = -(-max(least, voxels) // whole) * whole  # volumes, or pairs, penalised at once
        self.pl_mean: Any = None  # running mean of the path length

    def reported(self) -> dict[str, nn.Module]:
        """{name: network} whose sizes are told."""
        names = {"S": "mapping network S", "G": "generator G", "D": "discriminator D"}
        return {name: getattr(self.GAN, module) for module, name in names.items()}

    def build_networks(self) -> StyleGAN2:
        """StyleGAN2 on the device, ready for training."""
        num_classes = len(self.classes.names) if self.classes else 0
        GAN = StyleGAN2(**self.config.network(), num_classes=num_classes)
        for network in (GAN.G, GAN.D):
            network.checkpoint_activations = self.config.checkpoint_activations
        if self.config.minibatch_std:
            GAN.D.group = self.grouped
            if GAN.D.group == 1:
                print(
                    f"--minibatch_std sees nothing in {self.batch_size} volumes: give an even --batch_size."
                )
        for name in self.silent:
            GAN.G.get_parameter(name).requires_grad_(False)
        return self.placed(GAN)

    @property
    def silent(self) -> list[str]:
        """Names of G's noise weights that stay 0."""
        names = [f"blocks.{i}.to_noise{j}.weight" for i in range(self.config.blocks) for j in (1, 2)]
        return [] if self.config.noise == "all" else names[:-1]

    def rate_scale(self, module: str, name: str, parameter: Tensor) -> float:
        """Factor on the rate of a parameter: with --equalized_lr, that of its layer's fan-in."""
        if not self.config.equalized_lr:
            return 1.0
        return MAPPING_RATE if module == "S" else equalized_scale(name, parameter)

    def averaged(self) -> list[tuple[nn.Module, nn.Module]]:
        """[(average, what it follows)] of the networks."""
        return self.GAN.averaged()

    # ---- what a step is made of

    def sample_inputs(
        self, rng: Rng, generator: torch.Generator, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Styles, mixed with probability mixed_prob at a random block, and noise, for one micro-batch.

        Shapes: labels (B,) or None -> styles (B, L, latent), noise (B, Z, S, S, 1)
        """
        layers = self.GAN.G.num_layers
        noise = self.source.draw(torch.rand, (*self.config.shape, 1), generator)
        draw = functools.partial(self.source.draw, torch.randn, (LATENT_DIM,), generator)
        w = self.GAN.S(draw(), labels)
        other = self.source.draw_mixing(rng, generator)
        if other is None:
            return same_style(w, layers), noise
        z, crossover = other
        return mix_styles(w, self.GAN.S(z, labels), layers, crossover), noise

    def draw_mixing(self, rng: Rng, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """Latents to mix with, and the block from which on; None mixes nothing.

        A replayed step mixes always: what the host decides is from which block on, maybe after the last.

        Shapes: -> (B, latent), scalar
        """
        mixes, layers = rng.random() < self.config.mixed_prob, self.GAN.G.num_layers
        if not mixes and (self.replay is None or not self.config.mixed_prob):
            return None
        z = torch.zeros(self.whole_batch, LATENT_DIM, device=self.device)
        z = self.group.part(z.normal_(generator=generator) if mixes else z)
        crossover = int(rng.integers(layers)) if mixes else layers
        return z, parallel.to_device(np.array(crossover), self.device)

    def augment(self, volumes: Tensor, rng: Rng, prob: float | None = None) -> Tensor:
        """Volumes as D sees them. Shapes: (B, 1, D, H, W) -> the same"""
        left_right = () if self.audit is None else (self.audit.left_right,)
        return augmented(volumes, self.source.draw_augmentation(volumes.shape, rng, prob), *left_right)

    def draw_augmentation(self, shape: Sequence[int], rng: Rng, prob: float | None) -> Any:
        """What an augmentation of volumes of a shape needs; see `diff_augment.draw_augmentation`."""
        if prob is None:
            prob = self.config.aug_prob if self.ada is None else self.ada.prob
        spacing = () if self.audit is None else (self.audit.spacing,)
        fixed = self.replay is not None and (prob > 0 or self.ada is not None)
        how = {"each": self.config.aug_each, "fixed": fixed}
        return draw_augmentation(shape, self.device, prob, self.config.aug_types, rng, *spacing, **how)

    def logits(self, volumes: Tensor, labels: Tensor | None) -> Tensor:
        """Logits of volumes, float32. Shapes: (B, 1, D, H, W), (B,) or None -> (B,)"""
        return self.GAN.D(volumes, labels)[0].float()

    def penalty_autocast(self) -> contextlib.AbstractContextManager:
        """Context of the precision of penalties."""
        return self.autocast() if self.config.penalty_precision == "mixed" else contextlib.nullcontext()

    def penalty_logits(self, volumes: Tensor, labels: Tensor | None) -> Tensor:
        """`logits` in the precision of penalties. Shapes: (B, 1, D, H, W), (B,) or None -> (B,)"""
        with self.penalty_autocast():
            return self.logits(volumes, labels)

    @property
    def penalty_scale(self) -> float:
        """Factor on the logits whose gradient is penalised: a gradient in float16 may be too small for it."""
        half = self.scaler.is_enabled() and self.config.penalty_precision == "mixed"
        return HALF_PENALTY_SCALE if half else 1.0

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The loss that the run's options choose for D. Shapes: (B,), (B,) -> scalar"""
        if self.config.rel_disc_loss:
            real_logits, fake_logits = relativistic(real_logits, fake_logits)
        losses = {"hinge": hinge_loss, "dual": dual_contrastive_loss}
        losses |= {"logistic": logistic_loss, "relativistic": self.compare_pairs}
        return losses[self.loss](real_logits, fake_logits)

    def compare_pairs(self, one: Tensor, other: Tensor) -> Tensor:
        """The relativistic loss. Shapes: (B,), (B,) -> scalar"""
        return relativistic_pairs(one, other, self.grouped if self.config.all_pairs else 1)

    def generator_loss(self, fake_logits: Tensor, real_logits: Any = None) -> Tensor:
        """The loss that the run's options choose for G. Shapes: (B,), (B,) or None -> scalar"""
        config = self.config
        if config.top_k_training:
            epochs = self.step * self.plan.volumes_per_step / len(self.audit.paths)
            share = (config.generator_top_k_gamma, config.generator_top_k_frac)
            fake_logits = most_real(fake_logits, epochs, *share, self.sense)
        if self.compares:
            compare = dual_contrastive_loss if self.loss == "dual" else self.compare_pairs
            return compare(fake_logits, real_logits)
        return fake_logits.mean() if self.loss == "hinge" else F.softplus(-fake_logits).mean()

    # ---- passes: micro-batches that go through the networks together, each with its own draws and loss

    def arrangements(self) -> list[tuple[int, int]]:
        """[(micro-batches in a pass, volumes penalised at once)]; quantisers learn from one at a time."""
        number, batch = self.config.gradient_accumulate_every, self.batch_size
        passes = [1] if self.config.fq_layers else [n for n in range(number, 0, -1) if number % n == 0]
        most = {n: batch if self.joint else n * batch for n in passes}  # what there is to penalise
        parts = [(n, min(part, most[n])) for n in passes for part in (batch, self.penalty_part)]
        return list(dict.fromkeys(parts))

    def passes(self, stream: int, micro_batches: int) -> Iterator[Randoms]:
        """Host and device generators of every pass's micro-batches. Yields: [(rng, generator)]"""
        randoms = (self.source.random(stream, micro) for micro in range(micro_batches))
        while members := list(itertools.islice(randoms, self.at_once)):
            yield members

    def inputs_of(self, randoms: Randoms, real_labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Styles, noise and classes of a pass; in a relativistic pair, the class is that of the real volume.

        Shapes: real_labels (b,) or None -> (b, L, latent), (b, Z, S, S, 1), (b,) or None
        """
        given = real_labels if self.loss == "relativistic" else None
        given = len(randoms) * [None] if given is None else given.split(self.batch_size)
        styles, noise, drawn = [], [], []
        for (rng, generator), labels in zip(randoms, given, strict=True):
            drawn.append(self.source.draw_labels(rng) if labels is None else labels)
            one_style, one_noise = self.sample_inputs(rng, generator, drawn[-1])
            styles.append(one_style)
            noise.append(one_noise)
        return cat(styles), cat(noise), cat(drawn)

    def reals_of(self, randoms: Randoms) -> Batch:
        """Batch of a pass's real volumes."""
        return Batch.cat([Batch(*self.source.next_real()) for _ in randoms])

    def augment_pass(self, volumes: Tensor, randoms: Randoms) -> Tensor:
        """`augment` for the volumes of a pass. Shapes: (b, 1, D, H, W) -> the same"""
        parts = volumes.split(self.batch_size)
        return cat([self.augment(part, rng) for part, (rng, _) in zip(parts, randoms, strict=True)])

    def by_micro_batch(self, logits: Tensor) -> list[Tensor]:
        """Logits of a pass by micro-batch, of all processes. Shapes: (b,) -> [(B,)]"""
        return [self.group.gather(part) for part in logits.split(self.batch_size)]

    # ---- one step

    def update(self) -> Losses:
        """One update of every network."""
        return {**self.discriminator_step(), **self.generator_step()}

    def compute(self, accumulate: Callable[..., Any], regularize: bool) -> Losses:
        """Gradients and losses of a half step."""
        args = (regularize, self.config.gradient_accumulate_every)
        return accumulate(*args) if self.replay is None else self.replay(accumulate, *args)

    def steps_are_alike(self) -> bool:
        """Whether the host decides nothing in a step but by replay.SOURCES: a replay repeats the rest."""
        config = self.config
        decides = (config.cl_reg, config.fq_layers, config.top_k_training, config.final_gamma)
        return self.group.world == 1 and not any((*decides, config.checkpoint_activations))

    def gamma(self) -> float:
        """Weight of a zero-centred penalty at this step; it goes to final_gamma exponentially."""
        start, end = self.config.gamma, self.config.final_gamma or self.config.gamma
        return start * (end / start) ** self.done

    def lazy_gamma(self) -> float:
        """`gamma` of a penalty that stands for those of the steps without one."""
        return self.gamma() * self.config.penalty_every

    def penalty_is_due(self, step: int) -> bool:
        """True if D's gradient is penalised in a step."""
        return step % self.config.penalty_every == 0

    def path_length_is_due(self, step: int) -> bool:
        """True if path lengths are penalised in a step."""
        return step > PATH_LENGTH_AFTER and step % PATH_LENGTH_EVERY == 0 and not self.config.no_pl_reg

    def discriminator_step(self) -> Losses:
        """One update of D; returns its losses."""
        regularize = self.penalty_is_due(self.step)
        losses = self.compute(self.accumulate_discriminator, regularize)
        shares = [losses[name] for name in ("GP", "Q") if name in losses]
        self.group.sum_([p.grad for p in trained_by(self.D_opt)] + shares)
        self.scaler.step(self.D_opt)
        self.D_opt.zero_grad(set_to_none=True)
        if self.ada is not None:
            self.ada.observe(losses.pop("signs"), self.plan.volumes_per_step)
            if self.step % ADA_EVERY == ADA_EVERY - 1:
                self.ada.update()
            losses["aug_prob"] = torch.full((), self.ada.prob, device=self.device)
        return losses

    def accumulate_discriminator(self, regularize: bool, micro_batches: int) -> Losses:
        """Gradients of D; the loss in mixed precision, a penalty in its own."""
        losses, learn = defaultdict(float), self.way_to_learn(regularize)
        for randoms in self.passes(STREAM_D, micro_batches):
            real = self.reals_of(randoms)
            learn(real, self.generate(randoms, real.labels), randoms, losses, micro_batches)
        return losses

    def way_to_learn(self, regularize: bool) -> Callable[..., Any]:
        """How a pass goes through D: without a penalty, or in one of three ways with it."""
        if not regularize:
            return self.learn_plainly
        if self.joint:
            return self.learn_jointly
        if self.config.penalty == "one_centered":
            return self.learn_through_augmentation
        return self.learn_behind_augmentation

    def learn_plainly(
        self, real: Batch, fake: Batch, randoms: Randoms, losses: Losses, micro_batches: int
    ) -> tuple[Batch, Batch]:
        """Add the gradients of a pass; returns the Batches behind their augmentation."""
        real_views = real.with_volumes(self.augment_pass(real.volumes, randoms))
        fake_views = fake.with_volumes(self.augment_pass(fake.volumes, randoms))
        self.tell_apart(real_views, fake_views, losses, micro_batches)
        self.contrast_all(real.volumes, fake.volumes, randoms, losses, micro_batches)
        return real_views, fake_views

    def learn_jointly(
        self, real: Batch, fake: Batch, randoms: Randoms, losses: Losses, micro_batches: int
    ) -> None:
        """As `learn_plainly`, with R1 and R2 of the same passes through D as the loss."""
        real_views = real.with_volumes(self.augment_pass(real.volumes, randoms))
        fake_views = fake.with_volumes(self.augment_pass(fake.volumes, randoms))
        self.tell_apart_smoothly(real_views, fake_views, losses, micro_batches)
        self.contrast_all(real.volumes, fake.volumes, randoms, losses, micro_batches)

    def learn_behind_augmentation(
        self, real: Batch, fake: Batch, randoms: Randoms, losses: Losses, micro_batches: int
    ) -> None:
        """As `learn_plainly`, then R1, or R1 and R2, in their own passes, of what the augmentation made."""
        real_views, fake_views = self.learn_plainly(real, fake, randoms, losses, micro_batches)
        for batch in (real_views, fake_views) if self.config.penalty == "r1r2" else (real_views,):
            parts = [v.detach().float().requires_grad_() for v in batch.volumes.split(self.penalty_part)]
            losses["GP"] += self.penalize_gradient(parts, parts, batch.labels, micro_batches)

    def learn_through_augmentation(
        self, real: Batch, fake: Batch, randoms: Randoms, losses: Losses, micro_batches: int
    ) -> None:
        """As `learn_plainly`, then the one-centred penalty, of the volumes before their augmentation."""
        parts = [v.requires_grad_() for v in real.volumes.split(self.penalty_part)]
        views = self.augment_pass(torch.cat(parts), randoms)
        fake_views = fake.with_volumes(self.augment_pass(fake.volumes, randoms))
        self.tell_apart(real.with_volumes(views.detach()), fake_views, losses, micro_batches)
        self.contrast_all(real.volumes.detach(), fake.volumes, randoms, losses, micro_batches)
        views = views.split(self.penalty_part)
        losses["GP"] += self.penalize_gradient(parts, views, real.labels, micro_batches)

    @torch.no_grad()
    def generate(self, randoms: Randoms, real_labels: Tensor | None) -> Batch:
        """Batch of volumes for D. Shapes: real_labels (b,) or None"""
        styles, noise, labels = self.inputs_of(randoms, real_labels)
        with self.autocast():
            return Batch(self.GAN.G(styles, noise), labels)

    def tell_apart(self, real: Batch, fake: Batch, losses: Losses, micro_batches: int) -> None:
        """Add the gradients of D's loss, and its shares to `losses`; both Batches go through D as one."""
        both = Batch.cat([real, fake])
        with self.autocast(), self.GAN.D.learning_codes(not self.rehearsing):
            logits, commitment = self.GAN.D(both.volumes, both.labels)
        of_real, of_fake = logits.float().chunk(2)
        pairs = list(zip(self.by_micro_batch(of_real), self.by_micro_batch(of_fake), strict=True))
        loss: Any = sum(self.discriminator_loss(*pair) for pair in pairs)
        losses["D"] += loss.detach() / micro_batches
        if self.config.fq_layers:
            commitment = commitment.sum() / self.group.world
            losses["Q"] += commitment.detach() / micro_batches
            taken = self.GAN.D.taken_codes()
            self.group.sum_([taken])
            losses["Q_usage"] += (taken > 0).float().mean() / micro_batches
            loss = loss + commitment
        for pair in pairs:
            self.count_signs(*pair, losses)
        self.scaler.scale(loss / micro_batches).backward()

    def tell_apart_smoothly(self, real: Batch, fake: Batch, losses: Losses, micro_batches: int) -> None:
        """As `tell_apart`, with R1 and R2 of the same pass in their precision, some pairs after the other."""
        for reals, fakes in zip(real.split(self.batch_size), fake.split(self.batch_size), strict=True):
            real_logits, fake_logits = [], []
            for pair in zip(reals.split(self.penalty_part), fakes.split(self.penalty_part), strict=True):
                of_real, of_fake = self.learn_pairs(*pair, losses, micro_batches)
                real_logits.append(of_real)
                fake_logits.append(of_fake)
            self.count_signs(torch.cat(real_logits), torch.cat(fake_logits), losses)

    def count_signs(self, real_logits: Tensor, fake_logits: Tensor, losses: Losses) -> None:
        """Add what the probability of augmentation adapts to, if it does. Shapes: (B,), (B,)"""
        if self.ada is not None:
            losses["signs"] += self.ada.signs_of(real_logits, fake_logits, self.sense)

    def learn_pairs(
        self, real: Batch, fake: Batch, losses: Losses, micro_batches: int
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of D's loss of some pairs, of R1 and of R2; returns the logits, of all processes.

        Shapes: two Batches of n volumes -> (n * world,), (n * world,)
        """
        both = Batch.cat([real, fake])
        volumes = both.volumes.float().requires_grad_()
        logits = self.penalty_logits(volumes, both.labels)
        of_real, of_fake = logits.chunk(2)
        of_real, of_fake = self.group.gather(of_real), self.group.gather(of_fake)
        share = len(real.volumes) / self.batch_size / micro_batches
        loss = self.discriminator_loss(of_real, of_fake) * share
        penalty = zero_centered_penalty(volumes, logits, self.lazy_gamma(), self.penalty_scale)
        penalty = 2 * penalty * share / self.group.world  # the sum of R1 and R2, not their mean
        self.scaler.scale(loss + penalty).backward(inputs=self.learning_in_D())
        losses["D"] += loss.detach()
        losses["GP"] += penalty.detach()
        return of_real, of_fake

    def learning_in_D(self) -> list[nn.Parameter]:
        """Parameters of D that get gradients."""
        return [p for p in self.GAN.D.parameters() if p.requires_grad]

    def contrast_all(
        self, real: Tensor, fake: Tensor, randoms: Randoms, losses: Losses, micro_batches: int
    ) -> None:
        """Contrastive regularisation, if any, of a pass's real volumes, late in a run also of generated ones.

        Shapes: (b, 1, D, H, W), (b, 1, D, H, W)
        """
        if not self.config.cl_reg:
            return
        for volumes in (real, fake) if self.step >= CONTRAST_FAKES_AFTER else (real,):
            for part, (rng, _) in zip(volumes.split(self.batch_size), randoms, strict=True):
                losses["CR"] += self.contrast(part, rng, micro_batches)

    def contrast(self, volumes: Tensor, rng: Rng, micro_batches: int) -> Tensor:
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

    def penalize_gradient(
        self, parts: Sequence[Tensor], views: Sequence[Tensor], labels: Tensor | None, micro_batches: int
    ) -> Tensor | float:
        """Add the gradients of the chosen gradient penalty; returns this process's share of its value.

        One part after another, so that the graph of gradients is that of a part only. `views` are what D
        gets of `parts`, in whose voxels the gradient is taken.

        Shapes: parts and views of (b, 1, D, H, W), labels (B,) or None
        """
        penalty = functools.partial(zero_centered_penalty, gamma=self.lazy_gamma())
        penalty = gradient_penalty if self.config.penalty == "one_centered" else penalty
        labels, total = len(parts) * [None] if labels is None else labels.split(self.penalty_part), 0.0
        for part, volumes, of in zip(parts, views, labels, strict=True):
            share = len(part) / self.config.batch_size / micro_batches
            value = penalty(part, self.penalty_logits(volumes, of), scale=self.penalty_scale) * share
            # the augmentation is needed again
            self.scaler.scale(value).backward(inputs=self.learning_in_D())
            total += value.detach()
        return total

    def generator_step(self) -> Losses:
        """One update of G and S, and of the running mean of the path length; returns their losses."""
        regularize = self.path_length_is_due(self.step)
        losses = self.compute(self.accumulate_generator, regularize)
        self.group.sum_([p.grad for p in trained_by(self.G_opt)])
        self.scaler.step(self.G_opt)
        self.G_opt.zero_grad(set_to_none=True)
        if regularize:
            length = losses.pop("pl_length").double()
            self.pl_mean = length.clone() if self.pl_mean is None else self.pl_mean
            # in its own memory, where a replay reads it
            self.pl_mean.copy_(PATH_LENGTH_DECAY * self.pl_mean + (1 - PATH_LENGTH_DECAY) * length)
            losses["pl_mean"] = self.pl_mean.clone()
        return losses

    def accumulate_generator(self, regularize: bool, micro_batches: int) -> Losses:
        """Gradients of G and S; the loss in mixed precision, path lengths in the precision of penalties."""
        losses = defaultdict(float)
        self.GAN.D.requires_grad_(False)
        for randoms in self.passes(STREAM_G, micro_batches):
            real: Any = self.reals_of(randoms) if self.compares else None
            mapped, noise, labels = self.inputs_of(randoms, real and real.labels)
            styles = mapped.detach().requires_grad_()  # collects the gradients of both passes for S
            with self.autocast():
                fake_logits = self.logits(self.augment_pass(self.GAN.G(styles, noise), randoms), labels)
            real_logits = self.logits_of_real(real, randoms) if self.compares else len(randoms) * [None]
            pairs = zip(self.by_micro_batch(fake_logits), real_logits, strict=True)
            loss: Any = sum(self.generator_loss(*pair) for pair in pairs)
            losses["G"] += loss.detach() / micro_batches
            self.scaler.scale(loss / micro_batches).backward()
            if regularize:
                shape = (1, *self.config.shape)
                y = cat([self.source.draw(torch.randn, shape, generator) for _, generator in randoms])
                for name, value in self.penalize_path_length(styles, noise, y, micro_batches).items():
                    losses[name] += value
            mapped.backward(styles.grad)
        self.GAN.D.requires_grad_(True)
        return losses

    @torch.no_grad()
    def logits_of_real(self, real: Batch, randoms: Randoms) -> list[Tensor]:
        """Logits of a Batch of real volumes, of all processes, without gradients. Shapes: -> [(B,)]"""
        with self.autocast():
            return self.by_micro_batch(self.logits(self.augment_pass(real.volumes, randoms), real.labels))

    def penalize_path_length(self, styles: Tensor, noise: Tensor, y: Tensor, micro_batches: int) -> Losses:
        """Add the gradients of the path-length penalty; returns shares of the mean length and the penalty.

        One part after another, as `penalize_gradient`, of every pl_batch_shrink-th volume.

        Shapes: styles (B, L, latent), noise (B, Z, S, S, 1), y (B, 1, Z, S, S)
        """
        losses, every, size = defaultdict(float), self.config.pl_batch_shrink, self.penalty_part
        number = self.config.batch_size // every
        w_parts, noise_parts = styles[::every].split(size), noise[::every].split(size)
        for w, noise_part, y_part in zip(w_parts, noise_parts, y[::every].split(size), strict=True):
            with self.penalty_autocast():
                volumes = self.GAN.G(w, noise_part).float()
            lengths = self.group.gather(path_lengths(w, volumes, y_part))
            share = len(lengths) / number / micro_batches
            losses["pl_length"] += lengths.detach().mean() * share
            if self.pl_mean is not None:
                penalty = (lengths - self.pl_mean).square().mean() * share
                losses["PL"] += penalty.detach()
                self.scaler.scale(penalty).backward()
        return losses

    def update_averages(self) -> None:
        """SE and GE follow S and G: copies at first, moving averages later; or from the first step on."""
        if self.config.average == "ramped":
            super().update_averages()
            return
        if self.step > AVERAGE_AFTER and self.step % AVERAGE_EVERY == 0:
            move_averages(self.averaged(), AVERAGE_DECAY)
        if self.step <= AVERAGE_COPY_UNTIL and self.step % AVERAGE_COPY_EVERY == 2:
            move_averages(self.averaged(), decay=0)

    # ---- the heaviest step

    def networks_in(self, state: Record) -> Losses:
        """State dict of the networks in a checkpoint, the original's included; silent weights are 0."""
        tensors = network_tensors(state)
        silent = {f"{G}.{name}" for G in ("G", "GE") for name in self.silent}
        return {name: torch.zeros_like(t) if name in silent else t for name, t in tensors.items()}

    def rehearsed(self) -> list[tuple[Any, ...]]:
        """[(phase, function, arguments)] of the heaviest work."""
        path_length = not self.config.no_pl_reg
        two = min(2 * self.at_once, self.config.gradient_accumulate_every)  # passes, one with gradients there
        return [
            ("gradient penalty", self.accumulate_discriminator, True, two),
            ("path length" if path_length else "generator", self.accumulate_generator, path_length, two),
            ("preview", self.preview_volumes),
        ]

    def step_kinds(self) -> dict[int, float]:
        """{a step of a kind: the kind's share of the run}: with and without penalties of D and of lengths."""
        steps = range(self.config.num_train_steps)
        kinds = {step: (self.penalty_is_due(step), self.path_length_is_due(step)) for step in steps}
        first = {kind: step for step, kind in reversed(kinds.items())}
        return {first[kind]: number / len(steps) for kind, number in Counter(kinds.values()).items()}

    def may_replay(self) -> bool:
        """Whether steps can be CUDA graphs, by the options."""
        return self.config.cuda_graphs and not self.config.deterministic and self.steps_are_alike()

    def gradients(self) -> list[tuple[float, Callable[[], Any]]]:
        """[(share of the run's steps, function that adds gradients as they do)]: halves of every kind."""
        halves: dict[tuple[Callable[..., Any], bool], float] = defaultdict(float)
        for step, share in self.step_kinds().items():
            halves[self.accumulate_discriminator, self.penalty_is_due(step)] += share
            halves[self.accumulate_generator, self.path_length_is_due(step)] += share
        return [(share, functools.partial(self.compute, *half)) for half, share in halves.items()]

    def rehearse(self, function: Callable[..., Any], *args: Any) -> Any:
        """As `VolumeTrainer.rehearse`, with a mean path length."""
        with memory.swapped(self, pl_mean=0.0):
            return super().rehearse(function, *args)

    # ---- previews and evaluation

    def explained(self) -> Record:
        """{column of metrics.csv: Meaning}, by loss and penalty."""
        return meanings_of(self.loss, self.config.penalty, self.config.penalty_every)

    def synthesizer(self, average: bool = True) -> Synthesizer:
        """Synthesizer of the averaged networks, or of the current ones, in the run's precision."""
        S, G = (self.GAN.SE, self.GAN.GE) if average else (self.GAN.S, self.GAN.G)
        center = truncation_center(S, LATENT_DIM, self.device, self.config.seed)
        names, shares = (self.classes.names, self.classes.shares()) if self.classes else ((), None)
        return Synthesizer(S, G, center, names, shares, self.autocast)

    def preview_volumes(self, average: bool = True, mixed: bool = False) -> Tensor | None:
        """The preview's volumes, of seeds seed, seed + 1, ...; processes share the work.

        A mixed one has the first half of its blocks from its row's latent and the rest from its column's.

        Shapes: -> (num_image_tiles^2, 1, Z, X, Y), or None for all processes but the first
        """
        config, tiles, networks = self.config, self.config.num_image_tiles, self.synthesizer(average)
        seeds = range(config.seed, config.seed + tiles**2)
        cells, layers = np.arange(len(seeds)), networks.G.num_layers
        w = networks.styles_of(seeds, config.trunc_psi)
        styles = mix_styles(w[cells // tiles], w[cells % tiles], layers, layers // 2) if mixed else w
        own = slice(*self.group.share(len(seeds)))
        volumes = networks.volumes_of(seeds[own], batch_size=self.batch_size, styles=styles[own])
        parts = self.group.collect(torch.cat([torch.empty(0, 1, *config.shape), *(v[None] for v in volumes)]))
        return None if parts is None else torch.cat(parts)

    def preview(self) -> Record:
        """Sheets of axial slices and projections (G, GE, mixed styles by GE), and a volume of GE."""
        shown = {}
        for name, which in {"G": (False,), "GE": (True,), "mixed": (True, True)}.items():
            volumes = self.preview_volumes(*which)
            if volumes is None:
                continue
            caption = f"SYNTHETIC, step {self.step}, {GAN_PREVIEWS[name]}"
            shown[name] = contact_sheet(volumes, self.audit.affine, self.config.num_image_tiles, caption)
            if name == "GE":
                shown["GE.nii.gz"] = (volumes[0], self.audit.affine)
        return shown

    def generated(self, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Volumes of the averaged networks."""
        return self.synthesizer().volumes_of(seeds, self.config.trunc_psi, self.batch_size)

    # ---- state

    def state(self) -> Record:
        """All that the run needs to continue exactly."""
        state = super().state()
        state["config"] |= {"latent_dim": LATENT_DIM, "style_depth": STYLE_DEPTH}
        return state | {
            "pl_mean": None if self.pl_mean is None else float(self.pl_mean),
            "ada": self.ada and self.ada.state(),
            "truncation_center": {
                name: truncation_center(
                    getattr(self.GAN, name), LATENT_DIM, self.device, self.config.seed
                ).cpu()
                for name in ("S", "SE")
            },
        }

    def load(self, state: Record) -> None:
        """Take up the state of a checkpoint; from an original, weights alone, the optimisers start anew."""
        if "G_opt" not in state:
            runs.load_networks(self.GAN, self.networks_in(state))
            self.step, self.loader = state["step"], None
            self.inherit(state)
            return
        super().load(state)
        if self.replay is not None:
            self.replay.forget()
        self.pl_mean = state["pl_mean"]
        if self.pl_mean is not None:
            self.pl_mean = torch.tensor(self.pl_mean, dtype=torch.float64, device=self.device)
        if self.ada is not None and state.get("ada"):
            self.ada.load(state["ada"])


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Inference                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class ModelLoader(generation.Named, Synthesizer):
    """A trained generator, read from a checkpoint and ready to use.

    Args:
        base_dir: Folder that holds models/<name>/model_<n>.pt.
        name: Name of the run.
        load_from: Number n of the checkpoint, -1 for the newest.
        device: auto, cpu, cuda or cuda:<n>.
        checkpoint: Path of a checkpoint file, in place of base_dir, name and load_from.
        use_average: Take the averaged networks SE and GE; False takes S and G.
        image_depth: Axial slices, for a checkpoint of the original that does not state them.
        models_dir: Folder that holds <name>/model_<n>.pt, as of --models_dir; None is base_dir/models.

    Raises:
        UserError: There is no such checkpoint, or it cannot be used.
    """

    def __init__(
        self,
        base_dir: Path | str = ".",
        name: str = "default",
        load_from: int = -1,
        device: str = "auto",
        checkpoint: Path | str | None = None,
        use_average: bool = True,
        image_depth: int | None = None,
        models_dir: Path | str | None = None,
    ) -> None:
        run = Path(base_dir) / "models" / name if models_dir is None else Path(models_dir) / name
        self.path = Path(checkpoint or runs.find_checkpoint(run, load_from))
        state, device = read_checkpoint(self.path), parallel.choose_device(device)
        with as_damaged("it is damaged or of another program", self.path):
            self.read(state, device, use_average, image_depth)

    def read(self, state: Record, device: torch.device, use_average: bool, image_depth: int | None) -> None:
        """Build the networks of a checkpoint, and take what generation needs from it."""
        self.settings = settings = network_settings(state, self.path, image_depth)
        self.networks = "SE, GE" if use_average else "S, G"
        self.step, self.average = state.get("step"), state.get("config", {}).get("average")
        self.has_affine = "affine" in state  # an original does not state one
        self.affine = np.array(state.get("affine", np.eye(4)), dtype=float).reshape(4, 4)
        self.trained_on = frozenset(state.get("trained_on", ()))
        names = list(map(str, state.get("class_names") or []))
        S = StyleVectorizer(settings["latent_dim"], settings["style_depth"], settings["lr_mlp"], len(names))
        G = Generator(**{n: settings[n] for n in (*GENERATOR_SETTINGS, "latent_dim")})
        prefixes = ("SE", "GE") if use_average else ("S", "G")
        for module, prefix in zip((S, G), prefixes, strict=True):
            own = [n for n in state["GAN"] if n.startswith(f"{prefix}.")]
            if not own:
                raise UserError(f"{self.path} has no {prefix}: it is a released file; leave --use_average.")
            with naming(self.path):
                check_affine(self.affine)
                runs.load_networks(module, {n.removeprefix(f"{prefix}."): state["GAN"][n] for n in own})
            channels_last(module).requires_grad_(False).eval().to(device)
        center = state.get("truncation_center", {}).get(prefixes[0])
        center = truncation_center(S, settings["latent_dim"], device) if center is None else center.to(device)
        center = center.view(max(len(names), 1), settings["latent_dim"])
        super().__init__(S, G, center, names, state.get("class_shares"))

    @property
    def array_shape(self) -> tuple[int, int, int]:
        """Shape (X, Y, Z) of a volume in a file, voxels."""
        depth, size, _ = self.shape
        return (size, size, depth)

    @property
    def axes(self) -> str:
        """Codes of the axes along which it was trained."""
        return axes_of(self.affine)


def open_generator(config: TrainConfig) -> ModelLoader:
    """ModelLoader of the run's checkpoint; says how old its average is."""
    path = generation.checkpoint_of(config)
    settings: dict[str, Any] = {"use_average": config.use_average, "image_depth": config.chosen_depth}
    model = ModelLoader(checkpoint=path, device=config.device, **settings)
    step = AVERAGE_AFTER if model.step is None else model.step
    if config.use_average and model.average != "ramped" and step < AVERAGE_AFTER:
        last = (step - 3) // AVERAGE_COPY_EVERY * AVERAGE_COPY_EVERY + 3 if step > 2 else 0
        print(
            f"The average is a copy made after step {last}; --use_average False takes the current networks."
        )
    return model


def generate_volumes(config: TrainConfig) -> Path:
    """`--generate`: volumes of seeds seed, seed + 1, ...; returns their folder, see `generation.generate`."""
    tiles, psi = config.num_image_tiles, config.trunc_psi
    return generation.generate(config, open_generator, config.batch_size, tiles, trunc_psi=psi)


def generate_interpolation(config: TrainConfig) -> Path:
    """`--generate_interpolation`: the way from seed to seed + 1; returns its folder."""
    pictures = "png" if config.save_frames else "none"
    return generation.generate_interpolation(config, open_generator, pictures, trunc_psi=config.trunc_psi)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Entry points                                                                                             ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def train_from_folder(config: TrainConfig, group: parallel.Group | None = None) -> Trainer:
    """Check everything, then train, or stop after the checks with `--dry_run`; see `training`.

    Returns:
        The Trainer, at its last step; after a dry run on the CPU one of fake tensors.
    """
    return training.train_from_folder(Trainer, config, group)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: train, evaluate, or generate from a trained model."""
    config = parse_cli(TrainConfig, argv)
    with one_line_errors():
        parallel.prepare_process(config.device, config.deterministic)
        if config.recreate is not None:
            generation.recreate_volume(config, open_generator)
        elif config.generate_interpolation:
            generate_interpolation(config)
        elif config.generate:
            generate_volumes(config)
        elif config.evaluate_checkpoints:
            from MedicalNet.scores import evaluate_checkpoints

            evaluate_checkpoints(config, open_generator, trunc_psi=config.trunc_psi)
        else:
            training.run_from_command_line(config, train_from_folder)


if __name__ == "__main__":
    main()
