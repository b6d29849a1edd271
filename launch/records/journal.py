"""The journal of an attempt, read once: plain data for verdict, preflight and status.

The notes of its nodes (attempts/NAME/node*.jsonl), the preflight's conclusion (preflight.json), how
its training ended (ends.jsonl), and, for the verdict, what the run folder says besides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from launch.records.attempt import AttemptName, attempts, is_cancelled
from launch.records.ending import PastEnding, read_ending
from launch.records.json_files import read_json, read_lines, write_json
from launch.records.progress import DONE, newest_step
from launch.records.submissions import submission_folder

_DEFAULT_SIGNAL_DELAY_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Note:
    """One line of a node. The fields of its kinds are called as in the file."""

    node: int
    host: str
    time: float
    """Seconds since 1970, by the node's clock."""


N = TypeVar("N", bound=Note)


@dataclass(frozen=True, kw_only=True)
class TaskStart(Note):
    """The task of the node has begun."""

    job_id: str
    hosts: tuple[str, ...]
    """All nodes of the job."""


@dataclass(frozen=True, kw_only=True)
class PreflightReport(Note):
    """The findings of the node on itself."""

    problems: tuple[str, ...]
    gpus: tuple[str, ...]
    """UUIDs."""


@dataclass(frozen=True, kw_only=True)
class SignalNote(Note):
    """A signal that the task got."""

    signal: str
    left_s: float | None
    """Seconds until the time limit."""

    @property
    def is_term(self) -> bool:
        """Whether Slurm ends the task with it."""
        return self.signal == "SIGTERM"


@dataclass(frozen=True, kw_only=True)
class TaskEnd(Note):
    """The end of torchrun, or of a failed preflight."""

    code: int
    """Exit code; negative: the signal that killed torchrun."""


@dataclass(frozen=True, kw_only=True)
class RankFailure(Note):
    """A worker that failed for good."""

    rank: int
    exit_code: int
    message: str


@dataclass(frozen=True, kw_only=True)
class WorkerReport(Note):
    """A report of torchrun before it restarted the workers."""

    text: str


_KINDS: Mapping[str, type[Note]] = {
    "start": TaskStart,
    "preflight": PreflightReport,
    "signal": SignalNote,
    "end": TaskEnd,
    "failure": RankFailure,
    "worker": WorkerReport,
}


@dataclass(frozen=True)
class Problem:
    """A reason not to train on a node."""

    host: str
    what: str


@dataclass(frozen=True)
class TrainingEnd:
    """A line of the training that ended by itself."""

    outcome: str
    """finished, limited (train.max_steps), stopped, diverged."""
    step: int
    reason: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        return self.outcome in DONE


@dataclass(frozen=True, kw_only=True)
class AttemptNotes:
    """Everything that was written down during one attempt."""

    name: AttemptName
    nodes: tuple[int, ...] = ()
    """Numbers of the nodes that wrote a file, ascending."""
    notes: tuple[Note, ...] = ()
    """Over all nodes, in the order of their times."""
    problems: tuple[Problem, ...] = ()
    """The preflight's conclusion."""
    training_ends: tuple[TrainingEnd, ...] = ()
    """Oldest first."""
    num_training_starts: int = 0
    """Starts of the training, by torchrun too."""

    def of(self, kind: type[N]) -> list[N]:
        """The notes of one kind."""
        return [note for note in self.notes if isinstance(note, kind)]

    def of_node(self, node: int) -> list[Note]:
        """The notes of one node."""
        return [note for note in self.notes if note.node == node]

    def host_of(self, node: int) -> str:
        """The name of a node."""
        return next((note.host for note in self.of_node(node)), f"node {node}")

    @property
    def hosts(self) -> tuple[str, ...]:
        """The nodes of the job; none if no task has begun."""
        starts = self.of(TaskStart)
        return starts[0].hosts if starts else ()


