"""A disk that fills up: no file may grow beyond a drawn size, in training, generation and evaluation."""

import random
import resource
from pathlib import Path

import CoW_generator
import stylegan2_pytorch as sg
from MedicalNet import evaluation
from sample_data import phantom
from tests.faults.children import run
from tests.faults.commands import outcome_of
from tests.faults.jobs import difference, finished, training, whole

STEPS = 6


def check(folder, number, seed):
    """Run jobs on a disk that fills up. Returns ({outcome: count}, [what went wrong])."""
    folder, rng = Path(folder).resolve(), random.Random(seed)
    truth = finished(folder, "truth", STEPS, "--save_every", "2")
    size = (truth / "model_1.pt").stat().st_size
    counts, faults = {}, []
    for n in range(number):
        name, most = (
            f"run{n}",
            rng.choice((rng.randrange(100), rng.randrange(10**5), rng.randrange(2 * size))),
        )
        flags = training(folder, name, STEPS, "--save_every", "2", "--cache", rng.choice(("ram", "disk")))
        jobs = {
            "train": lambda flags=flags: sg.main(flags),
            "generate": lambda name=name: CoW_generator.main(generation(folder, truth, name)),
            "evaluate": lambda name=name: evaluation.main(measures(folder, name)),
            "phantom": lambda name=name: phantom.main(
                ["--output", str(folder / f"phantoms-{name}"), "--num", "2"]
            ),
        }
        kind = rng.choice(("train", "train", *jobs))

        def work(kind=kind, jobs=jobs, most=most):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            jobs[kind]()

        outcome = outcome_of(run(work, folder / "unlimited", 90))
        counts[f"{kind}, {outcome}"] = counts.get(f"{kind}, {outcome}", 0) + 1
        text = (folder / "unlimited").read_text(errors="replace", encoding="utf-8")
        what = f"{kind}, files of at most {most} bytes (seed {seed}, number {n})\n{text[-3000:]}"
        if outcome not in ("done", "refused"):
            faults.append(f"{outcome}: {what}")
        if kind == "train" and not whole(folder / "models" / name):
            faults.append(f"a checkpoint is not whole: {what}")
        if kind == "train" and outcome == "refused":
            ended = run(lambda flags=flags: sg.main(flags), folder / "log")
            unequal = ended.status or difference(truth, folder / "models" / name)
            if unequal:
                faults.append(f"with room again, {unequal}: {what}\n{ended.text[-2000:]}")
            else:
                counts["train, went on to an equal end"] = counts.get("train, went on to an equal end", 0) + 1
    return counts, faults


def generation(folder, models, name):
    """Command line of a generation."""
    flags = ["--checkpoint", models / "model_1.pt", "--save_directory", folder / f"made-{name}"]
    return list(map(str, [*flags, "--num_generate", 2, "--device", "cpu"]))


def measures(folder, name):
    """Command line of an evaluation."""
    flags = ["--real", folder / "volumes", "--generated", folder / "volumes", "--embedding", "random"]
    flags += ["--metrics", "ms_ssim", "--bootstrap", 0, "--output", folder / f"evaluation-{name}"]
    return list(map(str, [*flags, "--cache_dir", folder / f"cache-{name}", "--device", "cpu"]))
