"""Training data: the audit of a folder, classes, the order of samples, and a cache on disk."""

import csv
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from volumetric.cli import UserError
from volumetric.files import (
    MAX_FILES_NAMED,
    MAX_REASON,
    as_damaged,
    by,
    clear_parts,
    duplicates_among,
    file_digest,
    find_volumes,
    left_right_axis,
    part_of,
    read_volume,
    refuse_unusable,
)
from volumetric.parallel import STREAM_CLASS, STREAM_FLIP, STREAM_ORDER, Group, host_random, to_device

FEWEST_EVALUATED = 6  # volumes in a set: more than the neighbours that precision and recall ask for
PACK_FORMAT = 1  # part of a pack's name
WORKER_GRACE = 300  # seconds that a worker goes on reading after SIGTERM, for the step that is being saved


@dataclass
class Audit:
    """What the check of a data folder found.

    Args:
        paths: The volumes, sorted.
        volumes: float32 tensor (N, 1, Z, X, Y) in [0, 1], a Pack of as many, or None without a cache.
        affine: The affine that most volumes have, (4, 4), mm.
        digest: SHA-256 over the contents of all volumes.
        summary: Lines for a person to read.
        shape: (X, Y, Z), voxels.
        classes: Classes of the volumes, or None.
    """

    paths: list
    volumes: "torch.Tensor | Pack | None"
    affine: np.ndarray
    digest: str
    summary: list
    shape: tuple
    classes: "Classes | None" = None

    @property
    def left_right(self):
        """Axis of (..., D, H, W) that runs between left and right, in most volumes."""
        return {0: -2, 1: -1, 2: -3}[left_right_axis(self.affine)]

    def kept(self, cache, packs):
        """Line that tells where the volumes of this shape are during training."""
        voxels = len(self.paths) * math.prod(self.shape)
        places = {
            "ram": f"in memory, {4 * voxels / 2**30:.2f} GiB",
            "gpu": f"on the GPU, {4 * voxels / 2**30:.2f} GiB",
            "disk": f"packed in {packs}, {2 * voxels / 2**30:.2f} GiB",
            "none": "decoded again in every epoch",
        }
        return f"volumes: {places[cache]}"

    def move(self, cache, device):
        """Move the volumes to the GPU if `cache` is gpu; a UserError if they do not fit."""
        if cache != "gpu":
            return
        try:
            self.volumes = self.volumes.to(device)
        except torch.OutOfMemoryError:
            size = self.volumes.nbytes / 2**30
            raise UserError(
                f"The volumes, {size:.1f} GiB, do not fit on {device}: use --cache ram."
            ) from None

    @property
    def spacing(self):
        """Size (d, h, w) of a voxel of most volumes, mm."""
        x, y, z = nib.affines.voxel_sizes(self.affine)
        return z, x, y


@dataclass
class Classes:
    """The classes of a data set.

    Args:
        names: Their names, sorted.
        of_volumes: Number of every volume's class, (N,) int64.
        balanced: All are shown equally often.
    """

    names: list
    of_volumes: np.ndarray
    balanced: bool = False

    def shares(self):
        """How often each class is shown. Shapes: -> (classes,), sum 1"""
        counts = np.bincount(self.of_volumes, minlength=len(self.names))
        return np.full(len(self.names), 1 / len(self.names)) if self.balanced else counts / counts.sum()

    def summary(self):
        """Line for a person to read."""
        counts = np.bincount(self.of_volumes, minlength=len(self.names))
        return "classes: " + ", ".join(f"{name} ({n})" for name, n in zip(self.names, counts, strict=True))


def draw_classes(shares, uniform):
    """Classes drawn by uniform numbers in [0, 1). Shapes: (classes,), (B,) -> (B,) int64"""
    return np.searchsorted(np.cumsum(shares)[:-1], uniform, side="right")


def seeded_classes(seeds, shares):
    """Class of the volume of every seed, drawn as often as shown in training. Shapes: (B,) -> (B,) or None"""
    if shares is None:
        return None
    uniform = np.array([host_random(seed, STREAM_CLASS).random() for seed in seeds])
    return torch.from_numpy(draw_classes(shares, uniform))


