"""Deterministic weights for compatibility checks: a tensor is drawn by a generator seeded with its name."""

import zlib

import numpy as np
import torch


def filled(name, shape):
    """float32 array of `shape` that depends on nothing but `name` and `shape`."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    scale = np.sqrt(1.0 / fan_in) if len(shape) > 1 else 0.1
    if name.startswith(("S.", "SE.")) and len(shape) == 2:
        scale = 1.0  # the mapping network's own weights are N(0, 1); the layer multiplies them by lr_mul
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def fill_state_dict(shapes):
    """{name: shape} -> {name: tensor}. BatchNorm statistics and integer counters get usable values."""
    out = {}
    for name, shape in shapes.items():
        a = filled(name, tuple(shape))
        if name.endswith("running_var"):
            a = np.abs(a) + 0.5
        if name.endswith("num_batches_tracked"):
            a = np.asarray(1, dtype=np.int64)
        out[name] = torch.from_numpy(np.array(a))
    return out
