"""Starts by hand: a linear transform for a scan that is not registered otherwise, and what is none.

A start is a file <scan>.mat, .txt or .tfm of ITK, which ITK-SNAP, 3D Slicer and ANTs write. Programs have
other kinds under the same endings: they are told by what is in them.
"""

from pathlib import Path

from volumetric.cli import UserError

from preprocessing.registration import read_transform

ENDINGS = (".mat", ".txt", ".tfm")
# Endings of what is no start, and what to do.
OTHERS = dict.fromkeys(
    (".nii", ".nii.gz", ".h5"), "is a deformation field or an image, expected a linear start"
)
OTHERS |= {".lta": "is of FreeSurfer: convert it (lta_convert --inlta {path} --outitk {scan}.txt)"}
OTHERS |= {".xfm": "is of MINC or FreeSurfer: convert it to a linear ITK transform"}


def start_of(folder, name):
    """Path of the start of a scan in a folder, or None; no folder has none."""
    paths = () if folder is None else (Path(folder) / f"{name}{ending}" for ending in ENDINGS)
    return next((path for path in paths if path.exists()), None)


def check_starts(folder, names, say):
    """Read all starts of a folder before any work.

    Args:
        folder: Of --initial, or None.
        names: Of all scans.
        say: Function that is given a line for every file that is not used.

    Raises:
        UserError: One line for every start that cannot be read.
    """
    if folder is None:
        return
    starts, problems = {start_of(folder, name) for name in names} - {None}, []
    for path in sorted(starts):
        try:
            read_transform(path)
        except UserError as error:
            problems.append(str(error))
    others = {path for path in Path(folder).iterdir() if not path.name.startswith(".")} - starts
    for path in sorted(others):
        say(f"--initial {path} {why_unused(path, names)}.")
    if problems:
        listed = "\n  ".join(problems)
        raise UserError(f"{len(problems)} starts in --initial cannot be used:\n  {listed}")


def why_unused(path, names):
    """Why a file is the start of no scan."""
    ending = next((ending for ending in (*OTHERS, *ENDINGS) if path.name.lower().endswith(ending)), None)
    scan = path.name[: len(path.name) - len(ending or "")]
    if ending in OTHERS:
        return OTHERS[ending].format(path=path, scan=scan)
    if ending is None:
        return f"is not read: starts are {', '.join(f'<scan>{e}' for e in ENDINGS)}"
    if scan in names:
        return f"is not read: {scan} has another start"
    return "fits no scan: name it as the scan is named in status.csv"
