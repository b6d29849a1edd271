"""The direction of imports, and that the two files that everyone reads stay readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "resnet_dist"

LEVELS = [
    {"__version__", "errors", "rng"},
    {"system"},
    {"config"},
    {"world"},
    {"run"},
    {"data", "models", "optim", "metrics", "checkpoint", "faults"},
    {"loss", "weights"},
    {"report"},
    {"state", "step"},
    {"performance", "evaluate", "predict", "export"},
    {"loop"},
    {"build"},
    {"evaluator"},
    {"trainer"},
    {"train"},
    {"bench", "diff", "doctor", "inspect", "prepare", "recipes", "selftest"},
    {"plan", "replay"},
    {"__main__"},
]
"""A module may import from levels above it in this list, and from its own package."""


def level_of(name: str) -> int:
    found = [level for level, names in enumerate(LEVELS) if name in names]
    assert found, f"{name} has no level: put it into LEVELS"
    return found[0]


def imported_names(path: Path) -> set[str]:
    """First components below resnet_dist that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "resnet_dist":
                names |= {alias.name for alias in node.names}
            elif node.module.startswith("resnet_dist."):
                names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("resnet_dist.")
            }
    return names


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    wrong = [name for name in imported_names(path) - {own} if level_of(name) >= level_of(own)]
    assert wrong == [], f"{own} must not import {wrong}"


def test_the_package_never_imports_launch() -> None:
    for path in FILES:
        assert "launch" not in {
            (node.module or "").split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        }


@pytest.mark.parametrize("name", ["train.py", "trainer.py", "build.py", "loop.py", "step.py"])
def test_the_main_files_stay_readable(name: str) -> None:
    source = (PACKAGE / name).read_text()
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, node.name
            positional = len(node.args.posonlyargs) + len(node.args.args)
            assert positional + len(node.args.kwonlyargs) <= 7, node.name


def test_every_package_is_found() -> None:
    """setuptools finds what has an `__init__.py` (and the folder of configs, by a link)."""
    for top in ("resnet_dist", "launch"):
        for folder in (path for path in (ROOT / top).rglob("*") if list(path.glob("*.py"))):
            assert (folder / "__init__.py").exists(), folder
    assert (PACKAGE / "configs").resolve() == ROOT / "configs"


def test_nothing_names_an_index_or_the_machine_it_was_made_on() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "http://" not in lock
    assert "https://" not in lock
    assert "--hash=sha256:" in lock
