"""Volumes and label maps for nnU-Net v2, the commands to run there, and its predictions back as label maps.

    python segmentation/nnunet.py --data volumes --labels labels --output nnunet
    python segmentation/nnunet.py --data volumes --labels labels --synthetic made \
        --synthetic_labels made_labels --subjects subjects.csv --output nnunet
    python segmentation/nnunet.py --mode export_test --data others --output to_label
    python segmentation/nnunet.py --mode import --data predictions --cases to_label/cases.csv \
        --output predicted

or edit the settings below and run it. nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z) comes by
`pip install ".[nnunet]"`. It takes arrays as they are stored, whatever a header says of their axes: all that
is exported, to be trained on or to be labelled, runs along right, front and up, and the import turns label
maps back to the axes of their volumes. Its folds are drawn here, by subject: nnU-Net's own would put a
subject and the synthetic volumes made from it on both sides. Inputs are never written to.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

# Run as a script, segmentation.py beside this file would hide its package.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import choose, find, find_volumes, refuse_other_grid, refuse_unusable
from volumetric.files import as_damaged, atomic_path, new_folder, write_json
from volumetric.geometry import axes_of, turn
from volumetric.names import in_folder, name_of, unique_names
from volumetric.tables import Split, read_table, rows_of, subjects_of, write_table

import nibabel as nib
import numpy as np
from tqdm import tqdm

from segmentation.cases import (
    Classes,
    labelled_among,
    pairs_in,
    read_pair,
    read_scan,
    refuse_changed,
    refuse_real,
)
from segmentation.labels import TABLES, read_labels, remap, save_labels

# Edit these, or pass them as flags; a flag wins.
# export, export_test or import
mode = "export"
# folder of volumes, or of nnU-Net's predictions
data = "volumes"
# folder of their label maps, files of the same names
labels = "labels"
# new folder
output = "nnunet"

MODES = {
    "export": "pairs to train on, to nnU-Net's folders",
    "export_test": "volumes to label",
    "import": "its predictions as label maps",
}
FEWEST_IDS = 1  # of nnU-Net's data sets
RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
# Of cases.csv: an exported case, its file's place in the folder, and the file's voxels, axes and affine.
COLUMNS = ("case", "file", "content", "voxels", "axes", "affine")


@dataclass(kw_only=True)
class NnunetConfig:
    """Export cases for nnU-Net v2 with folds by subject, or volumes to label, or import its predictions."""

    mode: str = option(mode, "What to do.", choices=MODES)
    data: str = option(data, "Folder of NIfTI volumes, or of nnU-Net's predictions.")
    labels: str = option(labels, "Folder of their label maps, files of the same names.")
    synthetic: str | None = option(None, "Folder of synthetic volumes to train on too.")
    synthetic_labels: str | None = option(None, "Folder of their label maps.")
    split: str | None = option(
        None,
        "Table of preprocessing/split.py: its part `training` is exported, by its subjects; `test` to label.",
        file=True,
    )
    subjects: str | None = option(
        None, "CSV of file and subject: volumes of one subject stay on one side of a fold.", file=True
    )
    cases: str | None = option(
        None, "cases.csv of an export: its predictions come back along the axes of their volumes.", file=True
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
# ║ Cases and folds                                                                                          ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Cases:
    """Pairs under names that no other has.

    Args:
        real, synthetic: {case: (volume, label map)}.
        subjects: {case: subject}, of those that have one.
    """

    real: dict
    synthetic: dict
    subjects: dict

    @property
    def all(self):
        """{case: (volume, label map)} of both."""
        return self.real | self.synthetic


def read_cases(config, classes):
    """Cases of an export; every pair is read once.

    Raises:
        UserError: One line for every pair that cannot be used; or subjects do not fit.
    """
    real = pairs_in({"data": config.data, "labels": config.labels}, classes, split=config.split)
    made = {}
    if config.synthetic is not None:
        there = labelled_among(config.synthetic, config.synthetic_labels)
        if not there:
            raise UserError(
                f"--synthetic {config.synthetic} has no volume with a label map in --synthetic_labels "
                f"{config.synthetic_labels}, files of the same names: correct one, or leave both out."
            )
        made = {"synthetic": config.synthetic, "synthetic_labels": config.synthetic_labels}
        made = pairs_in(made, classes, only=there)
    refuse_real(made.values(), real.values(), config.synthetic)
    real = [(pair.volume_path, pair.labels_path) for pair in real.values()]
    made = [(pair.volume_path, pair.labels_path) for pair in made.values()]
    names = unique_names([volume for volume, _ in (*real, *made)])
    subjects = subjects_in(config, [volume for volume, _ in real], [volume for volume, _ in made])
    return Cases(
        {names[paths[0]]: paths for paths in real},
        {names[paths[0]]: paths for paths in made},
        {names[path]: subject for path, subject in subjects.items()},
    )


def subjects_in(config, real, synthetic):
    """{path: subject} by --subjects and --split, of those volumes that they know.

    Raises:
        UserError: They contradict each other, or a synthetic volume is of a subject that is set aside.
    """
    told = {}
    if config.subjects is not None:
        others = [path for path in find(config.data).paths if path not in real]  # of other parts of the split
        told = subjects_of(config.subjects, [*real, *others, *synthetic])
    if config.split is None:
        return told
    split = Split.read(config.split)
    found, _ = rows_of(split.rows, real, f"--split {config.split}")
    for path, row in zip(real, found, strict=True):
        if told.setdefault(path, row["subject"]) != row["subject"]:
            raise UserError(
                f"{path} is of subject {told[path]} in --subjects and of {row['subject']} in --split: "
                f"correct one."
            )
    aside = {row["subject"] for row in split.rows if row["part"] != "training"}
    for path in synthetic:
        if told.get(path) in aside:
            raise UserError(
                f"{path} was made from subject {told[path]}, which --split {config.split} sets aside: leave "
                f"it out."
            )
    return {path: told[path] for path in (*real, *synthetic) if path in told}


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
# ║ Export                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def export(config):
    """Write nnU-Net's raw data set, its folds, and the commands.

    Returns:
        The new folder.
    """
    classes = Classes(config.table)
    cases = read_cases(config, classes)
    splits = make_folds(list(cases.real), list(cases.synthetic), cases.subjects, config.folds, config.seed)
    with new_folder(config.output) as folder:
        raw = folder / RAW / config.dataset_folder
        prepared = folder / PREPROCESSED / config.dataset_folder
        for one in (raw / "imagesTr", prepared, folder / RESULTS):
            one.mkdir(parents=True)
        rows = []
        for name, paths in tqdm(cases.all.items(), "Exporting", unit="case"):
            pair = read_pair(*paths, classes)
            write_channel(pair.scan, raw / "imagesTr" / f"{name}_0000.nii.gz")
            table = "paper" if classes.table == "paper" else "nnunet"
            save_labels(pair.labels, pair.scan.frame, raw / "labelsTr" / f"{name}.nii.gz", table)
            rows.append(row_of(name, pair.scan, config.data if name in cases.real else config.synthetic))
        write_table(folder / "cases.csv", COLUMNS, rows)
        about = {
            "channel_names": {"0": "MR"},
            "labels": {"background": 0} | {name: n for n, name in enumerate(classes.names, start=1)},
            "numTraining": len(rows),
            "file_ending": ".nii.gz",
        }
        for path, record in ((raw / "dataset.json", about), (prepared / "splits_final.json", splits)):
            write_json(path, record)
        commands = commands_for(config, folder)
        with atomic_path(folder / "commands.sh") as part:
            part.write_text(commands, encoding="utf-8")
    tell(config, folder, cases)
    print(commands)
    return folder


def tell(config, folder, cases):
    """Print what was exported, and what its user must know."""
    alone = sum(name not in cases.subjects for name in cases.synthetic)
    if alone:
        print(
            f"{alone} synthetic volumes have no subject and are trained on in every fold: if their generator "
            f"saw the real volumes here, validation scores flatter; test on subjects that it has not seen."
        )
    print(
        f"{len(cases.all)} cases in {config.folds} folds are in {folder}, along right, front and up. nnU-Net "
        f"never turns a volume: prepare those to label with --mode export_test. What to run "
        f"({folder / 'commands.sh'}):"
    )


def write_channel(scan, path):
    """Write a volume along right, front and up."""
    image = nib.Nifti1Image(scan.array, scan.frame)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as part:
        nib.save(image, part)


def row_of(case, scan, folder):
    """Row of cases.csv."""
    shape = scan.as_stored(scan.array).shape
    affine = " ".join(repr(float(n)) for n in scan.affine.ravel())
    place = Path(scan.path).relative_to(folder).as_posix()
    return case, place, scan.volume.content, " ".join(map(str, shape)), scan.volume.axes, affine


def export_test(config):
    """Write volumes to label as nnU-Net wants them, and cases.csv, by which their label maps come back.

    Returns:
        The new folder.
    """
    paths, stated = choose(config.data, split=config.split, parts=("test",))
    names, rows, problems = unique_names(paths), [], []
    for path in tqdm(paths, "Checking", leave=False):
        try:
            scan = read_scan(path)
            refuse_changed(path, scan.volume.content, stated)
            rows.append(row_of(names[path], scan, config.data))
        except UserError as error:
            problems.append(str(error).rstrip("."))
    refuse_unusable(problems, len(paths), config.data)
    with new_folder(config.output) as folder:
        (folder / "imagesTs").mkdir()
        for path in tqdm(paths, "Exporting", unit="volume"):
            write_channel(read_scan(path), folder / "imagesTs" / f"{names[path]}_0000.nii.gz")
        write_table(folder / "cases.csv", COLUMNS, rows)
    print(
        f"{len(paths)} volumes are in {folder / 'imagesTs'}, along right, front and up. Label maps of them "
        f"come back to the axes of their files by --mode import --cases {folder / 'cases.csv'}."
    )
    return folder


def commands_for(config, folder):
    """What to type after an export: plans, one fold, a prediction, and its import."""
    places = {name: shlex.quote(str((folder / name).resolve())) for name in (RAW, PREPROCESSED, RESULTS)}
    lines = [f"export {name}={place}" for name, place in places.items()]
    lines += [
        f"nnUNetv2_plan_and_preprocess -d {config.dataset} -c 3d_fullres --verify_dataset_integrity",
        "# Without mirroring: left and right are different classes. Then folds 1, 2, ...",
        f"nnUNetv2_train {config.dataset} 3d_fullres 0 -tr nnUNetTrainerNoMirroring",
        "# Volumes to label, along the same axes as those that were trained on.",
        "python segmentation/nnunet.py --mode export_test --data VOLUMES --output to_label",
        f"nnUNetv2_predict -i to_label/imagesTs -o PREDICTIONS -d {config.dataset} -c 3d_fullres -f 0 "
        f"-tr nnUNetTrainerNoMirroring",
        f"python segmentation/nnunet.py --mode import --data PREDICTIONS --cases to_label/cases.csv "
        f"--table {config.table} --output predicted",
    ]
    return "\n".join([*lines, ""])


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Import                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Origin:
    """The file that a case was exported from.

    Args:
        place: Path in its folder, without an ending.
        shape: Voxels, (X, Y, Z), along its own axes.
        affine: (4, 4), mm.
    """

    place: str
    shape: tuple
    affine: np.ndarray

    def turned_back(self, labels, affine, path):
        """A label map along the file's axes; a UserError if it is of another grid. Shapes: (X, Y, Z)"""
        labels, affine = turn(labels, affine, axes_of(self.affine))
        refuse_other_grid((labels.shape, affine, path), (self.shape, self.affine, self.place))
        return labels


