"""One owner of a run folder at a time.

The lock is the kernel's (flock): it is gone with the process that held it, however that died, so no
stale lock is ever left. Network file systems give it back when they notice that a host is gone.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from resnet_dist.dist import World, sync_attempt
from resnet_dist.errors import UserError

FILE_NAME = "run.lock"


@contextmanager
def sync_own_run_folder(folder: Path, world: World) -> Iterator[None]:
    """Rank 0 owns the folder while all are inside. All ranks must call it.

    Raises UserError, the same on all ranks.
    """
    with ExitStack() as stack:

        def own() -> None:
            if world.is_main:
                stack.enter_context(own_run_folder(folder))

        sync_attempt(world, own)
        yield


@contextmanager
def own_run_folder(folder: Path) -> Iterator[None]:
    """Own the folder while inside. Raises UserError that names the process that owns it now."""
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
            raise UserError(
                f"run.dir ({folder}): is in use by a running training ({owner}); stop that first, "
                f"or give this one another run.dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
