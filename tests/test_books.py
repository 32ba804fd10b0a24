"""The output folder of preprocessing, and its workers: what belongs where, and who may write."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from volumetric.files import is_running, locked

import nibabel as nib
import numpy as np
import pytest

from preprocessing import books, preprocessing
from preprocessing.images import write_image
from preprocessing.preprocessing import PreprocessConfig
from preprocessing.quality import write_page
from preprocessing.workers import open_workers, run_all
from tests.conftest import ROOT
from tests.test_pipeline import heads, posed, settings, write_head  # noqa: F401  heads is a fixture


def dies_once(path):
    """Kill this worker at the first call."""
    if not os.path.exists(path):
        open(path, "w", encoding="utf-8").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def dies(path):
    """Kill this worker, and count it."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def dies_or_not(job):
    """A job of the next test."""
    return {"once": dies_once, "always": dies}.get(job[0], str)(job[1])


def test_the_scan_of_a_killed_worker_is_tried_once_more(tmp_path):
    jobs = [("once", str(tmp_path / "one")), ("always", str(tmp_path / "two")), ("never", "fine")]
    with open_workers(None, 2) as workers:
        found = {job[0]: result for job, result in run_all(workers, dies_or_not, jobs, "Test")}
    assert found == {"once": "survived", "always": None, "never": "fine"}
    assert (tmp_path / "two").read_text(encoding="utf-8") == "xx"
    with pytest.raises(ValueError, match="--scheduler nonsense does not answer"), open_workers("nonsense", 1):
        pass


def status_of(folder):
    """{subject: row} of status.csv."""
    return books.read_status(Path(folder))


def test_what_is_no_longer_right_leaves_the_training_folder(tmp_path, heads):  # noqa: F811
    folder, _ = heads
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    for n in (1, 2):
        shutil.copy(folder / "raw" / f"sub-0{n}.nii.gz", raw)
    write_head(tmp_path, "sub-03", 3, posed(3))
    config = settings(heads, out, data=str(raw))
    preprocessing.preprocess(config)
    volumes = {p.name: p.read_bytes() for p in (out / "volumes").iterdir()}
    assert sorted(volumes) == ["sub-01.nii.gz", "sub-02.nii.gz", "sub-03.nii.gz"]
    # One is withdrawn, one excluded, one has changed.
    (raw / "sub-01.nii.gz").rename(tmp_path / "sub-01.nii.gz")
    (out / "exclude.txt").write_text("sub-02\n", encoding="utf-8")
    changed = nib.load(raw / "sub-03.nii.gz")
    write_image(np.asarray(changed.dataobj) * 2, changed.affine, raw / "sub-03.nii.gz")
    rows = preprocessing.preprocess(config)
    assert {name: row["step"] for name, row in rows.items()} == {
        "sub-01": "withdrawn",
        "sub-02": "excluded",
        "sub-03": "done",
    }
    assert status_of(out)["sub-01"]["reason"] == "no longer in --data: see withdrawn/"
    assert [p.name for p in (out / "volumes").iterdir()] == ["sub-03.nii.gz"]
    assert {p.name: p.read_bytes() for p in (out / "withdrawn").glob("*.nii.gz")} == volumes
    assert (
        "sub-01" in (out / "qc.html").read_text(encoding="utf-8") and not (out / "qc" / "sub-01.png").exists()
    )
    # What comes back is not made again.
    (tmp_path / "sub-01.nii.gz").rename(raw / "sub-01.nii.gz")
    (out / "exclude.txt").unlink()
    rows = preprocessing.preprocess(config)
    assert {row["step"] for row in rows.values()} == {"done"}
    kept = {p.name: p.read_bytes() for p in (out / "volumes").iterdir()}
    assert sorted(kept) == sorted(volumes) and kept["sub-01.nii.gz"] == volumes["sub-01.nii.gz"]
    assert kept["sub-03.nii.gz"] != volumes["sub-03.nii.gz"]
    # Another gate judges anew, and makes nothing again.
    times = {p.name: p.stat().st_mtime_ns for p in (out / "volumes").iterdir()}
    rows = preprocessing.preprocess(replace(config, nmi_gate=2.0))
    assert {row["step"] for row in rows.values()} == {"flagged"}
    assert {p.name: p.stat().st_mtime_ns for p in (out / "flagged").iterdir()} == times
    # One that cannot be read any more.
    (raw / "sub-02.nii.gz").write_bytes(b"")
    rows = preprocessing.preprocess(replace(config, bids_output=True))
    assert rows["sub-02"]["step"] == "audit" and sorted(p.name for p in (out / "volumes").iterdir()) == [
        "sub-01.nii.gz",
        "sub-03.nii.gz",
    ]
    made = sorted(str(p.relative_to(out / "bids")) for p in (out / "bids").rglob("*.nii.gz"))
    assert made == [f"sub-{n}/anat/sub-{n}_space-template_desc-region_angio.nii.gz" for n in ("01", "03")]
    about = json.loads((out / "bids" / "dataset_description.json").read_text(encoding="utf-8"))
    assert about["DatasetType"] == "derivative" and about["GeneratedBy"][0]["Version"]


