"""Scores of vessel segmentations against plain formulations, tables of ids, and what is refused."""

import csv
import json
import re
import warnings

from volumetric.cli import UserError

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree

from sample_data import phantom
from segmentation import labels, metrics, report
from tests.conftest import run_script

SPACING = (0.6, 0.6, 0.9)


@pytest.fixture(scope="module")
def circle():
    """Label map of a phantom with every class but the third A2, x to the right."""
    for number in range(20):
        _, array, _ = phantom.make_phantom(0, number, (48, 48, 24))
        if len(np.unique(array)) >= 13:
            return array.astype(int)
    raise AssertionError("no phantom has a whole circle")


def spoiled(array, seed=0):
    """The map with a class grown, one gone, one moved, and voxels lost."""
    rng, found = np.random.default_rng(seed), array.copy()
    found[ndimage.binary_dilation(array == 1) & (array == 0)] = 1
    found[array == 10] = 0
    found[found == 5] = 0
    found[np.roll(array == 5, 2, axis=0)] = 5
    found[(rng.random(array.shape) < 0.05) & (found > 0)] = 0
    return found


def plain_distances(one, other, spacing):
    """(HD, HD95) by k-d trees of voxels with a 26-neighbour outside."""
    points = []
    for mask in (one, other):
        padded = np.pad(mask, 1)
        inside = ndimage.minimum_filter(padded.astype(int), 3)[1:-1, 1:-1, 1:-1]
        points.append(np.argwhere(mask & (inside == 0)) * spacing)
    both = [KDTree(b).query(a)[0] for a, b in (points, points[::-1])]
    return max(d.max() for d in both), max(np.percentile(d, 95) for d in both)


def test_scores_are_those_of_plain_formulations(circle):
    found = spoiled(circle)
    scores = metrics.score_case(circle, found, SPACING)
    dices = []
    for c, name in metrics.NAMES.items():
        one, other = circle == c, found == c
        if not one.any() and not other.any():
            assert f"Dice_{name}" not in scores
            continue
        dices.append(2 * (one & other).sum() / (one.sum() + other.sum()))
        assert scores[f"Dice_{name}"] == pytest.approx(dices[-1], abs=1e-12)
        if one.any() and other.any():
            hd, hd95 = plain_distances(one, other, SPACING)
            assert scores[f"HD_{name}"] == pytest.approx(hd, abs=1e-5)
            assert scores[f"HD95_{name}"] == pytest.approx(hd95, abs=1e-5)
        number = [ndimage.label(mask, np.ones((3, 3, 3)))[1] for mask in (one, other)]
        assert scores[f"B0err_{name}"] == abs(number[0] - number[1])
    assert scores["Dice_ClsAvgDice"] == pytest.approx(np.mean(dices), abs=1e-12)
    assert scores["Dice_Acom"] == 0 and scores["HD95_Acom"] == scores["HD_Acom"] == 90
    assert 0 < scores["clDice"] < 1


def test_a_perfect_and_an_empty_map(circle):
    empty = np.zeros_like(circle)
    same = metrics.score_case(circle, circle, SPACING)
    assert all(value == (1 if "Dice" in name else 0) for name, value in same.items())
    lost = metrics.score_case(circle, empty, SPACING)
    assert lost["Dice_ClsAvgDice"] == lost["clDice"] == 0 and lost["HD95_ClsAvgHD95"] == 90
    assert set(metrics.score_case(empty, empty, SPACING).values()) == {0}
    assert metrics.compare_variants(empty, empty)["match"] == {"anterior": True, "posterior": True}
    false = circle.copy()
    false[0, 0, 0] = 15
    one = metrics.score_case(circle, false, SPACING)
    assert one["Dice_3rd-A2"] == 0 and one["Dice_ClsAvgDice"] == pytest.approx(12 / 13)


def test_a_mask_without_a_skeleton_is_told(folders, capsys):
    """clDice of a perfect bar of even width is 0, as the challenge's code has it."""
    bar = np.zeros((12, 12, 12), bool)
    bar[2:10, 5:7, 5:7] = True
    with pytest.warns(
        UserWarning, match="clDice is 0, as in TopCoW's own code, where a mask has no skeleton"
    ):
        assert metrics.centreline_dice(bar, bar) == 0
    bar[2:10, 5:8, 5:8] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.centreline_dice(bar, bar) == 1
    for case, wide in (("case0", 2), ("case1", 2), ("case2", 3)):
        array = np.zeros((12, 12, 12), np.uint8)
        array[2:10, 5 : 5 + wide, 5 : 5 + wide] = 1
        for side in ("truth", "prediction"):
            write(folders / side / f"{case}.nii.gz", array)
    metrics.main([*map(str, flags_of(folders)), "--workers", "1"])
    told = capsys.readouterr().out
    assert told.count("Warning:") == 1 and "even width (2 of 3 cases, as case0)." in told


