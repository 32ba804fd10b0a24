"""Generate volumes from a trained 3D StyleGAN2, each re-creatable from the file beside it.

    python CoW_generator.py                                  the settings below: the model that comes along
    python CoW_generator.py --mode interpolation --seeds 3,8 --steps 30
    python CoW_generator.py --recreate generated/normal/seed000042.json
    python CoW_generator.py --view generated/normal

Edit the settings below, or pass them as flags: a flag wins. Settings of your own, in lines like those below,
can stand in a file that no update of this program touches: --settings mine.py. Sections: settings,
configuration, recipes, modes, rendering, pictures, projection, entry points.

A volume is a function of its recipe (which style, which noise, which truncation) and of the checkpoint. A
mode is a list of recipes; one loop renders them, in batches of any size, on any number of processes.
"""

import ast
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from volumetric import generation
from volumetric.cli import (
    UserError,
    check_device_name,
    check_fields,
    one_line_errors,
    option,
    parse_cli,
)
from volumetric.collection import check_array, read_volume
from volumetric.dicom_writing import KINDS
from volumetric.files import (
    atomic_path,
    by,
    file_digest,
    load_with_header,
    naming,
    read_json,
    reading,
    save_nifti,
    write_json,
)
from volumetric.generation import DRAWN_PER_KEPT, SHOWN, Drawn, Item, Writer, full_name
from volumetric.geometry import affine_of, same_spacing, spacing_of, turn
from volumetric.parallel import Group, device_random, latent_of, prepare_process, process_group, volume_inputs
from volumetric.pictures import (
    annotated,
    enlarged,
    plane_views,
    save_curve,
    save_gif,
    save_picture,
    sheet_of,
)
from volumetric.runs import find_checkpoint
from volumetric.sidecars import write_trained_on
from volumetric.viewer import write_view

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import stylegan2_pytorch as sg
from MedicalNet.acceptance import (
    Gate,
    check_gate,
    marked,
    parse_conditions,
    refuse_too_few,
    told,
)

# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Settings                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

# normal, stochastic_variation, interpolation, style_mixing, truncation or projection
mode = "normal"
# volumes (normal), styles to vary or truncate, pairs to interpolate, edge of the mixing grid
num_generate = 4
# first seed
seed = 0
# folder that holds models/<model_folder_name>/model_<n>.pt
top_dir = "."
# folder that holds <model_folder_name>/model_<n>.pt, as --models_dir of the training; None is top_dir/models
models_dir = None
# name of the run; None takes the model that comes with this program, which knows phantoms
model_folder_name = None
# number n of the checkpoint, -1 for the newest
model_from_epoch = -1
# class of the volumes; for interpolation also two, "a,b"; None draws them as often as in training
label = None
# 1 is no truncation, smaller is more typical and less varied
truncation_psi = 1.0
# a sub-folder with the mode's name is made in it
save_directory = "generated"
# NIfTI file whose affine the volumes get; None takes the training volumes' affine
template_path = None
# volumes of an interpolation or of a truncation sweep
steps = 20
# noises for each style (stochastic_variation)
num_stochastic_variation = 5
# interpolate between styles w (linearly) rather than latents z (spherically)
interpolate_styles = False
# stochastic_variation of the style in style_npy_path
load_from_style = False
# a *_style.npy file, as generation and projection write them
style_npy_path = None


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Configuration                                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


MOST_VOLUMES = 10**6  # of one command
SHIPPED = Path(sg.__file__).parent / "sample_data" / "phantom_model.pt"
MODES = {
    "normal": "a volume for each seed",
    "stochastic_variation": "one style, several noises",
    "interpolation": "the way from seed to seed",
    "style_mixing": "coarse style by row, fine style by column",
    "truncation": "from the mean style to none",
    "projection": "the nearest to a given volume",
}


