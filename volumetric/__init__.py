"""The ground that every program stands on; nothing here knows who stands on it.

    cli.py            options as dataclass fields, their parsing and their errors
    help.py           what --help prints
    files.py          NIfTI in and out, atomic writing
    pictures.py       planes, projections, sheets, GIFs and curves, in one orientation
    pages.py          HTML pages in one file
    viewer.py         a page that shows the volumes of a folder
    vessels.py        the mask of bright vessels
    sidecars.py       the file beside a generated volume
    parallel.py       processes as one, devices, precision, seeded draws
    dataset.py        the audit of a folder, classes, the order of samples, the disk cache
    diff_augment.py   differentiable augmentation
    layers.py         operations with gradients of any order, schedules, attention
    memory.py         the memory of the worst step, predicted and measured
    machine.py        cores and memory that a process may use
    timing.py         how long a run takes, and where it fits
    logs.py           tables that a run writes
    names.py          names of volumes
    plan.py           what is due when; runs.py, the training loop, checkpoints, logs
    run_page.py       the page of a run; curves.py, what it draws; meanings.py, what its numbers mean
    continuing.py     what a run takes from a checkpoint
    training.py       what trainers share: draws, batches, state, their start

The first seven import no torch.
"""

import importlib.util
import sys

__version__ = "0.2.0"

NEEDED = ("fire", "nibabel", "numpy", "torch")  # of the packages that are installed together

if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    sys.exit(
        f"Error: {missing[0]} is not installed here: activate the environment (source .venv/bin/activate), "
        f"or make one with make install."
    )
