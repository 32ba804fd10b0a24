"""What readers answered in a visual Turing test, and what it says."""

import json
from pathlib import Path

from volumetric.cli import UserError
from volumetric.files import as_damaged, write_json
from volumetric.pages import rows_of, three, write_page
from volumetric.rates import CONFIDENCE, wilson

import numpy as np
from scipy import stats

from trust.rates import (
    auc_delong,
    detectability,
    equivalence,
    fleiss_kappa,
    normal_interval,
    power_of_equivalence,
)

MARGIN = 0.1  # around one half, of the test of equivalence
RESAMPLES = 2000


def checksum(text):
    """FNV-1a of a text, 32 bits, as the page computes it."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) % 2**32
    return value


def as_script(value):
    """JSON as JavaScript writes it: no spaces, whole numbers without a point."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{as_script(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_script, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def read_answers(folder, key_path):
    """({reader: answers in order}, key) of the files that readers saved.

    Raises:
        UserError: A file was changed, is not whole, or of another page.
    """
    with as_damaged("give the key.json of the page", key_path):
        key = json.loads(Path(key_path).read_text(encoding="utf-8"))
        order = key["order"]
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise UserError(f"--results {folder} holds no .json file: put the readers' files there.")
    readers = {}
    for path in paths:
        with as_damaged("ask the reader for the file as the page saved it", path):
            told = json.loads(path.read_text(encoding="utf-8"))
            body = {name: told[name] for name in ("page", "reader", "answers")}
            given = [one["id"] for one in told["answers"]]
        if checksum(as_script(body)) != told.get("checksum"):
            raise UserError(f"{path} was changed after the page saved it: ask the reader for the file.")
        if told["page"] != key["page"]:
            raise UserError(f"{path} is of another page than {key_path}: give its key.")
        if given != order:
            raise UserError(f"{path} has {len(given)} of {len(order)} answers: ask the reader to finish.")
        if told["reader"] in readers:
            raise UserError(f"{path} is a second file of {told['reader']}: keep one.")
        readers[told["reader"]] = told["answers"]
    return readers, key


def table_of(answers, key):
    """One reader's first answer to every item, in the key's order, and the second ones.

    Returns:
        (said synthetic (items,), confidence (items,), seconds (answers,), {item: second answer}).
    """
    first, second = {}, {}
    for one in answers:
        (second if one["id"] in first else first)[one["id"]] = one
    said = np.array([first[name]["answer"] == "synthetic" for name in key["items"]])
    sure = np.array([first[name]["confidence"] for name in key["items"]], float)
    seconds = np.array([one["seconds"] for one in answers], float)
    return said, sure, seconds, {name: one["answer"] == "synthetic" for name, one in second.items()}


def of_reader(said, sure, truth):
    """Accuracy, sensitivity, specificity, d', AUC and tests of one reader, or of all as one.

    Shapes: (items,) bool, (items,), (items,) bool, True for synthetic.
    """
    number, hits = len(truth), int((said == truth).sum())
    of_kind = [
        (int((said & truth).sum()), int(truth.sum())),
        (int((~said & ~truth).sum()), int((~truth).sum())),
    ]
    signed = np.where(said, sure, -sure)
    auc, error = auc_delong(signed[truth], signed[~truth])
    return {
        "n": number,
        "accuracy": hits / number,
        "accuracy_95": wilson(hits, number),
        "p": float(stats.binomtest(hits, number).pvalue),
        "sensitivity": of_kind[0][0] / of_kind[0][1],
        "sensitivity_95": wilson(*of_kind[0]),
        "specificity": of_kind[1][0] / of_kind[1][1],
        "specificity_95": wilson(*of_kind[1]),
        **detectability(of_kind[0][0], of_kind[0][1], of_kind[1][1] - of_kind[1][0], of_kind[1][1]),
        "auc": auc,
        "auc_95": normal_interval(auc, error),
        "equivalence_p": equivalence(hits, number, MARGIN),
        "power": power_of_equivalence(number, MARGIN),
    }


