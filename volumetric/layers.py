"""Operations with gradients of any order, the layers of the published model, and the schedules of sizes."""

import contextlib
import functools
import math

from volumetric.cli import UserError, check_networks

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

SLOPE = 0.2  # of LeakyReLU
GROUP = 4  # volumes whose standard deviation D sees (arXiv:1710.10196)
LEAST_VARIANCE = 1e-8  # added below a square root


class LeakyReLU(nn.Module):
    """The networks' only nonlinearity: LeakyReLU of slope 0.2, no gain, in place. Shapes: any -> the same"""

    def forward(self, x):
        return Activation.apply(x) if torch.is_grad_enabled() else F.leaky_relu_(x, SLOPE)


class Activation(torch.autograd.Function):
    """LeakyReLU in place, whose gradient does not depend on x but for its sign.

    PyTorch takes it for a function of x: a gradient of its gradient is then zeros of the size of x, which go
    backward through all that x was computed from.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(x)
        ctx.save_for_backward(F.leaky_relu_(x, SLOPE))
        return x

    @staticmethod
    def backward(ctx, gradient):
        return None if gradient is None else Sloped.apply(gradient, ctx.saved_tensors[0].detach())


class Sloped(torch.autograd.Function):
    """gradient, times SLOPE where y is not positive; its own gradient. Shapes: two the same -> the same"""

    @staticmethod
    def forward(ctx, gradient, y):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y)
        return torch.ops.aten.leaky_relu_backward(gradient, y, SLOPE, True)

    @staticmethod
    def backward(ctx, gradient):
        return None if gradient is None else Sloped.apply(gradient, *ctx.saved_tensors), None


class NoisyActivation(torch.autograd.Function):
    """LeakyReLU(x + noise @ factors) in x's own memory, with gradients of any order, also in the factors.

    Shapes: x (B, C, D, H, W), channels last; noise (B, D * H * W, n), factors (n, C) -> as x
    """

    @staticmethod
    def forward(ctx, x, noise, factors):
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(x)
        voxels_first(x).baddbmm_(noise, factors.expand(len(x), -1, -1))
        ctx.save_for_backward(F.leaky_relu_(x, SLOPE), noise)
        return x

    @staticmethod
    def backward(ctx, gradient):
        if gradient is None:
            return None, None, None
        y, noise = ctx.saved_tensors
        gradient, of_factors = Sloped.apply(gradient, y.detach()), None
        if ctx.needs_input_grad[2]:
            of_factors = (noise.transpose(1, 2) @ voxels_first(channels_inside(gradient))).sum(dim=0)
        return gradient, None, of_factors


def on_cpu(x):
    """True for tensors of a CPU, which is quick at other formulations than a GPU."""
    return x.device.type == "cpu"


class AlongAxes(torch.autograd.Function):
    """Linear maps along the three axes of volumes, a product with a matrix each; gradients of any order.

    A GPU reads and writes x once for each, in one launch, sums in float32, and has no atomic additions in the
    gradient. Shifted sums take five launches an axis.

    Shapes: x (B, C, D, H, W), matrices (D', D), (H', H), (W', W) of x's dtype -> (B, C, D', H', W')
    """

    @staticmethod
    def forward(ctx, x, *matrices):
        ctx.matrices = matrices
        y = channels_inside(x).movedim(1, -1)  # (B, D, H, W, C)
        with torch.autocast(x.device.type, enabled=False):
            for axis, matrix in enumerate(matrices, start=1):
                before, after = y.shape[:axis], y.shape[axis + 1 :]
                y = matrix @ y.reshape(-1, matrix.shape[1], math.prod(after))
                y = y.view(*before, len(matrix), *after)
        return y.movedim(-1, 1)

    @staticmethod
    def backward(ctx, gradient):
        return AlongAxes.apply(gradient, *(matrix.T for matrix in ctx.matrices)), None, None, None


@functools.cache
def smoothing_matrix(size, dtype, device):
    """[1, 2, 1] / 4 with replicated borders. Shapes: -> (size, size)"""
    matrix = torch.diag(torch.full((size,), 0.5))
    for other in (torch.arange(size) - 1, torch.arange(size) + 1):
        matrix[torch.arange(size), other.clamp(0, size - 1)] += 0.25
    return matrix.to(device, dtype)


@functools.cache
def doubling_matrix(size, factor, dtype, device):
    """Linear interpolation between the centres of voxels to twice as many, or none. Shapes: -> (f size, size)

    It is what torch.nn.Upsample computes: weights of 0.75 and 0.25, replicated at the borders.
    """
    if factor == 1:
        return torch.eye(size, dtype=dtype, device=device)
    matrix = torch.zeros(2 * size, size)
    voxels = torch.arange(2 * size)
    matrix[voxels, voxels // 2] += 0.75
    matrix[voxels, (voxels // 2 + 2 * (voxels % 2) - 1).clamp(0, size - 1)] += 0.25
    return matrix.to(device, dtype)


class Upsampling(nn.Module):
    """Trilinear enlargement by (d, h, w) factors of 1 or 2. Shapes: (B, C, D, H, W) -> (B, C, dD, hH, wW)"""

    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, x):
        if on_cpu(x):
            scale = tuple(map(float, self.factors))
            return F.interpolate(x, scale_factor=scale, mode="trilinear", align_corners=False)
        sizes = zip(x.shape[2:], self.factors, strict=True)
        return AlongAxes.apply(x, *(doubling_matrix(*size, x.dtype, x.device) for size in sizes))


def smooth(x):
    """[1, 2, 1] / 4 along three axes with replicated borders. Shapes: (B, C, D, H, W) -> the same"""
    if on_cpu(x):
        return Smoothing.apply(x)
    return AlongAxes.apply(x, *(smoothing_matrix(size, x.dtype, x.device) for size in x.shape[2:]))


class Smoothing(torch.autograd.Function):
    """`smooth` as shifted sums, which CPUs are quick at: no kernel of 27 taps.

    With such borders the filter is a symmetric matrix, so it is its own gradient, of any order.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        for axis in (2, 3, 4):
            last = x.shape[axis] - 1
            y = x * 0.5
            for to, source, length in ((1, 0, last), (0, 1, last), (0, 0, 1), (last, last, 1)):
                y.narrow(axis, to, length).add_(x.narrow(axis, source, length), alpha=0.25)
            x = y
        return x

    @staticmethod
    def backward(ctx, gradient):
        return None if gradient is None else Smoothing.apply(gradient)


class Blur(nn.Module):
    """Low-pass filter: the outer product of [1, 2, 1] three times, normalised to sum 1, replicated borders.

    Shapes: (B, C, D, H, W) -> (B, C, D, H, W)
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))  # as in the original's state dict

    def forward(self, x):
        return smooth(x)


class Convolution(torch.autograd.Function):
    """A 3D convolution whose gradients, of any order, are computed by convolution kernels.

    PyTorch computes the gradient of a gradient by a convolution with kernels as large as volumes. But a
    convolution is linear in its input and in its kernel, so that three functions are each other's gradients:

        y = conv(x, w),    its transpose in x: T(g, w),    its transpose in w: W(g, x)

    Shapes: x (B, C_in, D, H, W), weight (C_out, C_in, k, k, k), bias (C_out,) or None, stride, padding
    """

    @staticmethod
    def forward(ctx, x, weight, bias, *how):
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.bias_sizes = how, None if bias is None else list(bias.shape)
        return F.conv3d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx, gradient):
        gradient, (x, weight) = channels_inside(gradient), ctx.saved_tensors
        wanted, none = ctx.needs_input_grad, len(ctx.how) * (None,)
        if not torch.is_grad_enabled():
            return *convolution_gradients(gradient, x, weight, ctx.how, wanted[:3], ctx.bias_sizes), *none
        return (
            TransposedConvolution.apply(gradient, weight, x.shape, *ctx.how) if wanted[0] else None,
            KernelGradient.apply(gradient, x, weight.shape, *ctx.how) if wanted[1] else None,
            gradient.sum(dim=(0, 2, 3, 4)) if wanted[2] else None,
            *none,
        )


class TransposedConvolution(torch.autograd.Function):
    """T of `Convolution`. Shapes: gradient of y, weight, shape of x -> shape of x"""

    @staticmethod
    def forward(ctx, gradient, weight, shape, *how):
        ctx.save_for_backward(gradient, weight)
        ctx.how = how
        x = gradient.new_empty(1).expand(shape)
        return convolution_gradients(gradient, x, weight, how, (True, False, False))[0]

    @staticmethod
    def backward(ctx, x):
        x, (gradient, weight) = channels_inside(x), ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            Convolution.apply(x, weight, None, *ctx.how) if wanted[0] else None,
            KernelGradient.apply(gradient, x, weight.shape, *ctx.how) if wanted[1] else None,
            None,
            *len(ctx.how) * (None,),
        )


class KernelGradient(torch.autograd.Function):
    """W of `Convolution`. Shapes: gradient of y, x, shape of weight -> shape of weight"""

    @staticmethod
    def forward(ctx, gradient, x, shape, *how):
        ctx.save_for_backward(gradient, x)
        ctx.how = how
        weight = x.new_empty(1).expand(shape)
        return convolution_gradients(gradient, x, weight, how, (False, True, False))[1]

    @staticmethod
    def backward(ctx, weight):
        gradient, x = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            Convolution.apply(x, weight, None, *ctx.how) if wanted[0] else None,
            TransposedConvolution.apply(gradient, weight, x.shape, *ctx.how) if wanted[1] else None,
            None,
            *len(ctx.how) * (None,),
        )


def channels_inside(x):
    """x with the channels last in memory, one channel too: what comes of it is then stored like that.

    Shapes: (B, C, D, H, W) -> the same
    """
    if x.shape[1] == 1:
        return x.contiguous().squeeze(1).unsqueeze(-1).movedim(-1, 1)
    return x.contiguous(memory_format=torch.channels_last_3d)


def convolution_gradients(gradient, x, weight, how, wanted, bias_sizes=None):
    """(gradient in x, in the weight, in the bias) of a 3D convolution, None where not wanted."""
    stride, padding = how
    stride = 3 * [stride] if isinstance(stride, int) else list(stride)
    padding = 3 * [padding] if isinstance(padding, int) else list(padding)
    settings = (bias_sizes, stride, padding, [1, 1, 1], False, [0, 0, 0], 1)
    return torch.ops.aten.convolution_backward(gradient, x, weight, *settings, list(wanted))


def convolve(x, weight, bias=None, stride=1, padding=0):
    """F.conv3d, on a GPU with quick gradients of any order. Shapes: as `Convolution`"""
    x, device = channels_inside(x), x.device.type
    if device == "cpu" or not torch.is_grad_enabled():
        return F.conv3d(x, weight, bias, stride, padding)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return Convolution.apply(x, weight, bias, stride, padding)


class Conv3d(nn.Conv3d):
    """nn.Conv3d by `convolve`."""

    def forward(self, x):
        return convolve(x, self.weight, self.bias, self.stride, self.padding)


class MappingLinear(nn.Module):
    """Linear layer whose weight and bias are multiplied by `lr_mul`, with N(0, 1) weights.

    Differs from the paper: no 1 / sqrt(fan_in).

    Shapes: (B, in) -> (B, out)
    """

    def __init__(self, in_features: int, out_features: int, lr_mul: float = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.lr_mul = lr_mul

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight * self.lr_mul, self.bias * self.lr_mul)


def product_dtype():
    """Type for small matrix products: float64 without gradients, so that batches do not change a volume.

    The rounding of a float32 product changes with its number of rows.
    """
    return torch.float32 if torch.is_grad_enabled() else torch.float64


class StyleLinear(nn.Linear):
    """Affine map from w to one layer's style ("A" in StyleGAN2's Fig. 2), never in half precision."""

    def forward(self, w):
        dtype = product_dtype()
        with torch.autocast(w.device.type, enabled=False):
            return F.linear(w.to(dtype), self.weight.to(dtype), self.bias.to(dtype)).float()


def reliably(layer, x):
    """layer(x), without autocast where the CPU's bfloat16 convolution is wrong.

    On a CPU, PyTorch 2.13 to 2.15 return garbage as the weight gradient of a bfloat16 3x3x3 convolution over
    2 slices (findings/bfloat16_two_slices.sh). Layers that small cost next to nothing in float32.
    """
    if not on_cpu(x) or x.shape[2] > 2:
        return layer(x)
    with torch.autocast("cpu", enabled=False):
        return layer(x.to(torch.promote_types(x.dtype, torch.float32)))


def as_channels(values, x):
    """(B, C) or (C,) values as factors or terms for the channels of x (B, C, D, H, W), in x's dtype."""
    return values.to(x.dtype).view(*values.shape, 1, 1, 1)


def times_(x, factor):
    """x * factor, in x's own memory where no gradient needs it."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def voxels_first(x):
    """(B, C, D, H, W) -> (B, D * H * W, C), a view where the channels come last in memory."""
    return x.movedim(1, -1).flatten(1, 3)


class ModulatedSum(nn.Module):
    """Modulated 1x1x1 convolution to one channel, without demodulation: a sum over channels for each sample.

    As a product of matrices it reads x once; the convolution would need x times the style first.

    Shapes:
        x:      (B, C, D, H, W)
        style:  (B, C)
        return: (B, 1, D, H, W)
    """

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, 1, 1, 1))
        nn.init.kaiming_normal_(self.weight, a=0, mode="fan_in", nonlinearity="leaky_relu")

    def forward(self, x, style):
        factors = (1 + style) * self.weight.view(1, -1)  # (B, C)
        return (voxels_first(x) @ factors.to(x.dtype)[..., None]).view(len(x), 1, *x.shape[2:])


def activate_noisily(x, noise, layer):
    """LeakyReLU(x + Linear(1, C)(noise)), in x's own memory.

    As a product of matrices, [noise, 1] @ [weight, bias], added to x in one pass; on a CPU in bfloat16,
    adding the bias and the noise by broadcasting takes forty times as long. A GPU does it as one function:
    the gradient of what is done in place to a view is copied twice. A CPU rounds as ever.

    Shapes:
        x:      (B, C, D, H, W), overwritten
        noise:  (B, D * H * W, 2), of which the second is 1
        return: (B, C, D, H, W)
    """
    factors = torch.stack([layer.weight.squeeze(1), layer.bias]).to(x.dtype)  # (2, C)
    noise = noise.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if not on_cpu(x):
            return NoisyActivation.apply(channels_inside(x), noise, factors)
        voxels = voxels_first(x).baddbmm_(noise, factors.expand(len(x), -1, -1))
        return LeakyReLU()(voxels.unflatten(1, x.shape[2:]).movedim(-1, 1))


class SquareSum(torch.autograd.Function):
    """Sum of a kernel's squares over its taps; PyTorch's gradient takes two passes more over the kernel.

    Shapes: (C_out, C_in, k, k, k) -> (C_out, C_in)
    """

    @staticmethod
    def forward(ctx, weight):
        ctx.save_for_backward(weight)
        return weight.square().sum(dim=(2, 3, 4))

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        return weight * as_channels(2 * gradient, weight)


def minibatch_deviation(x, group):
    """x and a channel of the mean standard deviation within each group of volumes (arXiv:1710.10196, Sec. 3).

    In float32; a group are neighbours in the batch, so that processes of four volumes have the groups of one.

    Shapes: (B, C, d, h, w) -> (B, C + 1, d, h, w)
    """
    with torch.autocast(x.device.type, enabled=False):
        groups = x.float().unflatten(0, (-1, group))
        deviation = (groups.var(dim=1, unbiased=False) + LEAST_VARIANCE).sqrt().mean(dim=(1, 2, 3, 4))
        deviation = deviation.repeat_interleave(group).view(-1, 1, 1, 1, 1)
        return torch.cat([x.float(), deviation.expand(-1, 1, *x.shape[2:])], dim=1)


class FormerBuffers:
    """Around what is computed again: the buffers of a module as they were when this object was made.

    What moves them, such as the power iteration of a spectral norm, then gives the same numbers again, and
    the module goes on with what it had before.
    """

    def __init__(self, module):
        owners = [(m, name) for m in module.modules() for name, b in m._buffers.items() if b is not None]
        self.former = [(owner, name, owner._buffers[name].clone()) for owner, name in owners]

    def __enter__(self):
        self.present = [owner._buffers[name] for owner, name, _ in self.former]
        for owner, name, former in self.former:
            owner._buffers[name] = former.clone()  # a graph of gradients is computed again more than once

    def __exit__(self, *_):
        for (owner, name, _), present in zip(self.former, self.present, strict=True):
            owner._buffers[name] = present


def run_block(block, *inputs, again=False):
    """A block's result; with `again`, what its gradient needs is computed again in the backward pass.

    Without gradients there is nothing to keep. What a block remembers in buffers moves once, if the block is
    a module.
    """
    if not (again and torch.is_grad_enabled()):
        return block(*inputs)
    memory = FormerBuffers(block) if isinstance(block, nn.Module) else contextlib.nullcontext()
    settings = {"preserve_rng_state": False, "context_fn": lambda: (contextlib.nullcontext(), memory)}
    return checkpoint(block, *inputs, use_reentrant=False, **settings)


def channels_last(module):
    """Store kernels with the channels last; activations follow. A third faster on a CPU in bfloat16."""
    for p in module.parameters():
        if p.ndim == 5:
            p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
    return module


def count_parameters(module):
    """Number of weights of a network."""
    return sum(p.numel() for p in module.parameters())


def slerp(low: torch.Tensor, high: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """Spherical interpolation, exact at its ends. Shapes: (latent,), (latent,), t in [0, 1] -> (latent,)"""
    if t in (0, 1):
        return high if t else low
    angle = torch.arccos((F.normalize(low, dim=-1) * F.normalize(high, dim=-1)).sum(-1).clamp(-1, 1))
    if angle.sin().abs() < 1e-6:  # parallel: the straight line is the same
        return torch.lerp(low, high, t)
    return (torch.sin((1 - t) * angle) * low + torch.sin(t * angle) * high) / angle.sin()


def input_gradient(volumes, logits, scale):
    """Gradient of logits, each in its own volume, by way of `scale` times as much; gradients of any order.

    Shapes: (B, 1, D, H, W), (B,) -> (B, D * H * W)
    """
    (gradient,) = torch.autograd.grad(logits.float().sum() * scale, volumes, create_graph=True)
    return gradient.flatten(1) / scale


def gradient_penalty(volumes, logits, weight=10.0, scale=1.0):
    """Pull the norm of the discriminator's input gradient to 1 (arXiv:1704.00028, Eq. 3).

        weight * mean_b (||dD(x_b)/dx_b||_2 - 1)^2

    The paper takes it between real and generated volumes, the published 3D StyleGAN2 at the real ones.

    Shapes: (B, 1, D, H, W), (B,) -> scalar
    """
    gradient = input_gradient(volumes, logits, scale)
    return weight * (gradient.norm(dim=1) - 1).square().mean()


def zero_centered_penalty(volumes, logits, gamma, scale=1.0):
    """R1 at real volumes, R2 at generated ones (arXiv:1801.04406, Eq. 9).

        gamma / 2 * mean_b ||dD(x_b)/dx_b||_2^2

    Shapes: (B, 1, D, H, W), (B,) -> scalar
    """
    gradient = input_gradient(volumes, logits, scale)
    return gamma / 2 * gradient.square().sum(dim=1).mean()


def equalized_scale(name, parameter):
    """Factor on Adam's rate that equalises a parameter's learning (arXiv:1912.04958, after arXiv:1710.10196).

    The paper divides weights by their He deviation, sqrt(2 / fan_in), and multiplies what a layer computes by
    it. Under Adam, a rate multiplied by it does the same, and leaves the weights in a checkpoint as they are.
    """
    if parameter.ndim < 2 or "to_noise" in name or "initial_block" in name or "embedding" in name:
        return 1.0
    return (2 / parameter[0].numel()) ** 0.5


def trained_by(optimizer):
    """Parameters of an optimiser, of all its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


@torch.no_grad()
def move_averages(pairs, decay):
    """average <- decay * average + (1 - decay) * current; what is no weight is copied.

    Args:
        pairs: [(module that is an average, module that it follows)].
        decay: From 0, a copy, to 1.
    """
    average = nn.ModuleList(average for average, _ in pairs)
    current = nn.ModuleList(current for _, current in pairs)
    if weights := list(average.parameters()):
        torch._foreach_lerp_(weights, list(current.parameters()), 1 - decay)
    if others := list(average.buffers()):
        torch._foreach_copy_(others, list(current.buffers()))


def set_rates(optimizers, done, final):
    """Let rates fall linearly, from "full" of each group to `final` of it as `done` goes from 0 to 1."""
    for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
        group["lr"] = group["full"] * (1 - done * (1 - final))


def grown(x, factors):
    """Nearest-neighbour enlargement. Shapes: (B, C, D, H, W) -> (B, C, dD, hH, wW)"""
    return x if factors == (1, 1, 1) else F.interpolate(x, scale_factor=tuple(map(float, factors)))


def haar(x, stride):
    """Haar transform of every axis of stride 2: sums and differences of neighbours over sqrt(2).

    Shapes: (B, C, D, H, W) -> (B, bands * C, D / d, H / h, W / w), bands the product of the strides
    """
    for axis, step in zip((2, 3, 4), stride, strict=True):
        if step == 2:
            even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
            x = torch.cat([even + odd, even - odd], dim=1) * 0.5**0.5
    return x


def inverse_haar(bands, stride):
    """What `haar` was given. Shapes: (B, bands * C, D, H, W) -> (B, C, d D, h H, w W)"""
    for axis, step in reversed(list(zip((2, 3, 4), stride, strict=True))):
        if step == 2:
            sums, differences = bands.chunk(2, dim=1)
            bands = torch.stack([sums + differences, sums - differences], axis + 1) * 0.5**0.5
            bands = bands.flatten(axis, axis + 1)
    return bands


def growth_schedule(image_size, image_depth):
    """Factors (d, h, w) by which the generator's blocks enlarge their input: every axis not yet at its size.

    (128, 32) -> (1, 1, 1), then (2, 2, 2) three times, then (1, 2, 2) twice: 4 voxels grow to 32 x 128 x 128.
    """
    check_networks(image_size, image_depth)
    sizes, target, factors = (4, 4, 4), (image_depth, image_size, image_size), [(1, 1, 1)]
    while sizes != target:
        factors.append(tuple(2 if size < end else 1 for size, end in zip(sizes, target, strict=True)))
        sizes = tuple(size * factor for size, factor in zip(sizes, factors[-1], strict=True))
    return factors


def shrink_schedule(image_size, image_depth):
    """Strides (d, h, w) of the discriminator's blocks: every axis above 2 is halved, until all are 2."""
    check_networks(image_size, image_depth)
    sizes, strides = (image_depth, image_size, image_size), []
    while max(sizes) > 2:
        strides.append(tuple(2 if size > 2 else 1 for size in sizes))
        sizes = tuple(size // stride for size, stride in zip(sizes, strides[-1], strict=True))
    return strides


def check_layers(name, layers, blocks):
    """Raise a UserError unless `layers` are different numbers of blocks, 1 to `blocks`."""
    if any(type(n) is not int or not 1 <= n <= blocks for n in layers) or len(set(layers)) < len(layers):
        given = ",".join(map(str, layers))
        raise UserError(f"--{name} must be different numbers of blocks, 1 to {blocks}, got {given}.")
