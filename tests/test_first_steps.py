"""The notebook runs, a wheel holds all of it below one name, the container has the versions that fit."""

import json
import os
import re
import subprocess
import sys
import zipfile

import pytest

import cow3d
from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "first_steps.ipynb"
PROGRAM = """
import json, sys
import matplotlib
import torch
matplotlib.use("Agg")
torch.set_num_threads(1)
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
scope = {"__name__": "__main__"}
for number, cell in enumerate(cells):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), scope)
"""


def python(*arguments, cwd, path=ROOT):
    """Run Python as a stranger to this checkout, who has `path` on the module path."""
    known = {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(cwd)}
    run = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=1800,
        env=os.environ | known,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


# ---- the notebook


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    out = python("-W", "error::DeprecationWarning:__main__", "-c", PROGRAM, NOTEBOOK, cwd=tmp_path)
    assert "step 7000 voxels (64, 64, 16) axes RAS" in out and "the same: True" in out
    assert "vessel-volume-ml: mean" in out and '"synthetic": true' in out
    written = {path.name for path in (tmp_path / "first_steps" / "normal").iterdir()}
    assert {"seed000003.nii.gz", "seed000003.json", "seed000008.nii.gz"} <= written


def test_the_notebook_keeps_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(
        notebook["cells"]
    )
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


# ---- the wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder into which the wheel of this checkout was installed, without its dependencies."""
    pytest.importorskip("setuptools", "70.1", "builds wheels by itself since then")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves build/ and egg-info behind
    names = ["MedicalNet", "preprocessing", "sample_data", "segmentation", "trust", "volumetric"]
    for path in [*ROOT.glob("*.*"), *(p for name in names for p in (ROOT / name).rglob("*"))]:
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    python("-c", build, cwd=source, path=folder)
    (wheel,) = folder.glob("*.whl")
    python("-m", "pip", "install", "--no-index", "--no-deps", "--target", folder / "site", wheel, cwd=folder)
    return folder / "site"


def test_a_wheel_has_one_name(site):
    (wheel,) = site.parent.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cow3d"}
    held = {name.removeprefix("cow3d/") for name in names if name.startswith("cow3d/")}
    for name in (
        "__init__.py",
        "stylegan2_pytorch.py",
        "sample_data/phantom_model.pt",
        "trust/model-card.md",
    ):
        assert name in held
    assert set(cow3d.programs()) <= held and not {"cow3d.py", "setup.py"} & held


def test_commands_of_a_wheel_run_from_any_folder(site, tmp_path):
    # Another package of the same name, found before the project, does not come between.
    ancestor = tmp_path / "stylegan2_pytorch" / "__init__.py"
    ancestor.parent.mkdir()
    ancestor.write_text("raise SystemExit('the ancestor')", encoding="utf-8")
    command = site / "bin"
    assert "--network_capacity" in python(command / "cow-train", "--help", cwd=tmp_path, path=site)
    shown = python(command / "cow-run", "trust/replicas.py", "--help", cwd=tmp_path, path=site)
    assert "--training" in shown
    python(command / "cow-generate", "--num_generate", 1, "--device", "cpu", cwd=tmp_path, path=site)
    assert (tmp_path / "generated" / "normal" / "seed000000.nii.gz").is_file()
    where = python("-c", "import cow3d, stylegan2_pytorch as sg; print(sg.__file__)", cwd=tmp_path, path=site)
    assert where.strip() == str(site / "cow3d" / "stylegan2_pytorch.py")


def test_a_checkout_needs_no_door(tmp_path):
    assert "cow3d False" in python(
        "-c", "import sys, stylegan2_pytorch; print('cow3d', 'cow3d' in sys.modules)", cwd=tmp_path
    )


def test_a_program_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cow-run", "trust/replica.py"])
    with pytest.raises(SystemExit, match=r"got trust/replica.py, which is none of .*trust/replicas.py"):
        cow3d.run()


# ---- the container


def test_the_container_is_made_of_what_is_named():
    recipe = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (torch,) = re.findall(r'"(torch[>=].*)",', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert f'"{torch}" torchvision' in recipe and "make install" in recipe
    assert recipe.index("USER 1000") < recipe.index("COPY") and "USER root" not in recipe
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in kept and not any(f"!{name}" in kept for name in (".git", ".venv", "data", "demo"))
    for folder in {p.parent.name for p in ROOT.glob("*/__init__.py")} | {"docs", "findings", "sample_data"}:
        assert f"!{folder}" in kept
