"""Tables beside volumes: how they are read, which row is a file's, whose a volume is, what a split may be."""

import os
import re
import unicodedata

from volumetric.cli import UserError
from volumetric.tables import Split, read_table, rows_of, subject_of

import pytest

ROWS = [{"file": "c0.nii", "subject": "s1"}, {"file": "c1.nii", "subject": "s2"}]
PLAIN = "file,subject\nc0.nii,s1\nc1.nii,s2\n"


def table_of(folder, text, *columns):
    """What is read from a table of this text or these bytes."""
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path, *(columns or ("file", "subject")), flag="--subjects")


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "\ufeff" + PLAIN,
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.rstrip(),
        f"\n\n{PLAIN}\n,\n\n",
        'file,"subject"\n"c0.nii", s1\nc1.nii, "s2"\n',
        ",file,subject,,\n0,c0.nii,s1,,\n1,c1.nii,s2,,\n",  # rows numbered by pandas, empty columns of Excel
        "file,subject\nc0.nii,s1,\nc1.nii,s2,,\n",
    ],
)
def test_ways_to_write_one_table(tmp_path, text):
    assert table_of(tmp_path, text) == ROWS


def test_separators_inside_cells(tmp_path):
    assert table_of(tmp_path, 'file;subject;"a,b,c"\n"x;1.nii";"s,1";2\n') == [
        {"file": "x;1.nii", "subject": "s,1", "a,b,c": "2"}
    ]
    assert table_of(tmp_path, 'file,note\n"a.nii","line\nand ""line"""\n', "file")[0]["note"] == (
        'line\nand "line"'
    )
    assert table_of(tmp_path, "file\na.nii\nb.nii\n", "file") == [{"file": "a.nii"}, {"file": "b.nii"}]
    assert table_of(tmp_path, "file,subject,age\na.nii,s1\n") == [
        {"file": "a.nii", "subject": "s1", "age": ""}
    ]


