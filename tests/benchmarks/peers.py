"""What users would take instead: diffusion models of about our size, trained as long on the same phantoms.

    python tests/benchmarks/learning.py --output learning
    python tests/benchmarks/peers.py --output learning
    python tests/benchmarks/peers.py --output learning --only flow --seeds 0 --table True

Both are 3D U-Nets of MONAI. `ddpm` is denoising diffusion with its schedulers: 1,000 timesteps of training,
v-prediction (arXiv:2202.00512), sampled by DDIM (arXiv:2010.02502). `flow` is rectified flow
(arXiv:2209.03003), whose loss and Euler steps are written here: MONAI 1.6.1's scheduler begins at a timestep
that it has not trained. Volumes are in [-1, 1]; batches of 8; Adam; an average of the weights generates.

A training is one process with one thread, and counts the seconds that this has computed in training steps; it
goes on where it was interrupted, and is scored after each of --minutes as learning.py scores ours, of which
peers.md has the rows whose steps took no longer (--step_seconds, of one thread, measured beside).
"""

import contextlib
import csv
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from volumetric.cli import check_fields, one_line_errors, option, parse_cli  # noqa: E402
from volumetric.files import atomic_path  # noqa: E402
from volumetric.pictures import axial_pictures, save_picture, tile  # noqa: E402

import learning  # noqa: E402

from MedicalNet.noise import as_read  # noqa: E402

KINDS = {"ddpm": "denoising diffusion, DDIM", "flow": "rectified flow, Euler"}
STEPS = {"ddpm": (25,), "flow": (10, 25)}  # of sampling
TIMESTEPS = 1000  # of the noise in training
CHANNELS, BATCH, SAMPLED_AT_ONCE = (16, 32, 64), 8, 32
AVERAGE = 0.999  # decay of the average, less in the beginning
SAVE_EVERY = 100  # steps
SCORES = ("FD", "FDv", "P", "R", "R10", "C", "spread", "max")


@dataclass(kw_only=True)
class PeersConfig:
    """Train diffusion models on the phantoms of learning.py, and score them."""

    output: str = option("learning", "Folder of learning.py, with its phantoms and scores.")
    only: str | None = option(None, "One kind; None takes both.", choices=KINDS)
    seeds: tuple = option((0, 1, 2), "Seeds of the trainings.")
    minutes: tuple = option((10, 30), "Minutes of training after which they are scored.")
    learning_rate: float = option(5e-4, "Of Adam.")
    step_seconds: float = option(0.53, "Seconds of a step of ours.")
    jobs: int = option(2, "Trainings at a time, with one thread each.")
    device: str = option("cpu", "cpu or cuda.")
    table: bool = option(False, "Only write the table of what is there.")
    alone: bool = option(False, "Train in this process: one kind and one seed.")

    def __post_init__(self):
        check_fields(self)


