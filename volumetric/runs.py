"""What any long training needs: the loop, signals, the return after NaN, checkpoints, logs.

`run(trainer)` drives any Trainable; for memory.py it also has `rehearsals()`: [(phase, function that runs its
heaviest work once)], and for a page `about()`, a run_page.About.
"""

import contextlib
import csv
import functools
import math
import re
import signal
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from volumetric.cli import RunConfig, UserError
from volumetric.files import (
    Record,
    atomic_path,
    clear_parts,
    next_free,
    one_line,
    reading,
    save_nifti,
    write_json,
)
from volumetric.logs import append_scores, continue_table, dispensable, warn
from volumetric.parallel import Group
from volumetric.pictures import save_picture
from volumetric.plan import Plan
from volumetric.released import SUFFIX, read_safetensors
from volumetric.run_page import About, RunPage

import numpy as np
import torch
from retry.api import retry_call
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

R = TypeVar("R", bound="Trainable")

CHECKPOINT = r"model_(0|[1-9][0-9]{0,11})\.pt"  # its file's name
NAN_REVERTS = 3  # returns to the last checkpoint before training gives up
# Steps between readings of the losses, for which a GPU must be waited for.
READ_EVERY = {"cpu": 1, "cuda": 10}
MOST_STEPS = 2**53
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # that end a run after its step


class NanException(UserError):
    """A loss or a weight is not finite."""


class Trainable(Protocol):
    """What `run` drives.

    Attributes:
        plan: Folders, number of steps, what is due when.
        group: Processes that train together.
        device: This one's.
        step: Completed steps.
        reverts: Returns to a checkpoint after NaN; part of every seed, lest the NaN come again.
        best: The evaluation that model_best.pt is of, {"metric", "value", "step"}, or None.
        ended_by: The signal that ended the run before its last step, or None.
    """

    plan: Plan
    group: Group
    device: torch.device
    step: int
    reverts: int
    best: Record | None
    ended_by: signal.Signals | None

    def train_step(self, log: "RunLog") -> None:
        """One update; hands the losses to `log.add` without waiting for the device."""

    def state(self) -> Record:
        """All that the run needs to continue exactly, with step, reverts and best."""

    def load(self, state: Record) -> None:
        """Take it up."""

    def preview(self) -> dict[str, Any]:
        """{name: picture (H, W) or (H, W, 3) uint8, or (volume, affine) for a name that ends in .nii.gz}, of
        the first process; {} of the others."""

    def evaluate(self, received: Sequence[str]) -> dict[str, float]:
        """{metric: number}, of the first process; may give up when a signal was received."""

    def about(self) -> About:
        """For the run's page."""


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The loop                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def run(trainer: R) -> R:
    """Continue from the newest checkpoint, if any, to num_train_steps, a signal or too many NaN.

    Returns:
        The trainer, at its last step; `ended_by` is the signal that ended it before num_train_steps, or None.

    Raises:
        NanException: Losses or weights were not finite again and again.
    """
    plan, group, trainer.ended_by = trainer.plan, trainer.group, None
    resume(trainer)
    group.wait()  # until all have read what is there
    if group.first:
        for folder in (plan.models, plan.results, plan.results / "previews"):
            clear_parts(folder)
    if trainer.step >= plan.num_train_steps:
        remedy = "its plan is done" if plan.is_fixed else "raise --num_train_steps to train on"
        print(f"{plan.models} is at step {trainer.step} already: {remedy}.")
        return trainer
    with interruptions() as received, RunLog(trainer) as log:
        if trainer.step == 0:
            save(trainer)
        if lacks_preview(trainer):
            preview(trainer, log)
        log.start_clock()
        ended_by = []
        while trainer.step < plan.num_train_steps and not ended_by:
            ended_by = retry_call(
                train_to_checkpoint,
                [trainer, log, received],
                exceptions=NanException,
                tries=1 + NAN_REVERTS,
                logger=None,
            )
        if ended_by and trainer.step < plan.num_train_steps:
            trainer.ended_by = signal.Signals[ended_by[0]]
    if ended_by:
        print(f"{ended_by[0]}: saved after step {trainer.step}. The same command continues the run.")
    return trainer


