"""Tables that people write beside volumes: subjects, groups, labels, and the split of a data set.

A row belongs to the file whose path ends as the row's `file` says, so that siteA/sub-00.nii.gz and
siteB/sub-00.nii.gz are told apart, and a table made above a folder serves inside it, too.
"""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from volumetric.cli import UserError
from volumetric.files import MAX_REASON, as_damaged

SEPARATORS = ",;\t"
PARTS = ("training", "held_out", "test")  # of a split


def read_table(path, *columns, flag=""):
    """Rows of a CSV file, each {column: text}; commas, semicolons or tabs, with or without a byte order mark.

    Args:
        path: CSV file in UTF-8 with a line of column names.
        columns: Columns that it must have, and of which no cell may be empty.
        flag: Flag that names it, for messages.

    Raises:
        UserError: It is no such table; a cell is empty, or a row has more cells than there are columns.
    """
    called = f"{flag} {path}".strip()
    if not Path(path).is_file():
        raise UserError(f"{called} is no file: give a CSV table of {' and '.join(columns)}.")
    with as_damaged("save it as CSV in UTF-8", called):
        text = Path(path).read_text(encoding="utf-8-sig")
        head = next((line for line in text.splitlines() if line.strip()), "")
        separator = max(SEPARATORS, key=head.count)
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        rows, names = list(table), [name.strip() for name in table.fieldnames or ()]
    lacking = [column for column in columns if column not in names]
    if lacking:
        shown = ascii(", ".join(names))[:MAX_REASON]
        raise UserError(f"{called} has the columns {shown}, expected {' and '.join(columns)}.")
    read = []
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise UserError(f"{called} has more cells in row {number} than columns: correct it.")
        cells = {name.strip(): (text or "").strip() for name, text in row.items()}
        empty = [column for column in columns if not cells[column]]
        if empty:
            raise UserError(f"{called} has no {' and no '.join(empty)} in row {number}: fill it in.")
        read.append(cells)
    return read


def rows_of(rows, paths, called):
    """The row of every file: the one whose `file` is the longest end of its path.

    Args:
        rows: Of `read_table`, with a column file.
        paths: Of the files.
        called: Flag and path of the table, for messages.

    Returns:
        ([row or None, in the order of `paths`], [`file` of the rows that no path has]).

    Raises:
        UserError: Two rows that differ are of one file, or one row is of several files.
    """
    ends = {}
    for row in rows:
        end = parts_of(row["file"])
        former = ends.setdefault(end, row)
        differing = [column for column in row if column != "file" and row[column] != former[column]]
        if differing:
            values = " and ".join(f"{one[differing[0]]!r}" for one in (former, row))
            raise UserError(
                f"{called} has two rows for {row['file']}, with the {differing[0]} {values}: keep one."
            )
    found, used = [], Counter()
    for path in paths:
        parts = Path(path).parts
        candidates = (parts[start:] for start in range(len(parts)))
        end = next((end for end in candidates if end in ends), None)
        found.append(None if end is None else ends[end])
        used[end] += 1
    for end, row in ends.items():
        if used[end] > 1:
            raise UserError(
                f"{called} has one row for {row['file']}, and {used[end]} volumes are called so: give each "
                f"its own, with its folder (folder/{row['file']})."
            )
    return found, [row["file"] for end, row in ends.items() if not used[end]]


def parts_of(name):
    """Parts of a path in a table, which may have been written on Windows or begin with ./"""
    return tuple(part for part in PurePosixPath(name.replace("\\", "/")).parts if part != ".")


@dataclass(frozen=True)
class Split:
    """Which volumes of a data set are trained on, and which are kept from it.

    Made by preprocessing/split.py: a table of file, content, subject and part.

    Args:
        path: The table.
        rows: Its rows, of `read_table`.
    """

    path: Path
    rows: tuple

    @classmethod
    def read(cls, path):
        """The split in a file."""
        rows = read_table(path, "file", "content", "subject", "part", flag="--split")
        for row in rows:
            if row["part"] not in PARTS:
                raise UserError(
                    f"--split {path} has the part {row['part']!r} for {row['file']}, expected "
                    f"{', '.join(PARTS)}."
                )
        return cls(Path(path), tuple(rows))

    def contents(self, paths, parts):
        """{path: content} of those files that belong to the given parts.

        Raises:
            UserError: A file has no row, or none belongs to them.
        """
        found, _ = rows_of(self.rows, paths, f"--split {self.path}")
        unknown = [path for path, row in zip(paths, found, strict=True) if row is None]
        if unknown:
            raise UserError(
                f"--split {self.path} has no row for {len(unknown)} of {len(paths)} volumes, the first "
                f"{unknown[0]}: make it again with preprocessing/split.py; no other subject moves."
            )
        chosen = {p: row["content"] for p, row in zip(paths, found, strict=True) if row["part"] in parts}
        if not chosen:
            raise UserError(f"--split {self.path} has no volume for {' or '.join(parts)} in this folder.")
        return chosen

    def number(self, paths, part):
        """How many of the files belong to a part."""
        found, _ = rows_of(self.rows, paths, f"--split {self.path}")
        return sum(row is not None and row["part"] == part for row in found)
