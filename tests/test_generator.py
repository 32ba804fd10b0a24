"""CoW_generator.py: every mode's files, one seed one volume, re-creation, geometry, messages."""

import errno
import json
import re
import shutil

from volumetric import cli, collection, generation, geometry, sidecars
from volumetric.cli import UserError

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image, ImageSequence

import CoW_generator as cow
import stylegan2_pytorch as sg
from sample_data import release
from tests.conftest import ROOT, SMALL, random_array, run_script, tiny_flags, write_volume

# A rotation by 30 degrees about z and a flip of x, voxels of 0.5 x 0.5 x 0.8 mm.
OBLIQUE = np.array([[-0.433, -0.25, 0, 9], [-0.25, 0.433, 0, -3], [0, 0, 0.8, 7], [0, 0, 0, 1]])


OF_RUN = {"top_dir": "demo", "model_folder_name": "demo"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folder with a trained tiny model in demo/models/demo."""
    folder = tmp_path_factory.mktemp("home")
    for n in range(4):
        write_volume(folder / "data" / f"v{n}.nii.gz", random_array(n))
    flags = tiny_flags(folder / "data", folder / "demo", name="demo", num_train_steps=3)
    sg.main([str(f) for f in flags])
    path = folder / "demo" / "models" / "demo" / "model_0.pt"
    state = torch.load(path, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state["GAN"].items():  # after three steps the noise has no effect that one could see
        if "to_noise" in name:
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    torch.save(state, path)
    return folder


@pytest.fixture
def make(home, tmp_path, monkeypatch):
    """Function that generates with the tiny model, into the test's folder, and returns the mode's folder."""
    monkeypatch.chdir(home)

    def run(**settings):
        return cow.generate(
            cow.GenerateConfig(
                **{"save_directory": str(tmp_path), "device": "cpu", "seed": 42, **OF_RUN, **settings}
            )
        )

    return run


def names(folder, suffix=""):
    """Names of the files in a folder, but for the list of what the model was trained on."""
    files = (p.name for p in folder.iterdir() if p.is_file() and p.name.endswith(suffix))
    return sorted(name for name in files if not name.startswith("trained_on-"))


def voxels(path):
    return nib.load(path).get_fdata(dtype=np.float32)


VOLUMES = {
    "normal": ["seed000042", "seed000043"],
    "stochastic_variation": [f"seed00004{s}_noise00{v}" for s in (2, 3) for v in range(3)],
    "interpolation": [f"slerp00004{s}-00004{s + 1}_frame000{f}" for s in (2, 3) for f in range(4)],
    "style_mixing": [f"coarse00004{r}_fine00004{c}" for r in (2, 3) for c in (2, 3)],
    "truncation": [f"seed00004{s}_psi{p}" for s in (2, 3) for p in ("0.000", "0.333", "0.667", "1.000")],
}
SEQUENCE = ["{}_axial.gif", "{}_axial_mip.gif", "{}_sheet.png"]
PICTURES = {
    "normal": ["contact_sheet.png"],
    "stochastic_variation": [
        f.format(f"seed00004{s}")
        for s in (2, 3)
        for f in (*SEQUENCE, "{}_deviation.png", "{}_deviation.nii.gz")
    ],
    "interpolation": [
        f.format(f"slerp00004{s}-00004{s + 1}") for s in (2, 3) for f in (*SEQUENCE, "{}_smoothness.json")
    ],
    "style_mixing": ["contact_sheet.png"],
    "truncation": [f.format(f"seed00004{s}") for s in (2, 3) for f in SEQUENCE],
}


@pytest.mark.parametrize("mode", VOLUMES)
def test_every_mode_writes_its_files(make, mode):
    folder = make(mode=mode, num_generate=2, steps=4, num_stochastic_variation=3)
    expected = [f"{name}.{suffix}" for name in VOLUMES[mode] for suffix in ("nii.gz", "json", "png")]
    assert names(folder) == sorted(expected + PICTURES[mode])
    arrays = [f"{name}_{kind}.npy" for name in VOLUMES[mode] for kind in ("style", "noise")]
    assert names(folder / "style_and_noise") == sorted(arrays)
    assert len(sidecars.trained_on(folder)) == 4  # the volumes of the run
    for name in VOLUMES[mode]:
        image = nib.load(folder / f"{name}.nii.gz")
        assert image.shape == (8, 8, 4) and image.get_data_dtype() == np.float32
        assert image.header["descrip"].item().startswith(b"SYNTHETIC")
        assert np.load(folder / "style_and_noise" / f"{name}_noise.npy").shape == (1, 4, 8, 8, 1)
        details = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert (
            details["synthetic"] is True and details["mode"] == mode and details["file"] == f"{name}.nii.gz"
        )
    for gif in folder.glob("*.gif"):
        image = Image.open(gif)  # equal neighbours become one frame that is shown longer
        shown = sum(frame.info["duration"] for frame in ImageSequence.Iterator(image))
        assert shown == 300 * (3 if mode == "stochastic_variation" else 4)


def test_a_sequence_is_shown_large_and_by_its_projection(make):
    folder = make(mode="interpolation", num_generate=1, steps=6)
    for gif in folder.glob("*.gif"):
        assert Image.open(gif).size == (256, 256 + 14)  # of 8 x 8 voxels
    sheet = Image.open(folder / "slerp000042-000043_sheet.png")
    assert sheet.size == (5 * 257, 2 * (256 + 14 + 1) + 14)  # rows of five, a gap, and the line below all


def test_sidecar_describes_the_volume(make):
    folder = make(num_generate=1, truncation_psi=0.7)
    details = json.loads((folder / "seed000042_psi0.70.json").read_text(encoding="utf-8"))
    assert details["seed"] == 42 and details["truncation_psi"] == 0.7
    assert details["checkpoint"]["step"] == 3 and details["checkpoint"]["networks"] == "SE, GE"
    assert re.fullmatch("[0-9a-f]{64}", details["checkpoint"]["sha256"])
    plain = {"attn_layers": [], "fq_layers": [], "fq_dict_size": 256, "cl_reg": False, "no_const": False}
    plain["minibatch_std"] = False
    assert details["model"] == {**SMALL, "lr_mlp": 0.1, "latent_dim": 512, "style_depth": 8, **plain}
    assert {"torch", "numpy", "nibabel", "python", "stylegan2_pytorch"} == set(details["versions"])
    assert np.load(folder / details["style"]).shape == (1, 512)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_one_seed_one_volume_whatever_the_batch_and_the_order(make, tmp_path, batch_size):
    many = make(num_generate=8, batch_size=batch_size)
    other = make(seeds="47,3,44", batch_size=2, save_directory=str(tmp_path / "other"))
    for seed in (44, 47):
        np.testing.assert_allclose(*(voxels(f / f"seed0000{seed}.nii.gz") for f in (many, other)), atol=1e-6)


def test_modes_agree_on_the_volume_of_a_seed(make):
    plain = voxels(make(num_generate=2) / "seed000042.nii.gz")
    same = {
        "stochastic_variation": "seed000042_noise000",
        "interpolation": "slerp000042-000043_frame0000",
        "style_mixing": "coarse000042_fine000042",
        "truncation": "seed000042_psi1.000",
    }
    for mode, name in same.items():
        folder = make(mode=mode, num_generate=1, steps=3, picture_format="none")
        np.testing.assert_allclose(voxels(folder / f"{name}.nii.gz"), plain, atol=1e-6)


def test_noise_varies_and_style_does_not(make):
    folder = make(mode="stochastic_variation", num_generate=1, num_stochastic_variation=3)
    styles, noises = (
        [np.load(folder / "style_and_noise" / f"seed000042_noise00{v}_{kind}.npy") for v in range(3)]
        for kind in ("style", "noise")
    )
    assert all(np.array_equal(styles[0], s) for s in styles)
    assert not np.array_equal(noises[0], noises[1]) and not np.array_equal(noises[1], noises[2])
    deviation = voxels(folder / "seed000042_deviation.nii.gz")
    volumes = np.stack([voxels(folder / f"seed000042_noise00{v}.nii.gz") for v in range(3)])
    np.testing.assert_allclose(deviation, volumes.std(axis=0), atol=1e-6)
    assert deviation.max() > 0


def test_stochastic_variation_of_a_saved_style(make, tmp_path):
    first = make(num_generate=1, truncation_psi=0.5)
    style = first / "style_and_noise" / "seed000042_psi0.50_style.npy"
    flags = {"mode": "stochastic_variation", "load_from_style": True, "num_stochastic_variation": 2}
    folder = make(**flags, style_npy_path=str(style), save_directory=str(tmp_path / "vary"))
    varied = folder / "seed000042_psi0.50_noise000.nii.gz"
    np.testing.assert_allclose(voxels(varied), voxels(first / "seed000042_psi0.50.nii.gz"), atol=1e-6)


def test_interpolation_of_styles_is_linear(make):
    folder = make(
        mode="interpolation", interpolate_styles=True, num_generate=1, steps=3, picture_format="none"
    )
    low, middle, high = (
        np.load(folder / "style_and_noise" / f"lerp000042-000043_frame000{f}_style.npy") for f in range(3)
    )
    np.testing.assert_allclose(middle, (low + high) / 2, atol=1e-6)
    assert not list(folder.glob("*.png")) and not list(folder.glob("*.gif"))


def test_smoothness():
    volumes = np.zeros((4, 1, 2, 2, 2))
    volumes[1:] += 1
    volumes[3:] += 2
    assert cow.smoothness(volumes) == (2.0, 1.0)  # steps 1, 0, 2


def test_recreate_says_identical_and_notices_changes(make, home, tmp_path, capsys):
    folder = make(num_generate=1, intensity_range=(0, 500))
    sidecar = folder / "seed000042.json"
    assert cow.recreate(cow.GenerateConfig(recreate=str(sidecar), device="cpu")) < 1e-5
    assert "seed000042.nii.gz: identical" in capsys.readouterr().out
    changed = tmp_path / "changed.pt"
    state = torch.load(home / "demo" / "models" / "demo" / "model_0.pt", weights_only=True)
    torch.save(state | {"step": 4}, changed)
    with pytest.raises(ValueError, match="is not the checkpoint that"):
        cow.recreate(cow.GenerateConfig(recreate=str(sidecar), checkpoint=str(changed), device="cpu"))
    image = nib.load(folder / "seed000042.nii.gz")
    array = image.get_fdata(dtype=np.float32)
    array[0, 0, 0] += 50
    nib.save(nib.Nifti1Image(array, image.affine), folder / "seed000042.nii.gz")
    with pytest.raises(ValueError, match=r"differs from what its sidecar describes, by up to 0\.1"):
        cow.recreate(cow.GenerateConfig(recreate=str(sidecar), device="cpu"))
    with pytest.raises(ValueError, match="cannot be read"):
        cow.recreate(cow.GenerateConfig(recreate=str(ROOT / "README.md")))


def test_interrupted_generation_continues(make):
    folder = make(num_generate=4, picture_format="none")
    before = {n: (folder / n).stat().st_mtime_ns for n in names(folder)}
    (folder / "seed000044.json").unlink()  # the last file of a volume
    make(num_generate=4, picture_format="none")
    after = {n: (folder / n).stat().st_mtime_ns for n in names(folder)}
    assert before.keys() == after.keys()
    assert {n for n in before if before[n] != after[n]} == {"seed000044.nii.gz", "seed000044.json"}


def test_a_series_can_be_extended(make, capsys):
    make(num_generate=2, picture_format="none")
    folder = make(num_generate=3, batch_size=1, picture_format="none")
    assert len(names(folder, ".nii.gz")) == 3 and "2 volumes are there already" in capsys.readouterr().out


def test_other_volumes_of_the_same_name_are_not_overwritten(make):
    make(num_generate=1)
    with pytest.raises(
        ValueError, match=r"seed000042\.json was made with another intensity_range: choose another"
    ):
        make(num_generate=1, intensity_range=(0, 9))


def test_volumes_have_the_training_affine_or_the_templates(make, tmp_path):
    folder = make(num_generate=1)
    np.testing.assert_allclose(
        nib.load(folder / "seed000042.nii.gz").affine, np.diag([0.6, 0.6, 0.8, 1]), atol=1e-6
    )
    template = write_volume(tmp_path / "template.nii.gz", random_array(1), OBLIQUE)
    _, affine = geometry.turn(random_array(1), nib.load(template).affine)  # the volumes are along R, A, S
    path = (
        make(num_generate=1, template_path=str(template), save_directory=str(tmp_path / "b"))
        / "seed000042.nii.gz"
    )
    image, itk = nib.load(path), SimpleITK.ReadImage(str(path))
    assert image.header["sform_code"] > 0 and image.header["qform_code"] > 0
    for voxel in ((0, 0, 0), (3, 5, 2), (7, 7, 3)):
        wanted = nib.affines.apply_affine(affine, voxel)
        np.testing.assert_allclose(nib.affines.apply_affine(image.affine, voxel), wanted, atol=1e-4)
        point = np.array(itk.TransformIndexToPhysicalPoint(voxel)) * (-1, -1, 1)  # ITK is LPS
        np.testing.assert_allclose(point, wanted, atol=1e-3)
    np.testing.assert_allclose(
        SimpleITK.GetArrayFromImage(itk).transpose(2, 1, 0), image.get_fdata(), atol=1e-6
    )


def test_template_of_another_shape_gives_a_warning(make, tmp_path, capsys):
    template = write_volume(tmp_path / "t.nii.gz", random_array(1, (9, 8, 4)))
    make(num_generate=1, template_path=str(template))
    assert "its affine is taken, its shape is not" in capsys.readouterr().out


def test_intensity_range_and_uncompressed_volumes(make, tmp_path):
    plain = voxels(make(num_generate=1) / "seed000042.nii.gz")
    folder = make(
        num_generate=1, intensity_range=(-100, 700), volume_format="nii", save_directory=str(tmp_path / "b")
    )
    np.testing.assert_allclose(voxels(folder / "seed000042.nii"), -100 + 800 * plain, atol=1e-3)


def test_a_changed_style_file_is_noticed(make, tmp_path):
    style = tmp_path / "s_style.npy"
    flags = {"mode": "stochastic_variation", "load_from_style": True, "num_stochastic_variation": 1}
    for value, error in ((0.1, None), (0.2, r"was made with another recipe")):
        np.save(style, np.full((1, 512), value, np.float32))
        if error is None:
            make(**flags, style_npy_path=str(style))
        else:
            with pytest.raises(ValueError, match=error):
                make(**flags, style_npy_path=str(style))


def test_pictures_as_jpg(make, tmp_path):
    folder = make(num_generate=2, picture_format="jpg")
    assert names(folder, ".jpg") == ["contact_sheet.jpg", "seed000042.jpg", "seed000043.jpg"]
    assert not names(folder, ".png") and Image.open(folder / "seed000042.jpg").format == "JPEG"
    flags = {"mode": "projection", "target": str(folder / "seed000042.nii.gz"), "projection_steps": 2}
    assert len(names(make(**flags, picture_format="jpg"), ".jpg")) == 3


def test_intensity_range_takes_two_words():
    assert cow.join_pairs(["--intensity-range", "-5", "1.5", "--amp"]) == [
        "--intensity-range",
        "(-5,1.5)",
        "--amp",
    ]
    config = cli.parse_cli(cow.GenerateConfig, cow.join_pairs(["--intensity_range", "0", "900"]))
    assert config.intensity_range == (0, 900)


def test_memory_error_halves_the_batch(make, monkeypatch, capsys):
    render, sizes = sg.ModelLoader.render, []

    def limited(model, styles, noise):
        sizes.append(len(styles))
        if len(styles) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return render(model, styles, noise)

    monkeypatch.setattr(sg.ModelLoader, "render", limited)
    folder = make(num_generate=5, batch_size=8)
    assert sizes == [5, 4, 2, 2, 1] or sizes == [5, 5, 2, 2, 1]
    assert len(names(folder, ".nii.gz")) == 5
    assert "going on with 2 volumes at a time" in capsys.readouterr().err


def test_full_disk_is_said(make, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(generation.shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(ValueError, match=r"2 volumes need about .* has 0\.0 free"):
            make(num_generate=2)

    def full(volume, affine, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(generation, "save_nifti", full)
    with pytest.raises(ValueError, match=r"is full: the volumes so far are complete"):
        make(num_generate=2)


def test_mixed_precision_is_close(make, tmp_path):
    plain = voxels(make(num_generate=1) / "seed000042.nii.gz")
    folder = make(num_generate=1, amp=True, save_directory=str(tmp_path / "b"))
    assert np.abs(voxels(folder / "seed000042.nii.gz") - plain).max() < 0.1
    assert json.loads((folder / "seed000042.json").read_text(encoding="utf-8"))["precision"] == "bfloat16"


def test_originals_checkpoint(make, tmp_path):
    gan = sg.StyleGAN2(**SMALL)
    torch.save({"GAN": gan.state_dict()}, tmp_path / "model_5.pt")
    folder = make(checkpoint=str(tmp_path / "model_5.pt"), image_depth=4, num_generate=1)
    assert nib.load(folder / "seed000042.nii.gz").shape == (8, 8, 4)


def test_projection_finds_a_volume_that_the_model_made(make, tmp_path, capsys):
    target = make(num_generate=1, seed=5) / "seed000005.nii.gz"
    l1 = cow.search(*search_arguments(target, steps=2))[2][0][1]
    folder = make(mode="projection", target=str(target), projection_steps=120)
    assert names(folder) == sorted(
        f"seed000005_projection{end}"
        for end in ("_curve.csv", "_curve.png", "_target_result_difference.png", ".json", ".nii.gz", ".png")
    )
    final = float(re.search(r"mean absolute difference ([\d.]+)", capsys.readouterr().out)[1])
    assert final < l1 / 2
    style = folder / "style_and_noise" / "seed000005_projection_style.npy"
    assert np.load(style).shape == (1, 2, 512)
    flags = {"mode": "stochastic_variation", "load_from_style": True, "num_stochastic_variation": 2}
    varied = make(**flags, style_npy_path=str(style), save_directory=str(tmp_path / "vary"))
    assert len(names(varied, "noise001.nii.gz")) == 1
    cow.recreate(cow.GenerateConfig(recreate=str(folder / "seed000005_projection.json"), device="cpu"))
    assert "projection.nii.gz: identical" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is there already"):
        make(mode="projection", target=str(target))


def search_arguments(target, steps):
    model = sg.ModelLoader(base_dir="demo", name="demo", device="cpu")
    return {
        "model": model,
        "target": torch.from_numpy(collection.read_volume(target)[0])[None],
        "steps": steps,
    }.values()


def test_projection_with_medicalnet_features(make, tmp_path):
    from MedicalNet.resnet import resnet10

    torch.save({"state_dict": resnet10().state_dict()}, tmp_path / "w.pth")
    target = make(num_generate=1) / "seed000042.nii.gz"
    goal = torch.from_numpy(collection.read_volume(target)[0])[None]
    loss = cow.feature_loss(tmp_path / "w.pth", goal)
    assert loss(goal).item() == 0 and loss(goal.flip(2)).item() > 0
    flags = {"mode": "projection", "target": str(target), "projection_steps": 3}
    make(**flags, medicalnet_weights=str(tmp_path / "w.pth"))
    with pytest.raises(ValueError, match="--medicalnet_weights nowhere does not exist"):
        make(**flags, medicalnet_weights="nowhere", save_directory=str(tmp_path / "b"))


def test_noise_regularity():
    white = torch.randn(1, 1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = sg.Blur()(white)
    smooth = (smooth - smooth.mean()) / smooth.std()
    assert cow.regularity_of_noise(white) < 0.1 < 1 < cow.regularity_of_noise(smooth)
    assert cow.regularity_of_noise(torch.ones(1, 1, 4, 4, 4)).item() == 3  # three axes, each fully correlated


def test_plane_views_are_radiological_with_square_pixels():
    volume = np.zeros((1, 4, 8, 6), np.float32)  # (1, Z, X, Y)
    volume[0, -1, -1, -1] = 1  # RAS: right, front, top
    views = cow.plane_views(volume, np.diag([0.5, 0.5, 1.0, 1]))
    assert [v.shape for v in views] == 2 * [(6, 8), (8, 8), (8, 6)]
    assert all(v[0, 0] > 0 for v in views[3:])
    flipped = cow.plane_views(volume[:, :, ::-1], np.diag([-0.5, 0.5, 1.0, 1]))
    assert all(np.array_equal(a, b) for a, b in zip(views, flipped, strict=True))


@pytest.mark.parametrize(
    ("text", "seeds"), [("5", [5]), ("0-3,205", [0, 1, 2, 3, 205]), ("(7, 9)", [7, 9]), ("3-3", [3])]
)
def test_seeds(text, seeds):
    assert cow.parse_seeds(text) == seeds


WRONG = {
    "mode": (["--mode", "normel"], "--mode must be normal or stochastic_variation or interpolation"),
    "psi": (["--truncation_psi", "1.2"], "--truncation_psi must be between 0 and 1, got 1.2."),
    "seed": (["--seed", "-1"], "--seed must be 0 or more, got -1."),
    "seeds": (["--seeds", "3-1"], "--seeds must be like 0-99,205"),
    "seeds twice": (["--seeds", "3,1-4"], "names a seed twice"),
    "format": (["--volume_format", "mgz"], "--volume_format must be nii.gz or nii, got 'mgz'."),
    "range": (["--intensity_range", "9", "3"], "--intensity_range must be two numbers, low before high"),
    "style": (["--load_from_style"], "--load_from_style needs --mode stochastic_variation"),
    "no target": (["--mode", "projection"], "--mode projection needs --target FILE"),
    "missing checkpoint number": (
        ["--model_from_epoch", "8"],
        "no model_8.pt in demo/models/demo. --load_from can be 0",
    ),
    "missing run": (["--model_folder_name", "x"], "correct its name (there are runs demo)."),
    "missing file": (["--checkpoint", "x.pt"], "x.pt does not exist"),
    "template": (["--template_path", "x.nii"], "--template_path x.nii does not exist"),
    "target": (["--mode", "projection", "--target", "x.nii"], "--target x.nii does not exist"),
    "steps": (["--mode", "interpolation", "--steps", "1"], "--mode interpolation needs two seeds"),
    "style file": (
        ["--mode", "stochastic_variation", "--load_from_style", "--style_npy_path", "data/v0.nii.gz"],
        "data/v0.nii.gz cannot be read",
    ),
}


def test_a_target_is_turned_to_the_axes_of_the_model(home, tmp_path):
    model = sg.ModelLoader(checkpoint=home / "demo" / "models" / "demo" / "model_0.pt", device="cpu")
    as_trained = home / "data" / "v1.nii.gz"
    turned = nib.load(as_trained).as_reoriented([[0, -1], [1, -1], [2, 1]])
    nib.save(turned, tmp_path / "turned.nii.gz")
    expected, place = cow.read_target(as_trained, model)
    found, affine = cow.read_target(tmp_path / "turned.nii.gz", model)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(affine, place, atol=1e-6)
    write_volume(tmp_path / "fine.nii.gz", random_array(1), np.diag([0.3, 0.3, 0.4, 1]))
    with pytest.raises(UserError, match=r"voxels of 0\.3 x 0\.3 x 0\.4 mm, those of the model are of 0\.6 x"):
        cow.read_target(tmp_path / "fine.nii.gz", model)


def test_a_template_along_other_axes_mirrors_nothing(make, tmp_path):
    template = nib.Nifti1Image(np.zeros((8, 8, 4), np.float32), np.diag([-0.5, -0.5, 1, 1]))
    nib.save(template, tmp_path / "template.nii.gz")
    folder = make(template_path=str(tmp_path / "template.nii.gz"))
    image = nib.load(next(folder.glob("seed*.nii.gz")))
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")  # as the model draws
    np.testing.assert_allclose(image.affine[:3, 3], [-3.5, -3.5, 0], atol=1e-5)


@pytest.mark.parametrize("kind", WRONG)
def test_mistakes_get_one_line(home, monkeypatch, tmp_path, kind):
    flags, text = WRONG[kind]
    monkeypatch.chdir(home)
    with pytest.raises(SystemExit) as stop:
        of_run = [
            part
            for name, value in OF_RUN.items()
            if f"--{name}" not in flags
            for part in (f"--{name}", value)
        ]
        cow.main([*flags, *of_run, "--save_directory", str(tmp_path), "--device", "cpu"])
    assert text in str(stop.value.code) and len(str(stop.value.code).splitlines()) == 1
    assert not list(tmp_path.rglob("*.nii*"))


def test_style_of_another_model_is_refused(make, tmp_path):
    np.save(tmp_path / "s_style.npy", np.zeros((1, 77), np.float32))
    with pytest.raises(ValueError, match=r"has shape \(1, 77\), expected \(1, 512\) or"):
        make(mode="stochastic_variation", load_from_style=True, style_npy_path=str(tmp_path / "s_style.npy"))


def test_edited_mode_works_and_a_flag_wins(home, tmp_path):
    script = (ROOT / "CoW_generator.py").read_text(encoding="utf-8")
    edited, count = re.subn(r'^mode = "normal"', 'mode = "truncation"', script, flags=re.MULTILINE)
    assert count == 1
    (tmp_path / "edited.py").write_text(edited.replace("\nsteps = 20", "\nsteps = 2"), encoding="utf-8")
    common = ["--num_generate", "1", "--device", "cpu", "--save_directory", tmp_path / "out"]
    for flags in ([], ["--mode", "normal"]):
        run = run_script(tmp_path / "edited.py", *common, *flags, cwd=home)
        assert run.returncode == 0, run.stderr
    assert names(tmp_path / "out" / "truncation", ".nii.gz") == [
        "seed000000_psi0.000.nii.gz",
        "seed000000_psi1.000.nii.gz",
    ]
    assert names(tmp_path / "out" / "normal", ".nii.gz") == ["seed000000.nii.gz"]


def test_two_processes_write_the_same_files_as_one(home, make, tmp_path):
    one = make(mode="interpolation", num_generate=1, steps=5)
    flags = ["--mode", "interpolation", "--num_generate", 1, "--seed", 42, "--steps", 5, "--device", "cpu"]
    flags += ["--save_directory", tmp_path / "two", "--top_dir", "demo", "--model_folder_name", "demo"]
    run = run_script("CoW_generator.py", *flags, cwd=home, processes=2)
    assert run.returncode == 0, run.stderr
    two = tmp_path / "two" / "interpolation"
    assert names(one) == names(two)
    for path in one.rglob("*.npy"):
        np.testing.assert_array_equal(np.load(path), np.load(two / path.relative_to(one)))
    for path in one.glob("*.nii.gz"):
        np.testing.assert_allclose(voxels(path), voxels(two / path.name), atol=1e-6)


def test_out_of_the_box_with_the_model_that_comes_along(tmp_path):
    run = run_script("CoW_generator.py", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "The model that comes with this program" in run.stdout
    made = tmp_path / "generated" / "normal"
    assert len(names(made, ".nii.gz")) == 4
    assert nib.load(made / "seed000000.nii.gz").shape == (64, 64, 16)
    assert voxels(made / "seed000000.nii.gz").std() > 0.02
    misspelt = run_script("CoW_generator.py", "--steeps", "3", cwd=tmp_path, fresh=True)
    assert misspelt.returncode != 0 and "steeps" in misspelt.stderr


def test_a_release_generates_as_its_checkpoint_and_says_what_it_lacks(home, tmp_path):
    checkpoint, small = home / "demo" / "models" / "demo" / "model_0.pt", tmp_path / "small.pt"
    release.main(["--checkpoint", str(checkpoint), "--output", str(small)])
    whole, released = (sg.ModelLoader(checkpoint=path, device="cpu") for path in (checkpoint, small))
    one, other = (next(iter(model.volumes_of([3]))) for model in (whole, released))
    torch.testing.assert_close(one, other, atol=6e-3, rtol=0)
    assert small.stat().st_size < checkpoint.stat().st_size / 5
    with pytest.raises(cli.UserError, match="has no S: it is a released file"):
        sg.ModelLoader(checkpoint=small, device="cpu", use_average=False)
    state = torch.load(small, weights_only=True)
    assert not {"data", "models_dir"} & state["config"].keys() and "D_opt" not in state
    with pytest.raises(SystemExit, match="is there: give the name of a new file"):
        release.main(["--checkpoint", str(checkpoint), "--output", str(small)])


def test_settings_of_ones_own_stand_in_a_file(tmp_path, capsys):
    own = tmp_path / "mine.py"
    lines = ('mode = "interpolation"  # the way', "steps = 7", "label = None", "truncation_psi = 0.5")
    own.write_text("\n".join(lines), encoding="utf-8")
    config = cow.parse_cli(cow.GenerateConfig, cow.with_settings(["--settings", str(own), "--steps", "9"]))
    assert (config.mode, config.steps, config.truncation_psi, config.label) == ("interpolation", 9, 0.5, None)
    for text, said in (
        ("mode =", "cannot be read"),
        ("import os", "each line must be name = value"),
        ("modee = 1", "There is no flag '--modee', do you mean --mode?"),
    ):
        own.write_text(text, encoding="utf-8")
        with pytest.raises(SystemExit) as stop:
            cow.main(["--settings", str(own)])
        assert said in str(stop.value) and "\n" not in str(stop.value)
