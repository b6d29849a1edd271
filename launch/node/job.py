"""The job: the work of each Slurm task, one per node, with the help of torchrun.

`TrainJob` is what submitit carries to the nodes. On each it sets or obeys the fence, takes part in
the preflight, runs torchrun (`launch.node.agent`), and passes on the signals that Slurm sends. It
never requeues by itself; when all tasks have ended, the batch script decides from what they wrote
down (`launch.node.requeue`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from submitit.helpers import DelayedSubmission

from launch.cluster.options import ClusterConfig
from launch.node.preflight import examine, pass_together
from launch.node.signals import Signals, note_signals, watch
from launch.node.task import SlurmTask
from launch.node.torchrun import (
    agent_command,
    torchrun_arguments,
    trainer_overrides,
    worker_environment,
)
from launch.records.attempt import Attempt, AttemptName, StaleAttemptError
from launch.records.journal import TaskEnd, read_notes
from resnet_dist.config import Config
from resnet_dist.config.load import load_config
from resnet_dist.run.folder import SHUTDOWN_VARIABLE, shutdown_timeout_s

_POLL_S = 0.2
_PEERS_S = 10.0
"""Time that a node that failed waits, so that the others can write down why they did."""


@dataclass(frozen=True)
class TrainJob:
    """One submission of a run. Calling it does this node's part and ends the process."""

    run_dir: str
    submission: int
    """Number of the folder in `submissions/`."""
    config: str
    """The resolved config that was submitted."""
    code: str
    """Folder with the packages that were submitted."""
    cluster: ClusterConfig
    module: str = "resnet_dist.train"

    def __call__(self) -> None:
        """Run until the training has ended, on this node. Never returns: a result would tell
        submitit that the job is over, though it may be requeued."""
        sys.exit(run_task(self, SlurmTask.from_environment()))

    def checkpoint(self) -> DelayedSubmission:
        """The same job, which submitit requeues on a signal that comes before the job has replaced
        submitit's handlers."""
        return DelayedSubmission(self)


def run_task(job: TrainJob, task: SlurmTask) -> int:
    """This node's part of an attempt. Returns 0, or 1 if it failed."""
    signals = Signals()
    signals.take_over()
    if task.end_time is None and not task.is_local:
        # Slurm tells it since 23.02 only; the tasks of a job start within seconds of it.
        task = replace(task, end_time=time.time() + 60 * job.cluster.time_min)
    name = AttemptName(job.submission, task.restart)
    attempt = Attempt(Path(job.run_dir), name, task.node)
    facts = {"job_id": task.job_id, "hosts": list(task.hosts), "restart": task.restart}
    try:
        attempt.enter(job.cluster.preflight_timeout_s, facts)
    except StaleAttemptError as error:
        print(f"{task.host}: {error}; nothing is done here", flush=True)
        return 0
    except TimeoutError as error:
        print(f"{task.host}: {error}", file=sys.stderr, flush=True)
        return 1
    attempt.note("start", pid=os.getpid(), **facts)
    config = load_config([job.config]).config
    findings = examine(job.cluster, config)
    for note in findings.notes:
        print(f"note: {task.host}: {note}", flush=True)
    problems = pass_together(
        attempt,
        findings,
        hosts=task.hosts,
        timeout_s=job.cluster.preflight_timeout_s,
        is_interrupted=lambda: signals.first is not None,
    )
    note_signals(attempt, signals, task)
    if problems or signals.first is not None:
        for problem in problems:
            print(f"preflight: {problem.host}: {problem.what}", file=sys.stderr, flush=True)
        attempt.note("end", code=1 if problems else 0)
        return 1 if problems else 0
    agent = _start_agent(job, task, attempt, config, findings.visible_devices)
    code = watch(agent, attempt, signals, task, stop_timeout_s=job.cluster.stop_timeout_s)
    if code is None:
        print(f"{task.host}: a newer attempt has taken over; ended", flush=True)
        return 0
    attempt.note("end", code=code)
    if code != 0 and signals.first is None:
        _wait_for_peers(attempt, signals, len(task.hosts))
    return 0 if code == 0 else 1


def _start_agent(
    job: TrainJob, task: SlurmTask, attempt: Attempt, config: Config, visible_devices: str | None
) -> subprocess.Popen[bytes]:
    environment = worker_environment(
        job.cluster,
        job=f"{task.job_id}.{job.submission:03d}",
        code=job.code,
        visible_devices=visible_devices,
    )
    environment.setdefault(SHUTDOWN_VARIABLE, str(shutdown_timeout_s(Path(job.run_dir))))
    command = [
        *agent_command(job.run_dir, task, attempt.name),
        *torchrun_arguments(job.cluster, task, attempt.name),
        "-m",
        job.module,
        "--config",
        job.config,
        *trainer_overrides(job.cluster, task, config),
    ]
    return subprocess.Popen(command, env=environment, preexec_fn=_ignore_user_signals)


def _ignore_user_signals() -> None:
    """Runs between fork and exec: torchrun must not die of a signal that is meant for its workers,
    not even before it can ignore it by itself."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _wait_for_peers(attempt: Attempt, signals: Signals, num_nodes: int) -> None:
    """Let the others write down why they failed: a task that ends with an error takes them with
    it."""
    deadline = time.monotonic() + _PEERS_S
    while time.monotonic() < deadline and signals.first is None:
        _, notes = read_notes(attempt.run_dir, attempt.name)
        if sum(isinstance(note, TaskEnd) for note in notes) == num_nodes:
            return
        time.sleep(_POLL_S)
