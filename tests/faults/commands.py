"""Generated command lines for every program: each ends with its work done or with one line."""

import os
import random
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np

import CoW_generator
import stylegan2_pytorch
from MedicalNet import evaluation
from preprocessing import generate_TOF_template, preprocessing
from sample_data import phantom
from tests.faults.children import limit_memory, run

TINY = ["--image_size", "16", "--image_depth", "4", "--network_capacity", "1", "--fmap_max", "4"]
SECONDS = 12.0  # in which a refusal must come, and a tiny job be done
MEMORY = 3.0  # GiB that a program may take beside what it has

# Values that no option expects.
ODD = [
    *("", " ", "None", "True", "False", "nan", "inf", "-inf", "1e400", "-1", "0", "0.5", "1e30", "5e-324"),
    *("99999999999", "1" + 400 * "0", "/dev/null", "/dev/zero", "/", ".", "..", "~", "*", "a,b", "()", "[]"),
    *(
        "{}",
        "[1,2",
        "[[1]]",
        "(1,)",
        "lambda: 1",
        "None,None",
        "[None]",
        "x" * 300,
        "a\nb",
        "²",
        "٣",
        "é",
        "\x00",
    ),
    *(
        "cuda:²",
        "cuda:99999999999",
        "cuda:0",
        "0-1000000000",
        "1-0",
        "--",
        "-",
        "-x",
        "=",
        "packed",
        "\udcff",
    ),
    *(
        "[0,1e400]",
        "[1,0]",
        "%s",
        "$HOME",
        "'",
        '"',
        "\\",
        "1_000",
        "0x10",
        "1j",
        "b'a'",
        "a=b",
        "((0,1),(0,1))",
    ),
]


def programs(folder):
    """{name: (main, configuration, flags of a tiny job)} with inputs and outputs below a folder."""
    volumes, run_flags = (
        folder / "volumes",
        ["--results_dir", folder / "results", "--models_dir", folder / "models"],
    )
    training = ["--data", volumes, *run_flags, *TINY, "--num_train_steps", "1", "--batch_size", "2"]
    training += ["--gradient_accumulate_every", "1", "--num_image_tiles", "1", "--device", "cpu"]
    generation = [
        "--top_dir",
        folder,
        "--model_folder_name",
        "trained",
        "--num_generate",
        "1",
        "--steps",
        "2",
    ]
    generation += ["--save_directory", folder / "generated", "--projection_steps", "1"]
    measures = ["--real", volumes, "--generated", volumes, "--output", folder / "evaluation"]
    measures += ["--embedding", "random", "--metrics", "ms_ssim", "--bootstrap", "0", "--cache_dir", "none"]
    phantoms = ["--output", folder / "phantoms", "--num", "1", "--image_size", "16", "--image_depth", "4"]
    scans = ["--data", folder / "scans", "--output", folder / "prepared", "--n_workers", "1"]
    template = ["--data", folder / "scans", "--output", folder / "template"]
    known = {
        "train": (stylegan2_pytorch.main, stylegan2_pytorch.TrainConfig, training),
        "generate": (CoW_generator.main, CoW_generator.GenerateConfig, generation),
        "evaluate": (evaluation.main, evaluation.EvaluateConfig, measures),
        "phantom": (phantom.main, phantom.PhantomConfig, phantoms),
        "preprocess": (preprocessing.main, preprocessing.PreprocessConfig, scans),
        "template": (generate_TOF_template.main, generate_TOF_template.TemplateConfig, template),
    }
    return {name: (*rest, [str(word) for word in flags]) for name, (*rest, flags) in known.items()}


def prepare(folder):
    """Volumes, scans that are none, and a trained model for the programs."""
    (folder / "scans").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        array = rng.random((16, 16, 4), dtype=np.float32)
        path = folder / "volumes" / f"{number}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "scans" / path.name)
    training = programs(folder)["train"][2]
    ended = run(lambda: stylegan2_pytorch.main([*training, "--name", "trained"]), folder / "log")
    assert ended.status == 0, ended.text


def odd_command(rng, config, flags):
    """A command line: the flags of a job, some changed, some added, now and then something misplaced."""
    words = list(flags)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        field = rng.choice(fields(config))
        default = "1" if field.name == "num_train_steps" else str(field.default)
        likely = (default, str(rng.randint(-3, 9)), *field.metadata["option"].choices)
        value = rng.choice(ODD if rng.random() < 0.6 else likely)
        flag = f"--{field.name}"
        if flag in words:
            place = words.index(flag)
            words[place : place + 2] = []
        words += [flag, value] if rng.random() < 0.8 else [f"{flag}={value}"]
    extra = rng.random()
    if extra < 0.03:
        words.append(rng.choice(ODD))
    elif extra < 0.06:
        words.append(f"--{rng.choice(fields(config)).name}")
    elif extra < 0.09:
        words += words[:2]
    elif extra < 0.11:
        words.append("--unknown")
    return words


def check(folder, number, seed, only=None):
    """Run generated command lines. Returns ({outcome: count}, [what went wrong])."""
    folder = Path(folder).resolve()
    prepare(folder)
    known, counts, faults = programs(folder), {}, []
    os.chdir(folder)  # what a value makes relative lands here
    for n in range(number):
        rng = random.Random(seed * 10**6 + n)
        name = rng.choice([only] if only else sorted(known))
        main, config, flags = known[name]
        words = odd_command(rng, config, flags)

        def work(main=main, words=words):
            limit_memory(MEMORY)
            main(words)

        ended = run(work, folder / "log", 4 * SECONDS)
        outcome = judge(ended)
        counts[f"{name}, {outcome}"] = counts.get(f"{name}, {outcome}", 0) + 1
        if outcome not in ("done", "refused"):
            shown = " ".join(map(ascii, words[-8:]))
            faults.append(f"{outcome}: {name} {shown} (seed {seed}, number {n})\n{ended.text}")
    return counts, faults


def judge(ended, soon=SECONDS):
    """done, refused, or what is wrong with a program's end; a refusal must come within `soon` seconds."""
    if ended.raised:
        return "traceback"
    if ended.status == 0:
        return "done" if ended.seconds < 3 * soon else "slow"
    if ended.status == 1 and ended.seconds > soon:
        return "refused too late"
    if ended.refused or (ended.status == 1 and "failed: " in ended.text):
        return "refused"
    return f"ended with {ended.status}"
