"""Trust: golden statistics, thresholds, copies found and innocents let go, membership, Turing test."""

import json

from volumetric.cli import UserError
from volumetric.collection import volumes_in
from volumetric.rates import wilson
from volumetric.sidecars import write_trained_on

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from tests.conftest import ROOT, run_script, write_split, write_volume
from trust import (
    controls,
    encoder,
    greys,
    membership,
    rates,
    reading,
    replicas,
    similarity,
    turing,
)
from trust.pages import told_of_power
from trust.sets import read_sets

GOLDEN = json.loads((ROOT / "tests" / "golden" / "stats_golden.json").read_text(encoding="utf-8"))
SHAPE = (24, 24, 10)


def volume_of(seed):
    """A smooth random volume with bright strands, as different from others as two people."""
    rng = np.random.default_rng(seed)
    strands = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.2)
    return (strands / strands.std() + 0.05 * rng.standard_normal(SHAPE)).astype(np.float32)


def write_set(folder, seeds, change=lambda array: array):
    """A folder of volumes of the given seeds."""
    for seed in seeds:
        write_volume(folder / f"v{seed}.nii.gz", change(volume_of(seed)).astype(np.float32))
    return folder


# ---- statistics


def test_golden_intervals_and_tests():
    for pair, expected in GOLDEN["wilson_95"].items():
        assert wilson(*map(int, pair.split("/"))) == pytest.approx(expected, abs=1e-6)
    for pair, expected in GOLDEN["binomial_two_sided_p_vs_half"].items():
        assert stats.binomtest(*map(int, pair.split("/"))).pvalue == pytest.approx(expected, abs=1e-6)
    for text, expected in GOLDEN["dprime_loglinear"].items():
        hits, signals, false, noises = (
            int(n) for part in text.split(", ") for n in part.split()[-1].split("/")
        )
        found = rates.detectability(hits, signals, false, noises)
        assert found["dprime"] == pytest.approx(expected["dprime"], abs=1e-6)
        assert found["criterion"] == pytest.approx(expected["criterion"], abs=1e-6)
        assert found["hit_rate"] == pytest.approx(expected["hit_rate_loglinear"], abs=1e-6)


def test_golden_panel_and_membership():
    panel = GOLDEN["panel"]
    kappa, agreement = rates.fleiss_kappa(panel["ratings"], 2)
    assert kappa == pytest.approx(panel["fleiss_kappa"], abs=1e-6) and 0 < agreement < 1
    sure = np.array(panel["confidence_rater0"])
    assert rates.auc_delong(sure[:20], sure[20:])[0] == pytest.approx(
        panel["auc_confidence_rater0"], abs=1e-6
    )
    golden, g = GOLDEN["membership"], np.random.Generator(np.random.PCG64(6))
    member, other = g.random(60) ** 0.5, g.random(40)
    auc, error = rates.auc_delong(member, other)
    assert (auc, error) == pytest.approx((golden["auc"], golden["auc_delong_se"]), abs=1e-6)
    assert rates.normal_interval(auc, error) == pytest.approx(golden["auc_delong_95"], abs=1e-6)
    for share in (0.1, 0.05):
        expected = golden[f"tpr_at_fpr_le_{share}"]
        assert rates.true_positive_rate(member, other, share) == pytest.approx(expected, abs=1e-6)


def test_equivalence_needs_enough_items():
    assert rates.equivalence(25, 50) > 0.05 and rates.equivalence(200, 400) < 0.05
    assert rates.power_of_equivalence(50) < 0.2 < rates.power_of_equivalence(400)


def test_conformal_p_values():
    assert rates.conformal(np.array([5.0, 0.5, 2.0]), np.array([1.0, 2.0, 3.0])).tolist() == [0.25, 1.0, 0.75]
    mean, limit = rates.realised_rate(1, 25)
    assert mean == pytest.approx(1 / 26) and limit == pytest.approx(0.11, abs=0.005)


