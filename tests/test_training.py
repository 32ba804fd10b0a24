"""Training runs: exact resuming, accumulation, averages, checkpoints, interruptions, NaN."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

from volumetric import collection, dataset, layers, memory, parallel, runs, timing, training
from volumetric.cli import UserError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

import stylegan2_pytorch as sg
from tests.conftest import ROOT, random_array, run_script, start_script, tiny_flags, write_volume

NEW_AUGMENTATIONS = ("rotation", "scaling", "bias_field", "noise", "blur")
BLOCKS = {"attn_layers": (1, 2), "fq_layers": (2,), "fq_dict_size": 16}
OPTIONS = {
    "plain": {},
    "float32": {"fp16": False},
    "no accumulation": {"gradient_accumulate_every": 1},
    "all augmentations": {"aug_prob": 1.0, "aug_types": ("translation", "cutout", "contrast")},
    "top-k": {"top_k_training": True, "generator_top_k_gamma": 0.5},
    "all losses": {"rel_disc_loss": True, "dual_contrast_loss": True, "top_k_training": True},
    "no path length": {"no_pl_reg": True},
    "no cache, two workers": {"cache": "none", "num_workers": 2},
    "packed, two workers": {"cache": "disk", "num_workers": 2},
    "fewer path lengths": {"pl_batch_shrink": 2},
    "adaptive augmentation": {"ada_target": 0.6, "ada_volumes": 100},
    "3D augmentations": {"aug_prob": 1.0, "aug_types": NEW_AUGMENTATIONS},
    "balanced classes": {"labels": "LABELS", "balance_classes": True},
    "activations again, with blocks of all kinds": {"checkpoint_activations": True, **BLOCKS},
    "float16, with blocks of all kinds": {"amp_dtype": "float16", **BLOCKS},
    "ramped average": {"average": "ramped"},
    "logistic": {"loss": "logistic", "penalty": "r1"},
    "relativistic pairs": {"loss": "relativistic", "penalty": "r1r2", "gamma": 0.5},
    "equalised": {"equalized_lr": True, "adam_betas": (0.0, 0.99), "cl_reg": True},
    "penalty in float16": {"penalty_precision": "mixed", "amp_dtype": "float16", "penalty_every": 1},
    "each augmented": {"aug_each": True, "aug_prob": 0.5},
    "everything": {
        **{"labels": "LABELS", "balance_classes": True, "cl_reg": True, "no_const": True, **BLOCKS},
        **{"ada_target": 0.6, "ada_volumes": 100, "aug_prob": 0.5, "aug_types": NEW_AUGMENTATIONS},
        **{"top_k_training": True, "rel_disc_loss": True, "dual_contrast_loss": True},
    },
}


@pytest.fixture
def short_schedule(monkeypatch):
    """Regularisers and averages act within a few steps."""
    for name, value in {
        "PATH_LENGTH_AFTER": 0,
        "PATH_LENGTH_EVERY": 2,
        "AVERAGE_AFTER": 1,
        "AVERAGE_EVERY": 1,
        "AVERAGE_COPY_UNTIL": 1,
    }.items():
        monkeypatch.setattr(sg, name, value)


start, judged = sg.Generator.initial, sg.Discriminator.features


def flat(tree, prefix=""):
    """{path: leaf} of nested dictionaries and lists."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in flat(value, f"{prefix}/{key}").items()}
    return {prefix: tree}


def rows_of(config):
    """The rows of a run's metrics.csv."""
    with open(config.results / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_state(first, second, ignore=("/config/name", "/command/name", "/command/num_train_steps")):
    a, b = flat(first), flat(second)
    assert a.keys() == b.keys()
    for key, value in a.items():
        if key in ignore:
            continue
        same = torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]
        assert same, key


