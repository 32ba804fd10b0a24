"""Setting subjects aside: the law of a split, whose volumes are whose, the table, and what is refused."""

import csv
from collections import Counter
from fractions import Fraction

from volumetric.collection import content_of, scaled
from volumetric.tables import PARTS, Split

import nibabel as nib
import numpy as np
import pytest

from preprocessing import split
from preprocessing.split import Group, Owner, SplitConfig, drawn, grouped, place_of
from tests.conftest import random_array, run_script, write_volume

SHARES = {"training": Fraction("0.7"), "held_out": Fraction("0.2"), "test": Fraction("0.1")}


def people(number, stratum="", first=0):
    """Groups of one subject each."""
    return [Group((f"{stratum}{n}",), stratum) for n in range(first, first + number)]


def kept(parts):
    """The groups of a split, with their parts as an earlier split has them."""
    return [Group(group.subjects, group.stratum, part) for group, part in parts.items()]


def by_subject(parts):
    """{subject: part}"""
    return {subject: part for group, part in parts.items() for subject in group.subjects}


# ---- the law


def test_a_place_is_the_same_everywhere_and_always():
    # printf 0:sub-01 | sha256sum | cut -c1-16
    assert place_of(0, "sub-01") == Fraction(0xA06B73C5D07096B2, 2**64)
    assert place_of(0, "sub-01") != place_of(1, "sub-01") != place_of(1, "sub-02")


def test_a_new_subject_moves_nobody_and_a_larger_share_takes_from_training():
    few, many = drawn(people(50), SHARES, 0), drawn(people(60), SHARES, 0)
    assert few.items() <= many.items()
    larger = {"training": Fraction("0.5"), "held_out": Fraction("0.3"), "test": Fraction("0.2")}
    moved = {(many[group], part) for group, part in drawn(people(60), larger, 0).items()}
    assert moved - {(part, part) for part in PARTS} == {("training", "held_out"), ("training", "test")}


def test_shares_of_a_large_draw():
    found = Counter(drawn(people(2000), SHARES, 0).values())
    for part, share in SHARES.items():
        deviation = float(2000 * share * (1 - share)) ** 0.5
        assert abs(found[part] - 2000 * share) < 3 * deviation


def test_shares_hold_in_each_stratum_to_less_than_one():
    groups = [group for n in range(1, 31) for group in people(n, f"stratum {n}:")]
    for seed in range(3):
        parts = drawn(groups, SHARES, seed, stratified=True)
        found = Counter((group.stratum, part) for group, part in parts.items())
        for n in range(1, 31):
            for part, share in SHARES.items():
                assert abs(found[f"stratum {n}:", part] - n * share) < 1
        together = Counter(parts.values())
        assert all(abs(together[part] - 465 * share) < 1.5 for part, share in SHARES.items())


def test_small_strata_do_not_leave_the_test_empty():
    groups = [group for n in range(40) for group in people(3, f"stratum {n}:")]
    assert Counter(drawn(groups, SHARES, 0, stratified=True).values()) == {
        "training": 84,
        "held_out": 24,
        "test": 12,
    }


def test_strata_with_an_earlier_split_move_nobody():
    first = drawn(people(10, "a") + people(10, "b"), SHARES, 0, stratified=True)
    groups = kept(first) + people(10, "a", first=10)
    second = drawn(groups, SHARES, 7, stratified=True)
    assert by_subject(first).items() <= by_subject(second).items()
    assert Counter((g.stratum, part) for g, part in second.items()) == {
        **{("a", "training"): 14, ("a", "held_out"): 4, ("a", "test"): 2},
        **{("b", "training"): 7, ("b", "held_out"): 2, ("b", "test"): 1},
    }
    all_in_training = [Group(group.subjects, group.stratum, "training") for group in people(8)]
    found = drawn(all_in_training + people(2, first=8), SHARES, 0, stratified=True)
    assert Counter(found.values()) == {"training": 8, "held_out": 1, "test": 1}


def test_subjects_that_share_volumes_are_one_group():
    owners = [Owner(f"{n}.nii", subject) for n, subject in enumerate("dcbbaae")]
    contents = ["1", "2", "2", "3", "3", "4", "5"]  # c, b and a are tied by 2 and 3
    assert [group.subjects for group in grouped(owners, contents)] == [("a", "b", "c"), ("d",), ("e",)]
    assert split.shared_volumes(owners, contents) == [
        "c and b share a volume (1.nii and 2.nii have the same voxels): they are kept in one part",
        "b and a share a volume (3.nii and 4.nii have the same voxels): they are kept in one part",
    ]


