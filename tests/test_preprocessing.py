"""Preprocessing, its parts: what is wrong with a raw scan, geometry, registration."""

import itertools
import re
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from preprocessing import generate_TOF_template, initial, region, registration, scans, workers
from preprocessing.images import Grid, check_bounds, crop_or_pad, fitted, grid_of, read_image, to_ants
from preprocessing.scans import audit, audit_scan, collect, find_scans
from tests.conftest import ROOT, random_array

sys.path.insert(0, str(ROOT / "sample_data"))
import phantom

SHAPE = (20, 18, 16)
AFFINE = np.array([[-0.5, 0, 0, 40], [0, 0.6, 0, -30], [0, 0, 0.8, 10], [0, 0, 0, 1.0]])


def write_scan(path, array=None, **header):
    """Write a NIfTI file byte by byte as asked: fields of `header` are set after nibabel's own."""
    array = random_array(0, SHAPE) if array is None else array
    image = nib.Nifti1Image(array, AFFINE)
    image.set_sform(AFFINE, code=1)
    image.set_qform(AFFINE, code=1)
    image.header["vox_offset"] = 352
    for name, value in header.items():
        image.header[name] = value
    content = bytearray(image.header.binaryblock)
    content += b"\0" * 4 + np.asarray(array).tobytes(order="F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(content))
    return path


def turned(angle):
    """Rows of an oblique sform."""
    c, s = np.cos(angle), np.sin(angle)
    matrix = AFFINE.copy()
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ AFFINE[:3, :3]
    return {f"srow_{axis}": matrix[i] for i, axis in enumerate("xyz")}


def sheared(amount):
    """Fields of a header with a sheared sform and no qform."""
    matrix = AFFINE.copy()
    matrix[0, 1] += amount
    return {"qform_code": 0} | {f"srow_{axis}": matrix[i] for i, axis in enumerate("xyz")}


def spoilt(value, count):
    """Array with `count` voxels of another value."""
    array = random_array(0, SHAPE)
    array.ravel()[:count] = value
    return array


PIXDIM = [-1, 0.5, 0.6, 0.8, 1, 1, 1, 1]
BAD = {
    "all zero": ({"array": np.zeros(SHAPE, np.float32)}, "is constant (every voxel 0)"),
    "all nan": ({"array": np.full(SHAPE, np.nan, np.float32)}, "has NaN or Inf in 5760 of 5760 voxels"),
    "constant": ({"array": np.full(SHAPE, 7, np.int16)}, "is constant (every voxel 7)"),
    "some nan": ({"array": spoilt(np.nan, 3)}, "has NaN or Inf in 3 of 5760 voxels"),
    "some inf": ({"array": spoilt(np.inf, 1)}, "has NaN or Inf in 1 of 5760 voxels"),
    "4D, one volume": ({"array": random_array(0, (*SHAPE, 1))}, "is 4D (20, 18, 16, 1), expected 3D"),
    "4D": ({"array": random_array(0, (*SHAPE, 3))}, "is 4D (20, 18, 16, 3), expected 3D"),
    "2D": ({"array": random_array(0, SHAPE[:2])}, "is 2D (20, 18), expected 3D"),
    "5D": ({"array": random_array(0, (*SHAPE, 1, 2))}, "is 5D"),
    "one slice": ({"array": random_array(0, (20, 18, 1))}, "has 20 x 18 x 1 voxels, expected at least 16"),
    "tiny": ({"array": random_array(0, (8, 8, 4))}, "has 8 x 8 x 4 voxels, expected at least 16"),
    "no form": ({"sform_code": 0, "qform_code": 0}, "has neither sform nor qform"),
    "zero pixdim": ({"pixdim": [1, 0, *PIXDIM[2:]]}, "has pixdim 0 x 0.6 x 0.8 mm"),
    "negative pixdim": ({"pixdim": [1, -0.5, *PIXDIM[2:]]}, "has pixdim -0.5 x 0.6 x 0.8 mm"),
    "singular sform": (
        {"srow_z": [0, 0, 0, 0], "qform_code": 0},
        "has an affine that is singular or not finite",
    ),
    "nan sform": (
        {"srow_x": [np.nan, 0, 0, 0], "qform_code": 0},
        "has an affine that is singular or not finite",
    ),
    "sheared sform": (sheared(0.01), "has a sform with sheared axes (corners off by"),
    "pixdim against sform": (
        {"pixdim": [-1, 1, 1.2, 1.6, 1, 1, 1, 1], "qform_code": 0},
        "has voxels of 1 x 1.2 x 1.6 mm by its pixdim and of 0.5 x 0.6 x 0.8 mm by its sform",
    ),
    "sform against qform": (turned(0.05), "has a sform and a qform that place it"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_get_their_own_sentence(tmp_path, kind):
    header, text = BAD[kind]
    path = write_scan(tmp_path / "scan.nii", **header)
    before = path.read_bytes()
    with pytest.raises(ValueError) as error:
        audit_scan("scan", path)
    assert text in str(error.value) and path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "cannot be read"), (b"text", "cannot be read"), (b"\x1f\x8b\x08trunc", "cannot be read")],
    ids=["empty", "text", "truncated"],
)
def test_unreadable_files_are_said(tmp_path, content, text):
    path = tmp_path / ("scan.nii.gz" if content[:1] == b"\x1f" else "scan.nii")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=text):
        audit_scan("scan", path)


