"""Label maps varied: no folds, the same topology, radii as asked, the seed alone, and what folders say."""

import json
import shutil
from dataclasses import replace

from volumetric.cli import UserError
from volumetric.sidecars import drawn_for

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import label_to_volume as l2v
from sample_data import phantom
from segmentation import metrics, variation
from segmentation.cases import Classes, pairs_in
from segmentation.experiment import refuse_overlap
from segmentation.labels import read_labels
from tests.conftest import run_script, write_volume
from tests.test_label_to_volume import AFFINE, NAMES, config_of, flags_of, write_pairs

SPACING = np.full(3, 1.24)


@pytest.fixture(scope="module")
def circles():
    """Label maps of two phantoms, (64, 64, 16) voxels of 1.24 mm."""
    return [phantom.make_phantom(seed, 0, (64, 64, 16))[1].astype(np.uint8) for seed in range(2)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with pairs and a tiny trained run."""
    folder = write_pairs(tmp_path_factory.mktemp("trained"), 3)
    l2v.train_from_folder(config_of(folder, num_train_steps=1))
    return folder


def read(path):
    """Ids of a label map, (X, Y, Z)."""
    return np.asanyarray(nib.load(path).dataobj)


# ---- the field


def test_a_field_folds_nowhere_and_maps_the_box_onto_itself():
    shape, spacing = (40, 36, 24), np.array([1.0, 1.2, 0.8])
    field = variation.drawn_field(shape, spacing, np.random.default_rng(3), 3.0)
    assert np.sqrt(np.square(field.mm).sum(axis=0)).max() == pytest.approx(3, rel=1e-5)
    steps = [np.gradient(component, *spacing) for component in field.mm]  # by differences, not in closed form
    determinant = np.linalg.det(np.moveaxis(np.array(steps), (0, 1), (-2, -1)) + np.eye(3))
    assert determinant.min() > 0 and field.jacobian == pytest.approx(determinant.min(), abs=0.05)
    for axis in range(3):  # half a voxel from the border; the mean of a component's two sides is 0 on it
        border = np.abs(np.moveaxis(field.mm[axis], axis, 0)[[0, -1]])
        assert border.max() < 0.1 * spacing[axis] * 3
    assert variation.drawn_field(shape, spacing, np.random.default_rng(3), 40.0).jacobian < 0


def test_the_determinant_of_one_wave_by_hand():
    value, slope = variation.waves(50, 3, 0.5, sines=True)
    k, x = 2 * np.pi / 25, 0.5 * (np.arange(50) + 0.5)
    assert np.allclose(value[2], np.sin(k * x)) and np.allclose(slope[2], k * np.cos(k * x))


# ---- topology


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_circle_keeps_pieces_loops_cavities_and_neighbours(circles, seed):
    for numbers in circles:
        found, drawn = variation.varied(numbers, SPACING, seed)
        assert variation.topology(found) == variation.topology(numbers)
        masks = [np.pad(n > 0, 1) for n in (numbers, found)]  # by other means than the module's
        assert metrics.touching(found) == metrics.touching(numbers)
        assert len({ndimage.label(~mask)[1] for mask in masks}) == 1
        for number in np.unique(numbers[numbers > 0]):
            assert metrics.components(found == number) == metrics.components(numbers == number)
        assert 0.3 < metrics.dice(found > 0, numbers > 0) < 0.85
        assert drawn["draws"] == 1 and drawn["smallest_jacobian"] > 0.2 and drawn["fit"] > 0.98
        for axis in range(3):  # what meets a side of the volume still does, and nothing else
            for side in (0, -1):
                both = [set(np.take(n, side, axis).ravel().tolist()) for n in (numbers, found)]
                assert len(both[0] ^ both[1]) <= 1


def test_pieces_loops_and_cavities_by_hand():
    numbers = np.zeros((12, 12, 7), np.uint8)
    numbers[2:8, 2:8, 3] = 1
    numbers[4:6, 4:6, 3] = 0  # a ring
    numbers[8:11, 2:5, 2:5] = 2
    numbers[9, 3, 3] = 0  # a shell, beside it
    found, touching = variation.topology(numbers)
    assert found == {0: (1, 1, 1), 1: (1, 1, 0), 2: (1, 0, 1)} and touching == {(1, 2), (2, 1)}


def test_a_voxel_changes_only_where_neither_topology_nor_neighbours_do():
    numbers = np.zeros((9, 7, 5), np.uint8)
    numbers[1:4, 3, 2], numbers[4:8, 3, 2], numbers[4, 6, 2] = 1, 2, 3
    kept = variation.Kept(numbers)
    assert not kept.change((5, 3, 2), 0)  # it would part 2
    assert not kept.change((4, 3, 2), 0)  # 1 and 2 would meet no more
    assert kept.change((4, 5, 2), 3) and not kept.change((4, 4, 2), 3)  # 3 and 2 would meet
    assert kept.change((4, 3, 2), 1) and kept.change((7, 3, 2), 0)
    assert not kept.change((1, 5, 2), 1)  # a piece of its own
    numbers[2:6, 4, 2] = 3  # beside 1 and 2: all three meet
    kept = variation.Kept(numbers)
    assert not kept.change((4, 3, 2), 3)  # 1 and 2 would meet no more
    assert kept.change((4, 3, 2), 1) and metrics.touching(kept.numbers) == metrics.touching(numbers)


# ---- radii, identity, seeds


def test_radii_are_those_asked_for():
    ids = phantom.make_phantom(0, 0, (96, 96, 24))[1].astype(np.uint8)
    found, drawn = variation.varied(ids, np.full(3, 0.83), 5, mm=0, radius=0.15)
    for number, factor in drawn["radius_factors"].items():  # a tube's volume goes with its radius squared
        wide = ids == number
        assert np.sqrt((found == number).sum() / wide.sum()) == pytest.approx(factor, rel=0.05)
    factors = np.array(list(drawn["radius_factors"].values()))
    assert factors.min() < 0.95 and factors.max() > 1.05 and np.abs(np.log(factors)).max() <= 0.3 + 1e-4


def test_no_displacement_and_no_change_of_radii_is_the_map_itself(circles):
    for numbers in circles:
        found, _ = variation.varied(numbers, SPACING, 9, mm=0, radius=0)
        assert np.array_equal(found, numbers)


def test_the_seed_alone_decides(circles):
    first, again, other = (variation.varied(circles[0], SPACING, seed)[0] for seed in (4, 4, 5))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_unknown_voxels_are_bent_along(circles):
    numbers = circles[0].copy()
    numbers[:6, :, :][numbers[:6] == 0] = 255
    found, _ = variation.varied(numbers, SPACING, 4)
    assert (found == 255).sum() == pytest.approx((numbers == 255).sum(), rel=0.3)
    bent = np.where(found == 255, 0, found)
    assert np.array_equal(bent, variation.varied(circles[0], SPACING, 4)[0])


def test_what_folds_is_drawn_again_with_less_and_then_left_out(circles):
    _, drawn = variation.varied(circles[0], SPACING, 0, mm=16.0)
    assert drawn["draws"] > 1 and drawn["mm"] == pytest.approx(16 * 0.7 ** (drawn["draws"] - 1))
    assert variation.varied(circles[0], SPACING, 0, mm=50.0) == (None, {"draws": variation.DRAWS})


# ---- the command


def test_varied_maps_are_drawn_and_drawn_again(trained, capsys):
    out = trained / "many"
    flags = {
        "generate": trained / "labels",
        "output": out,
        "vary": 2,
        "vary_mm": 1.0,
        "edit": "drop:B",
        "seed": 3,
    }
    run = run_script("label_to_volume.py", *flags_of(trained, **flags))
    assert run.returncode == 0, run.stderr
    assert "6 maps of 3, no two the same, 0 of them drawn again with less, 0 left out. Dice" in run.stdout
    volumes = sorted(out.glob("*.nii.gz"))
    assert [path.name.split("_seed")[0] for path in volumes] == [
        f"v{n}_vary{k}" for n in range(3) for k in (1, 2)
    ]
    assert len({read(trained / "many_labels" / path.name).tobytes() for path in volumes}) == 6
    drawn = read(trained / "many_labels" / volumes[0].name)
    assert set(np.unique(drawn)) == {0, 1, 2}  # edits come first
    sidecar = out / f"{volumes[0].name[:-7]}.json"
    record = json.loads(sidecar.read_text(encoding="utf-8"))
    original, _ = read_labels(trained / "labels" / "v0.nii.gz", None)
    assert record["label_map"]["content"] == record["variation"]["of"] == l2v.content_of_labels(original)
    asked = record["recipe"]["vary"]
    assert (
        asked["k"] == 1 and (asked["mm"], asked["radius"]) == (1.0, 0.1) and "field of sines" in asked["law"]
    )
    assert set(record["variation"]["radius_factors"]) == {"R-A", "L-A"}
    l2v.recreate(config_of(trained, recreate=str(sidecar)))
    assert f"{volumes[0].name}: identical" in capsys.readouterr().out
    alone = trained / "alone" / "other.nii.gz"
    write_volume(alone, read(trained / "labels" / "v0.nii.gz"), AFFINE)
    config = config_of(trained, generate=str(alone.parent), output=str(trained / "one"), vary=1, vary_mm=1.0)
    config = replace(config, edit=("drop:B",), seed=3)
    l2v.generate_volumes(config)
    (same,) = (trained / "one_labels").glob("other_vary1_seed*.nii.gz")
    assert np.array_equal(read(same), drawn)  # whatever it is called, and lies beside
    l2v.generate_volumes(config)
    assert "1 volumes are there already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"_vary1_seed.* was made with another recipe: choose another"):
        l2v.generate_volumes(replace(config, vary=10**3, vary_mm=2.0))
    assert "Varying" not in capsys.readouterr().err  # it is refused before


def test_a_test_subject_whose_map_was_varied_is_refused(trained):
    """Also where a varied map, or its folder alone, is the source of others."""
    made = trained / "first"
    config = config_of(trained, generate=str(trained / "labels"), output=str(made), vary=1)
    l2v.generate_volumes(config)
    l2v.generate_volumes(replace(config, generate=f"{made}_labels", output=str(trained / "second")))
    contents = {l2v.content_of_labels(read_labels(p, None)[0]) for p in (trained / "labels").iterdir()}
    folders = (made, trained / "first_labels", trained / "second_labels")
    assert all(contents <= drawn_for(folder).keys() for folder in folders)
    tests = pairs_in({"test": trained / "volumes", "test_labels": trained / "labels"}, Classes(NAMES))
    with pytest.raises(UserError, match=r"the label map of test subject v0, is in the test set and"):
        refuse_overlap(tests, NAMES, drawn_for(folders[2]), "in the making of synthetic volumes")


def test_variations_that_ask_for_nothing_or_fit_nowhere(trained, capsys):
    with pytest.raises(UserError, match="--vary_mm 0 and --vary_radius 0 leave maps as they are"):
        config_of(trained, generate=str(trained / "labels"), vary=2, vary_mm=0, vary_radius=0)
    with pytest.raises(UserError, match="--vary varies the label maps of --generate"):
        config_of(trained, vary=2)
    with pytest.raises(UserError, match="--vary_mm is of varied maps: give --vary too"):
        config_of(trained, generate=str(trained / "labels"), vary_mm=2.0)
    config = config_of(trained, generate=str(trained / "labels"), output=str(trained / "none"), vary=1)
    with pytest.raises(UserError, match="--vary leaves no map: give another --vary_mm"):
        l2v.generate_volumes(replace(config, vary_mm=50.0))
    assert "v0.nii.gz, variation 1: 5 draws fold" in capsys.readouterr().out


def test_label_maps_are_not_written_among_those_that_are_read(trained):
    shutil.copytree(trained / "labels", trained / "again_labels")
    before = sorted((trained / "again_labels").iterdir())
    config = config_of(trained, generate=str(trained / "again_labels"), output=str(trained / "again"))
    with pytest.raises(UserError, match=r"again has its label maps in .*, which lies in --generate"):
        l2v.generate_volumes(config)
    assert sorted((trained / "again_labels").iterdir()) == before and not (trained / "again").exists()
