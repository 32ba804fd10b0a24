"""Are synthetic volumes copies of training volumes? A gate with calibrated thresholds and planted copies.

    python trust/replicas.py --training volumes --held_out unseen --generated synthetic --output replicas

or edit the settings below and run it. Every generated volume's similarity to the training set is compared
with that of real subjects whom the generator has never seen: what is more similar than those are allowed to
be is flagged and withheld. Whether the gate sees copies at all is tried on every run, with copies that are
planted among the volumes. replicas.json holds the verdict and the flagged volumes, report.html shows them;
the exit status is 0 (passed), 1 (failed) or 2 (inconclusive). Where it passed, released/ has copies of all
volumes but the flagged ones. Inputs are never written to. Sections:

    settings and configuration    every option
    search                        similarities, by several processes
    the gate                      thresholds, planted copies, verdict
    entry point

Similarities are in similarity.py, copies in controls.py, rates in rates.py, the page in pages.py.
"""

import itertools
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from volumetric import __version__
from volumetric.cli import check_fields, one_line_errors, option, parse_cli
from volumetric.collection import contents_of
from volumetric.files import atomic_path, new_folder, write_json
from volumetric.machine import usable_cores
from volumetric.names import name_of, unique_names
from volumetric.rates import CONFIDENCE, wilson
from volumetric.sidecars import TRAINED_ON, beside_volumes, models_of, sidecar_of

import numpy as np
from scipy import stats

from trust import EXIT
from trust.controls import KINDS, LEAST_RECALL, REQUIRED
from trust.pages import write_replicas
from trust.rates import conformal, realised_rate
from trust.sets import check_held_out, read_sets
from trust.similarity import Library, print_of
from trust.workers import LIBRARY, prepare, spread_out

# Edit these, or pass them as flags; a flag wins.
# folder of the volumes that the generator was trained on
training = "volumes"
# folder of real volumes of other subjects, prepared alike; None: what --split holds out of `training`
held_out = None
# folder of generated volumes
generated = "synthetic"
# new folder
output = "replicas"

MANY = 300  # training volumes, from which an encoder learns enough
FEWEST = {"training": 10, "held_out": 10, "generated": 6}
RELABELLINGS = 1000  # of who is a training subject


@dataclass(kw_only=True)
class ReplicasConfig:
    """Search generated volumes for copies; exit status 0 passed, 1 failed, 2 inconclusive."""

    training: str = option(training, "Folder of the volumes that the generator was trained on.")
    held_out: str | None = option(
        held_out, "Folder of real volumes of other subjects, prepared alike; None: by --split."
    )
    generated: str = option(generated, "Folder of generated volumes.")
    split: str | None = option(
        None, "Table of preprocessing/split.py, whose parts `training` and `held_out` are taken.", file=True
    )
    output: str = option(
        output, "New folder for replicas.json, report.html and withheld volumes.", folder=True
    )
    alpha: float = option(
        0.01, "Rate at which an unseen subject may be flagged, of all similarities.", most=0.5
    )
    controls: int = option(30, "Training volumes of which copies are planted.", least=10, most=1000)
    encoder: bool | None = option(
        None, f"Compare by a network trained on the training volumes too; None: from {MANY} of them on."
    )
    workers: int | None = option(None, "Processes; None is one for each core.", least=1, most=256)
    share: bool = option(False, "Leave pictures and names of real volumes out of the page.")
    seed: int = option(0, "Seed of the planted copies.", least=0)

    def __post_init__(self):
        check_fields(self)
        check_held_out(self)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Search                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass
class Look:
    """What is known of a volume when it was compared with the training set.

    Args:
        nearest: Of `Library.search`.
        thumbnail: The volume as the encoder takes it, THUMBNAIL.
        coarse: Coarse similarity to every training volume, (|T|,); None of a planted copy.
    """

    nearest: dict
    thumbnail: np.ndarray
    coarse: np.ndarray | None = None


def look(volume):
    """Compare a Volume with the training set, closely and coarsely; returns a Look."""
    one = prepare(volume)
    return Look(LIBRARY[0].search(one), one.thumbnail, LIBRARY[0].alike(one))


