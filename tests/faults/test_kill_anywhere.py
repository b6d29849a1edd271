"""A run that is killed at any point, any number of times, ends as if uninterrupted: the self-test's
own suite."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from resnet_dist.selftest.__main__ import main
from resnet_dist.selftest.faults import Fault, plan_faults
from resnet_dist.selftest.starts import Started, Torchrun
from resnet_dist.selftest.suite import Result, Suite
from resnet_dist.system.failpoints import KILL_NAMES
from tests.launch import Ranks


def run_suite(folder: Path, faults: list[Fault], *, epochs: int, real_torchrun: bool) -> set[str]:
    """The failpoints that were hit; fails where a run does not end as the uninterrupted one."""

    def launch(arguments: list[str], environment: dict[str, str], log: Path) -> Started:
        if real_torchrun and "uninterrupted" not in log.name:
            return Torchrun(2, arguments, environment, log)
        return Ranks(2, arguments, environment, log).end_others_at_once()

    suite = Suite(folder, launch, epochs=epochs, overrides=["data.loader=torch"])
    suite.write_images()
    suite.run_uninterrupted()
    hit = []
    for outcome in suite.run_killed(faults):
        if isinstance(outcome, Result):
            hit.append(outcome.fault)
            print(f"{len(hit):4d} {outcome}", flush=True)
        else:
            assert outcome == []
    assert len(hit) == len(faults)
    return {fault.what for fault in hit}


@pytest.mark.slow
def test_a_kill_at_every_failpoint_changes_nothing(tmp_path: Path) -> None:
    """A kill at each, and a check that each was really hit."""
    faults = plan_faults(len(KILL_NAMES), nproc=2, seed=time.time_ns() % 10**6)
    hit = run_suite(tmp_path, faults, epochs=6, real_torchrun=False)
    assert hit == set(KILL_NAMES)


@pytest.mark.slow
def test_a_kill_of_torchruns_agent_changes_nothing(tmp_path: Path) -> None:
    faults = [
        Fault(random.choice(["checkpoint.before_rename", "step.before_optimizer"]), "agent", 3)
    ]
    run_suite(tmp_path, faults, epochs=2, real_torchrun=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills_in_one_long_run_change_nothing(tmp_path: Path) -> None:
    faults = plan_faults(200, nproc=2, seed=time.time_ns() % 10**6)
    assert run_suite(tmp_path, faults, epochs=150, real_torchrun=False) >= set(KILL_NAMES)


def test_the_plan_covers_everything_and_is_repeatable() -> None:
    faults = plan_faults(100, nproc=3, seed=5)
    assert faults == plan_faults(100, nproc=3, seed=5)
    assert len(faults) == 100
    assert {fault.what for fault in faults} == {*KILL_NAMES, "random moment"}
    victims = {"rank 0", "rank 1", "rank 2", "all ranks", "agent"}
    assert {fault.victim for fault in faults} == victims


def test_the_suite_finds_a_run_that_differs(tmp_path: Path) -> None:
    """The suite can fail: a run whose order of samples is another is not equal."""

    def launch(arguments: list[str], environment: dict[str, str], log: Path) -> Started:
        is_killed_run = "killed" in log.name
        seed = ["seed=1"] if is_killed_run else []
        return Ranks(1, [*arguments, *seed], environment, log)

    suite = Suite(tmp_path, launch, epochs=1, overrides=[])
    suite.write_images()
    suite.run_uninterrupted()
    outcomes = list(suite.run_killed([Fault("checkpoint.after_commit", "rank 0")]))
    assert isinstance(outcomes[0], Result)
    assert any("tensors differ" in text for text in outcomes[1])  # type: ignore[union-attr]
    assert any("records differ" in text for text in outcomes[1])  # type: ignore[union-attr]


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--dir", str(tmp_path / "file"), "--kills", "1"]) == 2
    assert "error: " in capsys.readouterr().err
