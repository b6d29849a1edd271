"""The checkpoints of one run folder: which exist, which ones are kept, under which names.

Owns retention; names are `run.checkpoint_files`'s, the choice at a start is `checkpoint.choice`'s.
Used by rank 0 alone. Promises that the newest checkpoint is never deleted, and that nothing is
written into the folder of another run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_dist.checkpoint.files import (
    decode_checkpoint,
    read_verified,
    remove_leftovers,
    write_checkpoint,
)
from resnet_dist.config import CheckpointConfig
from resnet_dist.run.checkpoint_files import (
    BEST,
    checkpoint_folder,
    checkpoint_path,
    checkpoint_steps,
)
from resnet_dist.run.lock import Ownership
from resnet_dist.system.failpoints import failpoint
from resnet_dist.system.files import sync_folder
from resnet_dist.system.json_files import append_line


class CheckpointManager:
    """Saves to and finds in one folder."""

    def __init__(self, run_dir: Path, config: CheckpointConfig) -> None:
        self.run_dir = run_dir
        self.folder = checkpoint_folder(run_dir)
        self.ownership: Ownership | None = None
        """Whether the run folder is still this process's, where it trains in it."""
        self._keep_last = config.keep_last
        self._keep_best = config.keep_best

    def open(self) -> None:
        """Make the folder and remove what a killed writer left in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)

    def path(self, step: int) -> Path:
        """The file of a step's checkpoint."""
        return checkpoint_path(self.run_dir, step)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return checkpoint_steps(self.run_dir)

    def save(self, payload: dict[str, Any], *, step: int, is_best: bool) -> Path:
        """Commit a checkpoint, then point `best.pt` at it, then apply retention.

        Raises OSError; then the older checkpoints are as they were.
        """
        path = self.path(step)
        self.check_owned()
        write_checkpoint(path, payload, before_commit=self.check_owned)
        if is_best and self._keep_best:
            failpoint("checkpoint.before_best")
            self.check_owned()
            self._give_name(path, BEST)
        failpoint("checkpoint.before_retention")
        self.check_owned()
        # Whatever lies there under a higher number, the one just written stays.
        for old in self.steps()[: -self._keep_last]:
            if old != step:
                self.path(old).unlink(missing_ok=True)
        sync_folder(self.folder)
        failpoint("checkpoint.after_retention")
        return path

    def _give_name(self, path: Path, name: str) -> None:
        """Give a checkpoint a second name, atomically, without copying it."""
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(self.folder / name)
        sync_folder(self.folder)

    def quarantine_until(self, is_good: Callable[[dict[str, Any]], bool], why: str) -> None:
        """Rename the newest checkpoints up to the first good one, so that it becomes the newest."""
        for step in reversed(self.steps()):
            path = self.path(step)
            if is_good(decode_checkpoint(read_verified(path), path)):
                return
            self.set_aside(path, why)

    def set_aside(self, path: Path, why: str) -> Path:
        """Rename a checkpoint so that it is never loaded by itself again, and never overwritten.
        Returns its new path."""
        self.check_owned()
        aside = path.with_name(f"{path.name}.{why}")
        number = 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}.{why}{number}")
        path.replace(aside)
        return aside

    def keep_as_step(self, path: Path, step: int) -> None:
        """Give a checkpoint of this folder the name of its step, by which it is found."""
        if not self.path(step).exists():
            self.check_owned()
            self._give_name(path, self.path(step).name)

    @property
    def went_back(self) -> Path:
        """Notes to which checkpoints the run went back, one JSON object a line."""
        return self.folder / "went_back.jsonl"

    def note_went_back(self, mark: dict[str, Any]) -> None:
        """Note that the run went back."""
        append_line(self.went_back, mark)

    def check_owned(self) -> None:
        """Raises LostFolderError if the run folder's path no longer leads to what is owned."""
        if self.ownership is not None:
            self.ownership.check()
