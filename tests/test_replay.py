"""Steps as CUDA graphs, on a CPU with a stand-in for the graph: the same training as step after step."""

import contextlib
from unittest import mock

from volumetric import diff_augment, parallel, replay
from volumetric.cli import UserError

import pytest
import torch

import stylegan2_pytorch as sg
from tests.test_training import assert_same_state

ALIKE = {"recipe": "robust", "aug_prob": 0.0, "mixed_prob": 0.0, "no_pl_reg": True, "penalty_every": 2}


@contextlib.contextmanager
def nothing_from_the_host():
    """Nothing goes from the host to the device or back: a capture would fail, or a replay repeat it."""

    def refuse(*args, **settings):
        raise AssertionError("the host takes part in what is captured")

    with contextlib.ExitStack() as stack:
        for place, names in {
            parallel: ("to_device", "host_random", "device_random"),
            diff_augment: ("to_device", "host_random", "device_random"),
            torch: ("from_numpy", "as_tensor", "tensor", "Generator"),
            torch.Tensor: ("item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__"),
        }.items():
            for name in names:
                stack.enter_context(mock.patch.object(place, name, refuse))
        yield


class StandIn:
    """Runs what it captured again, and writes the results where those of the capture are."""

    trainer = None
    replays = 0

    def __init__(self, pool, device):
        assert (pool, device.type) == (None, "cpu")

    def capture(self, warm_up, function):
        """As Graph's."""
        warm_up()
        self.function = function
        with nothing_from_the_host():
            self.losses = function()
        self.gradients = {p: p.grad for p in self.trainer.GAN.parameters() if p.grad is not None}
        return self.losses

    def replay(self):
        """As Graph's."""
        StandIn.replays += 1
        with nothing_from_the_host():
            losses = self.function()
        for parameter, kept in self.gradients.items():
            kept.copy_(parameter.grad)
            parameter.grad = None
        for name, kept in self.losses.items():
            kept.copy_(losses[name])


def train(make_config, name, **settings):
    """State after eight steps."""
    settings = {**ALIKE, "num_train_steps": 8, "save_every": 8, "final_rate": 0.1, **settings}
    config = make_config(name=name, **settings)
    sg.train_from_folder(config)
    return sg.read_checkpoint(config.models / "model_1.pt")


@pytest.fixture
def replaying(monkeypatch):
    """Trainings on the CPU replay their steps."""
    ordinary = sg.Trainer.train

    def train_by_replays(self):
        assert self.steps_are_alike()
        StandIn.trainer, self.replay = self, replay.Replay(self, self.GAN.parameters())
        return ordinary(self)

    def begin():
        monkeypatch.setattr(replay, "Graph", StandIn)
        monkeypatch.setattr(sg.Trainer, "train", train_by_replays)
        StandIn.replays = 0

    return begin


@pytest.mark.parametrize(
    "settings",
    [
        {"aug_prob": 0.5, "aug_each": False, "mixed_prob": 0.9},
        {"aug_prob": 0.5, "aug_each": True, "aug_types": ("rotation", "noise", "cutout"), "fp16": False},
        {"ada_target": 0.6, "ada_volumes": 50, "aug_prob": 0.0},
        {
            "recipe": "published",
            "penalty": "one_centered",
            "fp16": False,
            "no_pl_reg": False,
            "aug_prob": 0.5,
        },
    ],
    ids=str,
)
def test_what_the_host_decides_is_replayed_as_it_decides(make_config, replaying, monkeypatch, settings):
    monkeypatch.setattr(sg, "PATH_LENGTH_AFTER", 0)
    monkeypatch.setattr(sg, "PATH_LENGTH_EVERY", 2)
    settings = {"num_train_steps": 14, "save_every": 14, **settings}
    expected = train(make_config, "plain", **settings)
    replaying()
    found = train(make_config, "replayed", **settings)
    assert StandIn.replays > 8
    assert_same_state(expected, found)


@pytest.mark.parametrize("penalty", ["r1r2", "r1"])
def test_replayed_steps_are_the_same_training(make_config, label_table, replaying, penalty):
    settings = {"labels": str(label_table), "fp16": False} if penalty == "r1" else {"loss": "relativistic"}
    settings |= {"penalty": penalty}
    expected = train(make_config, "plain", **settings)
    replaying()
    found = train(make_config, "replayed", **settings)
    # of 4 steps of D with a penalty, 4 without, and 8 of G, the first three each are ordinary
    assert StandIn.replays == 1 + 1 + 5
    assert_same_state(expected, found)


def test_what_cannot_be_captured_names_the_flag(make_config, replaying, monkeypatch):
    def fail(*_):
        raise RuntimeError("operation not permitted\nmore")

    replaying()
    monkeypatch.setattr(StandIn, "capture", fail)
    with pytest.raises(UserError, match=r"\(operation not permitted\): give --cuda_graphs False"):
        train(make_config, "failing")


@pytest.mark.parametrize(
    "settings",
    [
        {"final_gamma": 0.1},
        {"cl_reg": True},
        {"fq_layers": (1,)},
        {"top_k_training": True, "loss": "logistic"},
        {"checkpoint_activations": True},
    ],
    ids=str,
)
def test_steps_that_the_host_decides_are_not_replayed(make_config, settings):
    assert sg.Trainer(make_config(**ALIKE)).steps_are_alike()
    assert not sg.Trainer(make_config(**{**ALIKE, **settings})).steps_are_alike()
