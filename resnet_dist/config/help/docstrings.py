"""The docstrings of sections and settings, read from the source: Python keeps none of a field."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from pathlib import Path
from typing import Any

from resnet_dist.config import SECTIONS, Config


def setting_docs() -> dict[str, str]:
    """Dotted path -> docstring of every setting, in one line."""
    docs = {name: text for name, text in field_docs(Config).items() if name not in SECTIONS}
    for section, kind in SECTIONS.items():
        docs |= {f"{section}.{name}": text for name, text in field_docs(kind).items()}
    return docs


def section_docs() -> dict[str, str]:
    """Name -> docstring of every section, in one line."""
    return {name: " ".join((kind.__doc__ or "").split()) for name, kind in SECTIONS.items()}


def field_docs(kind: type[Any]) -> dict[str, str]:
    """Field -> the string that follows it in the class's source, in one line."""
    docs: dict[str, str] = {}
    for parent in reversed(kind.__mro__[:-1]):
        docs |= _own_field_docs(parent)
    return docs


def _own_field_docs(kind: type[Any]) -> dict[str, str]:
    tree = ast.parse(Path(inspect.getfile(kind)).read_text(encoding="utf-8"))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )
    return {
        item.target.id: " ".join(text.value.value.split())
        for item, text in itertools.pairwise(body)
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def first_sentence(text: str, *, most: int = 100) -> str:
    """The first sentence of a docstring, cut where it is longer than `most`."""
    sentence = re.split(r"(?<!et al)\. ", text)[0].removesuffix(".")
    return sentence if len(sentence) <= most else f"{sentence[: most - 4].rpartition(' ')[0]} ..."
