"""Writing a large file around the page cache, where the file system supports that.

On a busy machine the pages for a checkpoint cost more processor time than all the rest of a save
(0.75 of 1.0 s for 300 MB, docs/benchmarks), and they drive training data out of the cache.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Any, BinaryIO

CHUNK_BYTES = 8 << 20
"""Written at a time; a multiple of every block size."""


class DirectWriter:
    """Appends to an empty file that is open for writing. What it was given is in the file after
    `finish`, and not before. Raises OSError as the file would."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._descriptor = _open_direct(file)
        self._chunk = mmap.mmap(-1, CHUNK_BYTES)  # aligned to a page, as O_DIRECT wants it
        self._filled = 0
        self._written = 0

    def write(self, data: Any) -> None:
        """Append bytes."""
        rest = memoryview(data).cast("B")
        while len(rest):
            count = min(len(rest), CHUNK_BYTES - self._filled)
            self._chunk[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == CHUNK_BYTES:
                self._flush()

    def finish(self) -> None:
        """Write what is left: less than a chunk, and not a whole number of blocks."""
        self._close()
        self._flush()
        self._file.seek(self._written)

    def close(self) -> None:
        """Release everything, whatever is still to be written."""
        self._close()
        self._chunk.close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _flush(self) -> None:
        done = 0
        if self._descriptor is not None:
            try:
                done = os.write(self._descriptor, self._chunk)
            except OSError as error:
                if error.errno != errno.EINVAL:  # promised at open, and yet not possible
                    raise
        if done < self._filled:  # not aligned any more; the file itself says what is wrong, if so
            self._close()
            self._file.seek(self._written + done)
            self._file.write(self._chunk[done : self._filled])
        self._written += self._filled
        self._filled = 0


def _open_direct(file: BinaryIO) -> int | None:
    """A second descriptor of the same file, past the page cache; None where there is none."""
    try:
        return os.open(file.name, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None
