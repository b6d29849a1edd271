"""Augmentation parameters: where each image is cut, whether it is mirrored, what is erased.

Owns torchvision's definitions of RandomResizedCrop, Resize, CenterCrop, padded RandomCrop and
RandomErasing as pure functions of (seed, epoch, position in the epoch's order), and the side of
the training crop as a function of the epoch. Touches no pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.config import DataConfig

_ATTEMPTS = 10
_ROW_WORD = 2 * _ATTEMPTS  # before it: area and ratio of each attempt
_COLUMN_WORD = _ROW_WORD + 1
_FLIP_WORD = _ROW_WORD + 2
_WORDS = _ROW_WORD + 4  # a multiple of 4; the last is spare


@dataclass(frozen=True)
class Augmentation:
    """The random choices for n samples."""

    crop_boxes: NDArray[np.int32]
    """`[n, 4]` top, left, height, width, pixels."""
    crop_offsets: NDArray[np.int32] | None
    """`[n, 2]` rows, columns in [-crop_padding, crop_padding] (pad_reflect only)."""
    flips: NDArray[np.bool_]
    """`[n]`"""


def draw(
    data: DataConfig, sizes: NDArray[np.int32], *, seed: int, epoch: int, start: int
) -> Augmentation:
    """Choices for the samples at [start, start + n) of an epoch's order; `sizes` `[n, 2]` int32
    are the heights and widths of the images, pixels."""
    words = rng.random_words(
        seed, rng.Stream.CROP_FLIP, epoch, start=start, count=len(sizes), words=_WORDS
    )
    uniform = rng.to_uniform(words)
    flips = uniform[:, _FLIP_WORD] < data.flip_probability
    if data.crop == "random_resized":
        crop_boxes = random_resized_crops(sizes, data.crop_scale, data.crop_ratio, uniform)
        return Augmentation(crop_boxes, None, flips)
    span = 2 * data.crop_padding + 1
    crop_offsets = (uniform[:, _ROW_WORD : _COLUMN_WORD + 1] * span).astype(np.int32)
    return Augmentation(whole_images(sizes), crop_offsets - np.int32(data.crop_padding), flips)


def train_size(data: DataConfig, epoch: int) -> int:
    """Side of the training crops of an epoch, pixels (ffcv-imagenet's `get_resolution`)."""
    start, (first, last) = data.progressive_start_size, data.progressive_epochs
    if start is None or epoch >= last:
        return data.train_size
    if epoch <= first:
        return start
    side = start + (data.train_size - start) * (epoch - first) / (last - first)
    rounded = round(side / data.progressive_multiple) * data.progressive_multiple
    return min(max(rounded, start), data.train_size)


def sample_erased_boxes(
    data: DataConfig, num: int, *, seed: int, epoch: int, start: int, size: int
) -> NDArray[np.int32] | None:
    """`[num, 4]` int32 rectangles (top, left, height, width) to erase in the images at
    [start, start + num) of an epoch's order, zeros for none; None if erasing is off."""
    if data.erase_probability == 0:
        return None
    words = rng.random_words(seed, rng.Stream.ERASE, epoch, start=start, count=num, words=_WORDS)
    uniform = rng.to_uniform(words)
    boxes = erased_boxes(size, data.erase_scale, data.erase_ratio, uniform)
    boxes[uniform[:, _FLIP_WORD] >= data.erase_probability] = 0
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


def random_resized_crops(
    sizes: NDArray[np.int32],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    uniform: NDArray[np.float64],
) -> NDArray[np.int32]:
    """`[n, 4]` int32 crop_boxes (top, left, height, width) as torchvision's
    `RandomResizedCrop.get_params` finds them: the first of ten attempts that fits, else a centre
    crop of the nearest ratio (Szegedy et al. 2015, section 6).

    `uniform` is `[n, >= 22]` in [0, 1): area and ratio of each attempt, then row and column.
    """
    heights, widths = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
    attempts = uniform[:, :_ROW_WORD].reshape(-1, _ATTEMPTS, 2)
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    areas = (heights * widths)[:, None] * (scale[0] + (scale[1] - scale[0]) * attempts[..., 0])
    ratios = np.exp(log_low + (log_high - log_low) * attempts[..., 1])
    tried_w = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    tried_h = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (
        (tried_w > 0) & (tried_w <= widths[:, None]) & (tried_h > 0) & (tried_h <= heights[:, None])
    )
    rows = np.arange(len(sizes))
    first = fits.argmax(axis=1)
    found = fits[rows, first]
    fallback_h, fallback_w = _nearest_ratio(heights, widths, ratio)
    h = np.where(found, tried_h[rows, first], fallback_h)
    w = np.where(found, tried_w[rows, first], fallback_w)
    free_h, free_w = heights - h, widths - w
    random_top = (uniform[:, _ROW_WORD] * (free_h + 1)).astype(np.int64)
    random_left = (uniform[:, _COLUMN_WORD] * (free_w + 1)).astype(np.int64)
    top = np.where(found, random_top, free_h // 2)
    left = np.where(found, random_left, free_w // 2)
    return np.stack([top, left, h, w], axis=1).astype(np.int32)


def _nearest_ratio(
    heights: NDArray[np.int64], widths: NDArray[np.int64], ratio: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Height and width of the largest crop with the image's ratio clipped to the range."""
    image_ratio = widths / heights
    tall, wide = image_ratio < min(ratio), image_ratio > max(ratio)
    h = np.where(tall, np.rint(widths / min(ratio)).astype(np.int64), heights)
    w = np.where(wide, np.rint(heights * max(ratio)).astype(np.int64), widths)
    return h, w


def whole_images(sizes: NDArray[np.int32]) -> NDArray[np.int32]:
    """`[n, 4]` int32 crop_boxes that take everything."""
    return np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.int32)


def centre_crops(
    sizes: NDArray[np.int32], resize_size: int, crop_size: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Resized `[n, 2]` and crop anchors `[n, 2]` int32 as torchvision's Resize and CenterCrop
    compute them: the longer side rounded down, the anchor rounded half to even. Other rounding
    costs accuracy."""
    sizes = sizes.astype(np.int64)
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    new_long = (resize_size * long / short).astype(np.int64)
    is_tall = sizes[:, 1] <= sizes[:, 0]
    resized = np.where(
        is_tall[:, None],
        np.stack([new_long, np.full_like(new_long, resize_size)], axis=1),
        np.stack([np.full_like(new_long, resize_size), new_long], axis=1),
    )
    anchors = np.rint((resized - crop_size) / 2.0)
    return resized.astype(np.int32), anchors.astype(np.int32)
