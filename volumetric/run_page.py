"""The page of a run, results/<name>/run.html: one file without a network, written while the run goes on.

    log.page.write(step)    at every preview, and at the end of the run

It says how far the run is, shows its numbers as curves and its previews under a slider, beside real volumes,
and tells settings, data, warnings and the command that continues. All of it is read from the run's folder:
metrics.csv, fid_scores.txt, previews, and of the former page what was said and the pictures, small enough
already. What fails here is a warning: no training ends by its page.

    pictures     previews, a share of them, small enough
    parts        the sections of the page
    the page     RunPage
"""

import base64
import contextlib
import html
import io
import json
import math
import os
import re
import shlex
import sys
import time
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path

from volumetric import logs
from volumetric.cli import default_of
from volumetric.curves import LEFT, RIGHT, WIDE, Metrics, curve, read_scores
from volumetric.files import one_line
from volumetric.pages import duration, rows_of, three, write_page
from volumetric.pictures import enlarged_picture

import numpy as np
from PIL import Image

MOST_PREVIEWS = 60  # steps whose pictures are in the page
PICTURE_BYTES, PICTURE_WIDTHS = 56_000, (1120, 800, 560, 400, 280)  # of a picture in the page, pixels
DRAWING = 0.7  # seconds, after which pictures wait for the next writing
PAGE_BYTES = 2**25  # of a former page that is read again
SHARE = 0.02  # of a run's time that its page may take
SAID = 40  # warnings that are kept, the first half and the last
ONCE = ("new", "load_from", "init_from", "dry_run")  # options of a command that a continued run leaves out


@dataclass(frozen=True)
class Meaning:
    """What a column of a run's numbers is.

    Args:
        text: What it means, what is usual, when to worry.
        level: A value that its curve marks.
    """

    text: str
    level: float | None = None


