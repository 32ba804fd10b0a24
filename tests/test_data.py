"""Volumes in and out, the audit of a folder, and the order of samples."""

import gzip
import itertools
import os
import pickle
import shutil

from volumetric import collection, dataset, diff_augment, files, pictures
from volumetric.cli import UserError

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel import orientations

from tests.conftest import random_array, write_volume

SHAPE = (8, 8, 4)


def test_nifti_round_trip_keeps_axes_affine_and_says_synthetic(tmp_path):
    volume = random_array(0, (1, 4, 8, 6))  # (1, Z, X, Y)
    affine = np.array([[0, -0.6, 0, 9], [0.5, 0, 0.1, -3], [0, 0.05, 0.8, 7], [0, 0, 0, 1]])
    files.save_nifti(volume, affine, tmp_path / "v.nii.gz")
    image = nib.load(tmp_path / "v.nii.gz")
    assert image.shape == (8, 6, 4) and image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(image.dataobj)[1, 2, 3], volume[0, 3, 1, 2])
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    assert image.header["descrip"].item().startswith(b"SYNTHETIC")
    assert image.header["sform_code"] > 0 and image.header["qform_code"] > 0
    assert list(tmp_path.iterdir()) == [tmp_path / "v.nii.gz"]


def test_read_volume_scales_to_0_1_and_orders_axes(tmp_path):
    array = np.arange(8 * 8 * 4, dtype=np.int16).reshape(SHAPE) - 50
    volume, _ = collection.read_volume(write_volume(tmp_path / "v.nii", array), SHAPE)
    assert volume.shape == (1, 4, 8, 8) and volume.dtype == np.float32
    np.testing.assert_allclose(volume[0, 3, 1, 2], (array[1, 2, 3] + 50) / 255, rtol=1e-6)


def truncated_gz(path):
    whole = write_volume(path, random_array(1)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def without_checksum(path):
    path.write_bytes(write_volume(path, random_array(1)).read_bytes()[:-3])


def corrupted(path):
    raw = bytearray(write_volume(path, random_array(1)).read_bytes())
    raw[600:620] = bytes(20)  # nibabel alone reads other voxels without a word
    path.write_bytes(raw)


def truncated_nii(path):
    whole = write_volume(path.with_suffix("").with_suffix(".nii"), random_array(1))
    whole.write_bytes(whole.read_bytes()[:-100])


def with_value(value):
    array = random_array(1)
    array[2, 3, 1] = value
    return array


def rgb(path):
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype), np.eye(4)), path)


def singular(path):
    raw = bytearray(gzip.decompress(write_volume(path, random_array(1)).read_bytes()))
    raw[296:312] = bytes(16)  # srow_y, the second row of the sform
    path.write_bytes(gzip.compress(raw))


