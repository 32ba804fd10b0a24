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
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

# Run as a script, segmentation.py beside this file would hide its package.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tqdm import tqdm

from segmentation.cases import Classes, read_case, read_cases
from segmentation.comparison import compare_runs
from segmentation.experiment_page import write_experiment
from segmentation.labels import as_topcow, save_labels
from segmentation.metrics import score_case
from segmentation.segmentation import SegmentationConfig, Segmenter, read_model, train
from segmentation.teacher import FEWEST, TeacherConfig, label_folder
from volumetric import runs
from volumetric.cli import UserError, check_device_name, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import (
    find_volumes,
    known_by_content,
    name_of,
    pair_up,
    refuse_unusable,
    volumes_in,
)
from volumetric.files import atomic_path, finite, locked
from volumetric.parallel import host_random

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
            if not all(type(n) is int and n >= 0 for n in numbers) or len(set(numbers)) < len(numbers):
                raise UserError(f"--{name} must be different whole numbers from 0 on, got {numbers}.")
        if not self.cells():
            raise UserError("--real_numbers and --synthetic_numbers name nothing to train on: give a number.")

    def cells(self):
        """[(number of real, number of synthetic volumes)] of the grid, but for no volume at all."""
        return [(r, s) for r in sorted(self.real_numbers) for s in sorted(self.synthetic_numbers) if r or s]

    def training(self, model, steps, seed=0, **folders):
        """SegmentationConfig of one of the networks, in the folder of its model."""
        same = {name: getattr(self, name) for name in ("table", "batch_size", "width", "fp16", "device")}
        more = {"model": str(model), "output": str(Path(model).parent), "save_every": max(50, steps // 4)}
        return SegmentationConfig(mode="train", num_train_steps=steps, seed=seed, **same, **more, **folders)


def name_of_run(real_number, synthetic_number, seed):
    """Name of a run's folder."""
    return f"real{real_number:04d}_synthetic{synthetic_number:04d}_seed{seed}"


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Cases                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def read_tests(config):
    """{name: (Scan, true ids (X, Y, Z) of TopCoW 2024 with x to the right, digest)} of the test subjects."""
    classes, found, problems = Classes(config.table), {}, []
    pairs = pair_up({"test": config.test, "test_labels": config.test_labels})
    for name, paths in tqdm(pairs.items(), "Reading test volumes", leave=False):
        try:
            scan, numbers, digest = read_case(name, paths, classes)
            found[name] = scan, as_topcow(classes.to_ids(numbers), config.table), digest
        except UserError as error:
            problems.append(str(error).rstrip("."))
    refuse_unusable(problems, len(pairs), config.test)
    return found


def refuse_overlap(tests, known, what):
    """Raise a UserError if a test volume's voxels are among known ones, {digest: name}."""
    for scan, _, digest in tests.values():
        if digest in known:
            raise UserError(
                f"{scan.path} is in the test set and {what} ({known[digest]}): test on subjects that nothing "
                f"was trained on."
            )


def chosen(number, available, seed):
    """Indices of the volumes of a run: fewer are always among more. Shapes: -> (number,)"""
    return host_random(seed, available).permutation(available)[:number]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Runs                                                                                                     ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def run_cell(config, cell, seed, pools, spacing, tests):
    """Train one network, label and score the test volumes; what is there already is taken.

    Args:
        config: ExperimentConfig.
        cell: (number of real, number of synthetic volumes).
        seed: Of weights and choice.
        pools: ([Case] real, [Case] synthetic), of one voxel size.
        spacing: That size, (3,) mm.
        tests: Of `read_tests`.

    Returns:
        {test case: {score: value}}, or None if a signal ended the training.
    """
    folder = Path(config.output) / "runs" / name_of_run(*cell, seed)
    kept = folder / "scores.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    cases = [
        pool[i]
        for number, pool in zip(cell, pools, strict=True)
        for i in (chosen(number, len(pool), seed) if number else ())
    ]
    training = config.training(folder / "segmenter.pt", config.num_train_steps, seed)
    segmenter = runs.run(Segmenter(training, cases, spacing))
    if segmenter.step < config.num_train_steps:
        return None
    predictor, scores = segmenter.predictor(), {}
    (folder / "predicted").mkdir(exist_ok=True)
    for name, (scan, truth, _) in tqdm(tests.items(), f"Scoring {folder.name}", leave=False):
        stored, _ = predictor.label(scan)
        save_labels(stored, scan.affine, folder / "predicted" / f"{name}.nii.gz", config.table)
        scores[name] = score_case(truth, as_topcow(scan.as_read(stored), config.table), scan.spacing)
    with atomic_path(kept) as part:
        part.write_text(json.dumps(finite(scores)), encoding="utf-8")
    for checkpoint in (folder / "models").glob("model_*.pt"):  # done: some hundred MB each
        checkpoint.unlink()
    return scores


def find_labels(config):
    """Folder of the synthetic volumes' label maps: the given one, or what a teacher made of them.

    Returns:
        (folder, digests of the volumes that the teacher was trained on), or (None, []) if a signal came.
    """
    if config.synthetic_labels is not None:
        return config.synthetic_labels, []
    folder = Path(config.output)
    model = Path(config.teacher or folder / "teacher" / "segmenter.pt")
    if not model.exists():
        folders = {"data": config.real, "labels": config.real_labels}
        if train(config.training(model, config.teacher_steps, **folders)).step < config.teacher_steps:
            return None, []
    labelled = folder / "labelled"
    if not (labelled / "gate.json").exists():
        label_folder(
            TeacherConfig(
                data=config.synthetic,
                model=str(model),
                reference=config.real_labels,
                output=str(labelled),
                withhold=config.gate,
                device=config.device,
            )
        )
    return labelled / "labels", read_model(model)[1]["volumes"]


def read_synthetic(config, labels, wanted):
    """[Case] of the synthetic volumes that have a label map.

    Raises:
        UserError: They are fewer than the grid asks for.
    """
    with_labels = {name_of(path) for path in Path(labels).rglob("*.nii*")}
    paths = [p for p in find_volumes(config.synthetic, "--synthetic") if name_of(p) in with_labels]
    if len(paths) < wanted:
        raise UserError(
            f"--synthetic {config.synthetic} has {len(paths)} volumes with a label map in {labels}, "
            f"--synthetic_numbers asks for {wanted}: generate more, ask for fewer, or train on what the gate "
            f"doubts too (--gate False)."
        )
    return read_cases(config.synthetic, labels, Classes(config.table), only={name_of(p) for p in paths})


def run_experiment(config):
    """Check all, train what is missing, compare, and write the page.

    Returns:
        The folder, or None if a signal ended it early.
    """
    folder, classes = Path(config.output), Classes(config.table)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"The experiment {folder}", "wait for it"):
        same_settings(config, folder)
        tests = read_tests(config)
        real_cases, spacing = read_cases(config.real, config.real_labels, classes)
        if len(real_cases) < max(*config.real_numbers, 0 if config.synthetic_labels else FEWEST):
            raise UserError(f"--real {config.real} has {len(real_cases)} volumes: --real_numbers wants more.")
        refuse_overlap(tests, {case.digest: case.name for case in real_cases}, "in --real")
        if config.generator_data is not None:
            seen = known_by_content(volumes_in(config.generator_data, "--generator_data"))
            refuse_overlap(tests, seen, "in --generator_data")
        synthetic_cases, teacher_saw = [], []
        if any(config.synthetic_numbers):
            labels, teacher_saw = find_labels(config)
            if labels is None:
                return None
            refuse_overlap(tests, dict.fromkeys(teacher_saw, "its file"), "in the teacher's training")
            synthetic_cases, _ = read_synthetic(config, labels, max(config.synthetic_numbers))
        results = {}
        for seed in config.seeds:
            for cell in config.cells():
                scores = run_cell(config, cell, seed, (real_cases, synthetic_cases), spacing, tests)
                if scores is None:
                    return None
                results.setdefault(cell, {})[seed] = scores
        record = compare_runs(results, config.resamples)
        record |= {"settings": asdict(config), "teacher": bool(teacher_saw), "doubted": count_doubted(folder)}
        write_experiment(record, tests, folder)
    print(f"{folder / 'report.html'} shows everything; the numbers are in {folder / 'experiment.json'}.")
    return folder


def count_doubted(folder):
    """Number of label maps that the teacher's gate doubts, None without a teacher."""
    table = folder / "labelled" / "gate.csv"
    if not table.exists():
        return None
    with open(table, newline="", encoding="utf-8") as file:
        return sum(bool(row["reasons"]) for row in csv.DictReader(file))


def same_settings(config, folder):
    """Note the settings of an experiment; a UserError if it was begun with others that change its runs."""
    kept = folder / "settings.json"
    told = {name: value for name, value in asdict(config).items() if name not in ("resamples", "device")}
    for name in ("real_numbers", "synthetic_numbers", "seeds"):
        del told[name]  # a grid may grow
    if kept.exists():
        former = json.loads(kept.read_text(encoding="utf-8"))
        for name, value in told.items():
            if former.get(name) != value:
                raise UserError(
                    f"{folder} was begun with --{name} {former.get(name)}, it is {value} now: give another "
                    f"--output."
                )
    with atomic_path(kept) as part:
        part.write_text(json.dumps(told, indent=1), encoding="utf-8")


def main(argv=None):
    """The command line."""
    config = parse_cli(ExperimentConfig, argv)
    with one_line_errors():
        run_experiment(config)


if __name__ == "__main__":
    main()
