"""The phantoms: reproducible, anatomically consistent with their own table, geometrically right."""

import csv
import json
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from tests.conftest import ROOT, run_script

sys.path.insert(0, str(ROOT / "sample_data"))
import phantom

LABELS = {
    "BA": 1,
    "P1_R": 2,
    "P1_L": 3,
    "ICA_R": 4,
    "M1_R": 5,
    "ICA_L": 6,
    "M1_L": 7,
    "Pcom_R": 8,
    "Pcom_L": 9,
}
LABELS |= {"Acom": 10, "A1_R": 11, "A1_L": 12}


def generate(folder, **settings):
    """Phantoms and labels of a small series in `folder`; returns the rows of variants.csv."""
    sizes = {"num": 3, "image_size": 32, "image_depth": 8, "seed": 5}
    config = phantom.PhantomConfig(
        output=str(folder / "v"), labels=str(folder / "l"), **{**sizes, **settings}
    )
    phantom.generate(config)
    with open(folder / "v" / "variants.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_same_seed_same_bytes_whatever_the_number(tmp_path):
    few, many = generate(tmp_path / "a", num=2), generate(tmp_path / "b", num=3)
    other = generate(tmp_path / "c", num=2, seed=6)
    assert few == many[:2] and few != other
    for kind in "vl":
        for n in range(2):
            first, second = ((tmp_path / run / kind / f"phantom_000{n}.nii.gz").read_bytes() for run in "ab")
            assert first == second


def test_output_holds_volumes_and_the_table_alone(tmp_path):
    rows = generate(tmp_path, dtype="uint8")
    names = [row["file"] for row in rows]
    assert sorted(p.name for p in (tmp_path / "v").iterdir()) == [*names, "variants.csv"]
    assert sorted(p.name for p in (tmp_path / "l").iterdir()) == names
    image = nib.load(tmp_path / "v" / names[0])
    assert image.get_data_dtype() == np.uint8 and image.shape == (32, 32, 8)


@pytest.mark.parametrize("shape", [(128, 128, 32), (64, 64, 16), (96, 96, 8), (256, 256, 64)])
def test_field_of_view_is_the_same_on_every_grid(shape):
    affine = phantom.phantom_affine(shape)
    lower, upper = (
        nib.affines.apply_affine(affine, corner) for corner in ((-0.5, -0.5, -0.5), np.array(shape) - 0.5)
    )
    np.testing.assert_allclose(upper - lower, phantom.FIELD_OF_VIEW)
    np.testing.assert_allclose((upper + lower) / 2, phantom.WORLD_ORIGIN, atol=1e-9)
    np.testing.assert_allclose(phantom.phantom_affine((128, 128, 32))[:3, :3], 0.62 * np.eye(3))


def test_a_coarser_grid_shows_the_same():
    fine, labels, row = phantom.make_phantom(3, 0, (128, 128, 32))
    coarse, coarse_labels, same_row = phantom.make_phantom(3, 0, (64, 64, 16))
    assert row == same_row
    pooled = phantom.pool(fine, np.array([2, 2, 2]))
    vessels = coarse_labels > 0
    assert np.corrcoef(pooled.ravel(), coarse.ravel())[0, 1] > 0.85
    assert abs(vessels.mean() / (labels > 0).mean() - 1) < 0.2
    assert coarse[vessels].mean() > 2 * coarse[~vessels].mean()


def test_labels_agree_with_the_table():
    checked = set()
    for number in range(25):
        _, label, row = phantom.make_phantom(0, number, (128, 128, 32))
        assert set(np.unique(label)) <= set(range(13))
        for name, id_ in LABELS.items():
            state = row.get(name, "normal")
            if name.startswith(("P1", "A1")):
                continue  # their labels go on as P2 and A2
            present = np.count_nonzero(label == id_) > 0
            assert present == (state != "absent"), (number, name, state)
            checked.add((name.split("_")[0], state))
    assert {("Pcom", "absent"), ("Pcom", "thin"), ("Pcom", "fetal"), ("Acom", "normal")} <= checked


def test_right_and_left_are_where_they_belong():
    _, label, _ = phantom.make_phantom(0, 1, (128, 128, 32))
    affine = phantom.phantom_affine(label.shape)
    centers = {n: nib.affines.apply_affine(affine, np.argwhere(label == n)).mean(axis=0) for n in range(1, 8)}
    assert all(centers[r][0] > centers[1][0] > centers[left][0] for r, left in ((2, 3), (4, 6), (5, 7)))
    assert centers[4][1] > centers[1][1] > centers[2][1]  # carotid before basilar before posterior cerebral


def test_measured_radius_is_the_radius_in_the_table():
    ratios = []
    for number in range(3):
        _, label, row = phantom.make_phantom(1, number, (256, 256, 64))
        for side, id_ in (("R", 4), ("L", 6)):
            depth = ndimage.distance_transform_edt(label == id_, sampling=phantom.FIELD_OF_VIEW / label.shape)
            ratios.append(depth.max() / row[f"radius_ICA_{side}"])
    assert 0.95 < np.median(ratios) < 1.25  # the widest place, a little more than the mean radius


def test_a_full_circle_is_one_connected_ring():
    for number in range(40):
        _, label, row = phantom.make_phantom(2, number, (128, 128, 32))
        states = {row[n] for n in ("A1_R", "A1_L", "P1_R", "P1_L", "Pcom_R", "Pcom_L", "Acom")}
        if states == {"normal"}:
            _, count = ndimage.label(label > 0, np.ones((3, 3, 3)))
            sizes = np.bincount(ndimage.label(label > 0, np.ones((3, 3, 3)))[0].ravel())[1:]
            assert sizes.max() / sizes.sum() > 0.97, count
            break
    else:
        raise AssertionError("no full circle among 40 phantoms")


def test_variants_come_as_often_as_stated():
    rng = np.random.default_rng(0)
    drawn = [phantom.draw_variants(rng) for _ in range(4000)]

    def share(name, state):
        return np.mean([d[name] == state for d in drawn])

    for side in "RL":
        assert share(f"Pcom_{side}", "fetal") == pytest.approx(0.10, abs=0.015)
        assert share(f"Pcom_{side}", "absent") == pytest.approx(0.9 * 0.13, abs=0.02)
        assert share(f"A1_{side}", "absent") == pytest.approx(0.07, abs=0.015)
        assert share(f"P1_{side}", "absent") == pytest.approx(0.04, abs=0.012)
    assert not any(d["A1_R"] == d["A1_L"] == "absent" for d in drawn)


def test_bundled_phantoms_are_what_the_script_writes(tmp_path):
    generate(tmp_path, num=4, image_size=64, image_depth=16, seed=7, dtype="uint8")
    for number in range(4):
        name = f"phantom_000{number}.nii.gz"
        bundled, now = (nib.load(f / name) for f in (ROOT / "sample_data", tmp_path / "v"))
        difference = np.abs(np.asarray(bundled.dataobj, int) - np.asarray(now.dataobj, int))
        assert (difference > 1).mean() < 0.01  # other versions of scipy may round differently
        np.testing.assert_allclose(bundled.affine, now.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--num", "0"], "--num must be greater than 0, got 0."),
        (["--dtype", "int16"], "--dtype must be float32 or uint8"),
        (["--image_size", "64.5"], "--image_size must be a whole number"),
        (["--numm", "3"], "numm"),
    ],
)
def test_wrong_flags_stop_before_any_work(tmp_path, flags, text, capsys):
    with pytest.raises(SystemExit) as stop:
        phantom.main(["--output", str(tmp_path / "v"), *flags])
    assert stop.value.code and text in str(stop.value.code) + capsys.readouterr().err
    assert not (tmp_path / "v").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    generate(tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "v").iterdir()}
    with pytest.raises(ValueError, match=r"is in use \(variants\.csv is in it\)"):
        generate(tmp_path)
    assert before == {p: p.read_bytes() for p in (tmp_path / "v").iterdir()}
    with pytest.raises(ValueError, match="must be different folders"):
        phantom.generate(phantom.PhantomConfig(output=str(tmp_path / "x"), labels=str(tmp_path / "x")))


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Whole heads                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def value_at(volume, affine, point):
    """Value of a volume at a point in mm, linearly interpolated."""
    voxel = np.linalg.inv(affine) @ np.append(point, 1)
    return float(ndimage.map_coordinates(volume, voxel[:3, None], order=1)[0])


