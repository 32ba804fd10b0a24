"""How long and on which GPU: what a dry run says."""

from volumetric import pages, timing

import pytest
import torch

import stylegan2_pytorch as sg


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(40, "40 seconds"), (600, "10 minutes"), (12600, "3.5 hours"), (20 * 86400, "20 days")],
)
def test_durations_are_words(seconds, words):
    assert pages.duration(seconds) == words


def test_busy_cores_are_said(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert timing.threads_in_the_way(threads=2, cores=2, load=0.2) == ""
    assert timing.threads_in_the_way(threads=1, cores=2, load=1.0) == ""
    text = timing.threads_in_the_way(threads=64, cores=2, load=0.0)
    assert "64 threads compute on 2 usable cores" in text and "OMP_NUM_THREADS=2" in text
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert timing.threads_in_the_way(threads=64, cores=2, load=0.0) == ""
    monkeypatch.delenv("OMP_WAIT_POLICY")
    cores = timing.os.cpu_count()
    assert "OMP_NUM_THREADS=1 " in timing.threads_in_the_way(threads=cores + 1, cores=cores, load=8.0 + cores)


def test_kinds_of_steps(make_config):
    kinds = sg.Trainer(make_config(recipe="robust", num_train_steps=8)).step_kinds()
    assert kinds == {0: 0.25, 1: 0.75}
    published = sg.Trainer(make_config(num_train_steps=10048)).step_kinds()
    assert sum(published.values()) == pytest.approx(1) and min(published) == 0
    path_lengths = [
        step for step in published if sg.Trainer.path_length_is_due(sg.Trainer(make_config()), step)
    ]
    assert len(path_lengths) == 1 and published[path_lengths[0]] == pytest.approx(157 / 10048)


def test_a_dry_run_says_how_long(make_config, capsys):
    sg.train_from_folder(make_config(dry_run=True, num_train_steps=3600))
    text = capsys.readouterr().out
    assert "for 3600 steps on cpu" in text and "volumes/s" in text
    assert "it fits on a GPU of 8 GiB or more" in text


def test_what_does_not_fit_is_not_timed(make_config, monkeypatch, capsys):
    monkeypatch.setattr(timing, "usable_memory", lambda: 2**20)
    assert timing.seconds_on_cpu(None, make_config(), None, {"gradient penalty": 2**22}) is None
    timing.print_expectations(make_config(), torch.device("cpu"), None, {"preview": 300 * 2**30})
    text = capsys.readouterr().out
    assert "Not timed: a step takes 300.0 GiB" in text and "lower --batch_size" in text
