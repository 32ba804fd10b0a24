"""Compare a folder of generated volumes with a folder of real ones: FID, MedicalNet distance, AUC-PRD and
more.

    python MedicalNet/evaluation.py --real volumes --generated results/cow/generated-model_33 --output
    evaluation python MedicalNet/evaluation.py --real volumes --checkpoints models/cow --output sweep
    python MedicalNet/evaluation.py --real volumes --generated synthetic --embedding random

or edit the paths below and run it, or call `evaluate(EvaluateConfig(...))`. Sections of this file, in order:

    settings and configuration    every option
    volumes                       listing, checking and reading
    measuring                     features, anatomy and similarity of a set of volumes
    comparing                     every number, its interval and its floor
    entry points                  evaluate, sweep, and what the trainer calls

The protocol is that of Aydin et al., NeuroImage 304 (2024) 120936, number for number; what else could be
meant by a name is written beside the number in metrics.json. Distances are in distances.py, networks and
cache in extractors.py, vessels in anatomy.py, report.html in report.py. Inputs are never written to.
"""

import contextlib
import csv
import hashlib
import json
import os
import platform
import sys
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from MedicalNet.anatomy import MEASURES, PROTOCOL, measure_anatomy
from MedicalNet.distances import (
    Frechet,
    Kernel,
    Neighbours,
    OfNeighbours,
    PairMean,
    PrecisionRecallCurve,
    Wasserstein,
    frechet_distance,
    interval,
    prd_area,
    prd_curve,
    resampled,
)
from MedicalNet.extractors import (
    PLANES,
    PUBLISHED,
    FeatureCache,
    SliceFeatures,
    VolumeFeatures,
    build_inception,
    build_medicalnet,
    default_cache,
    find_weights,
)
from stylegan2_pytorch import (
    FEWEST_EVALUATED,
    ModelLoader,
    __version__,
    array_to_volume,
    atomic_path,
    batch_inputs,
    by,
    check_fields,
    checkpoint_numbers,
    choose_device,
    file_digest,
    find_volumes,
    host_random,
    next_free,
    one_line_errors,
    parse_cli,
    read_array,
    volume_to_array,
)

__all__ = ["EvaluateConfig", "evaluate", "frechet_distance", "prd_area", "prd_curve", "sweep"]

# Edit these, or pass them as flags; a flag wins.
real = "demo/phantoms"  # folder of real volumes
generated = "demo/results/demo/generated-model_2"  # folder of generated volumes
output = "evaluation"  # new folder for the results

