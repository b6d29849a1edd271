"""One owner of a run folder at a time.

The lock is the kernel's, so no stale lock is ever left. Network file systems release it when they
notice that a host is gone. The file holds one JSON object that names the owner; it is valid only
while the lock is held.

An elastic job may start again while its former rank 0, perhaps on a host that was cut off, still
waits for its peers; until its own time-out ends it, it holds the lock. The new rank 0 waits for
that. Any other owner is another run, and is rejected at once.

Imports torch only in the ranks' part, so that a launcher can ask who owns a folder.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_dist.errors import UserError
from resnet_dist.system.files import locked
from resnet_dist.system.ranks import elastic_job

if TYPE_CHECKING:
    from resnet_dist.world import World

FILE_NAME = "run.lock"
GRACE_S = 60.0
"""Seconds that the former rank 0 may take to end after its time-out."""

_POLL_S = 0.2


@dataclass(frozen=True)
class Owner:
    """The process that trains in a run folder."""

    pid: int | None
    """Its process id; None if the file does not name it (yet)."""
    host: str | None
    job: str | None = None
    """Id that all starts of its elastic job share."""

    def __str__(self) -> str:
        if self.pid is None:
            return "an unknown process"
        job = f", elastic job {self.job}" if self.job is not None else ""
        return f"process {self.pid} on {self.host}{job}"

    @property
    def is_on_this_host(self) -> bool:
        """Whether a signal can reach it from here."""
        return self.pid is not None and self.host == socket.gethostname()


class LostFolderError(UserError):
    """The path of the run folder no longer leads to the folder that this process owns."""


class Ownership:
    """What holds while a process owns a run folder."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """`path`: the lock file, open and locked as `descriptor`."""
        self._path = path
        self._identity = _identity(os.fstat(descriptor))

    def check(self) -> None:
        """Raises LostFolderError if the path leads elsewhere: what is written by path then would
        land in another run's folder."""
        try:
            is_mine = _identity(self._path.stat()) == self._identity
        except OSError:
            is_mine = False
        if not is_mine:
            raise LostFolderError(
                f"run.dir ({self._path.parent}): is not the folder any more in which this run "
                f"began: it was removed, moved or replaced; nothing more is written there, and the "
                f"run stops. Start it again, from where its folder is now if it was moved"
            )


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


class FolderInUseError(UserError):
    """Another process owns the folder."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        super().__init__(
            f"run.dir ({folder}): is in use by a running training ({owner}); stop that first, or "
            f"give this one another run.dir"
        )
        self.owner = owner


def owner_of(folder: Path) -> Owner | None:
    """The process that owns the folder now; None if no process does. Takes nothing."""
    path = folder / FILE_NAME
    if not os.access(path, os.R_OK | os.W_OK):
        return None
    try:
        with locked(path, wait=False, must=True):
            return None
    except OSError:  # locked; or a file system without locks: whoever is named there may well run
        return _read_owner(path)


@contextmanager
def own_run_folder(folder: Path, *, job: str | None = None) -> Iterator[Ownership]:
    """Own the folder while inside. Raises FolderInUseError that names the process that owns it.

    `job`: id that all starts of this process's elastic job share, if it is of one.
    """
    path = folder / FILE_NAME
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = stack.enter_context(locked(path, wait=False))
        except BlockingIOError:
            raise FolderInUseError(folder, _read_owner(path)) from None
        except OSError as error:
            raise UserError(
                f"run.dir ({folder}): cannot be written to ({error.strerror}); give another folder"
            ) from error
        line = json.dumps(asdict(Owner(os.getpid(), socket.gethostname(), job))).encode() + b"\n"
        # In this order nobody reads an empty file, or half a line of the owner before.
        os.pwrite(descriptor, line, 0)
        os.ftruncate(descriptor, len(line))
        yield Ownership(path, descriptor)


def _read_owner(path: Path) -> Owner:
    try:
        content = json.loads(path.read_bytes().partition(b"\n")[0])
        return Owner(int(content["pid"]), str(content["host"]), content["job"])
    except (OSError, ValueError, KeyError, TypeError):
        return Owner(None, None)


@contextmanager
def sync_own_run_folder(folder: Path, world: World, timeout_s: float) -> Iterator[Ownership | None]:
    """Rank 0 owns the folder while all are inside; the others get None. All ranks must call it.

    Waits for a former rank 0 of the same elastic job, for `timeout_s`, a collective's time-out, and
    a little more. Raises UserError, the same on all ranks.
    """
    from resnet_dist.world import sync_attempt, sync_broadcast_object

    job = elastic_job()
    deadline = time.monotonic() + timeout_s + GRACE_S
    # The others wait in a collective meanwhile, which must not time out: several short turns.
    turn_s = min(5.0, timeout_s / 4)
    with ExitStack() as stack:
        waiting = _Waiting(stack, folder, job)

        def own() -> bool:
            end = min(deadline, time.monotonic() + turn_s)
            return not world.is_main or waiting.try_until(end, is_last=end == deadline)

        while not sync_broadcast_object(sync_attempt(world, own), world):
            continue
        yield waiting.ownership


class _Waiting:
    """Rank 0 before it owns the folder."""

    def __init__(self, stack: ExitStack, folder: Path, job: str | None) -> None:
        self._stack, self._folder, self._job = stack, folder, job
        self._has_spoken = False
        self.ownership: Ownership | None = None

    def try_until(self, end: float, *, is_last: bool) -> bool:
        """Try to own the folder until the time `end`; whether that succeeded.

        Raises UserError if the owner is another run, or this was the last turn.
        """
        while True:
            try:
                owning = own_run_folder(self._folder, job=self._job)
                self.ownership = self._stack.enter_context(owning)
                return True
            except FolderInUseError as error:
                is_same_job = self._job is not None and error.owner.job == self._job
                is_over = time.monotonic() >= end
                if not is_same_job or (is_over and is_last):
                    raise
                if is_over:
                    return False
                if not self._has_spoken:
                    self._has_spoken = True
                    print(f"waiting for the former rank 0 to end ({error.owner})", file=sys.stderr)
            time.sleep(_POLL_S)
