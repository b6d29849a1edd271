"""One attempt of a run: its name, its notes, and the fence that keeps older attempts out.

An attempt is one start of a job by Slurm: `<submission>.<restart count>`, which grows. Files below
the run folder:

    attempt.json                  the newest attempt; a task of an older one must end
    attempts/001.002/node0.jsonl  what a node saw, one event per line, written by that node only
    cancel.json                   the user wants the run to stop and not to be requeued

`launch.records.journal` reads the notes.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.records.json_files import append_line, read_json, write_json

_POLL_S = 0.5


class StaleAttemptError(Exception):
    """A newer attempt has taken the run over."""


@dataclass(frozen=True, order=True)
class AttemptName:
    """The order of attempts: a later one is greater."""

    submission: int
    restart: int

    def __str__(self) -> str:
        return f"{self.submission:03d}.{self.restart:03d}"

    def launch_id(self, job_id: str) -> str:
        """Id that only the processes of one attempt share: torchrun's rendezvous id, by which the
        trainer's own records name their launch."""
        return f"{job_id}.{self}"

    def folder(self, run_dir: Path) -> Path:
        """The folder of the attempt's notes."""
        return run_dir / "attempts" / str(self)

    @classmethod
    def parse(cls, text: str) -> AttemptName:
        """Raises ValueError."""
        submission, _, restart = text.partition(".")
        return cls(int(submission), int(restart))


class Attempt:
    """This node's part of an attempt."""

    def __init__(self, run_dir: Path, name: AttemptName, node: int) -> None:
        """`node`: from 0; node 0 sets the fence."""
        self.run_dir, self.name, self.node = run_dir, name, node
        self.folder = name.folder(run_dir)

    def enter(self, timeout_s: float, facts: dict[str, Any]) -> None:
        """Set the fence (node 0) or wait for it. Raises StaleAttemptError, TimeoutError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout_s
        while True:
            newest = newest_attempt(self.run_dir)
            if newest is not None and newest > self.name:
                raise StaleAttemptError(f"attempt {newest} has taken over from {self.name}")
            if newest == self.name:
                return
            if self.node == 0:
                fence = {"attempt": str(self.name), "time": time.time(), **facts}
                write_json(self.run_dir / "attempt.json", fence)
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the first node has not begun attempt {self.name} within {timeout_s:.0f} s, "
                    f"as seen in {self.run_dir}; is that folder shared by all nodes?"
                )
            time.sleep(_POLL_S)

    def is_stale(self) -> bool:
        """Whether a newer attempt has begun."""
        newest = newest_attempt(self.run_dir)
        return newest is not None and newest > self.name

    def note(self, event: str, **facts: Any) -> None:
        """Write down what happened on this node."""
        line = {"event": event, "time": time.time(), "host": socket.gethostname(), **facts}
        append_line(self.folder / f"node{self.node}.jsonl", line)


def newest_attempt(run_dir: Path) -> AttemptName | None:
    """The attempt that holds the fence; None if there was none, or the folder cannot be read."""
    fence = read_json(run_dir / "attempt.json")
    try:
        return AttemptName.parse(str(fence["attempt"])) if fence else None
    except (ValueError, KeyError):
        return None


def attempts(run_dir: Path) -> list[AttemptName]:
    """All attempts, oldest first."""
    found = []
    for path in run_dir.glob("attempts/*.*"):
        try:
            found.append(AttemptName.parse(path.name))
        except ValueError:
            continue
    return sorted(found)


def request_cancel(run_dir: Path) -> None:
    """Ask all attempts that have begun so far to stop for good."""
    who = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
    write_json(run_dir / "cancel.json", who)


def withdraw_cancel(run_dir: Path) -> None:
    """Forget the request: the run is submitted again."""
    (run_dir / "cancel.json").unlink(missing_ok=True)


def is_cancelled(run_dir: Path) -> bool:
    """Whether the user has asked the run to stop."""
    return (run_dir / "cancel.json").exists()
