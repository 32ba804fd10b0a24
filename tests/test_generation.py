"""volumetric/generation.py: what all programs that generate have in common."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from volumetric import collection, generation, runs, sidecars
from volumetric.cli import UserError
from volumetric.files import volume_to_array

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import CoW_generator as cow
import label_to_volume as l2v
import progressive_wgan as pw
import stylegan2_pytorch as sg
from MedicalNet.anatomy import measure_anatomy
from segmentation.labels import read_labels
from tests.conftest import ROOT, SMALL, random_array, write_volume

SHAPE = (8, 8, 4)
TINY = {
    "image_size": 8,
    "image_depth": 4,
    "batch_size": 2,
    "num_train_steps": 1,
    "device": "cpu",
    "fp16": False,
}
PROGRAMS = {
    "stylegan2": (sg.TrainConfig, SMALL, sg.train_from_folder, sg.open_generator),
    "progressive": (
        pw.ProgressiveConfig,
        {"fmap_base": 8, "fmap_max": 4, "latent_dim": 4, "volumes_per_phase": 4, "volumes_at_start": 4},
        pw.train_from_folder,
        pw.open_model,
    ),
    "label_to_volume": (
        l2v.LabelToVolumeConfig,
        {"width": 2, "disc_width": 2, "fmap_max": 4, "spade_width": 2, "z_dim": 4, "held_out": 0.0},
        l2v.train_from_folder,
        None,
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{program: configuration of a trained tiny run}."""
    folder, configs = tmp_path_factory.mktemp("three"), {}
    for n in range(8):
        write_volume(folder / "data" / f"v{n}.nii.gz", random_array(n, SHAPE))
        ids = (random_array(n, SHAPE) > 0.8).astype(np.uint8) + 1
        write_volume(folder / "labels" / f"v{n}.nii.gz", ids)
    for name, (kind, settings, train, _) in PROGRAMS.items():
        where = {"data": str(folder / "data"), "results_dir": str(folder / name), "name": name}
        labels = {"labels": str(folder / "labels")} if name == "label_to_volume" else {}
        config = kind(models_dir=str(folder / "models"), **TINY | settings | where | labels)
        train(config)
        configs[name] = config
    return configs


