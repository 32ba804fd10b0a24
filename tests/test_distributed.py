"""Several processes as one: gradients, resuming, and what happens when one dies. By gloo, on the CPU."""

import csv
import json
import os
import re
import signal
import subprocess
import time
from functools import partial

from volumetric.cli import UserError
from volumetric.dataset import SeededBatches
from volumetric.parallel import Group, SharedRandom, host_random

import numpy as np
import pytest
import torch
import torch.distributed.run
from PIL import Image

from tests.conftest import (
    ROOT,
    SMALL,
    random_array,
    run_script,
    start_script,
    tiny_flags,
    write_data,
    write_labels,
    write_volume,
)

run_two = partial(run_script, processes=2)


def test_parts_make_the_whole():
    groups = [Group(rank, 3) for rank in range(3)]
    assert [g.part(list("abcdef")) for g in groups] == [["a", "b"], ["c", "d"], ["e", "f"]]
    whole = host_random(1).integers(0, 100, 6).tolist()
    parts = [SharedRandom(host_random(1), g).integers(0, 100, 2).tolist() for g in groups]
    assert [n for part in parts for n in part] == whole
    assert {SharedRandom(host_random(2), g).random() for g in groups} == {host_random(2).random()}
    batches = [iter(SeededBatches(20, 6, 0.5, (0,), 3, g)) for g in (Group(), *groups)]
    for _ in range(5):
        first, *others = (next(b) for b in batches)
        assert [n for other in others for n in other] == first


def test_only_a_lost_process_is_reported_as_one():
    group = Group(0, 2)
    with pytest.raises(RuntimeError, match="expected scalar type"), group.together():
        raise RuntimeError("expected scalar type Float but found Half")
    lost = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"
    hangs = (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc] Timed out waiting 600000ms for recv"
    )
    for text in (lost, hangs):
        with (
            pytest.raises(UserError, match=r"Another process .* has ended or hangs.*continues"),
            group.together(),
        ):
            raise RuntimeError(text)
    with pytest.raises(UserError, match="Another process"), group.together():
        raise torch.distributed.DistBackendError("NCCL error")


HANGING = """
import datetime, sys, time
from volumetric import parallel
from volumetric.cli import one_line_errors
import torch
parallel.WAIT = datetime.timedelta(seconds=3)
with one_line_errors(), parallel.process_group("cpu") as group:
    if group.rank:
        time.sleep({sleep})
    {wait}
    print("together", group.rank)
"""


@pytest.mark.parametrize(
    ("sleep", "wait", "ends"), [(8, "group.wait()", True), (60, "group.sum_([torch.ones(1)])", False)]
)
def test_a_hanging_process_is_not_waited_for_long_but_for_what_takes_long(tmp_path, sleep, wait, ends):
    """Gradients are waited for by WAIT, here 3 seconds; what the first process does alone by LONG_WAIT."""
    (tmp_path / "job.py").write_text(HANGING.format(sleep=sleep, wait=wait), encoding="utf-8")
    start = time.monotonic()
    run = run_two(tmp_path / "job.py")
    assert (run.returncode == 0) == ends, run.stderr
    assert ends or ("Another process of this training has ended or hangs" in run.stderr)
    assert ends or time.monotonic() - start < 55


OPTIONS = {
    "hinge": {},
    "rel_disc_loss": {"rel_disc_loss": True, "aug_types": ("translation", "cutout", "contrast")},
    "dual_contrast_loss": {"dual_contrast_loss": True},
    "top_k_training": {"top_k_training": True, "generator_top_k_gamma": 0.5},
    "labels": {"labels": "LABELS", "balance_classes": True, "pl_batch_shrink": 2},
    "recipe": {
        **{"recipe": "robust", "aug_prob": 0.5, "no_pl_reg": False, "labels": "LABELS"},
        "batch_size": 8,  # groups of four in each process
    },
    "logistic": {"loss": "logistic", "penalty": "r1", "labels": "LABELS"},
    "attn_layers": {
        **{"attn_layers": [1, 2], "fq_layers": [2], "fq_dict_size": 8, "cl_reg": True, "no_const": True}
    },
    "aug_types": {"aug_types": ("rotation", "scaling", "bias_field", "noise", "blur"), "ada_target": 0.6},
}


