"""The door for volumes: what a header states, what a folder holds, and what a volume is known by."""

import gzip
import itertools

from volumetric import collection, dataset, files, geometry
from volumetric.cli import UserError
from volumetric.names import unique_names

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from tests.conftest import random_array, write_data, write_volume

SHAPE = (8, 8, 4)


def save(path, affine, units="mm", shape=SHAPE, qform=True, zooms=None):
    """A volume whose header states what is asked for."""
    image = nib.Nifti1Image(random_array(0, shape), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1 if qform else 0)
    image.header.set_xyzt_units(units)
    if zooms is not None:
        image.header.set_zooms(zooms)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("units", "scale"), [("mm", 1), ("meter", 1e-3), ("micron", 1e3), ("unknown", 1)])
def test_lengths_are_in_mm_whatever_the_header_counts_in(tmp_path, units, scale):
    affine = np.array([[0, -0.6, 0, 9], [0.5, 0, 0, -3], [0, 0, 0.8, 7], [0, 0, 0, 1]])
    volume = collection.read(save(tmp_path / "v.nii.gz", np.diag([scale, scale, scale, 1]) @ affine, units))
    np.testing.assert_allclose(volume.stored, affine, rtol=1e-5)
    np.testing.assert_allclose(volume.spacing, [0.6, 0.5, 0.8], rtol=1e-5)
    assert volume.axes == "ALS" and geometry.axes_of(volume.affine) == "RAS"


def rotated(degrees):
    """Rotation about x, y and z. Shapes: (3,) -> (3, 3)"""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = (n for n in range(3) if n != axis)
        one = np.eye(3)
        one[i, i], one[j, j], one[i, j], one[j, i] = (
            np.cos(angle),
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
        )
        turn = turn @ one
    return turn


def oblique(digits, spacing=(0.39, 0.39, 0.6)):
    """Affine of a turned scan whose sform was written with so many decimals."""
    affine = np.eye(4)
    affine[:3, :3] = np.round(rotated((17.3, -4.1, 6.7)) @ np.diag(spacing), digits)
    return affine


@pytest.mark.parametrize("digits", [4, 5, 6])
def test_a_sform_of_four_decimals_is_no_shear_whatever_the_size(digits):
    geometry.check_shear(oblique(digits), (512, 512, 200))


@pytest.mark.parametrize(("digits", "shape"), [(3, (48, 48, 32)), (2, (16, 16, 16))])
def test_sheared_axes_are_refused_in_mm(digits, shape):
    with pytest.raises(UserError, match=r"sheared axes \(corners off by 0\.\d+ mm\)"):
        geometry.check_shear(oblique(digits), shape)


def test_a_header_that_contradicts_itself_is_refused(tmp_path):
    affine = np.diag([-0.5, 0.5, 0.8, 1])
    path = save(tmp_path / "b.nii", affine, shape=(40, 44, 30), qform=False, zooms=(1, 1, 1.6))
    with pytest.raises(
        UserError, match=r"1 x 1 x 1\.6 mm by its pixdim and of 0\.5 x 0\.5 x 0\.8 mm by its sform"
    ):
        collection.read(path)
    rounded = save(tmp_path / "a.nii", affine, shape=(40, 44, 30), qform=False, zooms=(0.5002, 0.5, 0.8))
    assert collection.read(rounded).array.shape == (40, 44, 30)
    image = nib.load(save(tmp_path / "c.nii", affine))
    image.set_qform(np.diag([0.5, 0.5, 0.8, 1]), 1)
    nib.save(image, tmp_path / "d.nii")
    with pytest.raises(UserError, match="axes LAS by its sform and RAS by its qform"):
        collection.read(tmp_path / "d.nii")
    moved = affine.copy()
    moved[:3, 3] = 5
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "e.nii")
    assert np.allclose(collection.read(tmp_path / "e.nii").stored, affine)
    with pytest.raises(UserError, match=r"a sform and a qform that place it 8\.66 mm apart"):
        collection.read(tmp_path / "e.nii", scan=True)