def read_origins(path):
    """{case: Origin} of a cases.csv."""
    origins = {}
    for row in read_table(path, *COLUMNS, flag="--cases"):
        with as_damaged("export the volumes again", f"--cases {path}"):
            affine = np.array(row["affine"].split(), dtype=float).reshape(4, 4)
            shape = tuple(map(int, row["voxels"].split()))
            origins[row["case"]] = Origin(in_folder(row["file"], ""), shape, affine)
    return origins


def import_predictions(config):
    """Write nnU-Net's predictions with the ids of --table.

    Returns:
        The new folder.

    Raises:
        UserError: Two predictions have one name, or one is not of the case that it is called after; nothing
            is written.
    """
    if config.table == "paper" and config.cases is None:
        raise UserError("--table paper has consecutive ids already: nnU-Net's predictions are label maps.")
    there = "paper" if config.table == "paper" else "nnunet"
    origins, found = None if config.cases is None else read_origins(config.cases), {}
    for name, path in tqdm(predictions_in(config.data).items(), "Reading", leave=False):
        labels, affine = read_labels(path, there)
        place = name
        if origins is not None and name not in origins:
            raise UserError(f"{path} is no case of --cases {config.cases}: give that of its export.")
        if origins is not None:
            labels, affine = origins[name].turned_back(labels, affine, path), origins[name].affine
            place = origins[name].place
        if place in found:
            raise UserError(f"{path} is the second of a file {place}: import real and synthetic ones apart.")
        found[place] = remap(labels, there, config.table), affine
    with new_folder(config.output) as folder:
        for place, (ids, affine) in found.items():
            save_labels(ids, affine, folder / f"{place}.nii.gz", config.table)
    along = "right, front and up, as they were predicted" if origins is None else "the axes of their volumes"
    print(f"{len(found)} label maps with the ids of {config.table}, along {along}, are in {folder}")
    return folder


def predictions_in(folder):
    """{case: path} of a folder of predictions; a UserError if two have one name, as of several folds."""
    paths = {}
    for path in find_volumes(folder):
        if paths.setdefault(name_of(path), path) != path:
            raise UserError(
                f"{path.name} is there twice, {paths[name_of(path)]} and {path}: give the folder of one set "
                f"of predictions."
            )
    return paths


def main(argv=None):
    """The command line."""
    config = parse_cli(NnunetConfig, argv)
    work = {"export": export, "export_test": export_test, "import": import_predictions}
    with one_line_errors():
        work[config.mode](config)


if __name__ == "__main__":
    main()
