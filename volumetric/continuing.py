"""What a run takes from the checkpoint that it continues or starts from, and the data that must fit both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from volumetric import dataset, logs, parallel, runs
from volumetric.cli import RunConfig, UserError, default_of, options_of
from volumetric.collection import choose
from volumetric.files import Record, as_damaged
from volumetric.geometry import CANONICAL, axes_of
from volumetric.tables import Split

import numpy as np
import torch

C = TypeVar("C", bound=RunConfig)


def adopt_settings(
    config: C,
    former: Record,
    source: Path | str,
    goes_on: bool = True,
    otherwise: str = "another --name, or --new",
) -> C:
    """The configuration with what a checkpoint decides in place of defaults; what else is asked is refused.

    It decides on its networks' shape, and in a continued run on what that keeps. Whatever else has changed,
    and changes what is computed, is told.

    Args:
        config: Of options; see `cli.Option`.
        former: {name: value} that the checkpoint was written with.
        source: Its path.
        goes_on: The run is continued; False if a new one starts from its weights.
        otherwise: What a run of other settings is given.
    """
    kind, adopted = type(config), {}
    kept = [name for name in options_of(kind, kept=True) if goes_on and name in former]
    for name in [*options_of(kind, network=True), *kept]:
        with as_damaged("it is damaged or of another program", source):
            there = former[name]
        asked = getattr(config, name)
        if asked not in (there, default_of(config, name)):
            remedy = f"give the same, {otherwise}" if goes_on else "give the same"
            raise UserError(f"--{name} is {asked}, but {source} has {there}: {remedy}.")
        if asked != there:
            adopted[name] = there
    if adopted:
        print(f"Taken from {source}: " + ", ".join(f"{name} {value}" for name, value in adopted.items()))
    config = config.adopting(adopted)
    for name in [*options_of(kind, resumed=True), *(["num_train_steps"] if config.scheduled else [])]:
        now = getattr(config, name)
        if name in former and former[name] != now:
            logs.say(f"--{name} was {former[name]} when {source} was written and is {now} now.")
    return config


def compare_classes(classes: dataset.VolumeClasses | None, source: Path | str, goes_on: bool = True) -> None:
    """Raise a UserError unless a checkpoint has these VolumeClasses; tell if its volumes had others."""
    with as_damaged("it is damaged or of another program", source):
        state = runs.read_state(source, check=False)
        there, former = list(map(str, state.get("class_names") or [])), state.get("class_digest")
    names = classes.names if classes else []
    if there != names:
        raise UserError(
            f"{source} has the classes {', '.join(there) or 'none'}, --labels gives "
            f"{', '.join(names) or 'none'}: give the same{', another --name, or --new' if goes_on else ''}."
        )
    if goes_on and classes and former not in (None, classes.digest()):
        logs.say(f"Volumes have other classes by --labels than when {source} was written.")


def check_number(
    number: int, config: RunConfig, group: parallel.Group, folder: Path | str, times: int = 1
) -> None:
    """Raise a UserError if the volumes of a folder do not make one batch.

    Args:
        number: Of volumes.
        config, group: As for `start`.
        folder: What holds them, for the message.
        times: The largest batch of the run, in times of --batch_size.
    """
    if number >= times * config.batch_size:
        return
    unit = group.world * config.batch_divisor
    largest = number // times // unit * unit  # that can be shared out
    remedy = f" or set --batch_size {largest}" if largest else ""
    raise UserError(
        f"{folder} holds {number} volumes, fewer than a batch of {times * config.batch_size}: "
        f"add volumes{remedy}."
    )


def refuse_trained_on(source: Path | str, split: str) -> None:
    """Raise a UserError if a split sets volumes aside that a checkpoint was trained on."""
    known = runs.read_state(source, check=False).get("trained_on") or ()
    aside = [row for row in Split.read(split).rows if row["part"] != "training"]
    seen = [row["file"] for row in aside if row["content"] in set(known)]
    if seen:
        raise UserError(
            f"--split {split} sets aside {len(seen)} volumes that {source} was trained on, the first "
            f"{seen[0]}: start a new run, or give the split that it was trained with."
        )


def axes_of_run(source: Path | str, data: str, **chosen: Any) -> str:
    """Codes of the axes that a checkpoint was trained along: RAS, but for those of earlier versions.

    A checkpoint of the original does not state them: its volumes were read as they are stored.

    Args:
        source: Path of the checkpoint.
        data: Data folder.
        chosen: split and parts, as for `collection.choose`.
    """
    with as_damaged("it is damaged or of another program", source):
        affine = runs.read_state(source, check=False).get("affine")
        axes = dataset.axes_of_most(data, **chosen) if affine is None else axes_of(np.reshape(affine, (4, 4)))
    if axes != CANONICAL:
        said = (
            "was trained along" if affine is not None else "states no axes; most of the data are stored along"
        )
        print(f"{source} {said} {axes}: the run goes on along them; a new one reads along {CANONICAL}.")
    return axes


def open_audit(
    config: RunConfig,
    device: torch.device,
    group: parallel.Group,
    source: Path | str | None = None,
    parts: Sequence[str] = ("training",),
    times: int = 1,
) -> dataset.Audit:
    """Audit of a run's data, which make at least one batch, with the volumes where --cache wants them.

    Args:
        config, device, group: As for `start`.
        source: Checkpoint that the run continues or starts from, if any: its axes are those of the run.
        parts: Of the split.
        times: As for `check_number`.
    """
    if source is not None and config.split is not None:
        refuse_trained_on(source, config.split)
    cache = "none" if config.dry_run and device.type != "cuda" else config.cache
    chosen: Record = {"split": config.split, "parts": parts}
    paths, _ = choose(config.data, say=dataset.ignore, **chosen)
    check_number(len(paths), config, group, config.data, times)
    axes = CANONICAL if source is None else axes_of_run(source, config.data, **chosen)
    where = (cache, config.packs, group)
    audit = dataset.open_data(config.data, config.array_shape, *where, axes=axes, **chosen)
    audit.move(cache, device)
    return audit
