"""Which vessels and variants are in generated volumes: a count by a network that learned them on phantoms.

    python tests/benchmarks/variants.py --output variants --generated results/cow/generated-model_33
    python tests/benchmarks/variants.py --output variants --generated small --image_size 32 --image_depth 8
    python tests/benchmarks/variants.py --output variants

A small 3D U-Net is trained on phantoms, whose labels and variants are known: it segments the vessels, and
tells the state (normal, thin, absent or fetal) of every segment that varies. How often it is right on
phantoms that it has not seen stands beside every number. A vessel is present in a volume if at least half as
many voxels are its as in the tenth of the phantoms that have the least of it. Intervals are Wilson's, 95 %.

The output folder holds the trained network, which is kept, counts.json and counts.md.
"""

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from MedicalNet.groups import wilson  # noqa: E402
from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli  # noqa: E402
from volumetric.files import array_to_volume, atomic_path, find_volumes, read_volume  # noqa: E402

SEGMENTS = ("A1_R", "A1_L", "P1_R", "P1_L", "Pcom_R", "Pcom_L", "Acom")
STATES = ("normal", "thin", "absent", "fetal")
# TopCoW's ids of the vessels that a volume is looked through for.
VESSELS = {1: "BA", 2: "R-PCA", 3: "L-PCA", 4: "R-ICA", 5: "R-MCA", 6: "L-ICA", 7: "L-MCA"}
VESSELS |= {8: "R-Pcom", 9: "L-Pcom", 10: "Acom", 11: "R-ACA", 12: "L-ACA"}
LARGE = ("BA", "R-PCA", "L-PCA", "R-ICA", "R-MCA", "L-ICA", "L-MCA", "R-ACA", "L-ACA")
WIDTH = 12  # channels of the network's first stage
UNSEEN = 256  # phantoms that it is tested on


@dataclass(kw_only=True)
class VariantsConfig:
    """Count vessels and variants in generated volumes."""

    output: str = option("variants", "Folder for the network and the counts.")
    generated: str | None = option(
        None, "Folder of generated volumes; None only trains and tests the network."
    )
    image_size: int = option(64, "In-plane edge, voxels.")
    image_depth: int = option(16, "Axial slices.")
    phantoms: int = option(1024, "Phantoms that the network is trained on.")
    steps: int = option(1500, "Training steps of the network, of 8 phantoms.")

    def __post_init__(self):
        check_fields(self)


def block(channels_in, channels_out):
    """Two convolutions with group normalisation. Shapes: (B, C_in, ...) -> (B, C_out, ...)"""
    layers = []
    for c in (channels_in, channels_out):
        layers += [nn.Conv3d(c, channels_out, 3, padding=1), nn.GroupNorm(4, channels_out), nn.ReLU()]
    return nn.Sequential(*layers)


class Counter(nn.Module):
    """U-Net of three stages with a second head for the segments' states.

    Shapes: (B, 1, D, H, W) in [0, 1] -> (B, 13, D, H, W), (B, segments, states)
    """

    def __init__(self, width=WIDTH):
        super().__init__()
        sizes = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(block(*pair) for pair in zip([1, *sizes], sizes, strict=False))
        self.up = nn.ModuleList([block(sizes[2] + sizes[1], sizes[1]), block(sizes[1] + sizes[0], sizes[0])])
        self.segment = nn.Conv3d(sizes[0], 1 + max(VESSELS), 1)
        self.tell = nn.Sequential(
            nn.Conv3d(sizes[2] + 1 + max(VESSELS), 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool3d((2, 4, 4)),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 32, len(SEGMENTS) * len(STATES)),
        )

    def forward(self, x):
        kept = []
        for n, stage in enumerate(self.down):
            x = stage(F.max_pool3d(x, 2) if n else x)
            kept.append(x)
        for stage, skip in zip(self.up, reversed(kept[:-1]), strict=True):
            x = stage(torch.cat([F.interpolate(x, skip.shape[2:], mode="trilinear"), skip], dim=1))
        labels = self.segment(x)
        seen = F.adaptive_max_pool3d(labels.softmax(dim=1), kept[-1].shape[2:])
        states = self.tell(torch.cat([kept[-1], seen], dim=1))
        return labels, states.view(len(x), len(SEGMENTS), len(STATES))


