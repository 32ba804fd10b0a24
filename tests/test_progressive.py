"""Progressive growing: phases, fades, penalties, widths, resuming, classes, generation; nodule phantoms."""

import csv
import itertools
import json
import math

from volumetric import cli, dataset, generation, parallel, runs
from volumetric.cli import UserError
from volumetric.layers import gradient_penalty, growth_schedule

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import progressive_wgan as pw
from sample_data import nodules
from tests.conftest import interrupted_at, random_array, run_script, write_volume
from tests.test_distributed import run_two
from tests.test_training import assert_same_state

SMALL = {"image_size": 16, "image_depth": 8, "fmap_base": 32, "fmap_max": 8, "latent_dim": 6}


def write_classes(folder):
    """Folder data/ with eight volumes in each of two classes, dark and bright."""
    for n in range(16):
        name = ("dark", "bright")[n % 2]
        volume = random_array(n, (16, 16, 8)) * 0.5 + 0.5 * (n % 2)
        write_volume(folder / "data" / name / f"v{n}.nii.gz", volume)
    return folder


@pytest.fixture
def folder(tmp_path):
    """Folder of `write_classes`."""
    return write_classes(tmp_path)


def settings_of(folder, **settings):
    """Settings of a tiny run in a folder."""
    where = {"data": folder / "data", "results_dir": folder / "results", "models_dir": folder / "models"}
    tiny = {"name": "t", "device": "cpu", "batch_size": 4, "volumes_per_phase": 16, "num_image_tiles": 2}
    tiny["volumes_at_start"] = 16
    return {**SMALL, **tiny, **{key: str(path) for key, path in where.items()}, **settings}


def config_of(folder, **settings):
    """Configuration of a tiny run in a folder."""
    return pw.ProgressiveConfig(**settings_of(folder, **settings))


def flags_of(folder, **settings):
    """Command line of a tiny run in a folder."""
    return [part for name, value in settings_of(folder, **settings).items() for part in (f"--{name}", value)]


# ---- phases, layers, networks


def test_phases_follow_the_growth_schedule(folder):
    plan = pw.phases(config_of(folder))  # 4 x 4 x 4, then 8 x 8 x 8, then 16 x 16 x 8
    assert [(p.stage, p.fades, p.batch, p.end - p.start) for p in plan] == [
        (0, False, 16, 1),
        (1, True, 8, 2),
        (1, False, 8, 2),
        (2, True, 4, 4),
        (2, False, 4, 4),
    ]
    assert [p.start for p in plan[1:]] == [p.end for p in plan[:-1]]
    assert [plan[1].alpha(step) for step in (1, 2)] == [0.5, 1.0] and plan[2].alpha(3) == 1.0
    assert pw.phase_of(plan, 10**6) is plan[-1] and config_of(folder).num_train_steps == plan[-1].end
    assert growth_schedule(16, 8)[-1] == (1, 2, 2)  # the depth stops growing first


def test_fades_are_their_neighbours_at_both_ends(folder):
    torch.manual_seed(0)
    networks = pw.Networks(config_of(folder))
    z, factors = torch.randn(4, 6), networks.G.factors
    for stage in (1, 2):
        small = networks.made(z, None, stage - 1, 1.0)
        torch.testing.assert_close(networks.made(z, None, stage, 0.0), pw.grown(small, factors[stage]))
        large = networks.made(z, None, stage, 1.0)
        half = networks.made(z, None, stage, 0.5)
        torch.testing.assert_close(half, (pw.grown(small, factors[stage]) + large) / 2)
        volumes = torch.rand(4, 1, *large.shape[2:])
        below = F.avg_pool3d(volumes, factors[stage])
        faded = networks.critic(volumes, None, stage, 0.0, 4)
        torch.testing.assert_close(faded, networks.critic(below, None, stage - 1, 1.0, 4))
        whole = networks.critic(volumes, None, stage, 1.0, 4)
        assert float((whole - faded).abs().max()) > 1e-4


def test_real_volumes_are_faded_as_generated_ones():
    factors, volumes = growth_schedule(16, 8), torch.rand(2, 1, 8, 16, 16)
    assert torch.equal(pw.shrunk(volumes, factors, 2), volumes)
    torch.testing.assert_close(pw.shrunk(volumes, factors, 0), F.avg_pool3d(volumes, (2, 4, 4)))
    former = pw.grown(F.avg_pool3d(volumes, (1, 2, 2)), (1, 2, 2))
    torch.testing.assert_close(pw.shrunk(volumes, factors, 2, 0.25), 0.75 * former + 0.25 * volumes)
    torch.testing.assert_close(
        pw.shrunk(volumes, factors, 2, 1e-9), pw.grown(pw.shrunk(volumes, factors, 1), (1, 2, 2))
    )


