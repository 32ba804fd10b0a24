"""Label maps to volumes: a 3D generator that draws a volume for a label map, trained on pairs of both.

    python label_to_volume.py --data volumes --labels labels --name pairs --image_size 64 --image_depth 16
    python label_to_volume.py --name pairs --generate maps --output made --num_per_map 2
    python label_to_volume.py --name pairs --generate maps --output without --edit drop:L-Pcom
    python label_to_volume.py --name pairs --generate maps --output many --vary 10

The label map decides where everything is, a latent z how it looks. Sections of this file, in order:

    configuration             every option, one line each
    layers                    SPADE, residual blocks
    networks                  generators (SPADE, U-Net), discriminators (OASIS, wavelet, patches)
    losses                    N + 1 classes, LabelMix, adversarial, mask, centre lines
    trainer                   the training step, previews, state
    inference                 from label maps to volumes, each re-creatable from the file beside it
    entry points              what the command line calls

A NIfTI array is (X, Y, Z); inside the networks a volume is (B, 1, D, H, W) = (B, 1, Z, X, Y) in [0, 1], and a
label map holds class numbers: 0 is the background, n the n-th id of the table, 255 unknown.

Papers: SPADE (arXiv:1903.07291), OASIS (arXiv:2012.04781), SWAGAN (arXiv:2102.06108), pix2pix
(arXiv:1611.07004), StyleGAN2 (arXiv:1912.04958), clDice (arXiv:2003.07311), R1 (arXiv:1801.04406).
"""

import functools
import hashlib
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from volumetric import dataset, generation, parallel, runs, training
from volumetric.cli import (
    SHARE,
    GenerationOptions,
    RunConfig,
    UserError,
    inherited,
    one_line_errors,
    option,
    options_of,
    parse_cli,
)
from volumetric.collection import choose, content_of_labels, refuse_unusable, stored_axes
from volumetric.files import array_to_volume, as_damaged, by, naming, read_json
from volumetric.geometry import axes_of, same_spacing, spacing_of, turn
from volumetric.layers import (
    Conv3d,
    LeakyReLU,
    channels_last,
    equalized_scale,
    grown,
    growth_schedule,
    haar,
    reliably,
    run_block,
    zero_centered_penalty,
)
from volumetric.names import names_in
from volumetric.run_page import Meaning

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from segmentation import asked
from segmentation.cases import Classes
from segmentation.labels import TABLES, read_labels
from segmentation.layout import Layout, latent_regions, one_hot
from segmentation.maps import (
    UNKNOWN,
    Known,
    MapToDraw,
    PairWriter,
    class_numbers,
    edited,
    fitted,
    read_edit,
    read_pairs,
    row_of,
    write_split,
)
from segmentation.variation import asked_variations, check_variation, varied_again, with_variations

LEAST_WEIGHT = 1.0  # of a class in the loss of N + 1 classes
GROUPS = 8  # of channels, at most, of group normalisation
PATCH_LAYERS = 3  # strided layers of the patch discriminator, as pix2pix's 70 x 70
SHOWN_MAPS, SHOWN_SEEDS = 16, 4  # on a sheet, at most
SEEDS = 10**6  # from which the first of a label map is taken
CENTRE_LINE_STEPS = 3  # erosions of the soft centre line
STREAM_D, STREAM_G = parallel.STREAM_STEP, parallel.STREAM_SECOND_STEP

GENERATORS = {"spade": "modulated by the map at every size", "unet": "as pix2pix"}
DISCRIMINATORS = {"oasis": "tells classes", "wavelet": "sees no labels", "patch": "sees both, with L1"}
NOISES = {"global": "one z a volume", "class": "one for each class", "local": "one for each of 64 boxes"}
NORMS = ("instance", "group")

# Of the columns of metrics.csv, for the run's page.
MEANINGS = {
    "D_oasis": Meaning("Cross-entropy of the class that D names for every voxel, generated being one more."),
    "G_oasis": Meaning("The same of generated volumes, for the classes of their maps: G lowers it."),
    "LM": Meaning("LabelMix: D's answer to a mixture is to be the mixture of its answers."),
    "R1": Meaning("Penalty of the wavelet discriminator's gradient at real volumes."),
    "L1": Meaning("Absolute difference to the real volume, by the weights of the classes."),
    "mask": Meaning("Difference between what is bright and what has a label."),
    "cldice": Meaning("1 - clDice: how far the centre lines are from those of the map."),
}
for kind in ("wavelet", "patch"):
    MEANINGS[f"D_{kind}"] = Meaning(
        f"Logistic loss of the {kind} discriminator: 1.39 if all its outputs are 0.", math.log(4)
    )
    MEANINGS[f"G_{kind}"] = Meaning(
        f"Logistic loss of G by the {kind} discriminator: 0.69 if its outputs are 0.", math.log(2)
    )
