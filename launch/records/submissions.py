"""The submissions of a run, and the runs that a folder stands for.

submissions/001/submission.json   what was asked for, and the job that it became
submissions/001/config.yaml       the resolved config, with absolute paths
submissions/001/code/             the packages
submissions/001/slurm/            submitit's script and pickle, and the logs of the tasks
sweep.json                        in the folder of a sweep: the names of its runs
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_dist.errors import UserError
from resnet_dist.system.json_files import read_json, write_json
from resnet_dist.system.paths import expanded


@dataclass(frozen=True)
class Submission:
    """One `sbatch` of a run."""

    run_dir: Path
    """Where the run is found now."""
    number: int
    job_id: str | None
    """`123`, or `123_4` in a sweep; None while it is being submitted, or without Slurm."""
    code: Path
    module: str
    slurm_folder: Path
    cluster: dict[str, Any]
    time: float
    submitted_as: Path | None = field(default=None, compare=False)
    """The run folder at submission."""

    @property
    def own_job(self) -> str | None:
        """The job that trains in this folder; None for a copy of the folder of that job."""
        origin = self.submitted_as
        if origin is None or not origin.is_dir() or origin.samefile(self.run_dir):
            return self.job_id
        return None

    @property
    def folder(self) -> Path:
        """The folder of this submission."""
        return submission_folder(self.run_dir, self.number)

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.folder / "config.yaml"

    def write(self) -> None:
        """Write submission.json."""
        content = dataclasses.asdict(self)
        del content["run_dir"]
        content["submitted_as"] = str(self.run_dir)
        # A run folder is where it is found: these move with it.
        for key in _BESIDE:
            content[key] = os.path.relpath(content[key], self.run_dir)
        write_json(self.folder / "submission.json", content)

    def log(self, node: int = 0) -> Path:
        """The file that a node's task prints to, all attempts one after the other."""
        return self.slurm_folder / f"{self.job_id}_{node}_log.out"


_BESIDE = ("code", "slurm_folder")


def submission_folder(run_dir: Path, number: int) -> Path:
    """The folder of one submission."""
    return run_dir / "submissions" / f"{number:03d}"


def submissions(run_dir: Path) -> list[Submission]:
    """All submissions of a run, oldest first."""
    found = []
    for path in sorted(run_dir.glob("submissions/*/submission.json")):
        content = read_json(path)
        if content is None:
            continue
        try:
            paths = {key: _beside(run_dir, content[key]) for key in _BESIDE}
            paths |= {"run_dir": run_dir, "submitted_as": Path(content["submitted_as"])}
            found.append(Submission(**{**content, **paths}))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _beside(run_dir: Path, relative: str) -> Path:
    return Path(os.path.normpath(run_dir / relative))


def last_submission(run_dir: Path) -> Submission | None:
    """The newest submission; None if the run was started otherwise."""
    submitted = submissions(run_dir)
    return submitted[-1] if submitted else None


def next_number(run_dir: Path) -> int:
    """Number of the next submission."""
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


def find_runs(names: Sequence[str]) -> list[Path]:
    """The run folders that are named, or all below `runs/`. Raises UserError."""
    if names:
        return [path for name in names for path in expand(expanded(name, "RUN"))]
    found = sorted(path.parent for path in Path("runs").glob("*/submissions"))
    if not found:
        raise UserError("runs/: holds no submitted run; give a run folder")
    return list(dict.fromkeys(path for folder in found for path in expand(folder)))