def test_boxes_change_no_score(circle):
    found = spoiled(circle)
    wide = [np.pad(one, ((7, 3), (0, 9), (4, 4))) for one in (circle, found)]
    assert metrics.score_case(*wide, SPACING) == metrics.score_case(circle, found, SPACING)


def test_published_scores_are_averages_over_all_voxels(circle):
    found = spoiled(circle)
    scores = metrics.score_as_published(circle, found)
    one, other = (np.isin(array, (5, 7)) for array in (circle, found))
    points = [np.argwhere(mask) for mask in (one, other)]
    sums = [KDTree(b).query(a)[0].sum() for a, b in (points, points[::-1])]
    numbers = [len(p) for p in points]
    assert scores["Paper_bAVD_MCA"] == pytest.approx(sum(sums) / (2 * numbers[0]))
    average = (sums[0] / numbers[0] + sums[1] / numbers[1]) / 2
    assert scores["Paper_AVGDIST_MCA"] == pytest.approx(average)
    assert np.isnan(scores["Paper_bAVD_Acom"]) and scores["Paper_Dice_Acom"] == 0


def test_variants_and_sides(circle):
    right = metrics.compare_variants(circle, circle, left=-1)
    assert right["match"] == {"anterior": True, "posterior": True}
    assert right["graph"]["posterior"]["truth"] == [1, 1, 1, 1]
    assert right["detection"] == {"R-Pcom": "TP", "L-Pcom": "TP", "Acom": "TP", "3rd-A2": "TN"}
    swapped = circle.copy()
    for a, b in ((2, 3), (4, 6), (5, 7), (8, 9), (11, 12)):
        swapped[circle == a], swapped[circle == b] = b, a
    wrong = metrics.compare_variants(circle, swapped, left=-1)
    assert wrong["match"] == {"anterior": False, "posterior": False}
    assert metrics.sides_are_swapped(swapped, "anterior", -1)
    assert metrics.sides_are_swapped(circle, "anterior", 1)
    without = np.where(circle == 8, 0, circle)
    gone = metrics.compare_variants(circle, without, left=-1)
    assert gone["detection"]["R-Pcom"] == "FN" and gone["graph"]["posterior"]["prediction"][3] == 0
    assert metrics.compare_variants(without, circle, left=-1)["detection"]["R-Pcom"] == "FP"
    assert gone["match"] == {"anterior": True, "posterior": False}


def test_detection_of_a_case_is_one_number_an_artery(circle):
    """Sensitivity where the artery is there, specificity where it is not; the third A2 is in neither map."""
    without = np.where(circle == 8, 0, circle)
    there = {"sensitivity_L-Pcom": 1, "sensitivity_Acom": 1, "specificity_3rd-A2": 1}
    assert metrics.detection_of_case(circle, without) == {"sensitivity_R-Pcom": 0, **there}
    assert metrics.detection_of_case(without, circle) == {"specificity_R-Pcom": 0, **there}
    assert metrics.detection_of_case(without, without) == {"specificity_R-Pcom": 1, **there}


def test_touching_classes_are_26_neighbours():
    array = np.zeros((4, 4, 4), int)
    array[1, 1, 1], array[2, 2, 2], array[1, 1, 3] = 3, 5, 7
    assert metrics.touching(array) == {(3, 5), (5, 3), (5, 7), (7, 5)}


def test_balanced_accuracy_and_detection_over_cases():
    assert report.balanced_accuracy([(1,), (1,), (0,)], [(1,), (0,), (0,)]) == pytest.approx(0.75)
    found = report.detection_scores([{"Acom": kind} for kind in ("TP", "FN", "FP", "TN")])
    assert found["Acom"]["precision"] == found["Acom"]["recall"] == found["Acom"]["f1_score"] == 0.5
    assert report.detection_scores([{"Acom": "TN"}])["mean"]["f1_score"] == 0


# ---- tables of ids