GROUPS = ("fid", "md", "ms_ssim", "anatomy")
CHOICES = {
    "metrics": GROUPS,
    "planes": tuple(PLANES),
    "embedding": ("pretrained", "random"),
    "precision": ("float32", "mixed"),
}
BETTER = {"density": "near 1", "nearest-real": "near 1", "MS-SSIM-real": "-", "MS-SSIM-generated": "as real"}
HIGHER = {"AUC-PRD", "precision", "recall", "coverage"}
OF_VOLUMES = ("AUC-PRD", "precision", "recall", "density", "coverage", "nearest-real")
STREAM_PAIRS, STREAM_BOOTSTRAP, STREAM_SUBSETS, STREAM_SPLIT = range(4)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Settings and configuration                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(kw_only=True)
class EvaluateConfig:
    """Compare generated with real volumes: FID, MedicalNet distance (MD), AUC-PRD, and what they cannot see.

    Args:
        real: Folder of real volumes, .nii or .nii.gz, 3D or (X, Y, Z, 1), all of one shape.
        generated: Folder of generated volumes of the same shape.
        output: New folder for metrics.json, metric_values.txt, report.html and the tables.
        checkpoints: Folder models/<name>: evaluate volumes of every checkpoint in it, in place of
            `generated`.
        num_generated: Volumes generated for every checkpoint; None is as many as there are real ones.
        use_average: Generate from the averaged networks (SE, GE); False takes the current ones (S, G).
        trunc_psi: Truncation psi of the generated volumes; 1 is no truncation.
        batch_size: Volumes generated at a time.
        metrics: Groups of numbers: fid (slices), md (whole volumes), ms_ssim (diversity), anatomy (vessels).
        planes: Planes of the slices: axial (FID as published), coronal, sagittal.
        embedding: pretrained, or random: networks without training, numbers of other names, no download.
        medicalnet_weights: File resnet_10_23dataset.pth; None takes the downloaded one, or downloads it.
        inception_weights: File weights-inception-2015-12-05-6726825d.pth; None as above.
        precision: float32, or mixed: most of Inception in bfloat16, faster on processors that compute in it.
        bootstrap: Resamples of the 95 % intervals; 0 for none.
        real_split: Compare random halves of the real volumes too: what the numbers are between equals.
        real_split_repeats: Random splits.
        num_pairs: Pairs of volumes compared by MS-SSIM, in each set.
        seed: Seed of everything random, >= 0.
        device: auto, cpu, cuda or cuda:<n>.
        cache_dir: Folder of cached features; None is stylegan2-pytorch-3d in ~/.cache, `none` is no cache.
        recompute: Compute everything again, whatever is cached.
    """

    real: str = real
    generated: str = generated
    output: str = output
    checkpoints: str | None = None
    num_generated: int | None = None
    use_average: bool = True
    trunc_psi: float = 1.0
    batch_size: int = 8
    metrics: tuple = GROUPS
    planes: tuple = ("axial", "coronal", "sagittal")
    embedding: str = "pretrained"
    medicalnet_weights: str | None = None
    inception_weights: str | None = None
    precision: str = "float32"
    bootstrap: int = 200
    real_split: bool = False
    real_split_repeats: int = 5
    num_pairs: int = 50
    seed: int = 0
    device: str = "auto"
    cache_dir: str | None = None
    recompute: bool = False

    def __post_init__(self):
        check_fields(self, CHOICES)
        if not self.metrics or not self.planes:
            raise ValueError("--metrics and --planes must each name at least one.")
        if self.num_generated is not None and self.num_generated < FEWEST_EVALUATED:
            raise ValueError(f"--num_generated must be {FEWEST_EVALUATED} or more, got {self.num_generated}.")

    def cache(self):
        """The cache of features that the settings ask for."""
        folder = default_cache() if self.cache_dir is None else self.cache_dir
        return FeatureCache(None if folder == "none" else folder, renew=self.recompute)


def named(metric, embedding):
    """Name of a number; one of random networks can never be taken for FID or MD."""
    if embedding == "pretrained" or metric.startswith(("MS-SSIM", "W1-")):
        return metric
    if metric == "MD":
        return "FD-random-volume"
    if metric.startswith(("FID", "KID")):
        return metric.replace("FID", "FD-random").replace("KID", "KD-random")
    return f"{metric}-random"


def progress(items, title, unit, total=None):
    """Progress bar with the time left; in a log file, a line every half minute."""
    quiet = 0.1 if sys.stderr.isatty() else 30
    return tqdm(items, title, total, unit=unit, leave=False, mininterval=quiet)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Volumes                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass
class VolumeFile:
    """A volume in a file.

    Args:
        name: Path.
        digest: SHA-256 of the file.
        shape: (X, Y, Z), voxels.
        affine: (4, 4), voxels to mm.
    """

    name: str
    digest: str
    shape: tuple
    affine: np.ndarray

    def read(self):
        """The array (X, Y, Z), float32, as it is in the file."""
        return read_array(self.name)[0]


@dataclass
class VolumeInMemory:
    """A volume that was just generated; as `VolumeFile`."""

    name: str
    array: np.ndarray
    affine: np.ndarray
    digest: str = field(init=False)

    def __post_init__(self):
        self.digest = hashlib.sha256(np.ascontiguousarray(self.array)).hexdigest()

    def read(self):
        """The array (X, Y, Z), float32."""
        return self.array