def generate(config, number, **settings):
    """Folder of volumes of a program, two of each of two label maps where it draws for maps."""
    if isinstance(config, l2v.LabelToVolumeConfig):
        maps = Path(config.labels).with_name("two")
        for n in range(2):
            source = Path(config.labels) / f"v{n}.nii.gz"
            maps.mkdir(exist_ok=True)
            (maps / source.name).write_bytes(source.read_bytes())
        return l2v.generate_volumes(replace(config, generate=str(maps), num_per_map=number // 2, **settings))
    if isinstance(config, sg.TrainConfig):
        return sg.generate_volumes(replace(config, num_generate=number, **settings))
    return generation.generate(replace(config, num_generate=number, **settings), pw.open_model)


def model_of(config):
    path = runs.find_checkpoint(config.models)
    if isinstance(config, l2v.LabelToVolumeConfig):
        return l2v.LabelModel(path, "cpu")
    return sg.open_generator(config) if isinstance(config, sg.TrainConfig) else pw.open_model(config)


def draw(model, config, seeds, batch_size):
    """Volumes (B, Z, X, Y) of a model."""
    how = {}
    if isinstance(config, l2v.LabelToVolumeConfig):
        how["numbers"] = np.arange(np.prod(SHAPE)).reshape(4, 8, 8).astype(np.uint8) % 3
    return torch.cat(list(model.volumes_of(seeds, batch_size=batch_size, **how)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_model_offers_the_same(trained, name):
    model = model_of(trained[name])
    assert model.array_shape == SHAPE and model.step == 1 and model.device.type == "cpu"
    assert model.class_names == [] and np.allclose(model.affine, np.diag([0.6, 0.6, 0.8, 1]))
    assert len(model.trained_on) == (16 if name == "label_to_volume" else 8)
    assert model.networks == ("SE, GE" if name == "stylegan2" else "GE")
    alone = [draw(model, trained[name], [seed], 8)[0] for seed in (5, 3)]
    for batch in (1, 2, 3):
        many = draw(model, trained[name], [3, 4, 5], batch)
        torch.testing.assert_close(many[2], alone[0], atol=2e-6, rtol=0)
        torch.testing.assert_close(many[0], alone[1], atol=2e-6, rtol=0)
    assert not torch.equal(*alone)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_writes_resumes_and_makes_again(trained, name, tmp_path, capsys):
    config = trained[name]
    folder = generate(config, 4)
    assert folder == Path(config.results_dir) / name / "generated" / "model_0"
    volumes = sorted(folder.glob("*.nii.gz"))
    assert len(volumes) == 4 and Image.open(folder / "contact_sheet.png").height > 100
    assert len(sidecars.trained_on(folder)) == (16 if name == "label_to_volume" else 8)
    for path in volumes:
        record = json.loads(path.with_name(f"{path.name[:-7]}.json").read_text(encoding="utf-8"))
        assert record["synthetic"] is True and record["checkpoint"]["step"] == 1 and record["seed"] >= 0
        assert np.allclose(record["affine"], nib.load(path).affine, atol=1e-6)
        assert nib.load(path).header["descrip"].item().startswith(b"SYNTHETIC")
        assert path.with_name(f"{path.name[:-7]}.png").is_file()
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in volumes}
    volumes[1].with_name(f"{volumes[1].name[:-7]}.json").unlink()  # as if it had been killed before that
    volumes[2].write_bytes(b"damaged")
    volumes[0].with_name(f"{volumes[0].name[:-7]}.png").unlink()
    generate(config, 4)
    assert "1 volumes are there already" in capsys.readouterr().out
    assert [p.stat().st_mtime_ns == before[p][0] for p in volumes] == [False, False, False, True]
    assert volumes[0].with_name(f"{volumes[0].name[:-7]}.png").is_file()
    assert all(p.read_bytes() == before[p][1] for p in volumes)
    if name == "label_to_volume":  # without --table, too, the segmentation can read what was drawn
        array, _ = read_labels(folder.with_name("model_0_labels") / volumes[0].name, "topcow2024")
        assert set(np.unique(array)) <= {0, 1, 2}
    again = replace(config, recreate=str(volumes[3].with_name(f"{volumes[3].name[:-7]}.json")))
    open_model = PROGRAMS[name][3]
    (l2v.recreate(again) if open_model is None else generation.recreate_volume(again, open_model))
    assert f"{volumes[3].name}: identical" in capsys.readouterr().out
    with pytest.raises(UserError, match="was made with another choice of networks: choose another --output"):
        generate(config, 4, use_average=False)
    other = generate(config, 4, use_average=False, output=str(tmp_path / "other"))
    assert other == tmp_path / "other" and len(list(other.glob("*.nii.gz"))) == 4


@pytest.mark.parametrize("name", PROGRAMS)
def test_full_disk_is_said_and_the_rest_is_kept(trained, name, tmp_path, monkeypatch):
    settings = {"output": str(tmp_path / "made")}
    save = generation.save_nifti

    def full(volume, affine, path):
        if len(list(path.parent.glob("*.json"))) >= 2:
            raise OSError(28, "No space left on device")
        save(volume, affine, path)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "save_nifti", full)
        with pytest.raises(UserError, match=r"is full: the volumes so far are complete"):
            generate(trained[name], 8, **settings)
    complete = {p.stem for p in (tmp_path / "made").glob("*seed*.json")}
    assert 0 < len(complete) < 8
    folder = generate(trained[name], 8, **settings)
    assert len(list(folder.glob("*.nii.gz"))) == 8


@pytest.mark.parametrize("name", ["progressive", "label_to_volume"])
def test_batches_halve_when_the_memory_is_short(trained, name, tmp_path, monkeypatch, capsys):
    painter, sizes = {"progressive": pw.StageSynthesizer, "label_to_volume": l2v.Painter}[name], []
    draw = painter.draw

    def limited(self, given, labels, *more):
        sizes.append(len(given))
        if len(given) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(self, given, labels, *more)

    monkeypatch.setattr(painter, "draw", limited)
    folder = generate(trained[name], 4, output=str(tmp_path / "made"))
    assert len(list(folder.glob("*.nii.gz"))) == 4 and sizes == [2, 1, 1, 1, 1]
    assert "going on with 1 volumes at a time" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["label_to_volume"])
def test_processes_share_the_work(trained, name, tmp_path):
    config, script = trained[name], {"progressive": "progressive_wgan.py"}.get(name, f"{name}.py")
    one = generate(config, 4)
    command = [Path(sys.executable).parent / "torchrun", "--nproc_per_node", "2", ROOT / script]
    flags = {
        "image_size": 8,
        "image_depth": 4,
        "models_dir": config.models_dir,
        "name": name,
        "device": "cpu",
    }
    flags |= {"output": tmp_path / "two", "results_dir": tmp_path / "results"}
    if name == "progressive":
        flags |= {"generate": "True", "num_generate": 4}
    else:
        flags |= {"generate": Path(config.labels).with_name("two"), "num_per_map": 2}
    command += [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=1800, env=environment)
    assert run.returncode == 0, run.stderr
    paths = sorted(one.glob("*.nii.gz"))
    assert sorted(p.name for p in (tmp_path / "two").glob("*.nii.gz")) == [p.name for p in paths]
    for path in paths:
        both = [nib.load(p).get_fdata() for p in (path, tmp_path / "two" / path.name)]
        np.testing.assert_allclose(*both, atol=1e-5)


def test_a_run_is_found_where_models_dir_says(trained):
    config = trained["stylegan2"]
    model = sg.ModelLoader(models_dir=config.models_dir, name="stylegan2", device="cpu")
    assert model.path == Path(config.models_dir) / "stylegan2" / "model_0.pt"
    of_generator = cow.GenerateConfig(
        models_dir=config.models_dir, model_folder_name="stylegan2", device="cpu"
    )
    assert cow.open_model(of_generator).path == model.path
    with pytest.raises(UserError, match="--models_dir needs --model_folder_name"):
        cow.GenerateConfig(models_dir=config.models_dir)


def test_the_generator_makes_a_trainers_volume_again(trained, capsys):
    folder = generate(trained["stylegan2"], 4)
    cow.recreate(cow.GenerateConfig(recreate=str(folder / "seed000043.json"), device="cpu"))
    assert "seed000043.nii.gz: identical" in capsys.readouterr().out


def test_first_volumes_of_the_model_that_comes_along_have_vessels():
    """What a newcomer sees first: the default seeds of every mode, none washed out."""
    model = sg.ModelLoader(checkpoint=cow.SHIPPED, device="cpu")
    seeds = cow.GenerateConfig().seed_list(5)
    for volume in model.volumes_of(seeds, batch_size=2):
        found = measure_anatomy(volume_to_array(volume.numpy()), model.affine)
        assert 0.5 < found["vessel-volume-ml"][0] < 3 and found["centreline-mm"][0] > 100


def test_generate_writes_volumes_with_the_training_sets_affine(make_config, tmp_path):
    sg.train_from_folder(make_config(num_train_steps=1))
    config = make_config(num_generate=5, image_size=128, image_depth=32, num_image_tiles=2, seed=7)
    folder = sg.generate_volumes(config)
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("trained_on-"))
    assert len(sidecars.trained_on(folder)) == 6
    assert names == [
        "contact_sheet.png",
        *(f"seed{n:06d}.{e}" for n in range(7, 12) for e in ("json", "nii.gz", "png")),
    ]
    image = nib.load(folder / "seed000009.nii.gz")
    assert image.shape == (8, 8, 4)
    np.testing.assert_allclose(image.affine, np.diag([0.6, 0.6, 0.8, 1]), atol=1e-4)
    other = str(tmp_path / "alone")
    again = sg.generate_volumes(make_config(num_generate=1, seed=9, batch_size=1, output=other))
    alone = nib.load(again / "seed000009.nii.gz")
    np.testing.assert_allclose(alone.get_fdata(), image.get_fdata(), atol=1e-5)  # rounding in another batch


