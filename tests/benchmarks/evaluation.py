"""What the numbers of an evaluation see, and how long they take, on phantoms.

    python tests/benchmarks/evaluation.py damages     every number, for sets that are damaged on purpose
    python tests/benchmarks/evaluation.py speed       against slices in PNG files, one at a time

Both use random networks, and print Markdown.
"""

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch
from scipy import linalg, ndimage

from MedicalNet.evaluation import EvaluateConfig, evaluate
from MedicalNet.extractors import build_medicalnet, randomly, standardized

ROOT = Path(__file__).parents[2]


def make_phantoms(folder, number, seed, size, depth, labels=None):
    """Write phantoms, and their label maps if asked."""
    command = [sys.executable, ROOT / "sample_data" / "phantom.py", "--output", folder, "--num", number]
    command += ["--seed", seed, "--image_size", size, "--image_depth", depth]
    command += [] if labels is None else ["--labels", labels]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Damages                                                                                                  ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def without_vessels(array, mask, rng):
    """The volume with vessels filled from the tissue around them, and with the noise of the rest."""
    vessel = ndimage.binary_dilation(mask, iterations=2)
    weight = ndimage.gaussian_filter((~vessel).astype(float), 2)
    tissue = ndimage.gaussian_filter(np.where(vessel, 0, array), 2) / np.maximum(weight, 1e-3)
    noise = rng.choice((array - tissue)[~vessel], vessel.sum())
    filled = array.copy()
    filled[vessel] = (tissue[vessel] + noise).clip(0)
    return filled


def damaged(array, mask, rng):
    """{damage: volume} of every damage that is done to a volume by itself."""
    return {
        "unharmed": array,
        "blurred": ndimage.gaussian_filter(array, 1.0),
        "noisy": array + rng.normal(0, 0.05 * array.max(), array.shape).astype(np.float32),
        "mirrored": array[::-1],
        "vessel-free": without_vessels(array, mask, rng),
    }


def damages(number=64, size=64, depth=16, bootstrap=200, output=None):
    """Compare phantoms with others, unharmed and damaged; a star marks what left the unharmed interval.

    Args:
        number: Phantoms in a set.
        size, depth: Voxels of a phantom.
        bootstrap: Resamples of the intervals.
        output: New folder for the reports; None keeps none.
    """
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        make_phantoms(scratch / "real", number, 1, size, depth)
        make_phantoms(scratch / "other", number, 2, size, depth, scratch / "labels")
        rng = np.random.default_rng(0)
        for path in sorted((scratch / "other").glob("*.nii.gz")):
            image = nib.load(path)
            mask = nib.load(scratch / "labels" / path.name).get_fdata() > 0
            versions = damaged(image.get_fdata(dtype=np.float32), mask, rng)
            for name, array in versions.items():
                (scratch / name).mkdir(exist_ok=True)
                nib.save(
                    nib.Nifti1Image(np.ascontiguousarray(array), image.affine), scratch / name / path.name
                )
        unharmed = sorted((scratch / "unharmed").glob("*.nii.gz"))
        (scratch / "collapsed").mkdir()
        for n in range(number):  # eight phantoms, each over and over
            copy = scratch / "collapsed" / f"{n:03d}.nii.gz"
            copy.write_bytes(unharmed[n % 8].read_bytes())
        table = {}
        for name in ("unharmed", "blurred", "noisy", "collapsed", "mirrored", "vessel-free"):
            config = EvaluateConfig(
                real=str(scratch / "real"),
                generated=str(scratch / name),
                output=str(Path(output or scratch) / f"report-{name}"),
                embedding="random",
                bootstrap=bootstrap,
                cache_dir=str(scratch / "cache"),
            )
            with contextlib.redirect_stdout(sys.stderr):
                table[name] = evaluate(config)["metrics"]
    print_damages(table)


def print_damages(table):
    """The table of `damages`, as Markdown."""
    print("| | " + " | ".join(table) + " |")
    print("|---" * (len(table) + 1) + "|")
    for metric, unharmed in table["unharmed"].items():
        low, high = unharmed["interval_95"]
        cells = [f"{unharmed['value']:.4g} [{low:.3g}, {high:.3g}]"]
        for name in list(table)[1:]:
            value = table[name][metric]["value"]
            cells.append(f"{value:.4g}" + ("" if low <= value <= high else " *"))
        print(f"| {metric} | " + " | ".join(cells) + " |")


# ╔══════════════════════════════════════════════════════════════════════════════════════════════════════════╗
# ║ Speed                                                                                                    ║
# ╚══════════════════════════════════════════════════════════════════════════════════════════════════════════╝