def test_good_files_pass(tmp_path):
    one = audit_scan("one", write_scan(tmp_path / "one.nii"))
    assert (one.shape, one.spacing, one.orientation) == (SHAPE, (0.5, 0.6, 0.8), "LAS")
    for header in ({"sform_code": 0}, {"qform_code": 0}, {**turned(0.3), "qform_code": 0}):
        assert audit_scan("scan", write_scan(tmp_path / "two.nii", **header)).digest != one.digest
    scaled = np.abs(random_array(0, SHAPE).view(np.int32).astype(np.int16))
    assert (
        audit_scan("scan", write_scan(tmp_path / "int.nii", scaled, scl_slope=0.5, scl_inter=3)).name
        == "scan"
    )
    nib.save(nib.load(tmp_path / "one.nii"), tmp_path / "packed.nii.gz")
    assert audit_scan("scan", tmp_path / "packed.nii.gz").shape == SHAPE


def test_scans_are_found_flat_and_by_subject(tmp_path):
    for name in ("a.nii", "sub-01/tof.nii", "sub-02/tof.nii", "sub-02/.hidden.nii", "notes.txt"):
        write_scan(tmp_path / name)
    named, problems = find_scans(tmp_path)
    assert sorted(named) == ["a", "sub-01_tof", "sub-02_tof"] and not problems
    # Two of one name are told apart by their places, which stay the same; so do the names of the others.
    write_scan(tmp_path / "sub-01_tof.nii")
    write_scan(tmp_path / "a.nii.gz")
    again, _ = find_scans(tmp_path)
    assert again["sub-02_tof"] == named["sub-02_tof"] and len(again) == 5
    assert {name[:-9] for name in again.keys() - named.keys()} == {"a", "sub-01_tof"}
    (tmp_path / "moved").mkdir()
    for path in (tmp_path / "a.nii", tmp_path / "a.nii.gz"):
        path.rename(tmp_path / "moved" / path.name)
    assert find_scans(tmp_path / "moved")[0].keys() == {name for name in again if name.startswith("a_")}
    with pytest.raises(ValueError, match="does not exist"):
        find_scans(tmp_path / "nowhere")