@pytest.mark.parametrize("axes", ["".join(a) for a in itertools.permutations("RAS")] + ["LPS", "PIL", "SLA"])
def test_one_scan_along_any_axes_is_one_volume(tmp_path, axes):
    array = random_array(1, (5, 6, 4))
    affine = np.array([[0.6, 0, 0, 3], [0, 0.7, 0, 2], [0, 0, 0.8, 1], [0, 0, 0, 1]])
    way = orientations.ornt_transform(*(orientations.axcodes2ornt(c) for c in ("RAS", axes)))
    stored = orientations.apply_orientation(array, way)
    write_volume(tmp_path / "v.nii.gz", stored, affine @ orientations.inv_ornt_aff(way, array.shape))
    volume = collection.read(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(volume.as_stored(volume.array), stored)
    assert volume.axes == axes and volume.content == collection.content_of(collection.scaled(array))
    as_it_is = collection.read(tmp_path / "v.nii.gz", axes=axes)
    np.testing.assert_array_equal(as_it_is.array, stored)
    assert as_it_is.content == volume.content


def test_content_is_that_of_the_grey_values_not_of_the_file(tmp_path):
    array = (100 * random_array(2)).astype(np.int16)
    write_volume(tmp_path / "a.nii", array)
    write_volume(tmp_path / "b.nii.gz", 4 * array.astype(np.float32) + 32, np.diag([2, 2, 2, 1]))
    write_volume(tmp_path / "c.nii.gz", array[::-1])
    contents = [collection.read(tmp_path / name).content for name in ("a.nii", "b.nii.gz", "c.nii.gz")]
    assert contents[0] == contents[1] != contents[2]


def with_slope(path, labels, slope):
    """A label map whose header scales what is stored."""
    image = nib.Nifti1Image(np.rint(labels / slope).astype(np.int16), np.eye(4))
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([slope, 0], "<f4").tobytes()
    path.write_bytes(bytes(raw))
    return path


def test_whole_numbers_survive_a_slope(tmp_path):
    labels = np.random.default_rng(0).integers(0, 16, SHAPE)
    volume, _ = collection.read_whole(with_slope(tmp_path / "tenth.nii", labels, 0.1))
    np.testing.assert_array_equal(volume.array, labels)
    with pytest.raises(
        UserError, match=r"scales what is stored by 0\.0470588 \(scl_slope\), as for a picture"
    ):
        collection.read_whole(with_slope(tmp_path / "picture.nii", labels * 12 / 255, 12 / 255))
    write_volume(tmp_path / "soft.nii", labels.astype(np.float32) / 2)
    with pytest.raises(UserError, match="labels were interpolated"):
        collection.read_whole(tmp_path / "soft.nii")


# ---- folders


def test_everything_in_a_folder_is_taken_or_named(tmp_path, capsys):
    data = write_data(tmp_path)
    for name in ("x.mgz", "y.img", "z.nrrd", "w.mha", "v.nii.bz2", "s.dcm", "notes.txt", "old.foo"):
        (data / name).write_bytes(b"anything")
    write_volume(data / "seed1_deviation.nii.gz", random_array(7))
    write_volume(data / ".git" / "hidden.nii.gz", random_array(8))
    write_volume(tmp_path / "elsewhere" / "linked.nii.gz", random_array(9))
    (data / "more").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(data)
    paths = collection.find_volumes(data)
    assert [p.name for p in paths] == ["linked.nii.gz", *(f"v{n}.nii.gz" for n in range(6))]
    told = capsys.readouterr().out
    for name in (
        "x.mgz",
        "y.img",
        "z.nrrd",
        "w.mha",
        "v.nii.bz2",
        "s.dcm",
        "seed1_deviation.nii.gz",
        "again",
    ):
        assert name in told
    assert "1 .foo" in told and "notes.txt" not in told and "hidden" not in told
    (data / "v9.nii.gz").symlink_to("../.git/annex/objects/xx/aa.nii.gz")
    with pytest.raises(
        UserError, match=r"1 of the 8 volumes(.|\n)*v9\.nii\.gz is a link to a file that is not here"
    ):
        collection.find_volumes(data)


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path, monkeypatch):
    data = write_data(tmp_path)

    def walk(start, onerror):
        onerror(PermissionError(13, "Permission denied", str(data / "closed")))
        yield str(start), [], ["v0.nii.gz"]

    monkeypatch.setattr(collection.os, "walk", walk)
    with pytest.raises(UserError, match=r"closed cannot be looked into \(Permission denied\)"):
        collection.find_volumes(data)


WRONG_BYTES = {
    "pointer": (
        b"/annex/objects/SHA256E-s5196--d7a3.nii.gz\n",
        "v.nii.gz",
        "is a pointer of git-annex: fetch it",
    ),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "v.nii", "is a pointer of Git LFS: fetch it"),
    "not packed": (None, "v.nii.gz", "is not compressed, as its name says: rename it to v.nii"),
    "packed": (None, "v.nii", "is compressed, and its name does not say so: rename it to v.nii.gz"),
}


