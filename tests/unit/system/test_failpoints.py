"""Faults happen where, when and on which rank the environment says, and leave a trace."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from resnet_dist.system import failpoints
from resnet_dist.system.failpoints import LOG_VARIABLE, VARIABLE, failpoint


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_passed", failpoints.Counter())
    failpoints._happened_before.cache_clear()


def passes(name: str, count: int) -> list[bool]:
    return [failpoint(name) for _ in range(count)]


def test_nothing_happens_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert passes("step.loss", 3) == [False] * 3


def test_count_range_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "step.loss@2-3:1=damage;step.parameters@1:0=damage")
    monkeypatch.setenv("RANK", "1")
    assert passes("step.loss", 4) == [False, True, True, False]
    assert passes("step.parameters", 2) == [False, False]


def test_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "step.begin@2=sleep:0.1")
    assert not failpoint("step.begin")
    start = time.monotonic()
    assert not failpoint("step.begin")
    assert time.monotonic() - start >= 0.1


def test_a_logged_fault_does_not_happen_in_a_later_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "faults"
    monkeypatch.setenv(VARIABLE, "step.loss@2-=damage")
    monkeypatch.setenv(LOG_VARIABLE, str(log))
    assert passes("step.loss", 3) == [False, True, True]
    assert log.read_text().splitlines() == [
        "step.loss@2-=damage rank 0 step 2",
        "step.loss@2-=damage rank 0 step 3",
    ]
    failpoints._happened_before.cache_clear()  # as in a new process
    assert passes("step.loss", 3) == [False] * 3


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "step.nowhere")
    with pytest.raises(AssertionError, match=r"step\.nowhere"):
        failpoint("step.loss")
