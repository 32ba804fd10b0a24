"""What the numbers say, in words: one answer to each question that a reader has."""

from MedicalNet.comparing import named

QUESTIONS = {
    "realistic": "Do they look like real volumes?",
    "diverse": "Are they as diverse?",
    "copies": "Are any of them copies?",
    "anatomy": "Is the anatomy right?",
    "enough": "Are there enough volumes to tell?",
}
# The numbers that an answer rests on, the first two or three that there are.
SHOWN = {
    "realistic": ("FID", "MD", "precision", "AUC-PRD"),
    "diverse": ("coverage", "recall", "MS-SSIM-generated"),
    "anatomy": ("W1-vessel-volume-ml", "W1-radius-mm", "W1-branches"),
}
MOST_SHOWN = 3
FEW = 100  # volumes of a set; below, a Frechet distance of hundreds of dimensions says little
VESSELS = 0.9  # share of volumes in which vessels must be found


def verdicts(record):
    """Answers from what metrics.json holds.

    Args:
        record: With metrics, copies, vessels, real and generated.

    Returns:
        [{"question", "answer", "state", "numbers"}]; state is good, bad or unknown, numbers are names.
    """
    metrics, found = record["metrics"], []
    for topic in ("realistic", "diverse"):
        names = [named(name, record["embedding"]) for name in SHOWN[topic]]
        of_topic = [name for name, m in metrics.items() if m.get("question") == topic and m.get("equal_n")]
        names = [name for name in names if name in metrics][:MOST_SHOWN]
        found.append(by_floor(topic, metrics, of_topic, names))
    found.append(of_copies(record))
    found.append(of_anatomy(record))
    found.append(of_numbers(record))
    return found


def answer(topic, state, text, names=()):
    """One verdict."""
    return {"question": QUESTIONS[topic], "state": state, "answer": text, "numbers": list(names)}


def by_floor(topic, metrics, judged, names):
    """Verdict on what can be compared with real volumes at equal n."""
    if not judged:
        return answer(topic, "unknown", "Not told: there is no floor of real against real volumes.", names)
    outside = [name for name in judged if metrics[name]["equal_n"]["outside"]]
    if not outside:
        text = f"All {len(judged)} numbers are as between real volumes."
        return answer(topic, "good", text, names)
    text = f"No: {len(outside)} of {len(judged)} numbers are worse than between real volumes."
    shown = [name for name in names if name in outside] + [name for name in names if name not in outside]
    return answer(topic, "bad", text, shown)


def of_copies(record):
    """Verdict on copies of real volumes."""
    metrics, number = record["metrics"], record["generated"]["n"]
    names = [name for name in metrics if name.startswith("nearest-real") or name in ("C_T", "authenticity")]
    if "copies" not in record["settings"]["metrics"]:
        return answer("copies", "unknown", "Not looked for.", names)
    if record["copies"]:
        text = f"Yes: {len(record['copies'])} of {number} are copies of real volumes, plain or nearly."
        return answer("copies", "bad", text, names)
    closer = metrics.get("C_T", {}).get("value")
    if closer is not None and closer < -2:
        text = f"Perhaps: they lie nearer to the training volumes than held-out ones do (C_T {closer:.1f})."
        return answer("copies", "bad", text, names)
    return answer("copies", "good", f"No plain or near copy among {number}. This is no proof.", names)


def of_anatomy(record):
    """Verdict on the vessels."""
    metrics, vessels = record["metrics"], record["vessels"]
    judged = [name for name in metrics if name.startswith("W1-")]
    if not judged:
        return answer("anatomy", "unknown", "Not measured.")
    names = [name for name in SHOWN["anatomy"] if name in judged]
    for which in ("real", "generated"):
        number = record[which]["n"]
        if vessels[which] < VESSELS * number:
            text = f"No: vessels were found in {vessels[which]} of the {number} {which} volumes alone."
            return answer("anatomy", "bad", text, names)
    with_floor = [name for name in judged if metrics[name].get("equal_n")]
    return by_floor("anatomy", metrics, with_floor, names)


def of_numbers(record):
    """Verdict on how many volumes there are."""
    real, generated = record["real"]["n"], record["generated"]["n"]
    text = f"{real} real and {generated} generated volumes"
    if min(real, generated) < FEW:
        return answer("enough", "bad", f"Few: {text}; below {FEW}, only large differences can be seen.")
    return answer("enough", "good", f"{text[0].upper()}{text[1:]}.")
