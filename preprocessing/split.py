"""Set subjects aside: which volumes are trained on, which are held out, and which are kept for the test.

    python preprocessing/split.py --data volumes --output split.csv
    python preprocessing/split.py --data volumes --subjects subjects.csv --stratify site --output split.csv
    python preprocessing/split.py --data volumes --earlier split.csv --output split-2.csv

writes a table of file, content, subject and part, which other programs take as --split. Its law:

1. Whose a volume is, --subjects says; without it, the BIDS label in the path (sub-01), and without a label
   each file is a subject of its own. Subjects that have a volume in common, by its voxels, are one group. A
   group is in one part, with all of its volumes.
2. Who has a part in the table of --earlier keeps it; so does whoever shares a volume with one that is there.
3. Without --stratify, the part of a group follows from a hash of --seed and its first subject by name, and
   from nothing else: a number in [0, 1), of which the lowest share is the test and the highest is held out. A
   new subject moves nobody, unless its volumes tie groups together; a larger share takes from training alone.
   Another seed draws everybody anew, but for those of --earlier. Shares are met as by a draw: of 100 subjects
   and a share of 0.1, 10 give or take 3. Is nobody drawn for a part that was asked for, no table is written.
4. With --stratify, each part gets its share of each stratum, to less than one subject if there was no split
   before. New groups go in the order of their hash, each to the part that its stratum lacks most. What is no
   whole subject goes, among the parts that the stratum lacks, to the one that all strata together lack most:
   else strata of three would leave the test empty. Of parts that lack as much, the smaller share is first.
   Who is there decides here, so that a new subject moves nobody only if --earlier is given.

Sections of this file: settings, whose a volume is, the law, table and summary, entry point.
"""

import hashlib
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from volumetric.cli import UserError, check_fields, check_folder, one_line_errors, option, parse_cli
from volumetric.collection import FEW_NAMED, examined, find_volumes, read_all
from volumetric.names import name_of
from volumetric.tables import BIDS_LABEL, PARTS, Split, read_table, rows_of, subject_of, write_table

# Edit these, or pass them as flags; a flag wins.
# folder of the volumes
data = "volumes"
# new table
output = "split.csv"

COLUMNS = ("file", "content", "subject", "part")
SHARE = {"least": 0, "most": 1}
SEEDS = 1000  # that are tried for one that leaves no part empty


def check_new(flag, path):
    """Raise a UserError unless a file is not there, and can be made."""
    if Path(path).exists() or Path(path).is_symlink():
        raise UserError(
            f"{flag} {path} exists, and nothing is overwritten: give another name, and --earlier {path} if "
            f"everybody is to keep their part."
        )
    check_folder(flag, Path(path).absolute().parent)


@dataclass(kw_only=True)
class SplitConfig:
    """Divide the subjects of a folder into training, held out and test."""

    data: str = option(data, "Folder of the volumes.")
    output: str = option(output, "New table of file, content, subject and part (CSV).", check=check_new)
    subjects: str | None = option(
        None, "CSV of file and subject; without, the BIDS label of a path, or each file is one.", file=True
    )
    stratify: str | None = option(None, "Column of --subjects in whose every value shares are to hold.")
    earlier: str | None = option(None, "Table of an earlier split: everybody keeps their part.", file=True)
    held_out: float = option(0.2, "Share of the subjects that generators never see.", **SHARE)
    test: float = option(0.1, "Share of the subjects that nothing sees before the last score.", **SHARE)
    seed: int = option(0, "Another seed draws other subjects.", least=0)

    def __post_init__(self):
        check_fields(self)
        if self.stratify and not self.subjects:
            raise UserError("--stratify names a column of --subjects: give its table, too.")
        if self.stratify in COLUMNS:
            raise UserError(f"--stratify must be a column beside {', '.join(COLUMNS)}, got {self.stratify}.")
        if self.shares["training"] <= 0:
            raise UserError(
                f"--held_out {self.held_out:g} and --test {self.test:g} leave nothing to train on: their sum "
                f"must be less than 1."
            )

    @property
    def shares(self):
        """{part: share of the subjects}, as exact as they were written."""
        test, held_out = Fraction(str(self.test)), Fraction(str(self.held_out))
        return {"training": 1 - test - held_out, "held_out": held_out, "test": test}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Whose a volume is                                                                                        ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Owner:
    """Whose a volume is.

    Args:
        file: Path below the data folder, with / between its parts.
        subject: Whose it is.
        stratum: Of the subject; empty without --stratify.
    """

    file: str
    subject: str
    stratum: str = ""


