"""Training data: the audit of a folder, classes, the order of samples, and a cache on disk."""

import errno
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volumetric.cli import UserError
from volumetric.collection import (
    MAX_FILES_NAMED,
    READERS,
    Volume,
    choose,
    content_of,
    copies_among,
    is_label_map,
    read_all,
    read_volume,
    refuse_unusable,
    stored_axes,
    unlike_split,
)
from volumetric.files import by, clear_parts, file_digest, part_of
from volumetric.geometry import CANONICAL, axes_of, left_right_axis, spacing_of
from volumetric.machine import usable_cores
from volumetric.parallel import STREAM_CLASS, STREAM_FLIP, STREAM_ORDER, Group, host_random, to_device
from volumetric.tables import read_table, rows_of

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

Loaded = tuple[torch.Tensor, torch.Tensor]  # volumes (B, 1, Z, X, Y) and their indices (B,)

PACK_FORMAT = 2  # part of a pack's name
WORKER_GRACE = 300  # seconds that a worker goes on reading after SIGTERM, for the step that is being saved


@dataclass
class Audit:
    """What the check of a data folder found.

    Args:
        paths: The volumes, sorted.
        volumes: float32 tensor (N, 1, Z, X, Y) in [0, 1], a Pack of as many, or None without a cache.
        affine: The affine that most volumes have, (4, 4), mm.
        digest: SHA-256 over all volumes as they were read.
        summary: Lines for a person to read.
        shape: (X, Y, Z), voxels.
        contents: What every volume is known by; see collection.py.
        classes: VolumeClasses, or None.
    """

    paths: list[Path]
    volumes: "torch.Tensor | Pack | None"
    affine: np.ndarray
    digest: str
    summary: list[str]
    shape: Sequence[int]
    contents: Sequence[str] = ()
    classes: "VolumeClasses | None" = None

    @property
    def left_right(self) -> int:
        """Axis of (..., D, H, W) that runs between left and right, in most volumes."""
        return {0: -2, 1: -1, 2: -3}[left_right_axis(self.affine)]

    def kept(self, cache: str, packs: Path) -> str:
        """Line that tells where the volumes of this shape are during training."""
        voxels = len(self.paths) * math.prod(self.shape)
        places = {
            "ram": f"in memory, {4 * voxels / 2**30:.2f} GiB",
            "gpu": f"on the GPU, {4 * voxels / 2**30:.2f} GiB",
            "disk": f"packed in {packs}, {2 * voxels / 2**30:.2f} GiB",
            "none": "decoded again in every epoch",
        }
        return f"volumes: {places[cache]}"

    def move(self, cache: str, device: torch.device) -> None:
        """Move the volumes to the GPU if `cache` is gpu; a UserError if they do not fit."""
        if cache != "gpu" or not isinstance(self.volumes, torch.Tensor):
            return
        try:
            self.volumes = self.volumes.to(device)
        except torch.OutOfMemoryError:
            size = self.volumes.nbytes / 2**30
            raise UserError(
                f"The volumes, {size:.1f} GiB, do not fit on {device}: use --cache ram."
            ) from None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Size (d, h, w) of a voxel of most volumes, mm."""
        x, y, z = spacing_of(self.affine)
        return z, x, y


@dataclass
class VolumeClasses:
    """The classes of a data set.

    Args:
        names: Their names, sorted.
        of_volumes: Number of every volume's class, (N,) int64.
        balanced: All are shown equally often.
    """

    names: list[str]
    of_volumes: np.ndarray
    balanced: bool = False

    def shares(self, members: Sequence[int] | None = None) -> np.ndarray:
        """How often each class is shown, of volumes of indices or all. Shapes: -> (classes,), sum 1"""
        shown = self.of_volumes if members is None else self.of_volumes[members]
        counts = np.bincount(shown, minlength=len(self.names))
        counts = counts > 0 if self.balanced else counts
        return counts / counts.sum()

    def digest(self) -> str:
        """SHA-256 over the classes of all volumes."""
        return hashlib.sha256(self.of_volumes.astype("<i8").tobytes()).hexdigest()

    def summary(self) -> str:
        """Line for a person to read."""
        counts = np.bincount(self.of_volumes, minlength=len(self.names))
        return "classes: " + ", ".join(f"{name} ({n})" for name, n in zip(self.names, counts, strict=True))


def some_volumes(audit: Audit, number: int, members: Sequence[int] | None = None) -> torch.Tensor:
    """At most so many volumes of an audit, or its `members`, spread over all. Shapes: -> (N, 1, Z, X, Y)"""
    members = range(len(audit.paths)) if members is None else members
    spread = np.linspace(0, len(members) - 1, min(number, len(members)), dtype=int)
    volumes = VolumeDataset(audit)
    return torch.stack([volumes[int(members[n]), False][0].float().cpu() for n in spread])


def draw_classes(shares: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """VolumeClasses drawn by uniform numbers in [0, 1). Shapes: (classes,), (B,) -> (B,) int64"""
    return np.searchsorted(np.cumsum(shares)[:-1], uniform, side="right")


def seeded_classes(seeds: Sequence[int], shares: np.ndarray | None) -> torch.Tensor | None:
    """Class of the volume of every seed, drawn as often as shown in training. Shapes: (B,) -> (B,) or None"""
    if shares is None:
        return None
    uniform = np.array([host_random(seed, STREAM_CLASS).random() for seed in seeds])
    return torch.from_numpy(draw_classes(shares, uniform))


def labels_of_seeds(
    seeds: Sequence[int], names: Sequence[str], shares: np.ndarray | None, name: str | None = None
) -> torch.Tensor | None:
    """VolumeClasses of the volumes of some seeds: the named one, or drawn as often as shown in training.

    Args:
        seeds: B integers.
        names: Of the model's classes; empty for a model without.
        shares: How often each was shown in training, or None.
        name: Of the class that is asked for.

    Shapes: -> (B,) int64, or None for a model without classes

    Raises:
        UserError: There is no such class.
    """
    if name is None:
        return seeded_classes(seeds, shares)
    if name not in names:
        there = f"it has {', '.join(names)}" if names else "it was trained without"
        raise UserError(f"--label {name} is no class of this model: {there}.")
    return torch.full((len(seeds),), names.index(name))


def read_classes(
    labels: str,
    folder: Path | str,
    balanced: bool = False,
    split: str | None = None,
    parts: Sequence[str] = ("training",),
) -> VolumeClasses:
    """The class of every volume, in the order of the audit.

    Args:
        labels: "folders" for the first folder below `folder`, or a CSV file with columns file and label, of
            which file is a path, or the end of one.
        folder: Data folder.
        balanced: Show all equally often.
        split, parts: As for `collection.choose`.

    Raises:
        UserError: A volume has no class, or there are fewer than two classes.
    """
    paths, _ = choose(folder, split=split, parts=parts, say=ignore)
    if labels == "folders":
        names = [path.relative_to(folder).parts for path in paths]
        of = [name[0] if len(name) > 1 else "" for name in names]
        remedy = "put it into a folder named after its class"
    else:
        if not Path(labels).is_file():
            raise UserError(f"--labels {labels} is no file: give folders, or a CSV file of file and label.")
        rows = read_table(labels, "file", "label", flag="--labels")
        found, _ = rows_of(rows, paths, f"--labels {labels}")
        of = [row["label"] if row else "" for row in found]
        remedy = f"add a row to {labels}"
    lacking = [str(p.relative_to(folder)) for p, name in zip(paths, of, strict=True) if not name]
    if lacking:
        listed = ", ".join(lacking[:MAX_FILES_NAMED])
        told = f"{len(lacking)} of {len(paths)} volumes in {folder} have no class"
        raise UserError(f"{told}: {remedy}: {listed}.")
    odd = next((name for name in of if not name.isprintable()), None)
    if odd is not None:
        raise UserError(f"--labels {labels} has the label {odd!a}: save it as CSV in UTF-8.")
    names = sorted(set(of))
    if len(names) < 2:
        raise UserError(f"--labels {labels} gives every volume the class {names[0]}: it needs two or more.")
    return VolumeClasses(names, np.array([names.index(name) for name in of]), balanced)


def ignore(_: object) -> None:
    """Say nothing: what was passed over is told by the audit."""


@dataclass(frozen=True)
class Checked:
    """What the audit knows of one volume.

    Args:
        digest: SHA-256 of the volume as it was read.
        content: What it is known by.
        spacing: Voxel size, mm.
        stored: Codes of the axes in the file.
        affine: (4, 4), mm, of the volume as it was read.
        labels: It is a label map.
    """

    digest: str
    content: str
    spacing: tuple
    stored: str
    affine: np.ndarray
    labels: bool

    @classmethod
    def of(cls, voxels: np.ndarray, volume: Volume) -> "Checked":
        """Of what `read_volume` gave."""
        digest, labels = content_of(voxels), is_label_map(volume.array)
        content = digest if axes_of(volume.affine) == CANONICAL else volume.content
        spacing = tuple(map(float, volume.spacing.round(3)))
        return cls(digest, content, spacing, volume.axes, volume.affine, labels)


def audit_volumes(
    folder: Path | str,
    shape: Sequence[int],
    keep: bool = True,
    store: Callable[[int, np.ndarray], None] | None = None,
    copies: int = 1,
    axes: str = CANONICAL,
    split: str | None = None,
    parts: Sequence[str] = ("training",),
) -> Audit:
    """Read every volume of a folder once, check it, and keep it if asked.

    Args:
        folder: Folder of NIfTI files.
        shape: Expected shape (X, Y, Z) along `axes`, voxels.
        keep: Keep the decoded volumes in memory.
        store: Function of (index, volume) that keeps them elsewhere.
        copies: Processes on this machine of which each keeps the volumes.
        axes: Codes of the axes along which volumes are read.
        split, parts: As for `collection.choose`.

    Returns:
        Audit.

    Raises:
        UserError: One line for every file that cannot be used, or what is wrong with the folder.
    """
    notes = []
    paths, stated = choose(folder, split=split, parts=parts, say=notes.append)
    size = packed_shape(len(paths), shape)
    keep = keep and store is None
    if keep:
        check_memory(4 * math.prod(size), copies)
    volumes = torch.empty(size) if keep else None
    index_of = {path: index for index, path in enumerate(paths)}

    def check(path: Path) -> Checked:
        voxels, volume = read_volume(path, shape, axes)
        if volumes is not None:
            volumes[index_of[path]] = torch.from_numpy(voxels)
        if store is not None:
            store(index_of[path], voxels)
        return Checked.of(voxels, volume)

    found = read_all(paths, check, "Checking volumes", folder, stated)
    contents = [one.content for one in found]
    refuse_unusable(copies_among(list(zip(paths, contents, strict=True))), len(paths), folder)
    affines = Counter(tuple(np.round(one.affine, 4).ravel()) for one in found)
    return Audit(
        paths=paths,
        volumes=volumes,
        affine=np.reshape(affines.most_common(1)[0][0], (4, 4)),
        digest=hashlib.sha256("".join(one.digest for one in found).encode()).hexdigest(),
        summary=[*summarize(shape, found, axes), *notes],
        shape=tuple(shape),
        contents=contents,
    )


def check_memory(needed: int, copies: int = 1) -> None:
    """Raise a UserError if as many processes cannot each keep `needed` bytes in this machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if copies * needed > 0.9 * total:
        each = f" in each of {copies} processes" if copies > 1 else ""
        raise UserError(
            f"The decoded volumes need {needed / 2**30:.1f} GiB{each}, this machine has "
            f"{total / 2**30:.1f}: use --cache disk."
        )


