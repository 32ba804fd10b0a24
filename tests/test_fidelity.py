"""Generated volumes against their label maps and real volumes; the body and what lies outside it."""

import json

from volumetric.cli import UserError

import nibabel as nib
import numpy as np
import pytest

from preprocessing import background
from segmentation import fidelity
from segmentation.labels import save_labels
from tests.conftest import random_array, run_script, write_volume

SHAPE = (16, 16, 16)


@pytest.fixture
def folders(tmp_path):
    """generated/ (two seeds of two maps), labels/ of the same names, real/ and real_labels/ of the maps."""
    for n in range(2):
        ids = np.zeros(SHAPE, np.uint8)
        ids[4:8, 4:12, 6 + n : 10 + n], ids[10:12, 4:12, 8] = 1, 2
        real = 0.5 * (ids > 0) + 0.3 * random_array(n, SHAPE)
        write_volume(tmp_path / "real" / f"m{n}.nii.gz", real)
        write_volume(tmp_path / "real_labels" / f"m{n}.nii.gz", ids)
        for seed in range(2):
            name = f"m{n}_seed{seed:06d}.nii.gz"
            made = real + 0.05 * seed * random_array(9 + n, SHAPE)
            write_volume(tmp_path / "generated" / name, made.astype(np.float32))
            write_volume(tmp_path / "labels" / name, ids)
    return tmp_path


def flags_of(folder, **settings):
    """Settings of the scores of `folders`."""
    found = {name: str(folder / name) for name in ("generated", "labels", "real")}
    return {**found, "output": str(folder / "out"), "device": "cpu", **settings}


def test_dice_by_hand():
    truth, found = np.zeros((2, 4, 4, 4), int)
    truth[0, 0], found[0, 0, :2], found[0, 1, :2], truth[3] = 1, 1, 1, 2
    scores = fidelity.dice_scores(found, truth)
    assert scores["dice"] == pytest.approx(2 * 2 / (4 + 4 + 16))
    assert scores["class_dice"] == pytest.approx((2 * 2 / (4 + 4) + 0) / 2)


def test_distances_of_a_pair_by_hand():
    one = np.zeros((1, 8, 8, 8), np.float32)
    other = one + 0.1
    scores = fidelity.paired_scores(one, other)
    assert scores["rmse"] == pytest.approx(0.1) and scores["psnr"] == pytest.approx(20, abs=1e-4)
    assert scores["ssim"] < 0.1
    same = fidelity.paired_scores(random_array(0, SHAPE)[None], random_array(0, SHAPE)[None])
    assert same["ssim"] == pytest.approx(1, abs=1e-4) and same["psnr"] == np.inf
    noise = fidelity.paired_scores(random_array(0, SHAPE)[None], random_array(1, SHAPE)[None])
    assert abs(noise["ssim"]) < 0.1  # a wrong data range makes it 1


def test_scores_of_pairs_and_their_diversity(folders):
    record, out = fidelity.score(fidelity.FidelityConfig(**flags_of(folders)))
    assert record["generated"] == 4 and record["maps"] == 2
    assert (
        json.loads((out / "fidelity.json").read_text(encoding="utf-8"))["cases"]["m0_seed000001"]["rmse"] > 0
    )
    assert 0 < record["diversity"]["background"] < 0.05 and record["means"]["ssim"] > 0.8
    assert "Standard deviation over seeds" in (out / "summary.md").read_text(encoding="utf-8")


class Bright:
    """A segmenter that calls 1 what is bright."""

    class classes:
        ids, table = (1, 2), "paper"


class Read:
    """A scan that is stored along right, front and up."""

    as_read = staticmethod(np.asarray)


def test_dice_of_generated_is_compared_with_that_of_real(folders, monkeypatch):
    from segmentation import segmentation

    def label_volumes(_, paths):
        for path in paths:
            array = np.asanyarray(nib.load(path).dataobj)
            yield path, Read, (array > 0.45).astype(np.uint8), {}

    monkeypatch.setattr(segmentation, "label_volumes", label_volumes)
    monkeypatch.setattr(segmentation, "read_model", lambda *_: (Bright, {"patch": (8, 8, 8)}))
    (folders / "model.pt").write_bytes(b"")
    settings = flags_of(folders, model=str(folders / "model.pt"), real_labels=str(folders / "real_labels"))
    record, out = fidelity.score(fidelity.FidelityConfig(**settings))
    assert record["real"]["dice"] == pytest.approx(1) and 0.9 < record["means"]["dice"] <= 1
    assert record["means"]["class_dice"] < 0.6  # it never says 2
    assert "| Dice, all labels as one |" in (out / "summary.md").read_text(encoding="utf-8")


def test_label_maps_of_another_table_than_the_network_are_refused(folders, monkeypatch):
    """Its 2 is a PCA, theirs a right one: a Dice of the two would say nothing."""
    from segmentation import segmentation

    for path in (folders / "labels").iterdir():
        image = nib.load(path)
        save_labels(np.asanyarray(image.dataobj), image.affine, path, "topcow2024")
    monkeypatch.setattr(segmentation, "read_model", lambda *_: (Bright, {"patch": (8, 8, 8)}))
    config = fidelity.FidelityConfig(**flags_of(folders, model=__file__, real=None))
    with pytest.raises(UserError, match=r"says that its ids are of topcow2024, expected paper: translate"):
        fidelity.score(config)
    for path in (folders / "labels").iterdir():  # without a header that says so
        ids = np.asanyarray(nib.load(path).dataobj)
        write_volume(path, np.where(ids == 2, 12, ids).astype(np.uint8))
    with pytest.raises(UserError, match=r"has the ids 12, which are not of paper: they fit topcow2024 and"):
        fidelity.score(config)


