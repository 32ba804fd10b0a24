"""Preprocessing as a whole: masks, one scan, all scans, the template, and back to the scanner."""

import csv
import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from volumetric.files import file_digest, part_of

import nibabel as nib
import numpy as np
import pytest

from preprocessing import books, masks, preprocessing
from preprocessing.carry import TO_NATIVE, TO_REGION, carry
from preprocessing.images import Grid, grid_of, read_image, to_ants, write_image
from preprocessing.preprocessing import Job, PreprocessConfig, process
from preprocessing.registration import covered_by, read_transform, write_transform
from preprocessing.scans import audit_scan
from tests.conftest import ROOT, run_script, tiny_flags

sys.path.insert(0, str(ROOT / "sample_data"))
import phantom

BOUNDS = ((37, 69), (39, 71), (19, 27))  # about the circle, in voxels of the template
SIZE = (32, 32, 8)
STILL = phantom.Pose(np.eye(3), np.zeros(3))
SCRIPT = "preprocessing/preprocessing.py"


def posed(seed):
    """A random pose of up to 15 degrees and 15 mm."""
    return phantom.Pose.draw(np.random.default_rng(seed), 15, 15)


def write_head(folder, name, number, pose, spacing=2.0):
    """Write a phantom head and its brain mask; returns its landmarks, RAS mm."""
    head = phantom.make_head(0, number, pose, spacing)
    volume, brain, affine, landmarks = head.volume, head.brain, head.affine, head.landmarks
    for kind, array in (("raw", volume), ("brains", brain)):
        (folder / kind).mkdir(exist_ok=True, parents=True)
        write_image(array, affine, folder / kind / f"{name}.nii.gz")
    return landmarks


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Folder with a template, two poses of the same head, and their brain masks; and all landmarks."""
    folder = tmp_path_factory.mktemp("heads")
    landmarks = {"template": write_head(folder / "template", "template", 0, STILL)}
    for number in (1, 2):
        landmarks[f"sub-0{number}"] = write_head(folder, f"sub-0{number}", 0, posed(number))
    return folder, landmarks


def settings(heads, output, **others):
    """PreprocessConfig of the test's heads."""
    folder, _ = heads
    given = {
        "data": str(folder / "raw"),
        "output": str(output),
        "template": str(folder / "template" / "raw" / "template.nii.gz"),
        "target_size": SIZE,
        "cropping_bound_slices": BOUNDS,
        "perform_skull_stripping": False,
        "n_workers": 2,
    }
    return PreprocessConfig(**given | others)


def job_of(config, path, name="sub-01", source=None):
    """Job for one scan."""
    for folder in books.FOLDERS:
        (config.folder / folder).mkdir(parents=True, exist_ok=True)
    region, _, _ = preprocessing.choose_region(config, config.template)
    return Job(
        config=config,
        source=source,
        template=config.template,
        stripped=masks.is_stripped(config),
        region=as_tuples(region),
        mirror=tuple(map(tuple, np.diag([-1.0, 1, 1, 1]))),
        name=name,
        path=str(path),
        inputs={"scan": audit_scan(name, path).digest, "mask": None, "initial": None},
        initial=None,
        settings=config.settings(source),
    )


def carried(config, way):
    """Path of the file that was carried."""
    return Path(carry(config, way).removeprefix("Written: "))


def as_tuples(grid):
    """Shape and affine of a Grid, as a job carries them."""
    return grid.shape, tuple(map(tuple, grid.affine))


def flags_of(config):
    """The configuration as command-line flags."""
    names = ("data", "output", "template", "target_size", "cropping_bound_slices", "perform_skull_stripping")
    return [part for name in (*names, "n_workers") for part in (f"--{name}", getattr(config, name))]


