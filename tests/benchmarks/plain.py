"""The published model in its plain formulation: what the fast one is measured and checked against.

Per-sample kernels in one grouped convolution, blur by kornia with a kernel of 27 taps, a cube of noise of S^3
voxels, fakes for D built with gradients, D's weights collecting gradients in G's step, inputs that always
require gradients. The tensors have the names of the trainer's, so that weights can be copied.
"""

import math

from volumetric.layers import growth_schedule, shrink_schedule

import kornia
import torch
import torch.nn.functional as F
from torch import nn


class PlainBlur(nn.Module):
    """Outer product of [1, 2, 1] three times, normalised, replicated borders."""

    def __init__(self):
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x):
        kernel = self.f[None, :, None, None] * self.f[None, None, :, None] * self.f[None, None, None, :]
        return kornia.filters.filter3d(x, kernel, border_type="replicate", normalized=True)


class PlainConv3DMod(nn.Module):
    """Modulated convolution with one kernel per sample."""

    def __init__(self, in_channels, out_channels, kernel_size, demodulate=True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *3 * [kernel_size]))
        self.demodulate = demodulate

    def forward(self, x, style):
        b, c, *size = x.shape
        weights = self.weight[None] * (1 + style[:, None, :, None, None, None])
        if self.demodulate:
            weights = weights * torch.rsqrt(weights.square().sum(dim=(2, 3, 4, 5), keepdim=True) + 1e-8)
        kernels = weights.reshape(b * weights.shape[1], c, *weights.shape[3:])
        out = F.conv3d(x.reshape(1, b * c, *size), kernels, padding=weights.shape[3] // 2, groups=b)
        return out.reshape(b, weights.shape[1], *size)


class PlainMappingLinear(nn.Module):
    """Linear layer with weight and bias times 0.1."""

    def __init__(self, size):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(size, size)), nn.Parameter(torch.empty(size))

    def forward(self, x):
        return F.linear(x, self.weight * 0.1, self.bias * 0.1)


class PlainMapping(nn.Module):
    """z to w."""

    def __init__(self, latent_dim=512):
        super().__init__()
        layers = [layer for _ in range(8) for layer in (PlainMappingLinear(latent_dim), nn.LeakyReLU(0.2))]
        self.net = nn.Sequential(*layers)

    def forward(self, z):
        return self.net(F.normalize(z, dim=1))


class PlainToGrayscale(nn.Module):
    """Grey volume of a block, added to the one before, enlarged and blurred but in the last block."""

    def __init__(self, latent_dim, channels, enlarge):
        super().__init__()
        self.to_style = nn.Linear(latent_dim, channels)
        self.conv = PlainConv3DMod(channels, 1, 1, demodulate=False)
        self.upsample = nn.Sequential(enlarger(enlarge), PlainBlur()) if enlarge else None

    def forward(self, x, previous, w):
        x = self.conv(x, self.to_style(w))
        x = x if previous is None else x + previous
        return x if self.upsample is None else self.upsample(x)


def enlarger(factors):
    """Trilinear enlargement."""
    return nn.Upsample(scale_factor=tuple(map(float, factors)), mode="trilinear", align_corners=False)


class PlainGeneratorBlock(nn.Module):
    """Two modulated convolutions with noise."""

    def __init__(self, latent_dim, in_channels, out_channels, enlarge, enlarge_next):
        super().__init__()
        self.upsample = enlarger(enlarge) if max(enlarge) > 1 else None
        self.to_style1 = nn.Linear(latent_dim, in_channels)
        self.to_noise1 = nn.Linear(1, out_channels)
        self.conv1 = PlainConv3DMod(in_channels, out_channels, 3)
        self.to_style2 = nn.Linear(latent_dim, out_channels)
        self.to_noise2 = nn.Linear(1, out_channels)
        self.conv2 = PlainConv3DMod(out_channels, out_channels, 3)
        self.activation = nn.LeakyReLU(0.2)
        self.to_grayscale = PlainToGrayscale(latent_dim, out_channels, enlarge_next)

    def forward(self, x, grey, w, noise):
        x = x if self.upsample is None else self.upsample(x)
        d, h, width = x.shape[2:]
        noise = noise[:, :d, :h, :width]  # (B, D, H, W, 1)
        first, second = (layer(noise).permute(0, 4, 1, 2, 3) for layer in (self.to_noise1, self.to_noise2))
        x = self.activation(self.conv1(x, self.to_style1(w)) + first)
        x = self.activation(self.conv2(x, self.to_style2(w)) + second)
        return x, self.to_grayscale(x, grey, w)


