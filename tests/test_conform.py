"""conform.py: places, values, shapes that are proposed, what is refused, and the command that it prints."""

import csv
import shlex

from volumetric.cli import UserError, check_networks, parse_cli
from volumetric.collection import examined, read, read_whole, refuse_shape
from volumetric.dataset import audit_volumes

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

from preprocessing import conform
from preprocessing.background import content_bounds
from preprocessing.images import Grid
from preprocessing.resampling import inside, resampled
from stylegan2_pytorch import TrainConfig
from tests.conftest import random_array, write_volume

BALL_MM = np.array([3.0, -4.0, 5.0])  # middle of the balls, mm to the right, front and up


def oblique(spacing=(0.8, 1.1, 2.0), degrees=20, shape=(40, 34, 20)):
    """Affine of an LPS scan whose axes are turned, about a middle near the origin."""
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", (degrees, degrees / 2, -degrees), degrees=True).as_matrix()
    affine[:3, :3] = turned @ np.diag([-1, -1, 1]) * spacing
    affine[:3, 3] = (1, 2, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def ball(affine, shape=(40, 34, 20), radius=4.0, at=BALL_MM):
    """A bright smooth ball about a point in the scanner on a dark ground of 7, float32."""
    places = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    squared = ((places - at) ** 2).sum(axis=-1)
    return (7 + 100 * np.exp(-squared / (2 * radius**2))).astype(np.float32)


def middle_of(array, affine):
    """Centre of what is above half of the largest value, mm."""
    return nib.affines.apply_affine(affine, ndimage.center_of_mass((array - array.max() / 2).clip(0)))


def run(tmp_path, **settings):
    """Conform tmp_path/scans; returns the output folder."""
    given = {"data": str(tmp_path / "scans"), "output": str(tmp_path / "out"), **settings}
    return conform.conform_folder(conform.ConformConfig(**given))


def rows_in(folder):
    """Rows of conform.csv."""
    with open(folder / "conform.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "settings", [{}, {"upright": True}, {"size": (32, 32, 16), "spacing": (1.3, 1.3, 1.9)}]
)
def test_a_point_keeps_its_place_in_the_scanner(tmp_path, settings):
    affine = oblique()
    write_volume(tmp_path / "scans" / "a.nii.gz", ball(affine), affine)
    volume = read(run(tmp_path, **settings) / "volumes" / "a.nii.gz", scan=True)
    assert np.linalg.norm(middle_of(volume.array, volume.affine) - BALL_MM) < 0.1
    assert volume.axes == "RAS"
    own = np.eye(3) if settings.get("upright") else affine[:3, :3] / (-0.8, -1.1, 2.0)
    np.testing.assert_allclose(volume.affine[:3, :3] / volume.spacing, own, atol=1e-4)


def test_voxels_of_the_size_that_is_asked_keep_their_values(tmp_path):
    array, affine = random_array(0, (20, 12, 6)) + 1, oblique((0.7, 0.7, 1.5), 5, (20, 12, 6))
    write_volume(tmp_path / "scans" / "a.nii", array, affine)
    folder = run(tmp_path, size=(16, 16, 8), spacing=(0.7, 0.7, 1.5), center="image")
    made = read(folder / "volumes" / "a.nii.gz").array
    # 20 voxels lose 2 on each side; 12 and 6 are padded by 2 and 1, with the smallest value
    assert np.array_equal(made[:, 2:14, 1:7], array[::-1, ::-1][2:18])
    assert (made[:, :2] == array.min()).all() and (made[:, :, 7] == array.min()).all()
    row = rows_in(folder)[0]
    assert (row["cut_voxels"], row["padded_voxels"]) == (str(4 * 12 * 6), str(16**2 * 8 - 16 * 12 * 6))
    assert [float(row[f"beyond_{face}_mm"]) for face in conform.FACES] == [1.4, 1.4, -1.4, -1.4, -1.5, -1.5]


def test_resampling_reproduces_planes_and_does_not_alias():
    ramp = np.add.outer(np.add.outer(np.arange(24.0), 2 * np.arange(24.0)), np.arange(24.0)).astype(
        np.float32
    )
    grid = Grid(
        (20, 20, 20), np.array([[0.5, 0, 0, 7.1], [0, 0.5, 0, 7.2], [0, 0, 0.5, 7.3], [0, 0, 0, 1.0]])
    )
    x, y, z = np.indices(grid.shape) * 0.5
    np.testing.assert_allclose(resampled(ramp, np.eye(4), grid), 7.1 + x + 2 * (7.2 + y) + 7.3 + z, atol=0.02)
    stripes = np.broadcast_to((np.arange(48) % 2).astype(np.float32)[:, None, None], (48, 8, 8)).copy()
    coarse = Grid((12, 8, 8), np.diag([4.0, 1, 1, 1]))
    assert np.abs(resampled(stripes, np.eye(4), coarse)[1:-1] - 0.5).max() < 0.01


def test_resampling_widens_voxels_from_the_one_size_to_the_other():
    places = np.arange(65.0) - 32
    blob = np.exp(-4 * np.log(2) * places**2 / 6**2).astype(np.float32)  # 6 mm wide at half its height
    array = np.broadcast_to(blob[:, None, None], (65, 8, 8)).copy()
    made = resampled(array, np.eye(4), Grid((17, 8, 8), np.diag([4.0, 1, 1, 1])))[8, 4, 4]
    assert made == pytest.approx((6**2 / (6**2 + 4**2 - 1)) ** 0.5, rel=0.005)  # widths add in squares


def test_label_maps_go_with_their_scans(tmp_path):
    affine = oblique()
    for site, at in (("a", BALL_MM), ("b", BALL_MM + 3)):
        array = ball(affine, at=at)
        write_volume(tmp_path / "scans" / site / "sub-00.nii.gz", array, affine)
        image = nib.Nifti1Image((14 * (array > 60)).astype(np.int16), affine)
        image.header["descrip"] = b"labels: topcow2024"
        (tmp_path / "maps" / site).mkdir(parents=True)
        nib.save(image, tmp_path / "maps" / site / "sub-00.nii.gz")
    folder = run(tmp_path, labels=str(tmp_path / "maps"), spacing=(1.0, 1.0, 1.0))
    names = ["a_sub-00.nii.gz", "b_sub-00.nii.gz"]
    for kind in ("volumes", "labels"):
        assert sorted(path.name for path in (folder / kind).iterdir()) == names
    for name in names:
        volume, (labels, described) = read(folder / "volumes" / name), read_whole(folder / "labels" / name)
        assert described == "labels: topcow2024" and set(np.unique(labels.array)) == {0, 14}
        assert np.array_equal(labels.affine, volume.affine)
        found = middle_of(labels.array.astype(float), labels.affine)
        assert np.linalg.norm(found - middle_of(volume.array, volume.affine)) < 0.3


def test_copies_are_named_and_left_out(tmp_path, capsys):
    array, affine = random_array(1, (16, 16, 16)), np.eye(4)
    write_volume(tmp_path / "scans" / "a.nii.gz", array, affine)
    write_volume(tmp_path / "scans" / "b.nii", array[::-1], np.diag([-1.0, 1, 1, 1]))
    wider = np.pad(array, 2)
    write_volume(tmp_path / "scans" / "c.nii", wider, affine)
    folder = run(tmp_path, size=(8, 8, 8), spacing=(1, 1, 1), center="image")
    said = capsys.readouterr().out
    assert "b.nii has the same voxels as" in said and "c.nii has the same voxels as" in said
    assert [path.name for path in (folder / "volumes").iterdir()] == ["a.nii.gz"]
    notes = {row["file"].rpartition("/")[2]: row["note"].split(str(tmp_path))[0] for row in rows_in(folder)}
    assert notes == {"a.nii.gz": "", "b.nii": "the same voxels as ", "c.nii": "the same volume as "}


def test_what_is_known_is_handed_on(tmp_path):
    for seed in range(2):
        write_volume(
            tmp_path / "scans" / f"{seed}.nii", random_array(seed, (18, 16, 10)), np.diag([1, 1, 2, 1.0])
        )
    folder = run(tmp_path, clip_percentiles=(10, 80))
    for row in rows_in(folder):
        assert row["content"] == examined(folder / row["volume"]).content
        assert row["content_before"] == examined(row["file"]).content
        assert float(row["clipped_percent"]) == pytest.approx(30, abs=1)
    assert np.asarray(Image.open(folder / "cut_1.png")).std() > 20
    audit = audit_volumes(folder / "volumes", (16, 16, 8))
    assert audit.contents == [row["content"] for row in rows_in(folder)]


def test_printed_commands_are_those_of_the_trainer(tmp_path, capsys):
    for seed in range(3):
        write_volume(
            tmp_path / "scans" / f"{seed}.nii", random_array(seed, (18, 16, 10)), np.diag([1, 1, 2, 1.0])
        )
    folder = run(tmp_path, output=str(tmp_path / "my scans"))
    commands = [
        shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("python")
    ]
    trial, whole = (parse_cli(TrainConfig, words[2:]) for words in commands)
    assert trial.array_shape == whole.array_shape == (16, 16, 8) and trial.num_train_steps == 20
    assert (trial.data, trial.name, whole.name) == (str(folder / "volumes"), "my_scans-trial", "my_scans")
    assert (trial.batch_size, whole.batch_size, whole.recipe) == (1, 3, "robust")
    assert commands[0][1].endswith("stylegan2_pytorch.py")


def scan_of(shape, spacing, bounds=None):
    """A Scan without a file."""
    affine = np.diag([*spacing, 1.0])
    whole = tuple((0, n) for n in shape)
    return conform.Scan("x", Grid(shape, affine), "RAS", "", False, bounds or whole)


PROPOSALS = {
    "crop of a head: voxels stay": ([(128, 128, 40)], (0.5, 0.5, 0.8), {}, (128, 128, 32), (0.5, 0.5, 1.0)),
    "a little too wide: coarser": ([(140, 120, 32)], (0.5, 0.5, 0.8), {}, (128, 128, 32), (0.55, 0.55, 0.8)),
    "sagittal knee": ([(30, 512, 512)], (3.5, 0.3, 0.3), {}, (128, 128, 128), (1.2, 1.2, 1.2)),
    "size is given": (
        [(200, 256, 120)],
        (0.5, 0.5, 0.6),
        {"size": (64, 64, 32)},
        (64, 64, 32),
        (2.0, 2.0, 2.25),
    ),
    "spacing is given": (
        [(200, 256, 120)],
        (0.5, 0.5, 0.6),
        {"spacing": (1, 1, 1)},
        (128, 128, 128),
        (1, 1, 1),
    ),
    "little memory": ([(128, 128, 40)], (0.5, 0.5, 0.8), {"memory_gib": 3.0}, (64, 64, 32), (1.0, 1.0, 1.0)),
    "one of ten is larger": (
        [(64, 64, 16)] * 9 + [(99, 99, 99)],
        (1, 1, 1),
        {},
        (64, 64, 16),
        (1.0, 1.0, 1.0),
    ),
}


@pytest.mark.parametrize("case", PROPOSALS)
def test_proposals(case):
    shapes, spacing, given, size, voxels = PROPOSALS[case]
    made = conform.propose([scan_of(s, spacing) for s in shapes], conform.ConformConfig(**given))
    assert made.size == size
    assert made.spacing == pytest.approx(voxels)
    check_networks(made.size[0], made.size[2])


def test_content_is_found_among_noise_and_specks():
    rng = np.random.default_rng(0)
    array = np.abs(rng.normal(0, 3, (130, 100, 40))).astype(np.float32)
    array[40:90, 20:80, 10:30] += 60
    array[2:4, 2:4, 2:4] += 500
    for (start, stop), (low, high), block in zip(
        content_bounds(array), ((40, 90), (20, 80), (10, 30)), (2, 1, 1), strict=True
    ):
        assert low - 2 * block <= start <= low and high <= stop <= high + 2 * block


def test_dry_run_writes_nothing(tmp_path, capsys):
    write_volume(tmp_path / "scans" / "a.nii", random_array(0, (40, 40, 20)), np.diag([1, 1, 2, 1.0]))
    arguments = [
        "--data",
        tmp_path / "scans",
        "--output",
        tmp_path / "out",
        "--dry_run",
        "--size",
        "32,32,16",
    ]
    conform.main([*arguments, "--spacing", "1,1,2", "--center", "19.5,19.5,-1"])
    said = capsys.readouterr().out
    assert "shape: 32 x 32 x 16 voxels, 32 x 32 x 32 mm: as asked" in said
    assert "cut: 1 of 1 scans, 23808 voxels (74.4 %), up to 24.0 mm at an edge; of 1 content" in said
    assert "padded: 1 of 1 volumes, 8192 voxels (50.0 %), up to 16.0 mm at an edge" in said
    assert [path.name for path in tmp_path.iterdir()] == ["scans"]


WRONG = {
    "shape": ({"size": (100, 100, 32)}, "got 100: .* preprocessing/conform.py --size 128,128,32"),
    "not square": ({"size": (64, 32, 32)}, "--size must have as many voxels to the right as to the front"),
    "too deep": ({"size": (16, 16, 32)}, "--image_depth 32 is larger than --image_size 16"),
    "spacing": ({"spacing": (1, 1)}, "--spacing must be three numbers of mm above 0, as X,Y,Z"),
    "words": ({"size": ("a", 1, 1)}, "--size must be three whole numbers of voxels"),
    "center": ({"center": "1,2"}, "--center must be content, image, or x,y,z in mm, got '1,2'"),
    "far": ({"center": "500,0,0"}, "a.nii does not reach to --center 500,0,0"),
    "dark": ({"center": "1,1,1", "size": (4, 4, 4), "spacing": (1, 1, 1)}, "a.nii is constant"),
    "clip": ({"clip_percentiles": (90, 10)}, "--clip_percentiles must rise"),
    "inside": ({"output": "scans/out"}, "lie in each other"),
    "there": ({"output": "full"}, "is there already: give a new folder"),
    "no partner": ({"labels": "full"}, "has no partner"),
    "other grid": ({"labels": "maps"}, "maps/a.nii lies 5 mm beside .*scans/a.nii"),
    "label maps": ({"data": "maps"}, "holds label maps: give the scans, and the maps by --labels"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_get_one_line_and_leave_nothing(tmp_path, case):
    settings, text = WRONG[case]
    array = np.pad(random_array(0, (8, 8, 8)), ((12, 0), (12, 0), (12, 0)))
    write_volume(tmp_path / "scans" / "a.nii", array, np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 5
    write_volume(tmp_path / "maps" / "a.nii", (array > 0.5).astype(np.int16), moved)
    write_volume(tmp_path / "full" / "b.nii", (array > 0.5).astype(np.int16), moved)
    before = sorted(tmp_path.rglob("*"))
    for flag in ("data", "output", "labels"):
        settings = settings | ({flag: str(tmp_path / settings[flag])} if flag in settings else {})
    with pytest.raises(UserError, match=text):
        run(tmp_path, **settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_shapes_are_sent_here():
    with pytest.raises(UserError) as told:
        refuse_shape((200, 256, 120), (128, 128, 32))
    remedy = "bring all there with preprocessing/conform.py --size 128,128,32"
    assert str(told.value) == f"has 200 x 256 x 120 voxels, expected 128 x 128 x 32: {remedy}"
    with pytest.raises(UserError, match=r"or train at its own: --image_size 64 --image_depth 16$"):
        refuse_shape((64, 64, 16), (128, 128, 32))
    with pytest.raises(UserError, match=r"got 200: .*conform\.py --size 256,256,128\.$"):
        check_networks(200, 120)


def test_inside_counts_voxels_by_their_middles():
    one, other = Grid((10, 1, 1), np.eye(4)), Grid((3, 1, 1), np.diag([2.0, 1, 1, 1]))
    assert inside(one, other).ravel().tolist() == [True] * 5 + [True] + [False] * 4
