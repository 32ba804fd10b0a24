"""The books of an output folder: settings, which scan has come how far, and where its volume belongs.

volumes/ holds what can be trained on, and nothing else. What looks wrong lies in flagged/ until it is
accepted; what was made of a scan that is gone, has changed, or is excluded lies in withdrawn/.
"""

import csv
import itertools
import os
import sys
from pathlib import Path

from volumetric.cli import UserError
from volumetric.files import file_digest, naming, read_json, reading, write_json
from volumetric.tables import write_records

FOLDERS = ("volumes", "flagged", "transforms", "masks", "qc", "sidecars")
STEPS = ("read", "bias", "mask", "register", "region", "resample", "picture", "write")
MEASURED = ("nmi", "distinct", "overlap", "sides", "coverage", "vessels")
COLUMNS = ("subject", "file", "step", *MEASURED, "seconds", "peak_mib", *STEPS, "reason")
# Files of a scan: (folder, ending).
PARTS = (("volumes", ".nii.gz"), ("flagged", ".nii.gz"), ("sidecars", ".json"), ("transforms", ".mat"))
PARTS += (("masks", ".nii.gz"), ("labels", ".nii.gz"), ("flagged/labels", ".nii.gz"))
PARTS += (("qc", ".png"), ("qc", "_region.png"))
APART = {"masks": "_mask", "labels": "_labels"}  # before the ending, where all lie in one folder


def row_of(name, path, step, reason=""):
    """A row of status.csv with what is known of every scan."""
    known = {"subject": name, "file": str(path), "step": step, "reason": reason}
    return {column: "" for column in COLUMNS} | known


def read_status(folder):
    """Rows of status.csv, {subject: row}."""
    path = folder / "status.csv"
    if not path.exists():
        return {}
    with reading(path), open(path, newline="", encoding="utf-8") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def write_status(rows, folder):
    """Write status.csv, subjects in order."""
    write_records(folder / "status.csv", [rows[name] for name in sorted(rows)], COLUMNS)


def same_settings(folder, settings):
    """Note the settings in the output folder; a UserError if what lies there was made with others."""
    path = folder / "settings.json"
    if not path.exists():
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    earlier = read_json(path)
    changed = [
        f"{name} {earlier.get(name)} then, {settings.get(name)} now"
        for name in sorted(earlier.keys() | settings.keys())
        if earlier.get(name) != settings.get(name)
    ]
    if changed:
        raise UserError(
            f"{folder} was made with other settings ({'; '.join(changed)}): give another --output."
        )


def read_names(path, known):
    """Names of scans in a text file, one a line; # begins a comment. No file is none.

    Raises:
        UserError: A name is of no scan.
    """
    if not path.exists():
        return set()
    with naming(path), reading(path):
        lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    names = {line for line in lines if line}
    for name in sorted(names - set(known)):
        raise UserError(f"{path} names {name!r}, and no scan is called so: give names as in status.csv.")
    return names


def record_of(folder, name):
    """Sidecar of a scan as a dictionary, or None."""
    path = folder / "sidecars" / f"{name}.json"
    return read_json(path) if path.exists() else None


def volume_of(folder, name):
    """Path of a scan's volume, wherever it lies, or None."""
    for where in ("volumes", "flagged"):
        path = folder / where / f"{name}.nii.gz"
        if path.exists():
            return path
    return None


def is_whole(folder, name, inputs):
    """True if a scan's volume is there, undamaged, and made of these inputs.

    Args:
        inputs: {scan, mask, initial}: digests of what it is made of, None where there is none.
    """
    path, record = volume_of(folder, name), record_of(folder, name)
    if path is None or record is None:
        return False
    with reading(folder / "sidecars" / f"{name}.json"):
        same = record["inputs"] == inputs
        return same and record["volume"]["sha256"] == file_digest(path)


def place(folder, name, where):
    """Move a scan's volume to volumes/ or flagged/, if it is not there, and its label map with it."""
    path, file = volume_of(folder, name), f"{name}.nii.gz"
    if path is not None:
        move(path, folder / where / file)
    labels = {"volumes": folder / "labels" / file, "flagged": folder / "flagged" / "labels" / file}
    for path in labels.values():
        if path.exists():
            move(path, labels[where])


def move(path, target):
    """Move a file, if it is not there."""
    if path != target:
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)


def withdraw(folder, name):
    """Move everything that was made of a scan to withdrawn/."""
    parts = [(folder / kind / f"{name}{ending}", ending) for kind, ending in PARTS]
    there = [(path, ending) for path, ending in parts if path.exists()]
    if not there:
        return
    target = folder / "withdrawn"
    target.mkdir(exist_ok=True)
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(1)))
    stem = next(n for n in names if not list(target.glob(f"{n}.*")))
    for path, ending in there:
        os.replace(path, target / f"{stem}{APART.get(path.parent.name, '')}{ending}")


def make_room(folder, name, inputs):
    """Withdraw what was made of other inputs than these, and remove a volume that is damaged."""
    record = record_of(folder, name)
    if record is not None and record.get("inputs") != inputs:
        withdraw(folder, name)
    path = volume_of(folder, name)
    if path is not None:
        path.unlink()


def restore(folder, name, inputs):
    """Bring back from withdrawn/ what was made of these inputs, the volume to flagged/. True if any."""
    for sidecar in sorted((folder / "withdrawn").glob("*.json")):
        record = read_json(sidecar)
        with reading(sidecar):
            if (record["subject"], record["inputs"]) != (name, inputs):
                continue
        stem = sidecar.name.removesuffix(".json")
        for kind, ending in PARTS:
            path = folder / "withdrawn" / f"{stem}{APART.get(kind, '')}{ending}"
            if path.exists() and kind != "volumes":
                (folder / kind).mkdir(exist_ok=True)
                os.replace(path, folder / kind / f"{name}{ending}")
        return True
    return False


def without_scan(folder, names):
    """Names of scans that have results, but are not among `names`."""
    made = {path.name.removesuffix(".json") for path in Path(folder / "sidecars").glob("*.json")}
    for where in ("volumes", "flagged"):
        made |= {path.name.removesuffix(".nii.gz") for path in (folder / where).glob("*.nii.gz")}
    return sorted(made - set(names))


def report(rows, folder):
    """Print what is not in the training folder, and why. Returns how many scans failed or are flagged."""
    others = {name: row for name, row in sorted(rows.items()) if row["step"] != "done"}
    for name, row in others.items():
        print(f"{row['step']}: {name} {row['reason']}", file=sys.stderr)
    done = len(list((folder / "volumes").glob("*.nii.gz")))
    flagged = sum(row["step"] == "flagged" for row in others.values())
    hint = f"; {flagged} are flagged: look, and name the right ones in accept.txt" if flagged else ""
    print(f"{done} of {len(rows)} scans are in {folder / 'volumes'}; look at {folder / 'qc.html'}{hint}")
    return sum(row["step"] not in ("excluded", "withdrawn") for row in others.values())
