"""What the tests share: small volumes, small configurations, and one runner for command lines."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

from volumetric.collection import examined

import nibabel as nib
import numpy as np
import pytest
import torch

import stylegan2_pytorch as sg
from tests.launcher import Launcher

ROOT = Path(__file__).parent.parent
LAUNCHER = Launcher()
LONG = {f"test_{n}" for n in ("books", "cli", "first_model", "options", "scores", "training", "types")}
SMALL = {"image_size": 8, "image_depth": 4, "network_capacity": 2, "fmap_max": 16}


def pytest_configure():
    """One thread for each of the two workers, which share two cores; and a coarse centre of truncation.

    Its 2000 styles, of every preview and checkpoint, take most of the time of a training of a few steps.
    """
    torch.set_num_threads(1)
    sg.TRUNCATION_SAMPLES = 20


def pytest_collection_modifyitems(items):
    """Files whose tests share what a fixture makes come first, then those of long tests: no worker idles."""
    items.sort(key=lambda item: (not shares(item.path), item.path.stem not in LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One worker has all tests of a file with a fixture for more than one test, which is then made once.

    The marks of --dist loadgroup do not do it: pytest-xdist 3.8 notes a group where pytest 9.2 does not look.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path, _, _ = nodeid.partition("::")
            return path if shares(config.rootpath / path) else nodeid

    config.option.loadscopereorder = False
    return ByFixtures(config, log)


@functools.cache
def shares(path):
    """True of a file with a fixture for more than one test."""
    return '@pytest.fixture(scope="' in Path(path).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache or downloaded weights."""
    shared = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    monkeypatch.setenv("TORCH_HOME", str(shared / "torch"))


def interrupted(*_):
    """In place of what computes or writes: Ctrl-C."""
    raise KeyboardInterrupt


def write_volume(path, array, affine=None):
    """Write a NIfTI file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([0.6, 0.6, 0.8, 1]) if affine is None else affine), path)
    return path


def random_array(seed, shape=(8, 8, 4)):
    """float32 array of uniform random numbers."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def write_data(folder, shape=(8, 8, 4)):
    """Folder data/ of six random volumes, made in another."""
    for n in range(6):
        write_volume(folder / "data" / f"v{n}.nii.gz", random_array(n, shape))
    return folder / "data"


def write_labels(folder, data):
    """CSV file that gives the volumes of `data` two classes."""
    rows = [f"{path.name},{'whole' if n < 4 else 'missing'}" for n, path in enumerate(sorted(data.iterdir()))]
    path = folder / "labels.csv"
    path.write_text("\n".join(["file,label", *rows, ""]), encoding="utf-8")
    return path


def write_split(path, parts):
    """CSV file, as preprocessing/split.py makes it, of volumes: {path: part}."""
    rows = [f"{p},{examined(p).content},{p.stem},{part}" for p, part in parts.items()]
    path.write_text("\n".join(["file,content,subject,part", *rows, ""]), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path):
    """Folder of `write_data`."""
    return write_data(tmp_path)


@pytest.fixture
def label_table(tmp_path, data):
    """CSV file of `write_labels`."""
    return write_labels(tmp_path, data)


@pytest.fixture
def make_config(tmp_path, data):
    """Function that builds the configuration of a tiny run in the test's folder."""

    def build(**settings):
        tiny = {"batch_size": 2, "gradient_accumulate_every": 2, "num_image_tiles": 1, "device": "cpu"}
        folders = {"results_dir": str(tmp_path / "results"), "models_dir": str(tmp_path / "models")}
        return sg.TrainConfig(**{**SMALL, **tiny, **folders, "data": str(data), "name": "t", **settings})

    return build


def run_script(script, *arguments, cwd=ROOT, timeout=1800, fresh=False, processes=None):
    """Run one of the project's scripts as a user does; returns the completed process, with text output.

    Args:
        fresh: By a new interpreter, as one test of each program does; else by a fork that has the libraries.
        processes: As many as torchrun would start; none without it.
    """
    command, environment = [str(ROOT / script), *map(str, arguments)], {**os.environ, "OMP_NUM_THREADS": "1"}
    if not fresh:
        return LAUNCHER.run(command, cwd, environment, timeout, processes)
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        env=environment,
    )


def start_script(script, *arguments, folder):
    """Start a script, which writes `stdout` and `stderr` in a folder; returns its Process."""
    command, environment = [str(ROOT / script), *map(str, arguments)], {**os.environ, "OMP_NUM_THREADS": "1"}
    return LAUNCHER.start(command, ROOT, environment, [folder / "stdout", folder / "stderr"])


def tiny_flags(data, folder, **settings):
    """Command-line flags of a tiny run."""
    flags = {**SMALL, "batch_size": 2, "gradient_accumulate_every": 1, "num_image_tiles": 1, "device": "cpu"}
    flags |= {"data": data, "results_dir": folder / "results", "models_dir": folder / "models", "name": "t"}
    return [part for name, value in (flags | settings).items() for part in (f"--{name}", value)]


@contextlib.contextmanager
def interrupted_at(trainer_class, last):
    """While it lasts, a SIGTERM arrives in a trainer's step `last`, as from a cluster."""
    step = trainer_class.train_step

    def interrupted(trainer, log):
        step(trainer, log)
        if trainer.step == last:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_class, "train_step", interrupted)
        yield
