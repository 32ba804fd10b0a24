"""Tables that people write beside volumes: subjects, groups, labels, and the split of a data set.

    rows = read_table("subjects.csv", "file", "subject", flag="--subjects")      [{column: text}]
    found, unused = rows_of(rows, paths, "--subjects subjects.csv")              the row of every file
    subject_of("sub-01/ses-2/anat/sub-01_ses-2_angio.nii.gz")                    sub-01, if no table says it
    Split.read("split.csv").contents(paths, ("training",))                       what may be trained on

A row belongs to the file whose path ends as the row's `file` says, so that siteA/sub-00.nii.gz and
siteB/sub-00.nii.gz are told apart, and a table made above a folder serves inside it, too. Texts are compared
in Unicode's composed form: a Mac writes some letters of a file's name as two characters.
"""

import csv
import io
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from volumetric.cli import UserError
from volumetric.files import MAX_REASON, as_damaged, atomic_path

Row = dict[str, str]  # {column: text}

SEPARATORS = ",;\t"
PARTS = ("training", "held_out", "test")  # of a split
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # first bytes of what Excel calls Unicode Text
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # of .xlsx and .ods, and of .xls
AS_CSV = 'save it as "CSV UTF-8"'
BIDS_LABEL = re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+")
ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)


def read_table(path: Path | str, *columns: str, flag: str = "") -> list[Row]:
    """Rows of a CSV file, each {column: text}; commas, semicolons or tabs, with or without a byte order mark.

    Columns without a name are left out, as the numbers of rows that pandas writes.

    Args:
        path: CSV file in UTF-8 with a line of column names.
        columns: Columns that it must have, and of which no cell may be empty.
        flag: Flag that names it, for messages.

    Raises:
        UserError: It is no such table, or has no rows; a name comes twice, a cell is empty, or a row has more
            cells than there are columns.
    """
    called, wanted = f"{flag} {path}".strip(), f" of {' and '.join(columns)}" if columns else ""
    if not Path(path).is_file():
        raise UserError(f"{called} is no file: give a CSV table{wanted}.")
    lines = lines_of(text_of(path, called), columns, called)
    if not lines:
        raise UserError(f"{called} is empty: give a CSV table{wanted}.")
    (_, names), *lines = lines
    check_names(names, columns, called)
    if not lines:
        raise UserError(f"{called} has the names of its columns and no row: add rows.")
    rows = []
    for number, cells in lines:
        if any(cells[len(names) :]):
            raise UserError(f"{called} has more cells in line {number} than columns: correct it.")
        row = dict(itertools.zip_longest(names, cells[: len(names)], fillvalue=""))
        row.pop("", None)
        empty = [column for column in columns if not row[column]]
        if empty:
            raise UserError(f"{called} has no {' and no '.join(empty)} in line {number}: fill it in.")
        rows.append(row)
    return rows


def text_of(path: Path | str, called: str) -> str:
    """Text of a UTF-8 file; a UserError that says what else it is."""
    raw = Path(path).read_bytes()
    if raw.startswith(WORKBOOKS):
        raise UserError(f"{called} is a workbook of a spreadsheet: {AS_CSV}.")
    if raw.startswith(UTF_16) or b"\0" in raw:
        raise UserError(f'{called} is UTF-16 (Excel\'s "Unicode Text"), or no text: {AS_CSV}.')
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{called} is not in UTF-8 (line {number}): {AS_CSV}.") from None


def lines_of(text: str, columns: Sequence[str], called: str) -> list[tuple[int, list[str]]]:
    """[(number, cells)] of the lines of a table that hold any."""
    with as_damaged(AS_CSV, called):
        separator = separator_of(text, columns)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        lines = [(table.line_num, [unicodedata.normalize("NFC", c).strip() for c in row]) for row in table]
    except csv.Error as error:
        raise UserError(
            f"{called} cannot be read in line {table.line_num} ({error}): are its quotes closed?"
        ) from None
    return [(number, cells) for number, cells in lines if any(cells)]


def separator_of(text: str, columns: Sequence[str]) -> str:
    """The separator that makes most of the wanted columns out of the first line, or else most columns."""

    def heading(separator: str) -> tuple[int, int]:
        table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        names = [cell.strip() for cell in next(filter(any, table), ())]
        return len(set(columns) & set(names)), len(names)

    return max(SEPARATORS, key=heading)


def check_names(names: Sequence[str], columns: Sequence[str], called: str) -> None:
    """Raise a UserError unless a table has the wanted columns, and no column twice."""
    lacking = [column for column in columns if column not in names]
    if lacking:
        shown = ascii(", ".join(names))[:MAX_REASON]
        raise UserError(f"{called} has the columns {shown}, expected {' and '.join(columns)}.")
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{called} has the column {twice!r} twice: remove one.")


def write_table(path: Path | str, head: Iterable, rows: Iterable) -> None:
    """Write a CSV file of a head and rows, in one piece or not at all."""
    with atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(head)
        table.writerows(rows)


def write_records(path: Path | str, records: Iterable[dict], columns: Iterable[str] = ()) -> None:
    """Write a CSV file of [{column: value}], of the given columns, or of all in their order."""
    records = list(records)
    columns = list(columns or dict.fromkeys(name for record in records for name in record))
    write_table(path, columns, [[record.get(name, "") for name in columns] for record in records])


