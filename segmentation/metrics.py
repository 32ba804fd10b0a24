"""Scores of vessel segmentations: overlap, distances, topology and variants, of a case and of folders.

    python segmentation/metrics.py --truth labels --prediction predicted --output scores

or edit the settings below and run it, or call `score_case(truth, prediction, spacing)`.

The scores are those of the TopCoW challenge (Yang et al., arXiv:2312.17670), number for number, and those of
Aydin et al., NeuroImage 304 (2024) 120936, of its seven merged classes. Inputs are never written to.
"""

import functools
import itertools
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Run as a script, segmentation.py beside this file would hide its package.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import pair_up, refuse_other_grid
from volumetric.files import new_folder
from volumetric.machine import usable_cores

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import ArrayLike
from scipy import ndimage
from tqdm import tqdm

from segmentation.labels import MERGED, TABLES, merged_name, read_labels
from segmentation.report import write_report

# Edit these, or pass them as flags; a flag wins.
# folder of true label maps
truth = "labels"
# folder of predicted ones, of the same names
prediction = "predicted"
# new folder for scores.json, scores.csv and pictures
output = "scores"

NAMES = TABLES["topcow2024"]
NO_SKELETON = (
    "clDice is 0, as in TopCoW's own code, where a mask has no skeleton: scikit-image finds none of bars of "
    "even width"
)
EVERY_NEIGHBOUR = np.ones((3, 3, 3), bool)  # 26 of them
MISSING_MM = 90.0  # distance where a class is missing on one side
LEAST_IOU = 0.25  # of a class that is detected
DETECTED = (8, 9, 10, 15)  # the classes that not everybody has
PARTS = {"anterior": (10, 11, 12, 15), "posterior": (2, 3, 8, 9)}
# Edges of the circle's graph: a segment that is there when its class is, or when two classes touch.
GRAPH = {
    "anterior": {"L-A1": (12, 6), "Acom": (10,), "3rd-A2": (15,), "R-A1": (11, 4)},
    "posterior": {"L-Pcom": (9,), "L-P1": (3, 1), "R-P1": (2, 1), "R-Pcom": (8,)},
}
SIDES = {
    "anterior": ((6, 4), (12, 11)),
    "posterior": ((3, 2),),
}  # pairs (left, right), the first there decides


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Overlap and distance of two masks                                                                        ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def box_of(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Slices of the smallest box that holds a mask, or None if it is empty."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    return found[0] if found else None


def cropped(*masks: np.ndarray) -> list[np.ndarray]:
    """Masks in the smallest box that holds them all, with an empty voxel around."""
    box = box_of(np.logical_or.reduce(masks))
    return [np.pad(mask[box], 1) for mask in masks]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|), 0 if both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 0


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels with one of 26 neighbours outside. Shapes: (X, Y, Z) bool -> the same"""
    return mask & ~ndimage.binary_erosion(mask, EVERY_NEIGHBOUR)


def hausdorff(
    one: np.ndarray, other: np.ndarray, spacing: Sequence[float] | np.ndarray
) -> tuple[float, float]:
    """Hausdorff distance of two masks and its 95th percentile, mm, the larger of both directions.

    Returns:
        (HD, HD95): MISSING_MM if one mask is empty, 0 if both are.
    """
    if not one.any() or not other.any():
        distance = MISSING_MM if one.any() or other.any() else 0
        return distance, distance
    surfaces = [surface(mask) for mask in cropped(one, other)]
    distances = []
    for near, far in (surfaces, surfaces[::-1]):
        to_far = ndimage.distance_transform_edt(~far, sampling=spacing)
        distances.append(to_far[near])
    return float(max(d.max() for d in distances)), float(max(np.percentile(d, 95) for d in distances))


def average_distances(
    one: np.ndarray, other: np.ndarray, spacing: Sequence[float] | np.ndarray = (1, 1, 1)
) -> dict[str, float]:
    """Average distances of all voxels of two masks (of Aydin et al., with the spacing of a voxel).

        AVGDIST = (S1 / N1 + S2 / N2) / 2,    bAVD = (S1 + S2) / (2 N1)

    S1 sums the distances from the true voxels to the nearest predicted one, S2 the reverse.

    Returns:
        {"AVGDIST", "bAVD"}, NaN if a mask is empty.
    """
    if not one.any() or not other.any():
        return {"AVGDIST": np.nan, "bAVD": np.nan}
    one, other = cropped(one, other)
    sums = [
        float(ndimage.distance_transform_edt(~far, sampling=spacing)[near].sum())
        for near, far in ((one, other), (other, one))
    ]
    n1, n2 = int(one.sum()), int(other.sum())
    return {"AVGDIST": (sums[0] / n1 + sums[1] / n2) / 2, "bAVD": sum(sums) / (2 * n1)}


def centreline_dice(one: np.ndarray, other: np.ndarray) -> float:
    """clDice (arXiv:2003.07311): overlap of each skeleton with the other mask, 0 if one is empty.

    As in the challenge's code it is 0, too, if a mask has no skeleton, as bars of even width have none by
    scikit-image's thinning (its issue 3757), be the masks equal: a warning says so.

    Shapes: (X, Y, Z) bool, (X, Y, Z) bool -> number
    """
    from skimage.morphology import skeletonize

    if not one.any() or not other.any():
        return 0
    one, other = cropped(one, other)
    shares = []
    for mask, whole in ((other, one), (one, other)):
        skeleton = skeletonize(mask, method="lee") > 0
        if not skeleton.any():
            warnings.warn(NO_SKELETON, stacklevel=2)
            return 0
        shares.append(int((skeleton & whole).sum()) / int(skeleton.sum()))
    return 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0


def components(mask: np.ndarray) -> int:
    """Number of 26-connected components."""
    box = box_of(mask)
    return 0 if box is None else int(ndimage.label(mask[box], EVERY_NEIGHBOUR)[1])


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ One case                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def check_pair(truth: np.ndarray, prediction: np.ndarray) -> None:
    """Raise a UserError unless two arrays are label maps of one shape."""
    if truth.shape != prediction.shape or truth.ndim != 3:
        raise UserError(f"truth and prediction have the shapes {truth.shape} and {prediction.shape}.")
    unknown = sorted(({*np.unique(truth)} | {*np.unique(prediction)}) - {0, *NAMES})
    if unknown:
        raise UserError(f"there are ids {', '.join(map(str, unknown))}, which are not of TopCoW 2024.")


def score_case(
    truth: ArrayLike, prediction: ArrayLike, spacing: Sequence[float] | np.ndarray
) -> dict[str, float]:
    """Scores of one segmentation, as the TopCoW challenge has them.

    Averages are over the classes that are on either side: one false voxel of a class that is not there
    adds Dice 0 and 90 mm.

    Args:
        truth, prediction: Whole numbers (X, Y, Z), ids of TopCoW 2024.
        spacing: Size of a voxel of the truth along X, Y and Z, mm.

    Returns:
        {"Dice_<class>", "B0err_<class>", "HD_<class>", "HD95_<class>", "clDice"}; of the former also their
        averages "<score>_ClsAvg<score>", and "<score>_MergedBin" of all vessels as one. Betti-0 errors are
        differences of numbers of components, distances are in mm.

    Raises:
        UserError: The arrays are no label maps of one shape.
    """
    truth, prediction, spacing = np.asarray(truth), np.asarray(prediction), np.asarray(spacing, dtype=float)
    check_pair(truth, prediction)
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise UserError(f"spacing must be three numbers above 0, mm along X, Y, Z, got {spacing.tolist()}.")
    box = box_of((truth > 0) | (prediction > 0))
    if box is not None:
        truth, prediction = truth[box], prediction[box]
    classes = sorted(({*np.unique(truth)} | {*np.unique(prediction)}) - {0})
    pairs = {NAMES[c]: (truth == c, prediction == c) for c in classes}
    pairs["MergedBin"] = (truth > 0, prediction > 0)
    found = {name: mask_scores(*pair, spacing) for name, pair in pairs.items()}
    scores = {}
    for kind in ("Dice", "B0err", "HD", "HD95"):
        scores |= {f"{kind}_{name}": one[kind] for name, one in found.items()}
        of_classes = [one[kind] for name, one in found.items() if name != "MergedBin"]
        scores[f"{kind}_ClsAvg{kind}"] = float(np.mean(of_classes)) if of_classes else 0
    return scores | {"clDice": centreline_dice(*pairs["MergedBin"])}


def mask_scores(
    truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float] | np.ndarray
) -> dict[str, float]:
    """Dice, Betti-0 error, HD and HD95 of one class."""
    hd, hd95 = hausdorff(truth, prediction, spacing)
    betti = abs(components(prediction) - components(truth))
    return {"Dice": dice(truth, prediction), "B0err": betti, "HD": hd, "HD95": hd95}


def merged(labels: np.ndarray) -> dict[str, np.ndarray]:
    """{class of the paper: mask (X, Y, Z)}."""
    masks = {name: np.zeros(labels.shape, bool) for name in MERGED}
    for c, name in NAMES.items():
        masks[merged_name(name)] |= labels == c
    return masks


def score_as_published(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Scores of the paper: Dice, and AVGDIST and bAVD in voxels, of its seven merged classes.

    A distance is NaN where a class is missing on one side; the paper's means leave such cases out, so that a
    missed vessel costs nothing.

    Shapes: (X, Y, Z), (X, Y, Z) -> {"Paper_<score>_<class>"}
    """
    scores, of_prediction = {}, merged(prediction)
    for name, mask in merged(truth).items():
        other = of_prediction[name]
        scores[f"Paper_Dice_{name}"] = dice(mask, other) if mask.any() or other.any() else np.nan
        for kind, value in average_distances(mask, other).items():
            scores[f"Paper_{kind}_{name}"] = value
    return scores