# Numbers of evaluations, by how their names begin.
SCORES = {
    "FID": "Fréchet distance of Inception features of slices, generated against real: lower is better.",
    "FD": "Fréchet distance of features of a network without training; no FID: lower is better.",
    "MD": "MedicalNet distance, of features of whole volumes: lower is better.",
    "KID": "Kernel distance of the features of slices: lower is better.",
    "KD": "Kernel distance: lower is better.",
    "AUC-PRD": "Area under the precision-recall curve of distributions: higher is better.",
    "precision": "Share of generated volumes that lie among real ones: higher is better.",
    "recall": "Share of real volumes that lie among generated ones: higher is better.",
    "density": "How closely generated volumes lie to real ones: near 1.",
    "coverage": "Share of real volumes with a generated one nearby: higher is better.",
    "nearest-real": "Distance to the nearest real volume, over that of real ones from each other: near 1.",
    "MS-SSIM-generated": "Similarity of two volumes; dashed, of real ones: above it, they are too alike.",
    "Vendi-generated": "Effective number of different volumes; dashed, of real ones.",
    "W1": "Distance in this measure of vessels, in its unit, of generated and real volumes: lower is better.",
}
FIRST = ("MD", "FD-random-volume", "FID", "recall", "coverage", "precision")  # of many scores
CARDS = 6  # scores that are seen at once
NOTE = (
    '<p class="small">Line: mean of some steps; shade: lowest to highest of them; dashed: the value named '
    "below. The losses of a GAN do not say how good the volumes are: look at the previews.</p>"
)
SPEED = Meaning(
    "Training volumes of a step over its time, without previews, checkpoints and evaluations. If it falls "
    "for long, other programs use this machine, or the volumes come more slowly."
)
WORDS = {
    "step": "one update of every network",
    "preview": "volumes of the same seeds, drawn again and again in the course of the run",
    "FID, FD": "Fréchet distance of features, of Inception and of a network without training",
    "MD": "MedicalNet distance: the same of whole volumes",
    "projection": "maximum-intensity projection: the brightest voxel along the body axis",
}


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Pictures                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def chosen_previews(steps, most=MOST_PREVIEWS):
    """At most so many of some steps: every 2nd, 4th, ... so that what is left stays left, and the last."""
    steps = sorted(steps)
    every = 1
    while -(-len(steps) // every) + 1 > most and every < len(steps):
        every *= 2
    return sorted({*steps[::every], *steps[-1:]})


def found_previews(folder, last):
    """{step: {kind: path}} of the pictures of previews, up to a step."""
    found = {}
    for path in sorted(folder.glob("*.png")):
        named = re.fullmatch(r"([0-9]{6,15})-(.+)\.png", path.name)
        if named and int(named[1]) <= last:
            found.setdefault(int(named[1]), {})[named[2]] = path
    return found


def encoded(image, raw=None):
    """A picture as a data URI of at most PICTURE_BYTES: its PNG if that is small enough, else a JPEG."""
    if raw is None:
        data = io.BytesIO()
        image.save(data, format="PNG")
        raw = data.getvalue()
    kind = "png"
    image = image if image.mode in ("L", "RGB") or len(raw) <= PICTURE_BYTES else image.convert("RGB")
    for width in PICTURE_WIDTHS:
        if len(raw) <= PICTURE_BYTES:
            break
        small = min(1, width / image.width)
        size = (max(1, round(image.width * small)), max(1, round(image.height * small)))
        shown, kind = image if small == 1 else image.resize(size, Image.Resampling.BOX), "jpeg"
        for quality in (82, 65, 50):
            data = io.BytesIO()
            shown.save(data, format="JPEG", quality=quality)
            raw = data.getvalue()
            if len(raw) <= PICTURE_BYTES:
                break
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def read_record(path):
    """What a former page kept for the next, {"pictures", "said"}; empty ones if it is not there, or odd."""
    record = {"pictures": {}, "said": []}
    with contextlib.suppress(Exception):  # whatever an odd file raises: it is drawn again
        if path.stat().st_size <= PAGE_BYTES:
            text = path.read_text(encoding="utf-8")
            (found,) = re.findall('<script type="application/json" id="record">(.*?)</script>', text, re.S)
            found = json.loads(found)
            uri = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+")
            pictures = {
                str(name): {"of": str(one["of"]), "uri": one["uri"]}
                for name, one in found["pictures"].items()
                if uri.fullmatch(one["uri"])
            }
            record = {"pictures": pictures, "said": [[int(s), str(t)] for s, t in found["said"]]}
    return record


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Parts                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝

STYLE = """
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .6rem; }
.facts div { border: 1px solid #ddd; border-radius: 4px; padding: .4rem .7rem; }
.facts b { display: block; font-size: 1.15rem; }
.facts span { color: #555; font-size: .85rem; }
.state { display: inline-block; padding: .05rem .6rem; border-radius: 1rem; color: #fff;
  background: #2867b2; }
.state.good { background: #2c8a4b; } .state.bad { background: #c0392b; } .state.held { background: #9a6a00; }
progress { width: 100%; height: .8rem; margin: .6rem 0; accent-color: #2867b2; }
.curves { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.curve { border: 1px solid #ddd; border-radius: 4px; padding: .5rem .7rem; min-width: 0; }
.curve h3 { margin: 0; font-size: 1rem; display: flex; flex-wrap: wrap; justify-content: space-between;
  gap: 0 .6rem; }
.curve h3 span { font-weight: 400; color: #555; font-variant-numeric: tabular-nums; }
.curve p { margin: .2rem 0 0; font-size: .85rem; color: #555; }
svg { width: 100%; } svg text { font: 10px system-ui, sans-serif; fill: #666; }
.grid { stroke: #e8e8e4; } .level { stroke: #c0392b; stroke-dasharray: 4 3; }
.band { fill: #2867b2; opacity: .18; }
summary { margin: .6rem 0; cursor: pointer; }
code { font: inherit; white-space: nowrap; }
.line { stroke: #2867b2; stroke-width: 1.4; fill: none; } circle { fill: #2867b2; }
.at { stroke: #e0a020; visibility: hidden; }
.turn { display: flex; flex-wrap: wrap; gap: .4rem .6rem; align-items: center; margin: .4rem 0; }
.turn input { flex: 1 1 12rem; min-width: 0; }
.turn output { min-width: 7rem; font-variant-numeric: tabular-nums; }
button { font: inherit; padding: .1rem .7rem; border: 1px solid #999; border-radius: 4px; background: #fff; }
button[aria-pressed=true] { background: #2867b2; border-color: #2867b2; color: #fff; }
.sheet { width: 100%; max-width: 1120px; display: block; image-rendering: auto; }
figure + figure { margin-top: .6rem; }
figcaption { overflow-wrap: break-word; }
pre { background: #f6f6f4; padding: .5rem .7rem; overflow-x: auto; font-size: .85rem; }
.settings td:last-child { white-space: normal; min-width: 18rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
li { overflow-wrap: break-word; }
"""

SCRIPT = """
const record = JSON.parse(document.getElementById("record").textContent);
const shown = document.getElementById("shown"), steps = shown ? record.steps : [];
const slider = document.getElementById("slider"), said = document.getElementById("step");
const caption = document.getElementById("caption"), play = document.getElementById("play");
let kind = record.kind, timer = null;
function turn() {
  const step = steps[slider.value], one = record.pictures[record.names[kind][slider.value]];
  said.textContent = "step " + step.toLocaleString("en");
  shown.style.visibility = one ? "visible" : "hidden";
  if (one) { shown.src = one.uri; }
  caption.textContent = kind + ": " + record.kinds[kind];
  for (const line of document.querySelectorAll(".at")) {
    line.style.visibility = "visible";
    line.setAttribute("transform", "translate(" + (record.left + record.wide * step / record.last) + " 0)");
  }
  for (const button of document.querySelectorAll("button[data-kind]")) {
    button.setAttribute("aria-pressed", button.dataset.kind === kind);
  }
}
function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
if (shown) {
  slider.addEventListener("input", () => { stop(); turn(); });
  for (const button of document.querySelectorAll("button[data-kind]")) {
    button.addEventListener("click", () => { kind = button.dataset.kind; turn(); });
  }
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (+slider.value === steps.length - 1) { slider.value = 0; turn(); }
    play.textContent = "Pause";
    timer = setInterval(() => {
      if (+slider.value >= steps.length - 1) { stop(); return; }
      slider.value = +slider.value + 1; turn();
    }, 400);
  });
  turn();
}
const age = document.getElementById("age");
if (age) {
  const late = (Date.now() / 1000 - age.dataset.written) / 60;
  if (late * 60 > age.dataset.patience) {
    const time = late < 120 ? Math.round(late) + " minutes" : Math.round(late / 60) + " hours";
    age.textContent = "Nothing has been written here for " + time + ": if no process of this run is left, "
      + "it was killed, and the command below continues it from its last checkpoint.";
    age.className = "warning";
  }
}
"""


@dataclass(kw_only=True)
class About:
    """What a page says of its run beside what is in the run's folder.

    Args:
        config: RunConfig.
        program: Name of the program's file.
        lines: What was printed at the start of data, networks and machine.
        meanings: {column of metrics.csv: Meaning}.
        words: {abbreviation, or kind of preview: what it is}.
        said: Warnings that came before the run.
        real: Picture of real volumes, as previews show generated ones; None without.
    """

    config: object
    program: str
    lines: list
    meanings: dict = field(default_factory=dict)
    words: dict = field(default_factory=dict)
    said: list = field(default_factory=list)
    real: np.ndarray | None = None

    @classmethod
    def of(cls, trainer, real):
        """What a `training.VolumeTrainer` says, with a picture of real volumes."""
        file = getattr(sys.modules[type(trainer).__module__], "__file__", None)
        warnings = [line for line in trainer.audit.summary if line.startswith("warning:")]
        return cls(
            config=trainer.config,
            program=Path(file or "train.py").name,
            lines=list(trainer.told or trainer.audit.summary),
            meanings=trainer.explained(),
            words=trainer.words or {},
            said=[*warnings, *trainer.said],
            real=real,
        )


@dataclass(frozen=True)
class State:
    """Whether a run goes on: a word, its mark (good, bad, held or none), and a sentence."""

    word: str
    mark: str
    sentence: str


RUNNING = State("running", "", "The page is written anew at every preview: load it again to see what is new.")


def ended(step, last, by=None, error=None):
    """State of a run that has ended at a step, by a signal or by an error."""
    again = "The same command continues it."
    if isinstance(error, KeyboardInterrupt):
        return State("broken off", "held", f"{again} It begins at the last checkpoint.")
    if error is not None:
        return State("ended by an error", "bad", one_line(error))
    if step >= last:
        return State("finished", "good", "All steps are done. A larger --num_train_steps trains on.")
    name = getattr(by, "name", None) or "a signal"
    return State(f"stopped by {name}", "held", f"Its networks were saved after step {step:,}. {again}")


def flagged(text):
    """Text whose flags no line breaks apart."""
    return re.sub(r"--\w+", r"<code>\g<0></code>", html.escape(text))


def settings_of(config):
    """[(flag, value, default, sentence of --help)] of all options."""
    rows = []
    for one in fields(config):
        value, usual = getattr(config, one.name), default_of(config, one.name)
        rows.append((f"--{one.name}", value, usual, one.metadata["option"].help))
    return rows


def command_of(program, config):
    """The command that continues a run."""
    words = []
    for flag, value, usual, _ in settings_of(config):
        name = flag.removeprefix("--")
        if value != usual and name not in (*ONCE, *config.derived) and value is not None:
            text = "[" + ",".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)
            words.append(shlex.join([flag, text]))
    return " \\\n    ".join([f"python {shlex.quote(program)}", *words])


