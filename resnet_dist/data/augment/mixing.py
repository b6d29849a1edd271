"""Mixup and cutmix: who is mixed with whom, in which share, inside which box.

Pure functions of (seed, epoch, position). Partners are the positions 2k and 2k + 1 of a step's
global batch, whatever the number of ranks and micro-batches; of an odd batch the last sample stays
alone. Touches no pixel.

With a share s drawn from Beta(alpha, alpha), mixup gives image a the pixels and the label of
s * a + (1 - s) * b, and b those of s * b + (1 - s) * a (Zhang et al. 2017, arXiv:1710.09412).
Cutmix pastes a box of about (1 - s) of the area from each into the other, and takes the share of
the pixels that were kept (Yun et al. 2019, arXiv:1905.04899; the box is torchvision's).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.config import DataConfig
from resnet_dist.data.batch import Mix

_IS_MIXED_WORD, _IS_CUT_WORD, _SHARE_WORD, _ROW_WORD, _COLUMN_WORD = range(5)
_WORDS = 8
_SHARE_STEPS = (
    2**16
)  # a share is a multiple of 1 / this: the same with every version of exp and log
_GRID = 8192


def span(low: int, high: int, global_batch_size: int) -> tuple[int, int]:
    """[low, high) with the partners of its ends: positions in the global batch."""
    return low - low % 2, min(high + high % 2, global_batch_size)


def draw(
    data: DataConfig,
    *,
    seed: int,
    epoch: int,
    batch: int,
    bounds: tuple[int, int],
    global_batch_size: int,
    size: int,
) -> Mix:
    """The mixing of positions `span(*bounds)` of batch number `batch` of an epoch, for images of
    `size` x `size` pixels."""
    low, high = bounds
    first, last = span(low, high, global_batch_size)
    pairs = np.arange(first // 2, -(-last // 2))
    shares, boxes, is_cut = _draw_pairs(
        data,
        _uniforms(data, pairs, seed=seed, epoch=epoch, first=batch * (-(-global_batch_size // 2))),
        size=size,
    )
    rows = np.arange(last - first)
    partners = np.minimum(rows ^ 1, last - first - 1)
    is_alone = partners == rows
    pair = rows // 2
    return Mix(
        own=slice(low - first, high - first),
        partners=partners,
        shares=np.where(is_alone, 1.0, shares[pair]).astype(np.float32),
        boxes=np.where(is_alone[:, None], 0, boxes[pair]).astype(np.int32),
        is_cut=is_cut[pair] & ~is_alone,
    )


def _uniforms(
    data: DataConfig, pairs: NDArray[np.int64], *, seed: int, epoch: int, first: int
) -> NDArray[np.float64]:
    """`[pairs, 8]` in [0, 1); `first` is the global batch's first pair's number in the epoch."""
    is_each = data.mix_mode == "pair"
    words = rng.random_words(
        seed,
        rng.Stream.MIX,
        epoch,
        start=first + (int(pairs[0]) if is_each else 0),
        count=len(pairs) if is_each else 1,
        words=_WORDS,
    )
    return np.broadcast_to(rng.to_uniform(words), (len(pairs), _WORDS))


def _draw_pairs(
    data: DataConfig, uniform: NDArray[np.float64], *, size: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Shares `[p]`, boxes `[p, 4]` and whether a box is cut `[p]`, for p pairs."""
    is_mixed = uniform[:, _IS_MIXED_WORD] < data.mix_probability
    if data.mixup_alpha and data.cutmix_alpha:
        is_cut = uniform[:, _IS_CUT_WORD] < data.mix_switch_probability
    else:
        is_cut = np.full(len(uniform), data.cutmix_alpha > 0)
    drawn = uniform[:, _SHARE_WORD]
    shares = np.where(
        is_cut, beta_quantile(drawn, data.cutmix_alpha), beta_quantile(drawn, data.mixup_alpha)
    )
    shares = np.where(is_mixed, np.rint(shares * _SHARE_STEPS) / _SHARE_STEPS, 1.0)
    is_cut &= is_mixed
    boxes = cut_boxes(shares, uniform[:, _ROW_WORD : _COLUMN_WORD + 1], size)
    boxes[~is_cut] = 0
    kept = 1.0 - boxes[:, 2] * boxes[:, 3] / float(size * size)
    return np.where(is_cut, kept, shares), boxes, is_cut


def cut_boxes(
    shares: NDArray[np.float64], centres: NDArray[np.float64], size: int
) -> NDArray[np.int64]:
    """`[p, 4]` top, left, height, width as torchvision's CutMix computes them from the drawn share
    `[p]` and the centre's row and column `[p, 2]`, uniform in [0, 1)."""
    half = (0.5 * np.sqrt(1.0 - shares) * size).astype(np.int64)[:, None]
    centre = (centres * size).astype(np.int64)
    start = np.maximum(centre - half, 0)
    end = np.minimum(centre + half, size)
    return np.concatenate([start, end - start], axis=1)


def beta_quantile(uniform: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Beta(alpha, alpha) variates from uniform ones: its quantile function, to about 1e-6.

    With x = s ** (1 / alpha) the density of s is proportional to (1 - x) ** (alpha - 1), which is
    smooth for x <= 1/2; the other half is its mirror image, so that no constant is needed.
    """
    if alpha == 0:
        return np.ones_like(uniform)
    lower = np.minimum(uniform, 1.0 - uniform)
    x = np.interp(lower, *_lower_half(alpha)) ** (1.0 / alpha)
    return np.where(uniform < 0.5, x, 1.0 - x)


@lru_cache(maxsize=4)
def _lower_half(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities in [0, 1/2] and x ** alpha, `[_GRID + 1]` each."""
    s = np.linspace(0.0, 0.5**alpha, _GRID + 1)
    density = (1.0 - s ** (1.0 / alpha)) ** (alpha - 1.0)
    area = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return 0.5 * area / area[-1], s
