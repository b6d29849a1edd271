"""Names of the checkpoint files of a run. Does not import torch, so that a launcher can look."""

from __future__ import annotations

import re
from pathlib import Path

BEST = "best.pt"
_NAME = re.compile(r"step_(\d+)\.pt")


def checkpoint_folder(run_dir: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run_dir / "checkpoints"


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """The file of a step's checkpoint."""
    return checkpoint_folder(run_dir) / f"step_{step:08d}.pt"


def checkpoint_steps(run_dir: Path) -> list[int]:
    """Steps that have a checkpoint, ascending; unfinished and quarantined files do not count."""
    folder = checkpoint_folder(run_dir)
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(match.group(1)) for match in matches if match)


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint; 0 without any."""
    return max(checkpoint_steps(run_dir), default=0)
