"""JSON in the run folder: files that are replaced whole, and files of one object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resnet_dist.system.files import replace_file


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file by one that holds `content`."""
    text = json.dumps(content, indent=1) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of such a file; None if it is not there or cannot be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def append_line(path: Path, content: dict[str, Any]) -> None:
    """Append one object; it survives a power cut from now on."""
    with path.open("a") as file:
        file.write(json.dumps(content) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, *, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """The objects in whole lines; what is being written, or is no object, is left out.

    `last_bytes`: how much of a long file's end to read; None means all of it.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = 0 if last_bytes is None else max(0, size - last_bytes)
            file.seek(begin)
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = text.rpartition("\n")[0].splitlines()
    return _objects(lines[1 if begin else 0 :])


def _objects(lines: Iterable[str]) -> list[dict[str, Any]]:
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]
