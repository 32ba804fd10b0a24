"""Remove what lies outside the body: a table, tubes and noise in the air of CT and MR volumes.

    python preprocessing/background.py --data volumes --output cleaned --smallest_ml 50

or edit the settings below and run it. What is brighter than Otsu's threshold (Otsu 1979,
doi:10.1109/TSMC.1979.4310076) and connected (6 neighbours) in a volume of at least --smallest_ml is the body;
its holes belong to it. Everything else gets the volume's smallest value. Inputs are never written to.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

# Run as a script, preprocessing.py beside this file would hide its package.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import find_volumes, read, refuse_unusable
from volumetric.files import atomic_path, naming, new_folder
from volumetric.names import unique_names

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

# Edit these, or pass them as flags; a flag wins.
# folder of NIfTI volumes
data = "volumes"
# new folder for the cleaned ones
output = "cleaned"

COARSE = 64  # voxels of an edge, about, on which the content of a scan is looked for
SPECK = 0.01  # of what is bright, that a smaller part is no content


@dataclass(kw_only=True)
class BackgroundConfig:
    """Remove what lies outside the body, from every volume of a folder."""

    data: str = option(data, "Folder of NIfTI volumes.")
    output: str = option(output, "New folder for the cleaned ones.", folder=True)
    smallest_ml: float = option(10.0, "Smallest part that is body, ml.")
    threshold: float | None = option(None, "Grey value above which is body; None finds Otsu's.", least=-1e6)

    def __post_init__(self):
        check_fields(self)


def body_mask(array, spacing, smallest_ml=10.0, threshold=None):
    """Voxels of the body: bright, connected and large enough, with its holes.

    Shapes: (X, Y, Z), spacing (3,) mm -> (X, Y, Z) bool

    Raises:
        UserError: Nothing is large enough.
    """
    from skimage.filters import threshold_otsu

    level = threshold_otsu(array) if threshold is None else threshold
    parts, number = ndimage.label(array > level)
    sizes = np.bincount(parts.ravel(), minlength=number + 1) * np.prod(spacing) / 1000  # ml
    kept = sizes >= smallest_ml
    kept[0] = False
    if not kept.any():
        largest = sizes[1:].max(initial=0)
        raise UserError(
            f"has no part of {smallest_ml:g} ml above {level:g}, the largest has {largest:.3g}: lower "
            f"--smallest_ml"
        )
    return ndimage.binary_fill_holes(kept[parts])


def remove_background(array, spacing, smallest_ml=10.0, threshold=None):
    """A volume whose voxels outside the body have its smallest value. Shapes: as `body_mask`"""
    mask = body_mask(array, spacing, smallest_ml, threshold)
    return np.where(mask, array, array.min()), mask


def content_bounds(array):
    """Where a scan is not background: bright by Otsu's threshold of block means, without specks.

    Of what is bright, parts of less than SPECK are left out: noise, a marker, a finger. A block more on each
    side leaves faint skin in.

    Shapes: (X, Y, Z) -> ((x0, x1), (y0, y1), (z0, z1)), half-open, voxels
    """
    from skimage.filters import threshold_otsu

    blocks = [max(1, n // COARSE) for n in array.shape]
    middles = tuple(slice(b // 2, None, b) for b in blocks)
    coarse = ndimage.uniform_filter(array, blocks)[middles]
    low, high = np.percentile(coarse, (1, 99.5))
    clipped = coarse.clip(low, high) if high > low else coarse
    parts, _ = ndimage.label(clipped > threshold_otsu(clipped), np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())
    kept = sizes >= SPECK * sizes[1:].sum()
    kept[0] = False
    bounds = []
    for axis, (n, block) in enumerate(zip(array.shape, blocks, strict=True)):
        there = np.flatnonzero(kept[parts].any(axis=tuple({0, 1, 2} - {axis})))
        start, stop = (there[0] - 1) * block, (there[-1] + 2) * block
        bounds.append((max(0, int(start)), min(n, int(stop))))
    return tuple(bounds)


def clean_folder(config):
    """Clean every volume of a folder; one that cannot be cleaned does not keep the others from it.

    Returns:
        The new folder.

    Raises:
        UserError: One line for every volume that could not be cleaned, when the others are done.
    """
    paths, problems = find_volumes(config.data), []
    names = unique_names(paths)
    with new_folder(config.output) as folder:
        for path in tqdm(paths, "Cleaning", unit="volume"):
            try:
                with naming(path):
                    volume = read(path)
                    about = (volume.spacing, config.smallest_ml, config.threshold)
                    array, mask = remove_background(volume.array, *about)
            except UserError as error:
                problems.append(str(error).rstrip("."))
                continue
            ml = mask.sum() * np.prod(volume.spacing) / 1000
            tqdm.write(f"{names[path]}: body {ml:.1f} ml, {mask.mean():.0%}")
            cleaned = nib.Nifti1Image(volume.as_stored(array.astype(np.float32)), volume.stored)
            cleaned.header.set_xyzt_units("mm")
            with atomic_path(folder / f"{names[path]}.nii.gz") as part:
                nib.save(cleaned, part)
    print(f"{len(paths) - len(problems)} volumes are in {folder}")
    refuse_unusable(problems, len(paths), config.data)
    return folder


def main(argv=None):
    """The command line."""
    config = parse_cli(BackgroundConfig, argv)
    with one_line_errors():
        clean_folder(config)


if __name__ == "__main__":
    main()
