"""Starts the project's programs without the seconds that PyTorch's import takes.

A process imports the libraries once, and nothing of the project, and forks: a fork runs a script as
`python script.py` does, with its own arguments, environment, folder, imports of the project and exit status.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIBRARIES = (
    *("torch", "torch.distributed", "torch._dynamo"),  # an optimiser imports the last
    *("scipy.ndimage", "scipy.stats", "scipy.linalg", "matplotlib", "pydicom", "multiprocessing.pool"),
    *("numpy", "nibabel", "fire", "PIL.Image", "tqdm", "requests", "einops"),
)


# ---- the process that forks


def serve():
    """Answer a line of stdin by a line: the number of a new process, or how one ended, None while it runs."""
    for name in LIBRARIES:
        __import__(name)
    gc.freeze()  # forks share its pages
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        if "command" not in asked:
            answer = ended(**asked)
        elif not (answer := os.fork()):
            return become(**asked)
        print(json.dumps(answer), flush=True)


def ended(number, patient):
    """Exit status of a process, negative for a signal; None while it runs, if not `patient`."""
    found, status = os.waitpid(number, 0 if patient else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def become(command, cwd, environment, files):
    """Be the script from here on; what it raises ends this process as it ends a program."""
    os.setsid()
    for number, path in enumerate((os.devnull, *files)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


# ---- the tests' side


class Process:
    """A script that runs: what subprocess.Popen has of it. It leads a session of its own."""

    def __init__(self, launcher, number, files):
        self.launcher, self.pid, self.files, self.returncode = launcher, number, files, None

    def poll(self):
        """Exit status, or None while it runs."""
        if self.returncode is None:
            self.returncode = self.launcher.ask(number=self.pid, patient=False)
        return self.returncode

    def wait(self, timeout=1800):
        """Exit status; after `timeout` seconds it is killed, and subprocess.TimeoutExpired raised."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def kill(self):
        """Kill it alone."""
        os.kill(self.pid, signal.SIGKILL)

    def texts(self):
        """What it wrote to stdout and to stderr."""
        return [Path(path).read_text(encoding="utf-8") for path in self.files]


class Launcher:
    """Starts scripts by a process that forks, which starts at the first call."""

    def __init__(self):
        self.server = None

    def ask(self, **asked):
        """Answer of the process that forks."""
        if self.server is None:
            command = [sys.executable, __file__]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.server = subprocess.Popen(command, **pipes, env={**os.environ, "OMP_NUM_THREADS": "1"})
            atexit.register(self.server.stdin.close)
        self.server.stdin.write(json.dumps(asked).encode() + b"\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, command, cwd, environment, files):
        """Process of a script: its path and arguments, folder, environment, and files for what it writes."""
        given = {"command": command, "cwd": str(cwd), "environment": environment}
        return Process(self, self.ask(**given, files=[str(path) for path in files]), files)

    def run(self, command, cwd, environment, timeout=1800, processes=None):
        """Run a script to its end, in so many `processes` as by torchrun if given; as subprocess.run."""
        ranks = [{}] if processes is None else ranked(processes)
        with tempfile.TemporaryDirectory() as folder:
            files = (f"{folder}/out", f"{folder}/err")
            running = [self.start(command, cwd, environment | rank, files) for rank in ranks]
            status = first_status(running, timeout)
            return subprocess.CompletedProcess(command, status, *running[0].texts())


def first_status(running, timeout):
    """0, or the exit status of the process that failed first; as with torchrun, no other outlives it."""
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in running) and time.monotonic() < deadline:
        if any(process.returncode for process in running):
            break
        time.sleep(0.01)
    failed = [process.returncode for process in running if process.returncode]
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()
            if not failed:
                raise subprocess.TimeoutExpired(str(process.pid), timeout)
    return failed[0] if failed else 0


def ranked(processes):
    """What torchrun tells each of so many processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


if __name__ == "__main__":
    serve()
