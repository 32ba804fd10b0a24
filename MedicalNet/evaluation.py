"""Compare a folder of generated volumes with one of real ones: FID, MedicalNet distance, AUC-PRD and more.

    python MedicalNet/evaluation.py --real volumes --generated synthetic --output evaluation
    python MedicalNet/evaluation.py --real volumes --generated synthetic --embedding random

or edit the paths below and run it, or call `evaluate(EvaluateConfig(...))`.

The protocol is that of Aydin et al., NeuroImage 304 (2024) 120936, number for number; what else could be
meant by a name is written beside the number in metrics.json. Volumes are listed in volumes.py, measured in
measuring.py and compared in comparing.py; distances are in distances.py and covariance_free.py, networks and
cache in extractors.py, vessels in anatomy.py, report.html in report.py. Inputs are never written to.
"""

import os
import platform
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volumetric import __version__
from volumetric.cli import (
    FEWEST_EVALUATED,
    UserError,
    check_device_name,
    check_fields,
    one_line_errors,
    option,
    parse_cli,
)
from volumetric.collection import VolumeFile, content_of_set, contents_of, find, find_volumes
from volumetric.files import atomic_path, new_folder, write_json
from volumetric.geometry import left_right_axis
from volumetric.parallel import prepare_process
from volumetric.sidecars import left_of_training, refuse_seen, trained_on
from volumetric.tables import Split, write_table

import nibabel as nib
import numpy as np

from MedicalNet.comparing import NUMBERS, compare, few_samples, named, with_vessels
from MedicalNet.copies import Nearness, among_training, find_copies, nearness
from MedicalNet.covariance_free import DIRECTIONS
from MedicalNet.distances import frechet_distance, prd_area, prd_curve
from MedicalNet.extractors import PLANES, PUBLISHED, FeatureCache, default_cache
from MedicalNet.groups import by_group, read_groups
from MedicalNet.measuring import LIBRARIES, Measured, also, build_extractors, measure, ms_ssim_settings
from MedicalNet.verdicts import in_order, verdicts
from MedicalNet.volumes import PROTOCOLS, compare_geometry, copies, list_volumes
from segmentation.labels import TABLES

if TYPE_CHECKING:
    from MedicalNet.labelling import Sources

__all__ = ["EvaluateConfig", "evaluate", "frechet_distance", "prd_area", "prd_curve"]

# Edit these, or pass them as flags; a flag wins.
# folder of real volumes
real = "demo/phantoms"
# folder of generated volumes
generated = "demo/results/demo/generated/model_2"
# new folder for the results
output = "evaluation"

