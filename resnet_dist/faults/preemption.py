"""The request to stop that comes from outside: preemption, a time limit, Ctrl-C.

Owns the signal handlers. A handler only sets a flag; the ranks agree on the step at which they all
stop in a small collective about every `AGREEMENT_INTERVAL_S`, not in every step, so that a signal
to one rank suffices and no rank continues alone. A second SIGINT stops at once.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from resnet_dist.errors import GuardError
from resnet_dist.system.output import say_now
from resnet_dist.system.signals import signals_to_handle
from resnet_dist.world import World

STALLED_EXIT_CODE = GuardError.exit_code
"""Exit code of a stalled rank, and of every run that a guard ended (EX_SOFTWARE).
A restart resumes from its newest checkpoint."""

AGREEMENT_INTERVAL_S = 2.0
"""Longest time between a signal and the ranks' agreement, besides one step."""

TORCHRUN_GRACE_S = 30.0
"""torchrun sends SIGKILL this long after SIGTERM."""
SLOW_STOP_S = 20.0
"""A stop that takes longer is reported with a warning."""


class StopSignal:
    """Turns signals into an agreed step."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._signal: int | None = None
        self._received_at: float | None = None
        self._agreed_at = self._agreed_age = 0.0
        self._agreed_signal = 0
        self._is_agreed = False
        self._previous: dict[signal.Signals, Any] = {}
        self._next_check = 0
        self._last_step = 0
        self._last_time = time.monotonic()

    def __enter__(self) -> StopSignal:
        """Take over the signals. Main thread only."""
        handled = signals_to_handle()
        self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the former handlers; but where the ranks have agreed to stop, and the process is
        about to end by itself, only SIGINT can end it sooner."""
        for number, handler in self._previous.items():
            is_ending = self._is_agreed and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if is_ending else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            os._exit(128 + number)
        if self._signal is None:
            self._signal = number
            if self._world.is_main:
                name = signal.Signals(number).name
                say_now(f"{name}: stopping after this step, saving a checkpoint")
        self.request()

    def request(self) -> None:
        """Ask for a stop because too many saves have failed, as a signal would from outside."""
        if self._received_at is None:
            self._received_at = time.monotonic()

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
        is_requested = self._received_at is not None
        age = now - self._received_at if self._received_at is not None else 0.0
        flags = torch.tensor(
            [float(is_requested), per_step, age, float(self._signal or 0)],
            dtype=torch.float64,
            device="cpu",
        )
        if self._world.size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        requested, slowest, oldest, number = flags.tolist()
        self._next_check = step + max(1, int(AGREEMENT_INTERVAL_S / max(slowest, 1e-6)))
        self._last_step, self._last_time = step, now
        self._agreed_at, self._agreed_age, self._agreed_signal = now, oldest, int(number)
        self._is_agreed = bool(requested)
        return self._is_agreed

    @property
    def reason(self) -> str:
        """What stopped the run, for people; after the ranks have agreed."""
        if self._agreed_signal:
            return f"a signal ({signal.Signals(self._agreed_signal).name})"
        return "itself: checkpoint.max_failures saves in a row have failed"

    def durable_line(self) -> str:
        """Message with the time from the first rank's signal until now, when the checkpoint is
        durable, and a warning if that is near the time after which torchrun kills its workers."""
        seconds = self._agreed_age + time.monotonic() - self._agreed_at
        line = f"stopped by {self.reason}: the checkpoint was durable {seconds:.1f} s after it"
        if seconds > SLOW_STOP_S:
            line += (
                f"\nwarning: torchrun kills its workers {TORCHRUN_GRACE_S:.0f} s after SIGTERM; a "
                f"faster disk for run.dir, or a smaller step, would make stopping safer"
            )
        return line
