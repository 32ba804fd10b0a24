"""Progressive growing in 3D: a Wasserstein GAN for small volumes and small data sets, by class.

    python progressive_wgan.py --data nodules --name nodules --image_size 32 --image_depth 32 --labels folders
    python progressive_wgan.py --name nodules --generate --num_generate 16 --label solid --seed 1
    python progressive_wgan.py --data nodules --name nodules --image_size 32 --image_depth 32 --show

Training begins with volumes of 4 x 4 x 4 voxels, each the mean of a part of a real one, and doubles every
axis that is not yet at its size: a fade of `volumes_per_phase` volumes, then as many at the new size.
Sections of this file, in order:

    configuration     every option, one line each
    phases            which size, and how far its fade is, at every step
    layers            equalised convolution, pixel norm, minibatch standard deviation
    networks          generator and discriminator, mirror images
    losses            Wasserstein, hinge
    trainer           the training step, previews, state
    inference         from seeds to volumes, each re-creatable from the file beside it
    entry points      what the command line calls

A NIfTI array is (X, Y, Z); inside the networks a volume is (B, 1, D, H, W) = (B, 1, Z, X, Y) in [0, 1].

Papers: progressive growing (arXiv:1710.10196), WGAN-GP (arXiv:1704.00028), its zero-centred penalty
(arXiv:1902.03984), projection discriminator (arXiv:1802.05637), R1 (arXiv:1801.04406).
"""

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass

from volumetric import dataset, generation, parallel, runs, training
from volumetric.cli import (
    SeedOptions,
    UserError,
    VolumeConfig,
    inherited,
    one_line_errors,
    option,
    options_of,
    parse_cli,
)
from volumetric.files import as_damaged, naming, new_folder
from volumetric.layers import (
    GROUP,
    SLOPE,
    channels_last,
    convolve,
    gradient_penalty,
    grown,
    growth_schedule,
    minibatch_deviation,
    move_averages,
    zero_centered_penalty,
)
from volumetric.pictures import contact_sheet, save_picture
from volumetric.run_page import Meaning

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

LARGER_BATCHES = (1, 2, 4)  # times batch_size, at the full size, half of it, and all smaller ones
EPSILON = 1e-8
STREAM_D, STREAM_G = parallel.STREAM_STEP, parallel.STREAM_SECOND_STEP

KEPT = {"kept": True, "resumed": False}  # of an option that the phases follow from
LOSSES = {"wgan": "Wasserstein, as published", "hinge": "hinge loss"}
# Of the columns of metrics.csv, for the run's page.
MEANINGS = {
    "G": Meaning("The mean of D's output on generated volumes, with a minus: G lowers it."),
    "GP": Meaning("Penalty of D's gradient, by --penalty and --penalty_weight."),
    "stage": Meaning("Which size is trained: every step up doubles edges. The optimisers begin anew there."),
    "fade": Meaning("Share of the new size that is faded in: 1 is all of it."),
}
WORDS = {
    "D": "discriminator: tells real from generated volumes",
    "G": "generator",
    "GE": "volumes of the average of G, at the present size; a row for each class",
    "GP": "gradient penalty",
}
PENALTIES = {
    "zero_centered": "norm 0 between real and generated volumes",
    "one_centered": "norm 1 there, as published",
    "r1": "norm 0 at real volumes",
}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Configuration                                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(kw_only=True)
class ProgressiveConfig(SeedOptions, VolumeConfig):
    """Grow a 3D Wasserstein GAN on a folder of NIfTI volumes, or generate with one.

    The same command given again continues the run. Ctrl-C and SIGTERM save first, and end it with exit status
    130 or 143. In a flag's name - and _ are the same.
    """

    # networks
    image_size: int = inherited(VolumeConfig, "image_size", 32)
    fmap_base: int = option(2048, "Channels are fmap_base / 2^n of block n.", most=10**6, network=True)
    fmap_max: int = option(128, "Largest number of channels.", most=16384, network=True)
    latent_dim: int = option(128, "Numbers in a latent z.", most=16384, network=True)
    # training
    num_train_steps: int | None = option(None, "Steps in the whole run; None ends with the last phase.")
    volumes_per_phase: int = option(20000, "Volumes of a fade, and of a phase without.", kept=True)
    volumes_at_start: int = option(50000, "Volumes of the first phase, of 4 x 4 x 4 voxels.", kept=True)
    batch_size: int = inherited(
        VolumeConfig, "batch_size", 8, help="Volumes in a micro-batch at the full size; more before.", **KEPT
    )
    gradient_accumulate_every: int = inherited(VolumeConfig, "gradient_accumulate_every", 1, **KEPT)
    learning_rate: float = inherited(VolumeConfig, "learning_rate", 3e-3)
    loss: str = option("wgan", "Loss of G and D.", choices=LOSSES, resumed=True)
    penalty: str = option("zero_centered", "Of D's gradient.", choices=PENALTIES, resumed=True)
    penalty_weight: float = option(10.0, "Of the squared distance to that norm.", least=0, resumed=True)
    drift: float = option(
        1e-3, "Weight of the squared output for real volumes (wgan).", least=0, resumed=True
    )
    num_image_tiles: int = option(4, "Previews show num_image_tiles volumes of each class.", most=64)
    # generation, and looking at the data
    show: bool = option(False, "Write a contact sheet of the data at every size, and train nothing.")
    generate_interpolation: bool = option(False, "Generate the way from seed to seed + 1.")
    interpolation_num_steps: int = option(20, "Volumes of an interpolation.", least=2, most=10**6)

    def __post_init__(self):
        super().__post_init__()
        if min(stage_widths(self)) < 1:
            raise UserError(f"--fmap_base {self.fmap_base} leaves no channel at the full size: give more.")
        self.derive("num_train_steps", phases(self)[-1].end)

    def plan(self):
        """Plan of the run."""
        shown, ends = ("D", "G", "GP"), tuple(phase.end for phase in phases(self))
        return runs.Plan.of(self, (*shown, "stage", "fade"), shown=shown, also_previews_at=ends)


