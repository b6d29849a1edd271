"""The verdict on an attempt: is the run done, is it to be requeued, is it given up?

A pure function of one journal and of srun's exit code. Uses the standard library only, so that it
runs outside the job's container.

A signal of Slurm's that ends the job (SIGTERM) leaves the decision to Slurm: it requeues what it
preempted or what an operator requeued, and not what was cancelled. Requeued here are a reached time
limit, after which Slurm would not, and what ended within the time that preemption left it.
"""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import dataclass

from launch.records.ending import BAD_INPUT_CODE, Cause, Ending, Outcome
from launch.records.journal import (
    AttemptNotes,
    Journal,
    RankFailure,
    SignalNote,
    TaskEnd,
)

_SLURM_GRANULARITY_S = 60.0
"""Slurm sends a warning up to this long before it is due."""
_CLOCK_SKEW_S = 1.0


@dataclass(frozen=True)
class _Failure:
    cause: Cause
    reason: str


def decide(
    journal: Journal, *, srun_code: int, max_failures: int, was_ended: bool = False
) -> Ending:
    """Decide what follows an attempt whose tasks have all ended.

    `was_ended`: Slurm sent SIGTERM to the batch script itself; tasks may have been killed before
    they noted it.
    """
    attempt = journal.attempt
    done = [end for end in attempt.training_ends if end.is_done]
    if done:  # also where workers that were started again said something else afterwards
        reason = f"finished at step {done[-1].step}"
        return Ending(outcome=Outcome.FINISHED, cause=Cause.TRAINING_DONE, reason=reason)
    if journal.is_cancelled:
        reason = "stopped by the user (launch.cancel)"
        return Ending(outcome=Outcome.CANCELLED, cause=Cause.USER_CANCELLED, reason=reason)
    failure = _first_failure(attempt, srun_code)
    if failure is None or was_ended:
        stop = _stop(journal, was_ended=was_ended)
        if stop is not None:
            return _bounded(stop, journal, max_failures)
        reason = "torchrun ended well, but the training wrote no outcome"
        failure = _Failure(Cause.NO_OUTCOME, reason)
    if any(each.exit_code == BAD_INPUT_CODE for each in attempt.of(RankFailure)):
        return Ending(outcome=Outcome.REFUSED, cause=Cause.BAD_INPUT, reason=failure.reason)
    ending = Ending(
        outcome=Outcome.FAILED,
        cause=failure.cause,
        reason=failure.reason,
        is_requeued=True,
        exclude=_bad_nodes(attempt),
        is_setback=True,
    )
    return _bounded(ending, journal, max_failures)


def requeued_while_running(ending: Ending) -> Ending:
    """The ending of a stopped job that Slurm still takes for a running one: it was preempted with a
    time of grace, and would not be requeued if it ended within that time."""
    if ending.outcome is not Outcome.STOPPED or ending.is_requeued:
        return ending
    return dataclasses.replace(
        ending,
        cause=Cause.ENDED_BY_SLURM,
        reason="preempted, or told to stop (SIGTERM)",
        is_requeued=True,
    )


def _bounded(ending: Ending, journal: Journal, max_failures: int) -> Ending:
    """The same ending, or that the run is given up: nothing may be requeued without end."""
    in_a_row = 1 + setbacks_in_a_row(journal)
    # The first of several attempts at the same step may have come that far; a limit is no failure.
    is_failure = ending.outcome is Outcome.FAILED
    least, what = (1, "failures") if is_failure else (2, "attempts")
    if not ending.is_setback or in_a_row < max(least, max_failures):
        return ending
    text = f"{ending.reason}; given up after {in_a_row} {what} in a row without a step of progress"
    return Ending(outcome=Outcome.FAILED, cause=ending.cause, reason=text)


def setbacks_in_a_row(journal: Journal) -> int:
    """Earlier attempts of the same submission that were setbacks at the same newest checkpoint.

    Attempts that were preempted in between, or whose node was lost, neither count nor are progress.
    """
    count = 0
    for name, past in reversed(journal.earlier):
        if name.submission != journal.attempt.name.submission:
            break
        if past is None:
            continue
        if past.step < journal.newest_step:
            break
        count += past.ending.is_setback
    return count


def _bad_nodes(attempt: AttemptNotes) -> tuple[str, ...]:
    """The nodes to leave out. What all nodes of several complain about is not theirs (a data set
    that is nowhere): leaving out one set after the other would end with a job that never starts."""
    bad = tuple(dict.fromkeys(problem.host for problem in attempt.problems if problem.host))
    num_nodes = len(attempt.hosts) or 1
    return () if num_nodes > 1 and len(bad) >= num_nodes else bad


