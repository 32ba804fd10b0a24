"""The report to a stranger: what decided an answer, what a number measures, few volumes first, the worst."""

import re

from volumetric import pages
from volumetric.cli import UserError

import numpy as np
import pytest

from MedicalNet import anatomy, comparing, evaluation, looks, meanings, report, verdicts
from MedicalNet.volumes import VolumeInMemory
from tests.conftest import random_array, write_volume


def entry(mean, floor, deviation=0.1, better="lower", question="realistic", outside=False, n=64):
    """A number as metrics.json holds it."""
    equal = {"n": n, "mean": mean, "standard_deviation": deviation, "floor_mean": floor}
    equal |= {"floor_standard_deviation": deviation, "outside": outside}
    return {"value": mean, "better": better, "question": question, "equal_n": equal}


def record_of(metrics, n=128, vessels=None, **more):
    """What verdicts read of metrics.json."""
    told = {"metrics": metrics, "copies": [], "settings": {"metrics": ("md", "copies", "anatomy")}}
    told |= {
        "real": {"n": n},
        "generated": {"n": n},
        "vessels": {"real": n, "generated": n, **(vessels or {})},
    }
    return told | more


def of(record, topic):
    """The verdict on a topic."""
    found = verdicts.verdicts(record)
    return next(v for v in found if v["question"] == verdicts.QUESTIONS[topic])


ANATOMY = {
    "W1-vessel-volume-ml": entry(0.1, 0.2, question="anatomy"),
    "W1-components": entry(1.0, 0.5, question="anatomy", outside=True),
    "W1-centreline-mm": entry(9.0, 0.5, question="anatomy", outside=True),
    "W1-radius-mm": entry(0.3, 0.2, question="anatomy"),
}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Answers                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_an_answer_lists_what_decided_it_the_worst_first():
    bad = of(record_of(ANATOMY), "anatomy")
    assert (
        bad["numbers"] == ["W1-centreline-mm", "W1-components"]
        and "2 of 4 numbers are worse" in bad["answer"]
    )
    inside = {name: m for name, m in ANATOMY.items() if not m["equal_n"]["outside"]}
    good = of(record_of(inside), "anatomy")
    assert good["state"] == "good" and good["numbers"] == ["W1-radius-mm", "W1-vessel-volume-ml"]
    assert good["answer"] == "All 2 numbers are as between real volumes."


def test_a_page_to_share_names_no_real_volume_in_its_warnings():
    copies = [{"generated": "made/a.nii", "real": "scans/Smith.nii", "kind": "exact"}]
    names = ("Smith.nii", "scans/Smith.nii")  # one is a part of the other
    files = [VolumeInMemory(name, random_array(0, (4, 4, 4)), np.eye(4)) for name in names]
    told = {"warnings": evaluation.said_of_copies(copies, 9), "settings": {"share": True}}
    assert "(1 exact), as made/a.nii of a real volume.</p>" in report.warnings_of(told, files)
    assert "scans/Smith.nii" in report.warnings_of(told | {"settings": {"share": False}}, files)
    assert report.warnings_of({"warnings": [], "settings": {"share": True}}, files) == "<p>None.</p>"


def test_a_card_marks_those_numbers_and_says_how_many_are_left():
    card = report.verdict_card(of(record_of(ANATOMY), "anatomy"), ANATOMY)
    assert card.count(">outside<") == 2 and ">inside<" not in card
    assert card.index("W1-centreline-mm") < card.index("W1-components")
    many = {f"W1-{name}": entry(9.0, 0.5, question="anatomy", outside=True) for name in anatomy.MEASURES}
    card = report.verdict_card(of(record_of(many), "anatomy"), many)
    assert card.count(">outside<") == report.MOST_NUMBERS and "and 3 more, in the tables below" in card


@pytest.mark.parametrize(
    ("name", "mean", "floor", "better", "expected"),
    [
        ("MD", 3.0, 2.0, "lower", 10),
        ("MD", 1.0, 2.0, "lower", -10),
        ("FD-random-volume", 3.0, 2.0, "lower", 10),
        ("Vendi-generated", 1.0, 2.0, "as real", 10),
        ("density", 3.0, 2.0, "near 1", 10),
        ("AUC-PRD", 0.5, 1.0, "higher", 5),
    ],
)
def test_how_much_worse_than_real_halves(name, mean, floor, better, expected):
    assert meanings.wrong_side(name, entry(mean, floor, better=better)) == pytest.approx(expected)


