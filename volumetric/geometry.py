"""Where the voxels of a NIfTI file lie: its affine in mm, what is wrong with it, and arrays along other axes.

An affine is (4, 4), voxels to mm along right, front and up (RAS), as nibabel has it. Axis codes are those of
nibabel: LPS is an array whose axes run to the left, to the back and up.

A header can state the same thing several times, and programs choose differently among what it states: what
follows from that is refused here, once for all programs.
"""

import itertools
from collections.abc import Sequence

from volumetric.cli import UserError
from volumetric.files import by

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import ArrayLike

CANONICAL = "RAS"  # axes of every array that a program computes with
MILLIMETRES = {1: 1000.0, 3: 0.001}  # of the header's units: metres, micrometres; all others are taken for mm
OFF_MM = 0.1  # mm, that a header may contradict itself over the volume
OFF_COSINE = 1e-3  # between two axes: more is no rounding of four decimals
SAME_SPACING = 0.01  # relative difference of voxel sizes that counts as none
SAME_PLACE = 0.05  # of a voxel, between two grids that count as one: an affine is stored in float32


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Size of a voxel, mm. Shapes: (4, 4) -> (3,)"""
    return nib.affines.voxel_sizes(affine)


def axes_of(affine: np.ndarray) -> str:
    """Codes of the axes nearest to those of an array, for example LPS. Shapes: (4, 4) -> text"""
    return "".join(nib.aff2axcodes(affine))


def corners_of(shape: Sequence[int]) -> np.ndarray:
    """Middles of the voxels at a grid's corners. Shapes: (X, Y, Z) -> (8, 3), voxels"""
    return np.array(list(itertools.product(*((0, n - 1) for n in shape))), dtype=float)


def apart(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Largest distance of two affines at the corners of a grid, mm. Shapes: (4, 4), (4, 4), (3,) -> ()"""
    places = [nib.affines.apply_affine(affine, corners_of(shape)) for affine in (one, other)]
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())


def same_spacing(one: ArrayLike, other: ArrayLike) -> bool:
    """True if two voxel sizes are equal. Shapes: (3,), (3,) mm"""
    return bool(np.allclose(one, other, rtol=SAME_SPACING))


def same_grid(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> bool:
    """True if two affines place the voxels of a grid alike, to a small part of a voxel."""
    return apart(one, other, shape) <= SAME_PLACE * spacing_of(one).min()


def left_right_axis(affine: np.ndarray) -> int:
    """Axis of a NIfTI array that runs between the patient's left and right. Shapes: (4, 4) -> 0, 1 or 2"""
    return next(axis for axis, code in enumerate(axes_of(affine)) if code in "LR")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Axes                                                                                                     ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def turn(array: np.ndarray, affine: np.ndarray, axes: str = CANONICAL) -> tuple[np.ndarray, np.ndarray]:
    """An array along other axes, every voxel at its place; a view where that is possible.

    Shapes: (X, Y, Z, ...), (4, 4) -> (X', Y', Z', ...), (4, 4)
    """
    way = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(axes))
    turned = affine @ orientations.inv_ornt_aff(way, array.shape[:3])
    return orientations.apply_orientation(array, way), turned


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Headers                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def affine_of(
    image: nib.Nifti1Image, header: nib.Nifti1Header | None = None, scan: bool = False
) -> np.ndarray:
    """Affine of a NIfTI image in mm, if its header does not contradict itself.

    Args:
        image: nibabel image.
        header: Its header as it was written, before nibabel repaired it; None takes the image's.
        scan: It is a raw scan, which ITK will read too: its place must be beyond doubt.

    Returns:
        (4, 4), voxels to RAS mm. Metres and micrometres are converted, as ITK does and nibabel does not.

    Raises:
        UserError: What was found, what is expected and what to do; without the file's name.
    """
    written = image.header if header is None else header
    scale = MILLIMETRES.get(int(written["xyzt_units"]) & 7, 1.0)
    shape, affine = image.shape[:3], in_mm(image.affine, scale)
    check_affine(affine)
    pixdim = scale * np.asarray(written["pixdim"][1:4], dtype=float)
    codes = {form: int(image.header[f"{form}_code"]) for form in ("sform", "qform")}
    if scan:
        check_stated(pixdim, codes)
    if codes["sform"] > 0:
        check_lengths(pixdim, affine, shape)
        check_shear(affine, shape)
    if all(code > 0 for code in codes.values()):
        check_twice(affine, in_mm(image.header.get_qform(), scale), shape, scan)
    return affine


