r"""What the options do to a training on phantoms: stability, time, memory, distance to unseen phantoms.

    python tests/benchmarks/options.py --output options --steps 600
    python tests/benchmarks/options.py --output classes --classes --recipe robust --steps 4500 \
        --batch_size 16 --network_capacity 8 --fmap_max 128 --device cuda

Every option trains as many steps from the same seed on the same phantoms of 64 x 64 x 16 voxels, `jobs` at
a time with one thread each. Volumes of the current generator, or with `robust` of the averaged one, are then
compared with phantoms that no training saw, by MedicalNet/evaluation.py with random networks.

With --classes: one conditional training on full circles, circles without an A1 and circles without Pcom. A
small classifier, trained on the same phantoms, then says of which class unseen phantoms and generated volumes
look. The same command goes on with it.
"""

import csv
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from volumetric import collection, dataset, parallel, pictures, runs, training  # noqa: E402
from volumetric.cli import check_device_name, check_fields, one_line_errors, option, parse_cli  # noqa: E402

import stylegan2_pytorch as sg  # noqa: E402
from tests.benchmarks.launches import NoLog  # noqa: E402

SIZE = {"image_size": 64, "image_depth": 16}
TRAINED, UNSEEN = 256, 64  # phantoms
GENERATED = 64
OPTIONS = {
    "plain": [],
    "attn_layers 2": ["--attn_layers", "2"],
    "fq_layers 3,4": ["--fq_layers", "3,4"],
    "cl_reg": ["--cl_reg"],
    "no_const": ["--no_const"],
    "ada_target 0.6": ["--ada_target", "0.6", "--ada_volumes", "5000"],
    "aug_types with the 3D ones": [
        "--aug_types",
        "translation,cutout,rotation,scaling,bias_field,noise,blur",
    ],
    "rel_disc_loss": ["--rel_disc_loss"],
    "dual_contrast_loss": ["--dual_contrast_loss"],
    "top_k_training": ["--top_k_training"],
}


@dataclass(kw_only=True)
class OptionsConfig:
    """Compare the options on phantoms."""

    output: str = option("options", "Folder; a new one but for --classes.")
    steps: int = option(600, "Training steps.")
    batch_size: int = option(2, "Volumes of a step.")
    recipe: str = option("published", "Recipe of the trainings.", choices=("published", "robust"))
    learning_rate: float | None = option(None, "Of the generator; None is the recipe's.")
    network_capacity: int = option(4, "Width of the networks.")
    fmap_max: int = option(64, "Largest number of channels.")
    device: str = option("cpu", "Of the trainings; times are of the CPU.", check=check_device_name)
    jobs: int = option(2, "Trainings at a time, with one thread each.")
    classes: bool = option(False, "The conditional training instead.")

    def __post_init__(self):
        check_fields(self)

    def training(self):
        """{flag: value} of a training."""
        same = ("batch_size", "recipe", "network_capacity", "fmap_max")
        settings = {**SIZE, "gradient_accumulate_every": 1, **{name: getattr(self, name) for name in same}}
        return settings | ({} if self.learning_rate is None else {"learning_rate": self.learning_rate})


def flags_of(settings):
    """Command-line flags of {flag: value}."""
    return [str(part) for name, value in settings.items() for part in (f"--{name}", value)]


def run(script, *arguments):
    """Run a script of the project with one thread; returns the peak memory of its process in MiB."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    out, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{out}{error}")


def phantoms(folder, number, seed, *more):
    """Make phantoms unless they are there."""
    size = ("--image_size", SIZE["image_size"], "--image_depth", SIZE["image_depth"])
    if not folder.exists():
        run("sample_data/phantom.py", "--output", folder, "--num", number, "--seed", seed, *size, *more)
    return folder


def train(config, folder, name, *flags):
    """Train; returns the rows of metrics.csv as arrays of numbers."""
    common = {**config.training(), "data": folder / "train", "name": name, "device": config.device}
    common |= {"results_dir": folder / "results", "models_dir": folder / "models"}
    common |= {"num_train_steps": config.steps, "save_every": config.steps}
    common |= {"num_image_tiles": 4, "evaluate_every": config.steps}
    run("stylegan2_pytorch.py", *flags_of(common), *flags)
    with open(folder / "results" / name / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {c: [row[c] for row in rows if row[c]] for c in rows[0]}
    return {c: np.array(values, dtype=float) for c, values in columns.items()}


def settings_of(config, flags):
    """TrainConfig of an option."""
    return parse_cli(sg.TrainConfig, [*flags_of({**config.training(), "device": "cpu"}), *flags])


def peak_memory(config, flags):
    """Peak memory of the tensors by --dry_run's prediction, MiB."""
    settings = settings_of(config, flags)
    peaks = training.rehearse_on_cpu(sg.Trainer, settings, pretended(settings.shape), parallel.Group())
    return max(peaks.values()) / 2**20