@pytest.mark.parametrize("number", [25, 100])
def test_thresholds_let_innocents_pass(number):
    """Of 200 sets of 50 innocent volumes, the count above the limit is at most 5 %, within sampling."""
    rng, failed = np.random.default_rng(number), 0
    for _ in range(200):
        held, made = ({n: rng.normal(size=k) for n in similarity.STATISTICS} for k in (number, 50))
        threshold = replicas.Threshold(held, 0.01)
        assert not threshold.attains and threshold.k == 1
        failed += any(flag.sum() > threshold.most(50) for flag in threshold.flags(made).values())
    assert failed <= stats.binom.ppf(0.999, 200, 0.05)


# ---- similarity


def test_a_copy_is_found_whatever_its_sides_shift_and_grey_values():
    prints = [similarity.print_of(volume_of(n)) for n in range(8)]
    library = similarity.Library(prints, SHAPE)
    array = controls.scaled(volume_of(5))
    rng = np.random.default_rng(0)
    for kind in ("exact", "shift", "mirrored", "gamma 2", "noise 5 %", "elastic 2", "smoothed"):
        found = library.search(similarity.print_of(controls.KINDS[kind](array, array, rng)))
        assert found["anatomy"][1] == 5 and found["anatomy"][0] > 0.6, kind
    exact = library.search(similarity.print_of(array))
    assert exact["anatomy"][0] == pytest.approx(1, abs=1e-3) and exact["vessels"][0] == pytest.approx(
        1, abs=1e-3
    )
    stranger = library.search(similarity.print_of(volume_of(99)))
    assert stranger["anatomy"][0] < 0.4
    pasted = controls.KINDS["half pasted"](array, controls.scaled(volume_of(98)), rng)
    assert library.search(similarity.print_of(pasted))["half"][1] == 5
    assert 5 not in library.compare(similarity.print_of(array), without=(5,))


def test_the_encoder_learns_what_stays_of_a_volume():
    looks = np.stack([similarity.print_of(volume_of(n)).thumbnail for n in range(16)]).astype(np.float32)
    network = encoder.train_encoder(looks, 0, steps=12)
    rng = np.random.default_rng(1)
    copies = np.stack([encoder.view_of(looks[n], rng) for n in range(16)])
    value, index = encoder.similarities(network, np.concatenate([copies, looks[:2, ::-1]]), looks)
    assert (index[:16] == np.arange(16)).mean() > 0.6 and index[16:].tolist() == [0, 1]
    np.testing.assert_allclose(value[16:], 1, atol=1e-4)
    again = encoder.train_encoder(looks, 0, steps=1), encoder.train_encoder(looks, 0, steps=1)
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in again), strict=True))


