"""data.order=blocked: few shards at a time, and still each sample once."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_dist.config import Config, DataConfig
from resnet_dist.data.blocked_order import Blocks, blocked_order, blocks_of
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder, epoch_permutation
from resnet_dist.data.read import store
from resnet_dist.data.read.store import ShardStore
from resnet_dist.data.replay import Start, replay_epoch
from resnet_dist.data.specs import digest_of_step
from resnet_dist.errors import UserError
from resnet_dist.prepare.__main__ import main
from tests.loading import change, datasets_of, open_split, train_batches, train_loader


def make_blocks(num_samples: int, in_shard: int, window: int, *, layout: str = "x") -> Blocks:
    place = np.random.default_rng(num_samples).permutation(num_samples)
    return Blocks(layout, window, -(-num_samples // in_shard), (place // in_shard).astype(np.int32))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**63 - 1))
def test_each_sample_is_in_it_once(n: int, in_shard: int, window: int, seed: int) -> None:
    blocks = make_blocks(n, in_shard, window)
    for epoch in (0, 1):
        ids = blocked_order(seed, epoch, blocks)
        np.testing.assert_array_equal(np.sort(ids), np.arange(n))
        # A shard is begun only when those `window` turns before it are done with.
        begun: dict[int, int] = {}
        last: dict[int, int] = {}
        for position, shard in enumerate(blocks.numbers[ids].tolist()):
            begun.setdefault(shard, position)
            last[shard] = position
        for shard, first in begun.items():
            in_use = sum(1 for other in begun if begun[other] <= first <= last[other])
            assert in_use <= window + 1, shard


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_coverage_with_restarts(data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 30))
    n = data.draw(st.integers(batch, 300))
    blocks = make_blocks(n, data.draw(st.integers(1, 30)), data.draw(st.integers(1, 9)))
    steps = data.draw(st.sets(st.integers(1, max(1, n // batch)), max_size=4))
    worlds = st.integers(1, min(batch, 6))
    starts = [Start(step, BatchSplit(batch, data.draw(worlds), 1)) for step in sorted({0} | steps)]
    counts = replay_epoch(SampleOrder(n, batch, seed=3, blocks=blocks), 0, starts)
    assert (counts.once, counts.more, counts.never) == (n - n % batch, 0, n % batch)


def test_it_is_shuffled_within_the_window() -> None:
    blocks = make_blocks(20_000, 100, 16)
    first, second = blocked_order(0, 0, blocks), blocked_order(0, 1, blocks)
    assert (first != second).mean() > 0.99
    assert (first != blocked_order(1, 0, blocks)).mean() > 0.99
    shards = blocks.numbers[first]
    middle = shards[4000:16000].reshape(-1, 100)
    kinds = [len(np.unique(row)) for row in middle]
    assert 14 <= np.mean(kinds) <= 17  # of 100 in a row: from all over the window
    counts = np.unique(middle[50], return_counts=True)[1]
    assert counts.max() < 25
    # Golden values: a change would change every run that is resumed.
    assert blocked_order(7, 3, make_blocks(50, 5, 3))[:8].tolist() == GOLDEN


GOLDEN = [26, 22, 32, 8, 0, 28, 37, 46]


def test_it_depends_on_the_shards_and_the_window() -> None:
    a, b = make_blocks(2000, 100, 8), make_blocks(2000, 50, 8)
    orders = [epoch_permutation(0, 0, 2000, blocks) for blocks in (a, b, replace(a, window=9))]
    assert len({order.tobytes() for order in orders}) == 3
    np.testing.assert_array_equal(orders[0], blocked_order(0, 0, a))


@pytest.fixture(scope="module")
def packed_root(image_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    assert main(["folder", str(image_root), f"--out={out}", "--samples-per-shard=2"]) == 0
    return out


@pytest.fixture
def config(packed_root: Path) -> Config:
    data = DataConfig(root=str(packed_root), order="blocked", blocked_window=3, train_size=32)
    return change(Config(data=data), loader="torch", eval_size=32, eval_resize_size=40)


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_loaders_read_in_that_order(config: Config, loader: str) -> None:
    config = change(config, loader=loader)
    index = open_split(config)
    blocks = blocks_of(config.data, index)
    assert blocks is not None
    split = BatchSplit(5, 2, 1)
    parts = [train_batches(config, index, split, (3, 8), rank=rank, seed=1) for rank in range(2)]
    expected = [blocked_order(1, epoch, blocks)[:25].reshape(5, 5) for epoch in (0, 1)]
    steps = [expected[step // 5][step % 5].tolist() for step in range(3, 8)]
    for step, left, right in zip(steps, *parts, strict=True):
        assert left.sample_ids.tolist() + right.sample_ids.tolist() == step
    digests = set()
    for one in (config, change(config, blocked_window=2), change(config, order="shuffled")):
        datasets = datasets_of(one, index, global_batch_size=5, seed=1)
        digests.add(digest_of_step(datasets.train_specs, datasets.order, 3))
    assert len(digests) == 3  # a resumed run notices


def test_a_folder_has_no_blocks(config: Config, image_root: Path, tmp_path: Path) -> None:
    config = change(config, root=str(image_root), cache_dir=str(tmp_path))
    index = open_split(config)
    with pytest.raises(UserError, match=r"data.order \(blocked\): needs shards"):
        train_loader(config, index, BatchSplit(5, 1, 1))
    with pytest.raises(UserError, match=r"data.blocked_window \(0\)"):
        DataConfig(blocked_window=0)


def test_shards_are_read_whole_when_they_are_begun(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    advised: list[str] = []
    real = store._read_ahead

    def read_ahead(path: Path, num_bytes: int) -> None:
        assert num_bytes == path.stat().st_size
        advised.append(path.name)
        real(path, num_bytes)

    monkeypatch.setattr(store, "_read_ahead", read_ahead)
    index = open_split(config)
    opened = ShardStore(index, num_threads=1, shards_ahead=3)
    assert index.shards is not None
    ids = np.argsort(index.shards.numbers, kind="stable")  # shard by shard: 14 of 2
    opened.read(ids)
    opened.read(ids)  # another epoch: those of its end may still be known
    deadline = time.monotonic() + 10
    while len(advised) < 28 and time.monotonic() < deadline:
        time.sleep(0.01)
    names = [f"train-{number:05d}.tar" for number in range(14)]
    assert sorted(advised) == sorted(names + names)
    ShardStore(index, num_threads=1).read(ids)
    assert len(advised) == 28
