"""Label maps and volumes from the raw scan onto its volume, and back."""

import json
from dataclasses import replace

from volumetric.collection import pair_up

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from preprocessing import books, preprocessing
from preprocessing.carry import TO_NATIVE, TO_REGION, carry
from preprocessing.images import Grid, to_ants, write_image
from preprocessing.preprocessing import PreprocessConfig
from preprocessing.registration import resample
from tests.conftest import random_array
from tests.test_pipeline import carried, contents, phantom, places

SIZE = (24, 24, 12)
RAW = (44, 40, 34)


@pytest.fixture
def finished(tmp_path):
    """Output folder with one finished scan, sub-01, and the raw scan beside it: raw.nii.gz."""
    out, pose = tmp_path / "out", phantom.Pose.draw(np.random.default_rng(0), 15, 3).matrix()
    raw, volume = pose @ np.diag([-0.5, 0.5, 0.6, 1]), np.diag([0.6, 0.6, 0.8, 1])
    for affine, shape in ((raw, RAW), (volume, SIZE)):  # both about the same point
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    matrix = phantom.Pose.draw(np.random.default_rng(1), 10, 2).matrix()
    scan = ndimage.gaussian_filter(random_array(0, RAW), 2)
    made = resample(to_ants(scan, raw), Grid(SIZE, volume).image(), matrix).numpy()
    (out / "sidecars").mkdir(parents=True)
    (out / "volumes").mkdir()
    write_image(scan, raw, tmp_path / "raw.nii.gz")
    write_image(made, volume, out / "volumes" / "sub-01.nii.gz")
    record = {"subject": "sub-01", "inputs": {"scan": "", "mask": None, "initial": None}}
    record |= {"source": {"shape": RAW, "affine": raw.tolist()}}
    record |= {"volume": {"shape": SIZE, "affine": volume.tolist()}}
    record |= {"transform": {"template_to_scan_ras_mm": matrix.tolist()}}
    (out / "sidecars" / "sub-01.json").write_text(json.dumps(record), encoding="utf-8")
    return out


def asked(out, **flags):
    """PreprocessConfig of what is carried."""
    return PreprocessConfig(output=str(out), **{name: str(value) for name, value in flags.items()})


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_labels_go_back_as_labels_and_strangers_are_refused(tmp_path, finished, kind):
    volume = nib.load(finished / "volumes" / "sub-01.nii.gz")
    labels = (np.asarray(volume.dataobj) > np.percentile(volume.dataobj, 90)).astype(kind) * 7
    path = tmp_path / f"seg_{np.dtype(kind)}.nii.gz"
    write_image(labels, volume.affine, path)
    with pytest.raises(ValueError, match="no finished scan 'seg_"):
        carry(asked(finished, to_native=path), TO_NATIVE)
    config = asked(finished, to_native=path, subject="sub-01")
    back = nib.load(carried(config, TO_NATIVE))
    assert back.get_data_dtype() == np.uint8 and set(np.unique(back.dataobj)) == {0, 7}
    ratio = 0.5 * 0.5 * 0.6 * np.count_nonzero(back.dataobj) / (0.6 * 0.6 * 0.8 * np.count_nonzero(labels))
    assert 0.9 < ratio < 1.1
    (finished / "native" / f"sub-01_{path.name}").unlink()
    write_image(labels, np.eye(4), path)
    with pytest.raises(
        ValueError,
        match=r"seg_.* another grid than the volume .* of 1 x 1 x 1 mm, expected .* 0\.6 x 0\.6 x 0\.8 mm",
    ):
        carry(config, TO_NATIVE)
    write_image(np.stack([labels, labels], axis=-1), volume.affine, path)
    with pytest.raises(ValueError, match=r"seg_\w+.nii.gz is 4D"):
        carry(config, TO_NATIVE)


def test_ids_that_a_slope_bends_go_back_as_they_are(tmp_path, finished):
    volume = nib.load(finished / "volumes" / "sub-01.nii.gz")
    ids = np.zeros(SIZE, np.uint8)
    ids[4:11, 8:18, 2:10], ids[13:20, 8:18, 2:10] = 1, 15
    whole, bent = tmp_path / "whole.nii.gz", tmp_path / "bent.nii.gz"
    write_image(ids, volume.affine, whole, "labels: topcow2024")
    header = nib.Nifti1Image(np.zeros(SIZE, np.int16), volume.affine).header
    nib.save(nib.Nifti1Image(ids.astype(np.float32), volume.affine, header), bent)
    stored = np.unique(nib.load(bent).dataobj)
    assert len(stored) == 3 and (stored != np.rint(stored)).any()
    back = [
        nib.load(carried(asked(finished, to_native=path, subject="sub-01"), TO_NATIVE))
        for path in (whole, bent)
    ]
    np.testing.assert_array_equal(back[0].dataobj, back[1].dataobj)
    assert set(np.unique(back[0].dataobj)) == {0, 1, 15}
    assert back[0].header["descrip"].item() == b"labels: topcow2024"
    assert back[1].header["descrip"].item() == b"from the region to the scanner"


def label_map_of(path):
    """A label map on the voxels of a raw scan: (array (X, Y, Z), affine)."""
    scan = nib.load(path)
    x, y, z = np.indices(scan.shape) // 7
    return (1 + (x + 3 * y + 5 * z) % 15).astype(np.uint8), scan.affine


