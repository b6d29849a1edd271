"""`--local`: the same jobs on this machine, one after the other, without Slurm."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from launch.node.job import run_task
from launch.node.task import SlurmTask
from launch.node.verdict import decide
from launch.records.attempt import AttemptName
from launch.records.ending import Outcome, write_ending
from launch.records.journal import read_journal
from launch.submission.request import Request
from resnet_dist.errors import UserError

STOPPED_CODE = 75
"""Exit code for a run that was stopped, as of the trainer."""

_STOPS = (Outcome.STOPPED, Outcome.CANCELLED)


def run_here(request: Request) -> int:
    """Run the jobs of a request. Returns the exit code. Raises UserError."""
    if request.cluster.nodes != 1:
        raise UserError(
            f"--nodes ({request.cluster.nodes}): --local runs on this machine alone; leave it out"
        )
    numbered = request.numbered()
    jobs = numbered.jobs()
    numbered.prepare()
    numbered.write_submissions([None] * len(jobs))
    worst = 0
    for job in jobs:
        code = run_task(job, SlurmTask.local(socket.gethostname()))
        name, run_dir = AttemptName(job.submission, 0), Path(job.run_dir)
        journal = read_journal(run_dir, name)
        ending = decide(journal, srun_code=code, max_failures=1)
        write_ending(run_dir, name, ending, step=journal.newest_step)
        print(f"{run_dir}: {ending.outcome}: {ending.reason}", file=sys.stderr, flush=True)
        worst = worst or (STOPPED_CODE if ending.outcome in _STOPS else ending.code)
        if ending.outcome in _STOPS:
            break
    return worst