def test_minibatch_deviation_by_hand():
    x = torch.zeros(4, 2, 1, 1, 1)
    x[:, 0, 0, 0, 0] = torch.tensor([1.0, 3.0, 5.0, 5.0])
    found = pw.minibatch_deviation(x, 2)
    assert found.shape == (4, 3, 1, 1, 1)
    # groups (1, 3) and (5, 5): deviations 1 and 0 of the first channel, 0 of the second
    assert found[:, 2].flatten().tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=1e-3)
    assert pw.minibatch_deviation(x.half(), 4).dtype == torch.float32


def test_gradient_penalty_by_hand():
    """D(x) = a . x has the slope |a| everywhere."""
    slope = torch.tensor([3.0, 4.0]).view(1, 1, 2, 1, 1)
    volumes = torch.rand(3, 1, 2, 1, 1).requires_grad_()
    value = gradient_penalty(volumes, (volumes * slope).sum(dim=(1, 2, 3, 4)), 10.0)
    assert float(value) == pytest.approx(10 * (5 - 1) ** 2)


@pytest.mark.parametrize(
    ("kind", "expected"), [("one_centered", 160.0), ("zero_centered", 250.0), ("r1", 250.0)]
)
def test_penalties_of_a_run_by_hand(folder, monkeypatch, kind, expected):
    """Of D(x) = a . x with |a| = 5, seen at real volumes, or at another place on the way to each fake one."""
    config = config_of(folder, penalty=kind)
    audit = dataset.open_data(config.data, config.array_shape, "ram", None, parallel.Group())
    trainer = pw.Trainer(config, audit)
    trainer.enter(trainer.phases[0])
    slope = torch.zeros(1, 1, 4, 4, 4)
    slope[0, 0, 0, 0, :2] = torch.tensor([3.0, 4.0])
    at = []

    def critic(volumes, *args):
        at.append(volumes.detach())
        return (volumes * slope).sum(dim=(1, 2, 3, 4))

    monkeypatch.setattr(trainer.networks, "critic", critic)
    real, fake = torch.zeros(16, 1, 4, 4, 4), torch.ones(16, 1, 4, 4, 4)
    _, generator = trainer.random(0, 0)
    value = trainer.penalize(real, fake, None, 1.0, generator)
    assert float(value) == pytest.approx(expected)
    places = at[0].flatten(1)
    assert bool((places == places[:, :1]).all()) and (
        len(places[:, 0].unique()) == (1 if kind == "r1" else 16)
    )


def test_losses_by_hand():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 0.0])
    assert float(pw.wasserstein_loss(real, fake, 0.1)) == pytest.approx(-1 - 2 + 0.1 * 5)
    assert float(pw.hinge_loss(real, fake)) == pytest.approx(0 + 0.5)


def test_weights_are_equalised():
    torch.manual_seed(0)
    layer = pw.Equalized(8, 64, 3)
    found = layer(torch.randn(16, 8, 6, 6, 6))[:, :, 1:-1, 1:-1, 1:-1]
    assert float(found.var()) == pytest.approx(2, rel=0.1) and float(layer.weight.std()) == pytest.approx(
        1, rel=0.05
    )
    normal = pw.pixel_norm(torch.randn(2, 8, 3, 3, 3))
    torch.testing.assert_close(normal.square().mean(dim=1), torch.ones(2, 3, 3, 3), rtol=1e-4, atol=1e-4)


def test_widths_are_those_of_the_published_model():
    """Its 2D generator for 64 x 64 pixels has 22.5 million weights (arXiv:1710.10196, released defaults)."""
    widths = pw.stage_widths(
        pw.ProgressiveConfig(image_size=64, image_depth=64, fmap_base=8192, fmap_max=512)
    )
    assert widths == [512, 512, 512, 512, 256]
    taps = 9
    count = 512 * 512 * 16 + 512 + 512 * 512 * taps + 512  # dense, first convolution
    for a, b in itertools.pairwise(widths):
        count += a * b * taps + b + b * b * taps + b
    count += sum(width + 1 for width in widths)  # to grey
    assert count == pytest.approx(22.5e6, rel=2e-3)
    networks = pw.Networks(
        pw.ProgressiveConfig(image_size=16, image_depth=8, fmap_base=32, fmap_max=8, latent_dim=8)
    )
    own = 8 * 8 * 64 + 512 + 8 * 8 * 27 + 8
    for a, b in ((8, 8), (8, 4)):
        own += a * b * 27 + b + b * b * 27 + b
    own += 9 + 9 + 5
    assert sum(p.numel() for p in networks.G.parameters()) == own


# ---- training


