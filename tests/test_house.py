"""The house: which file may import which, sizes, docstrings. volumetric/ is the ground; arrows go down."""

import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# What each module of the ground may import of the ground.
GROUND = {
    "help": set(),
    "cli": {"help"},
    "files": {"cli"},
    "geometry": {"cli", "files"},
    "tables": {"cli", "files"},
    "names": {"cli"},
    "collection": {"cli", "files", "geometry", "machine", "names", "tables"},
    "dicom_writing": {"cli", "files", "geometry"},
    "pictures": {"files", "geometry"},
    "pages": {"files"},
    "parallel": {"cli"},
    "dataset": {"cli", "collection", "files", "geometry", "machine", "parallel", "tables"},
    "rates": set(),
    "meanings": {"run_page"},
    "machine": set(),
    "timing": {"machine", "pages"},
    "vessels": set(),
    "viewer": {"cli", "collection", "files", "names", "pages"},
    "sidecars": {"cli", "collection", "files", "names"},
    "generation": {"cli", "dataset", "dicom_writing", "files", "parallel", "pictures", "runs", "sidecars"},
    "diff_augment": {"files", "parallel"},
    "layers": {"cli"},
    "optional_layers": {"layers"},
    "memory": {"cli"},
    "arrangement": {"cli", "memory", "timing"},
    "replay": {"cli"},
    "logs": {"files"},
    "curves": {"pages"},
    "run_page": {"cli", "curves", "files", "logs", "pages", "pictures"},
    "plan": set(),
    "runs": {"cli", "files", "logs", "parallel", "pictures", "plan", "released", "run_page"},
    "released": {"cli", "files"},
    "continuing": {"cli", "collection", "dataset", "files", "geometry", "logs", "parallel", "runs", "tables"},
    "training": {
        "arrangement",
        "cli",
        "continuing",
        "dataset",
        "files",
        "geometry",
        "layers",
        "logs",
        "memory",
        "parallel",
        "pictures",
        "replay",
        "run_page",
        "runs",
        "tables",
        "timing",
    },
}
WITHOUT_TORCH = (
    "volumetric/cli.py",
    "volumetric/help.py",
    "volumetric/files.py",
    "volumetric/geometry.py",
    "volumetric/tables.py",
    "volumetric/names.py",
    "volumetric/collection.py",
    "volumetric/dicom_writing.py",
    "volumetric/pictures.py",
    "volumetric/rates.py",
    "volumetric/vessels.py",
    "volumetric/pages.py",
    "volumetric/logs.py",
    "volumetric/plan.py",
    "volumetric/curves.py",
    "volumetric/run_page.py",
    "volumetric/machine.py",
    "volumetric/sidecars.py",
    "volumetric/viewer.py",
)
# Programs in one file, and how long they may be; every other file has at most 700 lines.
PROGRAMS = {"stylegan2_pytorch.py": 1750, "CoW_generator.py": 1100, "sample_data/phantom.py": 1000}
PROGRAMS |= {"label_to_volume.py": 1100, "progressive_wgan.py": 800}
LONGEST_METHOD = 45  # lines, of the trainer

FILES = sorted(
    p
    for p in ROOT.rglob("*.py")
    if not {"build", "demo", ".venv"} & set(p.relative_to(ROOT).parts) and "egg-info" not in str(p)
)
CODE = [p for p in FILES if "tests" not in p.relative_to(ROOT).parts]


def name_of(path):
    """volumetric/cli.py -> volumetric.cli"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in CODE}


def imported(path):
    """Names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


ARROWS = {name: (imported(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}


def test_no_circle():
    def walk(name, trail):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        for below in ARROWS[name]:
            walk(below, [*trail, name])

    for name in ARROWS:
        walk(name, [])


@pytest.mark.parametrize("module", GROUND)
def test_the_ground_knows_nothing_of_who_stands_on_it(module):
    below = {name.removeprefix("volumetric.") for name in ARROWS[f"volumetric.{module}"]}
    assert below - {"volumetric"} <= GROUND[module]


def test_the_ground_has_no_other_modules():
    assert {n for n in MODULES if n.startswith("volumetric.")} == {f"volumetric.{m}" for m in GROUND}


def test_tools_do_not_import_the_trainer_but_for_the_generator():
    users = {name for name, below in ARROWS.items() if "stylegan2_pytorch" in below}
    assert users == {"CoW_generator"}


@pytest.mark.parametrize("path", WITHOUT_TORCH)
def test_no_torch_where_it_must_not_be(path):
    assert not {n for n in imported(ROOT / path) if n.split(".")[0] == "torch"}


def test_workers_that_need_no_torch_do_not_import_it():
    modules = "preprocessing.scans, preprocessing.preprocessing, sample_data.phantom, MedicalNet.anatomy"
    code = f"import sys, {modules}; print([m for m in sys.modules if m.split('.')[0] == 'torch'])"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=1800
    )
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_hold_one_thing(path):
    limit = PROGRAMS.get(path.relative_to(ROOT).as_posix(), 700)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_text_says_how_it_is_encoded(path):  # a computer's own way is ASCII on some, and not UTF-8 on others
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        plain_open = name == "open" and isinstance(node.func, ast.Name) and "b" not in mode_of(node)
        if name in ("read_text", "write_text") or plain_open:
            assert any(k.arg == "encoding" for k in node.keywords), f"line {node.lineno}"


def mode_of(call):
    """Mode of a call of open."""
    return call.args[1].value if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else "r"


def test_new_folders_are_made_in_one_way():
    """By files.new_folder, which says of a folder that its program did not come to its end."""
    others = {name for name in MODULES if "volumetric.files.next_free" in imported(MODULES[name])}
    assert {name for name in others if not name.startswith("volumetric.")} == {
        "MedicalNet.scores",  # goes on in its folder
        "segmentation.experiment",  # moves a former run aside
    }


def test_what_trainers_share_is_of_no_kind_of_model():
    text = (ROOT / "volumetric" / "training.py").read_text(encoding="utf-8")
    words = r"discriminator|GAN\b|fake_|real_logits|\bG_opt|\bD_opt|STREAM_[DG]\b|\"GD\""
    assert not re.findall(words, text.replace("fake_tensors", ""))


def test_methods_of_the_trainer_fit_a_screen():
    tree = ast.parse((ROOT / "stylegan2_pytorch.py").read_text(encoding="utf-8"))
    trainer = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Trainer")
    lengths = {n.name: n.end_lineno - n.lineno + 1 for n in trainer.body if isinstance(n, ast.FunctionDef)}
    assert max(lengths.values()) <= LONGEST_METHOD, {n: k for n, k in lengths.items() if k > LONGEST_METHOD}


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_two_plain_lines_say_is_no_riddle(path):
    """No `a, b = (f(x) for x in (p, q))`, no `zip(*rows)`: a reader would run them in the head."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.GeneratorExp | ast.ListComp):
            assert not isinstance(node.targets[0], ast.Tuple), f"line {node.lineno}: two lines, please"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "zip":
            assert not any(isinstance(a, ast.Starred) for a in node.args), f"line {node.lineno}: name them"


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_definition_says_what_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for scope in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]:
        for node in scope.body:
            plain = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if plain and not node.name.startswith("__") and node.name not in ("forward", "backward"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_the_picture_of_the_house_is_drawn_from_its_imports():
    from tests.benchmarks.house import PICTURE, picture

    assert PICTURE.read_text(encoding="utf-8") == picture(), "draw it again: python tests/benchmarks/house.py"