@pytest.fixture(scope="session")
def gradients(tmp_path_factory):
    """Folder with the gradients of every one of OPTIONS, by one process (one/) and by two (two/)."""
    folder = tmp_path_factory.mktemp("gradients")
    shared = {**SMALL, "batch_size": 4, "gradient_accumulate_every": 2, "device": "cpu", "fp16": False}
    data = write_data(folder)
    for n in (6, 7):
        write_volume(data / f"v{n}.nii.gz", random_array(n))
    shared |= {"data": str(data), "aug_prob": 0.7}
    settings = {name: shared | options for name, options in OPTIONS.items()}
    text = json.dumps(settings).replace("LABELS", str(write_labels(folder, data)))
    (folder / "settings.json").write_text(text, encoding="utf-8")
    for name, run in (("one", run_script), ("two", run_two)):
        (folder / name).mkdir()
        ended = run("tests/group_gradients.py", folder / "settings.json", folder / name)
        assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("options", OPTIONS)
def test_two_processes_have_the_gradients_of_one(gradients, options):
    one, two = (torch.load(gradients / name / f"{options}.pt", weights_only=True) for name in ("one", "two"))
    for losses in ("D", "G"):
        assert one[losses].keys() == two[losses].keys() and one[losses] == pytest.approx(
            two[losses], rel=1e-4
        )
    assert {"GP"} <= one["D"].keys() and {"PL", "pl_mean"} <= one["G"].keys()
    tensors = [key for key, value in one.items() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 40
    for network in ("S", "G", "D", "CR", "codes"):
        names = [key for key in tensors if key.startswith(f"{network}.")]
        if not names:
            continue
        largest = max(float(one[key].abs().max()) for key in names)
        for key in names:
            assert float((one[key] - two[key]).abs().max()) < 1e-5 * largest, key


def losses_of(folder):
    """Rows of metrics.csv, {step: D's loss}."""
    with open(folder / "results" / "t" / "metrics.csv", newline="", encoding="utf-8") as file:
        return {int(row["step"]): float(row["D"]) for row in csv.DictReader(file)}


def test_runs_go_over_from_two_processes_to_one_and_back(tmp_path, data):
    settings = {"batch_size": 4, "save_every": 2, "fp16": False, "learning_rate": 1e-5}
    single = tiny_flags(data, tmp_path / "single", num_train_steps=6, **settings)
    run = run_script("stylegan2_pytorch.py", *single)
    assert run.returncode == 0, run.stderr
    for steps, runner in ((2, run_two), (4, run_script), (6, run_two)):
        flags = tiny_flags(data, tmp_path / "mixed", num_train_steps=steps, **settings)
        run = runner("stylegan2_pytorch.py", *flags)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("Checkpoints are in") == 1  # one process alone speaks
    expected, found = losses_of(tmp_path / "single"), losses_of(tmp_path / "mixed")
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert found == pytest.approx(expected, rel=1e-3)  # the same run, up to rounding
    odd = tiny_flags(data, tmp_path / "odd", **settings | {"batch_size": 3})
    refused = run_two("stylegan2_pytorch.py", *odd)
    assert refused.returncode != 0
    assert "--batch_size 3 cannot be shared by 2 processes: choose a multiple of 2" in refused.stderr


def test_previews_and_evaluations_are_shared_out(tmp_path, data):
    settings = {"fp16": False, "num_image_tiles": 3, "calculate_fid_every": 1, "embedding": "random"}
    settings["cache"] = "disk"
    settings |= {"calculate_fid_num_images": 7, "num_train_steps": 1, "learning_rate": 1e-6}
    scores, pictures = [], []
    for name, runner in (("one", run_script), ("two", run_two)):
        run = runner("stylegan2_pytorch.py", *tiny_flags(data, tmp_path / name, **settings))
        assert run.returncode == 0 and "could not be evaluated" not in run.stderr, run.stderr
        results = tmp_path / name / "results" / "t"
        with open(results / "fid_scores.txt", newline="", encoding="utf-8") as file:
            scores.append({row["metric"]: float(row["value"]) for row in csv.DictReader(file)})
        pictures.append(np.asarray(Image.open(results / "previews" / "000000-G.png"), dtype=float))
    assert scores[0].keys() == scores[1].keys() and len(scores[0]) > 10
    # A voxel's rounding changes MedicalNet's noise, seeded by the content; MS-SSIM is of other pairs.
    steady = [m for m in scores[0] if m in ("FD-random", "KD-random") or m.startswith("W1-")]
    assert len(steady) == 6  # noise has no vessels: of the measures, those that can be 0
    for metric in steady:
        assert scores[1][metric] == pytest.approx(scores[0][metric], rel=1e-2, abs=1e-3), metric
    assert pictures[0].std() > 1 and np.abs(pictures[0] - pictures[1]).max() <= 1


def test_a_killed_process_ends_the_job_and_the_run_goes_on(tmp_path, data):
    flags = tiny_flags(data, tmp_path, batch_size=2, save_every=3, num_train_steps=100000)
    job = start_by_torchrun(*flags, folder=tmp_path)
    model = tmp_path / "models" / "t" / "model_1.pt"
    deadline = time.monotonic() + 120
    while not model.exists():
        assert time.monotonic() < deadline and job.poll() is None, job.texts()
        time.sleep(0.1)
    os.kill(ranks_of(job)[1], signal.SIGKILL)
    assert job.wait(timeout=60) != 0
    log = "".join(job.texts())
    assert "Another process of this training has ended" in log
    assert re.search(r"The same command continues from the last", log)
    last = max(int(p.stem.split("_")[1]) for p in (tmp_path / "models" / "t").glob("model_*.pt"))
    flags = tiny_flags(data, tmp_path, batch_size=2, save_every=3, num_train_steps=3 * last + 3)
    run = run_script("stylegan2_pytorch.py", *flags)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "models" / "t" / f"model_{last + 1}.pt").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_all(tmp_path, data, number):
    """To one process, which torchrun tells of, or to torchrun, by Ctrl-C: its own status is 1."""
    flags = tiny_flags(data, tmp_path, batch_size=2, save_every=10**5, num_train_steps=100000)
    job = start_by_torchrun(*flags, folder=tmp_path)
    table = tmp_path / "results" / "t" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not table.exists() or len(table.read_text(encoding="utf-8").splitlines()) < 4:
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.1)
    os.kill(ranks_of(job)[1] if number == signal.SIGTERM else job.pid, number)
    assert job.wait(timeout=60) == 1
    log = "".join(job.texts())
    assert f"{number.name}: saved after step" in log, log
    assert number == signal.SIGINT or re.search(r"exitcode *: 143", log), log
    step = torch.load(tmp_path / "models" / "t" / "model_0.pt", weights_only=True)["step"]
    assert step == len(table.read_text(encoding="utf-8").splitlines()) - 1 > 2


def start_by_torchrun(*flags, folder):
    """Process of torchrun, which starts a training on two new interpreters."""
    two = ("--standalone", "--nproc_per_node", 2)
    return start_script(
        torch.distributed.run.__file__, *two, ROOT / "stylegan2_pytorch.py", *flags, folder=folder
    )


def ranks_of(job):
    """Numbers of the processes that torchrun has started, {rank: pid}."""
    found = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, encoding="utf-8")
    about = {int(pid): environment_of(pid) for pid in found.stdout.split()}
    return {int(values["RANK"]): pid for pid, values in about.items() if "RANK" in values}


def environment_of(pid):
    """Environment of a process."""
    with open(f"/proc/{pid}/environ", errors="replace", encoding="utf-8") as file:
        return dict(entry.split("=", 1) for entry in file.read().split("\0") if "=" in entry)
