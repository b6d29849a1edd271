"""RandAugment, TrivialAugmentWide, AutoAugment and colour jitter: which operations, how strong.

Owns torchvision's definitions (transforms.v2: names, magnitudes, policy) as pure functions of
(seed, epoch, position in the epoch's order). Touches no pixel: see
`resnet_dist.data.augment.pixel_ops`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.config import AugmentConfig
from resnet_dist.data.batch import Operations


class Code(IntEnum):
    """What is done to an image, and what its magnitude means."""

    IDENTITY = 0
    SHEAR_X = 1
    """Tangent of the angle."""
    SHEAR_Y = 2
    TRANSLATE_X = 3
    """Whole pixels."""
    TRANSLATE_Y = 4
    ROTATE = 5
    """Degrees, counter-clockwise."""
    BRIGHTNESS = 6
    """Factor; 1 changes nothing. The same for colour (saturation), contrast, sharpness."""
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10
    """Bits kept."""
    SOLARIZE = 11
    """Values of at least this are inverted, 0 to 255."""
    AUTO_CONTRAST = 12
    EQUALIZE = 13
    INVERT = 14
    HUE = 15
    """Turns of the colour circle, -0.5 to 0.5."""


_SIGNED = frozenset(range(Code.SHEAR_X, Code.SHARPNESS + 1))
_FACTORS = frozenset({Code.BRIGHTNESS, Code.COLOR, Code.CONTRAST, Code.SHARPNESS})
_CHOICES = [*range(Code.IDENTITY, Code.EQUALIZE + 1)]  # of RandAugment and TrivialAugmentWide
_BINS = 31

# AutoAugment's policy for ImageNet (Cubuk et al. 2018, table 9): operation, probability, strength
# 0 to 9; twice.
_POLICY = [
    ((Code.POSTERIZE, 0.4, 8), (Code.ROTATE, 0.6, 9)),
    ((Code.SOLARIZE, 0.6, 5), (Code.AUTO_CONTRAST, 0.6, 0)),
    ((Code.EQUALIZE, 0.8, 0), (Code.EQUALIZE, 0.6, 0)),
    ((Code.POSTERIZE, 0.6, 7), (Code.POSTERIZE, 0.6, 6)),
    ((Code.EQUALIZE, 0.4, 0), (Code.SOLARIZE, 0.2, 4)),
    ((Code.EQUALIZE, 0.4, 0), (Code.ROTATE, 0.8, 8)),
    ((Code.SOLARIZE, 0.6, 3), (Code.EQUALIZE, 0.6, 0)),
    ((Code.POSTERIZE, 0.8, 5), (Code.EQUALIZE, 1.0, 0)),
    ((Code.ROTATE, 0.2, 3), (Code.SOLARIZE, 0.6, 8)),
    ((Code.EQUALIZE, 0.6, 0), (Code.POSTERIZE, 0.4, 6)),
    ((Code.ROTATE, 0.8, 8), (Code.COLOR, 0.4, 0)),
    ((Code.ROTATE, 0.4, 9), (Code.EQUALIZE, 0.6, 0)),
    ((Code.EQUALIZE, 0.0, 0), (Code.EQUALIZE, 0.8, 0)),
    ((Code.INVERT, 0.6, 0), (Code.EQUALIZE, 1.0, 0)),
    ((Code.COLOR, 0.6, 4), (Code.CONTRAST, 1.0, 8)),
    ((Code.ROTATE, 0.8, 8), (Code.COLOR, 1.0, 2)),
    ((Code.COLOR, 0.8, 8), (Code.SOLARIZE, 0.8, 7)),
    ((Code.SHARPNESS, 0.4, 7), (Code.INVERT, 0.6, 0)),
    ((Code.SHEAR_X, 0.6, 5), (Code.EQUALIZE, 1.0, 0)),
    ((Code.COLOR, 0.4, 0), (Code.EQUALIZE, 0.6, 0)),
    ((Code.EQUALIZE, 0.4, 0), (Code.SOLARIZE, 0.2, 4)),
    ((Code.SOLARIZE, 0.6, 5), (Code.AUTO_CONTRAST, 0.6, 0)),
    ((Code.INVERT, 0.6, 0), (Code.EQUALIZE, 1.0, 0)),
    ((Code.COLOR, 0.6, 4), (Code.CONTRAST, 1.0, 8)),
    ((Code.EQUALIZE, 0.8, 0), (Code.EQUALIZE, 0.6, 0)),
]

_Row = tuple[NDArray[np.int8], NDArray[np.float64]]
_WORDS_EACH = 4  # of an operation: which, how strong, its sign, whether at all


def sample_operations(
    augment: AugmentConfig, num: int, *, seed: int, epoch: int, start: int, size: int
) -> Operations | None:
    """The operations on the `size` x `size` images at [start, start + num) of an epoch's order;
    None if there are none by the settings."""
    if not augment.has_operations:
        return None
    parts: list[_Row] = []
    slots = augment.ra_num_ops if augment.auto_augment == "ra" else 2
    words = rng.random_words(
        seed,
        rng.Stream.OPERATIONS,
        epoch,
        start=start,
        count=num,
        words=_WORDS_EACH * (slots + 2),
    )
    uniform = rng.to_uniform(words)
    strengths = uniform[:, : slots * _WORDS_EACH].reshape(num, slots, _WORDS_EACH)
    match augment.auto_augment:
        case "ra":
            parts.append(_rand_augment(strengths, augment.ra_magnitude, size))
        case "ta_wide":
            parts.append(_trivial_augment_wide(strengths[:, :1]))
        case "imagenet":
            parts.append(_auto_augment(strengths, size))
    if any(augment.color_jitter):
        parts.append(_color_jitter(uniform[:, slots * _WORDS_EACH :], augment.color_jitter))
    return Operations(
        codes=np.concatenate([codes for codes, _ in parts], axis=1),
        magnitudes=np.concatenate([magnitudes for _, magnitudes in parts], axis=1),
    )


def rand_augment_table(size: int, bins: int) -> NDArray[np.float64]:
    """`[codes, bins]` strengths of RandAugment (31 bins) and AutoAugment (10), before their sign,
    as in torchvision's `_AUGMENTATION_SPACE`."""
    table = np.zeros((len(Code), bins))
    for code in (Code.SHEAR_X, Code.SHEAR_Y):
        table[code] = np.linspace(0.0, 0.3, bins)
    for code in (Code.TRANSLATE_X, Code.TRANSLATE_Y):
        table[code] = np.linspace(0.0, 150.0 / 331.0 * size, bins)
    table[Code.ROTATE] = np.linspace(0.0, 30.0, bins)
    table[sorted(_FACTORS)] = np.linspace(0.0, 0.9, bins)
    table[Code.POSTERIZE] = 8 - np.arange(bins) / ((bins - 1) / 4)
    table[Code.SOLARIZE] = np.linspace(1.0, 0.0, bins)
    return _stored(table)


