"""How long a training step takes and how much memory, against the plain formulation of the same model.

    python tests/benchmarks/step.py --config medium_v1 --batch_size 2
    python tests/benchmarks/step.py --config demo --amp bfloat16 --repeats 9
    python tests/benchmarks/step.py --config small --device cuda --amp float16 --batch_size 8

One process, the same weights, latents, noise and volumes; ways and phases take turns, medians are printed as
Markdown. Peak memory is of a process of its own for every way. FLOPs are counted from the shapes of the
convolutions, two for a multiplication with its addition.
"""

import functools
import gc
import itertools
import json
import math
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from volumetric.cli import check_device_name, check_fields, one_line_errors, option, parse_cli
from volumetric.dataset import SeededBatches, VolumeDataset, make_loader, open_data
from volumetric.parallel import Group, autocast, choose_device, host_random, prepare_process
from volumetric.pictures import contact_sheet
from volumetric.timing import seconds
from volumetric.training import rehearse_on_cpu

import nibabel as nib
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from stylegan2_pytorch import LATENT_DIM, PRECISIONS, STREAM_G, StyleGAN2, TrainConfig, Trainer, same_style

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tests.benchmarks.plain import PlainGAN  # noqa: E402

PUBLISHED = {"image_size": 128, "image_depth": 32}
CONFIGS = {
    "small": {**PUBLISHED, "network_capacity": 8, "fmap_max": 256},
    "medium_v1": {**PUBLISHED, "network_capacity": 8, "fmap_max": 512},
    "medium_v2": {**PUBLISHED, "network_capacity": 8, "fmap_max": 1024},
    "large": {**PUBLISHED, "network_capacity": 16, "fmap_max": 1024},
    "phantom": {"image_size": 64, "image_depth": 16, "network_capacity": 8, "fmap_max": 128},
    "demo": {"image_size": 32, "image_depth": 8, "network_capacity": 4, "fmap_max": 64},
}
PHASES = {
    "D": (False, False),
    "D + gradient penalty": (True, False),
    "G": (False, True),
    "G + path length": (True, True),
}
SHARES = {"D": 15 / 16, "D + gradient penalty": 1 / 16, "G": 31 / 32, "G + path length": 1 / 32}  # of a step
GENERATED = 8  # volumes generated at once
PREVIEWED = 4  # volumes of a preview


@dataclass(kw_only=True)
class StepConfig:
    """Measure the training step."""

    config: str = option(
        "medium_v1",
        "small, medium_v1, medium_v2, large (as published), phantom or demo.",
        choices=CONFIGS,
    )
    batch_size: int = option(2, "Volumes in a micro-batch.")
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)
    amp: str = option(
        "bfloat16", "Type of mixed precision, bfloat16 or float16.", choices=("bfloat16", "float16")
    )
    penalty_precision: str = option("float32", "Of penalties in mixed precision.", choices=PRECISIONS)
    repeats: int = option(3, "Measurements of every phase, after one that is not counted.")
    volumes: int = option(0, "Volumes that the loader is measured with; 0 leaves it out.", least=0)
    memory: bool = option(True, "Measure peak memory too.")
    checkpoint_activations: bool = option(
        False, "Let the fast ways compute their blocks again in the backward pass."
    )
    only: str | None = option(
        None,
        "plain, float32 or mixed: run every phase once, and print the peak memory of the process.",
        choices=("plain", "float32", "mixed"),
    )

    def __post_init__(self):
        check_fields(self)


