"""Files beside generated volumes: what each was made of, so that it can be made again, bit for bit; and what
the model was trained on, so that no program takes such a volume for one that the model has not seen.
"""

import contextlib
import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from volumetric import __version__
from volumetric.cli import UserError
from volumetric.collection import LABELS, VolumeFile, content_of_set, find, known_by_content, refuse_overlap
from volumetric.files import (
    Record,
    file_digest,
    load_nifti,
    naming,
    read_json,
    reading,
    volume_to_array,
    write_json,
)
from volumetric.names import name_of

import nibabel as nib
import numpy as np

SAME = 1e-5  # between a volume and its file, in [0, 1], for equal
ROUNDING, HALF_ROUNDING = 1e-4, 1e-2  # between two machines; in half precision
TRAINED_ON, DRAWN_FOR = "trained_on-", "drawn_for-"  # begin the name of a list of contents
SELECTION = "acceptance.json"  # beside volumes of which those were kept alone that passed conditions
PLACES = ("path", "name", "position")  # in a record: what a person calls a thing, not what it is


def volume_digest(volume: np.ndarray) -> str:
    """SHA-256 of a volume's voxels, or of a label map's. Shapes: (1, Z, X, Y) or (X, Y, Z)"""
    return hashlib.sha256(np.ascontiguousarray(volume).tobytes()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what draws and writes a volume."""
    return {
        "stylegan2_pytorch": __version__,
        "torch": getattr(sys.modules.get("torch"), "__version__", None) or version("torch"),
        "numpy": np.__version__,
        "nibabel": nib.__version__,
        "python": platform.python_version(),
    }


def different(found: Record, wanted: Record) -> list[str]:
    """Names of what a sidecar says otherwise than a record, without the places and names of files.

    Args:
        found: The sidecar's.
        wanted: {name: value} in JSON's types.
    """
    return [key for key, value in wanted.items() if essence(found[key]) != essence(value)]


def essence(value: object) -> object:
    """A part of a record as JSON has it, without places and names; a file is known by its digest."""
    value = json.loads(json.dumps(value))
    if not isinstance(value, dict):
        return value
    places = {*PLACES, *({"file"} if "sha256" in value else ())}
    return {key: essence(part) for key, part in value.items() if key not in places}


def check_sources(
    sidecar: Path | str, record: Record, *names: str, given: Path | str | None = None
) -> list[Path]:
    """Paths of what a volume was made of; a UserError unless all are there and the same.

    Args:
        sidecar: Its path.
        record: Its content.
        names: Of the sources in it.
        given: Path of the first in place of the recorded one.
    """
    paths = []
    for name in names:
        path, digest = Path(record[name]["path"]), record[name]["sha256"]
        remedy = "give it with --checkpoint" if name == "checkpoint" else "bring it back"
        path, given = Path(given or path), None
        if not path.is_file():
            raise UserError(f"{path}, of which {sidecar} was made, does not exist: {remedy}.")
        if file_digest(path) != digest:
            raise UserError(
                f"{path} is not the {name.replace('_', ' ')} that {sidecar} was made with (SHA-256 "
                f"{digest[:12]}...): {remedy}."
            )
        paths.append(path)
    return paths


def compare(
    volume: np.ndarray,
    file: Path | str,
    digest: str,
    scale: tuple[float, float] = (0, 1),
    rounding: float = ROUNDING,
) -> float:
    """Say whether a volume that was made again is the one in its file; returns the largest difference.

    Args:
        volume: (1, Z, X, Y) float32 in [0, 1].
        file: NIfTI file.
        digest: SHA-256 of the voxels that were made first.
        scale: Grey values in the file of 0 and 1.
        rounding: Largest difference that counts as rounding.

    Raises:
        UserError: It is another.
    """
    volume, file, (low, high) = np.asarray(volume), Path(file), scale
    with naming(file):
        stored = load_nifti(file).get_fdata(dtype=np.float32)
    difference = float(np.abs(volume_to_array(volume) - (stored - low) / (high - low)).max())
    if volume_digest(volume) == digest and difference < SAME:
        print(f"{file.name}: identical")
    elif difference < rounding:
        print(f"{file.name}: equal up to rounding, largest difference {difference:.1e}")
    else:
        raise UserError(f"{file.name} differs from what its sidecar describes, by up to {difference:.3g}.")
    return difference


def write_trained_on(folder: Path | str, contents: Iterable[str], checkpoint: Path | str) -> None:
    """Write what a model was trained on beside its volumes; nothing for a model that does not know it.

    Args:
        folder: Folder of the volumes.
        contents: What every training volume is known by; see collection.py.
        checkpoint: Path of the model.
    """
    contents = sorted(contents)
    if not contents:
        return
    path = Path(folder) / f"{TRAINED_ON}{content_of_set(contents)[:12]}.json"
    if not path.exists():
        record = {"checkpoint": Path(checkpoint).name, "contents": contents}
        write_json(path, record, indent=0)


def beside_volumes(folder: Path | str, flag: str, pattern: str) -> list[Path]:
    """Sorted paths of the files of a pattern that lie beside the volumes of a folder, or above them in it."""
    places = {Path(folder)}
    for path in find(folder, flag).paths:  # also behind links to folders
        places.update(place for place in path.parents if place.is_relative_to(folder))
    return sorted(path for place in places for path in place.glob(pattern))


def trained_on(folder: Path | str, flag: str = "--generated") -> dict[str, str]:
    """{content: text for a person} of all that the models of the volumes in a folder were trained on."""
    known = {}
    for path in beside_volumes(folder, flag, f"{TRAINED_ON}*.json"):
        record = read_json(path)
        with reading(path, "it is damaged; generate the volumes again"):
            told = f"trained on by {record['checkpoint']}, says {path}"
            known |= dict.fromkeys(map(str, record["contents"]), told)
    return known


def models_of(volumes: Sequence[VolumeFile]) -> list[str]:
    """Sorted SHA-256 of the checkpoints that made some VolumeFiles, as their sidecars say.

    An empty text among them stands for volumes whose sidecar is missing, or says nothing of that.
    """
    found = set()
    for volume in volumes:
        sidecar = sidecar_of(volume.path)
        record = read_json(sidecar) if sidecar.is_file() else {}
        checkpoint = record.get("checkpoint")
        found.add(str(checkpoint.get("sha256", "")) if isinstance(checkpoint, dict) else "")
    return sorted(found)


def sidecar_of(path: Path | str) -> Path:
    """Path of the sidecar of a volume, whether it is there or not."""
    return Path(path).with_name(f"{name_of(path)}.json")


def drawn_for(folder: Path | str, flag: str = "--synthetic") -> dict[str, str]:
    """{content: text for a person} of all label maps that the volumes in a folder were drawn for.

    They are told as they were before edits and variations, by the sidecars of volumes and by the lists that
    `write_drawn_for` leaves beside label maps; see `content_of_labels` in collection.py.
    """
    known = {}
    for path in beside_volumes(folder, flag, "*.json"):
        with contextlib.suppress(UserError):  # other programs leave files of their own beside volumes
            record = read_json(path)
            label_map = record.get("label_map")
            if isinstance(label_map, dict) and "content" in label_map:
                known[str(label_map["content"])] = f"the label map that {path.with_suffix('')} was drawn for"
            if path.name.startswith(DRAWN_FOR):
                told = f"a label map of which others were made, says {path}"
                known |= dict.fromkeys(map(str, record.get("contents", ())), told)
    return known


def write_drawn_for(folder: Path | str, contents: Iterable[str]) -> None:
    """Write beside label maps of which others, as edited or varied, they are made.

    Args:
        folder: Folder of the label maps.
        contents: What every original is known by; see collection.py.
    """
    contents = sorted(contents)
    path = Path(folder) / f"{DRAWN_FOR}{content_of_set(contents)[:12]}.json"
    if not path.exists():
        write_json(path, {"contents": contents})


def other_number(found: Record, wanted: int, most: int) -> list[str]:
    """What else a selection was made with than these numbers, text; none if they go on with it.

    Args:
        found: What its acceptance.json holds.
        wanted, most: Numbers of volumes to keep, and to draw at most.
    """
    if found.get("finished", True):
        fewer = found["kept"] > wanted or found["drawn"] > most
        return [f"number, {found['kept']} of {found['drawn']} drawn"] if fewer else []
    fewer = found["asked_for"] > wanted or found["most"] > most
    return [f"number, {found['asked_for']} of at most {found['most']}, which was stopped"] if fewer else []


def refuse_other_selection(
    folder: Path, flag: str, record: Record, wanted: int, most: int, requests: Sequence[Record] = ()
) -> None:
    """Raise a UserError if a folder has another selection than one that a command goes on with.

    Args:
        folder, flag, record, wanted, most: As of `begin_selection`.
        requests: What is asked for of every volume, of which further ones may follow; none if nothing is.
    """
    path = folder / SELECTION
    if not path.exists():
        return
    found = read_json(path)
    with reading(path, f"remove it, or choose another {flag}"):
        other = [key for key, value in record.items() if essence(found.get(key)) != essence(value)]
        both = zip(found["requests"] if requests else (), requests, strict=False)
        other += [] if all(one == another for one, another in both) else ["requests"]
        other = other or other_number(found, wanted, most)
    if other:
        raise UserError(f"{path} was made with another {' and '.join(other)}: choose another {flag}.")


def begin_selection(folder: Path, flag: str, record: Record, wanted: int, most: int) -> None:
    """Say in acceptance.json which selection is being made: once killed, it must not be mixed with others.

    What an earlier run of the same said of itself stays until this one ends.

    Args:
        folder: Of the volumes, which is there.
        flag: The option that gives another folder.
        record: What another selection has otherwise.
        wanted, most: As of `other_number`.

    Raises:
        UserError: The folder has volumes that no conditions selected.
    """
    path, found = folder / SELECTION, {"drawn": 0, "kept": 0}
    if path.exists():
        found = read_json(path)
    else:
        for sidecar in sorted(folder.glob("*.json")):
            of = {}
            with contextlib.suppress(UserError):  # other programs leave files of their own beside volumes
                of = read_json(sidecar)
            if "volume_sha256" in of and "accepted_by" not in of:
                raise UserError(
                    f"{folder} has volumes that no conditions selected, as {sidecar.name}: choose another "
                    f"{flag}."
                )
    begun = {"synthetic": True, "finished": False, "asked_for": wanted, "most": most}
    write_json(path, found | begun | record)


def refuse_seen(
    unseen: Sequence[VolumeFile], flag: str, sets: dict[str, list[VolumeFile]], known: dict[str, str]
) -> None:
    """Raise a UserError if volumes that a model must not have seen are in another set, or were trained on.

    Args:
        unseen: [VolumeFile], held out.
        flag: Of these.
        sets: {flag: [VolumeFile]} of the others.
        known: Of `trained_on`.
    """
    for other, volumes in sets.items():
        refuse_overlap(known_by_content(volumes), unseen, other, flag)
    refuse_overlap(known, unseen, "what the model was trained on", flag)


def left_of_training(volumes: Sequence[VolumeFile], flag: str, known: dict[str, str]) -> int | None:
    """Number of volumes that a model was trained on and that are not among those called its training volumes.

    Args:
        volumes: [VolumeFile], called its training volumes.
        flag: Of these.
        known: Of `trained_on`.

    Returns:
        The number, or None if it is not known what the model was trained on.

    Raises:
        UserError: It was not trained on one of them.
    """
    strangers = [volume for volume in volumes if volume.content not in known]
    if known and strangers:
        told = next(iter(known.values()))
        raise UserError(
            f"{len(strangers)} of the {len(volumes)} volumes of {flag} are none that the model was trained "
            f"on, the first {strangers[0].path} (others were {told}): give its training volumes alone, for "
            f"example by --split."
        )
    others = known.keys() - {volume.content for volume in volumes}
    return sum(not content.startswith(LABELS) for content in others) if known else None