def end_by_signal(trainer: Trainable) -> None:
    """End the program with status 130 or 143 if SIGINT or SIGTERM ended the run before its last step."""
    if trainer.ended_by is not None:
        sys.exit(128 + trainer.ended_by)


def train_to_checkpoint(trainer: Trainable, log: "RunLog", received: Sequence[str]) -> list[str]:
    """Train until a checkpoint is saved, because it is due or by signals; returns the names of these.

    Raises:
        NanException: A loss or a weight is not finite; the run is back at its last checkpoint.
    """
    plan, group, saved = trainer.plan, trainer.group, False
    try:
        while not saved:
            trainer.train_step(log)
            signalled = bool(received) and group.world == 1  # else `agree_on_end` decides
            if not (log.is_full or signalled or plan.anything_at(trainer.step)):
                continue
            log.read()
            ended_by = agree_on_end(trainer, received)
            log.write(evaluate(trainer, received) if plan.evaluates_at(trainer.step) else {})
            saved = plan.saves_at(trainer.step) or bool(ended_by)
            if saved:
                save(trainer)
            if plan.previews_at(trainer.step):
                preview(trainer, log)
            log.start_clock()
        return ended_by
    except NanException as error:
        go_back(trainer, log, error)


def go_back(trainer: Trainable, log: "RunLog", error: NanException) -> NoReturn:
    """Go back to the last checkpoint, with other random numbers, and raise a NanException that says so."""
    path, reverts = find_checkpoint(trainer.plan.models), trainer.reverts + 1
    take_up(trainer, path, reverts=reverts)
    log.rewind(trainer.step)
    text, *origin = error.args
    anew = ", in a new run" if trainer.plan.is_fixed else ""
    advice = f"If it happens again, try a lower --learning_rate or --fp16 False{anew}."
    message = " ".join([f"{text}; the run went back to {path}.", *origin, advice])
    if trainer.group.first:
        warn(message)
    raise NanException(message) from None


def agree_on_end(trainer: Trainable, received: Sequence[str]) -> list[str]:
    """Names of the signals that any process has received, the same for all; what comes later waits."""
    if trainer.group.world == 1:
        return list(received)
    asked = torch.tensor([float(one.name in received) for one in SIGNALS], device=trainer.device)
    trainer.group.sum_([asked])
    return [one.name for one, times in zip(SIGNALS, asked.tolist(), strict=True) if times]


def preview(trainer: Trainable, log: "RunLog") -> None:
    """Write the trainer's previews, <step>-<name>.png, to TensorBoard too, and volumes, <step>-<name>."""
    folder = trainer.plan.results / "previews"
    for name, shown in trainer.preview().items():
        with dispensable(f"The preview {name} of step {trainer.step}"):
            folder.mkdir(parents=True, exist_ok=True)
            if name.endswith(".nii.gz"):
                volume, affine = shown
                save_nifti(volume, affine, folder / f"{trainer.step:06d}-{name}")
            else:
                save_picture(shown, folder / f"{trainer.step:06d}-{name}.png")
                log.show_picture(f"previews/{name}", shown)
    log.page.write()


def lacks_preview(trainer: Trainable) -> bool:
    """True if a preview of this step is due and not there, as after a kill between checkpoint and preview."""
    pictures = trainer.plan.results.glob(f"previews/{trainer.step:06d}-*.png")
    return trainer.plan.previews_at(trainer.step) and not any(trainer.group.tell([p.name for p in pictures]))


