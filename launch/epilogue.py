"""After an attempt: is the run done, is it to be requeued, is it to be given up?

    python -m launch.epilogue RUN_DIR --submission N --code C [--max-failures K] [--exclude-bad]

The last command of the batch script, on the job's first node. Reads what the tasks wrote down, says
in `attempts/NAME/end.json` how the attempt ended and why, and requeues. Uses the standard library
only, so that it runs outside the job's container.

A signal of Slurm's that ends the job (SIGTERM) leaves the decision to Slurm: it requeues what it
preempted or what an operator requeued, and not what was cancelled. Requeued here are a reached time
limit, after which Slurm would not, and what ended within the time that preemption left it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import slurm
from launch.attempt import (
    AttemptName,
    attempts,
    events,
    is_cancelled,
    newest_attempt,
    notes,
    read_json,
    read_lines,
    write_json,
)

FINISHED, STOPPED, CANCELLED, FAILED, REFUSED = (
    "finished",
    "stopped",
    "cancelled",
    "failed",
    "refused",
)
_BAD_INPUT_CODE = 2
_EXCLUDE_S = 20.0


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, and what follows."""

    outcome: str
    """finished, stopped, cancelled, failed, or refused (bad input: it would fail again)."""
    reason: str
    is_requeued: bool
    """Whether it is to be requeued by us."""
    exclude: tuple[str, ...] = ()
    """Nodes to leave out next time."""
    is_setback: bool = False
    """Whether it counts towards the attempts in a row after which the run is given up, unless a
    step was done since."""

    @property
    def code(self) -> int:
        """Exit code of the batch script."""
        return {FINISHED: 0, STOPPED: 0, CANCELLED: 0, FAILED: 1, REFUSED: _BAD_INPUT_CODE}[
            self.outcome
        ]


def ends_of(run_dir: Path, name: AttemptName) -> list[dict[str, Any]]:
    """What the training said of an attempt's starts that ended by themselves, oldest first."""
    launches = {name.launch_id(line["job_id"]) for line in events(run_dir, name, "start")}
    return [line for line in read_lines(run_dir / "ends.jsonl") if line.get("launch") in launches]


def judge(
    run_dir: Path, name: AttemptName, *, code: int, max_failures: int, was_ended: bool = False
) -> Ending:
    """From the notes of an attempt whose tasks have all ended, srun with `code`. `was_ended`: the
    batch script itself got a SIGTERM of Slurm's; tasks may have been killed before they noted it.
    """
    ends = ends_of(run_dir, name)
    done = [line for line in ends if line["outcome"] in ("finished", "limited")]
    if done:  # also where workers that were started again said something else afterwards
        return Ending(FINISHED, f"finished at step {done[-1]['step']}", False)
    if is_cancelled(run_dir):
        return Ending(CANCELLED, "stopped by the user (launch.cancel)", False)
    verdict = read_json(run_dir / "attempts" / str(name) / "preflight.json") or {"problems": []}
    failure = _failure(run_dir, name, code=code, problems=verdict["problems"])
    if failure is None or was_ended:
        is_stopped = bool(ends) and ends[-1]["outcome"] == "stopped"
        stop = _stop(run_dir, name, was_asked=is_stopped, was_ended=was_ended)
        if stop is not None:
            return _bounded(stop, run_dir, name, max_failures)
        failure = "torchrun ended well, but the training did not say so"
    if any(line.get("exit_code") == _BAD_INPUT_CODE for line in events(run_dir, name, "failure")):
        return Ending(REFUSED, failure, False)
    exclude = _bad_nodes(run_dir, name, verdict["problems"])
    ending = Ending(FAILED, failure, True, exclude, is_setback=True)
    return _bounded(ending, run_dir, name, max_failures)


def _bounded(ending: Ending, run_dir: Path, name: AttemptName, max_failures: int) -> Ending:
    """The same ending, or that the run is given up: nothing may be requeued for ever."""
    in_a_row = 1 + setbacks_in_a_row(run_dir, before=name, step=newest_step(run_dir))
    # The first of several attempts at the same step may have come that far; a limit is no failure.
    least, what = (1, "failures") if ending.outcome == FAILED else (2, "attempts")
    if not ending.is_setback or in_a_row < max(least, max_failures):
        return ending
    text = f"{ending.reason}; given up after {in_a_row} {what} in a row without a step of progress"
    return Ending(FAILED, text, False)


