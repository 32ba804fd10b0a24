"""Recipes: sets of defaults, the robust losses, penalties, rates, averages, and their exact resuming."""

from dataclasses import replace

from volumetric import cli, dataset, parallel, training
from volumetric.cli import UserError

import pytest
import torch

import stylegan2_pytorch as sg
from tests.conftest import interrupted_at
from tests.test_training import assert_same_state, rows_of

ROBUST = {
    "plain": {},
    "float32": {"fp16": False},
    "float16": {"amp_dtype": "float16"},
    "classes": {"labels": "LABELS", "balance_classes": True},
    "falling": {
        "final_gamma": 0.05,
        "final_rate": 0.1,
        "aug_prob": 0.5,
        "ada_target": 0.6,
        "ada_volumes": 100,
    },
}


@pytest.mark.parametrize("option", ROBUST)
def test_robust_resumes_bit_for_bit_across_its_schedules(make_config, label_table, option):
    """Interrupted by a signal: the schedules are shares of num_train_steps, which stay the same."""
    settings = {"recipe": "robust", "penalty_every": 2, "num_train_steps": 6, **ROBUST[option]}
    if "labels" in settings:
        settings["labels"] = str(label_table)
    whole = sg.train_from_folder(make_config(name="whole", **settings))
    with interrupted_at(sg.Trainer, 3):
        assert sg.train_from_folder(make_config(name="parts", **settings)).step == 3
    parts = sg.train_from_folder(make_config(name="parts", **settings))
    assert_same_state(*(sg.read_checkpoint(t.config.models / "model_0.pt") for t in (whole, parts)))
    assert [row["D"] for row in rows_of(whole.config)] == [row["D"] for row in rows_of(parts.config)]
    full = whole.config.learning_rate
    for group in whole.G_opt.param_groups:
        assert group["lr"] / group["full"] == pytest.approx(1 - 5 / 6 * (1 - whole.config.final_rate))
    assert max(group["full"] for group in whole.G_opt.param_groups) == full


@pytest.mark.parametrize("loss", ["relativistic", "logistic"])
@pytest.mark.parametrize("penalized", [True, False])
def test_volumes_of_a_relativistic_pair_are_of_one_class(make_config, label_table, loss, penalized):
    """D is asked which of two volumes of a class is real; other losses draw classes of their own."""
    settings = {"recipe": "robust", "loss": loss, "batch_size": 6, "labels": str(label_table), "seed": 1}
    config, asked = make_config(**settings), []
    audit = training.open_audit(config, torch.device("cpu"), parallel.Group())
    audit.classes = dataset.read_classes(config.labels, config.data)
    trainer = sg.Trainer(config, audit)
    trainer.GAN.D.register_forward_pre_hook(lambda _, args: asked.append(args[1]))
    trainer.accumulate_discriminator(penalized, 2)
    pairs = [labels.chunk(2) for labels in asked if len(labels) == 12]  # not the parts of a penalty alone
    asked.clear()
    trainer.accumulate_generator(False, 2)
    if loss == "relativistic":
        pairs += [asked[:2], asked[2:]]  # G's, of generated and of real volumes
    assert len(pairs) == (4 if loss == "relativistic" else 2)
    assert [torch.equal(*pair) for pair in pairs] == len(pairs) * [loss == "relativistic"]