def summarise(readers, key, seed):
    """{"readers": {reader: numbers}, "pooled", "agreement", "indistinguishable", ...} of all answers."""
    truth = np.array([item["kind"] == "generated" for item in key["items"].values()])
    tables = {name: table_of(answers, key) for name, answers in readers.items()}
    found = {}
    for name, (said, sure, seconds, second) in tables.items():
        names = list(key["items"])
        same = [said[names.index(item)] == again for item, again in second.items()]
        found[name] = of_reader(said, sure, truth) | {"median_seconds": float(np.median(seconds))}
        found[name] |= {"repeats": len(same), "repeated_alike": float(np.mean(same)) if same else None}
    said = np.stack([table[0] for table in tables.values()], axis=1)  # (items, readers)
    right = said == truth[:, None]
    rng, draws = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        rows = rng.integers(right.shape[0], size=right.shape[0])
        columns = rng.integers(right.shape[1], size=right.shape[1])
        draws.append(right[np.ix_(rows, columns)].mean())
    tail = 100 * (1 - CONFIDENCE) / 2
    pooled = {"accuracy": float(right.mean()), "readers": right.shape[1], "items": len(truth)}
    pooled["accuracy_95"] = np.percentile(draws, (tail, 100 - tail)).tolist()
    kappa, agreement = fleiss_kappa(said.astype(int), 2) if said.shape[1] > 1 else (None, None)
    low, high = np.percentile(draws, (5, 95))
    inside = bool(low > 0.5 - MARGIN and high < 0.5 + MARGIN)
    return {
        "readers": found,
        "pooled": pooled,
        "fleiss_kappa": kappa,
        "agreement": agreement,
        "margin": MARGIN,
        "indistinguishable": inside,
        "check": key["check"],
        "page": key["page"],
        **{name: key[name] for name in ("contents", "trained_on", "treatment") if name in key},
    }


def told_of_training(number, shown):
    """In words, how many of the real volumes shown the generator was trained on; None is not known."""
    if number is None:
        return "It is not known whether the generator was trained on the real volumes shown"
    return f"The generator was trained on {number} of the {shown} real volumes shown"


def write_scores(record, folder):
    """turing.json and report.html."""
    write_json(folder / "turing.json", record)
    pooled = record["pooled"]
    told = f"{pooled['readers']} readers, {pooled['items']} volumes: accuracy {around(pooled, 'accuracy')}"
    words = "It is not shown that readers cannot tell them apart"
    if record["indistinguishable"]:
        words = "Readers cannot tell them apart, within 10 points of chance"
    rows = []
    for name, one in record["readers"].items():
        rows.append([name, *(around(one, s) for s in ("accuracy", "sensitivity", "specificity", "auc"))])
        rows[-1] += [one[s] for s in ("p", "dprime", "criterion", "equivalence_p", "power", "median_seconds")]
        rows[-1].append("-" if one["repeated_alike"] is None else one["repeated_alike"])
    head = ["reader", "accuracy", "synthetic called so", "real called so", "AUC of confidence", "p (chance)"]
    head += ["d'", "criterion", "p (equivalence)", "its power", "median s", "repeats alike"]
    agree = ""
    if record["fleiss_kappa"] is not None:
        kappa = three(record["fleiss_kappa"])
        agree = f"<p>Agreement of readers: {record['agreement']:.0%}, Fleiss' kappa {kappa}.</p>"
    body = [
        f'<div class="verdicts"><div class="verdict"><h3>{words}</h3><p>{told}.</p></div></div>',
        rows_of(head, rows),
        agree,
        f"<p>{told_of_training(record.get('trained_on'), pooled['items'] // 2)}.</p>",
        f"<p>{record['treatment']['told']}</p>" if "treatment" in record else "",
        '<p class="small">Brackets are 95 % intervals: Wilson of shares, DeLong of the AUC; of all readers '
        "by drawing readers and volumes again. p (chance) is the exact binomial test against one half. "
        "Equivalence is shown where two one-sided tests find the accuracy within 10 points of one half (p "
        "below 0.05); its power is the probability of that if the accuracy is one half.</p>",
    ]
    write_page(folder / "report.html", "Can readers tell real from synthetic volumes?", "\n".join(body))


def around(one, name):
    """A share and its interval, as text: 0.54 [0.45, 0.63]."""
    low, high = one[f"{name}_95"]
    return f"{one[name]:.2f} [{low:.2f}, {high:.2f}]"
