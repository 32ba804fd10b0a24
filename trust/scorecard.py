"""One page on a release of synthetic volumes: what was measured of it, and a fingerprint of its files.

    python trust/scorecard.py --released replicas/released --evaluation evaluation/metrics.json \
        --replicas replicas/replicas.json --checkpoint models/cow/model_33.pt --output scorecard
    python trust/scorecard.py --output scorecard --verify replicas/released

or edit the settings below and run it. The seven criteria are those of Zamzmi et al., arXiv:2406.11143; each
is answered by numbers that another program measured, or by "not measured". Licence and consent of the
training data are stated by the user, in a CSV of data set, licence and consent. Every program must have
looked at volumes that are released, the gate and the membership test at all of them, and what the gate
flagged must not be among them. scorecard.json and report.html hold all of it; `--verify` compares a folder
with the fingerprint. Inputs are never written to.
"""

import html
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from volumetric import __version__
from volumetric.cli import UserError, check_fields, one_line_errors, option, parse_cli
from volumetric.collection import LABELS, contents_of, find_volumes, refuse_overlap, volumes_in
from volumetric.files import as_damaged, file_digest, read_json, write_json
from volumetric.pages import rows_of, three, write_page
from volumetric.sidecars import trained_on
from volumetric.tables import read_table

from trust import STATES
from trust.pages import told_of_power
from trust.reading import told_of_training
from trust.sets import told_by

# Edit these, or pass them as flags; a flag wins.
# folder of the volumes that are released
released = "synthetic"
# folder of the scorecard
output = "scorecard"

NOT_MEASURED = "not measured"
CRITERIA = {
    "congruence": "Do the volumes look like real ones?",
    "coverage": "Do they vary as real ones do?",
    "constraint": "Is the anatomy possible?",
    "completeness": "Is anything missing that real sets have?",
    "compliance": "Are people protected, and is the data's use permitted?",
    "comprehension": "Can it be told where they come from?",
    "consistency": "Do the results hold again?",
}
# What a record of each program has; those of volumes know them by their contents.
SOURCES = {
    "evaluation": ("verdicts", "contents"),
    "replicas": ("verdict", "contents"),
    "membership": ("verdict", "power", "contents"),
    "turing": ("pooled", "contents"),
    "segmentation": ("differences", "contents"),
}
OF_ALL = ("replicas", "membership")  # that must have looked at every volume; they know training volumes
STATED = ("data set", "licence", "consent")  # columns of --statement
PROVENANCE = ("recipe", "num_train_steps", "seed")


@dataclass(kw_only=True)
class ScorecardConfig:
    """Gather what was measured of a release, or verify a folder against its scorecard."""

    released: str = option(released, "Folder of the volumes that are released.")
    output: str = option(output, "Folder of the scorecard.", folder=True)
    evaluation: str | None = option(None, "metrics.json of MedicalNet/evaluation.py.", file=True)
    replicas: str | None = option(None, "replicas.json of trust/replicas.py.", file=True)
    membership: str | None = option(None, "membership.json of trust/membership.py.", file=True)
    turing: str | None = option(None, "turing.json of trust/turing.py.", file=True)
    segmentation: str | None = option(None, "experiment.json of segmentation/experiment.py.", file=True)
    checkpoint: str | None = option(None, "Checkpoint that the volumes are from.", file=True)
    statement: str | None = option(None, f"CSV of {', '.join(STATED)} of the training data.", file=True)
    verify: str | None = option(None, "Folder to compare with the fingerprint in --output.")

    def __post_init__(self):
        check_fields(self)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The seven criteria                                                                                       ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def answered(evaluation, word):
    """(state, sentence) of the evaluation's verdict whose question has a word, or None."""
    for verdict in evaluation["verdicts"]:
        if word in verdict["question"].lower():
            return verdict["state"], verdict["answer"]
    return None


