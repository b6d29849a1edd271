"""What happens to a run from outside: the request to stop.

Owns the signal handlers. A handler only sets a flag; the ranks agree on the step at which they all
stop in a small collective about every `AGREEMENT_INTERVAL_S`, not in every step, so that a signal
to one rank suffices and no rank goes on alone. A second SIGINT stops at once.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from resnet_dist.dist import World

STOPPED_EXIT_CODE = 75
"""Exit code for "stopped, to be continued" (EX_TEMPFAIL of sysexits.h)."""

AGREEMENT_INTERVAL_S = 2.0
"""Longest time between a signal and the ranks' agreement, besides one step."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopSignal:
    """Turns signals into an agreed step."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._signal: int | None = None
        self.received_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._next_check = 0
        self._last_step = 0
        self._last_time = time.monotonic()

    def __enter__(self) -> StopSignal:
        """Take over the signals. Main thread only."""
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            os._exit(128 + number)
        if self._signal is None:
            self._signal = number
            self.received_at = time.monotonic()

    @property
    def name(self) -> str:
        """The signal that this rank got, for messages."""
        return signal.Signals(self._signal).name if self._signal is not None else "another rank's"

    def sync_requested(self, step: int) -> bool:
        """Whether to stop now, after `step` completed steps: the same answer on all ranks.

        All ranks must call it after every step with the same step. Only some calls communicate;
        which is agreed in the last one that did, from the slowest rank's time for a step.
        """
        if step < self._next_check:
            return False
        now = time.monotonic()
        steps = max(1, step - self._last_step)
        per_step = (now - self._last_time) / steps
        flags = torch.tensor(
            [float(self._signal is not None), per_step], dtype=torch.float64, device="cpu"
        )
        if self._world.size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        requested, slowest = flags.tolist()
        self._next_check = step + max(1, int(AGREEMENT_INTERVAL_S / max(slowest, 1e-6)))
        self._last_step, self._last_time = step, now
        return bool(requested)