def test_copies_are_found_by_content_and_folders_kept_apart(tmp_path):
    image = nib.load(write_scan(tmp_path / "raw" / "a.nii"))
    nib.save(image, tmp_path / "raw" / "b.nii.gz")
    write_scan(tmp_path / "raw" / "c.nii", random_array(1, SHAPE))
    named, problems = collect(tmp_path / "raw", tmp_path / "out")
    assert sorted(named) == ["a", "b", "c"] and not problems
    found, problems = audit(named)
    assert [s.name for s in found] == ["a", "c"]
    assert problems == {"b": "has the same voxels as a: remove one"}
    for output in (tmp_path, tmp_path / "raw", tmp_path / "raw" / "out"):
        with pytest.raises(ValueError, match="lie in each other"):
            collect(tmp_path / "raw", output)
    write_scan(tmp_path / "out" / "volumes" / "a.nii")
    (tmp_path / "raw" / "made").symlink_to(tmp_path / "out" / "volumes")
    with pytest.raises(ValueError, match="holds a link to --output"):
        collect(tmp_path / "raw", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="and no DICOM series"):
        collect(tmp_path / "empty", tmp_path / "out")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Geometry                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def oblique(shift=(3.0, -7.0, 11.0)):
    """An affine with turned axes, one of them flipped, mm."""
    matrix = phantom.Pose.draw(np.random.default_rng(2), 40, 0).matrix() @ np.diag([-0.5, 0.6, 0.8, 1])
    matrix[:3, 3] = shift
    return matrix


def test_ants_images_lie_where_the_file_says(tmp_path):
    affine = oblique()
    nib.save(nib.Nifti1Image(random_array(0, SHAPE), affine), tmp_path / "scan.nii.gz")
    for canonical in (True, False):
        image = read_image(tmp_path / "scan.nii.gz", canonical)
        grid = grid_of(image)
        stored = np.linalg.inv(affine) @ grid.affine @ [4, 5, 6, 1]  # stored voxel of voxel (4, 5, 6)
        index = tuple(np.rint(stored[:3]).astype(int))
        assert image.numpy()[4, 5, 6] == random_array(0, SHAPE)[index]
        assert canonical == ("".join(nib.aff2axcodes(grid.affine)) == "RAS")
    np.testing.assert_allclose(grid.affine, affine, atol=1e-5)


