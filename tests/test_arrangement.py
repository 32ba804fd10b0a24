"""How steps are arranged on a GPU: by time, by memory, and as before; with a stand-in for GPU and clock."""

import copy
from types import SimpleNamespace

from volumetric import arrangement, memory, parallel, replay
from volumetric.arrangement import Arrangement
from volumetric.cli import UserError

import pytest
import torch

import stylegan2_pytorch as sg
from tests.test_replay import StandIn

GIB = 2**30
CARD = {"card": "a card"}


def pretend(monkeypatch, total, peak):
    """A GPU of so many bytes, on which `peak` returns the bytes of what ran last."""
    cuda = {"reset_peak_memory_stats": lambda _: None, "empty_cache": lambda: None}
    cuda |= {"max_memory_allocated": lambda _: peak(), "get_device_name": lambda _: "a card"}
    cuda |= {"get_device_properties": lambda _: SimpleNamespace(total_memory=total)}
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)


class SmallGpu:
    """A trainer that takes a GiB for each volume penalised at once, and four for a second micro-batch."""

    device, at_once, penalty_part, arrangement = "cuda:0", 1, 2, None

    def __init__(self, least=0, deterministic=False, others=True, replays=False, steps=100000, slowest=0):
        self.least, self.replays = least, replays
        self.config = SimpleNamespace(deterministic=deterministic, num_train_steps=steps)
        self.group = SimpleNamespace(
            agree=lambda condition: condition and others,
            collect=lambda seconds: [seconds, slowest],
            tell=lambda thing: thing,
        )

    def arrangements(self):
        return [(2, 8), (2, 2), (1, 8), (1, 2)]

    def arrange(self, way):
        self.at_once, self.penalty_part = way.at_once, way.penalty_part

    def rehearsals(self):
        def penalty():
            self.peak = max(self.penalty_part + 4 * (self.at_once - 1), self.least) * GIB
            if self.peak > 12 * GIB:
                raise torch.OutOfMemoryError("no memory")

        def preview():
            self.peak = 4 * GIB

        return [("gradient penalty", penalty), ("preview", preview)]

    def may_replay(self):
        return self.replays


@pytest.fixture
def choose(monkeypatch):
    """Function that arranges a trainer, with {Arrangement: seconds} as a clock."""

    def chosen(trainer, times=None, former=None):
        pretend(monkeypatch, 12 * GIB, lambda: trainer.peak)
        tried = []

        def trial(trainer, way):
            tried.append(way)
            return times[way]

        monkeypatch.setattr(arrangement, "trial", trial)
        return arrangement.choose(trainer, former), tried

    return chosen


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, (2, 2)),  # (2, 8) would take all of the 12 GiB
        ({"least": 10}, (1, 2)),
        ({"deterministic": True}, (1, 2)),
        ({"others": False}, (1, 2)),  # another process has no room
        ({"replays": True}, (1, 2, True)),  # graphs have memory each: 2 and 4 GiB fit, 8 and 4 do not
        ({"replays": True, "least": 8}, (2, 2)),  # no graph finds room: as without
    ],
)
def test_short_runs_take_the_fewest_launches_that_fit(choose, settings, chosen):
    trainer = SmallGpu(**settings, steps=1000)
    found, tried = choose(trainer)
    assert found.arrangement == Arrangement(*chosen) and not tried and not found.lines()
    assert (trainer.at_once, trainer.penalty_part) == chosen[:2]
    assert found.peaks.keys() == {"gradient penalty", "preview"}
    assert (trainer.arrangement is None) == trainer.config.deterministic


def test_what_does_not_fit_is_told(choose):
    with pytest.raises(UserError, match=r"The step with gradient penalty does not fit into the 12\.0 GiB"):
        choose(SmallGpu(least=13))


TWO, WHOLE, LEAST = Arrangement(2, 2), Arrangement(1, 8), Arrangement(1, 2)
REPLAYED = Arrangement(1, 2, True)