def rows_of(
    rows: Sequence[Row], paths: Sequence[Path | str], called: str
) -> tuple[list[Row | None], list[str]]:
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
    found, used = [], Counter[tuple[str, ...]]()
    for path in paths:
        parts = Path(unicodedata.normalize("NFC", os.path.abspath(path))).parts
        candidates = (parts[start:] for start in range(len(parts)))
        end = next((end for end in candidates if end in ends), ())
        found.append(ends.get(end))
        used[end] += 1
    for end, row in ends.items():
        if used[end] > 1:
            raise UserError(
                f"{called} has one row for {row['file']}, and {used[end]} volumes are called so: give each "
                f"its own, with its folder (folder/{row['file']})."
            )
    return found, [row["file"] for end, row in ends.items() if not used[end]]


def subjects_of(table: Path | str, paths: Sequence[Path], flag: str = "--subjects") -> dict[Path, str]:
    """{path: subject} of those files that a table of file and subject names, with or without their endings.

    Raises:
        UserError: It is no such table, gives a file two subjects, or names a file that is not there.
    """
    called, rows = f"{flag} {table}", read_table(table, "file", "subject", flag=flag)
    found, unused = rows_of(rows, paths, called)
    if unused:  # it may name cases, or the files of their label maps
        rows = [row | {"file": ENDING.sub("", row["file"])} for row in rows]
        found, unused = rows_of(rows, [ENDING.sub("", str(path)) for path in paths], called)
    if unused:
        raise UserError(f"{called} names {unused[0]}, which is no case: correct it.")
    return {path: row["subject"] for path, row in zip(paths, found, strict=True) if row is not None}


def parts_of(name: str) -> tuple[str, ...]:
    """Parts of a path in a table, which may have been written on Windows or begin with ./"""
    return tuple(part for part in PurePosixPath(name.replace("\\", "/")).parts if part != ".")


def subject_of(file: str) -> str:
    """The subject of a volume that no table names: its BIDS label, as sub-01, or else the file itself.

    Only the file's own path decides: another file changes nobody's subject. One label is one subject wherever
    it stands: T1/sub-01.nii.gz and T2/sub-01.nii.gz taken for two would put one head on both sides.

    Args:
        file: Path below the data folder, with / between its parts.

    Raises:
        UserError: It has two labels; the text begins with the path.
    """
    file = unicodedata.normalize("NFC", file)
    labels = sorted(set(BIDS_LABEL.findall(file)))
    if len(labels) > 1:
        raise UserError(
            f"{file} is of {' and '.join(labels)}: say in a table of file and subject whose it is."
        )
    return labels[0] if labels else re.sub(r"\.nii(\.gz)?$", "", file, flags=re.IGNORECASE)


@dataclass(frozen=True)
class Split:
    """Which volumes of a data set are trained on, and which are kept from it.

    Made by preprocessing/split.py: a table of file, content, subject and part.

    Args:
        path: The table.
        rows: Its rows, of `read_table`.
    """

    path: Path
    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        parts = Counter(row["part"] for row in self.rows)
        return f"Split({self.path}: {', '.join(f'{number} {part}' for part, number in parts.items())})"

    @classmethod
    def read(cls, path: Path | str, flag: str = "--split") -> "Split":
        """The split in a file; a UserError if it is none, or has a subject or a content in two parts."""
        rows = read_table(path, "file", "content", "subject", "part", flag=flag)
        for row in rows:
            if row["part"] not in PARTS:
                raise UserError(
                    f"{flag} {path} has the part {row['part']!r} for {row['file']}, expected "
                    f"{', '.join(PARTS)}."
                )
        for kind in ("subject", "content"):
            former = {}
            for row in rows:
                first = former.setdefault(row[kind], row)
                if first["part"] != row["part"]:
                    raise UserError(
                        f"{flag} {path} has the {kind} {row[kind]} in {first['part']} ({first['file']}) and "
                        f"in {row['part']} ({row['file']}): give it one part."
                    )
        return cls(Path(path), tuple(rows))

    def contents(self, paths: Sequence[Path], parts: Sequence[str]) -> dict[Path, str]:
        """{path: content} of those files that belong to the given parts.

        Raises:
            UserError: A file has no row, or none belongs to them.
        """
        found, _ = rows_of(self.rows, paths, f"--split {self.path}")
        known = {path: row for path, row in zip(paths, found, strict=True) if row is not None}
        unknown = [path for path in paths if path not in known]
        if unknown:
            raise UserError(
                f"--split {self.path} has no row for {len(unknown)} of {len(paths)} volumes, the first "
                f"{unknown[0]}: make it again with preprocessing/split.py --earlier {self.path}, "
                f"which moves nobody."
            )
        chosen = {path: row["content"] for path, row in known.items() if row["part"] in parts}
        if not chosen:
            raise UserError(f"--split {self.path} has no volume for {' or '.join(parts)} in this folder.")
        return chosen

    def number(self, paths: Sequence[Path], part: str) -> int:
        """How many of the files belong to a part."""
        found, _ = rows_of(self.rows, paths, f"--split {self.path}")
        return sum(row is not None and row["part"] == part for row in found)