@pytest.mark.parametrize("option", OPTIONS)
def test_interrupted_run_equals_uninterrupted_run_bit_for_bit(
    make_config, short_schedule, label_table, option
):
    settings = {"penalty_every": 2, **OPTIONS[option]}
    if "labels" in settings:
        settings["labels"] = str(label_table)
    whole = sg.train_from_folder(make_config(name="whole", num_train_steps=5, **settings))
    sg.train_from_folder(make_config(name="parts", num_train_steps=2, **settings))
    parts = sg.train_from_folder(make_config(name="parts", num_train_steps=5, **settings))
    states = [sg.read_checkpoint(t.config.models / "model_0.pt") for t in (whole, parts)]
    assert states[0]["step"] == 5
    if "no_pl_reg" not in settings:
        assert states[0]["pl_mean"] > 0
    assert_same_state(*states)
    tables = [rows_of(t.config) for t in (whole, parts)]
    for rows in zip(*tables, strict=True):
        assert all(rows[0][c] == rows[1][c] for c in ("step", "D", "G", "GP", "PL", "pl_mean"))


def test_metrics_and_previews(make_config, short_schedule):
    trainer = sg.train_from_folder(
        make_config(num_train_steps=4, num_image_tiles=2, evaluate_every=2, penalty_every=2, log=True)
    )
    results = trainer.config.results
    rows = rows_of(trainer.config)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert all(float(row["D"]) and float(row["G"]) and float(row["volumes_per_second"]) for row in rows)
    assert rows[0]["GP"] and not rows[1]["GP"] and rows[2]["GP"]
    names = sorted(p.name for p in (results / "previews").iterdir())
    each = ("GE.nii.gz", "GE.png", "G.png", "mixed.png")
    assert names == sorted(f"{step:06d}-{name}" for step in (0, 2, 4) for name in each)
    assert list((results / "tensorboard").glob("events*"))


def test_mixed_preview_takes_coarse_style_from_its_row_and_fine_from_its_column(make_config):
    config = make_config(num_image_tiles=2, batch_size=3)
    trainer = sg.Trainer(config)
    plain = trainer.preview_volumes()
    mixed = trainer.preview_volumes(mixed=True)
    assert plain.shape == mixed.shape == (4, 1, 4, 8, 8)
    assert torch.equal(mixed[0], plain[0])  # row 0, column 0: seed 0 in all blocks, the noise of seed 0
    assert not torch.equal(mixed[1], plain[1])


def gradients_with(make_config, batch, accumulate, inputs):
    """Gradients of D and of G and S from four given volumes, split into micro-batches."""
    config = make_config(batch_size=batch, gradient_accumulate_every=accumulate, aug_prob=0.0, fp16=False)
    trainer = sg.Trainer(config)
    real, z, noise = inputs
    takes = {"real": 0, "fake": 0}

    def part(name, tensors):
        start = takes[name] % 4
        takes[name] += batch
        return [t[start : start + batch].clone() for t in tensors]

    def sample(rng, generator, labels):
        z_part, noise_part = part("fake", (z, noise))
        return sg.same_style(trainer.GAN.S(z_part), trainer.GAN.G.num_layers), noise_part

    trainer.sample_inputs = sample
    trainer.next_real = lambda: (part("real", (real,))[0], None)
    trainer.accumulate_discriminator(True, accumulate)
    found = {n: p.grad.clone() for n, p in trainer.GAN.D.named_parameters()}
    trainer.D_opt.zero_grad()
    trainer.accumulate_generator(False, accumulate)
    assert all(p.grad is None for p in trainer.GAN.D.parameters())  # none are computed in G's step
    for module in (trainer.GAN.G, trainer.GAN.S):
        found |= {id(module): 0} | {f"{type(module)}{n}": p.grad for n, p in module.named_parameters()}
        found.pop(id(module))
    return found