def owners_of(config, files):
    """[Owner] of every volume; tells by which rule, and what may be wrong with it.

    Args:
        config: SplitConfig.
        files: Paths below the data folder, with / between their parts.
    """
    if config.subjects is None:
        owners = [Owner(file, subject_of(file)) for file in files]
        rule = rule_of(owners)
    else:
        owners = owners_in_table(config, files)
        rule = f"as --subjects {config.subjects} says"
    print(f"{len({owner.subject for owner in owners})} subjects have {len(files)} volumes: {rule}.")
    return owners


def owners_in_table(config, files):
    """[Owner] of every volume as --subjects says; a UserError if a volume has no row."""
    columns = ["file", "subject", *([config.stratify] if config.stratify else [])]
    table, called = read_table(config.subjects, *columns, flag="--subjects"), f"--subjects {config.subjects}"
    rows, unused = rows_of(table, [Path(config.data, file) for file in files], called)
    lacking = [file for file, row in zip(files, rows, strict=True) if row is None]
    if lacking:
        raise UserError(
            f"{called} has no row for {len(lacking)} of {len(files)} volumes, the first {lacking[0]}: add "
            f"its file and subject (the first row there is of {table[0]['file']})."
        )
    if unused:
        print(f"{called}: rows of volumes that are not here: {len(unused)}, the first {unused[0]}.")
    found = zip(files, rows, strict=True)
    owners = [Owner(file, row["subject"], row.get(config.stratify, "")) for file, row in found]
    first = {}
    for owner in owners:
        former = first.setdefault(owner.subject, owner)
        if owner.stratum != former.stratum:
            raise UserError(
                f"{called} gives {owner.subject} the {config.stratify} {former.stratum!r} ({former.file}) "
                f"and {owner.stratum!r} ({owner.file}): give a subject one."
            )
    return owners


def rule_of(owners):
    """What made subjects of volumes without a table, in words; tells where it may be wrong."""
    places, files_of, number = defaultdict(set), defaultdict(set), 0
    for owner in owners:
        label = BIDS_LABEL.search(owner.file)
        if label:
            number += 1
            places[owner.subject].add(owner.file[: label.end()])
        else:
            files_of[name_of(owner.file)].add(owner.file)
    remedy = "if that is wrong, give --subjects"
    for what, found, meaning in (
        ("Labels in several places", places, "a label is taken for one subject"),
        ("Names of several files", files_of, "each file is taken for a subject"),
    ):
        several = [sorted(texts) for _, texts in sorted(found.items()) if len(texts) > 1]
        if several:
            print(f"{what}: {len(several)}, as {' and '.join(several[0][:2])}: {meaning}; {remedy}.")
    rules = [f"{number} go by the BIDS label in the path (sub-...)"] if number else []
    if number < len(owners):
        rules.append(f"{len(owners) - number} are taken for a subject each ({remedy})")
    return " and ".join(rules)


def shared_volumes(owners, contents):
    """Lines on volumes that several subjects have, one for each.

    Args:
        owners: [Owner].
        contents: What each volume is known by, in the same order.
    """
    by_content = defaultdict(dict)  # {content: {subject: file}}
    for owner, content in zip(owners, contents, strict=True):
        by_content[content].setdefault(owner.subject, owner.file)
    shared = [files for files in by_content.values() if len(files) > 1]
    lines = [
        f"{' and '.join(files)} share a volume ({' and '.join(files.values())} have the same voxels): they "
        f"are kept in one part"
        for files in shared[:FEW_NAMED]
    ]
    more = len(shared) - FEW_NAMED
    return lines + ([f"... and {more} more volumes of several subjects"] if more > 0 else [])


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The law                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Group:
    """Subjects that volumes of equal content tie together; most groups are one subject.

    Args:
        subjects: By name.
        stratum: Of the first.
        kept: Part in an earlier split, or None.
    """

    subjects: tuple
    stratum: str = ""
    kept: str | None = None


