"""What is measured of a set of volumes: features, anatomy, and the similarity of pairs."""

import contextlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from volumetric.cli import UserError
from volumetric.files import array_to_volume, by, file_digest
from volumetric.machine import usable_cores
from volumetric.parallel import choose_device, host_random

import numpy as np
import torch

from MedicalNet.anatomy import PROTOCOL, measure_anatomy
from MedicalNet.copies import Fingerprint
from MedicalNet.extractors import (
    PUBLISHED,
    RadiologicalFeatures,
    SliceFeatures,
    VolumeFeatures,
    build_inception,
    build_medicalnet,
    build_radimagenet,
    find_weights,
)
from MedicalNet.openmind import OpenMindFeatures, build_openmind
from MedicalNet.radiomics import Radiomics
from MedicalNet.volumes import READER, VolumeFile, progress

SIMILARITY = 1  # protocol of MS-SSIM, part of every cached value
STREAM_PAIRS = 0
BATCH = 4  # volumes in one pass of a network, where it takes several
# What the measured depends on beside our own code; part of every cached result.
LIBRARIES = {
    name: version(name)
    for name in (
        "numpy",
        "scipy",
        "scikit-image",
        "skan",
        "nibabel",
        "torch",
        "torch-fidelity",
        "torchmetrics",
    )
}


# The group of numbers that a network is asked for by.
NETWORKS = {"medicalnet": "md", "inception": "fid", "openmind": "openmind"}


class Anatomy:
    """Vessel measures of a volume, as an extractor."""

    name = "anatomy"
    version = 3  # of the code behind the protocol: raise it when the numbers change
    digest = ""
    protocol = PROTOCOL
    on_host = True

    def __call__(self, array, affine):
        return measure_anatomy(array, affine)


@contextlib.contextmanager
def lacking(missing, optional):
    """Around what may have no weights or no package; with `optional` its sentence is kept, not raised."""
    try:
        yield
    except UserError as error:
        if not optional:
            raise
        missing.append(str(error))


def weights_of(name, config):
    """(path or None, SHA-256 or "random") of a network, as `config` asks for it."""
    if config.embedding != "pretrained":
        return None, "random"
    return find_weights(name, getattr(config, f"{name}_weights"))


def build_extractors(config, optional=False):
    """Networks and measures that the configuration asks for.

    Args:
        config: EvaluateConfig.
        optional: Leave out what has no weights, and say so, in place of raising.

    Returns:
        (extractors, weights, missing): what to call on every volume; {network: where its weights are from};
        a sentence for every network that was left out.

    Raises:
        UserError: Weights are missing or damaged.
    """
    device, found, missing = choose_device(config.device), {}, []
    for name, group in NETWORKS.items():
        if group in config.metrics:
            with lacking(missing, optional):
                found[name] = weights_of(name, config)
    extractors = []
    if "medicalnet" in found:
        path, digest = found["medicalnet"]
        extractors.append(VolumeFeatures(build_medicalnet(path, device), digest))
    if "inception" in found:
        path, digest = found["inception"]
        network = build_inception(path, device, config.precision == "mixed")
        extractors += [SliceFeatures(network, digest, plane) for plane in config.planes]
    if "openmind" in found:
        path, digest = found["openmind"]
        extractors.append(OpenMindFeatures(build_openmind(path, device), digest))
    if config.radimagenet_weights is not None:
        path = Path(config.radimagenet_weights)
        found["radimagenet"] = path, file_digest(path)
        extractors.append(RadiologicalFeatures(build_radimagenet(path, device), found["radimagenet"][1]))
    if "anatomy" in config.metrics:
        extractors.append(Anatomy())
    if "copies" in config.metrics:
        extractors.append(Fingerprint())
    if "radiomics" in config.metrics:
        with lacking(missing, optional):
            extractors.append(Radiomics())
    weights = {
        name: {
            "file": str(path),
            "sha256": digest,
            "published": name in PUBLISHED and digest == PUBLISHED[name].sha256,
        }
        for name, (path, digest) in found.items()
    }
    return extractors, weights, missing


@dataclass
class Measured:
    """What was measured of a set of n volumes.

    Args:
        names: Names of the volumes.
        features: {plane, "volume" or "placed": (n, s, d) float32}, s feature vectors a volume.
        anatomy: For every volume {measure: array}; empty without anatomy.
        shape: (X, Y, Z) of the volumes.
        pairs: Indices of the pairs compared by MS-SSIM, (p, 2), or None.
        similarity: Their MS-SSIM, (p,).
    """

    names: list
    features: dict
    anatomy: list
    shape: tuple = ()
    pairs: np.ndarray | None = None
    similarity: np.ndarray | None = None

    def subset(self, chosen):
        """The volumes of the given indices, without similarities."""
        features = {name: f[chosen] for name, f in self.features.items()}
        anatomy = [self.anatomy[i] for i in chosen] if self.anatomy else []
        return Measured([self.names[i] for i in chosen], features, anatomy, self.shape)


