"""Pages of the gate and of the membership test."""

from volumetric.files import array_to_volume
from volumetric.names import unique_names
from volumetric.pages import drawing, picture, rows_of, section, three, write_page
from volumetric.pictures import annotated, new_axes

import numpy as np

from trust import STATES
from trust.similarity import SHIFT

SUSPICIOUS = 10  # generated volumes shown beside their training volume
BINS = 30
PRIVATE = "This page holds pictures and names of real volumes: --share True leaves them out."
COLOURS = {"held_out": "#1f6f8b", "generated": "#d1603d", "planted": "#777777"}
WORDS = {"held_out": "unseen real", "generated": "generated", "planted": "planted copies"}


def verdict_card(title, state, lines):
    """A card with a title and sentences."""
    told = "".join(f"<li>{line}.</li>" for line in lines)
    return f'<div class="verdicts"><div class="verdict {state}"><h3>{title}</h3><ul>{told}</ul></div></div>'


def views_of(volume, caption):
    """Planes and projections of a Volume with a caption. Shapes: -> (H, W) uint8"""
    return annotated(array_to_volume(volume.read()), np.diag([*volume.spacing, 1]), caption)


def write_replicas(record, sets, tables, folder):
    """report.html of the gate.

    Args:
        record: What replicas.json holds.
        sets: {"training", "held_out", "generated": [Volume]}.
        tables: {"held_out", "generated": table_of, "planted": {kind: table_of}}.
        folder: Where to write.
    """
    share, n = record["settings"]["share"], record["n"]
    labels = {}
    for name in ("training", "generated"):
        labels |= unique_names([volume.path for volume in sets[name]])
    called = {str(path): label for path, label in labels.items()}
    words = {"passed": "Passed: no replica was found", "failed": "Failed: too close to the training set"}
    title = words.get(record["verdict"], "Inconclusive: the gate does not see copies well enough")
    body = [verdict_card(title, STATES[record["verdict"]], record["reasons"] or [chance(record)])]
    body += ["" if share else f'<p class="warning">{PRIVATE}</p>', f"<p>{rates(record)}</p>"]
    body.append("<h2>How similar</h2>" + drawing(histograms(tables, record)))
    body.append(f"<h2>Copies that were planted</h2>{control_table(record['controls'])}")
    negative = record["negative_control"]
    body.append(
        f'<p class="small">Negative control: of one half of the unseen volumes, {negative["n"]}, judged by '
        f"the other half, {negative['flagged']} are flagged (at {negative['rate']:.3g} by each).</p>"
    )
    flagged = [
        [
            called[row["generated"]],
            "" if share else called[row["training"]],
            *(row[name] for name in ("statistic", "similarity", "p")),
        ]
        for row in record["flagged"]
    ]
    head = ["generated", "training", "similarity by", "similarity", "p"]
    body.append("<h2>Flagged volumes</h2>" + (rows_of(head, flagged) if flagged else "<p>None.</p>"))
    body.append(suspicious(sets, labels, tables["generated"], share))
    body.append(
        f'<p class="small">{n["training"]} training, {n["held_out"]} unseen, {n["generated"]} generated '
        f"volumes; similarities are the largest over both mirror states and shifts up to {SHIFT} voxels; p "
        f"is conformal.</p>"
    )
    write_page(folder / "report.html", "Are there replicas of training volumes?", "\n".join(body))


def chance(record):
    """What a passed gate says of the flagged ones."""
    counts = ", ".join(f"{count} by {name}" for name, count in record["flagged_each"].items())
    return f"flagged: {counts}; chance explains up to {record['explained_by_chance']} each"


def rates(record):
    """What false-alarm rate the thresholds have, and how sure that is."""
    t, alpha = record["threshold"], record["settings"]["alpha"]
    short = "" if t["attains_alpha"] else f" (the {alpha:g} asked for, of all together, needs more)"
    closer = record["closer_to_training"]
    low, high = closer["interval_95"]
    return (
        f"{t['held_out']} unseen volumes allow a false-alarm rate of {t['rate_of_each']:.3g} for each "
        f"similarity{short}; given these volumes it is {t['realised_mean']:.3g} on average and below "
        f"{t['realised_95_limit']:.3g} with 95 % confidence. {closer['share']:.0%} [{low:.0%}, {high:.0%}] "
        f"of the generated volumes are closer to the training set than to as many unseen volumes; 50 % is "
        f"chance."
    )


def control_table(controls):
    """Recall of every kind of planted copy."""
    rows = []
    for kind, row in controls.items():
        low, high = row["interval_95"]
        state = "" if not row["required"] else "good" if row["recall"] >= 0.9 else "bad"
        mark = ("required" if row["required"] else "", state)
        around = f"{three(row['recall'])} [{three(low)}, {three(high)}]"
        rows.append([kind, mark, around, row["named"], *row["by"].values()])
    head = ["copy", "", "found (95 %)", "right volume", *(f"by {name}" for name in row["by"])]
    return rows_of(head, rows)