def test_accumulation_1_x_4_equals_2_x_2(make_config):
    inputs = torch.rand(4, 1, 4, 8, 8), torch.randn(4, 512), torch.rand(4, 4, 8, 8, 1)
    one, two = (gradients_with(make_config, b, 4 // b, inputs) for b in (1, 2))
    assert one.keys() == two.keys()
    floor = 1e-3 * max(gradient.norm() for gradient in one.values())  # real and fake cancel in some biases
    for name in one:
        assert (one[name] - two[name]).norm() <= 1e-5 * max(one[name].norm(), floor), name


@pytest.mark.parametrize("name", [n for n in OPTIONS if not OPTIONS[n].get("fq_layers")])
def test_micro_batches_in_one_pass_are_those_one_after_the_other(
    make_config, label_table, short_schedule, name
):
    """Losses, gradients and ADA's sums are equal up to rounding, whatever a run's options."""
    settings = {"gradient_accumulate_every": 3, "batch_size": 2, "seed": 3, **OPTIONS[name], "fp16": False}
    settings |= {"labels": str(label_table)} if "labels" in settings else {}
    config, found = make_config(**settings), []
    audit = training.open_audit(config, torch.device("cpu"), parallel.Group())
    audit.classes = config.labels and dataset.read_classes(config.labels, config.data, config.balance_classes)
    for at_once in (1, 2):
        trainer = sg.Trainer(config, audit)
        trainer.at_once, trainer.pl_mean = at_once, 0.5
        losses = trainer.accumulate_discriminator(True, 3) | trainer.accumulate_generator(True, 3)
        gradients = {n: p.grad for n, p in trainer.GAN.named_parameters() if p.grad is not None}
        found.append((losses, gradients, trainer.ada and trainer.ada.state()))
    (losses, gradients, ada), (again, others, same) = found
    assert ada == same and losses.keys() == again.keys() and gradients.keys() == others.keys()
    for loss, value in losses.items():
        assert float(again[loss]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), loss
    floor = 1e-3 * max(gradient.norm() for gradient in gradients.values())
    for parameter, gradient in gradients.items():
        assert (others[parameter] - gradient).norm() <= 1e-5 * max(gradient.norm(), floor), parameter


def test_averages_are_copied_then_moved(make_config, monkeypatch):
    trainer = sg.Trainer(make_config())
    weight, average = trainer.GAN.G.initial_conv.weight, trainer.GAN.GE.initial_conv.weight
    with torch.no_grad():
        weight.add_(1)
    first = average.clone()
    for step, moved in ((1, False), (1000, False), (20000, False), (25005, False)):
        trainer.step = step
        trainer.update_averages()
        assert torch.equal(average, first) != moved, step
    trainer.step = 20010
    trainer.update_averages()
    torch.testing.assert_close(average, 0.995 * first + 0.005 * weight)
    trainer.step = 1002
    trainer.update_averages()
    assert torch.equal(average, weight)


def test_learning_rates_and_style_mixing_follow_their_flags(make_config):
    trainer = sg.Trainer(make_config(learning_rate=2e-4, ttur_mult=3.0, mixed_prob=0.0))
    assert trainer.G_opt.param_groups[0]["lr"] == 2e-4
    assert trainer.D_opt.param_groups[0]["lr"] == pytest.approx(6e-4)
    mixed = {}
    for probability in (0.0, 1.0):
        trainer.config.mixed_prob = probability
        drawn = [trainer.sample_inputs(*trainer.random(sg.STREAM_G, micro))[0] for micro in range(20)]
        mixed[probability] = sum(not torch.equal(styles[:, 0], styles[:, -1]) for styles in drawn)
    assert mixed[0.0] == 0 and 3 < mixed[1.0] < 20  # a crossover at block 0 mixes nothing


def test_regularisers_come_at_their_steps(make_config):
    trainer = sg.Trainer(make_config(gradient_accumulate_every=1))
    trainer.loader = iter(lambda: (torch.rand(2, 1, 4, 8, 8), torch.zeros(2)), None)
    for step, expected in ((16, {"D", "GP"}), (17, {"D"})):
        trainer.step = step
        assert set(trainer.discriminator_step()) == expected
    for step, expected in (
        (4992, {"G"}),
        (5024, {"G", "pl_mean"}),
        (5056, {"G", "pl_mean", "PL"}),
        (5057, {"G"}),
    ):
        trainer.step = step
        assert set(trainer.generator_step()) == expected, step


def test_checkpoint_holds_everything_and_fits_the_original(make_config):
    trainer = sg.train_from_folder(make_config(num_train_steps=2, save_every=1))
    path = trainer.config.models / "model_2.pt"
    state = torch.load(path, weights_only=True)
    wanted = {"GAN", "G_opt", "D_opt", "scaler", "step", "reverts", "pl_mean", "random", "config", "affine"}
    wanted |= {"best", "due", "ada", "class_names", "class_shares", "class_digest", "command"}
    wanted |= {"arrangement"}
    assert wanted | {"format_version", "version", "truncation_center", "data_digest", "trained_on"} == set(
        state
    )
    original = sg.StyleGAN2(**trainer.config.network())
    original.load_state_dict(state["GAN"], strict=True)
    config = json.loads((trainer.config.models / ".config.json").read_text(encoding="utf-8"))
    read_by_original = {
        "image_size",
        "network_capacity",
        "fmap_max",
        "transparent",
        "fq_layers",
        "fq_dict_size",
    }
    assert read_by_original | {"attn_layers", "no_const", "lr_mlp", "image_depth"} <= set(config)
    np.testing.assert_allclose(state["affine"], np.diag([0.6, 0.6, 0.8, 1]), atol=1e-4)


def test_keep_checkpoints(make_config):
    trainer = sg.train_from_folder(make_config(num_train_steps=4, save_every=1, keep_checkpoints=2))
    assert runs.checkpoint_numbers(trainer.config.models) == [3, 4]


def test_load_from_keeps_the_later_checkpoints(make_config):
    first = sg.train_from_folder(make_config(num_train_steps=3, save_every=1))
    later = (first.config.models / "model_3.pt").read_bytes()
    sg.train_from_folder(make_config(num_train_steps=2, save_every=1, load_from=1))
    assert runs.checkpoint_numbers(first.config.models) == [0, 1, 2]
    assert (first.config.models / "after-model_1" / "model_3.pt").read_bytes() == later
    with pytest.raises(ValueError, match=r"no model_7\.pt.*can be 0, 1, 2"):
        sg.train_from_folder(make_config(load_from=7))


def test_new_moves_the_earlier_run_aside(make_config):
    first = sg.train_from_folder(make_config(num_train_steps=1))
    sg.train_from_folder(make_config(num_train_steps=1, new=True, seed=1))
    sg.train_from_folder(make_config(num_train_steps=1, new=True, seed=2))
    for folder in (first.config.models, first.config.results):
        assert {p.name for p in folder.parent.iterdir()} == {"t", "t.earlier", "t.earlier-1"}
    seeds = [
        sg.read_checkpoint(first.config.models.parent / n / "model_0.pt")["config"]["seed"]
        for n in ("t.earlier", "t")
    ]
    assert seeds == [42, 2]


def test_init_from_starts_a_new_run_from_given_weights(make_config, data):
    source = sg.train_from_folder(make_config(num_train_steps=2)).config.models / "model_0.pt"
    (data / "v5.nii.gz").unlink()
    write_volume(data / "other.nii.gz", random_array(40))
    config = make_config(name="tuned", num_train_steps=1, init_from=str(source), learning_rate=1e-12)
    tuned = sg.train_from_folder(config)
    assert tuned.step == 1
    known = {collection.content_of(collection.scaled(random_array(n))) for n in (*range(6), 40)}
    assert set(runs.read_state(tuned.config.models / "model_0.pt")["trained_on"]) == known
    given = sg.read_checkpoint(source)["GAN"]["G.initial_conv.weight"]
    torch.testing.assert_close(tuned.GAN.G.initial_conv.weight.data, given)
    again = sg.train_from_folder(make_config(name="tuned", num_train_steps=2, init_from=str(source)))
    assert again.step == 2  # the same start: it goes on
    assert again.trained_on == known
    other = make_config(name="tuned", num_train_steps=1, init_from=str(tuned.config.models / "model_0.pt"))
    with pytest.raises(UserError, match="--init_from starts a new run"):
        sg.train_from_folder(other)


@pytest.mark.parametrize("start", [{"new": True}, {"load_from": 0}, {"init_from": "OTHER"}], ids=str)
def test_the_same_command_continues_what_it_began(make_config, monkeypatch, start, capsys):
    """As on a cluster that preempts: a command that is started again and again comes to its end."""
    common = {"save_every": 2, "num_train_steps": 6}
    if "init_from" in start:
        other = sg.train_from_folder(make_config(name="other", num_train_steps=1))
        start = {"init_from": str(other.config.models / "model_0.pt")}
    else:
        sg.train_from_folder(make_config(num_train_steps=4, save_every=2, seed=9))
    config = make_config(**common, **start)
    step = sg.Trainer.train_step
    seen = []

    def preempted(trainer, log):
        seen.append(trainer.step)
        step(trainer, log)
        if len(seen) in (3, 5):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(sg.Trainer, "train_step", preempted)
    steps = [sg.train_from_folder(config).step for _ in range(3)]
    assert steps == [3, 5, 6] and seen == [0, 1, 2, 3, 4, 5]
    assert sg.train_from_folder(config).step == 6
    assert "is at step 6 already" in capsys.readouterr().out


def test_another_command_with_new_starts_over(make_config):
    first = sg.train_from_folder(make_config(num_train_steps=2, new=True))
    assert sg.train_from_folder(make_config(num_train_steps=1, new=True)).step == 1
    assert (first.config.models.parent / "t.earlier").exists()
    sg.train_from_folder(make_config(num_train_steps=2))  # goes on, and what began the run is remembered
    assert sg.read_checkpoint(first.config.models / "model_0.pt")["command"]["new"] is True


@pytest.mark.parametrize("fp16", [True, False])
def test_float32_is_no_tf32(make_config, monkeypatch, fp16):
    """Penalties, training in float32 and rendering are computed without TF32, which PyTorch has on."""
    assert torch.backends.cudnn.allow_tf32
    seen = []
    monkeypatch.setattr(
        sg.Generator, "initial", lambda G, s: seen.append(torch.backends.cudnn.allow_tf32) or start(G, s)
    )
    monkeypatch.setattr(
        sg.Discriminator,
        "features",
        lambda D, v: seen.append(torch.backends.cudnn.allow_tf32) or judged(D, v),
    )
    trainer = sg.train_from_folder(make_config(num_train_steps=1, fp16=fp16))
    model = sg.ModelLoader(checkpoint=trainer.config.models / "model_0.pt", device="cpu")
    before = len(seen)
    list(model.volumes_of([1]))
    assert seen[before:] == [False] and torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        list(model.volumes_of([1]))
    assert seen[-1] is True  # where speed was asked for
    assert seen[:before].count(False) >= 5 and (fp16 or True not in seen[:before])


def test_changed_settings_are_reported_once_each(make_config, capsys):
    sg.train_from_folder(make_config(num_train_steps=1))
    sg.train_from_folder(make_config(num_train_steps=2, pl_batch_shrink=2))
    assert capsys.readouterr().out.count("--pl_batch_shrink was 1") == 1


def test_original_checkpoint_can_be_continued(make_config, capsys):
    config = make_config(num_train_steps=6, save_every=5)
    gan = sg.StyleGAN2(**config.network())
    config.models.mkdir(parents=True)
    torch.save({"GAN": gan.state_dict()}, config.models / "model_1.pt")
    assert sg.train_from_folder(config).step == 6
    assert "holds weights alone: continuing at step 5" in capsys.readouterr().out


def test_other_sizes_than_the_runs_are_refused(make_config):
    sg.train_from_folder(make_config(num_train_steps=1))
    with pytest.raises(ValueError, match=r"--network_capacity is 4, but .* has 2"):
        sg.train_from_folder(make_config(num_train_steps=2, network_capacity=4))


def test_sizes_left_out_are_taken_from_the_run(make_config, capsys):
    sg.train_from_folder(make_config(num_train_steps=1))
    defaults = {
        n: getattr(sg.TrainConfig, n) for n in ("image_size", "image_depth", "network_capacity", "fmap_max")
    }
    assert sg.train_from_folder(make_config(num_train_steps=2, **defaults)).step == 2
    assert "image_size 8, image_depth 4, network_capacity 2, fmap_max 16" in capsys.readouterr().out


def test_changed_settings_and_data_are_reported(make_config, data, capsys):
    sg.train_from_folder(make_config(num_train_steps=1))
    write_volume(data / "another.nii.gz", random_array(77))
    sg.train_from_folder(make_config(num_train_steps=2, learning_rate=1e-3))
    text = capsys.readouterr().out
    assert "--learning_rate was 0.0001" in text and "is 0.001 now" in text and "are not those" in text


def test_finished_run_says_so(make_config, capsys):
    sg.train_from_folder(make_config(num_train_steps=1))
    sg.train_from_folder(make_config(num_train_steps=1))
    assert "is at step 1 already: raise --num_train_steps" in capsys.readouterr().out


@pytest.mark.parametrize(("times", "survives"), [(3, True), (4, False)])
def test_nan_goes_back_to_the_checkpoint_at_most_three_times(make_config, monkeypatch, times, survives):
    config = make_config(num_train_steps=4, save_every=2)
    seen = []

    def poisoned(real_logits, fake_logits):
        trainer_is_at = len(seen)
        seen.append(real_logits.sum().item())
        loss = F.relu(1 + real_logits).mean() + F.relu(1 - fake_logits).mean()
        bad = poisoned.left and trainer_is_at >= 4  # in the second step
        poisoned.left -= bool(bad)
        return loss * float("nan") if bad else loss

    poisoned.left = times
    monkeypatch.setattr(sg, "hinge_loss", poisoned)
    monkeypatch.setattr(sg.Trainer, "generator_loss", lambda self, logits, _: torch.nan_to_num(logits).mean())
    if survives:
        trainer = sg.train_from_folder(config)
        assert trainer.step == 4 and trainer.reverts >= 2
        assert all(p.isfinite().all() for p in trainer.GAN.parameters())
        rows = rows_of(config)
        assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    else:
        poisoned.left = 99
        with pytest.raises(runs.NanException, match=r"D is not finite.*v\d\.nii\.gz.*--learning_rate"):
            sg.train_from_folder(config)


def test_rehearsals_leave_no_trace(make_config):
    config = make_config(num_train_steps=1)
    trainer = sg.Trainer(config)
    before = {n: t.clone() for n, t in trainer.GAN.state_dict().items()}
    trainer.loader = iter(lambda: (torch.rand(2, 1, 4, 8, 8), torch.zeros(2)), None)
    for _, work in trainer.rehearsals():
        work()
    assert all(torch.equal(t, before[n]) for n, t in trainer.GAN.state_dict().items())
    assert trainer.pl_mean is None and trainer.step == 0
    assert all(p.grad is None for p in trainer.GAN.parameters())


def test_allocation_tracker_counts_what_lives():
    with memory.AllocationTracker() as tracker:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100) * 2  # a view is no memory
    assert tracker.bytes == 4 * 2000 and tracker.peak == 4 * 2000
    del b, c
    assert tracker.bytes == 0


def test_dry_run_writes_nothing_and_allocates_nothing_large(make_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "seconds_on_cpu", lambda *_: None)  # tests/test_timing.py has it
    everything = {"rel_disc_loss": True, "dual_contrast_loss": True, "top_k_training": True, "dry_run": True}
    trainer = sg.train_from_folder(make_config(network_capacity=64, fmap_max=4096, **everything))
    assert isinstance(trainer.GAN.G.initial_block.data, FakeTensor)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]
    text = capsys.readouterr().out
    for line in (
        "fmap_max: 4096",
        "parameters (million)",
        "peak memory, path length",
        "peak memory, preview",
    ):
        assert line in text


