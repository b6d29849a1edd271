"""Files that survive a kill, a power cut and a full disk: replaced whole, or appended to; locks."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO


def _pass(_stage: str) -> None:
    """Do nothing between the stages."""


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
    """Make new names, renames and removals in a folder durable.

    A file system that cannot is warned of, once.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        _warn_or_raise(error, folder, "a power cut may lose the newest files there")
    finally:
        os.close(descriptor)


_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)
_warned: set[tuple[Path, str]] = set()


def _warn_or_raise(error: OSError, folder: Path, lost: str) -> None:
    """Warn once that a file system lacks something, and say what is no longer guarded; raise any
    other error."""
    if error.errno not in _UNSUPPORTED:
        raise error
    if (folder, lost) not in _warned:
        _warned.add((folder, lost))
        print(
            f"warning: the file system of {folder} lacks something ({error.strerror}): {lost}",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def locked(path: Path, *, wait: bool = True, must: bool = False) -> Iterator[int]:
    """Hold an exclusive lock on a file, which is made if it is not there; yields its descriptor.

    The lock is the kernel's: it ends with the process that holds it, however that ends, so none is
    ever stale. On NFS it holds between nodes. Raises BlockingIOError if `wait` is False and another
    process holds it, OSError if the file cannot be made; leaves its content alone. A file system
    without locks is warned of, once; with `must` that is an OSError too.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            if must:
                raise
            lost = f"nothing keeps two processes from using {path.name} at once: start only one"
            _warn_or_raise(error, path.parent, lost)
        yield descriptor
    finally:
        os.close(descriptor)


class AppendOnlyFile:
    """Appends whole records, each passed to the kernel at once, so that a kill loses none.

    A record that cannot be written (a full disk) is kept in memory and tried again with the next
    one: a full disk does not end the training. Only `flush` insists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._pending = bytearray()
        self._lock = Lock()  # the checkpoint's writer flushes while the loop appends
        self._has_warned = False
        sync_folder(path.parent)

    def append(self, record: bytes) -> None:
        """Write a record, or keep it for later and warn once on stderr."""
        with self._lock:
            self._pending += record
            try:
                self._write_pending()
            except OSError as error:
                if not self._has_warned:
                    self._warn(error, "are kept in memory and tried again")
                self._has_warned = True

    def flush(self) -> None:
        """Return when all records are on the disk. Raises OSError where that is impossible."""
        with self._lock:
            self._write_pending()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close; warn on stderr about records that are lost. Closing twice is fine.

        The checkpoint that promises these records could not be written either: a restart
        resumes from one that does not.
        """
        if not self._file.closed:
            try:
                self.flush()
            except OSError as error:
                self._warn(error, "are lost")
            finally:
                self._file.close()

    def _warn(self, error: OSError, fate: str) -> None:
        print(
            f"warning: {self._path} cannot be written ({error.strerror}); its latest records "
            f"{fate}; free some space",
            file=sys.stderr,
            flush=True,
        )

    def _write_pending(self) -> None:
        # A write that stops half way leaves the rest of the record pending, and the next write
        # completes it; a kill before that leaves a part of a record, which the next start drops.
        while self._pending:
            written = self._file.write(self._pending)
            assert written is not None  # the file is blocking
            del self._pending[:written]
        self._has_warned = False