@pytest.mark.parametrize(
    ("settings", "times", "chosen"),
    [
        ({}, {TWO: 3.0, WHOLE: 2.0, LEAST: 2.5}, WHOLE),
        ({}, {TWO: 2.0, WHOLE: 2.03, LEAST: 2.05}, TWO),
        ({}, {TWO: 2.0, WHOLE: 2.03, LEAST: 2.03}, LEAST),  # a tie: the one of least memory
        ({"slowest": 5.0}, {TWO: 1.0, WHOLE: 2.0, LEAST: 6.0}, TWO),  # by the slowest of two processes
        ({"replays": True}, {TWO: 3.0, WHOLE: 2.0, LEAST: 2.5, REPLAYED: 1.0}, REPLAYED),
        ({"replays": True}, {TWO: 1.9, WHOLE: 1.0, LEAST: 2.5, REPLAYED: 2.0}, WHOLE),
        ({"replays": True}, {TWO: 1.9, WHOLE: 2.0, LEAST: 2.5, REPLAYED: float("inf")}, TWO),  # no memory
    ],
    ids=str,
)
def test_the_fastest_that_fits_is_taken(choose, settings, times, chosen):
    trainer = SmallGpu(**settings)
    found, tried = choose(trainer, times)
    assert found.arrangement == chosen and tried[0] == WHOLE and set(tried) == set(times)
    assert (trainer.at_once, trainer.penalty_part) == (chosen.at_once, chosen.penalty_part)
    (line,) = found.lines()
    assert line.endswith(f"; taken: {chosen}") and "inf" not in line


def test_trials_take_a_small_part_of_a_run(choose, monkeypatch):
    times = {TWO: 3.0, WHOLE: 2.0, LEAST: 1.0}
    two_trials = int(2 * arrangement.STEPS_OF_TRIAL / arrangement.MOST_OF_RUN)
    assert choose(SmallGpu(steps=two_trials), times)[1] == [WHOLE, TWO]
    clock = iter([0, 1, arrangement.MOST_SECONDS + 1])
    monkeypatch.setattr(arrangement, "monotonic", lambda: next(clock))
    assert choose(SmallGpu(), times)[1] == [WHOLE, TWO]


def test_a_continued_run_is_arranged_as_before(choose):
    times = {TWO: 3.0, WHOLE: 2.0, LEAST: 1.0}
    first = SmallGpu()
    choose(first, times)
    assert first.arrangement == {"at_once": 1, "penalty_part": 2, "replayed": False, **CARD}
    for former, expected in (
        ({"at_once": 2, "penalty_part": 2, "replayed": False, **CARD}, TWO),
        ({"at_once": 2, "penalty_part": 2, "replayed": False, "card": "another"}, LEAST),
        ({"at_once": 2, "penalty_part": 8, "replayed": False, **CARD}, LEAST),  # it does not fit
        ({"at_once": 2, "penalty_part": 2, "replayed": True, **CARD}, LEAST),  # steps are not alike
        ("damaged", LEAST),
    ):
        found, tried = choose(SmallGpu(), times, former)
        assert found.arrangement == expected and bool(tried) == (expected == LEAST)


def everything(trainer):
    """A copy of what a run is made of."""
    state = (trainer.GAN, trainer.G_opt, trainer.D_opt, trainer.scaler)
    kept = [copy.deepcopy(one.state_dict()) for one in state]
    kept += [trainer.step, trainer.pl_mean, trainer.step_volumes, trainer.rehearsing, trainer.loader]
    kept += [torch.get_rng_state(), trainer.ada and trainer.ada.state(), trainer.elsewhere]
    return [*kept, [(p.grad, p.requires_grad) for p in trainer.GAN.parameters()]]