def numbers(evaluation, names):
    """("", "name value, ...") of the numbers that an evaluation has."""
    metrics = evaluation["metrics"]
    found = [f"{n} {three(metrics[n]['value'])}" for n in metrics if n.removesuffix("-random") in names]
    return ("", ", ".join(found)) if found else None


def answers_of(found):
    """{criterion: [(state, sentence)]} of what was measured; a state is good, bad or empty.

    Args:
        found: {source: record} of those out of SOURCES that there are, "statement", "checkpoint" and
            "trained_on".
    """
    answers = {name: [] for name in CRITERIA}
    if evaluation := found.get("evaluation"):
        answers["congruence"] += [
            answered(evaluation, "look like"),
            numbers(evaluation, ("FID", "MD", "MD-inf", "FD-random", "FD-random-volume", "AUC-PRD")),
        ]
        answers["coverage"] += [
            answered(evaluation, "diverse"),
            numbers(evaluation, ("recall", "coverage", "MS-SSIM-real", "MS-SSIM-generated")),
        ]
        answers["constraint"].append(answered(evaluation, "anatomy"))
        vessels, n = evaluation["vessels"]["generated"], evaluation["generated"]["n"]
        answers["completeness"].append(("", f"vessels in {vessels} of {n} volumes"))
        for column, rows in (evaluation.get("groups") or {}).items():
            worst = min(rows, key=lambda group: rows[group]["coverage"])
            told = f"least covered of {column}: {worst}, coverage {three(rows[worst]['coverage'])}"
            answers["completeness"].append(("", told))
        copies = len(evaluation["copies"])
        told = f"{copies} copies of real volumes among {n} (evaluation)"
        answers["compliance"].append(("bad" if copies else "", told))
    answers["compliance"] += of_privacy(found)
    if turing := found.get("turing"):
        low, high = turing["pooled"]["accuracy_95"]
        told = f"{turing['pooled']['readers']} readers: accuracy {turing['pooled']['accuracy']:.2f}"
        answers["congruence"].append(("", f"{told} [{low:.2f}, {high:.2f}]"))
        told = told_of_training(turing.get("trained_on"), len(turing["contents"]["real"]))
        answers["congruence"].append(("", told))
    if checkpoint := found.get("checkpoint"):
        told = ", ".join(f"{name} {value}" for name, value in checkpoint.items())
        answers["comprehension"].append(("", told))
    if segmentation := found.get("segmentation"):
        for row in segmentation["differences"]["Dice_ClsAvgDice"]:
            what = f"{row['real']} real + {row['synthetic']} synthetic against {row['against']} real"
            told = f"Dice {row['difference']:+.3f}, seeds differ by {row['seed_spread']:.3f}"
            answers["consistency"].append(("", f"segmentation, {what}: {told}"))
    return {name: [one for one in told if one] for name, told in answers.items()}


def of_privacy(found):
    """[(state, sentence)] of replicas, membership and what the user states."""
    told = []
    if replicas := found.get("replicas"):
        count = f"{len(replicas['flagged'])} of {replicas['n']['generated']} flagged"
        told.append((STATES[replicas["verdict"]], f"replica gate {replicas['verdict']}, {count}"))
        known = {content for content in found["trained_on"] if not content.startswith(LABELS)}
        if left := len(known - set(replicas["contents"]["training"])):
            told.append(("bad", f"the gate searched all but {left} of the {len(known)} training volumes"))
    if membership := found.get("membership"):
        words = f"membership test {membership['verdict']}, {told_of_power(membership['power'])}"
        told.append((STATES[membership["verdict"]], words))
    for row in found.get("statement", ()):
        told.append(("", "; ".join(f"{name}: {row[name]}" for name in STATED)))
    return told


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Sources and fingerprint                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def read_statement(path):
    """Rows of the CSV in which the user states licence and consent of every data set."""
    rows = read_table(path, *STATED, flag="--statement")
    return [{name: row[name] for name in STATED} for row in rows]


