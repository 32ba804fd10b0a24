"""Volumes and label maps for nnU-Net v2, the commands to run there, and its predictions back as label maps.

    python segmentation/nnunet.py --data volumes --labels labels --output nnunet
    python segmentation/nnunet.py --data volumes --labels labels --synthetic made \
        --synthetic_labels made_labels --subjects subjects.csv --output nnunet
    python segmentation/nnunet.py --mode import --data predictions --output predicted

or edit the settings below and run it. nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z) comes by
`pip install ".[nnunet]"`. Its folds are drawn here, by subject: nnU-Net's own would put a subject and the
synthetic volumes made from it on both sides. Inputs are never written to.
"""

import csv
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

# Run as a script, segmentation.py beside this file would hide its package.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import nibabel as nib
import numpy as np
from tqdm import tqdm

from segmentation.cases import Classes, read_case
from segmentation.labels import TABLES, read_labels, remap, save_labels
from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import find_volumes, name_of, pair_up, refuse_unusable
from volumetric.files import as_damaged, atomic_path, next_free

# Edit these, or pass them as flags; a flag wins.
# export or import
mode = "export"
# folder of volumes, or of nnU-Net's predictions
data = "volumes"
# folder of their label maps, files of the same names
labels = "labels"
# new folder
output = "nnunet"

MODES = {"export": "to nnU-Net's folders", "import": "its predictions as label maps"}
FEWEST_IDS = 1  # of nnU-Net's data sets
RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"


@dataclass(kw_only=True)
class NnunetConfig:
    """Export cases for nnU-Net v2 with folds by subject, or import its predictions."""

    mode: str = option(mode, "What to do.", choices=MODES)
    data: str = option(data, "Folder of NIfTI volumes, or of nnU-Net's predictions.")
    labels: str = option(labels, "Folder of their label maps, files of the same names.")
    synthetic: str | None = option(None, "Folder of synthetic volumes to train on too.")
    synthetic_labels: str | None = option(None, "Folder of their label maps.")
    subjects: str | None = option(
        None, "CSV of file and subject: volumes of one subject stay on one side of a fold.", file=True
    )
    output: str = option(output, "New folder.", folder=True)
    table: str = option("topcow2024", "Table of the ids.", choices=TABLES)
    dataset: int = option(500, "Number of the data set in nnU-Net.", least=FEWEST_IDS, most=999)
    dataset_name: str = option("CircleOfWillis", "Its name there.")
    folds: int = option(5, "Folds of the cross-validation.", least=2, most=100)
    seed: int = option(0, "Seed of the folds.", least=0)

    def __post_init__(self):
        check_fields(self)
        if (self.synthetic is None) != (self.synthetic_labels is None):
            raise UserError("--synthetic and --synthetic_labels go together: give both or none.")
        if not self.dataset_name.isalnum():
            raise UserError(f"--dataset_name must be letters and digits, got {self.dataset_name!r}.")

    @property
    def dataset_folder(self):
        """Name of the data set's folder, as nnU-Net wants it."""
        return f"Dataset{self.dataset:03d}_{self.dataset_name}"


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Folds                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def read_subjects(path, names):
    """{case: subject} of a CSV of file and subject; a UserError if it names no case."""
    with (
        as_damaged("expected a CSV with the columns file and subject", path),
        open(path, newline="", encoding="utf-8") as file,
    ):
        rows = list(csv.DictReader(file))
        told = {name_of(Path(row["file"])): row["subject"].strip() for row in rows}
    unknown = sorted(told.keys() - names)
    if unknown:
        raise UserError(f"{path} names {unknown[0]}, which is no case: correct it.")
    return told


def make_folds(real, synthetic, subjects, folds, seed):
    """nnU-Net's splits: real subjects are validated on once, with all that belongs to a subject on one side.

    A synthetic volume of no known subject is trained on in every fold; none is ever validated on.

    Args:
        real, synthetic: Names of cases.
        subjects: {case: subject}; a real case without is a subject of its own.

    Returns:
        [{"train": cases, "val": cases}], one for each fold.
    """
    of_real = {case: subjects.get(case, case) for case in real}
    people = sorted(set(of_real.values()))
    if len(people) < folds:
        raise UserError(f"There are {len(people)} subjects for --folds {folds}: give fewer folds.")
    order = np.random.default_rng(seed).permutation(len(people))
    fold_of = {people[n]: place % folds for place, n in enumerate(order)}
    splits = []
    for fold in range(folds):
        val = [case for case in real if fold_of[of_real[case]] == fold]
        train = [case for case in real if fold_of[of_real[case]] != fold]
        train += [case for case in synthetic if fold_of.get(subjects.get(case)) != fold]
        splits.append({"train": train, "val": val})
    return splits


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Export and import                                                                                        ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def check_cases(sets, classes):
    """{case: paths} of sets of pairs, each read once; a UserError with a line for every wrong one."""
    cases, problems = {}, []
    for flags in sets:
        for name, paths in tqdm(pair_up(flags).items(), "Checking", leave=False):
            try:
                read_case(name, paths, classes)
            except UserError as error:
                problems.append(str(error).rstrip("."))
            if name in cases:
                problems.append(f"{paths[0]} has the name of {cases[name][0]}: rename it")
            cases[name] = paths
    refuse_unusable(problems, len(cases), next(iter(sets[0].values())))
    return cases


