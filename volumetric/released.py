"""What generation needs of a checkpoint, and nothing else, to share: in a pickle or in safetensors.

    generator_of(state)                      the entries that go along, networks in half precision
    write_safetensors(entries, path)         no pickle: a header in JSON and plain numbers
    read_safetensors(path)                   the same entries again, as from a pickle

safetensors (github.com/huggingface/safetensors) holds tensors by name, and texts: the networks are called
GAN.*, the means of the styles truncation_center.*; all other entries are one JSON text in the header.
"""

import json
from pathlib import Path

from volumetric.cli import UserError
from volumetric.files import Record, atomic_path

SUFFIX = ".safetensors"
HEADER = "stylegan2-pytorch-3d"  # name of the text in the header that holds all but tensors
# Entries of a checkpoint that ModelLoader reads, and what tells how it was trained.
KEPT = ("step", "affine", "class_names", "class_shares", "format_version", "version", "trained_on")
PRIVATE = (
    "data",
    "split",
    "results_dir",
    "models_dir",
    "labels",
    "init_from",
    "medicalnet_weights",
    "inception_weights",
)


def generator_of(state: Record) -> Record:
    """The entries of a checkpoint that a release has; paths of the training's machine stay behind."""
    averages = {n: t for n, t in state["GAN"].items() if n.startswith(("SE.", "GE."))}
    if not averages or "config" not in state:
        raise UserError("has no averaged networks of this program: train on from it first.")
    return {
        "GAN": {name: tensor.half() for name, tensor in averages.items()},
        "truncation_center": {"SE": state["truncation_center"]["SE"]},
        "config": {name: value for name, value in state["config"].items() if name not in PRIVATE},
        **{name: state[name] for name in KEPT if name in state},
    }


def write_safetensors(entries: Record, path: Path | str) -> None:
    """Write the entries of `generator_of`; kernels with the channels last are stored in C order."""
    from safetensors.torch import save

    tensors, about = {}, {}
    for name, value in entries.items():
        if name in ("GAN", "truncation_center"):  # a copy each: no two may share their numbers
            tensors |= {
                f"{name}.{n}": tensor.detach().cpu().contiguous().clone() for n, tensor in value.items()
            }
        else:
            about[name] = value
    text = json.dumps(about, default=lambda value: value.tolist())
    with atomic_path(path) as part:
        # not by save_file, whose file others may not read
        part.write_bytes(save(tensors, metadata={"format": "pt", HEADER: text}))


def read_safetensors(path: Path | str) -> Record:
    """Entries of a file of `write_safetensors`; a UserError if it is another program's."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(HEADER)
        if text is None:
            raise UserError("is of another program: it has no settings of a 3D StyleGAN2 in its header.")
        state = {"GAN": {}, "truncation_center": {}, **json.loads(text)}
        for name in file.keys():  # noqa: SIM118  it is no dictionary
            entry, _, own = name.partition(".")
            state[entry][own] = file.get_tensor(name)
    tuples = {n: tuple(v) if isinstance(v, list) else v for n, v in state["config"].items()}
    return state | {"config": tuples}
