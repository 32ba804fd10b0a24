"""Recall and coverage of groups of real volumes: variants, sites, scanners. Are the rare ones there too?"""

from volumetric.cli import UserError
from volumetric.rates import wilson
from volumetric.tables import read_table, rows_of

import numpy as np

from MedicalNet.distances import Neighbours

MOST_VALUES = 12  # different values of a column that is a grouping; more is a measurement


def read_groups(path, files):
    """Groupings of the real volumes, {column: value of every volume} of a CSV table with a column `file`.

    Args:
        path: CSV file, as sample_data/phantom.py writes variants.csv; `file` is a name, or a path's end.
        files: VolumeFile of the real volumes.

    Raises:
        UserError: There is no such column, no grouping; a volume has no row or no value, or two that differ.
    """
    chosen, _ = rows_of(
        read_table(path, "file", flag="--groups"), [f.path for f in files], f"--groups {path}"
    )
    lacking = [f.name for f, row in zip(files, chosen, strict=True) if row is None]
    if lacking:
        raise UserError(f"--groups {path} has no row for {len(lacking)} volumes, the first {lacking[0]}.")
    groupings = {}
    for column in chosen[0]:
        values = [row[column] for row in chosen]
        if column != "file" and 1 < len(set(values)) <= MOST_VALUES:
            if "" in values:
                raise UserError(
                    f"--groups {path} has no {column} for {files[values.index('')].name}: fill it in."
                )
            groupings[column] = values
    if not groupings:
        raise UserError(
            f"--groups {path} has no column of 2 to {MOST_VALUES} different values beside `file`."
        )
    return groupings


def by_group(groupings, real_set, generated_set):
    """Recall and coverage of every group.

    Args:
        groupings: Of `read_groups`.
        real_set, generated_set: Measured, with the features of whole volumes.

    Returns:
        {column: {value: {"n", "recall", "coverage", "recall_95", "coverage_95"}}}; intervals are Wilson's.
    """
    neighbours = Neighbours(*(one.features["volume"][:, 0] for one in (real_set, generated_set)))
    found = {"recall": neighbours.recalled(), "coverage": neighbours.covered()}
    table = {}
    for column, values in groupings.items():
        table[column] = {}
        for value in sorted(set(values)):
            members = np.array([v == value for v in values])
            row = {"n": int(members.sum())}
            for name, inside in found.items():
                row[name] = float(inside[members].mean())
                row[f"{name}_95"] = wilson(int(inside[members].sum()), row["n"])
            table[column][value] = row
    return table