def grouped(owners, contents, earlier=()):
    """[Group] of all subjects, by name.

    Args:
        owners, contents: As for `shared_volumes`.
        earlier: Rows of an earlier split.

    Raises:
        UserError: A group was in two parts.
    """
    group_of = {owner.subject: {owner.subject} for owner in owners}
    first, owned = {}, defaultdict(set)
    for owner, content in zip(owners, contents, strict=True):
        owned[owner.subject].add(content)
        one, other = group_of[owner.subject], group_of[first.setdefault(content, owner.subject)]
        if one is not other:
            one |= other
            group_of |= dict.fromkeys(other, one)
    strata = {owner.subject: owner.stratum for owner in owners}
    known = [{row[kind]: row for row in earlier} for kind in ("subject", "content")]
    groups = []
    for subjects in sorted({tuple(sorted(group)) for group in group_of.values()}):
        members = [subjects, sorted(set().union(*(owned[subject] for subject in subjects)))]
        rows = [of[one] for of, ones in zip(known, members, strict=True) for one in ones if one in of]
        groups.append(Group(subjects, strata[subjects[0]], kept_part(subjects, rows)))
    return groups


def kept_part(subjects, rows):
    """The part that the rows of an earlier split give a group, or None; a UserError if they give two."""
    other = next((row for row in rows if row["part"] != rows[0]["part"]), None)
    if other is not None:
        raise UserError(
            f"{' and '.join(subjects)} must be in one part, and --earlier has {rows[0]['file']} of "
            f"{rows[0]['subject']} in {rows[0]['part']}, {other['file']} of {other['subject']} in "
            f"{other['part']}: remove the volume that ties them together, or split anew without --earlier."
        )
    return rows[0]["part"] if rows else None


def place_of(seed, subject):
    """The number in [0, 1) of a subject, the same on every machine; a Fraction."""
    digest = hashlib.sha256(f"{seed}:{subject}".encode()).digest()
    return Fraction(int.from_bytes(digest[:8], "big"), 2**64)


def drawn(groups, shares, seed, stratified=False):
    """{group: part} by the law at the top of this file.

    Args:
        groups: [Group].
        shares: {part: share of the subjects}, Fractions.
        seed: Of the hash.
        stratified: Shares are to hold in each stratum.
    """
    places = {group: place_of(seed, group.subjects[0]) for group in groups}
    new = sorted((group for group in groups if group.kept is None), key=places.get)
    if stratified:
        return shared_out(groups, new, shares)
    return {group: group.kept or by_place(places[group], shares) for group in groups}


def by_place(place, shares):
    """The part of a place in [0, 1): the test lies at its lower end, what is held out at its upper end."""
    if place < shares["test"]:
        return "test"
    return "held_out" if place >= 1 - shares["held_out"] else "training"


def shared_out(groups, new, shares):
    """{group: part} with the shares in each stratum; `new` are the groups without a part, in their order."""
    lacking = defaultdict(Counter)  # {stratum: {part: subjects}}
    overall = Counter()  # {part: subjects}
    parts, waiting = {}, []
    from_small_share = sorted(PARTS, key=shares.get)  # of parts that lack as much, the first is taken

    def count(group, part, number):
        lacking[group.stratum][part] += number
        overall[part] += number

    def give(group, part):
        parts[group] = part
        count(group, part, -len(group.subjects))

    for group in groups:
        for part in PARTS:
            count(group, part, shares[part] * len(group.subjects))
    for group in groups:
        if group.kept is not None:
            give(group, group.kept)
    for group in new:
        of = lacking[group.stratum]
        part = max(from_small_share, key=of.get)
        if of[part] >= len(group.subjects):
            give(group, part)
        else:
            waiting.append(group)
    for group in waiting:
        of = lacking[group.stratum]
        give(group, max((part for part in from_small_share if of[part] > 0), key=overall.get))
    return parts


