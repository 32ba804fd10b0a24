"""The training folder once more, as BIDS derivatives; and which files are of one scan by their names."""

import json
import os
import re
import shutil
from pathlib import Path

from volumetric import __version__
from volumetric.files import part_of

ENTITY = re.compile(r"(?:sub|ses|run)-[A-Za-z0-9]+")
ABOUT = {"Name": "TOF MRA regions", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}


def same_entities(name, paths):
    """Those of the files whose names have the subject, session and run of a scan's name, if it has any."""
    entities = set(ENTITY.findall(name))
    return [path for path in paths if entities and set(ENTITY.findall(Path(path).name)) == entities]


def entities_of(name):
    """BIDS entities of a scan's name: its sub- and ses-, or its letters and digits as subject."""
    found = [re.search(rf"{kind}-[A-Za-z0-9]+", name) for kind in ("sub", "ses")]
    if found[0] is None:
        return [f"sub-{re.sub('[^A-Za-z0-9]', '', name)}"]
    return [match[0] for match in found if match is not None]


def write_bids(folder, names, versions):
    """Write bids/ of an output folder anew: a volume and its sidecar for every name.

    Args:
        folder: Output folder.
        names: Of the scans whose volumes are in volumes/.
        versions: {program: version}, for dataset_description.json.
    """
    part, taken = part_of(folder / "bids"), {}
    part.mkdir()
    try:
        for name in sorted(names):
            entities = entities_of(name)
            number = taken[tuple(entities)] = taken.get(tuple(entities), 0) + 1
            run = [] if number == 1 else [f"run-{number}"]
            place = part.joinpath(*entities, "anat")
            place.mkdir(parents=True, exist_ok=True)
            stem = "_".join([*entities, *run, "space-template_desc-region_angio"])
            shutil.copyfile(folder / "volumes" / f"{name}.nii.gz", place / f"{stem}.nii.gz")
            record = json.loads((folder / "sidecars" / f"{name}.json").read_text(encoding="utf-8"))
            about = {"Sources": [record["source"]["file"]], "SpatialReference": "the template", **record}
            (place / f"{stem}.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        generated = [{"Name": "stylegan2-pytorch-3d preprocessing", "Version": __version__, **versions}]
        about = json.dumps(ABOUT | {"GeneratedBy": generated}, indent=1)
        (part / "dataset_description.json").write_text(about, encoding="utf-8")
        if (folder / "bids").exists():
            shutil.rmtree(folder / "bids")
        os.replace(part, folder / "bids")
    finally:
        shutil.rmtree(part, ignore_errors=True)
