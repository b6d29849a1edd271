"""What `launch` imports: of the trainer only what needs no torch, and on a host without packages
still enough to requeue."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.unit.test_layout import imported_names

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "launch").glob("*.py"))
TORCH_FREE = {"config", "data", "errors", "run", "system"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_launch_imports_only_what_needs_no_torch(path: Path) -> None:
    assert imported_names(path) <= TORCH_FREE
    if path.name != "agent.py":  # it is torchrun
        roots = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        assert not roots & {"torch", "torchvision", "numpy", "nvidia"}


@pytest.mark.parametrize("name", sorted(TORCH_FREE))
def test_the_shared_modules_exist(name: str) -> None:
    package = ROOT / "resnet_dist"
    assert (package / f"{name}.py").exists() or (package / name / "__init__.py").exists()


def test_every_config_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setuptools["package-data"]["resnet_dist.configs"]
    shipped = {path for pattern in patterns for path in (ROOT / "configs").glob(pattern)}
    assert shipped == set((ROOT / "configs").rglob("*.yaml"))


def python(*words: str, cwd: Path = ROOT, **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout


def test_the_users_commands_start_without_torch() -> None:
    modules = "submit, status, logs, cancel, resume, preflight, epilogue, follow, snapshot"
    code = f"from launch import {modules}; import sys; "
    code += "print([m for m in ('torch', 'torchvision', 'numpy', 'nvidia') if m in sys.modules])"
    assert python("-c", code) == "[]\n"


def test_the_epilogue_needs_the_standard_library_only() -> None:
    """-S -E: no packages that are installed, no PYTHON variables."""
    out = python("-S", "-E", "-m", "launch.epilogue", "--help")
    assert "--exclude-bad" in out
    code = "import launch.epilogue, sys; "
    code += "print(sorted({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    assert python("-S", "-E", "-c", code) == "['__main__', 'launch', 'resnet_dist']\n"