class PlainGenerator(nn.Module):
    """Styles (B, L, latent) and a cube of noise (B, S, S, S, 1) to volumes (B, 1, Z, S, S)."""

    def __init__(self, image_size, image_depth, network_capacity=8, fmap_max=512, latent_dim=512):
        super().__init__()
        factors = growth_schedule(image_size, image_depth)
        widths = [min(fmap_max, network_capacity * 2 ** (i + 1)) for i in reversed(range(len(factors)))]
        self.initial_block = nn.Parameter(torch.empty(1, widths[0], 4, 4, 4))
        self.initial_conv = nn.Conv3d(widths[0], widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            PlainGeneratorBlock(latent_dim, *args)
            for args in zip([widths[0], *widths[:-1]], widths, factors, [*factors[1:], None], strict=True)
        )

    def forward(self, styles, noise):
        x, grey = self.initial_conv(self.initial_block.expand(len(styles), -1, -1, -1, -1)), None
        for w, block in zip(styles.unbind(1), self.blocks, strict=True):
            x, grey = block(x, grey, w, noise)
        return grey


class PlainDiscriminatorBlock(nn.Module):
    """Residual block."""

    def __init__(self, in_channels, out_channels, stride, downsample):
        super().__init__()
        self.conv_res = nn.Conv3d(in_channels, out_channels, 1, stride=stride)
        first, second = nn.Conv3d(in_channels, out_channels, 3, padding=1), None
        second = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.net = nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2))
        down = nn.Conv3d(out_channels, out_channels, 3, padding=1, stride=stride)
        self.downsample = nn.Sequential(PlainBlur(), down) if downsample else None

    def forward(self, x):
        y = self.net(x)
        return ((y if self.downsample is None else self.downsample(y)) + self.conv_res(x)) / math.sqrt(2)


class PlainDiscriminator(nn.Module):
    """Volumes (B, 1, Z, S, S) to logits (B,)."""

    def __init__(self, image_size, image_depth, network_capacity=8, fmap_max=512):
        super().__init__()
        strides = [*shrink_schedule(image_size, image_depth), (1, 2, 2)]
        widths = [1, *(min(fmap_max, 4 * network_capacity * 2**i) for i in range(len(strides)))]
        self.blocks = nn.ModuleList(
            PlainDiscriminatorBlock(*args, downsample=i < len(strides) - 1)
            for i, args in enumerate(zip(widths[:-1], widths[1:], strides, strict=True))
        )
        self.final_conv = nn.Conv3d(widths[-1], widths[-1], 3, padding=1)
        self.to_logit = nn.Linear(8 * widths[-1], 1)

    def forward(self, volumes):
        x = volumes
        for block in self.blocks:
            x = block(x)
        return self.to_logit(self.final_conv(x).flatten(1)).squeeze(1)


class PlainGAN(nn.Module):
    """Mapping network, generator and discriminator, with the weights of a StyleGAN2."""

    def __init__(self, GAN, **settings):
        super().__init__()
        self.S, self.G, self.D = PlainMapping(), PlainGenerator(**settings), PlainDiscriminator(**settings)
        for name in "SGD":
            state = {key: value.contiguous() for key, value in getattr(GAN, name).state_dict().items()}
            getattr(self, name).load_state_dict(state)

    def generate(self, z, noise):
        """Volumes of latents z (B, latent) and a cube of noise, and their styles."""
        styles = self.S(z)[:, None].expand(-1, len(self.G.blocks), -1)
        return self.G(styles, noise), styles

    def discriminator_losses(self, real, z, noise, penalized):
        """Hinge loss and, if asked, gradient penalty; the fakes are built with gradients."""
        fake, _ = self.generate(z, noise)
        real = real.clone().requires_grad_()
        fake_logits, real_logits = self.D(fake.clone().detach()), self.D(real)
        loss = (F.relu(1 + real_logits) + F.relu(1 - fake_logits)).mean()
        if penalized:
            (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            loss = loss + 10 * (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        return loss

    def generator_losses(self, z, noise, y=None, pl_mean=0.0):
        """Mean of D's output and, with `y`, the path-length penalty; D's weights collect gradients too."""
        fake, styles = self.generate(z, noise)
        loss = self.D(fake).mean()
        if y is not None:
            outputs = (fake * y / fake[0].numel() ** (1 / 3)).sum()
            (gradient,) = torch.autograd.grad(outputs, styles, create_graph=True)
            lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
            loss = loss + (lengths - pl_mean).square().mean()
        return loss
