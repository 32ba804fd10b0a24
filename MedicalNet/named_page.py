"""The anatomy by name in report.html: the answer, pictures, tables; and the tables beside the report."""

import html

from volumetric.pages import drawing, give_or_take, rows_of, three
from volumetric.pictures import new_axes
from volumetric.tables import write_table

import numpy as np

from MedicalNet.verdicts import reliable

COLOURS = {"real": "#1f6f8b", "generated": "#d1603d"}
MARKS = {"good": "inside", "bad": "outside"}
TITLES = {"artery": "Arteries", "variant": "Variants", "length": "Length, mm", "radius": "Mean radius, mm"}
TITLES |= {"joint": "All regional measures together", "topology": "Topology"}
NOTES = {
    "artery": "How often each is there, and the difference of the two shares; lower is better.",
    "variant": "The same. A1 or P1 is missing where ACA and ICA, or PCA and BA, do not touch; a fetal PCA "
    "has a Pcom and no P1; the ring is closed where all its segments are there.",
    "length": "Medians, and the Wasserstein distance, of the arteries that are there; lower is better.",
    "radius": "The same; the radius is that of a tube of the artery's volume and length.",
    "joint": "Volume, length and radius of every artery in standard deviations of the real set: energy "
    "distance, and squared Wasserstein-2 distance in parts of the number of measures; lower is better.",
    "topology": "Of all arteries as one: separate pieces and loops (Betti numbers 0 and 1), and the share of "
    "generated volumes in which arteries touch that touch in no real one; lower is better.",
}
SHARES = ("reliable", "artery", "variant")
MOST_REASONS = 5
STATED = ("real", "real_low_95", "real_high_95", "generated", "generated_low_95", "generated_high_95")
HEAD = (
    "name",
    "kind",
    *STATED,
    "value",
    "p",
    "p_holm",
    "n_equal",
    "mean_at_equal_n",
    "floor_mean",
    "floor_sd",
)
HEAD = (*HEAD, "outside", "balanced_accuracy")


def write_tables(record, comparison, names, folder, share):
    """named_anatomy.csv, and named_volumes.csv with what the gate says of every volume.

    Args:
        record: What metrics.json holds as `named_anatomy`.
        comparison: named_anatomy.Comparison.
        names: {"real", "generated": names of the volumes}.
        folder: Where to write.
        share: Leave names of real volumes out.
    """
    right = (record["truth"] or {}).get("balanced_accuracy", {})
    rows = []
    for name, row in record["rows"].items():
        equal = row["equal_n"] or {}
        sides = []
        for side in (row.get("real"), row.get("generated")):
            known = side if isinstance(side, dict) else {"share": side, "interval_95": ("", "")}
            sides += [known["share"], *known["interval_95"]]
        of_equal = [equal.get(k) for k in ("n", "mean", "floor_mean", "floor_standard_deviation", "outside")]
        tests = [row["value"], row.get("p"), row.get("p_holm")]
        rows.append([name, row["kind"], *sides, *tests, *of_equal, right.get(name.partition(": ")[2])])
    write_table(folder / "named_anatomy.csv", HEAD, rows)
    if "segmentable" in record["rows"]:
        told = [
            (which, name, which == "real" and bool(comparison.half[n]), not why, "; ".join(why))
            for which, of in comparison.doubts.items()
            if not (share and which == "real")
            for n, (name, why) in enumerate(zip(names[which], of, strict=True))
        ]
        write_table(
            folder / "named_volumes.csv", ("set", "volume", "sets_the_limits", "reliable", "reasons"), told
        )


def named_section(record, comparison):
    """The section of report.html. Arguments as of `write_tables`."""
    rows, truth = record["rows"], record["truth"]
    parts = ["<h2>Anatomy by name</h2>", f"<p>{html.escape(first_answer(rows, comparison))}</p>"]
    parts.append(drawing(frequencies_drawn(rows)))
    if any(row["kind"] == "radius" for row in rows.values()):
        parts.append(drawing(regional_drawn(comparison)))
    for kind, title in TITLES.items():
        of_kind = {name: row for name, row in rows.items() if row["kind"] == kind}
        if of_kind:
            note = html.escape(NOTES[kind])
            parts.append(f'<h3>{title}</h3><p class="small">{note}</p>{table_of(of_kind, truth)}')
    parts.append(f'<p class="small">{html.escape(note_of(record))}</p>')
    return "\n".join(parts)


def first_answer(rows, comparison):
    """How many generated volumes can be segmented reliably, and why others cannot."""
    if "segmentable" not in rows:
        return "There are too few real volumes to tell whether generated ones can be segmented as reliably."
    row = rows["segmentable"]
    low, high = row["generated"]["interval_95"]
    real_low, real_high = row["real"]["interval_95"]
    told = [reliable({"metrics": rows})]
    told.append(f"95 % intervals: {low:.0%} to {high:.0%}, of real ones {real_low:.0%} to {real_high:.0%}.")
    reasons = {}
    for why in comparison.doubts["generated"]:
        for text in why:
            kind = kind_of(text)
            reasons[kind] = reasons.get(kind, 0) + 1
    if reasons:
        most = sorted(reasons.items(), key=lambda item: -item[1])[:MOST_REASONS]
        told.append(f"Why others cannot: {', '.join(f'{text} ({n})' for text, n in most)}.")
    if (row["equal_n"] or {}).get("outside"):
        told.append("So what follows is of label maps that cannot be relied on as those of real volumes can.")
    return " ".join(told)