GROUPS = {"fid": "slices", "md": "whole volumes", "ms_ssim": "diversity", "anatomy": "vessels"}
GROUPS["copies"] = "of real volumes"
# Where they are asked for.
MORE_GROUPS = {"openmind": "a second network of volumes", "radiomics": "texture, with PyRadiomics"}
FEWEST_RESAMPLES = 20
Files = dict[str, list[VolumeFile]]  # {"real", "generated" and maybe "held_out": its volumes}
EMBEDDINGS = {"pretrained": "FID, MD", "random": "no download, numbers of other names"}
PRECISIONS = {"float32": "exact", "mixed": "most of Inception in bfloat16: faster where that is computed"}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Configuration                                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(kw_only=True)
class EvaluateConfig:
    """Compare generated with real volumes: FID, MedicalNet distance (MD), AUC-PRD and what they miss."""

    real: str = option(real, "Folder of real NIfTI volumes, 3D or (X, Y, Z, 1), all of one shape.")
    generated: str = option(generated, "Folder of generated volumes of the same shape.")
    share: bool = option(False, "Leave pictures and names of real volumes out of the report.")
    output: str = option(output, "New folder for metrics.json, report.html and tables.", folder=True)
    protocol: str = option("scaled", "How volumes are read.", choices=PROTOCOLS)
    held_out: str | None = option(None, "Folder of real volumes that the generator was not trained on.")
    split: str | None = option(
        None,
        "Table of preprocessing/split.py: --real is its part `training`, --held_out `held_out`.",
        file=True,
    )
    groups: str | None = option(
        None, "CSV of file and groups of the real volumes: coverage of each.", file=True
    )
    segmenter: str | None = option(
        None, "Network of segmentation/segmentation.py: both sets' anatomy by name.", file=True
    )
    real_labels: str | None = option(None, "In its place, label maps of the real volumes, of their names.")
    generated_labels: str | None = option(None, "The same of the generated volumes.")
    label_table: str = option("topcow2024", "Table of their ids; a network has its own.", choices=TABLES)
    real_truth: str | None = option(None, "True label maps of the real volumes: how right the others are.")
    least_mm3: float = option(4.0, "Size of a label from which its artery counts as there.", least=0)
    metrics: tuple = option(tuple(GROUPS), "Groups of numbers, a list.", choices=GROUPS | MORE_GROUPS)
    planes: tuple = option(tuple(PLANES), "Planes of the slices; axial is FID as published.", choices=PLANES)
    embedding: str = option("pretrained", "Networks that look at volumes.", choices=EMBEDDINGS)
    medicalnet_weights: str | None = option(None, "resnet_10_23dataset.pth; None downloads it.", file=True)
    inception_weights: str | None = option(
        None, "weights-inception-2015-12-05-6726825d.pth; same.", file=True
    )
    openmind_weights: str | None = option(
        None, "checkpoint_final.pth of an OpenMind ResEnc-L; same.", file=True
    )
    radimagenet_weights: str | None = option(None, "ResNet50.pt of RadImageNet: FID-RadImageNet.", file=True)
    precision: str = option("float32", "Of the networks.", choices=PRECISIONS)
    bootstrap: int = option(200, "Resamples of volumes; 0 for no intervals.", least=0, most=10**5)
    real_split: bool = option(
        True, "Also at equal n, beside real against real: what a perfect generator gets."
    )
    real_split_repeats: int = option(20, "Random subsets for that.", least=2, most=10**4)
    num_pairs: int = option(50, "Pairs of volumes compared by MS-SSIM, in each set.")
    seed: int = option(0, "Seed of everything random.", least=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)
    cache_dir: str | None = option(
        None, "Folder of cached features; None is stylegan2-pytorch-3d in ~/.cache, `none` is no cache."
    )
    recompute: bool = option(False, "Compute everything again, whatever is cached.")

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.metrics or not self.planes:
            raise UserError("--metrics and --planes must each name at least one.")
        if 0 < self.bootstrap < FEWEST_RESAMPLES:
            raise UserError(f"--bootstrap must be 0, or {FEWEST_RESAMPLES} or more, got {self.bootstrap}.")
        if self.groups is not None and "md" not in self.metrics:
            raise UserError("--groups needs md among --metrics.")
        if self.held_out is not None and "copies" not in self.metrics:
            raise UserError("--held_out needs copies among --metrics.")
        given = [self.real_labels, self.generated_labels]
        if self.segmenter is None and None in given and given != [None, None]:
            lacks = "generated_labels" if self.generated_labels is None else "real_labels"
            raise UserError(f"--{lacks} is missing: give it, or --segmenter for these volumes.")
        if self.segmenter is None and self.real_truth is not None and given == [None, None]:
            raise UserError("--real_truth needs --segmenter, or label maps whose rightness it tells.")
        if self.segmenter is not None and None not in given:
            raise UserError(
                "--segmenter would label nothing, --real_labels and --generated_labels have both sets: leave "
                "it or one of them out."
            )
        alone = [
            name for name in ("label_table", "least_mm3") if getattr(self, name) != getattr(type(self), name)
        ]
        if alone and self.segmenter is None and given == [None, None]:
            raise UserError(f"--{alone[0]} is of arteries by name: give --segmenter or label maps too.")

    def cache(self) -> FeatureCache:
        """The cache of features that the settings ask for."""
        folder = default_cache() if self.cache_dir is None else self.cache_dir
        return FeatureCache(None if folder == "none" else folder, renew=self.recompute)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Evaluation                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Evaluator:
    """Real volumes, measured once, and the networks to measure any number of generated sets with.

    Everything that can be wrong with weights and real volumes is found when it is built.

    Args:
        config: EvaluateConfig.
        optional: Leave out numbers whose weights are missing; `missing` says which.
    """

    def __init__(self, config: EvaluateConfig, optional: bool = False) -> None:
        self.config = config
        self.cache = config.cache()
        self.extractors, self.weights, self.missing = build_extractors(config, optional)
        self.real_files = self.list("real")
        self.real_set: Measured | None = None

    def list(self, flag: str, folder: Path | str | None = None) -> list[VolumeFile]:
        """VolumeFiles of --real, --generated or --held_out; `folder` is another folder than the flag's."""
        given, part = self.config, "held_out" if flag == "held_out" else "training"
        split = None if flag == "generated" else given.split
        folder = folder or getattr(given, flag)
        return list_volumes(folder, f"--{flag}", self.cache, given.protocol, split=split, parts=(part,))

    def names(self) -> Sequence[str]:
        """Names of the numbers that an evaluation gives."""
        of = {name for extractor in self.extractors for name in (extractor.name, *also(extractor))}
        of |= {"pairs"} if "ms_ssim" in self.config.metrics else set()
        return [named(number.name, self.config.embedding) for number in NUMBERS if number.of in of]

    def measure_real(self) -> Measured:
        """Measure the real volumes, unless that was done before."""
        if self.real_set is None:
            self.real_set = self.measure(self.real_files, len(self.real_files), "real volumes")
        return self.real_set

    def measure(self, sources: Iterable[Any], number: int, title: str) -> Measured:
        """Measure a set of volumes; see `measure`."""
        return measure(sources, number, self.extractors, self.config, self.cache, title)

    def protocol(self) -> dict[str, str]:
        """What stands behind the numbers: {name: text}."""
        lines = {"volumes": PROTOCOLS[self.config.protocol]}
        lines |= {extractor.name: extractor.protocol for extractor in self.extractors}
        if "ms_ssim" in self.config.metrics:
            sigma, window, exponents = ms_ssim_settings(self.real_files[0].shape)
            lines["ms_ssim"] = (
                f"volumes scaled to [0, 1] by their own minimum and maximum; Gaussian window of {window} "
                f"voxels, sigma {sigma:g}; {len(exponents)} scales; "
                f"{self.config.num_pairs} random pairs at most"
            )
        if "md" in self.config.metrics:
            lines["AUC-PRD"] = "MiniBatchKMeans of both sets, 10 clusters, n_init 10; 10 runs; 1001 angles"
            lines["neighbours"] = "Euclidean distance of the volume features, 5 nearest neighbours"
        if {"md", "openmind"} & set(self.config.metrics):
            lines["sliced-W1"] = f"{DIRECTIONS} random directions of the features of whole volumes"
        return lines