def test_what_cannot_be_scored_is_one_line(folders):
    with pytest.raises(UserError, match="nothing to score against"):
        fidelity.FidelityConfig(**flags_of(folders, real=None))
    (folders / "real" / "m1.nii.gz").unlink()
    flags = [part for name, value in flags_of(folders).items() for part in (f"--{name}", value)]
    run = run_script("segmentation/fidelity.py", *flags, fresh=True)
    assert run.returncode != 0 and "has no volume m1, for which one was generated" in run.stderr
    assert "Traceback" not in run.stderr and not (folders / "out").exists()


def test_pairs_of_other_grids_are_one_line(folders):
    config = fidelity.FidelityConfig(**flags_of(folders))
    real, made = folders / "real" / "m1.nii.gz", folders / "generated" / "m1_seed000001.nii.gz"
    whole = real.read_bytes()
    write_volume(real, random_array(1, (16, 16, 1)))  # which numpy would spread over the other's slices
    with pytest.raises(UserError, match=r"real/m1\.nii\.gz has 16 x 16 x 1 voxels .*generated/m1_seed000000"):
        fidelity.score(config)
    write_volume(real, random_array(1, SHAPE), np.diag([0.6, 0.6, 1.2, 1]))
    with pytest.raises(UserError, match=r"of 0\.6 x 0\.6 x 1\.2 mm, .*they are compared voxel by voxel"):
        fidelity.score(config)
    real.write_bytes(whole)
    write_volume(made, random_array(1, (8, 8, 8)))
    with pytest.raises(UserError, match=r"m1_seed000001\.nii\.gz is of another grid than .*generated"):
        fidelity.score(config)
    labels = np.zeros((8, 8, 8), np.uint8)
    write_volume(folders / "labels" / made.name, labels)
    with pytest.raises(UserError, match=r"m1_seed000001\.nii\.gz is empty, expected labels of .*generated"):
        fidelity.score(config)
    labels[2] = 1
    write_volume(folders / "labels" / made.name, labels)
    with pytest.raises(UserError, match=r"has 8 x 8 x 8 voxels .*m1_seed000000.* compared voxel by voxel"):
        fidelity.score(fidelity.FidelityConfig(**flags_of(folders, model=__file__, real=None)))
    assert not (folders / "out").exists()


def test_maps_of_unknown_voxels_alone_are_not_scored(folders, monkeypatch):
    from segmentation import segmentation

    ids = np.zeros(SHAPE, np.uint8)
    ids[2:4] = 255
    write_volume(folders / "labels" / "m1_seed000000.nii.gz", ids)
    monkeypatch.setattr(segmentation, "read_model", lambda *_: (Bright, {"patch": (8, 8, 8)}))
    with pytest.raises(UserError, match=r"m1_seed000000\.nii\.gz has no label that .* knows"):
        fidelity.score(fidelity.FidelityConfig(**flags_of(folders, model=__file__, real=None)))
    assert not (folders / "out").exists()


def test_the_body_is_what_is_large_and_bright():
    array = 0.02 * random_array(0, (40, 40, 20))
    array[8:28, 8:28, 4:16] += 1.0  # 4.8 ml of 1 mm voxels
    array[15:18, 15:18, 8:10] = 0.0  # a hole
    array[36:39, 2:38, 2] += 1.0  # the table, 0.1 ml
    mask = background.body_mask(array, (1.0, 1.0, 1.0), smallest_ml=1.0)
    expected = np.zeros(array.shape, bool)
    expected[8:28, 8:28, 4:16] = True
    assert (mask == expected).all()
    cleaned, _ = background.remove_background(array, (1.0, 1.0, 1.0), smallest_ml=1.0)
    assert (cleaned[~mask] == array.min()).all() and (cleaned[mask] == array[mask]).all()
    twice = background.body_mask(array, (2.0, 2.0, 2.0), smallest_ml=0.5)  # 0.9 ml: the table is body
    assert twice.sum() > mask.sum()
    with pytest.raises(UserError, match=r"has no part of 10 ml above .*the largest has 4\.78"):
        background.body_mask(array, (1.0, 1.0, 1.0))


def test_a_folder_is_cleaned(tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1])
    for n in range(2):
        array = 0.02 * random_array(n, (30, 30, 20))
        array[(slice(5, 25), slice(5, 25), slice(4, 16)) if n == 0 else (5, 5, slice(4, 16))] += 1.0
        write_volume(tmp_path / "ct" / f"v{n}.nii.gz", array, affine)
    flags = ("--data", tmp_path / "ct", "--output", tmp_path / "out", "--smallest_ml", 20)
    run = run_script("preprocessing/background.py", *flags, fresh=True)
    assert run.returncode != 0 and "v1.nii.gz has no part of 20 ml" in run.stderr
    image = nib.load(tmp_path / "out" / "v0.nii.gz")
    assert np.allclose(image.affine, affine) and image.get_fdata()[0, 0, 0] == image.get_fdata().min()
    assert not (tmp_path / "out" / "v1.nii.gz").exists()
