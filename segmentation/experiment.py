"""Do my synthetic volumes help? Networks trained on real, synthetic and both, scored on unseen subjects.

    python segmentation/experiment.py --real volumes --real_labels labels --synthetic made \
        --test others --test_labels other_labels --output experiment

or edit the settings below and run it. For every number of real and of synthetic volumes, and every seed, a
network of segmentation.py is trained, labels the test volumes, and is scored as in metrics.py. The same
command goes on where it was stopped. Synthetic volumes without label maps get them from a teacher (see
teacher.py) that is trained on the real ones first, as in Aydin et al., NeuroImage 304 (2024) 120936. What the
scores say is computed in comparison.py; report.html shows it. Inputs are never written to.
"""

import csv
import itertools
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

# Run as a script, segmentation.py beside this file would hide its package.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from volumetric import __version__, runs
from volumetric.cli import UserError, check_device_name, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import content_of_set, known_by_content, volumes_in
from volumetric.files import clear_parts, locked, next_free, read_json, write_json
from volumetric.parallel import host_random, prepare_process
from volumetric.sidecars import beside_volumes, drawn_for, trained_on

import numpy as np
from tqdm import tqdm

from segmentation.cases import (
    Classes,
    in_order,
    labelled_among,
    pairs_among,
    pairs_in,
    read_cases,
    refuse_real,
)
from segmentation.comparison import Cell, compare_runs
from segmentation.experiment_page import write_experiment
from segmentation.labels import as_topcow, contents_of, save_labels
from segmentation.metrics import detection_of_case, score_case
from segmentation.segmentation import (
    SegmentationConfig,
    Segmenter,
    content_of_model,
    contents_known_to,
    read_model,
    train,
)
from segmentation.teacher import FEWEST, TeacherConfig, label_folder

# Edit these, or pass them as flags; a flag wins.
# folder of real volumes to train on, and of their label maps
real, real_labels = "volumes", "labels"
# folder of synthetic volumes
synthetic = "synthetic"
# folder of real volumes that neither generator nor teacher has seen, and of their label maps
test, test_labels = "test", "test_labels"
# folder of everything; the same command goes on in it
output = "experiment"

