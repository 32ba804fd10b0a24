"""Two processes that train together and end: both must end cleanly, interpreter and all.

    python tests/faults/ends.py FOLDER NUMBER SEED

It is run as a program: a process that was forked within a test would not end as a program does.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def check(folder, number, seed):
    """Let pairs of processes end. Returns ({outcome: count}, [what went wrong])."""
    command = [sys.executable, __file__, str(folder), str(number), str(seed)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, cwd=ROOT)
    try:
        counts, faults = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {}, [done.stdout + done.stderr]
    return counts, faults


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def pairs(folder, number, seed):
    """Fork two processes so often. Returns the command line to them; None, after the outcome, to this one."""
    import random

    from tests.faults.jobs import finished, training

    rng, counts, faults = random.Random(seed), {}, []
    finished(folder, "first", 1)  # makes the volumes
    for n in range(number):
        name, environment = f"pair{n}", {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        terminated = rng.random() < 0.25
        steps = 400 if terminated else rng.choice((1, 2))
        workers = ["--cache", "none", "--num_workers", "1"] if rng.random() < 0.3 else []
        flags, children = training(folder, name, steps, *workers), []
        for rank in range(2):
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                log = os.open(folder / f"log{rank}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
                os.environ |= {**environment, "LOCAL_WORLD_SIZE": "2"}
                return flags
            children.append(child)
        if terminated:
            time.sleep(rng.uniform(2.0, 5.0))
            for child in children:
                os.kill(child, signal.SIGTERM)
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        kind = "terminated" if terminated else "ran through"
        early = terminated and -signal.SIGTERM in ended  # the signal came before the training took it over
        counts[kind] = counts.get(kind, 0) + 1
        if ended != [0, 0] and not early and not (terminated and ended == 2 * [128 + signal.SIGTERM]):
            texts = "\n".join(
                (folder / f"log{rank}").read_text(errors="replace", encoding="utf-8")[-2000:]
                for rank in range(2)
            )
            faults.append(f"{kind}: ended with {ended} (seed {seed}, number {n})\n{texts}")
    print(json.dumps([counts, faults]))
    return None


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import torch

    import stylegan2_pytorch

    torch.set_num_threads(1)
    asked = pairs(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))
    if asked is not None:
        stylegan2_pytorch.main(asked)
