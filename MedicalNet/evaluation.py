"""Compare a folder of generated volumes with one of real ones: FID, MedicalNet distance, AUC-PRD and more.

    python MedicalNet/evaluation.py --real volumes --generated synthetic --output evaluation
    python MedicalNet/evaluation.py --real volumes --generated synthetic --embedding random

or edit the paths below and run it, or call `evaluate(EvaluateConfig(...))`.

The protocol is that of Aydin et al., NeuroImage 304 (2024) 120936, number for number; what else could be
meant by a name is written beside the number in metrics.json. Volumes are listed in volumes.py, measured in
measuring.py and compared in comparing.py; distances are in distances.py, networks and cache in extractors.py,
vessels in anatomy.py, report.html in report.py. Inputs are never written to.
"""

import contextlib
import csv
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from MedicalNet.anatomy import MEASURES
from MedicalNet.comparing import OF_VOLUMES, compare, few_samples, named, split_floor
from MedicalNet.distances import frechet_distance, prd_area, prd_curve
from MedicalNet.extractors import PLANES, PUBLISHED, FeatureCache, default_cache
from MedicalNet.measuring import build_extractors, measure, ms_ssim_settings
from MedicalNet.volumes import compare_geometry, copies, list_volumes
from volumetric.cli import (
    UserError,
    check_device_name,
    check_fields,
    one_line_errors,
    option,
    parse_cli,
)
from volumetric.dataset import FEWEST_EVALUATED
from volumetric.files import __version__, atomic_path, next_free

__all__ = ["EvaluateConfig", "evaluate", "frechet_distance", "prd_area", "prd_curve"]

# Edit these, or pass them as flags; a flag wins.
# folder of real volumes
real = "demo/phantoms"
# folder of generated volumes
generated = "demo/results/demo/generated-model_2"
# new folder for the results
output = "evaluation"

NUMBERS = 1  # protocol of the comparison, part of every cached result
GROUPS = {"fid": "slices", "md": "whole volumes", "ms_ssim": "diversity", "anatomy": "vessels"}
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
    output: str = option(output, "New folder for metrics.json, report.html and tables.", folder=True)
    metrics: tuple = option(tuple(GROUPS), "Groups of numbers, a list.", choices=GROUPS)
    planes: tuple = option(tuple(PLANES), "Planes of the slices; axial is FID as published.", choices=PLANES)
    embedding: str = option("pretrained", "Networks that look at volumes.", choices=EMBEDDINGS)
    medicalnet_weights: str | None = option(None, "resnet_10_23dataset.pth; None downloads it.", file=True)
    inception_weights: str | None = option(
        None, "weights-inception-2015-12-05-6726825d.pth; same.", file=True
    )
    precision: str = option("float32", "Of the networks.", choices=PRECISIONS)
    bootstrap: int = option(200, "Resamples of the 95 % intervals; 0 for none.", least=0)
    real_split: bool = option(False, "Compare random halves of the real volumes too: numbers between equals.")
    real_split_repeats: int = option(5, "Random splits.")
    num_pairs: int = option(50, "Pairs of volumes compared by MS-SSIM, in each set.")
    seed: int = option(0, "Seed of everything random.", least=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)
    cache_dir: str | None = option(
        None, "Folder of cached features; None is stylegan2-pytorch-3d in ~/.cache, `none` is no cache."
    )
    recompute: bool = option(False, "Compute everything again, whatever is cached.")

    def __post_init__(self):
        check_fields(self)
        if not self.metrics or not self.planes:
            raise UserError("--metrics and --planes must each name at least one.")

    def cache(self):
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

    def __init__(self, config, optional=False):
        self.config = config
        self.cache = config.cache()
        self.extractors, self.weights, self.missing = build_extractors(config, optional)
        self.real_files = list_volumes(config.real, "--real", self.cache)
        self.real_set = None

    def names(self):
        """Names of the numbers that an evaluation gives."""
        groups = {
            "volume": ("MD", *OF_VOLUMES),
            "axial": ("FID", "KID"),
            "anatomy": [f"W1-{m}" for m in MEASURES],
        }
        groups |= {plane: (f"FID-{plane}",) for plane in PLANES if plane != "axial"}
        found = [name for extractor in self.extractors for name in groups[extractor.name]]
        found += ["MS-SSIM-real", "MS-SSIM-generated"] if "ms_ssim" in self.config.metrics else []
        return [named(name, self.config.embedding) for name in found]

    def measure_real(self):
        """Measure the real volumes, unless that was done before."""
        if self.real_set is None:
            self.real_set = self.measure(self.real_files, len(self.real_files), "real volumes")
        return self.real_set

    def measure(self, sources, number, title):
        """Measure a set of volumes; see `measure`."""
        return measure(sources, number, self.extractors, self.config, self.cache, title)

    def protocol(self):
        """What stands behind the numbers: {name: text}."""
        lines = {extractor.name: extractor.protocol for extractor in self.extractors}
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
        return lines