def facts(state, step, last, left, metrics):
    """Where the run is."""
    speed, trained = metrics.speed(), metrics.total
    shown = [("step", f"{step:,} of {last:,}"), ("of the run", f"{100 * step / max(last, 1):.3g} %")]
    if left is not None and state is RUNNING:
        shown.append(("left, if steps take as long as the latest", f"about {duration(left)}"))
    if speed is not None:
        shown.append(("training volumes per second", three(speed)))
    if trained:
        shown.append(("spent in steps so far", duration(trained)))
    cells = "".join(f"<div><b>{html.escape(text)}</b><span>{what}</span></div>" for what, text in shown)
    return f'<div class="facts">{cells}</div><progress max="{max(last, 1)}" value="{step}"></progress>'


def curves_of(metrics, scores, meanings, last):
    """The sections of losses, scores and speed."""
    losses, speed = [], []
    for name, series in metrics.series.items():
        if name in scores or name == "seconds":
            continue
        fast = name == "volumes_per_second"
        meaning = SPEED if fast else meanings.get(name) or meaning_of_score(name)
        drawn = curve(series.points(), last, meaning.level)
        where = speed if fast else losses
        where.append(card(name, f"now {three(metrics.latest[name])}", drawn, meaning))
    parts = [
        "<h2>Losses</h2>",
        NOTE if losses else "<p>No step has been read yet.</p>",
        cards_of(losses, len(losses)),
    ]
    if scores:
        parts.append(f"<h2>Scores of evaluations</h2>{cards_of(score_cards(scores, last))}")
    if speed:
        parts.append(f"<h2>Speed</h2>{cards_of(speed)}")
    return "".join(parts)


