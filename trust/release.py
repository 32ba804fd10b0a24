"""A folder that can be published: a model without pickles, its card, a MONAI bundle, volumes.

    python trust/release.py --checkpoint models/cow/model_33.pt --volumes replicas/released \
        --replicas replicas --membership membership --statement statement.csv --output release
    python trust/release.py --verify release

or edit the settings below and run it. Nothing is written before it has checked that the replica gate and the
membership test passed, on volumes of this very model, and looked at every volume that is released; that what
the gate withheld is not among them; and that licence, consent and the rest are stated, in a CSV of field and
value. What would tell who was in the training set stays at home: contents of training volumes, paths of
your machine. Inputs are never written to. Sections:

    settings and configuration    every option
    what is stated and found      the statement, the gate and the test, the volumes
    writing                       a folder that is there whole or not at all
    verifying                     what of a received folder was changed, added or is missing
    entry point

The files themselves are made in release_files.py.
"""

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from volumetric import __version__
from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import LABELS, refuse_overlap, volumes_in
from volumetric.dicom_writing import KINDS
from volumetric.files import (
    array_to_volume,
    as_damaged,
    file_digest,
    is_marked_synthetic,
    load_with_header,
    naming,
    part_of,
    read_json,
    write_json,
)
from volumetric.released import generator_of, write_safetensors
from volumetric.sidecars import sidecar_of, volume_digest
from volumetric.tables import read_table

import numpy as np

from trust import release_files
from trust.scorecard import refuse_trained
from trust.sets import told_by

# Edit these, or pass them as flags; a flag wins.
# checkpoint of stylegan2_pytorch.py that is released, of which the volumes are
checkpoint = "models/default/model_1.pt"
# new folder
output = "release"

NEEDED = ("name", "licence", "consent", "contact", "intended use", "training data")  # fields of --statement
MORE = ("authors", "version", "source", "url", "citation", "biases", "limitations", "maintenance")
UNSAID = ("?", "-", "todo", "tbd", "unknown", "n/a", "...")  # what fills a field and states nothing
PACKAGES = ("huggingface_hub", "mlcroissant")  # the extra `release`
MANIFEST = "manifest.json"
PROGRAMS = {"replicas": "trust/replicas.py", "membership": "trust/membership.py"}


@dataclass(kw_only=True)
class ReleaseConfig:
    """Write a folder that can be published, or verify one that was received."""

    checkpoint: str = option(checkpoint, "Checkpoint of stylegan2_pytorch.py, of which the volumes are.")
    output: str = option(output, "New folder.", folder=True)
    volumes: str | None = option(
        None, "Folder of generated volumes to release; None releases the model alone."
    )
    replicas: str | None = option(None, "replicas.json of trust/replicas.py, or its folder.")
    membership: str | None = option(None, "membership.json of trust/membership.py, or its folder.")
    statement: str | None = option(
        None, f"CSV of field,value: {', '.join(NEEDED)}; if you like {', '.join(MORE)}.", file=True
    )
    scorecard: str | None = option(None, "scorecard.json of trust/scorecard.py, or its folder.")
    dicom: str | None = option(None, "Write every volume as DICOM too.", choices=KINDS)
    verify: str | None = option(None, "Received folder: say what was changed, added or is missing.")

    def __post_init__(self):
        check_fields(self)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ What is stated and found                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass
class Release:
    """All that a release is made of.

    Args:
        state: Content of the checkpoint.
        digest: Its SHA-256.
        stated: {field: text}.
        records: {"replicas", "membership": what the program found}, and "scorecard" if it is given.
        sources: {the same names: path of the file}.
        volumes: [VolumeFile].
        sidecars: [content of the sidecar], of every volume.
        folder: Folder of the volumes, or None.
        dicom: Kind of DICOM that the volumes are also written as, or None.
    """

    state: dict
    digest: str
    stated: dict
    records: dict
    sources: dict
    volumes: list
    sidecars: list
    folder: Path | None
    dicom: str | None = None


