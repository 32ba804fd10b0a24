"""Arteries and variants, counted in label maps."""

import nibabel as nib
import numpy as np
import pytest

from tests.benchmarks import variants


def write_maps(folder, maps):
    """Label maps of {name: {id: voxels}}."""
    folder.mkdir()
    for name, numbers in maps.items():
        ids = np.repeat(list(numbers), list(numbers.values())).astype(np.uint8)
        nib.save(
            nib.Nifti1Image(np.pad(ids, (0, 400 - len(ids))).reshape(20, 20, 1), np.eye(4)), folder / name
        )
    return str(folder)


def test_what_is_there_is_counted(tmp_path):
    whole = {number: 20 for number in variants.ARTERIES}
    without = {number: 20 for number in variants.ARTERIES if number != 8}
    rest = whole | {8: 5, 15: 30}  # less than half of what phantoms have, and a third A2
    truth = write_maps(tmp_path / "truth", {f"{n}.nii.gz": whole if n < 6 else without for n in range(8)})
    phantoms = write_maps(tmp_path / "phantoms", {f"{n}.nii.gz": whole if n < 5 else rest for n in range(8)})
    made = write_maps(
        tmp_path / "made", {"a.nii.gz": whole, "b.nii.gz": rest, "c.nii.gz": without, "d.nii.gz": whole}
    )
    flags = ["--truth", truth, "--phantoms", phantoms, "--generated", made, "--output", str(tmp_path / "out")]
    variants.main(flags)
    table = variants.json.loads((tmp_path / "out" / "counts.json").read_text(encoding="utf-8"))
    shares = {
        name: [row[kind]["share"] for kind in ("truth", "phantoms", "generated")]
        for name, row in table.items()
    }
    assert shares["R-Pcom"] == [0.75, 0.625, 0.5]
    assert shares["both Pcom"] == shares["every artery"] == shares["R-Pcom"]
    assert shares["left Pcom alone"] == [0.25, 0.375, 0.5]
    assert shares["BA"] == [1, 1, 1] and shares["no Pcom"] == [0, 0, 0]
    assert table["R-Pcom"]["balanced_accuracy"] == pytest.approx((5 / 6 + 1) / 2)


def test_maps_of_other_volumes_are_refused(tmp_path):
    truth = write_maps(tmp_path / "truth", {"a.nii.gz": {1: 2}})
    others = write_maps(tmp_path / "others", {"b.nii.gz": {1: 2}})
    with pytest.raises(SystemExit, match=r"a\.nii\.gz is in one of --truth and --phantoms alone"):
        variants.main(["--truth", truth, "--phantoms", others, "--generated", others])
