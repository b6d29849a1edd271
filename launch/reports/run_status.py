"""The status of a run, from Slurm and from its folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.cluster import slurm
from launch.records.attempt import AttemptName, attempts, is_cancelled, newest_attempt
from launch.records.ending import Cause, Outcome, read_ending
from launch.records.journal import (
    AttemptNotes,
    SignalNote,
    TaskEnd,
    TaskStart,
    WorkerReport,
    read_attempt,
)
from launch.records.progress import DONE, Progress, last_outcome, read_progress
from launch.records.submissions import Submission, submissions
from resnet_dist.run.lock import owner_of
from resnet_dist.run.outcome import Outcome as RunOutcome

RUNNING, LOST, UNKNOWN = "running", "lost", "unknown"
_RUNNING_STATES = ("RUNNING", "COMPLETING", "SUSPENDED")


@dataclass(frozen=True)
class AttemptRow:
    """One attempt."""

    name: str
    began: float | None
    """Seconds since 1970."""
    hosts: list[str]
    outcome: str
    """finished, stopped, cancelled, failed, refused; lost: it wrote down no end; running; unknown:
    no end yet, and Slurm could not be asked."""
    cause: Cause
    reason: str
    restarts: int
    """Restarts of the workers by torchrun."""
    restart_reasons: list[str]
    excluded: list[str]
    """Nodes that were left out from then on."""
    step: int | None
    """Newest checkpoint when it ended."""


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    run_dir: Path
    job_id: str | None
    state: str
    """Slurm's state while the job is queued or runs, else FINISHED, CANCELLED, FAILED ..."""
    reason: str
    nodes: str
    time_left: str
    """Until the time limit of this attempt, as Slurm writes it."""
    progress: Progress
    attempts: list[AttemptRow]

    @property
    def num_restarts(self) -> int:
        """Restarts of the workers by torchrun, over all attempts."""
        return sum(row.restarts for row in self.attempts)


def run_status(run_dir: Path) -> RunStatus:
    """Ask Slurm, if it is here, and read the folder."""
    submitted = submissions(run_dir)
    last = submitted[-1] if submitted else None
    job, remark = None, ""
    if last is not None and last.own_job is not None and shutil.which("squeue"):
        try:
            job = slurm.states([last.own_job])[last.own_job]
        except slurm.SlurmError as error:  # the folder still tells what happened in it
            remark = f"; Slurm could not be asked: {error}"
    rows = attempt_rows(run_dir, submitted, job)
    state, reason = _state(run_dir, job, rows)
    return RunStatus(
        run_dir=run_dir,
        job_id=last.own_job if last else None,
        state=state,
        reason=(reason + remark).removeprefix("; "),
        nodes=job.nodes if job is not None and job.is_active else "",
        time_left=job.time_left if job is not None and job.is_active else "",
        progress=read_progress(run_dir),
        attempts=rows,
    )


def _state(
    run_dir: Path, job: slurm.JobState | None, rows: Sequence[AttemptRow]
) -> tuple[str, str]:
    """The state of a run in one word, and why."""
    if job is not None and job.is_active:
        return job.state, job.reason
    if job is None and (owner := owner_of(run_dir)) is not None:
        return "RUNNING", str(owner)
    outcome = last_outcome(run_dir)
    if outcome in DONE:
        return "FINISHED", _LIMITS.get(outcome, "")
    if is_cancelled(run_dir):
        return "CANCELLED", "launch.cancel"
    if rows and rows[-1].outcome in (Outcome.FAILED, Outcome.REFUSED):
        return rows[-1].outcome.upper(), rows[-1].reason
    if job is not None and job.state != "UNKNOWN":
        return job.state, job.reason or (rows[-1].reason if rows else "")
    return (rows[-1].outcome.upper(), rows[-1].reason) if rows else ("UNKNOWN", "")


_LIMITS = {
    RunOutcome.LIMITED: "train.max_steps is reached",
    RunOutcome.REACHED: "train.stop_at_top1 is reached",
}