def cards_of(cards, seen=CARDS):
    """Curves beside each other; those after the first ones are in a part that opens."""
    first, more = "".join(cards[:seen]), "".join(cards[seen:])
    more = f'<details><summary>{len(cards) - seen} more</summary><div class="curves">{more}</div></details>'
    return f'<div class="curves">{first}</div>{more if len(cards) > seen else ""}'


def score_cards(scores, last):
    """Curves of evaluations, those first that say most."""
    found = []
    for name, (steps, values) in scores.items():
        real = scores.get(name.replace("generated", "real")) if "generated" in name else None
        if name.startswith(("MS-SSIM-real", "Vendi-real")):
            continue  # it is the level of another
        meaning = replace(meaning_of_score(name), level=real[1][-1] if real else None)
        drawn = curve((steps, values, values, values), last, meaning.level, dots=True)
        rank = next((n for n, start in enumerate(FIRST) if name == start or name.startswith(f"{start}-")), 99)
        found.append((rank, card(name, f"{three(values[-1])} at step {steps[-1]:,}", drawn, meaning)))
    return [drawn for _, drawn in sorted(found, key=lambda one: one[0])]


def meaning_of_score(name):
    """Meaning of a number of an evaluation, by the longest beginning of its name that is known."""
    known = [start for start in SCORES if name == start or name.startswith(f"{start}-")]
    return Meaning(SCORES[max(known, key=len)] if known else "")


def card(name, latest, drawn, meaning):
    """A curve with its name, its latest value and what it means."""
    text = f"<p>{flagged(meaning.text)}</p>" if meaning.text else ""
    head = f"<h3>{html.escape(name.replace('_', ' '))}<span>{latest}</span></h3>"
    return f'<div class="curve">{head}{drawn}{text}</div>'


