"""Layers of options that the published model does without: attention, feature quantisation, contrasts.

Linear attention: Shen et al. 2018, arXiv:1812.01243. Feature quantisation: Zhao et al. 2020,
arXiv:2004.02088. Contrastive regularisation: Chen et al. 2020, arXiv:2002.05709.
"""

from collections import OrderedDict

from volumetric.layers import LeakyReLU

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class ChannelNorm(nn.Module):
    """Every voxel's channels with mean 0 and variance 1, then a learned factor and term for each channel.

    Shapes: (B, C, D, H, W) -> the same
    """

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(channels))
        self.term = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            y = F.layer_norm(x.movedim(1, -1).float(), self.factor.shape, self.factor, self.term, self.eps)
        return y.movedim(-1, 1)


class LinearAttention(nn.Module):
    """Attention of every voxel to all voxels, at linear cost (Shen et al. 2018, arXiv:1812.01243, Sec. 3).

        softmax_channels(Q) / sqrt(c) (softmax_voxels(K)^T V), for each head of c channels

    K and V come from a depthwise and a pointwise convolution. Differs from the 2D ancestor: heads of C / 4
    channels, from 8 to 64, where it has 64; a volume has so many more voxels than an image.

    Shapes: (B, C, D, H, W) -> the same
    """

    def __init__(self, channels, heads=8):
        super().__init__()
        head = min(64, max(8, channels // 4))
        self.heads = heads
        self.to_q = nn.Conv3d(channels, heads * head, 1, bias=False)
        self.to_kv = nn.Sequential(
            nn.Conv3d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv3d(channels, 2 * heads * head, 1, bias=False),
        )
        self.to_out = nn.Conv3d(heads * head, channels, 1)

    def by_head(self, x):
        """Vectors of the voxels for each head. Shapes: (B, heads * c, D, H, W) -> (B, heads, voxels, c)"""
        return rearrange(x, "b (h c) x y z -> b h (x y z) c", h=self.heads)

    def forward(self, x):
        q = self.by_head(self.to_q(x))
        k, v = self.to_kv(x).chunk(2, dim=1)
        k, v = self.by_head(k), self.by_head(v)
        q = (q.float().softmax(dim=-1) * q.shape[-1] ** -0.5).to(v.dtype)
        k = k.float().softmax(dim=-2).to(v.dtype)
        out = F.gelu(q @ (k.transpose(-1, -2) @ v))  # (B, heads, voxels, c)
        out = out.transpose(-1, -2).reshape(len(x), -1, *x.shape[2:])
        return self.to_out(out)


class AttentionBlock(nn.Module):
    """Residual linear attention, then two residual pointwise convolutions, each after a ChannelNorm.

    Shapes: (B, C, D, H, W) -> the same
    """

    def __init__(self, channels):
        super().__init__()
        self.attention = nn.Sequential(ChannelNorm(channels), LinearAttention(channels))
        self.feed_forward = nn.Sequential(
            ChannelNorm(channels),
            nn.Conv3d(channels, 2 * channels, 1),
            LeakyReLU(),
            nn.Conv3d(2 * channels, channels, 1),
        )

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.feed_forward(x)


def attention_blocks(layers, channels):
    """ModuleDict of an AttentionBlock for each layer, 1 the first of `channels`."""
    return nn.ModuleDict({str(layer): AttentionBlock(channels[layer - 1]) for layer in sorted(layers)})


class FeatureQuantizer(nn.Module):
    """Replace every voxel's features by the nearest code (Zhao et al. 2020, arXiv:2004.02088, Sec. 3).

    Gradients pass straight through; the codes are moving averages of what they replaced, and move only while
    `learning` is True.

    Shapes: (B, C, D, H, W) -> the same, commitment loss scalar
    """

    def __init__(self, channels, codes):
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.quantize = VectorQuantize(channels, codes, rotation_trick=False, accept_3d_fmap=True)
        self.learning = False
        self.taken = None  # 1 for each code that the last volumes took, else 0

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            quantized, indices, loss = self.quantize(x.float(), freeze_codebook=not self.learning)
        taken = torch.zeros(self.quantize.codebook_size, device=x.device)
        self.taken = taken.index_fill(0, indices.flatten(), 1)
        return quantized.to(x.dtype), loss.sum()


def contrastive_head(features, hidden=256, size=128):
    """Projection of D's features for contrastive regularisation (SimCLR, arXiv:2002.05709, Sec. 2.1).

    Shapes: (B, features) -> (B, size)
    """
    layers = nn.Sequential(nn.Linear(features, hidden), LeakyReLU(), nn.Linear(hidden, size))
    return nn.Sequential(OrderedDict(net=layers))


def nt_xent(one, other, temperature=0.1):
    """Contrastive loss of two views of the same volumes (NT-Xent, arXiv:2002.05709, Eq. 1).

    Each of the 2 B features is to find its other view among the 2 B - 1 others, by cosine similarity.

    Shapes: (B, C), (B, C) -> scalar
    """
    features = F.normalize(torch.cat([one, other]).float(), dim=1)
    similarity = features @ features.T / temperature
    number = len(features)
    similarity = similarity.masked_fill(torch.eye(number, dtype=torch.bool, device=one.device), -torch.inf)
    partner = torch.arange(number, device=one.device).roll(len(one))
    return F.cross_entropy(similarity, partner)
