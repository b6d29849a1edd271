"""Plain words: docstrings begin with a noun or a verb, and the code uses the field's terms."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for top in ("launch", "resnet_dist") for path in sorted((ROOT / top).rglob("*.py"))]

PER = "ms|milliseconds|seconds|images|samples|lines?|bytes|numbers?|files?|folders?|events?"
UNIT = "step|epoch|rank|tensor|class|record|start|image|sample|micro-batch|node|process|split"
FORBIDDEN = {
    r"\banew\b": "again, newly",
    r"\bheed(s|ed)?\b": "follow",
    r"\bof late\b": "latest",
    r"\bfor ever\b": "without end",
    r"\bin sight\b": "visible",
    r"\bset aside\b": "quarantined",
    r"\bundisturbed\b": "uninterrupted",
    r"\b(go|goes|going|went) on (from|with|as)\b": "resume, continue",
    rf"\b({PER}) an? ({UNIT})\b": "per",
}
"""Pattern of words that only their author uses, and what to write."""


def docstrings(tree: ast.AST) -> list[str]:
    """Every text that stands alone as a statement: of modules, classes, functions and fields."""
    return [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


def problems(source: str) -> list[str]:
    """What is wrong with the words of a file."""
    text = " ".join(re.sub(r'^\s*#|"\n\s*f?"', " ", source, flags=re.MULTILINE).split())
    found = [
        f"{match.group()!r} -> {better}"
        for pattern, better in FORBIDDEN.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    starts = [text.split(maxsplit=1)[0] for text in docstrings(ast.parse(source)) if text.strip()]
    return found + [f"docstring begins with {word!r}" for word in starts if word in ("Of", "See")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_plain(path: Path) -> None:
    assert problems(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ('"""Of the run."""', 1),
        ('class A:\n    x: int\n    """See `B.x`."""', 1),
        ("# it starts\n# anew", 1),
        ('x = ("the run goes "\n     f"on from step {step}")', 1),
        ('"""12 bytes a rank."""', 1),
        ('"""Often, see `B`. A folder of a class. Per step."""', 0),
    ],
)
def test_the_search_finds(source: str, number: int) -> None:
    assert len(problems(source)) == number