@dataclass(kw_only=True)
class GenerateConfig:
    """Generate volumes from a trained 3D StyleGAN2."""

    mode: str = option(
        mode,
        "What is generated.",
        choices=MODES,
    )
    num_generate: int = option(
        num_generate,
        "Volumes (normal), styles to vary or truncate, pairs to interpolate, edge of the grid.",
        least=1,
        most=MOST_VOLUMES,
    )
    seed: int = option(seed, "First seed; the following are seed + 1, seed + 2, ...", least=0)
    seeds: str | None = option(None, "Seeds in place of seed and num_generate, for example 0-99,205.")
    accept: str | None = option(
        None,
        "Conditions that volumes must pass, for example 'components<=3, vessel_ml 0.8..2.5' (mode normal): "
        "seeds are drawn from seed on until num_generate have passed.",
    )
    most: int | None = option(
        None,
        "Volumes drawn at most for --accept; None is four times num_generate.",
        least=1,
        most=MOST_VOLUMES,
    )
    top_dir: str = option(top_dir, "Folder that holds models/<model_folder_name>/model_<n>.pt.")
    models_dir: str | None = option(
        models_dir, "Folder that holds <model_folder_name>/model_<n>.pt; None is top_dir/models."
    )
    model_folder_name: str | None = option(
        model_folder_name, "Name of the run; None takes the phantom model that comes with this program."
    )
    model_from_epoch: int = option(
        model_from_epoch, "Number n of the checkpoint, -1 for the newest.", least=-1
    )
    checkpoint: str | None = option(
        None, "Checkpoint file in place of the three settings before, the original's included.", file=True
    )
    image_depth: int | None = option(
        None, "Axial slices, for a checkpoint of the original that does not state them."
    )
    use_average: bool = option(
        True, "Use the averaged networks SE and GE; False takes the current ones, S and G."
    )
    label: str | None = option(
        label,
        "Class of the volumes; two, for example a,b, to interpolate from one to the other. None draws a "
        "class for each seed, as often as it was shown in training.",
    )
    truncation_psi: float = option(
        truncation_psi, "Truncation psi in [0, 1]; 1 is no truncation.", least=0, most=1
    )
    save_directory: str = option(
        save_directory, "Folder for the results, in a sub-folder with the mode's name.", folder=True
    )
    template_path: str | None = option(
        template_path,
        "NIfTI file whose affine the volumes get; None takes the training volumes' affine.",
        file=True,
    )
    intensity_range: tuple | None = option(None, "Two grey values that 0 and 1 become; None keeps [0, 1].")
    steps: int = option(steps, "Volumes of an interpolation or truncation sweep.", least=1, most=MOST_VOLUMES)
    num_stochastic_variation: int = option(
        num_stochastic_variation, "Noises for each style.", least=1, most=MOST_VOLUMES
    )
    interpolate_styles: bool = option(
        interpolate_styles, "Interpolate between styles w rather than latents z."
    )
    load_from_style: bool = option(load_from_style, "Vary the style in style_npy_path.")
    style_npy_path: str | None = option(style_npy_path, "A *_style.npy file.", file=True)
    volume_format: str = option("nii.gz", "Of the volumes.", choices=("nii.gz", "nii"))
    dicom: str | None = option(None, "Write every volume as DICOM too.", choices=KINDS)
    picture_format: str = option("png", "Of the pictures; none makes none.", choices=("png", "jpg", "none"))
    batch_size: int | None = option(
        None, "Volumes at a time, None for 8 on a GPU and 2 on a CPU; halves itself when memory is short."
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name)
    amp: bool = option(
        False, "Generate with mixed precision (bfloat16): faster, equal to about 1 % of the range only."
    )
    target: str | None = option(None, "NIfTI volume to project (mode projection).", file=True)
    projection_steps: int = option(
        600, "Steps of the projection, the last third of them with one style per block."
    )
    projection_noise: bool = option(
        True, "Search the noise too; False searches the style alone, with the noise of `seed`."
    )
    medicalnet_weights: str | None = option(
        None, "MedicalNet ResNet-10 weights; adds its features to the loss of the projection.", file=True
    )
    recreate: str | None = option(None, "Sidecar .json of a volume to render again and compare.", file=True)
    settings: str | None = option(
        None, "File of settings of your own, lines name = value as at the top of this program.", file=True
    )
    view: str | None = option(
        None, "Folder of volumes, generated or not, into which view.html is written: a page that shows them."
    )
    replicas: str | None = option(
        None,
        "replicas.json of trust/replicas.py on the volumes of --view; None looks for it there and above.",
        file=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.intensity_range is not None:
            low_high = self.intensity_range
            if (
                len(low_high) != 2
                or not all(isinstance(v, int | float) for v in low_high)
                or low_high[0] >= low_high[1]
            ):
                raise UserError(f"--intensity_range must be two numbers, low before high, got {low_high}.")
        if self.view is not None and self.recreate is not None:
            raise UserError("--view and --recreate are two commands: give one of them.")
        if self.replicas is not None and self.view is None:
            raise UserError("--replicas needs --view DIR, the folder of the volumes that it looked at.")
        if self.models_dir is not None and self.model_folder_name is None:
            raise UserError("--models_dir needs --model_folder_name, the name of a run in it.")
        if self.load_from_style and (self.mode != "stochastic_variation" or self.style_npy_path is None):
            raise UserError("--load_from_style needs --mode stochastic_variation and --style_npy_path FILE.")
        if (self.mode == "projection") != (self.target is not None):
            raise UserError(
                "--mode projection needs --target FILE, the volume to project, and no other mode does."
            )
        check_gate(self)
        volumes = {"stochastic_variation": self.num_stochastic_variation, "interpolation": self.steps}
        volumes |= {"style_mixing": self.num_generate, "truncation": self.steps}
        number = volumes.get(self.mode, 1) * len(self.seed_list(self.num_generate))
        if number > MOST_VOLUMES:
            raise UserError(f"--mode {self.mode} would make {number} volumes, at most {MOST_VOLUMES}.")

    def seed_list(self, count: int) -> list[int]:
        """The seeds asked for: those of `seeds`, or `count` seeds from `seed` on."""
        return (
            parse_seeds(self.seeds) if self.seeds is not None else list(range(self.seed, self.seed + count))
        )

    @property
    def folder(self) -> Path:
        """Folder of this mode's results."""
        return Path(self.save_directory) / self.mode


def with_settings(words: Sequence[str]) -> Sequence[str]:
    """Words of a command line with the flags of its --settings, which other flags come before.

    Raises:
        UserError: The file cannot be read, or has something else than lines `name = value`.
    """
    plain = " ".join(map(str, words)).replace("=", " ").split()
    if "--settings" not in plain or plain[-1] == "--settings":
        return words
    given = {word.removeprefix("--").replace("-", "_") for word in plain if word.startswith("--")}
    path = Path(plain[plain.index("--settings") + 1])
    with reading(path, "each line must be name = value, as in CoW_generator.py"):
        lines: Any = ast.parse(path.read_text(encoding="utf-8")).body
        values = {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    own = {name: value for name, value in values.items() if value is not None and name not in given}
    return [*words, *(f"--{name}={value}" for name, value in own.items())]


def parse_seeds(text: str) -> list[int]:
    """'0-3,205' -> [0, 1, 2, 3, 205]; a UserError for anything else, or a seed twice."""
    seeds = []
    for part in text.replace(" ", "").strip("()[]").rstrip(",").split(","):
        first, dash, last = part.partition("-")
        if not re.fullmatch("[0-9]{1,15}(-[0-9]{1,15})?", part) or (dash and int(first) > int(last)):
            raise UserError(f"--seeds must be like 0-99,205, got {text!r}.")
        if len(seeds) + int(last or first) - int(first) >= MOST_VOLUMES:
            raise UserError(f"--seeds {text} are more than {MOST_VOLUMES}: give fewer at a time.")
        seeds += range(int(first), int(last or first) + 1)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text} names a seed twice.")
    return seeds


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Recipes                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(frozen=True)
class Recipe:
    """All that a volume depends on beside the checkpoint, in JSON's types.

    Args:
        name: Name of its files.
        style: Where w comes from: {seed}, {slerp: [a, b], t}, {lerp: [a, b], t}, {file, sha256} or
            {mix: [coarse, fine], crossover}; a, b, coarse and fine are seeds. For a model with classes also
            {labels: [name]}, or the names for both seeds.
        noise: {seed, variation}, where variation 0 is the seed's own noise, or {file, sha256}.
        truncation_psi: Truncation psi; a style from a file is used as it is.
        position: Place in the sequence or grid, for people.
    """

    name: str
    style: dict
    noise: dict
    truncation_psi: float
    position: dict

    @property
    def caption(self) -> str:
        """What a picture says of the volume: its seeds and classes, and what varies."""
        style, noise = self.style, self.noise
        match style:
            case {"mix": [coarse, fine]}:
                told = f"coarse {coarse} fine {fine}"
            case {"t": t}:
                told = f"t {t:.2f}"
            case _:
                told = f"seed {noise['seed']}" if "seed" in noise else self.name
                told += f" noise {noise['variation']}" if noise.get("variation") else ""
        classes = " to ".join(dict.fromkeys(style.get("labels", ())))
        psi = f"psi {self.truncation_psi:.2f}" if self.truncation_psi != 1 else ""
        return " ".join(part for part in (told, classes, psi) if part)

    def style_for(self, model: sg.ModelLoader) -> Tensor:
        """w of every block, on the CPU. Shapes: -> (L, latent_dim)"""
        names = self.style.get("labels", [None])
        first, last = names[0], names[-1]
        match self.style:
            case {"file": path}:
                return read_style(path, model)
            case {"mix": [coarse, fine], "crossover": crossover}:
                styles = self.w_of(coarse, first, model), self.w_of(fine, last, model)
                return sg.mix_styles(*styles, model.G.num_layers, crossover)[0]
            case {"lerp": [a, b], "t": t}:
                w = torch.lerp(self.w_of(a, first, model), self.w_of(b, last, model), t)
            case {"slerp": [a, b], "t": t}:
                ends = latent_of(a, model.latent_dim), latent_of(b, model.latent_dim)
                z = sg.slerp(*ends, torch.tensor(t))
                w = self.mapped(z, first, model)
                w = w if last == first else torch.lerp(w, self.mapped(z, last, model), t)
            case _:
                w = self.w_of(self.style["seed"], first, model)
        return sg.same_style(w, model.G.num_layers)[0]

    def w_of(self, seed: int, label: str, model: sg.ModelLoader) -> Tensor:
        """w of a seed and a class, truncated. Shapes: -> (1, latent_dim)"""
        return self.mapped(latent_of(seed, model.latent_dim), label, model)

    def mapped(self, z: Tensor, label: str, model: sg.ModelLoader) -> Tensor:
        """w of a latent and a class, truncated. Shapes: (latent_dim,) -> (1, latent_dim)"""
        labels = None if label is None else model.labels_of([0], label)
        return model.noise_to_styles(z[None], self.truncation_psi, labels).cpu()

    def noise_for(self, model: sg.ModelLoader) -> Tensor:
        """The noise, on the CPU. Shapes: -> (Z, S, S, 1)"""
        if "file" in self.noise:
            with reading(self.noise["file"]):
                noise = torch.from_numpy(np.load(self.noise["file"], allow_pickle=False))
                return noise[0].view(*model.shape, 1)
        seed, variation = self.noise["seed"], self.noise["variation"]
        if variation == 0:
            return volume_inputs(seed, model.latent_dim, model.shape)[1]
        return torch.rand(*model.shape, 1, generator=device_random("cpu", seed, variation))


def read_style(path: Path | str, model: sg.ModelLoader) -> Tensor:
    """w of every block from a *_style.npy file of this program or the original. Shapes: -> (L, latent_dim)"""
    with reading(path, "give a *_style.npy file"):
        style = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        if not style.isfinite().all():
            raise UserError("has NaN or Inf: make it again")
    layers = model.G.num_layers
    if style.shape in ((model.latent_dim,), (1, model.latent_dim)):
        return sg.same_style(style.reshape(1, -1), layers)[0]
    if style.shape[-2:] == (layers, model.latent_dim) and style.numel() == layers * model.latent_dim:
        return style.reshape(layers, -1)
    raise UserError(
        f"{path} has shape {tuple(style.shape)}, expected (1, {model.latent_dim}) or "
        f"(1, {layers}, {model.latent_dim}): it belongs to another model."
    )


class RecipeWriter(Writer):
    """Draws and writes the volumes of recipes, with their styles and noise in the folder style_and_noise.

    Args:
        model: ModelLoader.
        folder: Folder of the volumes.
        amp: Draw with mixed precision (bfloat16).
        settings: Of `generation.Writer`.
    """

    model: sg.ModelLoader

    program, bytes_per_voxel = "CoW_generator", 8.8

    def __init__(self, model: sg.ModelLoader, folder: Path | str, amp: bool = False, **settings: Any) -> None:
        super().__init__(
            model, folder, "--save_directory", precision="bfloat16" if amp else "float32", **settings
        )
        self.amp = amp

    def files_of(self, item: Item) -> list[Path]:
        """Those of the volume, and its style and noise."""
        arrays = [self.folder / f"style_and_noise/{item.name}_{kind}.npy" for kind in ("style", "noise")]
        return [*super().files_of(item), *arrays]

    def folders(self, items: Sequence[Item]) -> set[Path]:
        """Those of volumes, and that of styles and noise."""
        return super().folders(items) | {self.folder / "style_and_noise"}

    def draw(self, items: Sequence[Item]) -> Iterator[Drawn]:
        """The volumes of some items, with their styles (L, latent_dim) and noise (Z, S, S, 1)."""
        styles = torch.stack([item.source.style_for(self.model) for item in items])
        noise = torch.stack([item.source.noise_for(self.model) for item in items])
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.amp):
            return map(Drawn, self.model.render(styles, noise), zip(styles, noise, strict=True))

    def write_more(self, item: Item, drawn: Drawn) -> dict[str, Any]:
        """Style and noise, for people and for --style_npy_path."""
        style, noise = drawn.more
        style, noise = style.numpy(), noise.numpy()
        same, names = bool((style == style[0]).all()), {}
        for kind, array in {"style": style[:1] if same else style[None], "noise": noise[None]}.items():
            names[kind] = f"style_and_noise/{item.name}_{kind}.npy"
            with atomic_path(self.folder / names[kind]) as part:
                np.save(part, array)
        return names

    def make(
        self, recipes: Sequence[Recipe], batch_size: int | None = None, group: Group | None = None
    ) -> list[Item]:
        """Draw and write the volumes of recipes that are not there yet; returns the items of all."""
        items = list(map(item_of, recipes))
        self.write_all(items, self.draw, batch_size, group)
        return items


