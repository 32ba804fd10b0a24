"""The page of a first own model: its commands, typed in order in a fresh folder, smaller and shorter."""

import re
import shlex

import pytest

import stylegan2_pytorch
from MedicalNet import evaluation
from preprocessing import conform, split
from sample_data import phantom
from tests.conftest import ROOT
from trust import replicas

PROGRAMS = {"sample_data/phantom.py": phantom, "preprocessing/conform.py": conform}
PROGRAMS |= {"preprocessing/split.py": split, "stylegan2_pytorch.py": stylegan2_pytorch}
PROGRAMS |= {"MedicalNet/evaluation.py": evaluation, "trust/replicas.py": replicas}
QUICK = {"--num": "60", "--image_size": "16", "--image_depth": "8", "--num_train_steps": "2"}
QUICK |= {"--network_capacity": "2", "--fmap_max": "16", "--batch_size": "4", "--num_generate": "8"}
MORE = {"stylegan2_pytorch.py": ("--device", "cpu")}
MORE |= {
    "MedicalNet/evaluation.py": (
        "--embedding",
        "random",
        "--bootstrap",
        "0",
        "--cache_dir",
        "none",
        "--metrics",
        "md",
    )
}


def commands():
    """[(script, arguments)] of the page in its order, the phantoms of its first sentence before them."""
    text = (ROOT / "docs" / "first_model.md").read_text(encoding="utf-8")
    (first,) = re.findall(r"`(python sample_data/phantom.py[^`]*)`", text)
    lines = "\n".join([first, *re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]).replace("\\\n", " ")
    words = [shlex.split(line) for line in lines.splitlines()]
    return [(found[1], quick(found[1], found[2:])) for found in words if found]


def quick(script, arguments):
    """Arguments with values of QUICK in place of their own, and MORE."""
    pairs = zip([None, *arguments], arguments, strict=False)
    return [QUICK.get(before, word) for before, word in pairs] + list(MORE.get(script, ()))


def test_the_page_can_be_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for script, arguments in commands():
        try:
            PROGRAMS[script].main(arguments)
        except SystemExit as ended:  # of so few volumes the gate cannot be sure
            assert script == "trust/replicas.py" and ended.code == 2
    text = capsys.readouterr().out
    assert "How long? About" in text and "Are there enough volumes to tell?" in text
    for made in ("conformed/volumes", "synthetic_mine", "evaluation_mine/report.html", "replicas_mine"):
        assert (tmp_path / made).exists(), made
    with pytest.raises(SystemExit, match="--data"):
        conform.main(["--data", "nowhere", "--output", "other"])
