"""Random erasing: one rectangle of an image becomes 0 after the normalisation, the mean colour.

Owns torchvision's definition of RandomErasing as a pure function of (seed, epoch, position in the
epoch's order), and doing it (torchvision's `F.erase` with 0) on the training device.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist import rng
from resnet_dist.config import AugmentConfig
from resnet_dist.data.read.buffers import to_device

_ATTEMPTS = 10
_ROW_WORD = 2 * _ATTEMPTS  # before it: area and ratio of each attempt
_COLUMN_WORD = _ROW_WORD + 1
_IS_ERASED_WORD = _ROW_WORD + 2
_WORDS = _ROW_WORD + 4  # a multiple of 4; the last is spare


def sample_erased_boxes(
    augment: AugmentConfig, num: int, *, seed: int, epoch: int, start: int, size: int
) -> NDArray[np.int32] | None:
    """`[num, 4]` int32 rectangles (top, left, height, width) to erase in the images at
    [start, start + num) of an epoch's order, zeros for none; None if erasing is off."""
    if augment.erase_probability == 0:
        return None
    words = rng.random_words(seed, rng.Stream.ERASE, epoch, start=start, count=num, words=_WORDS)
    uniform = rng.to_uniform(words)
    boxes = erased_boxes(size, augment.erase_scale, augment.erase_ratio, uniform)
    boxes[uniform[:, _IS_ERASED_WORD] >= augment.erase_probability] = 0
    return boxes


def erased_boxes(
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    uniform: NDArray[np.float64],
) -> NDArray[np.int32]:
    """`[n, 4]` int32 rectangles as torchvision's `RandomErasing.make_params` finds them in an image
    of `size` x `size`: the first of ten attempts that is smaller than the image on both sides, else
    none (Zhong et al. 2017, algorithm 1).

    `uniform` is `[n, >= 22]` in [0, 1): area and ratio of each attempt, then row and column.
    """
    attempts = uniform[:, :_ROW_WORD].reshape(-1, _ATTEMPTS, 2)
    areas = size * size * (scale[0] + (scale[1] - scale[0]) * attempts[..., 0])
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    ratios = np.exp(log_low + (log_high - log_low) * attempts[..., 1])
    tried_h = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    tried_w = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (tried_h < size) & (tried_w < size)
    rows = np.arange(len(uniform))
    first = fits.argmax(axis=1)
    h, w = tried_h[rows, first], tried_w[rows, first]
    top = (uniform[:, _ROW_WORD] * (size - h + 1)).astype(np.int64)
    left = (uniform[:, _COLUMN_WORD] * (size - w + 1)).astype(np.int64)
    boxes = np.stack([top, left, h, w], axis=1)
    return np.where(fits[rows, first][:, None], boxes, 0).astype(np.int32)


def apply_erasing_(images: Tensor, boxes: NDArray[np.int32]) -> None:
    """Set the box (top, left, height, width) of each image to 0: `[n, 3, S, S]`, `[n, 4]`."""
    if images.device.type != "cpu":
        apply_erasing_by_mask_(images, boxes)
        return
    for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = 0.0


def apply_erasing_by_mask_(images: Tensor, boxes: NDArray[np.int32]) -> None:
    """The same in one kernel for all images."""
    images.masked_fill_(inside_boxes(boxes, images)[:, None], 0.0)


def inside_boxes(boxes: NDArray[np.int32], images: Tensor) -> Tensor:
    """`[n, S, S]` bool: whether a pixel lies in its image's box; `images` `[n, ..., S, any]`."""
    places = torch.arange(images.shape[2], device=images.device)
    top, left, height, width = to_device(boxes, images.device)[:, :, None].unbind(dim=1)
    rows = (places >= top) & (places < top + height)
    columns = (places >= left) & (places < left + width)
    return rows[:, :, None] & columns[:, None, :]