def concatenated(parts):
    """One Measured of several, one after the other."""
    features = {name: np.concatenate([p.features[name] for p in parts]) for name in parts[0].features}
    names = [name for p in parts for name in p.names]
    anatomy = [volume for p in parts for volume in p.anatomy]
    whole = Measured(names, features, anatomy, parts[0].shape)
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
        UserError: A volume cannot be measured; the text names it.
    """
    pairs = choose_pairs(number, config) if "ms_ssim" in config.metrics else None
    wanted = set() if pairs is None else set(pairs.ravel().tolist())
    names, shape, kept, results = [], (), {}, {e.name: [] for e in extractors}
    volumes = progress(
        measured_ahead(sources, extractors, config, cache), f"Measuring {title}", "volume", number
    )
    for index, (source, measured) in enumerate(volumes):
        names.append(source.name)
        shape = source.shape
        for name, arrays in measured.items():
            results[name].append(arrays)
        if index in wanted:
            kept[index] = source
    found = Measured(names, stacked(results, extractors), results.get("anatomy", []), shape, pairs)
    if pairs is not None:
        device = choose_device(config.device)
        shown = progress(pairs, f"MS-SSIM of {title}", "pair")
        found.similarity = np.array([similarity(kept[i], kept[j], device, cache) for i, j in shown])
    return found


def stacked(results, extractors):
    """Features of all volumes, {name: (n, s, d)}, of what every extractor gave of each: {name: [arrays]}."""
    features = {}
    for extractor in extractors:
        given = results[extractor.name]
        if extractor.name != "anatomy":
            features[extractor.name] = np.stack([arrays["features"] for arrays in given])
        features |= {name: np.stack([arrays[name] for arrays in given]) for name in also(extractor)}
    return features


def also(extractor):
    """Names of the features that an extractor gives beside those of its own name."""
    return getattr(extractor, "also", ())


@dataclass
class Prepared:
    """A volume before its last extractors.

    Args:
        source: VolumeFile or VolumeInMemory.
        keys: {extractor: key of its arrays in the cache}.
        found: {extractor: arrays, or None as long as they are not known}.
        lacking: Extractors whose arrays the cache did not have.
        array: (X, Y, Z) of the volume; None if nothing lacked.
    """

    source: object
    keys: dict
    found: dict
    lacking: list
    array: np.ndarray | None


def prepare(source, extractors, config, cache):
    """Prepared of a volume: read, if something lacks, and through the extractors that need no network."""
    keys = {}
    for e in extractors:
        made_by = [READER, e.name, e.version, e.protocol, e.digest, LIBRARIES]
        keys[e.name] = ["features", *made_by, source.digest, config.protocol]
    found = {name: cache.get(key) for name, key in keys.items()}
    lacking = [e for e in extractors if found[e.name] is None]
    array = source.read() if lacking else None
    for extractor in lacking:
        if extractor.on_host:
            found[extractor.name] = extract(extractor, source, array)
    return Prepared(source, keys, found, lacking, array)


def extract(extractor, source, array):
    """What an extractor gives of a volume; an error names the volume."""
    try:
        return extractor(array, source.affine)
    except UserError as error:
        raise UserError(f"{source.name} {error}.") from None


def extract_all(extractor, group):
    """The same of several Prepared, in one pass if they are of one shape and the extractor can."""
    same = len({one.source.shape for one in group}) == 1
    if same and hasattr(extractor, "of_batch"):
        return extractor.of_batch([one.array for one in group])
    return [extract(extractor, one.source, one.array) for one in group]


def complete(group, extractors, cache):
    """Run the networks on what lacks of a group of Prepared, and keep what comes from files."""
    for extractor in extractors:
        ours = [one for one in group if extractor in one.lacking]
        if ours and not extractor.on_host:
            for one, arrays in zip(ours, extract_all(extractor, ours), strict=True):
                one.found[extractor.name] = arrays
    for one in group:
        if isinstance(one.source, VolumeFile):
            for extractor in one.lacking:
                cache.put(one.keys[extractor.name], one.found[extractor.name])


def measured_ahead(sources, extractors, config, cache):
    """Yield (source, {extractor: arrays}) in order; while the networks work, threads read the next ones."""

    def oldest(number):
        group = [coming.popleft().result() for _ in range(number)]
        complete(group, extractors, cache)
        for one in group:
            yield one.source, one.found

    workers = min(8, usable_cores())
    coming = deque()
    with ThreadPoolExecutor(workers) as pool:
        for source in sources:
            coming.append(pool.submit(prepare, source, extractors, config, cache))
            if len(coming) > workers + BATCH:
                yield from oldest(BATCH)
        while coming:
            yield from oldest(min(BATCH, len(coming)))


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
    raise UserError(f"{by(shape)} voxels are too few for MS-SSIM: leave ms_ssim out of --metrics.")


def similarity(one, other, device, cache):
    """3D MS-SSIM (Wang et al. 2003) of two volumes, each scaled to [0, 1] by its minimum and maximum."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

    key = ["ms_ssim", READER, SIMILARITY, LIBRARIES, one.protocol, *sorted((one.digest, other.digest))]
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
