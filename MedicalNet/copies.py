"""Copies: generated volumes that are real ones, or nearly.

Two volumes are compared by the correlation of what stands out from the tissue, on a coarse grid, as they
are and with left and right exchanged: noise, blur, another brightness and a shift below a cell of that grid
change it little, another person's vessels much. What is near is measured against how near two real volumes
are to each other. This finds plain copies; it is no proof that there are none.

With volumes that the generator has not seen, two numbers more: C_T (Meehan et al. 2020, arXiv:2004.05675)
and authenticity (Alaa et al. 2022, arXiv:2102.08921).
"""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.stats import mannwhitneyu

TISSUE_MM = 5.0  # standard deviation of what is taken for tissue
GRID = (32, 32, 16)  # cells of a volume that is compared, at most
NEAR = 0.5  # of the distance below which LOW of the real volumes have another real one
LOW = 0.05


class Fingerprint:
    """What two volumes are compared by for copies, as an extractor.

    Shapes: (X, Y, Z) -> {"features": (1, cells) float32 of length 1}
    """

    name = "fingerprint"
    version = 1
    digest = ""
    protocol = (
        f"volume minus Gaussian ({TISSUE_MM:g} mm), averaged over {GRID[0]} x {GRID[1]} x {GRID[2]} cells at "
        f"most, centred, of length 1"
    )
    on_host = True

    def __call__(self, array, affine):
        above = array - ndimage.gaussian_filter(array, TISSUE_MM / nib.affines.voxel_sizes(affine))
        cells = above
        for axis, most in enumerate(GRID):
            edges = np.linspace(0, array.shape[axis], min(most, array.shape[axis]) + 1).astype(int)
            counts = np.diff(edges)
            sums = np.add.reduceat(cells, edges[:-1], axis=axis)
            cells = sums / np.expand_dims(counts, [a for a in range(3) if a != axis])
        centred = (cells - cells.mean()).astype(np.float32).ravel()
        return {"features": centred[None] / max(float(np.linalg.norm(centred)), 1e-12)}


@dataclass
class Nearness:
    """How near volumes are to the real ones.

    Args:
        to_real: Distance 1 - correlation of every generated to its nearest real volume, (m,).
        nearest: Index of that real volume, (m,).
        mirrored: It is nearest with left and right exchanged, (m,).
        among_real: The same distance of every real volume to another, (n,).
        threshold: Distance below which a volume counts as a near copy.
    """

    to_real: np.ndarray
    nearest: np.ndarray
    mirrored: np.ndarray
    among_real: np.ndarray
    threshold: float


def nearness(real_set, generated_set, left_right):
    """Nearness of two sets of which the fingerprints were measured.

    Args:
        real_set, generated_set: Measured.
        left_right: Axis of the array between left and right.
    """
    real = real_set.features["fingerprint"][:, 0]
    generated = generated_set.features["fingerprint"][:, 0]
    shape = tuple(min(most, n) for most, n in zip(GRID, real_set.shape, strict=True))
    turned = np.flip(generated.reshape(-1, *shape), axis=1 + left_right).reshape(len(generated), -1)
    as_it_is, exchanged = 1 - generated @ real.T, 1 - turned @ real.T
    away = np.minimum(as_it_is, exchanged)
    nearest = away.argmin(axis=1)
    rows = np.arange(len(generated))
    real_turned = np.flip(real.reshape(-1, *shape), axis=1 + left_right).reshape(len(real), -1)
    among = np.minimum(1 - real @ real.T, 1 - real_turned @ real.T)
    np.fill_diagonal(among, np.inf)
    among_real = among.min(axis=1)
    different = among_real[among_real > 1e-6]  # equal files among the real ones are said elsewhere
    threshold = NEAR * float(np.quantile(different, LOW)) if len(different) else 0.0
    mirrored = exchanged[rows, nearest] < as_it_is[rows, nearest]
    return Nearness(away[rows, nearest], nearest, mirrored, among_real, threshold)


def among_training(real_set, generated_set, held_out_set, left_right):
    """C_T and authenticity, {name: entry of metrics.json}.

    C_T is the z-value of the Mann-Whitney test that generated volumes are as far from the training volumes as
    held-out ones (arXiv:2004.05675, Sec. 3, of one cell): far below 0, they are nearer. Authenticity is the
    share of generated volumes that are further from their nearest training volume than that is from another
    (arXiv:2102.08921, Sec. 4); the held-out volumes' own share is its floor.

    Args:
        real_set, generated_set, held_out_set: Measured; the first is what the generator was trained on.
        left_right: As in `nearness`.
    """
    near = nearness(real_set, generated_set, left_right)
    held = nearness(real_set, held_out_set, left_right)
    n, m = len(near.to_real), len(held.to_real)
    u = mannwhitneyu(near.to_real, held.to_real).statistic
    z = (u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)
    shares = [float(np.mean(one.to_real > one.among_real[one.nearest])) for one in (near, held)]
    sizes = {"n_real": len(near.among_real), "n_generated": n, "n_held_out": m, "question": "copies"}
    return {
        "C_T": {
            "value": float(z),
            "better": "near 0",
            "estimand": "z-value: are generated volumes as far from the training volumes as held-out ones",
            **sizes,
        },
        "authenticity": {
            "value": shares[0],
            "held_out": shares[1],
            "better": "as held-out",
            "estimand": "share of generated volumes further from a training volume than that from another",
            **sizes,
        },
    }


def find_copies(files, near):
    """Every generated volume that is a real one, exactly or nearly, the nearest first.

    Args:
        files: VolumeFile of the real and of the generated volumes.
        near: Nearness.

    Returns:
        List of {"generated", "real", "distance", "kind"}; kind is exact, near or mirrored.
    """
    real_files, generated_files = files
    contents = {file.content: file.name for file in reversed(real_files)}
    found = []
    for n, file in enumerate(generated_files):
        if file.content in contents:
            found.append(
                {"generated": file.name, "real": contents[file.content], "distance": 0.0, "kind": "exact"}
            )
        elif near.to_real[n] < near.threshold:
            kind = "mirrored" if near.mirrored[n] else "near"
            name = real_files[near.nearest[n]].name
            found.append(
                {"generated": file.name, "real": name, "distance": float(near.to_real[n]), "kind": kind}
            )
    return sorted(found, key=lambda copy: copy["distance"])
