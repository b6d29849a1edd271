"""Where the bytes of samples come from.

Owns reading, and the check that a file or shard is still the one that was indexed. Does not decode.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import weakref
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_dist.config import DataConfig
from resnet_dist.data.index import packed
from resnet_dist.data.index.index import Index
from resnet_dist.data.read.node_cache import LocalCopies
from resnet_dist.errors import UserError, printable
from resnet_dist.system.paths import expanded

TAR_BLOCK = 512
_READ_AHEAD_BYTES = 2 << 20
_LENGTH_FIELD = slice(124, 135)
_MAGIC_FIELD = slice(257, 262)


class Store(Protocol):
    """Encoded images by sample."""

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """The encoded bytes of each sample, `[length]` uint8, in the order asked for.

        Raises UserError, naming the file, if one is gone or has changed since it was indexed.
        """
        ...


def open_store(
    index: Index,
    data: DataConfig | None = None,
    *,
    num_threads: int = 4,
    shards_ahead: int = 0,
) -> Store:
    """The store of an index's samples, with so many requests in flight. Opens no file yet.

    `data` says whether copies are kept on the node. `shards_ahead`: see `ShardStore`; of no effect
    on a folder of images. Raises UserError for a local cache of a folder of images.
    """
    cache_dir = data.local_cache_dir if data is not None else None
    if index.shards is not None:
        shards = ShardStore(index, num_threads=num_threads, shards_ahead=shards_ahead)
        if data is None or cache_dir is None:
            return shards
        folder, limit = (
            expanded(cache_dir, "data.local_cache_dir"),
            int(data.local_cache_gib * 2**30),
        )
        return CachedStore(shards, folder, limit)
    if cache_dir is not None:
        raise UserError(
            f"data.local_cache_dir ({cache_dir}): needs shards, and data.root is a folder of "
            f"images; pack it with `python -m resnet_dist.prepare folder`, or leave it out"
        )
    return FolderStore(index, num_threads=num_threads)


class _ThreadedStore(ABC):
    """Reads with several requests in flight: cold storage answers late."""

    def __init__(self, index: Index, *, num_threads: int = 4) -> None:
        self._index = index
        self._num_threads = num_threads
        self._pool: ThreadPoolExecutor | None = None
        self._pool_pid = 0

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """The bytes of samples, in their order."""
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

    @abstractmethod
    def _read_one(self, sample_id: int) -> NDArray[np.uint8]: ...


class FolderStore(_ThreadedStore):
    """Image files, each opened for as long as it is read."""

    def _read_one(self, sample_id: int) -> NDArray[np.uint8]:
        path = self._index.path(sample_id)
        expected = int(self._index.lengths[sample_id])
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                length = os.fstat(descriptor).st_size
                data = np.empty(expected, dtype=np.uint8)
                if length == expected:
                    length = _read_at(descriptor, data, 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UserError(
                f"data.root ({printable(path)}): cannot be read ({error.strerror}); restore "
                f"the file, or start again to rebuild the index"
            ) from None
        if length != expected:
            raise UserError(
                f"data.root ({printable(path)}): changed since the index was built "
                f"({length} bytes now, {expected} then); restore the file, or start again "
                f"to rebuild the index"
            )
        return data


def _read_at(descriptor: int, data: NDArray[np.uint8], offset: int) -> int:
    """Fill `data` with what begins at `offset`; returns the bytes read, fewer at the end."""
    done = 0
    while done < len(data):
        count = os.preadv(descriptor, [data.data[done:]], offset + done)
        if not count:
            break
        done += count
    return done


class ShardStore(_ThreadedStore):
    """Samples in tar shards, each read with one `pread`, its tar header included.

    A shard is opened when the first of its samples is asked for, and stays open: there is nothing
    to do at a start, at whatever step. Shards beyond half of what the process may open (`ulimit
    -n`) are opened for each read.

    With `shards_ahead` samples are asked for from so many shards at a time (`data.order=blocked`):
    when the first of a shard is, all of the shard is read into the page cache in the background.
    """

    def __init__(self, index: Index, *, num_threads: int = 4, shards_ahead: int = 0) -> None:
        super().__init__(index, num_threads=num_threads)
        assert index.shards is not None
        self._shards = index.shards
        self._shards_ahead = shards_ahead
        self._start()

    def _start(self) -> None:
        self._open: dict[int, int] = {}
        self._begun: dict[int, None] = {}  # shards that are read as a whole, oldest first
        self._lock = threading.Lock()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_open = limit // 2 if limit != resource.RLIM_INFINITY else 2**31
        weakref.finalize(self, _close_all, self._open)

    def __getstate__(self) -> dict[str, Any]:
        """In another process it begins with no shard open."""
        return {
            "index": self._index,
            "num_threads": self._num_threads,
            "shards_ahead": self._shards_ahead,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _read_one(self, sample_id: int) -> NDArray[np.uint8]:
        number = int(self._shards.numbers[sample_id])
        if self._shards_ahead and number not in self._begun:
            self._begin(number)
        length = int(self._index.lengths[sample_id])
        data = np.empty(TAR_BLOCK + length, dtype=np.uint8)
        offset = int(self._shards.offsets[sample_id]) - TAR_BLOCK
        try:
            descriptor, is_kept = self._descriptor(number)
            try:
                done = _read_at(descriptor, data, offset)
            finally:
                if not is_kept:
                    os.close(descriptor)
        except OSError as error:
            raise self._unusable(number, f"cannot be read ({error.strerror})") from None
        header = data[:TAR_BLOCK].tobytes()
        if (
            done != len(data)
            or header[_MAGIC_FIELD] != b"ustar"
            or header[_LENGTH_FIELD] != b"%011o" % length
        ):
            raise self._unusable(
                number, f"does not hold {self._index.shown_path(sample_id)} where the index says"
            )
        return data[TAR_BLOCK:]

    def _descriptor(self, number: int) -> tuple[int, bool]:
        """Descriptor of an open shard, and whether it stays open. Raises OSError."""
        descriptor = self._open.get(number)
        if descriptor is not None:
            return descriptor, True
        path = self._index.folder / self._shards.names[number]
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        num_bytes, expected = os.fstat(descriptor).st_size, self._shards.num_bytes[number]
        if num_bytes != expected:
            os.close(descriptor)
            raise self._unusable(number, f"has {num_bytes} bytes instead of {expected}")
        # A random sample says nothing about what comes after it.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        with self._lock:
            if number in self._open:  # another thread was quicker
                os.close(descriptor)
                return self._open[number], True
            if len(self._open) < self._most_open:
                self._open[number] = descriptor
                return descriptor, True
        return descriptor, False

    @property
    def index(self) -> Index:
        """What is read from."""
        return self._index

    @property
    def num_threads(self) -> int:
        """Requests in flight."""
        return self._num_threads

    def read_one(self, sample_id: int) -> NDArray[np.uint8]:
        """The encoded bytes of a sample, in the caller's thread."""
        return self._read_one(sample_id)

    def _begin(self, number: int) -> None:
        """Have a shard read as a whole, in a thread: the calls return only when the kernel has
        queued the requests. One that has long been done with is forgotten, for the next epoch."""
        with self._lock:
            if number in self._begun:
                return
            self._begun[number] = None
            if len(self._begun) > 4 * self._shards_ahead:
                del self._begun[next(iter(self._begun))]
        path = self._index.folder / self._shards.names[number]
        arguments = (path, self._shards.num_bytes[number])
        threading.Thread(target=_read_ahead, args=arguments, daemon=True).start()

    def _unusable(self, number: int, what: str) -> UserError:
        return packed.damaged(self._index.folder, f"the shard {self._shards.names[number]} {what}")


class CachedStore(_ThreadedStore):
    """Shards on slow storage, and copies on the node of what was read from them."""

    def __init__(self, shards: ShardStore, folder: Path, limit_bytes: int) -> None:
        super().__init__(shards.index, num_threads=shards.num_threads)
        self._shard_store = shards
        self._place = (folder, limit_bytes)
        self._copies: LocalCopies | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self._shard_store, "place": self._place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["shards"], *state["place"])  # type: ignore[misc]

    def _read_one(self, sample_id: int) -> NDArray[np.uint8]:
        with self._lock:
            if self._copies is None:
                self._copies = LocalCopies(self._place[0], self._index, self._place[1])
        data = self._copies.get(sample_id)
        if data is None:
            data = self._shard_store.read_one(sample_id)
            self._copies.put(sample_id, data)
        return data


def _read_ahead(path: Path, num_bytes: int) -> None:
    """Have the kernel read a shard into the page cache, sequentially. Where it is there already
    (another process was first), nothing is read."""
    with contextlib.suppress(OSError):  # whoever needs the bytes will hear of it
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for offset in range(0, num_bytes, _READ_AHEAD_BYTES):
                os.posix_fadvise(descriptor, offset, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def _close_all(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
    descriptors.clear()