def summarize(shape: Sequence[int], found: Sequence[Checked], axes: str = CANONICAL) -> list[str]:
    """Lines on number, shape, spacing and axes of volumes, [Checked]; more than one spacing is a warning."""
    spacings = Counter(one.spacing for one in found)
    stored = Counter(one.stored for one in found)
    lines = [f"{len(found)} volumes of {by(shape)} voxels"]
    lines.append("spacing (mm): " + ", ".join(f"{by(s)} ({n})" for s, n in spacings.most_common(5)))
    turned = "" if set(stored) == {axes} else f"; all are read along {axes}"
    lines.append("orientation: " + ", ".join(f"{o} ({n})" for o, n in stored.most_common(5)) + turned)
    if len(spacings) > 1:
        lines.append(f"warning: {len(spacings)} different spacings; the model knows voxels, not mm.")
    return lines


def packed_shape(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of `number` network volumes for NIfTI arrays of a shape (X, Y, Z)."""
    return (number, 1, shape[2], shape[0], shape[1])


class Pack:
    """Volumes in one memory-mapped file, for data sets larger than memory; made by `pack_volumes`.

    volumes.npy holds (N, 1, Z, X, Y) float16 in [0, 1], within 2^-12 of the volumes.

    Args:
        folder: Folder with volumes.npy and index.json.

    Raises:
        UserError: The files do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            self.index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            self.voxels = np.load(self.folder / "volumes.npy", mmap_mode="r")
            fits = self.voxels.shape == packed_shape(len(self.index["files"]), self.index["shape"])
        except Exception:  # whatever damaged files raise
            fits = False
        if not fits:
            self.refuse("is not complete")

    def refuse(self, reason: str) -> None:
        """Raise a UserError with the remedy."""
        raise UserError(f"{self.folder} {reason}: remove this folder; the volumes are then packed again.")

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return Pack, (self.folder,)  # else a process that reads volumes would be sent them all

    def __len__(self) -> int:
        return len(self.voxels)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.voxels[index].astype(np.float32))

    def check(self) -> None:
        """Compare every volume with its checksum; a UserError names what is damaged."""
        with ThreadPoolExecutor(READERS) as pool:
            sums = tqdm(pool.map(zlib.crc32, self.voxels), "Checking the pack", len(self), leave=False)
            for (name, expected), found in zip(self.index["files"], sums, strict=True):
                if expected != found:
                    self.refuse(f"is damaged in the volume of {name}")

    def audit(self, folder: Path | str) -> Audit:
        """The Audit that was made of the sources, which are in `folder` now."""
        index = self.index
        paths = [Path(folder) / name for name, _ in index["files"]]
        affine = np.array(index["affine"])
        known = (index["digest"], index["summary"], tuple(index["shape"]), index["contents"])
        return Audit(paths, self, affine, *known)


