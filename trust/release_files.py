"""The files of a release beside its weights, as those read them who know nothing of this project.

    README.md                        model card (arXiv:1810.03993) for the Hugging Face Hub, with YAML
    configs/*.json                   a MONAI bundle: its metadata, and an inference that generates
    volumes/                         a BIDS derivative: volumes with their sidecars, and who made them
    volumes.csv, croissant.json      every volume's SHA-256; Croissant 1.1 (arXiv:2403.19546) with RAI fields
    evidence.json                    what the gate and the test found, without the contents of real volumes

`write_all` writes them for a `Release` of release.py, `check_all` has huggingface_hub and mlcroissant read
theirs.
"""

import csv
import datetime
import re
import shutil
from importlib.metadata import version
from pathlib import Path

from volumetric import __version__
from volumetric.cli import UserError
from volumetric.dicom_writing import Origin, write_dicom
from volumetric.files import as_damaged, by, file_digest, write_json
from volumetric.geometry import spacing_of
from volumetric.sidecars import sidecar_of

import nibabel as nib
import numpy as np

from trust.pages import told_of_power

MODEL = "model.safetensors"
TABLE = "volumes.csv"
DICOM = "dicom"  # folder of the same volumes as DICOM, on request
VOLUMES = Path("volumes") / "generated"  # in a BIDS data set, but of no participant: named in .bidsignore
CARD = Path(__file__).with_name("model-card.md")
PROGRAM = "3D StyleGAN2 (stylegan2-pytorch-3d)"
BIDS_VERSION = "1.10.0"
SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
SYNTHETIC = (
    "SYNTHETIC: made by a generative model. No person was scanned for it; it is no basis for any decision."
)
# {licence of the Hub: SPDX}
LICENCES = {spdx.lower(): spdx for spdx in ("MIT", "Apache-2.0", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0")}
LICENCES |= {spdx.lower(): spdx for spdx in ("CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0")}
LICENCES |= {spdx.lower(): spdx for spdx in ("CC-BY-SA-3.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0")}
SETTINGS = ("recipe", "image_size", "image_depth", "network_capacity", "fmap_max", "batch_size")
SETTINGS += ("gradient_accumulate_every", "learning_rate", "loss", "penalty", "aug_prob", "seed")
NUMBER = re.compile(r"([A-Za-z][\w-]*) (-?\d[\d.e+-]*)")  # as in a scorecard: FID 12.2, recall 0.41
NO_FILE = (".npy",)  # endings of what a sidecar names and a release does not have


def licence_of(stated):
    """(licence for the Hub, SPDX or None) of what is stated."""
    name = re.sub(r"[^a-z0-9.]+", "-", stated["licence"].lower()).strip("-")
    return (name, LICENCES[name]) if name in LICENCES else ("other", None)


def lines_of(text):
    """Parts of a stated text that a semicolon parts."""
    return [part.strip() for part in text.split(";") if part.strip()]


def write_all(release, entries, folder):
    """Write all files but the model, which is there, and the manifest.

    Args:
        release: Release.
        entries: Of `released.generator_of`.
        folder: The new folder.
    """
    write_json(folder / "evidence.json", evidence(release))
    write_card(release, entries, folder)
    write_bundle(release, entries, folder)
    if release.volumes:
        write_volumes(release, folder)
        write_croissant(release, folder)


def check_all(folder):
    """Have huggingface_hub read the card and mlcroissant the data set; a UserError if one does not."""
    from huggingface_hub import ModelCard

    with as_damaged("correct --statement", "The release"):
        data = ModelCard.load(folder / "README.md").data
        if not (data.license and data.eval_results):
            raise UserError("The release's card has no licence or no results: correct --statement.")
        if (folder / "croissant.json").exists():
            import mlcroissant

            mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Evidence and card                                                                                        ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def evidence(release):
    """What is stated and found, by numbers; contents, names and paths of real volumes are no part of it."""
    gate, test = release.records["replicas"], release.records["membership"]
    record = {"stated": release.stated, "checkpoint_sha256": release.digest}
    record["replicas"] = {
        name: gate[name] for name in ("verdict", "n", "explained_by_chance") if name in gate
    }
    record["replicas"] |= {"flagged": len(gate["flagged"]), "of_controls": gate.get("controls")}
    names = ("verdict", "auc", "auc_delong_95", "control_auc", "p", "level", "power", "n")
    record["membership"] = {name: test[name] for name in names if name in test}
    if "scorecard" in release.records:
        record["scorecard"] = release.records["scorecard"]["criteria"]
    for name, path in release.sources.items():
        record.setdefault("sources_sha256", {})[name] = file_digest(path)
    return record


def sections_of_card():
    """{title: text} of the project's model card, links to its files taken out."""
    parts = re.split(r"^## (.+)$", CARD.read_text(encoding="utf-8"), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {n: re.sub(r"\[([^\]]+)\]\((?!http)[^)]*\)", r"\1", text).strip() for n, text in sections.items()}


def bullets(text, *unwanted):
    """The list items of a section, but those that begin with one of some words."""
    items = re.findall(r"^- .*(?:\n  .*)*", text, flags=re.MULTILINE)
    return "\n".join(item for item in items if not item.startswith(tuple(f"- {word}" for word in unwanted)))


def table_of(rows):
    """Markdown table of (name, value)."""
    cells = (f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows)
    return "\n".join(["| | |", "|---|---|", *cells])


def results_of(release):
    """[(name, number)] of the gate, the test and the scorecard, for the front matter."""
    gate, test = release.records["replicas"], release.records["membership"]
    results = [("replica-gate-flagged", len(gate["flagged"])), ("membership-auc", test.get("auc"))]
    for told in release.records.get("scorecard", {}).get("criteria", {}).values():
        for one in told:
            parts = [NUMBER.fullmatch(part) for part in one["text"].split(", ")]
            if all(parts):  # a sentence of numbers alone
                results += [(part[1], float(part[2])) for part in parts]
    return [(name, value) for name, value in results if value is not None]


def front_matter(release):
    """huggingface_hub.ModelCardData of a release."""
    from huggingface_hub import EvalResult, ModelCardData

    stated, (licence, _) = release.stated, licence_of(release.stated)
    about = {"task_type": "unconditional-image-generation", "dataset_type": "not-public"}
    about |= {"task_name": "Unconditional volume generation", "dataset_name": stated["training data"]}
    results = [
        EvalResult(metric_type=name.lower(), metric_name=name, metric_value=value, **about)
        for name, value in results_of(release)
    ]
    other = {"license_name": stated["licence"], "license_link": "README.md"} if licence == "other" else {}
    return ModelCardData(
        license=licence,
        library_name="stylegan2-pytorch-3d",
        pipeline_tag="unconditional-image-generation",
        tags=["medical", "3d", "synthetic", "stylegan2", "monai"],
        model_name=stated["name"],
        eval_results=results,
        **other,
    )


def write_card(release, entries, folder):
    """README.md: front matter, what is stated, what was measured, and what the project's card says of all."""
    stated, known = release.stated, sections_of_card()
    config, gate = entries["config"], release.records["replicas"]
    details = [(name, config[name]) for name in SETTINGS if config.get(name) is not None]
    details += [
        ("steps", entries.get("step")),
        ("classes", ", ".join(entries.get("class_names") or ()) or "none"),
    ]
    details += [("weights", f"`{MODEL}`, averages SE and GE in half precision")]
    details += [("made with", f"{PROGRAM} {entries.get('version', __version__)}")]
    flagged = f"{len(gate['flagged'])} of {gate['n']['generated']} volumes withheld"
    test = release.records["membership"]
    found = [("replica gate", f"{gate['verdict']}: {flagged}")]
    found += [("membership test", f"{test['verdict']}; {told_of_power(test['power'])}")]
    for name, told in release.records.get("scorecard", {}).get("criteria", {}).items():
        found.append((name, "; ".join(one["text"] for one in told) or "not measured"))
    personal = bullets(known["Ethical considerations and privacy"], "Before a release")
    scope = re.findall(r"^- Out of scope.*(?:\n  .*)*", known["Intended use"], flags=re.MULTILINE)
    optional = [
        f"**{name.capitalize()}**: {stated[name]}" for name in ("biases", "limitations") if name in stated
    ]
    parts = [
        f"# {stated['name']}\n\n{SYNTHETIC}",
        f"## Model details\n\n{table_of(details)}",
        f"## Intended use\n\n{stated['intended use']}\n\n" + "\n".join(scope),
        f"## Training data, licence and consent, as stated\n\n{table_of(stated.items())}",
        f"## Factors\n\n{known['Factors']}",
        f"## Metrics\n\n{known['Metrics']}",
        f"## Quantitative analyses\n\n{table_of(found)}\n\nMore in `evidence.json`.",
        f"## Ethical considerations and privacy\n\n{personal}",
        "\n\n".join(["## Caveats and recommendations", *optional, known["Caveats and recommendations"]]),
        f"## How to use it\n\n{usage(entries)}",
    ]
    text = "\n\n".join(["---\n" + front_matter(release).to_yaml() + "\n---", *parts])
    (folder / "README.md").write_text(f"{text}\n", encoding="utf-8")


def usage(entries):
    """How volumes are generated, and what a volume is."""
    shape = by((entries["config"]["image_size"],) * 2 + (entries["config"]["image_depth"],))
    spacing = by(spacing_of(np.array(entries["affine"]).reshape(4, 4)))
    return (
        f"Volumes have {shape} voxels of {spacing} mm, in [0, 1]. In an environment with "
        f"stylegan2-pytorch-3d:\n\n```bash\n"
        f"python stylegan2_pytorch.py --generate --checkpoint {MODEL} --output generated --num_generate 4 "
        f"--seed 0\n"
        f"python -m monai.bundle run --bundle_root . --meta_file configs/metadata.json "
        f"--config_file configs/inference.json\n"
        f"python trust/release.py --verify .\n```"
    )


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ MONAI bundle                                                                                             ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def write_bundle(release, entries, folder):
    """configs/metadata.json and configs/inference.json: as `stylegan2_pytorch.py --generate`."""
    stated, config = release.stated, entries["config"]
    shape = [config["image_depth"], config["image_size"], config["image_size"]]  # Z, X, Y
    of_image = {"type": "image", "format": "magnitude", "num_channels": 1, "spatial_shape": shape}
    noise = of_image | {"type": "noise", "format": "image", "dtype": "float32", "value_range": []}
    latent = {"type": "noise", "format": "latent", "num_channels": config["latent_dim"], "spatial_shape": []}
    image = of_image | {"dtype": "float32", "value_range": [0, 1], "is_patch_data": False}
    metadata = {
        "schema": SCHEMA,
        "version": stated.get("version", "1.0.0"),
        "changelog": {stated.get("version", "1.0.0"): "released"},
        **{f"{name}_version": version(package) for name, package in PACKAGES.items()},
        "required_packages_version": {"stylegan2-pytorch-3d": __version__},
        "name": stated["name"],
        "task": "Unconditional generation of synthetic volumes",
        "description": f"3D StyleGAN2 trained on: {stated['training data']}. {SYNTHETIC}",
        "authors": stated.get("authors", stated["contact"]),
        "copyright": f"{stated['licence']}; contact {stated['contact']}",
        "data_source": stated.get("source", stated["training data"]),
        "data_type": "nibabel",
        "image_classes": ", ".join(entries.get("class_names") or ["one channel, no classes"]),
        "eval_metrics": dict(results_of(release)),
        "intended_use": stated["intended use"],
        "references": ["arXiv:1912.04958", "doi:10.1016/j.neuroimage.2024.120936"],
        "network_data_format": {
            "inputs": {"latent": latent | {"dtype": "float32", "value_range": []}, "noise": noise},
            "outputs": {"pred": image | {"channel_def": {"0": "image"}}},
        },
    }
    (folder / "configs").mkdir()
    write_json(folder / "configs" / "metadata.json", metadata)
    write_json(folder / "configs" / "inference.json", INFERENCE)


PACKAGES = {"monai": "monai", "pytorch": "torch", "numpy": "numpy"}
INFERENCE = {
    "imports": ["$import stylegan2_pytorch"],
    "bundle_root": ".",
    "checkpoint": f"$@bundle_root + '/{MODEL}'",
    "output_dir": "$@bundle_root + '/generated'",
    "device": "auto",
    "num_generate": 4,
    "seed": 0,
    "trunc_psi": 1.0,
    "batch_size": 8,
    "network_def": {
        "_target_": "stylegan2_pytorch.ModelLoader",
        "checkpoint": "@checkpoint",
        "device": "@device",
    },
    "config": {
        "_target_": "stylegan2_pytorch.TrainConfig",
        "generate": True,
        "checkpoint": "@checkpoint",
        "output": "@output_dir",
        "num_generate": "@num_generate",
        "seed": "@seed",
        "trunc_psi": "@trunc_psi",
        "batch_size": "@batch_size",
        "device": "@device",
    },
    "run": ["$stylegan2_pytorch.generate_volumes(@config)"],
}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Volumes: BIDS and Croissant                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def without_places(value, key=""):
    """A sidecar's content without folders of the machine, and without files that are not released."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not (isinstance(v, str) and v.endswith(NO_FILE))}
        return {k: without_places(v, k) for k, v in kept.items()}
    if isinstance(value, list):
        return [without_places(one, key) for one in value]
    is_place = isinstance(value, str) and (key == "path" or value.startswith("/"))
    return re.split(r"[/\\]", value)[-1] if is_place else value


def write_volumes(release, folder):
    """volumes/ with dataset_description.json, and volumes.csv: path, sidecar, seed, SHA-256, bytes."""
    model = {"file": MODEL, "sha256": file_digest(folder / MODEL), "precision": "float16"}
    rows = []
    for volume, sidecar in zip(release.volumes, release.sidecars, strict=True):
        target = folder / VOLUMES / volume.path.relative_to(release.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(volume.path, target)
        record = without_places(sidecar) | {"file": target.name, "released_model": model}
        write_json(sidecar_of(target), record)
        if release.dicom is not None:
            name = target.relative_to(folder / VOLUMES).as_posix().removesuffix(".gz").removesuffix(".nii")
            image, origin = nib.load(target), Origin(name, "trust/release.py", synthetic=True)
            path = folder / DICOM / f"{name}{'.dcm' if release.dicom == 'enhanced' else ''}"
            write_dicom(image.get_fdata(dtype=np.float32), image.affine, path, origin, release.dicom)
        row = [target, sidecar_of(target)]
        row = [path.relative_to(folder).as_posix() for path in row]
        rows.append([*row, sidecar.get("seed", ""), file_digest(target), target.stat().st_size])
    with open(folder / TABLE, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([list(COLUMNS), *rows])
    write_bids(release, folder / VOLUMES.parent)


COLUMNS = {
    "file": ("sc:Text", "Path of the NIfTI volume."),
    "sidecar": ("sc:Text", "Path of the JSON file that says what it was made of."),
    "seed": ("sc:Text", "Seed that it was drawn from; empty where a recipe has no single one."),
    "sha256": ("sc:Text", "SHA-256 of the NIfTI file."),
    "bytes": ("sc:Integer", "Size of the NIfTI file."),
}


def write_bids(release, folder):
    """What a BIDS derivative says of itself; it has no participants, since nobody was scanned."""
    stated, (_, spdx) = release.stated, licence_of(release.stated)
    sources = []
    for source in lines_of(stated.get("source", "")):
        kind = "URL" if source.startswith(("http://", "https://")) else "DOI"
        sources.append({kind: source})
    sources = sources or [{"Version": f"not public: {stated['training data']}"}]
    made = [{"Name": PROGRAM, "Version": __version__, "Description": f"step {release.state.get('step')}"}]
    gate = {"Name": "trust/replicas.py and trust/membership.py", "Version": __version__}
    description = {
        "Name": f"Synthetic volumes of {stated['name']}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": spdx or stated["licence"],
        "Authors": lines_of(stated.get("authors", stated["contact"])),
        "GeneratedBy": [*made, gate | {"Description": "both passed before the release"}],
        "SourceDatasets": sources,
    }
    write_json(folder / "dataset_description.json", description)
    about = (
        f"# Synthetic volumes of {stated['name']}\n\n{SYNTHETIC}\n\nThere are no participants, hence no "
        f"sub-* folders and no participants.tsv: `{VOLUMES.name}` is named in `.bidsignore`. Every "
        f"volume has a JSON file beside it.\n\nLicence: {stated['licence']}\n"
        f"Consent: {stated['consent']}\nContact: {stated['contact']}\n"
    )
    (folder / "README.md").write_text(about, encoding="utf-8")
    (folder / ".bidsignore").write_text(f"{VOLUMES.name}\n", encoding="utf-8")


def write_croissant(release, folder):
    """croissant.json: the table with the SHA-256 of all volumes, the volumes, and the RAI fields."""
    stated, (_, spdx) = release.stated, licence_of(release.stated)
    sections = sections_of_card()
    files = {"@type": "cr:FileSet", "@id": "nifti", "name": "nifti", "encodingFormat": "application/gzip"}
    files |= {"includes": f"{VOLUMES.as_posix()}/**/*.nii*", "description": f"NIfTI volumes. {SYNTHETIC}"}
    table = {"@type": "cr:FileObject", "@id": TABLE, "name": TABLE, "contentUrl": TABLE}
    table |= {"encodingFormat": "text/csv", "sha256": file_digest(folder / TABLE)}
    record = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": f"Synthetic volumes of {stated['name']}",
        "description": f"{len(release.volumes)} volumes of a 3D StyleGAN2. {SYNTHETIC}",
        "license": f"https://spdx.org/licenses/{spdx}" if spdx else stated["licence"],
        "creator": {"@type": "sc:Organization", "name": stated.get("authors", stated["contact"])},
        "datePublished": datetime.date.today().isoformat(),
        "version": stated.get("version", "1.0.0"),
        **({"url": stated["url"]} if "url" in stated else {}),
        "citeAs": stated.get("citation", stated["name"]),
        "keywords": ["synthetic", "medical", "3D"],
        "rai:dataCollection": f"Generated by {PROGRAM} {__version__}, trained on: {stated['training data']}.",
        "rai:dataCollectionType": ["Software Collection"],
        "rai:dataPreprocessingProtocol": [told_of_withheld(release)],
        "rai:dataBiases": [stated.get("biases", one_text(sections["Factors"]))],
        "rai:dataLimitations": [stated.get("limitations", one_text(sections["Caveats and recommendations"]))],
        "rai:dataUseCases": [stated["intended use"]],
        "rai:dataSocialImpact": one_text(bullets(sections["Intended use"], "Research", "Users")),
        "rai:personalSensitiveInformation": [f"No person was scanned. Training data: {stated['consent']}"],
        "rai:dataReleaseMaintenancePlan": stated.get("maintenance", f"Contact: {stated['contact']}"),
        "distribution": [table, files],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "volumes", "name": "volumes", "field": fields()}],
    }
    write_json(folder / "croissant.json", record)


def one_text(text):
    """Markdown as one line."""
    return " ".join(text.replace("\n- ", " ").removeprefix("- ").split())


def told_of_withheld(release):
    """What was done before the release, in a sentence."""
    gate = release.records["replicas"]
    flagged, n = len(gate["flagged"]), gate["n"]["generated"]
    return f"{flagged} of {n} generated volumes were withheld by a gate that searches for training volumes."


def fields():
    """Fields of the record set, each a column of the table."""
    return [
        {
            "@type": "cr:Field",
            "@id": f"volumes/{name}",
            "name": f"volumes/{name}",
            "description": text,
            "dataType": kind,
            "source": {"fileObject": {"@id": TABLE}, "extract": {"column": name}},
        }
        for name, (kind, text) in COLUMNS.items()
    ]


CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{
        name: f"cr:{name}" for name in ("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty")
    },
    **{
        name: f"cr:{name}" for name in ("extract", "field", "fileProperty", "fileObject", "fileSet", "format")
    },
    **{name: f"cr:{name}" for name in ("includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5")},
    **{
        name: f"cr:{name}" for name in ("parentField", "path", "recordSet", "references", "regex", "repeated")
    },
    **{
        name: f"cr:{name}"
        for name in ("replace", "samplingRate", "separator", "source", "subField", "transform")
    },
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "description": {"@container": "@language"},
}
