"""A file that survives a kill and a full disk, appended to record by record."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from threading import Lock

from resnet_dist.system.files import sync_folder


class AppendOnlyFile:
    """Appends whole records, each handed to the kernel at once, so that a kill loses none.

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

        The checkpoint that promises these records could not be written either: started again, the
        run goes on from one that does not.
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
        # A write that stops half way leaves the rest of the record pending, so going on mends it;
        # a kill before that leaves a part of a record, which the next start cuts off.
        while self._pending:
            written = self._file.write(self._pending)
            assert written is not None  # the file is blocking
            del self._pending[:written]
        self._has_warned = False