def pack_name(folder: Path | str, paths: Sequence[Path], shape: Sequence[int], axes: str) -> str:
    """Name of the pack of these files: a digest of their names and contents, of shape and axes."""
    with ThreadPoolExecutor(READERS) as pool:
        digests = list(tqdm(pool.map(file_digest, paths), "Comparing with the pack", len(paths), leave=False))
    files = [(path.relative_to(folder).as_posix(), d) for path, d in zip(paths, digests, strict=True)]
    return hashlib.sha256(json.dumps([PACK_FORMAT, axes, *shape, files]).encode()).hexdigest()[:24]


def pack_volumes(folder: Path | str, shape: Sequence[int], packs: Path, **chosen: Any) -> Audit:
    """`audit_volumes` whose volumes are in a Pack: the one that there is, or a new one.

    A pack is named after the content of the files that it was made of, so that runs share it, and none is
    taken for files that have changed.

    Args:
        folder, shape: As for `audit_volumes`.
        packs: Folder of all packs.
        chosen: axes, split and parts, as for `audit_volumes`.

    Raises:
        UserError: The volumes cannot be used, the pack is damaged, or the disk is full.
    """
    which = {name: value for name, value in chosen.items() if name != "axes"}
    notes = []
    packs, (paths, stated) = Path(packs), choose(folder, say=notes.append, **which)
    final = packs / pack_name(folder, paths, shape, chosen.get("axes", CANONICAL))
    if final.exists():
        pack = Pack(final)
        pack.check()
        audit = pack.audit(folder)
        unlike = [unlike_split(p, c, stated) for p, c in zip(paths, audit.contents, strict=True)]
        refuse_unusable([line for line in unlike if line], len(paths), folder)
        return replace(audit, summary=audit.summary + notes)
    packs.mkdir(parents=True, exist_ok=True)
    clear_parts(packs)
    part = part_of(final)
    part.mkdir()
    try:
        voxels = allocate(part / "volumes.npy", packed_shape(len(paths), shape))
        sums = len(paths) * [0]

        def store(index: int, volume: np.ndarray) -> None:
            voxels[index] = volume
            sums[index] = zlib.crc32(voxels[index])

        audit = audit_volumes(folder, shape, store=store, **chosen)
        voxels.flush()
        names = [path.relative_to(folder).as_posix() for path in paths]
        index = {"shape": list(shape), "digest": audit.digest, "affine": audit.affine.tolist()}
        summary = [line for line in audit.summary if line not in notes]  # which are of this run
        index |= {"summary": summary, "contents": audit.contents}
        index |= {"files": list(zip(names, sums, strict=True))}
        (part / "index.json").write_text(json.dumps(index), encoding="utf-8")
        if not final.exists():  # another run may have packed the same
            part.rename(final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    audit = Pack(final).audit(folder)
    return replace(audit, summary=audit.summary + notes)


def allocate(path: Path, shape: Sequence[int]) -> np.memmap:
    """New float16 memory map whose blocks the disk has set aside, so that it cannot fill up later."""
    needed, free = 2 * math.prod(shape), shutil.disk_usage(path.parent).free
    try:
        if needed > free:
            raise OSError(errno.ENOSPC, "disk is full")
        voxels = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"The packed volumes need {needed / 2**30:.1f} GiB, {path.parent.parent} has "
            f"{free / 2**30:.1f} free: make room, or give another --results_dir."
        ) from None
    return voxels


