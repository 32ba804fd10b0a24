"""report.html: one file with every answer, number and picture of an evaluation, and tables beside it."""

import html
import string
from pathlib import Path

from volumetric.files import array_to_volume, by
from volumetric.names import unique_names
from volumetric.pages import (
    Explained,
    drawing,
    give_or_take,
    picture,
    rows_of,
    section,
    three,
    write_page,
)
from volumetric.pictures import annotated, new_axes, save_figure
from volumetric.tables import write_table

import numpy as np

from MedicalNet.anatomy import MEASURES
from MedicalNet.distances import Neighbours, PrecisionRecallCurve, principal_components
from MedicalNet.looks import saturated, without_vessels
from MedicalNet.meanings import meaning
from MedicalNet.named_page import named_section, write_tables
from MedicalNet.verdicts import QUESTIONS, every_number, few, in_order

SHOWN = 8  # volumes of each set
WORST = 4  # generated volumes of each kind of bad ones
MOST_NUMBERS = 4  # of those that decided an answer, the worst
PAIRS_SHOWN = 6  # generated volumes beside their nearest real ones, the closest first
COLOURS = {"real": "#1f6f8b", "generated": "#d1603d"}
BINS = 24  # of a histogram
SHARE_SHOWN = (0.5, 99.5)  # percentiles between which a histogram has its bins
MARKS = {"good": "inside", "bad": "outside"}

BODY = string.Template("""
$few
<p>$n_real real volumes in $real, $n_generated generated in $generated; $shape voxels of $spacing mm.</p>
$privacy
<div class="verdicts">$verdicts</div>
<h2>Warnings</h2>
$warnings
$numbers
$sections
<h2>Protocol</h2>
$protocol""")
PRIVATE = "This page holds pictures and names of real volumes: --share True leaves them out."


def write_report(record, near, curve, measured, files, folder, comparison=None):
    """Write report.html and the tables behind its plots.

    Args:
        record: What metrics.json holds.
        near: Nearness, or None.
        curve: (precision, recall) behind AUC-PRD, or None.
        measured: Measured of the real and of the generated volumes.
        files: VolumeFile of the real and of the generated volumes.
        folder: Where to write.
        comparison: named_anatomy.Comparison of both sets' label maps, or None.
    """
    share, labels = record["settings"]["share"], {}
    for one in files:
        labels |= unique_names([file.path for file in one])
    sections = []
    if comparison is not None:
        names = dict(zip(COLOURS, (m.names for m in measured), strict=True))
        write_tables(record["named_anatomy"], comparison, names, folder, share)
        sections.append(named_section(record["named_anatomy"], comparison))
    copies = {copy["generated"] for copy in record["copies"]} if share else ()  # of real ones: not pictured
    shown = files[0], [file for file in files[1] if file.name not in copies]
    sections += [worst(measured, files, labels, copies), sheet_of_volumes(shown, labels, share)]
    if "volume" in measured[0].features:
        features = [m.features["volume"][:, 0] for m in measured]
        if curve is not None:
            sections.append(precision_recall(*map(np.asarray, curve), features, record, folder))
        sections.append(scatter(features, measured, folder, share))
    if near is not None:
        sections.append(nearest(near, record, files, labels, folder))
    if measured[0].anatomy:
        sections.append(anatomy(measured, folder, share))
    if record["groups"]:
        sections.append(group_tables(record["groups"]))
    if measured[0].similarity is not None and not share:
        write_pairs(measured, folder)
    real_set, unsure, numbers = record["real"], few(record), every_number(record)
    cards = [
        verdict_card(v, numbers, unsure and v["question"] != QUESTIONS["enough"]) for v in in_order(record)
    ]
    body = BODY.substitute(
        n_real=real_set["n"],
        n_generated=record["generated"]["n"],
        real="a folder" if share else path_of(real_set["folder"]),
        generated=path_of(
            Path(record["generated"]["folder"]).name if share else record["generated"]["folder"]
        ),
        shape=by(real_set["shape"]),
        spacing=by(real_set["spacing_mm"]),
        privacy="" if share else f'<p class="warning">{PRIVATE}</p>',
        few=f'<div class="verdicts">{cards[0]}</div>' if few(record) else "",
        verdicts="".join(cards[1:] if few(record) else cards),
        warnings=warnings_of(record, files[0]),
        numbers=number_tables(record),
        sections="\n".join(sections),
        protocol=protocol_table(record),
    )
    write_page(folder / "report.html", "Synthetic against real volumes", body)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Answers and tables                                                                                       ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def path_of(path):
    """A path, which may be broken anywhere, as HTML."""
    return f'<span class="path">{html.escape(path)}</span>'


