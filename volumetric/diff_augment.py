"""3D DiffAugment and what goes beyond it: augmentations with gradients, and an adaptive probability.

DiffAugment (Zhao et al. 2020, arXiv:2006.10738) has translation, cutout and contrast; rotation, scaling, bias
field, noise and blur are for MR volumes. Adaptive augmentation: Karras et al. 2020, arXiv:2006.06676.
"""

import math

from volumetric.parallel import Arriving, device_random, host_random, to_device

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation


class Augmentation:
    """An augmentation in two parts: what is drawn, on the host, and what is computed with it, on any device.

    Called with volumes (B, 1, D, H, W) and a numpy Generator, and what `draw` takes beside it, it does both;
    every volume gets its own draw.

    Args:
        draw: Function of (rng, shape of the volumes, device, ...) -> tensor on the device, (B, ...).
        apply: Function of (volumes, that tensor) -> volumes.
        interpolates: It needs float32.
        by_size: What it draws depends on the size of a voxel, the first of "...".
    """

    def __init__(self, draw, apply, interpolates=False, by_size=False):
        self.draw, self.apply, self.interpolates, self.by_size = draw, apply, interpolates, by_size

    def __call__(self, volumes, rng, *how, **more):
        return self.computed(volumes, self.draw(rng, volumes.shape, volumes.device, *how, **more))

    def computed(self, volumes, drawn):
        """The volumes augmented by what was drawn. Shapes: (B, 1, D, H, W) -> the same"""
        if not self.interpolates:
            return self.apply(volumes, drawn)
        with torch.autocast(volumes.device.type, enabled=False):
            return self.apply(volumes.float(), drawn).to(volumes.dtype)


def draw_each(types, rng, shape, device, spacing=(1, 1, 1)):
    """What augmentations need, {name: tensor}, drawn in this order.

    Args:
        types: Names out of AUGMENTATIONS.
        rng: numpy Generator.
        shape: (B, 1, D, H, W).
        device: torch.device of the tensors.
        spacing: Size (d, h, w) of a voxel, mm.
    """
    kinds = {name: AUGMENTATIONS[name] for name in types}
    return {
        name: kind.draw(rng, shape, device, *([spacing] if kind.by_size else []))
        for name, kind in kinds.items()
    }


def diff_augment(volumes, types, rng, spacing=(1, 1, 1)):
    """Augment a micro-batch with gradients (DiffAugment, Zhao et al. 2020, arXiv:2006.10738, Sec. 3).

    Args:
        volumes: (B, 1, D, H, W).
        types: Names out of AUGMENTATIONS, applied in this order.
        rng: numpy Generator; every volume gets its own draw.
        spacing: Size (d, h, w) of a voxel, mm.
    """
    for name, drawn in draw_each(types, rng, volumes.shape, volumes.device, spacing).items():
        volumes = AUGMENTATIONS[name].computed(volumes, drawn)
    return volumes


def draw_shifts(rng, shape, device, ratio=0.125):
    """Shifts of up to `ratio` of each axis, in whole voxels. Shapes: -> (B, 3)"""
    reach = [int(size * ratio + 0.5) for size in shape[2:]]
    shifts = [rng.integers(-r, r + 1, shape[0]) for r in reach]
    return to_device(np.stack(shifts, axis=1), device)


def shift_volumes(volumes, shifts):
    """Move volume b by shifts[b] = (d, h, w) voxels; zeros enter, and shift 0 is the identity.

    A product with a matrix of 0 and 1 for each axis loses no digit, and the shifts stay on their device.

    Shapes: (B, 1, D, H, W), (B, 3) -> (B, 1, D, H, W)
    """
    matrices = []
    for axis, size in enumerate(volumes.shape[2:]):
        places = torch.arange(size, device=volumes.device)
        sources = places - shifts[:, axis, None]  # (B, size)
        matrices.append((sources[..., None] == places).to(volumes.dtype))  # (B, size, size)
    along_d, along_h, along_w = matrices
    with torch.autocast(volumes.device.type, enabled=False):
        moved = (along_d @ volumes[:, 0].flatten(2)).view_as(volumes[:, 0])
        return (along_h[:, None] @ moved @ along_w[:, None].transpose(-1, -2))[:, None]


def draw_boxes(rng, shape, device, ratio=0.5):
    """First voxels and edges of boxes of `ratio` of each axis, partly outside. Shapes: -> (B, 3, 2)"""
    boxes = []
    for size in shape[2:]:
        edge = int(size * ratio + 0.5)
        start = rng.integers(0, size + 1 - edge % 2, shape[0]) - edge // 2
        boxes.append(np.stack([start, np.full_like(start, edge)], axis=1))
    return to_device(np.stack(boxes, axis=1), device)


def cut_out(volumes, boxes):
    """Set a box of each volume to zero. Shapes: (B, 1, D, H, W), (B, 3, 2) -> (B, 1, D, H, W)"""
    inside = volumes.new_ones(())
    for axis, size in enumerate(volumes.shape[2:]):
        start, edge = boxes[:, axis, :, None].unbind(dim=1)  # (B, 1)
        position = torch.arange(size, device=volumes.device)
        covered = (position >= start) & (position < start + edge)  # (B, size)
        shape = [len(volumes), 1, 1, 1, 1]
        shape[axis + 2] = size
        inside = inside * covered.view(shape)
    return volumes * (1 - inside).to(volumes.dtype)