class VolumeDataset(Dataset):
    """Training volumes; an item is asked for by (index, flip), so that who reads it changes nothing.

    Shapes: (index, flip) -> (1, Z, X, Y) float32 in [0, 1], index
    """

    def __init__(self, audit: Audit) -> None:
        self.paths = audit.paths
        self.volumes = audit.volumes
        self.axes = axes_of(audit.affine)
        self.left_right = audit.left_right

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, bool]) -> tuple[torch.Tensor, int]:
        index, flip = key
        if self.volumes is not None:
            volume = self.volumes[index]
        else:
            volume = torch.from_numpy(read_volume(self.paths[index], axes=self.axes)[0])
        return (volume.flip(self.left_right) if flip else volume), index


class SeededBatches(Sampler):
    """Endless batches of (index, flip), a function of seed and batch number; an epoch repeats no volume.

    Args:
        length: Volumes in the data set.
        batch_size: Volumes in a batch, of all processes together; the rest of an epoch is dropped.
        flip_prob: Probability of a left-right flip.
        key: Seed of the order, a tuple of integers >= 0.
        start: Number of the first batch, counted from the start of the training.
        group: Group; every process gets its part of each batch.
        classes: VolumeClasses; if they are balanced, an epoch has as many volumes of each, some again.
        members: Indices to draw from, (length,); None is 0, 1, ...
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        flip_prob: float,
        key: tuple[int, ...],
        start: int = 0,
        group: Group | None = None,
        classes: VolumeClasses | None = None,
        members: Sequence[int] | None = None,
    ) -> None:
        self.length, self.batch_size, self.flip_prob = length, batch_size, flip_prob
        self.key, self.start, self.group, self.classes = key, start, group or Group(), classes
        self.members = np.arange(length) if members is None else np.asarray(members)

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        per_epoch = self.length // self.batch_size
        for number in itertools.count(self.start):
            epoch, batch = divmod(number, per_epoch)
            if batch == 0 or number == self.start:
                order = self.order(host_random(*self.key, STREAM_ORDER, epoch))
            flips = host_random(*self.key, STREAM_FLIP, number).random(self.batch_size) < self.flip_prob
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self.group.part(list(zip(chosen.tolist(), flips.tolist(), strict=True)))

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Indices of the volumes of an epoch. Shapes: -> (length,)"""
        if self.classes is None or not self.classes.balanced:
            return rng.permutation(self.members)
        of_members = self.classes.of_volumes[self.members]
        there = np.unique(of_members)  # classes
        number, chosen = len(there), []
        for place, c in enumerate(there[rng.permutation(number)]):
            members = self.members[of_members == c]
            quota = self.length // number + (place < self.length % number)
            rounds = [rng.permutation(members) for _ in range(-(-quota // len(members)))]
            chosen.append(np.concatenate(rounds)[:quota])
        return rng.permutation(np.concatenate(chosen))


def outlive_signals(_: object) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which saves first and needs this worker until then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE))


def batches_of(volumes: torch.Tensor, batches: SeededBatches, left_right: int) -> Iterator[Loaded]:
    """Yield (volumes (B, 1, Z, X, Y), indices (B,)) of volumes that are on the device, (N, 1, Z, X, Y)."""
    for batch in batches:
        indices = torch.tensor([index for index, _ in batch])
        flips = torch.tensor([flip for _, flip in batch])
        chosen = volumes[to_device(indices, volumes.device)]
        flips = to_device(flips, volumes.device).view(-1, 1, 1, 1, 1)
        yield torch.where(flips, chosen.flip(left_right), chosen), indices


@dataclass(frozen=True)
class Batch:
    """Volumes and their classes, on the way through a step.

    Args:
        volumes: (b, 1, D, H, W).
        labels: (b,), or None without classes.
    """

    volumes: torch.Tensor
    labels: torch.Tensor | None = None

    @classmethod
    def cat(cls, batches: list["Batch"]) -> "Batch":
        """The volumes of several Batches, in their order, as one."""
        return cls(cat([one.volumes for one in batches]), cat([one.labels for one in batches]))

    def split(self, size: int) -> list["Batch"]:
        """Parts of `size` volumes."""
        volumes = self.volumes.split(size)
        labels = len(volumes) * [None] if self.labels is None else self.labels.split(size)
        return [Batch(*part) for part in zip(volumes, labels, strict=True)]

    def with_volumes(self, volumes: torch.Tensor) -> "Batch":
        """A Batch of other volumes, of the same classes."""
        return Batch(volumes, self.labels)


def cat(parts: list[Any]) -> Any:
    """Micro-batches as one batch. Shapes: [(B, ...)] -> (b, ...); None of those that are None"""
    return parts[0] if len(parts) == 1 or parts[0] is None else torch.cat(parts)


def make_loader(
    dataset: VolumeDataset, batches: SeededBatches, num_workers: int | None, device: torch.device
) -> Iterator[Loaded]:
    """Iterator of (volumes (B, 1, Z, X, Y), indices (B,)) in the order of `batches`."""
    if isinstance(dataset.volumes, torch.Tensor) and dataset.volumes.is_cuda:
        return batches_of(dataset.volumes, batches, dataset.left_right)
    if num_workers is None:
        num_workers = 0 if dataset.volumes is not None else min(4, usable_cores())
    return iter(
        DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # else opening a loader would advance the global random state
        )
    )


