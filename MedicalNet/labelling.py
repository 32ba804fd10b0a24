"""Label maps of the volumes of both sets: by a segmentation network, or out of folders of label maps.

A network is an extractor as those of extractors.py: what it says of a volume is cached by the content of the
volume and all that the network answers by. What is measured of a label map is cached by the map's content.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from volumetric.cli import UserError
from volumetric.collection import Volume, content_of_labels, pair_up, refuse_other_grid
from volumetric.files import by
from volumetric.geometry import axes_of, spacing_of, turn
from volumetric.machine import usable_cores
from volumetric.names import in_folder

import numpy as np

from MedicalNet.arteries import Arteries, measure_map
from MedicalNet.measuring import LIBRARIES, measured_ahead
from MedicalNet.volumes import progress
from segmentation.cases import Scan
from segmentation.labels import name_of_table, read_labels
from segmentation.segmentation import content_of_model, contents_known_to, read_model

MEASURED = 1  # version of what arteries.py measures: raise it when its numbers change


class Labelling:
    """A segmentation network as an extractor: the label map of a volume, and how sure it is.

    Args:
        predictor: segmentation.Predictor.
        about: What the network's file says, of `read_model`.
    """

    name = "labels"
    version = 1  # of the code behind the protocol: raise it when label maps change
    on_host = False

    def __init__(self, predictor, about):
        self.predictor, self.digest = predictor, content_of_model(about)
        mirrored = ", both sides averaged" if predictor.mirror else ""
        self.protocol = (
            f"label maps of a network of segmentation.py (table {predictor.classes.table}{mirrored}; voxels "
            f"of {by(predictor.spacing.round(4))} mm; MONAI {version('monai')}); volumes along "
            f"right, front and up, standardised by their mean and standard deviation"
        )

    def __call__(self, array, affine):
        """Shapes: (X, Y, Z) -> {"labels": packed (bytes,) uint8, "shape": (3,), "confidence": ()}"""
        turned, frame = turn(array, affine)
        labels, confidence = np.zeros(turned.shape, np.uint8), None  # of a constant volume
        if turned.min() < turned.max():
            volume = Volume(np.ascontiguousarray(turned), frame, frame)
            labels, sure = self.predictor.label(Scan(Path(), volume))
            confidence = sure["confidence"]
        sure = np.array(np.nan if confidence is None else confidence)
        return {"labels": pack(labels), "shape": np.array(labels.shape), "confidence": sure}


def pack(labels):
    """A label map as few bytes. Shapes: (X, Y, Z) uint8 -> (bytes,) uint8"""
    return np.frombuffer(zlib.compress(np.ascontiguousarray(labels).tobytes()), np.uint8)


def unpack(packed, shape):
    """The label map of `pack`. Shapes: (bytes,) uint8, (3,) -> (X, Y, Z) uint8"""
    return np.frombuffer(zlib.decompress(packed.tobytes()), np.uint8).reshape(shape)


@dataclass
class Labelled:
    """A label map of a volume.

    Args:
        packed: Its ids, of `pack`.
        shape: (X, Y, Z).
        spacing: (3,) mm.
        confidence: How sure the network is of it, NaN without vessels; None where nobody knows.
    """

    packed: np.ndarray
    shape: tuple
    spacing: np.ndarray
    confidence: float | None = None


@dataclass
class Sources:
    """Where the label maps of both sets come from; everything that can be wrong is found when it is built.

    Args:
        config: EvaluateConfig.
        files: {"real", "generated": [VolumeFile]}.
        cache: FeatureCache.
    """

    config: object
    files: dict
    cache: object
    table: str = ""
    network: object = None
    paths: dict = field(default_factory=dict)
    given: dict = field(default_factory=dict)
    warnings: list = field(default_factory=list)

    def __post_init__(self):
        self.table = self.config.label_table
        if self.config.segmenter is not None:
            predictor, about = read_model(self.config.segmenter, self.config.device)
            self.network, self.table = Labelling(predictor, about), name_of_table(predictor.classes.table)
            if self.config.label_table not in (type(self.config).label_table, self.table):
                raise UserError(
                    f"--label_table is {self.config.label_table}, --segmenter {self.config.segmenter} has "
                    f"the ids of {self.table}: leave --label_table out."
                )
            self.look_for_training(contents_known_to(about))
        for which in ("real", "generated"):
            if getattr(self.config, f"{which}_labels") is not None:
                self.paths[which] = self.partners(which, f"{which}_labels")
        if self.config.real_truth is not None:
            self.paths["truth"] = self.partners("real", "real_truth")
        for which in self.paths:
            self.given[which] = list(self.read(which, "real" if which == "truth" else which))

    def look_for_training(self, known):
        """Warn if the network was trained on real volumes, and refuse to say how right it is on them."""
        seen = [file for file in self.files["real"] if file.content in known]
        if not seen:
            return
        told = f"{len(seen)} of the {len(self.files['real'])} real volumes"
        if self.config.real_truth is not None:
            raise UserError(
                f"--segmenter {self.config.segmenter} was trained on {told}, as {seen[0].path}: --real_truth "
                f"needs real volumes that it has not seen."
            )
        self.warnings.append(f"the segmenter was trained on {told}: it is surer of them than of others")

    def partners(self, which, flag):
        """Paths of the label maps of the volumes of a set, in their order."""
        folders = {which: getattr(self.config, which), flag: getattr(self.config, flag)}
        names = [in_folder(file.path, folders[which]) for file in self.files[which]]
        found = pair_up(folders, set(names))
        return [found[name][1] for name in names]

    def read(self, which, of):
        """Yield a Labelled of every label map of a folder; `of` is the set whose grids they must have."""
        for path, file in zip(self.paths[which], self.files[of], strict=True):
            labels, affine = read_labels(path, self.table, axes_of(file.affine))
            refuse_other_grid((labels.shape, affine, path), (file.shape, file.affine, file.path))
            yield Labelled(pack(labels), labels.shape, file.spacing)

    def predict(self, which):
        """Yield a Labelled of every volume of a set, by the network."""
        files = self.files[which]
        coming = measured_ahead(files, [self.network], self.config, self.cache)
        for file, found in progress(coming, f"Labelling {which} volumes", "volume", len(files)):
            found = found[self.network.name]
            spacing = spacing_of(turn(np.empty(file.shape, np.bool_), file.affine)[1])
            shape = tuple(map(int, found["shape"]))
            yield Labelled(found["labels"], shape, spacing, float(found["confidence"]))

    def arteries(self, which):
        """Arteries of the label maps of a set: real, generated, or truth, the real volumes' true ones."""
        maps = self.given[which] if which in self.given else list(self.predict(which))
        with ThreadPoolExecutor(usable_cores()) as pool:
            found = pool.map(self.measured, maps)
            rows = list(progress(found, f"Measuring arteries of {which} volumes", "volume", len(maps)))
        return Arteries.of(rows, [one.confidence for one in maps], self.table)

    def measured(self, labelled):
        """What `measure_map` says of a Labelled, from the cache if it is there."""
        labels = unpack(labelled.packed, labelled.shape)
        size = [f"{n:.6g}" for n in labelled.spacing]
        key = ["named_anatomy", MEASURED, LIBRARIES, content_of_labels(labels), size, self.table]
        found = self.cache.get(key)
        if found is None:
            found = measure_map(labels, labelled.spacing, self.table)
            self.cache.put(key, found)
        return found

    def described(self):
        """Where the label maps of every set come from, text."""
        network = f"{self.config.segmenter}, SHA-256 {self.network.digest}" if self.network else None
        given = {which: getattr(self.config, f"{which}_labels") for which in ("real", "generated")}
        return {which: folder or network for which, folder in given.items()}
