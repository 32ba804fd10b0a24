"""report.html of an experiment: whether synthetic volumes help, curves of every class, pictures of cases."""

from volumetric.files import write_json
from volumetric.pages import drawing, picture, rows_of, section, three, write_page
from volumetric.pictures import new_axes
from volumetric.tables import write_table

import numpy as np

from segmentation.cases import Classes
from segmentation.comparison import AVERAGE, LOWER_IS_BETTER, NAMES, RARE, SCORES, verdict
from segmentation.labels import as_topcow, read_labels
from segmentation.report import coloured

TITLE = "Do synthetic volumes help the segmentation?"
LABELS = {
    AVERAGE: "mean Dice over classes",
    "Dice_MergedBin": "Dice of all vessels as one",
    "clDice": "clDice",
}
DETECTION_NOTES = {
    "sensitivity": "Share of the subjects who have the artery in whom it is found, overlapping by TopCoW's "
    "least intersection over union, 0.25.",
    "specificity": "Share of the subjects who lack it in whom not a voxel is given to it.",
}
LABELS |= {"HD95_ClsAvgHD95": "mean HD95 over classes, mm"}


def write_experiment(record, tests, folder):
    """Write experiment.json, experiment.csv and report.html.

    Args:
        record: Of `compare_runs`, and of `told_of` in experiment.py.
        tests: {case: Pair} of cases.py.
        folder: Of the experiment, with runs/<run>/predicted.
    """
    write_json(folder / "experiment.json", record)
    rows = [
        (cell["real"], cell["synthetic"], name, one["mean"], *(one["interval_95"] or ("", "")), one["n"])
        for cell in record["cells"]
        for name, one in cell["scores"].items()
    ]
    head = ["real", "synthetic", "score", "mean", "low_95", "high_95", "subjects"]
    write_table(folder / "experiment.csv", head, rows)
    body = [cards(record), about(record), "<h2>Average scores</h2>", table(record, SCORES)]
    body.append("<h2>Learning curves</h2>" + drawing(curves(record)))
    body.append("<h2>Differences against real volumes alone</h2>" + tests_table(record))
    body.append("<h2>What synthetic volumes are worth</h2>" + exchange_table(record))
    if rare := of_rare(record, "Dice"):
        note = "A class that is on one side alone counts with Dice 0, one that is on neither with nothing."
        title = "<h2>Arteries that not everybody has</h2>"
        body.append(f'{title}{table(record, rare)}<p class="small">{note}</p>')
    for kind, what in DETECTION_NOTES.items():
        if found := of_rare(record, kind):
            body.append(f'<h3>{kind.capitalize()}</h3>{table(record, found)}<p class="small">{what}</p>')
    body.append(pictured_cases(record, tests, folder))
    write_page(folder / "report.html", TITLE, "\n".join(body))


def of_rare(record, kind):
    """Names of the scores of a kind that there are, of the arteries that not everybody has."""
    return [f"{kind}_{name}" for name in RARE if f"{kind}_{name}" in record["cells"][0]["scores"]]


def cards(record):
    """A card for every number of real volumes: what adding synthetic ones did to the average Dice."""
    found = {}
    for row in record["differences"][AVERAGE]:
        found.setdefault(row["real"], []).append(verdict(row))
    page = []
    for real, told in found.items():
        states = {state for state, _ in told if state}
        state = states.pop() if len(states) == 1 else ""
        title = f"Added to {real} real volumes" if real else "Synthetic volumes alone"
        lines = "".join(f"<li>{sentence}</li>" for _, sentence in told)
        page.append(f'<div class="verdict {state}"><h3>{title}</h3><ul>{lines}</ul></div>')
    return f'<div class="verdicts">{"".join(page)}</div>'


def about(record):
    """How it was done, in a sentence or two."""
    settings, n = record["settings"], len(record["subjects"])
    labels = "the maps that came with them"
    if record["teacher"]:
        labels = "a teacher trained on the real volumes: they carry what it learned, at 0 real volumes too"
    doubts = ""
    if record["doubted"]:
        what = "left out" if settings["gate"] else "trained on all the same"
        told = f"The gate doubts {record['doubted']} label maps of synthetic volumes, {what}."
        doubts = f'<p class="warning">{told}</p>'
    how = (
        f"<p>{n} test subjects, which neither the networks nor the teacher saw; {len(settings['seeds'])} "
        f"seeds; {settings['num_train_steps']} steps of {settings['batch_size']} patches for every network, "
        f"whatever its number of volumes. The synthetic volumes' labels are from {labels}. Scores are those "
        f"of TopCoW; intervals are 95 %, by drawing subjects again; seeds are averaged.</p>"
    )
    return doubts + gate(record) + how


def gate(record):
    """What trust/replicas.py said about the synthetic volumes of the networks, or that it said nothing."""
    found, used = record["replicas"], len(record["contents"]["generated"])
    if not used:
        return ""
    if found is None:
        told = "No replica gate (trust/replicas.py) has looked at the synthetic volumes: they may be copies."
        return f'<p class="warning">{told}</p>'
    told = f"The replica gate {found['verdict']}: it looked at {found['looked_at']} of the {used} synthetic "
    told += f"volumes that networks were trained on, and flagged {found['flagged']} of them."
    clean = found["verdict"] == "passed" and found["looked_at"] == used and not found["flagged"]
    return f"<p>{told}</p>" if clean else f'<p class="warning">{told}</p>'