def open_data(
    folder: Path | str, shape: Sequence[int], cache: str, packs: Path, group: Group, **chosen: Any
) -> Audit:
    """`audit_volumes` for several processes, with the volumes where `cache` wants them.

    Args:
        folder, shape: As for `audit_volumes`.
        cache: ram, gpu (Audit.move brings them there), disk, or none.
        packs: Folder of the packs of `cache` disk.
        group: Group; its first process packs.
        chosen: axes, split and parts, as for `audit_volumes`.
    """
    if cache != "disk":
        kept = cache in ("ram", "gpu")
        return audit_volumes(folder, shape, kept, copies=group.on_this_machine, **chosen)
    if group.first:
        audit = pack_volumes(folder, shape, packs, **chosen)
        group.tell(getattr(audit.volumes, "folder", packs).name)
        return audit
    place = Path(packs) / group.tell("")
    if not place.exists():
        raise UserError(f"This process does not see {place}, where the first has packed the volumes.")
    return Pack(place).audit(folder)


def axes_of_most(folder: Path | str, split: str | None = None, parts: Sequence[str] = ("training",)) -> str:
    """Codes of the axes along which most volumes of a folder are stored; only headers are read."""
    paths, _ = choose(folder, split=split, parts=parts, say=ignore)
    with ThreadPoolExecutor(READERS) as pool:
        return Counter(pool.map(stored_axes, paths)).most_common(1)[0][0]