TABLES = ("topcow2024", "topcow2023", "nnunet")  # that metrics.py can score
SETTINGS, FORMAT = "settings.json", 2  # what an experiment was begun with
GATE = "replicas.json"  # of trust/replicas.py
# What an experiment must have in common with its beginning, beside its volumes; a grid may grow.
KEPT = ("table", "gate", "num_train_steps", "teacher_steps", "batch_size", "width", "fp16")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Configuration                                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(kw_only=True)
class ExperimentConfig:
    """Train on real and synthetic volumes, score on unseen real ones, and say whether synthetic ones help."""

    real: str = option(real, "Folder of real volumes to train on.")
    real_labels: str = option(real_labels, "Folder of their label maps, files of the same names.")
    synthetic: str = option(synthetic, "Folder of synthetic volumes.")
    synthetic_labels: str | None = option(None, "Folder of their label maps; None: a teacher labels them.")
    teacher: str | None = option(
        None, "Network of segmentation.py; None trains one on the real volumes.", file=True
    )
    gate: bool = option(True, "Leave out synthetic volumes whose label maps the teacher's gate doubts.")
    test: str = option(test, "Folder of real volumes that nothing was trained on.")
    test_labels: str = option(test_labels, "Folder of their label maps.")
    generator_data: str | None = option(
        None, "Folder of what the generator was trained on, if it is not --real: no test volume may be in it."
    )
    split: str | None = option(
        None,
        "Table of preprocessing/split.py: --real is its part `training`, --test its `test`.",
        file=True,
    )
    replicas: str | None = option(
        None, "replicas.json of trust/replicas.py on the synthetic volumes; None: one beside them.", file=True
    )
    output: str = option(output, "Folder of everything; the same command goes on in it.", folder=True)
    table: str = option("topcow2024", "Table of the ids.", choices=TABLES)
    real_numbers: tuple = option((0, 5, 20), "Numbers of real volumes, a list.")
    synthetic_numbers: tuple = option((0, 50, 200), "Numbers of synthetic volumes, a list.")
    seeds: tuple = option((0, 1), "Seeds: of the weights, and of the volumes that are taken.")
    num_train_steps: int = option(1000, "Training steps of every network.")
    teacher_steps: int = option(2000, "Training steps of the teacher.")
    batch_size: int = option(2, "Patches in a step.", most=1024)
    width: int = option(16, "Channels of the first stage.", most=256)
    fp16: bool = option(True, "Mixed precision.")
    resamples: int = option(2000, "Bootstrap resamples of test subjects.", least=100, most=10**6)
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)

    def __post_init__(self):
        check_fields(self)
        for name in ("real_numbers", "synthetic_numbers", "seeds"):
            numbers = getattr(self, name)
            plain = all(type(n) is int and n >= 0 for n in numbers)
            if not plain or not numbers or len(set(numbers)) < len(numbers):
                raise UserError(f"--{name} must be different whole numbers from 0 on, got {numbers}.")
        if not self.cells():
            raise UserError("--real_numbers and --synthetic_numbers name nothing to train on: give a number.")

    def cells(self):
        """[Cell] of the grid, but for no volume at all."""
        numbers = itertools.product(sorted(self.real_numbers), sorted(self.synthetic_numbers))
        return [Cell(real, synthetic) for real, synthetic in numbers if real or synthetic]

    def training(self, model, steps, seed=0, **folders):
        """SegmentationConfig of one of the networks, in the folder of its model."""
        same = {name: getattr(self, name) for name in ("table", "batch_size", "width", "fp16", "device")}
        more = {"model": str(model), "output": str(Path(model).parent), "save_every": max(50, steps // 4)}
        return SegmentationConfig(mode="train", num_train_steps=steps, seed=seed, **same, **more, **folders)


def name_of_run(cell, seed):
    """Name of a run's folder."""
    return f"real{cell.real:04d}_synthetic{cell.synthetic:04d}_seed{seed}"


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Cases                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def read_tests(config):
    """{name: Pair} of the test subjects."""
    folders = {"test": config.test, "test_labels": config.test_labels}
    return pairs_in(folders, Classes(config.table), split=config.split, parts=("test",))


def true_ids(pair, table):
    """The true label map as metrics.py scores it: ids of TopCoW 2024, (X, Y, Z) with x to the right."""
    return as_topcow(Classes(table).to_ids(pair.labels), table)


def refuse_overlap(tests, table, known, what):
    """Raise a UserError if volume or label map of a test subject are among known ones.

    Args:
        tests: Of `read_tests`.
        table: Table of their ids.
        known: {content: what to call it}.
        what: What they are in, for the message.
    """
    for name, pair in tests.items():
        called = dict.fromkeys([pair.identity.volume, pair.identity.former], pair.volume_path)
        of_labels = contents_of(Classes(table).to_ids(pair.labels), table)
        called |= dict.fromkeys(of_labels, f"{pair.labels_path}, the label map of test subject {name},")
        for content, what_it_is in called.items():
            if content in known:
                raise UserError(
                    f"{what_it_is} is in the test set and {what} ({known[content]}): test on subjects that "
                    f"nothing was trained on."
                )


def files_of(cases):
    """{content: path} of the volumes and of the label maps of cases."""
    known = {case.identity.labels: str(case.labels_path) for case in cases}
    return known | {case.identity.volume: str(case.volume_path) for case in cases}


def refuse_known(config, tests, real):
    """Raise a UserError if a test subject is in what the networks, the generator or a teacher have seen."""
    refuse_overlap(tests, config.table, files_of(real), "in --real")
    if config.generator_data is not None:
        seen = known_by_content(volumes_in(config.generator_data, "--generator_data"))
        refuse_overlap(tests, config.table, seen, "in --generator_data")
    for path, record in gates_of(config).items():
        seen = dict.fromkeys(record["contents"]["training"], path)
        refuse_overlap(tests, config.table, seen, "in the training set of the replica gate")
    for folder in dict.fromkeys([config.synthetic, config.synthetic_labels]):
        if folder is not None and any(config.synthetic_numbers):
            seen = trained_on(folder)
            refuse_overlap(tests, config.table, seen, "in the training of the generator")
            refuse_overlap(tests, config.table, drawn_for(folder), "in the making of synthetic volumes")
    if config.teacher is not None:
        _, about = read_model(config.teacher, config.device)
        seen = dict.fromkeys(contents_known_to(about), config.teacher)
        refuse_overlap(tests, config.table, seen, "in the teacher's training")


def gates_of(config):
    """{path: record} of trust/replicas.py on the synthetic volumes: --replicas, or what lies beside them.

    Raises:
        UserError: A file is of another program.
    """
    if not any(config.synthetic_numbers):
        return {}
    paths = [config.replicas] if config.replicas else beside_volumes(config.synthetic, "--synthetic", GATE)
    gates = {str(path): read_json(path) for path in paths}
    for path, record in gates.items():
        lacking = [entry for entry in ("verdict", "flagged", "contents") if entry not in record]
        if lacking:
            raise UserError(
                f"{path} has no entry {lacking[0]!r}: give {GATE} of trust/replicas.py, made by this version "
                f"of it."
            )
    return gates


def verdict_of_gate(config, used):
    """What the replica gate says of the synthetic volumes that were trained on; None if none looked at any.

    Args:
        config: ExperimentConfig.
        used: Their contents, a set.

    Returns:
        {"file", "verdict", "looked_at", "flagged": numbers of these volumes}; of several gates, the one that
        looked at most.
    """
    found = []
    for path, record in gates_of(config).items():
        looked = used & set(record["contents"]["generated"])
        flagged = used & {row["content"] for row in record["flagged"]}
        numbers = {"looked_at": len(looked), "flagged": len(flagged)}
        found.append({"file": path, "verdict": record["verdict"], **numbers})
    best = max(found, key=lambda gate: gate["looked_at"], default=None)
    return best if best and best["looked_at"] else None


def drawn(number, pool, seed):
    """The cases of a run out of a pool: fewer are always among more."""
    order = host_random(seed, len(pool)).permutation(len(pool))
    return [pool[i] for i in order[:number]]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Runs                                                                                                     ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Grid:
    """What every cell of an experiment takes from.

    Args:
        real, synthetic: [Case] each, of one voxel size, in an order that names do not change.
        spacing: That size, (3,) mm.
        tests: Of `read_tests`.
        contents: {"real", "synthetic", "test": what tells their pairs from others, "teacher": what the
            network is known by}, of those that there are.
        labelled: Folder of a teacher's label maps; None if the synthetic volumes have others, or none.
    """

    real: list
    synthetic: list
    spacing: np.ndarray
    tests: dict
    contents: dict
    labelled: Path | None = None

    def cases(self, cell, seed):
        """[Case] of a Cell and seed."""
        return drawn(cell.real, self.real, seed) + drawn(cell.synthetic, self.synthetic, seed)


def folder_of_run(config, cell, seed, cases):
    """Folder of a run, noted to be of these cases; one of others, by their contents, is moved aside."""
    folder = Path(config.output) / "runs" / name_of_run(cell, seed)
    noted, made_of = folder / "made_of.json", {"cases": pairs_among(cases)}
    if noted.exists() and read_json(noted) != made_of:
        aside = next_free(folder.with_name(f"{folder.name}.earlier"))
        folder.rename(aside)
        print(f"{folder.name} was trained on other volumes or label maps: it is now {aside}, and made again.")
    write_record(noted, made_of)
    return folder


def write_record(path, record):
    """Write a JSON file, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record, indent=0)


def run_cell(config, cell, seed, grid):
    """Train one network, and score it; what is there already of the same is taken.

    Args:
        config: ExperimentConfig.
        cell: Cell.
        seed: Of weights and choice.
        grid: Grid.

    Returns:
        {test case: {score: value}}.
    """
    cases = grid.cases(cell, seed)
    folder = folder_of_run(config, cell, seed, cases)
    model = folder / "segmenter.pt"
    if not model.exists():
        training = config.training(model, config.num_train_steps, seed)
        segmenter = runs.run(Segmenter(training, cases, grid.spacing))
        runs.end_by_signal(segmenter)
        segmenter.save_model()
    for checkpoint in (folder / "models").glob("model_*.pt"):  # done: each is three times the network
        checkpoint.unlink()
    return score_tests(config, folder, grid.tests)


def score_tests(config, folder, tests):
    """Let a run's network label the test volumes, and score it; what it has of the same subjects is taken.

    Args:
        config: ExperimentConfig.
        folder: Of the run, with segmenter.pt.
        tests: Of `read_tests`.

    Returns:
        {test case: {score: value}}, of these alone.
    """
    kept, places = folder / "scores.json", {n: folder / "predicted" / f"{n}.nii.gz" for n in tests}
    former = read_json(kept) if kept.exists() else {}
    rows = {
        name: former[name]
        for name, pair in tests.items()
        if former.get(name, {}).get("pair") == pair.identity.pair
        and "detection" in former[name]  # as of versions after 0.1.0
        and places[name].exists()
    }
    left = [name for name in tests if name not in rows]
    if left:
        predictor, _ = read_model(folder / "segmenter.pt", config.device)
        write_record(kept, rows)  # no row outlives the label map that it is of
    for name in tqdm(left, f"Scoring {folder.name}", leave=False):
        scan = tests[name].scan
        stored, _ = predictor.label(scan)
        save_labels(stored, scan.affine, places[name], config.table)
        found = as_topcow(scan.as_read(stored), config.table)
        truth = true_ids(tests[name], config.table)
        scores = score_case(truth, found, scan.spacing)
        rows[name] = {"pair": tests[name].identity.pair, "scores": scores}
        rows[name]["detection"] = detection_of_case(truth, found)
        write_record(kept, rows)
    return {name: rows[name]["scores"] | rows[name]["detection"] for name in tests}


def label_synthetic(config, real):
    """Folder that a teacher labels the synthetic volumes in; what it made of the same before stays.

    Args:
        config: ExperimentConfig.
        real: [Case], whose label maps tell what is common.

    Returns:
        The folder.
    """
    folder, model = Path(config.output), teacher_of(config)
    if not model.exists():
        folders = {"data": config.real, "labels": config.real_labels, "split": config.split}
        runs.end_by_signal(train(config.training(model, config.teacher_steps, **folders)))
    teacher = TeacherConfig(
        data=config.synthetic,
        model=str(model),
        reference=config.real_labels,
        output=str(folder / "labelled"),
        withhold=config.gate,
        device=config.device,
    )
    return label_folder(teacher, folder / "labelled", [case.labels_path for case in real])


def teacher_of(config):
    """Path of the teacher's network, there or not."""
    return Path(config.teacher or Path(config.output) / "teacher" / "segmenter.pt")


def read_synthetic(config, labels, real, spacing):
    """[Case] of the synthetic volumes that have a label map, at the voxel size of the real ones.

    Raises:
        UserError: They are fewer than the grid asks for, or one is a real volume.
    """
    there = labelled_among(config.synthetic, labels)
    if len(there) < max(config.synthetic_numbers):
        raise UserError(
            f"--synthetic {config.synthetic} has {len(there)} volumes with a label map in {labels}, "
            f"--synthetic_numbers asks for {max(config.synthetic_numbers)}: generate more, ask for fewer, or "
            f"train on what the gate doubts too (--gate False)."
        )
    folders = {"synthetic": config.synthetic, "synthetic_labels": labels}
    synthetic, _ = read_cases(folders, Classes(config.table), spacing, only=there)
    refuse_real(synthetic, real, config.synthetic)
    return in_order(synthetic)


def open_grid(config):
    """Read and check all that networks are trained and scored on; a teacher labels what has no labels.

    Returns:
        Grid.
    """
    tests, folders = read_tests(config), {"real": config.real, "real_labels": config.real_labels}
    real, spacing = read_cases(folders, Classes(config.table), split=config.split)
    real, labelled = in_order(real), None
    taught = any(config.synthetic_numbers) and config.synthetic_labels is None
    fewest = max(*config.real_numbers, FEWEST if taught else 0)
    if len(real) < fewest:
        raise UserError(
            f"--real {config.real} has {len(real)} volumes, expected {fewest}, by --real_numbers or as what "
            f"tells a teacher's gate what is common: add some, or ask for fewer."
        )
    refuse_known(config, tests, real)
    contents, synthetic = {"real": pairs_among(real), "test": pairs_among(tests.values())}, []
    note_settings(config, contents)
    if taught:
        labelled = label_synthetic(config, real)
        contents["teacher"] = content_of_model(read_model(teacher_of(config), config.device)[1])
    if any(config.synthetic_numbers):
        labels = config.synthetic_labels or labelled / "labels"
        synthetic = read_synthetic(config, labels, real, spacing)
        refuse_overlap(tests, config.table, files_of(synthetic), "among the synthetic ones")
        contents["synthetic"] = pairs_among(synthetic)
    note_settings(config, contents)
    return Grid(real, synthetic, spacing, tests, contents, labelled)


def run_experiment(config):
    """Check all, train what is missing, compare, and write the page.

    Returns:
        The folder; a signal ends the program.
    """
    folder = Path(config.output)
    with locked(folder / ".lock", f"The experiment {folder}", "wait for it"):
        for place in {part.parent for part in folder.rglob(".part-*")}:
            clear_parts(place)
        grid, results = open_grid(config), {}
        for seed in config.seeds:
            for cell in config.cells():
                results.setdefault(cell, {})[seed] = run_cell(config, cell, seed, grid)
        record = compare_runs(results, config.resamples) | told_of(config, grid)
        write_experiment(record, grid.tests, folder)
    print(f"{folder / 'report.html'} shows everything; the numbers are in {folder / 'experiment.json'}.")
    return folder


def told_of(config, grid):
    """What the record of an experiment says beside its scores: settings, contents, teacher and gates.

    Args:
        config: ExperimentConfig.
        grid: Grid.

    Returns:
        {"settings", "teacher", "doubted", "replicas", "contents": {set: contents of its volumes}, "made_of":
        {set: what tells its pairs from others}, with the digest of the teacher and of the cases of every
        cell and seed}.
    """
    digests, used = {}, set()
    for cell, seed in itertools.product(config.cells(), config.seeds):
        cases = grid.cases(cell, seed)
        digests[name_of_run(cell, seed)] = content_of_set(pairs_among(cases))
        used |= {case.identity.volume for case in cases}
    real = [case.identity.volume for case in grid.real if case.identity.volume in used]
    generated = [case.identity.volume for case in grid.synthetic if case.identity.volume in used]
    held_out = [pair.identity.volume for pair in grid.tests.values()]
    return {
        "settings": asdict(config),
        "teacher": grid.labelled is not None,
        "doubted": None if grid.labelled is None else count_doubted(grid.labelled),
        "replicas": verdict_of_gate(config, set(generated)),
        "contents": {"training": real, "generated": generated, "held_out": held_out},
        "made_of": grid.contents | {"cells": digests},
        "version": __version__,
    }


def count_doubted(labelled):
    """Number of label maps that the teacher's gate doubts."""
    with open(labelled / "gate.csv", newline="", encoding="utf-8") as file:
        return sum(bool(row["reasons"]) for row in csv.DictReader(file))


def note_settings(config, contents):
    """Note what an experiment is made with; a UserError if it was begun with what changes all its runs.

    Args:
        config: ExperimentConfig.
        contents: {"real", "test", ...: what tells their pairs from others}.
    """
    kept = Path(config.output) / SETTINGS
    told = {name: getattr(config, name) for name in KEPT}
    if kept.exists():
        former = read_json(kept)
        for name, value in told.items():
            if former.get(name) != value:
                raise UserError(
                    f"{kept.parent} was begun with --{name} {former.get(name)}, it is {value} now: give "
                    f"another --output."
                )
        if former.get("format") != FORMAT:
            raise UserError(
                f"{kept.parent} was begun by another version, which noted its volumes otherwise: give "
                f"another --output."
            )
        if former["contents"]["real"] != contents["real"]:
            raise UserError(
                f"{kept.parent} was begun with other volumes or label maps than those that are in --real "
                f"{config.real} now: give another --output."
            )
    write_record(kept, told | {"format": FORMAT, "contents": contents})


def main(argv=None):
    """The command line."""
    config = parse_cli(ExperimentConfig, argv)
    with one_line_errors():
        prepare_process(config.device)
        run_experiment(config)


if __name__ == "__main__":
    main()
