"""What generation needs of a checkpoint, and nothing else: a small file to share.

    python sample_data/release.py --checkpoint models/cow/model_33.pt --output cow.pt
    python CoW_generator.py --checkpoint cow.pt

Of the networks only the averages SE and GE go along, in half precision, without discriminator, optimisers and
settings of the training's machine. `phantom_model.pt` beside this file was made with it.
"""

from dataclasses import dataclass
from pathlib import Path

from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.released import generator_of
from volumetric.runs import read_state, save_checkpoint


@dataclass(kw_only=True)
class ReleaseConfig:
    """Write what generation needs of a checkpoint into a small file."""

    checkpoint: str = option("models/default/model_1.pt", "Checkpoint of stylegan2_pytorch.py.", file=True)
    output: str = option("generator.pt", "New file.")

    def __post_init__(self):
        check_fields(self)
        if Path(self.output).exists():
            raise UserError(f"--output {self.output} is there: give the name of a new file.")


def main(argv=None):
    """The command line."""
    config = parse_cli(ReleaseConfig, argv)
    with one_line_errors():
        state = read_state(config.checkpoint)
        save_checkpoint(generator_of(state), Path(config.output))
        print(f"{config.output} holds the generator of step {state['step']}.")


if __name__ == "__main__":
    main()
