"""The end of an attempt: attempts/NAME/end.json, which programs can rely on.

`reason` is for people and may be worded otherwise tomorrow; whatever decides anything reads
`outcome` and `cause`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from launch.records.attempt import AttemptName
from launch.records.json_files import read_json, write_json

BAD_INPUT_CODE = 2
"""Exit code of a trainer that was given bad input, and of the batch script of its job."""


class Outcome(StrEnum):
    """The kinds of endings."""

    FINISHED = "finished"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FAILED = "failed"
    REFUSED = "refused"
    """Bad input: it would fail again."""


class Cause(StrEnum):
    """The events that end an attempt."""

    UNKNOWN = "unknown"
    TRAINING_DONE = "training_done"
    USER_CANCELLED = "user_cancelled"
    TIME_LIMIT_NEAR = "time_limit_near"
    TIME_LIMIT_REACHED = "time_limit_reached"
    PREEMPTED = "preempted"
    ENDED_BY_SLURM = "ended_by_slurm"
    """A SIGTERM of Slurm's: cancelled, preempted, or requeued by an operator."""
    SIGNALLED = "signalled"
    """Another signal, by hand."""
    PREFLIGHT_FAILED = "preflight_failed"
    NEVER_BEGAN = "never_began"
    TASK_LOST = "task_lost"
    """A task, or its whole node, ended without writing down why."""
    SRUN_FAILED = "srun_failed"
    AGENT_KILLED = "agent_killed"
    AGENT_FAILED = "agent_failed"
    SLOW_STOP = "slow_stop"
    """The training did not stop in time after a signal."""
    RANK_FAILED = "rank_failed"
    BAD_INPUT = "bad_input"
    NO_OUTCOME = "no_outcome"
    """torchrun ended well, but the training wrote no outcome."""

    @property
    def is_known_to_slurm(self) -> bool:
        """Whether Slurm's accounting can say more about it."""
        return self in (Cause.ENDED_BY_SLURM, Cause.TIME_LIMIT_REACHED)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of an attempt, and what follows."""

    outcome: Outcome
    cause: Cause
    reason: str
    """Text for people."""
    is_requeued: bool = False
    """Whether the batch script requeues the job."""
    exclude: tuple[str, ...] = ()
    """Nodes to leave out next time."""
    is_setback: bool = False
    """Whether it counts towards the attempts in a row after which the run is given up, unless a
    step was done since."""

    @property
    def code(self) -> int:
        """Exit code of the batch script."""
        return {Outcome.FAILED: 1, Outcome.REFUSED: BAD_INPUT_CODE}.get(self.outcome, 0)


@dataclass(frozen=True)
class PastEnding:
    """The content of end.json."""

    ending: Ending
    step: int
    """Newest checkpoint when the attempt ended."""


def write_ending(run_dir: Path, name: AttemptName, ending: Ending, *, step: int) -> None:
    """Write end.json, for `launch.status` and for the verdict on the next attempt."""
    folder = name.folder(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "outcome": ending.outcome,
        "cause": ending.cause,
        "reason": ending.reason,
        "is_requeued": ending.is_requeued,
        "is_setback": ending.is_setback,
        "excluded": list(ending.exclude),
        "step": step,
        "time": time.time(),
    }
    write_json(folder / "end.json", content)


def read_ending(run_dir: Path, name: AttemptName) -> PastEnding | None:
    """The content of end.json; None if it is not there or cannot be read."""
    content = read_json(name.folder(run_dir) / "end.json")
    if content is None:
        return None
    try:
        ending = Ending(
            outcome=Outcome(content["outcome"]),
            cause=Cause(content.get("cause", Cause.UNKNOWN)),
            reason=str(content["reason"]),
            is_requeued=bool(content["is_requeued"]),
            exclude=tuple(content["excluded"]),
            is_setback=bool(content["is_setback"]),
        )
        return PastEnding(ending, int(content["step"]))
    except (KeyError, TypeError, ValueError):
        return None
