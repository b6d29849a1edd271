"""The order of an epoch, kept once a node instead of once a process.

Owns files in a folder of the user's in the temporary directory ($TMPDIR, /tmp), each with one
permutation, that all ranks and readers of a node map. They hold nothing that cannot be computed
again: where anything is wrong with them, a process computes the permutation for itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.data.blocked_order import Blocks, blocked_order

_FEWEST_SHARED = 100_000
"""Below it a permutation takes less than 0.4 MB and some milliseconds."""
_MOST_BYTES = 256 << 20
"""Of all files; beyond it those that were not used for the longest time are removed."""
_LONGEST_WAIT_S = 10.0
"""For another process that computes the same; one that was stopped must not hold up the others."""
_CHECKSUM_BYTES = 4


def shared_permutation(
    seed: int, epoch: int, num_samples: int, blocks: Blocks | None = None
) -> NDArray[np.integer]:
    """`rng.permutation(seed, epoch, num_samples)`, or with `blocks` `blocked_order(seed, epoch,
    blocks)`, as read-only int32 (int64 from 2**31 on)."""

    def compute() -> NDArray[np.integer]:
        order = (
            rng.permutation(seed, epoch, num_samples)
            if blocks is None
            else blocked_order(seed, epoch, blocks)
        )
        order = order.astype(_dtype(num_samples), copy=False)
        order.setflags(write=False)
        return order

    if num_samples >= _FEWEST_SHARED:
        name = f"order-v1-{seed}-{epoch}-{num_samples}"
        name += f"-{blocks.key}" if blocks is not None else ""
        with contextlib.suppress(OSError):
            return _map_or_make(_own_folder() / name, num_samples, compute)
    return compute()


def _dtype(num_samples: int) -> np.dtype[np.integer]:
    return np.dtype(np.int32 if num_samples < 2**31 else np.int64)


def _own_folder() -> Path:
    """Raises OSError unless the folder is this user's alone: others must not choose the order."""
    folder = Path(tempfile.gettempdir()) / f"resnet_dist-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"{folder} is not a folder that this user alone can write")
    return folder


def _map_or_make(
    path: Path, num_samples: int, compute: Callable[[], NDArray[np.integer]]
) -> NDArray[np.integer]:
    order = _map(path, num_samples)
    if order is None:
        with _locked(path.with_name("lock")):
            order = _map(path, num_samples)  # another process may have made it
            if order is None:
                _write(path, compute())
                _remove_old(path.parent)
                order = _map(path, num_samples)
    if order is None:
        raise OSError(f"{path} was removed or damaged at once")
    return order


def _map(path: Path, num_samples: int) -> NDArray[np.integer] | None:
    """The file's content, or None if it is not there or not as it was written."""
    dtype = _dtype(num_samples)
    num_bytes = num_samples * dtype.itemsize
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if os.fstat(descriptor).st_size != num_bytes + _CHECKSUM_BYTES:
            return None
        mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        os.utime(descriptor)  # was used
    finally:
        os.close(descriptor)
    order: NDArray[np.integer] = np.frombuffer(mapped, dtype, num_samples)
    # Written without fsync, so a power cut may have left zeros.
    if zlib.crc32(order.data.cast("B")).to_bytes(_CHECKSUM_BYTES) != mapped[num_bytes:]:
        return None
    return order


def _write(path: Path, order: NDArray[np.integer]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".order-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(order.data)
            file.write(zlib.crc32(order.data.cast("B")).to_bytes(_CHECKSUM_BYTES))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _remove_old(folder: Path) -> None:
    """Processes that have mapped a removed file keep it; others compute it again."""
    files = []
    for path in [*folder.glob("order-*"), *folder.glob(".order-*")]:
        with contextlib.suppress(FileNotFoundError):
            files.append((path.stat(), path))
    files.sort(key=lambda item: -item[0].st_mtime_ns)
    total = 0
    for status, path in files:
        total += status.st_size
        if total > _MOST_BYTES and path != files[0][1]:
            path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process computes, the others wait for its file. Raises OSError after a while."""
    with path.open("w") as file:
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.002)
        yield