def read_provenance(path, state):
    """What a checkpoint says of itself, with its SHA-256 and that of its training data."""
    about = {"checkpoint SHA-256": file_digest(path), "step": state.get("step")}
    about["training data SHA-256"] = state.get("data_digest")
    settings = state.get("config", {})
    about |= {name.replace("_", " "): settings[name] for name in PROVENANCE if name in settings}
    return {name: value for name, value in about.items() if value is not None}


def read_sources(config):
    """{source: record} of everything that was given.

    Raises:
        UserError: A file is of another program.
    """
    found = {"trained_on": trained_on(config.released, "--released")}
    for name, entries in SOURCES.items():
        path = getattr(config, name)
        if path is None:
            continue
        found[name] = read_json(path)
        lacking = [entry for entry in entries if entry not in found[name]]
        lacking = lacking or [entry for entry in ("generated",) if entry not in found[name]["contents"]]
        if lacking:
            raise UserError(
                f"--{name} {path} has no entry {lacking[0]!r}: give the file of that program, made by this "
                f"version of it."
            )
        verdict = found[name].get("verdict", "passed")
        if verdict not in STATES:
            raise UserError(
                f"--{name} {path} has the verdict {verdict!r}, expected one of {', '.join(STATES)}."
            )
    if config.statement is not None:
        found["statement"] = read_statement(config.statement)
    if config.checkpoint is not None:
        from volumetric.runs import read_state

        state = read_state(config.checkpoint)
        found["checkpoint"] = read_provenance(config.checkpoint, state)
        found["trained_on"] |= told_by(state, config.checkpoint)
    for name in (name for name in OF_ALL if name in found):
        told = f"a training volume of --{name} {getattr(config, name)}"
        found["trained_on"] |= dict.fromkeys(found[name]["contents"].get("training", ()), told)
    return found


def check_released(released, found, config):
    """How many of the released volumes each program has looked at: {source: number}.

    Args:
        released: [VolumeFile].
        found: Of `read_sources`.
        config: ScorecardConfig.

    Raises:
        UserError: A program looked at none of them, the gate or the membership test not at all of them, or
            the gate flagged some; volumes that the model was trained on are released, or were taken for
            held-out ones.
    """
    looked, folder = {}, f"--released {config.released}"
    refuse_flagged(released, found, config)
    refuse_overlap(found["trained_on"], released, "what the model was trained on", "--released")
    for name in (name for name in SOURCES if name in found):
        called, contents = f"--{name} {getattr(config, name)}", found[name]["contents"]
        refuse_trained(contents.get("held_out", ()), found["trained_on"], called)
        seen = set(contents["generated"])
        others = [volume for volume in released if volume.content not in seen]
        if len(others) == len(released) or (others and name in OF_ALL):
            raise UserError(
                f"{called} looked at other volumes: not at {len(others)} of the {len(released)} in {folder}, "
                f"the first {others[0].path}; run that program on these."
            )
        looked[name] = len(released) - len(others)
    return looked


def refuse_flagged(released, found, config):
    """Raise a UserError if volumes that the replica gate flagged are still among the released ones."""
    flagged = {row["content"] for row in found.get("replicas", {}).get("flagged", ())}
    left = [volume for volume in released if volume.content in flagged]
    if left:
        raise UserError(
            f"{len(left)} of the {len(released)} volumes in --released {config.released} are flagged in "
            f"--replicas {config.replicas}, the first {left[0].path}: take them out; released.txt beside it "
            f"lists the others."
        )


def refuse_trained(contents, known, called):
    """Raise a UserError if a program took volumes for held-out ones that the model was trained on."""
    trained = sum(content in known for content in contents)
    if trained:
        raise UserError(
            f"{called} took {trained} volumes for held-out ones that the model was trained on: run that "
            f"program again, with others."
        )


