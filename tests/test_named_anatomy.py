"""Anatomy by name: known label maps, sets that differ in one thing, the command line and its errors."""

import csv
import functools
import json

from volumetric.cli import UserError
from volumetric.rates import wilson

import numpy as np
import pytest

from MedicalNet import arteries, evaluation, labelling, named_anatomy
from MedicalNet.covariance_free import Energy
from segmentation import segmentation, teacher
from segmentation.labels import BASE, save_labels
from tests.conftest import ROOT, random_array, write_volume
from tests.pairs import small_config, write_pairs

SPACING = np.array([0.5, 0.5, 0.5])
AFFINE = np.diag([1.0, 1.0, 1.0, 1])
SIDE = {"R": 1, "L": -1}
# Boxes (X, Y) around a middle of a ring of arteries, right side; the left one is their mirror image.
RIGHT = {"MCA": (15, 22, 14, 18), "ICA": (11, 15, 11, 21), "Pcom": (11, 15, 5, 11), "PCA": (3, 15, 1, 5)}
RIGHT |= {"ACA": (4, 15, 21, 25)}
MIDDLE = {"BA": (-3, 3, 0, 6), "Acom": (-4, 4, 22, 24)}
SHAPE, ORIGIN = (50, 27, 8), 25


def circle(without=(), gaps=(), top=5):
    """Label map (X, Y, Z) of a ring: without some classes, with gaps where P1 or A1 would be."""
    labels, ids = np.zeros(SHAPE, np.uint8), {name: n for n, name in BASE.items()}
    for side, sign in SIDE.items():
        for artery, (a, b, c, d) in RIGHT.items():
            left, right = sorted((ORIGIN + sign * a, ORIGIN + sign * b))
            labels[left:right, c:d, 2:top] = ids[f"{side}-{artery}"]
        if f"{side}-P1" in gaps:
            left, right = sorted((ORIGIN + sign * 3, ORIGIN + sign * 8))
            labels[left:right, :5] = 0
        if f"{side}-A1" in gaps:
            labels[slice(*sorted((ORIGIN + sign * 9, ORIGIN + sign * 16))), 21:25] = 0
    for artery, (a, b, c, d) in MIDDLE.items():
        box = labels[ORIGIN + a : ORIGIN + b, c:d, 2:top]
        box[box == 0] = ids[artery]
    labels[np.isin(labels, [ids[name] for name in without])] = 0
    return labels


@functools.lru_cache
def measured_once(ids):
    """What is measured of a label map, given as bytes: many of a set are alike."""
    return arteries.measure_map(np.frombuffer(ids, np.uint8).reshape(SHAPE), np.ones(3), "topcow2024")


def measured(maps, confidence=None):
    """Arteries of label maps."""
    rows = [measured_once(one.tobytes()) for one in maps]
    return arteries.Arteries.of(rows, [confidence] * len(maps), "topcow2024")


def one_set(number, seed, **changes):
    """Label maps that differ in height, every fourth without the right Pcom."""
    rng, maps = np.random.default_rng(seed), []
    for n in range(number):
        without = (*changes.get("without", ()), *(("R-Pcom",) if n % 4 == 0 else ()))
        maps.append(circle(without, changes.get("gaps", ()), top=int(rng.integers(4, 7))))
    return maps


@pytest.fixture(scope="module")
def real():
    return measured(one_set(24, 0))


def config(**settings):
    """Settings of a comparison."""
    given = {"real": "r", "generated": "g", "embedding": "random", "bootstrap": 0, "cache_dir": "none"}
    return evaluation.EvaluateConfig(**{**given, **settings})


def outside(record):
    """Names of the rows that are outside."""
    return {name for name, row in record["rows"].items() if (row["equal_n"] or {}).get("outside")}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Label maps                                                                                               ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