def test_recipe_is_a_set_of_defaults_and_a_flag_wins():
    robust = cli.parse_cli(sg.TrainConfig, ["--recipe", "robust", "--ttur_mult", "1.5"])
    assert robust == sg.TrainConfig(recipe="robust", ttur_mult=1.5)
    assert (robust.loss, robust.penalty, robust.average) == ("relativistic", "r1r2", "ramped")
    assert (
        robust.learning_rate == 3e-3 and robust.equalized_lr and robust.no_pl_reg and robust.ttur_mult == 1.5
    )
    given = cli.parse_cli(sg.TrainConfig, ["--recipe", "robust", "--loss", "hinge", "--average", "published"])
    assert (given.loss, given.average) == ("hinge", "published")
    assert replace(given, seed=3).loss == "hinge"  # what was resolved stays


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"loss": "logistic", "dual_contrast_loss": True}, "--loss logistic stands alone"),
        ({"loss": "relativistic", "rel_disc_loss": True}, "--loss relativistic stands alone"),
        ({"loss": "relativistic", "top_k_training": True}, "compares pairs: leave --top_k_training out"),
        ({"adam_betas": (0.5, 1.0)}, r"--adam_betas must be two numbers from 0 to below 1, got \(0.5, 1.0\)"),
        ({"adam_betas": 0.5}, r"--adam_betas must be two numbers from 0 to below 1, got \(0.5,\)"),
        ({"loss": "hinged"}, "--loss must be hinge or logistic or relativistic, got 'hinged'"),
        ({"final_rate": 1.5}, "--final_rate must be between 0 and 1"),
        ({"gamma": 0.0}, "--gamma must be greater than 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, text):
    with pytest.raises(UserError, match=text):
        sg.TrainConfig(**settings)


def test_ramped_average_follows_the_length_of_the_training(make_config):
    """Half of its weight is in the last 5 % of the volumes seen, up to 10,000 volumes."""
    trainer = sg.Trainer(make_config(average="ramped", batch_size=8, gradient_accumulate_every=1))
    weight, average = trainer.GAN.G.initial_conv.weight, trainer.GAN.GE.initial_conv.weight
    with torch.no_grad():
        average.zero_()
        weight.fill_(1)
    for step, half_life in ((0, 0.4), (999, 400), (10**6, 10000)):
        with torch.no_grad():
            average.zero_()
        trainer.step = step
        trainer.update_averages()
        torch.testing.assert_close(average.mean(), torch.tensor(1 - 0.5 ** (8 / half_life)))


def test_equalised_rates_follow_the_size_of_the_layers(make_config):
    trainer = sg.Trainer(make_config(recipe="robust"))
    rates = {
        id(p): g["lr"] for o in (trainer.G_opt, trainer.D_opt) for g in o.param_groups for p in g["params"]
    }
    block, last = trainer.GAN.G.blocks[0], trainer.GAN.G.blocks[-1]
    assert len(rates) == sum(p.requires_grad for n in "SGD" for p in getattr(trainer.GAN, n).parameters())
    assert id(block.to_noise1.weight) not in rates and id(last.to_noise1.weight) not in rates
    fan_in = block.conv1.weight[0].numel()
    assert rates[id(block.conv1.weight)] == pytest.approx(3e-3 * (2 / fan_in) ** 0.5)
    assert rates[id(block.to_style1.weight)] == pytest.approx(3e-3 * (2 / 512) ** 0.5)
    plain = (last.to_noise2.weight, block.to_style1.bias, trainer.GAN.G.initial_block)
    assert all(rates[id(p)] == 3e-3 for p in plain)
    assert rates[id(trainer.GAN.S.net[0].weight)] == pytest.approx(3e-3 * 0.01)


def test_zero_centred_penalties_are_of_what_d_sees_and_lazy(make_config, monkeypatch):
    """R1 + R2 of a linear D: gamma / 2 * 2 * |w|^2, times the steps between them."""
    trainer = sg.train_from_folder(make_config(num_train_steps=1))
    config = replace(trainer.config, penalty="r1r2", penalty_every=4, gamma=0.5, fp16=False)
    trainer = sg.Trainer(config, trainer.audit)
    slope = torch.randn(1, 1, 4, 8, 8)
    monkeypatch.setattr(trainer, "logits", lambda volumes, _: (volumes * slope).sum(dim=(1, 2, 3, 4)))
    monkeypatch.setattr(trainer.scaler, "scale", lambda loss: Spy(loss))

    class Spy:
        def __init__(self, loss):
            self.loss = loss

        def backward(self, **_):
            pass

    for trainer.joint in (False, True):
        found = trainer.accumulate_discriminator(True, 2)
        assert float(found["GP"]) == pytest.approx(float(4 * 0.5 * slope.square().sum()), rel=1e-4)


@pytest.mark.parametrize("loss", ["relativistic", "logistic", "hinge"])
@pytest.mark.parametrize(
    "more",
    [
        {"minibatch_std": False, "all_pairs": False},
        {"minibatch_std": False, "all_pairs": False, "labels": "LABELS", "ada_target": 0.6, "aug_prob": 0.5},
        {"labels": "LABELS"},
    ],
)
def test_loss_and_penalty_of_one_pass_are_those_of_passes_of_their_own(make_config, label_table, loss, more):
    """Also where groups of two are compared, all with all."""
    more = more | ({"labels": str(label_table)} if "labels" in more else {})
    config, found = make_config(recipe="robust", loss=loss, fp16=False, batch_size=4, **more), []
    trainer = sg.train_from_folder(replace(config, num_train_steps=1))
    start, parts = trainer.state(), (3, 1)
    if trainer.config.minibatch_std:
        assert trainer.GAN.D.group == trainer.grouped == 4 and trainer.penalty_part % 4 == 0
        trainer.GAN.D.group = trainer.grouped = 2
        parts = (2, 2)
    for joint, part, at_once in ((False, 4, 1), (True, 4, 1), (True, parts[0], 1), (True, parts[1], 2)):
        trainer.load(start)
        trainer.joint, trainer.penalty_part, trainer.at_once, trainer.loader = joint, part, at_once, None
        losses = trainer.accumulate_discriminator(True, 2)
        gradients = {name: p.grad for name, p in trainer.GAN.D.named_parameters()}
        trainer.D_opt.zero_grad()
        found.append((losses, gradients, trainer.ada and trainer.ada.state()))
    (losses, gradients, ada), *others = found
    floor = 1e-3 * max(gradient.norm() for gradient in gradients.values())
    for again, same, seen in others:
        assert seen == ada
        assert {k: float(v) for k, v in again.items()} == pytest.approx(
            {k: float(v) for k, v in losses.items()}, rel=1e-4
        )
        for name, gradient in gradients.items():
            assert (same[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), floor), name


def test_noise_of_the_last_convolution_alone_draws_no_shape(make_config, data):
    """The other noise weights stay 0, whatever the run starts from, and are not of the optimiser."""
    first = sg.train_from_folder(make_config(name="all", recipe="robust", noise="all", num_train_steps=2))
    weights = [n for n, _ in first.GAN.G.named_parameters() if "to_noise" in n and n.endswith("weight")]
    *silent, last = weights
    assert all(first.GAN.G.get_parameter(name).any() for name in weights)
    source = str(first.config.models / "model_0.pt")
    tuned = sg.train_from_folder(
        make_config(name="tuned", recipe="robust", init_from=source, num_train_steps=2)
    )
    for G in (tuned.GAN.G, tuned.GAN.GE):
        assert not any(G.get_parameter(name).any() for name in silent)
        assert G.get_parameter(last).any()
    assert tuned.silent == silent
    again = sg.train_from_folder(make_config(name="all", recipe="robust", num_train_steps=3))
    assert again.config.noise == "all"  # as the run began


def test_run_of_an_earlier_robust_recipe_goes_on_as_it_was(make_config, capsys):
    """Its checkpoint does not state where noise is, which pairs are compared, what D sees."""
    former = {"recipe": "robust", "noise": "all", "all_pairs": False, "minibatch_std": False}
    trainer = sg.train_from_folder(make_config(num_train_steps=1, **former))
    path = trainer.config.models / "model_0.pt"
    state = torch.load(path, weights_only=True)
    for name in ("noise", "all_pairs", "minibatch_std"):
        del state["config"][name], state["command"][name]
    torch.save(state, path)
    again = sg.train_from_folder(make_config(recipe="robust", num_train_steps=2))
    assert "minibatch_std False, noise all, all_pairs False" in capsys.readouterr().out
    assert again.step == 2 and again.GAN.D.group is None and not again.silent
    with pytest.raises(UserError, match=r"--minibatch_std is True, but .* has False"):
        training.adopt_settings(make_config(minibatch_std=True), {**vars(again.config)}, "model_0.pt")


def test_d_sees_how_volumes_differ(make_config, capsys):
    """Of volumes that are all alike, more or fewer in a batch look the same to it; of others, not."""
    trainer = sg.train_from_folder(make_config(recipe="robust", batch_size=4, num_train_steps=1, fp16=False))
    one, other = torch.rand(2, 1, *trainer.config.shape)
    with torch.no_grad():
        alike = trainer.logits(one.expand(4, 1, *one.shape[1:]), None)
        among = trainer.logits(torch.stack([one, one, one, other]), None)
    assert torch.allclose(alike, alike[0].expand(4)) and not torch.allclose(alike[0], among[0], rtol=1e-4)
    sg.Trainer(make_config(recipe="robust", batch_size=3))
    assert "--minibatch_std sees nothing in 3 volumes" in capsys.readouterr().out
