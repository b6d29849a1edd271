"""Attempts: their order and the fence; and requests to cancel."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from launch.records.attempt import (
    Attempt,
    AttemptName,
    StaleAttemptError,
    attempts,
    is_cancelled,
    newest_attempt,
    request_cancel,
    withdraw_cancel,
)
from launch.records.json_files import read_json


def test_names_are_ordered_by_number() -> None:
    names = [AttemptName(1, 0), AttemptName(1, 9), AttemptName(1, 10), AttemptName(2, 0)]
    assert sorted([names[2], names[0], names[3], names[1]]) == names
    assert AttemptName(1, 1000) > AttemptName(1, 999)
    for name in names:
        assert AttemptName.parse(str(name)) == name
    assert str(AttemptName(12, 3)) == "012.003"


@pytest.mark.parametrize("text", ["", "1", "1.", "a.b", "1.2.3", "001.002.tmp"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        AttemptName.parse(text)


def test_attempts_are_found_in_their_order(tmp_path: Path) -> None:
    for folder in ("001.010", "001.009", "002.000", "1.x", "old"):
        (tmp_path / "attempts" / folder).mkdir(parents=True)
    assert [str(name) for name in attempts(tmp_path)] == ["001.009", "001.010", "002.000"]
    assert attempts(tmp_path / "nothing") == []


def test_the_first_node_sets_the_fence_and_others_wait_for_it(tmp_path: Path) -> None:
    name = AttemptName(1, 0)
    other = threading.Thread(target=lambda: Attempt(tmp_path, name, 1).enter(10, {}))
    other.start()
    Attempt(tmp_path, name, 0).enter(0, {"job_id": "7"})
    other.join(10)
    assert not other.is_alive()
    assert newest_attempt(tmp_path) == name
    assert (read_json(tmp_path / "attempt.json") or {})["job_id"] == "7"


def test_without_the_first_node_the_others_give_up(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match=r"has not begun attempt 001\.000 within 0 s.* shared"):
        Attempt(tmp_path, AttemptName(1, 0), 1).enter(0, {})
    Attempt(tmp_path, AttemptName(1, 0), 0).enter(0, {})
    with pytest.raises(TimeoutError):  # an older fence is not theirs
        Attempt(tmp_path, AttemptName(1, 1), 1).enter(0, {})


@pytest.mark.parametrize("node", [0, 1])
def test_an_older_attempt_finds_a_newer(tmp_path: Path, node: int) -> None:
    older, newer = (Attempt(tmp_path, AttemptName(1, restart), node) for restart in (9, 10))
    Attempt(tmp_path, older.name, 0).enter(0, {})
    assert not older.is_stale()
    Attempt(tmp_path, newer.name, 0).enter(0, {})
    assert older.is_stale()
    assert not newer.is_stale()
    newer.enter(0, {})  # again, as after submitit's own restart
    with pytest.raises(StaleAttemptError, match=r"attempt 001\.010 has taken over from 001\.009"):
        older.enter(0, {})
    assert newest_attempt(tmp_path) == newer.name


def test_a_fence_that_cannot_be_read_ends_nobody(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, AttemptName(1, 0), 0)
    for content in ("", '{"attempt": "001.0', "[]", '{"other": 1}', '{"attempt": "x"}'):
        (tmp_path / "attempt.json").write_text(content)
        assert newest_attempt(tmp_path) is None
        assert not attempt.is_stale()


def test_cancel_requests(tmp_path: Path) -> None:
    assert not is_cancelled(tmp_path)
    withdraw_cancel(tmp_path)
    request_cancel(tmp_path)
    request_cancel(tmp_path)
    assert is_cancelled(tmp_path)
    withdraw_cancel(tmp_path)
    assert not is_cancelled(tmp_path)
