"""report.html: one file with every number and picture of an evaluation, and the tables behind them."""

import base64
import csv
import html
import io
import string

import numpy as np

from MedicalNet.anatomy import MEASURES
from MedicalNet.distances import Neighbours, principal_components
from volumetric.files import array_to_volume, atomic_path, by
from volumetric.pictures import axial_pictures, new_axes, save_figure, tile

SHOWN = 16  # volumes of each set in the contact sheets
PAIRS_SHOWN = 8  # generated volumes beside their nearest real ones, the closest first
COLOURS = {"real": "#1f6f8b", "generated": "#d1603d"}
BINS = 24  # of a histogram

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, table { color: #222; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; text-align: right; }
tr:nth-child(even) { background: #f6f6f4; }
.warning { background: #fff3d6; border-left: 4px solid #e0a020; padding: .3rem .8rem; margin: .3rem 0; }
.sheets { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; }
figcaption { color: #555; }
img { image-rendering: pixelated; max-width: 100%; background: #000; }
svg { max-width: 100%; height: auto; }
.small { color: #555; font-size: .85rem; overflow-wrap: anywhere; }
"""

PAGE = string.Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><style>$style</style></head><body>
<h1>$title</h1>
<p>$n_real real volumes in $real, $n_generated generated in $generated; $shape voxels of $spacing mm.
Intervals: $intervals.</p>
$warnings
<h2>Numbers</h2>
$numbers
$sections
<h2>Protocol</h2>
$protocol
</body></html>
""")


def write_report(record, curve, measured, files, folder):
    """Write report.html and the tables behind its plots.

    Args:
        record: What metrics.json holds.
        curve: (precision, recall) behind AUC-PRD, or None.
        measured: Measured of the real and of the generated volumes.
        files: VolumeFile of the real and of the generated volumes.
        folder: Where to write.
    """
    sections = [contact_sheets(files)]
    if curve is not None:
        sections.append(precision_recall(*map(np.asarray, curve), folder))
    if "volume" in measured[0].features:
        features = [m.features["volume"][:, 0] for m in measured]
        sections.append(scatter(features, measured, folder))
        sections.append(nearest(features, files, folder))
    if measured[0].anatomy:
        sections.append(anatomy(measured, folder))
    if measured[0].similarity is not None:
        write_pairs(measured, folder)
    real_set = record["real"]
    page = PAGE.substitute(
        title="Synthetic against real volumes",
        style=STYLE,
        n_real=real_set["n"],
        n_generated=record["generated"]["n"],
        real=html.escape(real_set["folder"]),
        generated=html.escape(record["generated"]["folder"]),
        shape=by(real_set["shape"]),
        spacing=by(real_set["spacing_mm"]),
        intervals=html.escape(record["intervals"]),
        warnings="".join(f'<p class="warning">{html.escape(w)}.</p>' for w in record["warnings"]),
        numbers=number_table(record["metrics"]),
        sections="\n".join(sections),
        protocol=protocol_table(record),
    )
    with atomic_path(folder / "report.html") as part:
        part.write_text(page, encoding="utf-8")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Tables                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def rows_of(head, rows):
    """An HTML table; cells that are numbers are right-aligned."""
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(cell(value) for value in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def cell(value):
    """One table cell."""
    if isinstance(value, float | int):
        return f'<td class="number">{value:.5g}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def number_table(metrics):
    """Every number with its interval, its value between two halves of the real set, and how to read it."""
    split = any(m["real_split"] for m in metrics.values())
    rows = []
    for name, m in metrics.items():
        label = f"{name}: {MEASURES[name[3:]]}" if name.startswith("W1-") else name
        spread = "{:.4g} to {:.4g}".format(*m["interval_95"]) if m["interval_95"] else ""
        if "standard_deviation" in m:
            spread += f" (sd {m['standard_deviation']:.3g})"
        halves = []
        if split:
            floor = m["real_split"]
            text = "{mean:.4g} ± {standard_deviation:.2g} (n = {n})"
            halves = [text.format(**floor) if floor else ""]
        rows.append([label, float(m["value"]), spread, *halves, m["better"], m["n_real"], m["n_generated"]])
    head = ["", "value", "95 % interval", *["two halves of the real"][:split], "better"]
    return rows_of([*head, "n real", "n generated"], rows)


def protocol_table(record):
    """What stands behind the numbers."""
    rows = list(record["protocol"].items())
    weights = record["weights"].items()
    rows += [(f"{name} weights", f"{w['file']}, SHA-256 {w['sha256']}") for name, w in weights]
    rows += [("seed", str(record["seed"]))]
    rows += [("versions", ", ".join(f"{name} {v}" for name, v in record["versions"].items()))]
    return f'<div class="small">{rows_of(["", ""], rows)}</div>'


def write_table(path, head, rows):
    """A CSV file."""
    with atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(head)
        table.writerows(rows)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Pictures                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def picture(pixels, caption, width=None):
    """A figure of grey pixels (H, W) in [0, 255], as PNG in the page."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    size = f' width="{width}"' if width else ""
    source = base64.b64encode(data.getvalue()).decode()
    return (
        f'<figure><img{size} alt="{html.escape(caption)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def projections(files):
    """Maximum-intensity projections, each volume scaled to [0, 255]. Shapes: n files -> (n, H, W) uint8"""
    pictures = []
    for file in files:
        array = file.read()
        array = (array - array.min()) / (array.max() - array.min())
        pictures.append(axial_pictures(array_to_volume(array)[None], file.affine)[1][0])
    return np.stack(pictures)


def contact_sheets(files):
    """Projections of real and generated volumes side by side, evenly chosen from each set."""
    sheets = []
    for which, one in zip(COLOURS, files, strict=True):
        chosen = [one[i] for i in np.unique(np.linspace(0, len(one) - 1, min(SHOWN, len(one))).astype(int))]
        sheets.append(picture(tile(projections(chosen), 4), f"{which}: {len(chosen)} of {len(one)}", 480))
    title = "<h2>Axial maximum-intensity projections</h2>"
    return f'{title}<div class="sheets">{"".join(sheets)}</div>'


def nearest(features, files, folder):
    """Generated volumes beside the real ones nearest to them, and the table of all."""
    distances = Neighbours(*features).rg  # (n, m)
    closest, distance = distances.argmin(axis=0), distances.min(axis=0)
    rows = [(files[1][j].name, files[0][i].name, distance[j]) for j, i in enumerate(closest)]
    write_table(folder / "nearest_real.csv", ["generated", "nearest_real", "distance"], rows)
    figures = []
    for j in np.argsort(distance, kind="stable")[:PAIRS_SHOWN]:
        both = np.concatenate(list(projections([files[1][j], files[0][closest[j]]])), axis=1)
        figures.append(picture(both, f"generated | nearest real, distance {distance[j]:.4g}", 240))
    title = "<h2>Nearest neighbours: the generated volumes closest to a real one</h2>"
    return f'{title}<div class="sheets">{"".join(figures)}</div>'


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Plots                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def drawing(figure):
    """A matplotlib figure as SVG in the page."""
    data = io.StringIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    text = data.getvalue()
    return text[text.index("<svg") :]


def precision_recall(precision, recall, folder):
    """The curve behind AUC-PRD."""
    write_table(folder / "prd_curve.csv", ["precision", "recall"], zip(precision, recall, strict=True))
    figure, (one,) = new_axes()
    one.plot(recall, precision, color=COLOURS["generated"])
    one.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    return f"<h2>Precision and recall of the generated distribution</h2>{drawing(figure)}"


def scatter(features, measured, folder):
    """Volume features of both sets in their first two principal components."""
    points = [p[:, 0, :2] for p in principal_components(*(f[:, None] for f in features), number=2)]
    rows = [
        (which, name, *point)
        for which, one, m in zip(COLOURS, points, measured, strict=True)
        for name, point in zip(m.names, one, strict=True)
    ]
    write_table(folder / "features_2d.csv", ["set", "volume", "component_1", "component_2"], rows)
    figure, (one,) = new_axes(width=5.2, height=4.2)
    for (which, colour), p in zip(COLOURS.items(), points, strict=True):
        one.scatter(*p.T, s=14, color=colour, alpha=0.7, label=which, linewidths=0)
    one.set(xlabel="first principal component", ylabel="second principal component")
    one.legend(frameon=False)
    return f"<h2>Volume features</h2>{drawing(figure)}"


def anatomy(measured, folder):
    """Histograms of every vessel measure in both sets, and the table of the measures of every volume."""
    single = [n for n in MEASURES if n not in ("radius-mm", "branch-length-mm")]
    rows = [
        (
            which,
            name,
            *(volume[n][0] for n in single),
            volume["radius-mm"].mean(),
            volume["branch-length-mm"].mean(),
        )
        for which, m in zip(COLOURS, measured, strict=True)
        for name, volume in zip(m.names, m.anatomy, strict=True)
    ]
    head = ["set", "volume", *single, "mean-radius-mm", "mean-branch-length-mm"]
    write_table(folder / "anatomy.csv", head, rows)
    figure, plots = new_axes(columns=3, rows=3, width=3.6, height=2.6)
    table = []
    for one, (name, title) in zip(plots, MEASURES.items(), strict=False):
        values = [np.concatenate([volume[name] for volume in m.anatomy]) for m in measured]
        low, high = min(v.min() for v in values), max(v.max() for v in values)
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        for (which, colour), v in zip(COLOURS.items(), values, strict=True):
            share = np.histogram(v, edges)[0] / len(v)
            one.stairs(share, edges, color=colour, fill=True, alpha=0.45, label=which)
            table += [(name, which, *row) for row in zip(edges[:-1], edges[1:], share, strict=True)]
        one.set(xlabel=title, ylabel="share")
    plots[0].legend(frameon=False)
    for one in plots[len(MEASURES) :]:
        one.set_visible(False)
    write_table(folder / "anatomy_histograms.csv", ["measure", "set", "from", "to", "share"], table)
    return f"<h2>Anatomy of the vessels</h2>{drawing(figure)}"


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
        one.plot(steps, [r["value"] for r in results], "o-", color=COLOURS["generated"], markersize=3)
        if results[0]["interval_95"]:
            one.fill_between(
                steps, *zip(*(r["interval_95"] for r in results), strict=True), alpha=0.2, color="#d1603d"
            )
        one.set(title=name, xlabel="step")
    for one in plots[len(names) :]:
        one.set_visible(False)
    save_figure(figure, path)