def refuse_without_packages():
    """Raise a UserError that names the packages of the extra `release` that are not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"A release needs {' and '.join(missing)}: pip install {' '.join(missing)}.")


def read_statement(path):
    """{field: text} of the CSV in which the user states licence, consent and the rest."""
    if path is None:
        raise UserError(f"Give --statement FILE, a CSV of field,value with {', '.join(NEEDED)}.")
    stated = {}
    for row in read_table(path, "field", "value", flag="--statement"):
        field = row["field"].strip().lower()
        if field not in NEEDED + MORE:
            known = ", ".join(NEEDED + MORE)
            raise UserError(f"--statement {path} has the field {field!r}, expected one of {known}.")
        if field in stated:
            raise UserError(f"--statement {path} has the field {field!r} twice: keep one.")
        if row["value"].strip().lower() not in UNSAID:
            stated[field] = " ".join(row["value"].split())  # one line, as in a table
    missing = [field for field in NEEDED if field not in stated]
    if missing:
        raise UserError(f"--statement {path} does not state {' and '.join(missing)}: add a line for each.")
    return stated


def record_of(name, given):
    """(path, content) of the JSON file of a program; `given` is the file, or the folder that holds it."""
    path = Path(given)
    path = path / f"{name}.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"--{name} {given} has no {name}.json: give the folder that the program made.")
    return path, read_json(path)


def read_proof(name, given, digest, known):
    """(path, record) of the gate or of the membership test, which must have passed for this very model.

    Args:
        name: replicas or membership.
        given: Its flag's value, or None.
        digest: SHA-256 of the checkpoint.
        known: {content: text} of what the model was trained on; empty if it does not say.

    Raises:
        UserError: It is missing, of an earlier version, did not pass, or is of another model or another
            training set.
    """
    if given is None:
        raise UserError(f"Give --{name} DIR: nothing is released before {PROGRAMS[name]} has passed.")
    path, record = record_of(name, given)
    called, again = f"--{name} {path}", f"run {PROGRAMS[name]} on volumes of this model"
    with as_damaged(f"{again}, with this version", called):
        verdict, models = record["verdict"], list(record["models"])
        training, held_out = set(record["contents"]["training"]), set(record["contents"]["held_out"])
        reasons = "".join(f"; {reason}" for reason in record["reasons"])
    if verdict != "passed":
        raise UserError(f"{called} has not passed: {verdict}{reasons}. This model is not released.")
    if models != [digest]:
        found = " and ".join(model[:12] or "volumes without a sidecar" for model in models) or "none"
        raise UserError(f"{called} is of another model ({found}, not {digest[:12]}): {again}.")
    refuse_trained(held_out, known, called)
    real = {content for content in known if not content.startswith(LABELS)}
    if real and not training <= real:
        strangers = len(training - real)
        raise UserError(f"{called} searched {strangers} volumes that the model was not trained on: {again}.")
    if name == "replicas" and real - training:
        left = len(real - training)
        raise UserError(f"{called} searched all but {left} of the {len(real)} training volumes: {again}.")
    return path, record


def read_volumes(config, digest, records, known):
    """([VolumeFile], [content of the sidecar]) of --volumes, all of which were looked at.

    Raises:
        UserError: One was withheld, not looked at, trained on, or is of another model.
    """
    volumes = volumes_in(config.volumes, "--volumes")
    flagged = {row["content"] for row in records["replicas"]["flagged"]}
    withheld = [volume for volume in volumes if volume.content in flagged]
    if withheld:
        raise UserError(
            f"{len(withheld)} of the {len(volumes)} volumes in --volumes {config.volumes} were withheld by "
            f"the replica gate, the first {withheld[0].path}: take them out."
        )
    for name in PROGRAMS:
        seen = set(records[name]["contents"]["generated"])
        others = [volume for volume in volumes if volume.content not in seen]
        if others:
            raise UserError(
                f"--{name} did not look at {len(others)} of the {len(volumes)} volumes in --volumes "
                f"{config.volumes}, the first {others[0].path}: run {PROGRAMS[name]} on these."
            )
    refuse_overlap(known, volumes, "what the model was trained on", "--volumes")
    return volumes, [sidecar_read(volume, digest) for volume in volumes]


def sidecar_read(volume, digest):
    """Content of a volume's sidecar, which must be of this volume and of the model.

    Raises:
        UserError: It is missing or of something else; or the NIfTI header has more than the generator writes.
    """
    path = sidecar_of(volume.path)
    if not path.is_file():
        raise UserError(f"{volume.path} has no {path.name} beside it: generate it again, or bring that back.")
    sidecar = read_json(path)
    with as_damaged("generate the volume again", path):
        made_by, stored = sidecar["checkpoint"]["sha256"], sidecar["volume_sha256"]
        shifted = sidecar.get("intensity_range") is not None
    if made_by != digest:
        raise UserError(
            f"{volume.path} is of another model ({made_by[:12]}, not {digest[:12]}): take it out."
        )
    with naming(volume.path):
        image, header = load_with_header(volume.path)
        if not is_marked_synthetic(header) or image.header.extensions:
            raise UserError("is not as it was generated (its header says other things): generate it again.")
        array = image.get_fdata(dtype=np.float32)
        if not shifted and volume_digest(array_to_volume(array)) != stored:
            raise UserError(f"is not the volume that {path} describes: generate it again.")
    return sidecar


def read_scorecard(given, release):
    """(path, record) of a scorecard, which must be of these volumes or, without any, of this model."""
    path, record = record_of("scorecard", given)
    with as_damaged("give the scorecard of this release", path):
        released = set(record["contents"]["released"])
        told = [one["text"] for one in record["criteria"]["comprehension"]]
    if release.volumes:
        fits = released == {volume.content for volume in release.volumes}
    else:
        fits = any(release.digest in text for text in told)
    if not fits:
        raise UserError(f"--scorecard {path} is of another release: run trust/scorecard.py on this one.")
    return path, record


def gather(config):
    """Everything checked, as a Release; a UserError, and nothing written, if anything is wrong."""
    from volumetric.runs import read_state

    refuse_without_packages()
    if Path(config.output).exists():
        raise UserError(f"--output {config.output} is there: give the name of a new folder.")
    if not Path(config.checkpoint).is_file():
        raise UserError(f"--checkpoint {config.checkpoint} is no file: give the model that is released.")
    stated = read_statement(config.statement)
    state, digest = read_state(config.checkpoint), file_digest(config.checkpoint)
    known, records, sources = told_by(state, config.checkpoint), {}, {}
    for name in PROGRAMS:
        sources[name], records[name] = read_proof(name, getattr(config, name), digest, known)
    volumes, sidecars, folder = [], [], config.volumes and Path(config.volumes)
    if folder:
        volumes, sidecars = read_volumes(config, digest, records, known)
    release = Release(state, digest, stated, records, sources, volumes, sidecars, folder, config.dicom)
    if config.scorecard is not None:
        sources["scorecard"], records["scorecard"] = read_scorecard(config.scorecard, release)
    return release


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Writing                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def write_release(config):
    """Check everything, then write the folder; what fails on the way leaves nothing behind."""
    release, target = gather(config), Path(config.output).resolve()
    with naming(config.checkpoint):
        entries = generator_of(release.state)
    entries.pop("trained_on", None)  # by it, who holds a training volume can see that it was one
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(target)
    try:
        part.mkdir()
        write_safetensors(entries, part / release_files.MODEL)
        release_files.write_all(release, entries, part)
        release_files.check_all(part)
        files = files_of(part)
        record = {"made_by": f"stylegan2-pytorch-3d {__version__}", "checkpoint_sha256": release.digest}
        write_json(part / MANIFEST, record | {"files": files})
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{config.output} holds the generator of step {entries.get('step')} and {told(release)}.")
    if "trained_on" not in release.state:
        print(
            "The checkpoint does not say what it was trained on: that the gate searched all of it, you state."
        )
    print(f"SHA-256 of its {MANIFEST}, to be told by another way: {file_digest(target / MANIFEST)}")


def told(release):
    """How many volumes are released, in words."""
    return f"{len(release.volumes)} volumes" if release.volumes else "no volumes"


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Verifying                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def files_of(folder):
    """{path below the folder: SHA-256} of all files in it, hidden ones too, but the manifest; sorted."""
    paths = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*")}
    return {
        name: file_digest(path) for name, path in sorted(paths.items()) if path.is_file() and name != MANIFEST
    }


def verify(folder):
    """Compare a folder with its manifest; prints a line for every difference, returns how many there are.

    Raises:
        UserError: It has no manifest.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"--verify {folder} has no {MANIFEST}: it is no release, or not a whole one.")
    with as_damaged("ask for the folder again", path):
        known = {str(name): str(digest) for name, digest in dict(read_json(path)["files"]).items()}
    there = files_of(folder)
    lines = [f"changed: {name}" for name in known if name in there and there[name] != known[name]]
    lines += [f"missing: {name}" for name in known if name not in there]
    lines += [f"added: {name}" for name in there if name not in known]
    if lines:
        print("\n".join(lines))
    else:
        print(f"{folder} holds the {len(known)} files of its manifest, unchanged.")
    print(f"SHA-256 of {MANIFEST}, to be compared with what the sender told you: {file_digest(path)}")
    return len(lines)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Entry point                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def main(argv=None):
    """The command line."""
    config = parse_cli(ReleaseConfig, argv)
    with one_line_errors():
        if config.verify is None:
            write_release(config)
        elif verify(config.verify):
            sys.exit(1)


if __name__ == "__main__":
    main()
