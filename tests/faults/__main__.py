"""The command line of `make faults`."""

import sys
import tempfile
from dataclasses import dataclass

from volumetric.cli import check_fields, one_line_errors, option, parse_cli

from tests.faults import commands, damage, disks, ends, experiments, kills, long, volumes

# What does the faults, and how many in the long run.
KINDS = {
    "kills": (kills.check, 200),
    "experiments": (experiments.check, 60),
    "ends": (ends.check, 200),
    "long": (long.check, 3000),
    "flips": (damage.check_flips, 200),
    "fields": (damage.check_fields, 200),
    "texts": (damage.check_texts, 300),
    "volumes": (volumes.check, 1000),
    "disks": (disks.check, 60),
    "commands": (commands.check, 2000),
}


@dataclass(kw_only=True)
class FaultsConfig:
    """Do faults to the programs, and say what came of them."""

    kind: str | None = option(None, "Kind of faults; None does all.", choices=KINDS)
    number: int | None = option(None, "How many; None takes the long run's.")
    seed: int = option(0, "Of what is drawn.", least=0)

    def __post_init__(self):
        check_fields(self)


def main(argv=None):
    """Run the faults; exits with 1 if any of them had a wrong end."""
    config, failed = parse_cli(FaultsConfig, argv), 0
    with one_line_errors():
        for kind in [config.kind] if config.kind else KINDS:
            check, number = KINDS[kind]
            with tempfile.TemporaryDirectory() as folder:
                counts, faults = check(folder, config.number or number, config.seed)
            print(
                f"{kind}, seed {config.seed}: " + "; ".join(f"{k} {v}" for k, v in sorted(counts.items())),
                flush=True,
            )
            for fault in faults:
                print(fault)
            failed += len(faults)
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