def in_memory(seeds, volumes, affine):
    """Yield generated volumes, (B, 1, Z, X, Y), as VolumeInMemory."""
    for seed, volume in zip(seeds, volumes, strict=True):
        yield VolumeInMemory(
            f"the volume of seed {seed}", np.ascontiguousarray(volume_to_array(volume)), affine
        )


def list_volumes(folder, flag, cache):
    """Check every volume of a folder, by its content if that was checked before.

    Returns:
        List of VolumeFile, sorted by name.

    Raises:
        ValueError: One line for every file that cannot be used, or what is wrong with the folder.
    """
    paths = find_volumes(folder, flag)

    def check(path):
        digest = file_digest(path)
        key = ["checked", CODE, digest]
        found = cache.get(key)
        if found is None:
            try:
                array, image = read_array(path)
            except ValueError as error:
                return f"{path} {error}"
            found = {"shape": np.array(array.shape), "affine": image.affine}
            cache.put(key, found)
        return VolumeFile(str(path), digest, tuple(map(int, found["shape"])), found["affine"])

    with ThreadPoolExecutor(8) as pool:
        title = f"Checking {flag.removeprefix('--')} volumes"
        found = list(progress(pool.map(check, paths), title, "volume", len(paths)))
    problems = [f for f in found if isinstance(f, str)]
    files = [f for f in found if not isinstance(f, str)]
    if files:
        common = Counter(f.shape for f in files).most_common(1)[0][0]
        problems += [
            f"{f.name} has {by(f.shape)} voxels, most others have {by(common)}: resample or crop it"
            for f in files
            if f.shape != common
        ]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"{len(problems)} of the {len(paths)} volumes in {folder} cannot be used:\n  {listed}"
        )
    if len(files) < FEWEST_EVALUATED:
        raise ValueError(
            f"{flag} {folder} holds {len(files)} volumes, at least {FEWEST_EVALUATED} are needed."
        )
    return files


def compare_geometry(real_files, generated_files):
    """Warnings on spacing; a ValueError if the shapes of the two sets differ."""
    a, b = real_files[0], generated_files[0]
    if a.shape != b.shape:
        raise ValueError(
            f"The real volumes have {by(a.shape)} voxels ({a.name}), the generated ones {by(b.shape)} "
            f"({b.name}): "
            f"resample one set."
        )
    spacings = [
        np.median([nib.affines.voxel_sizes(f.affine) for f in fs], 0) for fs in (real_files, generated_files)
    ]
    if np.allclose(*spacings, rtol=0.01):
        return []
    return [
        f"the spacing of the real volumes is {by(spacings[0].round(3))} mm, of the generated ones "
        f"{by(spacings[1].round(3))} mm: lengths and volumes of vessels are not comparable"
    ]


def copies(files, which):
    """Warning if a set has files of equal content."""
    repeated = len(files) - len({f.digest for f in files})
    return [f"{repeated} of the {len(files)} {which} volumes are copies of others"] if repeated else []


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Measuring                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Anatomy:
    """Vessel measures of a volume, as an extractor."""

    name = "anatomy"
    digest = ""
    protocol = PROTOCOL
    on_host = True

    def __call__(self, array, affine):
        return measure_anatomy(array, affine)


