"""What pieces of a step take on a GPU, ours and PyTorch's: smoothing, enlarging, gradients of gradients.

    python tests/benchmarks/kernels.py

Prints Markdown: milliseconds, medians, of a block of 32 channels at full size, and of one of 256 inside.
"""

import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from volumetric.layers import Convolution, Smoothing, Upsampling, smooth  # noqa: E402
from volumetric.parallel import tf32  # noqa: E402
from volumetric.timing import seconds  # noqa: E402

from tests.benchmarks.step import matrix_peak  # noqa: E402

SHAPES = ((8, 32, 32, 128, 128), (8, 256, 16, 16, 16))
REPEATS = 10


def milliseconds(function, device):
    """Median time of a call, and what it says if it fails."""
    try:
        function()
        return f"{1e3 * statistics.median(seconds(function, device) for _ in range(REPEATS)):.2f}"
    except RuntimeError as error:
        return type(error).__name__


def enlarge_natively(x):
    """PyTorch's trilinear interpolation."""
    return F.interpolate(x, scale_factor=(2.0, 2.0, 2.0), mode="trilinear", align_corners=False)


def with_gradient(layer, x):
    """Function that computes a layer and its gradient."""

    def run():
        leaf = x.detach().requires_grad_()
        layer(leaf).backward(torch.ones_like(layer(leaf)))

    return run


def penalty(convolution, x, weight):
    """Function that computes a convolution's gradient penalty and the gradient of that."""

    def run():
        leaf, kernel = x.detach().requires_grad_(), weight.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(convolution(leaf, kernel).square().sum(), leaf, create_graph=True)
        gradient.square().sum().backward()

    return run


def main():
    """Print the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("| what | shape | type | ms |\n|---|---|---|---|")
    shapes = SHAPES if device.type == "cuda" else ((1, 8, 8, 16, 16),)
    for shape in shapes:
        for dtype in (torch.float32, torch.float16):
            x = torch.randn(shape, device=device, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last_3d)
            weight = torch.randn(shape[1], shape[1], 3, 3, 3, device=device, dtype=dtype) / 100
            weight = weight.contiguous(memory_format=torch.channels_last_3d)
            half = x[:, :, : shape[2] // 2, : shape[3] // 2, : shape[4] // 2].contiguous(
                memory_format=torch.channels_last_3d
            )
            ways = {
                "smoothing, chosen": lambda x=x: smooth(x),
                "smoothing, shifted sums": lambda x=x: Smoothing.apply(x),
                "enlarging, chosen": with_gradient(Upsampling((2, 2, 2)), half),
                "enlarging, PyTorch's": with_gradient(enlarge_natively, half),
                "penalty of a convolution, ours": penalty(
                    lambda a, b: Convolution.apply(a, b, None, 1, 1), x, weight
                ),
                "penalty of a convolution, PyTorch's": penalty(
                    lambda a, b: F.conv3d(a, b, None, 1, 1), x, weight
                ),
            }
            for name, function in ways.items():
                with tf32(False):
                    found = milliseconds(function, device)
                kind = str(dtype).removeprefix("torch.")
                print(f"| {name} | {' x '.join(map(str, shape))} | {kind} | {found} |", flush=True)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        print(f"\nMatrix peak, {dtype}: {matrix_peak(device, dtype, 2048):.0f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
