"""`python -m launch.cancel RUN ...`: stop runs with a checkpoint, and for good.

A running job is asked by a signal (SIGUSR1), so that it has the time it needs; `scancel` alone
leaves it Slurm's KillWait (often 30 s), after which it is killed, and a resumed run starts from an
older checkpoint.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.cluster import slurm
from launch.records.attempt import request_cancel
from launch.records.submissions import find_runs, last_submission
from launch.reports.run_status import run_status
from launch.reports.text import print_error
from resnet_dist.errors import UserError
from resnet_dist.run.lock import owner_of

_POLL_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Stop runs. Returns 0 when all have ended, 1 if one had to be killed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="launch.cancel", description="Stop runs for good.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or a sweep's folder")
    parser.add_argument(
        "--timeout", type=float, default=180.0, help="seconds to stop and save in, then scancel"
    )
    arguments = parser.parse_args(argv)
    try:
        folders = find_runs(arguments.runs)
        asked = [folder for folder in folders if ask(folder)]
        killed = [folder for folder in asked if not wait_for_end(folder, arguments.timeout)]
    except UserError as error:
        return print_error(error)
    for folder in folders:
        end = run_status(folder)
        print(f"{folder}: {end.state} at step {end.progress.step}")
    return 1 if killed else 0


def ask(run_dir: Path) -> bool:
    """Ask a run to stop; whether there was one to ask. Raises UserError if it is out of reach."""
    job = _job(run_dir)
    if job is not None and job.is_active:
        request_cancel(run_dir)
        if job.state == "RUNNING":
            slurm.send_signal(job.job_id, "USR1")
        else:
            slurm.cancel(job.job_id)
        return True
    owner = owner_of(run_dir)
    if owner is None:
        never = "" if last_submission(run_dir) else " (it was never submitted to Slurm)"
        print(f"{run_dir}: is neither queued nor running{never}")
        return False
    if owner.pid is None or not owner.is_on_this_host:
        raise UserError(f"run ({run_dir}): is trained by {owner}; stop it there")
    request_cancel(run_dir)
    os.kill(owner.pid, signal.SIGUSR1)
    return True


def wait_for_end(run_dir: Path, timeout_s: float) -> bool:
    """Wait until it has ended; whether it did so in time. After that it is killed."""
    deadline = time.monotonic() + timeout_s
    while _is_active(run_dir):
        if time.monotonic() > deadline:
            job = _job(run_dir)
            print(f"{run_dir}: has not stopped within {timeout_s:.0f} s; scancel", file=sys.stderr)
            if job is not None and job.is_active:
                slurm.cancel(job.job_id)
            return False
        time.sleep(_POLL_S)
    return True


def _job(run_dir: Path) -> slurm.JobState | None:
    last = last_submission(run_dir)
    job_id = None if last is None else last.own_job
    return None if job_id is None else slurm.states([job_id])[job_id]


def _is_active(run_dir: Path) -> bool:
    job = _job(run_dir)
    return job.is_active if job is not None else owner_of(run_dir) is not None


if __name__ == "__main__":
    sys.exit(main())
