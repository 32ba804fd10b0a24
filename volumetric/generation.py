"""Generated volumes, whichever program makes them: models, the file beside every volume, the one writer.

A program lists what it makes, an `Item` for every volume, and says how some of them are drawn; the `Writer`
does the rest: what is there already is kept, what is missing is shared out among processes and written with
its picture and its sidecar, a JSON file that says what the volume was made of, so that it can be made again,
bit for bit; see sidecars.py. Sections: models, writing, what every trainer can generate.
"""

import errno
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from volumetric.cli import GenerationOptions, SeedOptions, UserError
from volumetric.dataset import labels_of_seeds
from volumetric.dicom_writing import Origin, write_dicom
from volumetric.files import (
    Record,
    array_to_volume,
    as_damaged,
    by,
    clear_parts,
    file_digest,
    load_nifti,
    naming,
    read_json,
    reading,
    save_nifti,
    volume_to_array,
    write_json,
)
from volumetric.parallel import Group, process_group
from volumetric.pictures import annotated, labelled_views, save_gif, save_picture, sheet_of
from volumetric.runs import find_checkpoint
from volumetric.sidecars import (
    HALF_ROUNDING,
    ROUNDING,
    SELECTION,
    check_sources,
    compare,
    different,
    versions,
    volume_digest,
    write_trained_on,
)

import numpy as np
import torch
from numpy.typing import ArrayLike
from tqdm import tqdm