def test_generate_interpolation_writes_every_frame_and_a_gif(make_config):
    sg.train_from_folder(make_config(num_train_steps=1))
    folder = sg.generate_interpolation(make_config(interpolation_num_steps=4, save_frames=True))
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("trained_on-"))
    files = [f"seed000042_frame{n:04d}.{e}" for n in range(4) for e in ("json", "nii.gz", "png")]
    assert names == sorted(["seed000042.gif", *files])
    assert Image.open(folder / "seed000042.gif").n_frames == 4
    first, last = (collection.read_volume(folder / f"seed000042_frame000{n}.nii.gz")[0] for n in (0, 3))
    assert np.abs(first - last).max() > 1e-4


def test_odd_requests_are_one_line(trained, tmp_path, monkeypatch, capsys):
    config = trained["stylegan2"]
    folder = generate(config, 4)
    sidecar = folder / "seed000042.json"
    record = json.loads(sidecar.read_text(encoding="utf-8"))
    for change, text in (
        ({"intensity_range": [1, 1]}, "is damaged, intensity_range is 1.0, 1.0"),
        ({"intensity_range": [0]}, "cannot be read"),
        ({"checkpoint": None}, "cannot be read"),
    ):
        (tmp_path / "a.json").write_text(json.dumps(record | change), encoding="utf-8")
        with pytest.raises(UserError, match=text):
            generation.recreate_volume(replace(config, recreate=str(tmp_path / "a.json")), sg.open_generator)
    (tmp_path / "b.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"b\.json is of another program"):
        cow.recreate(cow.GenerateConfig(recreate=str(tmp_path / "b.json")))
    with pytest.raises(UserError, match=r"--output .*more lies in --data"):
        generate(config, 1, output=str(Path(config.data) / "more"))
    with pytest.raises(UserError, match="--generate and --generate_interpolation are two commands"):
        replace(config, generate=True, generate_interpolation=True)
    settings = {"mode": "truncation", "num_generate": 1, "steps": 1100, "device": "cpu"}
    settings |= {"checkpoint": record["checkpoint"]["path"], "save_directory": str(tmp_path / "many")}
    with pytest.raises(UserError, match=r"Two volumes would be called seed000000_psi0\.\d+: ask for fewer"):
        cow.generate(cow.GenerateConfig(**settings))
    assert not list((tmp_path / "many").rglob("*.nii.gz"))
    monkeypatch.chdir(tmp_path)
    made = generate(trained["label_to_volume"], 2, output=".")
    assert len(list(made.glob("*.nii.gz"))) == 2
    assert len(list(tmp_path.with_name(f"{tmp_path.name}_labels").glob("*.nii.gz"))) == 2


def test_names_say_what_was_asked_for():
    assert generation.full_name("seed1", 0.7) == "seed1_psi0.70"
    assert generation.full_name("seed1", 0.701) == "seed1_psi0.701"
    assert generation.full_name("seed1", 0.999, "left M1, thin") == "seed1_psi0.999_left-M1-thin"
    style = {"file": "here/a_style.npy", "sha256": "1"}
    moved = {"recipe": {"style": style | {"file": "there/a_style.npy"}}}
    assert not sidecars.different({"recipe": {"style": style}}, moved)
    assert sidecars.different({"recipe": {"style": style}}, {"recipe": {"style": style | {"sha256": "2"}}})
    recipe = cow.Recipe("n", {"slerp": [1, 2], "t": 0.5, "labels": ["a", "b"]}, {"seed": 1}, 0.8, {})
    assert recipe.caption == "t 0.50 a to b psi 0.80"
    projected = cow.Recipe(
        "p_projection", {"file": "s", "sha256": "1"}, {"file": "n", "sha256": "2"}, 1.0, {}
    )
    assert projected.caption == "p_projection"


def test_a_run_of_another_program_is_one_line(trained):
    config = trained["progressive"]
    with pytest.raises(UserError, match=r"model_0\.pt.*of another program"):
        pw.train_from_folder(replace(config, name="stylegan2", num_train_steps=2))


def test_large_models_are_made_again(tmp_path, monkeypatch):
    """Sizes above the defaults are taken from the sidecar."""
    seen = []

    def open_model(config):
        seen.append((config.image_size, config.image_depth))
        raise UserError("seen")

    (tmp_path / "m.pt").write_bytes(b"0")
    networks = {
        "path": str(tmp_path / "m.pt"),
        "sha256": generation.file_digest(tmp_path / "m.pt"),
        "step": 1,
    }
    record = {"checkpoint": networks | {"networks": "GE"}, "model": {"image_size": 64, "image_depth": 64}}
    record |= {"seed": 1, "label": None, "file": "a.nii.gz", "volume_sha256": "0"}
    (tmp_path / "a.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match="seen"):
        generation.recreate_volume(pw.ProgressiveConfig(recreate=str(tmp_path / "a.json")), open_model)
    assert seen == [(64, 64)]
