"""docs/architecture.md names files and definitions that are there."""

import ast
import re

from tests.conftest import ROOT
from tests.test_house import FILES, name_of

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = ("", "volumetric", "MedicalNet", "preprocessing", "segmentation", "trust", "sample_data", "tests")
TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", TEXT)))
PATHS = [s for s in SPANS if re.fullmatch(r"[\w/.-]+(\.(py|html|md|svg|toml)|/)", s)]
NAMES = [s for s in SPANS if re.fullmatch(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", s) and s not in PATHS]
WRITTEN = {"report.html", "run.html", "metrics.json"}  # by programs


def names_in(body):
    """Names that the statements of a module or a class define, and what its methods set of themselves."""
    found = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                found.add(part.id)
            if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                found.add(part.attr)
    return found


CLASSES = {n.name: n for tree in TREES.values() for n in tree.body if isinstance(n, ast.ClassDef)}


def is_defined(name):
    """True if `owner.member` is: of a class, or of a module of that name in any room."""
    owner, member = name.split(".")
    if owner in CLASSES:
        return member in names_in(CLASSES[owner].body)
    return any(member in names_in(t.body) for module, t in TREES.items() if module.split(".")[-1] == owner)


def test_every_path_is_there():
    assert not [p for p in PATHS if p not in WRITTEN and not any((ROOT / r / p).exists() for r in ROOMS)]


def test_every_name_is_defined_where_it_is_said_to_be():
    assert len(NAMES) > 30
    assert not [name for name in NAMES if name not in WRITTEN and not is_defined(name)]


def test_the_page_names_every_module_of_the_ground():
    modules = {p.name for p in (ROOT / "volumetric").glob("*.py")} - {"__init__.py"}
    assert not {m for m in modules if f"`{m}`" not in TEXT}
