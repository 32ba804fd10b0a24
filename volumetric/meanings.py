"""What the numbers of a GAN's training mean, by its loss and penalty; for the run's page."""

import math

from volumetric.run_page import Meaning

AT_0 = (
    "0 for long: D has won: lower --ttur_mult or raise --aug_prob. Mostly 0.46 to 3.03 in a small training."
)
SENSE = (
    "Mean output of D on generated volumes, which G lowers: real ones are driven to -1, generated ones to 1."
)
BY_LOSS = {
    "hinge": {
        "D": Meaning(
            f"Hinge loss: 2 if all outputs are 0, 0 if real and generated are far apart. {AT_0}", 2.0
        ),
        "G": Meaning(f"{SENSE} Steadily up, G is losing. Mostly -0.60 to 2.17 in a small training."),
    },
    "relativistic": {
        "D": Meaning(
            "log(1 + exp(fake - real)): 0.69 if D cannot tell them apart, usually less.", math.log(2)
        ),
        "G": Meaning("log(1 + exp(real - fake)): 0.69 if D is at chance, usually more.", math.log(2)),
    },
    "logistic": {
        "D": Meaning("Logistic loss: 1.39 if all outputs are 0, 0 if D is right and sure.", math.log(4)),
        "G": Meaning("Logistic loss: 0.69 if all outputs are 0, more if D is not fooled.", math.log(2)),
    },
}
OF_COLUMNS = {
    "D": Meaning("Loss of the discriminator."),
    "G": Meaning("Loss of the generator."),
    "PL": Meaning("Path-length penalty, from step 5000 on: how unevenly a step in style moves the volume."),
    "pl_mean": Meaning("Running mean of the path length: how far a step in style moves the volume."),
    "Q": Meaning("Commitment loss of --fq_layers: how far features are from the codes in their place."),
    "Q_usage": Meaning("Share of the codes in use."),
    "CR": Meaning("Contrastive loss of --cl_reg: views of one volume are to be alike, of two are not."),
    "aug_prob": Meaning("Probability of augmentation; with --ada_target it rises while D overfits."),
}
GAN_PREVIEWS = {"G": "current G", "GE": "averaged GE", "mixed": "GE, coarse style by row, fine by column"}
GAN_WORDS = {
    "D": "discriminator: tells real from generated volumes",
    "G": "generator: draws volumes of styles; as a preview, the current one, noisier than GE",
    "S": "style network: makes a style of a latent z",
    "GE": "average of G over many steps, with SE, that of S: the model; generated volumes come from it",
    "GP, PL": "gradient penalty of D, path-length penalty of G",
    "mixed": "volumes of GE with coarse styles by row and fine ones by column",
}


def meanings_of(loss, penalty, every):
    """{column of metrics.csv: Meaning} of a training.

    Args:
        loss: hinge, relativistic or logistic; another has no text of its own.
        penalty: one_centered, r1 or r1r2.
        every: Steps between penalties.
    """
    text = "10 x (norm of D's input gradient - 1)² at real volumes"
    if penalty != "one_centered":
        text = "D's gradient pulled to 0"
        text += ", at generated volumes too (the sum of both)" if penalty == "r1r2" else ""
    text = f"Gradient penalty, every {every} steps: {text}. Growing bursts come before divergence."
    return {**OF_COLUMNS, **BY_LOSS.get(loss, {}), "GP": Meaning(text)}
