"""Files that are replaced whole, or stay as they were, whenever the power goes; and their locks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def _pass(_stage: str) -> None:
    """Nothing happens between the stages."""


def replace_file(
    path: Path, write: Callable[[BinaryIO], object], *, at_stage: Callable[[str], object] = _pass
) -> None:
    """Make `path` hold what `write` writes. Raises OSError, and then `path` is as it was.

    The temporary name starts with a dot and ends in `.tmp`, so that nothing takes it for the file.
    `at_stage` is called with the name of each stage, so that tests can die there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    at_stage("before_write")  # a kill here leaves nothing
    try:
        with temporary.open("w+b") as file:
            write(file)  # a kill in here leaves a part under the temporary name
            file.flush()
            at_stage("before_fsync")
            # Without this the rename may reach the disk before the bytes: a named, empty file.
            os.fsync(file.fileno())
        at_stage("before_rename")  # leaves a whole file under the temporary name
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    at_stage("before_folder_fsync")
    # A process killed here has committed; a power cut here may still lose the new name, and then
    # the file is the old one.
    sync_folder(path.parent)
    at_stage("after_commit")


def sync_folder(folder: Path) -> None:
    """Make new names, renames and removals in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold an exclusive lock on a file, which is made if it is not there; yields its descriptor.

    The lock is the kernel's: it ends with the process that holds it, however that ends, so none is
    ever stale. On NFS it holds between nodes. Raises BlockingIOError if `wait` is False and another
    process holds it, OSError if the file cannot be made; leaves its content alone.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)