def test_who_was_there_keeps_the_part_by_name_or_by_content():
    earlier = [
        {"file": "x.nii", "content": "1", "subject": "a", "part": "test"},
        {"file": "y.nii", "content": "2", "subject": "b", "part": "held_out"},
    ]
    owners = [Owner("0.nii", "a"), Owner("1.nii", "renamed"), Owner("2.nii", "new")]
    groups = grouped(owners, ["changed", "2", "3"], earlier)
    assert [group.kept for group in groups] == ["test", None, "held_out"]
    with pytest.raises(
        ValueError, match=r"a and new must be in one part, .* x.nii of a in test, y.nii of b in h"
    ):
        grouped([Owner("0.nii", "a"), Owner("1.nii", "new"), Owner("2.nii", "new")], ["1", "1", "2"], earlier)


# ---- the program


@pytest.fixture
def heads(tmp_path):
    """Folder of 12 volumes of 10 subjects; sub-1 has two, and s's only one is sub-2's along other axes."""
    for n in range(10):
        write_volume(tmp_path / "heads" / f"sub-{n}" / "anat" / f"sub-{n}_angio.nii.gz", random_array(n))
    write_volume(tmp_path / "heads" / "sub-1" / "ses-2" / "sub-1.nii.gz", random_array(100))
    image = nib.load(tmp_path / "heads" / "sub-2" / "anat" / "sub-2_angio.nii.gz")
    nib.save(image.as_reoriented([[1, -1], [0, -1], [2, 1]]), tmp_path / "heads" / "s.nii")
    return tmp_path / "heads"


def made(folder, **settings):
    """Rows of the split that is written with these settings, {file: row}."""
    flags = [f"--{name}={value}" for name, value in ({"data": folder} | settings).items()]
    split.main(flags)
    return {row["file"]: row for row in Split.read(settings["output"]).rows}


def refused(capsys, folder, **settings):
    """What the program says when it writes no split."""
    with pytest.raises(SystemExit) as error:
        made(folder, **settings)
    capsys.readouterr()
    return str(error.value)


def test_a_split_as_a_user_makes_it(tmp_path, heads):
    output = tmp_path / "new" / "split.csv"
    flags = ("--data", heads, "--output", output, "--held_out", 0.3, "--test", 0.2)
    run = run_script("preprocessing/split.py", *flags)
    assert run.returncode == 0, run.stderr
    with open(output, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "content", "subject", "part"] and len(rows) == 12
    of = {row["file"]: row for row in rows}
    turned, told = of["s.nii"], of["sub-2/anat/sub-2_angio.nii.gz"]
    assert turned["content"] == told["content"] == content_of(scaled(random_array(2)))
    assert turned["part"] == told["part"] and (turned["subject"], told["subject"]) == ("s", "sub-2")
    assert of["sub-1/anat/sub-1_angio.nii.gz"]["part"] == of["sub-1/ses-2/sub-1.nii.gz"]["part"]
    assert (
        "11 subjects have 12 volumes: 11 go by the BIDS label in the path (sub-...) and 1 are" in run.stdout
    )
    assert "s and sub-2 share a volume (s.nii and sub-2/anat/sub-2_angio.nii.gz have the same" in run.stdout
    summary = [line.split() for line in run.stdout.splitlines() if line.startswith("all ")]
    assert [line[1] for line in summary] == list(PARTS) and [line[3] for line in summary] == [
        "5.5",
        "3.3",
        "2.2",
    ]
    subjects = {row["subject"]: row["part"] for row in rows}
    assert [int(line[2]) for line in summary] == [list(subjects.values()).count(part) for part in PARTS]
    assert [int(line[4]) for line in summary] == [[r["part"] for r in rows].count(part) for part in PARTS]
    assert "Traceback" not in run.stderr


def test_what_follows_keeps_the_parts_and_overwrites_nothing(tmp_path, heads, capsys):
    first = made(heads, output=tmp_path / "1.csv", held_out=0.3, test=0.2)
    again = refused(capsys, heads, output=tmp_path / "1.csv")
    assert again.startswith(f"Error: --output {tmp_path / '1.csv'} exists, and nothing is overwritten")
    write_volume(heads / "sub-10.nii.gz", random_array(10))
    (heads / "sub-3" / "anat" / "sub-3_angio.nii.gz").rename(tmp_path / "sub-3.nii.gz")
    (heads / "sub-4").rename(heads / "renamed")
    second = made(heads, output=tmp_path / "2.csv", earlier=tmp_path / "1.csv", seed=5)
    assert "1 of 12 volumes of --earlier" in capsys.readouterr().out
    assert {row["subject"]: row["part"] for row in first.values()}.items() <= {
        row["subject"]: row["part"] for row in second.values()
    }.items()
    assert len(second) == 13 and "sub-3/anat/sub-3_angio.nii.gz" in second
    image = nib.load(heads / "sub-5" / "anat" / "sub-5_angio.nii.gz")
    other = next(row["file"] for row in first.values() if row["part"] != first_part(first, "sub-5"))
    nib.save(image, heads / other)
    assert "must be in one part, and --earlier has" in refused(
        capsys, heads, output=tmp_path / "3.csv", earlier=tmp_path / "1.csv"
    )
    assert not (tmp_path / "3.csv").exists()


