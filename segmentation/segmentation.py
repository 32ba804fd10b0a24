"""Train a 3D U-Net on volumes and their label maps, and label other volumes with it.

    python segmentation/segmentation.py --mode train --data volumes --labels labels --model segmenter.pt
    python segmentation/segmentation.py --mode predict --data others --model segmenter.pt --output predicted

or edit the settings below and run it. The network is MONAI's DynUNet, shaped as nnU-Net (Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z) would shape it: Dice and cross-entropy at several scales, patches that find
rare classes. Left and right are exchanged in voxels and labels together, or not at all. Sections:

    settings and configuration    every option
    network and patches           the U-Net, what a training step sees
    training                      the trainer, which volumetric.runs drives
    prediction                    sliding windows, both sides, confidence
    entry point

How files become cases is in cases.py. Inputs are never written to.
"""

import functools
import hashlib
import json
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

# Run as a script, this file would hide the package of its name.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from volumetric import __version__, parallel, runs, training
from volumetric.cli import (
    Continued,
    UserError,
    check_device_name,
    check_fields,
    one_line_errors,
    option,
    options_of,
    parse_cli,
)
from volumetric.collection import content_of_set, find_volumes
from volumetric.files import as_damaged, atomic_path, new_folder
from volumetric.names import names_in
from volumetric.parallel import host_random
from volumetric.tables import write_records

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from segmentation.cases import Classes, brought_to, in_order, pairs_among, read_cases, read_scan
from segmentation.labels import TABLES, save_labels
from segmentation.report import coloured

# Edit these, or pass them as flags; a flag wins.
# train or predict
mode = "train"
# folder of volumes
data = "volumes"
# folder of their label maps, files of the same names
labels = "labels"
# the trained network
model = "segmenter.pt"

MODES = {"train": "on data and labels", "predict": "label maps of data"}
WIDEST = 256  # channels of a stage, at most
SMALLEST = 4  # voxels to which an axis is halved
LARGEST_PATCH = (128, 128, 64)  # voxels, where --patch_size is left out
SUPERVISED = 3  # scales at which the network answers in training
RARE_SHARE = 0.67  # of the patches that are centred on a class, all classes alike
WARM_UP = 0.05  # of the steps, until the full rate
WEIGHT_DECAY = 1e-2
CLIP_NORM = 12.0  # of the gradients, as nnU-Net
OVERLAP = 0.5  # of the windows of a prediction
STREAM_CASES, STREAM_LOOK = range(2)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Configuration                                                                                            ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@dataclass(kw_only=True)
class SegmentationConfig(Continued):
    """Train a segmentation network, or predict with one.

    The same training command continues its run. Ctrl-C and SIGTERM save first, and end it with exit status
    130 or 143.
    """

    mode: str = option(mode, "What to do.", choices=MODES)
    data: str = option(data, "Folder of NIfTI volumes.")
    labels: str = option(labels, "Folder of their label maps, files of the same names; only to train.")
    split: str | None = option(
        None, "Table of preprocessing/split.py: its part `training` is trained on.", file=True
    )
    model: str = option(model, "File of the network: written by train, read by predict.")
    output: str | None = option(
        None, "Folder for the training's checkpoints and previews, or new one for the label maps."
    )
    table: str = option(
        "topcow2024", "Table of the ids; a trained network has its own.", choices=TABLES, kept=True
    )
    num_train_steps: int = option(2000, "Training steps.", kept=True)
    batch_size: int = option(2, "Patches in a step.", most=1024, kept=True)
    patch_size: tuple = option(
        (), "Voxels along X, Y and Z of a patch, a list; left out, by the volumes.", kept=True
    )
    width: int = option(16, "Channels of the first stage.", most=256, kept=True)
    learning_rate: float = option(2e-3, "Highest rate of AdamW.", most=1, kept=True)
    mirror: bool = option(
        True, "Exchange left and right, in volumes and labels, in training and prediction.", kept=True
    )
    fp16: bool = option(True, "Mixed precision.", kept=True)
    amp_dtype: str = option("auto", "Of mixed precision.", choices=("auto", "float16", "bfloat16"), kept=True)
    save_every: int = option(250, "Steps between checkpoints and previews.")
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>.", check=check_device_name, resumed=True)
    seed: int = option(0, "Seed of everything random.", least=0, kept=True)

    def __post_init__(self):
        check_fields(self)
        plain = all(type(n) is int and n >= SMALLEST for n in self.patch_size)
        if self.patch_size and (len(self.patch_size) != 3 or not plain):
            raise UserError(
                f"--patch_size must be three whole numbers from {SMALLEST} on, got {self.patch_size}."
            )

    @property
    def run(self):
        """Folder of a training's checkpoints and previews."""
        beside = Path(self.model).with_suffix("")
        return Path(self.output or beside.with_name(f"{beside.name}_training"))