class Evaluation(dict[str, Any]):
    """What metrics.json holds, with its folder as "folder"; in a notebook, one line."""

    def __repr__(self) -> str:
        sizes = f"{self['generated']['n']} generated against {self['real']['n']} real volumes"
        numbers = [f"{name} {text_of(entry['value'])}" for name, entry in self["metrics"].items()]
        return f"Evaluation({sizes}: {', '.join(numbers[:4])}; all in {self['folder']})"


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Compare two folders and write the report.

    Args:
        config: EvaluateConfig.

    Returns:
        What metrics.json holds, with the new folder as "folder".

    Raises:
        UserError: Weights or volumes cannot be used; nothing has been computed.
    """
    from MedicalNet.report import write_report

    check_folders(config)
    evaluator = Evaluator(config)
    files, warnings = list_others(evaluator)
    real_files = evaluator.real_files
    groupings = read_groups(config.groups, real_files) if config.groups else None
    sources = label_sources(config, evaluator, files)
    if config.real_split and len(real_files) < 2 * FEWEST_EVALUATED:
        warnings.append(
            f"{len(real_files)} real volumes are too few for a floor at equal n, which needs "
            f"{2 * FEWEST_EVALUATED}"
        )
        config = replace(config, real_split=False)
    made = files["generated"]
    sets = evaluator.measure_real(), evaluator.measure(made, len(made), "generated volumes")
    metrics, curve = compare(*sets, config)
    warnings += few_samples(sets, evaluator.extractors, config)
    found, near, more = look_for_copies(evaluator, sets, files)
    anatomy, comparison = by_name(sources, config)
    record = {
        "metrics": metrics | more,
        "copies": found,
        "groups": groupings and by_group(groupings, *sets),
        "vessels": dict(zip(("real", "generated"), map(with_vessels, sets), strict=True)),
        "warnings": warnings + said_of_copies(found, len(made)) + (anatomy or {}).get("warnings", []),
        **({"named_anatomy": anatomy} if anatomy else {}),
        **describe(evaluator, anatomy),
        "generated": {"folder": str(Path(config.generated).resolve()), "n": len(made)},
        "contents": contents_of(files),
    }
    record["verdicts"] = verdicts(record)
    with new_folder(config.output) as folder:
        write_values(record, folder)
        write_report(record, near, curve, sets, (real_files, made), folder, comparison)
    print_numbers(record)
    print(f"{folder / 'report.html'} shows everything; the numbers are in {folder / 'metrics.json'}.")
    return Evaluation(record, folder=folder)


def label_sources(config: EvaluateConfig, evaluator: Evaluator, files: Files) -> "Sources | None":
    """labelling.Sources of both sets' label maps, all of whose files have been found; None without.

    Args:
        config: EvaluateConfig.
        evaluator: Evaluator.
        files: Of `list_others`.
    """
    if config.segmenter is None and config.real_labels is None:
        return None
    from MedicalNet.labelling import Sources

    return Sources(config, files, evaluator.cache)


def by_name(sources: "Sources | None", config: EvaluateConfig) -> tuple[dict | None, Any]:
    """What named_anatomy.py says of both sets; (None, None) without label maps."""
    if sources is None:
        return None, None
    from MedicalNet.named_anatomy import named_anatomy

    return named_anatomy(sources, config)


def list_others(evaluator: Evaluator) -> tuple[Files, list[str]]:
    """The volumes beside the real ones, which must fit them.

    Returns:
        ({"real", "generated" and, where there are any, "held_out": [VolumeFile]}, warnings).

    Raises:
        UserError: Held-out volumes are in another set, or were trained on; or the sets are of other shapes.
    """
    config, files = evaluator.config, {"real": evaluator.real_files, "generated": evaluator.list("generated")}
    warnings = compare_geometry(*files.values())
    known, held_out = trained_on(config.generated), config.held_out
    if config.split and "copies" in config.metrics and held_out is None:
        number = Split.read(config.split).number(find(config.real).paths, "held_out")
        if number >= FEWEST_EVALUATED:
            held_out = config.real
        else:
            need = f"C_T and authenticity need {FEWEST_EVALUATED}"
            warnings.append(f"--split holds out {number} volumes of --real: {need}")
    if held_out is not None:
        unseen = evaluator.list("held_out", held_out)
        compare_geometry(files["real"], unseen)
        others = {f"--{name}": volumes for name, volumes in files.items()}
        refuse_seen(unseen, "--held_out", others, known)
        left_of_training(files["real"], "--real", known)  # C_T is of what was trained on
        files["held_out"] = unseen
    warnings += copies(files["real"], "real") + copies(files["generated"], "generated")
    warnings += not_trained_on(files["real"], known) if "copies" in config.metrics else []
    return files, warnings + unpublished(evaluator.weights)


def not_trained_on(real_files: Sequence[VolumeFile], known: Collection[str]) -> list[str]:
    """Warning where copies are looked for among volumes that the generator was not trained on."""
    strange = sum(file.content not in known for file in real_files) if known else 0
    told = f"the generator was not trained on {strange} of the {len(real_files)} real volumes"
    return [f"{told}: copies of what it was trained on are not found among them"] if strange else []


def look_for_copies(
    evaluator: Evaluator, sets: tuple[Measured, Measured], files: Files
) -> tuple[list[dict[str, Any]], Nearness | None, dict[str, Any]]:
    """Copies, Nearness and the numbers that held-out volumes allow; ([], None, {}) if they are not asked for.

    Args:
        evaluator: Evaluator of the real volumes.
        sets: Measured of the real and of the generated volumes.
        files: Of `list_others`.
    """
    if "copies" not in evaluator.config.metrics:
        return [], None, {}
    left_right = left_right_axis(files["generated"][0].affine)
    near = nearness(*sets, left_right)
    found = find_copies((files["real"], files["generated"]), near)
    if "held_out" not in files:
        return found, near, {}
    held_set = evaluator.measure(files["held_out"], len(files["held_out"]), "held-out volumes")
    return found, near, among_training(*sets, held_set, left_right)


def check_folders(config: EvaluateConfig) -> None:
    """Raise a UserError if the output lies among the volumes, or a folder does not hold enough of them."""
    output = Path(config.output).resolve()
    for flag in ("real", "generated", "held_out", "real_labels", "generated_labels", "real_truth"):
        given = getattr(config, flag)
        folder = None if given is None else Path(given).resolve()
        if folder is not None and (folder == output or folder in output.parents):
            raise UserError(f"--output {config.output} lies in --{flag} {given}: give a folder apart.")
        for place, _, _ in os.walk(folder) if folder else ():
            if not os.access(place, os.R_OK | os.X_OK):
                raise UserError(f"--{flag} {given}: {place} cannot be looked into; change its permissions.")
        number = (
            FEWEST_EVALUATED
            if given is None
            else len(find_volumes(given, f"--{flag}", say=lambda line: None))
        )
        if number < FEWEST_EVALUATED:
            raise UserError(
                f"--{flag} {given} holds {number} volumes, at least {FEWEST_EVALUATED} are needed."
            )


def said_of_copies(found: list[dict[str, Any]], number: int) -> list[str]:
    """Warning that counts and names the copies of real volumes."""
    if not found:
        return []
    kinds = Counter(copy["kind"] for copy in found)
    counted = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    first = f"{found[0]['generated']} of {found[0]['real']}"
    return [f"{len(found)} of the {number} generated volumes are copies of real ones ({counted}), as {first}"]


def unpublished(weights: dict[str, dict[str, Any]]) -> list[str]:
    """Warnings for weights that are not the published ones."""
    return [
        f"the weights {w['file']} are not the published {PUBLISHED[name].title} weights (SHA-256 "
        f"{w['sha256']})"
        for name, w in weights.items()
        if name in PUBLISHED and not w["published"] and w["sha256"] != "random"
    ]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    own = {"stylegan2_pytorch": __version__, "python": platform.python_version()}
    return own | LIBRARIES | {"scikit-learn": version("scikit-learn")}


def describe(evaluator: Evaluator, anatomy: dict | None = None) -> dict[str, Any]:
    """What a reader of the numbers must know: protocol, weights, data, seed and versions."""
    of_names = {"label maps": anatomy["protocol"], "arteries": anatomy["measures"]} if anatomy else {}
    files, config = evaluator.real_files, evaluator.config
    spacing = np.median([nib.affines.voxel_sizes(f.affine) for f in files], axis=0)
    return {
        "embedding": config.embedding,
        "protocol": evaluator.protocol() | of_names,
        "weights": evaluator.weights,
        "real": {
            "folder": str(Path(config.real).resolve()),
            "n": len(files),
            "content": content_of_set(f.content for f in files),
            "shape": files[0].shape,
            "spacing_mm": spacing.round(4).tolist(),
        },
        "intervals": (
            f"interval_95: 95 % confidence of unbiased numbers, by the jackknife over volumes; spread_95: "
            f"how much resampling the volumes moves the others, {config.bootstrap} resamples"
            if config.bootstrap
            else "none"
        ),
        "seed": config.seed,
        "settings": asdict(config),
        "versions": versions(),
    }


def write_values(record: dict[str, Any], folder: Path) -> None:
    """metrics.json, metrics.csv, and metric_values.txt with the paper's three numbers."""
    write_json(folder / "metrics.json", record)
    metrics = record["metrics"]
    head = ["metric", "value", "low_95", "high_95", "kind", "n_equal", "mean_at_equal_n", "floor_mean"]
    head += ["floor_sd", "n_real", "n_generated"]
    rows = []
    for name, m in metrics.items():
        equal = m.get("equal_n") or {}
        of_equal = [equal.get(key) for key in ("n", "mean", "floor_mean", "floor_standard_deviation")]
        kind, low_high = interval_of(m)
        rows.append([name, m["value"], *low_high, kind, *of_equal, m["n_real"], m["n_generated"]])
    write_table(folder / "metrics.csv", head, rows)
    three = [named(name, record["embedding"]) for name in ("FID", "MD", "AUC-PRD")]
    with atomic_path(folder / "metric_values.txt") as part:
        part.write_text(
            "".join(f"{name}: {text_of(metrics[name]['value'], 6)}\n" for name in three if name in metrics),
            encoding="utf-8",
        )


