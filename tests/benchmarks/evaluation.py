"""What the numbers of an evaluation see, and how long they take, on phantoms.

    python tests/benchmarks/evaluation.py damages     every number, for sets that are damaged on purpose
    python tests/benchmarks/evaluation.py damages --metrics md,openmind,radiomics       also those on request
    python tests/benchmarks/evaluation.py rates       how often a number tells a damage, of many draws
    python tests/benchmarks/evaluation.py speed       against slices in PNG files, one at a time

All use random networks, and print Markdown.
"""

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from volumetric.files import array_to_volume
from volumetric.parallel import prepare_process

import fire
import nibabel as nib
import numpy as np
import torch
from scipy import linalg, ndimage

from MedicalNet.comparing import NUMBERS, Pair, at_equal_n, named
from MedicalNet.evaluation import GROUPS, EvaluateConfig, evaluate
from MedicalNet.extractors import FeatureCache, build_medicalnet, randomly, standardized
from MedicalNet.measuring import build_extractors, measure
from MedicalNet.volumes import in_memory

ROOT = Path(__file__).parents[2]


def make_phantoms(folder, number, seed, size, depth, labels=None, chiral=False):
    """Write phantoms, and their label maps if asked; with `chiral` ones whose sides differ."""
    command = [sys.executable, ROOT / "sample_data" / "phantom.py", "--output", folder, "--num", number]
    command += ["--seed", seed, "--image_size", size, "--image_depth", depth]
    command += [] if labels is None else ["--labels", labels]
    command += ["--chiral", True] if chiral else []
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


DAMAGES = ("unharmed", "blurred", "noisy", "collapsed", "copied", "mirrored", "flipped", "vessel-free")


def damaged(array, mask, rng):
    """{damage: volume} of every damage that is done to a volume by itself."""
    return {
        "unharmed": array,
        "blurred": ndimage.gaussian_filter(array, 1.0),
        "noisy": array + rng.normal(0, 0.05 * array.max(), array.shape).astype(np.float32),
        "mirrored": array[::-1],  # left and right
        "flipped": array[:, ::-1],  # front and back
        "vessel-free": without_vessels(array, mask, rng),
    }


def damages(pairs=5, number=64, size=64, depth=16, metrics=tuple(GROUPS), chiral=False, output="damages"):
    """Compare phantoms with others, unharmed and damaged, for several pairs of seeds.

    Args:
        pairs: Pairs of sets of phantoms, each of seeds of its own.
        number: Phantoms in a set.
        size, depth: Voxels of a phantom.
        metrics: Groups of numbers.
        chiral: Phantoms whose sides differ; of others, a mirrored set is as real as any.
        output: Folder for the reports, with -chiral behind it for these; what is there is not computed again.
    """
    output, tables = Path(f"{output}-chiral" if chiral else output), []
    metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for pair in range(pairs):
        folder = output / f"pair{pair}"
        if not (folder / "collapsed").exists():
            make_damaged(folder, number, size, depth, 10 * pair, chiral)
        table = {}
        for name in DAMAGES:
            found = folder / f"report-{name}"
            if not (found / "metrics.json").exists():
                config = EvaluateConfig(
                    real=str(folder / "real"),
                    generated=str(folder / name),
                    output=str(found),
                    metrics=metrics,
                    planes=("axial",),
                    embedding="random",
                    bootstrap=0,
                    cache_dir=str(folder / "cache"),
                )
                with contextlib.redirect_stdout(sys.stderr):
                    evaluate(config)
            table[name] = json.loads((found / "metrics.json").read_text(encoding="utf-8"))
        tables.append(table)
    print_damages(tables)


