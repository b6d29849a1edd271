"""Which checkpoint a run starts from: what `run.resume` asks for, and what the run folder shows.

A folder that shows a run does not begin again by itself. Whoever names a checkpoint gets that one:
going back quarantines the later ones, and an evaluation renames nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_dist.checkpoint.files import CorruptCheckpointError, decode_checkpoint, read_verified
from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.config.run import RESUME_WORDS
from resnet_dist.errors import UserError
from resnet_dist.run.checkpoint_files import BEST
from resnet_dist.run.evidence import evidence_of_a_run
from resnet_dist.system.json_files import read_lines
from resnet_dist.system.paths import expanded
from resnet_dist.world import World, sync_attempt, sync_broadcast_bytes, sync_broadcast_object


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint and how it was found."""

    path: Path
    payload: dict[str, Any]
    notes: list[str]
    """What the user should know: files that were quarantined."""


def sync_load(
    manager: CheckpointManager, resume: str, world: World, *, may_write: bool = True
) -> Loaded | None:
    """Find, verify and distribute the checkpoint that `run.resume` asks for.

    All ranks must call it. Rank 0 reads, the others get its bytes: thousands of ranks must not
    read from shared storage, and all must agree which file it is. None means a new run.
    `may_write`: see `choose`. Raises UserError, the same on all ranks.
    """

    def find() -> Choice | None:
        return choose(manager, resume, may_write=may_write) if world.is_main else None

    found = sync_attempt(world, find)
    header = sync_broadcast_object((str(found.path), found.notes) if found else None, world)
    if header is None:
        return None
    path = Path(header[0])
    data = sync_broadcast_bytes(found.data if found else None, world)
    payload = sync_attempt(world, lambda: decode_checkpoint(data, path))
    return Loaded(path, payload, header[1])


@dataclass(frozen=True)
class Choice:
    """A verified file."""

    path: Path
    data: bytearray
    notes: list[str] = field(default_factory=list)
    """What the user should know."""


def choose(manager: CheckpointManager, resume: str, *, may_write: bool) -> Choice | None:
    """The checkpoint that `run.resume` asks for; None: a new run. Rank 0 alone calls it.

    `may_write`: this process owns the run folder; else (to evaluate) nothing is renamed there.
    Raises UserError.
    """
    if resume == "never":
        _refuse_a_run(manager, resume)
        return None
    if resume in ("auto", "required", "last"):
        newest = read_newest(manager, may_write=may_write)
        if newest is None and resume != "auto":
            raise UserError(
                f"run.resume ({resume}): there is no checkpoint in {manager.folder}; check "
                f"run.dir, or start a new run with run.resume=auto"
            )
        if newest is None:
            _refuse_a_run(manager, resume)
        return newest
    path = manager.folder / BEST if resume == "best" else expanded(resume, "run.resume")
    is_own = path.resolve().parent == manager.folder.resolve()
    if may_write and not is_own:
        if manager.steps():
            newest = read_newest(manager, may_write=True)
            assert newest is not None
            # So a job that names its starting point may be started again without going back to it.
            note = f"run.resume ({path}): the run folder has its own checkpoints, resuming from one"
            return Choice(newest.path, newest.data, [*newest.notes, note])
        _refuse_a_run(manager, resume)
    if not path.is_file():
        raise UserError(
            f"run.resume ({resume}): {path} is no file; give a checkpoint file, or one of "
            f"{', '.join(RESUME_WORDS)}"
        )
    choice = Choice(path, read_verified(path))
    return _go_back(manager, choice) if may_write and is_own else choice


def read_newest(manager: CheckpointManager, *, may_write: bool) -> Choice | None:
    """The newest file that verifies. Those that do not are quarantined, or only named."""
    notes: list[str] = []
    for step in reversed(manager.steps()):
        path = manager.path(step)
        try:
            return Choice(path, read_verified(path), notes)
        except FileNotFoundError:  # removed since it was listed: the one before is the newest
            continue
        except CorruptCheckpointError as error:
            aside = manager.set_aside(path, "corrupt").name if may_write else None
            fate = f"it is quarantined as {aside}, " if aside else ""
            notes.append(f"{error}; {fate}the one before it is used")
        except OSError as error:
            raise UserError(
                f"checkpoint ({path}): cannot be read ({error.strerror}); check the file "
                f"system and start again, or move the file away to use the one before it"
            ) from error
    others = sorted(path.name for path in manager.folder.glob("step_*.pt.*"))
    if others or notes:  # also at the next start: such a run never starts over by itself
        lines = [*notes, f"run folder ({manager.folder}): no checkpoint is left that can be used"]
        raise UserError(
            "\n".join(lines) + f" ({', '.join(others) or 'all are damaged'}, quarantined); give "
            f"run.dir a new folder to start over, with run.resume={manager.folder / BEST} to "
            f"continue from the best one if it exists"
        )
    return None


def _refuse_a_run(manager: CheckpointManager, resume: str) -> None:
    """Raise UserError if the folder shows a run that a new one would overwrite."""
    shown = evidence_of_a_run(manager.run_dir, is_strict=resume == "never")
    if shown is None:
        return
    best = manager.folder / BEST
    on = f"start from its best checkpoint with run.resume={best} and a new run.dir"
    raise UserError(
        f"run.resume ({resume}): {manager.run_dir} already holds a run ({shown}), which a new one "
        f"would overwrite; give run.dir a new folder, or "
        f"{on if best.is_file() else 'continue it with run.resume=auto if it has checkpoints'}"
    )


def _go_back(manager: CheckpointManager, choice: Choice) -> Choice:
    """Make a checkpoint of this folder the newest: later ones are quarantined.

    Once: a job that is started again with the same arguments resumes from what it has made since.
    """
    step = int(decode_checkpoint(choice.data, choice.path)["step"])
    later = [number for number in manager.steps() if number > step]
    mark = {"file": choice.path.name, "step": step}
    if later and mark in _marks(manager):
        newest = read_newest(manager, may_write=True)
        assert newest is not None
        note = (
            f"run.resume ({choice.path}): this folder went back to it before, resuming from what "
            f"was made since; to go back again, remove {manager.went_back}"
        )
        return Choice(newest.path, newest.data, [*newest.notes, note])
    manager.keep_as_step(choice.path, step)
    names = [manager.set_aside(manager.path(number), "abandoned").name for number in later]
    best = manager.folder / BEST
    if best.is_file() and not best.samefile(choice.path):
        best_step = int(decode_checkpoint(read_verified(best), best)["step"])
        if best_step > step:
            names.append(manager.set_aside(best, "abandoned").name)
    manager.note_went_back(mark)
    if not names:
        return choice
    note = (
        f"going back to step {step}: later checkpoints are quarantined ({', '.join(names)}), later "
        f"records are dropped"
    )
    return Choice(choice.path, choice.data, [*choice.notes, note])


def _marks(manager: CheckpointManager) -> list[object]:
    return list(read_lines(manager.went_back)) if manager.went_back.exists() else []
