"""Where the bytes of samples come from.

Owns reading, and the check that a file is still the one that was indexed. Does not decode.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index import Index
from resnet_dist.errors import UserError


class Store(Protocol):
    """Encoded images by sample."""

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """The encoded bytes of each sample, `[length]` uint8, in the order asked for."""
        ...


class FolderStore:
    """Image files, read with several requests in flight (cold storage answers late)."""

    def __init__(self, index: Index, *, num_threads: int = 4) -> None:
        self._index = index
        self._num_threads = num_threads
        self._pool: ThreadPoolExecutor | None = None
        self._pool_pid = 0

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """The encoded bytes of each sample, `[length]` uint8, in the order asked for.

        Raises UserError, naming the file, if one is gone or has changed since it was indexed.
        """
        groups = [part for part in np.array_split(sample_ids, self._num_threads) if len(part)]
        if len(groups) <= 1:
            return self._read_group(sample_ids)
        return [item for part in self._threads().map(self._read_group, groups) for item in part]

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool_pid != os.getpid():  # threads do not survive a fork
            self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="read")
            self._pool_pid = os.getpid()
        return self._pool

    def _read_group(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        return [self._read_one(int(sample_id)) for sample_id in sample_ids]

    def _read_one(self, sample_id: int) -> NDArray[np.uint8]:
        path = self._index.path(sample_id)
        expected = int(self._index.lengths[sample_id])
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                length = os.fstat(descriptor).st_size
                data = np.empty(expected, dtype=np.uint8)
                done = 0
                while length == expected and done < expected:
                    count = os.preadv(descriptor, [data.data[done:]], done)
                    length = expected if count else done
                    done += count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UserError(
                f"data.root ({path}): cannot be read ({error.strerror}); restore the file, or "
                f"start again to rebuild the index"
            ) from None
        if length != expected:
            raise UserError(
                f"data.root ({path}): changed since the index was built ({length} bytes now, "
                f"{expected} then); restore the file, or start again to rebuild the index"
            )
        return data