def test_predicted_memory_grows_with_the_batch(make_config):
    audit = dataset.audit_volumes(make_config().data, (8, 8, 4))
    rehearse = training.rehearse_on_cpu
    small, large = (rehearse(sg.Trainer, make_config(batch_size=b), audit, parallel.Group()) for b in (1, 6))
    fixed = 4 * layers.count_parameters(sg.StyleGAN2(**make_config().network()))
    assert small.keys() == {"gradient penalty", "path length", "preview"}
    assert all(fixed / 2 < small[phase] < large[phase] for phase in small)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-500]), "cannot be read"),
        (lambda p: p.write_bytes(b"garbage"), "cannot be read"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
        (lambda p: torch.save({"state_dict": {}}, p), "it has no entry 'GAN'"),
        (lambda p: torch.save({"GAN": {"weight": torch.zeros(1)}}, p), "is not a 3D StyleGAN2 checkpoint"),
    ],
    ids=["truncated", "garbage", "empty", "another program's", "another network's"],
)
def test_damaged_checkpoints_are_named(make_config, spoil, text):
    config = make_config(num_train_steps=1)
    path = sg.train_from_folder(config).config.models / "model_0.pt"
    spoil(path)
    with pytest.raises(ValueError, match=text) as error:
        sg.train_from_folder(make_config(num_train_steps=2))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_flipped_bytes_in_a_checkpoint_are_found(make_config):
    path = sg.train_from_folder(make_config(num_train_steps=1)).config.models / "model_0.pt"
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [r for r in archive.infolist() if r.file_size]
    rng = np.random.default_rng(0)
    for record in (records[n] for n in rng.integers(0, len(records), 50)):
        name_and_extra = int.from_bytes(whole[record.header_offset + 26 :][:2], "little")
        name_and_extra += int.from_bytes(whole[record.header_offset + 28 :][:2], "little")
        place = record.header_offset + 30 + name_and_extra + int(rng.integers(record.file_size))
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(8)))]) + whole[place + 1 :]
        )
        with pytest.raises(UserError, match=r"model_0\.pt (cannot be read|is damaged)"):
            sg.read_checkpoint(path)
    path.write_bytes(whole)
    assert sg.read_checkpoint(path)["step"] == 1