def interval_of(entry: dict[str, Any]) -> tuple[str, Sequence[float | None]]:
    """(confidence, spread or "", (low, high) or (None, None)) of a number."""
    for kind, key in (("confidence", "interval_95"), ("spread", "spread_95")):
        if entry.get(key):
            return kind, entry[key]
    return "", (None, None)


def text_of(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; "none" where there is none."""
    return "none" if value is None else f"{value:.{digits}g}"


def print_numbers(record: dict[str, Any]) -> None:
    """The answers, the numbers as a table, then the warnings."""
    for verdict in in_order(record):
        print(f"{verdict['question']} {verdict['answer']}")
    for name, m in record["metrics"].items():
        kind, low_high = interval_of(m)
        around = f"  {kind} [{text_of(low_high[0])}, {text_of(low_high[1])}]" if kind else ""
        equal, floor = m.get("equal_n"), ""
        if equal:
            mark = "outside" if equal["outside"] else "inside"
            told = f"{text_of(equal['mean'])}, real {text_of(equal['floor_mean'])}"
            floor = f"  at n = {equal['n']} {told}: {mark}"
        print(f"{name:28s} {text_of(m['value'], 5):<11s}{around}{floor}")
    for name, row in (record.get("named_anatomy") or {"rows": {}})["rows"].items():
        if (row["equal_n"] or {}).get("outside"):
            equal = row["equal_n"]
            told = f"{text_of(equal['mean'])}, real {text_of(equal['floor_mean'])}"
            print(f"{name:28s} {text_of(row['value'], 5):<11s}  at n = {equal['n']} {told}: outside")
    for warning in record["warnings"]:
        print(f"Warning: {warning}.")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config = parse_cli(EvaluateConfig, argv)
    with one_line_errors():
        prepare_process(config.device)
        evaluate(config)


if __name__ == "__main__":
    main()
