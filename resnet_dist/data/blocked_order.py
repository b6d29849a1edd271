"""An order for cold storage: few shards are in use at a time, each read as a whole.

Owns `data.order=blocked` as a pure function of (seed, epoch, layout of the shards). Reads nothing.

Shards come one after the other, in another order each epoch. The samples of the one that is r-th
are spread evenly and at random over the time in which the shards r to r + window pass. So about
`window` shards are in use at any time, one new shard is begun whenever as many samples as it holds
have been used, and neighbours in a batch come from all over the window. The result is a sort of all
samples by a key: each is in it exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.config import DataConfig
from resnet_dist.data.index.index import Index
from resnet_dist.errors import UserError


@dataclass(frozen=True)
class Blocks:
    """What the order depends on besides seed and epoch. Compared by `layout` and `window`."""

    layout: str
    """Tells which sample lies in which shard (sha256)."""
    window: int
    """Shards in use at a time."""
    num_shards: int
    numbers: NDArray[np.int32] = field(compare=False, repr=False)
    """`[N]` shard of each sample."""


def blocks_of(data: DataConfig, index: Index) -> Blocks | None:
    """What `data.order` says of an index; None for the order that shuffles everything.

    Raises UserError where it is `blocked` and there are no shards.
    """
    if data.order == "shuffled":
        return None
    shards = index.shards
    if shards is None:
        raise UserError(
            f"data.order ({data.order}): needs shards, and data.root ({data.root}) is a folder of "
            f"images; pack it with `python -m resnet_dist.prepare folder`, or set "
            f"data.order=shuffled"
        )
    return Blocks(shards.layout, data.blocked_window, len(shards.names), shards.numbers)


def blocked_order(seed: int, epoch: int, blocks: Blocks) -> NDArray[np.int64]:
    """The samples of an epoch, `[N]` int64.

    The key of a sample is its shard's turn plus `window` times a number in [0, 1), both as 32-bit
    fixed point: integers, so that no rounding depends on the platform.
    """
    num_samples = len(blocks.numbers)
    shards = rng.permutation(seed, epoch, blocks.num_shards, stream=rng.Stream.BLOCKS)
    turns = np.empty(blocks.num_shards, dtype=np.uint64)
    turns[shards] = np.arange(blocks.num_shards, dtype=np.uint64)
    rows = -(-num_samples // rng.WORDS_PER_BLOCK)
    keys = rng.random_words(
        seed, rng.Stream.BLOCK_SPREAD, epoch, start=0, count=rows, words=rng.WORDS_PER_BLOCK
    ).reshape(-1)[:num_samples]
    keys >>= np.uint64(32)
    keys *= np.uint64(blocks.window)
    keys += turns[blocks.numbers] << np.uint64(32)
    return rng.stable_order(keys)
