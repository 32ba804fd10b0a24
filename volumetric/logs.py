"""What a run tells: warnings, and its tables metrics.csv, a row a step, and fid_scores.txt, a line a number.

The tables go on where a run goes on: what a killed or reverted run wrote of later steps leaves the table.
"""

import contextlib
import csv
import io
import re
import shutil
import sys

from volumetric.files import as_damaged, atomic_path, next_free, one_line

from tqdm import tqdm

LISTENERS = []  # functions of the text of a warning


def warn(text, file=None):
    """Say a warning beside a progress bar, on stderr or another file, and to all listeners."""
    for listener in tuple(LISTENERS):
        listener(text)
    with contextlib.suppress(OSError):  # the disk may be that of the terminal's log
        tqdm.write(text, file=file or sys.stderr)


def say(text):
    """Say something beside a progress bar, on stdout, and to all listeners."""
    warn(text, sys.stdout)


@contextlib.contextmanager
def heard():
    """List of what is warned of while the block lasts."""
    said = []

    def listen(text):
        said.append(text)

    LISTENERS.append(listen)
    try:
        yield said
    finally:
        LISTENERS.remove(listen)


@contextlib.contextmanager
def dispensable(what):
    """Around what a training can do without: a full disk, and what else the system refuses, is a warning."""
    try:
        yield
    except OSError as error:
        warn(f"Warning: {what} was left out ({one_line(error)}).")


def continue_table(path, step, columns):
    """Open a CSV table to append to, without the rows beyond a step; a longer one is kept beside it.

    Returns:
        The open file, and its columns: the given ones and those that it had.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = [], list(dict.fromkeys(columns))
    if path.exists():
        text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
        with as_damaged("move it away", path):
            written = list(csv.DictReader(io.StringIO(text, newline="")))
        rows = [row for row in written if is_before(row.get("step"), step + 1) and None not in row.values()]
        columns += [name for name in (rows[0] if rows else ()) if name and name not in columns]
        if len(rows) < len(written) or not written:
            shutil.move(path, next_free(path.with_name("metrics-superseded.csv")))
    with atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return open(path, "a", newline="", buffering=1, encoding="utf-8"), columns


def append_scores(path, step, scores):
    """Add the numbers of an evaluation to fid_scores.txt, lines of step,metric,value; later steps go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
    lines = [line for line in lines if is_before(line.split(",")[0], step)]
    lines += [f"{step},{name},{value:.8g}" for name, value in scores.items()]
    with atomic_path(path) as part:
        part.write_text("\n".join(["step,metric,value", *lines, ""]), encoding="utf-8")


def is_before(text, step):
    """True if a text is the number of an earlier step."""
    return re.fullmatch("[0-9]{1,15}", text or "") is not None and int(text) < step