def draw_factors(rng, shape, device):
    """Factors in [0.5, 1.5). Shapes: -> (B,)"""
    return to_device(rng.random(shape[0]) + 0.5, device)


def scale_contrast(volumes, factors):
    """Scale every volume about its mean. Shapes: (B, 1, D, H, W), (B,) -> (B, 1, D, H, W)"""
    mean = volumes.mean(dim=(1, 2, 3, 4), keepdim=True)
    return (volumes - mean) * factors.to(volumes.dtype).view(-1, 1, 1, 1, 1) + mean


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


def sampling_matrices(matrices, shape, device, spacing):
    """Linear maps of millimetres about the centre, as `affine_grid` takes them.

    Args:
        matrices: (B, 3, 3) numpy, from a place (d, h, w) in the result to its place in the source, mm.
        shape: (B, 1, D, H, W).
        device: torch.device of the result.
        spacing: Size (d, h, w) of a voxel, mm.

    Shapes: -> (B, 3, 4)
    """
    half = np.array(shape[2:]) * np.array(spacing) / 2  # mm that are 1 in grid_sample's coordinates
    scaled = matrices * half / half[:, None]
    theta = np.zeros((shape[0], 3, 4), np.float32)
    theta[:, :, :3] = scaled[:, ::-1, ::-1]  # its axes are (w, h, d)
    return to_device(theta, device)


def sample_volumes(volumes, theta):
    """Volumes seen through maps of `sampling_matrices`; zeros enter. Shapes: (B, 1, D, H, W) -> the same"""
    grid = F.affine_grid(theta, list(volumes.shape), align_corners=False)
    return Resampling.apply(volumes, grid)


def draw_turns(rng, shape, device, spacing, degrees=10):
    """Turns about random axes by up to `degrees`, in millimetres. Shapes: -> (B, 3, 4)"""
    height, around, turn = rng.random(shape[0]), rng.random(shape[0]), rng.random(shape[0])
    z = 2 * height - 1  # an axis uniform on the sphere
    radius, around = np.sqrt(1 - z**2), 2 * np.pi * around
    axes = np.stack([z, radius * np.cos(around), radius * np.sin(around)], axis=1)
    turns = Rotation.from_rotvec(axes * ((2 * turn - 1) * degrees)[:, None], degrees=True)
    return sampling_matrices(turns.as_matrix(), shape, device, spacing)


def draw_sizes(rng, shape, device, spacing, strength=0.1):
    """Enlargements by exp(u), u uniform in +-strength. Shapes: -> (B, 3, 4)"""
    factors = np.exp((2 * rng.random(shape[0]) - 1) * strength)
    return sampling_matrices(np.eye(3) * factors[:, None, None], shape, device, spacing)


def draw_fields(rng, shape, device, strength=0.2, points=4):
    """points^3 uniform values in +-strength for each volume. Shapes: -> (B, 1, points, points, points)"""
    coarse = (2 * rng.random(shape[0] * points**3) - 1).astype(np.float32) * np.float32(strength)
    return to_device(coarse.reshape(shape[0], 1, points, points, points), device)


def multiply_by_fields(volumes, coarse):
    """Multiply volumes by exp of smooth fields.

    Shapes: (B, 1, D, H, W), (B, 1, points, points, points) -> (B, 1, D, H, W)
    """
    coarse = coarse.to(volumes.dtype)
    return volumes * F.interpolate(coarse, volumes.shape[2:], mode="trilinear", align_corners=True).exp()


def draw_noise(rng, shape, device, strength=0.05):
    """Two normal fields of a deviation up to `strength` for each volume. Shapes: -> (B, 2, D, H, W)"""
    deviation = rng.random(shape[0]) * strength
    seeds = rng.integers(0, 2**31, shape[0])
    fields = []
    for sigma, seed in zip(deviation, seeds, strict=True):
        generator = device_random(device, int(seed))
        two = (torch.randn(shape[1:], device=device, generator=generator) for _ in range(2))
        fields.append(torch.cat([float(sigma) * field for field in two]))
    return torch.stack(fields)


def add_rician_noise(volumes, fields):
    """Noise of a magnitude image (Gudbjartsson & Patz 1995), |max(x, 0) + n1 + i n2| in place of max(x, 0).

    A generated voxel below 0 stays below.

    Shapes: (B, 1, D, H, W), (B, 2, D, H, W) -> (B, 1, D, H, W)
    """
    signal = volumes.clamp_min(0)
    return volumes - signal + torch.hypot(signal + fields[:, :1], fields[:, 1:])


def draw_kernels(rng, shape, device, strength=1.0):
    """Gaussian kernels of a deviation up to `strength` voxels. Shapes: -> (B, taps)"""
    from kornia.filters import get_gaussian_kernel1d

    sigma = torch.from_numpy(rng.random(shape[0]) * strength).float().clamp_min(1e-3)
    return to_device(get_gaussian_kernel1d(2 * math.ceil(3 * strength) + 1, sigma[:, None]), device)


