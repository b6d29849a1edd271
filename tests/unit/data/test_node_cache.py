"""Copies of samples on a disk of the node."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from resnet_dist.config import Config, DataConfig
from resnet_dist.data.index.index import Index, open_index
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.read import node_cache
from resnet_dist.data.read.node_cache import LocalCopies
from resnet_dist.data.read.store import CachedStore, ShardStore, open_store
from resnet_dist.errors import UserError
from resnet_dist.prepare.__main__ import main
from tests.launch import share_fork_server
from tests.loading import train_batches

EVERYTHING = np.arange(27)


@pytest.fixture
def packed_root(image_root: Path, tmp_path: Path) -> Path:
    assert (
        main(["folder", str(image_root), f"--out={tmp_path / 'out'}", "--samples-per-shard=4"]) == 0
    )
    return tmp_path / "out"


@pytest.fixture
def data(packed_root: Path, tmp_path: Path) -> DataConfig:
    return DataConfig(root=str(packed_root), local_cache_dir=str(tmp_path / "local"), train_size=32)


def open_split(data: DataConfig) -> Index:
    return open_index(data, "train", build=True, show_progress=False)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples that are read from shards from now on."""
    calls: list[int] = []
    real = ShardStore.read_one

    def read_one(self: ShardStore, sample_id: int) -> NDArray[np.uint8]:
        calls.append(sample_id)
        return real(self, sample_id)

    monkeypatch.setattr(ShardStore, "read_one", read_one)
    return calls


def assert_right(index: Index, data: DataConfig) -> None:
    expected = ShardStore(index).read(EVERYTHING)
    for left, right in zip(open_store(index, data).read(EVERYTHING), expected, strict=True):
        np.testing.assert_array_equal(left, right)


def test_what_was_read_once_is_read_from_the_copy(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch, packed_root: Path
) -> None:
    index = open_split(data)
    calls = counted(monkeypatch)
    assert_right(index, data)
    assert sorted(calls) == list(range(27))
    opened = open_store(index, data)
    assert isinstance(opened, CachedStore)
    for path in (packed_root / "train").glob("*.tar"):  # another process, the storage being away
        path.unlink()
    read = pickle.loads(pickle.dumps(opened)).read(EVERYTHING)
    assert [len(one) for one in read] == index.lengths.tolist()
    assert len(calls) == 27


def test_the_limit(data: DataConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = open_split(data)
    assert index.shards is not None
    limit = index.shards.num_bytes[0] + index.shards.num_bytes[1] + 100
    data = replace(data, local_cache_gib=limit / 2**30)
    assert_right(index, data)
    calls = counted(monkeypatch)
    assert_right(index, data)
    assert sorted(calls) == np.flatnonzero(index.shards.numbers >= 2).tolist()
    (samples,) = (tmp_path / "local").glob("*/samples")
    assert samples.stat().st_size <= limit
    assert_right(index, replace(data, local_cache_gib=1e-9))


def test_damaged_copies_are_not_used(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = open_split(data)
    assert_right(index, data)
    (samples,) = (tmp_path / "local").glob("*/samples")
    content = bytearray(samples.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)  # lost in a power cut
    samples.write_bytes(content)
    calls = counted(monkeypatch)
    assert_right(index, data)
    assert 5 < len(calls) < 22
    samples.write_bytes(b"")
    calls.clear()
    assert_right(index, data)
    assert len(calls) == 27
    (samples.parent / "checksums").write_bytes(b"")
    assert_right(index, data)
    assert_right(index, data)


def test_other_shards_have_other_copies(data: DataConfig, image_root: Path, tmp_path: Path) -> None:
    assert_right(open_split(data), data)
    other = tmp_path / "other"
    assert main(["folder", str(image_root), f"--out={other}", "--max-side=50"]) == 0
    data = replace(data, root=str(other))
    assert_right(open_split(data), data)
    assert len(list((tmp_path / "local").iterdir())) == 2


def test_a_full_disk_ends_the_keeping_only(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_split(data)
    written = []

    def pwrite(descriptor: int, content: memoryview, offset: int) -> int:
        written.append(offset)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content, offset)

    real = os.pwrite
    monkeypatch.setattr(node_cache.os, "pwrite", pwrite)  # a mock: no full disk
    opened = open_store(index, data, num_threads=1)
    for _ in range(2):
        for left, right in zip(
            opened.read(EVERYTHING), ShardStore(index).read(EVERYTHING), strict=True
        ):
            np.testing.assert_array_equal(left, right)
    assert len(written) == 3


def test_a_folder_that_cannot_be_used(data: DataConfig, image_root: Path, tmp_path: Path) -> None:
    (tmp_path / "local").write_text("a file in the way")
    with pytest.raises(UserError, match=r"data.local_cache_dir .*cannot be used"):
        open_store(open_split(data), data).read(EVERYTHING)
    plain = replace(data, root=str(image_root), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"data.local_cache_dir .*needs shards"):
        open_store(open_split(plain), plain)


def read_again_and_again(data: DataConfig, number: int) -> None:
    share_fork_server()
    index = open_split(data)
    opened = open_store(index, data)
    while True:
        opened.read(np.random.default_rng(number).permutation(27))


def test_killed_processes_leave_good_copies(data: DataConfig) -> None:
    index = open_split(data)
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=read_again_and_again, args=(data, i)) for i in range(3)]
    for process in processes:
        process.start()
    local = Path(str(data.local_cache_dir))
    while not list(local.glob("*/checksums")):
        assert any(process.is_alive() for process in processes)
    for process in processes:
        process.kill()
        process.join()
    copies = LocalCopies(local, index, 2**40)
    expected = ShardStore(index).read(EVERYTHING)
    for sample_id in range(27):
        copy = copies.get(sample_id)
        if copy is not None:
            np.testing.assert_array_equal(copy, expected[sample_id])
    assert_right(index, data)


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_loaders_use_it(data: DataConfig, loader: str, tmp_path: Path) -> None:
    data = replace(data, loader=loader)
    index = open_split(data)
    results = []
    for one in (replace(data, local_cache_dir=None), data, data):
        batches = train_batches(Config(data=one), index, BatchSplit(9, 1, 1), (0, 3))
        results.append(torch.cat([batch.images for batch in batches]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    (checksums,) = (tmp_path / "local").glob("*/checksums")
    assert np.fromfile(checksums, np.uint32).all()
