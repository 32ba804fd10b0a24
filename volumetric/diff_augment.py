"""3D DiffAugment and what goes beyond it: augmentations with gradients, and an adaptive probability.

DiffAugment (Zhao et al. 2020, arXiv:2006.10738) has translation, cutout and contrast; rotation, scaling, bias
field, noise and blur are for MR volumes. Adaptive augmentation: Karras et al. 2020, arXiv:2006.06676.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation

from volumetric.parallel import Arriving, device_random, to_device


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
        start = to_device(start, volumes.device).view(-1, 1)
        position = torch.arange(size, device=volumes.device)
        covered = (position >= start) & (position < start + box)  # (B, size)
        shape = [len(volumes), 1, 1, 1, 1]
        shape[axis] = size
        inside = inside * covered.view(shape)
    return volumes * (1 - inside).to(volumes.dtype)


def contrast(volumes, rng):
    """Scale every volume about its mean by a factor in [0.5, 1.5)."""
    factor = to_device(rng.random(len(volumes)) + 0.5, volumes.device).to(volumes.dtype).view(-1, 1, 1, 1, 1)
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
    grid = F.affine_grid(to_device(theta, volumes.device), list(volumes.shape), align_corners=False)
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
    coarse = to_device(2 * rng.random(math.prod(shape)) - 1, volumes.device).reshape(shape).to(volumes.dtype)
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

    sigma = to_device(rng.random(len(volumes)) * strength, volumes.device).to(volumes.dtype).clamp_min(1e-3)
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


UNSTEADY = {"rotation", "scaling", "blur"}  # their gradients on a GPU are sums in no fixed order


class AdaptiveAugmentation:
    """Adaptive discriminator augmentation (Karras et al. 2020, arXiv:2006.06676, Sec. 3, Eq. 1).

    r = mean sign of how much more real D finds a real volume than generated ones on average: 0 without
    overfitting, 1 when none is mistaken. The probability of augmentation rises while r is above its target.

    Differs from the paper: it takes the sign of D's output itself, which says nothing under a loss that a
    common offset of all outputs does not change (relativistic, dual contrastive).

    Args:
        prob: Probability at the start.
        target: The wanted r.
        volumes: Volumes in which the probability can go from 0 to 1.
    """

    def __init__(self, prob, target, volumes):
        self.prob, self.target, self.volumes = prob, target, volumes
        self.signs, self.seen = 0.0, 0  # since the last update,
        self.arriving = (0.0, 0)  # and between the last two

    def observe(self, real_logits, fake_logits, sense):
        """Count D's outputs for real and generated volumes.

        Args:
            real_logits, fake_logits: (B,), (B,).
            sense: 1 if D's output is high for what it takes for real, -1 if it is low.
        """
        ahead = sense * (real_logits.detach() - fake_logits.detach().mean())
        self.signs = self.signs + ahead.sign().sum()
        self.seen += len(real_logits)

    def update(self):
        """Move the probability by the share of `volumes` that was seen between the last two updates.

        So late, the sum of signs has arrived from the device, and no step waits for it.
        """
        signs, seen = self.arriving
        if seen:
            change = math.copysign(seen / self.volumes, float(signs) / seen - self.target)
            self.prob = min(max(self.prob + change, 0.0), 1.0)
        self.arriving = (Arriving(self.signs), self.seen)
        self.signs, self.seen = 0.0, 0

    def state(self):
        """What a checkpoint holds."""
        arriving = (float(self.arriving[0]), self.arriving[1])
        return {"prob": self.prob, "signs": float(self.signs), "seen": self.seen, "arriving": arriving}

    def load(self, state):
        """Take up the state of a checkpoint."""
        self.prob, self.signs, self.seen = state["prob"], state["signs"], state["seen"]
        self.arriving = tuple(state.get("arriving", self.arriving))


def augment_each(volumes, prob, types, rng, spacing=(1, 1, 1), left_right=-2):
    """`augment`, decided for each volume by itself, so that D sees as many augmented of every kind."""
    if not prob:
        return volumes
    chosen, flipped = rng.random(len(volumes)) < prob, rng.random(len(volumes)) < 0.5
    chosen, flipped = (to_device(m, volumes.device).view(-1, 1, 1, 1, 1) for m in (chosen, flipped))
    augmented = torch.where(flipped, volumes.flip(left_right), volumes)
    return torch.where(chosen, diff_augment(augmented, types, rng, spacing), volumes)


def augment(volumes, prob, types, rng, spacing=(1, 1, 1), left_right=-2):
    """With probability `prob`, a left-right flip with probability 0.5, and `diff_augment`; else no change.

    Args:
        volumes: (B, 1, D, H, W).
        prob: For the whole micro-batch.
        types, rng, spacing: As for `diff_augment`.
        left_right: Axis from left to right.
    """
    if prob and rng.random() < prob:
        if rng.random() < 0.5:
            volumes = volumes.flip(left_right)
        volumes = diff_augment(volumes, types, rng, spacing)
    return volumes