def contents(folder):
    """{relative path: bytes} of every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Masks                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def dice(a, b):
    """Overlap of two masks, 0 to 1."""
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_a_template_carries_its_brain_mask_to_another_head(tmp_path, heads):
    write_head(tmp_path, "other", 3, posed(7))
    path = tmp_path / "raw" / "other.nii.gz"
    folder = heads[0] / "template"
    source = masks.choose_source(None, [(folder / "raw/template.nii.gz", folder / "brains/template.nii.gz")])
    assert source.way == "template"
    scan = read_image(path)
    found = masks.brain_mask(source, "other", path, scan)
    truth = read_image(tmp_path / "brains" / "other.nii.gz").numpy() > 0.5
    template = read_image(folder / "raw" / "template.nii.gz")
    both = covered_by(
        grid_of(template), grid_of(scan), np.linalg.inv(posed(7).matrix())
    )  # the template's slab ends earlier
    assert dice(found.numpy()[both] > 0.5, truth[both]) > 0.95


def test_a_scan_unlike_the_head_gets_no_mask(heads):
    folder = heads[0] / "template"
    head, mask = read_image(folder / "raw/template.nii.gz"), read_image(folder / "brains/template.nii.gz")
    noise = np.random.default_rng(0).random(head.shape, dtype=np.float32)
    with pytest.raises(ValueError, match="is not like the head that masks are taken from"):
        masks.carried(head.new_image_like(noise), head, mask)


def test_given_masks_are_checked(tmp_path, heads):
    folder, _ = heads
    path = folder / "raw" / "sub-01.nii.gz"
    scan = read_image(path)
    source = masks.choose_source(str(folder / "brains"), [])
    assert masks.brain_mask(source, "sub-01", path, scan).numpy().sum() > 1000
    with pytest.raises(ValueError, match=r"has no mask sub-09\.nii\.gz in --masks"):
        masks.brain_mask(source, "sub-09", path, scan)
    with pytest.raises(ValueError, match=r"lies 8\.59 mm beside its image"):
        masks.brain_mask(source, "sub-02", path, scan)
    write_image(np.zeros(scan.shape, np.uint8), nib.load(path).affine, tmp_path / "sub-01.nii.gz")
    with pytest.raises(ValueError, match="of 0 ml, expected 50 to 2500"):
        masks.brain_mask(masks.choose_source(str(tmp_path), []), "sub-01", path, scan)


def stand_in(folder, name, lines, monkeypatch):
    """An executable of Python lines, found on PATH by a tool's name."""
    folder.mkdir()
    tool = folder / name
    tool.write_text(f"#!{sys.executable}\n{lines}", encoding="utf-8")
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.fixture
def synthstrip(tmp_path, monkeypatch):
    """A stand-in for mri_synthstrip on PATH, which copies a mask that the test names."""
    lines = (
        "import os, shutil, sys\n"
        "if os.environ['FAILS'] == '1': sys.exit('ERROR: no such license')\n"
        "assert sys.argv[1] == '-i' and sys.argv[3] == '-m'\n"
        "shutil.copy(os.environ['MASK'], sys.argv[4])\n"
    )
    stand_in(tmp_path / "bin", "mri_synthstrip", lines, monkeypatch)
    monkeypatch.setenv("FAILS", "0")


def test_synthstrip_is_used_where_it_is_installed(synthstrip, heads, monkeypatch):
    folder, _ = heads
    path = folder / "raw" / "sub-01.nii.gz"
    monkeypatch.setenv("MASK", str(folder / "brains" / "sub-01.nii.gz"))
    source = masks.choose_source(None, [])
    assert source.way == "synthstrip"
    found = masks.brain_mask(source, "sub-01", path, read_image(path))
    np.testing.assert_array_equal(found.numpy(), read_image(folder / "brains" / "sub-01.nii.gz").numpy())
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(ValueError, match=r"mri_synthstrip fail \(exit code 1\): ERROR: no such license"):
        masks.brain_mask(source, "sub-01", path, read_image(path))


def test_hd_bet_gives_a_mask_too(tmp_path, heads, monkeypatch):
    folder, _ = heads
    lines = (
        "import sys, nibabel as nib\n"
        "assert sys.argv[1::2] == ['-i', '-o', '-device']\n"
        "scan, mask = nib.load(sys.argv[2]), nib.load(sys.argv[2].replace('/raw/', '/brains/'))\n"
        "nib.save(nib.Nifti1Image((scan.get_fdata() + 1) * mask.get_fdata(), scan.affine), sys.argv[4])\n"
    )
    stand_in(tmp_path / "bin", "hd-bet", lines, monkeypatch)
    source, path = masks.choose_source(None, []), folder / "raw" / "sub-01.nii.gz"
    found = masks.brain_mask(source, "sub-01", path, read_image(path)).numpy() > 0.5
    assert source.way == "hd-bet"
    assert dice(found, read_image(folder / "brains" / "sub-01.nii.gz").numpy() > 0.5) > 0.99