def test_ids_are_translated_and_back(circle):
    there = labels.remap(circle, "topcow2024", "nnunet")
    assert np.array_equal(labels.remap(there, "nnunet", "topcow2024"), circle)
    paper = labels.remap(np.arange(16), "topcow2024", "paper")
    assert paper.tolist() == [0, 1, 2, 2, 3, 4, 3, 4, 6, 6, 7, 5, 5, 0, 0, 5]


def test_merged_classes_cannot_be_parted():
    with pytest.raises(UserError, match=r"--source paper has PCA, ICA, MCA, ACA, Pcom, which --target"):
        labels.translation("paper", "topcow2024")


@pytest.fixture
def folders(tmp_path, circle):
    """Folders of three true and three predicted maps."""
    affine = np.diag([*SPACING, 1])
    for n in range(3):
        for name, array in (("truth", circle), ("prediction", spoiled(circle, n) if n else circle)):
            (tmp_path / name).mkdir(exist_ok=True)
            labels.save_labels(array, affine, tmp_path / name / f"case{n}.nii.gz", "topcow2024")
    return tmp_path


def test_maps_are_translated_into_new_files(folders, capsys):
    flags = ["--data", str(folders / "truth"), "--output", str(folders / "paper")]
    labels.main(flags)
    array, _ = labels.read_labels(folders / "paper" / "case0.nii.gz", "paper")
    assert set(np.unique(array)) == set(range(8))
    again = ["--data", str(folders / "paper"), "--output", str(folders / "again")]
    with pytest.raises(SystemExit) as stop:
        labels.main(again)
    assert (
        "says that its ids are of paper, expected topcow2024" in f"{stop.value.code}{capsys.readouterr().err}"
    )
    assert not (folders / "again").exists()


def write(path, array, affine=None):
    """A map as another program would write it."""
    nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1]) if affine is None else affine), path)


WRONG_MAPS = {
    "13": (
        lambda a: np.where(a == 15, 13, np.where(a == 12, 13, a)),
        "13, which are not of topcow2024: they fit",
    ),
    "14": (
        lambda a: np.where(a == 12, 14, a),
        "has the ids 14, which are not of topcow2024, and no known table",
    ),
    "interpolated": (lambda a: a * 0.5, "has values that are no whole numbers: labels were interpolated"),
    "4D": (lambda a: np.stack([a, a], axis=3), "expected 3D (X, Y, Z)"),
    "other shape": (lambda a: a[:-2], "is of another grid than"),
}


@pytest.mark.parametrize("kind", WRONG_MAPS)
def test_wrong_maps_get_one_line(folders, circle, kind, capsys):
    spoil, text = WRONG_MAPS[kind]
    write(folders / "prediction" / "case1.nii.gz", spoil(circle).astype(np.float32))
    expect(folders, capsys, text)


def flags_of(folders):
    """Flags of a command that scores the folders."""
    places = {"truth": "truth", "prediction": "prediction", "output": "out"}
    return [str(part) for flag, name in places.items() for part in (f"--{flag}", folders / name)]


def expect(folders, capsys, text, *flags):
    """Assert that scoring stops with one line, before anything is written."""
    with pytest.raises(SystemExit) as stop:
        metrics.main([*flags_of(folders), *flags])
    message = f"{stop.value.code}\n{capsys.readouterr().err}"
    assert stop.value.code != 0 and text in message
    assert not (folders / "out").exists()


def test_missing_partners_and_other_grids_are_refused(folders, circle, capsys):
    moved = np.diag([*SPACING, 1.0])
    moved[0, 3] = 1.2
    write(folders / "prediction" / "case1.nii.gz", circle.astype(np.uint8), moved)
    expect(folders, capsys, "case1.nii.gz lies 1.2 mm beside")
    (folders / "prediction" / "case1.nii.gz").unlink()
    expect(folders, capsys, "case1.nii.gz has no partner in --prediction")


def test_other_grids_are_brought_to_the_truths_on_request(folders, circle):
    fine, affine = np.repeat(circle, 2, axis=0), np.diag([SPACING[0] / 2, *SPACING[1:], 1.0])
    affine[0, 3] = -SPACING[0] / 4
    write(folders / "prediction" / "case1.nii.gz", fine.astype(np.uint8), affine)
    pair = (folders / "truth" / "case1.nii.gz", folders / "prediction" / "case1.nii.gz")
    truth, prediction, spacing = metrics.read_pair(pair, resample=True)
    assert np.array_equal(truth, prediction) and spacing == pytest.approx(SPACING)