def warnings_of(record, real_files):
    """Warnings, as HTML; on a page to share real volumes have no names in them either."""
    told = list(record["warnings"])
    if record["settings"]["share"]:
        for file in sorted(real_files, key=lambda file: -len(file.name)):  # one may be a part of another
            told = [text.replace(file.name, "a real volume") for text in told]
    return "".join(f'<p class="warning">{html.escape(text)}.</p>' for text in told) or "<p>None.</p>"


def verdict_card(verdict, metrics, unsure=False):
    """One answer with the numbers that decided it, the worst first, each with what it measures."""
    names = verdict["numbers"]
    lines = [number_line(name, metrics[name]) for name in names[:MOST_NUMBERS]]
    more = len(names) - len(lines)
    lines += [f"<li>and {more} more, in the tables below</li>"] if more else []
    numbers = f"<ul>{''.join(lines)}</ul>" if lines else ""
    state = f"{verdict['state']}{' unsure' if unsure else ''}"
    return (
        f'<div class="verdict {state}"><h3>{html.escape(verdict["question"])}</h3>'
        f"<p>{html.escape(verdict['answer'])}</p>{numbers}</div>"
    )


def number_line(name, m):
    """A number of a card: its value, whether real halves give as much, what it measures, what they give."""
    equal, told, floor = m.get("equal_n"), three(m["value"]), ""
    if equal:
        state = "bad" if equal["outside"] else "good"
        told = f'{three(equal["mean"])} <span class="mark {state}">{MARKS[state]}</span>'
        of_real = give_or_take(equal["floor_mean"], equal["floor_standard_deviation"])
        floor = f" Two sets of {equal['n']} real volumes each give {of_real}."
    sides = [m[which]["share"] for which in COLOURS if isinstance(m.get(which), dict)]
    shares = " Real {:.0%}, generated {:.0%}.".format(*sides) if sides else ""
    note = html.escape(meaning(name, m) + shares + floor)
    return f'<li><b>{html.escape(name)}</b> {told}<span class="note">{note}</span></li>'


def number_tables(record):
    """Every number, by question, with its interval and what real volumes give at equal n."""
    page = []
    for topic in ("realistic", "diverse", "copies", "anatomy"):
        rows = []
        for name, m in record["metrics"].items():
            if m["question"] == topic:
                interval, resampled = m.get("interval_95"), m.get("spread_95")
                around = " to ".join(map(three, interval or resampled or ()))
                around += " (spread)" if resampled else ""
                equal, floor = m.get("equal_n"), ("", "", "")
                if equal:
                    state = "bad" if equal["outside"] else "good"
                    told = give_or_take(equal["floor_mean"], equal["floor_standard_deviation"])
                    mean = give_or_take(equal["mean"], equal["standard_deviation"])
                    floor = ((MARKS[state], state), f"{mean} (n = {equal['n']})", told)
                value = "none" if m["value"] is None else float(m["value"])
                rows.append([Explained(name, meaning(name, m)), value, *floor, around])
        if rows:
            head = ["", "value", "", "at equal n", "real against real", "95 %"]
            page.append(f"<h2>{QUESTIONS[topic]}</h2>{rows_of(head, rows)}")
    note = (
        "95 %: confidence interval of numbers without bias; (spread): how much the number moves when volumes "
        "are drawn again. At equal n: mean and standard deviation over random subsets of n volumes of each; "
        "real against real: of as many real volumes against as many others, what a perfect generator gives. "
        "Outside: worse than every one of these, and by more than four standard deviations."
    )
    return "".join(page) + f'<p class="small">{note}</p>'