def test_sides_are_judged_where_the_scans_agree(tmp_path):
    config = PreprocessConfig(output=str(tmp_path))
    for kind in books.FOLDERS:
        (tmp_path / kind).mkdir()
    fit = {"nmi": 1.3, "overlap": 1.0, "distinct": 2.0, "better": ""}
    vessels = {"share": 0.01, "side": 0.4, "off": 0.1}

    def judged(ratios):
        rows = {}
        for n, ratio in enumerate(ratios):
            record = {
                "fit": fit | {"mirrored": ratio},
                "coverage": 1.0,
                "vessels": vessels,
                "subject": str(n),
            }
            (tmp_path / "sidecars" / f"{n}.json").write_text(json.dumps(record), encoding="utf-8")
            rows[str(n)] = books.row_of(str(n), "", "done")
        preprocessing.judge(config, rows)
        return [(row["step"], row["sides"]) for row in rows.values()]

    assert judged([0.9, 0.92, 0.91, 1.08]) == [("done", "right")] * 3 + [("flagged", "swapped")]
    scattered = [0.95, 0.9, 0.96, 1.03, 1.05, 0.93, 0.94, 0.97, 0.94, 1.02, 0.96, 0.99]
    assert judged(scattered) == [("done", "cannot be told")] * 12
    assert judged([1.0, 1.05, 0.96, 1.01]) == [("done", "cannot be told")] * 4
    assert judged([0.9, 1.08]) == [("done", "cannot be told")] * 2


def test_an_output_is_used_by_one_at_a_time(tmp_path, heads):  # noqa: F811
    with (
        locked(tmp_path / "out" / ".lock", "it"),
        pytest.raises(ValueError, match="out is in use by process"),
    ):
        preprocessing.preprocess(settings(heads, tmp_path / "out"))


def wait_for(path):
    """A job of the next test: say that it began, and go on for long."""
    Path(path).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)


def test_workers_end_with_their_parent(tmp_path):
    code = f"""
from pathlib import Path
from preprocessing.workers import open_workers, run_all
from tests.test_books import wait_for
if __name__ == "__main__":
    with open_workers(None, 1) as workers:
        list(run_all(workers, wait_for, [{str(tmp_path / "began")!r}], "Test"))
"""
    (tmp_path / "main.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, tmp_path / "main.py"], env=environment, stderr=subprocess.DEVNULL
    ) as run:
        deadline = time.monotonic() + 120
        while not (tmp_path / "began").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        worker = int((tmp_path / "began").read_text(encoding="utf-8"))
        run.kill()
    deadline = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def test_the_page_shows_the_worst_first(tmp_path):
    rows = [
        books.row_of("good", "", "done") | {"distinct": 1.8, "nmi": 1.5, "coverage": 1.0},
        books.row_of("fair", "", "done") | {"distinct": 1.3, "nmi": 1.2, "coverage": 1.0},
        books.row_of("bad", "", "flagged", "a < b") | {"distinct": 1.6, "nmi": 1.3, "coverage": 1.0},
        books.row_of("unread", "", "audit", "cannot be read"),
    ]
    (tmp_path / "qc").mkdir()
    for name in ("good", "fair", "bad"):
        (tmp_path / "qc" / f"{name}.png").write_bytes(b"")
    write_page(rows, tmp_path, {"dof": 6})
    page = (tmp_path / "qc.html").read_text(encoding="utf-8")
    places = [page.index(f"<b>{name}</b>") for name in ("bad", "fair", "good")]
    assert places == sorted(places) and page.index("<td>unread</td>") > places[-1]
    assert (
        "a &lt; b" in page and "2 in volumes/, 1 flagged, 1 others" in page and "1 without a picture" in page
    )