def item_of(recipe: Recipe) -> Item:
    """Item of a Recipe."""
    about = {"truncation_psi": recipe.truncation_psi, "position": recipe.position}
    record = {"recipe": asdict(recipe)}
    return Item(
        recipe.name,
        recipe,
        recipe.caption,
        record,
        {"seed": recipe.noise.get("seed"), **about},
    )


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Modes                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def file_source(path: Path | str) -> dict[str, str]:
    """Style or noise from a file, in a recipe: the file and its content."""
    return {"file": str(Path(path).resolve()), "sha256": file_digest(path)}


def classes_of(config: GenerateConfig, model: sg.ModelLoader, *seeds: int) -> dict[str, list[str]]:
    """What a style says of its classes: {} for a model without, else {labels: a name for every seed}.

    Raises:
        UserError: The model has no such class.
    """
    names = label_names(config, model)
    if names is None:
        drawn = model.labels_of(seeds)
        return {} if drawn is None else {"labels": [model.class_names[c] for c in drawn]}
    if len(names) > 1 and config.mode != "interpolation":
        raise UserError(
            f"--label {config.label} gives two classes, which --mode interpolation alone can use."
        )
    return {"labels": [names[0], names[-1]][: len(seeds)]}


def label_names(config: GenerateConfig, model: sg.ModelLoader) -> list[str] | None:
    """The one or two names of `--label`, checked; None without the flag."""
    if config.label is None:
        return None
    names = [config.label] if config.label in model.class_names else config.label.split(",")
    for name in names:
        model.labels_of([0], name)
    if len(names) > 2:
        raise UserError(f"--label {config.label} gives {len(names)} classes, expected one or two.")
    return names


