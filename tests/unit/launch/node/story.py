"""The story of an attempt, told event by event: in memory for the verdict, or in a run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.node.verdict import decide
from launch.records.attempt import AttemptName, request_cancel
from launch.records.ending import Ending, PastEnding
from launch.records.journal import (
    AttemptNotes,
    Journal,
    Problem,
    TrainingEnd,
    parse_notes,
    write_problems,
)
from launch.records.json_files import append_line, write_json
from launch.records.submissions import submission_folder

HOSTS = ("node1", "node2")
JOB = "77"
SIGNAL_DELAY_S = 120.0
FIRST = AttemptName(1, 0)


@dataclass
class Story:
    """An attempt of two nodes, and those before it."""

    name: AttemptName = FIRST
    was_ended: bool = False
    """Whether the batch script was sent SIGTERM."""
    is_cancelled: bool = False
    signal_delay_s: float = SIGNAL_DELAY_S
    newest_step: int = 0
    now: float = 1_700_000_000.0
    lines: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    ends: list[TrainingEnd] = field(default_factory=list)
    earlier: list[tuple[AttemptName, PastEnding | None]] = field(default_factory=list)

    def begin(self, *nodes: int) -> Story:
        """The tasks of these nodes start (default: both)."""
        for node in nodes or (0, 1):
            self.note(node, "start", job_id=JOB, hosts=list(HOSTS))
        return self

    def note(self, node: int, event: str, *, after_s: float = 0.0, **facts: Any) -> None:
        """A node writes a line, `after_s` later than it would have."""
        self.now += 0.001
        line = {"event": event, "time": self.now + after_s, "host": HOSTS[node], **facts}
        self.lines.setdefault(node, []).append(line)

    def signal(self, kind: str, *nodes: int, left_s: float | None = 50_000) -> None:
        """Tasks get a signal."""
        for node in nodes or (0, 1):
            self.note(node, "signal", signal=kind, left_s=left_s, is_cancelled=False)

    def end(self, code: int, *nodes: int, after_s: float = 0.0) -> None:
        """torchrun ends on nodes."""
        for node in nodes or (0, 1):
            self.note(node, "end", code=code, after_s=after_s)

    def fail(self, node: int, rank: int, exit_code: int, message: str) -> None:
        """A rank fails for good."""
        self.note(node, "failure", rank=rank, exit_code=exit_code, message=message)

    def says(self, outcome: str, step: int = 20) -> None:
        """What the trainer's rank 0 appends to ends.jsonl."""
        self.ends.append(TrainingEnd(outcome, step))

    def preflight(self, *problems: tuple[str, str]) -> None:
        """The first node's conclusion."""
        self.problems = [Problem(host, what) for host, what in problems]

    def journal(self) -> Journal:
        """The story so far."""
        notes = [note for node, lines in self.lines.items() for note in parse_notes(lines, node)]
        return Journal(
            attempt=AttemptNotes(
                name=self.name,
                nodes=tuple(sorted(self.lines)),
                notes=tuple(sorted(notes, key=lambda note: note.time)),
                problems=tuple(self.problems),
                training_ends=tuple(self.ends),
            ),
            is_cancelled=self.is_cancelled,
            signal_delay_s=self.signal_delay_s,
            newest_step=self.newest_step,
            earlier=tuple(self.earlier),
        )

    def write(self, run_dir: Path) -> None:
        """Write the same into a run folder, as tasks and trainer do; not the attempts before."""
        folder = self.name.folder(run_dir)
        folder.mkdir(parents=True)
        for node, lines in self.lines.items():
            for line in lines:
                append_line(folder / f"node{node}.jsonl", line)
        if self.problems:
            write_problems(run_dir, self.name, self.problems, time=self.now)
        with (run_dir / "ends.jsonl").open("a") as file:
            for end in self.ends:
                launch = self.name.launch_id(JOB)
                line = {"outcome": end.outcome, "step": end.step, "launch": launch}
                file.write(json.dumps(line) + "\n")
        if self.is_cancelled:
            request_cancel(run_dir)
        if self.newest_step:
            path = run_dir / "checkpoints" / f"step_{self.newest_step:09d}.pt"
            path.parent.mkdir(exist_ok=True)
            path.touch()
        submission = submission_folder(run_dir, self.name.submission)
        submission.mkdir(parents=True, exist_ok=True)
        cluster = {"signal_delay_s": self.signal_delay_s}
        write_json(submission / "submission.json", {"cluster": cluster})

    def decided(self, code: int = 0, *, max_failures: int = 5) -> Ending:
        """The verdict when srun has ended with `code`."""
        return decide(
            self.journal(), srun_code=code, max_failures=max_failures, was_ended=self.was_ended
        )

    def over(self, code: int = 0, **limits: int) -> Ending:
        """The verdict; the next attempt follows."""
        ending = self.decided(code, **limits)
        self.earlier.append((self.name, PastEnding(ending, self.newest_step)))
        self.next()
        return ending

    def next(self, name: AttemptName | None = None) -> None:
        """Another attempt, of which nothing is known yet."""
        self.name = name or AttemptName(self.name.submission, self.name.restart + 1)
        self.lines, self.problems, self.ends = {}, [], []
