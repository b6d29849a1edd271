"""Files that are written around the page cache hold what they were given."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_dist.checkpoint import direct
from resnet_dist.checkpoint.direct import DirectWriter

CHUNK = 8192
SIZES = [
    [0],
    [1],
    [CHUNK - 1, 1],
    [CHUNK],
    [CHUNK + 1],
    [3, CHUNK, 5 * CHUNK + 7, 1],
    [100] * 300,
]


def write(path: Path, sizes: list[int]) -> bytes:
    """Write so many random bytes at a time; all of them."""
    parts = [np.random.default_rng(size).bytes(size) for size in sizes]
    with path.open("w+b") as file, closing(DirectWriter(file)) as writer:
        for part in parts:
            writer.write(part)
        writer.finish()
        file.flush()
        assert file.tell() == sum(sizes)  # whoever has the file can append to it
    return b"".join(parts)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "CHUNK_BYTES", CHUNK)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)}x{sizes[-1]}")
def test_the_file_holds_what_was_written(tmp_path: Path, sizes: list[int]) -> None:
    written = write(tmp_path / "file", sizes)
    assert (tmp_path / "file").read_bytes() == written


def test_the_file_holds_what_was_written_where_the_cache_cannot_be_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused at open, refused at the first write, and written in part (these are mocks)."""
    real_open, real_write = os.open, os.write

    def refuse(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no such thing here")
        return real_open(path, flags, *more)

    def refuse_late(*_: Any) -> int:
        raise OSError(errno.EINVAL, "not here after all")

    def write_a_part(descriptor: int, data: Any) -> int:
        return real_write(descriptor, memoryview(data)[:4096])

    for name, replacement in (
        ("open", refuse),
        ("write", refuse_late),
        ("write", write_a_part),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, replacement)
            for sizes in SIZES:
                written = write(tmp_path / "file", sizes)
                assert (tmp_path / "file").read_bytes() == written


def test_another_error_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", is_full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", [2 * CHUNK])


def test_the_page_cache_is_left_alone(tmp_path: Path) -> None:
    """Unless the file system cannot do without, as some of those in memory."""
    path = tmp_path / "file"
    with path.open("w+b") as file, closing(DirectWriter(file)) as writer:
        if writer._descriptor is None:
            pytest.skip("this file system has no O_DIRECT")
        for _ in range(4):
            writer.write(bytes(1 << 20))
        writer.write(b"the tail")
        writer.finish()
    assert _num_cached_pages(path) <= 1


def _num_cached_pages(path: Path) -> int:
    """Pages of a file that are in the page cache (mincore)."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    view = np.frombuffer(mapped, np.uint8)
    pages = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    pointers = (ctypes.c_void_p(one.ctypes.data) for one in (view, pages))
    start, result = pointers
    assert libc.mincore(start, ctypes.c_size_t(len(view)), result) == 0, ctypes.get_errno()
    return int((pages & 1).sum())