@pytest.mark.parametrize(("name", "stop"), [("plain", 5), ("hinge", 3), ("classes", 6), ("longer", 15)])
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(folder, name, stop):
    """Stopped in the middle of fades, between phases, and after the last."""
    settings = {"plain": {}, "hinge": {"loss": "hinge", "penalty": "r1", "amp_dtype": "float16"}}
    settings |= {"classes": {"labels": "folders", "balance_classes": True}, "longer": {"num_train_steps": 17}}
    whole = pw.train_from_folder(config_of(folder, name="whole", **settings[name]))
    with interrupted_at(pw.Trainer, stop):
        assert pw.train_from_folder(config_of(folder, name="parts", **settings[name])).step == stop
    parts = pw.train_from_folder(config_of(folder, name="parts", **settings[name]))
    assert_same_state(*(runs.read_state(t.config.models / "model_0.pt") for t in (whole, parts)))
    with open(whole.config.results / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == whole.config.num_train_steps
    assert [int(float(row["stage"])) for row in rows[:13]] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]
    assert [float(row["fade"]) for row in rows[:9]] == [1, 0.5, 1, 1, 1, 0.25, 0.5, 0.75, 1]
    ends = {path.name[:6] for path in (whole.config.results / "previews").glob("*-GE.png")}
    assert ends >= {"000001", "000003", "000005", "000009", "000013"}


def test_optimisers_begin_anew_at_each_size(folder):
    trainer = pw.train_from_folder(config_of(folder, num_train_steps=3))
    steps = {float(m["step"]) for m in trainer.optimizers["G_opt"].state.values()}
    assert max(steps) == 2  # the first step, at 4 x 4 x 4, is forgotten


def test_rates_fall_at_every_size(folder):
    trainer = pw.train_from_folder(config_of(folder, num_train_steps=3, final_rate=0.5))
    rates = {group["lr"] for one in trainer.optimizers.values() for group in one.param_groups}
    assert rates == {3e-3 * (1 - 2 / 3 * (1 - 0.5))}


def test_two_processes_have_the_gradients_of_one(folder):
    """Adam's first moment is the gradient, for its first beta is 0; the rate is too small to change much."""
    settings = {"fp16": False, "num_train_steps": 2, "learning_rate": 1e-9, "labels": "folders"}
    settings |= {"batch_size": 4, "gradient_accumulate_every": 2, "volumes_per_phase": 32}
    found = {}
    for name, run in (("one", run_script), ("two", run_two)):
        ended = run("progressive_wgan.py", *flags_of(folder, name=name, **settings))
        assert ended.returncode == 0, ended.stderr
        found[name] = runs.read_state(runs.find_checkpoint(folder / "models" / name))
    for optimizer in ("G_opt", "D_opt"):
        one, two = ([m["exp_avg"] for m in found[n][optimizer]["state"].values()] for n in ("one", "two"))
        largest = max(float(t.abs().max()) for t in one)
        assert len(one) == len(two) > 8 and largest > 0
        assert max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)) < 2e-5 * largest


def test_memory_is_predicted(folder):
    run = run_script("progressive_wgan.py", *flags_of(folder, dry_run=True), fresh=True)
    assert run.returncode == 0, run.stderr
    assert "peak memory, gradient penalty" in run.stdout and "parameters (million): generator G" in run.stdout


def test_flags_that_do_not_go_together(folder):
    for settings, text in (
        ({"fmap_base": 4}, "leaves no channel"),
        ({"balance_classes": True}, "needs classes"),
        ({"image_size": 12}, "power of two"),
        ({"loss": "wgan-gp"}, "--loss must be"),
        ({"penalty": "two"}, "--penalty must be"),
    ):
        with pytest.raises(UserError, match=text):
            config_of(folder, **settings)
    with pytest.raises(SystemExit):
        cli.parse_cli(pw.ProgressiveConfig, ["--volumes", "3"])
    run = run_script("progressive_wgan.py", *flags_of(folder, batch_size=8))
    assert run.returncode != 0 and "fewer than a batch of 32" in run.stderr and "Traceback" not in run.stderr