KEPT = [name for name in options_of(SegmentationConfig, kept=True) if name != "patch_size"]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Network and patches                                                                                      ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def strides_for(patch):
    """Strides of the U-Net's stages: an axis is halved down to SMALLEST voxels. Shapes: (3,) -> [(3,)]"""
    strides, size = [(1, 1, 1)], list(patch)
    while max(size) >= 2 * SMALLEST:
        strides.append(tuple(2 if n >= 2 * SMALLEST else 1 for n in size))
        size = [n // s for n, s in zip(size, strides[-1], strict=True)]
    return strides


def fitting_patch(shape):
    """The smallest patch that the network can halve and that holds a shape, at most LARGEST_PATCH."""
    patch = []
    for n, most in zip(shape, LARGEST_PATCH, strict=True):
        halved, step = n, 1
        while halved >= 2 * SMALLEST and step < 16:
            halved, step = halved // 2, 2 * step
        patch.append(min(most, max(SMALLEST, -(-int(n) // step) * step)))
    return tuple(patch)


def build_network(classes, patch, width):
    """DynUNet for patches of a size.

    Shapes: (B, 1, X, Y, Z) -> (B, 1 + classes, X, Y, Z); in training (B, scales, 1 + classes, X, Y, Z)
    """
    from monai.networks.nets import DynUNet

    strides = strides_for(patch)
    if len(strides) < 3:
        raise UserError(f"--patch_size {patch} is too small: an axis of {4 * SMALLEST} voxels is needed.")
    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1 + len(classes.names),
        kernel_size=[3] * len(strides),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(WIDEST, width * 2**n) for n in range(len(strides))],
        norm_name=("INSTANCE", {"affine": True}),
        deep_supervision=len(strides) > 3,
        deep_supr_num=min(SUPERVISED, len(strides) - 2) if len(strides) > 3 else 1,
    )


def build_look(patch, number):
    """MONAI transform of {"image", "label"}, each (1, X, Y, Z): a patch as another scanner sees it, askew.

    Args:
        patch: Voxels, (3,).
        number: Of classes, with the background.
    """
    from monai import transforms as T

    both = ("image", "label")
    rare = [1.0, *(number - 1) * [RARE_SHARE / (1 - RARE_SHARE) / (number - 1)]]
    affine = {"rotate_range": 3 * [0.2], "scale_range": 3 * [0.15], "padding_mode": "border"}
    return T.Compose(
        [
            T.SpatialPadd(both, patch),
            T.RandCropByLabelClassesd(both, "label", patch, ratios=rare, num_classes=number, warn=False),
            T.RandAffined(both, prob=0.5, mode=("bilinear", "nearest"), **affine),
            T.RandBiasFieldd("image", prob=0.2, coeff_range=(0, 0.2)),
            T.RandGaussianNoised("image", prob=0.3, std=0.2),
            T.RandGaussianSmoothd("image", (0.4, 0.9), (0.4, 0.9), (0.4, 0.9), prob=0.2),
            T.RandScaleIntensityd("image", 0.25, prob=0.3),
            T.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )


def exchange_sides(tensor, order=None):
    """Left and right exchanged along X, and channels put in an order. Shapes: (..., X, Y, Z) -> the same"""
    tensor = tensor.flip(-3)
    return tensor if order is None else tensor[..., order, :, :, :]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Training                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Segmenter:
    """Network, optimiser and training step; `volumetric.runs.run` drives it.

    Args:
        config: SegmentationConfig.
        cases: [Case], all of one voxel size.
        spacing: That size, (3,) mm.
    """

    def __init__(self, config, cases, spacing):
        from monai.losses import DiceCELoss

        self.config, self.cases, self.spacing = config, in_order(cases), spacing
        self.classes = Classes(config.table)
        shape = np.median([case.image.shape for case in cases], axis=0)
        self.patch = tuple(config.patch_size) or fitting_patch(shape)
        self.device, self.group = parallel.choose_device(config.device), parallel.Group()
        self.amp_dtype = parallel.choose_amp_dtype(config.amp_dtype, self.device)
        if config.fp16:
            parallel.check_half_precision(self.amp_dtype, self.device)
        torch.manual_seed(config.seed)
        self.network = build_network(self.classes, self.patch, config.width).to(self.device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), weight_decay=WEIGHT_DECAY, fused=True)
        scaled = config.fp16 and self.amp_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        self.look = build_look(self.patch, 1 + len(self.classes.names))
        self.plan = runs.Plan(
            models=config.run / "models",
            results=config.run,
            num_train_steps=config.num_train_steps,
            save_every=config.save_every,
            preview_every=config.save_every,
            early_until=0,
            keep_checkpoints=2,
            volumes_per_step=config.batch_size,
            columns=("loss", "Dice"),
            shown=("loss", "Dice"),
            is_fixed=True,
        )
        self.step, self.reverts, self.best = 0, 0, None

    def autocast(self):
        """Mixed precision, if the run uses it."""
        return parallel.autocast(self.device, self.amp_dtype, self.config.fp16)

    def rate(self):
        """Learning rate of this step: up in WARM_UP of the steps, then down to 0 as a cosine."""
        done = self.step / self.config.num_train_steps
        fall = 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))
        return self.config.learning_rate * (min(1, (done + 1e-3) / WARM_UP) if done < WARM_UP else fall)

    def draw(self):
        """Patches of this step, a function of seed and step alone.

        Shapes: -> images (B, 1, X, Y, Z) float32, labels (B, 1, X, Y, Z) int64
        """
        key = (self.config.seed, self.reverts, self.step)
        rng = host_random(*key, STREAM_CASES)
        seeds = host_random(*key, STREAM_LOOK).integers(2**31, size=self.config.batch_size)
        images, maps = [], []
        for index, seed in zip(self.cases_of_step(), seeds, strict=True):
            case = self.cases[index]
            pair = {"image": torch.from_numpy(case.image)[None], "label": torch.from_numpy(case.labels)[None]}
            self.look.set_random_state(int(seed))
            (patch,) = self.look(pair)
            image, map_ = patch["image"].as_tensor(), patch["label"].as_tensor()
            if self.config.mirror and rng.random() < 0.5:
                other = torch.tensor(self.classes.other_side, dtype=torch.uint8)
                image, map_ = exchange_sides(image), other[exchange_sides(map_).long()]
            images.append(image)
            maps.append(map_)
        return torch.stack(images), torch.stack(maps).long()

    def cases_of_step(self):
        """Indices of the cases of this step: every case as often as any other, in an order of its epoch's."""
        first = self.step * self.config.batch_size
        places = range(first, first + self.config.batch_size)
        orders = {
            n: host_random(self.config.seed, n, STREAM_CASES).permutation(len(self.cases))
            for n in {place // len(self.cases) for place in places}
        }
        return [int(orders[p // len(self.cases)][p % len(self.cases)]) for p in places]

    def train_step(self, log):
        """One update of the network."""
        images, maps = self.draw()
        images, maps = parallel.to_device(images, self.device), parallel.to_device(maps, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        with self.autocast():
            answers = self.network(images)
        answers = answers.float().unbind(1) if answers.ndim == 6 else [answers.float()]
        weights = np.array([0.5**n for n in range(len(answers))])
        weights /= weights.sum()
        loss = sum(float(w) * self.loss(a, maps) for w, a in zip(weights, answers, strict=True))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        found = answers[0].detach().argmax(dim=1, keepdim=True)
        log.add(self.step, {"loss": loss.detach(), "Dice": dice_of_batch(found, maps)})
        self.step += 1

    def state(self):
        """All that the training needs to continue exactly."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in ("step", "reverts", "best")},
            "kept": self.kept() | {"device": self.config.device},
        }

    def kept(self):
        """What a continued training must have in common with its beginning."""
        same = {name: getattr(self.config, name) for name in KEPT}  # the patch as it is, not as it was asked
        digest = content_of_set(pairs_among(self.cases))
        return same | {"patch": list(self.patch), "trained_on": self.trained_on(), "data_digest": digest}

    def trained_on(self):
        """Contents of the volumes and of the label maps, sorted; see collection.py."""
        return sorted({of for case in self.cases for of in (case.identity.volume, case.identity.labels)})

    def load(self, state):
        """Take up the state of a checkpoint of the same training."""
        there, own = state["kept"], self.kept()
        if "data_digest" not in there:  # of an earlier version, which did not know whose a label map is
            del own["data_digest"]
        if "trained_on" not in there:  # of an earlier version, which knew volumes by their voxels as they are
            own["volumes"] = sorted(case.identity.former for case in self.cases)
            del own["trained_on"]
        for name, value in own.items():
            if there[name] != value:
                what = f"--{name} was {there[name]}"
                if name in ("volumes", "trained_on"):
                    what = "the volumes or the label maps are others"
                if name == "data_digest":
                    what = "volumes have other label maps or voxel sizes"
                raise UserError(f"is of another training ({what}): give another --model and --output.")
        runs.load_networks(self.network, state["network"])
        runs.load_optimizer(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.reverts, self.best = state["step"], state["reverts"], state["best"]

    def preview(self):
        """Truth and answer of the first cases, from above."""
        predictor, rows = self.predictor(), []
        for case in self.cases[:4]:
            found = predictor.probabilities(case.image).argmax(axis=0).astype(np.uint8)
            frame = np.diag([*self.spacing, 1])
            both = [coloured(self.classes.to_ids(one), frame) for one in (case.labels, found)]
            rows.append(np.concatenate(both, axis=1))
        wide = max(row.shape[1] for row in rows)
        rows = [np.pad(row, ((0, 4), (0, wide - row.shape[1]), (0, 0))) for row in rows]
        return {"truth-answer": np.concatenate(rows)}

    def predictor(self):
        """Predictor with the network as it is."""
        return Predictor(
            self.network, self.classes, self.patch, self.spacing, self.config.mirror, self.autocast
        )

    def save_model(self):
        """Write --model: what prediction needs, and which volumes it was trained on."""
        Path(self.config.model).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.config.model) as part:
            torch.save(
                {
                    "network": self.network.state_dict(),
                    "spacing": [float(n) for n in self.spacing],
                    **self.kept(),
                    "version": __version__,
                },
                part,
            )


def dice_of_batch(found, truth):
    """Dice of all vessels as one. Shapes: two of (B, 1, X, Y, Z) -> scalar"""
    one, other = found > 0, truth > 0
    return 2 * (one & other).sum() / (one.sum() + other.sum()).clamp_min(1)


def adopt_settings(config, source):
    """The configuration with what a training keeps of its beginning, by the checkpoint it goes on from."""
    with as_damaged("it is damaged or of another program", source):
        former = dict(runs.read_state(source, check=False)["kept"])
        former["patch_size"] = tuple(former["patch"])
    return training.adopt_settings(config, former, source, otherwise="or another --model and --output")


def train(config):
    """Train to num_train_steps or a signal, and write the model when all is done.

    Returns:
        The Segmenter.

    Raises:
        UserError: Cases cannot be used, or --model is there and of another training.
    """
    if Path(config.model).exists() and not runs.checkpoint_numbers(config.run / "models"):
        raise UserError(
            f"{config.model} is there, and no training of it in {config.run}: give another --model."
        )
    if runs.checkpoint_numbers(config.run / "models"):
        config = adopt_settings(config, runs.find_checkpoint(config.run / "models"))
    folders = {"data": config.data, "labels": config.labels}
    cases, spacing = read_cases(folders, Classes(config.table), split=config.split)
    segmenter = runs.run(Segmenter(config, cases, spacing))
    if segmenter.step >= config.num_train_steps:
        segmenter.save_model()
        print(f"{config.model} is trained on {len(cases)} volumes; its previews are in {config.run}.")
    return segmenter


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Prediction                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class Predictor:
    """A trained network that labels whole volumes.

    Args:
        network: Of `build_network`.
        classes: Classes.
        patch: Voxels of a window, (3,).
        spacing: Voxel size that the network knows, (3,) mm.
        mirror: Average the answers to the volume and to its mirror image, sides exchanged back.
        autocast: Function that opens the precision of its passes.
    """

    def __init__(self, network, classes, patch, spacing, mirror, autocast):
        self.network, self.classes, self.patch = network, classes, tuple(patch)
        self.spacing, self.mirror, self.autocast = np.array(spacing), mirror, autocast

    @torch.no_grad()
    def probabilities(self, image):
        """Probabilities of all classes, the background first.

        Shapes: (X, Y, Z) float32, standardised, of the network's voxel size -> (1 + classes, X, Y, Z) float32
        """
        device = next(self.network.parameters()).device
        x = torch.from_numpy(np.ascontiguousarray(image))[None, None].to(device)
        self.network.eval()
        try:
            found = self.answer(x)
            if self.mirror:
                found = (found + exchange_sides(self.answer(exchange_sides(x)), self.classes.other_side)) / 2
        finally:
            self.network.train()
        return found[0].cpu().numpy()

    def answer(self, x):
        """Softmax over sliding windows. Shapes: (1, 1, X, Y, Z) -> (1, 1 + classes, X, Y, Z)"""
        from monai.inferers import sliding_window_inference

        window = functools.partial(sliding_window_inference, roi_size=self.patch, sw_batch_size=2)
        with self.autocast(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI's, on PyTorch's indexing to come
            return (
                window(inputs=x, predictor=self.network, overlap=OVERLAP, mode="gaussian").float().softmax(1)
            )

    def label(self, scan):
        """Label map of a Scan along the file's axes, and how sure it is.

        Returns:
            (ids (X, Y, Z) uint8, {"confidence", "least_sure", "voxels"}): the mean of the highest probability
            over the voxels of vessels, that of the class with the lowest, None without vessels, and their
            number.
        """
        found = self.probabilities(scan.image(self.spacing))
        if found.shape[1:] != scan.array.shape:
            found = np.stack([brought_to(one, scan.array.shape, order=1) for one in found])
        numbers, sure = found.argmax(axis=0).astype(np.uint8), found.max(axis=0)
        of_classes = [float(sure[numbers == n].mean()) for n in np.unique(numbers) if n]
        vessels = numbers > 0
        about = {"confidence": float(sure[vessels].mean()) if vessels.any() else None}
        about |= {"least_sure": min(of_classes, default=None), "voxels": int(vessels.sum())}
        return scan.as_stored(self.classes.to_ids(numbers)), about


def read_model(path, device="auto"):
    """(Predictor, what the model's file says) of a trained network.

    Raises:
        UserError: It is no such file.
    """
    device = parallel.choose_device(device)
    state = runs.read_state(path)
    with as_damaged("it is no model of segmentation.py, or damaged", path):
        classes = Classes(state["table"])
        network = build_network(classes, state["patch"], state["width"]).to(device)
        runs.load_networks(network, state["network"])
    dtype = parallel.choose_amp_dtype(state["amp_dtype"], device)
    autocast = functools.partial(parallel.autocast, device, dtype, state["fp16"])
    about = (state["patch"], state["spacing"], state["mirror"], autocast)
    return Predictor(network, classes, *about), state


def content_of_model(about):
    """What a trained network is known by, of what `read_model` says of it: SHA-256 of what it answers by."""
    seen = [about[name] for name in ("table", "patch", "spacing", "mirror", "width")]
    digest = hashlib.sha256(json.dumps(seen).encode())
    for name, tensor in sorted(about["network"].items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def contents_known_to(about):
    """Contents of what a network was trained on, a set, of what `read_model` says of it.

    Those of earlier versions tell volumes alone, by the digest that is `former` of an Identity.
    """
    return set(about["trained_on"] if "trained_on" in about else about["volumes"])


def label_volumes(predictor, paths):
    """Yield (path, Scan, ids (X, Y, Z) along the file's axes, how sure they are) of volumes."""
    for path in tqdm(paths, "Labelling", unit="volume"):
        scan = read_scan(path)
        yield path, scan, *predictor.label(scan)


def predict(config):
    """Write a label map for every volume, and confidence.csv.

    Returns:
        The new folder.
    """
    predictor, _ = read_model(config.model, config.device)
    names = names_in(config.data, find_volumes(config.data))
    rows = []
    with new_folder(config.output or "predicted") as folder:
        for path, scan, found, about in label_volumes(predictor, names):
            save_labels(found, scan.affine, folder / f"{names[path]}.nii.gz", predictor.classes.table)
            rows.append({"case": names[path], **about})
        write_records(folder / "confidence.csv", rows)
    empty = [row["case"] for row in rows if not row["voxels"]]
    if empty:
        print(f"Warning: no vessel was found in {len(empty)} of {len(rows)} volumes, as {empty[0]}.")
    print(f"{len(rows)} label maps and confidence.csv are in {folder}")
    return folder


def main(argv=None):
    """The command line."""
    config = parse_cli(SegmentationConfig, argv)
    with one_line_errors():
        parallel.prepare_process(config.device)
        if config.mode == "train":
            runs.end_by_signal(train(config))
        else:
            predict(config)


if __name__ == "__main__":
    main()
