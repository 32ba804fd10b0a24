"""What every number measures, for a reader who never met it, and how much worse than real it is."""

from MedicalNet.comparing import NUMBERS, named

# What a number measures, by its name with the published weights.
MEANINGS = {
    "FID": "Distance of the axial slices of both sets, as a network sees them",
    "FID-coronal": "Distance of the coronal slices of both sets, as a network sees them",
    "FID-sagittal": "Distance of the sagittal slices of both sets, as a network sees them",
    "FID-inf": "Distance of the axial slices, as it would be with endlessly many volumes",
    "KID": "Distance of the axial slices that does not depend on how many volumes there are",
    "FID-RadImageNet": "Distance of the axial slices, as a network sees them that knows radiological images",
    "KID-RadImageNet": "The same, not depending on how many volumes there are",
    "MD": "Distance of the whole volumes of both sets, as a network sees them in 3D",
    "MD-inf": "Distance of the whole volumes, as it would be with endlessly many of them",
    "KD-volume": "Distance of the whole volumes that does not depend on how many there are",
    "energy": "How much further generated volumes are from real ones than those of one set from each other",
    "sliced-W1": "Difference along every direction of the features, for which few volumes are enough",
    "energy-placed": "The same of features that know where in the plane they are: tells what is misplaced",
    "energy-OpenMind": "The same as energy, by a second network, which has seen brain MRI alone",
    "sliced-W1-OpenMind": "The same as sliced-W1, by the network that has seen brain MRI alone",
    "FD-OpenMind": "Distance of the whole volumes, as the network sees them that has seen brain MRI alone",
    "energy-radiomics": "The same as energy, of measured brightness and texture and not of a network",
    "FRD": "Distance of both sets by measured brightness and texture, on a logarithmic scale",
    "AUC-PRD": "How much the two distributions overlap, from 0, nowhere, to 1, everywhere",
    "precision": "Share of the generated volumes that lie among real ones",
    "recall": "Share of the real volumes that lie among generated ones",
    "density": "How many real volumes lie around a generated one, 1 being as many as around a real one",
    "coverage": "Share of the real volumes that have a generated one close by",
    "nearest-real": "Distance from a generated volume to the nearest real one, over that between real ones: "
    "far below 1 they may be copies, far above 1 they are unlike",
    "MS-SSIM-real": "Mean similarity of two real volumes, from 0 to 1, equal",
    "MS-SSIM-generated": "Mean similarity of two generated volumes, from 0 to 1, equal: higher than the real "
    "ones' is too uniform",
    "Vendi-real": "How many truly different volumes the real set holds",
    "Vendi-generated": "How many truly different volumes the generated set holds: fewer than the real one is "
    "too uniform",
    "W1-vessel-volume-ml": "Difference in how much vessel there is in a volume, ml",
    "W1-components": "Difference in how many separate pieces the vessels are in",
    "W1-centreline-mm": "Difference in the length of all vessels of a volume, mm",
    "W1-branches": "Difference in the number of branches",
    "W1-asymmetry": "Difference in how unequal the vessels of left and right are",
    "W1-radius-mm": "Difference in the radius of the vessels, mm",
    "W1-branch-length-mm": "Difference in the length of a branch, mm",
    "C_T": "Are generated volumes as far from the training volumes as unseen ones? Far below 0 they are "
    "nearer, as copies are",
    "authenticity": "Share of the generated volumes that are further from a training volume than that is "
    "from another",
}
BETTER = {
    "lower": "lower is better",
    "higher": "higher is better",
    "near 1": "best near 1",
    "near 0": "best near 0",
    "as real": "best as that of real volumes",
    "as held-out": "best as that of unseen volumes",
    "-": "what the generated ones' is compared with",
}
EMBEDDINGS = ("pretrained", "random")
PLAIN = {named(number.name, one): number.name for number in NUMBERS for one in EMBEDDINGS}
SHARES = ("AUC-PRD", "precision", "recall", "coverage")  # cannot be told more finely than 1 / n


def meaning(name, entry):
    """One line on a number: what it measures, and whether high or low is good.

    Args:
        name: As in metrics.json.
        entry: Its entry there.
    """
    told = MEANINGS.get(PLAIN.get(name, name), entry.get("estimand", ""))
    return f"{told}; {BETTER.get(entry['better'], entry['better'])}."


def wrong_side(name, entry):
    """Standard deviations between a number at equal n and that of real halves; above 0 it is worse than they.

    Args:
        name, entry: As for `meaning`; without a floor it is minus infinity.
    """
    equal = entry.get("equal_n")
    if not equal:
        return float("-inf")
    counts = PLAIN.get(name, name) in SHARES or entry.get("counts")
    least = 1 / equal["n"] if counts else 0
    one = max(equal["floor_standard_deviation"], least)
    away = equal["mean"] - equal["floor_mean"]
    away = {"lower": away, "higher": -away}.get(entry["better"], abs(away))
    return away / one if one else float("inf") if away > 0 else 0.0