# Part of every key of the cache: what another version of this code has computed is not taken for this one's.
CODE = hashlib.sha256(
    b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


def build_extractors(config, optional=False):
    """Networks and measures that the configuration asks for.

    Args:
        config: EvaluateConfig.
        optional: Leave out what has no weights, and say so, in place of raising.

    Returns:
        (extractors, weights, missing): what to call on every volume; {network: where its weights are from};
        a sentence for every network that was left out.

    Raises:
        ValueError: Weights are missing or damaged.
    """
    device = choose_device(config.device)
    asked = [name for name, group in (("medicalnet", "md"), ("inception", "fid")) if group in config.metrics]
    found, missing = {}, []
    for name in asked:
        try:
            pretrained = config.embedding == "pretrained"
            found[name] = (
                find_weights(name, getattr(config, f"{name}_weights")) if pretrained else (None, "random")
            )
        except ValueError as error:
            if not optional:
                raise
            missing.append(str(error))
    extractors = []
    if "medicalnet" in found:
        path, digest = found["medicalnet"]
        extractors.append(VolumeFeatures(build_medicalnet(path, device), digest))
    if "inception" in found:
        path, digest = found["inception"]
        network = build_inception(path, device, config.precision == "mixed")
        extractors += [SliceFeatures(network, digest, plane) for plane in config.planes]
    if "anatomy" in config.metrics:
        extractors.append(Anatomy())
    weights = {
        name: {"file": str(path), "sha256": digest, "published": digest == PUBLISHED[name].sha256}
        for name, (path, digest) in found.items()
    }
    return extractors, weights, missing


@dataclass
class Measured:
    """What was measured of a set of n volumes.

    Args:
        names: Names of the volumes.
        features: {plane or "volume": (n, s, d) float32}, s feature vectors a volume.
        anatomy: For every volume {measure: array}; empty without anatomy.
        pairs: Indices of the pairs compared by MS-SSIM, (p, 2), or None.
        similarity: Their MS-SSIM, (p,).
    """

    names: list
    features: dict
    anatomy: list
    pairs: np.ndarray | None = None
    similarity: np.ndarray | None = None

    def subset(self, chosen):
        """The volumes of the given indices, without similarities."""
        features = {name: f[chosen] for name, f in self.features.items()}
        anatomy = [self.anatomy[i] for i in chosen] if self.anatomy else []
        return Measured([self.names[i] for i in chosen], features, anatomy)


def joined(parts):
    """One Measured of several, one after the other."""
    features = {name: np.concatenate([p.features[name] for p in parts]) for name in parts[0].features}
    whole = Measured([n for p in parts for n in p.names], features, [a for p in parts for a in p.anatomy])
    if parts[0].pairs is not None:
        before = np.cumsum([0, *(len(p.names) for p in parts)])
        whole.pairs = np.concatenate([p.pairs + n for p, n in zip(parts, before, strict=False)])
        whole.similarity = np.concatenate([p.similarity for p in parts])
    return whole


def measure(sources, number, extractors, config, cache, title):
    """Measure a set of volumes, each read once, and only if something of it is not cached.

    Args:
        sources: Iterable of VolumeFile or VolumeInMemory.
        number: How many there are.
        extractors: Of `build_extractors`.
        config: EvaluateConfig.
        cache: FeatureCache.
        title: What the progress bar says.

    Raises:
        ValueError: A volume cannot be measured; the text names it.
    """
    pairs = choose_pairs(number, config) if "ms_ssim" in config.metrics else None
    wanted = set() if pairs is None else set(pairs.ravel().tolist())
    names, kept, results = [], {}, {e.name: [] for e in extractors}
    volumes = progress(measured_ahead(sources, extractors, cache), f"Measuring {title}", "volume", number)
    for index, (source, measured) in enumerate(volumes):
        names.append(source.name)
        for name, arrays in measured.items():
            results[name].append(arrays)
        if index in wanted:
            kept[index] = source
    features = {n: np.stack([a["features"] for a in r]) for n, r in results.items() if n != "anatomy"}
    found = Measured(names, features, results.get("anatomy", []), pairs)
    if pairs is not None:
        device = choose_device(config.device)
        shown = progress(pairs, f"MS-SSIM of {title}", "pair")
        found.similarity = np.array([similarity(kept[i], kept[j], device, cache) for i, j in shown])
    return found


def measured_ahead(sources, extractors, cache):
    """Yield (source, {extractor: arrays}) in order; while the networks work, threads read the next ones."""

    def extract(extractor, source, array):
        try:
            return extractor(array, source.affine)
        except ValueError as error:
            raise ValueError(f"{source.name} {error}.") from None

    def prepare(source):
        keys = {e.name: ["features", CODE, e.name, e.protocol, e.digest, source.digest] for e in extractors}
        found = {name: cache.get(key) for name, key in keys.items()}
        lacking = [e for e in extractors if found[e.name] is None]
        array = source.read() if lacking else None
        for extractor in lacking:
            if extractor.on_host:
                found[extractor.name] = extract(extractor, source, array)
        return source, keys, found, lacking, array

    def complete(source, keys, found, lacking, array):
        for extractor in lacking:
            if not extractor.on_host:
                found[extractor.name] = extract(extractor, source, array)
            if isinstance(source, VolumeFile):
                cache.put(keys[extractor.name], found[extractor.name])
        return source, found

    workers = min(8, os.cpu_count() or 1)
    coming = deque()
    with ThreadPoolExecutor(workers) as pool:
        for source in sources:
            coming.append(pool.submit(prepare, source))
            if len(coming) > workers:
                yield complete(*coming.popleft().result())
        while coming:
            yield complete(*coming.popleft().result())


def choose_pairs(number, config):
    """Random pairs of different volumes, every pair at most once. Shapes: -> (pairs, 2)"""
    first, second = np.triu_indices(number, 1)
    rng = host_random(config.seed, STREAM_PAIRS)
    chosen = rng.permutation(len(first))[: config.num_pairs]
    return np.stack([first[chosen], second[chosen]], axis=1)


def ms_ssim_settings(shape):
    """Widest window and most scales that fit a volume: sigma (voxels), window edge, exponents of the scales.

    The exponents are the first ones of Wang et al. 2003, scaled to a sum of 1.

    Shapes: (X, Y, Z)
    """
    published = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
    plane, smallest = min(shape[:2]), min(shape)
    for sigma, window in ((1.5, 11), (0.8, 7), (0.5, 5)):
        fits = [
            scales
            for scales in range(1, 6)
            if smallest // 2 ** (scales - 1) > window // 2 and plane // max(1, scales - 1) ** 2 >= window
        ]
        if fits:
            exponents = published[: fits[-1]]
            return sigma, window, tuple((exponents / exponents.sum()).tolist())
    raise ValueError(f"{by(shape)} voxels are too few for MS-SSIM: leave ms_ssim out of --metrics.")


def similarity(one, other, device, cache):
    """3D MS-SSIM (Wang et al. 2003) of two volumes, each scaled to [0, 1] by its minimum and maximum."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

    key = ["ms_ssim", CODE, version("torchmetrics"), *sorted((one.digest, other.digest))]
    known = cache.get(key)
    if known is not None:
        return float(known["value"])
    volumes = [torch.from_numpy(array_to_volume(v.read())).to(device) for v in (one, other)]
    least = torch.finfo(torch.float32).tiny  # a generated volume may be constant
    volumes = [((v - v.min()) / (v.max() - v.min()).clamp_min(least))[None] for v in volumes]
    sigma, window, exponents = ms_ssim_settings(volumes[0].shape[2:][::-1])
    settings = {
        "sigma": sigma,
        "kernel_size": window,
        "betas": exponents,
        "data_range": 1.0,
        "normalize": "relu",
    }
    value = float(ms_ssim(*volumes, **settings))
    if isinstance(one, VolumeFile) and isinstance(other, VolumeFile):
        cache.put(key, {"value": np.array(value)})
    return value


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Comparing                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def distances_between(real_set, generated_set, config):
    """{metric: distance} of everything that was measured in both sets; see distances.py."""
    found = {}
    for plane in PLANES:
        if plane in real_set.features:
            name = "FID" if plane == "axial" else f"FID-{plane}"
            found[name] = Frechet(real_set.features[plane], generated_set.features[plane])
    if "axial" in real_set.features:
        found["KID"] = Kernel(real_set.features["axial"], generated_set.features["axial"])
    if "volume" in real_set.features:
        pair = real_set.features["volume"], generated_set.features["volume"]
        found["MD"] = Frechet(*pair)
        flat = [f[:, 0] for f in pair]
        found["AUC-PRD"] = PrecisionRecallCurve(*flat, config.seed)
        neighbours = Neighbours(*flat)
        for name, bounds in (("precision", 1), ("recall", 1), ("density", np.inf), ("coverage", 1)):
            found[name] = OfNeighbours(neighbours, name, (0, bounds))
        found["nearest-real"] = OfNeighbours(neighbours, "nearest_ratio", (0, np.inf))
    sizes = len(real_set.names), len(generated_set.names)
    for name, one in (("MS-SSIM-real", real_set), ("MS-SSIM-generated", generated_set)):
        if one.similarity is not None:
            found[name] = PairMean(one.similarity, one.pairs, one is real_set, sizes)
    if real_set.anatomy and generated_set.anatomy:
        for name in MEASURES:
            values = [[volume[name] for volume in one.anatomy] for one in (real_set, generated_set)]
            found[f"W1-{name}"] = Wasserstein(*values)
    return found


def compare(real_set, generated_set, config):
    """Every number that can be had from two sets, with its interval.

    Args:
        real_set, generated_set: Measured.
        config: EvaluateConfig.

    Returns:
        {name: {"value", "interval_95", "better", "n_real", "n_generated", ...}}, and the curve (precision,
        recall) behind AUC-PRD or None.
    """
    distances = distances_between(real_set, generated_set, config)
    sizes = len(real_set.names), len(generated_set.names)
    results, curve = {}, None
    for index, (metric, distance) in enumerate(progress(distances.items(), "Comparing", "metric")):
        value = distance.exact()
        result = {"value": value, "interval_95": None, "n_real": sizes[0], "n_generated": sizes[1]}
        if config.bootstrap:
            rng = host_random(config.seed, STREAM_BOOTSTRAP, index)
            values = resampled(distance, sizes, config.bootstrap, rng)
            result["interval_95"] = interval(value, values, distance.bounds)
        if metric == "KID":
            result["standard_deviation"] = distance.standard_deviation(
                host_random(config.seed, STREAM_SUBSETS)
            )
        if metric == "AUC-PRD":
            curve = distance.curve(*(np.ones(n) for n in sizes))
        result["better"] = "higher" if metric in HIGHER else BETTER.get(metric, "lower")
        results[named(metric, config.embedding)] = result
    return results, curve


def split_floor(real_set, config):
    """{name: mean, standard deviation and n of a metric between random halves of the real set}."""
    values = {}
    silent = replace(config, bootstrap=0)
    for repeat in progress(range(config.real_split_repeats), "Real against real", "split"):
        order = host_random(config.seed, STREAM_SPLIT, repeat).permutation(len(real_set.names))
        half = len(order) // 2
        results, _ = compare(real_set.subset(order[:half]), real_set.subset(order[half : 2 * half]), silent)
        for name, result in results.items():
            values.setdefault(name, []).append(result["value"])
    return {
        name: {
            "mean": float(np.mean(v)),
            "standard_deviation": float(np.std(v)),
            "n": half,
            "repeats": len(v),
        }
        for name, v in values.items()
    }


def few_samples(measured_sets, extractors, config):
    """Warnings where a Frechet distance has no more samples than dimensions."""
    warnings = []
    for extractor in extractors:
        if extractor.name in measured_sets[0].features:
            n = min(
                m.features[extractor.name].shape[0] * m.features[extractor.name].shape[1]
                for m in measured_sets
            )
            if n <= extractor.dimension:
                metric = {"volume": "MD", "axial": "FID"}.get(extractor.name, f"FID-{extractor.name}")
                warnings.append(
                    f"{named(metric, config.embedding)} has {n} samples for {extractor.dimension} "
                    f"dimensions: it is "
                    f"biased upwards, compare it at equal numbers alone"
                )
    return warnings


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Entry points                                                                                             ║
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

    def measure_part(self, sources, number, parts):
        """Measure generated volumes that are one of several parts of a set, made by as many processes."""
        config = replace(self.config, num_pairs=-(-self.config.num_pairs // parts))
        return measure(sources, number, self.extractors, config, self.cache, "generated volumes")

    def compare_parts(self, parts):
        """Compare generated volumes, measured in parts, with the real ones; see `compare`.

        The pairs of MS-SSIM lie within the parts; volumes of other seeds are independent, so any will do.
        """
        results, _ = compare(self.measure_real(), joined(parts), self.config)
        return results

    def __call__(self, sources, number, title="generated volumes"):
        """Measure generated volumes and compare them with the real ones; see `compare`.

        Returns:
            (results, curve, generated set).
        """
        real_set = self.measure_real()
        generated_set = self.measure(sources, number, title)
        results, curve = compare(real_set, generated_set, self.config)
        return results, curve, generated_set

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
        ValueError: Weights or volumes cannot be used; nothing has been computed.
    """
    from MedicalNet.report import write_report

    evaluator = Evaluator(config)
    if config.real_split and len(evaluator.real_files) < 2 * FEWEST_EVALUATED:
        raise ValueError(
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
    key = ["numbers", CODE, settings, evaluator.protocol(), evaluator.weights, versions(), *digests]
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


def generated_by(model, number, config):
    """Volumes of a model with seeds seed, seed + 1, ..., as VolumeInMemory."""
    for start in range(0, number, config.batch_size):
        seeds = range(config.seed + start, config.seed + min(start + config.batch_size, number))
        z, noise = batch_inputs(seeds, model.latent_dim, model.shape)
        styles = model.noise_to_styles(z, config.trunc_psi, model.labels_of(seeds))
        volumes = model.styles_to_images_ext_noise(styles, noise).cpu().numpy()
        yield from in_memory(seeds, volumes, model.affine)


def sweep(config):
    """Evaluate every checkpoint of a run, and write a table and a picture of the curves.

    Args:
        config: EvaluateConfig with `checkpoints`.

    Returns:
        The new folder.

    Raises:
        ValueError: There is no checkpoint, or weights or volumes cannot be used; nothing has been computed.
    """
    from MedicalNet.report import draw_sweep

    numbers = checkpoint_numbers(config.checkpoints)
    if not numbers:
        raise ValueError(f"--checkpoints {config.checkpoints} holds no model_<n>.pt: give models/<name>.")
    evaluator = Evaluator(config)
    size = config.num_generated or len(evaluator.real_files)
    rows = []
    for n in numbers:
        path = Path(config.checkpoints) / f"model_{n}.pt"
        model = ModelLoader(checkpoint=path, device=config.device, use_average=config.use_average)
        shape = (model.shape[1], model.shape[2], model.shape[0])
        if shape != evaluator.real_files[0].shape:
            raise ValueError(
                f"{path} generates {by(shape)} voxels, the real volumes have "
                f"{by(evaluator.real_files[0].shape)}."
            )
        try:
            results, _, _ = evaluator(generated_by(model, size, config), size, path.name)
        except ValueError as error:
            print(f"{path}: no numbers. {error}")
            continue
        rows.append({"checkpoint": n, "step": n if model.step is None else model.step, "metrics": results})
        best = named("MD" if "md" in config.metrics else "FID", config.embedding)
        print(path, f"{best} {results[best]['value']:.5g}" if best in results else "")
    if not rows:
        raise ValueError(f"No checkpoint in {config.checkpoints} could be evaluated.")
    folder = next_free(config.output)
    with new_folder(folder):
        record = {"checkpoints": rows, "n_generated": size, **describe(evaluator)}
        with atomic_path(folder / "sweep.json") as part:
            part.write_text(json.dumps(record, indent=1))
        with atomic_path(folder / "sweep.csv") as part, open(part, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["checkpoint", "step", *rows[0]["metrics"]])
            table.writerows(
                [r["checkpoint"], r["step"], *(m["value"] for m in r["metrics"].values())] for r in rows
            )
        draw_sweep(rows, folder / "sweep.png")
    print(f"{folder / 'sweep.png'} shows the curves; the numbers are in {folder / 'sweep.csv'}.")
    return folder


def main(argv=None):
    """The command line."""
    config = parse_cli(EvaluateConfig, argv)
    with one_line_errors():
        if config.checkpoints is not None:
            sweep(config)
        else:
            evaluate(config)


if __name__ == "__main__":
    main()