class FixedTrainer(Trainer):
    """A Trainer that is given latents, noise and volumes, and draws the path length's noise alone."""

    def __init__(self, settings, batch_size, device="cpu", amp=None, checkpoint_activations=False, **chosen):
        config = TrainConfig(
            **chosen,
            **settings,
            batch_size=batch_size,
            gradient_accumulate_every=1,
            mixed_prob=0,
            num_image_tiles=math.isqrt(PREVIEWED),
            aug_prob=0,
            device=device,
            fp16=amp is not None,
            amp_dtype=amp or "auto",
            checkpoint_activations=checkpoint_activations,
        )
        super().__init__(config)
        generator = torch.Generator().manual_seed(1)
        draw = {"generator": generator}
        self.z = torch.randn(batch_size, LATENT_DIM, **draw).to(self.device)
        self.real = torch.rand(batch_size, 1, *config.shape, **draw).to(self.device)
        self.cube = torch.rand(batch_size, *3 * [config.image_size], 1, **draw).to(self.device)
        self.pl_mean = 0.0

    def sample_inputs(self, rng, generator, labels=None):
        noise = self.cube[:, : self.config.image_depth].contiguous()
        return same_style(self.GAN.S(self.z), self.GAN.G.num_layers), noise

    def next_real(self):
        return self.real.clone(), None

    def path_noise(self):
        """The noise of the path length, as `accumulate_generator` draws it."""
        _, generator = self.random(STREAM_G, 0)
        return torch.randn(self.real.shape, device=self.device, generator=generator)

    def run(self, phase):
        """One update in a phase."""
        regularized, generator = PHASES[phase]
        if generator:
            self.accumulate_generator(regularized, 1)
        else:
            self.accumulate_discriminator(regularized, 1)
        optimizer = self.G_opt if generator else self.D_opt
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)


class PlainTrainer:
    """The same step in its plain formulation, from the weights and inputs of a FixedTrainer.

    In float32, or in mixed precision, penalties too, of which the time is right and no number else.
    """

    def __init__(self, settings, fixed, dtype=torch.float32):
        self.GAN = PlainGAN(fixed.GAN, **settings).to(fixed.device)
        self.fixed, self.dtype = fixed, dtype
        adam = {"betas": (0.5, 0.9), "foreach": False}
        generator_parameters = [*self.GAN.G.parameters(), *self.GAN.S.parameters()]
        self.G_opt = torch.optim.Adam(generator_parameters, lr=1e-4, **adam)
        self.D_opt = torch.optim.Adam(self.GAN.D.parameters(), lr=1.5e-4, **adam)

    def run(self, phase, micro_batches=1):
        """One update in a phase."""
        regularized, generator = PHASES[phase]
        z, cube = self.fixed.z, self.fixed.cube
        for _ in range(micro_batches):
            with autocast(self.fixed.device, self.dtype, True):
                if generator:
                    y = self.fixed.path_noise() if regularized else None
                    loss = self.GAN.generator_losses(z, cube, y)
                else:
                    loss = self.GAN.discriminator_losses(self.fixed.real, z, cube, regularized)
            loss.backward()
        (self.G_opt if generator else self.D_opt).step()
        self.GAN.zero_grad(set_to_none=True)


def build(config, ways):
    """{way: trainer} for some of plain, float32 and mixed."""
    settings, made = CONFIGS[config.config], {}
    common = (settings, config.batch_size, config.device)
    if {"plain", "float32"} & set(ways):
        made["float32"] = FixedTrainer(*common, None, config.checkpoint_activations)
    if "plain" in ways:
        made["plain"] = PlainTrainer(settings, made["float32"])
    if "mixed" in ways:
        made["mixed"] = FixedTrainer(
            *common, config.amp, config.checkpoint_activations, penalty_precision=config.penalty_precision
        )
    return {way: made[way] for way in ways}


