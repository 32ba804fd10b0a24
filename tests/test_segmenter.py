"""The segmentation network: cases, sides, resuming, prediction, the gate, nnU-Net's folders, statistics."""

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from volumetric import runs
from volumetric.cli import UserError
from volumetric.tables import subjects_of

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import stats

import label_to_volume
from segmentation import cases, comparison, experiment, maps, nnunet, segmentation, teacher
from segmentation.experiment_page import exchange_table
from segmentation.labels import read_labels, save_labels
from tests.conftest import interrupted, run_script, write_volume
from tests.pairs import AFFINE, CLASSES, SHAPE, new_segmenter, one_pair, small_config, write_pairs


def test_classes_are_consecutive_and_have_another_side():
    assert CLASSES.ids == [*range(1, 13), 15] and CLASSES.names[-1] == "3rd-A2"
    ids = np.array([0, 1, 4, 12, 15], np.uint8)
    assert CLASSES.from_ids(ids).tolist() == [0, 1, 4, 12, 13]
    assert np.array_equal(CLASSES.to_ids(CLASSES.from_ids(ids)), ids)
    assert CLASSES.other_side == [0, 1, 3, 2, 6, 7, 4, 5, 9, 8, 10, 12, 11, 13]


def test_a_table_with_one_side_alone_is_one_line(tmp_path):
    """Where sides are exchanged; a data set of one side may be trained on without."""
    right = cases.Classes({8: "R-Pcom", 10: "Acom"})
    with pytest.raises(
        UserError, match="has R-Pcom and no L-Pcom to exchange it with: add it, or leave sides"
    ):
        _ = right.other_side
    numbers = right.from_ids(np.full((2, 2, 2), 8, np.uint8))
    with pytest.raises(UserError, match="--edit swap_sides: the model's table has R-Pcom and no L-Pcom"):
        maps.edited(numbers, AFFINE, [maps.read_edit("swap_sides")], right)
    volumes, labels = write_pairs(tmp_path, 3)
    (tmp_path / "table.json").write_text('{"4": "R-ICA", "6": "left ICA"}', encoding="utf-8")
    flags = {"image_size": 16, "image_depth": 8, "batch_size": 2, "device": "cpu", "data": volumes}
    flags |= {"labels": labels, "table": tmp_path / "table.json", "models_dir": tmp_path / "models"}
    with pytest.raises(SystemExit, match=r"table\.json has R-ICA and no L-ICA to exchange it with"):
        label_to_volume.main([str(part) for name, one in flags.items() for part in (f"--{name}", one)])
    assert not (tmp_path / "models").exists()


def test_a_map_of_unknown_voxels_alone_is_one_line():
    ids = np.zeros(SHAPE, np.uint8)
    ids[:2] = 200
    with pytest.raises(UserError, match=r"m\.nii has background and unknown voxels alone, expected labels"):
        maps.class_numbers(ids, CLASSES, 200, "m.nii")
    ids[5] = 4
    assert set(np.unique(maps.class_numbers(ids, CLASSES, 200, "m.nii"))) == {0, 4, maps.UNKNOWN}


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR", "LIA"])
def test_axes_of_a_file_come_back(tmp_path, axes):
    array, labels = one_pair(0)
    image = nib.Nifti1Image(array, AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes))
    nib.save(image.as_reoriented(turn), tmp_path / "turned.nii.gz")
    scan = cases.read_scan(tmp_path / "turned.nii.gz")
    assert np.array_equal(scan.array, array) and np.allclose(scan.frame, AFFINE, atol=1e-5)
    assert np.array_equal(scan.as_read(scan.as_stored(labels)), labels)
    save_labels(scan.as_stored(labels), scan.affine, tmp_path / "map.nii.gz", "topcow2024")
    assert np.array_equal(read_labels(tmp_path / "map.nii.gz")[0], labels)


def test_another_voxel_size_keeps_the_box():
    labels = np.kron(one_pair(0)[1], np.ones((2, 2, 1), np.uint8))
    coarse = cases.resampled(labels, np.array([0.3, 0.3, 0.8]), np.array([0.6, 0.6, 0.8]), order=0)
    assert np.array_equal(coarse, one_pair(0)[1])
    assert np.array_equal(cases.brought_to(coarse, labels.shape, order=0), labels)