def _bad_nodes(run_dir: Path, name: AttemptName, problems: list[dict[str, str]]) -> tuple[str, ...]:
    """The nodes to leave out. What all nodes of several complain of is not theirs (a data set that
    is nowhere): leaving out one set after the other would end with a job that never starts."""
    bad = dict.fromkeys(str(problem["host"]) for problem in problems if problem["host"])
    starts = events(run_dir, name, "start")
    num_nodes = len(starts[0]["hosts"]) if starts else 1
    return () if num_nodes > 1 and len(bad) >= num_nodes else tuple(bad)


def _stop(run_dir: Path, name: AttemptName, *, was_asked: bool, was_ended: bool) -> Ending | None:
    """The attempt was stopped; None if it ended well without having said why."""
    signals = events(run_dir, name, "signal")
    kinds = {str(line["signal"]) for line in signals} | ({"SIGTERM"} if was_ended else set())
    if "SIGUSR2" in kinds:
        first = next(line for line in signals if line["signal"] == "SIGUSR2")
        left = first.get("left_s")
        # Slurm's own granularity is half a minute.
        is_limit = left is not None and left <= _signal_delay_s(run_dir, name) + 60
        what = "the time limit was near" if is_limit else "preempted"
        # Cancelled by Slurm with a warning is requeued by Slurm; a reached limit is not.
        is_requeued = is_limit or "SIGTERM" not in kinds
        return Ending(STOPPED, f"{what} (SIGUSR2)", is_requeued, is_setback=is_limit)
    if any(_is_end(line) and _is_over(line) for line in signals):
        text = "the time limit was reached (SIGTERM)"
        return Ending(STOPPED, text, True, is_setback=True)
    if "SIGTERM" in kinds:
        text = "Slurm ended it (SIGTERM): cancelled, preempted, or requeued by an operator"
        return Ending(STOPPED, text, False)
    if kinds or was_asked:
        what = ", ".join(sorted(kinds)) or "a signal to a worker"
        return Ending(STOPPED, f"stopped by {what}", True)
    return None


def _signal_delay_s(run_dir: Path, name: AttemptName) -> float:
    path = run_dir / "submissions" / f"{name.submission:03d}" / "submission.json"
    submission = read_json(path) or {}
    return float(submission.get("cluster", {}).get("signal_delay_s", 120))


def _failure(
    run_dir: Path, name: AttemptName, *, code: int, problems: list[dict[str, str]]
) -> str | None:
    """What went wrong first, in words; None if nothing did."""
    if problems:
        return "preflight: " + "; ".join(f"{line['host']}: {line['what']}" for line in problems)
    by_node = notes(run_dir, name)
    if not by_node:
        return f"srun ended with code {code} before any node began"
    terms = [line for line in events(run_dir, name, "signal") if _is_end(line)]
    first_term = min((line["time"] for line in terms), default=float("inf"))
    # A second for clocks that differ; a node's own clock tells without that.
    own_term = {line["node"]: line["time"] for line in reversed(terms)}
    failed = [
        line
        for line in events(run_dir, name, "end")
        if line["code"] != 0 and line["time"] < own_term.get(line["node"], first_term + 1)
    ]
    if failed:
        return _words_of(run_dir, name, failed[0])
    for lines in by_node.values():
        kinds = {line["event"] for line in lines}
        if "end" not in kinds and not any(_is_end(line) for line in lines):
            return f"the task on {lines[0]['host']} ended without a word (killed, or its node lost)"
    if code != 0 and not terms:
        return f"srun ended with code {code}"
    return None


def _is_end(line: dict[str, Any]) -> bool:
    return bool(line["event"] == "signal" and line["signal"] == "SIGTERM")


def _is_over(line: dict[str, Any]) -> bool:
    """Whether a signal came when the time limit was reached."""
    left = line.get("left_s")
    return left is not None and left <= 1


def _words_of(run_dir: Path, name: AttemptName, end: dict[str, Any]) -> str:
    """Why a node's torchrun failed."""
    code = int(end["code"])
    if code < 0:
        return f"torchrun on {end['host']} was killed by {_signal_name(-code)}"
    asked = events(run_dir, name, "signal")
    if code == 128 + signal.SIGTERM and asked:
        return f"the training on {end['host']} did not stop in time after {asked[0]['signal']}"
    failures = events(run_dir, name, "failure")
    # Ranks that lost their peers fail with them: the first that said something, not the first.
    for line in sorted(failures, key=lambda line: line["exit_code"] < 0):
        words = str(line["message"]).splitlines()
        return f"rank {line['rank']} on {line['host']}: {words[-1] if words else ''}".strip()
    return f"torchrun on {end['host']} ended with code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time signals
        return f"signal {number}"