def make_damaged(folder, number, size, depth, seed, chiral=False):
    """Folders of phantoms: real, and others as they are and with every damage."""
    make_phantoms(folder / "real", number, seed + 1, size, depth, chiral=chiral)
    make_phantoms(folder / "other", number, seed + 2, size, depth, folder / "labels", chiral)
    rng = np.random.default_rng(seed)
    for path in sorted((folder / "other").glob("*.nii.gz")):
        image = nib.load(path)
        mask = nib.load(folder / "labels" / path.name).get_fdata() > 0
        for name, array in damaged(image.get_fdata(dtype=np.float32), mask, rng).items():
            (folder / name).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(np.ascontiguousarray(array), image.affine), folder / name / path.name)
    for name in ("copied", "collapsed"):
        (folder / name).mkdir(exist_ok=True)
        real, other = (sorted((folder / which).glob("*.nii.gz")) for which in ("real", "unharmed"))
        for n in range(number):  # a quarter of real ones; eight phantoms, each over and over
            source = (real if n < number // 4 else other)[n] if name == "copied" else other[n % 8]
            (folder / name / f"{n:03d}.nii.gz").write_bytes(source.read_bytes())


def print_damages(tables):
    """What sees which damage, in how many pairs, as Markdown."""
    kinds = list(DAMAGES)
    print("| | unharmed at equal n, real against real | " + " | ".join(kinds) + " |")
    print("|---" * (len(kinds) + 2) + "|")
    for metric in tables[0]["unharmed"]["metrics"]:
        equal = [[table[kind]["metrics"][metric].get("equal_n") for kind in kinds] for table in tables]
        if not all(row[0] for row in equal):
            continue
        means = [np.mean([row[0][key] for row in equal]) for key in ("mean", "floor_mean")]
        seen = [sum(bool(row[n] and row[n]["outside"]) for row in equal) for n in range(len(kinds))]
        print(
            f"| {metric} | {means[0]:.3g}, {means[1]:.3g} | {' | '.join(f'{k or chr(45)}' for k in seen)} |"
        )
    found = [[len(table[kind]["copies"]) for kind in kinds] for table in tables]
    told = [f"{min(column)} to {max(column)}" for column in zip(*found, strict=True)]
    print(f"| copies found | | {' | '.join(told)} |")
    for n, verdict in enumerate(tables[0]["unharmed"]["verdicts"][:4]):
        bad = [sum(table[kind]["verdicts"][n]["state"] == "bad" for table in tables) for kind in kinds]
        print(f"| *{verdict['question']}* no | | {' | '.join(f'{k or chr(45)}' for k in bad)} |")


RATED = ("MD", "KD-volume", "energy", "sliced-W1", "energy-placed", "coverage", "Vendi-generated")
RATED += ("W1-asymmetry",)


def rates(
    number=48,
    repeats=100,
    pool=320,
    size=32,
    depth=8,
    rated=RATED,
    kinds=DAMAGES,
    chiral=False,
    output="rates",
):
    """How often numbers of whole volumes tell a damage, of random sets of one pool of phantoms.

    Args:
        number: Phantoms in a set.
        repeats: Draws of two sets that have no phantom in common.
        pool: Phantoms to draw from.
        size, depth: Voxels of a phantom.
        rated: Names of numbers.
        kinds: Damages.
        chiral: Phantoms whose sides differ; of others, a mirrored set is as real as any.
        output: Folder for the phantoms, with -chiral behind it for these; those that are there are taken.
    """
    output = Path(f"{output}-chiral" if chiral else output)
    if not (output / "pool").exists():
        make_phantoms(output / "pool", pool, 0, size, depth, output / "labels", chiral)
    config = EvaluateConfig(
        real=".", generated=".", embedding="random", metrics=groups_of(rated), bootstrap=0
    )
    measured = measure_pool(output, config, kinds)
    numbers = {n.name: (index, n) for index, n in enumerate(NUMBERS) if n.name in rated}
    told = {name: Counter() for name in rated}
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(len(measured["unharmed"].names))
        real, other = order[:number], order[number : 2 * number]
        seeded = replace(config, seed=repeat)
        for kind in kinds:
            pair = Pair(measured["unharmed"].subset(real), drawn(measured, kind, real, other), repeat)
            for name in rated:
                index, one = numbers[name]
                told[name][kind] += at_equal_n(one.build(pair), one, seeded, index)["outside"]
    print("| of random networks, % of draws | " + " | ".join(kinds) + " |")
    print("|---" * (len(kinds) + 1) + "|")
    for name in rated:
        shares = (f"{100 * told[name][kind] / repeats:.0f}" for kind in kinds)
        print(f"| {named(name, 'random')} | {' | '.join(shares)} |")


GROUP_OF = {"volume": "md", "placed": "md", "openmind": "openmind", "radiomics": "radiomics"}


def groups_of(rated):
    """The groups of numbers that some of whole volumes are in."""
    return tuple({GROUP_OF.get(n.of, "anatomy") for n in NUMBERS if n.name in rated})


def measure_pool(folder, config, kinds=DAMAGES):
    """{damage: Measured} of all phantoms of a pool, of those damages that each suffers by itself."""
    extractors, _, _ = build_extractors(config)
    made = {kind: [] for kind in ("unharmed", *kinds) if kind not in ("collapsed", "copied")}
    rng = np.random.default_rng(0)
    for path in sorted((folder / "pool").rglob("*.nii.gz")):
        image = nib.load(path)
        mask = nib.load(folder / "labels" / path.relative_to(folder / "pool")).get_fdata() > 0
        done = damaged(image.get_fdata(dtype=np.float32), mask, rng)
        for kind, arrays in made.items():
            arrays.append((len(arrays), np.ascontiguousarray(array_to_volume(done[kind]))))
    cache = FeatureCache(None)
    return {
        kind: measure(
            in_memory(arrays, image.affine, config.protocol), len(arrays), extractors, config, cache, kind
        )
        for kind, arrays in made.items()
    }


def drawn(measured, kind, real, other):
    """The generated set of a draw: volumes of `other`, damaged; see `make_damaged`."""
    if kind == "collapsed":
        return measured["unharmed"].subset(np.resize(other[:8], len(other)))
    if kind == "copied":
        quarter = len(real) // 4
        return measured["unharmed"].subset(np.concatenate([real[:quarter], other[quarter:]]))
    return measured[kind].subset(other)


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
    prepare_process()
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
    fire.Fire({"damages": damages, "rates": rates, "speed": speed, "once": once})
