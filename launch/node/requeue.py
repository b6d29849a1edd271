"""The last command of the batch script: judge the attempt, write that down, requeue the job.

    python -m launch.node.requeue RUN_DIR --submission N --code C [--max-failures K] [--exclude-bad]

Runs on the job's first node when all tasks have ended. Reads what they wrote down, writes in
`attempts/NAME/end.json` how the attempt ended and why, and requeues. Uses the standard library
only, so that it runs outside the job's container.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.cluster import slurm
from launch.node.verdict import decide, requeued_while_running
from launch.records.attempt import AttemptName, newest_attempt
from launch.records.ending import Ending, Outcome, write_ending
from launch.records.journal import read_journal

_EXCLUDE_S = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Judge, write down, requeue. Returns the exit code of the batch script."""
    parser = argparse.ArgumentParser(prog="launch.node.requeue", description="End an attempt.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--submission", type=int, required=True)
    parser.add_argument("--code", type=int, required=True, help="srun's exit code")
    parser.add_argument("--max-failures", type=int, default=5)
    parser.add_argument("--exclude-bad", action="store_true")
    parser.add_argument("--was-ended", action="store_true", help="Slurm sent SIGTERM to the script")
    arguments = parser.parse_args(argv)
    # Requeuing ends this script too, and may, but only when all is written.
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    job_id = os.environ["SLURM_JOB_ID"]
    name = AttemptName(arguments.submission, int(os.environ.get("SLURM_RESTART_COUNT") or 0))
    run_dir: Path = arguments.run_dir
    newest = newest_attempt(run_dir)
    if newest is not None and newest > name:
        print(f"attempt {name}: {newest} has taken over", flush=True)
        return 0
    journal = read_journal(run_dir, name)
    ending = decide(
        journal,
        srun_code=arguments.code,
        max_failures=arguments.max_failures,
        was_ended=arguments.was_ended,
    )
    is_stopped = ending.outcome is Outcome.STOPPED and not ending.is_requeued
    if is_stopped and is_still_running(job_id):
        ending = requeued_while_running(ending)
    if not arguments.exclude_bad:
        ending = dataclasses.replace(ending, exclude=())
    write_ending(run_dir, name, ending, step=journal.newest_step)
    follows = "requeued" if ending.is_requeued else "not requeued by this script"
    print(f"attempt {name}: {ending.outcome}: {ending.reason}; {follows}", flush=True)
    if ending.is_requeued:
        requeue(slurm.own_id(job_id), ending)
    return ending.code


def is_still_running(job_id: str) -> bool:
    """Whether Slurm takes the job for a running one, so that its end now would be the run's end.

    A cancelled or requeued job is that at once, before its processes are told. One that is
    preempted with a time of grace is not.
    """
    own = slurm.own_id(job_id)
    try:
        return slurm.states([own])[own].state == "RUNNING"
    except slurm.SlurmError as error:
        print(f"requeue: {error}", file=sys.stderr, flush=True)
        return False


def requeue(job_id: str, ending: Ending) -> None:
    """Have Slurm run the job again, without the nodes that the ending excludes."""
    exclude = ending.exclude
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
