"""The pictures of the README's head: phantoms above volumes of a model, and two GIFs of the same model.

    python tests/benchmarks/pictures.py
    python tests/benchmarks/pictures.py --checkpoint models/ship/model_14.pt --output pictures

shipped.png: maximum-intensity projections along the body axis, phantoms of a series that no training has seen
and volumes of the first seeds, as they come. interpolation.gif: from seed to seed and back to the first.
stochastic.gif: one style, while the noise goes round a circle through two noises, so that each frame's noise
has the deviation of the generator's own and the last is followed by the first.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import check_device_name, check_fields, one_line_errors, option, parse_cli
from volumetric.files import array_to_volume
from volumetric.parallel import batch_inputs, latent_of, prepare_process, volume_inputs
from volumetric.pictures import (
    BAR_MM,
    EDGE,
    captioned,
    enlarged,
    marked,
    plane_views,
    save_gif,
    save_picture,
    tile,
)

import numpy as np
import torch
from nibabel import affines

from CoW_generator import SHIPPED
from sample_data.phantom import make_phantom, phantom_affine
from stylegan2_pytorch import ModelLoader, slerp

ROOT = Path(__file__).parents[2]

COLUMNS, PANELS, PIXELS, GAP = 8, 16, 136, 6  # in a row, in a half, of a panel, between the halves
UNSEEN = 1000  # seed of a series of phantoms; trainings have those of seed 0
WAY, FRAMES_OF_WAY = (3, 8, 21), 16  # seeds, and frames from one to the next
STYLE, FRAMES_OF_NOISE = 3, 32
SECONDS_PER_FRAME = 0.1


@dataclass(kw_only=True)
class PicturesConfig:
    """Make the pictures of the README's head."""

    checkpoint: str = option(str(SHIPPED), "Checkpoint of a model of phantoms.", file=True)
    output: str = option(str(ROOT / "docs" / "pictures"), "Folder for the pictures.", folder=True)
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)

    def __post_init__(self):
        check_fields(self)


def phantoms(shape):
    """Phantoms of a series that no training has seen. Shapes: (X, Y, Z) -> [(1, Z, X, Y)] in [0, 1]"""
    drawn = [make_phantom(UNSEEN, number, shape)[0] for number in range(PANELS)]
    return [array_to_volume((array - array.min()) / np.ptp(array)) for array in drawn]


def projection(volume, affine):
    """Maximum-intensity projection along the body axis. Shapes: (1, Z, X, Y) -> (rows, columns) uint8"""
    return plane_views(volume, affine)[3]


def half(volumes, affine, caption):
    """Projections in rows, sides and a bar in the first of each row, and a line of text below."""
    panels = []
    for number, volume in enumerate(volumes):
        view = projection(volume, affine)
        scale = PIXELS / max(view.shape)
        bar = round(BAR_MM / min(affines.voxel_sizes(affine)) * scale)  # pixels
        first = number % COLUMNS == 0
        panels.append(marked(view, scale, (PIXELS, PIXELS), "RL" if first else "", bar if first else 0))
    return captioned(tile(np.stack(panels), COLUMNS), f"{caption}; bar {BAR_MM:.0f} mm", 14)


def phantoms_and_volumes(model):
    """Phantoms above, volumes below. Shapes: -> (rows, columns) uint8"""
    above = half(phantoms(model.array_shape), phantom_affine(model.array_shape), "phantoms")
    made = [volume.numpy() for volume in model.volumes_of(range(PANELS))]
    below = half(made, model.affine, f"SYNTHETIC: volumes of seeds 0 to {PANELS - 1}")
    return np.concatenate([above, np.full((GAP, above.shape[1]), EDGE, np.uint8), below])


def way(model):
    """Frames from seed to seed and back to the first, with its noise. Shapes: -> [(rows, columns) uint8]"""
    noise = volume_inputs(WAY[0], model.latent_dim, model.shape)[1][None]
    frames = []
    for ends in itertools.pairwise([*WAY, WAY[0]]):
        low, high = (latent_of(seed, model.latent_dim) for seed in ends)
        caption = f"SYNTHETIC: from seed {ends[0]} to seed {ends[1]}"
        for t in torch.arange(FRAMES_OF_WAY) / FRAMES_OF_WAY:
            frames.append(frame(model, model.noise_to_styles(slerp(low, high, t)[None], 1.0), noise, caption))
    return frames


def noises(model):
    """Frames of one style, its noise on a circle. Shapes: -> [(rows, columns) uint8]

    Of noises U[0, 1) about their mean: cos a (one - 1/2) + sin a (other - 1/2) has the variance of each.
    """
    _, noise = batch_inputs([STYLE, STYLE + 1], model.latent_dim, model.shape)
    one, other = (noise - 0.5).split(1)
    style, frames = model.styles_of([STYLE]), []
    for turn in range(FRAMES_OF_NOISE):
        angle = 2 * math.pi * turn / FRAMES_OF_NOISE
        noise = 0.5 + math.cos(angle) * one + math.sin(angle) * other
        frames.append(frame(model, style, noise, f"SYNTHETIC: seed {STYLE}, its noise alone changes"))
    return frames


def frame(model, styles, noise, caption):
    """One picture of a GIF: the projection, large. Shapes: (1, latent), (1, Z, S, S, 1) -> (rows, columns)"""
    picture = enlarged(projection(model.render(styles, noise)[0].numpy(), model.affine), caption)
    return picture & 0b11111100  # 64 greys: noise is what makes a GIF large


def make(config):
    """Write the three pictures."""
    model, folder = ModelLoader(checkpoint=config.checkpoint, device=config.device), Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    save_picture(phantoms_and_volumes(model), folder / "shipped.png", 1)
    save_gif(way(model), folder / "interpolation.gif", SECONDS_PER_FRAME)
    save_gif(noises(model), folder / "stochastic.gif", SECONDS_PER_FRAME)
    for name in ("shipped.png", "interpolation.gif", "stochastic.gif"):
        print(f"{folder / name}: {(folder / name).stat().st_size / 1e6:.2f} MB")


def main(argv=None):
    """The command line."""
    config = parse_cli(PicturesConfig, argv)
    with one_line_errors():
        prepare_process(config.device)
        make(config)


if __name__ == "__main__":
    main()