def pretended(shape):
    """Audit of as many phantoms of (D, H, W) voxels as are trained on, without them."""
    return dataset.Audit(range(TRAINED), None, np.eye(4), "", [], shape)


def step_times(config, rounds=7):
    """{option: median seconds of a step without penalty}; the options take turns in this process."""
    trainers, times = {}, {name: [] for name in OPTIONS}
    for name, flags in OPTIONS.items():
        settings = settings_of(config, flags)
        trainers[name] = trainer = sg.Trainer(settings, pretended(settings.shape))
        volumes = torch.rand(config.batch_size, 1, *settings.shape)
        trainer.loader = itertools.repeat((volumes, torch.arange(config.batch_size)))
    for _ in range(rounds + 1):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.step = 1
            trainer.train_step(NoLog())
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(found[1:])) for name, found in times.items()}


def compare(config, folder):
    """Train all options and print the table."""
    phantoms(folder / "train", TRAINED, 1)
    phantoms(folder / "unseen", UNSEEN, 2)
    phantoms(folder / "other", GENERATED, 3)

    def one(item):
        name, flags = item
        short = name.split()[0]
        rows = train(config, folder, short, *flags)
        shared = ("--batch_size", 8, "--device", "cpu", "--num_image_tiles", 4)
        shared += ("--use_average", config.recipe == "robust")
        run(
            *("stylegan2_pytorch.py", "--generate", "--num_generate", GENERATED, "--name", short, *shared),
            *("--results_dir", folder / "results", "--models_dir", folder / "models", "--fp16", False),
        )
        return name, short, rows

    start = time.time()
    with ThreadPoolExecutor(config.jobs) as pool:
        trained = list(pool.map(one, OPTIONS.items()))
    print(f"Trained in {time.time() - start:.0f} s")

    def evaluated(name):
        short = name.split()[0]
        generated = (
            folder / "results" / short / "generated" / "model_1" if name in OPTIONS else folder / "other"
        )
        report = folder / "reports" / short
        flags = {"real": folder / "unseen", "generated": generated, "output": report, "embedding": "random"}
        flags |= {"bootstrap": 200, "metrics": "md,anatomy", "device": "cpu"}
        run("MedicalNet/evaluation.py", *flags_of(flags))
        return json.loads((report / "metrics.json").read_text(encoding="utf-8"))["metrics"]

    reports = {"other phantoms": evaluated("other phantoms")}  # fills the cache of the real ones
    with ThreadPoolExecutor(config.jobs) as pool:
        reports |= dict(zip(OPTIONS, pool.map(evaluated, OPTIONS), strict=True))
    print_table(config, {name: rows for name, _, rows in trained}, reports)


def print_table(config, trained, reports):
    """Print the table of {option: rows} and {option: metrics}."""
    memory = {name: peak_memory(config, flags) for name, flags in OPTIONS.items()}
    times = step_times(config)
    columns = ("FD-random-volume", "density-random", "W1-vessel-volume-ml")
    print("| option | D, last 100 | G, last 100 | time | memory | " + " | ".join(columns) + " |")
    print("|---" * (5 + len(columns)) + "|")
    for name, metrics in reports.items():
        cells = ["", "", "", ""]
        if name in trained:
            rows = trained[name]
            cells = [f"{rows[c][-100:].mean():.2f} ± {rows[c][-100:].std():.2f}" for c in "DG"]
            cells.append(f"{times[name] / times['plain']:.2f}")
            cells.append(f"{memory[name] / memory['plain']:.2f}")
        for column in columns:
            low, high = metrics[column]["interval_95"] or metrics[column]["spread_95"]
            cells.append(f"{metrics[column]['value']:.3g} [{low:.3g}, {high:.3g}]")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\nplain: {times['plain']:.3f} s a step without penalty, {memory['plain']:.0f} MiB")


def load(folder, name):
    """Volumes of a class, scaled as training scales them. Shapes: -> (N, Z, X, Y)"""
    return np.stack([collection.read_volume(p)[0][0] for p in sorted((folder / name).glob("*.nii.gz"))])


