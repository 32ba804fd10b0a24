"""Do synthetic nodules help a classifier? Trained on real ones, on real and synthetic ones, tested on unseen.

    python tests/benchmarks/classification.py --real n20 --synthetic made20 --test unseen --output classified

Folders of volumes in folders of their classes. The generator must have seen the volumes of --real and no
others. The classifier is MONAI's DenseNet, small; every arm has as many steps. table.md has the accuracy of
every seed on the unseen volumes, with Wilson's interval of the pooled one.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import check_fields, one_line_errors, option, parse_cli
from volumetric.collection import find_volumes, read
from volumetric.files import new_folder
from volumetric.parallel import host_random, prepare_process
from volumetric.rates import wilson

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(kw_only=True)
class ClassificationConfig:
    """Compare classifiers trained on real volumes, on synthetic ones, and on both."""

    real: str = option("real", "Folder of real volumes, in folders of their classes.")
    synthetic: str = option("synthetic", "Folder of generated ones, likewise.")
    test: str = option("test", "Folder of unseen real ones, likewise.")
    output: str = option("classified", "New folder for table.md and results.json.", folder=True)
    steps: int = option(300, "Training steps of batch 16.")
    seeds: int = option(3, "Trainings of each arm.", most=100)

    def __post_init__(self):
        check_fields(self)


def read_set(folder, names=None):
    """Volumes of a folder, each in [0, 1] by its own minimum and maximum, classes, names of classes."""
    paths = find_volumes(folder)
    of = [path.relative_to(folder).parts[0] for path in paths]
    names = sorted(set(of)) if names is None else names
    volumes = []
    for path in paths:
        array = read(path).array
        volumes.append((array - array.min()) / (array.max() - array.min()))
    labels = np.array([names.index(name) for name in of])
    return torch.from_numpy(np.stack(volumes))[:, None], torch.from_numpy(labels), names


def train(volumes, labels, number, steps, seed):
    """A classifier after some steps; volumes are flipped along every axis by chance."""
    from monai.networks.nets import DenseNet

    torch.manual_seed(seed)
    network = DenseNet(3, 1, number, init_features=16, growth_rate=8, block_config=(2, 2, 2))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rng = host_random(seed)
    for _ in range(steps):
        chosen = torch.from_numpy(rng.integers(len(volumes), size=16))
        x = volumes[chosen]
        for axis in (2, 3, 4):
            flips = torch.from_numpy(rng.random(16) < 0.5).view(-1, 1, 1, 1, 1)
            x = torch.where(flips, x.flip(axis), x)
        loss = F.cross_entropy(network(x), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return network.eval()


@torch.no_grad()
def answers(network, volumes):
    """Classes of volumes. Shapes: (N, 1, X, Y, Z) -> (N,)"""
    return torch.cat([network(part).argmax(dim=1) for part in volumes.split(32)])


def main(argv=None):
    """The command line."""
    config = parse_cli(ClassificationConfig, argv)
    with one_line_errors():
        prepare_process("cpu")
        real, real_labels, names = read_set(config.real)
        made, made_labels, _ = read_set(config.synthetic, names)
        unseen, truth, _ = read_set(config.test, names)
        arms = {
            "real": (real, real_labels),
            "real and synthetic": (torch.cat([real, made]), torch.cat([real_labels, made_labels])),
            "synthetic alone": (made, made_labels),
        }
        folder, results = new_folder(Path(config.output)), {}
        lines = [
            f"Trained on {len(real)} real and {len(made)} synthetic volumes, tested on {len(unseen)}.",
            "",
        ]
        lines += ["| trained on | accuracy of each seed | mean | 95 % interval | " + " | ".join(names) + " |"]
        lines += ["|---" * (4 + len(names)) + "|"]
        for arm, (volumes, labels) in arms.items():
            found = []
            for seed in range(config.seeds):
                network = train(volumes, labels, len(names), config.steps, seed)
                found.append(answers(network, unseen))
                print(arm, seed, float((found[-1] == truth).float().mean()), flush=True)
            right = torch.stack(found) == truth
            each, mean = right.float().mean(dim=1).tolist(), float(right.float().mean())
            low, high = wilson(round(mean * len(truth)), len(truth))
            of = [float(right[:, truth == n].float().mean()) for n in range(len(names))]
            results[arm] = {"seeds": each, "mean": mean, "interval": [low, high], "classes": of}
            cells = [", ".join(f"{a:.2f}" for a in each), f"{mean:.2f}", f"{low:.2f} to {high:.2f}"]
            lines.append("| " + " | ".join([arm, *cells, *(f"{a:.2f}" for a in of)]) + " |")
        (folder / "table.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
        (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