def group_tables(groups):
    """Recall and coverage of every group of real volumes."""
    tables = []
    for column, rows in groups.items():
        told = [
            [
                value,
                row["n"],
                *(
                    f"{three(row[k])} [{three(row[f'{k}_95'][0])}, {three(row[f'{k}_95'][1])}]"
                    for k in ("recall", "coverage")
                ),
            ]
            for value, row in rows.items()
        ]
        tables.append(rows_of([column, "n", "recall", "coverage"], told))
    return "<h2>Recall and coverage of groups of real volumes</h2>" + "".join(tables)


def protocol_table(record):
    """What stands behind the numbers."""
    rows = list(record["protocol"].items())
    weights = record["weights"].items()
    rows += [(f"{name} weights", f"{w['file']}, SHA-256 {w['sha256']}") for name, w in weights]
    rows += [("seed", str(record["seed"]))]
    rows += [("versions", ", ".join(f"{name} {v}" for name, v in record["versions"].items()))]
    return f'<div class="small">{rows_of(["", ""], rows)}</div>'


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Pictures                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def views_of(file, label):
    """Planes and projections of a volume. Shapes: VolumeFile -> (H, W) uint8"""
    array = file.read()
    array = (array - array.min()) / max(np.ptp(array), np.finfo(np.float32).tiny)
    return annotated(array_to_volume(array), file.affine, label)


def sheet_of_volumes(files, labels, share):
    """Planes and projections of volumes of both sets, evenly chosen; `labels` are {path: what to call it}."""
    figures = []
    for which, one in zip(COLOURS, files, strict=True):
        if not one or (share and which == "real"):
            continue
        chosen = [one[i] for i in np.unique(np.linspace(0, len(one) - 1, min(SHOWN, len(one))).astype(int))]
        rows = np.concatenate([views_of(file, labels[file.path]) for file in chosen], axis=0)
        figures.append(picture(rows, f"{which}: {len(chosen)} of {len(one)}, evenly chosen"))
    note = (
        '<p class="small">Axial middle plane and maximum-intensity projection, then the coronal and sagittal '
        "ones, at one scale; the bar is 20 mm. Right is on the left (R), front is A.</p>"
    )
    return section("Volumes", figures, note)


def worst(measured, files, labels, hidden):
    """The generated volumes that are worst: by their features, saturated, and without a vessel.

    Args:
        measured: Measured of both sets.
        files: VolumeFile of both sets.
        labels: {path: what to call it}.
        hidden: Names of generated volumes that are not pictured.
    """
    generated, number = files[1], len(files[1])
    figures, notes = [], []
    found, usual = saturated(files)
    if found:
        told = (
            f"saturated: {len(found)} of {number}, the worst with {100 * found[0][1]:.2g} % of its voxels at "
        )
        told += f"the maximum; of real ones {f'{100 * usual:.2g} % at most' if usual else 'hardly any'}"
        figures += sheet(generated, [n for n, _ in found[:WORST]], labels, told, hidden)
    else:
        notes.append("None has more voxels at its maximum than real ones have.")
    empty = without_vessels(measured[1])
    if empty:
        told = f"no vessel found: {len(empty)} of {number}"
        figures += sheet(generated, empty[:WORST], labels, told, hidden)
    elif measured[1].anatomy:
        notes.append("Vessels were found in every one.")
    if "volume" in measured[0].features:
        away = Neighbours(*(m.features["volume"][:, 0] for m in measured)).rg.min(axis=0)
        order = np.argsort(-away, kind="stable")[:WORST]
        figures += sheet(generated, order, labels, "furthest in features from any real one", hidden)
    note = f'<p class="small">{" ".join(notes)}</p>' if notes else ""
    return section("The worst generated volumes", figures, note)


