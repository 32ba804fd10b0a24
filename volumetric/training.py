"""What the trainers of this project share: device, precision, seeded draws, batches, state, and their start.

A trainer is a `VolumeTrainer` with networks, optimisers and a training step; `start` checks everything, tells
what there is to know, and lets `runs.run` drive it.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from volumetric import __version__, dataset, logs, memory, parallel, run_page, runs, timing
from volumetric.arrangement import Arrangement, choose
from volumetric.cli import RunConfig, UserError, VolumeConfig
from volumetric.continuing import adopt_settings, compare_classes, open_audit
from volumetric.continuing import check_number as check_number  # for trainers that count otherwise
from volumetric.files import Record, as_damaged, by, locked, naming
from volumetric.layers import channels_last, count_parameters, move_averages, set_rates, trained_by
from volumetric.pictures import contact_sheet
from volumetric.replay import Replay

import torch
from torch import nn

Losses = dict[str, Any]  # {column of metrics.csv: tensor or number}
Make = Callable[..., "VolumeTrainer"]
C = TypeVar("C", bound=RunConfig)
N = TypeVar("N", bound=nn.Module)
V = TypeVar("V", bound="VolumeTrainer")

FORMAT_VERSION = 1  # of our checkpoints
# A ramped average: its half-life, as a share of the volumes seen, and in volumes, at most.
AVERAGE_RAMP, AVERAGE_HALF_LIFE = 0.05, 10000


def ramped_decay(seen: float, volumes: int) -> float:
    """Decay of an average after a step of `volumes`: half of its weight is in the last 5 % of those seen."""
    return 0.5 ** (volumes / min(AVERAGE_HALF_LIFE, AVERAGE_RAMP * seen))


def adam(
    parameters: Sequence[tuple[float, torch.nn.Parameter]], rate: float, betas: Sequence[float]
) -> torch.optim.Adam:
    """Adam whose groups have a rate each, kept as "full" for `set_rates`.

    Args:
        parameters: [(scale of the rate, parameter)].
        rate: Rate of scale 1.
        betas: Adam's two betas.
    """
    of_scale = {}
    for scale, parameter in parameters:
        of_scale.setdefault(scale, []).append(parameter)
    groups = [{"params": p, "lr": rate * scale, "full": rate * scale} for scale, p in of_scale.items()]
    return torch.optim.Adam(groups, betas=(betas[0], betas[1]), fused=True)


class VolumeTrainer:
    """One run of a trainer.

    A subclass builds its networks and optimisers, and its plan, after `super().__init__`, and has

        accumulate()  adds the gradients of some micro-batches; returns losses
        update()      one update of the networks, in place of that, if they have several optimisers,
        rehearsed()   and the heaviest work of a step
        averaged()    its averages of weights, if any
        preview()     what is shown of it
        generated()   the volumes of seeds, for evaluations; see `generation.Model.volumes_of`

    and what else it computes otherwise: every method here may be another's.

    Args:
        config: RunConfig, with what the subclass needs.
        audit: Audit of the training volumes; None without data.
        group: parallel.Group of the processes that train together; None is this one alone.
        scores: TrainingScores for the evaluations, see MedicalNet/scores.py; None without.
        command: Settings of the command that began the run; None is `config`.
    """

    config: Any  # a RunConfig, with what a subclass adds to it
    audit: Any  # Audit, or None without data
    plan: runs.Plan
    networks: nn.Module  # module with all that is trained,
    entry = "networks"  # and its name in a checkpoint
    optimizers: dict[str, torch.optim.Optimizer]  # {name in a checkpoint: optimiser}
    members: Sequence[int] | None = None  # indices of the volumes that are trained on; None is all
    inherited = frozenset[str]()  # contents of the volumes that the weights were trained on before this run;
    history_known = True  # False if some are not known
    arrangement: Record | None = None  # how a GPU computes steps, see arrangement.py
    replay: Any = None  # Replay of steps that are all alike
    elsewhere: Any = None  # what answers, in a replayed step, for what a step takes of its trainer
    words: dict[str, str] | None = None  # {abbreviation, or kind of preview: what it is}, for the run's page
    told: Sequence[str] = ()  # lines that were printed before the run,
    said: Sequence[str] = ()  # and warnings
    best: Record | None  # the evaluation of model_best.pt
    ended_by: Any = None  # the signal that ended the run before its last step
    loader: Iterator[dataset.Loaded] | None  # endless batches from the current step on, opened when needed
    batches_per_micro = 1  # batches of volumes that a micro-batch of a step takes
    counted_from = 0  # step that the batches are counted from,
    order_key = ()  # and what their order depends on beside the seed

    # ---- before a run

    parts = ("training",)  # of a split, that it reads

    @staticmethod
    def former_settings(config: Any, source: Path | str) -> Record:
        """{name: value} of the options that a checkpoint was written with."""
        with as_damaged("it is damaged or of another program", source):
            return dict(runs.read_state(source, check=False)["config"])

    @staticmethod
    def unsteady(config: Any) -> set[str]:
        """What a run does that no GPU does twice the same, a set of words."""
        return set()

    @staticmethod
    def largest_batch(config: Any) -> int:
        """The largest batch of a run, in times of --batch_size."""
        return 1

    @staticmethod
    def prepare(
        config: Any,
        audit: dataset.Audit,
        group: parallel.Group,
        source: Path | str | None,
        goes_on: bool,
    ) -> dict[str, Any]:
        """What else a trainer is made with, {name: value}; complains before anything is written.

        Args:
            config, audit, group: As for `start`.
            source: Checkpoint that the run continues or starts from; None without one.
            goes_on: It continues it.
        """
        return {}

    # ---- a run

    def __init__(
        self,
        config: Any,
        audit: dataset.Audit | None = None,
        group: parallel.Group | None = None,
        scores: Any = None,
        command: Record | None = None,
    ) -> None:
        self.config, self.audit, self.group = config, audit, group or parallel.Group()
        self.scores = scores
        self.classes = None if audit is None else audit.classes  # of the volumes, if any
        self.command = command or asdict(config)
        self.whole_batch = config.batch_size  # volumes of a micro-batch, of all processes
        self.batch_size = self.group.own(self.whole_batch, config.batch_divisor)  # of this process
        self.penalty_part = self.batch_size  # volumes that are penalised at once
        self.at_once = 1  # micro-batches in a pass through the networks
        self.device = parallel.choose_device(config.device)
        self.amp_dtype = parallel.choose_amp_dtype(config.amp_dtype, self.device)
        torch.manual_seed(config.seed)
        scaled = config.fp16 and self.amp_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.step = 0  # completed steps
        self.reverts = 0  # returns to a checkpoint after NaN; part of every seed, lest the NaN come again
        self.best = self.loader = None
        self.step_volumes: list[torch.Tensor] = []  # indices of the volumes of this step
        self.rehearsing = False  # what a step remembers is then left alone

    def __repr__(self) -> str:
        config, there = self.config, "no data" if self.audit is None else f"{len(self.audit.paths)} volumes"
        about = [str(config.models), f"step {self.step} of {config.num_train_steps}"]
        about += [f"{there} of {by(config.array_shape)} voxels", str(self.device)]
        return f"{type(self).__name__}({', '.join(about)})"

    def train(self) -> "VolumeTrainer":
        """Train until num_train_steps, a signal or too many NaN; saves before it returns."""
        try:
            return runs.run(self)
        finally:
            self.loader = None  # ends its workers

    @property
    def done(self) -> float:
        """Share of the run that is done, for what changes in its course."""
        return min(1.0, self.step / self.config.num_train_steps)

    def reported(self) -> dict[str, nn.Module]:
        """{name: network} whose sizes are told."""
        return {self.entry: self.networks}

    def explained(self) -> dict[str, run_page.Meaning]:
        """{column of metrics.csv: run_page.Meaning}."""
        return {}

    def about(self) -> run_page.About:
        """What the run's page says of it beside what is in its folder."""
        columns = getattr(self.config, "num_image_tiles", 4)
        real = dataset.some_volumes(self.audit, 2 * columns, self.members)
        return run_page.About.of(self, contact_sheet(real, self.audit.affine, columns))

    def preview(self) -> dict[str, Any]:
        """As `runs.Trainable`'s. A subclass has it."""
        raise NotImplementedError

    def generated(self, seeds: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yield the volumes of seeds, for evaluations. A subclass has it."""
        raise NotImplementedError

    def evaluate(self, received: Sequence[str]) -> dict[str, float]:
        """{metric: value} of generated volumes, which the processes share out.

        Args:
            received: Names of the signals that have arrived; with one, the evaluation is given up.
        """
        if self.scores is None:
            return {}
        config, number = self.config, self.config.calculate_fid_num_images
        seeds = range(config.seed, config.seed + number)[slice(*self.group.share(number))]
        about = (len(seeds), self.audit.affine, self.group, self.step, received)
        return self.scores.evaluate(zip(seeds, self.generated(seeds), strict=True), *about)

    # ---- networks and optimisers

    def placed(self, networks: N) -> N:
        """Networks on the device, ready for training; fake tensors of a CPU cannot be moved."""
        networks = channels_last(networks)
        return networks if self.device.type == "cpu" else networks.to(self.device)

    def adam(self, *names: str, mult: float = 1.0) -> torch.optim.Adam:
        """Adam for modules of the networks, those that there are, a group for every scale of the rate."""
        parameters = []
        for module in names:
            named = getattr(self.networks, module)
            for name, p in () if named is None else named.named_parameters():
                if p.requires_grad:
                    parameters.append((self.rate_scale(module, name, p), p))
        return adam(parameters, self.config.learning_rate * mult, self.config.adam_betas)

    def rate_scale(self, module: str, name: str, parameter: torch.Tensor) -> float:
        """Factor on the rate of a parameter."""
        return 1.0

    # ---- one step

    def train_step(self, log: runs.RunLog) -> None:
        """One update of every network; the log reads the losses when it waits for the device."""
        self.step_volumes = []
        set_rates(self.optimizers.values(), self.done, self.config.final_rate)
        with parallel.tf32(False):
            losses = self.update()
        self.scaler.update()
        self.update_averages()
        log.add(self.step, losses, self.origin())
        self.step += 1

    def accumulate(self, micro_batches: int) -> Losses:
        """Add the gradients of some micro-batches; returns losses. A subclass has it."""
        raise NotImplementedError

    def update(self) -> Losses:
        """One update of the networks by their only optimiser; returns losses."""
        (name,) = self.optimizers
        return self.update_by(name, self.accumulate)

    def averaged(self) -> list[tuple[nn.Module, nn.Module]]:
        """[(module that is an average, module that it follows)]."""
        return []

    def update_averages(self) -> None:
        """Averages follow from the first step on, ever longer."""
        volumes = self.plan.volumes_per_step
        move_averages(self.averaged(), ramped_decay((self.step + 1) * volumes, volumes))

    # ---- what a step is made of

    def autocast(self) -> torch.autocast:
        """Mixed precision, if the run uses it."""
        return parallel.autocast(self.device, self.amp_dtype, self.config.fp16)

    @property
    def source(self) -> Any:
        """Where a step takes its draws and volumes from: the trainer, or what a replay puts in its place."""
        return self if self.elsewhere is None else self.elsewhere

    def random(self, stream: int, micro: int) -> tuple[parallel.SharedRandom, torch.Generator]:
        """Host and device generators of one micro-batch."""
        key = (self.config.seed, self.reverts, stream, self.step, micro)
        host = parallel.SharedRandom(parallel.host_random(*key), self.group)
        return host, parallel.device_random(self.device, *key)

    def draw(
        self, function: Callable[..., Any], shape: Sequence[int], generator: torch.Generator
    ) -> torch.Tensor:
        """This process's part of a draw for the whole batch. Shapes: (...) -> (B, ...)"""
        shape = (self.whole_batch, *shape)
        return self.group.part(function(shape, device=self.device, generator=generator))

    def open_loader(
        self, flip_prob: float, classes: dataset.VolumeClasses | None = None
    ) -> Iterator[dataset.Loaded]:
        """Endless batches of real volumes from the current step on."""
        config, volumes = self.config, dataset.VolumeDataset(self.audit)
        length = len(volumes) if self.members is None else len(self.members)
        per_step = config.gradient_accumulate_every * self.batches_per_micro
        key = (config.seed, self.reverts, *self.order_key)
        drawn = (self.whole_batch, flip_prob, key, (self.step - self.counted_from) * per_step)
        batches = dataset.SeededBatches(length, *drawn, self.group, classes, self.members)
        return dataset.make_loader(volumes, batches, config.num_workers, self.device)

    def next_real(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next real volumes and their classes, by a VolumeConfig.

        Shapes: -> (B, 1, D, H, W), (B,) or None
        """
        volumes, indices = self.next_volumes(self.config.dataset_aug_prob, self.classes)
        return volumes, self.classes_of(indices)

    def next_volumes(
        self, flip_prob: float, classes: dataset.VolumeClasses | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next real volumes, and their indices. Shapes: -> (B, 1, D, H, W), (B,)"""
        if self.loader is None:
            self.loader = self.open_loader(flip_prob, classes)
        volumes, indices = next(self.loader)
        self.step_volumes.append(indices)
        return volumes.to(self.device, non_blocking=True), indices

    def classes_of(self, indices: torch.Tensor) -> torch.Tensor | None:
        """Classes of volumes, on the device. Shapes: (B,) -> (B,), or None without classes"""
        if self.classes is None:
            return None
        return parallel.to_device(torch.from_numpy(self.classes.of_volumes)[indices], self.device)

    def draw_labels(self, rng: parallel.SharedRandom) -> torch.Tensor | None:
        """Classes for generated volumes, drawn as they are shown. Shapes: -> (B,), or None without classes"""
        if self.classes is None:
            return None
        drawn = dataset.draw_classes(self.classes.shares(self.members), rng.random(self.batch_size))
        return parallel.to_device(drawn, self.device)

    def update_by(self, name: str, accumulate: Callable[..., Losses], *args: Any) -> Losses:
        """One update by an optimiser; returns the losses, sums over the processes.

        Args:
            name: Of the optimiser.
            accumulate: Function of (*args, micro-batches) that adds gradients, and returns {name: loss}.
        """
        optimizer = self.optimizers[name]
        losses = accumulate(*args, self.config.gradient_accumulate_every)
        gradients = [p.grad for p in trained_by(optimizer) if p.grad is not None]
        self.group.sum_(gradients + list(losses.values()))
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
        return losses

    def name_volumes(self, indices: list[torch.Tensor]) -> str:
        """Sentence that names the volumes of the given indices, [(B,)]."""
        numbers = sorted(set(torch.cat(indices).tolist())) if indices else []
        return f"Volumes of the step: {', '.join(str(self.audit.paths[i]) for i in numbers)}."

    def origin(self) -> Callable[[], str]:
        """Function that names the volumes of the step that ends here, for a message on NaN."""
        return functools.partial(self.name_volumes, self.step_volumes)

    # ---- the heaviest step

    def arrangements(self) -> list[tuple[int, int]]:
        """[(micro-batches in a pass, volumes penalised at once)], that of the fewest launches first."""
        return list(dict.fromkeys([(1, self.batch_size), (1, self.penalty_part)]))

    def rehearsed(self) -> list[tuple[Any, ...]]:
        """[(phase, function, arguments)] of the heaviest work."""
        return [("step", self.accumulate, min(2, self.config.gradient_accumulate_every))]

    def rehearsals(self) -> list[tuple[str, Callable[[], None]]]:
        """[(phase, function that runs its heaviest work once, without an update)]; all is left as it was."""
        work = self.rehearsed()
        if self.scores is not None and self.device.type == "cuda":
            work = [*work, ("evaluation", self.scores.rehearse, self.config.array_shape)]
        return [(phase, functools.partial(self.rehearse, *one)) for phase, *one in work]

    def rehearse(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run something beside all that a late step finds in memory, on zeros; no message is sent.

        All is left as it was, also where memory runs out.
        """
        volumes = torch.zeros(self.batch_size, 1, *self.config.shape)
        loader = itertools.repeat((volumes, torch.zeros(self.batch_size, dtype=torch.int64)))
        group = parallel.Rehearsal(self.group.rank, self.group.world)
        trained = [p for optimizer in self.optimizers.values() for p in trained_by(optimizer)]
        with contextlib.ExitStack() as stack:
            swapped = memory.swapped(self, loader=loader, group=group, rehearsing=True, step_volumes=[])
            stack.enter_context(swapped)
            for parameter in self.networks.parameters():
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
            for parameter in trained:
                stack.callback(setattr, parameter, "grad", None)
            moments = [torch.zeros_like(p) for p in trained for _ in range(2)]  # what Adam will hold
            stack.callback(moments.clear)
            stack.enter_context(parallel.tf32(False))
            return function(*args)

    def step_kinds(self) -> dict[int, float]:
        """{a step: share of the run's steps that take as long}."""
        return {0: 1.0}

    def may_replay(self) -> bool:
        """Whether steps can be replayed as CUDA graphs, if there is memory for them."""
        return False

    def gradients(self) -> list[tuple[float, Callable[[], Any]]]:
        """[(share of the run's steps, function that adds gradients as they do)]."""
        return [(1.0, functools.partial(self.accumulate, self.config.gradient_accumulate_every))]

    def arrange(self, way: Arrangement) -> None:
        """Compute steps in this way from now on."""
        self.at_once, self.penalty_part = way.at_once, way.penalty_part
        self.replay = Replay(self, self.networks.parameters()) if way.replayed else None

    # ---- state

    def state(self) -> Record:
        """All that the run needs to continue exactly."""
        state = {
            self.entry: self.networks.state_dict(),
            **{name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "reverts": self.reverts,
            "best": self.best,
            "random": {"cpu": torch.get_rng_state()},
            "arrangement": self.arrangement,
            "config": asdict(self.config),
            "command": self.command,
            "affine": self.audit.affine.tolist(),
            "data_digest": self.audit.digest,
            "trained_on": sorted(self.trained_on),
            "format_version": FORMAT_VERSION,
            "version": __version__,
        }
        if self.device.type == "cuda":
            state["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        if isinstance(self.config, VolumeConfig):
            state["class_names"] = self.classes and self.classes.names
            state["class_shares"] = self.classes and self.classes.shares(self.members).tolist()
            state["class_digest"] = self.classes and self.classes.digest()
        return state

    @property
    def trained_on(self) -> frozenset[str]:
        """Contents of all volumes that the weights were trained on, a set; empty if some are not known."""
        if not self.history_known:
            return frozenset()
        contents = self.audit.contents
        return self.inherited.union(contents if self.members is None else (contents[i] for i in self.members))

    def inherit(self, state: Record, known: bool = False) -> None:
        """Remember what the weights of a checkpoint were trained on.

        Args:
            state: The checkpoint; an empty list, or none as of an earlier version, says nothing.
            known: They were trained on this run's volumes, though the checkpoint has no list.
        """
        former = state.get("trained_on")
        self.inherited = self.inherited.union(former or ())
        self.history_known = bool(former) or known

    def networks_in(self, state: Record) -> dict[str, torch.Tensor]:
        """State dict of the networks in a checkpoint; a UserError if it is of another program."""
        if self.entry not in state:
            raise UserError("is no checkpoint of this program: give another --name or --models_dir")
        return state[self.entry]

    def load(self, state: Record) -> None:
        """Take up the state of a checkpoint."""
        weights = self.networks_in(state)
        if state["format_version"] > FORMAT_VERSION:
            raise UserError(
                f"was written by version {state['version']} in format {state['format_version']}; this is "
                f"{__version__} with format {FORMAT_VERSION}: update the program."
            )
        runs.load_networks(self.networks, weights)
        self.step, self.loader = state["step"], None
        for name, optimizer in self.optimizers.items():
            rates = [group["full"] for group in optimizer.param_groups]
            runs.load_optimizer(optimizer, state[name])
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["full"] = group["lr"] = rate  # the flag's, also when it was changed
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.inherit(state, known="trained_on" not in state and state["data_digest"] == self.audit.digest)
        self.reverts, self.best = state["reverts"], self.best or state.get("best")
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        if state["data_digest"] != self.audit.digest:
            logs.say(f"The volumes in {self.config.data} are not those that the checkpoint was trained on.")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The start of a run                                                                                       ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def train_from_folder(trainer_class: type[V], config: RunConfig, group: parallel.Group | None = None) -> V:
    """Check everything, then train, or stop after the checks with `--dry_run`.

    Args:
        trainer_class: Subclass of VolumeTrainer.
        config: Its configuration.
        group: parallel.Group of the processes that train together; None is this one alone.

    Returns:
        The trainer, at its last step; after a dry run on the CPU one of fake tensors.

    Raises:
        UserError: Data or settings cannot be used; nothing has been written.
    """
    with logs.heard() as said:
        return train_heard(trainer_class, config, group or parallel.Group(), said)


def train_heard(
    trainer_class: type[V],
    config: RunConfig,
    group: parallel.Group,
    said: Sequence[str],
    classes: dataset.VolumeClasses | None = None,
) -> V:
    """`train_from_folder`; `said` is the list of what was warned of."""
    config, command, source = runs.begin(config)
    begun, goes_on = source or config.init_from, source is not None
    if isinstance(config, VolumeConfig) and config.labels is not None:
        classes = dataset.read_classes(config.labels, config.data, config.balance_classes, config.split)
    if begun:
        config = adopt_settings(config, trainer_class.former_settings(config, begun), begun, goes_on)
        compare_classes(classes, begun, goes_on)
    group.own(config.batch_size, config.batch_divisor)  # or it complains
    device = parallel.open_device(config, trainer_class.unsteady(config))
    about = (begun, trainer_class.parts, trainer_class.largest_batch(config))
    audit = open_audit(config, device, group, *about)
    audit.classes = classes
    prepared = trainer_class.prepare(config, audit, group, begun, goes_on)

    def make(config: RunConfig, audit: dataset.Audit, group: parallel.Group) -> V:
        return trainer_class(config, audit, group, command=command, **prepared)

    return start(make, config, audit, device, group, said, source)


def start(
    make: Callable[..., V],
    config: RunConfig,
    audit: dataset.Audit,
    device: torch.device,
    group: parallel.Group,
    said: Sequence[str] = (),
    source: Path | None = None,
) -> V:
    """Make a trainer, tell what there is to know, and train, or stop before that with `--dry_run`.

    Args:
        make: Function of (config, audit, group) that builds the trainer.
        config: RunConfig.
        audit: Audit of its data.
        device: Of `parallel.open_device`.
        group: parallel.Group.
        said: What was warned of before.
        source: Checkpoint that the run continues; None for a new one.

    Returns:
        The trainer, at its last step; after a dry run on the CPU one of fake tensors.
    """
    on_gpu = device.type == "cuda"
    with memory.fake_tensors() if config.dry_run and not on_gpu else contextlib.nullcontext():
        trainer = make(config, audit, group)
    trainer.said = said
    if config.dry_run:
        print("\n".join(f"{name}: {value}" for name, value in asdict(config).items()))
    if on_gpu:
        former = None if source is None else runs.read_state(source, check=False).get("arrangement")
        choice = choose(trainer, former)
        peaks = choice.peaks
        print_report(trainer, peaks, choice.lines())
    else:
        if group.first and (said := timing.threads_in_the_way()):
            print(said)
        peaks = rehearse_on_cpu(make, config, audit, group) if config.dry_run else {}
        print_report(trainer, peaks)
    if config.dry_run:
        expect(trainer, make, peaks)
        return trainer
    group.wait()  # until all have read what is there
    with contextlib.ExitStack() as stack:
        if group.first:
            lock = config.models.with_name(f".{config.name}.lock")
            stack.enter_context(locked(lock, f"The run {config.models}"))
            runs.make_way(config)
        group.wait()
        if config.init_from:
            with naming(config.init_from):
                state = runs.read_state(config.init_from)
                trainer.inherit(state)
                runs.load_networks(trainer.networks, trainer.networks_in(state))
        trainer.train()
    print(f"Checkpoints are in {config.models}, previews and metrics.csv in {config.results}.")
    if (page := config.results / "run.html").exists():
        print(f"The run's page, for a browser: {page}")
    return trainer


def expect(trainer: VolumeTrainer, make: Make, peaks: dict[str, int]) -> None:
    """Time steps of a dry run's trainer, on a CPU of one with tensors, and say what to expect."""
    config, device = trainer.config, trainer.device
    if device.type == "cuda":
        seconds = timing.seconds_a_step(trainer)
    elif not trainer.group.first:
        return
    else:
        alone = replace(config, batch_size=config.batch_size // trainer.group.world)
        seconds = timing.seconds_on_cpu(make, alone, trainer.audit, peaks)
    timing.print_expectations(config, device, seconds, peaks)


def print_report(trainer: VolumeTrainer, peaks: dict[str, int], more: Sequence[str] = ()) -> None:
    """Print what there is to know of data, networks, device, precision, and peak memory if it is known."""
    config, audit = trainer.config, trainer.audit
    sizes = ", ".join(f"{n} {count_parameters(m) / 1e6:.1f}" for n, m in trainer.reported().items())
    precision = str(trainer.amp_dtype).removeprefix("torch.") if config.fp16 else "float32"
    lines = [*audit.summary, *([audit.classes.summary()] if audit.classes else [])]
    lines += [audit.kept(config.cache, config.packs), f"parameters (million): {sizes}"]
    lines.append(f"device: {trainer.device}, precision: {precision}, PyTorch {torch.__version__}")
    trained_on = len(audit.paths if trainer.members is None else trainer.members)
    taken = trainer.plan.volumes_per_step * trainer.batches_per_micro
    lines.append(f"steps per epoch: {trained_on / taken:.1f}")
    if trainer.at_once > 1:
        lines.append(f"micro-batches in a pass: {trainer.at_once}")
    if trainer.replay is not None:
        lines.append("steps are replayed as CUDA graphs")
    lines += more
    trainer.told = lines
    print(*lines, sep="\n")
    memory.print_peaks(peaks, trainer.device)


def rehearse_on_cpu(
    make: Make, config: RunConfig, audit: dataset.Audit, group: parallel.Group
) -> dict[str, int]:
    """Peak bytes of the worst steps of one process on the CPU, {phase: bytes}, without making its tensors."""
    alone = replace(config, device="cpu", batch_size=config.batch_size // group.world)
    return memory.predict_peak_memory(lambda: make(alone, audit, None))


def run_from_command_line(config: C, train: Callable[[C, parallel.Group], VolumeTrainer]) -> None:
    """Train in one process, in those that torchrun started, or in one for each GPU.

    A run that a signal ends before its last step ends the program like that signal, with 130 or 143.
    """
    if config.multi_gpus and "WORLD_SIZE" not in os.environ:
        parallel.start_on_all_gpus()
    with parallel.process_group(config.device) as group, parallel.only_first_prints(group):
        trainer = train(config, group)
        group.wait()  # torchrun ends all processes as soon as one has ended with another status than 0
    runs.end_by_signal(trainer)