def plan_normal(config: GenerateConfig, model: sg.ModelLoader) -> list[Recipe]:
    """One volume for each seed."""
    seeds = config.seed_list(config.num_generate)
    return [
        Recipe(
            name=full_name(f"seed{seed:06d}", config.truncation_psi, config.label),
            style={"seed": seed, **classes_of(config, model, seed)},
            noise={"seed": seed, "variation": 0},
            truncation_psi=config.truncation_psi,
            position={"index": i, "of": len(seeds)},
        )
        for i, seed in enumerate(seeds)
    ]


def plan_stochastic_variation(config: GenerateConfig, model: sg.ModelLoader) -> list[Recipe]:
    """For each style, several noises; the style of each seed, or that of a file."""
    if config.load_from_style:
        path = Path(str(config.style_npy_path))
        read_style(path, model)
        seed = config.seed_list(1)[0]
        base = Recipe(
            name=path.stem.removesuffix("_style"),
            style=file_source(path),
            noise={"seed": seed, "variation": 0},
            truncation_psi=config.truncation_psi,
            position={},
        )
        bases = [base]
    else:
        bases = plan_normal(config, model)
    number = config.num_stochastic_variation
    return [
        replace(
            base,
            name=f"{base.name}_noise{variation:03d}",
            noise=base.noise | {"variation": variation},
            position={"series": base.name, "index": variation, "of": number},
        )
        for base in bases
        for variation in range(number)
    ]


def plan_interpolation(config: GenerateConfig, model: sg.ModelLoader) -> list[Recipe]:
    """From each seed to the next, with the noise of the first: spherical in z, or linear in w."""
    kind = "lerp" if config.interpolate_styles else "slerp"
    seeds = config.seed_list(config.num_generate + 1)
    if len(seeds) == 1 and len(label_names(config, model) or ()) == 2:
        seeds = 2 * seeds  # the class alone changes
    if len(seeds) < 2 or config.steps < 2:
        raise UserError("--mode interpolation needs two seeds, or one and two classes, and --steps 2.")
    recipes = []
    for a, b in itertools.pairwise(seeds):
        series = full_name(f"{kind}{a:06d}-{b:06d}", config.truncation_psi, config.label)
        classes = classes_of(config, model, a, b)
        for i, t in enumerate(np.linspace(0, 1, config.steps)):
            recipes.append(
                Recipe(
                    name=f"{series}_frame{i:04d}",
                    style={kind: [a, b], "t": float(t), **classes},
                    noise={"seed": a, "variation": 0},
                    truncation_psi=config.truncation_psi,
                    position={"series": series, "index": i, "of": config.steps},
                )
            )
    return recipes