@dataclass
class Copying:
    """How a copy is planted: its Volume, another of which a half may be pasted in, its kind and seed."""

    volume: object
    other: object
    kind: str
    seed: list


def look_at_copy(task):
    """Compare the copy that a Copying makes with the training set, closely; returns a Look."""
    rng = np.random.default_rng(task.seed)
    one = print_of(KINDS[task.kind](task.volume.read(), task.other.read(), rng))
    return Look(LIBRARY[0].search(one), one.thumbnail)


def look_coarsely(volume):
    """Coarse similarities of a Volume to those of the worker's Library."""
    return LIBRARY[0].alike(prepare(volume))


def table_of(looks):
    """{statistic: (similarities (n,), indices (n,))} of the nearest training volumes of [Look]."""
    table = {}
    for name in looks[0].nearest:
        similarities = np.array([one.nearest[name][0] for one in looks])
        indices = np.array([one.nearest[name][1] for one in looks])
        table[name] = similarities, indices
    return table


@dataclass
class Searched:
    """What the search found.

    Args:
        held_out, generated: `table_of` these volumes.
        planted: {kind: `table_of` its copies}.
        subjects: Indices of the training volumes that were copied.
        coarse: Coarse similarity of every generated volume to every training volume, (n, |T|).
    """

    held_out: dict
    generated: dict
    planted: dict
    subjects: np.ndarray
    coarse: np.ndarray


def search(sets, config, workers):
    """Searched of the sets of `read_sets`, by the encoder too where it is wanted."""
    prints = spread_out(prepare, sets["training"], "Training volumes", workers)
    library = Library(prints, sets["training"][0].shape)
    held_out = spread_out(look, sets["held_out"], "Held-out volumes", workers, library)
    generated = spread_out(look, sets["generated"], "Generated volumes", workers, library)
    subjects, copies = plant(sets, config, workers, library)
    tables = [table_of(held_out), table_of(generated), *map(table_of, copies.values())]
    if config.encoder or (config.encoder is None and len(prints) >= MANY):
        add_encoder(tables, [held_out, generated, *copies.values()], library, config)
    planted = dict(zip(copies, tables[2:], strict=True))
    return Searched(tables[0], tables[1], planted, subjects, np.stack([one.coarse for one in generated]))


def as_float32(arrays):
    """Volumes for the encoder. Shapes: n of THUMBNAIL float16 -> (n, *THUMBNAIL) float32"""
    return np.stack(arrays).astype(np.float32)


def add_encoder(tables, looks, library, config):
    """Add the similarity by a network, trained on the training volumes, to tables of similarities.

    Args:
        tables: [`table_of` some volumes].
        looks: For each of them [Look].
        library: Library of the training volumes.
        config: ReplicasConfig.
    """
    from trust.encoder import similarities, train_encoder

    training = as_float32([one.thumbnail for one in library.prints])
    network = train_encoder(training, config.seed)
    for table, of_table in zip(tables, looks, strict=True):
        table["encoder"] = similarities(network, as_float32([one.thumbnail for one in of_table]), training)