def fingerprint(folder, paths):
    """{path below the folder: SHA-256} of files in it."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def verify(config):
    """Compare a folder with the fingerprint of a scorecard; a UserError names the first difference."""
    path = Path(config.output) / "scorecard.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: --output is the folder of the scorecard.")
    with as_damaged("give the folder of a scorecard", path):
        known = dict(read_json(path)["fingerprint"])
    there = fingerprint(config.verify, find_volumes(config.verify, "--verify"))
    differs = [
        f"{name} is another file"
        for name in sorted(known.keys() & there.keys())
        if known[name] != there[name]
    ]
    differs += [f"{name} is missing" for name in sorted(known.keys() - there.keys())]
    differs += [f"{name} was added" for name in sorted(there.keys() - known.keys())]
    if differs:
        more = f", and {len(differs) - 1} more differences" if len(differs) > 1 else ""
        raise UserError(f"{config.verify} is not the released folder: {differs[0]}{more}.")
    print(f"{config.verify} holds the {len(known)} volumes that {path} describes, unchanged.")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ The page                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def write_card(record, folder):
    """scorecard.json and report.html."""
    write_json(folder / "scorecard.json", record)
    cards = []
    for name, question in CRITERIA.items():
        told = record["criteria"][name]
        states = {one["state"] for one in told}
        state = "bad" if "bad" in states else "good" if "good" in states else ""
        lines = "".join(f"<li>{html.escape(one['text'])}</li>" for one in told)
        lines = lines or f"<li>{NOT_MEASURED}</li>"
        title = f"{name.capitalize()}: {question}"
        cards.append(f'<div class="verdict {state}"><h3>{title}</h3><ul>{lines}</ul></div>')
    looked = ", ".join(f"{number} in {name}" for name, number in record["looked_at"].items())
    files = [[name, digest] for name, digest in list(record["fingerprint"].items())[:20]]
    more = len(record["fingerprint"]) - len(files)
    body = [
        f"<p>{len(record['fingerprint'])} volumes in {html.escape(record['released'])}. SYNTHETIC: not of "
        f"people, and not for decisions about them.</p>",
        f'<div class="verdicts">{"".join(cards)}</div>',
        f"<p>Of these volumes were looked at: {looked}.</p>" if looked else "",
        "<h2>Fingerprint</h2>",
        f'<div class="small">{rows_of(["file", "SHA-256"], files)}</div>',
        f"<p>... and {more} more in scorecard.json.</p>" if more > 0 else "",
        '<p class="small">Criteria after Zamzmi et al., arXiv:2406.11143. What is not measured is said to be '
        "so; licence and consent are as the releasing party states them.</p>",
    ]
    write_page(folder / "report.html", "Scorecard of synthetic volumes", "\n".join(body))


def make_card(config):
    """Gather, and write the scorecard; returns its folder."""
    folder = Path(config.output)
    if (folder / "scorecard.json").exists():
        raise UserError(f"{folder} has a scorecard: give another --output, or --verify a folder against it.")
    found, released = read_sources(config), volumes_in(config.released, "--released")
    record = {
        "looked_at": check_released(released, found, config),
        "criteria": {
            name: [{"state": state, "text": text} for state, text in told]
            for name, told in answers_of(found).items()
        },
        "released": str(Path(config.released).resolve()),
        "fingerprint": fingerprint(config.released, [volume.path for volume in released]),
        "contents": contents_of({"released": released}),
        "settings": asdict(config),
        "version": __version__,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_card(record, folder)
    measured = sum(bool(told) for told in record["criteria"].values())
    print(f"{measured} of {len(CRITERIA)} criteria are measured; {folder / 'report.html'} shows them.")
    return folder


def main(argv=None):
    """The command line."""
    config = parse_cli(ScorecardConfig, argv)
    with one_line_errors():
        (verify if config.verify is not None else make_card)(config)


if __name__ == "__main__":
    main(sys.argv[1:])