def slider(record, real):
    """The previews under a slider, and real volumes."""
    parts = ["<h2>Previews</h2>"]
    if record["steps"]:
        last, kinds = len(record["steps"]) - 1, record["kinds"]
        buttons = "".join(
            f'<button data-kind="{html.escape(kind)}" aria-pressed="{str(kind == record["kind"]).lower()}">'
            f"{html.escape(kind)}</button>"
            for kind in kinds
        )
        name = next(n for n in reversed(record["names"][record["kind"]]) if n in record["pictures"])
        parts.append(
            f'<div class="turn">{buttons}<button id="play">Play</button><input id="slider" type="range" '
            f'min="0" max="{last}" value="{last}" aria-label="preview"><output id="step">step '
            f'{record["steps"][-1]:,}</output></div><figure><img class="sheet" id="shown" alt="preview" '
            f'src="{record["pictures"][name]["uri"]}"><figcaption id="caption">'
            f"{html.escape(record['kind'])}: {html.escape(kinds[record['kind']])}</figcaption></figure>"
        )
    else:
        parts.append("<p>There is none yet.</p>")
    if real:
        parts.append(
            f'<figure><img class="sheet" alt="real volumes" src="{real}"><figcaption>Real volumes of the '
            "training, for comparison: middle slices on the left, projections on the right. They make this "
            "page as confidential as the data.</figcaption></figure>"
        )
    return "".join(parts)


def settings_table(rows):
    """A table of settings."""
    shown = [(flag, str(value), str(usual), text) for flag, value, usual, text in rows]
    table = rows_of(("option", "here", "default", "what it is"), shown)
    return f'<div class="settings">{table}</div>'


def settings_section(config):
    """What differs from the defaults, and all in a part that opens."""
    rows = settings_of(config)
    other = [row for row in rows if row[1] != row[2]]
    recipe = getattr(config, "recipe", None)
    by = f" of the recipe {html.escape(str(recipe))}" if recipe else ""
    first = settings_table(other) if other else "<p>None.</p>"
    return (
        f"<h2>Settings</h2><p>Other than the defaults{by}:</p>{first}"
        f"<details><summary>All {len(rows)} settings</summary>{settings_table(rows)}</details>"
    )


def said_section(said):
    """Warnings, with their steps."""
    if not said:
        return "<h2>Warnings</h2><p>None was printed.</p>"
    lines = "".join(
        f'<p class="warning">{f"Step {step:,}: " if step else ""}{flagged(text)}</p>' for step, text in said
    )
    return f"<h2>Warnings</h2>{lines}"


def rest(about):
    """Settings apart: data, how to continue, the key."""
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in about.lines)
    words = "".join(
        f"<dt>{html.escape(word)}</dt><dd>{html.escape(text)}</dd>"
        for word, text in {**about.words, **WORDS}.items()
    )
    command = html.escape(command_of(about.program, about.config))
    processes = os.environ.get("WORLD_SIZE", "1")
    several = f" It ran in {html.escape(processes)} processes of torchrun." if processes != "1" else ""
    return (
        f"<h2>Data, networks, machine</h2><ul>{lines}</ul><h2>How to go on</h2><p>The same command continues "
        f"the run from its last checkpoint, in the folder {html.escape(str(Path.cwd()))}.{several}</p>"
        f"<pre>{command}</pre><h2>Key</h2><dl>{words}</dl>"
    )


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The page                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


