"""A trainer of another kind of model is a small subclass of VolumeTrainer: a flow (arXiv:2210.02747)."""

import copy
from collections import defaultdict
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from tests.conftest import interrupted_at, write_data, write_labels
from tests.test_training import assert_same_state
from volumetric import layers, memory, parallel, runs, training
from volumetric.cli import UserError, VolumeConfig, inherited, one_line_errors, option, parse_cli
from volumetric.pictures import contact_sheet


@dataclass(kw_only=True)
class FlowConfig(VolumeConfig):
    """Train a flow from noise to volumes."""

    width: int = option(4, "Channels.", network=True)
    learning_rate: float = inherited(VolumeConfig, "learning_rate", 1e-2)


class Networks(nn.Module):
    """The velocity V(x_t, t, class), and its average VE."""

    def __init__(self, width, num_classes):
        super().__init__()
        self.V = nn.Sequential(
            layers.Conv3d(2 + num_classes, width, 3, padding=1), nn.SiLU(), layers.Conv3d(width, 1, 1)
        )
        self.VE = copy.deepcopy(self.V).requires_grad_(False)


class FlowTrainer(training.VolumeTrainer):
    """Least squares of x_1 - x_0 at x_t = (1 - t) x_0 + t x_1."""

    entry = "flow"

    def __init__(self, config, audit=None, group=None, command=None):
        super().__init__(config, audit, group, command)
        volumes = config.batch_size * config.gradient_accumulate_every
        about = {"volumes_per_step": volumes, "columns": ("loss",), "shown": ("loss",)}
        self.plan = runs.Plan.of(config, **about)
        self.number = len(self.classes.names) if self.classes else 0
        self.networks = self.placed(Networks(config.width, self.number))
        self.optimizers = {"opt": self.adam("V")}

    def averaged(self):
        return [(self.networks.VE, self.networks.V)]

    def velocity(self, V, x, t, labels):
        seen = [x, t.view(-1, 1, 1, 1, 1).expand_as(x)]
        if labels is not None:
            kinds = nn.functional.one_hot(labels, self.number).to(x.dtype)
            seen.append(kinds.view(*kinds.shape, 1, 1, 1).expand(-1, -1, *x.shape[2:]))
        with self.autocast():
            return V(torch.cat(seen, dim=1)).float()

    def update(self):
        return self.update_by("opt", self.accumulate)

    def accumulate(self, micro_batches):
        losses, share = defaultdict(float), 1 / micro_batches / self.group.world
        for micro in range(micro_batches):
            _, generator = self.random(parallel.STREAM_STEP, micro)
            volumes, labels = self.next_real()
            noise = self.draw(torch.randn, volumes.shape[1:], generator)
            t = self.draw(torch.rand, (), generator)
            x = torch.lerp(noise, volumes, t.view(-1, 1, 1, 1, 1))
            found = self.velocity(self.networks.V, x, t, labels)
            loss = (found - (volumes - noise)).square().mean() * share
            losses["loss"] += loss.detach()
            self.scaler.scale(loss).backward()
        return losses

    def rehearsed(self):
        return [("step", self.accumulate, 1)]

    @torch.no_grad()
    def preview(self):
        """Four steps of Euler."""
        x = torch.randn(4, 1, *self.config.shape, generator=torch.Generator().manual_seed(self.config.seed))
        labels = torch.arange(4) % self.number if self.number else None
        for step in range(4):
            x = x + self.velocity(self.networks.VE, x, torch.full((4,), step / 4), labels) / 4
        return {"VE": contact_sheet(x.clamp(0, 1), self.audit.affine, 2)}


def config_of(folder, **settings):
    where = {name: str(folder / name) for name in ("data", "results_dir", "models_dir")}
    tiny = {
        "image_size": 8,
        "image_depth": 4,
        "batch_size": 2,
        "gradient_accumulate_every": 2,
        "device": "cpu",
    }
    return FlowConfig(**{"name": "flow", **where, **tiny, **settings})


def train(config, group=None):
    return training.train_from_folder(FlowTrainer, config, group)


@pytest.mark.parametrize("classes", [False, True])
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, classes):
    data = write_data(tmp_path)
    labels = {"labels": str(write_labels(tmp_path, data)), "balance_classes": True} if classes else {}
    settings = {**labels, "final_rate": 0.1, "num_train_steps": 12}
    whole = train(config_of(tmp_path, name="whole", **settings))
    with interrupted_at(FlowTrainer, 7):
        assert train(config_of(tmp_path, name="parts", **settings)).ended_by == 15
    parts = train(config_of(tmp_path, name="parts", **settings))
    assert_same_state(*(runs.read_state(t.config.models / "model_0.pt") for t in (whole, parts)))
    assert whole.optimizers["opt"].param_groups[0]["lr"] == pytest.approx(1e-2 * (1 - 0.9 * 11 / 12))
    assert not torch.equal(whole.networks.VE[0].weight, whole.networks.V[0].weight)


def test_it_is_checked_before_it_runs(tmp_path, capsys):
    write_data(tmp_path)
    small = train(config_of(tmp_path, dry_run=True))
    assert isinstance(small.networks.VE[0].weight, FakeTensor)
    text = capsys.readouterr().out
    assert "peak memory, step" in text and "parameters (million): flow 0.0" in text
    with pytest.raises(UserError, match=r"holds 6 volumes, fewer than a batch of 8.*--batch_size 6"):
        train(config_of(tmp_path, batch_size=8))
    train(config_of(tmp_path, num_train_steps=1, width=3))
    assert train(config_of(tmp_path, num_train_steps=2)).config.width == 3
    with pytest.raises(UserError, match=r"--width is 5, but .* has 3"):
        train(config_of(tmp_path, num_train_steps=2, width=5))


def test_its_command_line(tmp_path):
    write_data(tmp_path)
    flags = ["--data", tmp_path / "data", "--results_dir", tmp_path, "--models_dir", tmp_path / "models"]
    flags += ["--image_size", 8, "--image_depth", 4, "--batch_size", 2, "--device", "cpu"]
    config = parse_cli(FlowConfig, list(map(str, flags)))
    with interrupted_at(FlowTrainer, 2), pytest.raises(SystemExit) as ended, one_line_errors():
        training.run_from_command_line(config, train)
    assert ended.value.code == 143


def test_modules_are_copied_without_memory():
    """An average of weights may be made by copy.deepcopy, also where tensors have no memory."""
    with memory.fake_tensors():
        network = layers.channels_last(nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)))
        average = copy.deepcopy(network)
        for one, other in zip(network.state_dict().values(), average.state_dict().values(), strict=True):
            assert isinstance(other, FakeTensor) and one.stride() == other.stride() and one is not other
        assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in average.parameters())
        assert average(torch.zeros(1, 2, 4, 4, 4)).shape == (1, 4, 2, 2, 2)
    assert "__deepcopy__" not in vars(FakeTensor)
