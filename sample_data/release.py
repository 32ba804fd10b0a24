"""What generation needs of a checkpoint, and nothing else: a small file to share.

    python sample_data/release.py --checkpoint models/cow/model_33.pt --output cow.pt
    python CoW_generator.py --checkpoint cow.pt
    python sample_data/release.py --checkpoint models/pairs/model_14.pt --output pairs.pt
    python label_to_volume.py --checkpoint pairs.pt --anatomy "absent L-Pcom" --output made
    python sample_data/release.py --checkpoint segmenter.pt --output small.pt

Of the networks only the averages go along (SE and GE; GE of label_to_volume.py; all of a segmentation
network), in half precision, without discriminator, optimisers and settings of the training's machine.
`phantom_model.pt` beside this file was made with it.
"""

from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.files import naming
from volumetric.released import KEPT, PRIVATE, generator_of
from volumetric.runs import read_state, save_checkpoint

LABELS = "label_to_volume"  # entry of a checkpoint of that program
ELSEWHERE = (*PRIVATE, "subjects", "generate", "variants", "output", "checkpoint", "recreate", "segmenter")


@dataclass(kw_only=True)
class ReleaseConfig:
    """Write what generation needs of a checkpoint into a small file."""

    checkpoint: str = option(
        "models/default/model_1.pt",
        "Checkpoint of stylegan2_pytorch.py or label_to_volume.py, or a network of segmentation.py.",
        file=True,
    )
    output: str = option("generator.pt", "New file.")

    def __post_init__(self):
        check_fields(self)
        if Path(self.output).exists():
            raise UserError(f"--output {self.output} is there: give the name of a new file.")


def halved(tensors):
    """Tensors in half precision, whole numbers as they are. {name: tensor}

    Names of one tensor stay names of one, which a file holds once: MONAI's DynUNet has two for all it has.
    """
    known, found = {}, {}
    for name, tensor in tensors.items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        found[name] = known.setdefault((tensor.data_ptr(), tensor.shape), half)
    return found


def label_model_of(state):
    """The entries of a checkpoint of label_to_volume.py that a release has."""
    averages = {n: t for n, t in state[LABELS].items() if n.startswith("GE.")}
    config = {name: value for name, value in state["config"].items() if name not in ELSEWHERE}
    config["table"] = config["table"] and Path(config["table"]).name  # a file of the training's machine
    kept = {name: state[name] for name in (*KEPT, "table", "center") if name in state}
    return {LABELS: halved(averages), "config": config, **kept}


def segmenter_of(state):
    """The entries of a network of segmentation.py that a release has."""
    return {**state, "network": halved(state["network"])}


def released(state):
    """The entries of a checkpoint that a release has, and what it holds, for a person to read.

    Raises:
        UserError: It is of no program that is known; the text begins after the file's name.
    """
    if LABELS in state:
        return label_model_of(state), f"the generator of label maps of step {state['step']}"
    if {"network", "patch", "spacing"} <= state.keys():
        return segmenter_of(state), f"the segmentation network of step {state['num_train_steps']}"
    if "GAN" not in state:
        raise UserError(
            "is no checkpoint of stylegan2_pytorch.py or label_to_volume.py, nor a network of "
            "segmentation.py: give one of these."
        )
    return generator_of(state), f"the generator of step {state['step']}"


def main(argv=None):
    """The command line."""
    config = parse_cli(ReleaseConfig, argv)
    with one_line_errors():
        state = read_state(config.checkpoint)
        with naming(config.checkpoint):
            entries, told = released(state)
        save_checkpoint(entries, Path(config.output))
        print(f"{config.output} holds {told}.")


if __name__ == "__main__":
    main()
