"""Signals of Slurm, and how a node passes them on to the workers.

Under a cgroup only a task's first process gets Slurm's signals.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from types import FrameType
from typing import Any

import psutil

from launch.cluster import slurm
from launch.node.task import SlurmTask
from launch.records.attempt import Attempt, is_cancelled

_POLL_S = 0.2
_STALE_POLL_S = 1.0
_RESEND_S = 2.0
"""Time between repetitions of a signal: workers that are still importing do not hear the first."""

_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Signals:
    """Signals that this process got, in their order. Handlers only take note."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._told = 0

    def take_over(self) -> None:
        """Replace the handlers of submitit, which would requeue at once."""
        for number in _SIGNALS:
            signal.signal(number, self._take)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)

    def _take(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received.append(number)

    @property
    def first(self) -> int | None:
        """The first of them."""
        return self._received[0] if self._received else None

    def new(self) -> list[str]:
        """The names of those that were not returned before."""
        fresh = self._received[self._told :]
        self._told += len(fresh)
        return [signal.Signals(number).name for number in fresh]


def note_signals(attempt: Attempt, signals: Signals, task: SlurmTask) -> None:
    """Write down which signals came, and how long before the time limit."""
    for name in signals.new():
        left = None if task.end_time is None else round(task.end_time - time.time())
        attempt.note("signal", signal=name, left_s=left, is_cancelled=is_cancelled(attempt.run_dir))
        print(f"{task.host}: got {name}: the training is asked to stop", flush=True)
        if name == "SIGTERM" and task.node == 0 and not task.is_local:
            requeue_if_preempted(task)


def requeue_if_preempted(task: SlurmTask) -> None:
    """Where Slurm cancels what it preempts (PreemptMode=CANCEL), have it run the job again. At
    once: the batch script may not live long enough for its own verdict."""
    job_id = slurm.own_id(task.job_id)
    try:
        if slurm.is_cancelled_by_preemption(job_id):
            slurm.requeue(job_id)
            print(f"{task.host}: preempted, and cancelled by Slurm for that: requeued", flush=True)
    except slurm.SlurmError as error:
        print(f"{task.host}: cannot ask Slurm whether it preempts ({error})", flush=True)


def watch(
    agent: subprocess.Popen[Any],
    attempt: Attempt,
    signals: Signals,
    task: SlurmTask,
    *,
    stop_timeout_s: float,
) -> int | None:
    """Wait for torchrun, pass on signals, obey the fence. Returns its exit code (negative: the
    signal that killed it); None if a newer attempt has taken over, and torchrun was killed.

    Polls: a wait that a signal handler interrupts does not see the end of the process.
    """
    asked_at, sent_at, checked_at = None, 0.0, 0.0
    is_told_to_end = False
    while (code := agent.poll()) is None:
        now = time.monotonic()
        note_signals(attempt, signals, task)
        if signals.first is not None:
            asked_at = now if asked_at is None else asked_at
            if now - sent_at > _RESEND_S:
                pass_on(agent.pid, signals.first)
                sent_at = now
            if now - asked_at > stop_timeout_s and not is_told_to_end:
                agent.send_signal(signal.SIGTERM)
                is_told_to_end = True
        if now - checked_at > _STALE_POLL_S:
            checked_at = now
            if attempt.is_stale():
                kill(agent)
                return None
        time.sleep(_POLL_S)
    note_signals(attempt, signals, task)
    return code


def pass_on(agent: int, number: int) -> None:
    """Send a signal to torchrun's workers. Ctrl-C reached them already, and twice is too often."""
    if number == signal.SIGINT:
        return
    for child in children(agent):
        try:
            os.kill(child, number)
        except ProcessLookupError:
            continue


def children(parent: int) -> list[int]:
    """Ids of the processes that `parent` started; none if it has ended."""
    try:
        return [child.pid for child in psutil.Process(parent).children()]
    except psutil.NoSuchProcess:
        return []


def kill(agent: subprocess.Popen[Any]) -> None:
    """End torchrun and its workers at once: they write no more."""
    workers = children(agent.pid)
    agent.kill()
    for worker in workers:
        try:
            os.kill(worker, signal.SIGKILL)
        except ProcessLookupError:
            continue
    agent.wait()