class Judge:
    """Says the class of a volume: a small convolutional network, trained on the phantoms of known class.

    How bright the mean places of A1 and Pcom are does not tell: the circles vary too much.

    Args:
        classes: {name: volumes (N, Z, X, Y)}.
        epochs: Passes over the volumes.
    """

    def __init__(self, classes, epochs=16):
        torch.manual_seed(0)
        self.names = list(classes)
        x = self.prepare(np.concatenate(list(classes.values())))
        y = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(v) for v in classes.values()]))
        layers = []
        for channels in ((1, 16, (1, 2, 2)), (16, 32, 1), (32, 48, 2), (48, 64, 1)):
            *widths, stride = channels
            layers += [
                nn.Conv3d(*widths, 3, stride, padding=1, bias=False),
                nn.BatchNorm3d(widths[1]),
                nn.ReLU(),
            ]
        head = [
            nn.AdaptiveAvgPool3d((2, 3, 3)),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 18, len(classes)),
        ]
        self.network = nn.Sequential(*layers, *head)
        steps = epochs * (len(x) // 32)
        optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for step in tqdm(range(steps), "Training the judge"):
            if step % (len(x) // 32) == 0:
                order = torch.randperm(len(x))
            chosen, order = order[:32], order[32:]
            batch = x[chosen].flip(3) if step % 2 else x[chosen]
            batch = batch.roll(torch.randint(-2, 3, (2,)).tolist(), (3, 4))
            loss = F.cross_entropy(self.network(batch), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.network.eval()

    @staticmethod
    def prepare(volumes):
        """The middle three quarters in the plane, as training scales volumes. Shapes: -> (N, 1, Z, X', Y')"""
        edge = volumes.shape[-1] // 8
        x = torch.from_numpy(volumes)[:, None, :, edge:-edge, edge:-edge]
        low, high = x.amin((1, 2, 3, 4), keepdim=True), x.amax((1, 2, 3, 4), keepdim=True)
        return (x - low) / (high - low)

    @torch.no_grad()
    def __call__(self, volumes):
        """{class: share of the volumes}."""
        said = self.network(self.prepare(volumes)).argmax(1)
        return {name: float((said == n).float().mean()) for n, name in enumerate(self.names)}


def conditional(config, folder):
    """Train for three classes and print which class unseen phantoms and generated volumes look of."""
    phantoms(folder / "train", 1200, 1, "--classes")
    phantoms(folder / "unseen", 150, 2, "--classes")
    rows = train(config, folder, "classes", "--labels", "folders")
    print(
        f"D {rows['D'][-100:].mean():.2f}, G {rows['G'][-100:].mean():.2f}, last 100 of {config.steps} steps"
    )
    path, average = runs.find_checkpoint(folder / "models" / "classes"), config.recipe == "robust"
    model = sg.ModelLoader(checkpoint=path, device="cpu", use_average=average)
    measure = Judge({name: load(folder / "train", name) for name in model.class_names})
    print("| volumes | class | " + " | ".join(model.class_names) + " |\n" + "|---" * 5 + "|")
    for name in model.class_names:
        print_shares("unseen phantoms", name, measure(load(folder / "unseen", name)))
    sheets = []
    for name in model.class_names:
        seeds, made = range(64), []
        for start in seeds[::8]:
            chosen = seeds[start : start + 8]
            z, noise = parallel.batch_inputs(chosen, model.latent_dim, model.shape)
            w = model.noise_to_styles(z, 1.0, model.labels_of(chosen, name))
            made.append(model.styles_to_images_ext_noise(w, noise))
        made = torch.cat(made)
        print_shares("generated", name, measure(made[:, 0].numpy()))
        sheets.append(pictures.contact_sheet(made[:12], model.affine, 6))
    pictures.save_picture(np.concatenate(sheets), folder / "classes.png", smallest=1)
    print(f"{folder / 'classes.png'} shows 12 volumes of each class, in this order")


def print_shares(kind, name, shares):
    """A line of the table."""
    print(f"| {kind} | {name} | " + " | ".join(f"{share:.2f}" for share in shares.values()) + " |")


def main(argv=None):
    """The command line."""
    config = parse_cli(OptionsConfig, argv)
    with one_line_errors():
        parallel.prepare_process(config.device)
        folder = Path(config.output).resolve()
        if (folder / "results").exists() and not config.classes:
            raise ValueError(f"--output {folder} exists: give a new folder.")
        folder.mkdir(parents=True, exist_ok=True)
        conditional(config, folder) if config.classes else compare(config, folder)


if __name__ == "__main__":
    main()