def plant(sets, config, workers, library):
    """Plant copies of training volumes.

    Returns:
        (indices of the training volumes that were copied, {kind: [Look] at its copies}).
    """
    rng, volumes = np.random.default_rng(config.seed), sets["training"]
    subjects = np.sort(rng.permutation(len(volumes))[: config.controls])
    others = rng.integers(len(sets["held_out"]), size=len(subjects))  # of whom a half is pasted beside a copy
    tasks = []
    for place, kind in enumerate(KINDS):
        for n, other in zip(subjects, others, strict=True):
            tasks.append(Copying(volumes[n], sets["held_out"][other], kind, [config.seed, place, int(n)]))
    looks = iter(spread_out(look_at_copy, tasks, "Planted copies", workers, library))
    return subjects, {kind: list(itertools.islice(looks, len(subjects))) for kind in KINDS}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The gate                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Threshold:
    """Where the similarity of an unseen subject ends, by what held-out subjects show and no further.

    Args:
        held_out: {statistic: similarities (|H|,)} of the held-out volumes to the training set.
        alpha: Rate for all statistics together.
    """

    def __init__(self, held_out, alpha):
        self.held_out, self.n = held_out, len(next(iter(held_out.values())))
        self.k = max(1, int(alpha / len(held_out) * (self.n + 1) + 1e-9))
        self.rate = self.k / (self.n + 1)  # of one statistic; the smallest that can be had is 1 / (|H| + 1)
        self.attains = self.rate <= alpha / len(held_out) + 1e-12

    def p_values(self, similarities):
        """{statistic: conformal p (n,)} of {statistic: (n,)}."""
        return {name: conformal(similarities[name], held) for name, held in self.held_out.items()}

    def flags(self, similarities):
        """{statistic: (n,) bool}."""
        return {name: p <= self.rate + 1e-12 for name, p in self.p_values(similarities).items()}

    def most(self, number):
        """Number of innocent volumes, of so many, that a statistic flags at most, in 95 % of runs for all.

        Over the draw of the held-out volumes it is beta-binomial with k and |H| + 1 - k.
        """
        level = 1 - (1 - CONFIDENCE) / len(self.held_out)
        return int(stats.betabinom.ppf(level, number, self.k, self.n + 1 - self.k))

    def describe(self):
        """What rate is attained, and how sure that is."""
        mean, limit = realised_rate(self.k, self.n)
        return {
            "held_out": self.n,
            "rate_of_each": self.rate,
            "attains_alpha": self.attains,
            "realised_mean": mean,
            "realised_95_limit": limit,
            "value": {name: float(np.sort(held)[-self.k]) for name, held in self.held_out.items()},
        }


def recall_of_copies(planted, subjects, threshold):
    """Recall of every kind of planted copy.

    Args:
        planted: {kind: `table_of` its copies}.
        subjects: Indices of the training volumes that were copied.
        threshold: Threshold.

    Returns:
        {kind: {"n", "found", "recall", "interval_95", "named", "required", "by": {statistic: recall}}};
        `named` is the share of the found ones whose training volume is the right one.
    """
    rows = {}
    for kind, table in planted.items():
        flags = threshold.flags({name: values for name, (values, _) in table.items()})
        by_any = np.any(list(flags.values()), axis=0)
        named = np.any([flags[n] & (table[n][1] == subjects) for n in flags], axis=0)
        found, number = int(by_any.sum()), len(subjects)
        rows[kind] = {"n": number, "found": found, "recall": found / number, "required": kind in REQUIRED}
        rows[kind] |= {"interval_95": wilson(found, number), "named": float(named.sum() / max(found, 1))}
        rows[kind]["by"] = {name: float(flag.mean()) for name, flag in flags.items()}
    return rows


def closer_to_training(to_training, to_held_out, seed):
    """Share of volumes that are closer to the training set than to as many held-out volumes.

    The smaller set is taken whole, of the larger one as many at random (in expectation). Who is called a
    training subject is drawn again RELABELLINGS times: so much does the share spread by chance, given the
    generated volumes, if they are no closer to one set than to the other.

    Args:
        to_training: Similarity of every generated volume to every training volume, (n, |T|).
        to_held_out: The same to the held-out ones, (n, |H|).
        seed: Of the draws.

    Returns:
        {"share", "interval_95", "p": one-sided}; the interval is above one half where at most 2.5 % of the
        draws give such a share.
    """
    both = np.concatenate([to_training, to_held_out], axis=1)
    nearer = (-both).argsort(axis=1, kind="stable").argsort(axis=1).astype(np.int32)  # subjects that are
    number, held = to_training.shape[1], to_held_out.shape[1]
    small, large = sorted((number, held))
    # Of `large` subjects k are nearer than all of the others: is one of them among as many as these?
    beaten = stats.hypergeom.sf(0, large, np.arange(large + 1), small)

    def share_of(chosen):
        closer = float(beaten[nearer[:, chosen].min(axis=1)].mean())
        return closer if held == small else 1 - closer

    whole = np.arange(number, number + held) if held == small else np.arange(number)
    share, rng = share_of(whole), np.random.default_rng(seed)
    chance = np.array([share_of(rng.permutation(number + held)[:small]) for _ in range(RELABELLINGS)])
    low, high = np.clip(share + 0.5 - np.percentile(chance, (97.5, 2.5)), 0, 1).tolist()
    p = float((1 + (chance >= share).sum()) / (1 + RELABELLINGS))
    return {"share": share, "interval_95": [low, high], "p": p}