def resident_peak():
    """Peak resident memory of this process in MiB; getrusage's may be that of the process before exec."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


def peak_of(device):
    """Peak MiB of this process, or of its tensors on the GPU."""
    return torch.cuda.max_memory_allocated() // 2**20 if device.type == "cuda" else resident_peak()


def peak_memory(config, way):
    """Peak MiB that the four phases of a way add to a process, in a process of its own, and the predicted."""
    flags = {"config": config.config, "batch_size": config.batch_size, "device": config.device}
    flags |= {name: getattr(config, name) for name in ("amp", "penalty_precision", "checkpoint_activations")}
    flags["only"] = way
    command = [sys.executable, __file__, *(str(p) for k, v in flags.items() for p in (f"--{k}", v))]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def print_peak(config):
    """Run every phase of one way once and print the memory that it took, as JSON."""
    device = choose_device(config.device)
    torch.ones(8, 8) @ torch.ones(8, 8)
    before = peak_of(device)
    trainer = build(config, [config.only])[config.only]
    if config.only == "plain":
        trainer.fixed.GAN = trainer.fixed.G_opt = trainer.fixed.D_opt = None  # only its inputs are needed
        gc.collect()
    for phase in PHASES:
        trainer.run(phase)
    found = {"mib": peak_of(device) - before}
    if config.only != "plain" and device.type == "cpu":
        found["predicted"] = max(rehearse_on_cpu(Trainer, trainer.config, None, Group()).values()) // 2**20
    print(json.dumps(found))


def flops(config):
    """GFLOP of one volume through (G, D), forward."""
    with FakeTensorMode():
        GAN = StyleGAN2(**CONFIGS[config.config])
        styles = torch.empty(1, GAN.G.num_layers, LATENT_DIM)
        shape = (GAN.G.image_depth, GAN.G.image_size, GAN.G.image_size)
        counts = []
        for network, inputs in (
            (GAN.G, (styles, torch.empty(1, *shape, 1))),
            (GAN.D, (torch.empty(1, 1, *shape),)),
        ):
            with FlopCounterMode(display=False) as counter:
                network(*inputs)
            counts.append(counter.get_total_flops() / 1e9)
    return counts


def matrix_peak(device, dtype, size=4096):
    """GFLOP/s of a square matrix product, the best of five."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2e-9 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(5))


# Passes of one volume through (G, D) in a phase, a backward pass counted as two forward ones.
PASSES = {"D": (1, 6), "D + gradient penalty": (1, 10), "G": (3, 2), "G + path length": (7, 2)}


def generation(trainers, config):
    """Seconds a volume: ours, GENERATED at once in mixed precision, and plain, one by one."""
    fixed, plain = trainers["mixed"], trainers["plain"].GAN
    z = torch.randn(GENERATED, LATENT_DIM, device=fixed.device)
    cube = torch.rand(GENERATED, *3 * [fixed.config.image_size], 1, device=fixed.device)

    @torch.no_grad()
    def ours():
        with fixed.autocast():
            noise = cube[:, : fixed.config.image_depth].contiguous()
            fixed.GAN.G(same_style(fixed.GAN.S(z), fixed.GAN.G.num_layers), noise)

    @torch.no_grad()
    def one_by_one():
        for n in range(GENERATED):
            plain.generate(z[n : n + 1], cube[n : n + 1])

    times = {ours: [], one_by_one: []}
    for _ in range(config.repeats + 1):
        for function, found in times.items():
            found.append(seconds(function, fixed.device) / GENERATED)
    return [statistics.median(found[1:]) for found in times.values()]


def make_preview(trainer):
    """What a preview does for one of its networks: volumes and their sheet."""
    contact_sheet(trainer.preview_volumes(), np.eye(4), trainer.config.num_image_tiles)


def loading(config, device):
    """{cache: volumes/s} of `config.volumes` int16 volumes, each read once after a first batch."""
    size = CONFIGS[config.config]
    shape = (size["image_size"], size["image_size"], size["image_depth"])
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        (scratch / "volumes").mkdir()
        for n in range(config.volumes):
            array = host_random(n).integers(0, 1000, shape, dtype=np.int16)
            nib.save(nib.Nifti1Image(array, np.eye(4)), scratch / "volumes" / f"{n}.nii")
        for cache in ("ram", "disk"):
            audit = open_data(scratch / "volumes", shape, cache, scratch / "packed", Group())
            batches = SeededBatches(config.volumes, config.batch_size, 0.5, (0,))
            loader = make_loader(VolumeDataset(audit), batches, None, device)
            next(loader)
            rounds = config.volumes // config.batch_size - 1
            batches = itertools.islice(loader, rounds)
            time_taken = seconds(functools.partial(deque, batches, 0), device)
            found[cache] = rounds * config.batch_size / time_taken
    return found


