"""The door of the installed project: its programs lie beside this file and are found from here on.

    cow-train --help                            a program with a command of its own
    cow-run trust/replicas.py --help            any other
    import cow3d; import stylegan2_pytorch      from Python, where the project was installed from a wheel

A wheel has all modules below one folder, cow3d/, and this file is its `__init__.py` (see setup.py), since
names such as `trust`, `preprocessing` or `stylegan2_pytorch` belong to other packages, too. In a checkout and
after `pip install -e .` it lies at the top, and needs no import before the others.
"""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDERS = ("MedicalNet", "preprocessing", "sample_data", "segmentation", "trust")  # that hold programs
COMMANDS = {
    "train": "stylegan2_pytorch",
    "generate": "CoW_generator",
    "evaluate": "MedicalNet.evaluation",
    "label_to_volume": "label_to_volume",
    "progressive": "progressive_wgan",
    "phantom": "sample_data.phantom",
    "conform": "preprocessing.conform",
    "split": "preprocessing.split",
}

if sys.path[0] != str(HERE):
    sys.path.insert(0, str(HERE))


def __getattr__(name):
    """The `main` of the program that a command calls."""
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__} has no {name}")
    return importlib.import_module(COMMANDS[name]).main


def programs():
    """{path below this folder: path} of every program."""
    folders = (HERE, *(HERE / name for name in FOLDERS))
    paths = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    entry = '\nif __name__ == "__main__":'
    found = [path for path in paths if entry in path.read_text(encoding="utf-8")]
    return {path.relative_to(HERE).as_posix(): path for path in found}


def run():
    """The command `cow-run`: one of the programs, named as in a checkout, with its flags."""
    known = programs()
    name, flags = (sys.argv[1] if len(sys.argv) > 1 else "nothing"), sys.argv[2:]
    if name not in known:
        sys.exit(f"Error: cow-run got {name}, which is none of the programs: {', '.join(known)}.")
    sys.argv = [str(known[name]), *flags]
    return importlib.import_module(name.removesuffix(".py").replace("/", ".")).main()
