"""The signals that stop a run, and the exit code of a stopped one. Does not import torch."""

from __future__ import annotations

import os
import signal
from types import FrameType

STOPPED_EXIT_CODE = 75
"""Exit code for "stopped, to be continued" (EX_TEMPFAIL of sysexits.h)."""

STOPPED_CODE_VARIABLE = "RESNET_DIST_STOPPED_EXIT_CODE"
"""Environment variable that replaces that code. 0 for a launcher that asked for the stop: torchrun
restarts workers that end with any other code."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def stopped_exit_code() -> int:
    """STOPPED_EXIT_CODE, or what the environment says instead."""
    return int(os.environ.get(STOPPED_CODE_VARIABLE) or STOPPED_EXIT_CODE)


def stop_at_once_on_signals() -> None:
    """Before training begins nothing can be lost: leave with the code of a stopped run.

    Main thread only. `StopSignal` takes over while training, and gives the signals back to this.
    """

    code = stopped_exit_code()

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        text = f"stopped by {signal.Signals(number).name} while not training; nothing is lost\n"
        os.write(2, text.encode())
        os._exit(code)

    for number in STOP_SIGNALS:
        signal.signal(number, leave)
