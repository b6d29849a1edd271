"""Samples that were read once, kept on a disk of the node.

Owns two files for each packed split below `data.local_cache_dir`: `samples`, laid out like the
shards one after the other, with holes where nothing was read yet, and `checksums`, one for each
sample that is there. All processes of a node use them at once, without locks: a sample is always
the same bytes at the same place, and its checksum is written after it.

A kill at any moment leaves samples without a checksum, which are read again. After a power cut a
checksum may be there without its bytes: it is compared at every read.
"""

from __future__ import annotations

import hashlib
import os
import weakref
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.index.index import Index
from resnet_dist.errors import UserError

_CHECKSUM_BYTES = 4


class LocalCopies:
    """Copies of a split's first shards, as many as fit into the limit."""

    def __init__(self, folder: Path, index: Index, limit_bytes: int) -> None:
        """Raises UserError if the folder cannot be written to."""
        shards = index.shards
        assert shards is not None
        ends = np.cumsum(shards.num_bytes)
        self._starts = ends - shards.num_bytes
        self._num_shards = int(np.searchsorted(ends, limit_bytes, side="right"))
        self._numbers, self._offsets = shards.numbers, shards.offsets
        self._lengths = index.lengths
        self._is_full = False
        key = f"{index.fingerprint} {shards.layout} {shards.content}"
        own = folder / hashlib.sha256(key.encode()).hexdigest()[:24]
        try:
            own.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(own / "samples", flags, 0o600)
            weakref.finalize(self, os.close, self._file)
            checksums = os.open(own / "checksums", flags, 0o600)
            os.ftruncate(checksums, _CHECKSUM_BYTES * len(index))  # zeros, if it is new
            os.close(checksums)
            mapped = np.memmap(own / "checksums", dtype=np.uint32, mode="r+")
        except OSError as error:
            raise UserError(
                f"data.local_cache_dir ({folder}): cannot be used ({error.strerror}); give a "
                f"folder on a disk of this node that you may write, or leave it out"
            ) from None
        self._checksums = mapped.view(np.ndarray)

    def get(self, sample_id: int) -> NDArray[np.uint8] | None:
        """The bytes of a sample, `[length]` uint8, or None if they are not there."""
        checksum = int(self._checksums[sample_id])
        if checksum == 0:
            return None
        data = np.empty(int(self._lengths[sample_id]), dtype=np.uint8)
        try:
            done = os.preadv(self._file, [data.data], self._place(sample_id))
        except OSError:  # the copy is lost, the shard is not
            return None
        return data if done == len(data) and _checksum(data) == checksum else None

    def put(self, sample_id: int, data: NDArray[np.uint8]) -> None:
        """Keep the bytes of a sample, if they are of the shards that fit. A disk that is full or
        broken ends the keeping, not the training."""
        if self._is_full or self._numbers[sample_id] >= self._num_shards:
            return
        try:
            self._is_full = os.pwrite(self._file, data.data, self._place(sample_id)) != len(data)
        except OSError:
            self._is_full = True
        if not self._is_full:
            self._checksums[sample_id] = _checksum(data)

    def _place(self, sample_id: int) -> int:
        return int(self._starts[self._numbers[sample_id]] + self._offsets[sample_id])


def _checksum(data: NDArray[np.uint8]) -> int:
    """CRC-32; 0 stands for nothing, so it becomes 1."""
    return zlib.crc32(data.data) or 1
