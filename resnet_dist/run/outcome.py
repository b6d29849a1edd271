"""How one start of a training ended, as `ends.jsonl` says it."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """How a start ended that ended by itself."""

    FINISHED = "finished"
    """All epochs are done."""
    LIMITED = "limited"
    """`train.max_steps` is reached; a higher one resumes the run exactly."""
    REACHED = "reached"
    """`train.stop_at_top1` is reached; a higher one, or none, resumes the run exactly."""
    STOPPED = "stopped"
    """A signal stopped it; a restart resumes it exactly."""
    DIVERGED = "diverged"
    """Too many steps in a row had a loss or gradients that are not finite."""
