"""Programs run in forked processes, so that PyTorch is imported once."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

FAULT = 99  # exit status of a program that raised


@dataclass
class Ended:
    """How a process ended: exit status, negative for a signal, what it wrote, and its processor seconds."""

    status: int
    text: str
    seconds: float

    @property
    def raised(self):
        """True if it ended with a traceback."""
        return self.status == FAULT or "Traceback (most recent call last)" in self.text

    @property
    def refused(self):
        """True if it ended with one line for the user."""
        errors = [line for line in self.text.splitlines() if line.startswith("Error: ")]
        return self.status == 1 and len(errors) == 1


@dataclass
class Child:
    """A forked process, and the process that writes its log: a limit on files may be set in the first."""

    number: int
    writer: subprocess.Popen
    log: Path


def start(function, log):
    """Fork a process that runs function() and ends as a program does. Returns a Child.

    Args:
        function: What it does.
        log: File for its stdout and stderr.
    """
    torch.set_num_threads(1)  # threads do not survive a fork
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "wb") as file:
        writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file, process_group=0)
    number = os.fork()
    if number:
        writer.stdin.close()
        return Child(number, writer, Path(log))
    status = FAULT
    try:
        os.dup2(writer.stdin.fileno(), 1)
        os.dup2(writer.stdin.fileno(), 2)
        sys.stdout, sys.stderr = (
            os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2)
        )  # pytest has its own
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        with contextlib.suppress(OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = status_of(function)
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def status_of(function):
    """Exit status that a program would have."""
    try:
        function()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return FAULT
    return 0


def wait(child, limit=120.0):
    """Ended of a Child; one that is there after `limit` seconds is killed, with status -9."""
    began = time.monotonic()
    while True:
        done, status, used = os.wait4(child.number, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > limit:
            os.kill(child.number, signal.SIGKILL)
            _, status, used = os.wait4(child.number, 0)
            break
        time.sleep(0.005)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process of a killed one may go on
        child.writer.wait(5)
    text = child.log.read_text(errors="replace", encoding="utf-8")
    return Ended(os.waitstatus_to_exitcode(status), text, used.ru_utime + used.ru_stime)


def run(function, log, limit=120.0):
    """Run function() in a forked process to its end. Returns Ended."""
    return wait(start(function, log), limit)


def limit_memory(gib):
    """Give this process so much more memory than it has now; what needs more ends in a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    most = pages * resource.getpagesize() + int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