def sheet(files, chosen, labels, caption, hidden):
    """[A figure of some of the volumes, one below the other]; empty if all of them are hidden."""
    rows = [views_of(files[n], labels[files[n].path]) for n in chosen if files[n].name not in hidden]
    return [picture(np.concatenate(rows, axis=0), caption)] if rows else []


def nearest(near, record, files, labels, folder):
    """Copies, generated volumes beside the real ones nearest to them, and how near real ones are."""
    share = record["settings"]["share"]
    kinds = {copy["generated"]: copy["kind"] for copy in record["copies"]}
    rows = [
        (f.name, "" if share else files[0][i].name, d, kinds.get(f.name, ""))
        for f, i, d in zip(files[1], near.nearest, near.to_real, strict=True)
    ]
    write_table(folder / "nearest_real.csv", ["generated", "nearest_real", "distance", "copy"], rows)
    figures = []
    for j in np.argsort(near.to_real, kind="stable")[:PAIRS_SHOWN] if not share else ():
        made, real = files[1][j], files[0][near.nearest[j]]
        both = [views_of(made, labels[made.path]), views_of(real, f"nearest real: {labels[real.path]}")]
        told = f"distance {three(near.to_real[j])}{', left and right exchanged' if near.mirrored[j] else ''}"
        figures.append(picture(np.concatenate(both, axis=0), f"{told} {kinds.get(made.name, '')}".strip()))
    figure, (one,) = new_axes(width=5.2, height=2.8)
    edges = np.linspace(0, max(near.to_real.max(), near.among_real.max(), 0.1), BINS + 1)
    for which, values in (("real", near.among_real), ("generated", near.to_real)):
        label = "real to another real" if which == "real" else "generated to real"
        one.hist(values, edges, color=COLOURS[which], alpha=0.5, density=True, label=label)
    one.axvline(near.threshold, color="0.3", linestyle=":", linewidth=1, label="near copy below")
    one.set(xlabel="distance to the nearest real volume (1 - correlation)", ylabel="density")
    one.legend(frameon=False, fontsize=8)
    return section("The generated volumes nearest to a real one", [*figures, drawing(figure)])


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Plots                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def precision_recall(precision, recall, features, record, folder):
    """The curve behind AUC-PRD, and that of two halves of the real set."""
    write_table(folder / "prd_curve.csv", ["precision", "recall"], zip(precision, recall, strict=True))
    figure, (one,) = new_axes()
    one.plot(recall, precision, color=COLOURS["generated"], label="generated")
    if len(features[0]) > 3:
        whole = PrecisionRecallCurve(*features, record["seed"]).between_real()
        half = np.arange(len(features[0])) % 2 == 0
        p, r = whole.curve(half.astype(float), (~half).astype(float))
        one.plot(r, p, color=COLOURS["real"], linestyle="--", label="real halves")
    one.legend(frameon=False)
    one.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    return f"<h2>Precision and recall of the generated distribution</h2>{drawing(figure)}"


def scatter(features, measured, folder, share):
    """Volume features of both sets in their first two principal components."""
    points = [p[:, 0, :2] for p in principal_components(*(f[:, None] for f in features), number=2)]
    rows = [
        (which, name, *point)
        for which, one, m in zip(COLOURS, points, measured, strict=True)
        for name, point in zip(m.names, one, strict=True)
    ]
    if not share:
        write_table(folder / "features_2d.csv", ["set", "volume", "component_1", "component_2"], rows)
    figure, (one,) = new_axes(width=5.2, height=4.2)
    for (which, colour), p in zip(COLOURS.items(), points, strict=True):
        one.scatter(*p.T, s=14, color=colour, alpha=0.7, label=which, linewidths=0)
    one.set(xlabel="first principal component", ylabel="second principal component")
    one.legend(frameon=False)
    return f"<h2>Volume features</h2>{drawing(figure)}"


