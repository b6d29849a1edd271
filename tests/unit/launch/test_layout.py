"""What `launch` imports: in itself only downwards; of the trainer only what needs no torch; and on
a host without packages still enough to requeue."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LAUNCH = ROOT / "launch"
FILES = sorted(LAUNCH.rglob("*.py"))
COMMANDS = {"submit", "resume", "status", "logs", "cancel", "preflight"}
LEVELS = [{"records", "cluster"}, {"node"}, {"reports"}, {"submission"}, COMMANDS]
"""A module may import from its own package and from levels above it in this list."""

TORCH_FREE = {
    "resnet_dist",
    "resnet_dist.run.lock",
    "resnet_dist.config",
    "resnet_dist.config.help.listing",
    "resnet_dist.config.load",
    "resnet_dist.config.run",
    "resnet_dist.system.paths",
    "resnet_dist.system.files",
    "resnet_dist.errors",
    "resnet_dist.system.processes",
    "resnet_dist.data.micro_batches",
    "resnet_dist.run.checkpoint_files",
    "resnet_dist.run.folder",
    "resnet_dist.run.outcome",
    "resnet_dist.run.versions",
    "resnet_dist.system.json_files",
}
"""What the launcher may use of the trainer."""


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            top = node.module.split(".")[0]
            modules = {
                name for name in inner if top in ("launch", "resnet_dist") and _is_module(name)
            }
            names |= modules or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def level_of(module: str) -> int:
    name = module.split(".")[1]
    found = [level for level, names in enumerate(LEVELS) if name in names]
    assert found, f"{module} has no level: put it into LEVELS"
    return found[0]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down_only(path: Path) -> None:
    own = module_of(path)
    used = {name for name in imported(path) if name.startswith("launch.")}
    for name in used:
        is_own_package = own.count(".") > 1 and name.split(".")[1] == own.split(".")[1]
        assert is_own_package or level_of(name) < level_of(own), f"{own} must not import {name}"


def test_there_is_no_circle() -> None:
    graph = {module_of(path): imported(path) for path in FILES}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_launch_imports_only_what_needs_no_torch(path: Path) -> None:
    names = imported(path)
    assert {name for name in names if name.split(".")[0] == "resnet_dist"} <= TORCH_FREE
    if path.name != "agent.py":  # it is torchrun
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"torch", "torchvision", "numpy", "nvidia"}


@pytest.mark.parametrize("name", sorted(TORCH_FREE))
def test_the_shared_modules_exist(name: str) -> None:
    assert _is_module(name)


def test_files_and_functions_are_short_and_folders_small() -> None:
    for path in [*FILES, *sorted(Path(__file__).parent.rglob("*.py"))]:
        source = path.read_text()
        assert len(source.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 60, (path, node.name)
                names = [each.arg for each in node.args.args + node.args.kwonlyargs]
                assert len(set(names) - {"self", "cls"}) <= 7, (path, node.name)
    for folder in {path.parent for path in FILES}:
        assert len(list(folder.glob("*.py"))) <= 12, folder


def test_every_config_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setuptools["package-data"]["resnet_dist.configs"]
    shipped = {path for pattern in patterns for path in (ROOT / "configs").glob(pattern)}
    files = {path for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert shipped == files


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
    code = f"from launch import {', '.join(sorted(COMMANDS))}; import launch.node.requeue, sys; "
    code += "print([m for m in ('torch', 'torchvision', 'numpy', 'nvidia') if m in sys.modules])"
    assert python("-c", code) == "[]\n"


def test_the_end_of_the_batch_script_needs_the_standard_library_only() -> None:
    """-S -E: no packages that are installed, no PYTHON variables."""
    out = python("-S", "-E", "-m", "launch.node.requeue", "--help")
    assert "--exclude-bad" in out
    code = "import launch.node.requeue, sys; "
    code += "print(sorted({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    assert python("-S", "-E", "-c", code) == "['__main__', 'launch', 'resnet_dist']\n"


PRIVATE = {"launch.submission.sbatch": {"_make_sbatch_string"}}
"""What is used of submitit although it is not public, and by which file alone."""


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_submitit_is_used_by_its_public_names(path: Path) -> None:
    used = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "submitit"
        for alias in node.names
    }
    private = {name for name in used if name.startswith("_")}
    assert private == PRIVATE.get(module_of(path), set())
    if used:  # and no private attribute of its objects
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                assert isinstance(node.value, ast.Name), node.attr
                assert node.value.id in ("self", "cls"), node.attr
    if module_of(path) not in PRIVATE:
        assert "submitit.core._submit" not in path.read_text()


def test_the_range_of_submitits_versions_is_bounded() -> None:
    """Where a private name is used, a later minor version may have it otherwise."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (found,) = [line for line in project["dependencies"] if line.startswith("submitit")]
    assert found == "submitit>=1.5.2,<1.6"
    numbers = tuple(int(part) for part in version("submitit").split(".")[:3])
    assert (1, 5, 2) <= numbers < (1, 6)
