"""The steps of a run that lead to one of its steps, trained again in a folder of their own."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from resnet_dist.diff import checkpoints
from resnet_dist.diff.parting import Checkpoints, Compared, compare
from resnet_dist.errors import UserError
from resnet_dist.metrics.jsonl import read_records
from resnet_dist.report.facts import RunFacts
from resnet_dist.run.checkpoint_files import checkpoint_path, checkpoint_steps
from resnet_dist.system.torchrun import training_command

_NEVER = 10**9
_TAIL = 12
"""Lines of a failed start that are shown."""


@dataclass(frozen=True)
class Again:
    """What was trained again, and how it compares."""

    folder: Path
    """A run folder with the checkpoint of the step, and that of the step before it (step 0 has
    none)."""
    begun_at: int
    """Steps done in the checkpoint that it began with; 0: none."""
    records: Compared
    saved: Checkpoints

    @property
    def is_equal(self) -> bool:
        """Whether all that both runs hold is equal, bit for bit."""
        return self.records.parting is None and self.saved.first_step is None


def train_again(run: RunFacts, step: int, folder: Path, *, nproc: int, given: list[str]) -> Again:
    """Train from the nearest checkpoint of `run` to the end of `step`, in the run folder `folder`.

    `given`: more settings, such as `data.root=` on another machine. Raises UserError if a start
    fails.
    """
    earlier = [saved for saved in checkpoint_steps(run.folder) if saved < step]
    begun_at = max(earlier, default=0)
    settings = [*given, f"run.dir={folder}", "log.progress=lines", f"eval.every_epochs={_NEVER}"]
    settings += ["eval.at_start=false", "checkpoint.keep_last=2", "checkpoint.keep_best=false"]
    if begun_at:
        settings.append(f"run.resume={checkpoint_path(run.folder, begun_at)}")
    for last in sorted({max(step - 1, begun_at), step} - {begun_at}):
        _start(run.folder / "config.yaml", [*settings, f"train.max_steps={last}"], nproc)
    return Again(
        folder=folder,
        begun_at=begun_at,
        records=compare(run.records, read_records(folder / "metrics.jsonl")),
        saved=checkpoints.compare(run.folder, folder),
    )


def checkpoint_before(run: RunFacts, again: Again, step: int) -> Path | None:
    """The checkpoint from which `step` starts; None: it is the first step."""
    if step == 1:
        return None
    owner = run.folder if again.begun_at == step - 1 else again.folder
    return checkpoint_path(owner, step - 1)


def _start(config: Path, settings: list[str], nproc: int) -> None:
    command = training_command(nproc, ["--config", str(config), *settings])
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        lines = said or ended.stderr.splitlines()[-_TAIL:]
        raise UserError("the run could not be trained again:\n" + "\n".join(lines))
