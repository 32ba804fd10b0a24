"""Which recipe learns: trainings on phantoms, scored as they go against phantoms that none has seen.

    python tests/benchmarks/learning.py --output learning
    python tests/benchmarks/learning.py --output learning --only relativistic --seeds 0 --steps 12000
    python tests/benchmarks/learning.py --output learning --table True

The published recipe is trained once, with the ramped average, which changes nothing in the training: its
current weights are what the published average copies until step 20000.

Every run is a training of its own, a process with one thread; what is there already goes on or is left alone,
so that the same command can be given again for days. scores.csv has a row for every checkpoint of every run,
table.md the means over the seeds, curves.png their course.

FD: Frechet distance of 50 principal components of the voxels; FDv: the same of the projection from which the
tissue was taken, so of vessels; both divided by the held-out phantoms' variance, so that 0 is equal and 1 as
far as their spread. P, R, C: precision, recall and coverage (5 neighbours) of the projections; R10: recall in
their first 10 components; spread: ratio of the standard deviations between volumes. "floor" is other phantoms
against the held-out ones, and "floor, smooth" the same when only their first 50 components are kept: R falls
to a tenth although nothing else is lost, for in thousands of dimensions it asks for the finest details. R10
asks whether the large modes are there.

All volumes are scaled by their own range first, as training volumes are read; "max" is the median of their
maxima before that. A score with "1" behind its name is of volumes that all have the noise of one seed: what z
alone gives. "share" is the noise share of the vessels, see MedicalNet/noise.py; that of phantoms is of one
anatomy with several draws of noise.
"""

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from volumetric.cli import check_fields, one_line_errors, option, parse_cli
from volumetric.collection import read_volume, scaled
from volumetric.files import atomic_path
from volumetric.parallel import prepare_process
from volumetric.pictures import axial_pictures, new_axes, save_figure, save_picture, tile
from volumetric.runs import checkpoint_numbers

import numpy as np

from MedicalNet.distances import Neighbours, OfNeighbours, frechet_distance
from MedicalNet.noise import LATENTS, NOISES, as_read, noise_share, shares_of, vessels_in
from sample_data import phantom
from stylegan2_pytorch import ModelLoader

ROOT = Path(__file__).parents[2]

SIZE = ["--image_size", "32", "--image_depth", "8"]
NETWORK = [*SIZE, "--network_capacity", "4", "--fmap_max", "64"]
TRAINING = ["--batch_size", "8", "--gradient_accumulate_every", "1", "--fp16", "False", "--device", "cpu"]
TRAINING += ["--evaluate_every", "3000", "--num_image_tiles", "4", "--learning_rate", "5e-4", "--aug_types"]
TRAINING += ["[translation,cutout]"]
ROBUST = ["--recipe", "robust", "--learning_rate", "3e-3"]
RECIPES = {
    "published, ramped average": ["--average", "ramped"],
    "relativistic": ROBUST,
    "logistic": [*ROBUST, "--loss", "logistic", "--penalty", "r1"],
    "relativistic, gamma 0.3": [*ROBUST, "--gamma", "0.3"],
    "relativistic, gamma 5": [*ROBUST, "--gamma", "5"],
    "relativistic, penalty at every step": [*ROBUST, "--penalty_every", "1"],
    "relativistic, gamma 5 at every step": [*ROBUST, "--penalty_every", "1", "--gamma", "5"],
    "relativistic, gamma falling": [*ROBUST, "--final_gamma", "0.05"],
    "relativistic, augmented": [*ROBUST, "--aug_prob", "0.5"],
    "relativistic, style mixing": [*ROBUST, "--mixed_prob", "0.9"],
    "relativistic, constant rate": [*ROBUST, "--final_rate", "1"],
    "relativistic, a third of the rate": [*ROBUST, "--final_rate", "0.3"],
    "relativistic, larger D": [*ROBUST, "--fmap_max", "128"],
    "robust, noise everywhere": [*ROBUST, "--noise", "all"],
    "robust, pair by pair": [*ROBUST, "--all_pairs", "False"],
    "robust, without minibatch_std": [*ROBUST, "--minibatch_std", "False"],
    "robust, as it was": [*ROBUST, "--noise", "all", "--all_pairs", "False", "--minibatch_std", "False"],
    "robust, augmented": [*ROBUST, "--aug_prob", "0.5"],
    "robust, adaptive": [*ROBUST, "--ada_target", "0.6"],
    "robust, bfloat16": [*ROBUST, "--fp16", "True"],
    "robust, bfloat16, penalties too": [*ROBUST, "--fp16", "True", "--penalty_precision", "mixed"],
}
TRAINED, HELD_OUT, FLOOR, SAMPLES = 1024, 512, 256, 256
COMPARED = 3  # of the recipes, the first ones
COMPONENTS, LARGE = 50, 10
SCORES = ("FD", "FDv", "FDv1", "P", "R", "R1", "R10", "R10_1", "C", "C1", "spread", "share", "max")
WITH_ONE_NOISE = {"FDv": "FDv1", "R": "R1", "R10": "R10_1", "C": "C1"}
RULE = 2  # of the scores, part of what is kept: raise it when they change