@dataclass(frozen=True, kw_only=True)
class Journal:
    """One attempt in its run: all that the verdict depends on, besides srun's exit code."""

    attempt: AttemptNotes
    is_cancelled: bool = False
    """Whether the user has asked the run to stop."""
    signal_delay_s: float = _DEFAULT_SIGNAL_DELAY_S
    """Seconds before the time limit at which Slurm sends SIGUSR2."""
    newest_step: int = 0
    """Step of the newest checkpoint; 0 without any."""
    earlier: tuple[tuple[AttemptName, PastEnding | None], ...] = ()
    """The attempts before, oldest first."""


def parse_notes(lines: Sequence[Mapping[str, Any]], node: int) -> list[Note]:
    """Notes from the lines of a node's file. Lines of another kind, or without a field, are left
    out."""
    found = []
    for line in lines:
        kind = _KINDS.get(str(line.get("event")))
        if kind is None:
            continue
        values = {"node": node, **line}
        names = [item.name for item in dataclasses.fields(kind)]
        if all(name in values for name in names):
            found.append(kind(**{name: _frozen(values[name]) for name in names}))
    return found


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_notes(run_dir: Path, name: AttemptName) -> tuple[tuple[int, ...], tuple[Note, ...]]:
    """The numbers of the nodes that wrote a file, and the notes of all in the order of time."""
    paths = {}
    for path in name.folder(run_dir).glob("node*.jsonl"):
        number = path.stem.removeprefix("node")
        if number.isdigit():
            paths[int(number)] = path
    notes = [
        note for node, path in sorted(paths.items()) for note in parse_notes(read_lines(path), node)
    ]
    return tuple(sorted(paths)), tuple(sorted(notes, key=lambda note: note.time))


def read_problems(run_dir: Path, name: AttemptName) -> tuple[Problem, ...] | None:
    """The preflight's conclusion; None as long as there is none."""
    content = read_json(name.folder(run_dir) / "preflight.json")
    if content is None:
        return None
    return tuple(Problem(str(line["host"]), str(line["what"])) for line in content["problems"])


def write_problems(
    run_dir: Path, name: AttemptName, problems: Sequence[Problem], *, time: float
) -> None:
    """Write the preflight's conclusion."""
    listed = [dataclasses.asdict(problem) for problem in problems]
    write_json(name.folder(run_dir) / "preflight.json", {"problems": listed, "time": time})


def read_attempt(run_dir: Path, name: AttemptName) -> AttemptNotes:
    """Read what was written down during an attempt."""
    nodes, notes = read_notes(run_dir, name)
    launches = {name.launch_id(note.job_id) for note in notes if isinstance(note, TaskStart)}
    ends = [x for x in read_lines(run_dir / "ends.jsonl") if x.get("launch") in launches]
    starts = [x for x in read_lines(run_dir / "starts.jsonl") if x.get("launch") in launches]
    return AttemptNotes(
        name=name,
        nodes=nodes,
        notes=notes,
        problems=read_problems(run_dir, name) or (),
        training_ends=tuple(
            TrainingEnd(str(end["outcome"]), int(end["step"]), end.get("reason")) for end in ends
        ),
        num_training_starts=len(starts),
    )


def read_journal(run_dir: Path, name: AttemptName) -> Journal:
    """Read an attempt and what the verdict on it depends on besides."""
    submission = read_json(submission_folder(run_dir, name.submission) / "submission.json") or {}
    delay_s = submission.get("cluster", {}).get("signal_delay_s", _DEFAULT_SIGNAL_DELAY_S)
    before = [each for each in attempts(run_dir) if each < name]
    return Journal(
        attempt=read_attempt(run_dir, name),
        is_cancelled=is_cancelled(run_dir),
        signal_delay_s=float(delay_s),
        newest_step=newest_step(run_dir),
        earlier=tuple((each, read_ending(run_dir, each)) for each in before),
    )