# ---- generation


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with classes and a run that has grown."""
    folder = write_classes(tmp_path_factory.mktemp("grown"))
    pw.train_from_folder(config_of(folder, labels="folders"))
    return folder


def test_volumes_of_a_class_are_made_and_made_again(trained, capsys):
    flags = flags_of(trained, num_generate=3, seed=7, label="dark")
    run = run_script("progressive_wgan.py", *flags, "--generate")
    assert run.returncode == 0, run.stderr
    made = trained / "results" / "t" / "generated" / "model_0"
    assert sorted(p.name for p in made.glob("*.nii.gz")) == [f"seed{n:06d}_dark.nii.gz" for n in (7, 8, 9)]
    record = json.loads((made / "seed000008_dark.json").read_text(encoding="utf-8"))
    assert record["synthetic"] is True and (record["seed"], record["label"]) == (8, "dark")
    assert nib.load(made / "seed000008_dark.nii.gz").shape == (16, 16, 8)
    assert (made / "contact_sheet.png").is_file()
    generation.recreate_volume(config_of(trained, recreate=str(made / "seed000008_dark.json")), pw.open_model)
    assert "seed000008_dark.nii.gz: identical" in capsys.readouterr().out
    with pytest.raises(UserError, match="--label grey is no class of this model: it has bright, dark"):
        generation.generate(config_of(trained, label="grey"), pw.open_model)


def test_the_way_from_class_to_class(trained):
    config = config_of(trained, label="bright,dark", interpolation_num_steps=3, seed=2)
    folder = generation.generate_interpolation(config, pw.open_model)
    frames = [nib.load(p).get_fdata() for p in sorted(folder.glob("*.nii.gz"))]
    assert len(frames) == 3 and (folder / "seed000002_bright-dark.gif").is_file()
    model = pw.open_model(config)
    for frame, seed, name in ((0, 2, "bright"), (2, 3, "dark")):
        (alone,) = model.volumes_of([seed], label=name)
        assert np.allclose(frames[frame], alone[0].permute(1, 2, 0).numpy(), atol=1e-6)
    with pytest.raises(UserError, match="one class or two"):
        generation.generate_interpolation(config_of(trained, label="bright,dark,bright"), pw.open_model)


def test_an_unfinished_run_says_so(folder, capsys):
    pw.train_from_folder(config_of(folder, num_train_steps=3))
    made = generation.generate(config_of(folder, num_train_steps=3), pw.open_model)
    assert "is still growing, at 8 x 8 x 8 voxels: volumes are enlarged" in capsys.readouterr().out
    assert nib.load(made / "seed000042.nii.gz").shape == (16, 16, 8)


def test_checkpoints_of_others_are_refused(trained, folder):
    with pytest.raises(UserError, match="has the classes bright, dark, --labels gives none"):
        pw.train_from_folder(config_of(folder, models_dir=str(trained / "models"), num_train_steps=30))
    torch.save({"step": 1}, folder / "model_1.pt")
    with pytest.raises(UserError, match=r"is no checkpoint of progressive_wgan\.py"):
        pw.ModelLoader(folder / "model_1.pt")


def test_the_data_are_shown_at_every_size(folder):
    shown = pw.show_data(config_of(folder, labels="folders"))
    assert sorted(p.name for p in shown.iterdir()) == ["0-4x4x4.png", "1-8x8x8.png", "2-16x16x8.png"]


# ---- nodules


def test_nodules_are_what_their_kind_says():
    means = {kind: [] for kind in nodules.KINDS}
    for number in range(12):
        volume, mask, row = nodules.make_nodule(1, number, (32, 32, 32))
        again, _, _ = nodules.make_nodule(1, number, (32, 32, 32))
        assert np.array_equal(volume, again) and volume.dtype == np.float32
        kind = row["class"]
        assert set(np.unique(mask)) - {0} <= {"ground_glass": {1}, "part_solid": {1, 2}, "solid": {2}}[kind]
        assert (mask > 0).sum() * (40 / 32) ** 3 > 30  # mm3
        ball = 4 / 3 * math.pi * (1.6 * row["radius_mm"]) ** 3
        assert (mask > 0).sum() * (40 / 32) ** 3 < ball
        means[kind].append(np.median(volume[mask > 0]))
        assert -930 < np.median(volume[mask == 0]) < -780 or row["at_pleura"]
    assert max(means["ground_glass"]) < -500 < min(means["solid"]) and min(means["solid"]) > -160


def test_nodules_by_command(tmp_path):
    flags = ["--nodules", "--output", tmp_path / "n", "--labels", tmp_path / "m", "--num", 3]
    run = run_script("sample_data/phantom.py", *flags, "--image_size", 16, "--image_depth", 8)
    assert run.returncode == 0, run.stderr
    for number, kind in enumerate(nodules.KINDS):
        volume = nib.load(tmp_path / "n" / kind / f"phantom_{number:04d}.nii.gz")
        mask = nib.load(tmp_path / "m" / kind / f"phantom_{number:04d}.nii.gz")
        assert volume.shape == mask.shape == (16, 16, 8) and np.allclose(volume.affine, mask.affine)
    with open(tmp_path / "n" / "variants.csv", newline="", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == list(nodules.KINDS)
    wrong = ("--nodules", "--classes", "--output", tmp_path / "x")
    refused = run_script("sample_data/phantom.py", *wrong, fresh=True)
    assert refused.returncode != 0 and "leave other flags" in refused.stderr