def test_masks_are_found_by_bids_names(tmp_path):
    for name in ("sub-01/anat/sub-01_desc-brain_mask.nii.gz", "sub-02_ses-1_mask.nii.gz", "sub-03_mask.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    source = masks.MaskSource("given", folder=str(tmp_path))
    assert source.path_of("sub-01_anat_sub-01_angio").name == "sub-01_desc-brain_mask.nii.gz"
    assert source.path_of("sub-02_ses-1_angio").name == "sub-02_ses-1_mask.nii.gz"
    for name in ("sub-02_ses-2_angio", "sub-04_angio", "head"):
        with pytest.raises(ValueError, match="has no mask"):
            source.path_of(name)


def test_without_a_source_of_masks_nothing_starts(tmp_path, heads, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs brain masks, and there is no source"):
        preprocessing.preprocess(
            settings(heads, tmp_path / "out", perform_skull_stripping=True, stripped=True)
        )
    assert not (tmp_path / "out").exists()


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ One scan                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def places(shape, affine):
    """World coordinates of every voxel, mm. Shapes: (X, Y, Z) -> (X, Y, Z, 3)"""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return voxels @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("kind", ["straight", "oblique, flipped"])
def test_a_landmark_keeps_its_millimetres_to_the_region_and_back(tmp_path, heads, kind):
    _, landmarks = heads
    pose = posed(3)
    head = phantom.make_head(0, 0, pose, 2.0)
    volume, affine, there = head.volume, head.affine, head.landmarks
    point = there["ba_tip"]
    if kind != "straight":  # the same head on turned voxels, and turned with them in the scanner
        turn = phantom.Pose.draw(np.random.default_rng(4), 20, 5).matrix()
        affine = turn @ affine @ np.diag([-1, 1, 1, 1])
        affine[:3, 3] += affine[:3, 0] * -(volume.shape[0] - 1)
        volume, point = volume[::-1], (turn @ [*point, 1])[:3]
    write_image(volume, affine, tmp_path / "raw.nii.gz")
    row = process(job_of(settings(heads, tmp_path / "out"), tmp_path / "raw.nii.gz"))
    assert row["step"] == "done", row["reason"]
    record = json.loads((tmp_path / "out" / "sidecars" / "sub-01.json").read_text(encoding="utf-8"))
    matrix = np.array(record["transform"]["template_to_scan_ras_mm"])
    crossed = np.linalg.inv(matrix) @ [*point, 1]
    assert np.linalg.norm(crossed[:3] - landmarks["template"]["ba_tip"]) < 1  # the template's own landmark
    # Images of the coordinates themselves, which linear interpolation keeps, tell where a voxel came from.
    config = settings(heads, tmp_path / "out")
    target = preprocessing.open_template(
        config.template, as_tuples(grid_of(read_image(config.template, False)).crop(BOUNDS)), SIZE
    )
    for axis in range(3):
        scan = to_ants(places(volume.shape, affine)[..., axis], affine)
        region, covered = preprocessing.crop(scan, target, matrix, config)
        grid = target.region
        assert covered == 1
        expected = places(SIZE, matrix @ grid.affine)[..., axis]  # of the scanner, at the region's voxels
        np.testing.assert_allclose(region, expected, atol=0.01)
        path = tmp_path / f"axis{axis}.nii.gz"
        write_image(places(SIZE, grid.affine)[..., axis].astype(np.float32), grid.affine, path)
        asked = settings(heads, tmp_path / "out", to_native=str(path), subject="sub-01")
        back = nib.load(carried(asked, TO_NATIVE))
        assert back.shape == volume.shape
        np.testing.assert_allclose(back.affine, affine, atol=1e-4)
        expected = places(back.shape, np.linalg.inv(matrix) @ affine)  # at the scan's voxels
        voxels = expected @ np.linalg.inv(grid.affine)[:3, :3].T + np.linalg.inv(grid.affine)[:3, 3]
        inside = ((voxels > 0) & (voxels < np.array(SIZE) - 1)).all(axis=-1)
        assert inside.sum() > 5000
        np.testing.assert_allclose(np.asarray(back.dataobj)[inside], expected[inside][:, axis], atol=0.01)
    with pytest.raises(ValueError, match="is there already"):
        carry(asked, TO_NATIVE)
    # The scan itself, carried onto its volume, is the volume.
    asked = replace(asked, to_native=None, to_region=str(tmp_path / "raw.nii.gz"))
    found = np.asarray(nib.load(carried(asked, TO_REGION)).dataobj)
    np.testing.assert_array_equal(found, nib.load(tmp_path / "out/flagged/sub-01.nii.gz").dataobj)


@pytest.mark.parametrize(
    "others", [{}, {"interpolation": "bspline", "clip_percentiles": (5, 95), "harmonise": True}]
)
def test_a_scan_becomes_its_region(tmp_path, heads, others):
    folder, landmarks = heads
    row = process(job_of(settings(heads, tmp_path, **others), folder / "raw" / "sub-02.nii.gz", "sub-02"))
    assert row["step"] == "done", row["reason"]
    volume = nib.load(tmp_path / "flagged" / "sub-02.nii.gz")
    template = nib.load(settings(heads, tmp_path).template)
    assert volume.shape == SIZE and volume.get_data_dtype() == np.float32
    np.testing.assert_allclose(
        volume.affine, Grid(template.shape, template.affine).crop(BOUNDS).affine, atol=1e-5
    )
    there = np.asarray(template.dataobj)[tuple(slice(*b) for b in BOUNDS)]
    assert np.corrcoef(there.ravel(), np.asarray(volume.dataobj).ravel())[0, 1] > 0.6
    record = json.loads((tmp_path / "sidecars" / "sub-02.json").read_text(encoding="utf-8"))
    matrix = np.array(record["transform"]["template_to_scan_ras_mm"])
    errors = [
        np.linalg.norm((matrix @ [*landmarks["template"][k], 1])[:3] - p)
        for k, p in landmarks["sub-02"].items()
    ]
    assert max(errors) < 0.5, errors
    np.testing.assert_allclose(read_transform(tmp_path / "transforms" / "sub-02.mat"), matrix, atol=1e-5)
    assert record["volume"]["sha256"] == file_digest(tmp_path / "flagged" / "sub-02.nii.gz")
    assert (tmp_path / "qc" / "sub-02.png").stat().st_size > 10000


def test_a_stripped_template_is_met_by_a_stripped_scan(tmp_path, heads):
    folder, landmarks = heads
    brain = folder / "template" / "brains" / "template.nii.gz"
    whole = nib.load(folder / "template" / "raw" / "template.nii.gz")
    stripped = np.asarray(whole.dataobj) * np.asarray(nib.load(brain).dataobj)
    write_image(stripped.astype(np.float32), whole.affine, tmp_path / "stripped.nii.gz")
    config = settings(
        heads,
        tmp_path,
        template=str(tmp_path / "stripped.nii.gz"),
        template_mask=str(brain),
        perform_skull_stripping=True,
        masks=str(folder / "brains"),
        stripped=True,
        roi_stage=False,
        target_size=(80, 80, 24),
        cropping_bound_slices=((10, 90), (10, 90), (10, 34)),
    )
    source = masks.choose_source(config.masks, [])
    row = process(job_of(config, folder / "raw" / "sub-01.nii.gz", source=source))
    assert row["step"] == "done", row["reason"]
    assert masks.is_stripped(config)
    record = json.loads((tmp_path / "sidecars" / "sub-01.json").read_text(encoding="utf-8"))
    matrix = np.array(record["transform"]["template_to_scan_ras_mm"])
    here, there = landmarks["template"], landmarks["sub-01"]
    assert max(np.linalg.norm((matrix @ [*here[k], 1])[:3] - there[k]) for k in there) < 1
    mask = nib.load(tmp_path / "masks" / "sub-01.nii.gz")
    np.testing.assert_array_equal(mask.dataobj, nib.load(folder / "brains" / "sub-01.nii.gz").dataobj)
    assert (np.asarray(nib.load(tmp_path / "flagged" / "sub-01.nii.gz").dataobj) == 0).mean() > 0.01


def test_what_must_not_become_a_volume_gets_a_reason(tmp_path, heads):
    folder, _ = heads
    raw = nib.load(folder / "raw" / "sub-01.nii.gz")
    array = np.asarray(raw.dataobj)
    cut = raw.affine.copy()
    cut[:3, 3] += cut[:3, 2] * 28
    write_image(array[:, :, 28:], cut, tmp_path / "cut.nii.gz")  # a slab that begins above the circle
    noise = 1 + np.random.default_rng(0).random(array.shape, dtype=np.float32)
    write_image(noise, raw.affine, tmp_path / "noise.nii.gz")
    config, rows = settings(heads, tmp_path / "out"), {}
    for name in ("cut", "noise"):
        rows[name] = process(job_of(config, tmp_path / f"{name}.nii.gz", name))
        assert rows[name]["step"] == "done", rows[name]["reason"]
        assert (tmp_path / "out" / "qc" / f"{name}.png").exists()
    preprocessing.judge(config, rows)
    assert {row["step"] for row in rows.values()} == {"flagged"}
    assert not list((tmp_path / "out" / "volumes").iterdir())
    assert "of the region, expected at least 90%" in rows["cut"]["reason"]
    assert "stand out" in rows["noise"]["reason"]
    (tmp_path / "out" / "accept.txt").write_text("noise  # looked at\n", encoding="utf-8-sig")
    preprocessing.judge(config, {name: row | {"step": "done"} for name, row in rows.items()})
    assert [p.name for p in (tmp_path / "out" / "volumes").iterdir()] == ["noise.nii.gz"]
    (tmp_path / "out" / "accept.txt").write_text("nose", encoding="utf-8")
    with pytest.raises(ValueError, match=r"accept.txt names 'nose', and no scan is called so"):
        preprocessing.judge(config, rows)
    (tmp_path / "cut.nii.gz").write_bytes(b"broken")
    job = job_of(settings(heads, tmp_path / "out"), folder / "raw" / "sub-01.nii.gz", "broken")
    row = process(preprocessing.replace(job, path=str(tmp_path / "cut.nii.gz")))
    assert row["step"] == "read" and row["reason"]


def test_a_start_by_hand_rescues_a_scan(tmp_path, heads):
    folder, landmarks = heads
    path = folder / "raw" / "sub-01.nii.gz"
    (tmp_path / "hand").mkdir()
    write_transform(posed(1).matrix(), tmp_path / "hand" / "sub-01.mat")
    config = settings(heads, tmp_path / "out", initial=str(tmp_path / "hand"))
    inputs, start = preprocessing.inputs_of(audit_scan("sub-01", path), config, None)
    assert inputs["initial"] == file_digest(start)
    row = process(preprocessing.replace(job_of(config, path), initial=str(start)))
    assert row["step"] == "done", row["reason"]
    record = json.loads((tmp_path / "out" / "sidecars" / "sub-01.json").read_text(encoding="utf-8"))
    assert record["transform"]["start"] == "by hand"
    matrix = np.array(record["transform"]["template_to_scan_ras_mm"])
    there = landmarks["sub-01"]["ba_tip"]
    assert np.linalg.norm((matrix @ [*landmarks["template"]["ba_tip"], 1])[:3] - there) < 0.5
    (tmp_path / "hand" / "sub-01.mat").write_text("no transform", encoding="utf-8")
    row = process(preprocessing.replace(job_of(config, path), initial=str(start)))
    assert row["step"] == "register" and "write a linear ITK transform" in row["reason"]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ All scans                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_heads_to_generated_volume_by_the_command_line(tmp_path, heads):
    raw = tmp_path / "raw"
    for number in (1, 2):
        write_head(tmp_path, f"sub-0{number}", number, posed(number + 10))
    (raw / "copy.nii.gz").write_bytes((raw / "sub-01.nii.gz").read_bytes())
    (raw / "empty.nii.gz").write_bytes(b"")
    before = contents(raw)
    config = settings(heads, tmp_path / "out", data=str(raw))
    run = run_script(SCRIPT, *flags_of(config))
    assert run.returncode == 1, run.stderr
    assert "audit: empty cannot be read" in run.stderr
    assert "audit: sub-01 has the same voxels as copy" in run.stderr
    assert "2 of 4 scans are in" in run.stdout and "voxels: 100 x 100 x" in run.stdout
    assert contents(raw) == before
    out = tmp_path / "out"
    assert sorted(p.name for p in (out / "volumes").iterdir()) == ["copy.nii.gz", "sub-02.nii.gz"]
    with open(out / "status.csv", newline="", encoding="utf-8") as file:
        rows = {row["subject"]: row for row in csv.DictReader(file)}
    assert {name: row["step"] for name, row in rows.items()} == {
        **dict.fromkeys(("copy", "sub-02"), "done"),
        **dict.fromkeys(("empty", "sub-01"), "audit"),
    }
    # Another run elsewhere gives the same bytes, but for times and memory.
    for name in ("copy", "empty"):
        (raw / f"{name}.nii.gz").unlink()
    again = settings(heads, tmp_path / "again", data=str(raw))
    run = run_script(SCRIPT, *flags_of(again))
    assert run.returncode == 0, run.stderr
    first, second = contents(out), contents(tmp_path / "again")
    for kind in ("volumes", "transforms", "qc", "sidecars"):
        (same,) = [p for p in second if p.startswith(f"{kind}/sub-02.")]
        assert first[same] == second[same], same
    # A third call does nothing; a truncated volume is made again; other settings are refused.
    (tmp_path / "again" / "volumes" / "sub-02.nii.gz").write_bytes(b"half")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "again" / "volumes").iterdir()}
    run = run_script(SCRIPT, *flags_of(again))
    assert run.returncode == 0 and contents(tmp_path / "again" / "volumes") == {
        name.split("/")[1]: content for name, content in second.items() if name.startswith("volumes/")
    }
    assert [p.name for p, at in times.items() if p.stat().st_mtime_ns != at] == ["sub-02.nii.gz"]
    run = run_script(SCRIPT, *flags_of(again), "--dof", 12)
    assert run.returncode == 1 and "was made with other settings (dof 6 then, 12 now)" in run.stderr
    # Train on what came out, and generate one volume on the template's voxels.
    size = {"image_size": 32, "image_depth": 8, "num_train_steps": 4, "save_every": 4, "batch_size": 2}
    flags = tiny_flags(out / "volumes", tmp_path / "run", **size)
    run = run_script("stylegan2_pytorch.py", *flags)
    assert run.returncode == 0, run.stderr
    run = run_script("stylegan2_pytorch.py", *flags, "--generate", "--use_average", False)
    assert run.returncode == 0, run.stderr
    (made,) = (tmp_path / "run" / "results" / "t").glob("generated/*/*.nii.gz")
    np.testing.assert_allclose(
        nib.load(made).affine, nib.load(out / "volumes" / "sub-02.nii.gz").affine, atol=1e-4
    )


