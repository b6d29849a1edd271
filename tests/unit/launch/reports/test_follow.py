"""Following a log that grows."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from launch.reports.follow import Tail


def test_tail_shows_what_is_new_once(tmp_path: Path) -> None:
    path, out = tmp_path / "log", io.StringIO()
    tail = Tail(path, out=out)
    tail.show_new()  # not there yet
    with path.open("ab") as file:
        for part, shown in [(b"one\n", "one\n"), (b"tw", "one\ntw"), (b"o\n", "one\ntwo\n")]:
            file.write(part)
            file.flush()
            tail.show_new()
            tail.show_new()
            assert out.getvalue() == shown


def test_tail_does_not_break_characters(tmp_path: Path) -> None:
    path, out = tmp_path / "log", io.StringIO()
    tail = Tail(path, out=out)
    letters = "\u00e4\u20ac\n".encode()
    for i in range(1, len(letters) + 1):
        path.write_bytes(letters[:i])
        tail.show_new()
    assert out.getvalue() == "\u00e4\u20ac\n"
    path.write_bytes(letters + b"\xff\n")
    tail.show_new()
    assert out.getvalue().endswith("\ufffd\n")


def test_tail_restarts_with_a_file_that_became_shorter(tmp_path: Path) -> None:
    path, out = tmp_path / "log", io.StringIO()
    tail = Tail(path, out=out)
    path.write_text("a long line\n")
    tail.show_new()
    path.write_text("new\n")
    tail.show_new()
    assert out.getvalue() == "a long line\nnew\n"


@pytest.mark.parametrize(("lines", "shown"), [(0, ""), (1, "c"), (2, "b\nc"), (9, "a\nb\nc")])
def test_the_last_lines(tmp_path: Path, lines: int, shown: str) -> None:
    path, out = tmp_path / "log", io.StringIO()
    path.write_text("a\nb\nc")
    tail = Tail(path, out=out)
    tail.skip_to_last(lines)
    tail.show_new()
    assert out.getvalue() == shown