def test_a_floor_without_spread_can_be_compared_with():
    share = entry(0.5, 1.0, deviation=0.0, better="higher", n=10)
    assert meanings.wrong_side("recall-random", share) == pytest.approx(5)  # in tenths
    assert meanings.wrong_side("MD", entry(2.0, 1.0, deviation=0.0)) == np.inf
    assert meanings.wrong_side("MD", entry(1.0, 1.0, deviation=0.0)) == 0
    assert meanings.wrong_side("MD-inf", {"better": "lower", "equal_n": None}) == -np.inf


def test_copies_decide_and_no_number_beside_them():
    metrics = {"nearest-real": entry(1.0, 1.0, better="near 1", question="copies")}
    copy = {"generated": "a", "real": "b", "distance": 0.0, "kind": "exact"}
    assert of(record_of(metrics, copies=[copy]), "copies")["numbers"] == []
    assert of(record_of(metrics), "copies")["numbers"] == ["nearest-real"]
    metrics["C_T"] = {"value": -3.0, "better": "near 0", "question": "copies"}
    assert of(record_of(metrics), "copies")["numbers"] == ["C_T"]


@pytest.mark.parametrize(
    ("n", "found", "text"),
    [
        (128, 89, "No: vessels were found in only 89 of the 128 generated volumes."),
        (128, 0, "No: vessels were found in none of the 128 generated volumes."),
        (10, 8, "Probably not: vessels were found in only 8 of the 10 generated volumes."),
    ],
)
def test_missing_vessels_are_said_so_that_nobody_reads_the_opposite(n, found, text):
    verdict = of(record_of(ANATOMY, n, {"generated": found}), "anatomy")
    assert verdict["answer"] == text and verdict["state"] == "bad"


def test_few_volumes_come_first_and_soften_every_answer():
    metrics = {
        **ANATOMY,
        "MD": entry(1.0, 1.0),
        "recall": entry(0.1, 0.9, better="higher", question="diverse", outside=True),
    }
    few, many = (record_of(metrics, n) for n in (40, 128))
    for record in (few, many):
        record["verdicts"] = verdicts.verdicts(record)
    answers = [v["answer"] for v in verdicts.in_order(few)]
    assert answers[0].startswith("Few: 40 real and 40 generated")
    assert answers[1].startswith("No difference seen, but with 40 volumes a small one cannot be told")
    assert answers[2].startswith("Probably not: 1 of 1") and "40 volumes" in answers[2]
    assert "With 40 volumes, up to 7% of what the generator makes could be copies" in answers[3]
    assert answers[4].startswith("Probably not: 2 of 4")
    assert verdicts.in_order(many) == many["verdicts"] and "Few" not in str(many["verdicts"])
    assert [v["state"] for v in few["verdicts"][:4]] == [v["state"] for v in many["verdicts"][:4]]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Numbers                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_every_number_is_explained_by_every_name_it_has():
    for number in comparing.NUMBERS:
        for embedding in meanings.EMBEDDINGS:
            told = meanings.meaning(comparing.named(number.name, embedding), {"better": number.better})
            assert told == f"{meanings.MEANINGS[number.name]}; {meanings.BETTER[number.better]}."
    assert {n.name for n in comparing.NUMBERS} | {"C_T", "authenticity"} == set(meanings.MEANINGS)


def test_a_number_stands_with_its_explanation_and_its_floor():
    line = report.number_line("MD", entry(9.0, 7.0, deviation=0.5, outside=True))
    text = re.sub("<[^>]+>", " ", line).replace("\u00a0", " ")
    assert "MD  9  outside" in text and "whole volumes" in text and "lower is better" in text
    assert "Two sets of 64 real volumes each give 7 ± 0.5." in text
    table = report.number_tables({"metrics": {"MD": entry(9.0, 7.0, deviation=1.78e-15)}})
    assert "whole volumes" in table and "±" not in table


@pytest.mark.parametrize(
    ("value", "deviation", "text"),
    [
        (12.7, 1.78e-15, "12.7"),
        (12.7, 0.31, "12.7 ± 0.31"),
        (0.0, 0.0, "0"),
        (2e-6, 1e-6, "2e-06 ± 1e-06"),
        (None, None, "none"),
    ],
)
def test_a_spread_of_the_size_of_rounding_is_none(value, deviation, text):
    assert pages.give_or_take(value, deviation).replace("\u00a0", " ") == text