def evaluate(trainer: Trainable, received: Sequence[str]) -> dict[str, float]:
    """Scores of the trainer's evaluation, noted in fid_scores.txt; the best model so far is kept."""
    plan, scores = trainer.plan, trainer.evaluate(received)
    if not scores:
        return {}
    with dispensable(f"The line of step {trainer.step} in fid_scores.txt"):
        append_scores(plan.results / "fid_scores.txt", trainer.step, scores)
    metric = next((name for name in plan.lowest_is_best if name in scores), None)
    if metric is not None:
        best = trainer.best if trainer.best and trainer.best["metric"] == metric else {"value": math.inf}
        if scores[metric] < best["value"]:
            trainer.best = {"metric": metric, "value": scores[metric], "step": trainer.step}
            save_checkpoint(trainer.state(), plan.models / "model_best.pt")
            tqdm.write(f"Step {trainer.step} has the lowest {metric} so far, {scores[metric]:.5g}.")
    return scores


@contextlib.contextmanager
def interruptions() -> Iterator[list[str]]:
    """List of the signals (SIGTERM, Ctrl-C) that have arrived; a second Ctrl-C aborts."""
    received = []

    def remember(number: int, _: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    former = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Checkpoints                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def checkpoint_numbers(folder: Path | str) -> list[int]:
    """Numbers n of the files model_<n>.pt in a folder, in the order of the steps inside."""
    found = [p for p in Path(folder).glob("model_*.pt") if re.fullmatch(CHECKPOINT, p.name)]
    return [number_of(path) for path in sorted(found, key=age)]


def number_of(path: Path | str) -> int:
    """Number n of a checkpoint model_<n>.pt; 0 of another file."""
    named = re.fullmatch(CHECKPOINT, Path(path).name)
    return int(named[1]) if named else 0


def age(path: Path) -> tuple[float, float, int]:
    """Key by which a later checkpoint comes after an earlier one; a damaged one is last, to be named.

    Numbers do not tell: they follow from save_every, which may have changed. Those of the original,
    which hold no step, come first, by their number.
    """
    step, _ = about(path)
    return (0, number_of(path), 0) if step is None else (1, step, number_of(path))


def about(path: Path) -> tuple[float | None, bool]:
    """Step of a checkpoint, and whether it was due; None if it holds no step, infinity if it is damaged."""
    stat = path.stat()
    return read_about(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1024)
def read_about(path: Path, *_: object) -> tuple[float | None, bool]:
    """`about` a file of this age and size, which is read once."""
    try:
        state = read_state(path, check=False)
    except UserError:
        return math.inf, True
    step = state.get("step")
    return step, step is None or state.get("due") is not False  # those of earlier versions stay


def place_for(plan: Plan, step: int) -> tuple[int, list[int]]:
    """Number of the checkpoint to write, and the numbers of those that go when it is there.

    A due checkpoint has the number step // save_every, and stays. One between two of these, of a signal or
    of a run's end, has the number of the next, until that is written; before the first it takes the place
    of step 0, of networks that have learned nothing. Where numbers of another save_every are in the way, all
    later ones are higher.
    """
    folder = plan.models
    found = {n: about(folder / f"model_{n}.pt") for n in checkpoint_numbers(folder)}
    passed = [n for n, (then, due) in found.items() if not due and (then or 0) < step]
    stay = [n for n, (then, due) in found.items() if n not in passed and then not in (0, step)]
    number = step // plan.save_every
    if number and not plan.is_due(step):
        number += 1
    return max([number, *(n + 1 for n in stay)]), passed


def find_checkpoint(folder: Path | str, load_from: int = -1) -> Path:
    """Path of checkpoint number `load_from` in a run's folder, the newest for -1.

    Raises:
        UserError: There is no such checkpoint; the text lists those there are.
    """
    numbers = checkpoint_numbers(folder)
    if not numbers:
        runs = sorted(p.name for p in Path(folder).parent.glob("*") if checkpoint_numbers(p))
        there = f" (there are runs {', '.join(runs)})" if runs else ""
        raise UserError(
            f"There is no checkpoint model_<n>.pt in {folder}: train first, or correct its name{there}."
        )
    if load_from != -1 and load_from not in numbers:
        there = ", ".join(map(str, numbers))
        raise UserError(f"There is no model_{load_from}.pt in {folder}. --load_from can be {there}.")
    return Path(folder) / f"model_{numbers[-1] if load_from == -1 else load_from}.pt"


def read_state(path: Path | str, check: bool = True) -> Record:
    """Read a checkpoint onto the CPU, with `weights_only=True`, and compare its checksums if asked.

    A released one may also be a .safetensors file, see released.py.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the path of a checkpoint model_<n>.pt.")
    with reading(path, "it is no whole checkpoint; take an earlier one"):
        zipped = zipfile.is_zipfile(path)
        if check and zipped and zipfile.ZipFile(path).testzip():
            raise UserError("is damaged, its checksums do not agree: take an earlier checkpoint")
        if path.suffix == SUFFIX:
            state = read_safetensors(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        if not isinstance(state, dict):
            raise UserError(f"is not a checkpoint: it holds a {type(state).__name__}.")
        step = state.get("step", 0)
        if type(step) is not int or not 0 <= step < MOST_STEPS:
            raise UserError(f"states step {step!r}: it is damaged; take an earlier checkpoint")
    return state


def load_networks(module: torch.nn.Module, state_dict: dict[str, Any]) -> None:
    """Load a state dict strictly, and say in one line what does not fit."""
    try:
        module.load_state_dict(state_dict)
    except RuntimeError as error:
        first = " ".join(str(error).splitlines()[1].split())
        raise UserError(f"does not fit the networks of this run: {first}") from None


def load_optimizer(optimizer: torch.optim.Optimizer, state: Record) -> None:
    """Load an optimiser's moments, and compare their shapes, as PyTorch does not; rates and betas stay."""
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in own] != [group["params"] for group in state["param_groups"]]:
        raise UserError("has an optimiser of other parameter groups: leave --equalized_lr as it was")
    optimizer.load_state_dict({"state": state["state"], "param_groups": own})
    kinds = {tuple(sorted(moments)) for moments in optimizer.state.values()}
    fits = [
        isinstance(m, torch.Tensor) and m.shape in ((), parameter.shape) and m.isfinite().all()
        for parameter, moments in optimizer.state.items()
        for m in moments.values()
    ]
    if len(kinds) > 1 or not all(fits):
        raise UserError("has an optimiser of other networks: take an earlier checkpoint")


