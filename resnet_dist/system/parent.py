"""End of a process with the one that started it, however that ended. Linux only.

A worker whose launcher was killed would otherwise train on, hold the run folder's lock, and block
the workers that replace it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies; ends this process if it is dead already.

    The request lasts until this process changes; children do not inherit it. Strictly, the kernel
    watches the thread that started this process; launchers do so from their main thread.
    """
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or _is_left_over(parent):
        os._exit(1)


def _is_left_over(parent: int) -> bool:
    """Whether process 1 is the parent only because the real one died before we asked.

    It may be the real one: torchrun is process 1 where it is a container's command.
    """
    if parent != 1:
        return False
    try:
        return Path("/proc/1/exe").resolve() != Path(sys.executable).resolve()
    except OSError:  # of another user: we are not its child
        return True