def first_part(rows, subject):
    """Part of a subject in {file: row}."""
    return next(row["part"] for row in rows.values() if row["subject"] == subject)


def test_subjects_and_strata_of_a_table(tmp_path, data, capsys):
    table = tmp_path / "subjects.csv"
    rows = [f"v{n}.nii.gz;{'ab'[n % 2]}{n // 4};{'XY'[n % 2]}" for n in range(6)]  # a0 b0 a0 b0 a1 b1
    table.write_text("\n".join(["\ufefffile;subject;site", *rows, "v9.nii.gz;c;Z", ""]), encoding="utf-8")
    given = {"subjects": table, "stratify": "site", "held_out": 0.5, "test": 0}
    found = made(data, output=tmp_path / "s.csv", **given)
    assert [(r["subject"], r["site"]) for r in found.values()] == [
        *[("a0", "X"), ("b0", "Y")] * 2,
        *[("a1", "X"), ("b1", "Y")],
    ]
    for site in "XY":
        assert {r["part"] for r in found.values() if r["site"] == site} == {"training", "held_out"}
    said = capsys.readouterr().out
    assert f"--subjects {table}: rows of volumes that are not here: 1, the first v9.nii.gz." in said
    assert "4 subjects have 6 volumes: as --subjects" in said and "site X  held_out  1         1.0" in said
    assert "2 of the 2 values of site have fewer than 3 subjects" in said

    def text(lines):
        table.write_text("\n".join(["file,subject,site", *lines, ""]), encoding="utf-8")
        return refused(capsys, data, output=tmp_path / "t.csv", **given)

    assert "has no row for 4 of 6 volumes, the first v2.nii.gz: add its file and subject" in text(
        ["v0.nii.gz,a,X", "v1.nii.gz,b,Y"]
    )
    assert "gives a the site 'X' (v0.nii.gz) and 'Y' (v1.nii.gz): give a subject one" in text(
        [f"v{n}.nii.gz,a,{'XY'[n % 2]}" for n in range(6)]
    )


def test_an_empty_part_is_refused_with_a_seed_that_fills_it(tmp_path, data, capsys):
    said = refused(capsys, data, output=tmp_path / "s.csv", seed=4)
    assert said.startswith(
        "Error: Of 6 subjects, nobody is drawn for test (--held_out 0.2, --test 0.1): --seed "
    )
    seed = said.split("--seed ")[1].split()[0]
    rows = made(data, output=tmp_path / "s.csv", seed=seed)
    assert {row["part"] for row in rows.values()} == set(PARTS)
    for n in range(2, 6):
        (data / f"v{n}.nii.gz").unlink()
    assert "give larger shares, or 0" in refused(capsys, data, output=tmp_path / "t.csv")


def test_names_that_may_mean_two_things_are_told(tmp_path, capsys):
    for n, name in enumerate(["A/sub-1", "B/sub-1", "A/v", "B/v", "A/w_0000", "A/w_0001"]):
        write_volume(tmp_path / "d" / f"{name}.nii", random_array(n))
    rows = made(tmp_path / "d", output=tmp_path / "s.csv", held_out=0, test=0)
    said = capsys.readouterr().out
    assert [row["subject"] for row in rows.values()] == [
        "sub-1",
        "A/v",
        "A/w_0000",
        "A/w_0001",
        "sub-1",
        "B/v",
    ]
    assert "Labels in several places: 1, as A/sub-1 and B/sub-1: a label is taken for one subject" in said
    assert "Names of several files: 1, as A/v.nii and B/v.nii: each file is taken for a subject" in said
    labels = np.zeros((8, 8, 4), np.uint8)
    labels[2:4] = 1
    write_volume(tmp_path / "d" / "labels.nii", labels)
    assert "1 of the 7 files in" in refused(capsys, tmp_path / "d", output=tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"stratify": "site"}, "--stratify names a column of --subjects"),
        ({"stratify": "part", "subjects": __file__}, "--stratify must be a column beside file, content"),
        ({"held_out": 0.5, "test": 0.5}, "--held_out 0.5 and --test 0.5 leave nothing to train on"),
        ({"held_out": 1.5}, "--held_out must be between 0 and 1"),
        ({"output": __file__}, "exists, and nothing is overwritten"),
    ],
)
def test_settings_that_are_refused(tmp_path, settings, text):
    with pytest.raises(ValueError, match=text):
        SplitConfig(**{"output": str(tmp_path / "s.csv"), **settings})