SHOWN = 64  # volumes on a contact sheet, at most
DRAWN_PER_KEPT = 4  # the most that are drawn for one that is to pass conditions, unless --most says otherwise
AT_ONCE_ON_CPU, AT_ONCE_ON_GPU = 2, 8  # volumes


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Models                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Model(Protocol):
    """A trained generator, whatever trained it.

    Attributes:
        path: Its checkpoint.
        step: Training steps in it; None if it does not say.
        networks: Names of those that generate: averages, or the current ones.
        settings: {name: value} that the networks' shape follows from.
        affine: (4, 4), mm.
        class_names: Names of the classes; empty without.
        trained_on: What the training volumes are known by, see collection.py; empty if that is not known.
        device: torch.device.

    One whose volumes are of seeds alone also has `labels_of(seeds, name)`, see SeedModel; one that
    interpolates has `between(ends, positions, labels, ...)`, the volumes on the way from seed to seed,
    (B, 1, Z, X, Y); one with a noise input has `noise_input`, and `volumes_of(seeds, noise_seed=...)` gives
    all seeds the noise of one.
    """

    path: Path
    step: int | None
    networks: str
    settings: dict[str, Any]
    affine: np.ndarray
    class_names: list[str]
    trained_on: frozenset[str]
    device: torch.device

    @property
    def array_shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) of a volume, voxels."""

    def volumes_of(self, seeds: Sequence[int], *_: Any, **how: Any) -> Iterator[torch.Tensor]:
        """Yield the volume of every seed, (1, Z, X, Y) in [0, 1] on the CPU, `batch_size` at a time, the same
        in any batch."""


def check_seeds(seeds: Sequence[int], number: int | None = None) -> None:
    """Raise a UserError unless seeds are a list of whole numbers from 0 on, of `number` of them if asked."""
    if isinstance(seeds, str) or not hasattr(seeds, "__len__"):
        raise UserError(f"seeds must be a list of whole numbers, got {seeds!r}: give [{seeds}].")
    odd = [seed for seed in seeds if not isinstance(seed, int | np.integer) or seed < 0]
    if odd:
        raise UserError(f"seeds must be whole numbers from 0 on, got {odd[0]!r} among them: leave it out.")
    if number not in (None, len(seeds)):
        raise UserError(f"seeds must be {number}, got {len(seeds)}: give as many.")


def check_latents(z: torch.Tensor, latent_dim: int, psi: float | None) -> None:
    """Raise a UserError unless latents are (B, latent_dim) and a truncation psi is in [0, 1] or None."""
    check_tensor("latents", z, ("B", latent_dim))
    if psi is not None and not (isinstance(psi, Real) and 0 <= psi <= 1):
        raise UserError(f"trunc_psi must be from 0 (the mean style) to 1 (no truncation), got {psi!r}.")


def check_styles(w: torch.Tensor, noise: torch.Tensor, layers: int, latent_dim: int, shape: tuple) -> None:
    """Raise a UserError unless styles are (B, latent_dim) or (B, layers, latent_dim), and noise covers them.

    Noise is (B, >= Z, >= S, >= S, 1) for `shape` (Z, S, S).
    """
    check_tensor("styles", w, ("B", latent_dim), ("B", layers, latent_dim))
    check_tensor("noise", noise, ("B", *("n" for _ in shape), 1))
    if len(noise) not in (1, len(w)) or any(n < m for n, m in zip(noise.shape[1:], shape, strict=False)):
        least = ", ".join(map(str, (len(w), *shape, 1)))
        raise UserError(f"noise has the shape {tuple(noise.shape)}, expected ({least}) or more voxels.")


def check_tensor(name: str, given: torch.Tensor, *shapes: Sequence[int | str]) -> None:
    """Raise a UserError unless a thing is a float tensor of one of some shapes; a letter is any number."""
    if not isinstance(given, torch.Tensor):
        raise UserError(f"{name} must be a tensor, got {type(given).__name__}: torch.as_tensor makes one.")
    found = tuple(given.shape)
    fits = [all(isinstance(m, str) or n == m for n, m in zip(found, s, strict=False)) for s in shapes]
    if not any(fit and len(s) == len(found) for fit, s in zip(fits, shapes, strict=True)):
        wanted = " or ".join(f"({', '.join(map(str, s))})" for s in shapes)
        raise UserError(f"{name} must have the shape {wanted}, got {found}.")
    if not given.is_floating_point():
        raise UserError(f"{name} must be of floating numbers, got {given.dtype}: .float() makes them.")


class Named:
    """Base class of models: in a notebook, one line that says which it is."""

    def __repr__(self) -> str:
        about = [str(getattr(self, "path", "")), f"networks {getattr(self, 'networks', '')}"]
        about += [f"step {getattr(self, 'step', None)}", f"{by(getattr(self, 'array_shape', ()))} voxels"]
        names = getattr(self, "class_names", ())
        about += [f"classes {', '.join(names)}"] if names else []
        return f"{type(self).__name__}({', '.join(about)}, {getattr(self, 'device', '')})"


def checkpoint_of(config: GenerationOptions) -> Path:
    """Checkpoint that a RunConfig with GenerationOptions generates from; a UserError if there is none."""
    return Path(config.checkpoint or find_checkpoint(config.models, config.load_from))


class SeedModel(Named):
    """A Model whose volumes are of seeds; a subclass has `draw(seeds, labels)`, (B, 1, Z, X, Y) on the CPU.

    Args:
        path: Its checkpoint, of a `VolumeTrainer` with a VolumeConfig.
        state: What is in it.
        networks: Names of those that generate.
        device: torch.device.
    """

    def __init__(self, path: Path | str, state: Record, networks: str, device: torch.device) -> None:
        self.path, self.networks, self.device = Path(path), networks, device
        config = state["config"]
        self.shape = (config["image_depth"], config["image_size"], config["image_size"])
        self.array_shape = (*self.shape[1:], self.shape[0])
        self.step, self.affine = state["step"], np.array(state["affine"], dtype=float).reshape(4, 4)
        self.class_names, self.class_shares = state["class_names"] or [], state["class_shares"]
        self.trained_on = frozenset(state.get("trained_on", ()))

    def draw(self, seeds: Sequence[int], labels: torch.Tensor | None) -> torch.Tensor:
        """Volumes of seeds, (B, 1, Z, X, Y) on the CPU; a subclass has it."""
        raise NotImplementedError

    def labels_of(self, seeds: Sequence[int], name: str | None = None) -> torch.Tensor | None:
        """Classes of the volumes of some seeds; see `dataset.labels_of_seeds`."""
        return labels_of_seeds(seeds, self.class_names, self.class_shares, name)

    def volumes_of(
        self, seeds: Sequence[int], *, batch_size: int = 8, label: str | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield the volume of every seed, (1, Z, X, Y) in [0, 1] on the CPU, a batch at a time."""
        check_seeds(seeds)
        for start in range(0, len(seeds), batch_size):
            chosen = seeds[start : start + batch_size]
            yield from self.draw(chosen, self.labels_of(chosen, label))