# ---- the gate


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Folders: training, held_out, innocent, and copied, of which three are noisy or mirrored copies."""
    folder = tmp_path_factory.mktemp("sets")
    write_set(folder / "training", range(14))
    write_set(folder / "held_out", range(100, 116))
    write_set(folder / "innocent", range(200, 210))
    write_set(folder / "copied", range(300, 307))
    write_set(folder / "copied", (2, 3), lambda array: array + 0.1)
    write_set(folder / "copied", (4,), lambda array: 3 * array[::-1])
    return folder


def flags_of(sets, which, output):
    given = {"training": sets / "training", "held_out": sets / "held_out", "generated": sets / which}
    return {**{name: str(path) for name, path in given.items()}, "output": str(output), "workers": 1}


def test_the_gate_lets_innocents_pass(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "STEPS", 3)
    config = replicas.ReplicasConfig(
        **flags_of(sets, "innocent", tmp_path / "out"), controls=10, encoder=True
    )
    record, folder = replicas.run_gate(config)
    assert list(record["controls"]["exact"]["by"]) == [*similarity.STATISTICS, "encoder"]
    assert record["verdict"] == "passed", record["reasons"]
    assert record["controls"]["exact"]["recall"] == record["controls"]["mirrored"]["named"] == 1
    assert record["threshold"]["held_out"] == 16 and not record["threshold"]["attains_alpha"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    for part in (
        "Passed: no replica",
        "16 unseen volumes allow a false-alarm rate of 0.0588",
        "half pasted",
    ):
        assert part in page
    assert sorted(record["nearest"]) == sorted(record["contents"]["generated"])
    for row in record["flagged"]:
        nearest = record["nearest"][row["content"]]
        assert nearest == {name: row[name] for name in ("statistic", "similarity", "p")}
    kept = (folder / "released.txt").read_text(encoding="utf-8").split()
    assert len(kept) + len(record["flagged"]) == 10
    assert len(contents_in(folder / "released")) == len(kept)


def test_the_gate_finds_and_withholds_copies(sets, tmp_path):
    flags = [
        part
        for name, value in flags_of(sets, "copied", tmp_path / "out").items()
        for part in (f"--{name}", value)
    ]
    run = run_script("trust/replicas.py", *flags, "--controls", 10)
    assert run.returncode == 1, run.stderr
    assert "Failed: " in run.stdout and "as similar by anatomy as planted copies are" in run.stdout
    record = json.loads((tmp_path / "out" / "replicas.json").read_text(encoding="utf-8"))
    pairs = {(r["generated"].split("/")[-1], r["training"].split("/")[-1]) for r in record["flagged"]}
    assert {(f"v{n}.nii.gz", f"v{n}.nii.gz") for n in (2, 3, 4)} <= pairs
    assert {"v2.nii.gz", "v3.nii.gz", "v4.nii.gz"} <= {
        p.name for p in (tmp_path / "out" / "withheld").iterdir()
    }
    assert "v2.nii.gz" not in (tmp_path / "out" / "released.txt").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "released").exists()


def test_a_blind_gate_is_inconclusive():
    held = {name: np.linspace(0, 0.5, 20) for name in similarity.STATISTICS}
    threshold = replicas.Threshold(held, 0.05)

    def table(value, number):
        return {name: (np.full(number, value), np.arange(number)) for name in similarity.STATISTICS}

    planted = {kind: table(0.9, 10) for kind in controls.KINDS} | {"mirrored": table(0.3, 10)}
    closeness = {"share": 0.5, "interval_95": [0.4, 0.6]}
    gate = replicas.verdict_of(table(0.2, 30), planted, np.arange(10), threshold, closeness)
    assert gate["verdict"] == "inconclusive" and gate["reasons"] == [
        "of planted copies (mirrored) 0% are found"
    ]
    closeness["interval_95"] = [0.55, 0.7]
    assert (
        replicas.verdict_of(table(0.2, 30), planted, np.arange(10), threshold, closeness)["verdict"]
        == "failed"
    )
    planted["mirrored"], closeness["interval_95"] = table(0.9, 10), [0.4, 0.6]
    judged = [
        replicas.verdict_of(table(0.2, 30), planted, np.arange(10), threshold, closeness, left)
        for left in (None, 0, 9)
    ]
    assert [gate["verdict"] for gate in judged] == ["passed", "passed", "inconclusive"]
    assert judged[2]["reasons"] == [
        "the generator was trained on 9 more volumes, which are not in --training"
    ]


def distances_of(training, held_out, generated, seed, copied=0):
    """Similarities of generated subjects to both sets, some copied from the first."""
    rng = np.random.default_rng(seed)
    sets = [rng.normal(size=(number, 4)) for number in (training, held_out, generated)]
    sets[2][:copied] = sets[0][np.arange(copied) % training] + 0.1 * sets[2][:copied]
    return [-np.linalg.norm(sets[2][:, None] - real[None], axis=2) for real in sets[:2]]


@pytest.mark.parametrize(("training", "held_out"), [(40, 10), (10, 40), (20, 20)])
def test_closer_to_training_is_said_by_chance_as_often_as_claimed(training, held_out, monkeypatch):
    """At most 2.5 % of sets that are no closer fail, also where there are few unseen subjects."""
    monkeypatch.setattr(replicas, "RELABELLINGS", 200)
    runs, failed = 200, 0
    for run in range(runs):
        found = replicas.closer_to_training(*distances_of(training, held_out, 150, run), run)
        failed += found["interval_95"][0] > 0.5
    assert failed <= stats.binom.ppf(0.999, runs, 0.025)
    found = replicas.closer_to_training(*distances_of(training, held_out, 150, 0, copied=120), 0)
    assert found["share"] > 0.55 and (found["interval_95"][0] > 0.5 or training > held_out)


def test_closer_to_training_compares_with_as_many():
    to_training, to_held_out = distances_of(30, 8, 60, 0)
    rng, shares = np.random.default_rng(0), []
    for _ in range(2000):
        nearest = to_training[:, rng.permutation(30)[:8]].max(axis=1)
        shares.append((nearest > to_held_out.max(axis=1)).mean())
    found = replicas.closer_to_training(to_training, to_held_out, 0)
    assert found["share"] == pytest.approx(np.mean(shares), abs=0.01)
    other = replicas.closer_to_training(to_held_out, to_training, 0)
    assert other["share"] == pytest.approx(1 - found["share"])


def test_withheld_volumes_of_one_name_are_all_kept(tmp_path):
    for n, place in enumerate("abcd"):
        write_volume(tmp_path / place / f"seed42.nii{'.gz' if n else ''}", volume_of(n))
    volumes = volumes_in(tmp_path, "--generated")
    replicas.withhold([{"content": volume.content} for volume in volumes[:3]], volumes, tmp_path)
    found = {path.name: path.read_bytes() for path in (tmp_path / "withheld").iterdir()}
    assert found == {f"{v.path.parent.name}_{v.path.name}": v.path.read_bytes() for v in volumes[:3]}
    assert (tmp_path / "released.txt").read_text(encoding="utf-8").split() == [str(volumes[3].path)]


def test_what_passed_the_gate_is_the_release(tmp_path):
    """Copies with their sidecars, below their folders, without the volumes that are flagged."""
    made = write_set(tmp_path / "made" / "a", range(3))
    write_volume(made / "v0_deviation.nii.gz", volume_of(5))
    (made / "v1.json").write_text("{}", encoding="utf-8")
    write_trained_on(made, ["t"], "m.pt")
    volumes, folder = volumes_in(tmp_path / "made", "--generated"), tmp_path / "out"
    folder.mkdir()
    kept = replicas.withhold([{"content": volumes[0].content}], volumes, folder)
    replicas.release(kept, tmp_path / "made", folder / "released")
    (told,) = made.glob("trained_on-*.json")
    found = sorted(path.name for path in (folder / "released" / "a").iterdir())
    assert found == [told.name, "v1.json", "v1.nii.gz", "v2.nii.gz"]
    assert contents_in(folder / "released") == [volume.content for volume in volumes[1:]]
    assert (folder / "released.txt").read_text(encoding="utf-8").split() == [str(v.path) for v in volumes[1:]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"held_out": "training"}, "they must be of other subjects"),
        ({"generated": "few"}, "holds 2 volumes, at least 6 are needed"),
        ({"generated": "larger"}, "has 24 x 24 x 12 voxels of .* resample one set"),
    ],
)
def test_sets_that_cannot_be_compared(sets, tmp_path, change, told):
    write_set(tmp_path / "few", range(2))
    write_set(tmp_path / "larger", range(6), lambda array: np.pad(array, ((0, 0), (0, 0), (1, 1))))
    flags = flags_of(sets, "innocent", tmp_path / "out")
    for name, folder in change.items():
        flags[name] = str(sets / folder if folder == "training" else tmp_path / folder)
    with pytest.raises(UserError, match=told):
        replicas.run_gate(replicas.ReplicasConfig(**flags))
    assert not (tmp_path / "out").exists()


def contents_in(folder):
    """What the volumes of a folder are known by, in the order of their paths."""
    return [volume.content for volume in volumes_in(folder, "--x")]


@pytest.mark.parametrize("config", [replicas.ReplicasConfig, membership.MembershipConfig])
def test_sets_must_be_what_they_are_called(sets, tmp_path, config):
    """By content, and by what the generator says it was trained on."""
    few = {"training": 10, "held_out": 10, "generated": 6}
    made = write_set(tmp_path / "made", range(200, 206))
    flags = {**flags_of(sets, "innocent", tmp_path / "out"), "generated": str(made)}
    assert read_sets(config(**flags), few)[1] is None
    training, held_out = contents_in(sets / "training"), contents_in(sets / "held_out")
    for told, known in (
        (r"16 of the 16 volumes of --held_out are in what the model was trained on", training + held_out),
        (
            r"4 of the 14 volumes of --training are none that the model was trained on, the first .*v0\.nii",
            training[4:],
        ),
    ):
        write_trained_on(made, known, "m/model_3.pt")
        with pytest.raises(UserError, match=told):
            read_sets(config(**flags), few)
        (told_by,) = made.glob("trained_on-*.json")
        told_by.unlink()
    write_trained_on(made, [*training, "another"], "m/model_3.pt")
    assert read_sets(config(**flags), few)[1] == 1
    if config is membership.MembershipConfig:
        torch.save({"trained_on": held_out[:2]}, tmp_path / "model_3.pt")
        with pytest.raises(UserError, match=r"2 of the 16 .*trained on by .*model_3\.pt\)"):
            read_sets(config(**flags, checkpoint=str(tmp_path / "model_3.pt")), few)
    (write_set(tmp_path / "x", [100]) / "v100.nii.gz").rename(made / "seed9.nii.gz")
    with pytest.raises(UserError, match=r"1 of the 16 volumes of --held_out are in --generated, .*seed9"):
        read_sets(config(**flags), few)


def test_a_split_parts_training_from_held_out_volumes(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(greys, "FEWEST", 6)
    paths = sorted((sets / "held_out").iterdir())
    parts = 6 * ["training"] + 6 * ["held_out"] + 4 * ["test"]
    split = write_split(tmp_path / "split.csv", dict(zip(paths, parts, strict=True)))
    flags = {"training": str(sets / "held_out"), "generated": str(sets / "innocent")}
    config = replicas.ReplicasConfig(**flags, split=split)
    found, _ = read_sets(config, dict.fromkeys(("training", "held_out", "generated"), 6))
    assert [v.path for v in found["training"]] == paths[:6]
    assert [v.path for v in found["held_out"]] == paths[6:12]
    with pytest.raises(UserError, match="Give --held_out DIR"):
        membership.MembershipConfig(**flags)
    page = json.loads((build(tmp_path, sets, split=split) / "key.json").read_text(encoding="utf-8"))
    shown = {one["file"] for one in page["items"].values() if one["kind"] == "real"}
    assert shown == set(map(str, paths[6:])) and page["trained_on"] is None


# ---- membership


def test_membership_is_told_only_where_it_leaks(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(membership, "RUNS", 60)  # the time of it
    config = membership.MembershipConfig(**flags_of(sets, "innocent", tmp_path / "innocent"))
    record, folder = membership.run_test(config)
    assert record["verdict"] == "inconclusive" and 0.2 < record["auc"] < 0.8 and record["n"]["each"] == 14
    assert record["reasons"] == [f"{told_of_power(record['power'])}, 80% are needed"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Inconclusive: nothing is found" in page and "(1 of 14)" in page
    write_set(tmp_path / "all", range(14), lambda array: array + 0.05)
    flags = {**flags_of(sets, "innocent", tmp_path / "leaks"), "generated": str(tmp_path / "all")}
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as ended:
        membership.main(argv)
    record = json.loads((tmp_path / "leaks" / "membership.json").read_text(encoding="utf-8"))
    assert ended.value.code == 1 and record["verdict"] == "failed"
    assert record["auc"] > 0.95 and record["true_positive_rate"] > 0.9


def test_members_are_told_by_how_well_they_are_reproduced(sets, tmp_path, monkeypatch):
    (tmp_path / "no.pt").write_text("no checkpoint", encoding="utf-8")
    flags = flags_of(sets, "innocent", tmp_path / "out")
    config = membership.MembershipConfig(**flags, checkpoint=str(tmp_path / "no.pt"), inversions=5)
    volumes = {name: volumes_in(flags[name], "--x") for name in ("training", "held_out")}
    with pytest.raises(UserError, match=r"v0\.nii\.gz could not be reproduced: Error: .*no\.pt"):
        membership.inversion_error(volumes["training"][0], config)
    errors = {"training": 0.1, "held_out": 0.2}
    monkeypatch.setattr(membership, "inversion_error", lambda v, _: errors[v.path.parent.name])
    found = membership.compare_inversions(volumes, config)
    assert found["auc"] == 1 and found["n"] == 5 and found["mean_held_out"] == pytest.approx(0.2)


# ---- Turing test


def build(folder, sets, **settings):
    given = {
        "real": str(sets / "held_out"),
        "generated": str(sets / "innocent"),
        "output": str(folder / "reading"),
    }
    return turing.build(turing.TuringConfig(**{**given, "num_items": 20, "repeats": 4, **settings}))


@pytest.fixture(scope="module")
def page_folder(sets, tmp_path_factory):
    """A page that was built, and its key."""
    return build(tmp_path_factory.mktemp("page"), sets)


def answers_of(key, reader, right=1.0, seed=0):
    """A reader's file, as the page saves it, with a share of right answers."""
    rng, answers = np.random.default_rng(seed), []
    for name in key["order"]:
        truth = "synthetic" if key["items"][name]["kind"] == "generated" else "real"
        other = "real" if truth == "synthetic" else "synthetic"
        answers.append({"id": name, "answer": truth if rng.random() < right else other, "confidence": 3})
        answers[-1]["seconds"] = round(float(rng.random() * 9), 1)
    body = {"page": key["page"], "reader": reader, "answers": answers}
    return body | {"checksum": reading.checksum(reading.as_script(body))}