def measure(config):
    """Print the table of all phases and ways."""
    device = choose_device(config.device)
    ways = ("plain", "float32", "mixed")
    trainers = build(config, ways)
    times = {(phase, way): [] for phase in PHASES for way in ways}
    for _ in range(config.repeats + 1):
        for (phase, way), found in times.items():
            found.append(seconds(lambda p=phase, w=way: trainers[w].run(p), device))
            gc.collect()
    median = {key: statistics.median(found[1:]) for key, found in times.items()}
    for way in ways:
        median["a step, on average", way] = sum(SHARES[p] * median[p, way] for p in PHASES)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    about = [config.config, f"batch {config.batch_size}", name, f"PyTorch {torch.__version__}"]
    about += [f"Python {platform.python_version()}", config.amp, f"penalties {config.penalty_precision}"]
    print(f"\n{', '.join(about)}, {date.today()}\n")
    print(
        "| phase | plain, s | float32, s | mixed, s | float32 / plain | mixed / plain |\n" + "|---" * 6 + "|"
    )
    for phase in [*PHASES, "a step, on average"]:
        p, f, m = (median[phase, way] for way in ways)
        print(f"| {phase} | {p:.3f} | {f:.3f} | {m:.3f} | {f / p:.2f} | {m / p:.2f} |")
    fast, single = generation(trainers, config)
    print(f"| generation, a volume | {single:.3f} | | {fast:.3f} | | {fast / single:.2f} |")
    preview = seconds(lambda: make_preview(trainers["mixed"]), device) / PREVIEWED
    print(f"| preview, a volume with its pictures | | | {preview:.3f} | | |")
    g, d = flops(config)
    done = config.batch_size * sum(SHARES[p] * (a * g + b * d) for p, (a, b) in PASSES.items())
    print(
        f"\nForward, of one volume: G {g:.1f}, D {d:.1f} GFLOP; a step of the fast model {done:.0f} GFLOP. ",
        end="",
    )
    for way, dtype in (("float32", torch.float32), ("mixed", getattr(torch, config.amp))):
        peak = matrix_peak(device, dtype)
        share = done / median["a step, on average", way] / peak
        print(f"Share of the matrix peak, {way}: {share:.2f} of {peak:.0f} GFLOP/s. ", end="")
    needed = config.batch_size / median["a step, on average", "mixed"]
    print(f"\n\nThe mixed step needs {needed:.3g} volumes/s.", end=" ")
    if config.volumes:
        speeds = ", ".join(f"{cache} {speed:.0f}" for cache, speed in loading(config, device).items())
        print(f"The loader gives, of {config.volumes} cached volumes, by --cache: {speeds}.", end="")
    print()
    if config.memory:
        del trainers
        gc.collect()
        found = {way: peak_memory(config, way) for way in ways}
        most = found["plain"]["mib"]
        shares = ", ".join(f"{way} {f['mib']} MiB ({f['mib'] / most:.2f})" for way, f in found.items())
        print(f"\nPeak memory of a process in the four phases, beside what an empty one has: {shares}.")
        predicted = [f"{way} {f['predicted']} MiB" for way, f in found.items() if "predicted" in f]
        if predicted:
            print(f"--dry_run predicts, for tensors: {', '.join(predicted)}.")


def main(argv=None):
    """The command line."""
    config = parse_cli(StepConfig, argv)
    with one_line_errors():
        prepare_process(config.device)
        print_peak(config) if config.only else measure(config)


if __name__ == "__main__":
    main()
