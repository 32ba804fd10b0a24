"""Label maps and volumes between a raw scan and its prepared volume, either way.

    --to_region MAP   what lies on the voxels of the raw scan, onto those of the prepared volume
    --to_native MAP   what lies on the voxels of the prepared volume, onto those of the raw scan

MAP is a file, or a folder of label maps that are named as the scans are, or have their BIDS entities. What is
carried still says which table its ids are of, or what made it: the description in its header is kept.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import UserError
from volumetric.collection import (
    FEW_NAMED,
    WHOLE,
    find_volumes,
    is_label_map,
    read,
    refuse_other_grid,
    refuse_unusable,
)
from volumetric.files import atomic_path, load_nifti, naming, read_json, reading
from volumetric.geometry import turn
from volumetric.names import name_of

import numpy as np
from tqdm import tqdm

from preprocessing.bids import same_entities
from preprocessing.images import Grid, to_ants, write_image
from preprocessing.registration import resample
from preprocessing.scans import names_below

LABELS_ALIKE = 0.5  # of the neighbours in label maps, outside of the background; fewer in scans


@dataclass(frozen=True)
class Way:
    """One of the two ways.

    Args:
        flag: Name of the option that asks for it.
        of: What a map lies on, for messages.
        said: Description of what has none.
        folder: In the output folder, for single files.
        labels: The same, for a folder of label maps.
    """

    flag: str
    of: str
    said: str
    folder: str
    labels: str


TO_REGION = Way("to_region", "the raw scan", "from the scanner to the region", "region", "labels")
TO_NATIVE = Way("to_native", "the volume", "from the region to the scanner", "native", "native")


@dataclass(frozen=True)
class Route:
    """From one grid of a finished scan to the other.

    Args:
        source, target: Grids.
        matrix: (4, 4), points of `target` to points of `source`, RAS mm.
    """

    source: Grid
    target: Grid
    matrix: np.ndarray


def grid_in(record):
    """The Grid that a sidecar states."""
    return Grid(tuple(record["shape"]), np.array(record["affine"], dtype=float))


def route_of(folder, name, way):
    """The Route of a scan in an output folder; a UserError if no scan of this name is finished."""
    sidecar = folder / "sidecars" / f"{name}.json"
    if not sidecar.exists():
        raise UserError(f"{folder} has no finished scan {name!r} (no {sidecar}): name it with --subject.")
    record = read_json(sidecar)
    with reading(sidecar):
        raw, volume = grid_in(record["source"]), grid_in(record["volume"])
        matrix = np.array(record["transform"]["template_to_scan_ras_mm"], dtype=float)
        if way is TO_REGION:
            return Route(raw, volume, matrix)
        return Route(volume, raw, np.linalg.inv(matrix))


@dataclass(frozen=True)
class Carried:
    """What was carried.

    Args:
        array: (X, Y, Z) on the target of a Route; zeros where the source has no voxels.
        labels: It is of labels, and has the smallest type that holds them; others are float32.
        described: Description for its header.
    """

    array: np.ndarray
    labels: bool
    described: str


def carried(path, route, way):
    """Carry a file: labels by nearest neighbour, grey values linearly.

    Raises:
        UserError: It cannot be read, or does not lie on the source of the route.
    """
    with naming(path):
        volume = read(path, constant=True)
    # It may be stored along other axes than the scan.
    around, affine = turn(np.broadcast_to(0, route.source.shape), route.source.affine)
    refuse_other_grid((volume.array.shape, volume.affine, path), (around.shape, affine, way.of))
    labels = are_labels(volume.array)
    image = to_ants(np.rint(volume.array) if labels else volume.array, volume.affine)
    method = "nearestNeighbor" if labels else "linear"
    array = resample(image, route.target.image(), route.matrix, method).numpy()
    if labels:
        array = array.astype(
            np.result_type(*(np.min_scalar_type(int(n)) for n in (array.min(), array.max())))
        )
    return Carried(array, labels, volume.described or way.said)


def are_labels(array):
    """True for whole numbers, to 1e-3, that are few, or whose neighbours are alike. Shapes: (X, Y, Z)"""
    whole = np.rint(array)
    if np.abs(array - whole).max() > WHOLE:
        return False
    if is_label_map(whole):
        return True
    values, counts = np.unique(whole, return_counts=True)
    inside = whole[1:] != values[counts.argmax()]
    return bool((whole[1:] == whole[:-1])[inside].mean() > LABELS_ALIKE)


def carry(config, way):
    """Carry what --to_region or --to_native names; nothing is overwritten.

    Args:
        config: PreprocessConfig.
        way: Way.

    Returns:
        What was done, a line.

    Raises:
        UserError: A subject is not known, a file is not of its grid, or a result is there already.
    """
    path = Path(getattr(config, way.flag))
    if path.is_dir():
        return carry_folder(config, way, path)
    name = config.subject or name_of(path)
    route = route_of(config.folder, name, way)
    target = config.folder / way.folder / f"{name}_{path.name}"
    if target.exists():
        raise UserError(f"{target} is there already: move it away.")
    with naming(f"--{way.flag}"):
        found = carried(path, route, way)
    write(found, route, target)
    return f"Written: {target}"


def write(found, route, path):
    """Write what was carried."""
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as part:
        write_image(found.array, route.target.affine, part, found.described)


def carry_folder(config, way, folder):
    """Carry the label maps of all scans that have a volume, to files that are named as the volumes are.

    Raises:
        UserError: There are none, or one line for every file that could not be carried, when the others are.
    """
    if config.subject is not None:
        raise UserError(f"--subject names the scan of a file, and --{way.flag} {folder} is a folder.")
    volumes = {name_of(path) for path in (config.folder / "volumes").glob("*.nii.gz")}
    paths = find_volumes(folder, f"--{way.flag}")
    wanted = maps_of(volumes, paths, folder)
    if not wanted:
        raise UserError(
            f"--{way.flag} {folder} has no file of a volume in {config.folder / 'volumes'}, the first is "
            f"{paths[0]}: give them the names of the volumes."
        )
    for state, names in (
        ("without a volume, left out", {str(path) for path in paths} - {str(p) for p in wanted.values()}),
        ("volumes without a label map", volumes - wanted.keys()),
    ):
        if names:
            more = f" and {len(names) - FEW_NAMED} more" if len(names) > FEW_NAMED else ""
            print(f"{len(names)} {state}: {', '.join(sorted(names)[:FEW_NAMED])}{more}", file=sys.stderr)
    target, problems = config.folder / way.labels, []
    for name, path in tqdm(wanted.items(), "Carrying", unit="map"):
        try:
            carry_map(path, route_of(config.folder, name, way), way, target / f"{name}.nii.gz")
        except UserError as error:
            problems.append(str(error).rstrip("."))
    refuse_unusable(problems, len(wanted), folder)
    return f"{len(wanted)} label maps are in {target}"


def maps_of(names, paths, folder):
    """{name: path} of the label maps of scans: named as they are, else the only one of its BIDS entities."""
    maps = {name: path for path, name in names_below(paths, folder).items()}
    found = {}
    for name in sorted(names):
        alike = [maps[name]] if name in maps else same_entities(name, paths)
        if len(alike) == 1:
            found[name] = alike[0]
    return found


def carry_map(path, route, way, target):
    """Carry one label map of a folder; one that is there already must be the same."""
    found = carried(path, route, way)
    if not found.labels:
        raise UserError(f"{path} has grey values or interpolated ones, expected labels: carry it by itself")
    if not target.exists():
        write(found, route, target)
    elif not np.array_equal(load_nifti(target).dataobj, found.array):
        raise UserError(f"{target} is there already, and {path} gives another: move it away.")