WORDS = {
    "D": "discriminator, by its kind: oasis names classes, wavelet and patch tell real from generated",
    "G": "generator: draws a volume of a label map and a latent z",
    "GE": "average of G over many steps: the model",
    "map-real-made-made": "label map, real volume and two drawn by GE of each held-out pair",
}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Configuration                                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(kw_only=True)
class LabelToVolumeConfig(asked.AnatomyOptions, GenerationOptions, RunConfig):
    """Train a generator of volumes for label maps, or generate with one.

    The same command given again continues the run. Ctrl-C and SIGTERM save first, and end it with exit status
    130 or 143. In a flag's name - and _ are the same.
    """

    # data
    labels: str | None = option(None, "Label maps, by the volumes' names.", section="Pairs, networks")
    table: str | None = option(
        None, "Names of the ids: topcow2024, ..., a JSON file {id: name}, or none.", resumed=True
    )
    ignore: int | None = option(None, "Id of voxels whose class is unknown.", most=255, resumed=True)
    mirror: bool = option(True, "Exchange left and right, in half of the pairs.", resumed=True)
    held_out: float = option(0.1, "Share of the subjects not trained on.", **SHARE, kept=True)
    subjects: str | None = option(None, "CSV of file and subject; without, each file is one.", file=True)
    # networks
    generator: str = option("spade", "Network.", choices=GENERATORS, network=True)
    discriminator: tuple = option(
        ("oasis", "wavelet"), "One or several.", choices=DISCRIMINATORS, network=True
    )
    width: int = option(16, "Channels of G's last block.", most=1024, network=True)
    disc_width: int = option(16, "Channels of the discriminators' first block.", most=1024, network=True)
    fmap_max: int = option(256, "Largest number of channels of any layer.", most=16384, network=True)
    spade_width: int = option(32, "Most channels between a map and its factors.", most=1024, network=True)
    norm: str = option("instance", "Normalisation that SPADE modulates.", choices=NORMS, network=True)
    z_dim: int = option(64, "Numbers in a z.", most=4096, network=True)
    noise: str = option("global", "How z is drawn.", choices=NOISES, network=True)
    # training step
    batch_size: int = inherited(RunConfig, "batch_size", 4)
    learning_rate: float = inherited(RunConfig, "learning_rate", 3e-3)
    ttur_mult: float = option(1.0, "The discriminators' rate is learning_rate times this.", resumed=True)
    equalized_lr: bool = option(True, "Rates by each layer's fan-in.", kept=True)
    final_rate: float = inherited(RunConfig, "final_rate", 0.1)
    class_weight_max: float = option(100.0, "Largest weight of a rare class.", least=1, resumed=True)
    labelmix_weight: float = option(10.0, "Of LabelMix (oasis).", least=0, resumed=True)
    r1_weight: float = option(1.0, "Of R1 (wavelet).", least=0, resumed=True)
    r1_every: int = option(4, "Steps between R1 penalties.", resumed=True)
    l1_weight: float | None = option(None, "Of L1; None: 100 with patch, else 10.", least=0, resumed=True)
    mask_weight: float = option(0.0, "Of bright being where there are labels.", least=0, resumed=True)
    mask_threshold: float = option(0.2, "Grey value in [0, 1] that is bright.", **SHARE, resumed=True)
    cldice_weight: float = option(0.0, "Of clDice by D's classes (oasis).", least=0, resumed=True)
    checkpoint_activations: bool = option(False, "Compute blocks again going backward: saves memory.")
    num_previews: int = option(4, "Pairs in a preview.", most=64)
    # generation
    generate: str | None = option(None, "Folder of label maps to draw volumes for.", section="Label maps")
    num_per_map: int = option(1, "Volumes for each map, of seeds that follow from --seed.", most=10**6)
    edit: tuple = option((), "drop:NAME, thin:NAME:MM, thicken:NAME:MM or swap_sides, in this order.")
    fit: bool = option(False, "Bring maps of another grid onto the model's, by nearest neighbour.")
    vary: int = option(0, "Varied maps in place of each map; 0: as they are.", least=0, most=10**4)
    vary_mm: float = option(3.0, "Longest displacement of a varied map, mm.", least=0, most=50)
    vary_radius: float = option(0.1, "Deviation of a varied map's log radii.", least=0, most=0.5)

    def __post_init__(self):
        super().__post_init__()
        known = set(self.discriminator)
        if known in (set(), {"wavelet"}) or len(known) < len(self.discriminator):
            given = ",".join(map(str, self.discriminator)) or "none"
            raise UserError(
                f"--discriminator {given} does not see labels, or names one twice: take oasis or patch too."
            )
        if self.generator == "unet" and self.noise != "global":
            raise UserError(f"--generator unet has one z a volume: leave --noise {self.noise} out.")
        if self.cldice_weight and "oasis" not in known:
            raise UserError("--cldice_weight needs the classes that --discriminator oasis tells.")
        if self.held_out == 1:
            raise UserError("--held_out 1 leaves nothing to train on: give less.")
        self.derive("l1_weight", 100.0 if "patch" in known else 10.0)
        self.edits = [read_edit(text) for text in self.edit]
        check_variation(self)

    def plan(self):
        """Plan of the run."""
        columns = [name for kind in self.discriminator for name in (f"D_{kind}", f"G_{kind}")]
        columns += ["LM"] if "oasis" in self.discriminator and self.labelmix_weight else []
        columns += ["R1"] if "wavelet" in self.discriminator and self.r1_weight else []
        columns += ["L1"] if self.l1_weight else []
        columns += [name for name in ("mask", "cldice") if getattr(self, f"{name}_weight")]
        return runs.Plan.of(self, columns, shown=tuple(columns[:4]))


NETWORK_SETTINGS = options_of(LabelToVolumeConfig, network=True)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Layers                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Seen(nn.Module):
    """What a layer sees of a layout: a convolution of its map, and a term for z.

    Shapes: Layout, (d, h, w) -> (B, C, d, h, w)
    """

    def __init__(self, classes, z_dim, channels):
        super().__init__()
        self.map = Conv3d(1 + classes, channels, 3, padding=1)
        self.z = nn.Linear(z_dim, channels, bias=False)

    def forward(self, layout, size):
        return self.map(layout.at(size)) + layout.spread(self.z(layout.z), size)