NETWORK_SETTINGS = options_of(ProgressiveConfig, network=True)
PACE = options_of(ProgressiveConfig, kept=True)  # what the phases follow from


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Phases                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Phase:
    """Steps start, start + 1, ..., end - 1 at one size: a fade from the size before, or none.

    Args:
        stage: Number of the last block, from 0 at 4 x 4 x 4 voxels.
        fades: It is a fade.
        batch: Volumes in a micro-batch.
    """

    stage: int
    fades: bool
    start: int
    end: int
    batch: int

    def alpha(self, step):
        """Share of the new size, from above 0 to 1 in the last step of a fade; 1 without."""
        return (step - self.start + 1) / (self.end - self.start) if self.fades else 1.0


def phases(config):
    """All phases of a run: 4 x 4 x 4 voxels, then for every size a fade and a phase without."""
    last, found, start = len(growth_schedule(config.image_size, config.image_depth)) - 1, [], 0
    for stage in range(last + 1):
        batch = config.batch_size * LARGER_BATCHES[min(last - stage, len(LARGER_BATCHES) - 1)]
        volumes = config.volumes_per_phase if stage else config.volumes_at_start
        steps = math.ceil(volumes / batch / config.gradient_accumulate_every)
        for fades in (True, False) if stage else (False,):
            found.append(Phase(stage, fades, start, start + steps, batch))
            start += steps
    return found