@pytest.mark.parametrize("kind", WRONG_BYTES)
def test_names_and_contents_of_files_go_together(tmp_path, kind):
    content, name, text = WRONG_BYTES[kind]
    if content is None:
        content = nib.Nifti1Image(random_array(0), np.eye(4)).to_bytes()
        content = gzip.compress(content) if kind == "packed" else content
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=text):
        collection.read(tmp_path / name)


def test_a_long_header_extension_is_read(tmp_path):
    image = nib.Nifti1Image(random_array(3), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a" * 1_500_000))
    nib.save(image, tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(collection.read(tmp_path / "v.nii.gz").array, random_array(3))


def test_label_maps_among_volumes_are_refused_and_alone_are_not(tmp_path):
    data = write_data(tmp_path)
    for n in range(6):
        labels = (random_array(n) > 0.5).astype(np.uint8)
        write_volume(data / f"v{n}_label.nii.gz", labels)
        write_volume(tmp_path / "maps" / f"v{n}.nii.gz", labels)
    with pytest.raises(
        UserError, match=r"6 of the 12 files .* label maps or masks, the first .*v0_label\.nii\.gz"
    ):
        collection.volumes_in(data, "--data")
    assert all(one.labels for one in collection.volumes_in(tmp_path / "maps", "--data"))
    with pytest.raises(UserError, match=r"the first .*v0_label\.nii\.gz"):
        dataset.audit_volumes(data, SHAPE)


# ---- names and sets


def test_names_tell_apart_what_is_called_alike():
    paths = ["a/x/sub-00.nii.gz", "a/y/sub-00.nii.gz", "b/y/sub-00.nii.gz", "a/x/sub-01.nii.gz"]
    assert list(unique_names(paths).values()) == ["x_sub-00", "a_y_sub-00", "b_y_sub-00", "sub-01"]
    names = unique_names(["v.nii", "v.nii.gz", "Zürich/é.nii"])
    assert len(set(names.values())) == 3 and names["Zürich/é.nii"] == "é"
    assert unique_names([]) == {}


def test_pairs_are_found_by_their_place_and_their_partners_are_missed(tmp_path):
    for site in "ab":
        for kind in ("images", "labels"):
            write_volume(
                tmp_path / kind / site / ("s.nii" if kind == "labels" else "s.nii.gz"), random_array(0)
            )
    pairs = collection.pair_up({"data": tmp_path / "images", "labels": tmp_path / "labels"})
    assert {name: [p.parent.name for p in paths] for name, paths in pairs.items()} == {
        "a/s": ["a", "a"],
        "b/s": ["b", "b"],
    }
    write_volume(tmp_path / "images" / "a" / "t_0000.nii.gz", random_array(0))
    write_volume(tmp_path / "labels" / "a" / "t.nii.gz", random_array(0))
    with pytest.raises(
        UserError, match=r"t_0000\.nii\.gz has no partner in --labels .* nnU-Net's number of a channel"
    ):
        collection.pair_up({"data": tmp_path / "images", "labels": tmp_path / "labels"})


def test_volumes_of_one_set_in_another_are_refused_by_content(tmp_path):
    for n in range(3):
        write_volume(tmp_path / "a" / f"x{n}.nii.gz", random_array(n))
        write_volume(tmp_path / "b" / f"y{n}.nii.gz", random_array(n + 2)[::-1], np.diag([-1, 1, 1, 1]))
    one, other = (collection.volumes_in(tmp_path / name, f"--{name}") for name in "ab")
    with pytest.raises(
        UserError, match=r"1 of the 3 volumes of --b are in --a, the first .*y0.* \(.*x2\.nii\.gz\)"
    ):
        collection.refuse_overlap(collection.known_by_content(one), other, "--a", "--b")
    collection.refuse_overlap({}, other, "--a", "--b")


def test_grids_that_are_a_part_of_a_voxel_apart_are_one():
    place = np.diag([0.6, 0.6, 0.8, 1])
    beside, far = place.copy(), place.copy()
    beside[0, 3], far[0, 3] = 0.01, 0.3
    collection.refuse_other_grid((SHAPE, beside, "map.nii"), (SHAPE, place, "volume.nii"))
    with pytest.raises(UserError, match=r"map\.nii lies 0\.3 mm beside volume\.nii"):
        collection.refuse_other_grid((SHAPE, far, "map.nii"), (SHAPE, place, "volume.nii"))


def test_reading_copies_nothing_more_for_a_volume_along_r_a_s(tmp_path):
    write_volume(tmp_path / "v.nii", random_array(4, (16, 16, 8)))
    volume = collection.read(tmp_path / "v.nii")
    assert volume.array.base is not None and volume.array.flags.f_contiguous  # a view of what nibabel read
    assert files.array_to_volume(volume.array).flags.c_contiguous is False