def plan_style_mixing(config: GenerateConfig, model: sg.ModelLoader) -> list[Recipe]:
    """A grid: the row's seed gives the first half of the blocks their style, the column's seed the others."""
    seeds = config.seed_list(config.num_generate)
    crossover = model.G.num_layers // 2
    return [
        Recipe(
            name=full_name(f"coarse{row:06d}_fine{column:06d}", config.truncation_psi, config.label),
            style={"mix": [row, column], "crossover": crossover, **classes_of(config, model, row, column)},
            noise={"seed": row, "variation": 0},
            truncation_psi=config.truncation_psi,
            position={"row": i, "column": j, "of": len(seeds)},
        )
        for i, row in enumerate(seeds)
        for j, column in enumerate(seeds)
    ]


def plan_truncation(config: GenerateConfig, model: sg.ModelLoader) -> list[Recipe]:
    """For each seed, truncation from psi = 0, the mean style, to psi = 1, no truncation."""
    values = np.linspace(0, 1, config.steps) if config.steps > 1 else [config.truncation_psi]
    return [
        Recipe(
            name=full_name(f"seed{seed:06d}_psi{psi:.3f}", label=config.label),
            style={"seed": seed, **classes_of(config, model, seed)},
            noise={"seed": seed, "variation": 0},
            truncation_psi=float(psi),
            position={
                "series": full_name(f"seed{seed:06d}", label=config.label),
                "index": i,
                "of": len(values),
            },
        )
        for seed in config.seed_list(config.num_generate)
        for i, psi in enumerate(values)
    ]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Rendering                                                                                                ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def open_model(config: GenerateConfig) -> sg.ModelLoader:
    """ModelLoader of the checkpoint, on this process's device."""
    path = config.checkpoint or SHIPPED
    if config.checkpoint is None and config.model_folder_name is not None:
        models = Path(config.models_dir or Path(config.top_dir) / "models")
        path = find_checkpoint(models / config.model_folder_name, config.model_from_epoch)
    if path == SHIPPED:
        print("The model that comes with this program: circles of Willis of phantoms, no patients.")
    names = ("device", "use_average", "image_depth")
    return sg.ModelLoader(checkpoint=path, **{name: getattr(config, name) for name in names})


def writer_of(config: GenerateConfig, model: sg.ModelLoader, affine: np.ndarray) -> RecipeWriter:
    """RecipeWriter of the mode's folder."""
    names = ("volume_format", "picture_format", "intensity_range", "dicom", "amp")
    settings = {name: getattr(config, name) for name in names}
    return RecipeWriter(model, config.folder, affine=affine, about={"mode": config.mode}, **settings)


def choose_affine(config: GenerateConfig, model: sg.ModelLoader) -> np.ndarray:
    """Affine of the template, or of the training volumes; another shape of the template is only warned of."""
    if config.template_path is None:
        return model.affine
    with naming(f"--template_path {config.template_path}"):
        image, header = load_with_header(config.template_path, check_array)
        affine = affine_of(image, header)
    template, affine = turn(np.empty(image.shape[:3], np.bool_), affine, model.axes)
    if template.shape != model.array_shape:
        print(
            f"Warning: {config.template_path} has {by(template.shape)} voxels, the volumes "
            f"{by(model.array_shape)}: its affine is taken, its shape is not."
        )
    return affine


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Pictures                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def by_series(items: Sequence[Item]) -> dict[str, list[Item]]:
    """{series: items in their order}."""
    groups = {}
    for item in items:
        groups.setdefault(item.source.position.get("series", "all"), []).append(item)
    return groups


def picture_sheet(writer: RecipeWriter, items: Sequence[Item]) -> None:
    """normal and style_mixing: a contact sheet, of a large grid its first rows and columns."""
    if "row" not in items[0].source.position:
        writer.sheet(items)
        return
    edge = math.isqrt(SHOWN)
    shown = [i for i in items if max(i.source.position[n] for n in ("row", "column")) < edge]
    writer.sheet(shown, min(edge, items[0].source.position["of"]))


def picture_series(writer: RecipeWriter, items: Sequence[Item]) -> None:
    """Sequences: GIFs of axial middle slice and projection, a sheet, and what else the mode shows."""
    for series, members in by_series(items).items():
        volumes = np.stack([writer.read(item) for item in members])
        if writer.picture_format != "none":
            picture_sequence(writer, series, members, volumes)
        if "variation" in members[-1].source.noise and members[-1].source.noise["variation"]:
            picture_deviation(writer, series, volumes)
        if "t" in members[0].source.style:
            write_smoothness(writer.folder, series, volumes)


def picture_sequence(writer: RecipeWriter, series: str, items: Sequence[Item], volumes: np.ndarray) -> None:
    """A GIF of the axial middle slice, one of the projection, and a sheet of the first SHOWN projections."""
    views = [plane_views(volume, writer.affine) for volume in volumes]
    for name, index in (("axial", 0), ("axial_mip", 3)):
        frames = [
            enlarged(view[index], f"SYNTHETIC {item.caption}")
            for item, view in zip(items, views, strict=True)
        ]
        save_gif(frames, writer.folder / f"{series}_{name}.gif", 0.3 if len(frames) < 10 else 0.1)
    shown = zip(items[:SHOWN], views[:SHOWN], strict=True)
    tiles = [enlarged(view[3], item.caption) for item, view in shown]
    sheet = sheet_of(tiles, min(5, len(tiles)), "SYNTHETIC: projection along the body axis, R is right")
    save_picture(sheet, writer.folder / f"{series}_sheet.{writer.picture_format}")


