"""Does preprocessing know when it is wrong? Registrations right and wrong on purpose, and what is flagged.

    python tests/benchmarks/preprocessing.py registrations
    python tests/benchmarks/preprocessing.py registrations --images MNI152_T1_2mm.nii.gz,spm152.nii.gz
    python tests/benchmarks/preprocessing.py regions

The first takes phantom heads, or every pair of the given images, one as template and one as scan in a pose of
its own; the second counts the circle's nine junctions in regions that are found. Both print Markdown.
"""

import sys
from pathlib import Path

import fire
import nibabel as nib
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "sample_data")]
import phantom  # noqa: E402

from preprocessing import registration  # noqa: E402
from preprocessing.images import grid_of, read_image, to_ants  # noqa: E402
from preprocessing.region import find_center  # noqa: E402
from preprocessing.registration import COARSE_MM, Likeness, assess, at_spacing  # noqa: E402

SHIFTS = (0, 1, 2, 3, 4, 6, 8, 10, 15)  # mm
SLABS = (25, 40, 60, 78)  # mm
RIGHT, UNSURE = 1, 3  # mm: up to the first a shift is right, from the second on it is wrong
SIZE = (80.0, 80.0, 28.0)


def head(number, spacing=1.5, degrees=15):
    """A phantom head in a pose: (ANTs image, middle of its circle)."""
    pose = phantom.Pose.draw(np.random.default_rng(number), degrees, degrees)
    head = phantom.make_head(0, number, pose, spacing)
    volume, affine, landmarks = head.volume, head.affine, head.landmarks
    return to_ants(volume, affine), np.mean(list(landmarks.values()), axis=0), landmarks


def shifted(matrix, mm, rng):
    """A transform after a shift of the template by so many mm, in a random direction."""
    step, direction = np.eye(4), rng.normal(size=3)
    step[:3, 3] = mm * direction / np.linalg.norm(direction)
    return matrix @ step


def slab_of(image, middle, mm):
    """The slices of an image within mm / 2 of a point."""
    grid = grid_of(image)
    at = int((np.linalg.inv(grid.affine) @ [*middle, 1])[2])
    half = max(int(mm / image.spacing[2] / 2), 1)
    low, high = max(at - half, 0), min(at + half, grid.shape[2])
    part = grid.crop(((0, grid.shape[0]), (0, grid.shape[1]), (low, high)))
    return to_ants(image.numpy()[:, :, low:high], part.affine)


def cases(template, scan, middle, rng):
    """Yield (kind, True if right, False if wrong, or None, Fit) of one pair of images."""
    coarse = at_spacing(template, COARSE_MM)

    def registered(image, initial=None):
        return registration.register(coarse, at_spacing(image, COARSE_MM), initial=initial)

    likeness, matrix = Likeness(template, scan), registered(scan)
    for mm in SHIFTS:
        right = True if mm <= RIGHT else False if mm > UNSURE else None
        yield f"shifted by {mm} mm", right, assess(likeness, shifted(matrix, mm, rng))
    for axis in "xyz":
        turn = registration.turned(axis, 10, likeness.middle)
        yield "turned by 10 degrees", False, assess(likeness, matrix @ turn)
        turn = registration.turned(axis, 90, likeness.middle)
        yield "best near a quarter turn", False, assess(likeness, registered(scan, matrix @ turn))
    for mm in SLABS:
        part = slab_of(scan, middle, mm)
        likeness, found = Likeness(template, part), registered(part)
        yield f"slab of {mm} mm", True, assess(likeness, found)
        yield f"slab of {mm} mm, shifted by 7 mm", False, assess(likeness, shifted(found, 7, rng))


def pairs_of(images, heads):
    """Yield (template, scan in a pose of its own, middle of its region)."""
    if images is None:
        template = head(0, degrees=0)[0]
        for number in range(1, heads + 1):
            yield template, *head(number)[:2]
        return
    read = [read_image(path) for path in images]
    for n, template in enumerate(read):
        for scan in read:
            pose = phantom.Pose.draw(np.random.default_rng(n), 15, 15).matrix()
            noise = np.random.default_rng(n).normal(0, 0.03 * scan.numpy().max(), scan.shape)
            posed = to_ants(scan.numpy() + noise.astype(np.float32), pose @ grid_of(scan).affine)
            yield template, posed, (pose @ [0, 0, -10, 1])[:3]


def registrations(images=None, heads=10):
    """How many right registrations are flagged, and how many wrong ones are not.

    Args:
        images: Paths of heads, in place of phantoms.
        heads: Phantom heads.
    """
    rng, counts = np.random.default_rng(0), {}
    images = images.split(",") if isinstance(images, str) else images
    for template, scan, middle in pairs_of(images, heads):
        for kind, right, fit in cases(template, scan, middle, rng):
            counts.setdefault((kind, right), []).append(bool(fit.problems()))
    print("| registration | is | flagged |\n|---|---|---|")
    for (kind, right), flags in counts.items():
        told = {True: "right", False: "wrong", None: "-"}[right]
        print(f"| {kind} | {told} | {sum(flags)} of {len(flags)} |")
    for right, name in ((False, "sensitivity"), (True, "specificity")):
        flags = [flag != right for (_, kind), some in counts.items() if kind is right for flag in some]
        print(f"| {name} | | {np.mean(flags):.3f} ({sum(flags)} of {len(flags)}) |")


def regions(heads=20, spacing=1.0):
    """How many of the circle's nine junctions lie in the region that is found on a head."""
    print("| head | junctions in the region | mm from the circle's middle |\n|---|---|---|")
    for number in range(heads):
        image, middle, landmarks = head(number, spacing)
        center = find_center(image, SIZE)
        inside = np.abs(np.array(list(landmarks.values())) - center) <= np.array(SIZE) / 2
        print(
            f"| {number} | {inside.all(axis=1).sum()} | {np.linalg.norm(center - middle):.1f} |", flush=True
        )


if __name__ == "__main__":
    nib.imageglobals.logger.setLevel(40)
    fire.Fire({"registrations": registrations, "regions": regions})