def test_killed_in_the_middle_and_called_again(tmp_path, heads):
    config = settings(heads, tmp_path / "out", n_workers=1)
    command = [sys.executable, str(ROOT / SCRIPT), *map(str, flags_of(config))]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        deadline = time.monotonic() + 120
        while not (config.folder / "transforms" / "sub-01.mat").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGKILL)
    own = part_of(config.folder / "volumes" / "sub-01.nii.gz")
    own.with_name(own.name.replace(str(os.getpid()), str(run.pid))).write_bytes(b"half")
    assert not (config.folder / "sidecars" / "sub-02.json").exists()
    run = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=1800)
    assert run.returncode == 0, run.stderr
    assert sorted(p.name for p in (config.folder / "volumes").iterdir()) == [
        "sub-01.nii.gz",
        "sub-02.nii.gz",
    ]
    for name in ("sub-01", "sub-02"):
        assert nib.load(config.folder / "volumes" / f"{name}.nii.gz").get_fdata().shape == SIZE


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--dof", 7), "--dof must be 6 (rigid) or 12 (affine), got 7"),
        (("--templat", "x"), "templat"),
        (("--template", "nowhere.nii.gz"), "--template nowhere.nii.gz does not exist"),
        (("--interpolation", "cubic"), "--interpolation must be linear or bspline, got 'cubic'"),
        (("--perform_skull_stripping", False, "--stripped"), "--stripped needs --perform_skull_stripping"),
        (("--clip_percentiles", "99,1"), "--clip_percentiles must rise"),
        (("--target_size", "128,128"), "--target_size must be three numbers"),
        (("--perform_registration", False), "--perform_registration False needs --template"),
        (("--brain_mask", "x.nii.gz"), "--brain_template and --brain_mask go together"),
        (("--nmi_gate", 5), "--nmi_gate"),
        (("--region_size", "80,0,28"), "--region_size must be above 0"),
        (("--region_center", "1,2"), "--region_center must be three numbers of mm"),
        (("--initial", "nowhere"), "--initial nowhere does not exist"),
        (("--to_region", "nowhere"), "--to_region nowhere does not exist"),
        (
            ("--to_region", "docs", "--to_native", "docs"),
            "--to_native and --to_dicom are three ways",
        ),
    ],
)
def test_wrong_flags_stop_before_any_work(tmp_path, flags, text, capsys):
    with pytest.raises(SystemExit) as stop:
        preprocessing.main([*map(str, flags), "--output", str(tmp_path / "out")])
    assert stop.value.code not in (0, None)
    assert text in str(stop.value.code) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["a file", "below a file", "damaged mask"])
