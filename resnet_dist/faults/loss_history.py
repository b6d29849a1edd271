"""The latest training losses, by which the first one after a restart is judged.

A run that resumes from a checkpoint has the loss it had; a jump means that something was not
restored as it was (weights, optimizer, data). The digest of the next batch finds wrong samples for
certain; this finds what no digest covers.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

RECORDED = 20
"""Number of records that are kept."""
FEWEST = 3
"""Fewest records to judge by."""
LARGEST_DEVIATION = 6.0
"""Largest rise that is not suspicious, in standard deviations; at least `LARGEST_CHANGE`."""
LARGEST_CHANGE = 0.25
"""Share of the mean loss. The loss of the first epochs falls fast: only a rise is suspicious."""


class LossHistory:
    """The last recorded training losses, oldest first."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=RECORDED)
        self._to_judge: list[float] = []

    def add(self, loss: float) -> str | None:
        """Record the loss of a log interval. After a restart the first one is judged: returns a
        warning if it is suspicious."""
        before, self._to_judge = self._to_judge, []
        self._losses.append(loss)
        return _judge(before, loss)

    def state_dict(self) -> list[float]:
        """What a checkpoint holds."""
        return list(self._losses)

    def load_state_dict(self, losses: list[float]) -> None:
        """Take over a `state_dict`, and judge the next loss by it."""
        self._losses = deque(losses, maxlen=RECORDED)
        self._to_judge = [loss for loss in losses if math.isfinite(loss)]


def _judge(before: list[float], loss: float) -> str | None:
    if len(before) < FEWEST:
        return None
    mean = statistics.fmean(before)
    allowed = max(LARGEST_DEVIATION * statistics.stdev(before), LARGEST_CHANGE * abs(mean))
    if loss - mean <= allowed:
        return None
    return (
        f"warning: the first loss after the restart is {loss:.4g}, and the last {len(before)} "
        f"before it were {min(before):.4g} to {max(before):.4g}; if the data and the code are "
        f"unchanged, something was not restored as it was"
    )
