"""A network that learns, on the training volumes alone, what stays of a volume when it is copied badly.

Contrastive learning (NT-Xent, arXiv:2002.05709) as Dar et al. (arXiv:2307.01148) use it to find memorised
volumes: two views of a volume are to be alike, those of two volumes not.
"""

from volumetric.optional_layers import nt_xent
from volumetric.parallel import host_random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from trust.controls import KINDS
from trust.similarity import THUMBNAIL

WIDTHS = (32, 64, 128, 256)  # about a million weights
FEATURES = 128
STEPS, BATCH, RATE, TEMPERATURE = 400, 32, 1e-3, 0.1
VIEWS = ("mirrored", "shift", "rotated", "gamma 2", "bias field", "noise 10 %", "smoothed", "elastic 2")
CHANGES = 3  # of them, in a view


def view_of(array, rng):
    """A volume after some random changes, and cut at random. Shapes: THUMBNAIL -> THUMBNAIL"""
    low, high = array.min(), array.max()
    view = (array - low) / max(high - low, 1e-6)
    for kind in rng.permutation(VIEWS)[: rng.integers(1, CHANGES + 1)]:
        view = KINDS[kind](view, view, rng)
    start = [int(rng.integers(0, n // 8 + 1)) for n in THUMBNAIL]
    stop = [n - int(rng.integers(0, n // 8 + 1)) for n in THUMBNAIL]
    mask = np.zeros(THUMBNAIL, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    view = np.where(mask, view, view.mean())
    return ((view - view.mean()) / max(view.std(), 1e-6)).astype(np.float32)


class Encoder(nn.Module):
    """3D CNN. Shapes: (B, *THUMBNAIL) -> (B, FEATURES), norm 1"""

    def __init__(self):
        super().__init__()
        layers = []
        for one, other in zip((1, *WIDTHS), WIDTHS, strict=False):
            layers += [
                nn.Conv3d(one, other, 3, padding=1, stride=2),
                nn.GroupNorm(8, other),
            ]
            layers.append(nn.ReLU(inplace=True))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTHS[-1] * 2 * 2 * 1, FEATURES)

    def forward(self, x):
        return F.normalize(self.head(self.body(x[:, None]).flatten(1)), dim=1)


def train_encoder(looks, seed, steps=None):
    """Encoder trained on the training volumes.

    Args:
        looks: (n, *THUMBNAIL), `thumbnail` of their Prints, float32.
        seed: Of weights and views.
        steps: Training steps; None is STEPS.
    """
    torch.manual_seed(seed)
    network = Encoder()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    for step in tqdm(range(STEPS if steps is None else steps), "Training the encoder", unit="step"):
        rng = host_random(seed, step)
        chosen = looks[rng.permutation(len(looks))[:BATCH]]
        views = [torch.from_numpy(np.stack([view_of(array, rng) for array in chosen])) for _ in range(2)]
        loss = nt_xent(*map(network, views), TEMPERATURE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def similarities(network, looks, training):
    """Largest cosine similarity to a training volume, over both mirror states, and which it is.

    Args:
        network: Encoder.
        looks, training: (n, *THUMBNAIL), (|T|, *THUMBNAIL).

    Returns:
        ((n,), (n,) indices).
    """
    known = torch.cat([network(part) for part in torch.from_numpy(training).split(64)])
    best = torch.full((len(looks), len(training)), -1.0)
    for turned in (looks, looks[:, ::-1]):
        parts = torch.from_numpy(np.ascontiguousarray(turned)).split(64)
        best = torch.maximum(best, torch.cat([network(part) for part in parts]) @ known.T)
    value, index = best.max(dim=1)
    return value.numpy(), index.numpy()
