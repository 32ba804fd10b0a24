"""Brain masks without weights of our own: given, by SynthStrip where it is installed, or by a template.

The template method registers a head with a known mask to the scan at 2 mm, affinely and then by SyN, carries
the mask over, and refines it by the scan's grey values.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import UserError
from volumetric.collection import refuse_other_grid
from volumetric.files import NIFTI_SUFFIXES

import numpy as np
from scipy import ndimage

from preprocessing.bids import same_entities
from preprocessing.images import grid_of, import_ants, read_image
from preprocessing.registration import COARSE_MM, QUICK_LEVELS, align, at_spacing, by_ants, write_transform

# Ways to make a mask by a program on PATH: its name, its arguments, whether it writes the brain itself.
TOOLS = {
    "synthstrip": ("mri_synthstrip", ("-i", "{scan}", "-m", "{out}"), False),
    "hd-bet": ("hd-bet", ("-i", "{scan}", "-o", "{out}", "-device", "cpu"), True),
}
DEFORMABLE = "antsRegistrationSyNQuick[so]"
BRAIN_ML = (50.0, 2500.0)  # of a plausible mask; a slab holds a part of the brain
RIM = 3  # voxels of 2 mm, which the grey values may take from a mask
LEAST_LIKE = 1.03  # TOF phantoms and MNI152 T1: 1.07; vessels without tissue and MNI152 T1: 1.00
STRIPPED_ZEROS = 0.99  # share of zeros outside its mask by which a template counts as stripped


@dataclass
class MaskSource:
    """Where brain masks come from.

    Args:
        way: given, one of TOOLS, or template.
        folder: Folder of given masks, named as the scans are.
        head, mask: Paths of the head and of its brain mask, of the template method.
    """

    way: str
    folder: str | None = None
    head: str | None = None
    mask: str | None = None

    def path_of(self, name):
        """Path of the mask of scan `name` in the folder, or a UserError."""
        for suffix in NIFTI_SUFFIXES:
            path = Path(self.folder) / f"{name}{suffix}"
            if path.exists():
                return path
        masks = [path for end in NIFTI_SUFFIXES for path in sorted(Path(self.folder).rglob(f"*_mask{end}"))]
        found = same_entities(name, masks)
        if len(found) == 1:
            return found[0]
        several = f", and {len(found)} of its BIDS entities" if found else ""
        raise UserError(f"has no mask {name}.nii.gz in --masks {self.folder}{several}")


def choose_source(masks, heads):
    """Choose where brain masks come from: given ones, a program of TOOLS that is on PATH, else a template.

    Args:
        masks: Folder of given masks, or None.
        heads: Pairs (head, mask) of paths, None where not given, the preferred one first.

    Raises:
        UserError: There is none.
    """
    if masks is not None:
        if not Path(masks).is_dir():
            raise UserError(f"--masks {masks} does not exist: give the folder that holds the brain masks.")
        return MaskSource("given", folder=masks)
    for way, (program, _, _) in TOOLS.items():
        if shutil.which(program):
            return MaskSource(way)
    for head, mask in heads:
        if head is not None and mask is not None:
            return MaskSource("template", head=str(head), mask=str(mask))
    raise UserError(
        "--perform_skull_stripping needs brain masks, and there is no source: give --masks (a folder), or "
        "--brain_template and --brain_mask (a head of any contrast and its mask), or --template_mask; or "
        "install mri_synthstrip (FreeSurfer) or hd-bet; or set --perform_skull_stripping False."
    )


def is_stripped(config):
    """True if the template is 0 outside its brain mask."""
    if config.template_mask is None:
        return False
    image = read_image(config.template, canonical=False)
    mask = same_place(read_image(config.template_mask, canonical=False), image, config.template_mask)
    return bool((image.numpy()[mask.numpy() <= 0.5] == 0).mean() > STRIPPED_ZEROS)


def needed_source(config, stripped):
    """MaskSource if masks are read, else None; a UserError if there is none to be had."""
    if stripped and not config.perform_skull_stripping:
        raise UserError(
            f"--template {config.template} is a brain alone, to be matched with stripped scans: "
            f"leave --perform_skull_stripping on, or give a template of the whole head."
        )
    if not (config.perform_skull_stripping and (config.stripped or stripped)):
        return None
    heads = [(config.brain_template, config.brain_mask), (config.template, config.template_mask)]
    return choose_source(config.masks, heads)


def brain_mask(source, name, path, scan):
    """Brain mask of a scan.

    Args:
        source: MaskSource.
        name, path: Of the scan.
        scan: ANTs image of the scan.

    Returns:
        ANTs image of 0 and 1, on the grid of the scan, or at 2 mm (template).

    Raises:
        UserError: There is no mask, or it cannot be right.
    """
    if source.way == "given":
        mask = same_place(read_image(source.path_of(name)), scan, source.path_of(name))
    elif source.way in TOOLS:
        mask = by_tool(source.way, path)
    else:
        head, of_head = read_image(source.head), read_image(source.mask)
        mask = carried(at_spacing(scan, COARSE_MM), head, same_place(of_head, head, source.mask))
    values = (mask.numpy() > 0.5).astype(np.float32)
    millilitres = float(values.sum() * np.prod(mask.spacing) / 1000)
    if not BRAIN_ML[0] <= millilitres <= BRAIN_ML[1]:
        raise UserError(
            f"has a brain mask ({source.way}) of {millilitres:.0f} ml, expected {BRAIN_ML[0]:g} to "
            f"{BRAIN_ML[1]:g}: give a right one with --masks"
        )
    return mask.new_image_like(values)


def same_place(mask, image, path):
    """The mask, if it lies on the grid of the image; else a UserError that names its file."""
    own, grid = grid_of(mask), grid_of(image)
    refuse_other_grid((own.shape, own.affine, f"mask {path}"), (grid.shape, grid.affine, "its image"))
    return mask


def by_tool(way, path):
    """Brain mask by SynthStrip (Hoopes et al. 2022) or HD-BET (Isensee et al. 2019), an ANTs image."""
    program, arguments, writes_brain = TOOLS[way]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "mask.nii.gz"
        run = subprocess.run(
            [program, *(word.format(scan=path, out=out) for word in arguments)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if run.returncode != 0 or not out.exists():
            said = (run.stderr or run.stdout).strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"made {program} fail (exit code {run.returncode}): {said[0]}")
        image = read_image(out)
    if not writes_brain:
        return image
    return image.new_image_like(ndimage.binary_fill_holes(image.numpy() != 0).astype(np.float32))


def carried(scan, head, mask):
    """The brain mask of a head, carried over to a scan by an affine and a deformable registration.

    Args:
        scan: ANTs image at COARSE_MM.
        head, mask: ANTs images of one grid.

    Returns:
        ANTs image of 0 and 1 on the grid of `scan`.

    Raises:
        UserError: Scan and head are of different things.
    """
    coarse = at_spacing(head, COARSE_MM)
    found = align(scan, coarse, dof=12, levels=QUICK_LEVELS)
    if found.fit.nmi < LEAST_LIKE:
        raise UserError(
            f"is not like the head that masks are taken from (normalised mutual information "
            f"{found.fit.nmi:.3f}, expected at least {LEAST_LIKE:g}): give its mask with --masks"
        )
    with tempfile.TemporaryDirectory() as scratch:
        start = str(Path(scratch) / "start.mat")
        write_transform(found.matrix, start)
        warp = by_ants(
            scan,
            coarse,
            type_of_transform=DEFORMABLE,
            initial_transform=[start],
            outprefix=str(Path(scratch) / "out"),
        )
        over = import_ants().apply_transforms(scan, mask, warp, interpolator="linear")
    return scan.new_image_like(refined(scan.numpy(), over.numpy() > 0.5).astype(np.float32))


def refined(values, mask):
    """A mask without what is dark at its rim, in one piece and without holes; its inside stays as it is.

    Otsu's method parts the values in and near the mask into three; the darkest are skull and fluid. What
    remains is eroded, its largest component dilated, closed and filled.

    Shapes: (X, Y, Z), (X, Y, Z) bool -> (X, Y, Z) bool
    """
    from skimage.filters import threshold_multiotsu

    near = ndimage.binary_dilation(mask)
    if len(np.unique(values[near])) < 3:
        return mask
    kept = ndimage.binary_erosion(near & (values > threshold_multiotsu(values[near], 3)[0]))
    pieces, number = ndimage.label(kept)
    if not number:
        return mask
    kept = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    inside = ndimage.binary_erosion(mask, iterations=RIM)  # with the cisterns, and the vessels in them
    kept = np.pad(ndimage.binary_dilation(kept) | inside, 3)
    kept = ndimage.binary_fill_holes(ndimage.binary_closing(kept, iterations=3))
    return kept[3:-3, 3:-3, 3:-3] & near