def picture_deviation(writer: RecipeWriter, series: str, volumes: np.ndarray) -> None:
    """Voxel-wise standard deviation over the noises: a NIfTI, and a picture scaled to its stated maximum."""
    deviation = volumes.std(axis=0)
    save_nifti(deviation, writer.affine, writer.folder / f"{series}_deviation.{writer.volume_format}")
    if writer.picture_format == "none":
        return
    most = max(float(deviation.max()), 1e-12)
    told = f"SYNTHETIC {series}: deviation, black 0, white {most:.3f} of the range"
    picture = annotated(deviation / most, writer.affine, told, edge=256)
    save_picture(picture, writer.folder / f"{series}_deviation.{writer.picture_format}", 1)


def write_smoothness(folder: Path, series: str, volumes: np.ndarray) -> None:
    """How even the steps of a sequence are, printed and in a JSON file."""
    largest, mean = smoothness(volumes)
    print(
        f"{series}: from volume to volume it changes at most {largest / mean:.2f} times as much as on average"
    )
    figures = {"largest_step": largest, "mean_step": mean, "smoothness": largest / mean}
    write_json(folder / f"{series}_smoothness.json", figures)


def smoothness(volumes: np.ndarray) -> tuple[float, float]:
    """Largest and mean root-mean-square step between neighbours of a sequence (N, 1, Z, X, Y)."""
    steps = np.sqrt(np.square(np.diff(volumes, axis=0)).mean(axis=(1, 2, 3, 4)))
    return float(steps.max()), max(float(steps.mean()), 1e-12)


PLANS = {
    "normal": (plan_normal, picture_sheet),
    "stochastic_variation": (plan_stochastic_variation, picture_series),
    "interpolation": (plan_interpolation, picture_series),
    "style_mixing": (plan_style_mixing, picture_sheet),
    "truncation": (plan_truncation, picture_series),
}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Projection                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

STYLE_SAMPLES = 10000  # latents whose styles give the start and the scale of the search
LEARNING_RATE = 0.1
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps in which the learning rate rises and falls
STYLE_NOISE, STYLE_NOISE_UNTIL = 0.05, 0.75  # exploration: of the styles' deviation, and its end
NOISE_WEIGHT = 1.0  # of the regularisation of the noise, against an L1 in [0, 1]
NOISE_MEAN, NOISE_DEVIATION = 0.5, 12**-0.5  # of U[0, 1), which the generator was trained with


def regularity_of_noise(noise: Tensor) -> Tensor | float:
    """Correlation of a noise map with itself, shifted by one voxel, at several resolutions.

    Low for white noise, so that the image is not written into the noise (arXiv:1912.04958, Appendix D). In
    3D: three axes in place of two, pooled to 4 voxels in place of 8 pixels.

    Shapes: (1, 1, D, H, W), zero mean and unit variance -> scalar
    """
    total = 0.0
    while True:
        for axis in (2, 3, 4):
            total = total + (noise * noise.roll(1, dims=axis)).mean().square()
        if min(noise.shape[2:]) <= 4:
            return total
        noise = F.avg_pool3d(noise, 2) * 8**0.5  # the mean of 8 has an eighth of the variance


