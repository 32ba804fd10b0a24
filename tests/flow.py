"""A fourth trainer: rectified flow (Liu et al. 2022, arXiv:2209.03003; flow matching, arXiv:2210.02747)."""

import copy
from collections import defaultdict
from dataclasses import dataclass

from volumetric import cli, dataset, generation, parallel, runs, training
from volumetric.pictures import contact_sheet

import torch
from monai.networks.nets import DiffusionModelUNet

from MedicalNet.scores import scores_of


@dataclass(kw_only=True)
class FlowConfig(cli.SeedOptions, cli.EvaluationOptions, cli.VolumeConfig):
    """Train a rectified flow on a folder of NIfTI volumes, or generate with one."""

    width: int = cli.option(8, "Channels of the first block.", network=True)
    integration_steps: int = cli.option(16, "Steps of Euler's rule.", resumed=True)
    learning_rate: float = cli.inherited(cli.VolumeConfig, "learning_rate", 1e-3)


NETWORK = (*cli.options_of(FlowConfig, network=True), "integration_steps")


class Networks(torch.nn.Module):
    """The velocity V(x, t, class), and its average VE. Shapes: (B, 1, D, H, W), (B,), (B,) -> as x"""

    def __init__(self, width, num_classes):
        super().__init__()
        blocks = {"num_res_blocks": 1, "attention_levels": (False, False), "norm_num_groups": width // 2}
        blocks |= {"channels": (width, 2 * width), "num_class_embeds": num_classes or None}
        self.V = DiffusionModelUNet(3, 1, 1, **blocks)
        self.VE = copy.deepcopy(self.V).requires_grad_(False)


@torch.no_grad()
def flow(V, seeds, labels, config, device):
    """Volumes that noise of seeds flows to. Shapes: (B,), (B,) or None -> (B, 1, D, H, W) on the CPU"""
    steps, generators = config.integration_steps, [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn(1, *config.shape, generator=one) for one in generators]).to(device)

    def followed(x, labels):
        for n in range(steps):
            x = x + V(x, torch.full((len(x),), 1000 * n / steps, device=device), class_labels=labels) / steps
        return x.clamp(0, 1)

    labels = None if labels is None else labels.to(device)
    return generation.alone_as_two(followed, noise, labels).float().cpu()


class FlowTrainer(training.VolumeTrainer):
    """Least squares of x_1 - x_0 at x_t = (1 - t) x_0 + t x_1 (arXiv:2209.03003, Eq. 1)."""

    entry = "flow"

    @staticmethod
    def prepare(config, audit, group, source, goes_on):
        return scores_of(config, group)

    def __init__(self, config, audit=None, group=None, scores=None, command=None):
        super().__init__(config, audit, group, scores, command)
        self.plan = runs.Plan.of(config, ("loss",), scores, shown=("loss",))
        self.networks = self.placed(Networks(config.width, len(self.classes.names) if self.classes else 0))
        self.optimizers = {"opt": self.adam("V")}

    def averaged(self):
        return [(self.networks.VE, self.networks.V)]

    def accumulate(self, micro_batches):
        losses, share = defaultdict(float), 1 / micro_batches / self.group.world
        for micro in range(micro_batches):
            _, generator = self.random(parallel.STREAM_STEP, micro)
            volumes, labels = self.next_real()
            noise = self.draw(torch.randn, volumes.shape[1:], generator)
            t = self.draw(torch.rand, (), generator)
            with self.autocast():
                x = torch.lerp(noise, volumes, t.view(-1, 1, 1, 1, 1))
                found = self.networks.V(x, 1000 * t, class_labels=labels).float()
            loss = (found - (volumes - noise)).square().mean() * share
            losses["loss"] += loss.detach()
            self.scaler.scale(loss).backward()
        return losses

    def generated(self, seeds):
        for seed in seeds:
            labels = dataset.seeded_classes([seed], self.classes and self.classes.shares())
            yield from flow(self.networks.VE, [seed], labels, self.config, self.device)

    def preview(self):
        if not self.group.first:
            return {}
        shown = torch.stack(list(self.generated(range(self.config.seed, self.config.seed + 4))))
        return {"VE": contact_sheet(shown, self.audit.affine, 2)}


class FlowModel(generation.SeedModel):
    """A trained flow; see `generation.Model`."""

    def __init__(self, config):
        path, name = generation.checkpoint_of(config), "VE" if config.use_average else "V"
        state = runs.read_state(path)
        super().__init__(path, state, name, parallel.choose_device(config.device))
        self.settings = {n: state["config"][n] for n in NETWORK}
        self.config = FlowConfig(**self.settings)
        runs.load_networks(networks := Networks(self.config.width, len(self.class_names)), state["flow"])
        self.V = getattr(networks, name).requires_grad_(False).eval().to(self.device)

    def draw(self, seeds, labels):
        return flow(self.V, seeds, labels, self.config, self.device)


def main(argv=None):
    config = cli.parse_cli(FlowConfig, argv)
    parallel.prepare_process(config.device, config.deterministic)
    if config.recreate or config.generate:
        return (generation.recreate_volume if config.recreate else generation.generate)(config, FlowModel)
    return training.run_from_command_line(config, lambda *a: training.train_from_folder(FlowTrainer, *a))
