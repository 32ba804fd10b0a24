"""Files beside generated volumes: what each was made of, so that it can be made again, bit for bit; and what
the model was trained on, so that no program takes such a volume for one that the model has not seen.
"""

import contextlib
import hashlib
import json
import platform
from pathlib import Path

import numpy as np

from volumetric.cli import UserError
from volumetric.collection import LABELS, content_of_set, find, known_by_content, refuse_overlap
from volumetric.files import (
    __version__,
    atomic_path,
    file_digest,
    load_nifti,
    naming,
    read_json,
    reading,
    volume_to_array,
)

SAME = 1e-5  # between a volume and its file, in [0, 1], for equal
ROUNDING = 1e-4  # between two machines
TRAINED_ON = "trained_on-"  # begins the name of a list of contents


def digest_of(volume):
    """SHA-256 of a volume's voxels. Shapes: (1, Z, X, Y) float32"""
    return hashlib.sha256(np.ascontiguousarray(volume).tobytes()).hexdigest()


def checkpoint_record(path, step, networks):
    """What a sidecar says of the checkpoint."""
    return {"path": str(path), "sha256": file_digest(path), "step": step, "networks": networks}


def write_sidecar(path, record, volume, **versions):
    """Write a sidecar, the last of a volume's files: where it is, the volume is complete."""
    made_by = {
        "version": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **versions,
    }
    record = record | {"volume_sha256": digest_of(volume), "versions": made_by}
    with atomic_path(path) as part:
        part.write_text(json.dumps(record, indent=1), encoding="utf-8")


def write_trained_on(folder, contents, checkpoint):
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
        with atomic_path(path) as part:
            part.write_text(json.dumps(record, indent=0), encoding="utf-8")


def beside_volumes(folder, flag, pattern):
    """Sorted paths of the files of a pattern that lie beside the volumes of a folder, or above them in it."""
    places = {Path(folder)}
    for path in find(folder, flag).paths:  # also behind links to folders
        places.update(place for place in path.parents if place.is_relative_to(folder))
    return sorted(path for place in places for path in place.glob(pattern))


def trained_on(folder, flag="--generated"):
    """{content: text for a person} of all that the models of the volumes in a folder were trained on."""
    known = {}
    for path in beside_volumes(folder, flag, f"{TRAINED_ON}*.json"):
        record = read_json(path)
        with reading(path, "it is damaged; generate the volumes again"):
            told = f"trained on by {record['checkpoint']}, says {path}"
            known |= dict.fromkeys(map(str, record["contents"]), told)
    return known


def drawn_for(folder):
    """{content: text for a person} of all label maps that the volumes in a folder were drawn for.

    They are told as they were before edits; see `content_of_labels` in collection.py.
    """
    known = {}
    for path in beside_volumes(folder, "--synthetic", "*.json"):
        with contextlib.suppress(UserError):  # other programs leave files of their own beside volumes
            label_map = read_json(path).get("label_map")
            if isinstance(label_map, dict) and "content" in label_map:
                known[str(label_map["content"])] = f"the label map that {path.with_suffix('')} was drawn for"
    return known


def refuse_seen(unseen, flag, sets, known):
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


def left_of_training(volumes, flag, known):
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


def is_complete(path, record):
    """True if the volume of a sidecar is there, made of the same; paths of what it was made of may differ.

    Raises:
        UserError: A volume of this name was made of something else.
    """
    path = Path(path)
    if not path.exists():
        return False
    found = read_json(path)
    with reading(path, "remove it; the volume is then made again"):
        different = [key for key, wanted in record.items() if essence(found[key]) != essence(wanted)]
        file = path.with_name(found["file"])
    if different:
        raise UserError(f"{path} was made with another {' and '.join(different)}: choose another --output.")
    return file.is_file()


def essence(value):
    """A part of a record as JSON has it, without the places of files."""
    value = json.loads(json.dumps(value))
    return {k: v for k, v in value.items() if k != "path"} if isinstance(value, dict) else value


def check_sources(sidecar, record, *names):
    """Paths of what a volume was made of; a UserError unless all are there and the same."""
    paths = []
    for name in names:
        path, digest = Path(record[name]["path"]), record[name]["sha256"]
        if not path.is_file():
            raise UserError(f"{path}, of which {sidecar} was made, does not exist: bring it back.")
        if file_digest(path) != digest:
            raise UserError(f"{path} is not what {sidecar} was made of (SHA-256 {digest[:12]}...).")
        paths.append(path)
    return paths


def compare(volume, file, digest, scale=(0, 1), rounding=ROUNDING):
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
    volume, (low, high) = np.asarray(volume), scale
    with naming(file):
        stored = load_nifti(file).get_fdata(dtype=np.float32)
    difference = float(np.abs(volume_to_array(volume) - (stored - low) / (high - low)).max())
    if digest_of(volume) == digest and difference < SAME:
        print(f"{file.name}: identical")
    elif difference < rounding:
        print(f"{file.name}: equal up to rounding, largest difference {difference:.1e}")
    else:
        raise UserError(f"{file.name} differs from what its sidecar describes, by up to {difference:.3g}.")
    return difference