def test_what_cannot_be_used_is_one_line(tmp_path, heads, kind, capsys):
    out = tmp_path / "out"
    flags = flags_of(settings(heads, out / "deeper" if kind == "below a file" else out))
    if kind == "damaged mask":
        (tmp_path / "mask.nii.gz").write_bytes(b"broken")
        flags += ["--template_mask", str(tmp_path / "mask.nii.gz")]
    else:
        out.write_text("precious", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        preprocessing.main([str(flag) for flag in flags])
    said = str(stop.value.code) + capsys.readouterr().err
    assert ("mask.nii.gz" if kind == "damaged mask" else "out") in said and "Traceback" not in said
    assert kind == "damaged mask" or out.read_text(encoding="utf-8") == "precious"


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Template                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_a_template_is_built_and_used(tmp_path):
    for number in (1, 2, 3):
        write_head(tmp_path, f"sub-0{number}", number, posed(number + 20))
    flags = ("--data", tmp_path / "raw", "--masks", tmp_path / "brains", "--iterations", 2, "--n_workers", 2)
    run = run_script(
        "preprocessing/generate_TOF_template.py",
        *flags,
        *("--output", tmp_path / "template", "--reference", tmp_path / "raw" / "sub-02.nii.gz", "--sharpen"),
    )
    assert run.returncode == 0, run.stderr
    assert "Template, iteration 2: 3 of 3 scans, mean normalised mutual information" in run.stdout
    names = sorted(p.name for p in (tmp_path / "template").iterdir())
    assert names == [
        f"template{end}" for end in (".json", ".nii.gz", ".png", "_brain.nii.gz", "_mask.nii.gz")
    ]
    reference, built = (nib.load(tmp_path / p) for p in ("raw/sub-02.nii.gz", "template/template.nii.gz"))
    assert built.shape == reference.shape
    np.testing.assert_allclose(built.affine, reference.affine, atol=1e-5)
    both = np.asarray(built.dataobj) != 0
    assert np.corrcoef(np.asarray(built.dataobj)[both], np.asarray(reference.dataobj)[both])[0, 1] > 0.8
    mask = np.asarray(nib.load(tmp_path / "template" / "template_mask.nii.gz").dataobj) > 0
    assert dice(mask, np.asarray(nib.load(tmp_path / "brains" / "sub-02.nii.gz").dataobj) > 0) > 0.9
    record = json.loads((tmp_path / "template" / "template.json").read_text(encoding="utf-8"))
    assert [i["scans"] for i in record["iterations"]] == [3, 3] and len(record["scans"]) == 3
    again = ("--output", tmp_path / "template")
    run = run_script("preprocessing/generate_TOF_template.py", *flags, *again, fresh=True)
    assert run.returncode == 1 and "holds a template: give a new folder" in run.stderr


def test_without_a_template_bounds_are_checked_against_the_reference(tmp_path, heads):
    with pytest.raises(ValueError, match="built on the grid of a scan, has 100 x 100 x"):
        preprocessing.preprocess(
            settings(heads, tmp_path / "out", template=None, cropping_bound_slices=((80, 208),) * 3)
        )
    assert not (tmp_path / "out" / "template").exists()