def test_no_word_is_broken_but_a_path():
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", pages.STYLE)
    assert {where.strip() for where, what in rules if "anywhere" in what} == {".path", ".small td + td"}
    assert report.path_of("/a/<b>") == '<span class="path">/a/&lt;b&gt;</span>'
    assert pages.rows_of(["", "n"], [["a", 1.0]]).startswith('<div class="scroll"><table>')


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The worst volumes                                                                                        ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def in_memory(arrays):
    """VolumeInMemory of arrays."""
    return [VolumeInMemory(f"v{n}", array, np.eye(4)) for n, array in enumerate(arrays)]


def test_saturated_volumes_are_found_the_worst_first():
    arrays = [random_array(n, (16, 16, 8)) for n in range(5)]
    made = [array.copy() for array in arrays]
    made[1][:4] = made[1].max()
    made[3][:8] = made[3].max()
    found, usual = looks.saturated((in_memory(arrays), in_memory(made)))
    assert [n for n, _ in found] == [3, 1] and usual == 0
    assert found[0][1] == pytest.approx(0.5, abs=0.001)
    assert looks.saturated((in_memory(made), in_memory(made)))[0] == []  # real ones are so, too
    assert looks.share_at_maximum(np.eye(4)[None]) == 0  # four voxels are no plateau


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(record, page) of six generated volumes, of which v2 is saturated and v4 has no vessel."""
    root = tmp_path_factory.mktemp("looked_at")
    for which in ("real", "generated"):
        for n in range(6):
            array = random_array(n + 50 * (which == "real"), (16, 16, 8))
            if (which, n) != ("generated", 4):
                array[4:7, 2:14, 3:6] += 60 + 20 * random_array(n, (3, 12, 3))
            if (which, n) == ("generated", 2):
                array[:, :, 6:] = array.max()
            write_volume(root / which / f"v{n}.nii.gz", array)
    flags = {"metrics": ("anatomy",), "embedding": "random", "bootstrap": 0, "device": "cpu"}
    flags |= {name: str(root / name) for name in ("real", "generated")} | {"output": str(root / "out")}
    record = evaluation.evaluate(evaluation.EvaluateConfig(cache_dir="none", **flags))
    return record, (record["folder"] / "report.html").read_text(encoding="utf-8")


def test_the_report_shows_what_the_eye_sees(evaluated):
    _, page = evaluated
    worst = page[page.index("The worst generated volumes") : page.index("<h2>Volumes")]
    assert "saturated: 1 of 6, the worst with 25 % of its voxels at the maximum" in worst
    assert re.search(r"no vessel found: [12] of 6", worst)


def test_few_volumes_are_the_first_thing_on_the_page(evaluated):
    record, page = evaluated
    assert page.index("Few: 6 real") < page.index("6 real volumes in") < page.index("Do they look like")
    assert [v["question"] for v in record["verdicts"]] == list(verdicts.QUESTIONS.values())


def test_volumes_are_not_called_patients(evaluated):
    text = re.sub(r"<style.*?</style>|<svg.*?</svg>|base64,[^\"]+", "", evaluated[1], flags=re.DOTALL)
    assert not re.search(r"\b(patient|subject|person|people)", text, re.IGNORECASE)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Paths                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@pytest.mark.parametrize("flag", ["real", "generated", "held_out"])
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no .nii or .nii.gz file"),
        (lambda path: path.write_text("x", encoding="utf-8"), "is a file"),
        (
            lambda path: write_volume(path / "v.nii", random_array(0)),
            "holds 1 volumes, at least 6 are needed",
        ),
    ],
    ids=["missing", "empty", "file", "few"],
)
def test_a_wrong_folder_is_said_before_weights_are_looked_for(tmp_path, monkeypatch, flag, make, text):
    def looked_for(*_):
        raise AssertionError("weights were looked for")

    monkeypatch.setattr("MedicalNet.measuring.find_weights", looked_for)
    for n in range(6):
        write_volume(tmp_path / "good" / f"v{n}.nii", random_array(n))
    make(tmp_path / "wrong")
    folders = {"real": tmp_path / "good", "generated": tmp_path / "good", flag: tmp_path / "wrong"}
    given = {name: str(path) for name, path in folders.items()}
    config = evaluation.EvaluateConfig(output=str(tmp_path / "out"), device="cpu", **given)
    with pytest.raises(UserError, match=f"--{flag} .*{re.escape(text)}"):
        evaluation.evaluate(config)
