"""The command line as a user meets it: flags, messages, the README's commands, the set-up files."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import volumetric
from volumetric import cli, timing

import pytest

import CoW_generator as cow
import label_to_volume
import progressive_wgan
import stylegan2_pytorch as sg
from MedicalNet import evaluation
from preprocessing import conform
from preprocessing.background import BackgroundConfig
from preprocessing.generate_TOF_template import TemplateConfig
from preprocessing.preprocessing import PreprocessConfig
from preprocessing.split import SplitConfig
from sample_data import release as pickled
from segmentation import experiment, fidelity, labels, metrics, nnunet, segmentation, teacher
from tests.benchmarks import demo
from tests.conftest import ROOT, run_script, tiny_flags
from trust import membership, release, replicas, scorecard, turing

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

PREPROCESSING = {"preprocessing": PreprocessConfig, "generate_TOF_template": TemplateConfig}
PREPROCESSING |= {"background": BackgroundConfig, "split": SplitConfig}
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
LONGEST_README = 250  # lines
WITHOUT_COMMANDS = ("architecture.md",)  # chapters about code

# The published options with their published values, a flag written with - where the authors' command has one.
PUBLISHED = """
--name cow --results_dir ./results --models_dir ./models --new False --load_from -1 --image-size 128
--network_capacity 8 --fmap_max 512 --batch-size 8 --gradient-accumulate-every 4 --num_train_steps 100000
--learning-rate 1e-4 --lr-mlp 0.1 --ttur_mult 1.5 --rel_disc_loss False --num_workers None --save_every 3000
--evaluate_every 3000 --generate False --num_generate 1 --generate_interpolation False
--interpolation_num_steps 100 --save_frames False --num_image_tiles 8 --trunc_psi 1 --mixed_prob 0.9
--fp16 True --no_pl_reg False --cl_reg False --fq_layers [] --fq_dict_size 256 --attn_layers []
--no_const False --aug-prob 0.5 --aug-types [translation,cutout] --top_k_training False
--generator_top_k_gamma 0.99 --generator_top_k_frac 0.5 --dual_contrast_loss False --dataset_aug_prob 0.5
--multi_gpus False --calculate_fid_every 3000 --calculate_fid_num_images 1782 --clear_fid_cache False
--seed 42 --log False --transparent False
"""


def test_published_flags_are_the_defaults():
    config = cli.parse_cli(sg.TrainConfig, shlex.split(PUBLISHED))
    expected = sg.TrainConfig(name="cow", calculate_fid_every=3000)
    assert config == expected


def test_dash_equals_underscore_and_texts_stay_texts():
    argv = [
        "--name",
        "20240101_1",
        "--data",
        "007",
        "--image-size=64",
        "--fp16",
        "False",
        "--num-workers",
        "3",
    ]
    config = cli.parse_cli(sg.TrainConfig, argv)
    assert (config.name, config.data, config.image_size) == ("20240101_1", "007", 64)
    assert config.fp16 is False and config.num_workers == 3


@pytest.mark.parametrize(
    "text", ["[translation,contrast]", "translation,contrast", "['translation','contrast']"]
)
def test_lists_can_be_written_in_every_way(text):
    assert cli.parse_cli(sg.TrainConfig, ["--aug_types", text]).aug_types == ("translation", "contrast")


WRONG_FLAGS = {
    "misspelt flag": (["--learning-rat", "1e-3"], "learning-rat"),
    "false in small letters": (["--fp16=false"], "--fp16 must be True or False, got 'false'."),
    "text for a number": (["--batch_size", "eight"], "--batch_size must be a whole number, got 'eight'."),
    "fraction for a whole number": (["--batch_size", "2.5"], "--batch_size must be a whole number, got 2.5."),
    "zero": (["--save_every", "0"], "--save_every must be greater than 0, got 0."),
    "probability": (["--aug_prob", "50"], "--aug_prob must be between 0 and 1, got 50.0."),
    "psi": (["--trunc_psi", "1.5"], "--trunc_psi must be between 0 and 1, got 1.5."),
    "size": (["--image_size", "100"], "--image_size must be a power of two, at least 4 voxels, got 100: "),
    "depth": (["--image_size", "16"], "--image_depth 32 is larger than --image_size 16"),
    "augmentation": (["--aug_types", "[mixup]"], "--aug_types must be translation or cutout or contrast or "),
    "device": (["--device", "gpu"], "--device must be auto, cpu, cuda or cuda:<n>, got 'gpu'."),
    "absent GPU": (
        ["--device", "cuda:99", "--data", "sample_data", "--image_size", "64"],
        "--device cuda:99 is not",
    ),
    "precision": (["--amp_dtype", "fp8"], "--amp_dtype must be auto or float16 or bfloat16, got 'fp8'."),
    "cache": (["--cache", "tape"], "--cache must be ram or gpu or disk or none, got 'tape'."),
    "name": (["--name", "a/b"], "--name must be the name of a folder, without a path, got 'a/b'."),
    "seed": (["--seed", "-1"], "--seed must be 0 or more, got -1."),
    "new and load_from": (["--new", "--load_from", "3"], "--new starts afresh and --load_from continues"),
    "attention": (
        ["--attn_layers", "[1,7]"],
        "--attn_layers must be different numbers of blocks, 1 to 6, got 1,7",
    ),
    "quantisation": (["--fq_layers", "a"], "--fq_layers must be different numbers of blocks, 1 to 6, got a"),
    "aim": (["--log", "aim"], "--log aim is not supported: --log alone writes TensorBoard files"),
    "contrast": (["--cl_reg", "--aug_types", "[]"], "--cl_reg needs augmentations: give --aug_types"),
    "ADA": (["--ada_target", "1.5"], "--ada_target must be between 0 and 1, got 1.5"),
    "balance": (["--balance_classes"], "--balance_classes needs classes: give --labels"),
    "table": (["--labels", "no.csv", "--data", "sample_data"], "--labels no.csv is no file: give folders"),
    "multi_gpus": (["--multi_gpus"], "--multi_gpus needs at least 2 GPUs"),
    "transparent": (["--transparent"], "--transparent is not possible: a one-channel volume has no alpha"),
    "nothing to generate from": (
        ["--generate", "--name", "nobody"],
        "There is no checkpoint model_<n>.pt in",
    ),
    "no data": (["--data", "nowhere"], "--data nowhere does not exist"),
    "not a checkpoint": (
        ["--data", "sample_data", "--init_from", "README.md"],
        "README.md cannot be read (",
    ),
}


@pytest.mark.parametrize("kind", WRONG_FLAGS)
def test_wrong_flags_get_one_line_and_stop(kind, monkeypatch, tmp_path, capsys):
    flags, text = WRONG_FLAGS[kind]
    monkeypatch.chdir(ROOT)
    folders = ["--results_dir", str(tmp_path / "r"), "--models_dir", str(tmp_path / "m")]
    with pytest.raises(SystemExit) as stop:
        sg.main([*flags, *folders])
    message = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert stop.value.code != 0 and text in message
    assert kind == "misspelt flag" or len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_errors_have_no_traceback_and_a_non_zero_exit(tmp_path):
    run = run_script("stylegan2_pytorch.py", "--data", tmp_path, fresh=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"Error: --data {tmp_path} holds no .nii or .nii.gz file."
    assert "Traceback" not in run.stderr


def test_a_fault_of_ours_keeps_its_traceback_and_the_systems_get_one_line(capsys):
    with pytest.raises(ValueError, match="of ours"), cli.one_line_errors():
        raise ValueError("of ours")
    for error, text in (
        (cli.UserError("wrong"), "Error: wrong"),
        (OSError(28, "No space left on device"), "Error: [Errno 28] No space left on device"),
    ):
        with pytest.raises(SystemExit) as stop, cli.one_line_errors():
            raise error
        assert stop.value.code == text
    with pytest.raises(SystemExit) as stop, cli.one_line_errors("Stopped."):
        raise KeyboardInterrupt
    assert stop.value.code == 130 and capsys.readouterr().err == "Stopped.\n"


def test_every_program_says_ctrl_c_in_one_line(monkeypatch):
    for module, name in ((sg, "train_from_folder"), (cow, "generate"), (evaluation, "evaluate")):

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(module, name, interrupt)
        with pytest.raises(SystemExit) as stop:
            module.main([])
        assert stop.value.code == 130


def test_help_explains_every_flag():
    run = run_script("stylegan2_pytorch.py", "--help")
    text = run.stdout + run.stderr
    for field in fields(sg.TrainConfig):
        assert re.search(rf"^  --{field.name}( [A-Z]+)?(  |$)", text, re.MULTILINE), field.name
    for line in (
        "Networks:",
        "Evaluation:",
        "[0.0001]",
        "[translation,cutout]",
        "One of: published (as in the",
    ):
        assert line in text
    assert max(map(len, text.splitlines())) <= 110 and text.count("\n") < 200
    by_recipe = run_script("stylegan2_pytorch.py", "--recipe", "robust", "--help").stdout
    assert "[0.003]" in by_recipe and "[0.003]" not in text


def test_help_may_be_read_in_part():
    """As by `--help | head`: the other end of the pipe is closed before all is written."""
    program = f"{sys.executable} {ROOT / 'preprocessing' / 'split.py'} --help | true; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and run.stderr == ""


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        sg.main(["--version"])
    assert (
        not stop.value.code and capsys.readouterr().out == f"stylegan2-pytorch-3d {volumetric.__version__}\n"
    )


def test_every_default_is_a_valid_setting():
    assert sg.TrainConfig() == cli.parse_cli(sg.TrainConfig, [])


def test_dry_run_of_the_published_command(tmp_path, tmp_path_factory, monkeypatch, capsys):
    elsewhere = tmp_path_factory.mktemp("home")
    for name, value in {
        "TORCH_HOME": elsewhere,
        "XDG_CACHE_HOME": elsewhere,
        "https_proxy": "localhost:9",
    }.items():
        monkeypatch.setenv(name, str(value))  # no weights, no network
    sg_phantoms = tmp_path / "phantoms"
    run_script("sample_data/phantom.py", "--output", sg_phantoms, "--num", 8, "--image_size", 128)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "seconds_on_cpu", lambda *_: None)  # a minute; tests/test_timing.py has it
    sg.main([*shlex.split(PUBLISHED), "--data", str(sg_phantoms), "--dry_run"])
    said = capsys.readouterr().out
    for text in (
        "8 volumes of 128 x 128 x 32 voxels",
        "mapping network S 2.1, generator G 30.1, discriminator D 66.7",
        "batch_size: 8",
        "training without the metrics of this network. The MedicalNet ResNet-10 weights are not here",
        "training without the metrics of this network. The FID Inception weights are not here",
    ):
        assert text in said
    peaks = [float(gib) for gib in re.findall(r"peak memory, [\w ]+: ([\d.]+) GiB", said)]
    assert len(peaks) == 3 and 1 < max(peaks) < 100
    assert [p.name for p in tmp_path.iterdir()] == ["phantoms"]


def test_train_and_generate_by_command_line(data, tmp_path):
    flags = tiny_flags(data, tmp_path, num_train_steps=2)
    assert run_script("stylegan2_pytorch.py", *flags).returncode == 0
    run = run_script("stylegan2_pytorch.py", *flags, "--generate", "--num_generate", 2)
    folder = tmp_path / "results" / "t" / "generated" / "model_0"
    assert run.returncode == 0 and f"2 volumes with pictures and sidecars are in {folder}" in run.stdout
    assert len(list(folder.glob("*.nii.gz"))) == 2


def commands(script, pages=PAGES):
    """Arguments of every call of a script in the code blocks of the README and of docs/."""
    blocks = [b for text in pages.values() for b in re.findall(r"```(?:bash|sh)?\n(.*?)```", text, re.DOTALL)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = [shlex.split(line, comments=True) for line in lines]
    return [c[c.index(script) + 1 :] for c in calls if script in c and c[0] in ("python", "torchrun", "srun")]


def test_every_command_in_the_readme_and_the_docs_parses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever was made by typing them is not looked at
    monkeypatch.syspath_prepend(ROOT / "sample_data")
    import phantom

    monkeypatch.setattr(cli, "check_file", lambda *_: None)  # their files are not here
    configs = {
        "stylegan2_pytorch.py": sg.TrainConfig,
        "CoW_generator.py": cow.GenerateConfig,
        "sample_data/phantom.py": phantom.PhantomConfig,
        "MedicalNet/evaluation.py": evaluation.EvaluateConfig,
        "segmentation/metrics.py": metrics.ScoreConfig,
        "segmentation/labels.py": labels.LabelsConfig,
        "segmentation/segmentation.py": segmentation.SegmentationConfig,
        "segmentation/teacher.py": teacher.TeacherConfig,
        "segmentation/experiment.py": experiment.ExperimentConfig,
        "segmentation/nnunet.py": nnunet.NnunetConfig,
        "sample_data/release.py": pickled.ReleaseConfig,
        "trust/replicas.py": replicas.ReplicasConfig,
        "label_to_volume.py": label_to_volume.LabelToVolumeConfig,
        "progressive_wgan.py": progressive_wgan.ProgressiveConfig,
        "segmentation/fidelity.py": fidelity.FidelityConfig,
        "trust/membership.py": membership.MembershipConfig,
        "trust/turing.py": turing.TuringConfig,
        "trust/scorecard.py": scorecard.ScorecardConfig,
        "trust/release.py": release.ReleaseConfig,
        "preprocessing/conform.py": conform.ConformConfig,
    }
    often = ("stylegan2_pytorch.py", "CoW_generator.py", "sample_data/phantom.py", "MedicalNet/evaluation.py")
    for script, config in configs.items():
        parsed = [cli.parse_cli(config, c) for c in commands(script)]
        assert len(parsed) >= (3 if script in often else 1), script
        if config is cow.GenerateConfig:
            assert {p.mode for p in parsed} == set(cow.MODES)
    for script, config in PREPROCESSING.items():  # their files do not exist here: flags are checked
        flags = {
            part[2:]
            for command in commands(f"preprocessing/{script}.py")
            for part in command
            if part[:2] == "--"
        }
        assert flags and flags <= {field.name for field in fields(config)}
    known = {*configs, *(f"preprocessing/{script}.py" for script in PREPROCESSING)}
    used = {
        s for text in PAGES.values() for s in re.findall(r"(?:python|torchrun[^\n]*?) ([\w/]+\.py)", text)
    }
    assert {s for s in used if not s.startswith("tests/")} <= known
    assert all((ROOT / s).exists() for s in used)


def test_the_published_command_is_quoted_to_the_letter():
    published = """
        --data folder_containing_3D_nifti_128_128_32 --name PROJECT_NAME --results_dir folder_to_save_results
        --models_dir folder_to_save_models --image-size 128 --network_capacity 8 --fmap_max 1024
        --gradient-accumulate-every 4 --batch-size 8 --learning_rate 4e-05 --aug-prob 0.5
        --aug-types [translation,cutout] --dataset_aug_prob 0.5 --save_every 3000 --calculate_fid_every 3000
        --calculate_fid_num_images 1782 --trunc_psi 1 --ttur_mult 1.5 --fp16 True"""
    assert shlex.split(published) in commands("stylegan2_pytorch.py", {"README": README})


def test_the_readme_is_a_newcomers_page():
    assert len(README.splitlines()) <= LONGEST_README
    for path, text in PAGES.items():
        assert path.parent.name != "docs" or f"(docs/{path.name})" in README
        if path.parent.name == "docs" and path.name not in WITHOUT_COMMANDS:  # else it opens with three
            first = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]
            assert len(first.replace("\\\n", " ").splitlines()) == 3
        for link, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
            linked = path.parent / link if link else path
            assert linked.exists(), (path.name, link)
            if anchor and linked.suffix == ".md":
                titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in slugs, (path.name, link, anchor)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = {target for text in PAGES.values() for target in re.findall(r"`?make (\w+)`?", text)}
    assert used and used <= targets


def test_the_readme_has_the_numbers_of_the_demo():
    assert demo.table_of(json.loads(demo.KEPT.read_text(encoding="utf-8"))) in README


def test_the_first_commands_run(tmp_path):
    """As they stand in the README, but for the number of steps."""
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    first = [c for c in commands("stylegan2_pytorch.py", {"README": README}) if "first" in c]
    assert len(first) == 3 and "--dry_run" in first[0]
    for command in first:
        run = run_script(
            "stylegan2_pytorch.py", *("2" if part == "100" else part for part in command), cwd=tmp_path
        )
        assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "results" / "first" / "generated" / "model_0").glob("*.nii.gz"))) == 4


def test_set_up_files_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.match(r"[\w-]+", d)[0].lower() for d in project["dependencies"]]
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert project["requires-python"] == ">=3.10" and "torch>=2.6,!=2.9.*" in project["dependencies"]
    assert "python=3.11" in environment and "-e .[test]" in environment and '".[test]"' in makefile
    for name in names:  # pyproject.toml is the only list
        assert not re.search(rf"^\s*- {name}\b", environment, re.MULTILINE), name
        assert name not in makefile.split(), name
        assert re.search(rf"\b{name}\b", README, re.IGNORECASE), f"{name} is not in the README's list"
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {volumetric.__version__}\n" in citation
    assert "Python 3.10" in README and "torch 2.6" in README
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()[-1] == "make test"


def test_a_program_outside_its_environment_says_so():
    run = subprocess.run(  # -S: nothing that was installed is seen
        [sys.executable, "-S", ROOT / "CoW_generator.py"], capture_output=True, text=True, env={}, check=False
    )
    assert run.returncode == 1 and run.stdout == ""
    assert re.fullmatch(r"Error: \w+ is not installed here: activate the environment .*\n", run.stderr)


def test_console_commands_are_programs():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    for command, target in scripts.items():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function)) and f"`{command}`" in README


def test_imports_are_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.match(r"[\w-]+", d)[0].lower() for d in project["dependencies"]}
    modules, ours = {"PIL": "pillow"}, {"stylegan2_pytorch", "MedicalNet", "sample_data", "volumetric"}
    for script in (
        "stylegan2_pytorch.py",
        "CoW_generator.py",
        "MedicalNet/resnet.py",
        "sample_data/phantom.py",
    ):
        imported = re.findall(
            r"^(?:import|from) (\w+)", (ROOT / script).read_text(encoding="utf-8"), re.MULTILINE
        )
        third_party = {m for m in imported if m not in sys.stdlib_module_names and m not in ours}
        assert {modules.get(m, m) for m in third_party} <= names


def test_nothing_generated_is_tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout.split()
    nifti = [p for p in tracked if p.endswith((".nii", ".nii.gz"))]
    assert all(Path(p).parent.name == "sample_data" for p in nifti)
    assert not [p for p in tracked if p.startswith((".venv", "demo/", "results/", "models/"))]