def touching(labels: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of classes of which voxels are 26-neighbours, a set of (a, b), both ways."""
    box, found = box_of(labels > 0), set()
    if box is None:
        return found
    labels = np.pad(labels[box], 1).astype(np.int32)
    inner = tuple(slice(1, -1) for _ in range(3))
    here = labels[inner]
    for offset in itertools.product((-1, 0, 1), repeat=3):
        if offset <= (0, 0, 0):
            continue
        there = labels[tuple(slice(1 + d, n - 1 + d) for d, n in zip(offset, labels.shape, strict=True))]
        meet = (here > 0) & (there > 0) & (here != there)
        codes = np.unique(256 * here[meet] + there[meet])
        found |= {pair for code in codes.tolist() for pair in (divmod(code, 256), divmod(code, 256)[::-1])}
    return found


def detect(truth: np.ndarray, prediction: np.ndarray, label: int) -> str:
    """TP, FN, FP or TN of a class: TP from an intersection over union of LEAST_IOU on."""
    one, other = truth == label, prediction == label
    if not one.any():
        return "FP" if other.any() else "TN"
    return "TP" if (one & other).sum() / (one | other).sum() >= LEAST_IOU else "FN"


def detection_of_case(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Whether each artery that not everybody has is found where it is, and is not found where it is not.

    Args:
        truth, prediction: (X, Y, Z), ids of TopCoW 2024.

    Returns:
        {"sensitivity_NAME": 1 or 0} of the classes that are in the truth, {"specificity_NAME": 1 or 0} of the
        others: their means over subjects are sensitivity and specificity, TP as of `detect`.
    """
    found = {NAMES[c]: detect(truth, prediction, c) for c in DETECTED}
    there = {f"sensitivity_{name}": float(it == "TP") for name, it in found.items() if it in ("TP", "FN")}
    absent = {f"specificity_{name}": float(it == "TN") for name, it in found.items() if it in ("TN", "FP")}
    return there | absent


def graph_of(labels: np.ndarray, pairs: set[tuple[int, int]]) -> dict[str, list[int]]:
    """{"anterior": four of 0 and 1, "posterior": four}: which of the circle's segments are there."""
    there = {int(c) for c in np.unique(labels)}
    return {
        part: [int(need in pairs if len(need) == 2 else need[0] in there) for need in segments.values()]
        for part, segments in GRAPH.items()
    }


def sides_are_swapped(labels: np.ndarray, part: str, left: int) -> bool:
    """True if what is called left lies on the right; `left` is 1 if x grows to the left, else -1."""
    for names in SIDES[part]:
        masks = [labels == c for c in names]
        if all(mask.any() for mask in masks):
            medians = [np.median(np.nonzero(mask)[0]) for mask in masks]
            return bool(left * (medians[0] - medians[1]) < 0)
    return False


def compare_variants(truth: np.ndarray, prediction: np.ndarray, left: int = 1) -> dict[str, Any]:
    """Detection of the arteries that not everybody has, graph of the circle, and match of its topology.

    Args:
        truth, prediction: (X, Y, Z), ids of TopCoW 2024.
        left: 1 if x grows to the patient's left, -1 if to the right.

    Returns:
        {"detection": {class: TP, FN, FP or TN}, "graph": {part: {"truth", "prediction"}: four numbers},
        "match": {part: bool}}.
    """
    pairs = [touching(labels) for labels in (truth, prediction)]
    graphs = [graph_of(labels, p) for labels, p in zip((truth, prediction), pairs, strict=True)]
    match = {}
    for part, classes in PARTS.items():
        right = not sides_are_swapped(prediction, part, left)
        for c in classes:
            right = right and detect(truth, prediction, c) in ("TP", "TN")
            right = right and components(truth == c) == components(prediction == c)
            right = right and {b for a, b in pairs[0] if a == c} == {b for a, b in pairs[1] if a == c}
        match[part] = right
    return {
        "detection": {NAMES[c]: detect(truth, prediction, c) for c in DETECTED},
        "graph": {part: {"truth": graphs[0][part], "prediction": graphs[1][part]} for part in GRAPH},
        "match": match,
    }


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Folders                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(kw_only=True)
class ScoreConfig:
    """Score a folder of predicted label maps against the true ones."""

    truth: str = option(truth, "Folder of true label maps, ids of TopCoW 2024.")
    prediction: str = option(prediction, "Folder of predicted ones, of the same names.")
    output: str = option(output, "New folder for scores.json, scores.csv and pictures.", folder=True)
    resample: bool = option(False, "Bring predictions of another grid to the truth's, by nearest neighbour.")
    workers: int | None = option(None, "Processes; None is one for each core.", least=1, most=256)

    def __post_init__(self) -> None:
        check_fields(self)


def read_pair(paths: Sequence[Path], resample: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and prediction on one grid.

    Returns:
        (truth, prediction (X, Y, Z) with x to the right, spacing (3,) mm).

    Raises:
        UserError: One is no label map, or they are of different grids.
    """
    true, affine = read_labels(paths[0])
    predicted, other = read_labels(paths[1])
    try:
        refuse_other_grid((predicted.shape, other, paths[1]), (true.shape, affine, paths[0]))
    except UserError as error:
        if not resample:
            raise UserError(f"{error} --resample True does it, if both are of one space.") from None
        to_other = np.linalg.inv(other) @ affine
        predicted = ndimage.affine_transform(predicted, to_other, output_shape=true.shape, order=0)
    return true, predicted, voxel_sizes(affine)


def score_files(paths: Sequence[Path], resample: bool) -> dict[str, Any]:
    """All of one case.

    Returns:
        {"scores", "variants", "empty": sides, "classes": {side: names of those there}, "warnings": [text]}.
    """
    true, predicted, spacing = read_pair(paths, resample)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        scores = score_case(true, predicted, spacing) | score_as_published(true, predicted)
    empty = [side for side, labels in (("truth", true), ("prediction", predicted)) if not labels.any()]
    there = {
        side: [NAMES[c] for c in np.unique(labels) if c]
        for side, labels in zip(("truth", "prediction"), (true, predicted), strict=True)
    }
    variants = compare_variants(true, predicted, left=-1)
    found = {"scores": scores, "variants": variants, "empty": empty, "classes": there}
    return found | {"warnings": [str(warning.message) for warning in told]}


def score_folders(config: ScoreConfig) -> Path:
    """Score every case of two folders; a case that cannot be scored stops all before anything is written.

    Args:
        config: ScoreConfig.

    Returns:
        The new folder with scores.json, scores.csv, summary.md and pictures.
    """
    cases = pair_up({"truth": config.truth, "prediction": config.prediction})
    number = config.workers or min(usable_cores(), len(cases))
    results = {}
    with ProcessPoolExecutor(number) as pool:
        waiting = {name: pool.submit(score_files, paths, config.resample) for name, paths in cases.items()}
        for name, future in tqdm(waiting.items(), "Scoring", unit="case"):
            results[name] = future.result()
    with new_folder(config.output) as folder:
        print(write_report(results, cases, folder, functools.partial(read_pair, resample=config.resample)))
    for message in dict.fromkeys(text for one in results.values() for text in one["warnings"]):
        names = [name for name, one in results.items() if message in one["warnings"]]
        print(f"Warning: {message} ({len(names)} of {len(cases)} cases, as {names[0]}).")
    print(f"Scores and pictures of {len(cases)} cases are in {folder}")
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config = parse_cli(ScoreConfig, argv)
    with one_line_errors():
        score_folders(config)


if __name__ == "__main__":
    main()