def multiscale_l1(volume: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference at full, half and quarter resolution, summed.

    Shapes: (1, 1, D, H, W), (1, 1, D, H, W) -> scalar
    """
    total = F.l1_loss(volume, target)
    for size in (2, 4):
        total = total + F.l1_loss(F.avg_pool3d(volume, size), F.avg_pool3d(target, size))
    return total


def feature_loss(weights: str, target: Tensor) -> Callable[[Tensor], Tensor]:
    """Function that gives the mean squared difference of MedicalNet features to those of `target`."""
    from MedicalNet.resnet import resnet10

    network = resnet10(weights).requires_grad_(False).to(target.device)

    def features(volume: Tensor) -> Tensor:  # (1, 1, Z, X, Y) -> (1, 512), standardised by the voxels above 0
        inside = volume > 0
        count = inside.sum().clamp_min(2)
        mean = (volume * inside).sum() / count
        variance = ((volume - mean) * inside).square().sum() / (count - 1)
        standard = (volume - mean) / (variance + 1e-8).sqrt()
        return network(standard.permute(0, 1, 3, 4, 2))  # array order (X, Y, Z)

    wanted = features(target)
    return lambda volume: F.mse_loss(features(volume), wanted)


def learning_rate_at(t: float) -> float:
    """Learning rate at share t of the steps: rises linearly, stays, falls as a cosine (Appendix D)."""
    ramp = min(1.0, (1 - t) / RAMP_DOWN)
    return LEARNING_RATE * (0.5 - 0.5 * math.cos(math.pi * ramp)) * min(1.0, t / RAMP_UP)


def search(
    model: sg.ModelLoader,
    target: Tensor,
    steps: int,
    seed: int = 0,
    features: Callable[[Tensor], Tensor] | None = None,
    search_noise: bool = True,
    label: str | None = None,
) -> tuple[Tensor, Tensor, list[tuple[int, float, float]]]:
    """Style and noise whose volume is nearest to a target (StyleGAN2, arXiv:1912.04958, Appendix D).

    Differs from the paper: L1 at three resolutions in place of LPIPS, MedicalNet features if weights are
    given; the last third of the steps has one style per block; all blocks share one noise, as G has it.

    Args:
        model: ModelLoader.
        target: (1, 1, Z, S, S) in [0, 1], on the model's device.
        steps: Number of steps.
        seed: Seed of the start and of the exploration.
        features: Further loss, a function of the volume.
        search_noise: Search the noise too, not the style alone.
        label: Class whose styles the search starts among; None takes all classes.

    Returns:
        styles (L, latent_dim), noise (Z, S, S, 1), both on the CPU, and rows (step, l1, loss) of the curve.
    """
    generator = device_random("cpu", seed)
    labels = model.labels_of(range(STYLE_SAMPLES), label)
    w = model.noise_to_styles(
        torch.randn(STYLE_SAMPLES, model.latent_dim, generator=generator), labels=labels
    )
    center = w.mean(dim=0, keepdim=True)
    deviation = (w - center).square().sum(dim=1).mean().sqrt()
    style = center.clone().requires_grad_()
    noise = torch.randn(1, 1, *model.shape, generator=generator).to(model.device)
    noise.requires_grad_(search_noise)
    layers, curve = model.G.num_layers, []
    optimizer = torch.optim.Adam([style, noise], betas=(0.9, 0.999))
    for step in tqdm(range(steps), "Projecting", unit="step"):
        t = step / steps
        if step == 2 * steps // 3:  # from one style for all blocks to one for each
            style = sg.same_style(style.detach(), layers).clone().requires_grad_()
            optimizer = torch.optim.Adam([style, noise], betas=(0.9, 0.999))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(t + 1 / steps)
        strength = deviation * STYLE_NOISE * max(0.0, 1 - t / STYLE_NOISE_UNTIL) ** 2
        explored = style + strength * torch.randn(style.shape, generator=generator).to(style.device)
        styles = explored if explored.ndim == 3 else sg.same_style(explored, layers)
        volume = model.G(styles, as_uniform(noise))
        loss = multiscale_l1(volume, target) + NOISE_WEIGHT * regularity_of_noise(noise)
        if features is not None:
            loss = loss + features(volume)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            noise.sub_(noise.mean()).div_(noise.std())
        curve.append((step, F.l1_loss(volume.detach(), target).item(), loss.item()))
    styles = style if style.ndim == 3 else sg.same_style(style, layers)
    return styles.detach()[0].cpu(), as_uniform(noise).detach()[0].cpu(), curve


def read_target(path: Path | str, model: sg.ModelLoader) -> tuple[np.ndarray, np.ndarray]:
    """A volume to be projected, along the axes that the model was trained along.

    Shapes: -> (1, Z, X, Y) float32 in [0, 1], its affine (4, 4)

    Raises:
        UserError: It cannot be used, or its voxels are of another size than the model's.
    """
    with naming(path):
        target, volume = read_volume(path, model.array_shape, model.axes)
        size = spacing_of(model.affine)
        if model.has_affine and not same_spacing(volume.spacing, size):
            raise UserError(
                f"has voxels of {by(volume.spacing.round(3))} mm, those of the model are of "
                f"{by(size.round(3))} mm: bring it there with preprocessing/conform.py"
            )
    return target, volume.affine


def as_uniform(noise: Tensor) -> Tensor:
    """The generator's noise from a map of unit variance. Shapes: (1, 1, D, H, W) -> (1, D, H, W, 1)"""
    return NOISE_MEAN + NOISE_DEVIATION * noise.movedim(1, -1)


def write_projection(
    config: GenerateConfig,
    name: str,
    both: dict[str, np.ndarray],
    affine: np.ndarray,
    curve: list[tuple[int, float, float]],
) -> None:
    """Pictures of a target beside its reconstruction, and of the way there.

    Args:
        both: {caption of the target: volume, caption of the reconstruction: volume}, (1, Z, X, Y) in [0, 1].
        affine: (4, 4), voxels to RAS mm.
        curve: (step, mean absolute difference, loss).
    """
    (told, target), (own, volume) = both.items()
    shown = {told: target, f"SYNTHETIC {own}": volume, "difference of the two": np.abs(volume - target)}
    rows = [annotated(array, affine, text, edge=256) for text, array in shown.items()]
    path = config.folder / f"{name}_target_result_difference.{config.picture_format}"
    save_picture(np.concatenate(rows), path, 1)
    picture = config.folder / f"{name}_curve.{config.picture_format}"
    save_curve([row[1] for row in curve], picture, "mean absolute difference")


def project(config: GenerateConfig, model: sg.ModelLoader) -> float:
    """mode projection: reconstruction, style and noise files, figure, curve and picture of the target.

    Returns:
        Final mean absolute difference in [0, 1].
    """
    path = Path(str(config.target))
    target, affine = read_target(path, model)
    name = f"{path.name.removesuffix('.gz').removesuffix('.nii')}_projection"
    arrays = config.folder / "style_and_noise"
    arrays.mkdir(parents=True, exist_ok=True)
    if (config.folder / f"{name}.json").exists():
        raise UserError(f"{config.folder / name}.json is there already: choose another --save_directory.")
    goal = torch.from_numpy(target)[None].to(model.device)
    features = feature_loss(config.medicalnet_weights, goal) if config.medicalnet_weights else None
    label = classes_of(config, model, config.seed).get("labels", [None])[0] if config.label else None
    styles, noise, curve = search(
        model, goal, config.projection_steps, config.seed, features, config.projection_noise, label
    )
    files = {kind: arrays / f"{name}_{kind}.npy" for kind in ("style", "noise")}
    np.save(files["style"], styles[None].numpy())
    np.save(files["noise"], noise[None].numpy())
    recipe = Recipe(
        name=name,
        style=file_source(files["style"]),
        noise=file_source(files["noise"]),
        truncation_psi=1.0,
        position={},
    )
    other = replace(recipe, noise={"seed": config.seed, "variation": 1})
    writer = writer_of(
        config, model, affine if config.template_path is None else choose_affine(config, model)
    )
    drawn, with_other_noise = writer.draw([item_of(recipe), item_of(other)])
    volume = drawn.volume
    l1 = F.l1_loss(volume, torch.from_numpy(target)).item()
    l1_other = F.l1_loss(with_other_noise.volume, torch.from_numpy(target)).item()
    source = {"target": str(path), "target_sha256": file_digest(path)}
    recipe = replace(recipe, position={**source, "l1": l1, "l1_with_other_noise": l1_other})
    write_trained_on(config.folder, model.trained_on, model.path)
    writer.write(item_of(recipe), drawn)
    with atomic_path(config.folder / f"{name}_curve.csv") as part:
        part.write_text(
            "step,l1,loss\n" + "".join(f"{s},{a:.6g},{b:.6g}\n" for s, a, b in curve), encoding="utf-8"
        )
    if config.picture_format != "none":
        write_projection(config, name, {f"target {path.name}": target, name: volume.numpy()}, affine, curve)
    print(
        f"mean absolute difference {l1:.4f} of the range, with another noise {l1_other:.4f}: {config.folder}"
    )
    return l1


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Entry points                                                                                             ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def recreate(config: GenerateConfig) -> float:
    """`--recreate`: render a volume again from its sidecar and say whether it is identical.

    Returns:
        Largest difference of a voxel, in [0, 1].

    Raises:
        UserError: The checkpoint is another, or the volume differs by more than rounding.
    """
    sidecar = Path(str(config.recreate))
    folder = sidecar.parent

    if "recipe" not in read_json(sidecar):  # the trainer's --generate wrote it
        settings = {name: getattr(config, name) for name in ("recreate", "checkpoint", "device")}
        return generation.recreate_volume(sg.TrainConfig(**settings), sg.open_generator)

    def draw(record: dict[str, Any], path: Path) -> Tensor:
        recipe, average = Recipe(**record["recipe"]), record["checkpoint"]["networks"] == "SE, GE"
        for kind in ("style", "noise"):
            if "file" in getattr(recipe, kind):  # the sidecar's own copy, wherever the folder is now
                own: Any = {kind: {"file": str(folder / record[kind])}}
                recipe = replace(recipe, **own)
        settings = {"use_average": average, "image_depth": record["model"]["image_depth"]}
        model = sg.ModelLoader(checkpoint=path, device=config.device, **settings)
        writer = RecipeWriter(model, folder, amp=record["precision"] == "bfloat16")
        return next(writer.draw([item_of(recipe)])).volume

    return generation.recreate(sidecar, RecipeWriter.program, draw, config.checkpoint)


def generate_accepted(config: GenerateConfig) -> Path:
    """`--accept`: draw seed after seed, and keep the volumes that pass until there are num_generate.

    Returns:
        Folder with the files.

    Raises:
        UserError: As `generate`, or fewer volumes pass; those are written.
    """
    with process_group() as group:
        if group.world > 1:
            raise UserError(
                f"--accept draws one seed after the other, got {group.world} processes: start one."
            )
        model, conditions = open_model(config), parse_conditions(str(config.accept))
        most = config.most or min(MOST_VOLUMES, DRAWN_PER_KEPT * config.num_generate)
        recipes = plan_normal(replace(config, num_generate=most, accept=None, most=None), model)
        items = [marked(item_of(recipe), conditions) for recipe in recipes]
        writer = writer_of(config, model, choose_affine(config, model))
        gate = Gate(writer, conditions, config.num_generate)
        record = gate.run(items, writer.draw, config.batch_size)
        writer.sheet(gate.kept)
        print("\n".join(told(record)))
        refuse_too_few(record, config.folder)
        print(f"{len(gate.kept)} volumes are in {config.folder}")
    return config.folder


def generate(config: GenerateConfig) -> Path:
    """Run one mode of a GenerateConfig.

    Returns:
        Folder with the files.

    Raises:
        UserError: The settings, the checkpoint, the template or earlier files do not fit.
    """
    if config.mode == "projection":
        with process_group() as group:
            if group.first:
                project(config, open_model(config))
        return config.folder
    if config.accept is not None:
        return generate_accepted(config)
    plan, picture = PLANS[config.mode]
    with process_group() as group:
        model = open_model(config)
        recipes = plan(config, model)
        writer = writer_of(config, model, choose_affine(config, model))
        items = writer.make(recipes, config.batch_size, group)
        if group.first:
            picture(writer, items)
        if group.first:
            print(f"{len(items)} volumes are in {config.folder}")
    return config.folder


def join_pairs(argv: Sequence[str]) -> Sequence[str]:
    """`--intensity_range LO HI` as one word, which Fire would take for two."""
    argv = list(argv)
    for i, word in enumerate(argv[:-2]):
        if word.replace("-", "_") == "__intensity_range":
            return [*argv[: i + 1], f"({argv[i + 1]},{argv[i + 2]})", *argv[i + 3 :]]
    return argv


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    with one_line_errors():
        words = with_settings(join_pairs(sys.argv[1:] if argv is None else argv))
    config = parse_cli(GenerateConfig, words)
    with one_line_errors("Interrupted. The same command continues; complete volumes are kept."):
        prepare_process(config.device)
        if config.view is not None:
            write_view(config.view, config.replicas)
        elif config.recreate is not None:
            recreate(config)
        else:
            generate(config)


if __name__ == "__main__":
    main()
