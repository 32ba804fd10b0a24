"""Which volumes look wrong: by their registration, what the scan covers, and the vessels in the region."""

from volumetric.files import read_json

from preprocessing import books
from preprocessing.region import Vessels
from preprocessing.registration import SWAPPED, Fit, sides_can_be_told

LEAST_COVERED = 0.9  # of the region, by the scan


def judge(config, rows):
    """Flag what looks wrong, and move every volume to where it belongs; rows are brought up to date.

    Left and right can be told apart where the scans agree on which side of the template is which: then one
    that disagrees has its sides swapped.
    """
    folder = config.folder
    done = [name for name, row in rows.items() if row["step"] == "done"]
    accepted = books.read_names(folder / "accept.txt", rows)
    records = {name: books.record_of(folder, name) for name in done}
    told = sides_can_be_told([record["fit"]["mirrored"] for record in records.values()])
    for name, record in records.items():
        fit, covered = Fit(**record["fit"]), record["coverage"]
        found = fit.problems(config.nmi_gate, config.distinct)
        if covered < LEAST_COVERED:
            found.append(
                f"the scan covers {covered:.0%} of the region, expected at least {LEAST_COVERED:.0%}: its "
                f"slab ends too early, or the region is too large"
            )
        if not found:  # else what lies in the region says nothing
            found += Vessels(**record["vessels"]).problems()
        swapped = told and fit.mirrored > SWAPPED
        found += ["the scan fits better with left and right exchanged"] if swapped else []
        sides = "swapped" if swapped else "right" if told and fit.mirrored else "cannot be told"
        flagged = bool(found) and name not in accepted
        books.place(folder, name, "flagged" if flagged else "volumes")
        reason = "; ".join(found) + (" (accepted)" if found and not flagged else "")
        rows[name] |= {"step": "flagged" if flagged else "done", "sides": sides, "reason": reason}
    for sidecar in sorted((folder / "withdrawn").glob("*.json")):
        name = str(read_json(sidecar).get("subject"))
        if name not in rows:
            rows[name] = books.row_of(name, "", "withdrawn", "no longer in --data: see withdrawn/")