class RunPage:
    """The page of one run; one that has nothing to say, or whose process does not write, does nothing.

    Args:
        trainer: As for `runs.run`; its `about()` gives the About.
        writes: This process writes.
    """

    def __init__(self, trainer, writes=True):
        self.trainer, self.plan, self.about = trainer, trainer.plan, None
        self.path = trainer.plan.results / "run.html"
        self.cost, self.written = 0.0, -math.inf  # seconds that it took, and when
        self.began = None  # when steps began to be counted: clock, step, seconds of all steps
        if writes and hasattr(trainer, "about"):
            with self.optional():
                self.metrics = Metrics(trainer.plan.results / "metrics.csv")
                former, about = read_record(self.path), trainer.about()
                self.pictures = former["pictures"]
                self.said = [one for one in former["said"] if one[0] <= trainer.step]
                self.real = encoded(enlarged_picture(about.real)) if about.real is not None else None
                self.about = about
                for text in about.said:
                    self.note(text)
                logs.LISTENERS.append(self.note)

    @contextlib.contextmanager
    def optional(self):
        """Around what may fail: whatever it is, the run goes on."""
        try:
            yield
        except Exception as error:
            logs.warn(f"Warning: run.html of step {self.trainer.step} was left out ({one_line(error)}).")

    def note(self, text):
        """Remember a warning; of very many the first and the last ones."""
        one = [self.trainer.step, " ".join(text.split())]
        if one in self.said:
            return
        self.said.append(one)
        if len(self.said) > SAID:
            del self.said[SAID // 2]

    def write(self, state=RUNNING):
        """Write the page as of now; one of a running run only if it has not just been written."""
        now = time.monotonic()
        if self.about is None or (state is RUNNING and SHARE * (now - self.written) < self.cost):
            return
        with self.optional():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.metrics.look()
            title = self.plan.results.name
            recipe = getattr(self.about.config, "recipe", None)
            title = f"Training {title}" + (f", recipe {recipe}" if recipe else "")
            write_page(self.path, title, self.body(state, now), style=STYLE)
        self.written = time.monotonic()
        self.cost = self.written - now

    def end(self, error=None):
        """Write the page of a run that ends here."""
        if self.about is not None:
            by = getattr(self.trainer, "ended_by", None)
            self.write(ended(self.trainer.step, self.plan.num_train_steps, by, error))
            logs.LISTENERS.remove(self.note)

    def body(self, state, now):
        """All below the title."""
        step, last, about = self.trainer.step, self.plan.num_train_steps, self.about
        scores, record = read_scores(self.plan.results / "fid_scores.txt", step), self.record(step)
        kept = json.dumps(record).replace("<", "\\u003c")
        when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        age = f'<p id="age" data-written="{time.time():.0f}" data-patience="{self.patience():.0f}"></p>'
        return (
            f'<p><span class="state {state.mark}">{html.escape(state.word)}</span> {flagged(state.sentence)} '
            f'<span class="small">{html.escape(about.program)}, written {html.escape(when)}.</span></p>'
            f"{age if state is RUNNING else ''}{facts(state, step, last, self.left(now), self.metrics)}"
            f"{slider(record, self.real)}{curves_of(self.metrics, scores, about.meanings, max(step, 1))}"
            f"{said_section(self.said)}{settings_section(about.config)}{rest(about)}"
            f'<script type="application/json" id="record">{kept}</script><script>{SCRIPT}</script>'
        )

    def left(self, now):
        """Seconds that the run will take, by its latest steps and what comes between steps; None at first."""
        if not self.metrics.seconds:
            return None
        mean, beside = float(np.mean(self.metrics.seconds)), 1.0
        if self.began is None:
            self.began = (now, self.metrics.total)
        elif self.metrics.total > self.began[1]:
            beside = max(1.0, (now - self.began[0]) / (self.metrics.total - self.began[1]))
        return mean * beside * (self.plan.num_train_steps - self.trainer.step)

    def patience(self):
        """Seconds after which a page that was not written anew says so."""
        steps = range(self.trainer.step + 1, self.plan.num_train_steps)
        coming = next(filter(self.plan.previews_at, steps), self.plan.num_train_steps) - self.trainer.step
        return 1800 + 3 * coming * (float(np.mean(self.metrics.seconds)) if self.metrics.seconds else 10.0)

    def record(self, step):
        """What the script reads, and the next process: pictures by their names, steps, kinds, warnings."""
        found = found_previews(self.plan.results / "previews", step)
        steps, pictures, began = chosen_previews(found), {}, time.monotonic()
        for one in (*steps[-1:], *steps[:-1]):
            for path in found[one].values():
                if path.stem in self.pictures or one == steps[-1] or time.monotonic() - began < DRAWING:
                    with contextlib.suppress(OSError, ValueError):  # gone, or damaged
                        pictures[path.stem] = self.picture(path)
        self.pictures = pictures
        steps = [one for one in steps if any(path.stem in pictures for path in found[one].values())]
        kinds = list(dict.fromkeys(kind for one in steps for kind in found[one]))
        return {
            "pictures": pictures,
            "said": self.said,
            "steps": steps,
            "names": {kind: [f"{one:06d}-{kind}" for one in steps] for kind in kinds},
            "kinds": {kind: self.about.words.get(kind, kind) for kind in kinds},
            "kind": next((kind for kind in ("GE", *kinds) if kind in kinds), ""),
            "left": LEFT,
            "wide": WIDE - LEFT - RIGHT,
            "last": max(self.trainer.step, 1),
        }

    def picture(self, path):
        """{"of", "uri"} of a preview: which state of its file it is, and the picture, small enough."""
        stat = path.stat()
        of, former = f"{stat.st_mtime_ns}-{stat.st_size}", self.pictures.get(path.stem)
        if former and former["of"] == of:
            return former
        with Image.open(path) as image:
            return {"of": of, "uri": encoded(image, path.read_bytes())}