def kind_of(text):
    """What a reason of the gate is about, without its numbers."""
    words = text.split(",")[0]
    if " ml of " in words:
        return f"volume of {words.split(' ml of ')[1]}"
    if " pieces" in words:
        return f"pieces of {words.split(' in ')[0]}".replace("of all", "of all as one")
    return words.split(" below")[0]


def frequencies_drawn(rows):
    """Shares of both sets with their intervals, a line for every artery and variant."""
    kinds = [[name for name, row in rows.items() if row["kind"] == kind] for kind in ("artery", "variant")]
    kinds = [names for names in kinds if names]
    figure, plots = new_axes(columns=len(kinds), width=4.6, height=0.24 * max(map(len, kinds)) + 1.2)
    for one, names in zip(plots, kinds, strict=True):
        for shift, (which, colour) in zip((-0.16, 0.16), COLOURS.items(), strict=True):
            shares = np.array([rows[name][which]["share"] for name in names])
            around = np.array([rows[name][which]["interval_95"] for name in names])
            reach = np.abs(around - shares[:, None]).T
            places = np.arange(len(names)) + shift
            one.errorbar(
                shares, places, xerr=reach, fmt="o", color=colour, markersize=4, linewidth=1.2, label=which
            )
        one.set_yticks(range(len(names)), [name.partition(": ")[2] for name in names], fontsize=8)
        one.set(xlabel="share of volumes, 95 %", xlim=(-0.03, 1.03), ylim=(len(names) - 0.4, -0.6))
        one.grid(axis="x", color="0.9")
    plots[0].legend(frameon=False, fontsize=8, loc="center left")
    return figure


def regional_drawn(comparison):
    """Medians and middle halves of radius and length of every artery, in both sets."""
    sets = {"real": comparison.real, "generated": comparison.generated}
    found = {which: one.regional(comparison.least) for which, one in sets.items()}
    some = [np.isfinite(one["length"]).any(axis=0) for one in found.values()]
    shown = np.flatnonzero(some[0] | some[1])
    names = [comparison.real.names[n] for n in shown]
    figure, plots = new_axes(columns=2, width=4.6, height=0.24 * len(names) + 1.2)
    for one, kind in zip(plots, ("radius", "length"), strict=True):
        for shift, (which, colour) in zip((-0.16, 0.16), COLOURS.items(), strict=True):
            columns = [v[np.isfinite(v)] for v in found[which][kind].T[shown]]
            known = [n for n, v in enumerate(columns) if len(v)]
            quartiles = np.array([np.percentile(columns[n], (25, 50, 75)) for n in known]).reshape(-1, 3)
            reach = np.abs(quartiles[:, [0, 2]] - quartiles[:, [1]]).T
            places = np.array(known) + shift
            one.errorbar(
                quartiles[:, 1], places, xerr=reach, fmt="o", color=colour, markersize=4, linewidth=1.2
            )
        one.set_yticks(range(len(names)), names, fontsize=8)
        one.set(xlabel=f"{kind} (mm): median, quartiles", ylim=(len(names) - 0.4, -0.6))
        one.grid(axis="x", color="0.9")
    return figure


def table_of(rows, truth):
    """Rows of one kind."""
    shares = next(iter(rows.values()))["kind"] in SHARES
    right = (truth or {}).get("balanced_accuracy", {}) if shares else {}
    head = [
        "",
        "real",
        "generated",
        *(["p"] if shares else ["difference"]),
        "",
        "at equal n",
        "real against real",
    ]
    table = []
    for name, row in rows.items():
        equal, floor = row["equal_n"], ("", "", "")
        if equal:
            state = "bad" if equal["outside"] else "good"
            mean = give_or_take(equal["mean"], equal["standard_deviation"])
            of_real = give_or_take(equal["floor_mean"], equal["floor_standard_deviation"])
            floor = ((MARKS[state], state), f"{mean} (n = {equal['n']})", of_real)
        sides = [told(row.get(which)) for which in ("real", "generated")]
        middle = row["p_holm"] if shares else ("none" if row["value"] is None else float(row["value"]))
        more = [right.get(name.partition(": ")[2], "")] if right else []
        table.append([name.partition(": ")[2], *sides, middle, *floor, *more])
    return rows_of(head + (["right"] if right else []), table)


def told(side):
    """A share with its interval, or a median."""
    if isinstance(side, dict):
        low, high = side["interval_95"]
        return f"{side['share']:.2f} [{low:.2f}, {high:.2f}]"
    return "" if side is None else three(side)


def note_of(record):
    """How the numbers of the section are meant."""
    rule = record["presence"]
    note = (
        f"{rule[0].upper()}{rule[1:]}. Real and generated: shares with Wilson's 95 % intervals, or medians. "
    )
    note += "p: Fisher's exact test, after Holm's correction over all arteries and variants. "
    note += "At equal n: as in the tables above; of shares, their difference without its sign."
    strangers = record["rows"]["topology: strangers"]["pairs"]
    if strangers:
        listed = ", ".join(
            f"{pair} ({n})" for pair, n in sorted(strangers.items(), key=lambda item: -item[1])
        )
        note += f" Arteries that touch in no real volume, and in how many generated ones they do: {listed}."
    truth = record["truth"]
    if truth and truth["varying"]:
        tried = truth["mean_by_least_mm3"].items()
        listed = ", ".join(f"{least} mm3 {three(value)}" for least, value in tried)
        note += " Right: balanced accuracy, the mean share of right answers where the truth has it and where "
        note += f"not. Its mean over what not every real volume has, by the least size of a label: {listed}."
    return note
