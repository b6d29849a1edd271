"""`--help`: the sections, one section, or one setting, from the same source as the rules."""

from __future__ import annotations

import difflib
import textwrap
from typing import Any, Literal, get_args, get_origin

import yaml

from resnet_dist.config import SECTIONS, field_paths, is_optional, type_hints
from resnet_dist.config.help import aliases
from resnet_dist.config.help.docstrings import first_sentence, section_docs, setting_docs
from resnet_dist.config.setting import is_free, rule_of
from resnet_dist.errors import UserError

WIDTH = 96


def overview() -> str:
    """The sections, a line each, and how to look something up."""
    lines = ["Every setting is a key=value argument, for example train.epochs=10. Sections:", ""]
    width = max(map(len, SECTIONS)) + 2
    lines += [f"  {name:<{width}}{first_sentence(text)}" for name, text in section_docs().items()]
    lines += [
        "",
        "--help SECTION lists a section's settings, --help KEY explains one (--help optim.lr),",
        "--print-config shows every value; all of them are in docs/configuration.md.",
    ]
    return "\n".join(lines)


def explain(name: str) -> str:
    """What is known about a section, a setting, or another trainer's word for one.

    Raises UserError if there is no such thing.
    """
    if name in SECTIONS:
        return _explain_section(name)
    paths = field_paths()
    meant = name if name in paths else aliases.key_of(name)
    if meant is not None:
        return _explain_setting(meant)
    answer = aliases.answer_to(name)
    if answer is not None:
        return f"{name}: {answer}"
    near = difflib.get_close_matches(name, [*paths, *SECTIONS], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"--help ({name}): there is no such section or setting{hint}")


def type_in_words(hint: Any) -> str:
    """A type as a user writes its values."""
    if is_optional(hint):
        inner = [part for part in get_args(hint) if part is not type(None)]
        return f"{type_in_words(inner[0])} or null"
    if get_origin(hint) is Literal:
        return "choice"
    if get_origin(hint) is tuple:
        parts = [type_in_words(part) for part in get_args(hint) if part is not Ellipsis]
        return f"[{', '.join(parts)}{', ...' if Ellipsis in get_args(hint) else ''}]"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[hint]


def value_in_yaml(value: Any) -> str:
    """A value as it is written in a file, on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    style = '"' if "\n" in str(plain) else None  # others break the line
    text = yaml.safe_dump(plain, default_flow_style=True, default_style=style, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def allowed(key: str) -> str:
    """The values that a setting takes besides its type, or ""."""
    hint = type_hints()[key]
    words = [word for word in get_args(hint) if isinstance(word, str)]
    return ", ".join(words) or rule_of(field_paths()[key]).range()


def _explain_section(name: str) -> str:
    lines = [f"{name}: {section_docs()[name]}", ""]
    docs = setting_docs()
    keys = {key: item for key, item in field_paths().items() if key.startswith(f"{name}.")}
    texts = {key: f"{key}={value_in_yaml(item.default)}" for key, item in keys.items()}
    width = min(max(map(len, texts.values())) + 2, 48)
    lines += [f"  {text:<{width}}{first_sentence(docs[key])}" for key, text in texts.items()]
    return "\n".join(lines)


def _explain_setting(key: str) -> str:
    item, limits = field_paths()[key], allowed(key)
    changes = "yes" if is_free(item) else "no: it changes the mathematics"
    facts = [
        f"  default: {value_in_yaml(item.default)}",
        f"  type: {type_in_words(type_hints()[key])}",
        *([f"  allowed: {limits}"] if limits else []),
        f"  may a resumed run change it: {changes}",
    ]
    text = textwrap.fill(
        setting_docs()[key],
        WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
    )
    return "\n".join([key, text, *facts])