def alone_as_two(make: Callable[..., torch.Tensor], *inputs: torch.Tensor | None) -> torch.Tensor:
    """make(*inputs) of a batch, where one volume alone is made twice over.

    A batch of one has kernels of its own: they round differently, so that a volume would depend on what else
    is made; and on a CPU a convolution of one small volume in float32 is not oneDNN's, and twice as slow.

    Args:
        make: Function of the inputs.
        inputs: Tensors (B, ...), or None.
    """
    if len(next(x for x in inputs if x is not None)) > 1:
        return make(*inputs)
    return make(*(x if x is None else x.repeat_interleave(2, 0) for x in inputs))[:1]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Writing                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Item:
    """A volume to be made.

    Args:
        name: Of its files, without suffix; folders may come before it.
        source: What the program draws it from.
        caption: What pictures say of it.
        record: What it is made of beside the checkpoint, in JSON's types: another volume has another.
        about: What else its sidecar says.
        affine: (4, 4), mm; None is the writer's.
    """

    name: str
    source: Any
    caption: str
    record: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    affine: np.ndarray | None = None


@dataclass(frozen=True)
class Drawn:
    """A volume that was made, along the axes of its file.

    Args:
        volume: (1, Z, X, Y) float32 in [0, 1], on the CPU.
        more: What else the program keeps of it.
    """

    volume: Any
    more: Any = None