def test_a_page_hides_its_key_and_levels_grey_values(page_folder):
    folder = page_folder
    key, page = (
        json.loads((folder / "key.json").read_text(encoding="utf-8")),
        (folder / "turing.html").read_text(encoding="utf-8"),
    )
    assert len(key["order"]) == 24 and len(set(key["order"])) == 20
    kinds = [one["kind"] for one in key["items"].values()]
    assert kinds.count("real") == kinds.count("generated") == 10
    tail = page[page.index("const PAGE") :]
    assert not any(text in tail for text in ("held_out", "innocent", "v100", '"generated"'))
    shown = json.loads(tail[tail.index("[[") : tail.index("]];") + 2])
    assert [name for name, _ in shown] == key["order"]
    told = "All volumes were brought to one histogram; voxels of one value kept one value."
    assert told in page[: page.index("const PAGE")] and key["treatment"]["told"] == told
    assert key["check"]["volumes"] == [16, 10] and key["check"]["p"] > 0.01
    levels = greys.levelled([controls.scaled(volume_of(n)) ** (1 + n) for n in range(3)])
    assert all(np.abs(np.sort(a, None).astype(int) - np.sort(levels[0], None)).max() <= 1 for a in levels)


def test_what_is_shown_is_known_by_content(sets, tmp_path):
    with pytest.raises(UserError, match=r"16 of the 16 volumes of --generated are in --real"):
        build(tmp_path, sets, generated=str(sets / "held_out"))
    items = [("real", volume) for volume in volumes_in(sets / "held_out", "--real")]
    made = write_set(tmp_path / "made", range(200, 202))
    items += [("generated", volume) for volume in volumes_in(made, "--generated")]
    assert turing.record_of_items(items, made)["trained_on"] is None
    contents = contents_in(sets / "held_out")
    write_trained_on(made, contents[:3], "m/model_3.pt")
    shown = turing.record_of_items(items, made)
    assert shown["contents"] == {"real": contents, "generated": contents_in(made)}
    assert reading.told_of_training(shown["trained_on"], 16).startswith("The generator was trained on 3 of")