def normalized(x, norm):
    """Mean 0 and variance 1 of every channel, or group of channels. Shapes: (B, C, D, H, W) -> the same

    With channels last, PyTorch on a CPU takes the variance for the mean square less the square of the mean,
    and loses digits as (mean / deviation)^2 (findings/channels_last_group_norm.sh): the mean goes first. It
    changes neither the result nor gradients, so that these need not know of it.
    """
    channels = x.shape[1]
    groups = channels if norm == "instance" else math.gcd(GROUPS, channels)
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        if x.device.type == "cpu":
            mean = x.detach().mean(dim=(2, 3, 4)).unflatten(1, (groups, -1)).mean(dim=2, keepdim=True)
            x = x - mean.expand(-1, -1, channels // groups).flatten(1)[..., None, None, None]
        return F.group_norm(x, groups)


class Spade(nn.Module):
    """Spatially adaptive normalisation (Park et al. 2019, arXiv:1903.07291, Eq. 1).

        norm(x) * (1 + gamma(map, z)) + beta(map, z)

    Differs from the paper: a volume is normalised, not a batch, and z modulates too, as in OASIS.

    Shapes: x (B, C, d, h, w), Layout -> (B, C, d, h, w)
    """

    def __init__(self, channels, classes, settings):
        super().__init__()
        hidden = min(settings["spade_width"], channels)  # where a volume is large, C is small
        self.seen = Seen(classes, settings["z_dim"], hidden)
        self.modulation = Conv3d(hidden, 2 * channels, 3, padding=1)
        self.norm = settings["norm"]

    def forward(self, x, layout):
        gamma, beta = self.modulation(F.relu(self.seen(layout, x.shape[2:]))).chunk(2, dim=1)
        return normalized(x, self.norm) * (1 + gamma) + beta


class SpadeBlock(nn.Module):
    """Two modulated convolutions beside a shortcut (arXiv:1903.07291, Fig. 4b).

    Differs from the paper: the shortcut, a 1 x 1 x 1 convolution where channels change, is not modulated; and
    between the convolutions comes the grain of the layout, by a learned strength of every channel, as in
    arXiv:1812.04948, Sec. 2: no z can say what the noise of a scan is in every voxel.

    Shapes: x (B, C, d, h, w), Layout -> (B, C', d, h, w)
    """

    def __init__(self, channels, out_channels, classes, settings):
        super().__init__()
        middle = min(channels, out_channels)
        self.spade1 = Spade(channels, classes, settings)
        self.spade2 = Spade(middle, classes, settings)
        self.conv1 = spectral_norm(Conv3d(channels, middle, 3, padding=1))
        self.conv2 = spectral_norm(Conv3d(middle, out_channels, 3, padding=1))
        same = channels == out_channels
        self.shortcut = (
            nn.Identity() if same else spectral_norm(Conv3d(channels, out_channels, 1, bias=False))
        )
        self.act = LeakyReLU()
        self.grain = nn.Parameter(torch.zeros(middle))

    def forward(self, x, layout):
        y = self.conv1(self.act(self.spade1(x, layout)))
        if layout.grain is not None:
            y = y + self.grain.view(-1, 1, 1, 1) * layout.grain_at(y.shape[2:])
        return self.shortcut(x) + self.conv2(self.act(self.spade2(y, layout)))

    def _load_from_state_dict(self, state, prefix, *args):
        """As PyTorch's; a checkpoint of version 0.1.0 has no grain."""
        state.setdefault(f"{prefix}grain", torch.zeros_like(self.grain))
        super()._load_from_state_dict(state, prefix, *args)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, with spectral normalisation (arXiv:2012.04781, App. C).

    Shapes: (B, C, D, H, W) -> (B, C', D, H, W)
    """

    def __init__(self, channels, out_channels):
        super().__init__()
        self.conv1 = spectral_norm(Conv3d(channels, out_channels, 3, padding=1))
        self.conv2 = spectral_norm(Conv3d(out_channels, out_channels, 3, padding=1))
        self.shortcut = spectral_norm(Conv3d(channels, out_channels, 1, bias=False))

    def forward(self, x):
        y = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))
        return self.shortcut(x) + y


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Networks                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def widths_of(settings, first):
    """Channels of the blocks from the smallest volumes to the largest, which have `first`."""
    number = len(growth_schedule(settings["image_size"], settings["image_depth"]))
    return [min(settings["fmap_max"], first * 2**i) for i in range(number)][::-1]


def to_grey(x):
    """Numbers as grey values in [0, 1]: tanh, as published, over its range."""
    return 0.5 + 0.5 * torch.tanh(x)


class SpadeGenerator(nn.Module):
    """A residual block modulated by label map and z at every size of the growth schedule.

    Shapes: Layout -> (B, 1, D, H, W) in [0, 1]
    """

    def __init__(self, classes, settings):
        super().__init__()
        self.checkpoint_activations = False
        self.factors = growth_schedule(settings["image_size"], settings["image_depth"])
        widths = widths_of(settings, settings["width"])
        self.initial = Seen(classes, settings["z_dim"], widths[0])
        self.blocks = nn.ModuleList(
            SpadeBlock(*pair, classes, settings) for pair in itertools.pairwise([widths[0], *widths])
        )
        self.to_volume = Conv3d(widths[-1], 1, 3, padding=1)

    def forward(self, layout):
        x = self.initial(layout, (4, 4, 4))
        for factors, block in zip(self.factors, self.blocks, strict=True):
            x = run_block(block, grown(x, factors), layout, again=self.checkpoint_activations)
        return to_grey(self.to_volume(F.leaky_relu(x, 0.2)).float())


class UNetGenerator(nn.Module):
    """pix2pix's generator in 3D (Isola et al. 2017, arXiv:1611.07004, Sec. 3.2), down to 4 voxels an axis.

    Differs from the paper: z, added where the volume is smallest, takes the place of dropout, so that a seed
    decides; instance normalisation; nearest-neighbour enlargement, which leaves no checkerboard.

    Shapes: Layout -> (B, 1, D, H, W) in [0, 1]
    """

    def __init__(self, classes, settings):
        super().__init__()
        self.checkpoint_activations = False
        self.factors = growth_schedule(settings["image_size"], settings["image_depth"])[1:]
        widths = widths_of(settings, settings["width"])  # from the smallest volume on
        self.first = Conv3d(1 + classes, widths[-1], 3, padding=1)
        down = list(itertools.pairwise(widths[::-1]))
        self.down = nn.ModuleList(
            Conv3d(*pair, tuple(2 + f if f == 2 else 3 for f in factors), stride=factors, padding=1)
            for pair, factors in zip(down, self.factors[::-1], strict=True)
        )
        self.z = nn.Linear(settings["z_dim"], widths[0])
        self.up = nn.ModuleList(Conv3d(a + b, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.to_volume = Conv3d(widths[-1], 1, 3, padding=1)

    def forward(self, layout):
        again, x = self.checkpoint_activations, self.first(layout.largest)
        skips = []
        for conv in self.down:
            skips.append(x)
            x = run_block(
                lambda x, conv=conv: normalized(conv(F.leaky_relu(x, 0.2)), "instance"), x, again=again
            )
        x = x + layout.spread(self.z(layout.z), x.shape[2:])
        for conv, factors, skip in zip(self.up, self.factors, skips[::-1], strict=True):

            def step(x, skip, conv=conv, factors=factors):
                joined = torch.cat([grown(F.relu(x), factors), F.relu(skip).to(x.dtype)], dim=1)
                return normalized(conv(joined), "instance")

            x = run_block(step, x, skip, again=again)
        return to_grey(self.to_volume(F.relu(x)).float())


class OasisDiscriminator(nn.Module):
    """Encoder and decoder that name every voxel's class (Sushko et al. 2021, arXiv:2012.04781, Sec. 3.1).

    Class 0 is "generated", 1 the background, 2 the first class of the table.

    Shapes: volumes (B, 1, D, H, W), shares of the label map (not looked at) -> (B, 2 + classes, D, H, W)
    """

    def __init__(self, classes, settings):
        super().__init__()
        self.factors = growth_schedule(settings["image_size"], settings["image_depth"])[1:]
        widths = widths_of(settings, settings["disc_width"])
        self.first = spectral_norm(Conv3d(1, widths[-1], 3, padding=1))
        self.down = nn.ModuleList(ResidualBlock(*pair) for pair in itertools.pairwise(widths[::-1]))
        self.up = nn.ModuleList(ResidualBlock(a + b, b) for a, b in itertools.pairwise(widths))
        self.to_classes = Conv3d(widths[-1], 2 + classes, 1)

    def forward(self, volumes, shares=None):
        x, skips = self.first(volumes), []
        for block, factors in zip(self.down, self.factors[::-1], strict=True):
            skips.append(x)
            x = F.avg_pool3d(block(x), factors)
        for block, factors, skip in zip(self.up, self.factors, skips[::-1], strict=True):
            x = block(torch.cat([grown(x, factors), skip], dim=1))
        return self.to_classes(F.leaky_relu(x, 0.2))


class WaveletDiscriminator(nn.Module):
    """Judges a volume by its Haar bands at every size (Gal et al. 2021, arXiv:2102.06108, Fig. 3).

    Differs from the paper: the smaller volume is the mean of its voxels, not blurred before; no minibatch
    standard deviation, for the label maps already tell the volumes of a batch apart.

    Shapes: volumes (B, 1, D, H, W), shares (not looked at) -> (B,)
    """

    def __init__(self, classes, settings):
        super().__init__()
        self.factors = growth_schedule(settings["image_size"], settings["image_depth"])[:0:-1]
        widths = widths_of(settings, settings["disc_width"])[::-1]
        pairs = list(zip(self.factors, itertools.pairwise(widths), strict=True))
        self.from_bands = nn.ModuleList(Conv3d(math.prod(f), pair[0], 1) for f, pair in pairs)
        self.convs = nn.ModuleList(
            nn.ModuleList([Conv3d(a, a, 3, padding=1), Conv3d(a, b, 3, stride=stride, padding=1)])
            for (_, (a, b)), stride in zip(pairs, [*self.factors[1:], (1, 1, 1)], strict=True)
        )
        self.last = Conv3d(widths[-1], widths[-1], 3, padding=1)
        self.to_logit = nn.Linear(widths[-1] * 4**3, 1)
        for module in self.modules():
            if isinstance(module, Conv3d | nn.Linear):  # as of PyTorch's own, no signal would reach the end
                nn.init.kaiming_normal_(module.weight, a=0.2)
                nn.init.zeros_(module.bias)

    def forward(self, volumes, shares=None):
        x = None
        for factors, from_bands, convs in zip(self.factors, self.from_bands, self.convs, strict=True):
            seen = from_bands(haar(volumes, factors))
            x = seen if x is None else x + seen
            for conv in convs:
                x = F.leaky_relu(reliably(conv, x), 0.2)
            volumes = F.avg_pool3d(volumes, factors)
        x = F.leaky_relu(reliably(self.last, x), 0.2)
        return self.to_logit(x.flatten(1)).squeeze(1)


class PatchDiscriminator(nn.Module):
    """Judges patches of label map and volume together (PatchGAN, arXiv:1611.07004, Sec. 3.2.2).

    Shapes: volumes (B, 1, D, H, W), shares (B, 1 + classes, D, H, W) -> (B, D', H', W')
    """

    def __init__(self, classes, settings):
        super().__init__()
        strides = growth_schedule(settings["image_size"], settings["image_depth"])[:0:-1][:PATCH_LAYERS]
        first, most = settings["disc_width"], settings["fmap_max"]
        widths = [2 + classes, *(min(most, first * 2**i) for i in range(len(strides) + 1))]
        kernels = [tuple(2 + s if s == 2 else 3 for s in stride) for stride in (*strides, (1, 1, 1))]
        self.convs = nn.ModuleList(
            Conv3d(*pair, kernel, stride=stride, padding=1)
            for pair, kernel, stride in zip(
                itertools.pairwise(widths), kernels, (*strides, (1, 1, 1)), strict=True
            )
        )
        self.to_logits = Conv3d(widths[-1], 1, 3, padding=1)

    def forward(self, volumes, shares):
        x = torch.cat([volumes, shares.to(volumes.dtype)], dim=1)
        for layer, conv in enumerate(self.convs):
            x = reliably(conv, x)
            x = F.leaky_relu(normalized(x, "instance") if layer else x, 0.2)
        return reliably(self.to_logits, x).squeeze(1)


KINDS = {"spade": SpadeGenerator, "unet": UNetGenerator}
KINDS |= {"oasis": OasisDiscriminator, "wavelet": WaveletDiscriminator, "patch": PatchDiscriminator}


class Networks(nn.Module):
    """The generator G, its average GE, and the discriminators D."""

    def __init__(self, classes, **settings):
        super().__init__()
        self.G = KINDS[settings["generator"]](classes, settings)
        self.D = nn.ModuleDict({name: KINDS[name](classes, settings) for name in settings["discriminator"]})
        self.GE = KINDS[settings["generator"]](classes, settings).requires_grad_(False).eval()
        self.GE.load_state_dict(self.G.state_dict())


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Losses                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def class_weights(counts, most):
    """Weight of every class, the rarer the larger (arXiv:2012.04781, Eq. 2), within [LEAST_WEIGHT, most].

        voxels / (number of classes present * voxels of the class)

    Differs from the paper: clamped. A vessel of a few voxels would else outweigh all that surrounds it, and
    the background, a class like any other, would weigh next to nothing.

    Shapes: counts (classes,) -> (classes,)
    """
    present = (counts > 0).sum()
    return (counts.sum() / (present * counts.clamp_min(1))).clamp(LEAST_WEIGHT, most)


def n_plus_one_loss(logits, numbers, weights):
    """Cross-entropy of N + 1 classes in every voxel (arXiv:2012.04781, Eq. 1); class n of a map is n + 1.

    Shapes: logits (B, 2 + classes, D, H, W), numbers (B, D, H, W), weights (1 + classes,) -> scalar
    """
    known = numbers != UNKNOWN
    target = torch.where(known, numbers, 0).long()
    loss = F.cross_entropy(logits.float(), target + 1, reduction="none")
    return (loss * weights[target] * known).mean()


def generated_loss(logits):
    """Cross-entropy to "generated" in every voxel (arXiv:2012.04781, Eq. 1, second term). -> scalar"""
    return -logits.float().log_softmax(dim=1)[:, 0].mean()


def heaviest_near(shares, weights):
    """Weight of every voxel in the absolute difference: of the heaviest class within a voxel of it.

    By the weights of the classes, for a vessel has so few voxels that it would not count; and what touches it
    counts as much as it, for else a vessel that is drawn too thick would cost nothing.

    Shapes: (B, 1 + classes, D, H, W), (1 + classes,) -> (B, 1, D, H, W), 0 where the class is unknown
    """
    own = torch.einsum("bcdhw,c->bdhw", shares, weights)[:, None]
    return (own > 0) * F.max_pool3d(own, 3, stride=1, padding=1)


def labelmix_mask(numbers, rng):
    """Of every class of every map, its voxels are real or generated (arXiv:2012.04781, Sec. 3.2).

    Shapes: (B, D, H, W) -> (B, 1, D, H, W), 1 is real
    """
    coins = rng.integers(0, 2, len(numbers) * (UNKNOWN + 1)).reshape(-1, UNKNOWN + 1)
    coins = parallel.to_device(torch.from_numpy(np.ascontiguousarray(coins)), numbers.device)
    of = torch.arange(len(numbers), device=numbers.device).view(-1, 1, 1, 1)
    return coins[of, numbers.long()][:, None].float()


def mask_loss(volumes, body, threshold, softness=0.05):
    """Mean difference between the bright voxels, softly, and a label map's. A gradient reaches every voxel.

        mean |sigmoid((x - threshold) / softness) - body|

    Shapes: (B, 1, D, H, W) in [0, 1], (B, 1, D, H, W) of 0 and 1 -> scalar
    """
    return (torch.sigmoid((volumes.float() - threshold) / softness) - body).abs().mean()


def centre_line_loss(logits, numbers):
    """1 - clDice of all classes as one, as D names them, and the map's (Shit et al. 2021, arXiv:2003.07311).

    Shapes: logits (B, 2 + classes, D, H, W), numbers (B, D, H, W) -> scalar
    """
    from monai.losses.cldice import SoftclDiceLoss

    found = logits.float().softmax(dim=1)[:, 2:].sum(dim=1, keepdim=True)
    true = ((numbers > 0) & (numbers != UNKNOWN))[:, None].float()
    return SoftclDiceLoss(iter_=CENTRE_LINE_STEPS)(found, true)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Trainer                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Trainer(training.VolumeTrainer):
    """Networks, optimisers and the training step of one run.

    Args:
        config, audit, group, command: As for `VolumeTrainer`.
        pairs: Pairs of the audit's volumes.
    """

    entry = "label_to_volume"
    words = WORDS
    batches_per_micro = 2  # D and G see different pairs
    parts = ("training", "held_out")

    @staticmethod
    def prepare(config, audit, group, source, goes_on):
        """As `VolumeTrainer`'s: the label maps; the audit knows the volumes by both."""
        pairs = read_pairs(config, audit, source and Known.read(source, goes_on))
        without = f"{config.data} without what is held out"
        training.check_number(len(pairs.trained), config, group, without)
        audit.digest = hashlib.sha256(audit.digest.encode() + pairs.maps.numpy().tobytes()).hexdigest()
        audit.summary += pairs.summary()
        if config.mirror and Classes(pairs.table).other_side == list(range(1 + len(pairs.table))):
            alike = "sides are exchanged, and no class has one: --mirror False if they differ."
            audit.summary.append(alike)
        return {"pairs": pairs}

    def __init__(self, config, audit, group=None, pairs=None, command=None):
        super().__init__(config, audit, group, command=command)
        self.pairs, self.members, self.names = pairs, pairs.trained, Classes(pairs.table)
        self.plan = config.plan()
        self.networks = self.placed(Networks(len(pairs.table), **config.network()))
        self.networks.G.checkpoint_activations = config.checkpoint_activations
        self.optimizers = {"G_opt": self.adam("G"), "D_opt": self.adam("D", mult=config.ttur_mult)}
        self.other_side = parallel.to_device(self.sides(), self.device)

    def sides(self):
        """Class of the other side of every class. Shapes: -> (256,) uint8"""
        sides = np.arange(UNKNOWN + 1, dtype=np.uint8)
        other = self.names.other_side
        sides[: len(other)] = other
        return sides

    def rate_scale(self, module, name, parameter):
        """As `VolumeTrainer`'s."""
        return equalized_scale(name, parameter) if self.config.equalized_lr else 1.0

    def reported(self):
        """{name: network} whose sizes are told."""
        return {"G": self.networks.G, **{f"D {name}": D for name, D in self.networks.D.items()}}

    def averaged(self):
        """As `VolumeTrainer`'s."""
        return [(self.networks.GE, self.networks.G)]

    # ---- what a step is made of

    def next_pairs(self, rng):
        """The next pairs, some with their sides exchanged. Shapes: -> (B, 1, D, H, W), (B, D, H, W) uint8"""
        volumes, indices = self.next_volumes(flip_prob=0)
        if self.rehearsing:
            numbers = torch.zeros(volumes.shape, dtype=torch.uint8, device=self.device)
        else:
            numbers = parallel.to_device(self.pairs.maps[indices], self.device)
        if self.config.mirror:
            flips = torch.from_numpy(rng.random(self.batch_size) < 0.5)
            flips = parallel.to_device(flips, self.device).view(-1, 1, 1, 1, 1)
            axis = self.audit.left_right
            volumes = torch.where(flips, volumes.flip(axis), volumes)
            numbers = torch.where(flips, self.other_side[numbers.flip(axis).long()], numbers)
        return volumes, numbers[:, 0]

    def draw_layout(self, shares, generator):
        """The layout of a batch, with z of its own. Shapes: (B, 1 + classes, D, H, W) -> Layout"""
        config = self.config
        regions = latent_regions(config.noise, len(self.pairs.table))
        z = self.draw(torch.randn, (regions, config.z_dim), generator)
        grain = self.draw(torch.randn, (1, *shares.shape[2:]), generator)
        return Layout(shares, z, config.noise, grain)

    def weights_of(self, shares):
        """Weights of the classes of this batch, of all processes. Shapes: of `one_hot` -> (1 + classes,)"""
        counts = shares.sum(dim=(0, 2, 3, 4))
        self.group.sum_([counts])
        return class_weights(counts, self.config.class_weight_max)

    def l1_loss(self, volumes, real, shares, weights):
        """Mean absolute difference to the real volumes (arXiv:1611.07004, Eq. 3), weighted. -> scalar"""
        heaviest = heaviest_near(shares, weights)
        total = heaviest.sum()
        self.group.sum_([total])
        mean = total / (heaviest.numel() * self.group.world)
        return (heaviest * (volumes - real).abs()).mean() / mean.clamp_min(1e-6)

    def add(self, losses, name, value, share):
        """Count a loss, and give its part of this process's and micro-batch's gradient."""
        value = value * share
        losses[name] += value.detach()
        return value

    # ---- one step

    def update(self):
        """One update of every network."""
        losses = self.update_by("D_opt", self.accumulate_discriminators, self.penalty_is_due(self.step))
        return losses | self.update_by("G_opt", self.accumulate_generator)

    def penalty_is_due(self, step):
        """True if R1 is computed in a step."""
        return step % self.config.r1_every == 0

    def step_kinds(self):
        """As `VolumeTrainer`'s: with and without R1."""
        share = math.ceil(self.config.num_train_steps / self.config.r1_every) / self.config.num_train_steps
        return {0: share} | ({1: 1 - share} if share < 1 else {})

    def accumulate_discriminators(self, regularize, micro_batches):
        """Gradients of all discriminators; R1 in a pass of its own in float32."""
        losses, share = defaultdict(float), 1 / micro_batches / self.group.world
        for micro in range(micro_batches):
            rng, generator = self.random(STREAM_D, micro)
            real, numbers = self.next_pairs(rng)
            shares = one_hot(numbers, len(self.pairs.table))
            with torch.no_grad(), self.autocast():
                fake = self.networks.G(self.draw_layout(shares, generator))
            both, twice = torch.cat([real, fake]), torch.cat([shares, shares])
            for name, D in self.networks.D.items():
                with self.autocast():
                    logits = D(both, twice).float().chunk(2)
                loss = self.add(losses, f"D_{name}", self.tell_apart(name, *logits, numbers, shares), share)
                if name == "oasis" and self.config.labelmix_weight:
                    mixed = self.labelmix(D, real, fake, numbers, logits, rng)
                    loss = loss + self.add(losses, "LM", mixed, share * self.config.labelmix_weight)
                self.scaler.scale(loss).backward()
            if "wavelet" in self.networks.D and self.config.r1_weight and regularize:
                weight = self.config.r1_weight * self.config.r1_every  # lazy: as if at every step
                for part in real.split(self.penalty_part):
                    seen = part.detach().float().requires_grad_()
                    value = zero_centered_penalty(seen, self.networks.D["wavelet"](seen), weight)
                    value = self.add(losses, "R1", value, share * len(part) / self.batch_size)
                    self.scaler.scale(value).backward()
        return losses

    def tell_apart(self, name, real, fake, numbers, shares):
        """A discriminator's loss: the classes of voxels, or real against generated. -> scalar"""
        if name == "oasis":
            return n_plus_one_loss(real, numbers, self.weights_of(shares)) + generated_loss(fake)
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def labelmix(self, D, real, fake, numbers, logits, rng):
        """D answers to a mixture by the mixture of its answers (arXiv:2012.04781, Eq. 4). -> scalar"""
        mask = labelmix_mask(numbers, rng)
        with self.autocast():
            found = D(torch.lerp(fake, real, mask)).float()
        return F.mse_loss(found, torch.lerp(logits[1], logits[0], mask))

    def accumulate_generator(self, micro_batches):
        """Gradients of G."""
        losses, config, share = defaultdict(float), self.config, 1 / micro_batches / self.group.world
        self.networks.D.requires_grad_(False)
        for micro in range(micro_batches):
            rng, generator = self.random(STREAM_G, micro)
            real, numbers = self.next_pairs(rng)
            shares = one_hot(numbers, len(self.pairs.table))
            with self.autocast():
                fake = self.networks.G(self.draw_layout(shares, generator))
            loss, weights = 0.0, self.weights_of(shares)
            for name, D in self.networks.D.items():
                with self.autocast():
                    logits = D(fake, shares).float()
                value = F.softplus(-logits).mean()
                if name == "oasis":
                    value = n_plus_one_loss(logits, numbers, weights)
                    if config.cldice_weight:
                        line = centre_line_loss(logits, numbers)
                        loss = loss + self.add(losses, "cldice", line, share * config.cldice_weight)
                loss = loss + self.add(losses, f"G_{name}", value, share)
            if config.l1_weight:
                value = self.l1_loss(fake, real, shares, weights)
                loss = loss + self.add(losses, "L1", value, share * config.l1_weight)
            if config.mask_weight:
                body = ((numbers > 0) & (numbers != UNKNOWN))[:, None].float()
                value = mask_loss(fake, body, config.mask_threshold)
                loss = loss + self.add(losses, "mask", value, share * config.mask_weight)
            self.scaler.scale(loss).backward()
        self.networks.D.requires_grad_(True)
        return losses

    def rehearsed(self):
        """[(phase, function, arguments)] of the heaviest work."""
        two = min(2, self.config.gradient_accumulate_every)
        penalty = "wavelet" in self.networks.D and self.config.r1_weight > 0
        name = "discriminators with R1" if penalty else "discriminators"
        return [
            (name, self.accumulate_discriminators, True, two),
            ("generator", self.accumulate_generator, two),
        ]

    # ---- previews and state

    def explained(self):
        """As `VolumeTrainer`'s."""
        return MEANINGS

    def preview(self):
        """Held-out pairs: label map, real volume, and two drawn by GE; projections from above."""
        if not self.group.first:
            return {}
        chosen = self.pairs.held_out if len(self.pairs.held_out) else self.pairs.trained
        painter = Painter(self.networks.GE, self.config.noise, self.config.z_dim, self.device, self.autocast)
        rows = []
        for index in map(int, chosen[: self.config.num_previews]):
            numbers = self.pairs.maps[index, 0].numpy()
            seeds = [self.config.seed + n for n in range(2)]
            made = painter.draw(np.stack(2 * [numbers]), len(self.pairs.table), seeds)
            real, _ = dataset.VolumeDataset(self.audit)[index, False]
            rows.append(row_of(numbers, [real.float().cpu(), *made], self.audit.affine))
        return {"map-real-made-made": np.concatenate(rows)}

    def state(self):
        """All that the run needs to continue exactly."""
        pairs = self.pairs
        return super().state() | {
            "table": self.table(),
            "held_out": [row for row in pairs.rows if row.get("part") != "training"],
            "center": pairs.center.tolist(),
        }

    def table(self):
        """Names of the classes as a checkpoint has them, {id: name}."""
        return {str(n): name for n, name in self.pairs.table.items()}

    @property
    def trained_on(self):
        """Contents of the volumes and of the label maps that the weights have been trained on."""
        volumes = super().trained_on
        return volumes.union(self.pairs.contents[i] for i in self.members) if volumes else volumes

    def train(self):
        """Train, with split.csv beside the previews: which pairs are held out."""
        if self.group.first:
            write_split(self.pairs.rows[: len(self.audit.paths)], self.config.results / "split.csv")
        return super().train()

    def load(self, state):
        """Take up the state of a checkpoint."""
        there, own = ", ".join(state.get("table", {}).values()), ", ".join(self.table().values())
        if self.entry in state and there != own:
            raise UserError(f"has the classes {there}, --table gives {own}: give the same, or another --name")
        weights = state.get(self.entry, {})
        if self.config.generator == "spade" and not any(name.endswith(".grain") for name in weights):
            raise UserError("is of version 0.1.0, without grain: it draws, but trains no further: give --new")
        super().load(state)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Inference                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Painter:
    """A generator that draws volumes of label maps and seeds; none depends on what else is in the batch.

    Args:
        G: SpadeGenerator or UNetGenerator.
        noise, z_dim: As it was trained.
        device: torch.device.
        autocast: Function that opens the precision of its passes; None is float32.
    """

    def __init__(self, G, noise, z_dim, device, autocast=None):
        self.G, self.noise, self.z_dim, self.device = G, noise, z_dim, device
        self.autocast = autocast or functools.partial(torch.autocast, device.type, enabled=False)

    @torch.no_grad()
    def draw(self, numbers, classes, seeds):
        """Volumes of label maps and of as many seeds.

        Shapes: numbers (B, Z, X, Y) uint8 -> (B, 1, Z, X, Y) float32 in [0, 1], on the CPU
        """
        regions = latent_regions(self.noise, classes)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        z = torch.stack([torch.randn(regions, self.z_dim, generator=one) for one in generators])
        grain = torch.stack([torch.randn(1, *numbers.shape[1:], generator=one) for one in generators])
        numbers = torch.from_numpy(np.ascontiguousarray(numbers)).to(self.device)

        def made(numbers, z, grain):
            return self.G(Layout(one_hot(numbers, classes), z, self.noise, grain))

        latents = (z.to(self.device), grain.to(self.device))
        training_before = self.G.training
        self.G.eval()  # spectral normalisation then changes nothing
        try:
            with self.autocast(), parallel.tf32(False):
                return generation.alone_as_two(made, numbers, *latents).float().cpu()
        finally:
            self.G.train(training_before)


class LabelModel(Painter):
    """A trained generator, read from a checkpoint; see `generation.Model`.

    Args:
        path: The checkpoint.
        device: auto, cpu, cuda or cuda:<n>.
        use_average: Take the averaged generator GE; False takes G.

    Raises:
        UserError: It cannot be used.
    """

    def __init__(self, path, device="auto", use_average=True):
        self.path, state = Path(path), runs.read_state(path)
        prefix, device = "GE." if use_average else "G.", parallel.choose_device(device)
        with as_damaged("it is damaged or of another program", path):
            if Trainer.entry not in state:
                raise UserError(f"{path} is no checkpoint of label_to_volume.py.")
            self.settings = {name: state["config"][name] for name in NETWORK_SETTINGS}
            self.table = {int(n): str(name) for n, name in state["table"].items()}
            self.known_as = state["config"]["table"] if state["config"]["table"] in TABLES else "its own"
            self.ignore, self.step = state["config"]["ignore"], state["step"]
            self.trained_on = frozenset(state.get("trained_on", ()))
            self.affine = np.array(state["affine"], dtype=float).reshape(4, 4)
            self.center = np.array(state["center"], dtype=float).reshape(3)
            G = KINDS[self.settings["generator"]](len(self.table), self.settings)
            own = {n.removeprefix(prefix): t for n, t in state[Trainer.entry].items() if n.startswith(prefix)}
            with naming(path):
                runs.load_networks(G, own)
        self.networks, self.classes, self.class_names = prefix.rstrip("."), Classes(self.table), []
        size, depth = self.settings["image_size"], self.settings["image_depth"]
        self.array_shape = (size, size, depth)
        G = channels_last(G).requires_grad_(False).eval().to(device)
        super().__init__(G, self.settings["noise"], self.settings["z_dim"], device)

    def volumes_of(self, seeds, *, numbers, batch_size=8):
        """Yield the volumes of one label map and of every seed, (1, Z, X, Y) in [0, 1] on the CPU.

        Shapes: numbers (Z, X, Y) uint8
        """
        for start in range(0, len(seeds), batch_size):
            chosen = seeds[start : start + batch_size]
            yield from self.draw(np.stack(len(chosen) * [numbers]), len(self.table), chosen)

    def read_map(self, path, fit, edits):
        """A label map on the model's grid.

        Args:
            path: NIfTI file.
            fit: Bring one of another grid there.
            edits: Of `read_edit`.

        Returns:
            MapToDraw.

        Raises:
            UserError: It is of another grid or table.
        """
        array, affine = read_labels(path, self.table, axes_of(self.affine), self.ignore)
        content = content_of_labels(turn(array, affine)[0])
        numbers = class_numbers(array, self.classes, self.ignore, path)
        sizes = [spacing_of(a) for a in (affine, self.affine)]
        fits = numbers.shape == self.array_shape and same_spacing(*sizes)
        if fit and not fits:
            numbers, affine = fitted(numbers, affine, self.affine, self.array_shape, self.center)
        if fit or fits:
            stored = stored_axes(path) if fits else axes_of(affine)
            return MapToDraw(edited(numbers, affine, edits, self.classes), affine, content, stored)
        raise UserError(
            f"{path} is of another grid than the model: {by(array.shape)} voxels of {by(sizes[0].round(3))} "
            f"mm; expected {by(self.array_shape)} of {by(sizes[1].round(3))} mm. --fit brings it there."
        )


def maps_to_draw(config, model):
    """{path: MapToDraw} of --generate, with --split of training subjects; an error lists the wrong ones."""
    (paths, _), maps, problems = choose(config.generate, "--generate", config.split), {}, []
    for path in paths:
        try:
            maps[path] = model.read_map(path, config.fit, config.edits)
        except UserError as error:
            if config.edits and str(error).startswith("--edit"):
                raise
            problems.append(str(error).rstrip("."))
    refuse_unusable(problems, len(paths), config.generate)
    return maps


def seeds_of(config, content):
    """Seeds of the volumes of a label map: they follow from --seed and the map, whatever else is drawn."""
    digest = hashlib.sha256(f"{config.seed} {content}".encode()).hexdigest()
    first = int(digest[:12], 16) % SEEDS
    return range(first, first + config.num_per_map)


def generate_volumes(config):
    """`--generate`: num_per_map volumes for every label map of a folder, each with its sidecar.

    The label maps, as drawn, are written to the folder <output>_labels, under the volumes' names.

    Returns:
        The folder of the volumes; what is there already is kept.
    """
    with parallel.process_group() as group:
        checkpoint = asked.checkpoint_of(config)
        model = LabelModel(checkpoint, config.device, config.use_average)
        maps = maps_to_draw(config, model)
        writer = PairWriter(model, config.generated_folder(checkpoint), config.generate)
        names = names_in(config.generate, maps, "--generate")

        def items_of(path, to_draw):
            seeds, name = seeds_of(config, to_draw.known_as), names[path] + to_draw.suffix
            return [writer.item_of(path, to_draw, name, seed, config) for seed in seeds]

        for path, to_draw in asked_variations(maps, config):  # varying can take minutes
            writer.refuse_before_varying(items_of(path, to_draw))
        of_maps = [items_of(*one) for one in with_variations(maps, config, model.classes, group.first)]
        items = list(itertools.chain(*of_maps))
        writer.write_all(items, writer.draw, group=group)
        if group.first:
            shown = [items[:SHOWN_SEEDS] for items in of_maps[:SHOWN_MAPS]]
            writer.sheet(list(itertools.chain(*shown)), len(shown[0]) if len(shown[0]) > 1 else None)
            print(f"{len(items)} volumes are in {writer.folder}, their label maps in {writer.labels}.")
    return writer.folder


def recreate(config):
    """`--recreate`: draw a volume again from its sidecar; returns the largest difference of a voxel."""

    def draw(record, checkpoint, label_map=None):
        model = LabelModel(checkpoint, config.device, record["checkpoint"]["networks"] == "GE")
        if label_map is None:
            return asked.recreated(record, model)
        edits, axes = list(map(read_edit, record["recipe"]["edit"])), axes_of(np.array(record["affine"]))
        to_draw = replace(model.read_map(label_map, record["recipe"]["fit"], edits), axes=axes)
        to_draw = varied_again(to_draw, record["recipe"].get("vary"), model.classes)
        numbers = array_to_volume(to_draw.numbers)[0]
        (volume,) = model.volumes_of([record["seed"]], numbers=numbers)
        return to_draw.as_written(volume)

    by_name = "anatomy" in read_json(config.recreate)
    sources = ("checkpoint",) if by_name else ("checkpoint", "label_map")
    return generation.recreate(config.recreate, "label_to_volume.py", draw, config.checkpoint, sources)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Entry points                                                                                             ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def train_from_folder(config, group=None):
    """Check everything, then train, or stop after the checks with `--dry_run`; see `training`.

    Returns:
        The Trainer, at its last step; after a dry run on the CPU one of fake tensors.
    """
    return training.train_from_folder(Trainer, config, group)


def main(argv=None):
    """The command line: train, or draw volumes for label maps."""
    config = parse_cli(LabelToVolumeConfig, argv)
    with one_line_errors():
        parallel.prepare_process(config.device, config.deterministic)
        if config.recreate is not None:
            recreate(config)
        elif config.asks:
            asked.generate(config, LabelModel, seeds_of)
        elif config.generate is not None:
            generate_volumes(config)
        else:
            training.run_from_command_line(config, train_from_folder)


if __name__ == "__main__":
    main()