class Writer:
    """Writes the volumes of a model, each with its picture and its sidecar, or finds that they are there.

    A program that keeps more of a volume has a subclass with `write_more` and `beside`.

    Args:
        model: Model.
        folder: Folder of the volumes.
        flag: The option that gives another folder, for messages.
        affine: Affine of the volumes, (4, 4) mm; None is the model's.
        volume_format: nii.gz or nii.
        picture_format: png, jpg, or none for no pictures.
        intensity_range: Grey values that 0 and 1 become; None keeps them.
        dicom: Kind of DICOM that is written too, see dicom_writing.py; None writes none.
        precision: Of the networks.
        record: What all sidecars say, and what all volumes are made of.
        about: What else all sidecars say.
    """

    program = "this program"  # for messages, and for DICOM
    bytes_per_voxel = 4.4  # of all files of a volume, at most

    def __init__(
        self,
        model: Model,
        folder: Path | str,
        flag: str = "--output",
        affine: np.ndarray | None = None,
        volume_format: str = "nii.gz",
        picture_format: str = "png",
        intensity_range: Sequence[float] | None = None,
        dicom: str | None = None,
        precision: str = "float32",
        record: Record | None = None,
        about: Record | None = None,
    ) -> None:
        self.model, self.folder, self.flag = model, Path(folder), flag
        self.affine = model.affine if affine is None else affine
        self.volume_format, self.picture_format, self.dicom = volume_format, picture_format, dicom
        self.intensity_range = intensity_range and list(intensity_range)
        checkpoint = {"path": str(model.path), "sha256": file_digest(model.path), "step": model.step}
        self.record = {
            "checkpoint": checkpoint | {"networks": model.networks},
            "intensity_range": self.intensity_range,
            "precision": precision,
            **(record or {}),
        }
        self.about = {"synthetic": True, "model": model.settings, **(about or {})}

    # ---- one volume

    def path(self, item: Item, suffix: str) -> Path:
        """Path of one of an item's files."""
        return self.folder / f"{item.name}.{suffix}"

    def folders(self, items: Sequence[Item]) -> set[Path]:
        """All folders that files of some items are written to."""
        dicom = {self.folder / "dicom"} if self.dicom else set()
        return {self.folder, *(self.path(item, "json").parent for item in items)} | dicom

    def affine_of(self, item: Item) -> np.ndarray:
        """Affine of an item's volume, (4, 4), mm."""
        return np.asarray(self.affine if item.affine is None else item.affine, dtype=float)

    def dicom_path(self, item: Item) -> Path:
        """Path of an item's DICOM file, or of the folder of its slices."""
        return self.folder / "dicom" / f"{item.name}{'.dcm' if self.dicom == 'enhanced' else ''}"

    def files_of(self, item: Item) -> list[Path]:
        """All files of an item but its sidecar; the volume is the first."""
        pictures = [] if self.picture_format == "none" else [self.path(item, self.picture_format)]
        dicom = [] if self.dicom is None else [self.dicom_path(item)]
        return [self.path(item, self.volume_format), *pictures, *dicom]

    def made_of(self, item: Item) -> dict[str, Any]:
        """What an item's sidecar says that another volume's does not."""
        affine, file = self.affine_of(item).tolist(), self.path(item, self.volume_format).name
        return self.record | {"affine": affine, "file": file} | item.record

    def is_complete(self, item: Item) -> bool:
        """True if all files of an item are there, made of the same.

        Raises:
            UserError: A volume of this name was made of something else.
        """
        if not self.path(item, "json").exists():
            return False
        self.refuse_another(item)
        if not all(path.exists() and path.stat().st_size for path in self.files_of(item)):
            return False
        try:
            load_nifti(self.path(item, self.volume_format))
        except UserError:
            return False  # it is damaged
        return True

    def refuse_another(self, item: Item) -> None:
        """Raise a UserError if the volume of an item's name, which is there, was made of something else."""
        sidecar = self.path(item, "json")
        found = read_json(sidecar)
        with reading(sidecar, "remove it; the volume is then made again"):
            defaults = {"intensity_range": None, "precision": "float32"}  # of earlier versions
            plain = {"accepted_by": None}  # of a volume that no gate selected
            other = different(plain | defaults | found, plain | self.made_of(item))
            same_file = found["checkpoint"]["sha256"] == self.record["checkpoint"]["sha256"]
        if other:
            named = ["choice of networks" if n == "checkpoint" and same_file else n for n in other]
            raise UserError(
                f"{sidecar} was made with another {' and '.join(named)}: choose another {self.flag}."
            )

    def write(self, item: Item, drawn: Drawn) -> None:
        """Write all files of one volume, the sidecar last: where it is, the volume is complete."""
        volume, affine = np.asarray(drawn.volume), self.affine_of(item)
        low, high = self.intensity_range or (0, 1)
        scaled = volume if self.intensity_range is None else low + volume * (high - low)
        details = item.about | self.write_more(item, drawn)
        save_nifti(scaled, affine, self.path(item, self.volume_format))
        if self.dicom is not None:
            target, origin = self.dicom_path(item), Origin(Path(item.name).name, self.program, synthetic=True)
            shutil.rmtree(target, ignore_errors=True)  # what stands there is of no complete volume
            target.unlink(missing_ok=True)
            with naming(target):
                write_dicom(volume_to_array(scaled), affine, target, origin, self.dicom)
        if self.picture_format != "none":
            save_picture(self.picture_of(item, volume), self.path(item, self.picture_format), smallest=1)
        record = self.about | self.made_of(item) | details
        record |= {"volume_sha256": volume_digest(volume), "versions": versions()}
        write_json(self.path(item, "json"), record)

    def write_more(self, item: Item, drawn: Drawn) -> dict[str, Any]:
        """Write what else a program keeps of a volume; returns what its sidecar says of that."""
        return {}

    # ---- pictures

    def beside(self, item: Item) -> np.ndarray | None:
        """Picture of what a volume was drawn for, (H, W, 3) uint8; None without."""
        return None

    def picture_of(self, item: Item, volume: ArrayLike) -> np.ndarray:
        """Planes and projections of a volume, which say that it is synthetic. Shapes: -> (H, W) uint8"""
        return annotated(volume, self.affine_of(item), f"SYNTHETIC {item.caption}", edge=256)

    def read(self, item: Item) -> np.ndarray:
        """A volume that was written. Shapes: -> (1, Z, X, Y) in [0, 1]"""
        low, high = self.intensity_range or (0, 1)
        array = load_nifti(self.path(item, self.volume_format)).get_fdata(dtype=np.float32)
        return array_to_volume((array - low) / (high - low))

    def sheet(self, items: Sequence[Item], columns: int | None = None, name: str = "contact_sheet") -> None:
        """Write a picture of the first SHOWN volumes, slice and projection of each, in rows of `columns`."""
        if self.picture_format == "none" or not items:
            return
        items = items[:SHOWN]
        tiles = [
            labelled_views(self.read(item), self.affine_of(item), item.caption, beside=self.beside(item))
            for item in items
        ]
        columns = columns or math.ceil(math.sqrt(len(tiles)))
        shown = f"{'label map | ' if tiles[0].ndim == 3 else ''}axial slice | projection"
        sheet = sheet_of(tiles, min(columns, len(tiles)), f"SYNTHETIC: {shown}, R is right")
        save_picture(sheet, self.folder / f"{name}.{self.picture_format}")

    def animate(self, items: Sequence[Item], name: str, seconds_per_frame: float = 0.08) -> None:
        """Write a GIF of slice and projection of a sequence of volumes."""
        frames = (labelled_views(self.read(i), self.affine_of(i), f"SYNTHETIC {i.caption}") for i in items)
        save_gif(list(frames), self.folder / f"{name}.gif", seconds_per_frame)

    # ---- all volumes

    def write_all(
        self, items: Sequence[Item], draw: Callable, batch_size: int | None = None, group: Group | None = None
    ) -> None:
        """Make all volumes that are not there yet; the next are drawn while some are written.

        Args:
            items: All volumes of the command.
            draw: Function of some items that gives their Drawn.
            batch_size: Volumes at a time; None is as many as suit the device.
            group: parallel.Group of the processes that share the items out; None is this one alone.

        Raises:
            UserError: Volumes of these names were made of something else, the folder has a selection, or the
                disk is full.
        """
        names = {}
        for item in items:
            if names.setdefault(item.name, item) is not item:
                raise UserError(f"Two volumes would be called {item.name}: ask for fewer volumes at a time.")
        rank, world = (group.rank, group.world) if group else (0, 1)
        mine = items[rank::world]  # shared out before looking at files that another process may be writing
        missing = [item for item in mine if not self.is_complete(item)]
        if len(missing) < len(mine):
            print(f"{len(mine) - len(missing)} volumes are there already.")
        if (self.folder / SELECTION).exists():
            raise UserError(
                f"{self.folder} has volumes that passed conditions, as {SELECTION} says, and takes no "
                f"others: choose another {self.flag}."
            )
        self.prepare(items, world * len(missing))
        batch_size = self.at_once(batch_size)
        with tqdm(total=len(missing), desc="Generating", unit="volume", disable=rank > 0) as bar:
            self.write_drawn(drawn_in_batches(missing, draw, batch_size), 2 * batch_size, bar)
        if group:
            group.wait()

    def prepare(self, items: Sequence[Item], count: int) -> None:
        """Make folders for items, of which `count` are to be written; list what the model was trained on."""
        for folder in self.folders(items):
            folder.mkdir(parents=True, exist_ok=True)
            clear_parts(folder)
        self.check_space(count)
        write_trained_on(self.folder, self.model.trained_on, self.model.path)

    def at_once(self, batch_size: int | None = None) -> int:
        """Volumes at a time; without a number as many as suit the device."""
        return batch_size or (AT_ONCE_ON_CPU if self.model.device.type == "cpu" else AT_ONCE_ON_GPU)

    def write_drawn(self, drawn: Iterable, waiting: int, bar: tqdm) -> None:
        """Write (item, Drawn) as they come, while `waiting` more are drawn."""
        with ThreadPoolExecutor(2) as pool:
            pending = []
            try:
                for one in drawn:
                    pending.append(pool.submit(self.write, *one))
                    bar.update(1)
                    while len(pending) > waiting:
                        pending.pop(0).result()
                for task in pending:
                    task.result()
            except OSError as error:
                pool.shutdown(cancel_futures=True)
                if error.errno == errno.ENOSPC:
                    raise UserError(
                        f"The disk of {self.folder} is full: the volumes so far are complete."
                    ) from None
                raise

    def check_space(self, count: int) -> None:
        """Raise a UserError if the disk cannot hold `count` volumes."""
        needed = self.bytes_per_voxel * math.prod(self.model.array_shape) * count
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"{count} volumes need about {needed / 2**30:.1f} GiB, and the disk of {self.folder} has "
                f"{free / 2**30:.1f} free: choose another {self.flag}."
            )