def test_a_leak_stops_the_page(sets, tmp_path):
    write_set(tmp_path / "rounded", range(200, 210), lambda array: np.rint(4 * array))
    told = r"Grey values alone tell real from generated .* most in their numbers of grey values.* --match"
    for items in (10, 20):  # however few are shown, all that there are are checked
        with pytest.raises(UserError, match=told):
            build(tmp_path, sets, generated=str(tmp_path / "rounded"), num_items=items, repeats=0)
    assert not (tmp_path / "reading").exists()
    folder = build(tmp_path, sets, generated=str(tmp_path / "rounded"), match=True)
    record = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    treatment, stored = record["treatment"], record["treatment"]["stored"]
    assert treatment["match"] and treatment["grey_values"] < stored["generated"]["grey_values"] + 1 < 60
    assert stored["real"]["grey_values"] == 256 and record["check"]["p_numbers"] > 0.01
    page = (folder / "turing.html").read_text(encoding="utf-8")
    assert f"rounded to {treatment['grey_values']} grey values" in page


def test_too_few_volumes_are_told_so(sets, tmp_path):
    made = write_set(tmp_path / "made", range(200, 206))
    with pytest.raises(
        UserError, match=r"16 real and 6 generated volumes are too few to tell .*least 8 of each"
    ):
        build(tmp_path, sets, generated=str(made), num_items=10)


