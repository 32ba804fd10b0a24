"""One scan on one process, many at a time: on this machine, or on a dask cluster that is already there.

A worker that dies takes its own scan with it and no other; the scan is tried once more.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from volumetric.cli import UserError
from volumetric.machine import usable_cores, usable_memory

from tqdm import tqdm

ATTEMPTS = 2  # of a scan whose worker was killed
BASE_GIB = 0.6  # of a worker that has done nothing
GIB_PER_MEGAVOXEL = 0.085  # of the largest image that it works on: 1.6 GiB for 13 million voxels


def default_workers(voxels):
    """Workers for this machine: one per core, as far as its memory goes for images of so many voxels."""
    each = (BASE_GIB + GIB_PER_MEGAVOXEL * voxels / 1e6) * 2**30
    return max(1, min(usable_cores(), math.floor(usable_memory() / each)))


def end_with_parent():
    """What a worker does first: let Ctrl-C to its parent, and end when the parent does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Worker:
    """One process that does one job at a time, and is begun anew when it was killed."""

    def __init__(self):
        self.pool = None

    def __call__(self, function, job):
        """What a function makes of a job; None if it has killed ATTEMPTS processes."""
        for _ in range(ATTEMPTS):
            if self.pool is None:
                context = multiprocessing.get_context("spawn")
                self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent)
            try:
                return self.pool.submit(function, job).result()
            except BrokenProcessPool:
                self.close()
        return None

    def close(self):
        """End the process when its job is done."""
        if self.pool is not None:
            self.pool.shutdown()
            self.pool = None


class LocalWorkers:
    """As many workers on this machine."""

    def __init__(self, number):
        self.number = number

    def run(self, function, jobs):
        """Yield (job, result or None) as they come."""
        idle = [Worker() for _ in range(self.number)]

        def one(job):
            worker = idle.pop()  # there is one for every thread
            try:
                return job, worker(function, job)
            finally:
                idle.append(worker)

        threads = ThreadPoolExecutor(self.number)
        try:
            for future in as_completed([threads.submit(one, job) for job in jobs]):
                yield future.result()
        except BaseException:  # Ctrl-C, or the caller has had enough
            threads.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()
            raise
        finally:
            threads.shutdown(cancel_futures=True)
            for worker in idle:
                worker.close()

    def lacking(self, tool):
        """Addresses of workers without a program on PATH: this machine has been asked already."""
        return []


class ClusterWorkers:
    """The workers of a running dask cluster, which sees the same files by the same paths."""

    def __init__(self, client):
        self.client = client
        self.number = sum(client.nthreads().values())

    def run(self, function, jobs):
        """Yield (job, result or None) as they come; how often dask tries is for its own settings to say."""
        from distributed import KilledWorker
        from distributed import as_completed as as_they_come

        waiting = {self.client.submit(function, job, pure=False): job for job in jobs}
        for future in as_they_come(list(waiting)):
            try:
                yield waiting[future], future.result()
            except KilledWorker:
                yield waiting[future], None

    def lacking(self, tool):
        """Addresses of workers without a program on PATH."""
        return [address for address, path in self.client.run(which, tool).items() if path is None]


def which(tool):
    """Path of a program on PATH, or None."""
    import shutil

    return shutil.which(tool)


@contextlib.contextmanager
def open_workers(scheduler, number):
    """Workers: `number` on this machine, or those of a scheduler, tcp://host:port.

    Raises:
        UserError: There is no scheduler at this address, or it has no workers.
    """
    if scheduler is None:
        yield LocalWorkers(number)
        return
    from distributed import Client

    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--scheduler {scheduler} does not answer: {reason}") from None
    with client:
        if not client.nthreads():
            raise UserError(f"--scheduler {scheduler} has no workers: start dask worker {scheduler}.")
        yield ClusterWorkers(client)


@contextlib.contextmanager
def ticking(bar, seconds):
    """Draw a progress bar again and again, so that its clock moves while nothing ends."""
    ended = threading.Event()

    def tick():
        while not ended.wait(seconds):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run_all(workers, function, jobs, title):
    """Run an importable function on every job, and yield (job, result) as they come, with a progress bar.

    The result is None where the worker was killed, most likely for want of memory.
    """
    quiet, tick = (0.1, 1.0) if sys.stderr.isatty() else (30.0, 30.0)  # seconds
    with (
        tqdm(total=len(jobs), desc=title, unit="scan", mininterval=quiet, leave=False) as bar,
        ticking(bar, tick),
    ):
        for found in workers.run(function, jobs):
            bar.update()
            yield found


def in_words(seconds):
    """A duration for people: 40 seconds, 7 minutes, 2.5 hours."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"
