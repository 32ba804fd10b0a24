"""One process per scan, by dask.distributed: on this machine, or on a cluster that is already there."""

import contextlib
import itertools
import logging
import os
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from volumetric.cli import UserError

MEMORY_PER_WORKER = 2.0  # GiB: 1.5 for a scan of 13 million voxels, rounded up
ATTEMPTS = 2  # of a scan whose worker was killed
BLAMED = 100  # deaths of workers that dask lays to a scan, its own or not; attempts are counted by marks


def default_workers():
    """Workers for this machine: one per core, as far as its memory goes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(os.cpu_count() or 1, int(memory / MEMORY_PER_WORKER)))


@contextlib.contextmanager
def open_client(scheduler, n_workers):
    """Client of a dask cluster.

    Args:
        scheduler: Address of a running scheduler, tcp://host:port; None starts workers on this machine. The
            workers must see the same files by the same paths.
        n_workers: Processes to start here; None takes `default_workers`.

    Raises:
        UserError: There is no scheduler at this address, or it has no workers.
    """
    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, ValueError, TimeoutError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"--scheduler {scheduler} does not answer: {reason}") from None
        with client:
            if not client.nthreads():
                raise UserError(f"--scheduler {scheduler} has no workers: start dask worker {scheduler}.")
            yield client
        return
    settings = {
        "distributed.scheduler.allowed-failures": BLAMED,
        "distributed.comm.timeouts.connect": "60s",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=n_workers or default_workers(),
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def attempt(function, job, mark):
    """What a function makes of a job; None if it has killed ATTEMPTS workers. Every death leaves a byte."""
    with open(mark, "ab") as file:
        file.write(b"x")
        number = file.tell()
    if number > ATTEMPTS:
        return None
    result = function(job)
    os.truncate(mark, number - 1)  # if the result is lost with a worker that another job kills, it counts not
    return result


def run_all(client, function, jobs, title, folder):
    """Run a function on every job, one at a time on each worker, and yield the results as they come.

    Args:
        client: dask client.
        function: Importable function of one job.
        jobs: List of jobs.
        title: What the progress bar says.
        folder: Folder that all workers see, for marks of attempts; they are removed.

    Yields:
        (job, result), in the order of completion; the result is None where the worker was killed twice.
    """
    from distributed import KilledWorker, as_completed

    waiting = enumerate(jobs)
    running = {}

    def submit(number):
        futures = []
        for index, job in itertools.islice(waiting, number):
            mark = str(Path(marks).resolve() / str(index))
            future = client.submit(attempt, function, job, mark, pure=False)
            running[future.key] = job
            futures.append(future)
        return futures

    quiet = 0.1 if sys.stderr.isatty() else 30
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as marks,
        tqdm(total=len(jobs), desc=title, unit="scan", mininterval=quiet, leave=False) as bar,
    ):
        futures = as_completed(submit(sum(client.nthreads().values())))
        for future in futures:
            job = running.pop(future.key)
            try:
                result = future.result()
            except KilledWorker:
                result = None
            futures.update(submit(1))
            bar.update()
            yield job, result
