"""Crop and flip: which part of each image is taken, and whether it is mirrored.

Owns torchvision's definitions of RandomResizedCrop, Resize, CenterCrop and padded RandomCrop as
pure functions of (seed, epoch, position in the epoch's order), and moving and mirroring decoded
images (`apply_offsets_and_flips`). Boxes are cut and resized by the loaders, which do both at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.config import AugmentConfig
from resnet_dist.data.read.buffers import to_device

_ATTEMPTS = 10
_ROW_WORD = 2 * _ATTEMPTS  # before it: area and ratio of each attempt
_COLUMN_WORD = _ROW_WORD + 1
_FLIP_WORD = _ROW_WORD + 2
_WORDS = _ROW_WORD + 4  # a multiple of 4; the last is spare


@dataclass(frozen=True)
class Crops:
    """The random choices for n samples."""

    boxes: NDArray[np.int32]
    """`[n, 4]` top, left, height, width, pixels."""
    offsets: NDArray[np.int32] | None
    """`[n, 2]` rows, columns in [-crop_padding, crop_padding] (pad_reflect only)."""
    flips: NDArray[np.bool_]
    """`[n]`"""


def sample_crops(
    augment: AugmentConfig, sizes: NDArray[np.int32], *, seed: int, epoch: int, start: int
) -> Crops:
    """Choices for the samples at [start, start + n) of an epoch's order; `sizes` `[n, 2]` int32
    are the heights and widths of the images, pixels."""
    words = rng.random_words(
        seed, rng.Stream.CROP_FLIP, epoch, start=start, count=len(sizes), words=_WORDS
    )
    uniform = rng.to_uniform(words)
    flips = uniform[:, _FLIP_WORD] < augment.flip_probability
    if augment.crop == "random_resized":
        boxes = random_resized_crops(sizes, augment.crop_scale, augment.crop_ratio, uniform)
        return Crops(boxes, None, flips)
    span = 2 * augment.crop_padding + 1
    offsets = (uniform[:, _ROW_WORD : _COLUMN_WORD + 1] * span).astype(np.int32)
    return Crops(whole_images(sizes), offsets - np.int32(augment.crop_padding), flips)


def alternating_flips(
    ids: NDArray[np.int64], *, seed: int, epoch: int, num_samples: int
) -> NDArray[np.bool_]:
    """`[n]` whether each sample is mirrored where it is in every other epoch (Jordan 2024,
    arXiv:2404.00498, section 3.6): half of the samples in the even ones."""
    first: NDArray[np.bool_] = _first_flips(seed, num_samples)[ids]
    return first ^ bool(epoch % 2)


@lru_cache(maxsize=2)
def _first_flips(seed: int, num_samples: int) -> NDArray[np.bool_]:
    """`[num_samples]`, those of epoch 0."""
    words = rng.random_words(
        seed, rng.Stream.FIRST_FLIP, 0, start=0, count=num_samples, words=rng.WORDS_PER_BLOCK
    )
    return rng.to_uniform(words[:, 0]) < 0.5


def random_resized_crops(
    sizes: NDArray[np.int32],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    uniform: NDArray[np.float64],
) -> NDArray[np.int32]:
    """`[n, 4]` int32 boxes (top, left, height, width) as torchvision's
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
    """`[n, 4]` int32 boxes that take everything."""
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


def apply_offsets_and_flips(
    images: torch.Tensor,
    offsets: NDArray[np.int32],
    flips: NDArray[np.bool_],
    *,
    is_flipped: bool,
) -> torch.Tensor:
    """torchvision's RandomCrop(size, padding, padding_mode="reflect"), then the flip.

    `images` `[n, S, S, 3]` uint8; `offsets` `[n, 2]` rows and columns in [-padding, padding];
    `is_flipped`: the images are mirrored already. Reads through reflected coordinates, so no padded
    copy is made.
    """
    n, size = images.shape[:2]
    device = images.device
    places = torch.arange(size, device=device)
    mirrored = to_device(flips, device)[:, None]
    moved = to_device(offsets, device).long()
    rows = _reflect(places + moved[:, :1], size)
    columns = torch.where(mirrored, size - 1 - places, places) + moved[:, 1:]
    columns = _reflect(columns, size)
    if is_flipped:  # the source is a mirror image already: read it from the other side
        columns = torch.where(mirrored, size - 1 - columns, columns)
    samples = torch.arange(n, device=device)[:, None, None]
    return images[samples, rows[:, :, None], columns[:, None, :]]


def _reflect(positions: torch.Tensor, size: int) -> torch.Tensor:
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)
