"""One start of the training, under torchrun, and ways to kill it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

from resnet_dist.system.torchrun import training_command


class Started(Protocol):
    """A start of the training."""

    def ranks(self) -> dict[int, int]:
        """Process id of each rank that runs."""
        ...

    def kill_agent(self) -> None:
        """SIGKILL to the process that started the ranks."""
        ...

    def is_running(self) -> bool:
        """Whether the agent or any rank runs."""
        ...

    def finish(self) -> bool:
        """End what still runs; whether all had ended well."""
        ...


Launch = Callable[[list[str], dict[str, str], Path], Started]
"""(arguments of resnet_dist.train, environment, file for the output) to a start."""


class Torchrun:
    """A start under torchrun. Ranks of a killed agent end with it (see `resnet_dist.world`)."""

    def __init__(
        self, nproc: int, arguments: list[str], environment: dict[str, str], log: Path
    ) -> None:
        command = training_command(nproc, arguments)
        with log.open("a") as file:
            self._agent = subprocess.Popen(
                command, env=os.environ | environment, stdout=file, stderr=file
            )
        self._process = psutil.Process(self._agent.pid)
        self._seen: set[psutil.Process] = set()

    def ranks(self) -> dict[int, int]:
        """Process id of each rank that runs."""
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.Error):  # the agent is dead
            for child in self._process.children():
                with contextlib.suppress(psutil.Error, KeyError):  # dead, or not a rank
                    found[int(child.environ()["RANK"])] = child
        self._seen |= set(found.values())
        return {rank: process.pid for rank, process in found.items()}

    def kill_agent(self) -> None:
        """SIGKILL to torchrun."""
        self.ranks()
        self._agent.kill()

    def is_running(self) -> bool:
        """Whether torchrun or any rank runs."""
        return self._agent.poll() is None or any(map(_is_alive, self._seen))

    def finish(self) -> bool:
        """End what still runs; whether all had ended well."""
        for process in self._seen:
            kill(process.pid)
        self._agent.kill()
        return self._agent.wait() == 0


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(pid: int) -> None:
    """SIGKILL, unless it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).kill()