def test_trials_leave_no_trace(make_config, monkeypatch):
    trainer = sg.Trainer(make_config(num_train_steps=40000, ada_target=0.6, fp16=False))
    trainer.penalty_part = 2
    before, timed, kinds = everything(trainer), [], len(trainer.gradients())
    work = {Arrangement(2, 2, True): 3.0, Arrangement(2, 2): 2.0, Arrangement(1, 2, True): 1.0}

    def seconds(function, device):
        way = Arrangement(trainer.at_once, trainer.penalty_part, trainer.replay is not None)
        timed.append(way)
        torch.rand(1)  # that something draws
        function()
        assert any(p.grad is not None for p in trainer.GAN.parameters())
        return work.get(way, 4.0)

    StandIn.trainer, StandIn.replays = trainer, 0
    monkeypatch.setattr(replay, "Graph", StandIn)
    monkeypatch.setattr(arrangement, "seconds", seconds)
    for module, name, runs in (
        (replay, "ORDINARY_RUNS", 1),
        (arrangement, "ORDINARY", 2),
        (arrangement, "TIMED", 1),
    ):
        monkeypatch.setattr(module, name, runs)
    pretend(monkeypatch, 12 * GIB, lambda: GIB)
    choice = arrangement.choose(trainer)
    after = everything(trainer)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert choice.arrangement == Arrangement(1, 2, True) and trainer.replay is not None
    assert set(timed) == set(choice.times) and len(timed) == len(choice.times) * kinds * 3
    assert StandIn.replays == 2 * kinds * len([way for way in choice.times if way.replayed])
    share = sum(share for share, _ in trainer.gradients())  # halves of D and of G
    assert share == pytest.approx(2) and choice.times[choice.arrangement] == pytest.approx(share)


def test_a_rehearsal_that_runs_out_of_memory_leaves_no_trace(make_config, monkeypatch):
    trainer = sg.Trainer(make_config())
    before = everything(trainer)

    def fail(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(trainer.scaler, "scale", fail)
    for _, work in trainer.rehearsals()[:2]:
        with pytest.raises(torch.OutOfMemoryError):
            work()
    monkeypatch.undo()
    torch.testing.assert_close(before, everything(trainer), rtol=0, atol=0)
    monkeypatch.setattr(arrangement, "seconds_of_gradients", fail)
    assert arrangement.trial(trainer, Arrangement(1, 2)) == float("inf")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("not permitted")])
def test_only_memory_excuses_a_capture_that_fails(make_config, monkeypatch, error):
    def fail(*_):
        raise error

    trainer = sg.Trainer(make_config())
    monkeypatch.setattr(replay, "Graph", StandIn)
    monkeypatch.setattr(StandIn, "capture", fail)
    if isinstance(error, torch.OutOfMemoryError):
        assert arrangement.trial(trainer, Arrangement(1, 2, True)) == float("inf")
        return
    with pytest.raises(UserError, match=r"\(not permitted\): give --cuda_graphs False"):
        arrangement.trial(trainer, Arrangement(1, 2, True))


def test_a_run_remembers_how_it_was_arranged(make_config, monkeypatch):
    """As on a GPU: chosen before the run, in its checkpoint, and taken again."""
    formers, way = [], Arrangement(2, 2)

    def choose(trainer, former):
        formers.append(former)
        trainer.arrange(way)
        trainer.arrangement = {"at_once": 2}
        return arrangement.Choice(way, {"preview": GIB}, {way: 0.5, Arrangement(1, 2): 1.0})

    begin = sg.Trainer.__init__

    def on_cpu(self, config, *args, **settings):
        begin(self, config, *args, **settings)
        self.device = torch.device("cpu")

    monkeypatch.setattr(sg.training, "choose", choose)
    monkeypatch.setattr(parallel, "open_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(memory, "print_peaks", lambda *_: None)
    monkeypatch.setattr(sg.Trainer, "__init__", on_cpu)
    for steps in (1, 2):
        trainer = sg.train_from_folder(make_config(num_train_steps=steps))
        assert trainer.at_once == 2
        assert any("2 x 2 0.5, 1 x 2 1; taken: 2 x 2" in line for line in trainer.told)
    assert formers == [None, {"at_once": 2}]