@pytest.mark.parametrize(("length", "radius"), [(20.0, 1.5), (30.0, 2.0)])
def test_a_tube_has_its_length_and_radius(length, radius):
    x, y, z = (np.arange(n) * 0.5 for n in (80, 24, 24))
    tube = (np.hypot(y[:, None] - 6, z - 6) <= radius)[None] & (abs(x - 20) <= length / 2)[:, None, None]
    found = arteries.measure_map((4 * tube).astype(np.uint8), SPACING, "topcow2024")
    one = arteries.Arteries.of([found], [None], "topcow2024").regional(1)
    ml = np.pi * radius**2 * length / 1000
    assert one["volume"][0, 3] == pytest.approx(ml, rel=0.06)
    assert length - 1.5 * radius < one["length"][0, 3] < length  # a skeleton does not reach the ends
    assert one["radius"][0, 3] == pytest.approx(radius, rel=0.08)
    assert np.isnan(one["length"][0, 4])
    assert found["pieces"].tolist()[3] == 1 and not found["loops"]


def test_loops_are_told_from_cavities():
    grid = np.indices((15, 15, 7)) - np.array([7, 7, 3])[:, None, None, None]
    ring = abs(np.hypot(grid[0], grid[1]) - 5) + abs(grid[2]) < 1.5
    ball = (grid**2).sum(axis=0) < 9
    hollow = ball & ~((grid**2).sum(axis=0) < 3)
    assert [arteries.loops(mask) for mask in (ring, ball, hollow, ball & ~ball)] == [1, 0, 0, 0]
    assert arteries.loops(np.concatenate([ring, ring])) == 2


def test_the_circle_and_its_variants():
    maps = [circle(), circle(("R-Pcom",)), circle(("R-Pcom", "L-Pcom")), circle(gaps=("R-P1",))]
    maps += [circle(gaps=("L-A1",)), circle(("Acom",)), np.zeros(SHAPE, np.uint8)]
    found = measured(maps)
    has = {name: has.astype(int).tolist() for name, has in found.frequencies(1).items()}
    assert has["ring closed"] == [1, 0, 0, 0, 0, 0, 0] and has["every artery"] == [1, 0, 0, 1, 1, 0, 0]
    assert has["both Pcom"] == [1, 0, 0, 1, 1, 1, 0] and has["left Pcom alone"] == [0, 1, 0, 0, 0, 0, 0]
    assert has["no Pcom"] == [0, 0, 1, 0, 0, 0, 1] and has["right Pcom alone"] == 7 * [0]
    assert has["right P1 missing"] == [0, 0, 0, 1, 0, 0, 1] and has["right fetal PCA"] == [
        0,
        0,
        0,
        1,
        0,
        0,
        0,
    ]
    assert has["left A1 missing"] == [0, 0, 0, 0, 1, 0, 1] and has["right A1 missing"] == 6 * [0] + [1]
    assert has["3rd-A2"] == 7 * [0] and has["Acom"] == [1, 1, 1, 1, 1, 0, 0]
    assert found.loops.tolist() == [1, 0, 0, 0, 0, 0, 0]
    large = found.frequencies(1000 * found.ml[0, 9])["Acom"].tolist()
    assert large == has["Acom"] and not found.frequencies(1000 * found.ml[0, 9] + 1)["Acom"].any()


def test_ids_of_other_tables_are_the_same_arteries():
    consecutive = arteries.measure_map(circle(), np.ones(3), "nnunet")
    found = arteries.Arteries.of([consecutive], [None], "nnunet").frequencies(1)
    assert found["ring closed"].all() and found["Acom"].all()
    merged = arteries.Arteries.of([arteries.measure_map(circle() % 8, np.ones(3), "paper")], [None], "paper")
    assert list(merged.frequencies(1)) == ["BA", "PCA", "ICA", "MCA", "ACA", "Pcom", "Acom"]


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Two sets                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def test_a_set_against_itself_is_inside(real):
    record = named_anatomy.Comparison(real, real, config()).record()
    assert not outside(record) and record["warnings"] == []
    row = record["rows"]["there: R-Pcom"]
    assert row["real"]["share"] == row["generated"]["share"] == 0.75 and row["p"] == row["p_holm"] == 1
    assert row["real"]["interval_95"] == list(wilson(18, 24)) and row["value"] == 0
    assert record["rows"]["joint: transport"]["value"] == pytest.approx(0)
    assert record["rows"]["topology: strangers"]["pairs"] == {}
    assert record["rows"]["segmentable"]["generated"]["n"] == 24
    assert record["rows"]["segmentable"]["real"]["n"] == 12