def trivial_augment_table() -> NDArray[np.float64]:
    """`[codes, 31]` strengths of TrivialAugmentWide, before their sign, as in torchvision."""
    table = np.zeros((len(Code), _BINS))
    table[[Code.SHEAR_X, Code.SHEAR_Y]] = np.linspace(0.0, 0.99, _BINS)
    table[[Code.TRANSLATE_X, Code.TRANSLATE_Y]] = np.linspace(0.0, 32.0, _BINS)
    table[Code.ROTATE] = np.linspace(0.0, 135.0, _BINS)
    table[sorted(_FACTORS)] = np.linspace(0.0, 0.99, _BINS)
    table[Code.POSTERIZE] = 8 - np.arange(_BINS) / ((_BINS - 1) / 6)
    table[Code.SOLARIZE] = np.linspace(1.0, 0.0, _BINS)
    return _stored(table)


def _stored(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values as torchvision holds them: float32; whole bits; thresholds as fractions of 255.

    torch.linspace differs from this in the last bit, not alike on all processors: where torchvision
    may move by int(15.999999) pixels, this moves by 16.
    """
    table[Code.POSTERIZE] = np.rint(table[Code.POSTERIZE])
    table = table.astype(np.float32).astype(np.float64)
    table[Code.SOLARIZE] *= 255.0
    return table


def _finish(
    codes: NDArray[np.int64], strengths: NDArray[np.float64], is_negative: NDArray[np.bool_]
) -> _Row:
    """Strengths to magnitudes: with a sign, whole pixels, factors around 1."""
    signed = np.where(is_negative & np.isin(codes, list(_SIGNED)), -strengths, strengths)
    moves = np.isin(codes, [Code.TRANSLATE_X, Code.TRANSLATE_Y])
    magnitudes = np.where(moves, np.trunc(signed), signed)
    magnitudes = np.where(np.isin(codes, list(_FACTORS)), 1.0 + magnitudes, magnitudes)
    return codes.astype(np.int8), magnitudes


def _choose(uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray(_CHOICES)[(uniform * len(_CHOICES)).astype(np.int64)]


def _rand_augment(uniform: NDArray[np.float64], magnitude: int, size: int) -> _Row:
    codes = _choose(uniform[..., 0])
    strengths = rand_augment_table(size, _BINS)[codes, magnitude]
    return _finish(codes, strengths, uniform[..., 2] < 0.5)


def _trivial_augment_wide(uniform: NDArray[np.float64]) -> _Row:
    codes = _choose(uniform[..., 0])
    strengths = trivial_augment_table()[codes, (uniform[..., 1] * _BINS).astype(np.int64)]
    return _finish(codes, strengths, uniform[..., 2] < 0.5)


def _auto_augment(uniform: NDArray[np.float64], size: int) -> _Row:
    """The sub-policy is chosen once for both operations."""
    chosen = (uniform[:, 0, 0] * len(_POLICY)).astype(np.int64)
    policy = np.array(_POLICY, dtype=np.float64)[chosen]  # [n, 2, 3]
    codes, bins = policy[..., 0].astype(np.int64), policy[..., 2].astype(np.int64)
    codes = np.where(uniform[..., 3] < policy[..., 1], codes, Code.IDENTITY)
    strengths = rand_augment_table(size, 10)[codes, bins]
    return _finish(codes, strengths, uniform[..., 2] < 0.5)


_JITTERED = (Code.BRIGHTNESS, Code.CONTRAST, Code.COLOR, Code.HUE)


def _color_jitter(uniform: NDArray[np.float64], ranges: Sequence[float]) -> _Row:
    """torchvision's ColorJitter: factors in [max(0, 1 - range), 1 + range], the hue in
    [-range, range], in random order. `uniform` is `[n, 8]`."""
    reach = np.asarray(ranges)
    is_hue = np.arange(4) == 3
    low = np.where(is_hue, -reach, np.maximum(0.0, 1.0 - reach))
    high = np.where(is_hue, reach, 1.0 + reach)
    magnitudes = low + (high - low) * uniform[:, 4:8]
    order = np.argsort(uniform[:, :4], axis=1, kind="stable")
    codes = np.where(reach > 0, np.asarray(_JITTERED), Code.IDENTITY)[order]
    return codes.astype(np.int8), np.take_along_axis(magnitudes, order, axis=1)
