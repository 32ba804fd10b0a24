"""What scored cases say together: averages, variants, tables and pictures."""

from volumetric.files import atomic_path, write_json
from volumetric.pictures import canonical, new_axes, save_figure
from volumetric.tables import write_table

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from PIL import Image

from segmentation.labels import MERGED, TABLES

NAMES = TABLES["topcow2024"]
FAIL = "another topology"  # instead of a variant, where the topology is not that of the truth
WORST = 6  # cases shown
SHOWN = {"Dice": 3, "HD95": 2, "B0err": 2}  # scores of the table, and their digits
COLOURS = ("#e6194b", "#f58231", "#ffe119", "#bfef45", "#3cb44b", "#42d4f4", "#4363d8", "#911eb4", "#f032e6")
COLOURS += ("#fabed4", "#ffd8b1", "#aaffc3", "#ffffff", "#dcbeff", "#9a6324")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Numbers                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def statistics_of(values):
    """{"mean", "std", "median", "n"} of the finite values; None where there is none."""
    values = np.array(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return {"mean": None, "std": None, "median": None, "n": 0}
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std": std, "median": float(np.median(values)), "n": len(values)}


def detection_scores(found):
    """Precision, recall and F1 of detected classes; 0 / 0 counts as 0.

    Args:
        found: {class: TP, FN, FP or TN} of every case.

    Returns:
        {class: {"precision", "recall", "f1_score", "TP", "FN", "FP", "TN"}, "mean": their plain means}.
    """
    scores = {}
    for name in found[0]:
        count = {kind: sum(one[name] == kind for one in found) for kind in ("TP", "FN", "FP", "TN")}
        claimed, there = count["TP"] + count["FP"], count["TP"] + count["FN"]
        precision = count["TP"] / claimed if claimed else 0.0
        recall = count["TP"] / there if there else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        scores[name] = {"precision": precision, "recall": recall, "f1_score": f1} | count
    kinds = ("precision", "recall", "f1_score")
    return scores | {"mean": {kind: float(np.mean([s[kind] for s in scores.values()])) for kind in kinds}}


def balanced_accuracy(truth, prediction):
    """Mean recall over the variants that are in the truth."""
    right = {variant: [] for variant in truth}
    for variant, found in zip(truth, prediction, strict=True):
        right[variant].append(found == variant)
    return float(np.mean([np.mean(hits) for hits in right.values()]))


def variants_of(results):
    """{part: (variants of the truth, of the predictions, these or FAIL where the topology is another)}."""
    found = {}
    for part in ("anterior", "posterior"):
        graphs = [one["variants"]["graph"][part] for one in results.values()]
        truth = [tuple(graph["truth"]) for graph in graphs]
        prediction = [tuple(graph["prediction"]) for graph in graphs]
        match = [one["variants"]["match"][part] for one in results.values()]
        found[part] = truth, prediction, [p if m else FAIL for p, m in zip(prediction, match, strict=True)]
    return found


def missing(results):
    """{class: {"both", "missed", "false", "neither"}: numbers of cases}."""
    counts = {}
    for name in NAMES.values():
        sides = [one["classes"] for one in results.values()]
        there = [(name in one["truth"], name in one["prediction"]) for one in sides]
        kinds = {"both": (True, True), "missed": (True, False), "false": (False, True)}
        kinds |= {"neither": (False, False)}
        counts[name] = {kind: there.count(pattern) for kind, pattern in kinds.items()}
    return counts


def summarise(results):
    """All numbers of a set of cases.

    Args:
        results: {case: what `score_files` gives}.
    """
    scores = [one["scores"] for one in results.values()]
    names = list(dict.fromkeys(name for one in scores for name in one))
    variants = variants_of(results)
    return {
        "scores": {name: statistics_of([one.get(name, np.nan) for one in scores]) for name in names},
        "classes": missing(results),
        "detection": detection_scores([one["variants"]["detection"] for one in results.values()]),
        "graph_balanced_accuracy": {p: balanced_accuracy(t, found) for p, (t, found, _) in variants.items()},
        "topology_balanced_match": {p: balanced_accuracy(t, found) for p, (t, _, found) in variants.items()},
        "empty": {name: one["empty"] for name, one in results.items() if one["empty"]},
    }


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Tables                                                                                                   ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def with_std(entry, digits=3):
    """A mean with its standard deviation, for a table."""
    if entry is None or entry["mean"] is None:
        return "-"
    std = "" if entry["std"] is None else f" ± {entry['std']:.{digits}f}"
    return f"{entry['mean']:.{digits}f}{std}"


def as_markdown(summary, number):
    """Tables of classes, merged classes and variants."""
    scores, lines = summary["scores"], [f"# {number} cases", ""]
    lines += ["| class | Dice | HD95, mm | Betti-0 error | both | missed | false |", "|---" * 7 + "|"]
    for name in (*NAMES.values(), "MergedBin"):
        if f"Dice_{name}" not in scores:
            continue
        counts = summary["classes"].get(name, {"both": "", "missed": "", "false": ""})
        cells = [
            with_std(scores.get(f"{kind}_{name}"), d) for kind, d in (("Dice", 3), ("HD95", 2), ("B0err", 2))
        ]
        label = "all vessels as one" if name == "MergedBin" else name
        lines.append(
            "| " + " | ".join([label, *cells, *(str(counts[k]) for k in ("both", "missed", "false"))]) + " |"
        )
    average = [
        with_std(scores[f"{kind}_ClsAvg{kind}"], d) for kind, d in (("Dice", 3), ("HD95", 2), ("B0err", 2))
    ]
    lines += ["| average over classes | " + " | ".join(average) + " | | | |", ""]
    lines += [
        f"clDice {with_std(scores['clDice'])}. A class that is on one side alone (missed, false) counts with "
        f"Dice 0 and 90 mm, in its row and in the average; one that is on neither side counts nowhere.",
        "",
        "| as published: merged class | Dice | bAVD, voxels | AVGDIST, voxels | cases without distance |",
        "|---" * 5 + "|",
    ]
    for name in MERGED:
        cells = [with_std(scores.get(f"Paper_{kind}_{name}")) for kind in ("Dice", "bAVD", "AVGDIST")]
        left_out = number - scores[f"Paper_bAVD_{name}"]["n"]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {left_out} |")
    lines += [
        "",
        "A case in which a class is missing on one side drops out of a published distance: "
        "a missed vessel costs nothing there.",
    ]
    lines += ["", "| detection | precision | recall | F1 | TP | FN | FP | TN |", "|---" * 8 + "|"]
    for name, one in summary["detection"].items():
        counts = [str(one.get(kind, "")) for kind in ("TP", "FN", "FP", "TN")]
        cells = [f"{one[kind]:.2f}" for kind in ("precision", "recall", "f1_score")]
        lines.append(f"| {name} | " + " | ".join([*cells, *counts]) + " |")
    for key, label in (("graph_balanced_accuracy", "variant"), ("topology_balanced_match", "topology")):
        parts = ", ".join(f"{part} {value:.2f}" for part, value in summary[key].items())
        lines += ["", f"Balanced accuracy of the {label}: {parts}."]
    for name, sides in summary["empty"].items():
        lines += ["", f"Empty: {' and '.join(sides)} of {name}."]
    return "\n".join([*lines, ""])


def write_csv(results, path):
    """A row for every case, a column for every score."""
    names = list(dict.fromkeys(name for one in results.values() for name in one["scores"]))
    rows = []
    for case, one in results.items():
        values = [one["scores"].get(name, "") for name in names]
        rows.append([case, *values, *one["variants"]["match"].values()])
    write_table(path, ["case", *names, "anterior_match", "posterior_match"], rows)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Pictures                                                                                                 ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def draw_classes(results, path):
    """Box plots of Dice and HD95 of every class."""
    figure, axes = new_axes(2, width=5.5, height=4.2)
    names = [n for n in NAMES.values() if any(f"Dice_{n}" in one["scores"] for one in results.values())]
    for ax, kind, label in zip(
        axes.flat, ("Dice", "HD95"), ("Dice", "95th percentile of distance, mm"), strict=True
    ):
        values = [
            [o["scores"][f"{kind}_{n}"] for o in results.values() if f"{kind}_{n}" in o["scores"]]
            for n in names
        ]
        ax.boxplot(
            values, orientation="horizontal", tick_labels=names, widths=0.6, flierprops={"markersize": 3}
        )
        ax.invert_yaxis()
        ax.set_xlabel(label)
    save_figure(figure, path)


def draw_variants(results, path):
    """Confusion of the variants of both parts of the circle; last, where the topology is another."""
    figure, axes = new_axes(2, width=5.5, height=4.6)
    for ax, (part, (truth, _, found)) in zip(axes.flat, variants_of(results).items(), strict=True):
        rows = sorted(set(truth), reverse=True)
        columns = [*sorted({*rows, *(f for f in found if f != FAIL)}, reverse=True), FAIL]
        counts = np.array(
            [
                [sum(t == r and f == c for t, f in zip(truth, found, strict=True)) for c in columns]
                for r in rows
            ]
        )
        ax.imshow(counts / counts.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            ax.text(column, row, str(count) if count else "", ha="center", va="center", fontsize=8)
        ax.set_xticks(range(len(columns)), [spelt(c) for c in columns], rotation=60, ha="right", fontsize=7)
        ax.set_yticks(range(len(rows)), [spelt(r) for r in rows], fontsize=7)
        edges = "L-A1, Acom, 3rd-A2, R-A1" if part == "anterior" else "L-Pcom, L-P1, R-P1, R-Pcom"
        ax.set_title(f"{part}: {edges}", fontsize=8)
        ax.set_xlabel("predicted", fontsize=8)
        ax.set_ylabel("true", fontsize=8)
    save_figure(figure, path)


def spelt(variant):
    """A variant as 0 and 1, or what stands for none."""
    return variant if isinstance(variant, str) else "".join(map(str, variant))


def coloured(labels, affine):
    """Label map from above, the topmost label in its colour. Shapes: -> (rows, columns, 3) uint8"""
    array, spacing = canonical(labels, affine)
    top = array.shape[2] - 1 - (array[:, :, ::-1] > 0).argmax(axis=2)
    flat = np.take_along_axis(array, top[..., None], axis=2)[..., 0]
    palette = np.array([(0, 0, 0), *map(to_rgb, COLOURS)])
    picture = (255 * palette[flat]).astype(np.uint8)[::-1, ::-1].transpose(1, 0, 2)
    size = np.rint(np.array(flat.shape) * spacing[:2] / min(spacing[:2])).astype(int)
    scale = max(1, round(240 / max(size)))
    return np.asarray(Image.fromarray(picture).resize(tuple(int(n) for n in size * scale), Image.NEAREST))


def draw_worst(results, cases, read, path):
    """The cases with the lowest average Dice: truth and prediction from above."""
    worst = sorted(results, key=lambda name: results[name]["scores"]["Dice_ClsAvgDice"])[:WORST]
    figure, axes = new_axes(2, len(worst), width=3.2, height=3.0)
    for row, name in zip(np.reshape(axes, (-1, 2)), worst, strict=True):
        true, predicted, spacing = read(cases[name])
        for ax, labels, side in zip(row, (true, predicted), ("truth", "prediction"), strict=True):
            ax.imshow(coloured(labels, np.diag([*spacing, 1])))
            ax.set_axis_off()
            score = results[name]["scores"]
            about = f"Dice {score['Dice_ClsAvgDice']:.2f}, HD95 {score['HD95_ClsAvgHD95']:.0f} mm"
            ax.set_title(f"{name}: {side}\n{'' if side == 'truth' else about}", fontsize=8)
            ax.text(0.02, 0.5, "R", color="white", transform=ax.transAxes, fontsize=9)
    patches = [Patch(color=COLOURS[c - 1], label=name) for c, name in NAMES.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=8, facecolor="lightgrey")
    save_figure(figure, path)


def write_report(results, cases, folder, read):
    """Write scores.json, scores.csv, summary.md, classes.png, variants.png and worst.png.

    Args:
        results: {case: what `score_files` gives}.
        cases: {case: (path of the truth, path of the prediction)}.
        folder: A new folder.
        read: Function of such a pair of paths: (truth, prediction, spacing).

    Returns:
        The tables, as Markdown.
    """
    summary = summarise(results)
    text = as_markdown(summary, len(results))
    write_json(folder / "scores.json", {"cases": results, "summary": summary})
    write_csv(results, folder / "scores.csv")
    with atomic_path(folder / "summary.md") as part:
        part.write_text(text, encoding="utf-8")
    draw_classes(results, folder / "classes.png")
    draw_variants(results, folder / "variants.png")
    draw_worst(results, cases, read, folder / "worst.png")
    return text
