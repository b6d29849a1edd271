"""Helper processes that cannot outlive, interrupt or be interrupted before their parent.

Owns what a forked reader does first. A signal sent to a whole process group (Ctrl-C, Slurm's
warning) must reach the trainer alone: it decides when to stop and still needs its readers.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Delay the parent's signals while it forks, so that none hits a child before `isolate`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def isolate(parent_pid: int) -> None:
    """First call in a child: leave signals to the parent, and die (SIGKILL) when it dies."""
    for number in _PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENTS_SIGNALS)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the request above was in place
        os._exit(1)