def plain_inception():
    """torch-fidelity's extractor as it comes, with the random weights that we use."""
    import io

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Extractor(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, strict=True):
            """Nothing."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    return randomly(Extractor("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing))


def plain_features(folder, scratch, inception, medicalnet):
    """Features by way of files: every slice a PNG, every slice and volume through its network alone, npz."""
    from PIL import Image

    pngs = scratch / f"png-{folder.name}"
    pngs.mkdir()
    volumes = []
    for path in sorted(folder.glob("*.nii.gz")):
        array = nib.load(path).get_fdata(dtype=np.float32)
        for z in range(array.shape[2]):
            one = array[:, :, z]
            pixels = np.round((one - one.min()) / max(one.max() - one.min(), 1e-9) * 255).astype(np.uint8)
            Image.fromarray(pixels).convert("RGB").save(pngs / f"{path.name}-{z:03d}.png")
        with torch.inference_mode():
            volumes.append(medicalnet(torch.from_numpy(standardized(array))[None, None])[0].numpy())
    slices = []
    for path in sorted(pngs.glob("*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
        with torch.inference_mode():
            slices.append(inception(pixels)[0][0].numpy())
    np.savez(scratch / f"{folder.name}.npz", slices=slices, volumes=volumes)


def by_files(real, generated):
    """FID, MD and AUC-PRD by way of files and scipy's matrix square root."""
    from MedicalNet.distances import PrecisionRecallCurve

    inception, medicalnet = plain_inception(), build_medicalnet(None, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        loaded = []
        for folder in (Path(real), Path(generated)):
            plain_features(folder, Path(scratch), inception, medicalnet)
            loaded.append(np.load(Path(scratch) / f"{folder.name}.npz"))
        found = {}
        for name, key in (("FD-random", "slices"), ("FD-random-volume", "volumes")):
            (mu1, s1), (mu2, s2) = ((f.mean(0), np.cov(f, rowvar=False)) for f in (d[key] for d in loaded))
            root = linalg.sqrtm(s1 @ s2)
            found[name] = float(((mu1 - mu2) ** 2).sum() + np.trace(s1 + s2) - 2 * np.trace(root.real))
        found["AUC-PRD-random"] = PrecisionRecallCurve(*(d["volumes"] for d in loaded), 0).exact()
    return found


def by_us(real, generated, precision="float32"):
    """The same three numbers by `evaluate`, without a cache, report included."""
    with tempfile.TemporaryDirectory() as scratch:
        config = EvaluateConfig(
            real=real,
            generated=generated,
            output=f"{scratch}/out",
            metrics=("fid", "md"),
            planes=("axial",),
            embedding="random",
            precision=precision,
            bootstrap=0,
            cache_dir="none",
        )
        with contextlib.redirect_stdout(sys.stderr):
            return {name: m["value"] for name, m in evaluate(config)["metrics"].items()}


def once(way, real, generated, **settings):
    """Run one way, and print its numbers, seconds and peak memory as JSON."""
    start = time.perf_counter()
    numbers = {"plain": by_files, "ours": by_us}[way](str(real), str(generated), **settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_gib": peak, "numbers": numbers}))


def speed(number=200, size=128, depth=32):
    """Seconds and peak memory of FID, MD and AUC-PRD of two sets of phantoms, each way in its own process.

    Args:
        number: Phantoms in a set.
        size, depth: Voxels of a phantom.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("real", "generated")]
        for seed, folder in enumerate(folders):
            make_phantoms(folder, number, seed, size, depth)
        print("| way | seconds | times faster | peak GiB | FD-random | FD-random-volume | AUC-PRD-random |")
        print("|---|---|---|---|---|---|---|")
        plain = None
        ways = {"slice by slice through files": ["plain"], "float32": ["ours"]}
        ways["--precision mixed"] = ["ours", "--precision", "mixed"]
        for title, arguments in ways.items():
            command = [sys.executable, __file__, "once", arguments[0], *map(str, folders), *arguments[1:]]
            run = json.loads(
                subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
            )
            plain = plain or run["seconds"]
            names = ("FD-random", "FD-random-volume", "AUC-PRD-random")
            numbers = " | ".join(f"{run['numbers'][name]:.5g}" for name in names)
            ratio = plain / run["seconds"]
            print(
                f"| {title} | {run['seconds']:.0f} | {ratio:.2f} | {run['peak_gib']:.2f} | {numbers} |",
                flush=True,
            )


if __name__ == "__main__":
    fire.Fire({"damages": damages, "speed": speed, "once": once})