def with_interval(one):
    """A mean and its interval, as text: 0.81 [0.79, 0.83]."""
    if one["mean"] is None or not np.isfinite(one["mean"]):
        return "none"
    around = one["interval_95"]
    return three(one["mean"]) + (f" [{three(around[0])}, {three(around[1])}]" if around else "")


def table(record, scores):
    """Scores of every cell of the grid."""
    head = ["real", "synthetic", *(LABELS.get(name, name.split("_", 1)[-1]) for name in scores)]
    rows = [
        [cell["real"], cell["synthetic"], *(with_interval(cell["scores"][name]) for name in scores)]
        for cell in record["cells"]
    ]
    return rows_of(head, rows)


def tests_table(record):
    """Every tested difference of the averages."""
    rows = []
    for name in SCORES:
        for row in record["differences"][name]:
            state, _ = verdict(row, name in LOWER_IS_BETTER)
            mark = {"good": "better", "bad": "worse"}.get(state, "")
            change = with_interval({"mean": row["difference"], "interval_95": row["interval_95"]})
            what = f"{row['real']} + {row['synthetic']} against {row['against']}"
            rows.append([LABELS[name], what, change, f"{row['p_holm']:.2g}", (mark, state)])
    head = ["score", "real + synthetic against real", "difference", "p (Wilcoxon, Holm)", ""]
    return rows_of(head, rows)


def exchange_table(record):
    """How many real volumes alone give the same average Dice."""
    rows, of = [], {(row["real"], row["synthetic"]): row for row in record["differences"][AVERAGE]}
    for row in record["exchange"]:
        number, difference = row["as_real"], of.get((row["real"], row["synthetic"]))
        told = "cannot be told: real volumes alone do not improve" if number is None else three(number)
        if difference is not None and not verdict(difference)[0]:
            told += "; but no difference is shown, see above"
        rows.append([row["real"], row["synthetic"], f"{row['bound']} {told}".strip()])
    note = (
        "By the mean Dice, between the numbers of real volumes that were measured, on a logarithmic scale; "
        "beyond them it is not extrapolated."
    )
    return rows_of(["real", "synthetic", "as good as so many real ones alone"], rows) + (
        f'<p class="small">{note}</p>'
    )


def curves(record):
    """Dice over the number of synthetic volumes, a line for each number of real ones: average and classes."""
    names = [
        n for n in (AVERAGE, *(f"Dice_{c}" for c in NAMES.values())) if n in record["cells"][0]["scores"]
    ]
    figure, plots = new_axes(4, -(-len(names) // 4), width=2.9, height=2.4)
    numbers = sorted({cell["synthetic"] for cell in record["cells"]})
    for one, name in zip(plots, names, strict=False):
        for place, real in enumerate(sorted({cell["real"] for cell in record["cells"]})):
            cells = sorted((c for c in record["cells"] if c["real"] == real), key=lambda c: c["synthetic"])
            found = [c["scores"][name] for c in cells]
            x = [numbers.index(c["synthetic"]) + 0.05 * (place - 1) for c in cells]
            y = np.array([np.nan if f["mean"] is None else f["mean"] for f in found])
            ends = np.array([f["interval_95"] or (m, m) for f, m in zip(found, y, strict=True)])
            reach = np.abs(ends.T - y)
            style = {"fmt": "o-", "markersize": 3, "linewidth": 1, "capsize": 2}
            one.errorbar(x, y, reach, label=f"{real} real", **style)
        title = "average" if name == AVERAGE else name.removeprefix("Dice_")
        one.set(title=title, xlabel="synthetic volumes", ylim=(0, 1))
        one.set_xticks(range(len(numbers)), [str(n) for n in numbers])
    plots[0].set_ylabel("Dice")
    plots[0].legend(frameon=False, fontsize=7)
    for one in plots[len(names) :]:
        one.set_visible(False)
    return figure


def pictured_cases(record, tests, folder):
    """The best, the middle and the worst case of the best cell: truth and prediction from above."""
    best = max(record["cells"], key=lambda cell: cell["scores"][AVERAGE]["mean"])
    scores = record["per_subject"][f"{best['real']}+{best['synthetic']}"]
    order, table = sorted(scores, key=scores.get), record["settings"]["table"]
    run = f"real{best['real']:04d}_synthetic{best['synthetic']:04d}_seed{record['settings']['seeds'][0]}"
    figures = []
    for what, name in (("best", order[-1]), ("median", order[len(order) // 2]), ("worst", order[0])):
        pair = tests[name]
        path = folder / "runs" / run / "predicted" / f"{name}.nii.gz"
        found, truth = read_labels(path, table)[0], Classes(table).to_ids(pair.labels)
        frame = np.diag([*pair.scan.spacing, 1])
        both = [coloured(as_topcow(one, table), frame) for one in (truth, found)]
        both = np.concatenate(both, axis=1)
        figures.append(picture(both, f"{what}: {name}, mean Dice {three(scores[name])}; truth, prediction"))
    title = f"Cases with {best['real']} real and {best['synthetic']} synthetic volumes"
    return section(title, figures)