def verdict_of(found, planted, subjects, threshold, closeness, left=None):
    """The gate's findings: {"verdict", "reasons", "flags", "p", "controls", "limit"}.

    Args:
        found: `table_of` the generated volumes.
        planted: {kind: `table_of` its copies}.
        subjects: Indices of the copied training volumes.
        threshold: Threshold.
        closeness: Of `closer_to_training`.
        left: Number of the generator's training volumes that were not searched, or None.
    """
    values = {name: similarity for name, (similarity, _) in found.items()}
    flags, number = threshold.flags(values), len(next(iter(values.values())))
    controls = recall_of_copies(planted, subjects, threshold)
    limit, failures = threshold.most(number), []
    for name, flag in flags.items():
        if flag.sum() > limit:
            failures.append(f"{flag.sum()} of {number} are flagged by {name}, chance explains {limit}")
        visible = [kind for kind in REQUIRED if controls[kind]["by"][name] >= LEAST_RECALL]
        of_copies = [planted[kind][name][0] for kind in visible]
        sure = (
            flag & (values[name] > np.percentile(np.concatenate(of_copies), 5)) if of_copies else flag & False
        )
        if sure.any():
            failures.append(f"{sure.sum()} are as similar by {name} as planted copies are")
    if closeness["interval_95"][0] > 0.5:
        share = closeness["share"]
        failures.append(f"{share:.0%} are closer to the training set than to as many unseen volumes")
    blind = [kind for kind in REQUIRED if controls[kind]["recall"] < LEAST_RECALL]
    doubts = [f"of planted copies ({kind}) {controls[kind]['recall']:.0%} are found" for kind in blind]
    if left:
        doubts.append(f"the generator was trained on {left} more volumes, which are not in --training")
    verdict = "failed" if failures else "inconclusive" if doubts else "passed"
    about = {"reasons": failures + doubts, "controls": controls, "limit": limit}
    return {"verdict": verdict, "flags": flags, "p": threshold.p_values(values), **about}


def nearest_of(volumes, found, gate):
    """How near every generated volume is to the training set, by its statistic of smallest p, naming none.

    Args:
        volumes: [VolumeFile], generated.
        found: `table_of` these.
        gate: Of `verdict_of`.

    Returns:
        {content: {"statistic", "similarity", "p"}}.
    """
    rows = {}
    for n, volume in enumerate(volumes):
        name = min(gate["p"], key=lambda s: (gate["p"][s][n], -found[s][0][n]))
        figures = {"similarity": float(found[name][0][n]), "p": float(gate["p"][name][n])}
        rows[volume.content] = {"statistic": name, **figures}
    return rows


def flagged_list(volumes, library_volumes, found, gate):
    """[{"generated", "content", "training", "statistic", "p", "similarity"}], the most similar first."""
    rows = []
    for n, volume in enumerate(volumes):
        ours = [name for name in gate["flags"] if gate["flags"][name][n]]
        if not ours:
            continue
        name = min(ours, key=lambda s: (gate["p"][s][n], -found[s][0][n]))
        match = library_volumes[found[name][1][n]]
        rows.append({"generated": str(volume.path), "content": volume.content})
        rows[-1] |= {"training": str(match.path), "statistic": name}
        rows[-1] |= {"p": float(gate["p"][name][n]), "similarity": float(found[name][0][n])}
    return sorted(rows, key=lambda row: (row["p"], -row["similarity"]))