def _stop(journal: Journal, *, was_ended: bool) -> Ending | None:
    """The ending of an attempt that was stopped; None if it ended well without having said why."""
    attempt = journal.attempt
    signals = attempt.of(SignalNote)
    kinds = {note.signal for note in signals} | ({"SIGTERM"} if was_ended else set())
    if "SIGUSR2" in kinds:
        left_s = next(note.left_s for note in signals if note.signal == "SIGUSR2")
        is_limit = left_s is not None and left_s <= journal.signal_delay_s + _SLURM_GRANULARITY_S
        what = "the time limit was near" if is_limit else "preempted"
        return Ending(
            outcome=Outcome.STOPPED,
            cause=Cause.TIME_LIMIT_NEAR if is_limit else Cause.PREEMPTED,
            reason=f"{what} (SIGUSR2)",
            # Cancelled by Slurm with a warning is requeued by Slurm; a reached limit is not.
            is_requeued=is_limit or "SIGTERM" not in kinds,
            is_setback=is_limit,
        )
    if any(note.is_term and note.left_s is not None and note.left_s <= 1 for note in signals):
        return Ending(
            outcome=Outcome.STOPPED,
            cause=Cause.TIME_LIMIT_REACHED,
            reason="the time limit was reached (SIGTERM)",
            is_requeued=True,
            is_setback=True,
        )
    if "SIGTERM" in kinds:
        reason = "Slurm ended it (SIGTERM): cancelled, preempted, or requeued by an operator"
        return Ending(outcome=Outcome.STOPPED, cause=Cause.ENDED_BY_SLURM, reason=reason)
    ends = attempt.training_ends
    if kinds or (ends and ends[-1].outcome == "stopped"):
        what = ", ".join(sorted(kinds)) or "a signal to a worker"
        reason = f"stopped by {what}"
        return Ending(
            outcome=Outcome.STOPPED, cause=Cause.SIGNALLED, reason=reason, is_requeued=True
        )
    return None


def _first_failure(attempt: AttemptNotes, srun_code: int) -> _Failure | None:
    """The failure that came first; None if there was none."""
    if attempt.problems:
        listed = "; ".join(f"{problem.host}: {problem.what}" for problem in attempt.problems)
        return _Failure(Cause.PREFLIGHT_FAILED, f"preflight: {listed}")
    if not attempt.nodes:
        reason = f"srun ended with code {srun_code} before any node began"
        return _Failure(Cause.NEVER_BEGAN, reason)
    terms = [note for note in attempt.of(SignalNote) if note.is_term]
    first_term = min((note.time for note in terms), default=float("inf"))
    # A second for clocks that differ; a node's own clock tells without that.
    own_term = {note.node: note.time for note in reversed(terms)}
    for end in attempt.of(TaskEnd):
        if end.code != 0 and end.time < own_term.get(end.node, first_term + _CLOCK_SKEW_S):
            return _failure_of(attempt, end)
    for node in attempt.nodes:
        notes = attempt.of_node(node)
        has_ended = any(isinstance(note, TaskEnd) for note in notes)
        if not has_ended and not any(note.node == node for note in terms):
            host = attempt.host_of(node)
            reason = f"the task on {host} left no record of its end (killed, or its node lost)"
            return _Failure(Cause.TASK_LOST, reason)
    if srun_code != 0 and not terms:
        return _Failure(Cause.SRUN_FAILED, f"srun ended with code {srun_code}")
    return None


def _failure_of(attempt: AttemptNotes, end: TaskEnd) -> _Failure:
    """The reason why a node's torchrun failed."""
    if end.code < 0:
        reason = f"torchrun on {end.host} was killed by {_signal_name(-end.code)}"
        return _Failure(Cause.AGENT_KILLED, reason)
    asked = attempt.of(SignalNote)
    if end.code == 128 + signal.SIGTERM and asked:
        reason = f"the training on {end.host} did not stop in time after {asked[0].signal}"
        return _Failure(Cause.SLOW_STOP, reason)
    # Ranks that lost their peers fail with them: the first that said something, not the first.
    for failure in sorted(attempt.of(RankFailure), key=lambda failure: failure.exit_code < 0):
        last = (failure.message.splitlines() or [""])[-1]
        reason = f"rank {failure.rank} on {failure.host}: {last}".strip()
        return _Failure(Cause.RANK_FAILED, reason)
    return _Failure(Cause.AGENT_FAILED, f"torchrun on {end.host} ended with code {end.code}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time signals
        return f"signal {number}"