def test_checkpoint_of_a_newer_program_is_refused(make_config):
    path = sg.train_from_folder(make_config(num_train_steps=1)).config.models / "model_0.pt"
    torch.save(torch.load(path, weights_only=True) | {"format_version": 99, "version": "9.0"}, path)
    with pytest.raises(ValueError, match=r"written by version 9\.0 in format 99.*update"):
        sg.train_from_folder(make_config(num_train_steps=2))


def test_float16_on_the_cpu_trains_with_a_scaler(make_config):
    trainer = sg.train_from_folder(make_config(num_train_steps=2, amp_dtype="float16"))
    assert trainer.scaler.is_enabled() and trainer.step == 2


@pytest.mark.parametrize("loss", ["GP", "PL"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_penalties_in_half_precision_teach_what_those_in_float32_do(make_config, dtype, loss):
    found, real = {}, torch.rand(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for precision in sg.PRECISIONS:
        config = make_config(amp_dtype=dtype, penalty_precision=precision, aug_prob=0.0)
        trainer = sg.Trainer(config)
        trainer.pl_mean, trainer.next_real = 0.5, lambda: (real.clone(), None)
        trainer.scaler = torch.amp.GradScaler("cpu", 1024.0, enabled=dtype == "float16")
        accumulate = trainer.accumulate_discriminator if loss == "GP" else trainer.accumulate_generator
        value = float(accumulate(True, 1)[loss])
        gradients = [p.grad.flatten() for p in trainer.GAN.parameters() if p.grad is not None]
        found[precision] = value, torch.cat(gradients) / trainer.scaler.get_scale()
    (value, gradient), (other, same) = found.values()
    assert other == pytest.approx(value, rel=0.02) and other != value
    assert torch.cosine_similarity(gradient, same, dim=0) > 0.99
    assert float(same.norm() / gradient.norm()) == pytest.approx(1, rel=0.03)


def test_kill_during_a_save_leaves_the_last_checkpoint(data, tmp_path):
    flags = tiny_flags(data, tmp_path, num_train_steps=2, save_every=9)
    assert run_script("stylegan2_pytorch.py", *flags).returncode == 0
    program = f"""
import os, signal, sys, torch
sys.path.insert(0, {str(ROOT)!r})
import stylegan2_pytorch as sg
write = torch.save
def half(state, path):
    write(state, path)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
sg.main({[*map(str, tiny_flags(data, tmp_path, num_train_steps=4, save_every=9))]!r})
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=1800)
    assert killed.returncode == -signal.SIGKILL
    checkpoint = tmp_path / "models" / "t" / "model_0.pt"
    assert sg.read_checkpoint(checkpoint)["step"] == 2
    flags = tiny_flags(data, tmp_path, num_train_steps=4, save_every=9)
    assert run_script("stylegan2_pytorch.py", *flags).returncode == 0
    assert sg.read_checkpoint(checkpoint)["step"] == 4
    assert [p.name for p in sorted(checkpoint.parent.iterdir())] == [".config.json", "model_0.pt"]


def wait_for_steps(table, process):
    """Wait until a training has written a few rows of its metrics.csv."""
    deadline = time.monotonic() + 1800
    while not (table.exists() and len(table.read_text(encoding="utf-8").splitlines()) > 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "settings"),
    [
        (signal.SIGTERM, {}),
        (signal.SIGINT, {}),
        (signal.SIGTERM, {"cache": "none", "num_workers": 2}),
        (signal.SIGTERM, {"cache": "ram", "num_workers": 1}),
    ],
    ids=["SIGTERM", "SIGINT", "SIGTERM to workers too", "SIGTERM to a worker too"],
)
def test_signals_save_and_exit_as_a_shell_expects(data, tmp_path, number, settings):
    """The signal goes to all processes of the job, as Slurm and Kubernetes send it."""
    flags = tiny_flags(data, tmp_path, num_train_steps=100000, save_every=100000, **settings)
    run = start_script("stylegan2_pytorch.py", *flags, folder=tmp_path)
    table = tmp_path / "results" / "t" / "metrics.csv"
    wait_for_steps(table, run)
    os.killpg(run.pid, number)
    assert run.wait(timeout=60) == 128 + number
    assert "The same command continues the run" in run.texts()[0]
    step = sg.read_checkpoint(tmp_path / "models" / "t" / "model_0.pt")["step"]
    assert step == len(table.read_text(encoding="utf-8").splitlines()) - 1


def test_a_run_is_not_started_twice(data, tmp_path):
    """By a lock that a killed process does not leave behind."""
    flags = tiny_flags(data, tmp_path, num_train_steps=100000, save_every=100000)
    first = start_script("stylegan2_pytorch.py", *flags, folder=tmp_path)
    table = tmp_path / "results" / "t" / "metrics.csv"
    wait_for_steps(table, first)
    second = run_script("stylegan2_pytorch.py", *flags)
    assert second.returncode == 1
    assert f"in use by process {first.pid} on" in second.stderr.splitlines()[-1]
    rows = len(table.read_text(encoding="utf-8").splitlines())
    first.kill()
    first.wait()
    assert len(table.read_text(encoding="utf-8").splitlines()) >= rows
    one = tiny_flags(data, tmp_path, num_train_steps=1, save_every=100000, new=True)
    done = run_script("stylegan2_pytorch.py", *one)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "models").glob("*.lock"))


def test_model_loader_and_generation(make_config):
    config = make_config(num_train_steps=2)
    sg.train_from_folder(config)
    model = sg.ModelLoader(base_dir=config.results.parent.parent, name="t", device="cpu")
    z = torch.randn(2, 512)
    w = model.noise_to_styles(z, trunc_psi=0.5)
    center = sg.read_checkpoint(model.path)["truncation_center"]["SE"]
    torch.testing.assert_close(w, center + 0.5 * (model.noise_to_styles(z) - center))
    volumes = model.styles_to_images(w)
    assert volumes.shape == (2, 1, 4, 8, 8) and volumes.min() >= 0 and volumes.max() <= 1
    noise = torch.rand(2, 8, 8, 8, 1)
    assert torch.equal(
        model.styles_to_images_ext_noise(w, noise), model.styles_to_images_ext_noise(w, noise[:, :4])
    )
    current = sg.ModelLoader(checkpoint=model.path, device="cpu", use_average=False)
    assert not torch.equal(current.G.initial_conv.weight, model.G.initial_conv.weight)