def test_an_artery_that_is_gone_is_told(real):
    made = measured(one_set(16, 1, without=("L-Pcom",)))
    record = named_anatomy.Comparison(real, made, config()).record()
    told = outside(record)
    assert {"there: L-Pcom", "variant: both Pcom", "variant: ring closed", "segmentable"} <= told
    assert not {"there: R-Pcom", "there: Acom", "length: R-MCA", "topology: strangers"} & told
    row = record["rows"]["there: L-Pcom"]
    assert row["difference"] == -1 and row["p_holm"] < 1e-6 and row["difference_95"][1] < -0.7
    assert record["rows"]["segmentable"]["generated"]["hits"] == 0
    assert record["rows"]["length: L-Pcom"]["value"] is None  # nothing to measure is no agreement


def test_longer_wider_and_touching_arteries_are_told(real):
    maps = one_set(16, 1)
    for one in maps:
        one[ORIGIN + 22 : ORIGIN + 24, 14:18, 3] = 5  # a longer right MCA
        one[ORIGIN - 17 : ORIGIN - 11, 11:21, 1:7] = 6  # a wider left ICA
        one[ORIGIN + 15 : ORIGIN + 17, 5:14, 2:4] = 5  # that touches a Pcom
    record = named_anatomy.Comparison(real, measured(maps), config()).record()
    assert {"length: R-MCA", "radius: L-ICA", "joint: energy", "joint: transport"} <= outside(record)
    assert "topology: strangers" in outside(record)
    assert list(record["rows"]["topology: strangers"]["pairs"]) == ["R-PCA and R-MCA", "R-MCA and R-Pcom"]


def test_the_gate_is_that_of_the_teacher(real):
    odd = measured([circle(), circle(("BA",)), np.zeros(SHAPE, np.uint8)])
    told = named_anatomy.Gate(real, odd).reasons(np.ones(24))
    assert told[0] == [] and told[1][0] == "no BA, which all real maps have" and told[2] == ["no vessel"]
    limits = teacher.limits_of([real.found(n) for n in range(24)], real.names)
    assert told[1] == teacher.reasons(odd.found(1), 1.0, limits, 0)


def test_confidence_has_fences_of_its_own(real):
    sure = measured(one_set(24, 0), 0.9)
    sure.confidence = np.linspace(0.85, 0.95, 24)
    made = measured(one_set(2, 0), 0.3)
    told = named_anatomy.Gate(sure, made).reasons(np.ones(24))
    assert [why[0].split(" below")[0] for why in told] == 2 * ["confidence 0.30"]


def test_distances_of_known_sets():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(20, 3))
    assert named_anatomy.Transport(one, one[::-1] + 2).exact() == pytest.approx(4)  # 2^2 in each of 3 of 3
    assert named_anatomy.Transport(one, one[:15]).exact() < 0.5
    assert named_anatomy.ShareDifference(np.arange(4) < 1, np.arange(5) < 4).exact() == pytest.approx(0.55)
    shares = [named_anatomy.share_of(np.arange(n) < hits) for n, hits in ((80, 48), (70, 56))]
    found = named_anatomy.difference_of(*shares)  # Newcombe 1998, Table II (a), method 10: 56/70 - 48/80
    assert found["difference"] == pytest.approx(0.2)
    assert found["difference_95"] == pytest.approx((0.0524, 0.3339), abs=1e-4)
    vectors, others, names = named_anatomy.joint_vectors(measured(one_set(6, 0)), measured(one_set(3, 1)), 1)
    assert vectors.shape == (6, len(names)) and others.shape == (3, len(names))
    assert np.allclose(vectors.mean(axis=0), 0) and np.allclose(vectors.std(axis=0), 1)
    assert "volume of R-Pcom" in names and not any("3rd-A2" in name for name in names)
    assert np.isfinite(Energy(vectors[:, None], others[:, None]).exact())