def in_mm(affine: np.ndarray, scale: float) -> np.ndarray:
    """An affine in mm. Shapes: (4, 4), () mm a unit -> (4, 4)"""
    affine = np.array(affine, dtype=float)
    affine[:3] *= scale
    return affine


def check_affine(affine: np.ndarray) -> None:
    """Raise a UserError unless an affine (4, 4) is finite and can be inverted."""
    if not np.isfinite(affine).all():
        raise UserError("has an affine that is singular or not finite: repair its header")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths < 1e-6).any() or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * lengths.prod():
        raise UserError("has an affine that is singular or not finite: repair its header")


def check_stated(pixdim: np.ndarray, codes: dict[str, int]) -> None:
    """Raise a UserError unless a header says where its scan lies. Shapes: (3,) mm, {form: code}"""
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        raise UserError(f"has pixdim {by(pixdim)} mm, expected numbers above 0: repair its header")
    if not any(code > 0 for code in codes.values()):
        raise UserError(
            "has neither sform nor qform (both codes are 0): where it lies is unknown; "
            "convert it again from DICOM"
        )


def check_lengths(pixdim: np.ndarray, affine: np.ndarray, shape: Sequence[int]) -> None:
    """Raise a UserError if pixdim and sform have voxels of two sizes: ITK and nibabel each take one.

    `img.header.set_zooms` on a file without a qform is how they come apart.
    """
    spacing = spacing_of(affine)
    stated = np.isfinite(pixdim).all() and (pixdim > 0).all()  # nibabel repairs what is not
    if stated and (np.abs(pixdim - spacing) * shape).max() > OFF_MM:
        raise UserError(
            f"has voxels of {by(pixdim.round(4))} mm by its pixdim and of {by(spacing.round(4))} mm by its "
            f"sform, and programs disagree on which counts: repair its header"
        )


def check_shear(affine: np.ndarray, shape: Sequence[int]) -> None:
    """Raise a UserError if the axes of a sform are not at right angles: what reads it next bends them."""
    cosines = affine[:3, :3] / spacing_of(affine)
    u, _, v = np.linalg.svd(cosines)
    upright = affine.copy()
    upright[:3, :3] = (u @ v) * spacing_of(affine)
    off = apart(affine, upright, shape)
    if off > OFF_MM or np.abs(cosines.T @ cosines - np.eye(3)).max() > OFF_COSINE:
        raise UserError(
            f"has a sform with sheared axes (corners off by {off:.2g} mm), which ITK refuses: resample it"
        )


def check_twice(affine: np.ndarray, other: np.ndarray, shape: Sequence[int], scan: bool) -> None:
    """Raise a UserError if sform and qform say different things.

    Args:
        affine, other: Of sform and qform, (4, 4), mm.
        shape: (X, Y, Z), voxels.
        scan: ITK will read it too: they must agree on the place; else on the axes alone.
    """
    off = apart(affine, other, shape) if np.isfinite(other).all() else np.inf
    if scan and off > OFF_MM:
        raise UserError(
            f"has a sform and a qform that place it {off:.3g} mm apart, and programs disagree on which "
            f"counts: copy the right one onto the other"
        )
    if off > OFF_MM and np.isfinite(other).all() and axes_of(affine) != axes_of(other):
        raise UserError(
            f"has axes {axes_of(affine)} by its sform and {axes_of(other)} by its qform, and programs "
            f"disagree on which counts: copy the right one onto the other"
        )