def test_a_label_map_of_the_scan_comes_onto_the_volume(tmp_path, finished):
    labels, affine = label_map_of(tmp_path / "raw.nii.gz")
    write_image(labels, affine, tmp_path / "map.nii.gz", "labels: topcow2024")
    config = asked(finished, to_region=tmp_path / "map.nii.gz", subject="sub-01")
    path = carried(config, TO_REGION)
    found, volume = nib.load(path), nib.load(finished / "volumes" / "sub-01.nii.gz")
    assert path == finished / "region" / "sub-01_map.nii.gz" and found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(found.affine, volume.affine)
    assert found.header["descrip"].item() == b"labels: topcow2024"
    # Every voxel has the label of the scan's voxel that is nearest to its place.
    record = json.loads((finished / "sidecars" / "sub-01.json").read_text(encoding="utf-8"))
    to_scan = np.array(record["transform"]["template_to_scan_ras_mm"])
    nearest = np.rint(places(SIZE, np.linalg.inv(affine) @ to_scan @ volume.affine)).astype(int)
    expected = labels[tuple(np.moveaxis(nearest, -1, 0))]
    assert (np.asarray(found.dataobj) == expected).mean() > 0.999  # halves are rounded either way
    with pytest.raises(ValueError, match=r"sub-01_map.nii.gz is there already: move it away"):
        carry(config, TO_REGION)
    # The same map along other axes, and a scan of whole numbers, whose values are no labels.
    turned = nib.Nifti1Image(labels, affine).as_reoriented([[2, 1], [0, -1], [1, 1]])
    nib.save(turned, tmp_path / "turned.nii.gz")
    other = replace(config, to_region=str(tmp_path / "turned.nii.gz"))
    np.testing.assert_array_equal(nib.load(carried(other, TO_REGION)).dataobj, found.dataobj)
    scan = np.asarray(nib.load(tmp_path / "raw.nii.gz").dataobj)
    write_image((scan * 10000).astype(np.int16), affine, tmp_path / "scan.nii.gz")
    other = replace(config, to_region=str(tmp_path / "scan.nii.gz"))
    grey = np.asarray(nib.load(carried(other, TO_REGION)).dataobj)
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey / 10000, volume.dataobj, atol=2e-4)
    # One that is not the scan's.
    beside = affine.copy()
    beside[0, 3] += 0.5
    write_image(labels, beside, tmp_path / "beside.nii.gz")
    with pytest.raises(ValueError, match=r"beside.nii.gz lies 0.5 mm beside the raw scan"):
        carry(replace(config, to_region=str(tmp_path / "beside.nii.gz")), TO_REGION)
    write_image(labels[:-1], affine, tmp_path / "cut.nii.gz")
    with pytest.raises(ValueError, match=r"cut.nii.gz is of another grid than the raw scan"):
        carry(replace(config, to_region=str(tmp_path / "cut.nii.gz")), TO_REGION)


def test_a_folder_of_label_maps_is_named_as_the_volumes(tmp_path, finished, capsys):
    labels, affine = label_map_of(tmp_path / "raw.nii.gz")
    maps = tmp_path / "maps"
    maps.mkdir()
    for name in ("sub-01", "stranger"):
        write_image(labels, affine, maps / f"{name}.nii.gz", "labels: paper")
    (finished / "volumes" / "sub-09.nii.gz").write_bytes(b"")
    preprocessing.main(["--output", str(finished), "--to_region", str(maps)])
    said = capsys.readouterr()
    assert f"1 label maps are in {finished / 'labels'}" in said.out
    assert f"1 without a volume, left out: {maps / 'stranger.nii.gz'}" in said.err
    assert "1 volumes without a label map: sub-09" in said.err
    (finished / "volumes" / "sub-09.nii.gz").unlink()
    pairs = pair_up({"data": finished / "volumes", "labels": finished / "labels"})
    assert list(pairs) == ["sub-01"]
    assert nib.load(finished / "labels" / "sub-01.nii.gz").header["descrip"].item() == b"labels: paper"
    # The same once more changes nothing; another map does not take its place.
    before = contents(finished / "labels")
    config = asked(finished, to_region=maps)
    carry(config, TO_REGION)
    write_image(labels[::-1], affine, maps / "sub-01.nii.gz")
    with pytest.raises(ValueError, match=r"labels/sub-01.nii.gz is there already, and .* gives another"):
        carry(config, TO_REGION)
    assert contents(finished / "labels") == before
    write_image(labels + random_array(0, labels.shape), affine, maps / "sub-01.nii.gz")
    with pytest.raises(ValueError, match="has grey values or interpolated ones, expected labels"):
        carry(config, TO_REGION)
    (maps / "sub-01.nii.gz").unlink()
    (maps / "stranger.nii.gz").rename(maps / "sub-01_ses-2_dseg.nii.gz")
    with pytest.raises(ValueError, match="has no file of a volume in"):  # another session
        carry(config, TO_REGION)
    (maps / "anat").mkdir()
    (maps / "sub-01_ses-2_dseg.nii.gz").rename(maps / "anat" / "sub-01_dseg.nii.gz")
    carry(config, TO_REGION)
    # What is flagged or withdrawn takes its label map along, and brings it back.
    books.place(finished, "sub-01", "flagged")
    assert not contents(finished / "labels")
    inputs = books.record_of(finished, "sub-01")["inputs"]
    books.withdraw(finished, "sub-01")
    assert (finished / "withdrawn" / "sub-01_labels.nii.gz").exists()
    assert books.restore(finished, "sub-01", inputs)
    books.place(finished, "sub-01", "volumes")
    assert contents(finished / "labels") == before and not contents(finished / "flagged")
