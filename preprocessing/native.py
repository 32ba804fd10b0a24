"""From the region back to the scanner: label maps and volumes on the voxels of the raw scan."""

import re
from pathlib import Path

import numpy as np

from preprocessing.images import Grid, to_ants, write_image
from preprocessing.masks import same_place
from preprocessing.registration import resample
from volumetric.cli import UserError
from volumetric.files import (
    SYNTHETIC,
    atomic_path,
    check_array,
    is_marked_synthetic,
    load_nifti,
    naming,
    read_json,
    reading,
)


def to_native(config):
    """Carry a volume or label map of the region back to the voxels of the raw scan; zeros elsewhere.

    Where all values are whole numbers they are labels (nearest neighbour); others are interpolated linearly.

    Args:
        config: PreprocessConfig.

    Returns:
        Path of the new file, native/<subject>_<file> in the output folder.

    Raises:
        UserError: The subject is not known, the file is not of its region, or the result is there already.
    """
    path = Path(config.to_native)
    folder = config.folder
    subject = config.subject or re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    sidecar = folder / "sidecars" / f"{subject}.json"
    if not sidecar.exists():
        raise UserError(
            f"{config.output} has no finished scan {subject!r} (no {sidecar}): name it with --subject."
        )
    record = read_json(sidecar)
    with reading(sidecar):
        expected, raw = (
            Grid(tuple(record[key]["shape"]), np.array(record[key]["affine"], dtype=float))
            for key in ("volume", "source")
        )
        matrix = np.linalg.inv(record["transform"]["template_to_scan_ras_mm"])
    with naming(f"--to_native {path}"):
        image = load_nifti(path, check_array)
        if len(image.shape) != 3:
            raise UserError(
                f"is {len(image.shape)}D {image.shape}, expected 3D (X, Y, Z): extract one volume"
            )
    same_place(to_ants(np.zeros(image.shape), image.affine), expected.image(), path)
    stored = np.asarray(image.dataobj)
    labels = bool((stored == np.rint(stored)).all())
    values = to_ants(stored.astype(np.float32), image.affine)
    array = resample(values, raw.image(), matrix, "nearestNeighbor" if labels else "linear").numpy()
    mark = f"{SYNTHETIC} " if is_marked_synthetic(image.header) else ""
    target = folder / "native" / f"{subject}_{path.name}"
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        raise UserError(f"{target} is there already: move it away.")
    with atomic_path(target) as part:
        kind = stored.dtype if labels else np.float32
        write_image(array.astype(kind), raw.affine, part, f"{mark}from the region to the scanner")
    return target