def resume(trainer: Trainable) -> None:
    """Take up the newest checkpoint in the run's folder, if there is one."""
    if checkpoint_numbers(trainer.plan.models):
        take_up(trainer, find_checkpoint(trainer.plan.models))


def take_up(trainer: Trainable, path: Path | str, **changed: object) -> None:
    """Hand a checkpoint to a trainer; one without a step, of the original, is as far as its number says."""
    state = read_state(path)
    if "step" not in state:
        state["step"] = number_of(path) * trainer.plan.save_every
        print(f"{path} holds weights alone: continuing at step {state['step']} with new optimisers.")
    with reading(path, "it is damaged or of another program; take an earlier checkpoint"):
        trainer.load({**state, **changed})


def save(trainer: Trainable) -> None:
    """Write a checkpoint; remove those that it takes the place of, and those beyond keep_checkpoints.

    Raises:
        NanException: It would hold a number that is not finite.
    """
    plan, state = trainer.plan, trainer.state()
    tensors = [t for t in tree_leaves(state) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    if not all(t.isfinite().all() for t in tensors):
        raise NanException(f"a weight is not finite after step {trainer.step}")
    if not trainer.group.first:
        return
    number, passed = place_for(plan, trainer.step)
    save_checkpoint(state | {"due": plan.is_due(trainer.step)}, plan.models / f"model_{number}.pt")
    for former in set(passed) - {number}:
        (plan.models / f"model_{former}.pt").unlink()
    with dispensable(".config.json"):
        write_json(plan.models / ".config.json", state.get("config", {}))
    if plan.keep_checkpoints is not None:
        for number in checkpoint_numbers(plan.models)[: -plan.keep_checkpoints]:
            (plan.models / f"model_{number}.pt").unlink()


def save_checkpoint(state: Record, path: Path | str) -> None:
    """Write a checkpoint so that the file at `path` is always a whole one, the former or the new."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(path) as part:
            torch.save(state, part)
    except (OSError, RuntimeError) as error:  # PyTorch has its own for a full disk
        raise UserError(
            f"{path} could not be written ({one_line(error)}): make room. The checkpoints before it are "
            f"whole, and the same command continues from the last."
        ) from None


def begin(config: RunConfig) -> tuple[RunConfig, Record, Path | None]:
    """What a command does with the run of its name, and the settings of the command that began the run.

    The same command continues its run, also if it said --new, --load_from or --init_from: the checkpoint
    remembers it, so that a job which is started again and again comes to its end.

    Args:
        config: Dataclass with new, load_from, init_from and the folder models.

    Returns:
        (config, command, source): the settings without what has been done already; the settings that the
        checkpoints will remember as "command"; the checkpoint to continue from, or None.

    Raises:
        UserError: --init_from would start a run whose name is taken.
    """
    command = asdict(config)
    if not checkpoint_numbers(config.models):
        if config.load_from != -1:
            find_checkpoint(config.models)  # raises
        return config, command, None
    newest = find_checkpoint(config.models)
    former = read_state(newest, check=False).get("command") or {}  # it is checked when it is taken up
    if former == command or (config.init_from is not None and config.init_from == former.get("init_from")):
        if config.new or config.load_from != -1:
            print(f"This very command began the run in {config.models}, and continues it from {newest}.")
        return replace(config, new=False, load_from=-1, init_from=None), former, newest
    if config.new:
        return config, command, None
    if config.init_from is not None:
        raise UserError(
            f"--init_from starts a new run, but {config.models} has one: use --new or another --name."
        )
    if config.load_from != -1:
        return config, command, find_checkpoint(config.models, config.load_from)
    return config, former or command, newest


def make_way(config: RunConfig) -> None:
    """`--new` and `--load_from`: put out of the way what the run would overwrite."""
    if config.new:
        move_aside(config.models, config.results)
    if config.load_from != -1:
        set_aside_later(config.models, config.load_from)


def move_aside(*folders: Path) -> None:
    """Rename the folders of an earlier run, those that there are."""
    for folder in filter(Path.exists, folders):
        aside = next_free(folder.with_name(f"{folder.name}.earlier"))
        folder.rename(aside)
        print(f"The earlier run's {folder} is now {aside}.")


def set_aside_later(models: Path, number: int) -> None:
    """Move the checkpoints after model_<number>.pt to a folder of their own, so that none is overwritten."""
    numbers = checkpoint_numbers(models)
    later = numbers[numbers.index(number) + 1 :]
    if not later:
        return
    aside = next_free(models / f"after-model_{number}")
    aside.mkdir()
    step = read_state(models / f"model_{number}.pt").get("step", 0)
    best = models / "model_best.pt"
    if best.exists() and read_state(best)["step"] > step:
        best.rename(aside / best.name)
    for n in later:
        (models / f"model_{n}.pt").rename(aside / f"model_{n}.pt")
    print(f"{len(later)} later checkpoints are now in {aside}.")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Logs                                                                                                     ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class RunLog:
    """Losses, read from the device a few steps at a time, in metrics.csv, TensorBoard, page and progress bar.

    One process writes; all read, so that all see the same NaN. A resumed run continues the table and keeps
    its columns; a table with rows beyond the run's step is kept beside it.
    """

    def __init__(self, trainer: Trainable) -> None:
        self.plan, self.writes = trainer.plan, trainer.group.first
        self.read_every = READ_EVERY[trainer.device.type]
        self.unread = deque()  # (step, {name: tensor}, origin) of steps whose losses were not read yet
        self.rows = []  # {"step", name: number}, read and not yet written
        self.latest = {}  # the last value of every loss
        self.table: csv.DictWriter | None = None
        self.board: Any = None
        self.open(trainer.step)
        self.page = RunPage(trainer, self.writes)
        quiet = 0.5 if sys.stderr.isatty() else 30  # seconds, when the bar goes to a file
        self.bar = tqdm(
            initial=trainer.step,
            total=self.plan.num_train_steps,
            unit="step",
            dynamic_ncols=True,
            mininterval=quiet,
            disable=not self.writes,
        )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.bar.close()
        self.close()
        self.page.end(error)

    def open(self, step: int) -> None:
        """Continue the table at a step, and TensorBoard's files if asked."""
        self.start_clock()
        if not self.writes:
            return
        self.file, columns = continue_table(
            self.plan.results / "metrics.csv",
            step,
            ("step", *self.plan.columns, "seconds", "volumes_per_second"),
        )
        self.table = csv.DictWriter(self.file, columns)
        if self.plan.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.plan.results / "tensorboard", purge_step=step + 1)

    def close(self) -> None:
        """Write what is buffered."""
        with dispensable("The end of metrics.csv"):
            if self.table is not None:
                self.file.close()
            if self.board is not None:
                self.board.close()

    def rewind(self, step: int) -> None:
        """Go on from an earlier step."""
        self.unread.clear()
        self.rows.clear()
        self.close()
        self.open(step)
        self.bar.update(step - self.bar.n)

    def start_clock(self) -> None:
        """Measure the time of steps from now on."""
        self.started = time.perf_counter()

    def add(self, step: int, losses: dict[str, torch.Tensor], origin: Callable[[], str] = str) -> None:
        """Note the losses of a step, {name: tensor}; `origin()` tells what it saw, for a message on NaN."""
        self.unread.append((step, losses, origin))

    @property
    def is_full(self) -> bool:
        """True if the losses of so many steps are unread that it is time to."""
        return len(self.unread) >= self.read_every

    def read(self) -> None:
        """Wait for the device and read the losses of the steps since the last time.

        Raises:
            NanException: A loss is not finite.
        """
        unread, self.unread = self.unread, deque()
        numbers = [loss.float() for _, losses, _ in unread for loss in losses.values()]
        values_of = iter(torch.stack(numbers).tolist())
        seconds = (time.perf_counter() - self.started) / len(unread)
        for step, losses, origin in unread:
            values = {name: next(values_of) for name in losses}
            broken = [name for name, value in values.items() if not math.isfinite(value)]
            if broken:
                verb = "is" if len(broken) == 1 else "are"
                raise NanException(f"{' and '.join(broken)} {verb} not finite in step {step}", origin())
            volumes = values.pop("volumes", self.plan.volumes_per_step)  # where steps differ
            values |= {"seconds": seconds, "volumes_per_second": volumes / seconds}
            self.rows.append({"step": step + 1, **values})

    def write(self, scores: dict[str, float]) -> None:
        """Write the rows that were read, the scores of an evaluation in the last, and show it."""
        rows, self.rows = self.rows, []
        if self.table is None:
            return
        rows[-1] |= scores
        for row in rows:
            step = row.pop("step")
            with dispensable(f"The row of step {step} in metrics.csv"):
                self.table.writerow({"step": step, **{name: f"{value:.6g}" for name, value in row.items()}})
                if self.board is not None:
                    for name, value in row.items():
                        self.board.add_scalar(name, value, step)
            self.latest |= row
        text = {name: f"{self.latest[name]:.3g}" for name in self.plan.shown if name in self.latest}
        text["volumes/s"] = f"{self.latest['volumes_per_second']:.3g}"
        with contextlib.suppress(OSError):  # the bar may go to a file on a full disk
            self.bar.set_postfix(text, refresh=False)
            self.bar.update(step - self.bar.n)

    def show_picture(self, name: str, picture: np.ndarray) -> None:
        """Give a picture (H, W) or (H, W, 3) to TensorBoard."""
        if self.board is not None:
            self.board.add_image(name, picture, self.bar.n, dataformats="HW" if picture.ndim == 2 else "HWC")