def test_answers_are_scored(page_folder, tmp_path):
    folder = page_folder
    key, results = json.loads((folder / "key.json").read_text(encoding="utf-8")), tmp_path / "answers"
    results.mkdir()
    for n, (reader, right) in enumerate((("Ä. B.", 1.0), ("C", 0.5))):
        (results / f"{n}.json").write_text(json.dumps(answers_of(key, reader, right, n)), encoding="utf-8")
    flags = [
        "--mode",
        "score",
        "--results",
        results,
        "--key",
        folder / "key.json",
        "--output",
        tmp_path / "out",
    ]
    turing.main(list(map(str, flags)))
    record = json.loads((tmp_path / "out" / "turing.json").read_text(encoding="utf-8"))
    sure = record["readers"]["Ä. B."]
    assert sure["accuracy"] == sure["sensitivity"] == sure["auc"] == 1 and sure["repeats"] == 4
    assert sure["accuracy_95"] == pytest.approx(wilson(20, 20)) and sure["p"] < 1e-5
    assert record["pooled"]["readers"] == 2 and -1 <= record["fleiss_kappa"] <= 1
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not record["indistinguishable"] and "Fleiss" in report
    assert key["treatment"]["told"] in report and record["treatment"] == key["treatment"]
    assert record["contents"] == key["contents"] and "It is not known whether the generator" in report


@pytest.mark.parametrize("how", ["tampered", "unfinished", "other page", "no file"])
def test_answers_that_cannot_be_scored(page_folder, tmp_path, how):
    folder = page_folder
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    told = answers_of(key, "A")
    if how == "tampered":
        told["answers"][0]["confidence"] = 5
    elif how == "unfinished":
        told = answers_of(key | {"order": key["order"][:-1]}, "A")
    elif how == "other page":
        told = answers_of(key | {"page": "0"}, "A")
    if how != "no file":
        (tmp_path / "a.json").write_text(json.dumps(told), encoding="utf-8")
    expected = {
        "tampered": "was changed after",
        "unfinished": "has 23 of 24 answers",
        "other page": "of another page",
    }
    with pytest.raises(UserError, match=expected.get(how, r"holds no \.json file")):
        reading.read_answers(tmp_path, folder / "key.json")