def test_how_right_the_maps_are(real):
    wrong = one_set(24, 0)
    for one in wrong[1::4]:
        one[one == 8] = 0  # the right Pcom is missed in 6 of 18
    record = named_anatomy.Comparison(measured(wrong), real, config(), truth=real).record()["truth"]
    assert record["balanced_accuracy"]["R-Pcom"] == pytest.approx((12 / 18 + 1) / 2)
    assert record["balanced_accuracy"]["BA"] == 1 and record["share"]["R-Pcom"]["hits"] == 18
    assert "R-Pcom" in record["varying"] and "BA" not in record["varying"]
    assert record["mean_by_least_mm3"]["0"] > record["mean_by_least_mm3"]["32"] - 1e-9


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The command line                                                                                         ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def write_set(folder, which, maps):
    """Folders of volumes and of their label maps."""
    for n, one in enumerate(maps):
        array = random_array(100 * (which == "real") + n, SHAPE) * 0.1 + (one > 0)
        write_volume(folder / which / f"v{n}.nii.gz", array.astype(np.float32), AFFINE)
        save_labels(one, AFFINE, folder / f"{which}_labels" / f"v{n}.nii.gz", "topcow2024")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12 real volumes and 8 without the left Pcom, with their label maps."""
    folder = tmp_path_factory.mktemp("named")
    write_set(folder, "real", one_set(12, 0))
    write_set(folder, "generated", one_set(8, 1, without=("L-Pcom",)))
    return folder


def flags(folder, *more, labels=True):
    """Flags of a small evaluation of the two folders."""
    given = {which: folder / which for which in ("real", "generated")}
    if labels:
        given |= {f"{which}_labels": folder / f"{which}_labels" for which in ("real", "generated")}
    given |= {"embedding": "random", "metrics": "copies", "bootstrap": 0, "cache_dir": folder / "cache"}
    return [*(str(part) for name, one in given.items() for part in (f"--{name}", one)), *map(str, more)]


def test_label_folders_and_what_is_written(folder, tmp_path, capsys):
    truth = "--real_truth", folder / "real_labels"
    evaluation.main([*flags(folder, *truth), "--output", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "Is the anatomy right? Probably not: " in shown and "there: L-Pcom" in shown
    assert (
        "0 of 8 generated volumes can be segmented as reliably as real ones (0%; of other real ones" in shown
    )
    record = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    named = record["named_anatomy"]
    assert named["presence"] == "an artery is there if its label has at least 4 mm3"
    assert set(named["truth"]["balanced_accuracy"].values()) == {1.0}
    (verdict,) = (v for v in record["verdicts"] if v["question"] == "Is the anatomy right?")
    assert verdict["state"] == "bad" and "there: L-Pcom" in verdict["numbers"]
    with open(tmp_path / "out" / "named_anatomy.csv", newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["there: L-Pcom"]["outside"] == "True" and rows["there: L-Pcom"]["balanced_accuracy"] == "1.0"
    with open(tmp_path / "out" / "named_volumes.csv", newline="", encoding="utf-8") as file:
        told = [row for row in csv.DictReader(file) if row["set"] == "generated"]
    assert {row["reliable"] for row in told} == {"False"} and "no L-Pcom" in told[0]["reasons"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (
        page.index("Is the anatomy right?")
        < page.index("Anatomy by name")
        < page.index("The worst generated")
    )
    assert page.index("0 of 8 generated volumes") < page.index("<h3>Arteries</h3>")
    evaluation.main([*flags(folder, labels=False), "--output", str(tmp_path / "plain")])
    plain = json.loads((tmp_path / "plain" / "metrics.json").read_text(encoding="utf-8"))
    assert "named_anatomy" not in plain and plain["metrics"] == record["metrics"]
    assert not (tmp_path / "plain" / "named_anatomy.csv").exists()


def test_a_network_labels_both_sets(tmp_path):
    write_pairs(tmp_path, 10)
    write_pairs(tmp_path, 6, first=20, kind="other_")
    segmentation.train(small_config(tmp_path))
    given = {"real": tmp_path / "volumes", "generated": tmp_path / "other_volumes", "metrics": "copies"}
    given |= {"segmenter": tmp_path / "net.pt", "embedding": "random", "device": "cpu", "bootstrap": 0}
    given |= {"cache_dir": tmp_path / "cache", "least_mm3": 0}
    line = [str(part) for name, one in given.items() for part in (f"--{name}", one)]
    evaluation.main([*line, "--output", str(tmp_path / "out"), "--share", "True"])
    record = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert any("the segmenter was trained on 10 of the 10 real volumes" in w for w in record["warnings"])
    predictor, about = segmentation.read_model(tmp_path / "net.pt", "cpu")
    path = tmp_path / "volumes" / "case0.nii.gz"
    (found,) = segmentation.label_volumes(predictor, [path])
    ml = float((found[2] == 4).sum()) * 0.6 * 0.6 * 0.8 / 1000
    assert segmentation.content_of_model(about) in record["named_anatomy"]["label_maps"]["real"]
    sources = evaluation_sources(given)
    assert sources.arteries("real").ml[0, 3] == pytest.approx(ml, rel=0.02, abs=1e-4)
    with open(tmp_path / "out" / "named_volumes.csv", encoding="utf-8") as file:
        assert "/volumes/case" not in file.read()
    truth = "--real_truth", str(tmp_path / "labels")
    with pytest.raises(
        SystemExit, match=r"was trained on 10 of the 10 real volumes.*needs real volumes that"
    ):
        evaluation.main([*line, *truth, "--output", str(tmp_path / "refused")])


def evaluation_sources(given):
    """Sources of a small evaluation, its cache filled."""
    from MedicalNet.labelling import Sources

    settings = evaluation.EvaluateConfig(**{n: v if isinstance(v, int) else str(v) for n, v in given.items()})
    evaluator = evaluation.Evaluator(settings)
    files = {"real": evaluator.real_files, "generated": evaluator.list("generated")}
    return Sources(settings, files, evaluator.cache)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", r"v3\.nii\.gz has no partner in --generated_labels"),
        ("grid", r"v3\.nii\.gz is of another grid than .*generated"),
        ("id", r"v3\.nii\.gz has the ids 14, which are not of topcow2024"),
        ("table", r"v3\.nii\.gz says that its ids are of nnunet, expected topcow2024"),
    ],
)
def test_label_maps_that_cannot_be_used(folder, tmp_path, monkeypatch, how, told):
    monkeypatch.setattr(evaluation.Evaluator, "measure", lambda *_: pytest.fail("measured first"))
    labels = circle()
    for n in range(8):
        if n != 3:
            save_labels(labels, AFFINE, tmp_path / "maps" / f"v{n}.nii.gz", "topcow2024")
    odd, affine, table = labels.copy(), AFFINE, "topcow2024"
    if how == "table":  # a third A2 has another id there
        odd[0, 0, 0], table = 15, "nnunet"
    if how == "id":
        odd[0, 0, 0] = 14
    if how == "grid":
        affine = np.diag([1.0, 1.0, 2.0, 1])
    if how != "missing":
        save_labels(odd, affine, tmp_path / "maps" / "v3.nii.gz", table)
    with pytest.raises(SystemExit, match=told):
        evaluation.main(
            [
                *flags(folder, labels=False),
                *("--real_labels", str(folder / "real_labels"), "--generated_labels", str(tmp_path / "maps")),
                *("--output", str(tmp_path / "out")),
            ]
        )
    assert not (tmp_path / "out").exists()


def test_flags_that_do_not_fit(folder):
    within = folder / "generated_labels" / "out"
    with pytest.raises(SystemExit, match=r"out lies in --generated_labels .*: give a folder apart"):
        evaluation.main([*flags(folder), "--output", str(within)])
    assert not within.exists()
    with pytest.raises(UserError, match="--generated_labels is missing: give it, or --segmenter"):
        config(real_labels="r")
    with pytest.raises(UserError, match="--real_truth needs --segmenter"):
        config(real_truth="r")
    segmenter = str(ROOT / "sample_data" / "segmenter.pt")
    with pytest.raises(UserError, match="--segmenter would label nothing, --real_labels and"):
        config(real_labels="r", generated_labels="g", segmenter=segmenter)
    with pytest.raises(UserError, match="--least_mm3 is of arteries by name: give --segmenter or label"):
        config(least_mm3=9.0)
    with pytest.raises(UserError, match=r"--label_table is nnunet, --segmenter .* has the ids of topcow2024"):
        labelling.Sources(config(segmenter=segmenter, label_table="nnunet"), {}, None)