def test_axes_are_those_of_the_patient(folders, circle):
    """The same anatomy, stored with x to the left."""
    affine = np.diag([-SPACING[0], *SPACING[1:], 1.0])
    affine[0, 3] = SPACING[0] * (len(circle) - 1)
    write(folders / "prediction" / "case1.nii.gz", circle[::-1].astype(np.uint8), affine)
    pair = (folders / "truth" / "case1.nii.gz", folders / "prediction" / "case1.nii.gz")
    found = metrics.score_files(pair, resample=False)
    assert found["scores"]["Dice_ClsAvgDice"] == 1 and found["variants"]["match"]["anterior"]


def test_folders_are_scored(folders, circle):
    write(folders / "truth" / "empty.nii.gz", np.zeros(circle.shape, np.float32))
    write(folders / "prediction" / "empty.nii.gz", np.zeros(circle.shape, np.float32))
    done = run_script("segmentation/metrics.py", *flags_of(folders), fresh=True)
    assert done.returncode == 0, done.stderr
    out = folders / "out"
    assert {p.name for p in out.iterdir()} == {
        *("scores.json", "scores.csv", "summary.md", "classes.png", "variants.png", "worst.png")
    }
    record = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert record["cases"]["case0"]["scores"]["Dice_ClsAvgDice"] == 1
    assert record["summary"]["classes"]["Acom"] == {"both": 1, "missed": 2, "false": 0, "neither": 1}
    assert record["summary"]["empty"] == {"empty": ["truth", "prediction"]}
    with open(out / "scores.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["case0", "case1", "case2", "empty"]
    assert float(rows[0]["Dice_MergedBin"]) == 1 and rows[0]["anterior_match"] == "True"
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert re.search(r"\| Acom \| 0\.333 ± 0\.577 \| 60\.00 .* \| 1 \| 2 \| 0 \|", text)
    assert "a missed vessel costs nothing there" in text and "Empty: truth and prediction of empty." in text


# ---- what a header says of label maps


def write_scaled(path, array, slope):
    """A map of stored whole numbers with a slope in its header, which nibabel would not write."""
    raw = bytearray(nib.Nifti1Image(array, np.diag([*SPACING, 1])).to_bytes())
    raw[112:120] = np.array([slope, 0], "<f4").tobytes()
    path.write_bytes(bytes(raw))
    return path


def test_a_slope_is_read_or_named(tmp_path, circle):
    path = write_scaled(tmp_path / "tenth.nii", 10 * circle.astype(np.int16), 0.1)  # 15 becomes 14.9999999965
    assert np.array_equal(labels.read_labels(path)[0], circle)
    path = write_scaled(tmp_path / "picture.nii", circle.astype(np.int16), 12 / 255)
    with pytest.raises(
        UserError, match=r"scales what is stored by 0\.0470588 \(scl_slope\), as for a picture"
    ):
        labels.read_labels(path)


def test_a_sixtieth_of_a_voxel_is_no_other_place(folders, circle):
    moved = np.diag([*SPACING, 1.0])
    moved[:3, 3] = 0.01
    write(folders / "prediction" / "case0.nii.gz", circle.astype(np.uint8), moved)
    pair = (folders / "truth" / "case0.nii.gz", folders / "prediction" / "case0.nii.gz")
    assert metrics.score_files(pair, resample=False)["scores"]["Dice_ClsAvgDice"] == 1


def test_the_table_that_a_header_names_counts_for_any_reader(tmp_path, circle):
    path = tmp_path / "a.nii.gz"
    labels.save_labels(labels.remap(circle, "topcow2024", "paper"), np.eye(4), path, "paper")
    for table in ("topcow2024", dict(labels.TABLES["topcow2024"])):
        with pytest.raises(UserError, match=r"says that its ids are of paper, expected topcow2024"):
            labels.read_labels(path, table)
    assert labels.read_labels(path, {n: str(n) for n in range(1, 8)})[0].max() == 7  # names of one's own
    unknown = np.where(circle == 0, 200, circle)
    labels.save_labels(unknown, np.eye(4), path, "topcow2024")
    assert np.array_equal(labels.read_labels(path, "topcow2024", ignore=200)[0], unknown)


def test_translated_maps_keep_their_places(folders):
    labels.main(["--data", str(folders), "--output", str(folders.parent / "new")])
    names = [
        path.relative_to(folders.parent / "new").as_posix()
        for path in labels.find_volumes(folders.parent / "new")
    ]
    assert names == [f"{kind}/case{n}.nii.gz" for kind in ("prediction", "truth") for n in range(3)]