def drawn_in_batches(items: Sequence[Item], draw: Callable, batch_size: int) -> Iterator:
    """Yield (item, Drawn) for all items; batches halve when the memory is too small."""
    done = 0
    while done < len(items):
        batch = items[done : done + batch_size]
        try:
            volumes = list(draw(batch))
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a plain one
            if "memory" not in str(error) or batch_size == 1:
                raise
            batch_size //= 2
            tqdm.write(f"Out of memory: going on with {batch_size} volumes at a time.", file=sys.stderr)
            continue
        yield from zip(batch, volumes, strict=True)
        done += len(batch)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ What every trainer can generate                                                                          ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def recreate(
    sidecar: Path | str,
    program: str,
    draw: Callable,
    checkpoint: Path | str | None = None,
    sources: Sequence[str] = ("checkpoint",),
) -> float:
    """Make a volume again from its sidecar, and say whether it is the one in its file.

    Args:
        sidecar: Path of the JSON file.
        program: Name of the one that made it, for messages.
        draw: Function of the sidecar's content and the paths of `sources` that gives the volume as it was
            written, (1, Z, X, Y) in [0, 1].
        checkpoint: Path of the checkpoint; None is where it was.
        sources: Names of what it was made of, the checkpoint first.

    Returns:
        Largest difference of a voxel, in [0, 1].

    Raises:
        UserError: A source is missing or another, or the volume differs by more than rounding.
    """
    sidecar = Path(sidecar)
    record, remedy = read_json(sidecar), f"give the .json beside a volume that {program} made"
    if not {*sources, "file", "volume_sha256"} <= record.keys():
        raise UserError(f"{sidecar} is of another program: {remedy}.")
    with as_damaged(remedy, sidecar):
        paths = check_sources(sidecar, record, *sources, given=checkpoint)
        volume = draw(record, *paths)
        file, digest = sidecar.parent / record["file"], record["volume_sha256"]
        low, high = map(float, record.get("intensity_range") or (0, 1))
        if not low < high:
            raise UserError(f"{sidecar} is damaged, intensity_range is {low}, {high}: {remedy}.")
        half = record.get("precision", "float32") != "float32"
    return compare(volume, file, digest, (low, high), HALF_ROUNDING if half else ROUNDING)