def attempt_rows(
    run_dir: Path, submitted: Sequence[Submission], job: slurm.JobState | None
) -> list[AttemptRow]:
    """All attempts, oldest first."""
    current, newest = _current(run_dir, submitted, job), newest_attempt(run_dir)
    history = _History({each.number: each.job_id for each in submitted})
    rows = []
    for name in attempts(run_dir):
        notes = read_attempt(run_dir, name)
        row = _ended(run_dir, notes)
        if row is None and name == newest and current != LOST:
            row = _row(notes, current, Cause.UNKNOWN, "")
        rows.append(history.completed(row or _without_ending(notes), name))
    return rows


def _row(
    notes: AttemptNotes,
    outcome: str,
    cause: Cause,
    reason: str,
    *,
    excluded: Sequence[str] = (),
    step: int | None = None,
) -> AttemptRow:
    starts = notes.of(TaskStart)
    reports = [f"{report.host}: {report.text}" for report in notes.of(WorkerReport)]
    return AttemptRow(
        name=str(notes.name),
        began=starts[0].time if starts else None,
        hosts=list(notes.hosts),
        outcome=outcome,
        cause=cause,
        reason=reason,
        restarts=max(0, notes.num_training_starts - 1),
        restart_reasons=list(dict.fromkeys(reports)),
        excluded=list(excluded),
        step=step,
    )


def _ended(run_dir: Path, notes: AttemptNotes) -> AttemptRow | None:
    """The row of an attempt whose batch script has written how it ended; None without that."""
    past = read_ending(run_dir, notes.name)
    if past is None:
        return None
    ending = past.ending
    return _row(
        notes,
        ending.outcome,
        ending.cause,
        ending.reason,
        excluded=ending.exclude,
        step=past.step,
    )


def _without_ending(notes: AttemptNotes) -> AttemptRow:
    """The row of an attempt whose batch script was killed before it could judge, from what the
    nodes and the training itself wrote down."""
    signals = notes.of(SignalNote)
    cause = Cause.ENDED_BY_SLURM if any(note.is_term for note in signals) else Cause.SIGNALLED
    if notes.training_ends:
        end = notes.training_ends[-1]
        if end.is_done or not signals:
            cause = Cause.TRAINING_DONE if end.is_done else Cause.UNKNOWN
        reason = f"{end.reason or end.outcome}; killed before it could say more"
        return _row(notes, end.outcome, cause, reason, step=end.step)
    told = {note.node for note in notes.notes if isinstance(note, (SignalNote, TaskEnd))}
    silent = [notes.host_of(node) for node in notes.nodes if node not in told]
    if told and silent:
        reason = f"{', '.join(silent)} left no record, and was lost or killed"
        return _row(notes, LOST, Cause.TASK_LOST, reason)
    if signals:
        kinds = ", ".join(sorted({note.signal for note in signals}))
        reason = f"{kinds}, and killed before it could say how it ended"
        return _row(notes, Outcome.STOPPED, cause, reason)
    reason = "left no record; its nodes or its batch script were killed"
    return _row(notes, LOST, Cause.TASK_LOST, reason)


def _current(run_dir: Path, submitted: Sequence[Submission], job: slurm.JobState | None) -> str:
    """State of the newest attempt if it has not written how it ended."""
    if job is not None:
        return RUNNING if job.state in _RUNNING_STATES else LOST
    if owner_of(run_dir) is not None:
        return RUNNING
    return UNKNOWN if submitted and submitted[-1].own_job is not None else LOST


class _History:
    """The states of attempts in Slurm's accounting, asked for once per job."""

    def __init__(self, job_ids: dict[int, str | None]) -> None:
        """`job_ids`: by number of the submission."""
        self._job_ids = job_ids
        self._starts: dict[str, list[slurm.JobState]] = {}

    def completed(self, row: AttemptRow, name: AttemptName) -> AttemptRow:
        """The row with Slurm's state of the attempt, where that says more."""
        if row.outcome != LOST and not row.cause.is_known_to_slurm:
            return row
        state = self._state(name)
        reason = row.reason + (f" (Slurm: {state})" if state else "")
        return dataclasses.replace(row, reason=reason)

    def _state(self, name: AttemptName) -> str:
        job_id = self._job_ids.get(name.submission)
        if job_id is None or not shutil.which("sacct"):
            return ""
        if job_id not in self._starts:
            self._starts[job_id] = slurm.history(job_id)
        starts = self._starts[job_id]
        return starts[name.restart].state if name.restart < len(starts) else ""
