"""What the numbers say, in words: one answer to each question that a reader has."""

from volumetric.rates import CONFIDENCE, wilson

from MedicalNet.comparing import only
from MedicalNet.meanings import wrong_side

QUESTIONS = {
    "realistic": "Do they look like real volumes?",
    "diverse": "Are they as diverse?",
    "copies": "Are any of them copies?",
    "anatomy": "Is the anatomy right?",
    "enough": "Are there enough volumes to tell?",
}
FEW = 100  # volumes of a set; below, a Frechet distance of hundreds of dimensions says little
VESSELS = 0.9  # share of volumes in which vessels must be found


def verdicts(record):
    """Answers from what metrics.json holds.

    Args:
        record: With metrics, copies, vessels, real and generated.

    Returns:
        [{"question", "answer", "state", "numbers"}]; state is good, bad or unknown, numbers are the names of
        those that decided it, the worst first.
    """
    found = [by_floor(topic, record) for topic in ("realistic", "diverse")]
    found.append(of_copies(record))
    found.append(of_anatomy(record))
    found.append(of_numbers(record))
    return found


def answer(topic, state, text, names=()):
    """One verdict."""
    return {"question": QUESTIONS[topic], "state": state, "answer": text, "numbers": list(names)}


def fewest(record):
    """Volumes of the smaller set."""
    return min(record["real"]["n"], record["generated"]["n"])


def few(record):
    """True if there are so few volumes that no answer is sure."""
    return fewest(record) < FEW


def in_order(record):
    """The verdicts as a reader needs them: that there are few volumes comes before all that hangs on it."""
    enough = [v for v in record["verdicts"] if v["question"] == QUESTIONS["enough"]]
    others = [v for v in record["verdicts"] if v["question"] != QUESTIONS["enough"]]
    return enough + others if few(record) else others + enough


def every_number(record):
    """Every number by its name: of the volumes, and of their label maps where these are asked for."""
    return record["metrics"] | (record.get("named_anatomy") or {}).get("rows", {})


def by_floor(topic, record):
    """Verdict on what can be compared with real volumes at equal n."""
    metrics = every_number(record)
    of_topic = [name for name, m in metrics.items() if m.get("question") == topic]
    judged = [name for name in of_topic if metrics[name].get("equal_n")]
    if not judged:
        return answer(topic, "unknown", "Not told: there is no floor of real against real volumes.", of_topic)
    judged.sort(key=lambda name: -wrong_side(name, metrics[name]))
    outside = [name for name in judged if metrics[name]["equal_n"]["outside"]]
    if outside:
        told = f"{len(outside)} of {len(judged)} numbers are worse than between real volumes"
        hedged = f"Probably not: {told}, as far as {fewest(record)} volumes can tell."
        return answer(topic, "bad", hedged if few(record) else f"No: {told}.", outside)
    told = f"ll {len(judged)} numbers are as between real volumes."
    hedged = f"No difference seen, but with {fewest(record)} volumes a small one cannot be told: a{told}"
    return answer(topic, "good", hedged if few(record) else f"A{told}", judged)


def of_copies(record):
    """Verdict on copies of real volumes."""
    metrics, number = record["metrics"], record["generated"]["n"]
    names = [name for name in metrics if name.startswith("nearest-real") or name in ("C_T", "authenticity")]
    if "copies" not in record["settings"]["metrics"]:
        return answer("copies", "unknown", "Not looked for.", names)
    if record["copies"]:  # these decide, and none of the numbers
        text = f"Yes: {len(record['copies'])} of {number} are copies of real volumes, plain or nearly."
        return answer("copies", "bad", text)
    closer = metrics.get("C_T", {}).get("value")
    if closer is not None and closer < -2:
        text = f"Perhaps: they lie nearer to the training volumes than held-out ones do (C_T {closer:.1f})."
        return answer("copies", "bad", text, ["C_T"])
    text = f"No plain or near copy among {number}. This is no proof."
    if few(record):
        most = 1 - (1 - CONFIDENCE) ** (1 / number)  # exact binomial limit of none among so many
        text += f" With {number} volumes, up to {most:.0%} of what the generator makes could be copies."
    return answer("copies", "good", text, names)


def of_anatomy(record):
    """Verdict on the vessels."""
    masks = any(row.get("question") == "anatomy" for row in record["metrics"].values())
    if not masks and not record.get("named_anatomy"):
        return answer("anatomy", "unknown", "Not measured.")
    by_measures = by_floor("anatomy", record)
    lacking = of_lacking(record) if masks else None
    if lacking is not None:
        names = by_measures["numbers"] if by_measures["state"] == "bad" else ()
        return answer("anatomy", "bad", lacking, names)
    told = reliable(record)
    return by_measures | ({"answer": f"{by_measures['answer']} {told}"} if told else {})


def of_lacking(record):
    """That vessels were found in too few volumes of a set; None where they were found in most."""
    for which, found in record["vessels"].items():
        number = record[which]["n"]
        if found < VESSELS * number:
            sure = wilson(found, number)[1] < VESSELS
            told = f"vessels were found in {only(found, number)} {which} volumes"
            return f"{'No' if sure else 'Probably not'}: {told}."
    return None


def reliable(record):
    """How many generated volumes can be segmented as reliably as real ones; "" where nobody knows."""
    row = every_number(record).get("segmentable")
    if row is None:
        return ""
    real, generated = row["real"], row["generated"]
    told = (
        f"{generated['hits']} of {generated['n']} generated volumes can be segmented as reliably as real ones"
    )
    return f"{told} ({generated['share']:.0%}; of other real ones {real['share']:.0%})."


def of_numbers(record):
    """Verdict on how many volumes there are."""
    real, generated = record["real"]["n"], record["generated"]["n"]
    text = f"{real} real and {generated} generated volumes"
    if few(record):
        told = f"Few: {text}; below {FEW}, only large differences can be seen, and every answer is unsure."
        return answer("enough", "bad", told)
    return answer("enough", "good", f"{text[0].upper()}{text[1:]}.")