def smooth_by(volumes, kernels):
    """Smooth volumes, each by its kernel; borders are replicated.

    Shapes: (B, 1, D, H, W), (B, taps) -> (B, 1, D, H, W)
    """
    x, reach = volumes.transpose(0, 1), kernels.shape[1] // 2  # (1, B, D, H, W): a group for each volume
    for axis in range(3):
        shape, padding = [1, 1, 1], [0] * 6
        shape[axis] = -1
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = reach
        weight = kernels.to(x.dtype).view(len(volumes), 1, *shape)
        x = F.conv3d(F.pad(x, padding, mode="replicate"), weight, groups=len(volumes))
    return x.transpose(0, 1)


translate = Augmentation(draw_shifts, shift_volumes)
cutout = Augmentation(draw_boxes, cut_out)
contrast = Augmentation(draw_factors, scale_contrast)
rotate = Augmentation(draw_turns, sample_volumes, interpolates=True, by_size=True)
scale = Augmentation(draw_sizes, sample_volumes, interpolates=True, by_size=True)
bias_field = Augmentation(draw_fields, multiply_by_fields, interpolates=True)
rician_noise = Augmentation(draw_noise, add_rician_noise, interpolates=True)
blur = Augmentation(draw_kernels, smooth_by, interpolates=True)
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
        self.signs, self.observed = 0.0, 0  # since the last update,
        self.arriving = (0.0, 0)  # and between the last two

    @staticmethod
    def signs_of(real_logits, fake_logits, sense):
        """Sum of the signs of how much more real D finds each real volume. Shapes: (B,), (B,) -> scalar

        `sense` is 1 if D's output is high for what it takes for real, -1 if it is low.
        """
        ahead = sense * (real_logits.detach() - fake_logits.detach().mean())
        return ahead.sign().sum()

    def observe(self, signs, number):
        """Count the sum of `signs_of`, of a number of real volumes."""
        self.signs = self.signs + signs
        self.observed += number

    def update(self):
        """Move the probability by the share of `volumes` that was seen between the last two updates.

        So late, the sum of signs has arrived from the device, and no step waits for it.
        """
        signs, seen = self.arriving
        if seen:
            change = math.copysign(seen / self.volumes, float(signs) / seen - self.target)
            self.prob = min(max(self.prob + change, 0.0), 1.0)
        self.arriving = (Arriving(self.signs), self.observed)
        self.signs, self.observed = 0.0, 0

    def state(self):
        """What a checkpoint holds."""
        arriving = (float(self.arriving[0]), self.arriving[1])
        return {"prob": self.prob, "signs": float(self.signs), "seen": self.observed, "arriving": arriving}

    def load(self, state):
        """Take up the state of a checkpoint."""
        self.prob, self.signs, self.observed = state["prob"], state["signs"], state["seen"]
        self.arriving = tuple(state.get("arriving", self.arriving))


def draw_augmentation(shape, device, prob, types, rng, spacing=(1, 1, 1), each=False, fixed=False):
    """What `augmented` needs for a micro-batch: a left-right flip, and AUGMENTATIONS; None changes nothing.

    Args:
        shape: (B, 1, D, H, W).
        device: torch.device of what is drawn.
        prob: Probability of augmentation, in which case a flip has probability 0.5.
        types, rng, spacing: As for `draw_each`.
        each: Decided for each volume by itself, so that D sees as many augmented of every kind.
        fixed: The same tensors whatever is decided; for steps that are replayed.
    """
    if not (prob or fixed):
        return None
    if each:
        chosen, flipped = rng.random(shape[0]) < prob, rng.random(shape[0]) < 0.5
    else:
        chosen = np.full(shape[0], rng.random() < prob)
        flipped = np.full(shape[0], chosen[0] and rng.random() < 0.5)
        if not chosen[0] and not fixed:
            return None
        rng = rng if chosen[0] else host_random(0)  # of what is not used
    decided = {"chosen": chosen, "flipped": flipped}
    decided = {name: to_device(values, device).view(-1, 1, 1, 1, 1) for name, values in decided.items()}
    return decided | draw_each(types, rng, shape, device, spacing)


def augmented(volumes, drawn, left_right=-2):
    """Volumes augmented by what `draw_augmentation` drew; `left_right` is the axis from left to right.

    Shapes: (B, 1, D, H, W) -> the same
    """
    if drawn is None:
        return volumes
    chosen, flipped, *_ = drawn.values()
    changed = torch.where(flipped, volumes.flip(left_right), volumes)
    for name in list(drawn)[2:]:
        changed = AUGMENTATIONS[name].computed(changed, drawn[name])
    return torch.where(chosen, changed, volumes)


def augment(volumes, prob, types, rng, spacing=(1, 1, 1), left_right=-2, each=False):
    """With probability `prob` a flip with probability 0.5, and AUGMENTATIONS, drawn and computed."""
    drawn = draw_augmentation(volumes.shape, volumes.device, prob, types, rng, spacing, each)
    return augmented(volumes, drawn, left_right)
