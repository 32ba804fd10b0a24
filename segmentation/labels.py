"""Label maps of the circle of Willis: tables of ids, and their translation into new files.

    python segmentation/labels.py --data labels --output remapped --source topcow2024 --target paper

or edit the settings below and run it. Inputs are never written to.
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

# Run as a script, segmentation.py beside this file would hide its package.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import content_of_labels, find_volumes, read_whole
from volumetric.files import atomic_path, load_nifti, naming, new_folder
from volumetric.geometry import CANONICAL
from volumetric.names import names_in

import nibabel as nib
import numpy as np
from tqdm import tqdm

# Edit these, or pass them as flags; a flag wins.
# folder of label maps
data = "labels"
# new folder for the translated ones
output = "remapped"
# table of the ids that there are
source = "topcow2024"
# table of the ids that are wanted
target = "paper"

BASE = {1: "BA", 2: "R-PCA", 3: "L-PCA", 4: "R-ICA", 5: "R-MCA", 6: "L-ICA", 7: "L-MCA"}
BASE |= {8: "R-Pcom", 9: "L-Pcom", 10: "Acom", 11: "R-ACA", 12: "L-ACA"}
MERGED = ("BA", "PCA", "ICA", "MCA", "ACA", "Pcom", "Acom")  # of Aydin et al., NeuroImage 304 (2024) 120936

# {id: name} of every table; the third A2 segment of the anterior cerebral artery has three different ids.
TABLES = {
    "topcow2024": BASE | {15: "3rd-A2"},  # arXiv:2312.17670
    "topcow2023": BASE | {13: "3rd-A2"},
    "nnunet": {n: name for n, name in enumerate([*BASE.values(), "3rd-A2"], start=1)},
    "paper": {n: name for n, name in enumerate(MERGED, start=1)},
}
DESCRIPTION = "labels: "  # and the table's name, in the header of what is written


def merged_name(name):
    """Class of the paper that a TopCoW class belongs to."""
    return "ACA" if name == "3rd-A2" else name.split("-")[-1]


def translation(source, target):
    """{id in one table: id in the other}.

    Raises:
        UserError: The other table cannot tell apart what this one names.
    """
    ids = {name: n for n, name in TABLES[target].items()}
    if target == "paper" and source != "paper":
        return {n: ids[merged_name(name)] for n, name in TABLES[source].items()}
    missing = [name for name in TABLES[source].values() if name not in ids]
    if missing:
        raise UserError(f"--source {source} has {', '.join(missing)}, which --target {target} has not.")
    return {n: ids[name] for n, name in TABLES[source].items()}


def table_of(table):
    """{id: name} of a table's name, or the table itself."""
    return TABLES[table] if isinstance(table, str) else table


def name_of_table(table):
    """Name of a table of ids; None for one without, or for none at all."""
    return next((name for name, there in TABLES.items() if table in (name, there)), None)


def contents_of(array, table):
    """What a label map is known by, whichever table its ids follow. Shapes: (X, Y, Z) -> {text}"""
    known, name = {content_of_labels(array)}, name_of_table(table)
    for other in TABLES if name else ():
        with contextlib.suppress(UserError):  # merged classes cannot be parted
            known.add(content_of_labels(remap(array, name, other)))
    return known


def read_labels(path, table="topcow2024", axes=CANONICAL, ignore=None):
    """A label map, with its axes near right, front and up unless others are wanted.

    Args:
        path: NIfTI file of whole numbers within 1e-3, 3D or (X, Y, Z, 1).
        table: Name of the table of its ids, or {id: name}; None allows any.
        axes: Codes of the wanted axes.
        ignore: Id of voxels whose class is unknown, which any table may have beside its own.

    Returns:
        (uint8 (X, Y, Z), affine (4, 4) RAS mm).

    Raises:
        UserError: It is no label map of this table.
    """
    with naming(path):
        volume, described = read_whole(path, axes)
    array = volume.array
    ids = {int(n) for n in np.unique(array)} - {0, ignore}
    known = range(1, 256) if table is None else table_of(table)
    unknown = sorted(ids - set(known))
    if unknown:
        hint = ""
        if table is not None:
            fitting = [name for name, there in TABLES.items() if ids <= there.keys()]
            hint = f": they fit {' and '.join(fitting)}" if fitting else ""
            hint += "; translate them with segmentation/labels.py" if fitting else ", and no known table"
        wanted = name_of_table(table) or "the table"
        raise UserError(
            f"{path} has the ids {', '.join(map(str, unknown))}, which are not of {wanted}{hint}."
        )
    refuse_other_table(path, described, ids, name_of_table(table))
    return array.astype(np.uint8), volume.affine


def refuse_other_table(path, described, ids, expected):
    """Raise a UserError if a header says that the ids, a set, are of a table where they mean others."""
    there = described.removeprefix(DESCRIPTION)
    if expected is None or not described.startswith(DESCRIPTION) or there not in TABLES:
        return
    if any(TABLES[there].get(n) != TABLES[expected][n] for n in ids):
        remedy = "translate them with segmentation/labels.py"
        if there == "paper":
            remedy = "its merged classes cannot be parted; give label maps before they were merged"
        raise UserError(f"{path} says that its ids are of {there}, expected {expected}: {remedy}.")


def is_label_map(path):
    """True for a NIfTI file whose header names a table of ids, as `save_labels` writes it."""
    try:
        header = load_nifti(path).header
    except UserError:  # it is damaged
        return False
    return header["descrip"].item().decode("latin1").startswith(DESCRIPTION)


def remap(array, source, target):
    """Ids of one table as those of another. Shapes: (X, Y, Z) -> the same, uint8"""
    table = np.zeros(256, np.uint8)
    for old, new in translation(source, target).items():
        table[old] = new
    return table[array]


def as_topcow(array, table):
    """Ids of a table as those of TopCoW 2024, which metrics.py scores. Shapes: (X, Y, Z) -> the same"""
    return array if table == "topcow2024" else remap(array, table, "topcow2024")


def save_labels(array, affine, path, table):
    """Write a label map as compressed NIfTI whose header names the table of its ids; folders are made."""
    image = nib.Nifti1Image(array.astype(np.uint8), affine)
    image.header["descrip"] = DESCRIPTION + table
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        nib.save(image, part)


@dataclass(kw_only=True)
class LabelsConfig:
    """Translate the ids of label maps into new files."""

    data: str = option(data, "Folder of label maps.")
    output: str = option(output, "New folder for the translated ones.", folder=True)
    source: str = option(source, "Table of the ids that there are.", choices=TABLES)
    target: str = option(target, "Table of the ids that are wanted.", choices=TABLES)

    def __post_init__(self):
        check_fields(self)
        if self.source == self.target:
            raise UserError(f"--source and --target are both {self.source}: there is nothing to translate.")


def remap_folder(config):
    """Translate every label map of a folder; all are read before the first is written.

    Returns:
        The new folder.
    """
    translation(config.source, config.target)
    paths = find_volumes(config.data)
    names = names_in(config.data, paths)
    maps = [read_labels(path, config.source) for path in tqdm(paths, "Reading", leave=False)]
    with new_folder(config.output) as folder:
        for path, (array, affine) in zip(paths, maps, strict=True):
            translated = remap(array, config.source, config.target)
            save_labels(translated, affine, folder / f"{names[path]}.nii.gz", config.target)
    print(f"{len(paths)} label maps with the ids of {config.target} are in {folder}")
    return folder


def main(argv=None):
    """The command line."""
    config = parse_cli(LabelsConfig, argv)
    with one_line_errors():
        remap_folder(config)


if __name__ == "__main__":
    main()