@dataclass(kw_only=True)
class LearningConfig:
    """Train recipes on phantoms and score them."""

    output: str = option("learning", "Folder for everything; runs in it go on.")
    only: str | None = option(None, "One recipe; None takes the three that are compared.", choices=RECIPES)
    seeds: tuple = option((0, 1, 2), "Seeds of the trainings.")
    steps: int = option(3000, "Training steps of batch 8.")
    score_every: int = option(500, "Steps between scores.")
    volumes: int = option(TRAINED, "Phantoms to train on.")
    jobs: int = option(2, "Trainings at a time, with one thread each.")
    table: bool = option(False, "Only score what is there, and write the table.")

    def __post_init__(self):
        check_fields(self)


def phantoms(folder, number, seed):
    """Folder of as many phantoms, made unless it is there."""
    if not (folder / "variants.csv").exists():
        flags = ["--output", folder, "--num", number, "--seed", seed, *SIZE]
        subprocess.run([sys.executable, ROOT / "sample_data" / "phantom.py", *map(str, flags)], check=True)
    return folder


def read_all(folder):
    """Volumes of a folder. Shapes: -> (N, Z, X, Y)"""
    return np.stack([read_volume(path)[0][0] for path in sorted(Path(folder).glob("*.nii.gz"))])


class Judge:
    """Scores of volumes against held-out phantoms.

    Args:
        held_out: (N, Z, X, Y), each in [0, 1] by its own range, as all volumes that are scored.
    """

    def __init__(self, held_out):
        self.views = {"FD": held_out.reshape(len(held_out), -1), "FDv": vessels_in(held_out)}
        self.axes = {name: self.principal(view) for name, view in self.views.items()}

    def principal(self, view):
        """Mean and first components of a view. Shapes: (N, d) -> (d,), (d, COMPONENTS)"""
        mean = view.mean(axis=0)
        return mean, np.linalg.svd(view - mean, full_matrices=False)[2][:COMPONENTS].T

    def smooth(self, volumes):
        """Scores of volumes whose projections keep their first components alone."""
        mean, axes = self.axes["FDv"]
        return self(volumes, mean + (vessels_in(volumes) - mean) @ axes @ axes.T)

    def __call__(self, volumes, projections=None):
        """{score: value} of volumes (N, Z, X, Y)."""
        projections = vessels_in(volumes) if projections is None else projections
        views, found = {"FD": volumes.reshape(len(volumes), -1), "FDv": projections}, {}
        for name, view in views.items():
            mean, axes = self.axes[name]
            real = (self.views[name] - mean) @ axes
            fake = (view - mean) @ axes
            covariance = np.cov(real.T)
            distance = frechet_distance(real.mean(0), covariance, fake.mean(0), np.cov(fake.T))
            found[name] = distance / np.trace(covariance)
        neighbours = Neighbours(self.views["FDv"], views["FDv"])
        for short, name in (("P", "precision"), ("R", "recall"), ("C", "coverage")):
            found[short] = OfNeighbours(neighbours, name, (0, 1)).exact()
        mean, axes = self.axes["FDv"]
        large = [(view["FDv"] - mean) @ axes[:, :LARGE] for view in (self.views, views)]
        found["R10"] = OfNeighbours(Neighbours(*large), "recall", (0, 1)).exact()
        found["spread"] = float(np.sqrt(views["FDv"].var(0).sum() / self.views["FDv"].var(0).sum()))
        return found


