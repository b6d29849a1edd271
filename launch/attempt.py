"""One attempt of a run: what its nodes write down, and the fence that keeps older ones out.

An attempt is one start of a job by Slurm: `<submission>.<restart count>`, which grows. Files below
the run folder:

    attempt.json                  the newest attempt; who reads a newer one than his own must end
    attempts/001.002/node0.jsonl  what a node saw, a line an event, written by that node only
    cancel.json                   the user wants the run to stop and not to be requeued
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_dist.system.files import replace_file

_POLL_S = 0.5


class StaleAttemptError(Exception):
    """A newer attempt has taken the run over."""


@dataclass(frozen=True, order=True)
class AttemptName:
    """Ordered: a later attempt is greater."""

    submission: int
    restart: int

    def __str__(self) -> str:
        return f"{self.submission:03d}.{self.restart:03d}"

    def launch_id(self, job_id: str) -> str:
        """What only the processes of one attempt have in common: torchrun's rendezvous id, by
        which the trainer's own records name their launch."""
        return f"{job_id}.{self}"

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
        self.folder = run_dir / "attempts" / str(name)

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
        with (self.folder / f"node{self.node}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file by one that holds `content`."""
    text = json.dumps(content, indent=1) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of such a file; None if it is not there or cannot be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


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


def notes(run_dir: Path, name: AttemptName) -> dict[int, list[dict[str, Any]]]:
    """What the nodes of an attempt wrote down, by node."""
    found: dict[int, list[dict[str, Any]]] = {}
    for path in (run_dir / "attempts" / str(name)).glob("node*.jsonl"):
        number = path.stem.removeprefix("node")
        if number.isdigit():
            found[int(number)] = read_lines(path)
    return dict(sorted(found.items()))


def events(run_dir: Path, name: AttemptName, event: str) -> list[dict[str, Any]]:
    """The notes of one kind, over all nodes, in the order of their times."""
    lines = [
        {"node": node, **line}
        for node, node_lines in notes(run_dir, name).items()
        for line in node_lines
        if line["event"] == event
    ]
    return sorted(lines, key=lambda line: float(line["time"]))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON lines file; an end in the making is left out."""
    try:
        whole = path.read_text(errors="replace").rpartition("\n")[0]
    except OSError:
        return []
    return parse_lines(whole.splitlines())


def parse_lines(lines: Iterable[str]) -> list[dict[str, Any]]:
    """JSON objects, one a line; what is none is left out."""
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


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
