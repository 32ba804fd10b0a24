"""Work on many volumes by several processes, which share the training volumes."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

from tqdm import tqdm

from trust.similarity import print_of

LIBRARY = []  # the Library of a worker process


def start_worker(library):
    """Keep the training volumes in a worker."""
    LIBRARY[:] = [library]


def prepare(volume):
    """Print of a Volume."""
    return print_of(volume.read())


def spread_out(function, items, title, workers, library=None):
    """[function(item)] by some processes, with a progress bar."""
    with ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("fork" if sys.platform == "linux" else None),
        *((start_worker, (library,)) if library else ()),
    ) as pool:
        return list(tqdm(pool.map(function, items, chunksize=4), title, len(items), unit="volume"))
