"""Label maps of the circle of Willis: tables of ids, and their translation into new files.

    python segmentation/labels.py --data labels --output remapped --source topcow2024 --target paper

or edit the settings below and run it. Inputs are never written to.
"""

import itertools
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# Run as a script, segmentation.py beside this file would hide its package.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import nibabel as nib
import numpy as np
from tqdm import tqdm

from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.files import as_damaged, atomic_path, find_volumes, next_free

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


def name_of(path):
    """Name of a case: of its file, without the ending."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def pair_up(folders, only=None):
    """{case: paths, in the order of the folders} of files of the same names in several folders.

    Args:
        folders: {flag: folder}.
        only: Names of the cases that are wanted; None is all, and all must have partners.

    Raises:
        UserError: A folder has two files of one name, or a file has no partner.
    """
    found = {}
    for flag, folder in folders.items():
        paths = find_volumes(folder, f"--{flag}")
        paths = [path for path in paths if only is None or name_of(path) in only]
        found[flag] = {name_of(path): path for path in paths}
        if len(found[flag]) < len(paths):
            raise UserError(f"--{flag} {folder} has several files of one name: give a folder of one set.")
    for flag, other in itertools.permutations(folders, 2):
        alone = sorted(found[flag].keys() - found[other].keys())
        if alone:
            raise UserError(
                f"{found[flag][alone[0]]} has no partner in --{other} {folders[other]}, as {len(alone)} of "
                f"{len(found[flag])}: the names must be the same."
            )
    first = next(iter(found.values()))
    return {name: tuple(one[name] for one in found.values()) for name in sorted(first)}


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


def read_labels(path, table="topcow2024", canonical=True):
    """A label map, with its axes near right, front and up unless they are wanted as stored.

    Args:
        path: NIfTI file of whole numbers, 3D or (X, Y, Z, 1).
        table: Name of the table of its ids, or {id: name}; None allows any.
        canonical: Turn the axes.

    Returns:
        (uint8 (X, Y, Z), affine (4, 4) RAS mm).

    Raises:
        UserError: It is no label map of this table.
    """
    with as_damaged("it is no NIfTI file, or damaged", path):
        image = nib.load(path)
        described = bytes(image.header["descrip"]).rstrip(b"\0").decode(errors="replace")
        image = nib.as_closest_canonical(image) if canonical else image
        array = np.asanyarray(image.dataobj)
    array = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
    if array.ndim != 3:
        raise UserError(f"{path} has the shape {array.shape}, expected three axes.")
    if not np.isfinite(array).all() or (array != np.rint(array)).any():
        raise UserError(
            f"{path} has values that are no whole numbers: labels were interpolated; resample anew."
        )
    ids = {int(n) for n in np.unique(array)} - {0}
    known = range(1, 256) if table is None else table_of(table)
    unknown = sorted(ids - set(known))
    if unknown:
        hint = ""
        if table is not None:
            fitting = [name for name, there in TABLES.items() if ids <= there.keys()]
            hint = f": they fit {' and '.join(fitting)}" if fitting else ""
            hint += "; translate them with segmentation/labels.py" if fitting else ", and no known table"
        wanted = table if isinstance(table, str) else "the table"
        raise UserError(
            f"{path} has the ids {', '.join(map(str, unknown))}, which are not of {wanted}{hint}."
        )
    if isinstance(table, str) and described.startswith(DESCRIPTION) and described != DESCRIPTION + table:
        there = described.removeprefix(DESCRIPTION)
        raise UserError(f"{path} says that its ids are of {there}, expected {table}.")
    return array.astype(np.uint8), image.affine


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
    """Write a label map as compressed NIfTI whose header names the table of its ids."""
    image = nib.Nifti1Image(array.astype(np.uint8), affine)
    image.header["descrip"] = DESCRIPTION + table
    image.header.set_xyzt_units("mm")
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
    maps = [read_labels(path, config.source) for path in tqdm(paths, "Reading", leave=False)]
    repeated = [name for name, count in Counter(path.name for path in paths).items() if count > 1]
    if repeated:
        raise UserError(f"{config.data} has several files named {repeated[0]}: translate its folders apart.")
    folder = next_free(Path(config.output))
    folder.mkdir(parents=True)
    for path, (array, affine) in zip(paths, maps, strict=True):
        translated = remap(array, config.source, config.target)
        save_labels(translated, affine, folder / f"{name_of(path)}.nii.gz", config.target)
    print(f"{len(paths)} label maps with the ids of {config.target} are in {folder}")
    return folder


def main(argv=None):
    """The command line."""
    config = parse_cli(LabelsConfig, argv)
    with one_line_errors():
        remap_folder(config)


if __name__ == "__main__":
    main()
