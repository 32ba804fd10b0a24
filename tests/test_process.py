"""What imports and library calls leave of a process as it was: flags of PyTorch, environment, warnings."""

import subprocess
import sys

from tests.conftest import ROOT, SMALL

# The packages that are imported first have settings of their own, which are theirs to make.
PROGRAM = """
import os, warnings, importlib
for name in ("fire", "matplotlib", "monai.losses", "nibabel", "numpy", "pydicom", "scipy.linalg",
             "skimage.filters", "sklearn.cluster", "torch", "torchmetrics", "torch_fidelity", "tqdm"):
    importlib.import_module(name)
import matplotlib, torch

def settings():
    cudnn, deterministic = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    flags = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, cudnn.enabled, deterministic)
    flags += (torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision())
    flags += (torch.utils.deterministic.fill_uninitialized_memory, torch.get_default_dtype())
    flags += (torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled())
    return {"flags": flags, "environment": dict(os.environ), "warnings": list(warnings.filters),
            "backend": matplotlib.rcParams["backend"], "malloc": MALLOC}

MALLOC = []
import ctypes
whole = ctypes.CDLL
class Watched(whole):
    def __getattr__(self, name):
        MALLOC.extend([name] if name == "mallopt" else [])
        return super().__getattr__(name)
ctypes.CDLL = Watched
before = settings() | {"malloc": []}
for name in NAMES:
    importlib.import_module(name)
import stylegan2_pytorch as sg
trainer = sg.Trainer(sg.TrainConfig(device="cpu", batch_size=2, num_image_tiles=1, **SMALL))
from CoW_generator import SHIPPED
next(sg.ModelLoader(checkpoint=SHIPPED, device="cpu").volumes_of([0]))
after = settings()
for name in before:
    assert before[name] == after[name], (name, before[name], after[name])
from volumetric.parallel import prepare_process
prepare_process("cpu")
assert MALLOC, "the watch on malloc sees nothing"
prepare_process("cuda")
assert torch.backends.cudnn.benchmark
"""


def test_imports_and_constructors_leave_the_process_as_it_was():
    rooms = ("MedicalNet", "preprocessing", "sample_data", "segmentation", "trust", "volumetric")
    files = [*ROOT.glob("*.py"), *(p for room in rooms for p in (ROOT / room).glob("*.py"))]
    names = sorted(
        ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files if p.name != "__init__.py"
    )
    names = [name for name in names if name not in ("setup", "cow3d")]
    text = f"NAMES, SMALL = {names!r}, {SMALL!r}\n{PROGRAM}"
    run = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=1800
    )
    assert run.returncode == 0, run.stdout + run.stderr
