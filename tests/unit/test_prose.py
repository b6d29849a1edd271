"""Messages are for people: no code decides anything by their words.

Looks in the sources of both packages for operations on messages: comparisons, searches and splits
of what is called a reason, a message, an owner or an error. Displaying them is free.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MESSAGES = {"reason", "message", "msg", "error", "err", "exception", "owner", "remark", "printed"}
"""Names of what holds words; also of an attribute, and of what str() is made of."""
METHODS = {
    "startswith",
    "endswith",
    "split",
    "rsplit",
    "partition",
    "rpartition",
    "find",
    "rfind",
    "index",
    "count",
    "removeprefix",
    "removesuffix",
}
ALLOWED = {
    ("slurm.py", "_is_unknown_job"): "squeue has one exit code for a job that it forgot and for a "
    "controller that does not answer",
    (
        "slurm.py",
        "ask",
    ): "Slurm's tools without a cluster end like all their errors; adds a remedy, decides nothing",
    ("decode.py", "reason_of"): "shortens a message of torchvision's for display, decides nothing",
}
"""(name of the file, function): why it may."""


def is_message(node: ast.expr) -> bool:
    """Whether an expression is words for people, by its name."""
    if isinstance(node, ast.Name):
        return node.id.lower() in MESSAGES
    if isinstance(node, ast.Attribute):
        return node.attr.lower() in MESSAGES or is_message(node.value)
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in ("str", "repr") and node.args:
            return is_message(node.args[0])
        # error.args[0].lower(), str(error).strip()
        return isinstance(node.func, ast.Attribute) and is_message(node.func.value)
    if isinstance(node, ast.Subscript):
        return is_message(node.value) or (
            isinstance(node.slice, ast.Constant) and node.slice.value in MESSAGES
        )
    return False


def is_text(node: ast.expr) -> bool:
    """Whether an expression is a literal text, or several; "" asks only whether there is one."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(is_text(item) for item in node.elts)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != ""
    )


def reads_words(node: ast.AST) -> bool:
    """Whether a node of the syntax tree takes a message apart, or compares it with words."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, sides, sides[1:], strict=False):
            if isinstance(operator, (ast.In, ast.NotIn)) and is_message(right):
                return True
            if isinstance(operator, (ast.Eq, ast.NotEq, ast.In, ast.NotIn)):
                pairs = [(left, right), (right, left)]
                if any(is_message(one) and is_text(other) for one, other in pairs):
                    return True
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        # split() without arguments puts a message into one line.
        if node.func.attr in METHODS and node.args and is_message(node.func.value):
            return True
        is_pattern = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
        return is_pattern and any(is_message(argument) for argument in node.args)
    return isinstance(node, ast.Match) and is_message(node.subject)


def found_in(source: str) -> list[str]:
    """The innermost functions that read words."""
    found = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if reads_words(node):
            found.append(function)
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(source), "")
    return found


FILES = [path for top in ("launch", "resnet_dist") for path in sorted((ROOT / top).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_is_parsed(path: Path) -> None:
    wrong = [each for each in found_in(path.read_text()) if (path.name, each) not in ALLOWED]
    assert wrong == [], f"{path} reads the words of a message; give it an enum, or an object"


@pytest.mark.parametrize(("name", "function"), ALLOWED)
def test_what_is_allowed_is_needed(name: str, function: str) -> None:
    files = [path for path in FILES if path.name == name]
    assert any(function in found_in(path.read_text()) for path in files)


@pytest.mark.parametrize(
    "source",
    [
        'if "SIGTERM" in reason: pass',
        'if "SIGTERM" in end["reason"]: pass',
        'if "disk" in str(error).lower(): pass',
        'end.reason.startswith("preflight")',
        'str(error).split(":")[0] in keys',
        'if error.args[0] == "no room": pass',
        're.match(r"process (\\d+)", owner)',
        're.search("x", str(error.message))',
        'if row.reason in ("a", "b"): pass',
        'match message:\n  case "a": pass',
    ],
)
def test_the_search_finds(source: str) -> None:
    assert found_in(source) == [""]


@pytest.mark.parametrize(
    "source",
    [
        'if reason == "": pass',
        "if row.reason and row.reason != what: pass",
        'print("\\n".join(str(error).splitlines()))',
        "if end.cause is Cause.PREFLIGHT: pass",
        "if error.errno in (1, 2): pass",
        'raise UserError(f"{error}")',
        'print(" ".join(str(error).split()))',
    ],
)
def test_the_search_leaves_alone(source: str) -> None:
    assert found_in(source) == []
