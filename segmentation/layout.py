"""A label map as the layers of a generator see it: classes, latent z and grain, at every size."""

import math

import torch
import torch.nn.functional as F

LOCAL_CELLS = 4  # along each axis, of a z drawn locally


def one_hot(numbers, classes):
    """Share of every class in every voxel, background first; an unknown voxel has none.

    Shapes: (B, D, H, W) uint8 -> (B, 1 + classes, D, H, W) float32
    """
    every = torch.arange(1 + classes, dtype=numbers.dtype, device=numbers.device)
    return (numbers[:, None] == every.view(1, -1, 1, 1, 1)).float()


def latent_regions(noise, classes):
    """Number of z of a volume."""
    return {"global": 1, "class": 1 + classes, "local": LOCAL_CELLS**3}[noise]


class Layout:
    """A label map at every size, and the z of its regions.

    Differs from the papers: a smaller map holds each class's share of a voxel, not the nearest voxel's class,
    so that vessels do not vanish; z enters by a linear layer where its region is, not by channels beside the
    map, which is the same to a convolution but for the borders of regions.

    Args:
        shares: (B, 1 + classes, D, H, W), of `one_hot`.
        z: (B, regions, z_dim).
        noise: global, class or local.
        grain: (B, 1, D, H, W), a standard normal number for every voxel; None: there is none.
    """

    def __init__(self, shares, z, noise, grain=None):
        self.z, self.noise, self.sizes = z, noise, {tuple(shares.shape[2:]): shares}
        self.largest, self.grain = shares, grain

    def factors(self, size):
        """By how much the map itself is larger, along each axis. Shapes: (d, h, w) -> (3,)"""
        return tuple(n // s for n, s in zip(self.largest.shape[2:], size, strict=True))

    def at(self, size):
        """Shares of the classes. Shapes: (d, h, w) -> (B, 1 + classes, d, h, w)"""
        size = tuple(size)
        if size not in self.sizes:
            self.sizes[size] = F.avg_pool3d(self.largest, self.factors(size))
        return self.sizes[size]

    def grain_at(self, size):
        """The grain, of deviation 1 at every size. Shapes: (d, h, w) -> (B, 1, d, h, w)"""
        factors = self.factors(size)
        return F.avg_pool3d(self.grain, factors) * math.prod(factors) ** 0.5

    def spread(self, terms, size):
        """Terms of the regions, where these are. Shapes: (B, regions, C) -> (B, C, d, h, w), or of sizes 1"""
        if self.noise == "global":
            return terms.transpose(1, 2)[..., None, None]
        if self.noise == "class":
            return torch.einsum("brdhw,brc->bcdhw", self.at(size).to(terms.dtype), terms)
        return F.interpolate(terms.transpose(1, 2).unflatten(2, 3 * (LOCAL_CELLS,)), tuple(size))