def test_landmarks_of_a_posed_head_lie_in_its_vessels():
    pose = phantom.Pose.draw(np.random.default_rng(0), 30, 30)
    head = phantom.make_head(0, 3, pose, spacing=0.8)
    volume, brain, affine, landmarks = head.volume, head.brain, head.affine, head.landmarks
    tissue = np.median(volume[volume > np.quantile(volume, 0.5)])
    values = {name: value_at(volume, affine, point) for name, point in landmarks.items()}
    assert len(landmarks) == 9
    assert brain.shape == volume.shape and brain.max() == 1
    assert volume[brain == 1].mean() > 1.4 * volume[brain == 0].mean()
    vessels = head.arteries > 0
    assert set(np.unique(head.arteries)) <= set(range(13)) and volume[vessels].mean() > 1.5 * tissue
    assert np.mean([value > 1.5 * tissue for value in values.values()]) > 0.7, (tissue, values)


def test_a_head_in_two_poses_is_the_same_head():
    still = phantom.Pose(np.eye(3), np.zeros(3))
    moved = phantom.Pose.draw(np.random.default_rng(1), 20, 20)
    assert np.allclose(moved.rotation @ moved.rotation.T, np.eye(3)) and np.linalg.det(moved.rotation) > 0
    one, other = (phantom.make_head(0, 1, pose, spacing=2.0) for pose in (still, moved))
    points = np.random.default_rng(2).uniform((-40, -60, -10), (40, 30, 30), (400, 3))
    values = [
        [value_at(head.volume, head.affine, pose.rotation @ p + pose.shift) for p in points]
        for head, pose in ((one, still), (other, moved))
    ]
    assert np.corrcoef(values)[0, 1] > 0.5
    for name, point in one.landmarks.items():
        np.testing.assert_allclose(other.landmarks[name], moved.rotation @ point + moved.shift)


def test_whole_heads_by_the_command_line(tmp_path):
    flags = ("--whole_head", "--num", 2, "--head_spacing", 4, "--degrees", 10, "--seed", 5)
    for folder in ("a", "b"):
        masks = tmp_path / f"masks_{folder}"
        process = run_script(
            "sample_data/phantom.py",
            *(
                "--output",
                tmp_path / folder,
                "--labels",
                masks,
                "--arteries",
                tmp_path / f"arteries_{folder}",
            ),
            *flags,
        )
        assert process.returncode == 0, process.stderr
        for made in (masks, tmp_path / f"arteries_{folder}"):
            assert sorted(p.name for p in made.iterdir()) == ["phantom_0000.nii.gz", "phantom_0001.nii.gz"]
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["phantom_0000.nii.gz", "phantom_0001.nii.gz", "poses.json", "variants.csv"]
    poses = json.loads((tmp_path / "a" / "poses.json").read_text(encoding="utf-8"))
    matrix = np.array(poses["phantom_0001.nii.gz"]["head_to_scanner"])
    turned = np.degrees(np.arccos((np.trace(matrix[:3, :3]) - 1) / 2))
    assert 0 < turned <= 10 and 0 < np.linalg.norm(matrix[:3, 3]) <= 15
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
