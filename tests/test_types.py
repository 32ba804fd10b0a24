"""The types of what other programs and notebooks import: a checker finds no contradiction in them."""

import subprocess
import sys

from tests.conftest import ROOT


def test_types_agree():
    """Which modules, and how strictly, is in pyproject.toml; the first run reads PyTorch's own types."""
    run = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=1800
    )
    assert run.returncode == 0, run.stdout + run.stderr
