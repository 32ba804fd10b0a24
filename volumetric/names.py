"""Names of volumes for people and for files: what a volume is known by is its content, see collection.py."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from volumetric.cli import UserError

NNUNET_CHANNEL = re.compile(r"_\d{4}$")  # at the end of a name, of nnU-Net's volumes


def name_of(path: Path | str) -> str:
    """Name of a file without the ending of a volume."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(path).name, flags=re.IGNORECASE)


def unique_names(paths: Sequence[Path]) -> dict[Path, str]:
    """{path: name} of files, without endings: as much of each path's end as tells them apart, joined by _.

    sub-00.nii.gz alone is sub-00; beside another of that name it is siteA_sub-00.
    """
    parts = {path: [*Path(path).parent.parts, name_of(path)] for path in paths}
    depths, growing, names, number = dict.fromkeys(parts, 1), list(parts), {}, Counter()
    while growing:
        names = {path: "_".join(map(plain, of[-depths[path] :])) for path, of in parts.items()}
        number = Counter(names.values())
        growing = [p for p, name in names.items() if number[name] > 1 and depths[p] < len(parts[p])]
        depths |= {path: depths[path] + 1 for path in growing}
    return told_apart(names)  # v.nii beside v.nii.gz, or folders whose odd letters are one


def told_apart(names: dict[Path, str]) -> dict[Path, str]:
    """{path: name}, with a digest of its path behind every name that several have."""
    number = Counter(names.values())
    digests = {path: hashlib.sha256(Path(path).as_posix().encode()).hexdigest()[:8] for path in names}
    return {path: name if number[name] == 1 else f"{name}_{digests[path]}" for path, name in names.items()}


def plain(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_")


def names_in(folder: Path | str, paths: Iterable[Path], flag: str = "--data") -> dict[Path, str]:
    """{path: name} of the files of a folder by their places in it, under which none writes over another.

    Raises:
        UserError: Two files differ in their endings alone.
    """
    names = {path: in_folder(path, folder) for path in paths}
    if len(set(names.values())) < len(names):
        twice = Counter(names.values()).most_common(1)[0][0]
        raise UserError(f"{flag} {folder} has {twice} twice, as .nii and .nii.gz: remove one.")
    return names


def in_folder(path: Path | str, folder: Path | str) -> str:
    """Name of a volume by its place in a folder: siteA/sub-00.nii.gz is siteA/sub-00."""
    return Path(path).relative_to(folder).with_name(name_of(path)).as_posix()


def refuse_alone(paths: dict[str, Path], others: dict[str, Path], flag: str, other: str) -> None:
    """Raise a UserError if a file of one folder has no partner in another; both are {name: path}."""
    alone = sorted(paths.keys() - others.keys())
    if not alone:
        return
    hint = "the names must be the same"
    channel = [name for name in alone if NNUNET_CHANNEL.sub("", name) in others]
    if channel:
        (number,) = NNUNET_CHANNEL.findall(channel[0])
        hint = f"{number} is nnU-Net's number of a channel; give files without it"
    raise UserError(f"{paths[alone[0]]} has no partner in {other}, as {len(alone)} of {len(paths)}: {hint}.")
