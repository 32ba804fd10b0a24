"""The membership test on scores: its level, what it sees, and what it says where it could not have seen."""

import json

from volumetric.cli import UserError

import numpy as np
import pytest
from scipy import stats

from tests.test_trust import write_set
from trust import membership, rates, scorecard


def scores(number, seed, shift=0.0):
    """Scores of so many volumes, whose copies would stand out as those of phantoms do."""
    g = np.random.default_rng(seed)
    score, among = g.normal(size=number), g.normal(size=number) + shift
    return membership.Scores(score, np.maximum(score, 5 + 0.3 * g.normal(size=number)), among)


def with_copies(number, copies, seed):
    """Scores of members, some of whom have a copy among the generated volumes."""
    found = scores(number, seed)
    found.score[:copies] = found.with_copy[:copies]
    return found


def flagged(number, copies, runs):
    """Share of runs in which the test says that members are told."""
    found = []
    for run in range(runs):
        members, unseen = with_copies(number, copies, [number, run, 0]), scores(number, [number, run, 1])
        found.append(membership.compare(members.score, unseen.score, np.random.default_rng(run))["p"])
    return np.mean(np.array(found) <= membership.LEVEL)


@pytest.mark.parametrize("number", [10, 50, 100, 300])
def test_the_test_holds_its_level(number):
    """5 % are claimed, one-sided: between 2 and 8 % of 1,000 runs without a leak."""
    assert 0.02 <= flagged(number, 0, 1000) <= 0.08


@pytest.mark.parametrize(("number", "copies"), [(50, 5), (100, 5), (512, 26), (512, 51)])
def test_a_few_copies_are_seen(number, copies):
    assert flagged(number, copies, 60) > 0.9


def test_members_above_all_others_have_an_exact_p():
    """Five above all 50 of the others: as improbable as that the five largest of 100 are all of one half."""
    members, others = np.r_[np.arange(100, 105), np.arange(45)], np.arange(50) + 0.5
    expected = np.prod((50 - np.arange(5)) / (100 - np.arange(5)))
    assert rates.tail_p(members, others, 0.005) == pytest.approx(expected, rel=1e-9)
    rng, draws = np.random.default_rng(0), []
    for _ in range(20_000):  # two of 40 may lie above: members above the third of the others
        mixed = rng.permutation(80)
        draws.append((mixed[:40] > np.sort(mixed[40:])[-3]).sum())
    above = 8
    members = np.r_[np.full(above, 99.0), np.full(40 - above, -1.0)]
    expected = np.mean(np.array(draws) >= above)
    assert rates.tail_p(members, np.arange(40), 0.05) == pytest.approx(expected, abs=0.006)
    assert rates.spread_of_auc(60, 40) ** 2 * 2400**2 == pytest.approx(
        60 * 40 * 101 / 12
    )  # of Mann-Whitney's U


def test_the_control_is_one_half_and_its_mean_is_known_well():
    members = np.random.default_rng(0).normal(size=101)
    control = membership.halves_against_each_other(members, np.random.default_rng(1))
    assert len(control) == membership.CONTROLS and abs(control.mean() - 0.5) < 0.03
    half = members[:2], members[2:4]
    expected = {stats.mannwhitneyu(*pair).statistic / 4 for pair in (half, half[::-1])}
    found = membership.halves_against_each_other(members[:4], np.random.default_rng(1))
    assert expected <= set(found.tolist())


def test_what_could_not_have_been_seen_is_inconclusive(monkeypatch):
    monkeypatch.setattr(membership, "RUNS", 60)  # the time of it
    few = membership.summarise(scores(40, 0), scores(40, 1), 0.05, 0)
    assert few["verdict"] == "inconclusive" and few["power"]["copies"] == 2
    assert few["power"]["flagged"] < 0.5 < few["power"]["of_other_shares"]["0.2"] == 1
    (reason,) = few["reasons"]
    assert (
        reason.startswith("copies of 5 % of the members would be flagged in ") and "80% are needed" in reason
    )
    many = membership.summarise(scores(300, 2), scores(300, 3), 0.05, 0)
    assert many["verdict"] == "passed" and many["power"]["flagged"] == 1 and many["false_positives"] == 1
    leak = membership.summarise(with_copies(300, 30, 4), scores(300, 5), 0.05, 0)
    assert leak["verdict"] == "failed" and leak["p"] < 1e-4
    unlike = membership.summarise(scores(300, 2), scores(300, 3, shift=0.5), 0.05, 0)
    assert unlike["verdict"] == "inconclusive" and "they are no fair comparison" in unlike["reasons"][0]


@pytest.mark.parametrize(
    ("verdict", "state"), [("passed", "good"), ("failed", "bad"), ("inconclusive", ""), ("fine", None)]
)
def test_the_scorecard_goes_by_the_verdict(tmp_path, verdict, state):
    record = {"verdict": verdict, "power": {"share": 0.05, "flagged": 0.3}, "contents": {"generated": []}}
    (tmp_path / "membership.json").write_text(json.dumps(record), encoding="utf-8")
    released = write_set(tmp_path / "released", range(1))
    config = scorecard.ScorecardConfig(
        released=str(released), membership=str(tmp_path / "membership.json"), output=str(tmp_path / "card")
    )
    if state is None:
        with pytest.raises(
            UserError, match=r"membership\.json has the verdict 'fine', expected one of passed"
        ):
            scorecard.read_sources(config)
        return
    ((found, told),) = scorecard.of_privacy(scorecard.read_sources(config))
    assert found == state and told.endswith("copies of 5 % of the members would be flagged in 30% of runs")