def halves_of_held_out(held, threshold, seed):
    """False alarms among one half of the held-out volumes, judged by the other: {"n", "flagged"}."""
    order = np.random.default_rng(seed).permutation(threshold.n)
    one, other = order[: threshold.n // 2], order[threshold.n // 2 :]
    alone = Threshold({name: values[one] for name, (values, _) in held.items()}, alpha=0)
    flags = alone.flags({name: values[other] for name, (values, _) in held.items()})
    return {"n": len(other), "flagged": int(np.any(list(flags.values()), axis=0).sum()), "rate": alone.rate}


def closeness_of(sets, searched, config, workers):
    """`closer_to_training` of the generated volumes."""
    shape = sets["training"][0].shape
    held_out = Library(spread_out(prepare, sets["held_out"], "Held-out volumes", workers), shape)
    coarse = spread_out(look_coarsely, sets["generated"], "Generated against held-out", workers, held_out)
    return closer_to_training(searched.coarse, np.stack(coarse), config.seed)


def run_gate(config):
    """Search, judge, and write what was found.

    Returns:
        (record of replicas.json, the new folder).
    """
    sets, left = read_sets(config, FEWEST)
    workers = config.workers or usable_cores()
    searched = search(sets, config, workers)
    held_out = {name: similarities for name, (similarities, _) in searched.held_out.items()}
    threshold = Threshold(held_out, config.alpha)
    closeness = closeness_of(sets, searched, config, workers)
    gate = verdict_of(searched.generated, searched.planted, searched.subjects, threshold, closeness, left)
    record = {
        "verdict": gate["verdict"],
        "reasons": gate["reasons"],
        "flagged": flagged_list(sets["generated"], sets["training"], searched.generated, gate),
        "nearest": nearest_of(sets["generated"], searched.generated, gate),
        "flagged_each": {name: int(flag.sum()) for name, flag in gate["flags"].items()},
        "explained_by_chance": gate["limit"],
        "threshold": threshold.describe(),
        "controls": gate["controls"],
        "negative_control": halves_of_held_out(searched.held_out, threshold, config.seed),
        "closer_to_training": closeness,
        "n": {name: len(volumes) for name, volumes in sets.items()} | {"left_of_training": left},
        "contents": contents_of(sets),
        "models": models_of(sets["generated"]),
        "settings": asdict(config),
        "version": __version__,
    }
    return record, write_gate(record, sets, searched, config)


def write_gate(record, sets, searched, config):
    """Write what a gate found into a new folder: withheld and released volumes, record and page.

    Returns:
        The folder.
    """
    with new_folder(config.output) as folder:
        kept = withhold(record["flagged"], sets["generated"], folder)
        if record["verdict"] == "passed":
            release(kept, Path(config.generated), folder / "released")
        write_json(folder / "replicas.json", record)
        tables = {"held_out": searched.held_out, "generated": searched.generated, "planted": searched.planted}
        write_replicas(record, sets, tables, folder)
    return folder


def withhold(flagged, volumes, folder):
    """Copy the flagged volumes to withheld/, no name twice; returns the others, listed in released.txt."""
    contents, names = {row["content"] for row in flagged}, unique_names([v.path for v in volumes])
    for volume in volumes:
        if volume.content in contents:
            (folder / "withheld").mkdir(exist_ok=True)
            ending = volume.path.name.removeprefix(name_of(volume.path))
            shutil.copyfile(volume.path, folder / "withheld" / f"{names[volume.path]}{ending}")
    kept = [volume for volume in volumes if volume.content not in contents]
    with atomic_path(folder / "released.txt") as part:
        part.write_text("\n".join([*(str(volume.path) for volume in kept), ""]), encoding="utf-8")
    return kept


def release(volumes, generated, folder):
    """Copy volumes, their sidecars and what their models were trained on, as they lie below --generated."""
    paths = beside_volumes(generated, "--generated", f"{TRAINED_ON}*.json")
    for volume in volumes:
        sidecar = sidecar_of(volume.path)
        paths += [volume.path, sidecar] if sidecar.is_file() else [volume.path]
    for path in paths:
        target = folder / path.relative_to(generated)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def main(argv=None):
    """The command line."""
    config = parse_cli(ReplicasConfig, argv)
    with one_line_errors():
        record, folder = run_gate(config)
        print(f"{record['verdict'].capitalize()}: {'; '.join(record['reasons']) or 'no replica was found'}.")
        counts = f"{len(record['flagged'])} of {record['n']['generated']} volumes are flagged"
        print(f"{counts}; {folder / 'report.html'} shows them.")
        if record["verdict"] == "passed":
            print(f"{folder / 'released'} has the others.")
    sys.exit(EXIT[record["verdict"]])


if __name__ == "__main__":
    main()
