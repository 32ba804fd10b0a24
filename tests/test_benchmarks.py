"""What `make gpu` measures, on a CPU: its commands, its tables with tiny networks, its share of a peak."""

import re
import sys
from pathlib import Path

from volumetric import replay
from volumetric.cli import parse_cli

import pytest
import torch

from sample_data.phantom import PhantomConfig
from stylegan2_pytorch import TrainConfig
from tests.benchmarks import gpu, launches, step
from tests.benchmarks.scaling import ScalingConfig
from tests.conftest import ROOT, SMALL
from tests.test_replay import StandIn

CONFIGS = {
    "launches.py": launches.LaunchesConfig,
    "step.py": step.StepConfig,
    "scaling.py": ScalingConfig,
    "phantom.py": PhantomConfig,
    "stylegan2_pytorch.py": TrainConfig,
}


@pytest.fixture
def one_gpu(monkeypatch):
    """A GPU that can be named, not used."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_parts_of_make_gpu_are_commands_that_there_are(tmp_path, one_gpu):
    parts = gpu.parts(tmp_path)
    names = [name for name, _, _ in parts]
    assert names[0] == "published medium_v1" and len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w ]+", name) for name in names)  # files of these names are handed back
    parsed = {}
    for name, limit, (python, script, *flags) in parts:
        assert python == sys.executable and 20 < limit <= 240
        if script != "-m":
            assert (ROOT / script).is_file()
        if (config := CONFIGS.get(Path(script).name)) is not None:
            parsed[name] = parse_cli(config, flags)
    assert parsed["dry run"].gradient_accumulate_every == 4 and parsed["dry run"].name == "published"
    assert (parsed["dry run"].recipe, parsed["training"].recipe) == ("published", "robust")
    assert parsed["robust mixed penalties"].penalty_precision == "mixed"
    assert parsed["published medium_v1"].plain and parsed["published medium_v1"].passes == [1, 2, 4]


def test_output_of_a_part_is_there_while_it_runs(tmp_path):
    code = "import time; print('a row'); time.sleep(60)"
    ended, seconds, printed = gpu.run_part("a part", 5, [sys.executable, "-c", code], tmp_path)
    assert ended == "stopped after 5 s" and seconds < 30 and printed == "a row"


def test_work_is_that_of_the_passes_through_the_networks():
    """By hand: forward passes of each phase, of convolutions alone; the mapping network adds 1 %."""
    config = launches.LaunchesConfig(config="demo", batch_size=2, micro_batches=2, device="cpu")
    g, d = step.flops(config)
    by_hand = 4 * sum(step.SHARES[p] * (a * g + b * d) for p, (a, b) in step.PASSES.items()) / 1e3
    assert launches.work_of(config) == pytest.approx(by_hand, rel=0.02)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", None),  # another card, slower
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA GeForce RTX 3090 Ti", None),
    ],
)
def test_a_share_is_of_the_peak_of_this_very_card(name, peak):
    assert launches.dense_peak(name) == peak
    share = f"{197.8 / peak:.3f}" if peak else ""
    cells = launches.Measured(0.1, 0.2, 0.5, 2048).cells(work=98.9, peak=peak)
    assert cells == f"0.100 | 0.200 | 0.500 | 2.0 | 197.8 | {share}"


def test_tables_of_the_step_have_rows_replayed_and_plain(monkeypatch, capsys):
    def make(config, at_once):
        StandIn.trainer = made(config, at_once)
        return StandIn.trainer

    made = launches.make
    monkeypatch.setitem(launches.CONFIGS, "demo", SMALL)
    monkeypatch.setattr(launches, "make", make)
    monkeypatch.setattr(launches, "work_of", lambda config: 0.5)
    monkeypatch.setattr(launches, "REPEATS", 1)
    monkeypatch.setattr(launches, "PLAIN_REPEATS", 1)
    monkeypatch.setattr(replay, "Graph", StandIn)
    monkeypatch.setattr(replay, "ORDINARY_RUNS", 1)
    StandIn.replays = 0
    config = launches.LaunchesConfig(config="demo", batch_size=2, micro_batches=2, device="cpu", plain=True)
    launches.print_measured(config)
    text = capsys.readouterr().out
    assert StandIn.replays > 4 and "not known of CPU: no share" in text
    rows = [line for line in text.splitlines() if re.match(r"\| [12] \| (yes|no) \| ", line)]
    assert [row[2:9] for row in rows] == ["1 | no ", "1 | yes", "2 | no ", "2 | yes"]
    assert all(row.count("|") == 9 and "Error" not in row for row in rows)
    plain = [line for line in text.splitlines() if line.startswith("The plain formulation in")]
    assert "float32: an ordinary step" in plain[0] and " and " in plain[0] and "(2, graphs);" in plain[0]
    assert "bfloat16: an ordinary step" in plain[1] and "on average" not in plain[1]


def test_what_finds_no_memory_leaves_a_row(monkeypatch, capsys):
    def fail(*_):
        raise torch.OutOfMemoryError("no memory")

    for name in ("measure", "measure_plain"):
        monkeypatch.setattr(launches, name, fail)
    monkeypatch.setattr(launches, "work_of", lambda config: 0.5)
    launches.print_measured(launches.LaunchesConfig(micro_batches=1, device="cpu", plain=True))
    text = capsys.readouterr().out
    assert f"| 1 | yes | OutOfMemoryError{5 * ' | '} |" in text
    assert "The plain formulation in float32: OutOfMemoryError" in text