def make_phantoms(config, name, number, seed):
    """(volumes (N, 1, D, H, W), labels (N, D, H, W), states (N, segments)) of phantoms, made unless there."""
    folder = Path(config.output) / f"{name}_{config.image_size}x{config.image_depth}"
    if not (folder / "volumes" / "variants.csv").exists():
        flags = [
            "--output",
            folder / "volumes",
            "--labels",
            folder / "labels",
            "--num",
            number,
            "--seed",
            seed,
        ]
        flags += ["--image_size", config.image_size, "--image_depth", config.image_depth]
        subprocess.run([sys.executable, ROOT / "sample_data" / "phantom.py", *map(str, flags)], check=True)
    with open(folder / "volumes" / "variants.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:number]
    maps = [nib.load(folder / "labels" / row["file"]).get_fdata() for row in rows]
    labels = torch.from_numpy(np.stack([array_to_volume(m)[0] for m in maps])).long()
    states = torch.tensor([[STATES.index(row[name]) for name in SEGMENTS] for row in rows])
    return read_all([folder / "volumes" / row["file"] for row in rows]), labels, states


def read_all(paths):
    """Volumes of some files. Shapes: -> (N, 1, D, H, W)"""
    return torch.from_numpy(np.stack([read_volume(path)[0] for path in paths]))


def train(config):
    """Counter trained on phantoms, or the one that is there."""
    kept = Path(config.output) / f"counter_{config.image_size}x{config.image_depth}.pt"
    torch.manual_seed(0)
    network = Counter()
    if kept.exists():
        network.load_state_dict(torch.load(kept, weights_only=True))
        return network.eval()
    volumes, labels, states = make_phantoms(config, "train", config.phantoms, 3 * 10**6)
    share = torch.bincount(labels.flatten(), minlength=1 + max(VESSELS)).clamp_min(1).float()
    of_labels = (share.sum() / share).pow(0.5)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=config.steps)
    for _ in tqdm(range(config.steps), "Training the counter", unit="step"):
        chosen = torch.randint(len(volumes), (8,))
        x = volumes[chosen]
        x = x * (0.8 + 0.4 * torch.rand(8, 1, 1, 1, 1)) + 0.02 * torch.randn(x.shape)  # scanners differ
        found, told = network(x)
        loss = F.cross_entropy(found, labels[chosen], of_labels / of_labels.mean())
        loss = loss + F.cross_entropy(told.flatten(0, 1), states[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with atomic_path(kept) as part:
        torch.save(network.state_dict(), part)
    return network.eval()


@torch.no_grad()
def count(network, volumes):
    """(voxels of every label (N, labels), states (N, segments), label maps (N, D, H, W)) of volumes."""
    maps, states = [], []
    for chunk in volumes.split(16):
        found, told = network(chunk)
        maps.append(found.argmax(dim=1))
        states.append(told.argmax(dim=2))
    maps = torch.cat(maps)
    voxels = torch.stack([(maps == n).flatten(1).sum(dim=1) for n in range(1 + max(VESSELS))], dim=1)
    return voxels, torch.cat(states), maps


def balanced(found, true):
    """Mean share of right answers where it is there and where it is not: 0.5 for one answer to everything."""
    right = [float((found == true)[true == value].float().mean()) for value in true.unique()]
    return sum(right) / len(right)


def share(hits, number):
    """Share and its 95 % interval."""
    return {"share": hits / number, "interval_95": wilson(hits, number)}


def compare(network, config):
    """Accuracy on unseen phantoms, and shares in phantoms and in generated volumes."""
    volumes, labels, states = make_phantoms(config, "unseen", UNSEEN, 4 * 10**6)
    voxels, told, maps = count(network, volumes)
    generated = None
    if config.generated is not None:
        paths = find_volumes(config.generated, "--generated")
        made = read_all([path for path in paths if "deviation" not in path.name])
        if made.shape[2:] != volumes.shape[2:]:
            shape = tuple(made.shape[3:]) + tuple(made.shape[2:3])
            raise UserError(
                f"--generated {config.generated} has volumes of {shape} voxels: give --image_size."
            )
        generated = count(network, made)
    table = {}
    for n, name in VESSELS.items():
        there = (labels == n).flatten(1).sum(dim=1) > 0
        least = voxels[there, n].float().quantile(0.1).item() / 2
        inter = ((maps == n) & (labels == n)).sum()
        row = {"dice": float(2 * inter / ((maps == n).sum() + (labels == n).sum())), "voxels": least}
        present = voxels[:, n] > least
        row["balanced_accuracy"] = balanced(present, there)
        row["truth"] = share(int(there.sum()), len(there))
        row["phantoms"] = share(int(present.sum()), len(present))
        if generated is not None:
            row["generated"] = share(int((generated[0][:, n] > least).sum()), len(generated[0]))
        table[name] = row
    for s, segment in enumerate(SEGMENTS):
        for k, state in enumerate(STATES):
            if not (states[:, s] == k).any():
                continue
            row = {"balanced_accuracy": balanced(told[:, s] == k, states[:, s] == k)}
            row["truth"] = share(int((states[:, s] == k).sum()), len(states))
            row["phantoms"] = share(int((told[:, s] == k).sum()), len(told))
            if generated is not None:
                row["generated"] = share(int((generated[1][:, s] == k).sum()), len(generated[1]))
            table[f"{segment} {state}"] = row
    return table


def shown(result):
    """0.93 [0.89, 0.96]"""
    return "" if result is None else "{:.2f} [{:.2f}, {:.2f}]".format(result["share"], *result["interval_95"])


def write(table, folder):
    """counts.json, and counts.md as it is printed."""
    lines = ["| | balanced accuracy | Dice | phantoms, truth | phantoms, counted | generated, counted |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, row in table.items():
        dice = f"{row['dice']:.2f}" if "dice" in row else ""
        shares = [shown(row.get(kind)) for kind in ("truth", "phantoms", "generated")]
        lines.append(f"| {name} | {row['balanced_accuracy']:.2f} | {dice} | {' | '.join(shares)} |")
    with atomic_path(folder / "counts.json") as part:
        part.write_text(json.dumps(table, indent=1), encoding="utf-8")
    with atomic_path(folder / "counts.md") as part:
        part.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


def main(argv=None):
    """The command line."""
    config = parse_cli(VariantsConfig, argv)
    with one_line_errors():
        folder = Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        write(compare(train(config), config), folder)


if __name__ == "__main__":
    main()