def export(config):
    """Write nnU-Net's raw data set, its folds, and the commands.

    Returns:
        The new folder.
    """
    classes = Classes(config.table)
    sets = [{"data": config.data, "labels": config.labels}]
    if config.synthetic is not None:
        sets.append({"synthetic": config.synthetic, "synthetic_labels": config.synthetic_labels})
    cases = check_cases(sets, classes)
    real = list(pair_up(sets[0]))
    synthetic = [name for name in cases if name not in set(real)]
    subjects = read_subjects(config.subjects, cases.keys()) if config.subjects else {}
    splits = make_folds(real, synthetic, subjects, config.folds, config.seed)
    folder = next_free(Path(config.output))
    raw, prepared = folder / RAW / config.dataset_folder, folder / PREPROCESSED / config.dataset_folder
    for one in (raw / "imagesTr", raw / "labelsTr", prepared, folder / RESULTS):
        one.mkdir(parents=True)
    for name, paths in tqdm(cases.items(), "Exporting", unit="case"):
        write_case(name, paths, classes, raw)
    names = {"background": 0} | {name: n for n, name in enumerate(classes.names, start=1)}
    about = {
        "channel_names": {"0": "MR"},
        "labels": names,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    for path, record in ((raw / "dataset.json", about), (prepared / "splits_final.json", splits)):
        with atomic_path(path) as part:
            part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    commands = commands_for(config, folder)
    with atomic_path(folder / "commands.sh") as part:
        part.write_text(commands, encoding="utf-8")
    alone = sum(name not in subjects for name in synthetic)
    if alone:
        print(
            f"{alone} synthetic volumes have no subject and are trained on in every fold: if their generator "
            f"saw the real volumes here, validation scores flatter; test on subjects that it has not seen."
        )
    print(
        f"{len(cases)} cases in {config.folds} folds are in {folder}. What to run ({folder / 'commands.sh'}):"
    )
    print(commands)
    return folder


def write_case(name, paths, classes, raw):
    """Volume and label map of one case in nnU-Net's folders, both along the volume's own axes."""
    scan, numbers, _ = read_case(name, paths, classes)
    with atomic_path(raw / "imagesTr" / f"{name}_0000.nii.gz") as part:
        nib.save(nib.Nifti1Image(scan.as_stored(scan.array), scan.affine), part)
    table = "paper" if classes.table == "paper" else "nnunet"
    save_labels(scan.as_stored(numbers), scan.affine, raw / "labelsTr" / f"{name}.nii.gz", table)


def commands_for(config, folder):
    """What to type after an export: plans, one fold, a prediction, and its import."""
    places = {name: shlex.quote(str((folder / name).resolve())) for name in (RAW, PREPROCESSED, RESULTS)}
    lines = [f"export {name}={place}" for name, place in places.items()]
    lines += [
        f"nnUNetv2_plan_and_preprocess -d {config.dataset} -c 3d_fullres --verify_dataset_integrity",
        "# Without mirroring: left and right are different classes. Then folds 1, 2, ...",
        f"nnUNetv2_train {config.dataset} 3d_fullres 0 -tr nnUNetTrainerNoMirroring",
        "# Volumes to label: copies named CASE_0000.nii.gz.",
        f"nnUNetv2_predict -i VOLUMES -o PREDICTIONS -d {config.dataset} -c 3d_fullres -f 0 "
        f"-tr nnUNetTrainerNoMirroring",
        f"python segmentation/nnunet.py --mode import --data PREDICTIONS --table {config.table} "
        f"--output predicted",
    ]
    return "\n".join([*lines, ""])


def import_predictions(config):
    """Write nnU-Net's predictions with the ids of --table.

    Returns:
        The new folder.
    """
    if config.table == "paper":
        raise UserError("--table paper has consecutive ids already: nnU-Net's predictions are label maps.")
    paths = find_volumes(config.data)
    maps = [read_labels(path, "nnunet") for path in tqdm(paths, "Reading", leave=False)]
    folder = next_free(Path(config.output))
    folder.mkdir(parents=True)
    for path, (array, affine) in zip(paths, maps, strict=True):
        ids = remap(array, "nnunet", config.table) if config.table != "nnunet" else array
        save_labels(ids, affine, folder / f"{name_of(path)}.nii.gz", config.table)
    print(f"{len(paths)} label maps with the ids of {config.table} are in {folder}")
    return folder


def main(argv=None):
    """The command line."""
    config = parse_cli(NnunetConfig, argv)
    with one_line_errors():
        (export if config.mode == "export" else import_predictions)(config)


if __name__ == "__main__":
    main()