def read_classes(labels, folder, balanced=False):
    """The class of every volume, in the order of `find_volumes`.

    Args:
        labels: "folders" for the first folder below `folder`, or a CSV file with columns file and label, of
            which file is the path below `folder`.
        folder: Data folder.
        balanced: Show all equally often.

    Raises:
        UserError: A volume has no class, or there are fewer than two classes.
    """
    names = [path.relative_to(folder).as_posix() for path in find_volumes(folder)]
    if labels == "folders":
        of = {name: name.split("/")[0] for name in names if "/" in name}
        remedy = "put it into a folder named after its class"
    else:
        of = read_label_table(labels)
        remedy = f"add a row to {labels}"
    lacking = [name for name in names if not of.get(name)]
    if lacking:
        listed = ", ".join(lacking[:MAX_FILES_NAMED])
        found = f"{len(lacking)} of {len(names)} volumes in {folder} have no class"
        raise UserError(f"{found}: {remedy}: {listed}.")
    found = sorted({of[name] for name in names})
    if len(found) < 2:
        raise UserError(f"--labels {labels} gives every volume the class {found[0]}: it needs two or more.")
    return Classes(found, np.array([found.index(of[name]) for name in names]), balanced)


def read_label_table(path):
    """{file: label} of a CSV file."""
    if not Path(path).is_file():
        raise UserError(f"--labels {path} is no file: give folders, or a CSV file of file and label.")
    with as_damaged("save it as CSV in UTF-8", path), open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        rows, columns = list(table), table.fieldnames
    if not {"file", "label"} <= set(columns or ()):
        raise UserError(f"{path} has columns {ascii(columns)[:MAX_REASON]}, expected file and label.")
    of = {}
    for row in rows:
        name, label = row["file"], (row["label"] or "").strip()
        if not label.isprintable():
            raise UserError(f"{path} gives {name!r} the label {label!r}: save it as CSV in UTF-8.")
        if of.setdefault(name, label) != label:
            raise UserError(f"{path} gives {name} two labels, {of[name]} and {label}: keep one.")
    return of


def audit_volumes(folder, shape, batch_size=1, keep=True, store=None, copies=1):
    """Read every volume of a folder once, check it, and keep it if asked.

    Args:
        folder: Folder of NIfTI files.
        shape: Expected shape (X, Y, Z), voxels.
        batch_size: Fewest volumes that training needs.
        keep: Keep the decoded volumes in memory.
        store: Function of (index, volume) that keeps them elsewhere.
        copies: Processes on this machine of which each keeps the volumes.

    Returns:
        Audit.

    Raises:
        UserError: One line for every file that cannot be used, or what is wrong with the folder.
    """
    paths = find_volumes(folder)
    size = packed_shape(len(paths), shape)
    keep = keep and store is None
    if keep:
        check_memory(4 * math.prod(size), copies)
    volumes = torch.empty(size) if keep else None

    def check(index):
        try:
            volume, image = read_volume(paths[index], shape)
        except UserError as error:
            return f"{paths[index]} {error}"
        if keep:
            volumes[index] = torch.from_numpy(volume)
        if store is not None:
            store(index, volume)
        spacing = tuple(np.round(nib.affines.voxel_sizes(image.affine), 3))
        return (
            hashlib.sha256(volume).hexdigest(),
            spacing,
            "".join(nib.aff2axcodes(image.affine)),
            image.affine,
        )

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(tqdm(pool.map(check, range(len(paths))), "Checking volumes", len(paths), leave=False))
    problems = [f for f in found if isinstance(f, str)]
    good = [(path, *f) for path, f in zip(paths, found, strict=True) if not isinstance(f, str)]
    problems += duplicates_among([(path, digest) for path, digest, *_ in good])
    refuse_unusable(problems, len(paths), folder)
    check_number(len(paths), batch_size, folder)
    affines = Counter(tuple(np.round(affine, 4).ravel()) for *_, affine in good)
    return Audit(
        paths=paths,
        volumes=volumes,
        affine=np.reshape(affines.most_common(1)[0][0], (4, 4)),
        digest=hashlib.sha256("".join(digest for _, digest, *_ in good).encode()).hexdigest(),
        summary=summarize(shape, good),
        shape=tuple(shape),
    )


def check_number(number, batch_size, folder):
    """Raise a UserError if the volumes of a folder do not make one batch."""
    if number < batch_size:
        raise UserError(
            f"{folder} holds {number} volumes, fewer than a batch of {batch_size}: "
            f"add volumes or set --batch_size {number}."
        )