def setbacks_in_a_row(run_dir: Path, *, before: AttemptName, step: int) -> int:
    """Attempts of the same submission that were setbacks at the same newest checkpoint. Those that
    were pushed aside in between, or whose node was lost, neither count nor say that it goes on."""
    count = 0
    for name in reversed([name for name in attempts(run_dir) if name < before]):
        end = read_json(run_dir / "attempts" / str(name) / "end.json") or {}
        if name.submission != before.submission or end.get("step", step) < step:
            break
        count += bool(end.get("is_setback"))
    return count


def newest_step(run_dir: Path) -> int:
    """Of the checkpoints; 0 without any."""
    names = [path.stem.removeprefix("step_") for path in run_dir.glob("checkpoints/step_*.pt")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Judge, write down, requeue. Returns the exit code of the batch script."""
    parser = argparse.ArgumentParser(prog="launch.epilogue", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--submission", type=int, required=True)
    parser.add_argument("--code", type=int, required=True, help="srun's exit code")
    parser.add_argument("--max-failures", type=int, default=5)
    parser.add_argument("--exclude-bad", action="store_true")
    parser.add_argument("--was-ended", action="store_true", help="Slurm sent SIGTERM to the script")
    arguments = parser.parse_args(argv)
    # Requeuing ends this script too, and that is all right, but only when it is done.
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    job_id = os.environ["SLURM_JOB_ID"]
    name = AttemptName(arguments.submission, int(os.environ.get("SLURM_RESTART_COUNT") or 0))
    run_dir: Path = arguments.run_dir
    newest = newest_attempt(run_dir)
    if newest is not None and newest > name:
        print(f"attempt {name}: {newest} has taken over", flush=True)
        return 0
    ending = judge(
        run_dir,
        name,
        code=arguments.code,
        max_failures=arguments.max_failures,
        was_ended=arguments.was_ended,
    )
    if ending.outcome == STOPPED and not ending.is_requeued and is_still_running(job_id):
        reason = "preempted, or told to stop (SIGTERM)"
        ending = dataclasses.replace(ending, reason=reason, is_requeued=True)
    exclude = ending.exclude if arguments.exclude_bad else ()
    write_end(run_dir, name, ending, exclude)
    follows = "requeued" if ending.is_requeued else "not requeued by this script"
    print(f"attempt {name}: {ending.outcome}: {ending.reason}; {follows}", flush=True)
    if ending.is_requeued:
        requeue(_own_id(job_id), exclude)
    return ending.code


def is_still_running(job_id: str) -> bool:
    """Whether Slurm takes the job for a running one, so that its end now would be the run's end.

    A cancelled or requeued job is that at once, before its processes are told. One that is
    preempted with a time of grace is not, and would not be requeued if it ended within that time.
    """
    own = _own_id(job_id)
    try:
        return slurm.states([own])[own].state == "RUNNING"
    except slurm.SlurmError as error:
        print(f"epilogue: {error}", file=sys.stderr, flush=True)
        return False


def _own_id(job_id: str) -> str:
    """How Slurm's commands call this job. One element of an array has the number of the array as
    its own: by that, all elements would be requeued, those that have finished too."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else job_id


def write_end(run_dir: Path, name: AttemptName, ending: Ending, exclude: Sequence[str]) -> None:
    """Write down how an attempt ended, for `launch.status` and for the next one's epilogue."""
    content = {
        "outcome": ending.outcome,
        "reason": ending.reason,
        "is_requeued": ending.is_requeued,
        "is_setback": ending.is_setback,
        "excluded": list(exclude),
        "step": newest_step(run_dir),
        "time": time.time(),
    }
    folder = run_dir / "attempts" / str(name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "end.json", content)


def requeue(job_id: str, exclude: Sequence[str]) -> None:
    """Have Slurm run the job again, without the nodes `exclude`."""
    avoided = slurm.excluded(job_id) if exclude else []
    try:
        slurm.requeue(job_id)
    except slurm.SlurmError as error:
        print(f"requeue: {error}", file=sys.stderr, flush=True)  # it is pending already
    # Only a pending job can be told to avoid nodes.
    deadline = time.monotonic() + _EXCLUDE_S
    while exclude and time.monotonic() < deadline:
        try:
            slurm.exclude(job_id, sorted({*avoided, *exclude}))
            return
        except slurm.SlurmError:
            time.sleep(0.3)


if __name__ == "__main__":
    sys.exit(main())
