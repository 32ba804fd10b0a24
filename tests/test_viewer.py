"""The page of --view: what is on it, what is left out, and what it never says."""

import base64
import gzip
import json
import re

from volumetric import viewer
from volumetric.cli import UserError
from volumetric.collection import read
from volumetric.files import save_nifti

import nibabel as nib
import numpy as np
import pytest

from CoW_generator import GenerateConfig, main
from tests.conftest import ROOT, random_array, run_script, write_volume

SIDECAR = {
    "synthetic": True,
    "mode": "normal",
    "seed": 7,
    "truncation_psi": 0.8,
    "recipe": {"style": {"seed": 7, "labels": ["narrow"]}, "noise": {"seed": 7, "variation": 0}},
    "checkpoint": {"path": "/home/someone/models/cow/model_33.pt", "sha256": "ab" * 32, "step": 33000},
    "target": "/home/someone/patients/miller.nii.gz",
}
AFFINE = np.diag([0.6, 0.6, 0.8, 1])


def items_of(page):
    """What a page shows: [{"name", "data", "synthetic", "facts"}]."""
    text = page.read_text(encoding="utf-8")
    (line,) = re.findall(r"^const ITEMS = (.*);$", text, re.MULTILINE)
    return json.loads(line)


def decoded(item):
    """nibabel image of what the page holds of a volume."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(item["data"])))


def write_sidecar(folder, name, record):
    """The file beside a volume."""
    (folder / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")


def report_on(folder, **more):
    """A report of trust/replicas.py on the volumes of a folder: v0 is flagged."""
    contents = [read(path).content for path in sorted(folder.glob("*.nii.gz"))]
    rows = [
        {"statistic": "anatomy", "similarity": 0.9 - n / 4, "p": 0.02 + n / 4} for n in range(len(contents))
    ]
    flagged = {"generated": "v0", "content": contents[0], "training": "patients/miller.nii.gz", **rows[0]}
    record = {"verdict": "passed", "flagged": [flagged], "contents": {"training": ["f" * 64]}}
    record["contents"]["generated"] = contents
    return record | {"nearest": dict(zip(contents, rows, strict=True))} | more


# ---- the page


def test_a_page_loads_nothing(data):
    text = viewer.write_view(data).read_text(encoding="utf-8")
    ours = text.replace(viewer.niivue(), "")
    assert not re.findall(r"https?://|\bsrc=[\"'](?!data:)|\bhref=|@import|url\(", ours)
    assert "default-src 'none'" in text and "connect-src data: blob:" in text
    assert viewer.MARK in text[: viewer.MARKED_WITHIN] and text.count("</script>") == 2
    assert not re.findall(r"\$[a-z_]+\b", ours)  # everything is filled in


@pytest.mark.parametrize(
    "array",
    [
        random_array(0),
        1e5 * random_array(1) - 4e4,
        1e-20 * random_array(2),
        np.rint(4000 * random_array(3)) - 1000,
        np.full((8, 8, 4), 3, np.float32),
    ],
    ids=["unit", "large", "tiny", "whole", "constant"],
)
def test_voxels_are_within_half_a_level(tmp_path, array):
    turned = np.diag([-0.6, 0.6, 0.8, 1])  # stored along L, A, S
    path = write_volume(tmp_path / "v.nii.gz", array.astype(np.float32), turned)
    (item,) = items_of(viewer.write_view(tmp_path))
    image, volume = decoded(item), read(path, constant=True)
    half = (float(array.max()) - float(array.min())) / (viewer.LEVELS - 1) / 2
    whole = bool((array == np.rint(array)).all())
    found = image.get_fdata()
    assert np.abs(found - volume.array).max() <= (0 if whole else 1.001 * half)
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S") and dict(item["facts"])["Stored along"] == "LAS"
    assert bytes(image.header["descrip"]).strip(b"\0") == b""  # nothing of the file's own


def test_facts_of_a_sidecar_and_who_is_synthetic(data):
    write_sidecar(data, "v0", SIDECAR)
    write_sidecar(data, "v1", {"PatientName": "Miller", "Manufacturer": "Somebody"})
    (data / "v2.json").write_text("{", encoding="utf-8")
    write_sidecar(data, "v3", {"synthetic": "no"})
    save_nifti(random_array(9, (1, 4, 8, 8)), AFFINE, data / "v9.nii.gz")  # no sidecar: its header says so
    page = viewer.write_view(data)
    items = items_of(page)
    assert [i["name"] for i in items if i["synthetic"]] == ["v0.nii.gz", "v9.nii.gz"]
    facts = [dict(item["facts"]) for item in items]
    wanted = {"Mode": "normal", "Seed": "7", "Class": "narrow", "Truncation psi": "0.8", "Noise": "0"}
    wanted |= {"Checkpoint": "model_33.pt", "Its SHA-256": "abababababab...", "Its step": "33000"}
    wanted |= {"Voxels": "8 x 8 x 4", "Voxel size": "0.6 x 0.6 x 0.8 mm"}
    assert wanted.items() <= facts[0].items()
    assert facts[1]["Sidecar"] == "v1.json is of another program" and "Seed" not in facts[1]
    assert facts[2]["Sidecar"] == "v2.json cannot be read"
    text = page.read_text(encoding="utf-8")
    assert not any(word in text for word in ("Miller", "miller", "someone", "Somebody"))


def test_ways_and_mixes_are_told(data):
    record = {**SIDECAR, "seed": None, "recipe": {"style": {"slerp": [3, 8], "t": 0.25}, "noise": "odd"}}
    write_sidecar(data, "v0", record)
    facts = dict(items_of(viewer.write_view(data))[0]["facts"])
    assert facts["From seed to seed, in z"] == "3, 8" and facts["Place on the way"] == "0.25"
    assert "Seed" not in facts and "Noise" not in facts


def test_odd_names_stay_text(tmp_path):
    name = "a <script>alert(1)<_script> & \"b\" 'c' $items é"
    folder = tmp_path / "<b>$title"
    write_volume(folder / "below" / f"{name}.nii.gz", random_array(0))
    (folder / "<i>.nii").write_bytes(b"nothing")
    page = viewer.write_view(folder)
    text = page.read_text(encoding="utf-8").replace(viewer.niivue(), "")
    assert [item["name"] for item in items_of(page)] == [f"below/{name}.nii.gz"]
    assert "<script>alert(1)" not in text and "<b>$" not in text and "<title>&lt;b&gt;$title</title>" in text
    assert "<li>&lt;i&gt;.nii: cannot be read" in text
    assert "innerHTML" not in re.sub(r"figure\.innerHTML = '[^$]*?';", "", text)


def test_the_contact_sheet_is_there_for_browsers_without_webgl(data):
    assert "data:image/png" not in viewer.write_view(data).read_text(encoding="utf-8").replace(
        viewer.niivue(), ""
    )
    (data / "contact_sheet.png").write_bytes(b"\x89PNG")
    text = viewer.write_view(data).read_text(encoding="utf-8")
    sheet = text.index(base64.b64encode(b"\x89PNG").decode())
    assert text.index("The page needs WebGL 2") < sheet < text.index("<noscript>")


# ---- limits


def test_a_full_page_says_what_is_not_on_it(data, monkeypatch, capsys):
    monkeypatch.setattr(viewer, "MOST_VOLUMES", 4)
    page = viewer.write_view(data)
    assert [item["name"] for item in items_of(page)] == [f"v{n}.nii.gz" for n in range(4)]
    told = "v5.nii.gz: the page is full: it holds at most 4 volumes"
    assert told in page.read_text(encoding="utf-8") and f"left out: {told}" in capsys.readouterr().out
    assert "4 of 6 volumes; 2 left out" in page.read_text(encoding="utf-8")


def test_a_page_keeps_its_size(data, monkeypatch):
    whole = viewer.write_view(data).stat().st_size
    monkeypatch.setattr(viewer, "MOST_BYTES", whole + viewer.OF_TEXT)
    page = viewer.write_view(data)  # smaller: room is kept for facts
    assert 1 < len(items_of(page)) < 6 and page.stat().st_size < whole
    monkeypatch.setattr(viewer, "MOST_VOXELS", 200)
    with pytest.raises(UserError, match=r"nothing to show: v0.nii.gz has 256 voxels, .* \(5 more cannot"):
        viewer.write_view(data)


# ---- reports of replicas


@pytest.mark.parametrize("place", ["replicas.json", "replicas/replicas.json", "../replicas.json", None])
def test_a_report_gives_distance_and_verdict_alone(data, tmp_path, place):
    path = (data / place if place else tmp_path / "elsewhere.json").resolve()
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report_on(data)), encoding="utf-8")
    page = viewer.write_view(data, None if place else path)
    first, second, *_ = [dict(item["facts"]) for item in items_of(page)]
    assert first["Nearest training volume"] == "distance 0.100 (1 - similarity by anatomy, p 0.02)"
    assert first["Replica search"] == "flagged as too similar; the folder passed"
    assert second["Nearest training volume"].startswith("distance 0.350 ")
    assert second["Replica search"] == "not flagged; the folder passed"
    text = page.read_text(encoding="utf-8")
    assert "miller" not in text and "f" * 64 not in text


def test_reports_without_distances_and_of_other_volumes(data, tmp_path):
    record = report_on(data, nearest=None)
    record["contents"]["generated"].pop()
    (data / "replicas.json").write_text(json.dumps(record), encoding="utf-8")
    facts = [dict(item["facts"]) for item in items_of(viewer.write_view(data))]
    assert facts[0]["Nearest training volume"].startswith("distance 0.100 ")
    assert facts[1]["Nearest training volume"] == "its distance is not in the report"
    assert facts[5]["Nearest training volume"].endswith("did not look at this volume")
    record["contents"]["generated"] = ["0" * 64]
    (data / "replicas.json").write_text(json.dumps(record), encoding="utf-8")
    facts = dict(items_of(viewer.write_view(data))[0]["facts"])
    assert "Nearest training volume" not in facts
    with pytest.raises(UserError, match="looked at none of the volumes"):
        viewer.write_view(data, data / "replicas.json")
    for text, told in (("{}", "is no report of replicas"), ("[", "cannot be read")):
        (tmp_path / "r.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=rf"--replicas .*r\.json {told}"):
            viewer.write_view(data, tmp_path / "r.json")


# ---- bad input


def test_folders_that_cannot_be_shown(tmp_path):
    def refused(text, folder):
        with pytest.raises(UserError, match=text):
            viewer.write_view(folder)

    refused("--view .*nowhere does not exist", tmp_path / "nowhere")
    refused("holds no .nii or .nii.gz file", tmp_path)
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    refused(r"a\.txt is a file", tmp_path / "a.txt")
    (tmp_path / "a.nii").write_bytes(b"")
    refused(r"nothing to show: a\.nii cannot be read \(it is empty\)", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii", "a.txt"]


def test_what_cannot_be_read_is_left_out(data):
    (data / "cut.nii.gz").write_bytes((data / "v0.nii.gz").read_bytes()[:200])
    write_volume(data / "many.nii.gz", np.zeros((4, 4, 4, 3), np.float32))
    (data / "lost.nii.gz").symlink_to(data / "gone.nii.gz")
    page = viewer.write_view(data)
    text = page.read_text(encoding="utf-8")
    assert len(items_of(page)) == 6 and "6 of 9 volumes; 3 left out" in text
    for told in ("cut.nii.gz: cannot be read", "many.nii.gz: is 4D", "lost.nii.gz: is a link to a file"):
        assert told in text


def test_only_our_own_page_is_replaced(data):
    page = viewer.write_view(data)
    (data / "v0.nii.gz").unlink()
    assert viewer.write_view(data) == page and len(items_of(page)) == 5
    page.write_text("<html>somebody's own</html>", encoding="utf-8")
    with pytest.raises(UserError, match=r"view\.html is there, and --view did not write it"):
        viewer.write_view(data)
    assert page.read_text(encoding="utf-8") == "<html>somebody's own</html>"
    page.unlink()
    page.mkdir()
    with pytest.raises(UserError, match="did not write it"):
        viewer.write_view(data)
    assert not list(data.glob(".part-*"))


def test_the_command_line(data, tmp_path, capsys):
    main(["--view", str(data)])
    assert re.search(r"view\.html shows 6 of 6 volumes \([0-9.]+ MB\)", capsys.readouterr().out)
    run = run_script("CoW_generator.py", "--view", tmp_path / "nowhere")
    assert run.returncode == 1 and run.stderr.startswith("Error: --view") and run.stderr.count("\n") == 1
    for flags, told in (
        ({"replicas": str(ROOT / "README.md")}, "--replicas needs --view"),
        ({"view": "a", "recreate": str(ROOT / "README.md")}, "two commands"),
    ):
        with pytest.raises(UserError, match=told):
            GenerateConfig(**flags)