def check_memory(needed, copies=1):
    """Raise a UserError if as many processes cannot each keep `needed` bytes in this machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if copies * needed > 0.9 * total:
        each = f" in each of {copies} processes" if copies > 1 else ""
        raise UserError(
            f"The decoded volumes need {needed / 2**30:.1f} GiB{each}, this machine has "
            f"{total / 2**30:.1f}: use --cache disk."
        )


def summarize(shape, good):
    """Lines on number, shape, spacing and orientation of checked volumes; more than one kind is a warning."""
    spacings = Counter(spacing for _, _, spacing, _, _ in good)
    orientations = Counter(orientation for _, _, _, orientation, _ in good)
    lines = [f"{len(good)} volumes of {by(shape)} voxels"]
    lines.append("spacing (mm): " + ", ".join(f"{by(s)} ({n})" for s, n in spacings.most_common(5)))
    lines.append("orientation: " + ", ".join(f"{o} ({n})" for o, n in orientations.most_common(5)))
    if len(spacings) > 1:
        lines.append(f"warning: {len(spacings)} different spacings; the model knows voxels, not mm.")
    if len(orientations) > 1:
        lines.append("warning: volumes of different orientation; the model will mix them up. Reorient them.")
    return lines


def packed_shape(number, shape):
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

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            self.index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            self.voxels = np.load(self.folder / "volumes.npy", mmap_mode="r")
            fits = self.voxels.shape == packed_shape(len(self.index["files"]), self.index["shape"])
        except Exception:  # whatever damaged files raise
            fits = False
        if not fits:
            self.refuse("is not complete")

    def refuse(self, reason):
        """Raise a UserError with the remedy."""
        raise UserError(f"{self.folder} {reason}: remove this folder; the volumes are then packed again.")

    def __reduce__(self):
        return Pack, (self.folder,)  # else a process that reads volumes would be sent them all

    def __len__(self):
        return len(self.voxels)

    def __getitem__(self, index):
        return torch.from_numpy(self.voxels[index].astype(np.float32))

    def check(self):
        """Compare every volume with its checksum; a UserError names what is damaged."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            sums = tqdm(pool.map(zlib.crc32, self.voxels), "Checking the pack", len(self), leave=False)
            for (name, expected), found in zip(self.index["files"], sums, strict=True):
                if expected != found:
                    self.refuse(f"is damaged in the volume of {name}")

    def audit(self, folder):
        """The Audit that was made of the sources, which are in `folder` now."""
        index = self.index
        paths = [Path(folder) / name for name, _ in index["files"]]
        affine = np.array(index["affine"])
        return Audit(paths, self, affine, index["digest"], index["summary"], tuple(index["shape"]))