def name_of(recipe, seed, config):
    """Name of a run."""
    extra = "" if config.volumes == TRAINED else f"_{config.volumes}"
    plain = "".join(c if c.isalnum() or c == "." else "-" for c in recipe)
    return f"{plain}{extra}_s{seed}_{config.steps}"


def train(recipe, seed, config):
    """Train one run to its end, or go on with it."""
    folder = Path(config.output)
    flags = ["--data", folder / f"train_{config.volumes}", "--name", name_of(recipe, seed, config)]
    flags += ["--results_dir", folder / "results", "--models_dir", folder / "models", "--seed", seed]
    flags += ["--num_train_steps", config.steps, "--save_every", config.score_every]
    command = [
        sys.executable,
        ROOT / "stylegan2_pytorch.py",
        *flags,
        *once([*NETWORK, *TRAINING, *RECIPES[recipe]]),
    ]
    with open(folder / f"{name_of(recipe, seed, config)}.log", "a", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(list(map(str, command)), stdout=log, stderr=log, env=environment, check=True)


def once(flags):
    """Flags of which a later one takes the place of an earlier one of its name."""
    return [part for pair in dict(zip(flags[::2], flags[1::2], strict=True)).items() for part in pair]


def scores_of(model, judge):
    """{score: value} of a model's volumes, and these volumes. Shapes: -> (N, Z, X, Y)"""
    seeds = range(10**6, 10**6 + SAMPLES)
    raw = list(model.volumes_of(seeds))
    made = as_read(raw)
    fixed = judge(as_read(model.volumes_of(seeds, noise_seed=seeds[0])))
    found = judge(made) | {new: fixed[name] for name, new in WITH_ONE_NOISE.items()}
    found["share"] = shares_of(model)["noise-share-vessels"]
    return found | {"max": float(np.median([float(volume.max()) for volume in raw]))}, made


def floor_share(shape=(32, 32, 8)):
    """Noise share of the vessels of phantoms: LATENTS anatomies, each with NOISES draws of Rician noise."""
    volumes = []
    for number in range(LATENTS):
        rng = np.random.default_rng((3 * 10**6, number))
        scanner = list(phantom.SCANNERS.values())[number % len(phantom.SCANNERS)]
        clean, _ = phantom.render_phantom(phantom.build_tree(rng), replace(scanner, noise=0), shape, rng)
        noises = scanner.noise * rng.standard_normal((NOISES, 2, *shape))
        volumes.append([scaled(np.hypot(clean + noise[0], noise[1]))[0] for noise in noises])
    vessels = vessels_in(np.concatenate(volumes))
    return noise_share(vessels.reshape(LATENTS, NOISES, -1))


def score(recipe, seed, config, judge):
    """Rows of a run: its checkpoints' scores, computed once and kept in a file."""
    folder, name = Path(config.output), name_of(recipe, seed, config)
    kept = folder / "scores" / f"{name}.json"
    rows = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    rows = [row for row in rows if row.get("rule") == RULE]
    known = {(row["step"], row["networks"]) for row in rows}
    for number in checkpoint_numbers(folder / "models" / name):
        for networks in ("average", "current"):
            path = folder / "models" / name / f"model_{number}.pt"
            model = ModelLoader(checkpoint=path, use_average=networks == "average", device="cpu")
            step = model.step  # an interrupted run leaves checkpoints between those that are due
            if step == 0 or (step, networks) in known:
                continue
            found, made = scores_of(model, judge)
            about = {"recipe": recipe, "volumes": config.volumes, "seed": seed, "steps": config.steps}
            rows.append({**about, "step": step, "networks": networks, "rule": RULE, **found})
            if networks == "average":
                sheet = tile(axial_pictures(made[:16, None], model.affine)[1], 8)
                save_picture(sheet, folder / "pictures" / f"{name}_{step:06d}.png", 512)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(kept) as part:
        part.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows


def write_table(folder, floors):
    """scores.csv, table.md and curves.png of all runs that have scores."""
    rows = [
        row
        for path in sorted((folder / "scores").glob("*.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))
        if row.get("rule") == RULE
    ]
    if not rows:
        return
    with atomic_path(folder / "scores.csv") as part, open(part, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    lines = [f"| recipe | seed | step | {' | '.join(SCORES)} |", "|---" * (3 + len(SCORES)) + "|"]
    for name, floor in floors.items():
        values = [f"{floor[s]:.2f}" if s in floor else "" for s in SCORES]
        lines.append(f"| floor: {name} | | | {' | '.join(values)} |")
    groups = {}
    for row in rows:
        groups.setdefault(
            (row["recipe"], row["volumes"], row["steps"], row["seed"], row["networks"]), []
        ).append(row)
    for (recipe, volumes, _, seed, networks), members in groups.items():
        last = max(members, key=lambda row: row["step"])
        title = recipe + ("" if volumes == TRAINED else f", {volumes} phantoms")
        title += "" if networks == "average" else ", current weights"
        lines.append(
            f"| {title} | {seed} | {last['step']} | {' | '.join(f'{last[s]:.2f}' for s in SCORES)} |"
        )
    with atomic_path(folder / "table.md") as part:
        part.write_text("\n".join([*lines, ""]), encoding="utf-8")
    draw_curves(groups, floors["other phantoms"], folder / "curves.png")


def draw_curves(groups, floor, path):
    """Course of every score, a line for each run of the averaged networks, a colour for each recipe."""
    figure, plots = new_axes(4, 4, width=3.6, height=2.8)
    recipes = list(dict.fromkeys(key[:3] for key in groups))
    for one, name in zip(plots, SCORES, strict=False):
        for (*kind, _, networks), members in groups.items():
            if networks == "average":
                members = sorted(members, key=lambda row: row["step"])
                label = kind[0] + ("" if kind[1] == TRAINED else f", {kind[1]}")
                again = label in [line.get_label() for line in one.lines]
                colour = f"C{[r[0] for r in recipes].index(kind[0]) % 10}"
                steps, values = [row["step"] for row in members], [row[name] for row in members]
                one.plot(steps, values, ".-", color=colour, linewidth=1, label="_" if again else label)
        if name in floor:
            one.axhline(floor[name], color="0.6", linestyle=":", linewidth=1)
        one.set(title=name, xlabel="step")
    for one in plots[len(SCORES) :]:
        one.axis("off")
    plots[-1].legend(*plots[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="center left")
    save_figure(figure, path)


def main(argv=None):
    """The command line."""
    config = parse_cli(LearningConfig, argv)
    with one_line_errors():
        prepare_process("cpu")
        folder = Path(config.output)
        for name in ("pictures", "scores"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        phantoms(folder / f"train_{config.volumes}", config.volumes, 0)
        judge = Judge(read_all(phantoms(folder / "held_out", HELD_OUT, 10**6)))
        others = read_all(phantoms(folder / "floor", FLOOR, 2 * 10**6))
        floors = {"other phantoms": judge(others) | {"share": floor_share(), "max": 1.0}}
        floors["other phantoms, smooth"] = judge.smooth(others)
        recipes = list(RECIPES)[:COMPARED] if config.only is None else [config.only]
        planned = [(recipe, seed) for seed in config.seeds for recipe in recipes]

        def work(run):
            if not config.table:
                train(*run, config)
            if (folder / "models" / name_of(*run, config)).exists():
                score(*run, config, judge)
            write_table(folder, floors)

        with ThreadPoolExecutor(config.jobs) as pool:
            list(pool.map(work, planned))
        if (folder / "table.md").exists():
            print((folder / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