def phase_of(plan, step):
    """The phase that a step is in; the last one goes on."""
    return next((phase for phase in plan if step < phase.end), plan[-1])


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Layers                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Equalized(nn.Module):
    """Convolution whose N(0, 1) weights are multiplied by gain / sqrt(fan_in) (arXiv:1710.10196, Sec. 4.1).

    Shapes: (B, in, D, H, W) -> (B, out, D, H, W); with size 0 a linear layer, (B, in) -> (B, out)
    """

    def __init__(self, channels, out_channels, size, gain=2**0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, channels, *(3 * [size] if size else [])))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale, self.size = gain / math.sqrt(self.weight[0].numel()), size

    def forward(self, x):
        weight = self.weight * self.scale
        if not self.size:
            return F.linear(x, weight, self.bias)
        return convolve(x, weight, self.bias, padding=self.size // 2)


def pixel_norm(x):
    """x / sqrt(mean over the channels of x^2 + 1e-8) (arXiv:1710.10196, Sec. 4.2). Shapes: (B, C, ...)"""
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        return x * (x.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt()


def act(x):
    """The networks' only nonlinearity, LeakyReLU of slope 0.2."""
    return F.leaky_relu(x, SLOPE)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Networks                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def stage_widths(config):
    """Channels of every block, min(fmap_max, fmap_base / 2^(n + 1)), as published: 8192 and 512 give
    512, 512, 512, 512, 256 for 4 to 64 voxels."""
    number = len(growth_schedule(config.image_size, config.image_depth))
    return [min(config.fmap_max, config.fmap_base // 2 ** (n + 1)) for n in range(number)]


class Generator(nn.Module):
    """From 4 x 4 x 4 voxels up: enlargement and two convolutions a size, pixel norm after each.

    Shapes: z (B, latent), classes (B, latent) or None, stage, alpha -> (B, 1, d, h, w)
    """

    def __init__(self, widths, factors, latent_dim, conditional):
        super().__init__()
        self.factors, first = factors, latent_dim * (2 if conditional else 1)
        self.dense = Equalized(first, widths[0] * 4**3, 0, gain=2**0.5 / 4)
        self.first = Equalized(widths[0], widths[0], 3)
        self.blocks = nn.ModuleList(
            nn.ModuleList([Equalized(a, b, 3), Equalized(b, b, 3)]) for a, b in itertools.pairwise(widths)
        )
        self.to_grey = nn.ModuleList(Equalized(width, 1, 1, gain=1) for width in widths)

    def forward(self, z, classes, stage, alpha=1.0):
        z = pixel_norm(z)
        z = z if classes is None else torch.cat([z, pixel_norm(classes)], dim=1)
        x = pixel_norm(act(self.dense(z).unflatten(1, (-1, 4, 4, 4))))
        x = pixel_norm(act(self.first(x)))
        for number, convs in enumerate(self.blocks[:stage], start=1):
            before, x = x, grown(x, self.factors[number])
            for conv in convs:
                x = pixel_norm(act(conv(x)))
        volume = self.to_grey[stage](x).float()
        if stage and alpha < 1:
            former = grown(self.to_grey[stage - 1](before).float(), self.factors[stage])
            volume = torch.lerp(former, volume, alpha)
        return volume


class Discriminator(nn.Module):
    """The generator's mirror image, with a minibatch standard deviation at 4 x 4 x 4 voxels.

    With classes, the product of its features with the class's is added (arXiv:1802.05637, Eq. 3).

    Shapes: volumes (B, 1, d, h, w), classes (B, features) or None, stage, alpha, group -> (B,)
    """

    def __init__(self, widths, factors):
        super().__init__()
        self.factors = factors
        self.from_grey = nn.ModuleList(Equalized(1, width, 1) for width in widths)
        self.blocks = nn.ModuleList(
            nn.ModuleList([Equalized(b, b, 3), Equalized(b, a, 3)]) for a, b in itertools.pairwise(widths)
        )
        self.last = Equalized(widths[0] + 1, widths[0], 3)
        self.dense = Equalized(widths[0] * 4**3, widths[0], 0)
        self.to_logit = Equalized(widths[0], 1, 0, gain=1)

    def forward(self, volumes, classes, stage, alpha, group):
        x = act(self.from_grey[stage](volumes))
        for number in range(stage, 0, -1):
            for conv in self.blocks[number - 1]:
                x = act(conv(x))
            x = F.avg_pool3d(x, self.factors[number])
            if number == stage and alpha < 1:
                former = act(self.from_grey[stage - 1](F.avg_pool3d(volumes, self.factors[stage])))
                x = torch.lerp(former.to(x.dtype), x, alpha)
        x = act(self.last(minibatch_deviation(x, group)))
        features = act(self.dense(x.flatten(1)))
        logits = self.to_logit(features).squeeze(1).float()
        return logits if classes is None else logits + (features.float() * classes).mean(dim=1)


class Networks(nn.Module):
    """G, its average GE, D, and what each has of the classes."""

    def __init__(self, config, num_classes=0):
        super().__init__()
        widths, factors = stage_widths(config), growth_schedule(config.image_size, config.image_depth)
        generator = (widths, factors, config.latent_dim, num_classes > 0)
        self.G, self.GE = Generator(*generator), Generator(*generator)
        self.D = Discriminator(widths, factors)
        self.G_classes = nn.Embedding(num_classes, config.latent_dim) if num_classes else None
        self.GE_classes = nn.Embedding(num_classes, config.latent_dim) if num_classes else None
        self.D_classes = nn.Embedding(num_classes, widths[0]) if num_classes else None
        for average, current in self.averaged():
            average.load_state_dict(current.state_dict())
            average.requires_grad_(False)

    def averaged(self):
        """[(average, what it follows)]."""
        return [(self.GE, self.G)] + ([(self.GE_classes, self.G_classes)] if self.G_classes else [])

    def made(self, z, labels, stage, alpha, average=False):
        """Volumes of a size. Shapes: (B, latent), (B,) or None -> (B, 1, d, h, w)"""
        G, classes = (self.GE, self.GE_classes) if average else (self.G, self.G_classes)
        return G(z, None if labels is None else classes(labels), stage, alpha)

    def critic(self, volumes, labels, stage, alpha, group):
        """D's outputs. Shapes: (B, 1, d, h, w), (B,) or None -> (B,)"""
        classes = None if labels is None else self.D_classes(labels)
        return self.D(volumes, classes, stage, alpha, group)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Losses                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def wasserstein_loss(real, fake, drift):
    """mean D(fake) - mean D(real) + drift * mean D(real)^2 (arXiv:1704.00028; arXiv:1710.10196, App. A).

    Shapes: (B,), (B,) -> scalar
    """
    return fake.mean() - real.mean() + drift * real.square().mean()


def hinge_loss(real, fake):
    """mean relu(1 - D(real)) + mean relu(1 + D(fake)). Shapes: (B,), (B,) -> scalar"""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Trainer                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Trainer(training.VolumeTrainer):
    """Networks, optimisers and the training step of one run.

    Args:
        config, audit, group, command: As for `VolumeTrainer`; the audit has the volumes' classes, if any.
    """

    entry = "progressive"
    words = WORDS

    @staticmethod
    def largest_batch(config):
        """That of the phase with most volumes, in times of --batch_size."""
        return max(phase.batch for phase in phases(config)) // config.batch_size

    def __init__(self, config, audit=None, group=None, scores=None, command=None):
        super().__init__(config, audit, group, scores, command)
        self.plan, self.phases = config.plan(), phases(config)
        self.networks = self.placed(Networks(config, len(self.classes.names) if self.classes else 0))
        self.build_optimizers()
        self.phase = None
        self.enter(self.phases[-1])

    def reported(self):
        """{name: network} whose sizes are told."""
        return {"generator G": self.networks.G, "discriminator D": self.networks.D}

    def averaged(self):
        """[(average, what it follows)] of the networks."""
        return self.networks.averaged()

    def build_optimizers(self):
        """Adam for G and for D, without memory of what was before."""
        self.optimizers = {"G_opt": self.adam("G", "G_classes"), "D_opt": self.adam("D", "D_classes")}

    def enter(self, phase):
        """Take up the batch of a phase; the batches of a size are drawn anew when it begins."""
        if self.phase is None or phase.stage != self.phase.stage:
            self.loader = None
        self.phase, self.whole_batch = phase, phase.batch
        self.batch_size = self.penalty_part = self.group.own(phase.batch)
        self.grouped = math.gcd(GROUP, self.batch_size)  # volumes whose deviation D sees
        self.counted_from = min(one.start for one in self.phases if one.stage == phase.stage)
        self.order_key = (phase.stage,)

    # ---- what a step is made of

    def real_at(self, alpha):
        """The next real volumes at this size, faded as G's, and their classes.

        Shapes: -> (B, 1, d, h, w), (B,) or None
        """
        volumes, labels = self.next_real()
        return shrunk(volumes, self.networks.G.factors, self.phase.stage, alpha), labels

    def generate(self, generator, labels, alpha):
        """Volumes of this size. Shapes: (B,) or None -> (B, 1, d, h, w)"""
        z = self.draw(torch.randn, (self.config.latent_dim,), generator)
        with self.autocast():
            return self.networks.made(z, labels, self.phase.stage, alpha)

    # ---- one step

    def train_step(self, log):
        """One update of G and D, in the phase of the step; a new size begins with new optimisers."""
        former, phase = phase_of(self.phases, self.step - 1), phase_of(self.phases, self.step)
        if self.step and phase.stage != former.stage:
            self.build_optimizers()
        self.enter(phase)
        super().train_step(log)

    def update(self):
        """One update of both networks."""
        alpha = self.phase.alpha(self.step)
        losses = self.update_by("D_opt", self.accumulate_discriminator, alpha)
        losses |= self.update_by("G_opt", self.accumulate_generator, alpha)
        about = {"stage": self.phase.stage, "fade": alpha, "volumes": self.volumes_per_step}
        return losses | {k: torch.tensor(float(value), device=self.device) for k, value in about.items()}

    @property
    def volumes_per_step(self):
        """Real volumes in a step of this phase."""
        return self.phase.batch * self.config.gradient_accumulate_every

    def update_averages(self):
        """As `VolumeTrainer`'s, counted at this size: what was before is blurred."""
        seen = (self.step - self.counted_from + 1) * self.volumes_per_step
        move_averages(self.averaged(), training.ramped_decay(seen, self.volumes_per_step))

    def accumulate_discriminator(self, alpha, micro_batches):
        """Gradients of D; the penalty in a pass of its own in float32."""
        losses, share = defaultdict(float), 1 / micro_batches / self.group.world
        for micro in range(micro_batches):
            _, generator = self.random(STREAM_D, micro)
            real, labels = self.real_at(alpha)
            with torch.no_grad():
                fake = self.generate(generator, labels, alpha)
            both = None if labels is None else torch.cat([labels, labels])
            with self.autocast():
                logits = self.networks.critic(
                    torch.cat([real, fake]), both, self.phase.stage, alpha, self.grouped
                ).chunk(2)
            wgan = self.config.loss == "wgan"
            loss = wasserstein_loss(*logits, self.config.drift) if wgan else hinge_loss(*logits)
            losses["D"] += loss.detach() * share
            self.scaler.scale(loss * share).backward()
            value = self.penalize(real, fake, labels, alpha, generator)
            losses["GP"] += value.detach() * share
            self.scaler.scale(value * share).backward()
        return losses

    def penalize(self, real, fake, labels, alpha, generator):
        """Penalty of D's gradient, in float32. Shapes: (B, 1, d, h, w), the same, (B,) or None -> scalar"""
        kind, at = self.config.penalty, real
        if kind != "r1":  # on the line between each pair
            at = torch.lerp(real, fake, self.draw(torch.rand, (1, 1, 1, 1), generator))
        at = at.detach().float().requires_grad_()
        logits = self.networks.critic(at, labels, self.phase.stage, alpha, self.grouped)
        if kind == "one_centered":
            return gradient_penalty(at, logits, self.config.penalty_weight)
        return zero_centered_penalty(at, logits, 2 * self.config.penalty_weight)

    def accumulate_generator(self, alpha, micro_batches):
        """Gradients of G."""
        losses, share = defaultdict(float), 1 / micro_batches / self.group.world
        self.networks.D.requires_grad_(False)
        for micro in range(micro_batches):
            rng, generator = self.random(STREAM_G, micro)
            labels = self.draw_labels(rng)
            fake = self.generate(generator, labels, alpha)
            with self.autocast():
                logits = self.networks.critic(fake, labels, self.phase.stage, alpha, self.grouped)
            loss = -logits.mean() * share
            losses["G"] += loss.detach()
            self.scaler.scale(loss).backward()
        self.networks.D.requires_grad_(True)
        if self.networks.D_classes is not None:
            self.networks.D_classes.weight.grad = None
        return losses

    def step_kinds(self):
        """{first step of a phase: share of the run that the phase takes}."""
        total = self.phases[-1].end
        return {phase.start: (phase.end - phase.start) / total for phase in self.phases}

    def rehearsed(self):
        """[(phase, function, arguments)] of the heaviest work: a fade to the full size."""
        two = min(2, self.config.gradient_accumulate_every)
        return [
            ("gradient penalty", self.accumulate_discriminator, 0.5, two),
            ("generator", self.accumulate_generator, 0.5, two),
        ]

    # ---- previews and state

    def explained(self):
        """{column of metrics.csv: Meaning}, by the loss."""
        hinge = "Hinge loss: 2 if all outputs are 0, 0 if real and generated volumes are far apart."
        wgan = "Mean output on generated less that on real volumes: below 0 if they are told apart."
        level = 2.0 if self.config.loss == "hinge" else 0.0
        return {**MEANINGS, "D": Meaning(hinge if level else wgan, level)}

    def preview(self):
        """A row of averaged volumes for every class, at the present size."""
        if not self.group.first:
            return {}
        phase = phase_of(self.phases, max(self.step - 1, 0))
        synthesizer = StageSynthesizer(self.networks, self.config.latent_dim)
        stage, alpha = phase.stage, phase.alpha(max(self.step - 1, 0))
        columns = self.config.num_image_tiles
        seeds = range(self.config.seed, self.config.seed + columns)
        rows = [
            synthesizer.draw(seeds, None if label is None else torch.full((columns,), label), stage, alpha)
            for label in (range(len(self.classes.names)) if self.classes else (None,))
        ]
        classes = f", a row for each of {', '.join(self.classes.names)}" if self.classes else ""
        caption = f"SYNTHETIC, step {self.step}, averaged GE{classes}"
        return {"GE": contact_sheet(torch.cat(rows), self.audit.affine, columns, caption)}

    def load(self, state):
        """Take up the state of a checkpoint."""
        super().load(state)
        self.phase = None
        self.enter(phase_of(self.phases, self.step))


def shrunk(volumes, factors, stage, alpha=1.0):
    """Volumes at the size of a stage, faded from the size before: means of voxels.

    Shapes: (B, 1, D, H, W) -> (B, 1, d, h, w)
    """
    for factor in reversed(factors[stage + 1 :]):
        volumes = F.avg_pool3d(volumes, factor)
    if stage and alpha < 1:
        former = grown(F.avg_pool3d(volumes, factors[stage]), factors[stage])
        volumes = torch.lerp(former, volumes, alpha)
    return volumes


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Inference                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class StageSynthesizer:
    """A generator that makes the volumes of seeds; none depends on what else is in the batch.

    Args:
        networks: Networks.
        latent_dim: Numbers in a latent.
        average: Take GE; False takes G.
    """

    def __init__(self, networks, latent_dim, average=True):
        self.latent_dim = latent_dim
        self.G = networks.GE if average else networks.G
        self.classes = networks.GE_classes if average else networks.G_classes
        self.device = next(self.G.parameters()).device

    def vectors_of(self, labels):
        """What G sees of classes. Shapes: (B,) or None -> (B, latent) or None"""
        return None if labels is None else self.classes.weight[labels].detach()

    @torch.no_grad()
    def make(self, z, vectors, stage, alpha=1.0):
        """Volumes in [0, 1], on the CPU. Shapes: (B, latent), the same or None -> (B, 1, d, h, w) float32"""
        with torch.autocast(self.device.type, enabled=False), parallel.tf32(False):
            volumes = generation.alone_as_two(
                lambda z, vectors: self.G(z, vectors, stage, alpha), z.to(self.device), vectors
            )
        return volumes.clamp(0, 1).float().cpu()

    def draw(self, seeds, labels, stage, alpha=1.0):
        """The volumes of seeds, and of numbers of classes. Shapes: (B,), (B,) or None -> (B, 1, d, h, w)"""
        z = torch.stack([parallel.latent_of(seed, self.latent_dim) for seed in seeds])
        return self.make(z, self.vectors_of(labels), stage, alpha)


class ModelLoader(generation.SeedModel):
    """A trained generator, read from a checkpoint; see `generation.Model`.

    Args:
        path: The checkpoint.
        device: auto, cpu, cuda or cuda:<n>.
        average: Take the averaged generator.

    Raises:
        UserError: It cannot be used.
    """

    def __init__(self, path, device="auto", average=True):
        state, device = runs.read_state(path), parallel.choose_device(device)
        with as_damaged("it is damaged or of another program", path):
            if Trainer.entry not in state:
                raise UserError(f"{path} is no checkpoint of progressive_wgan.py.")
            self.settings = {name: state["config"][name] for name in (*NETWORK_SETTINGS, *PACE)}
            super().__init__(path, state, "GE" if average else "G", device)
            config = ProgressiveConfig(**self.settings)
            networks = Networks(config, len(self.class_names))
            with naming(path):
                runs.load_networks(networks, state[Trainer.entry])
        plan = phases(config)
        phase = phase_of(plan, max(self.step - 1, 0))
        self.stage, self.alpha, self.last = phase.stage, phase.alpha(max(self.step - 1, 0)), plan[-1].stage
        channels_last(networks).requires_grad_(False).to(device)
        self.synthesizer = StageSynthesizer(networks, config.latent_dim, average)
        self.factors = networks.G.factors

    def full_size(self, volumes):
        """Volumes of an unfinished run at the full size. Shapes: (B, 1, d, h, w) -> (B, 1, D, H, W)"""
        for factors in self.factors[self.stage + 1 :]:
            volumes = grown(volumes, factors)
        return volumes

    def draw(self, seeds, labels):
        """The volumes of seeds, and of numbers of classes. Shapes: (B,), (B,) or None -> (B, 1, Z, X, Y)"""
        return self.full_size(self.synthesizer.draw(seeds, labels, self.stage, self.alpha))

    def between(self, ends, positions, labels=None):
        """Volumes on the way from one seed to another, and from one class to another.

        Args:
            ends: The two seeds.
            positions: B numbers from 0 at the first to 1 at the second.
            labels: Names of the classes at both ends; None for a model without.

        Shapes: -> (B, 1, Z, X, Y) in [0, 1], on the CPU
        """
        # the latent is normalised by G: a straight line between two is an arc of their sphere
        synthesizer = self.synthesizer
        z = [parallel.latent_of(seed, synthesizer.latent_dim) for seed in ends]
        z, vectors = torch.stack([torch.lerp(*z, t) for t in positions]), None
        if labels is not None:
            of = [synthesizer.vectors_of(self.labels_of([0], name))[0] for name in labels]
            vectors = torch.stack([torch.lerp(*of, t) for t in positions])
        return self.full_size(synthesizer.make(z, vectors, self.stage, self.alpha))


def open_model(config):
    """ModelLoader of the run's checkpoint; says if it has not grown to its end."""
    path = generation.checkpoint_of(config)
    model = ModelLoader(path, config.device, config.use_average)
    if model.stage < model.last or model.alpha < 1:
        size = np.prod([(4, 4, 4), *model.factors[1 : model.stage + 1]], axis=0).tolist()
        print(f"{path} is still growing, at {' x '.join(map(str, size))} voxels: volumes are enlarged.")
    return model


def show_data(config):
    """`--show`: a picture of the data at every size, a row for every class. Returns the new folder."""
    classes = dataset.read_classes(config.labels, config.data, split=config.split) if config.labels else None
    audit = dataset.audit_volumes(config.data, config.array_shape, split=config.split)
    factors, columns = growth_schedule(config.image_size, config.image_depth), config.num_image_tiles
    of = classes.of_volumes if classes else np.zeros(len(audit.paths), int)
    chosen = np.concatenate([np.resize(np.flatnonzero(of == n)[:columns], columns) for n in np.unique(of)])
    volumes = audit.volumes[torch.from_numpy(chosen)]
    with new_folder(config.results / "data") as folder:
        for stage in range(len(factors)):
            small = shrunk(volumes, factors, stage)
            size = "x".join(map(str, small.shape[:1:-1]))
            save_picture(contact_sheet(small, audit.affine, columns), folder / f"{stage}-{size}.png")
    names = f", a row for each of {', '.join(classes.names)}" if classes else ""
    print(f"Pictures of the data at {len(factors)} sizes{names} are in {folder}")
    return folder


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
    """The command line: train, look at the data, or generate."""
    config = parse_cli(ProgressiveConfig, argv)
    with one_line_errors():
        parallel.prepare_process(config.device, config.deterministic)
        if config.recreate is not None:
            generation.recreate_volume(config, open_model)
        elif config.show:
            show_data(config)
        elif config.generate_interpolation:
            generation.generate_interpolation(config, open_model)
        elif config.generate:
            generation.generate(config, open_model)
        else:
            training.run_from_command_line(config, train_from_folder)


if __name__ == "__main__":
    main()