def full_name(name: str, psi: float = 1.0, label: str | None = None) -> str:
    """A file name that says the truncation, if there is any, and the class, if one was asked for."""
    digits = f"{psi:.2f}" if round(psi, 2) == psi else f"{psi:g}"
    name = name if psi == 1 else f"{name}_psi{digits}"
    return name if label is None else name + "_" + re.sub(r"[^\w.]+", "-", label)


def name_of_class(model: Any, seed: int, label: str | None = None) -> str | None:
    """Name of the class of a seed's volume, the one that is asked for or drawn; None without classes."""
    labels = model.labels_of([seed], label)
    return None if labels is None else model.class_names[int(labels[0])]


def told_of(seed_or_t: str, label: str | None, how: dict) -> str:
    """Caption of a volume: seed or place on a way, class, and truncation if there is any."""
    psi = how.get("trunc_psi", 1)
    return " ".join([seed_or_t, *([label] if label else []), *([f"psi {psi:.2f}"] if psi != 1 else [])])


def generate(
    config: SeedOptions, open_model: Callable, batch_size: int | None = None, tiles: int = 8, **how: Any
) -> Path:
    """`--generate` of a trainer: volumes of seeds seed, seed + 1, ..., and a contact sheet.

    Args:
        config: RunConfig with GenerationOptions, num_generate and label.
        open_model: Function of the configuration that gives the Model.
        batch_size: Volumes at a time; None is as many as suit the device.
        tiles: Columns of the contact sheet, which has no more rows.
        how: What `volumes_of` takes beside; it is written into the sidecars.

    Returns:
        The folder with the files; what is there already is kept.
    """
    with process_group() as group:
        model, items = open_model(config), []
        for seed in range(config.seed, config.seed + config.num_generate):
            label = name_of_class(model, seed, config.label)
            record = {"seed": seed, "label": label, **how}
            name = full_name(f"seed{seed:06d}", how.get("trunc_psi", 1), config.label)
            items.append(Item(name, seed, told_of(f"seed {seed}", label, how), record))

        def draw(batch: Sequence[Item]) -> Iterator[Drawn]:
            seeds = [item.source for item in batch]
            return map(Drawn, model.volumes_of(seeds, batch_size=len(seeds), label=config.label, **how))

        writer = Writer(model, config.generated_folder(model.path))
        writer.write_all(items, draw, batch_size, group)
        if group.first:
            shown = items[: tiles**2]
            writer.sheet(shown, min(tiles, math.ceil(math.sqrt(len(shown)))))
            print(f"{len(items)} volumes with pictures and sidecars are in {writer.folder}")
    return writer.folder