def histograms(tables, record):
    """Similarities of unseen, generated and copied volumes, with the threshold."""
    figure, plots = new_axes(len(tables["held_out"]), width=3.8, height=2.8)
    for one, name in zip(plots, tables["held_out"], strict=True):
        values = {which: tables[which][name][0] for which in ("held_out", "generated")}
        values["planted"] = np.concatenate([table[name][0] for table in tables["planted"].values()])
        ends = [min(map(np.min, values.values())), max(map(np.max, values.values()))]
        edges = np.linspace(ends[0], max(ends[1], ends[0] + 1e-3), BINS + 1)
        for which, v in values.items():
            part = np.histogram(v, edges)[0] / len(v)
            one.stairs(part, edges, color=COLOURS[which], fill=True, alpha=0.45, label=WORDS[which])
        one.axvline(record["threshold"]["value"][name], color="0.3", linestyle=":", linewidth=1)
        one.set(xlabel=f"largest similarity: {name}", ylabel="share")
    plots[0].legend(frameon=False, fontsize=8)
    return figure


def suspicious(sets, labels, found, share):
    """The generated volumes that are most similar to a training volume, beside it."""
    values, matches = found["anatomy"]
    figures = []
    for n in np.argsort(-values, kind="stable")[:SUSPICIOUS]:
        made, real = sets["generated"][n], sets["training"][matches[n]]
        both = [views_of(made, labels[made.path])]
        both += [] if share else [views_of(real, f"training: {labels[real.path]}")]
        figures.append(picture(np.concatenate(both), f"similarity {three(values[n])}"))
    return section("The most similar pairs, by anatomy", figures)


def write_membership(record, scores, folder):
    """report.html of the membership test.

    Args:
        record: What membership.json holds.
        scores: {"training", "held_out": (n,)}, of the volumes that were compared.
        folder: Where to write.
    """
    low, high = record["auc_minus_control_95"]
    told = f"AUC {three(record['auc'])}; random halves of the training volumes {three(record['control_auc'])}"
    told += f"; the difference is between {three(low)} and {three(high)} (95 %)"
    power, each = record["power"], record["n"]["each"]
    seen = f"{told_of_power(power)} ({power['copies']} of {each})"
    others = ", ".join(f"{share}: {found:.0%}" for share, found in power["of_other_shares"].items())
    titles = {"passed": "Members are not told from others", "failed": "Members can be told"}
    title = titles.get(record["verdict"], "Inconclusive: nothing is found, and it may not have been found")
    figure, (one,) = new_axes(width=5.2, height=2.8)
    edges = np.linspace(*(f(np.concatenate(list(scores.values()))) for f in (np.min, np.max)), BINS + 1)
    for which, label in (("training", "training"), ("held_out", "unseen")):
        part = np.histogram(scores[which], edges)[0] / len(scores[which])
        colour = COLOURS["generated" if which == "training" else which]
        one.stairs(part, edges, fill=True, alpha=0.45, color=colour, label=label)
    one.set(xlabel="similarity to the generated volumes, minus that to other real ones", ylabel="share")
    one.legend(frameon=False, fontsize=8)
    rows = [
        ["AUC (DeLong 95 %)", around(record["auc"], record["auc_delong_95"])],
        ["random halves of the training volumes, AUC", around(record["control_auc"], record["control_95"])],
        ["p of the AUC less its control", record["p_auc"]],
        [f"members above all but {record['false_positives']} unseen ones", record["true_positive_rate"]],
        ["p of these (exact)", record["p_tail"]],
        [f"p of both, flagged up to {record['level']:g}", record["p"]],
        ["copies that would be flagged (95 %)", around(power["flagged"], power["interval_95"])],
        ["the same, of other shares of the members", others],
        ["training against unseen volumes without generated ones, AUC", record["split"]["auc"]],
        ["p of it (Mann-Whitney)", record["split"]["p"]],
        ["volumes on each side", record["n"]["each"]],
    ]
    if record["n"]["left_of_training"]:
        rows.append(
            ["training volumes of the generator that were not given", record["n"]["left_of_training"]]
        )
    if record["inversion"]:
        inversion = record["inversion"]
        what = f"AUC by how well the generator reproduces {inversion['n']} of each"
        rows.append([what, around(inversion["auc"], inversion["auc_delong_95"])])
    body = [
        verdict_card(title, STATES[record["verdict"]], [*record["reasons"], told, seen]),
        drawing(figure),
        rows_of(["", ""], rows),
        '<p class="small">0.5 is chance. All p but the last are one-sided; that of both is Bonferroni\'s. A '
        "test that finds nothing and would not have found the planted copies is inconclusive.</p>",
    ]
    write_page(folder / "report.html", "Can members of the training set be told?", "\n".join(body))


def told_of_power(power):
    """In words, whether copies would have been seen."""
    share = f"{100 * power['share']:g} %"
    return f"copies of {share} of the members would be flagged in {power['flagged']:.0%} of runs"


def around(value, interval):
    """A value and its interval, as text: 0.54 [0.45, 0.63]."""
    return f"{three(value)} [{three(interval[0])}, {three(interval[1])}]"