class Peer:
    """A diffusion model, its average, and what it has learned from.

    Args:
        kind: ddpm or flow.
        volumes: (N, 1, Z, X, Y) in [-1, 1].
        config: PeersConfig.
        seed: Of weights and draws.
    """

    def __init__(self, kind, volumes, config, seed):
        torch.manual_seed(seed)
        self.kind, self.volumes, self.device = kind, volumes, torch.device(config.device)
        self.model, self.average = self.network(), self.network().requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.Adam(self.model.parameters(), config.learning_rate)
        self.step, self.seconds = 0, 0.0

    def network(self):
        """A U-Net of MONAI."""
        from monai.networks.nets import DiffusionModelUNet

        return DiffusionModelUNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=CHANNELS,
            attention_levels=(False, False, True),
            num_res_blocks=1,
            num_head_channels=32,
            norm_num_groups=16,
        ).to(self.device)

    def train_step(self):
        """One update by a batch; its seconds are counted."""
        begun = time.process_time() if self.device.type == "cpu" else time.time()
        x = self.volumes[torch.randint(len(self.volumes), (BATCH,))].to(self.device)
        noise = torch.randn_like(x)
        if self.kind == "flow":  # the straight way from data at t = 0 to noise at t = 1
            t = torch.rand(BATCH, device=self.device)
            part = t.view(-1, 1, 1, 1, 1)
            predicted, target = self.model((1 - part) * x + part * noise, t * TIMESTEPS), noise - x
        else:
            scheduler, t = (
                self.scheduler("DDPMScheduler"),
                torch.randint(TIMESTEPS, (BATCH,), device=self.device),
            )
            target = scheduler.get_velocity(x, noise, t)
            predicted = self.model(scheduler.add_noise(x, noise, t), t)
        self.optimizer.zero_grad()
        (predicted - target).square().mean().backward()
        self.optimizer.step()
        self.step += 1
        decay = min(AVERAGE, self.step / (self.step + 10))
        torch._foreach_lerp_([*self.average.parameters()], [*self.model.parameters()], 1 - decay)
        self.seconds += (time.process_time() if self.device.type == "cpu" else time.time()) - begun

    def scheduler(self, name):
        """A scheduler of MONAI for v-prediction."""
        from monai.networks import schedulers

        how = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}
        return getattr(schedulers, name)(TIMESTEPS, prediction_type="v_prediction", **how)

    @torch.no_grad()
    def sample(self, number, steps):
        """Volumes of the average, and seconds for each. Shapes: -> [(1, Z, X, Y)] in [0, 1]"""
        generator, volumes, begun = torch.Generator().manual_seed(10**6), [], time.time()
        for start in range(0, number, SAMPLED_AT_ONCE):
            size = min(SAMPLED_AT_ONCE, number - start)
            x = torch.randn(size, *self.volumes.shape[1:], generator=generator).to(self.device)
            x = self.flow(x, steps) if self.kind == "flow" else self.denoise(x, steps)
            volumes += list(((x + 1) / 2).clamp(0, 1).cpu())
        return volumes, (time.time() - begun) / number

    def flow(self, x, steps):
        """Euler steps from noise to data."""
        for n in range(steps, 0, -1):
            t = torch.full((len(x),), n / steps * TIMESTEPS, device=self.device)
            x = x - self.average(x, t) / steps
        return x

    def denoise(self, x, steps):
        """DDIM steps from noise to data."""
        scheduler = self.scheduler("DDIMScheduler")
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x, _ = scheduler.step(self.average(x, t.expand(len(x)).to(self.device)), t, x)
        return x

    def parts(self):
        """{name: what has a state}."""
        return {"model": self.model, "average": self.average, "optimizer": self.optimizer}

    def save(self, path):
        """Keep all that the training needs to go on."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        state |= {"step": self.step, "seconds": self.seconds, "random": torch.get_rng_state()}
        with atomic_path(path) as part:
            torch.save(state, part)

    def load(self, path):
        """Go on from what was kept."""
        state = torch.load(path, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["random"])


def train(kind, seed, config):
    """Train one model to the last of the minutes, and score it on the way."""
    folder = Path(config.output)
    kept, scored = folder / "peers" / f"{kind}_s{seed}.pt", folder / "peers" / f"{kind}_s{seed}.json"
    for made in (kept.parent, folder / "pictures"):
        made.mkdir(parents=True, exist_ok=True)
    volumes = learning.read_all(learning.phantoms(folder / "train_1024", learning.TRAINED, 0))
    peer = Peer(kind, torch.from_numpy(2 * volumes - 1)[:, None], config, seed)
    if kept.exists():
        peer.load(kept)
    rows = json.loads(scored.read_text(encoding="utf-8")) if scored.exists() else []
    judge = learning.Judge(
        learning.read_all(learning.phantoms(folder / "held_out", learning.HELD_OUT, 10**6))
    )
    for minutes in sorted(set(config.minutes) - {row["minutes"] for row in rows}):
        while peer.seconds < 60 * minutes:
            peer.train_step()
            if peer.step % SAVE_EVERY == 0:
                peer.save(kept)
        peer.save(kept)
        rows += scores_of(peer, seed, minutes, judge, folder / "pictures")
        with atomic_path(scored) as part:
            part.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def scores_of(peer, seed, minutes, judge, pictures):
    """A row for each number of sampling steps."""
    rows, weights = [], sum(p.numel() for p in peer.model.parameters())
    for steps in STEPS[peer.kind]:
        volumes, seconds = peer.sample(learning.SAMPLES, steps)
        read = as_read(volumes)
        about = {"kind": peer.kind, "seed": seed, "minutes": minutes, "sampling": steps, "step": peer.step}
        found = judge(read) | {"max": float(np.median([float(v.max()) for v in volumes]))}
        rows.append({**about, "weights": weights, "seconds": seconds, **found})
        sheet = tile(axial_pictures(read[:16, None], np.eye(4))[1], 8)
        save_picture(sheet, pictures / f"{peer.kind}_s{seed}_{minutes}min_{steps}.png", 512)
    return rows


def ours(folder, config):
    """Rows of `robust` by learning.py: of each seed the last checkpoint within each of the minutes."""
    rows = []
    for seed in config.seeds:
        kept = folder / "scores" / f"relativistic_s{seed}_3000.json"
        found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
        for minutes in config.minutes:
            within = [r for r in found if r["step"] * config.step_seconds <= 60 * minutes]
            within = [r for r in within if r["networks"] == "average"]
            if within:
                last = max(within, key=lambda row: row["step"])
                rows.append({"kind": "robust", "minutes": minutes, "sampling": 1, **last})
    return rows


def write_table(folder, config):
    """peers.csv and peers.md of all rows that there are."""
    rows = ours(folder, config)
    for path in sorted((folder / "peers").glob("*.json")):
        rows += json.loads(path.read_text(encoding="utf-8"))
    names = ("kind", "seed", "minutes", "step", "sampling", "seconds", *SCORES)
    with atomic_path(folder / "peers.csv") as part, open(part, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in sorted(rows, key=lambda r: (r["minutes"], r["kind"], r["sampling"], r["seed"])):
        values = [row.get(name, "") for name in names]
        lines.append(f"| {' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in values)} |")
    with atomic_path(folder / "peers.md") as part:
        part.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


def train_apart(kind, seed, config):
    """The same in a process of its own, with one thread."""
    flags = {"only": kind, "seeds": seed, "output": config.output, "device": config.device, "alone": True}
    flags |= {"learning_rate": config.learning_rate, "minutes": f"[{','.join(map(str, config.minutes))}]"}
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in flags.items())]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def main(argv=None):
    """The command line."""
    config = parse_cli(PeersConfig, argv)
    with one_line_errors():
        folder = Path(config.output)
        kinds = list(KINDS) if config.only is None else [config.only]
        planned = [] if config.table else [(kind, seed) for seed in config.seeds for kind in kinds]
        if config.alone:
            torch.set_num_threads(1)
            train(*planned[0], config)
            return
        with ThreadPoolExecutor(config.jobs) as pool, contextlib.suppress(KeyboardInterrupt):
            list(pool.map(lambda one: train_apart(*one, config), planned))
        write_table(folder, config)


if __name__ == "__main__":
    main()
