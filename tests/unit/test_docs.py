"""What the documentation names exists: links, paths, functions, settings, commands, recipes."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from resnet_dist.config import SECTIONS, field_paths
from resnet_dist.config.load import load_config, shipped_configs
from resnet_dist.recipes.__main__ import page
from tests.unit.test_layout import LEVELS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("docs/*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
        ROOT / "tests" / "README.md",
    ]
)
MOST_WORDS = 1200

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(
    r"(?<![\w/.])(?:tests|resnet_dist|launch|configs|benchmarks|docs|tools)/[\w./*-]*[\w/*]"
)
FUNCTION = re.compile(r"`([\w/]+\.py):([\w.]+)`")
SETTING = re.compile(rf"`({'|'.join(SECTIONS)})\.([a-z_0-9]+)(?:=[^`]*)?`")
ARGUMENT = re.compile(rf"(?<![\w/.-])({'|'.join(SECTIONS)})\.([a-z_0-9]+)=")
FILE_ENDINGS = {"py", "lock", "json", "yaml", "md"}
"""`run.lock` and `loss.py` are files."""

on_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row whose first one is a name in backticks."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@on_each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target.split("#")[0]).exists()]
    assert missing == []


@on_each_page
def test_paths_exist(page: Path) -> None:
    found = {path.removesuffix("/") for path in PATH.findall(page.read_text())}
    missing = [
        path
        for path in sorted(found)
        if not list(ROOT.glob(path)) and not list(page.parent.glob(path))
    ]
    assert missing == []


@on_each_page
def test_functions_exist(page: Path) -> None:
    for file, name in FUNCTION.findall(page.read_text()):
        known = [path for path in (ROOT / "resnet_dist" / file, ROOT / file) if path.exists()]
        assert known, file
        source = known[0].read_text()
        for part in name.split("."):
            pattern = rf"(?m)^\s*(?:(?:def|class) {part}\b|{part}\s*[:=])"
            assert re.search(pattern, source), f"{file} has no {part}"


@on_each_page
def test_settings_exist(page: Path) -> None:
    text = page.read_text()
    named = {f"{section}.{key}" for section, key in SETTING.findall(text) + ARGUMENT.findall(text)}
    named = {name for name in named if name.partition(".")[2] not in FILE_ENDINGS}
    assert sorted(named - set(field_paths())) == []


@on_each_page
def test_commands_exist(page: Path) -> None:
    text = page.read_text()
    modules = {*re.findall(r"-m ((?:resnet_dist|launch)\.\w+)", text)}
    modules |= {f"resnet_dist.{verb}" for verb in re.findall(r"resnet-dist ([a-z]+)", text)}
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


def test_the_readmes_recipes_have_the_epochs_and_batch_of_their_files() -> None:
    rows = {row[0].strip("`"): row for row in table_rows((ROOT / "README.md").read_text())}
    assert set(rows) <= set(shipped_configs())
    assert len(rows) >= 10
    for name, row in rows.items():
        train = load_config([name]).config.train
        assert row[2:4] == [str(train.epochs), str(train.global_batch_size)], name


def test_the_page_of_recipes_is_current() -> None:
    assert (ROOT / "docs" / "recipes.md").read_text() == page()


def test_the_index_lists_every_page() -> None:
    targets = set(LINK.findall((ROOT / "docs" / "README.md").read_text()))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(pages - targets) == []


def test_the_import_levels_are_those_that_are_tested() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    _, _, after = text.partition("## Import levels")
    lines = re.findall(r"(?m)^ ?\d+\. (.*)$", after.partition("## Walk")[0])
    assert [set(re.findall(r"`(\w+)`", line)) for line in lines] == LEVELS


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == project["version"]
    assert citation["license"] == project["license"]


def test_commits_are_checked_with_the_projects_own_tools() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {each["repo"] for each in hooks["repos"]} == {"local"}
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "run: .ci/run" in workflow