BAD_FILES = {
    "truncated .nii.gz": (truncated_gz, "cannot be read"),
    "gzip cut at its end": (without_checksum, "cannot be read"),
    "gzip with wrong bytes": (corrupted, "cannot be read"),
    "truncated .nii": (truncated_nii, "cannot be read"),
    "text named .nii.gz": (lambda p: p.write_text("not an image", encoding="utf-8"), "cannot be read"),
    "empty file": (lambda p: p.write_bytes(b""), "cannot be read"),
    "text in gzip": (lambda p: p.write_bytes(gzip.compress(b"text" * 999)), "cannot be read"),
    "wrong shape": (
        lambda p: write_volume(p, random_array(1, (8, 8, 5))),
        "8 x 8 x 5 voxels, expected 8 x 8 x 4",
    ),
    "4D": (lambda p: write_volume(p, random_array(1, (8, 8, 4, 2))), "is 4D (8, 8, 4, 2), expected 3D"),
    "2D": (lambda p: write_volume(p, random_array(1, (8, 8))), "is 2D"),
    "NaN": (lambda p: write_volume(p, with_value(np.nan)), "NaN or Inf in 1 of 256 voxels"),
    "Inf": (lambda p: write_volume(p, with_value(-np.inf)), "NaN or Inf in 1 of 256 voxels"),
    "constant": (lambda p: write_volume(p, np.full(SHAPE, 7, np.float32)), "is constant (every voxel 7)"),
    "RGB": (rgb, "expected one number per voxel"),
    "complex": (
        lambda p: write_volume(p, random_array(1).astype(np.complex64)),
        "expected one number per voxel",
    ),
    "duplicate": (lambda p: write_volume(p, random_array(3)), "has the same voxels as"),
    "affine": (singular, "affine that is singular"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_audit_names_the_bad_file_and_the_remedy(data, kind):
    spoil, text = BAD_FILES[kind]
    spoil(data / "z_bad.nii.gz")
    with pytest.raises(ValueError, match="1 of the 7 volumes") as error:
        dataset.audit_volumes(data, SHAPE)
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and "z_bad.nii" in lines[1] and text in lines[1]


def test_audit_names_every_bad_file(data):
    for n in range(60):
        (data / f"w{n}.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="60 of the 66") as error:
        dataset.audit_volumes(data, SHAPE)
    assert len(str(error.value).splitlines()) == 1 + collection.MAX_FILES_NAMED + 1
    assert "... and 10 more" in str(error.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.write_text("", encoding="utf-8"), "is a file"),
        (lambda p: p.mkdir(), "holds no .nii or .nii.gz file"),
    ],
    ids=["missing", "file", "empty"],
)
def test_wrong_folder(tmp_path, make, text):
    make(tmp_path / "folder")
    with pytest.raises(ValueError, match=text):
        dataset.audit_volumes(tmp_path / "folder", SHAPE)


def test_a_cache_larger_than_memory_is_refused():
    with pytest.raises(UserError, match=r"need 1048576\.0 GiB, this machine.*--cache disk"):
        dataset.check_memory(1 << 50)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    dataset.check_memory(total // 4)
    with pytest.raises(UserError, match="in each of 8 processes"):
        dataset.check_memory(total // 4, copies=8)


def test_audit_finds_the_majority_affine_and_warns_of_mixtures(data):
    write_volume(data / "z.nii.gz", random_array(99), np.diag([-0.5, 0.5, 1, 1]))
    audit = dataset.audit_volumes(data, SHAPE)
    np.testing.assert_allclose(audit.affine, np.diag([0.6, 0.6, 0.8, 1]), atol=1e-4)
    text = "\n".join(audit.summary)
    assert "7 volumes of 8 x 8 x 4 voxels" in text and "RAS (6), LAS (1)" in text
    assert "warning: 2 different spacings" in text and "all are read along RAS" in text


def batches_of(start, count, key=(1, 0)):
    return list(itertools.islice(dataset.SeededBatches(7, 2, 0.5, key, start), count))


def test_order_depends_on_seed_and_number_alone():
    whole = batches_of(0, 20)
    assert batches_of(11, 9) == whole[11:]
    assert batches_of(0, 20, key=(2, 0)) != whole
    epochs = [[index for batch in whole[e : e + 3] for index, _ in batch] for e in (0, 3, 6)]
    assert all(len(set(epoch)) == 6 for epoch in epochs) and epochs[0] != epochs[1]
    flips = [flip for batch in batches_of(0, 500) for _, flip in batch]
    assert 0.45 < np.mean(flips) < 0.55


def integers(seed, low=-1000, high=2000, dtype=np.int16):
    return np.random.default_rng(seed).integers(low, high, SHAPE).astype(dtype)


@pytest.fixture
def packed(data, tmp_path):
    """Function that packs the data folder and returns the Audit."""
    return lambda: dataset.pack_volumes(data, SHAPE, tmp_path / "packed")


@pytest.mark.parametrize(
    "arrays",
    [[integers(n, 0, 200, np.uint8) for n in range(3)], [integers(0), random_array(1)]],
    ids=["8 bit", "mixed"],
)
def test_packed_volumes_are_those_in_memory(tmp_path, arrays):
    for n, array in enumerate(arrays):
        write_volume(tmp_path / "data" / f"v{n}.nii.gz", array)
    expected = dataset.audit_volumes(tmp_path / "data", SHAPE)
    found = dataset.pack_volumes(tmp_path / "data", SHAPE, tmp_path / "packed")
    assert found.volumes.voxels.dtype == np.float16 and len(found.volumes) == len(arrays)
    for n in range(len(arrays)):
        torch.testing.assert_close(found.volumes[n], expected.volumes[n], rtol=0, atol=2**-12)
    assert (found.digest, found.paths, found.summary) == (expected.digest, expected.paths, expected.summary)
    assert found.shape == expected.shape == SHAPE
    np.testing.assert_array_equal(found.affine, expected.affine)


def test_a_pack_is_shared_and_follows_the_contents(data, packed, tmp_path, monkeypatch):
    folder = packed().volumes.folder
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "read_volume", None)  # files that did not change are not decoded again
        assert packed().volumes.folder == folder
        assert pickle.loads(pickle.dumps(packed().volumes))[2].equal(packed().volumes[2])
        os.utime(data / "v1.nii.gz", (1, 1))
        assert packed().volumes.folder == folder
    stamp = (data / "v1.nii.gz").stat()
    write_volume(data / "v1.nii.gz", random_array(50))
    os.utime(data / "v1.nii.gz", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as after tar or rsync
    changed = packed()
    assert changed.volumes.folder != folder
    expected = dataset.audit_volumes(data, SHAPE).volumes[1]
    torch.testing.assert_close(changed.volumes[1], expected, rtol=0, atol=2**-12)
    assert len(list((tmp_path / "packed").iterdir())) == 2


def test_a_data_set_exported_again_with_other_grey_values_trains_at_full_intensity(tmp_path, packed, data):
    for n, path in enumerate(sorted(data.iterdir())):
        write_volume(path, integers(n))
    first = packed()
    for n, path in enumerate(sorted(data.iterdir())):
        write_volume(path, 2 * integers(n))
    for _ in range(2):
        again = packed()
        assert float(again.volumes[0].max()) == 1 and float(again.volumes[0].min()) == 0
        torch.testing.assert_close(again.volumes[0], first.volumes[0])


def test_a_broken_pack_stops_its_own_data_set_alone_and_is_named(tmp_path, data, packed):
    folder = packed().volumes.folder
    (folder / "index.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{folder.name} is not complete: remove this folder"):
        packed()
    (data / "v5.nii.gz").unlink()
    assert len(packed().volumes) == 5


def test_a_damaged_pack_is_refused(packed):
    folder = packed().volumes.folder
    whole = (folder / "volumes.npy").read_bytes()
    (folder / "volumes.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"is damaged in the volume of v5\.nii\.gz: remove this folder"):
        packed()
    (folder / "volumes.npy").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="is not complete: remove this folder"):
        packed()


def test_what_cannot_be_packed_leaves_nothing(data, packed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(UserError, match=r"The packed volumes need .* free: make room"):
            packed()
    (data / "z.nii.gz").write_bytes(b"no volume")
    with pytest.raises(UserError, match=r"1 of the 7 volumes(.|\n)*z\.nii\.gz"):
        packed()
    assert list((tmp_path / "packed").iterdir()) == []


@pytest.mark.parametrize(("keep", "workers"), [(True, 0), (True, 2), (False, 0), (False, 2)])
def test_every_way_of_loading_gives_the_same_volumes(data, keep, workers):
    def take(keep, workers):
        audit = dataset.audit_volumes(data, SHAPE, keep=keep)
        batches = dataset.SeededBatches(6, 2, 0.5, (3, 0), start=4)
        loader = dataset.make_loader(dataset.VolumeDataset(audit), batches, workers, torch.device("cpu"))
        return [next(loader) for _ in range(5)]

    for (volumes, indices), (expected, order) in zip(take(keep, workers), take(True, 0), strict=True):
        assert torch.equal(volumes, expected) and torch.equal(indices, order)


def stored_as(codes, shape):
    """(transform, affine): how a RAS array of a shape is turned to be stored with axes of these codes."""
    transform = orientations.ornt_transform(*(orientations.axcodes2ornt(c) for c in ("RAS", codes)))
    return transform, orientations.inv_ornt_aff(transform, shape)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "AIL", "PIR", "SRA", "ILA"])
def test_scans_of_all_axes_are_read_along_r_a_s_and_flipped_from_right_to_left(tmp_path, codes):
    """Whatever axis of the array runs between left and right, in the data set and before D."""
    shape = (8, 16, 4)
    transform, affine = stored_as(codes, shape)
    arrays = [random_array(n, shape) for n in range(3)]
    for n, array in enumerate(arrays):
        write_volume(tmp_path / f"v{n}.nii.gz", orientations.apply_orientation(array, transform), affine)
    audit = dataset.audit_volumes(tmp_path, shape)
    np.testing.assert_allclose(audit.affine, np.eye(4), atol=1e-6)
    volumes = dataset.VolumeDataset(audit)
    plain, flipped = (files.volume_to_array(volumes[2, flip][0].numpy()) for flip in (False, True))
    np.testing.assert_array_equal(plain, files.volume_to_array(collection.scaled(arrays[2])))
    np.testing.assert_array_equal(flipped, plain[::-1])
    kept = [volumes[n, False][0] for n in range(3)]
    read_again = dataset.VolumeDataset(dataset.audit_volumes(tmp_path, shape, keep=False))
    assert all(torch.equal(read_again[n, False][0], kept[n]) for n in range(3))
    assert audit.contents == [collection.content_of(collection.scaled(array)) for array in arrays]

    class Always:
        def random(self):
            return 0.0

    before_d = diff_augment.augment(kept[2][None], 1.0, (), Always(), left_right=audit.left_right)
    np.testing.assert_array_equal(files.volume_to_array(before_d[0].numpy()), plain[::-1])
    stored = dataset.audit_volumes(
        tmp_path, np.shape(orientations.apply_orientation(arrays[0], transform)), axes=codes
    )
    np.testing.assert_allclose(stored.affine, affine, atol=1e-4)
    assert stored.contents == audit.contents and (stored.digest == audit.digest) == (codes == "RAS")


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "AIL", "SRP", "PLI"])
def test_pictures_are_radiological_whatever_the_axes(codes):
    """A bright voxel at the right, front, top corner is at the upper left of every picture."""
    array = np.zeros((5, 6, 4), np.float32)
    array[-1, -1, 1:] = 1  # RAS: the last x is right, the last y is front
    transform, affine = stored_as(codes, array.shape)
    stored = orientations.apply_orientation(array, transform)
    assert "".join(nib.aff2axcodes(affine)) == codes
    volume = files.array_to_volume(stored)
    for picture in pictures.axial_pictures(volume[None], affine):
        assert picture.shape == (1, 6, 5)
        assert picture[0, 0, 0] == 255 and np.count_nonzero(picture) == 1
    planes = pictures.plane_views(volume, affine)
    assert planes[3].shape == (6, 5) and planes[3][0, 0] == 255
    assert (
        planes[4].shape == (4, 5) and planes[4][0, 0] == 255
    )  # coronal projection: right is left, top is up
    assert planes[5].shape == (4, 6) and planes[5][0, 0] == 255  # sagittal: front is left


def test_volumes_on_the_device_come_as_from_the_loader(data):
    """`--cache gpu`, but for the GPU."""
    audit = dataset.audit_volumes(data, SHAPE, keep=True)
    cpu, batches = torch.device("cpu"), dataset.SeededBatches(6, 2, 0.5, (3, 0))
    loader = dataset.make_loader(dataset.VolumeDataset(audit), batches, 0, cpu)
    on_device = dataset.batches_of(audit.volumes, batches, audit.left_right)
    for (volumes, indices), (expected, order) in itertools.islice(zip(on_device, loader, strict=False), 5):
        assert torch.equal(volumes, expected) and torch.equal(indices, order)
    audit.move("ram", None)
    audit.move("gpu", cpu)
    assert torch.equal(audit.volumes, dataset.audit_volumes(data, SHAPE, keep=True).volumes)
