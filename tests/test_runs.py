"""The loop by itself, with a trainer that is not StyleGAN2: a line fitted to noisy points."""

import csv
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from volumetric import runs
from volumetric.cli import UserError
from volumetric.files import atomic_path, clear_parts, part_of
from volumetric.parallel import Group, host_random

import numpy as np
import pytest
import torch
from torch import nn


class LineTrainer:
    """Fits y = 2 x + 1 from seeded samples; goes wrong, or gets a signal, where it is told to."""

    def __init__(self, folder, steps, seed=0, events=None, **plan):
        given = {"models": folder / "models", "results": folder / "results", "num_train_steps": steps}
        given |= {"save_every": 4, "preview_every": 3, "early_until": 0, "columns": ("loss",)}
        self.plan = runs.Plan(**given | {"shown": ("loss",), "lowest_is_best": ("slope error",), **plan})
        self.group, self.device = Group(), torch.device("cpu")
        torch.manual_seed(seed)
        self.line, self.seed = nn.Linear(1, 1), seed
        self.optimizer = torch.optim.Adam(self.line.parameters(), lr=0.1)
        self.step, self.reverts, self.best = 0, 0, None
        self.events = events or {}  # {step: function of the trainer}, each happens once

    def train_step(self, log):
        x = torch.from_numpy(host_random(self.seed, self.reverts, self.step).normal(size=(16, 1))).float()
        loss = (self.line(x) - 2 * x - 1).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        event = self.events.pop(self.step, None)
        loss = loss.detach() * (event(self) or 1 if event else 1)
        log.add(self.step, {"loss": loss}, lambda: "Points of the step: 16.")
        self.step += 1

    def state(self):
        return {
            "line": self.line.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in ("step", "reverts", "best")},
        }

    def load(self, state):
        self.line.load_state_dict(state["line"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.reverts, self.best = state["step"], state["reverts"], state["best"]

    def preview(self):
        return {"line": np.full((8, 8), 255 * (self.step % 2), np.uint8)}

    def evaluate(self, received):
        return {"slope error": abs(self.line.weight.item() - 2)}


def rows_of(trainer):
    with open(trainer.plan.results / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def losses_of(trainer):
    return [row["loss"] for row in rows_of(trainer)]


def held_by(trainer):
    """{number: step} of its checkpoints, in the order of the steps."""
    folder = trainer.plan.models
    return {n: runs.read_state(folder / f"model_{n}.pt")["step"] for n in runs.checkpoint_numbers(folder)}


def ended_at(step, folder, steps=99, **plan):
    """A trainer that SIGTERM ended after so many steps."""
    events = {step - 1: lambda _: os.kill(os.getpid(), signal.SIGTERM)}
    return runs.run(LineTrainer(folder, steps, events=events, **plan))


def test_a_run_in_pieces_is_the_run_in_one(tmp_path):
    whole = runs.run(LineTrainer(tmp_path / "whole", 11))
    for steps in (2, 5, 5, 11):
        parts = runs.run(LineTrainer(tmp_path / "parts", steps))
    assert torch.equal(whole.line.weight, parts.line.weight) and parts.step == 11
    assert losses_of(whole) == losses_of(parts) and len(losses_of(whole)) == 11
    assert float(losses_of(whole)[-1]) < float(losses_of(whole)[0])
    previews = sorted(p.name for p in (tmp_path / "whole" / "results" / "previews").iterdir())
    assert previews == [f"{step:06d}-line.png" for step in (0, 3, 6, 9)]
    assert runs.checkpoint_numbers(whole.plan.models) == [0, 1, 2, 3]  # of steps 0, 4, 8 and 11
    assert held_by(parts) == {1: 4, 2: 8, 3: 11}  # what was between, and at the ends of parts, is gone


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(tmp_path, number, capsys):
    before = signal.getsignal(number)
    stopped = runs.run(LineTrainer(tmp_path, 99, events={6: lambda _: os.kill(os.getpid(), number)}))
    with pytest.raises(SystemExit) as ended:
        runs.end_by_signal(stopped)
    assert stopped.ended_by == number and ended.value.code == {"SIGINT": 130, "SIGTERM": 143}[number.name]
    assert stopped.step == 7 and held_by(stopped) == {0: 0, 1: 4, 2: 7}
    assert f"{number.name}: saved after step 7. The same command continues" in capsys.readouterr().out
    assert signal.getsignal(number) is before


def test_a_signal_in_the_last_step_is_no_early_end(tmp_path):
    events = {7: lambda _: os.kill(os.getpid(), signal.SIGTERM)}
    ended = runs.run(LineTrainer(tmp_path, 8, events=events))
    assert ended.step == 8 and ended.ended_by is None
    runs.end_by_signal(ended)
    assert runs.run(LineTrainer(tmp_path, 8)).ended_by is None  # it was there already


def test_nan_goes_back_with_other_numbers(tmp_path, capsys):
    whole = runs.run(LineTrainer(tmp_path / "whole", 8))
    broken = runs.run(LineTrainer(tmp_path / "nan", 8, events={5: lambda _: float("nan")}))
    assert broken.step == 8 and broken.reverts == 1
    assert losses_of(broken)[:4] == losses_of(whole)[:4] and losses_of(broken)[4:] != losses_of(whole)[4:]
    assert "loss is not finite in step 5; the run went back to" in capsys.readouterr().err
    superseded = tmp_path / "nan" / "results" / "metrics-superseded.csv"
    assert len(superseded.read_text(encoding="utf-8").splitlines()) == 1 + 5


def test_nan_again_and_again_ends_the_run(tmp_path):
    class Hopeless(LineTrainer):
        def train_step(self, log):
            self.events = {2: lambda _: float("nan")}
            super().train_step(log)

    with pytest.raises(
        runs.NanException, match=r"not finite in step 2.*Points of the step: 16\..*--learning"
    ):
        runs.run(Hopeless(tmp_path, 8))
    with pytest.raises(runs.NanException, match=r"--fp16 False, in a new run\.$"):
        runs.run(Hopeless(tmp_path, 8, is_fixed=True))


def test_a_weight_that_is_not_finite_at_a_save_goes_back(tmp_path, capsys):
    def break_weight(trainer):
        with torch.no_grad():
            trainer.line.weight.fill_(float("inf"))

    trainer = runs.run(LineTrainer(tmp_path, 6, events={3: break_weight}))
    assert trainer.step == 6 and trainer.reverts == 1 and trainer.line.weight.isfinite().all()
    assert "a weight is not finite after step 4; the run went back" in capsys.readouterr().err


def test_the_best_model_is_kept(tmp_path, capsys):
    trainer = runs.run(LineTrainer(tmp_path, 8, evaluate_every=2, columns=("loss", "slope error")))
    errors = [float(row["slope error"]) for row in rows_of(trainer) if row.get("slope error")]
    best = runs.read_state(tmp_path / "models" / "model_best.pt")
    assert best["best"]["value"] == pytest.approx(min(errors), rel=1e-4)
    assert best["step"] == best["best"]["step"] == 2 * (1 + int(np.argmin(errors)))
    assert "has the lowest slope error so far" in capsys.readouterr().out


def test_old_checkpoints_go(tmp_path):
    runs.run(LineTrainer(tmp_path, 16, keep_checkpoints=2))
    assert runs.checkpoint_numbers(tmp_path / "models") == [3, 4]


def test_a_due_checkpoint_stays_when_a_signal_comes_soon_after_it(tmp_path):
    whole = runs.run(LineTrainer(tmp_path / "whole", 12))
    parts = tmp_path / "parts"
    assert held_by(ended_at(5, parts)) == {0: 0, 1: 4, 2: 5}
    assert held_by(ended_at(6, parts)) == {0: 0, 1: 4, 2: 6}  # one such file, however many signals
    assert held_by(ended_at(8, parts)) == {0: 0, 1: 4, 2: 8}  # a due one has its own number again
    assert runs.find_checkpoint(parts / "models").name == "model_2.pt"
    ended = ended_at(9, parts)
    assert held_by(ended) == {0: 0, 1: 4, 2: 8, 3: 9}
    assert runs.find_checkpoint(parts / "models").name == "model_3.pt"
    last = runs.run(LineTrainer(parts, 12))
    assert held_by(last) == held_by(whole) == {0: 0, 1: 4, 2: 8, 3: 12}
    assert torch.equal(whole.line.weight, last.line.weight) and losses_of(whole) == losses_of(last)


def test_a_signal_before_the_first_due_checkpoint(tmp_path):
    """It takes the place of the networks that have learned nothing, and goes with the first due one."""
    assert held_by(ended_at(3, tmp_path)) == {0: 3}
    assert held_by(ended_at(7, tmp_path)) == {1: 4, 2: 7}


def test_the_end_of_a_run_replaces_no_due_checkpoint(tmp_path):
    assert held_by(runs.run(LineTrainer(tmp_path, 9))) == {0: 0, 1: 4, 2: 8, 3: 9}
    assert held_by(runs.run(LineTrainer(tmp_path, 10))) == {0: 0, 1: 4, 2: 8, 3: 10}
    assert held_by(runs.run(LineTrainer(tmp_path, 13, keep_checkpoints=2))) == {3: 12, 4: 13}


def test_nan_goes_back_to_the_step_of_a_signal(tmp_path, capsys):
    ended_at(5, tmp_path)
    again = runs.run(LineTrainer(tmp_path, 12, events={5: lambda _: float("nan")}))
    assert "went back to" in capsys.readouterr().err and again.reverts == 1
    assert held_by(again) == {0: 0, 1: 4, 2: 8, 3: 12}
    assert len(rows_of(again)) == 12


def test_a_run_that_a_signal_ended_goes_back_to_a_due_checkpoint(tmp_path):
    trainer = ended_at(9, tmp_path)
    runs.set_aside_later(trainer.plan.models, 1)  # --load_from 1
    assert held_by(runs.run(LineTrainer(tmp_path, 8))) == {0: 0, 1: 4, 2: 8}
    assert sorted(p.name for p in (tmp_path / "models" / "after-model_1").iterdir()) == [
        "model_2.pt",
        "model_3.pt",
    ]


def test_folders_of_earlier_versions_lose_nothing(tmp_path):
    """Whose checkpoints do not say whether they were due, and had a signal's step in a due one's place."""
    trainer = ended_at(8, tmp_path)
    late = LineTrainer(tmp_path, 99)
    late.load(trainer.state() | {"step": 10})
    torch.save(late.state(), tmp_path / "models" / "model_2.pt")
    assert held_by(ended_at(11, tmp_path)) == {0: 0, 1: 4, 2: 10, 3: 11}
    assert held_by(runs.run(LineTrainer(tmp_path, 12))) == {0: 0, 1: 4, 2: 10, 3: 12}


def test_another_save_every_loses_nothing(tmp_path):
    """The step inside decides which checkpoint is the newest, not its number alone."""
    runs.run(LineTrainer(tmp_path, 6, save_every=1))
    kept = runs.run(LineTrainer(tmp_path, 20, save_every=7, keep_checkpoints=2))
    assert list(held_by(kept).values()) == [14, 20]
    last = runs.run(LineTrainer(tmp_path, 23, save_every=3))
    assert list(held_by(last).values()) == [14, 21, 23]  # step 20 was due to no one


@pytest.mark.parametrize("every", [1, 3, 7, 490, 500])
def test_a_signals_file_goes_whatever_save_every_becomes(tmp_path, every):
    ended = ended_at(6, tmp_path, save_every=5)
    assert held_by(ended) == {0: 0, 1: 5, 2: 6}
    steps = list(held_by(runs.run(LineTrainer(tmp_path, 8, save_every=every))).values())
    assert steps == [0, 5, *(n for n in (7,) if n % every == 0), 8]


def test_another_save_every_keeps_all_that_is_there(tmp_path):
    runs.run(LineTrainer(tmp_path, 6, save_every=1))
    runs.run(LineTrainer(tmp_path, 15, save_every=7))
    models = tmp_path / "models"
    steps = [runs.read_state(models / f"model_{n}.pt")["step"] for n in runs.checkpoint_numbers(models)]
    assert steps == [*range(7), 7, 14, 15]
    runs.set_aside_later(models, 6)
    assert runs.read_state(runs.find_checkpoint(models))["step"] == 6
    assert len(list((models / "after-model_6").iterdir())) == 3


def test_a_finished_run_says_so(tmp_path, capsys):
    runs.run(LineTrainer(tmp_path, 2))
    runs.run(LineTrainer(tmp_path, 2))
    assert "is at step 2 already: raise --num_train_steps" in capsys.readouterr().out


def test_a_checkpoint_of_another_program_is_named(tmp_path):
    (tmp_path / "models").mkdir()
    torch.save([1], tmp_path / "models" / "model_0.pt")
    with pytest.raises(UserError, match=r"model_0\.pt is not a checkpoint: it holds a list"):
        runs.run(LineTrainer(tmp_path, 2))


# ---- files


def test_writers_of_one_file_do_not_meet(tmp_path):
    """Each has a part of its own; the last to finish decides, and nothing is left."""
    path, barrier, errors = tmp_path / "v.txt", threading.Barrier(8), []

    def write(number):
        try:
            for _ in range(20):
                with atomic_path(path) as part:
                    barrier.wait(timeout=60)
                    part.write_text(str(number) * 1000, encoding="utf-8")
                    barrier.wait(timeout=60)
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and list(tmp_path.iterdir()) == [path]
    assert len(set(path.read_text(encoding="utf-8"))) == 1 and len(path.read_text(encoding="utf-8")) == 1000


def test_parts_of_dead_processes_alone_are_removed(tmp_path):
    alive = part_of(tmp_path / "a.pt")
    dead = alive.with_name(alive.name.replace(str(os.getpid()), "999999999"))
    elsewhere = tmp_path / ".part-00000000-999999999-ab-a.pt"
    folder = dead.with_name(f"{dead.name}-folder")
    for path in (alive, dead, elsewhere, tmp_path / "a.pt"):
        path.write_text("", encoding="utf-8")
    folder.mkdir()
    clear_parts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, elsewhere, tmp_path / "a.pt"])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells of ended processes")
def test_a_process_that_nobody_waits_for_is_dead(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        part = part_of(tmp_path / "a.pt")
        part.with_name(part.name.replace(str(os.getpid()), str(ended.pid))).write_text("", encoding="utf-8")
        clear_parts(tmp_path)
        assert not list(tmp_path.iterdir())