def evaluate(config):
    """Compare two folders and write the report.

    Args:
        config: EvaluateConfig.

    Returns:
        What metrics.json holds, with the new folder as "folder".

    Raises:
        UserError: Weights or volumes cannot be used; nothing has been computed.
    """
    from MedicalNet.report import write_report

    evaluator = Evaluator(config)
    if config.real_split and len(evaluator.real_files) < 2 * FEWEST_EVALUATED:
        raise UserError(
            f"--real_split needs at least {2 * FEWEST_EVALUATED} real volumes, "
            f"there are {len(evaluator.real_files)}."
        )
    files = list_volumes(config.generated, "--generated", evaluator.cache)
    warnings = compare_geometry(evaluator.real_files, files)
    warnings += copies(evaluator.real_files, "real") + copies(files, "generated")
    warnings += unpublished(evaluator.weights)
    real_set = evaluator.measure_real()
    generated_set = evaluator.measure(files, len(files), "generated volumes")
    numbers = cached_numbers(evaluator, files, real_set, generated_set)
    warnings += few_samples((real_set, generated_set), evaluator.extractors, config)
    record = {
        "metrics": numbers["metrics"],
        "warnings": warnings,
        **describe(evaluator),
        "generated": {"folder": str(Path(config.generated).resolve()), "n": len(files)},
    }
    folder = next_free(config.output)
    with new_folder(folder):
        write_values(record, folder)
        write_report(
            record, numbers["curve"], (real_set, generated_set), (evaluator.real_files, files), folder
        )
    print_numbers(record)
    print(f"{folder / 'report.html'} shows everything; the numbers are in {folder / 'metrics.json'}.")
    return {**record, "folder": folder}


def unpublished(weights):
    """Warnings for weights that are not the published ones."""
    return [
        f"the weights {w['file']} are not the published {PUBLISHED[name].title} weights (SHA-256 "
        f"{w['sha256']})"
        for name, w in weights.items()
        if not w["published"] and w["sha256"] != "random"
    ]


def cached_numbers(evaluator, files, real_set, generated_set):
    """{"metrics", "curve"} of two measured folders, kept by the content of all that they follow from."""
    config = evaluator.config
    names = ("metrics", "planes", "embedding", "precision", "bootstrap", "seed", "num_pairs", "real_split")
    settings = {name: getattr(config, name) for name in (*names, "real_split_repeats")}
    digests = [[f.digest for f in one] for one in (evaluator.real_files, files)]
    key = ["numbers", NUMBERS, settings, evaluator.protocol(), evaluator.weights, versions(), *digests]
    known = evaluator.cache.get(key)
    if known is not None:
        return json.loads(str(known["json"]))
    metrics, curve = compare(real_set, generated_set, config)
    floor = split_floor(real_set, config) if config.real_split else {}
    for name, result in metrics.items():
        result["real_split"] = floor.get(name)
    numbers = {"metrics": metrics, "curve": None if curve is None else np.asarray(curve).tolist()}
    evaluator.cache.put(key, {"json": np.array(json.dumps(numbers))})
    return json.loads(json.dumps(numbers))


def versions():
    """Versions of what the numbers depend on."""
    names = ("numpy", "scipy", "scikit-learn", "scikit-image", "torchmetrics", "torch-fidelity")
    own = {"stylegan2_pytorch": __version__, "python": platform.python_version()}
    return own | {"torch": torch.__version__} | {name: version(name) for name in names}


def describe(evaluator):
    """What a reader of the numbers must know: protocol, weights, data, seed and versions."""
    files, config = evaluator.real_files, evaluator.config
    spacing = np.median([nib.affines.voxel_sizes(f.affine) for f in files], axis=0)
    return {
        "embedding": config.embedding,
        "protocol": evaluator.protocol(),
        "weights": evaluator.weights,
        "real": {
            "folder": str(Path(config.real).resolve()),
            "n": len(files),
            "shape": files[0].shape,
            "spacing_mm": spacing.round(4).tolist(),
        },
        "intervals": f"95 % bootstrap over volumes, {config.bootstrap} resamples"
        if config.bootstrap
        else "none",
        "seed": config.seed,
        "settings": asdict(config),
        "versions": versions(),
    }


@contextlib.contextmanager
def new_folder(path):
    """A new folder; after an error in the block its name says that it is not complete."""
    path.mkdir(parents=True)
    try:
        yield
    except BaseException:
        path.rename(next_free(path.with_name(f"{path.name}-failed")))
        raise


def write_values(record, folder):
    """metrics.json, metrics.csv, and metric_values.txt with the paper's three numbers."""
    with atomic_path(folder / "metrics.json") as part:
        part.write_text(json.dumps(record, indent=1))
    metrics = record["metrics"]
    with atomic_path(folder / "metrics.csv") as part, open(part, "w", newline="") as file:
        table = csv.writer(file)
        head = ["metric", "value", "low_95", "high_95", "real_split_mean", "real_split_sd"]
        table.writerow([*head, "n_real", "n_generated"])
        for name, m in metrics.items():
            floor = m["real_split"] or {}
            spread = (floor.get("mean"), floor.get("standard_deviation"))
            low_high = m["interval_95"] or (None, None)
            table.writerow([name, m["value"], *low_high, *spread, m["n_real"], m["n_generated"]])
    three = [named(name, record["embedding"]) for name in ("FID", "MD", "AUC-PRD")]
    with atomic_path(folder / "metric_values.txt") as part:
        part.write_text(
            "".join(f"{name}: {metrics[name]['value']:.6g}\n" for name in three if name in metrics)
        )


def print_numbers(record):
    """The numbers as a table on the terminal, then the warnings."""
    for name, m in record["metrics"].items():
        low_high = "  [{:.4g}, {:.4g}]".format(*m["interval_95"]) if m["interval_95"] else ""
        floor = f"  real halves {m['real_split']['mean']:.4g}" if m["real_split"] else ""
        print(f"{name:28s} {m['value']:<11.5g}{low_high}{floor}  n = {m['n_real']}, {m['n_generated']}")
    for warning in record["warnings"]:
        print(f"Warning: {warning}.")


def main(argv=None):
    """The command line."""
    config = parse_cli(EvaluateConfig, argv)
    with one_line_errors():
        evaluate(config)


if __name__ == "__main__":
    main()