def test_a_crop_keeps_every_voxel_at_its_place():
    array, grid = random_array(0, SHAPE), Grid(SHAPE, oblique())
    bounds = ((3, 11), (2, 18), (-2, 10))
    part, cut = crop_or_pad(array, bounds), grid.crop(bounds)
    assert part.shape == cut.shape == (8, 16, 12)
    np.testing.assert_allclose(cut.affine @ [1, 2, 4, 1], grid.affine @ [4, 4, 2, 1])
    assert part[1, 2, 4] == array[4, 4, 2] and not part[:, :, :2].any()
    assert fitted((10, 10, 4), (8, 13, 4)) == ((1, 9), (-2, 11), (0, 4))
    same = crop_or_pad(crop_or_pad(array, fitted(SHAPE, (24, 24, 24))), fitted((24, 24, 24), SHAPE))
    np.testing.assert_array_equal(same, array)


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        (((80, 208), (120, 248), (40, 72)), "has 20 x 18 x 16 voxels of 0.5 x 0.6 x 0.8 mm, and"),
        (((4, 4), (0, 18), (0, 16)), "are of another grid"),
        (((0, 4), (0, 18)), "must be"),
        (((0, 4), (0, 18), (0, "a")), "must be"),
    ],
)
def test_bounds_of_another_grid_are_refused(bounds, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        check_bounds(bounds, Grid(SHAPE, oblique()), "--template t.nii.gz")


def test_n4_takes_a_bias_field_away():
    clean, _ = head(0, 0, 0)
    x = np.linspace(-1, 1, clean.shape[0])[:, None, None]
    biased = clean.new_image_like((clean.numpy() * np.exp(0.5 * x)).astype(np.float32))
    tissue = clean.numpy() > np.quantile(clean.numpy(), 0.6)
    ratio = np.log(registration.unbiased(biased).numpy()[tissue] / clean.numpy()[tissue])
    left = np.polyfit(np.broadcast_to(x, clean.shape)[tissue], ratio, 1)[0]
    assert abs(left) < 0.1, left  # of 0.5


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Registration                                                                                             ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def head(number, degrees, shift, seed=0, spacing=2.0):
    """ANTs image of a phantom head in a random pose, and its landmarks in RAS mm."""
    pose = phantom.Pose.draw(np.random.default_rng(seed), degrees, shift)
    made = phantom.make_head(0, number, pose, spacing)
    return to_ants(made.volume, made.affine), made.landmarks


def errors(matrix, one, other):
    """Distances of the landmarks of one head, carried over, from those of the other, mm."""
    return [np.linalg.norm((matrix @ np.append(one[name], 1))[:3] - other[name]) for name in one]


def test_transforms_survive_the_file(tmp_path):
    matrix = phantom.Pose.draw(np.random.default_rng(0), 40, 30).matrix()
    matrix[:3, :3] *= 1.1
    registration.write_transform(matrix, tmp_path / "t.mat")
    np.testing.assert_allclose(registration.read_transform(tmp_path / "t.mat"), matrix, atol=1e-6)


def test_resampling_carries_a_landmark_to_its_place():
    (fixed, here), (moving, there) = head(0, 0, 0), head(0, 25, 20, seed=1)
    to_moving = phantom.Pose.draw(np.random.default_rng(1), 25, 20).matrix()
    assert max(errors(to_moving, here, there)) < 1e-6
    warped = registration.resample(moving, fixed, to_moving)
    inside = registration.resample(moving.new_image_like(np.ones(moving.shape, np.float32)), fixed, to_moving)
    both = inside.numpy() > 0.99
    assert np.corrcoef(fixed.numpy()[both], warped.numpy()[both])[0, 1] > 0.8


@pytest.mark.parametrize(("degrees", "shift", "seed"), [(25, 25, 3), (60, 60, 4)])
def test_a_posed_head_is_registered(degrees, shift, seed):
    (fixed, here), (moving, there) = head(0, 0, 0), head(0, degrees, shift, seed)
    found = registration.align(fixed, moving)
    assert not found.fit.problems()
    assert max(errors(found.matrix, here, there)) < 0.5
    if seed == 3:  # nothing in it is drawn anew
        assert np.array_equal(found.matrix, registration.align(fixed, moving).matrix)


def moved(matrix, axis, mm):
    """A transform after a shift of the template."""
    step = np.eye(4)
    step[axis, 3] = mm
    return matrix @ step


def test_a_right_registration_stands_out_from_displaced_ones():
    (fixed, _), (moving, _) = head(0, 0, 0), head(1, 20, 20, seed=5)
    likeness = registration.Likeness(fixed, moving)
    right = registration.register(fixed, moving)
    assert not registration.assess(likeness, right).problems()
    for axis, mm in itertools.product(range(3), (-15, -6, 6, 15)):
        fit = registration.assess(likeness, moved(right, axis, mm))
        assert "fits better" in str(fit.problems()), (axis, mm)
    for axis in "xyz":
        wrong = right @ registration.turned(axis, 90, likeness.middle)
        found = registration.register(fixed, moving, initial=wrong)  # the best there is nearby
        assert registration.assess(likeness, found).problems(), axis
    assert "only 0% of the smaller image" in str(
        registration.assess(likeness, moved(right, 0, 300)).problems()
    )
    assert registration.assess(likeness, right).problems(nmi_gate=1.9) and likeness(right)[0] < 1.9


def test_a_slab_is_judged_by_its_own_size():
    (fixed, _), (moving, _) = head(0, 0, 0), head(0, 5, 5, seed=5)
    middle = moving.shape[2] // 2
    slab = grid_of(moving).crop(((0, moving.shape[0]), (0, moving.shape[1]), (middle - 10, middle + 10)))
    part = to_ants(moving.numpy()[:, :, middle - 10 : middle + 10], slab.affine)
    right = phantom.Pose.draw(np.random.default_rng(5), 5, 5).matrix()
    fit = registration.assess(registration.Likeness(fixed, part), right)
    assert fit.overlap > 0.7 and not fit.problems()
    assert registration.assess(registration.Likeness(fixed, part), moved(right, 2, 7)).problems()


def test_exchanged_sides_fit_better_mirrored():
    (fixed, _), _ = head(0, 0, 0), None
    values = fixed.numpy().copy()
    values[: values.shape[0] // 3] *= 0.7  # a head whose left side is darker
    fixed = fixed.new_image_like(values)
    mirror = registration.mirror_of(fixed)
    flipped = to_ants(values, np.diag([-1.0, 1, 1, 1]) @ grid_of(fixed).affine)
    fits = []
    for scan in (fixed, flipped):
        matrix = registration.register(fixed, scan)
        fits.append(registration.assess(registration.Likeness(fixed, scan), matrix, mirror))
    assert fits[0].mirrored < 1 / 1.03 and fits[1].mirrored > 1.03


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_circle_is_found_on_a_head(number):
    image, landmarks = head(number, 10, 10, seed=number)
    size = (80.0, 80.0, 28.0)
    center = region.find_center(image, size)
    inside = [(np.abs(np.array(p) - center) <= np.array(size) / 2).all() for p in landmarks.values()]
    assert sum(inside) >= 8, center
    values = image.numpy()
    with pytest.raises(ValueError, match="no bright vessels"):
        region.find_center(image.new_image_like(np.minimum(values, np.percentile(values, 90))), size)


def test_a_region_says_what_is_not_a_circle():
    rng = np.random.default_rng(0)
    tissue = rng.normal(100, 5, (40, 40, 16)).astype(np.float32)
    assert "vessels" in region.vessels_of(tissue, np.eye(4)).problems()[0]
    one = tissue.copy()
    one[4:7, 4:36, 6:9] = 300
    (side, off) = region.vessels_of(one, np.eye(4)).problems()
    assert "0% of the vessels lie in one half" in side and "off the middle" in off
    both = one.copy()
    both[33:36, 4:36, 6:9] = 300
    assert not region.vessels_of(both, np.eye(4)).problems()


NOT_SCANS = {
    "labels": (
        lambda a: np.digitize(a, (0.2, 0.5, 0.9)).astype(np.float32),
        "has 4 values, all whole numbers",
    ),
    "offset": (lambda a: a * 1000 - 1024, "expected none below 0: take the offset away"),
    "inverted": (lambda a: a.max() - a, "its contrast is inverted"),
    "inverted, with noise": (
        lambda a: (b := a + 0.4 * random_array(2, a.shape)).max() - b,
        "its contrast is inverted",
    ),
    "one voxel": (
        lambda a: np.where(np.arange(a.size).reshape(a.shape) == 77, 1e6, a),
        "has 1 voxels of up to 1e+06",
    ),
    "float64": (lambda a: a.astype(np.float64) * 1e300, "numbers beyond 3e38 are Inf: scale them down"),
}


@pytest.mark.parametrize("kind", NOT_SCANS)
def test_what_is_no_magnitude_image_is_named(tmp_path, kind):
    spoil, text = NOT_SCANS[kind]
    inside = ndimage.gaussian_filter(
        np.pad(random_array(0, (40, 40, 16)) + 0.5, ((12, 12), (12, 12), (0, 0))), 1
    )
    noise = 0.01 * random_array(1, inside.shape)
    audit_scan("scan", write_scan(tmp_path / "right.nii", inside + noise))
    with pytest.raises(ValueError, match=re.escape(text)):
        audit_scan("scan", write_scan(tmp_path / "scan.nii", spoil(inside + noise)))


@pytest.mark.parametrize(("units", "factor"), [(1, 0.001), (3, 1000)], ids=["metres", "micrometres"])
def test_lengths_in_other_units_are_read_in_millimetres(tmp_path, units, factor):
    image = nib.Nifti1Image(random_array(0, SHAPE), np.diag([factor, factor, factor, 1]) @ AFFINE)
    image.header["xyzt_units"] = units
    nib.save(image, tmp_path / "scan.nii")
    assert audit_scan("scan", tmp_path / "scan.nii").spacing == (0.5, 0.6, 0.8)
    np.testing.assert_allclose(grid_of(read_image(tmp_path / "scan.nii", False)).affine, AFFINE, atol=1e-4)


def test_an_oblique_sform_of_four_decimals_is_read(tmp_path):
    fields = {name: np.round(row, 4) for name, row in turned(0.3).items()}
    assert audit_scan("scan", write_scan(tmp_path / "scan.nii", **fields, qform_code=0)).orientation == "LAS"


def test_a_bids_tree_gives_its_angiograms(tmp_path):
    for name in ("anat/sub-01_angio.nii", "anat/sub-01_T1w.nii", "anat/sub-01_acq-TOF_run-1.nii"):
        write_scan(tmp_path / "sub-01" / name)
    write_scan(tmp_path / "derivatives" / "sub-01" / "sub-01_angio.nii")
    assert sorted(find_scans(tmp_path)[0]) == ["sub-01_anat_sub-01_acq-TOF_run-1", "sub-01_anat_sub-01_angio"]
    assert sorted(find_scans(tmp_path, "*T1w*")[0]) == ["sub-01_anat_sub-01_T1w"]


def test_what_stands_in_the_place_of_a_scan_is_named(tmp_path):
    write_scan(tmp_path / "elsewhere" / "b.nii")
    folder = tmp_path / "raw"
    write_scan(folder / "a.nii")
    (folder / "annexed.nii.gz").symlink_to(tmp_path / "nowhere")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder)
    for name in ("old.hdr", "old.img", "brain.mgz", "c.mha", "d.nii.bz2"):
        (folder / name).write_bytes(b"")
    named, problems = find_scans(folder)
    assert list(named) == ["a", "linked_b"]  # links to folders are followed
    others = ["brain.mgz", "c.mha", "d.nii.bz2", "old.hdr", "old.img"]
    assert sorted(problems) == ["again", "annexed", *others]
    assert "datalad get" in problems["annexed"] and "mri_convert" in problems["brain.mgz"]
    assert problems["again"] == "is a link to a folder that is read already"
    # What lies in a folder of its own goes by that, whatever links to it come before it.
    (folder / "z").mkdir()
    (folder / "a.nii").rename(folder / "z" / "a.nii")
    (folder / "first").symlink_to(folder / "z")
    assert list(find_scans(folder)[0]) == ["linked_b", "z_a"]


def test_names_that_lie_are_told(tmp_path):
    packed = write_scan(tmp_path / "a.nii")
    nib.save(nib.load(packed), tmp_path / "b.nii.gz")
    (tmp_path / "b.nii.gz").rename(tmp_path / "b.nii")
    packed.rename(tmp_path / "a.nii.gz")
    (tmp_path / "c.nii.gz").write_text("/annex/objects/SHA256E-s5196--d7a3.nii.gz\n", encoding="utf-8")
    _, problems = audit(find_scans(tmp_path)[0])
    assert [problems[name].split(": ")[-1] for name in "abc"] == [
        "rename it to a.nii",
        "rename it to b.nii.gz",
        "fetch it (datalad get)",
    ]


def test_the_same_scan_under_another_header_is_a_copy(tmp_path):
    write_scan(tmp_path / "raw" / "a.nii")
    write_scan(tmp_path / "raw" / "b.nii", **turned(0.3), qform_code=0)
    _, problems = audit(find_scans(tmp_path / "raw")[0])
    assert problems == {"b": "has the same voxels as a: remove one"}


def test_one_scan_along_other_axes_is_a_copy(tmp_path):
    image = nib.load(write_scan(tmp_path / "raw" / "a.nii"))
    (tmp_path / "raw" / "more").mkdir()
    nib.save(image.as_reoriented([[2, 1], [0, -1], [1, 1]]), tmp_path / "raw" / "more" / "b.nii.gz")
    named, _ = find_scans(tmp_path / "raw")
    assert list(named) == ["a", "more_b"]
    (scan,), problems = audit(named)
    assert scan.name == "a" and problems == {"more_b": "has the same voxels as a: remove one"}
    assert (scan.shape, scan.spacing) == (SHAPE, (0.5, 0.6, 0.8))


def test_series_and_files_of_one_name_are_told_apart():
    taken = {"a": 1, "a_dicom": 2}
    assert (scans.beside("a", taken, {}), scans.beside("a", {}, taken)) == ("a_dicom_dicom",) * 2
    assert scans.beside("b", taken) == "b"


def test_what_does_not_look_like_tof_is_said():
    size = (48, 48, 32)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    inside, rng = x**2 + y**2 + z**2 < 0.8, np.random.default_rng(0)
    noise = rng.normal(0, 1, size)
    tissue = inside * (100 + 30 * np.sign(x * y * z)) + 3 * np.abs(noise)
    vessel = inside & (np.hypot(x, y) < 0.12)
    assert scans.unlike_tof(np.where(vessel, 400, tissue).astype(np.float32)) == ""
    assert scans.unlike_tof(np.where(vessel, 180, tissue).astype(np.float32)) == "T1, or an average"
    ct = np.where(vessel, 2500, inside * (1060 + 20 * noise)).astype(np.float32)
    assert scans.unlike_tof(ct) == "CT"
    head_like = [head(number, 0, 0)[0].numpy() for number in (0, 1)]
    assert [scans.unlike_tof(array) for array in head_like] == ["", ""]
    told = [scans.Scan(n, "", "", "", size, (1, 1, 1), "RAS", like) for n, like in (("a", "CT"), ("b", ""))]
    lines = scans.summary(told)
    assert lines[-1] == "not like TOF, but like CT (all tissue has nearly one grey value): a"
    assert len(scans.summary(told[1:])) == 4


def test_a_misspelt_setting_of_ants_is_told():
    with pytest.raises(TypeError, match=r"ants\.registration has no random_seed"):
        registration.by_ants(None, None, type_of_transform="Rigid", random_seed=1)


def test_starts_by_hand_that_are_none_are_named(tmp_path):
    registration.write_transform(np.eye(4), tmp_path / "a.mat")
    for name in ("a.txt", "stranger.mat", "b.nii.gz", "c.lta", "notes.odt"):
        (tmp_path / name).write_bytes(b"")
    said = []
    initial.check_starts(tmp_path, ["a", "b", "c"], said.append)
    told = {line.split()[1].removeprefix(f"{tmp_path}/"): line for line in said}
    assert sorted(told) == ["a.txt", "b.nii.gz", "c.lta", "notes.odt", "stranger.mat"]
    assert "is not read: a has another start" in told["a.txt"] and "fits no scan" in told["stranger.mat"]
    assert "is a deformation field" in told["b.nii.gz"] and "lta_convert" in told["c.lta"]
    flirt = "1 0 0 12.5\n0 1 0 -3\n0 0 1 4\n0 0 0 1\n"
    (tmp_path / "b.mat").write_text(flirt, encoding="utf-8")
    (tmp_path / "c.tfm").write_bytes(
        b"#Insight Transform File V1.0\nTransform: BSplineTransform_double_3_3\n"
    )
    with pytest.raises(ValueError, match="2 starts in --initial cannot be used") as error:
        initial.check_starts(tmp_path, ["a", "b", "c"], said.append)
    assert "b.mat is a matrix of FSL" in str(error.value) and "-fsl2ras" in str(error.value)
    assert "c.tfm is a deformation, expected a linear transform" in str(error.value)
    initial.check_starts(None, ["a"], said.append)


def test_a_bar_moves_while_nothing_ends():
    class Bar:
        drawn = 0

        def refresh(self):
            self.drawn += 1

    bar = Bar()
    with workers.ticking(bar, 0.01):
        time.sleep(0.2)
    assert bar.drawn > 3
    durations = (40, 420, 9000)
    assert [workers.in_words(s) for s in durations] == ["40 seconds", "7 minutes", "2.5 hours"]
    assert "about 4.2 minutes" in generate_TOF_template.forecast(3, 10, 2)


def test_a_second_look_at_the_region_mends_what_is_wrong_there():
    (fixed, here), (moving, there) = head(0, 0, 0, spacing=1.25), head(0, 10, 10, seed=6, spacing=1.25)
    start = phantom.Pose.draw(np.random.default_rng(6), 10, 10).matrix()
    start[:3, 3] += (1.5, -2.0, 1.0)
    box = np.zeros(fixed.shape, np.float32)
    corner = np.array([-40.0, -45, -14]), np.array([40.0, 35, 14])  # RAS mm, about the circle
    lps = [np.asarray(fixed.origin) * (-1, -1, 1), np.asarray(fixed.spacing)]
    low, high = (np.round((c - lps[0]) / lps[1]).astype(int) for c in corner)
    box[tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))] = 1
    before = errors(start, here, there)
    after = errors(registration.look_again(fixed, moving, start, fixed.new_image_like(box)), here, there)
    assert min(before) > 2.5 and max(after) < 0.5, (before, after)
