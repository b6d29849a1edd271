"""A run folder as the launcher sees it: submissions, progress, and whether the run is done.

submissions/001/submission.json   what was asked for, and the job that it became
submissions/001/config.yaml       the resolved config, with absolute paths
submissions/001/code/             the packages
submissions/001/slurm/            submitit's script and pickle, and the logs of the tasks
sweep.json                        in the folder of a sweep: the names of its runs
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.attempt import parse_lines, read_json, read_lines, write_json
from launch.cluster import ClusterConfig
from resnet_dist.errors import UserError

_TAIL_BYTES = 1 << 20
"""More than the records of an epoch, so that the last evaluation is among them."""


@dataclass(frozen=True)
class Submission:
    """One `sbatch` of a run."""

    run_dir: Path
    number: int
    job_id: str | None
    """`123`, or `123_4` in a sweep; None while it is being submitted, or without Slurm."""
    code: Path
    module: str
    slurm_folder: Path
    cluster: dict[str, Any]
    time: float

    @property
    def folder(self) -> Path:
        """Of this submission."""
        return submission_folder(self.run_dir, self.number)

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.folder / "config.yaml"

    def write(self) -> None:
        """Write submission.json."""
        content = dataclasses.asdict(self)
        for key in ("run_dir", "code", "slurm_folder"):
            content[key] = str(content[key])
        write_json(self.folder / "submission.json", content)

    def log(self, node: int = 0) -> Path:
        """What a node's task printed, all attempts one after the other."""
        return self.slurm_folder / f"{self.job_id}_{node}_log.out"


def submission_folder(run_dir: Path, number: int) -> Path:
    """Of one submission."""
    return run_dir / "submissions" / f"{number:03d}"


def submissions(run_dir: Path) -> list[Submission]:
    """All submissions of a run, oldest first."""
    found = []
    for path in sorted(run_dir.glob("submissions/*/submission.json")):
        content = read_json(path)
        if content is None:
            continue
        try:
            paths = {key: Path(content[key]) for key in ("run_dir", "code", "slurm_folder")}
            found.append(Submission(**{**content, **paths}))
        except (KeyError, TypeError):
            continue
    return found


def next_number(run_dir: Path) -> int:
    """Of the submission to come."""
    numbers = [int(path.name) for path in run_dir.glob("submissions/*") if path.name.isdigit()]
    return max(numbers, default=0) + 1


def sweep_names(run_dir: Path) -> list[str]:
    """The names of a sweep's run folders; empty if this is no sweep."""
    content = read_json(run_dir / "sweep.json")
    return [str(name) for name in content["runs"]] if content else []


def expand(folder: Path) -> list[Path]:
    """The run folders that a folder stands for: those of a sweep, or itself.

    Raises UserError if it is no run folder.
    """
    names = sweep_names(folder)
    if names:
        return [folder / name for name in names]
    if not folder.is_dir():
        raise UserError(f"run ({folder}): no such folder; give a run folder, such as runs/resnet50")
    if not (folder / "submissions").is_dir() and not (folder / "metrics.jsonl").exists():
        raise UserError(f"run ({folder}): holds no run; give a run folder, such as runs/resnet50")
    return [folder]


def last_outcome(run_dir: Path) -> str | None:
    """How the last start that ended by itself did so: finished, limited (train.max_steps), stopped,
    diverged."""
    ends = read_lines(run_dir / "ends.jsonl")
    return str(ends[-1]["outcome"]) if ends else None


def lock_owner(run_dir: Path) -> str | None:
    """The process on this file system that trains in the folder now; None if there is none."""
    try:
        descriptor = os.open(run_dir / "run.lock", os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
    else:
        return None
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Progress:
    """How far a run has come, from its records."""

    step: int = 0
    num_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    """Of training, at the last record."""
    top1: float | None = None
    """Of the last evaluation, 0 to 1."""
    images_per_second: float | None = None
    step_time_s: float | None = None
    time: float | None = None
    """Of the last record, seconds since 1970."""

    @property
    def left_s(self) -> float | None:
        """Seconds of training until the end at the last speed, without evaluations."""
        if self.num_steps is None or self.step_time_s is None:
            return None
        return max(0, self.num_steps - self.step) * self.step_time_s


def progress(run_dir: Path) -> Progress:
    """Read the end of the records, whatever is there."""
    last: dict[str, Any] = {}
    for line in _tail(run_dir / "metrics.jsonl"):
        last.update(line)
    starts = read_lines(run_dir / "starts.jsonl")

    def number(tag: str) -> float | None:
        return float(last[tag]) if tag in last else None  # what JSON has not is a text: "NaN"

    time_ms = number("train/step_time_ms")
    return Progress(
        step=int(last.get("step", 0)),
        num_steps=starts[-1].get("num_steps") if starts else None,
        epoch=number("epoch"),
        loss=number("train/loss"),
        top1=number("val/top1"),
        images_per_second=number("train/images_per_second"),
        step_time_s=time_ms / 1000 if time_ms is not None else None,
        time=number("time"),
    )


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last whole lines of a file of records that may be long."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = text.rpartition("\n")[0].splitlines()
    return parse_lines(lines[1 if size > _TAIL_BYTES else 0 :])


def cluster_of(submission: Submission) -> ClusterConfig:
    """What a submission asked for."""
    return ClusterConfig(**submission.cluster)
