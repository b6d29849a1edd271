"""One owner of a run folder at a time.

The lock is the kernel's (flock): it is gone with the process that held it, however that died, so no
stale lock is ever left. Network file systems give it back when they notice that a host is gone.

An elastic job may start again while its former rank 0, perhaps on a host that was cut off, still
waits for its peers; until its own time-out ends it, it holds the lock. The new rank 0 waits for
that. Any other owner is another run, and refused at once.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from resnet_dist.errors import UserError
from resnet_dist.system.ranks import elastic_job
from resnet_dist.world import World, sync_attempt, sync_broadcast_object

FILE_NAME = "run.lock"
GRACE_S = 60.0
"""How long the former rank 0 may take to end after its time-out."""

_POLL_S = 0.2


class FolderInUseError(UserError):
    """Another process owns the folder."""

    def __init__(self, folder: Path, owner: str) -> None:
        """`owner`: what the lock file says."""
        super().__init__(
            f"run.dir ({folder}): is in use by a running training ({owner}); stop that first, or "
            f"give this one another run.dir"
        )
        self.owner = owner

    @property
    def is_same_job(self) -> bool:
        """Whether the owner is of this process's elastic job."""
        job = elastic_job()
        return job is not None and self.owner.endswith(_of_job(job))


@contextmanager
def sync_own_run_folder(folder: Path, world: World, timeout_s: float) -> Iterator[None]:
    """Rank 0 owns the folder while all are inside. All ranks must call it.

    Waits for a former rank 0 of the same elastic job, for `timeout_s`, a collective's time-out, and
    a little more. Raises UserError, the same on all ranks.
    """
    deadline = time.monotonic() + timeout_s + GRACE_S
    # The others wait in a collective meanwhile, which must not time out: several short turns.
    turn_s = min(5.0, timeout_s / 4)
    with ExitStack() as stack:
        is_first = True

        def own() -> bool:
            if not world.is_main:
                return True
            end = min(deadline, time.monotonic() + turn_s)
            return _enter(stack, folder, end=end, is_last=end == deadline, speaks=is_first)

        while not sync_broadcast_object(sync_attempt(world, own), world):
            is_first = False
        yield


def _enter(stack: ExitStack, folder: Path, *, end: float, is_last: bool, speaks: bool) -> bool:
    """Try to own the folder until the time `end`; whether that succeeded.

    Raises UserError if the owner is another run, or this was the last turn.
    """
    while True:
        try:
            stack.enter_context(own_run_folder(folder))
            return True
        except FolderInUseError as error:
            is_over = time.monotonic() >= end
            if not error.is_same_job or (is_over and is_last):
                raise
            if is_over:
                return False
            if speaks:
                print(f"waiting for the former rank 0 to end ({error.owner})", file=sys.stderr)
                speaks = False
        time.sleep(_POLL_S)


@contextmanager
def own_run_folder(folder: Path) -> Iterator[None]:
    """Own the folder while inside. Raises FolderInUseError that names the process that owns it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(
            f"run.dir ({folder}): cannot be written to ({error.strerror}); give another folder"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            raise FolderInUseError(folder, owner) from None
        text = f"process {os.getpid()} on {socket.gethostname()}"
        job = elastic_job()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{text}{_of_job(job) if job else ''}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _of_job(job: str) -> str:
    return f", elastic job {job}"
