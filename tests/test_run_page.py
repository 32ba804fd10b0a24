"""The page of a run: what is on it, what is thinned, and that no training ends by it."""

import json
import re
from html.parser import HTMLParser

from volumetric import curves, logs, run_page, runs

import numpy as np
import pytest
import torch
from PIL import Image

import progressive_wgan
import stylegan2_pytorch
from stylegan2_pytorch import TrainConfig
from tests.conftest import write_data
from tests.test_runs import LineTrainer, ended_at

VOID = {"meta", "img", "input", "br"}
SECTIONS = ("Previews", "Losses", "Speed", "Warnings", "Settings", "Data, networks, machine", "Key")


class Page(HTMLParser):
    """Checks that every element is closed, and keeps what would be loaded."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loaded, self.scripts = [], [], 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(trainer):
    return (trainer.plan.results / "run.html").read_text(encoding="utf-8")


def record_of(text):
    return json.loads(re.findall(r'id="record">(.*?)</script>', text, re.S)[0])


@pytest.fixture
def paged(monkeypatch):
    """LineTrainer with a page, which is written however fast it is."""
    config = TrainConfig(name="line", num_train_steps=9)
    about = run_page.About(config=config, program="line.py", lines=["16 points"], said=["Warning: early."])
    monkeypatch.setattr(LineTrainer, "about", lambda trainer: about, raising=False)
    monkeypatch.setattr(run_page, "SHARE", 1e9)


def test_a_run_has_a_page(tmp_path, capsys):
    data = write_data(tmp_path)
    folders = {"results_dir": str(tmp_path / "results"), "models_dir": str(tmp_path / "models")}
    tiny = {"image_size": 8, "image_depth": 4, "network_capacity": 2, "fmap_max": 16, "batch_size": 4}
    tiny |= {"num_image_tiles": 1, "device": "cpu", "recipe": "robust", "fp16": False}
    name = "a&b <i>$x"
    config = TrainConfig(**tiny, **folders, data=str(data), name=name, num_train_steps=2)
    trainer = stylegan2_pytorch.train_from_folder(config)
    text = page_of(trainer)
    assert all(f"<h2>{section}</h2>" in text for section in SECTIONS)
    assert "a&amp;b &lt;i&gt;$x" in text and "<i>" not in text and "--name &#x27;a&amp;b" in text
    assert "finished" in text and "2 of 2" in text and "6 volumes of 8 x 8 x 4 voxels" in text
    assert "0.69 if D cannot tell them apart" in text and "--recipe robust" in text
    page = Page(text)
    assert page.loaded and all(uri.startswith("data:image/") for uri in page.loaded) and page.scripts == 2
    assert not re.search(r"""(src|href|url|import|fetch)\W{1,3}https?:""", text)
    record = record_of(text)
    assert set(record["kinds"]) == {"G", "GE", "mixed"} and record["kind"] == "GE" and record["steps"] == [0]
    assert f"The run's page, for a browser: {trainer.plan.results / 'run.html'}" in capsys.readouterr().out


def test_growing_trainers_have_a_page(tmp_path):
    tiny = {
        "image_size": 8,
        "image_depth": 4,
        "fmap_base": 16,
        "fmap_max": 8,
        "latent_dim": 4,
        "batch_size": 1,
    }
    tiny |= {"volumes_per_phase": 4, "volumes_at_start": 4, "num_image_tiles": 2, "device": "cpu"}
    folders = {"results_dir": str(tmp_path / "results"), "models_dir": str(tmp_path / "models")}
    config = progressive_wgan.ProgressiveConfig(**tiny, **folders, data=str(write_data(tmp_path)), name="p")
    text = page_of(progressive_wgan.train_from_folder(config))
    Page(text)
    assert "Share of the new size" in text and list(record_of(text)["kinds"]) == ["GE"]


def test_a_resumed_run_continues_its_page(tmp_path, paged):
    stopped = ended_at(4, tmp_path, steps=9)
    text = page_of(stopped)
    assert "stopped by SIGTERM" in text and "saved after step 4" in text and "4 of 9" in text
    assert "Warning: early." in text
    logs.warn("Warning: not of this run.")
    first = record_of(text)
    assert first["steps"] == [0, 3] and first["said"] == [[0, "Warning: early."]]
    text = page_of(runs.run(LineTrainer(tmp_path, 9)))
    assert "finished" in text and "9 of 9" in text and "not of this run" not in text
    assert record_of(text)["steps"] == [0, 3, 6, 9]
    assert record_of(text)["pictures"]["000003-line"] == first["pictures"]["000003-line"]
    assert record_of(text)["said"][0] == [0, "Warning: early."]
    assert not logs.LISTENERS


def test_a_running_run_says_so(tmp_path, paged):
    seen = {}
    events = {7: lambda trainer: seen.update(text=page_of(trainer))}
    runs.run(LineTrainer(tmp_path, 9, events=events))
    assert ">running<" in seen["text"] and "6 of 9" in seen["text"] and "left, if steps take" in seen["text"]


def test_an_error_is_on_the_page(tmp_path, paged):
    class Hopeless(LineTrainer):
        def train_step(self, log):
            self.events = {2: lambda _: float("nan")}
            super().train_step(log)

    trainer = Hopeless(tmp_path, 8)
    with pytest.raises(runs.NanException):
        runs.run(trainer)
    text = page_of(trainer)
    assert "ended by an error" in text and "loss is not finite in step 2" in text
    assert len(record_of(text)["said"]) == 2  # the early one, and the return, which is told once


@pytest.mark.parametrize("fault", ["folder", "odd", "drawing", "about"])
def test_no_training_ends_by_its_page(tmp_path, paged, fault, monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("odd\nnumbers")

    page = tmp_path / "results" / "run.html"
    page.parent.mkdir()
    if fault == "folder":
        page.mkdir()
    if fault == "odd":
        page.write_bytes(b'\xff<script type="application/json" id="record">{"pictures": 3}</script>')
    if fault == "drawing":
        monkeypatch.setattr(run_page, "slider", broken)
    if fault == "about":
        monkeypatch.setattr(LineTrainer, "about", broken, raising=False)
    assert runs.run(LineTrainer(tmp_path, 4)).step == 4
    said = [line for line in capsys.readouterr().err.splitlines() if "Warning: run.html" in line]
    assert (fault == "odd") == (not said) and all("was left out (" in line for line in said)
    assert fault == "odd" or not page.is_file()


def test_only_the_first_process_writes(tmp_path, paged):
    page = run_page.RunPage(LineTrainer(tmp_path, 2), writes=False)
    page.write()
    page.end()
    assert not (tmp_path / "results").exists()


def test_curves_are_thinned():
    series, steps = curves.Series(), np.arange(100_003)
    for part in np.array_split(steps, 7):
        series.add(part, part.astype(float))
    middles, means, lows, highs = series.points()
    assert curves.BINS / 2 <= len(middles) <= curves.BINS
    np.testing.assert_allclose(means, np.minimum(middles, means))
    np.testing.assert_allclose(means[:-1], middles[:-1])
    assert lows[0] == 0 and highs[-1] == steps[-1] and np.all(highs - lows < series.width)
    few = curves.Series()
    few.add(np.array([1, 2, 9]), np.array([5.0, np.nan, 7.0]))
    assert [list(p) for p in few.points()[:2]] == [[1, 9], [5, 7]]


def test_a_table_is_read_as_it_grows(tmp_path):
    path, metrics = tmp_path / "metrics.csv", curves.Metrics(tmp_path / "metrics.csv")
    metrics.look()  # it is not there yet
    path.write_text("step,D,seconds,volumes_per_second\n1,0.5,2,4\n2,,2,4\n3,0.", encoding="utf-8")
    metrics.look()
    assert metrics.latest["D"] == 0.5 and metrics.total == 4 and metrics.speed() == 4
    with open(path, "a", encoding="utf-8") as file:
        file.write("7,2,4\nodd,row\n4,nan,2,4\n")
    metrics.look()
    assert metrics.latest["D"] == 0.7 and metrics.total == 8
    path.unlink()
    path.write_text("step,D\n1,9\n", encoding="utf-8")
    metrics.look()
    assert metrics.latest == {"D": 9.0}


def test_previews_are_thinned():
    steps = []
    for step in range(0, 100_000, 100):
        steps.append(step)
        chosen = run_page.chosen_previews(steps)
        assert len(chosen) <= run_page.MOST_PREVIEWS and {0, step} <= set(chosen)
        kept = run_page.chosen_previews(steps[:-1])[:-1]
        assert len(chosen) < len(kept) or set(kept) <= set(chosen)
    gaps = np.diff(chosen)[:-1]
    assert len(chosen) > run_page.MOST_PREVIEWS / 2 - 1 and len(set(gaps)) == 1


@pytest.mark.parametrize("shape", [(8, 8), (1000, 2064), (700, 900, 3), (3000, 40)])
def test_pictures_are_small_enough(shape):
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    uri = run_page.encoded(Image.fromarray(noise))
    assert len(uri) < 1.34 * run_page.PICTURE_BYTES + 100
    assert uri.startswith("data:image/png" if shape == (8, 8) else "data:image/jpeg")


def test_many_previews_make_no_large_page(tmp_path, paged):
    trainer = LineTrainer(tmp_path, 300)
    trainer.step = 300
    noise = np.random.default_rng(0).integers(0, 256, (64, 128), dtype=np.uint8)
    previews = tmp_path / "results" / "previews"
    previews.mkdir(parents=True)
    for step in range(0, 301, 3):
        Image.fromarray(noise).save(previews / f"{step:06d}-GE.png")
    (previews / "000003-GE.png").write_bytes(b"")
    (previews / "000600-GE.png").write_bytes(b"of a later step")
    run_page.RunPage(trainer).write()
    steps = record_of(page_of(trainer))["steps"]
    assert len(steps) <= run_page.MOST_PREVIEWS and steps[0] == 0 and steps[-1] == 300


def test_the_page_takes_a_small_share_of_the_time(tmp_path, paged, monkeypatch):
    monkeypatch.setattr(run_page, "SHARE", 0.02)
    trainer = LineTrainer(tmp_path, 9)
    page = run_page.RunPage(trainer)
    page.write()
    before = page.path.stat().st_mtime_ns
    page.write()  # at once
    assert page.path.stat().st_mtime_ns == before
    trainer.step = 9
    page.end()
    assert page.path.stat().st_mtime_ns > before


def test_the_command_of_a_run():
    config = TrainConfig(name="my run", recipe="robust", aug_types=("translation",), new=True, batch_size=16)
    command = run_page.command_of("stylegan2_pytorch.py", config).replace("\\\n    ", "")
    flags = "--name 'my run' --batch_size 16 --recipe robust --aug_types '[translation]'"
    assert command == f"python stylegan2_pytorch.py {flags}"


@pytest.mark.parametrize("values", [[0.0], [5, 5, 5], [-1e-9, 1e-9], [1e-3, 1e3, 1], [1e12, -1e12], [0, 7]])
def test_any_numbers_can_be_drawn(values):
    steps = np.arange(len(values))
    drawn = curves.curve((steps, values, values, values), len(values), level=0.69)
    assert "nan" not in drawn and "inf" not in drawn and "<text" in drawn


def test_a_run_is_the_same_without_its_page(tmp_path, paged, monkeypatch):
    with_page = runs.run(LineTrainer(tmp_path / "a", 5))
    monkeypatch.delattr(LineTrainer, "about")
    without = runs.run(LineTrainer(tmp_path / "b", 5))
    assert torch.equal(with_page.line.weight, without.line.weight)
    assert not (tmp_path / "b" / "results" / "run.html").exists()
