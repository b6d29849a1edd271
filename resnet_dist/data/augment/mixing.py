"""Mixup and cutmix: which images are paired, with what lam and box, and mixing them.

Owns sampling as pure functions of (seed, epoch, position), and mixing normalised images on the
training device, with the numbers of torchvision's `MixUp` and `CutMix`. Paired are the positions 2k
and 2k + 1 of a step's global batch, whatever the number of ranks and micro-batches; the last sample
of an odd batch is paired with itself.

With lam sampled from Beta(alpha, alpha), mixup gives image a the pixels and the label of
lam * a + (1 - lam) * b, and b those of lam * b + (1 - lam) * a (Zhang et al. 2017,
arXiv:1710.09412). Cutmix pastes a box of about (1 - lam) of the area from each into the other, and
then takes for lam the fraction of the pixels that were kept (Yun et al. 2019, arXiv:1905.04899; the
box is torchvision's).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist import rng
from resnet_dist.config import AugmentConfig
from resnet_dist.data.augment.erasing import inside_boxes
from resnet_dist.data.batch import Mix, MixedLabels
from resnet_dist.data.read.buffers import HostBuffers, to_device

_IS_MIXED_WORD, _IS_CUT_WORD, _LAM_WORD, _ROW_WORD, _COLUMN_WORD = range(5)
_WORDS = 8
_LAM_STEPS = 2**16
"""lam is a multiple of 1 / this: the same with every version of exp and log."""
_GRID = 8192


def paired_bounds(low: int, high: int, global_batch_size: int) -> tuple[int, int]:
    """[low, high) with what its ends are paired with: positions in the global batch."""
    return low - low % 2, min(high + high % 2, global_batch_size)


def sample_mix(
    augment: AugmentConfig,
    *,
    seed: int,
    epoch: int,
    batch: int,
    bounds: tuple[int, int],
    global_batch_size: int,
    size: int,
) -> Mix:
    """The mixing of positions `paired_bounds(*bounds)` of batch number `batch` of an epoch, for
    images of `size` x `size` pixels."""
    low, high = bounds
    first, last = paired_bounds(low, high, global_batch_size)
    pairs = np.arange(first // 2, -(-last // 2))
    first_pair = batch * -(-global_batch_size // 2)
    lams, boxes, is_cut = _sample_pairs(
        augment, _uniforms(augment, pairs, seed=seed, epoch=epoch, first=first_pair), size=size
    )
    rows = np.arange(last - first)
    paired = np.minimum(rows ^ 1, last - first - 1)
    is_alone = paired == rows
    pair = rows // 2
    return Mix(
        own=slice(low - first, high - first),
        paired=paired,
        lams=np.where(is_alone, 1.0, lams[pair]).astype(np.float32),
        boxes=np.where(is_alone[:, None], 0, boxes[pair]).astype(np.int32),
        is_cut=is_cut[pair] & ~is_alone,
    )


def _uniforms(
    augment: AugmentConfig, pairs: NDArray[np.int64], *, seed: int, epoch: int, first: int
) -> NDArray[np.float64]:
    """`[pairs, 8]` in [0, 1); `first` is the global batch's first pair's number in the epoch."""
    is_each = augment.mix_mode == "pair"
    words = rng.random_words(
        seed,
        rng.Stream.MIX,
        epoch,
        start=first + (int(pairs[0]) if is_each else 0),
        count=len(pairs) if is_each else 1,
        words=_WORDS,
    )
    return np.broadcast_to(rng.to_uniform(words), (len(pairs), _WORDS))


def _sample_pairs(
    augment: AugmentConfig, uniform: NDArray[np.float64], *, size: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """lam `[p]`, boxes `[p, 4]` and whether a box is cut `[p]`, for p pairs."""
    is_mixed = uniform[:, _IS_MIXED_WORD] < augment.mix_probability
    if augment.mixup_alpha and augment.cutmix_alpha:
        is_cut = uniform[:, _IS_CUT_WORD] < augment.mix_switch_probability
    else:
        is_cut = np.full(len(uniform), augment.cutmix_alpha > 0)
    lams = np.where(
        is_cut,
        beta_quantile(uniform[:, _LAM_WORD], augment.cutmix_alpha),
        beta_quantile(uniform[:, _LAM_WORD], augment.mixup_alpha),
    )
    lams = np.where(is_mixed, np.rint(lams * _LAM_STEPS) / _LAM_STEPS, 1.0)
    is_cut &= is_mixed
    boxes = cut_boxes(lams, uniform[:, _ROW_WORD : _COLUMN_WORD + 1], size)
    boxes[~is_cut] = 0
    kept = 1.0 - boxes[:, 2] * boxes[:, 3] / float(size * size)
    return np.where(is_cut, kept, lams), boxes, is_cut


def cut_boxes(
    lams: NDArray[np.float64], centres: NDArray[np.float64], size: int
) -> NDArray[np.int64]:
    """`[p, 4]` top, left, height, width as torchvision's CutMix computes them from the sampled lam
    `[p]` and the centre's row and column `[p, 2]`, uniform in [0, 1)."""
    half = (0.5 * np.sqrt(1.0 - lams) * size).astype(np.int64)[:, None]
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


def apply_mix(images: Tensor, mix: Mix, buffers: HostBuffers) -> Tensor:
    """The micro-batch's own images, mixed with the paired ones.

    `images` `[n, 3, S, S]` float32 in channels-last memory format, of which rows `mix.own` are
    returned in new memory of the same format: on the CPU, memory of `buffers`. Overwrites `images`.
    """
    rows = images.permute(0, 2, 3, 1)
    mixed = apply_mix_by_mask(rows, mix) if rows.is_cuda else _apply_on_host(rows, mix, buffers)
    return mixed.permute(0, 3, 1, 2)


def apply_mix_by_mask(rows: Tensor, mix: Mix) -> Tensor:
    """A few kernels for all images: `[n, S, S, 3]` to the own ones' `[m, S, S, 3]`."""
    own, device = rows[mix.own], rows.device
    others = rows[to_device(mix.paired[mix.own], device)]
    lam = to_device(mix.lams[mix.own], device)[:, None, None, None]
    is_cut = to_device(mix.is_cut[mix.own], device)[:, None, None, None]
    pasted = torch.where(inside_boxes(mix.boxes[mix.own], own)[..., None], others, own)
    return torch.where(is_cut, pasted, others * (1.0 - lam) + own * lam)


def _apply_on_host(rows: Tensor, mix: Mix, buffers: HostBuffers) -> Tensor:
    own, paired = rows[mix.own], mix.paired[mix.own]
    lams = np.where(mix.is_cut, 1.0, mix.lams)[mix.own]
    lam = torch.from_numpy(lams.astype(np.float32))[:, None, None, None]
    result = buffers.take(own.numel()).view(own.shape)
    torch.index_select(rows, 0, torch.from_numpy(paired), out=result)
    result.mul_(1.0 - lam)
    # In place, for fresh memory is slow; images that are cut have weight 1 and stay as they are.
    result.add_(own.mul_(lam))
    for row, (top, left, height, width) in enumerate(mix.boxes[mix.own].tolist()):
        box = (slice(top, top + height), slice(left, left + width))
        result[row][box] = rows[int(paired[row])][box]
    return result


def mixed_labels(labels: NDArray[np.int64], mix: Mix, device: torch.device) -> MixedLabels:
    """The second labels of the rows `mix.own`; `labels` `[n]` are those of all rows."""
    return MixedLabels(
        paired=to_device(labels[mix.paired[mix.own]], device),
        lam=to_device(mix.lams[mix.own], device),
    )