def refuse_empty(groups, config):
    """Raise a UserError if a part that was asked for gets nobody; names a seed with which each gets some."""

    def empty(seed):
        found = drawn(groups, config.shares, seed, config.stratify is not None).values()
        return [part for part in PARTS if config.shares[part] > 0 and part not in found]

    nobody = empty(config.seed)
    if not nobody:
        return
    seed = next((seed for seed in range(SEEDS) if not empty(seed)), None)
    remedy = f"--seed {seed} leaves no part empty" if seed is not None else "give larger shares, or 0"
    raise UserError(
        f"Of {sum(len(group.subjects) for group in groups)} subjects, nobody is drawn for "
        f"{' and '.join(nobody)} (--held_out {config.held_out:g}, --test {config.test:g}): {remedy}."
    )


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Table and summary                                                                                        ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def write_split(config, owners, contents, parts, earlier=()):
    """Write the table, with the rows of an earlier one whose volumes are not here now.

    Args:
        config: SplitConfig.
        owners, contents: As for `shared_volumes`.
        parts: {subject: part}.
        earlier: Rows of an earlier split.
    """
    rows = [
        [owner.file, content, owner.subject, parts[owner.subject], owner.stratum]
        for owner, content in zip(owners, contents, strict=True)
    ]
    here = {unicodedata.normalize("NFC", owner.file) for owner in owners}.union(contents)
    gone = [row for row in earlier if not here & {row["file"], row["content"]}]
    if gone:
        print(
            f"{len(gone)} of {len(earlier)} volumes of --earlier {config.earlier} are not here, the first "
            f"{gone[0]['file']}: their rows are kept, so that they come back to their part."
        )
    rows += [[*(row[column] for column in COLUMNS), row.get(config.stratify, "")] for row in gone]
    head = [*COLUMNS, *([config.stratify] if config.stratify else [])]
    check_new("--output", config.output)  # once more: reading takes its time
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    write_table(config.output, head, [row[: len(head)] for row in sorted(rows)])


def summary(config, owners, parts):
    """Lines on the subjects and volumes of each part, for all and for each stratum; arguments as above."""
    strata = {"all": owners}
    for owner in owners if config.stratify else ():
        strata.setdefault(f"{config.stratify} {owner.stratum}", []).append(owner)
    table = [["", "part", "subjects", "expected", "volumes"]]
    for name, members in strata.items():
        subjects = {owner.subject for owner in members}
        for part in PARTS:
            number = sum(parts[subject] == part for subject in subjects)
            expected = f"{float(config.shares[part] * len(subjects)):.1f}"
            volumes = sum(parts[owner.subject] == part for owner in members)
            table.append([name, part, number, expected, volumes])
    widths = [max(len(str(row[n])) for row in table) for n in range(len(table[0]))]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
    small = sum(len({owner.subject for owner in members}) < len(PARTS) for members in strata.values())
    if config.stratify and small:
        lines.append(
            f"{small} of the {len(strata) - 1} values of {config.stratify} have fewer than {len(PARTS)} "
            f"subjects: shares hold for all of them together alone."
        )
    return lines


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Entry point                                                                                              ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def split(config):
    """Write the split of a SplitConfig, and tell what is in it."""
    earlier = Split.read(config.earlier, "--earlier").rows if config.earlier else ()
    paths = find_volumes(config.data)
    owners = owners_of(config, [path.relative_to(config.data).as_posix() for path in paths])
    contents = [one.content for one in read_all(paths, examined, "Reading", config.data)]
    for line in shared_volumes(owners, contents):
        print(line)
    groups = grouped(owners, contents, earlier)
    refuse_empty(groups, config)
    drawn_parts = drawn(groups, config.shares, config.seed, config.stratify is not None)
    parts = {subject: part for group, part in drawn_parts.items() for subject in group.subjects}
    write_split(config, owners, contents, parts, earlier)
    print(*summary(config, owners, parts), sep="\n")
    print(f"{config.output} is the split: give it as --split to what trains, evaluates and tests.")


def main(argv=None):
    """Entry point of the command line."""
    with one_line_errors():
        split(parse_cli(SplitConfig, argv))


if __name__ == "__main__":
    main()
