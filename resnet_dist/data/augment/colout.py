"""ColOut: rows and columns that are left out (Composer's method of that name).

All images of a global batch lose the same ones, as there by default.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.data.read.buffers import to_device


def sample_lines(
    share: float, *, seed: int, epoch: int, batch: int, size: int
) -> NDArray[np.int64] | None:
    """`[2, kept]` rows and columns, rising, that images of `size` x `size` keep in batch number
    `batch` of an epoch; None for a share of 0."""
    if share == 0:
        return None
    kept = max(int((1.0 - share) * size), 1)
    words = rng.WORDS_PER_BLOCK * -(-2 * size // rng.WORDS_PER_BLOCK)
    drawn = rng.random_words(seed, rng.Stream.COLOUT, epoch, start=batch, count=1, words=words)
    lines = [rng.stable_order(keys)[:kept] for keys in drawn[0, : 2 * size].reshape(2, size)]
    return np.sort(np.stack(lines), axis=1)


def keep_lines(images: torch.Tensor, lines: NDArray[np.int64]) -> torch.Tensor:
    """`[n, C, S, S]` to `[n, C, kept, kept]`, channels-last; `lines` `[n, 2, kept]`."""
    n = len(images)
    rows = to_device(lines[:, 0], images.device)[:, :, None]
    columns = to_device(lines[:, 1], images.device)[:, None, :]
    numbers = torch.arange(n, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[numbers, rows, columns].permute(0, 3, 1, 2)