def spoil(folder, how):
    """Make the label map of case1 one that cannot be used."""
    path = folder / "labels" / "case1.nii.gz"
    array, affine = one_pair(1)[1], AFFINE
    if how == "grid":
        affine = np.diag([0.6, 0.6, 1.0, 1])
    elif how == "float":
        array = array + np.float32(0.25)
    elif how == "id":
        array[0, 0, 0] = 14
    elif how == "empty":
        array[:] = 0
    if how == "partner":
        path.unlink()
    else:
        nib.save(nib.Nifti1Image(array, affine), path)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("grid", "is of another grid than .*case1"),
        ("float", "no whole numbers"),
        ("id", "has the ids 14, which are not of topcow2024"),
        ("empty", "is empty"),
        ("partner", "case1.nii.gz has no partner in --labels"),
    ],
)
def test_pairs_that_cannot_be_trained_on(tmp_path, how, told):
    write_pairs(tmp_path, 3)
    spoil(tmp_path, how)
    with pytest.raises(UserError, match=told):
        segmentation.train(small_config(tmp_path))
    assert not (tmp_path / "run").exists()


def test_sides_are_exchanged_in_voxels_and_labels_together(tmp_path):
    write_pairs(tmp_path, 3)
    segmenter, seen = new_segmenter(tmp_path, batch_size=4), 0
    segmenter.look = lambda pair: [{name: Tensor(t) for name, t in pair.items()}]
    segmenter.look.set_random_state = lambda _: None
    for segmenter.step in range(4):
        images, maps = segmenter.draw()
        for image, labels in zip(images[:, 0], maps[:, 0], strict=True):
            right, left = (torch.nonzero(labels == c)[:, 0].float().mean() for c in (4, 6))
            assert right > left  # in the patient, whichever way the patch was turned
            seen += int(
                image[labels == 4].mean() > image[labels == 6].mean()
            )  # exchanged: 6 was the brighter
    assert 2 <= seen <= 14


class Tensor:
    """What MONAI returns, without MONAI."""

    def __init__(self, tensor):
        self.tensor = tensor

    def as_tensor(self):
        return self.tensor


def test_a_training_in_pieces_is_the_training_in_one(tmp_path):
    write_pairs(tmp_path, 3)
    whole = runs.run(new_segmenter(tmp_path, save_every=2))
    for _ in range(2):
        parts = new_segmenter(tmp_path, save_every=2, output=str(tmp_path / "parts"))
        parts.plan = runs.replace(parts.plan, num_train_steps=2 if not parts.plan.models.exists() else 4)
        runs.run(parts)
    assert parts.step == 4
    for one, other in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_training_is_not_continued(tmp_path):
    write_pairs(tmp_path, 3)
    segmentation.train(small_config(tmp_path, num_train_steps=1))
    with pytest.raises(
        UserError, match=r"--seed is 1, but .* has 0: give the same, or another --model and --output"
    ):
        segmentation.train(small_config(tmp_path, num_train_steps=1, seed=1))
    other = {"width": segmentation.SegmentationConfig.width, "patch_size": ()}
    assert segmentation.train(small_config(tmp_path, num_train_steps=1, **other)).step == 1
    with pytest.raises(UserError, match=r"net\.pt is there, and no training of it"):
        segmentation.train(small_config(tmp_path, output=str(tmp_path / "other")))


def test_a_training_goes_on_with_its_own_label_maps_alone(tmp_path):
    """Exchanged maps are the same maps; renamed files are the same pairs."""
    write_pairs(tmp_path, 3)
    state = new_segmenter(tmp_path).state()
    paths = [tmp_path / "labels" / f"case{n}.nii.gz" for n in range(2)]
    maps = [path.read_bytes() for path in paths]
    for path, other in zip(paths, maps[::-1], strict=True):
        path.write_bytes(other)
    with pytest.raises(UserError, match="volumes have other label maps or voxel sizes"):
        new_segmenter(tmp_path).load(state)
    for path, own in zip(paths, maps, strict=True):
        path.write_bytes(own)
    for folder in ("volumes", "labels"):
        (tmp_path / folder / "case0.nii.gz").rename(tmp_path / folder / "last.nii.gz")
    segmenter = new_segmenter(tmp_path)
    segmenter.load(state)
    assert [case.identity.pair for case in segmenter.cases] == cases.pairs_among(segmenter.cases)
    del state["kept"]["data_digest"]  # as of an earlier version
    segmenter.load(state)


