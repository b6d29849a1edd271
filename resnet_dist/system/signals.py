"""The signals that stop a run, and the exit code of a stopped one. Does not import torch."""

from __future__ import annotations

import os
import signal
from types import FrameType

from resnet_dist.system.output import say_now
from resnet_dist.system.ranks import is_started_by_torchrun

STOPPED_EXIT_CODE = 75
"""Exit code for "stopped, to be continued" (EX_TEMPFAIL of sysexits.h)."""

STOPPED_CODE_VARIABLE = "RESNET_DIST_STOPPED_EXIT_CODE"
"""Environment variable that replaces that code. 0 for a launcher that asked for the stop: torchrun
restarts workers that end with any other code."""

STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


AGENTS_SIGNALS_VARIABLE = "TORCHELASTIC_SIGNALS_TO_HANDLE"
"""Environment variable of torchrun's agent: the signals that it hands to its workers."""


_MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""What nohup, and shells for programs in the background, let a program ignore."""


def signals_to_handle() -> list[signal.Signals]:
    """The stop signals but those of a terminal that this process was started to ignore.

    Workers of torchrun handle what its agent handles, which it does whatever it was started with:
    it kills workers that do not end.
    """
    handled_by_agent = os.environ.get(AGENTS_SIGNALS_VARIABLE, "SIGTERM,SIGINT,SIGHUP,SIGQUIT")
    agents = handled_by_agent.split(",") if is_started_by_torchrun() else []
    return [
        number
        for number in STOP_SIGNALS
        if number.name in agents
        or number not in _MAY_BE_IGNORED
        or signal.getsignal(number) is not signal.SIG_IGN
    ]


def stopped_exit_code() -> int:
    """STOPPED_EXIT_CODE, or what the environment says instead."""
    return int(os.environ.get(STOPPED_CODE_VARIABLE) or STOPPED_EXIT_CODE)


def stop_at_once_on_signals() -> None:
    """Make stop signals end the process with the code of a stopped run, while nothing can be lost.

    Main thread only. `StopSignal` takes over while training, and gives the signals back to this.
    """

    code = stopped_exit_code()

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        say_now(f"stopped by {name} while not training; nothing is lost")
        os._exit(code)

    for number in signals_to_handle():
        signal.signal(number, leave)
