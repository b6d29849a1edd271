"""The checkpoints of one run folder: which exist, which one is loaded, which ones are kept.

Owns retention and the choice at a restart; names are `run.checkpoint_files`'s. Used by rank 0 alone
except for `sync_load`. Promises that the newest checkpoint is never deleted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_dist.checkpoint.files import (
    CorruptCheckpointError,
    decode_checkpoint,
    read_verified,
    remove_leftovers,
    write_checkpoint,
)
from resnet_dist.config import CheckpointConfig
from resnet_dist.errors import UserError
from resnet_dist.run.checkpoint_files import (
    BEST,
    checkpoint_folder,
    checkpoint_path,
    checkpoint_steps,
)
from resnet_dist.system.failpoints import failpoint
from resnet_dist.system.files import sync_folder
from resnet_dist.world import World, sync_attempt, sync_broadcast_bytes, sync_broadcast_object


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint and how it was found."""

    path: Path
    payload: dict[str, Any]
    notes: list[str]
    """What the user should know: files that were quarantined."""


class CheckpointManager:
    """Saves to and finds in one folder."""

    def __init__(self, run_dir: Path, config: CheckpointConfig) -> None:
        self.run_dir = run_dir
        self.folder = checkpoint_folder(run_dir)
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
        write_checkpoint(path, payload)
        if is_best and self._keep_best:
            failpoint("checkpoint.before_best")
            self._point_best(path)
        failpoint("checkpoint.before_retention")
        # Whatever lies there under a higher number, the one just written stays.
        for old in self.steps()[: -self._keep_last]:
            if old != step:
                self.path(old).unlink(missing_ok=True)
        sync_folder(self.folder)
        failpoint("checkpoint.after_retention")
        return path

    def _point_best(self, path: Path) -> None:
        """Give a checkpoint the second name `best.pt`, atomically, without copying it."""
        temporary = self.folder / f".{BEST}.{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(self.folder / BEST)
        sync_folder(self.folder)

    def quarantine_until(self, is_good: Callable[[dict[str, Any]], bool], why: str) -> None:
        """Rename the newest checkpoints up to the first good one, so that it becomes the newest."""
        for step in reversed(self.steps()):
            path = self.path(step)
            if is_good(decode_checkpoint(read_verified(path), path)):
                return
            _quarantine(path, why)

    def read_newest(self) -> tuple[Path, bytearray, list[str]] | None:
        """The newest file that verifies. Files that do not are quarantined."""
        notes: list[str] = []
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                return path, read_verified(path), notes
            except FileNotFoundError:  # removed since it was listed: the one before is the newest
                continue
            except CorruptCheckpointError as error:
                aside = _quarantine(path, "corrupt")
                notes.append(
                    f"{error}; it is quarantined as {aside.name}, the one before it is used"
                )
            except OSError as error:
                raise UserError(
                    f"checkpoint ({path}): cannot be read ({error.strerror}); check the file "
                    f"system and start again, or move the file away to use the one before it"
                ) from error
        others = sorted(path.name for path in self.folder.glob("step_*.pt.*"))
        if others:  # also at the next start: a run that had checkpoints never starts over by itself
            lines = [*notes, f"run folder ({self.folder}): no checkpoint is left that can be used"]
            raise UserError(
                "\n".join(lines) + f" ({', '.join(others)} are quarantined); give run.dir a new "
                f"folder to start over, with run.resume={self.folder / BEST} to continue from "
                f"the best one if it exists"
            )
        return None


def _quarantine(path: Path, why: str) -> Path:
    """Rename a checkpoint so that it is never loaded automatically again, and never overwritten."""
    aside = path.with_name(f"{path.name}.{why}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{why}{number}")
    path.replace(aside)
    return aside


def sync_load(manager: CheckpointManager, resume: str, world: World) -> Loaded | None:
    """Find, verify and distribute the checkpoint that `run.resume` asks for.

    All ranks must call it. Rank 0 reads, the others get its bytes: thousands of ranks must not
    read from shared storage, and all must agree which file it is. None means a new run.
    Raises UserError, the same on all ranks.
    """
    found = sync_attempt(world, lambda: _find(manager, resume) if world.is_main else None)
    header = sync_broadcast_object((str(found[0]), found[2]) if found else None, world)
    if header is None:
        return None
    path = Path(header[0])
    data = sync_broadcast_bytes(found[1] if found else None, world)
    payload = sync_attempt(world, lambda: decode_checkpoint(data, path))
    return Loaded(path, payload, header[1])


def _find(manager: CheckpointManager, resume: str) -> tuple[Path, bytearray, list[str]] | None:
    if resume == "never":
        if manager.steps():
            raise UserError(
                f"run.resume (never): {manager.run_dir} already holds a run with "
                f"checkpoints; give run.dir a new folder, or continue it with run.resume=auto"
            )
        return None
    if resume in ("auto", "required"):
        newest = manager.read_newest()
        if newest is None and resume == "required":
            raise UserError(
                f"run.resume (required): there is no checkpoint in {manager.folder}; check "
                f"run.dir, or start a new run with run.resume=auto"
            )
        return newest
    return _find_named(manager, Path(resume).expanduser())


def _find_named(manager: CheckpointManager, path: Path) -> tuple[Path, bytearray, list[str]]:
    """A named file starts a run; once the run folder has its own checkpoints, it resumes from
    these.

    So a job that names its starting point may be requeued without going back to it.
    """
    own = manager.steps()
    inside = path.resolve().parent == manager.folder.resolve()
    if own and not inside:
        newest = manager.read_newest()
        assert newest is not None
        note = f"run.resume ({path}): the run folder has its own checkpoints, resuming from those"
        return newest[0], newest[1], [*newest[2], note]
    if not path.is_file():
        raise UserError(
            f"run.resume ({path}): no such file; give a checkpoint file, or one of auto, never, "
            f"required"
        )
    if own and path.name != BEST and path.resolve() != manager.path(own[-1]).resolve():
        raise UserError(
            f"run.resume ({path}): the run folder holds a later checkpoint (step {own[-1]}); "
            f"going back would overwrite it, so give run.dir a new folder"
        )
    return path, read_verified(path), []