def generate_interpolation(
    config: Any, open_model: Callable, picture_format: str = "none", **how: Any
) -> Path:
    """`--generate_interpolation` of a trainer: the way from seed to seed + 1, and from class to class.

    Args:
        config: RunConfig with GenerationOptions, interpolation_num_steps and label.
        open_model: Function of the configuration that gives a Model with `between`.
        picture_format: Of the frames.
        how: What `between` takes beside; it is written into the sidecars.

    Returns:
        The folder with a volume and a sidecar for every frame, and a GIF.
    """
    with process_group() as group:
        model, ends, labels = open_model(config), [config.seed, config.seed + 1], None
        if model.class_names:
            asked = [config.label] if config.label in (None, *model.class_names) else config.label.split(",")
            if len(asked) > 2:
                raise UserError(f"--label must be one class or two, a,b, got {config.label}.")
            labels = [name_of_class(model, ends[0], name) for name in (asked[0], asked[-1])]
        elif config.label is not None:
            name_of_class(model, ends[0], config.label)  # an error: it has none
        psi, items = how.get("trunc_psi", 1), []
        positions = np.linspace(0, 1, config.interpolation_num_steps, dtype=np.float32)
        for frame, t in enumerate(positions.tolist()):
            name = full_name(f"seed{ends[0]:06d}_frame{frame:04d}", psi, config.label)
            record = {"seeds": ends, "t": t, "labels": labels, **how}
            items.append(Item(name, t, told_of(f"t {t:.2f}", None, how), record))

        def draw(batch: Sequence[Item]) -> Iterator[Drawn]:
            return map(Drawn, model.between(ends, [item.source for item in batch], labels, **how))

        folder = config.generated_folder(model.path, "interpolation")
        writer = Writer(model, folder, picture_format=picture_format)
        writer.write_all(items, draw, group=group)
        if group.first:
            writer.animate(items, full_name(f"seed{ends[0]:06d}", psi, config.label))
            print(f"{len(items)} volumes and a GIF are in {writer.folder}")
    return writer.folder


def recreate_volume(config: GenerationOptions, open_model: Callable) -> float:
    """`--recreate` of a trainer: a volume of `generate` or `generate_interpolation` again; see `recreate`."""

    def draw(record: Record, path: Path) -> torch.Tensor:
        average = record["checkpoint"]["networks"].endswith("E")  # SE, GE are averages of S and G
        settings = {name: record["model"][name] for name in ("image_size", "image_depth")}
        settings |= {"checkpoint": str(path), "use_average": average}
        model = open_model(replace(config, **settings))
        how = {name: record[name] for name in ("trunc_psi",) if name in record}
        if "t" in record:
            (volume,) = model.between(record["seeds"], [record["t"]], record["labels"], **how)
        else:
            (volume,) = model.volumes_of([record["seed"]], batch_size=1, label=record["label"], **how)
        return volume

    return recreate(str(config.recreate), "this program", draw, config.checkpoint)