WRONG = {
    "": "is empty: give a CSV table of file and subject",
    "\n \n": "is empty: give a CSV",
    "file,subject\n": "has the names of its columns and no row",
    "file,label\na,b\n": "has the columns 'file, label', expected file and subject",
    "file,subject,file\na,b,c\n": "has the column 'file' twice",
    "file,subject\na,s1\nb,\n": "has no subject in line 3",
    "file,subject\n\n\na\n": "has no subject in line 4",
    "file,subject\na,b.nii,s1\n": "has more cells in line 2 than columns",
    'file,subject\n"a,s1\nb,s2\n': "cannot be read in line 3 (unexpected end of data): are its quotes closed",
    PLAIN.encode("utf-16"): 'is UTF-16 (Excel\'s "Unicode Text"), or no text: save it as "CSV UTF-8"',
    PLAIN.encode("utf-16-le"): "is UTF-16",
    "file,subject\na,Jürgen\n".encode("cp1252"): 'is not in UTF-8 (line 2): save it as "CSV UTF-8"',
    b"PK\x03\x04\x14\x00": "is a workbook of a spreadsheet",
    b"file,subject\n" + b"a" * 200_000 + b",b": "field larger than field limit",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_tables_that_are_refused(tmp_path, text):
    with pytest.raises(UserError, match=re.escape(WRONG[text])) as error:
        table_of(tmp_path, text)
    assert str(error.value).startswith(f"--subjects {tmp_path / 't.csv'} ") and "\n" not in str(error.value)


def test_a_row_is_that_of_the_longest_end_of_a_path():
    rows = [
        {"file": file, "site": site} for file, site in (("v.nii", "x"), ("B\\v.nii", "B"), ("./C/w.nii", "C"))
    ]
    paths = ["/data/A/v.nii", "/data/B/v.nii", "C/w.nii", "D/u.nii"]
    found, unused = rows_of([*rows, {"file": "E/w.nii", "site": "E"}], paths, "--groups g.csv")
    assert [row and row["site"] for row in found] == ["x", "B", "C", None] and unused == ["E/w.nii"]
    with pytest.raises(UserError, match=r"one row for v.nii, and 2 volumes are called so: give each its own"):
        rows_of(rows, ["A/v.nii", "D/v.nii"], "--groups g.csv")
    twice = [*rows, {"file": "B/v.nii", "site": "A"}]
    with pytest.raises(UserError, match=r"two rows for B/v.nii, with the site 'B' and 'A': keep one"):
        rows_of(twice, paths, "--groups g.csv")
    assert rows_of([*rows, rows[0]], paths, "")[0][0] == rows[0]  # said twice alike


def test_a_table_made_above_a_folder_serves_inside_it(tmp_path, monkeypatch):
    rows = [{"file": "siteA/v.nii"}, {"file": "siteB/v.nii"}]
    (tmp_path / "siteB").mkdir()
    monkeypatch.chdir(tmp_path / "siteB")
    assert rows_of(rows, ["v.nii"], "")[0] == [rows[1]]
    assert rows_of(rows, [os.path.join("..", "siteA", "v.nii")], "")[0] == [rows[0]]


def test_letters_that_a_mac_writes_as_two_characters(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Jürgen.nii")
    rows = table_of(tmp_path, f"file,subject\n{decomposed},s1\nMüller.nii,s2\n")
    paths = ["a/Jürgen.nii", unicodedata.normalize("NFD", "a/Müller.nii")]
    assert rows_of(rows, paths, "")[0] == rows
    assert subject_of(decomposed) == "Jürgen"


def test_whose_a_volume_is():
    assert subject_of("sub-01/ses-2/anat/sub-01_ses-2_angio.nii.gz") == "sub-01"
    assert subject_of("T1/sub-01.nii") == subject_of("siteA_sub-01.nii.gz") == "sub-01"
    assert subject_of("siteA/v_0000.NII.GZ") == "siteA/v_0000"  # phantom_0001 is no channel 1 of a phantom
    assert subject_of("mysub-01.nii") == "mysub-01"
    with pytest.raises(UserError, match=r"sub-01/sub-02.nii is of sub-01 and sub-02: say in a table"):
        subject_of("sub-01/sub-02.nii")


SPLIT = "file,content,subject,part\nA/v.nii,c1,s1,training\nB/v.nii,c2,s2,test\nB/w.nii,c3,s2,test\n"


def test_contents_of_a_part(tmp_path):
    (tmp_path / "s.csv").write_text(SPLIT, encoding="utf-8")
    split = Split.read(tmp_path / "s.csv")
    paths = [tmp_path / "A/v.nii", tmp_path / "B/v.nii"]
    assert split.contents(paths, ("training",)) == {paths[0]: "c1"}
    assert split.contents(paths, ("held_out", "test")) == {paths[1]: "c2"}
    with pytest.raises(UserError, match=r"no row for 1 of 3 volumes, the first x.nii: .*--earlier .*s.csv"):
        split.contents([*paths, "x.nii"], ("training",))
    with pytest.raises(UserError, match="no volume for held_out in this folder"):
        split.contents(paths, ("held_out",))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("x.nii,c4,s4,train", "has the part 'train' for x.nii, expected training, held_out, test"),
        (
            "x.nii,c4,s2,training",
            r"the subject s2 in test \(B/v.nii\) and in training \(x.nii\): give it one",
        ),
        ("x.nii,c1,s4,held_out", r"the content c1 in training \(A/v.nii\) and in held_out \(x.nii\)"),
        ("x.nii,,s4,test", "has no content in line 5"),
    ],
)
def test_splits_that_are_refused(tmp_path, row, text):
    (tmp_path / "s.csv").write_text(f"{SPLIT}{row}\n", encoding="utf-8")
    with pytest.raises(UserError, match=text):
        Split.read(tmp_path / "s.csv")
