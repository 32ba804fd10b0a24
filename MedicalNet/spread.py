"""The spread over training seeds: one number of several runs, and how far they lie from each other.

A run is one draw of a training: another seed of the same method, data and networks gives another number. Its
interval between volumes says nothing of that, so the standard deviation between runs stands beside it.
"""

from volumetric.cli import UserError, options_of
from volumetric.files import write_json
from volumetric.tables import write_table

import numpy as np

# Options of a training that change nothing, or rounding alone, in what it learns.
OF_NO_MATTER = {"seed", "device", "cache", "num_workers", "save_every"}


def check_alike(models):
    """Raise a UserError unless models differ in nothing but their seed.

    Args:
        models: {name of a run: its generation.Model}.
    """
    (first, one), *others = models.items()
    for name, other in others:
        named = f"--runs: {first} and {name}"
        apart = sorted(k for k, value in one.settings.items() if other.settings.get(k) != value)
        if apart:
            told = ", ".join(f"{k} {one.settings[k]} and {other.settings.get(k)}" for k in apart)
            raise UserError(
                f"{named} have other networks ({told}): give runs that differ in their seed alone."
            )
        if one.trained_on != other.trained_on or one.class_names != other.class_names:
            numbers = f"{len(one.trained_on)} and {len(other.trained_on)} volumes"
            raise UserError(
                f"{named} were trained on other data ({numbers}): give runs that differ in their seed alone."
            )


def doubts(states, config):
    """Why the spread of runs may not be that of their seeds alone, a text each.

    Args:
        states: {name of a run: its checkpoint}.
        config: RunConfig, whose options are looked at.
    """
    found, settings = [], [state.get("config", {}) for state in states.values()]
    steps = {run: state.get("step") for run, state in states.items()}
    if len(set(steps.values())) > 1:
        told = ", ".join(f"{run} {step}" for run, step in steps.items())
        found.append(f"the runs have made different numbers of steps ({told}).")
    names = options_of(type(config), resumed=True) + options_of(type(config), kept=True)
    apart = [
        n for n in names if n not in OF_NO_MATTER and any(s.get(n) != settings[0].get(n) for s in settings)
    ]
    if apart:
        found.append(f"the runs differ in {', '.join(apart)}: the spread is not that of seeds alone.")
    seeds = [s["seed"] for s in settings if "seed" in s]
    if len(set(seeds)) < len(seeds):
        found.append("some runs have one training seed: they are no draws of their own.")
    return found


def summary(rows):
    """What several runs say together, {number: {mean, standard_deviation, n, interval, kind, better}}.

    The standard deviation is that of runs, by n - 1. `interval` is the mean of the runs' intervals between
    volumes and `kind` which one, interval_95 or spread_95, see `compare`; None where a run has none.

    Args:
        rows: [{"run", "checkpoint", "step", "sha256", "metrics"}], of two runs or more.
    """
    found = {}
    for name in rows[0]["metrics"]:
        results = [row["metrics"][name] for row in rows if name in row["metrics"]]
        values = [r["value"] for r in results if r["value"] is not None]
        around = {kind: [r[kind] for r in results] for kind in ("interval_95", "spread_95")}
        kind = next((k for k, every in around.items() if len(every) == len(rows) and all(every)), None)
        found[name] = {
            "better": results[0]["better"],
            "n": len(values),
            "mean": float(np.mean(values)) if values else None,
            "standard_deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "kind": kind,
            "interval": np.mean(around[kind], axis=0).tolist() if kind else None,
        }
    return found


def write_spread(rows, about, folder):
    """spread.json, as sweep.json with a summary, and spread.csv, with a row for each number."""
    told = summary(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "spread.json", {"checkpoints": rows, "summary": told, **about})
    between = ("mean", "standard_deviation_of_runs", "volumes_from", "volumes_to", "volumes_kind")
    table = []
    for name, one in told.items():
        values = [row["metrics"].get(name, {}).get("value") for row in rows]
        spread = one["mean"], one["standard_deviation"], *(one["interval"] or ("", ""))
        table.append([name, *values, *spread, one["kind"] or ""])
    write_table(folder / "spread.csv", ["number", *(row["run"] for row in rows), *between], table)