def pack_name(folder, paths, shape):
    """Name of the pack of these files: a digest of their names and contents, and of the shape."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = list(tqdm(pool.map(file_digest, paths), "Comparing with the pack", len(paths), leave=False))
    files = [(path.relative_to(folder).as_posix(), d) for path, d in zip(paths, digests, strict=True)]
    return hashlib.sha256(json.dumps([PACK_FORMAT, *shape, files]).encode()).hexdigest()[:24]


def pack_volumes(folder, shape, batch_size, packs):
    """`audit_volumes` whose volumes are in a Pack: the one that there is, or a new one.

    A pack is named after the content of the files that it was made of, so that runs share it, and none is
    taken for files that have changed.

    Args:
        folder, shape, batch_size: As for `audit_volumes`.
        packs: Folder of all packs.

    Raises:
        UserError: The volumes cannot be used, the pack is damaged, or the disk is full.
    """
    packs, paths = Path(packs), find_volumes(folder)
    check_number(len(paths), batch_size, folder)
    final = packs / pack_name(folder, paths, shape)
    if final.exists():
        pack = Pack(final)
        pack.check()
        return pack.audit(folder)
    packs.mkdir(parents=True, exist_ok=True)
    clear_parts(packs)
    part = part_of(final)
    part.mkdir()
    try:
        voxels = allocate(part / "volumes.npy", packed_shape(len(paths), shape))
        sums = len(paths) * [0]

        def store(index, volume):
            voxels[index] = volume
            sums[index] = zlib.crc32(voxels[index])

        audit = audit_volumes(folder, shape, batch_size, store=store)
        voxels.flush()
        names = [path.relative_to(folder).as_posix() for path in paths]
        index = {"shape": list(shape), "digest": audit.digest, "affine": audit.affine.tolist()}
        index |= {"summary": audit.summary, "files": list(zip(names, sums, strict=True))}
        (part / "index.json").write_text(json.dumps(index), encoding="utf-8")
        if not final.exists():  # another run may have packed the same
            part.rename(final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Pack(final).audit(folder)


def allocate(path, shape):
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

    def __init__(self, audit):
        self.paths = audit.paths
        self.volumes = audit.volumes
        self.left_right = audit.left_right

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, key):
        index, flip = key
        if self.volumes is not None:
            volume = self.volumes[index]
        else:
            volume = torch.from_numpy(read_volume(self.paths[index])[0])
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
        classes: Classes; if they are balanced, an epoch has as many volumes of each, some of them again.
        members: Indices to draw from, (length,); None is 0, 1, ...
    """

    def __init__(self, length, batch_size, flip_prob, key, start=0, group=None, classes=None, members=None):
        self.length, self.batch_size, self.flip_prob = length, batch_size, flip_prob
        self.key, self.start, self.group, self.classes = key, start, group or Group(), classes
        self.members = np.arange(length) if members is None else np.asarray(members)

    def __iter__(self):
        per_epoch = self.length // self.batch_size
        for number in itertools.count(self.start):
            epoch, batch = divmod(number, per_epoch)
            if batch == 0 or number == self.start:
                order = self.order(host_random(*self.key, STREAM_ORDER, epoch))
            flips = host_random(*self.key, STREAM_FLIP, number).random(self.batch_size) < self.flip_prob
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self.group.part(list(zip(chosen.tolist(), flips.tolist(), strict=True)))

    def order(self, rng):
        """Indices of the volumes of an epoch. Shapes: -> (length,)"""
        if self.classes is None or not self.classes.balanced:
            return rng.permutation(self.members)
        number = len(self.classes.names)
        chosen = []
        for place, c in enumerate(rng.permutation(number)):
            members = np.flatnonzero(self.classes.of_volumes == c)
            quota = self.length // number + (place < self.length % number)
            rounds = [rng.permutation(members) for _ in range(-(-quota // len(members)))]
            chosen.append(np.concatenate(rounds)[:quota])
        return rng.permutation(np.concatenate(chosen))


def outlive_signals(_):
    """Leave Ctrl-C and SIGTERM to the main process, which saves first and needs this worker until then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE))


def batches_of(volumes, batches, left_right):
    """Yield (volumes (B, 1, Z, X, Y), indices (B,)) of volumes that are on the device, (N, 1, Z, X, Y)."""
    for batch in batches:
        indices, flips = (torch.tensor(one) for one in zip(*batch, strict=True))
        chosen = volumes[to_device(indices, volumes.device)]
        flips = to_device(flips, volumes.device).view(-1, 1, 1, 1, 1)
        yield torch.where(flips, chosen.flip(left_right), chosen), indices


def make_loader(dataset, batches, num_workers, device):
    """Iterator of (volumes (B, 1, Z, X, Y), indices (B,)) in the order of `batches`."""
    if getattr(dataset.volumes, "is_cuda", False):
        return batches_of(dataset.volumes, batches, dataset.left_right)
    if num_workers is None:
        num_workers = 0 if dataset.volumes is not None else min(4, os.cpu_count() or 1)
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


def open_data(folder, shape, batch_size, cache, packs, group):
    """`audit_volumes` for several processes, with the volumes where `cache` wants them.

    Args:
        folder, shape, batch_size: As for `audit_volumes`.
        cache: ram, gpu (Audit.move brings them there), disk, or none.
        packs: Folder of the packs of `cache` disk.
        group: Group; its first process packs.
    """
    if cache != "disk":
        kept = cache in ("ram", "gpu")
        return audit_volumes(folder, shape, batch_size, kept, copies=group.on_this_machine)
    if group.first:
        audit = pack_volumes(folder, shape, batch_size, packs)
        group.tell(audit.volumes.folder.name)
        return audit
    place = Path(packs) / group.tell(None)
    if not place.exists():
        raise UserError(f"This process does not see {place}, where the first has packed the volumes.")
    return Pack(place).audit(folder)