def anatomy(measured, folder, share):
    """Histograms of every vessel measure in both sets, and the table of the measures of every volume."""
    single = [n for n in MEASURES if n not in ("radius-mm", "branch-length-mm")]
    rows = [
        (
            which,
            name,
            *(volume[n][0] if len(volume[n]) else "" for n in single),
            *(volume[n].mean() if len(volume[n]) else "" for n in ("radius-mm", "branch-length-mm")),
        )
        for which, m in zip(COLOURS, measured, strict=True)
        for name, volume in zip(m.names, m.anatomy, strict=True)
    ]
    head = ["set", "volume", *single, "mean-radius-mm", "mean-branch-length-mm"]
    if not share:
        write_table(folder / "anatomy.csv", head, rows)
    figure, plots = new_axes(columns=3, rows=3, width=3.6, height=2.6)
    table = []
    for one, (name, title) in zip(plots, MEASURES.items(), strict=False):
        values = [np.concatenate([volume[name] for volume in m.anatomy]) for m in measured]
        edges = bins_of(np.concatenate(values))
        for (which, colour), v in zip(COLOURS.items(), values, strict=True):
            part = np.histogram(v.clip(edges[0], edges[-1]), edges)[0] / max(len(v), 1)
            one.stairs(part, edges, color=colour, fill=True, alpha=0.45, label=which)
            table += [(name, which, *row) for row in zip(edges[:-1], edges[1:], part, strict=True)]
        one.set(xlabel=title, ylabel="share")
    plots[0].legend(frameon=False)
    for one in plots[len(MEASURES) :]:
        one.set_visible(False)
    write_table(folder / "anatomy_histograms.csv", ["measure", "set", "from", "to", "share"], table)
    return f"<h2>Anatomy of the vessels</h2>{drawing(figure)}"


def bins_of(values):
    """Edges of a histogram between outlying percentiles; of whole numbers, between them."""
    if not len(values):
        return np.linspace(0, 1, BINS + 1)
    low, high = np.percentile(values, SHARE_SHOWN)
    if np.array_equal(values, np.rint(values)):
        step = max(1, int(np.ceil((high - low + 1) / BINS)))
        return np.arange(np.floor(low) - 0.5, high + step + 0.5, step)
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def write_pairs(measured, folder):
    """The pairs behind MS-SSIM."""
    rows = [
        (which, m.names[i], m.names[j], value)
        for which, m in zip(COLOURS, measured, strict=True)
        for (i, j), value in zip(m.pairs, m.similarity, strict=True)
    ]
    write_table(folder / "ms_ssim_pairs.csv", ["set", "volume", "other_volume", "ms_ssim"], rows)


def draw_sweep(rows, path):
    """Every metric of the checkpoints of a run over its steps, as PNG."""
    names = list(rows[0]["metrics"])
    columns = min(4, len(names))
    figure, plots = new_axes(columns, -(-len(names) // columns), width=3.4, height=2.4)
    steps = [row["step"] for row in rows]
    for one, name in zip(plots, names, strict=False):
        results = [row["metrics"][name] for row in rows]
        values = [np.nan if r["value"] is None else r["value"] for r in results]
        one.plot(steps, values, "o-", color=COLOURS["generated"], markersize=3)
        around = [r["interval_95"] or r["spread_95"] for r in results]
        if all(around):
            low, high = [a for a, _ in around], [b for _, b in around]
            one.fill_between(steps, low, high, alpha=0.2, color=COLOURS["generated"])
        one.set(title=name, xlabel="step")
    for one in plots[len(names) :]:
        one.set_visible(False)
    save_figure(figure, path)
