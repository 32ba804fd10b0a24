"""Generated command lines for every program: each ends with its work done or with one line."""

import os
import random
from dataclasses import fields
from pathlib import Path

import CoW_generator
import stylegan2_pytorch
from MedicalNet import evaluation
from preprocessing import generate_TOF_template, preprocessing
from sample_data import phantom
from tests.faults.children import limit_memory, run
from tests.faults.jobs import finished, make_volumes, training

SECONDS = 12.0  # of a processor, in which a refusal must come
JOB = 60.0  # of a processor, in which a tiny job must be done
LIMIT = 300.0  # after which a program is killed
MEMORY = 3.0  # GiB that a program may take beside what it has

# Values that no option expects.
WORDS = """None True False nan inf -inf 1e400 -1 0 0.5 1e30 5e-324 99999999999 1_000 0x10 1j b'a' a=b a,b
² ٣ é /dev/null /dev/zero / . .. ~ * () [] {} [1,2 [[1]] (1,) None,None [None] [0,1e400] [1,0]
((0,1),(0,1)) cuda:² cuda:0 0-1000000000 1-0 -- - -x = packed %s $HOME ' " \\"""
ODD = ["", " ", "a\nb", "lambda: 1", "x" * 300, "1" + 400 * "0", "\x00", "\udcff", *WORDS.split()]


def programs(folder):
    """{name: (main, configuration, flags of a tiny job)} with inputs and outputs below a folder."""
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
    measures = ["--real", folder / "volumes", "--generated", folder / "volumes", "--metrics", "ms_ssim"]
    measures += ["--output", folder / "evaluation", "--embedding", "random", "--bootstrap", "0"]
    measures += ["--cache_dir", "none"]
    phantoms = ["--output", folder / "phantoms", "--num", "1", "--image_size", "16", "--image_depth", "4"]
    scans = ["--data", folder / "scans", "--output", folder / "prepared", "--n_workers", "1"]
    template = ["--data", folder / "scans", "--output", folder / "template"]
    train = training(folder, "default", 1)
    known = {
        "train": (stylegan2_pytorch.main, stylegan2_pytorch.TrainConfig, train),
        "generate": (CoW_generator.main, CoW_generator.GenerateConfig, generation),
        "evaluate": (evaluation.main, evaluation.EvaluateConfig, measures),
        "phantom": (phantom.main, phantom.PhantomConfig, phantoms),
        "preprocess": (preprocessing.main, preprocessing.PreprocessConfig, scans),
        "template": (generate_TOF_template.main, generate_TOF_template.TemplateConfig, template),
    }
    return {name: (*rest, [str(word) for word in flags]) for name, (*rest, flags) in known.items()}


def prepare(folder):
    """Volumes, scans that are none, and a trained model for the programs."""
    make_volumes(folder / "scans")
    finished(folder, "trained", 1)


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

        ended = run(work, folder / "log", LIMIT)
        outcome = outcome_of(ended)
        counts[f"{name}, {outcome}"] = counts.get(f"{name}, {outcome}", 0) + 1
        if outcome not in ("done", "refused"):
            shown = " ".join(map(ascii, words[-8:]))
            faults.append(f"{outcome}: {name} {shown} (seed {seed}, number {n})\n{ended.text}")
    return counts, faults


def outcome_of(ended):
    """done, refused, or what is wrong with a program's end."""
    if ended.raised:
        return "traceback"
    if ended.status == 0:
        return "done" if ended.seconds < JOB else "slow"
    if ended.status == 1 and ended.seconds > SECONDS:
        return "refused too late"
    of_scans = any(step in ended.text for step in ("failed: ", "audit: "))  # each scan has a line of its own
    if ended.refused or (ended.status == 1 and of_scans):
        return "refused"
    return f"ended with {ended.status}"