def test_prediction_does_not_depend_on_the_side_it_is_seen_from(tmp_path):
    write_pairs(tmp_path, 2)
    predictor = new_segmenter(tmp_path).predictor()
    image = torch.from_numpy(one_pair(5)[0])
    found = predictor.probabilities(image.numpy())
    turned = predictor.probabilities(segmentation.exchange_sides(image).numpy())
    back = segmentation.exchange_sides(torch.from_numpy(turned), CLASSES.other_side).numpy()
    np.testing.assert_allclose(found, back, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


def test_it_learns_and_predicts_from_the_command_line(tmp_path):
    volumes, maps = write_pairs(tmp_path, 6)
    flags = ["--model", tmp_path / "net.pt", "--device", "cpu"]
    shape = ["--width", 8, "--num_train_steps", 160, "--save_every", 160, "--learning_rate", 0.005]
    run = run_script("segmentation/segmentation.py", "--data", volumes, "--labels", maps, *shape, *flags)
    assert run.returncode == 0, run.stderr
    told = ["--mode", "predict", "--data", volumes, "--output", tmp_path / "found"]
    run = run_script("segmentation/segmentation.py", *told, *flags, fresh=True)
    assert run.returncode == 0, run.stderr
    scores = []
    for path in sorted((tmp_path / "found").glob("*.nii.gz")):
        found, affine = read_labels(path)
        true, _ = read_labels(maps / path.name)
        assert np.allclose(affine, AFFINE)
        scores.append(2 * ((found == true) & (true > 0)).sum() / ((found > 0).sum() + (true > 0).sum()))
    assert len(scores) == 6 and np.mean(scores) > 0.8
    with open(tmp_path / "found" / "confidence.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(0 < float(row["least_sure"]) <= float(row["confidence"]) <= 1 for row in rows)


def test_a_prediction_that_is_stopped_leaves_no_folder_of_that_name(tmp_path, monkeypatch):
    volumes, _ = write_pairs(tmp_path, 2)

    monkeypatch.setattr(segmentation, "read_model", lambda *_: (None, None))
    monkeypatch.setattr(segmentation, "label_volumes", interrupted)
    flags = {"mode": "predict", "data": str(volumes), "output": str(tmp_path / "found")}
    with pytest.raises(KeyboardInterrupt):
        segmentation.predict(segmentation.SegmentationConfig(**flags))
    assert not (tmp_path / "found").exists() and (tmp_path / "found-failed").is_dir()


# ---- the gate


def test_the_gate_withholds_what_no_real_map_is_like():
    maps = [{"BA": (0.1 + 0.01 * n, 1), "all": (1 + 0.1 * n, 2)} for n in range(9)]
    maps[0]["Acom"] = (0.02, 1)
    limits = teacher.limits_of(maps, ["BA", "Acom"])
    assert limits.always == ["BA"] and limits.pieces == {"BA": 1, "Acom": 1, "all": 2}
    low, high = limits.volume_ml["BA"]
    assert (low, high) == pytest.approx((0.12 - 3 * 0.04, 0.16 + 3 * 0.04))
    good = {"BA": (0.12, 1), "all": (1.2, 1)}
    assert teacher.reasons(good, 0.9, limits, 0.75) == []
    assert teacher.reasons({}, None, limits, 0.75) == ["no vessel"]
    bad = {"BA": (0.9, 3), "L-ACA": (0.1, 1), "all": (1.5, 2)}
    told = "; ".join(teacher.reasons(bad, 0.5, limits, 0.75))
    for part in ("confidence 0.50 below 0.75", "0.90 ml of BA", "BA in 3 pieces", "L-ACA, which no real map"):
        assert part in told
    assert teacher.reasons({"all": (1.2, 1)}, 0.9, limits, 0.75) == ["no BA, which all real maps have"]


# ---- nnU-Net


def test_folds_keep_a_subject_and_its_relatives_together():
    real = [f"r{n}" for n in range(8)]
    made = [f"s{n}" for n in range(6)]
    subjects = {"r0": "a", "r1": "a", "s0": "a", "s1": "r5", "s2": "nobody"}
    splits = nnunet.make_folds(real, made, subjects, 3, 0)
    assert sorted(case for fold in splits for case in fold["val"]) == real
    for fold in splits:
        assert ("r0" in fold["val"]) == ("r1" in fold["val"]) != ("s0" in fold["train"])
        assert ("r5" in fold["val"]) != ("s1" in fold["train"])
        assert {"s2", "s3", "s4", "s5"} <= set(fold["train"]) and not set(fold["val"]) & set(made)
    with pytest.raises(UserError, match="7 subjects for --folds 8"):
        nnunet.make_folds(real, made, subjects, 8, 0)


def export_pairs(folder):
    """An export with an artery whose id changes, and the folder of it."""
    volumes, maps = write_pairs(folder, 5)
    labels = one_pair(0)[1]
    labels[8, 8, 3:5] = 15
    save_labels(labels, AFFINE, maps / "case0.nii.gz", "topcow2024")
    config = nnunet.NnunetConfig(data=str(volumes), labels=str(maps), output=str(folder / "out"), folds=2)
    return labels, nnunet.export(config)


def test_export_and_import_of_nnunet(tmp_path, capsys):
    labels, folder = export_pairs(tmp_path)
    raw = folder / "nnUNet_raw" / "Dataset500_CircleOfWillis"
    about = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    assert about["labels"]["background"] == 0 and about["labels"]["3rd-A2"] == 13
    assert sorted(about["labels"].values()) == list(range(14)) and about["numTraining"] == 5
    assert len(list((raw / "imagesTr").glob("case?_0000.nii.gz"))) == 5
    exported = nib.load(raw / "labelsTr" / "case0.nii.gz").get_fdata()
    assert np.array_equal(exported, np.where(labels == 15, 13, labels))
    splits = folder / "nnUNet_preprocessed" / "Dataset500_CircleOfWillis" / "splits_final.json"
    assert len(json.loads(splits.read_text(encoding="utf-8"))) == 2
    assert "nnUNetv2_plan_and_preprocess -d 500" in capsys.readouterr().out
    (tmp_path / "answers").mkdir()
    nib.save(nib.Nifti1Image(exported.astype(np.uint8), AFFINE), tmp_path / "answers" / "case0.nii.gz")
    back = nnunet.import_predictions(
        nnunet.NnunetConfig(mode="import", data=str(tmp_path / "answers"), output=str(tmp_path / "back"))
    )
    assert np.array_equal(read_labels(back / "case0.nii.gz")[0], labels)


def test_what_a_teachers_gate_withheld_is_left_out_of_an_export(tmp_path, capsys):
    volumes, maps = write_pairs(tmp_path, 4)
    made, made_labels = write_pairs(tmp_path, 3, first=20, kind="other_")
    folders = {"data": volumes, "labels": maps, "synthetic": made, "synthetic_labels": made_labels}
    config = nnunet.NnunetConfig(**{name: str(folder) for name, folder in folders.items()}, folds=2)
    first, *others = sorted(made_labels.iterdir())
    first.unlink()
    assert len(nnunet.read_cases(config, cases.Classes(config.table)).synthetic) == 2
    assert "1 of 3 synthetic volumes have no label map in" in capsys.readouterr().out
    for path in others:
        path.unlink()
    with pytest.raises(
        UserError, match=r"has no volume with a label map in --synthetic_labels .*correct one"
    ):
        nnunet.read_cases(config, cases.Classes(config.table))


def test_all_that_is_exported_has_one_orientation_and_comes_back(tmp_path):
    maps = []
    for n, flip in enumerate((1, -1)):  # RAS and LAS: nnU-Net would take the one's right for the other's left
        array, labels = one_pair(n)
        affine = AFFINE @ np.diag([flip, 1, 1, 1])
        maps.append(labels[::flip])
        write_volume(tmp_path / "volumes" / f"site{n}" / "v.nii.gz", array[::flip], affine)
        save_labels(maps[-1], affine, tmp_path / "labels" / f"site{n}" / "v.nii.gz", "topcow2024")
    folders = {"data": str(tmp_path / "volumes"), "labels": str(tmp_path / "labels"), "folds": 2}
    raw = nnunet.export(nnunet.NnunetConfig(**folders, output=str(tmp_path / "out"))) / "nnUNet_raw"
    exported = sorted(raw.glob("*/labelsTr/*"))
    assert [path.name for path in exported] == ["site0_v.nii.gz", "site1_v.nii.gz"]
    places = [np.argwhere(np.asanyarray(nib.load(path).dataobj) == 4)[:, 0].mean() for path in exported]
    assert places == [12, 12]
    told = nnunet.NnunetConfig(mode="export_test", data=folders["data"], output=str(tmp_path / "to_label"))
    ready = nnunet.export_test(told)
    images = [nib.load(path) for path in sorted((ready / "imagesTs").iterdir())]
    assert [nib.aff2axcodes(image.affine) for image in images] == [("R", "A", "S")] * 2
    settings = {"data": str(exported[0].parent), "cases": str(ready / "cases.csv"), "mode": "import"}
    back = nnunet.import_predictions(nnunet.NnunetConfig(**settings, output=str(tmp_path / "back")))
    for n, labels in enumerate(maps):
        image = nib.load(back / f"site{n}" / "v.nii.gz")
        assert np.array_equal(np.asanyarray(image.dataobj), labels)
        assert np.allclose(image.affine, nib.load(tmp_path / "volumes" / f"site{n}" / "v.nii.gz").affine)
    save_labels(maps[0][1:], AFFINE, exported[1], "nnunet")
    with pytest.raises(UserError, match=r"site1_v\.nii\.gz is of another grid than site1/v"):
        nnunet.import_predictions(nnunet.NnunetConfig(**settings, output=str(tmp_path / "wrong")))
    assert not (tmp_path / "wrong").exists()


def test_predictions_of_several_folds_are_not_written_over_each_other(tmp_path):
    for place in ("", "postprocessed"):
        save_labels(one_pair(0)[1], AFFINE, tmp_path / "found" / place / "c0.nii.gz", "nnunet")
    config = nnunet.NnunetConfig(mode="import", data=str(tmp_path / "found"), output=str(tmp_path / "back"))
    with pytest.raises(UserError, match=r"c0\.nii\.gz is there twice, .*postprocessed"):
        nnunet.import_predictions(config)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("text", ["\ufefffile,subject\nc0.nii,s1\n", "file;subject\nc0.nii.gz;s1\n"])
def test_tables_of_subjects_as_spreadsheets_write_them(tmp_path, text):
    table = tmp_path / "subjects.csv"
    table.write_text(text, encoding="utf-8")
    paths = [Path("volumes/c0.nii"), Path("volumes/c1.nii")]
    assert subjects_of(table, paths) == {paths[0]: "s1"}
    table.write_text(f"{text}c0.nii{text[-4]}s2\n".replace("c0.nii.gz", "c0.nii"), encoding="utf-8")
    with pytest.raises(UserError, match=r"two rows for c0\.nii, with the subject 's1' and 's2'"):
        subjects_of(table, paths)


def write_split(folder, volumes, parts):
    """A split of the cases in a folder, {case: part}; each is a subject of its own."""
    pairs = cases.pairs_in({"data": volumes, "labels": str(volumes).replace("volumes", "labels")}, CLASSES)
    rows = [f"{name}.nii.gz,{pair.identity.volume},{name},{parts[name]}" for name, pair in pairs.items()]
    (folder / "split.csv").write_text("\n".join(["file,content,subject,part", *rows, ""]), encoding="utf-8")
    return str(folder / "split.csv")


def test_a_split_decides_what_is_trained_on_and_exported(tmp_path):
    volumes, maps = write_pairs(tmp_path, 4)
    made, made_maps = write_pairs(tmp_path, 1, 10, "made_")
    parts = {"case0": "training", "case1": "training", "case2": "held_out", "case3": "test"}
    split = write_split(tmp_path, volumes, parts)
    folders = {"data": str(volumes), "labels": str(maps)}
    read, _ = cases.read_cases(folders, CLASSES, split=split)
    assert [case.name for case in read] == ["case0", "case1"]
    assert list(cases.pairs_in(folders, CLASSES, split=split, parts=("test",))) == ["case3"]
    table = tmp_path / "subjects.csv"
    settings = folders | {"split": split, "synthetic": str(made), "synthetic_labels": str(made_maps)}
    table.write_text("file,subject\ncase10.nii.gz,case0\n", encoding="utf-8")
    config = nnunet.NnunetConfig(**settings, subjects=str(table), folds=2)
    found = nnunet.read_cases(config, CLASSES)
    assert found.subjects == {"case0": "case0", "case1": "case1", "case10": "case0"}
    table.write_text("file,subject\ncase10.nii.gz,case3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"was made from subject case3, which --split .* sets aside"):
        nnunet.read_cases(config, CLASSES)
    write_volume(volumes / "case0.nii.gz", one_pair(8)[0], AFFINE)
    with pytest.raises(UserError, match=r"case0\.nii\.gz has other voxels than the split knows"):
        cases.read_cases(folders, CLASSES, split=split)


def test_networks_of_earlier_versions_are_compared_by_their_own_digests(tmp_path):
    write_pairs(tmp_path, 2)
    segmenter = new_segmenter(tmp_path)
    state = segmenter.state()
    volumes, maps = ({getattr(c.identity, of) for c in segmenter.cases} for of in ("volume", "labels"))
    assert set(state["kept"]["trained_on"]) == volumes | maps
    former = sorted(hashlib.sha256(one_pair(n)[0].tobytes()).hexdigest() for n in range(2))
    del state["kept"]["trained_on"]
    segmenter.load(state | {"kept": state["kept"] | {"volumes": former}})
    with pytest.raises(UserError, match="the volumes or the label maps are others"):
        segmenter.load(state | {"kept": state["kept"] | {"volumes": former[:1]}})
    tests = cases.pairs_in({"test": tmp_path / "volumes", "test_labels": tmp_path / "labels"}, CLASSES)
    seen = dict.fromkeys(segmentation.contents_known_to({"volumes": former}), "old.pt")
    with pytest.raises(UserError, match=r"case0\.nii\.gz is in the test set and in the teacher's training"):
        experiment.refuse_overlap(tests, "topcow2024", seen, "in the teacher's training")


def test_wrong_tables_of_subjects(tmp_path):
    write_pairs(tmp_path, 3)
    table = tmp_path / "subjects.csv"
    table.write_text("file,subject\nnone.nii.gz,a\n", encoding="utf-8")
    settings = {"data": str(tmp_path / "volumes"), "labels": str(tmp_path / "labels"), "subjects": str(table)}
    config = nnunet.NnunetConfig(**settings, output=str(tmp_path / "out"), folds=2)
    with pytest.raises(UserError, match="names none, which is no case"):
        nnunet.export(config)
    assert not (tmp_path / "out").exists()


def test_nnunet_plans_what_was_exported(tmp_path):
    pytest.importorskip("nnunetv2")
    _, folder = export_pairs(tmp_path)
    tool = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
    script = (folder / "commands.sh").read_text(encoding="utf-8").splitlines()
    lines = [line for line in script if line.startswith("export")]
    lines.append(f"{tool} -d 500 -c 3d_fullres --verify_dataset_integrity -npfp 1 -np 1")
    run = subprocess.run(
        ["bash", "-ec", "\n".join(lines)], capture_output=True, encoding="utf-8", timeout=600
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    prepared = folder / "nnUNet_preprocessed" / "Dataset500_CircleOfWillis"
    assert (prepared / "nnUNetPlans.json").exists() and (prepared / "splits_final.json").exists()


# ---- statistics and the experiment


def test_holm_and_wilcoxon():
    assert comparison.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    change = np.array([0.1, 0.3, -0.05, 0.2, np.nan, 0.15, 0.4])
    expected = stats.wilcoxon(change[np.isfinite(change)]).pvalue
    assert comparison.wilcoxon(change) == pytest.approx(expected)
    assert comparison.wilcoxon(np.zeros(5)) == 1.0


def test_what_synthetic_volumes_are_worth():
    curve = {5: 0.6, 20: 0.8}
    assert comparison.worth(curve, 0.7)[0] == pytest.approx(10)  # the geometric mean
    assert comparison.worth(curve, 0.9) == (20, "more than")
    assert comparison.worth(curve, 0.5) == (5, "fewer than")
    assert comparison.worth({5: 0.8, 20: 0.7}, 0.75) == (None, "")


def results_of(gain):
    """Results of a grid in which 50 synthetic volumes add `gain` to the Dice of 12 subjects."""
    rng = np.random.default_rng(0)
    subjects = {f"t{n}": rng.normal(0.7, 0.05) for n in range(12)}

    def scored(shift):
        return {s: {"Dice_ClsAvgDice": v + shift + rng.normal(0, 0.002)} for s, v in subjects.items()}

    cells = {(5, 0): 0, (20, 0): 0.1, (5, 50): gain, (0, 50): gain - 0.2}
    return {comparison.Cell(*cell): {seed: scored(shift) for seed in (0, 1)} for cell, shift in cells.items()}


@pytest.mark.parametrize(("gain", "state"), [(0.05, "good"), (-0.05, "bad"), (0.0, "")])
def test_a_comparison_says_what_was_put_in(gain, state):
    record = comparison.compare_runs(results_of(gain), 200)
    rows = record["differences"]["Dice_ClsAvgDice"]
    assert [(r["real"], r["synthetic"], r["against"]) for r in rows] == [(5, 50, 5), (0, 50, 20)]
    assert comparison.verdict(rows[0])[0] == state and rows[0]["n"] == 12
    low, high = rows[0]["interval_95"]
    assert low <= rows[0]["difference"] <= high and rows[0]["difference"] == pytest.approx(gain, abs=0.003)
    assert comparison.verdict(rows[1])[0] == "bad"
    told = exchange_table(record).count("but no difference is shown")
    assert told == (0 if state else 1)  # what volumes are worth is not said without one


def test_labelling_goes_on_in_its_folder(tmp_path, monkeypatch):
    volumes, maps = write_pairs(tmp_path, 6)
    new_segmenter(tmp_path).save_model()
    given = {"data": str(volumes), "model": str(tmp_path / "net.pt"), "reference": str(maps), "device": "cpu"}
    config = teacher.TeacherConfig(**given, output=str(tmp_path / "labelled"), withhold=False)
    labelled, made = [], segmentation.Predictor.label
    stopped = KeyboardInterrupt()

    def label(predictor, scan):
        if len(labelled) == 4 and stopped:
            raise stopped
        labelled.append(scan.path.name)
        return made(predictor, scan)

    monkeypatch.setattr(segmentation.Predictor, "label", label)
    with pytest.raises(KeyboardInterrupt):
        teacher.label_folder(config, tmp_path / "labelled")
    stopped = None
    write_volume(volumes / "case0.nii.gz", one_pair(9)[0], AFFINE)  # replaced meanwhile
    folder = teacher.label_folder(config, tmp_path / "labelled")
    assert labelled == [*(f"case{n}.nii.gz" for n in range(4)), *(f"case{n}.nii.gz" for n in (0, 4, 5))]
    with open(folder / "gate.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [f"case{n}" for n in range(6)]
    assert len(list((folder / "labels").iterdir())) == 6 and (folder / "labels.png").exists()
    assert [path.name for path in tmp_path.glob("labelled*")] == ["labelled"]


def test_a_row_ends_before_its_label_map(tmp_path, monkeypatch):
    """A volume is replaced, labelling it is killed before its row is noted, and the volume comes back."""
    volumes, maps = write_pairs(tmp_path, 6)
    new_segmenter(tmp_path).save_model()
    given = {"data": str(volumes), "model": str(tmp_path / "net.pt"), "reference": str(maps), "device": "cpu"}
    config = teacher.TeacherConfig(**given, withhold=False)
    folder, path = tmp_path / "labelled", volumes / "case0.nii.gz"
    teacher.label_folder(config, folder)
    whole, truth = path.read_bytes(), read_labels(folder / "labels" / "case0.nii.gz")[0]
    write_volume(path, one_pair(9)[0], AFFINE)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(teacher, "add_to_gate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        teacher.label_folder(config, folder)
    assert not np.array_equal(read_labels(folder / "labels" / "case0.nii.gz")[0], truth)
    path.write_bytes(whole)
    teacher.label_folder(config, folder)
    assert np.array_equal(read_labels(folder / "labels" / "case0.nii.gz")[0], truth)
