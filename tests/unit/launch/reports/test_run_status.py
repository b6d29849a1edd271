"""What the status makes of run folders and of what Slurm says, or does not say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.records.attempt import request_cancel
from launch.records.ending import Cause
from launch.reports.run_status import run_status
from launch.reports.text import details, table
from resnet_dist.run.lock import own_run_folder
from tests.unit.launch.mock_slurm import MockSlurm
from tests.unit.launch.reports.made_up_run import MadeUp


def test_a_run_with_a_past(eventful: MadeUp, mock: MockSlurm) -> None:
    mock.answers("squeue", "RUNNING|None|node[4-5]|10:00:00")
    mock.answers("sacct", "REQUEUED|node[1-2]\nNODE_FAIL|node[1,3]\nRUNNING|node[4-5]")
    found = run_status(eventful.run_dir)
    assert (found.job_id, found.state, found.reason) == ("7", "RUNNING", "")
    assert (found.nodes, found.time_left, found.num_restarts) == ("node[4-5]", "10:00:00", 2)
    first, second, third = found.attempts
    assert (first.outcome, first.step, first.restarts) == ("failed", 100, 2)
    assert first.restart_reasons == ["node1: failed (exitcode: -9) local_rank: 1"]
    assert first.excluded == ["node2"]
    assert first.hosts == ["node1", "node2"]
    assert (second.outcome, second.step, second.restarts) == ("lost", None, 0)
    assert second.reason.endswith("were killed (Slurm: NODE_FAIL)")
    assert (third.outcome, third.reason) == ("running", "")


def test_without_slurm_the_folder_tells(eventful: MadeUp, no_slurm: None) -> None:
    del no_slurm
    found = run_status(eventful.run_dir)
    assert (found.state, found.attempts[2].outcome) == ("UNKNOWN", "unknown")
    assert found.attempts[1].outcome == "lost"
    with own_run_folder(eventful.run_dir):
        found = run_status(eventful.run_dir)
        assert found.state == "RUNNING"
        assert f"process {os.getpid()} on" in found.reason
        assert found.attempts[2].outcome == "running"
    eventful.says("finished")
    assert run_status(eventful.run_dir).state == "FINISHED"


def test_a_controller_that_cannot_be_reached(eventful: MadeUp, mock: MockSlurm) -> None:
    mock.answers("squeue", err="Unable to contact slurm controller", code=1)
    found = run_status(eventful.run_dir)
    assert found.state == "UNKNOWN"  # and not LOST: it may well run
    assert found.attempts[2].outcome == "unknown"
    assert "Slurm could not be asked: squeue: Unable to contact slurm controller" in found.reason
    assert found.progress.step == 500
    assert "UNKNOWN" in table([eventful.run_dir])


@pytest.mark.parametrize(
    ("last", "says", "slurm", "state", "reason"),
    [
        (("finished", "finished at step 9"), "finished", "COMPLETED", "FINISHED", ""),
        (("finished", "at 9"), "limited", "COMPLETED", "FINISHED", "train.max_steps is reached"),
        (("failed", "given up"), None, "FAILED", "FAILED", "given up"),
        (("refused", "bad lr"), None, "FAILED", "REFUSED", "bad lr"),
        (("stopped", "time limit"), "stopped", None, "STOPPED", "time limit"),
        (("stopped", "Slurm ended it (SIGTERM)"), "stopped", "CANCELLED", "CANCELLED", "SIGTERM"),
        (None, None, "TIMEOUT", "TIMEOUT", "left no record"),
        (None, None, None, "LOST", "left no record"),
    ],
)
def test_the_state_of_a_run_that_has_ended(
    tmp_path: Path,
    mock: MockSlurm,
    last: tuple[str, str] | None,
    says: str | None,
    slurm: str | None,
    state: str,
    reason: str,
) -> None:
    made = MadeUp(tmp_path / "run")
    made.begin("001.000")
    if last is not None:
        made.end("001.000", *last)
    if says is not None:
        made.says(says)
    if slurm is not None:
        mock.answers("sacct", f"{slurm}|node1")
    found = run_status(made.run_dir)
    assert found.state == state
    assert reason in found.reason
    assert bool(reason) == bool(found.reason)
    assert (found.nodes, found.time_left) == ("", "")


@pytest.mark.parametrize(
    ("signals", "outcome", "cause", "asks_slurm"),
    [
        (["SIGTERM"], "stopped", Cause.ENDED_BY_SLURM, True),
        (["SIGUSR2", "SIGTERM"], "stopped", Cause.ENDED_BY_SLURM, True),
        (["SIGUSR1"], "stopped", Cause.SIGNALLED, False),
        ([], "diverged", Cause.UNKNOWN, False),
        (["SIGTERM"], "finished", Cause.TRAINING_DONE, False),
    ],
)
def test_a_batch_script_that_was_killed_before_it_could_judge(
    tmp_path: Path,
    mock: MockSlurm,
    signals: list[str],
    outcome: str,
    cause: Cause,
    asks_slurm: bool,
) -> None:
    """Whatever the training calls the reason: the notes tell the cause."""
    made = MadeUp(tmp_path / "run")
    attempt = made.begin("001.000")
    for signal in signals:
        attempt.note("signal", signal=signal, left_s=900, is_cancelled=False)
    made.says(outcome, step=8, reason="SIGTERM, said the training", launch="7.001.000")
    mock.answers("sacct", "CANCELLED by 0|node1")
    (row,) = run_status(made.run_dir).attempts
    assert (row.outcome, row.cause, row.step) == (outcome, cause, 8)
    assert ("(Slurm: CANCELLED)" in row.reason) == asks_slurm


@pytest.mark.parametrize("cause", list(Cause))
def test_slurm_is_asked_by_the_cause_and_not_by_the_words(
    tmp_path: Path, mock: MockSlurm, cause: Cause
) -> None:
    made = MadeUp(tmp_path / "run")
    made.begin("001.000")
    made.end("001.000", "stopped", "rank 1 on node1: Signal 15 (SIGTERM)", cause=cause)
    mock.answers("sacct", "PREEMPTED|node1")
    (row,) = run_status(made.run_dir).attempts
    is_slurms = cause in (Cause.ENDED_BY_SLURM, Cause.TIME_LIMIT_REACHED)
    assert row.reason.endswith("(Slurm: PREEMPTED)") == is_slurms


def test_a_finished_run_is_finished_whatever_slurm_says(tmp_path: Path, mock: MockSlurm) -> None:
    made = MadeUp(tmp_path / "run")
    made.says("finished")
    mock.answers("sacct", "NODE_FAIL|node1")
    assert run_status(made.run_dir).state == "FINISHED"


def test_cancelled(tmp_path: Path, mock: MockSlurm) -> None:
    del mock
    made = MadeUp(tmp_path / "run")
    request_cancel(made.run_dir)
    assert run_status(made.run_dir).state == "CANCELLED"


def test_a_local_run_that_was_killed(tmp_path: Path, mock: MockSlurm) -> None:
    made = MadeUp(tmp_path / "run", None)
    made.begin("001.000")
    found = run_status(made.run_dir)
    assert (found.job_id, found.state, found.attempts[0].outcome) == (None, "LOST", "lost")
    assert mock.called() == []


def test_a_folder_that_holds_nothing_yet(tmp_path: Path, no_slurm: None) -> None:
    del no_slurm
    found = run_status(tmp_path)
    assert (found.job_id, found.state, found.attempts) == (None, "UNKNOWN", [])
    assert "step      0" in details(tmp_path)
