"""Which operations on uint8 images, and how strong: `augment.auto_augment`.

Owns torchvision's RandAugment, TrivialAugmentWide and AutoAugment (transforms.v2: names,
magnitudes, policy) as pure functions of (seed, epoch, position in the epoch's order), and calls the
other families: `timm_augment`, `augmix`, `colour`. Touches no pixel: see
`resnet_dist.data.augment.pixel_ops`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.config import AugmentConfig
from resnet_dist.data.augment import augmix, colour, timm_augment
from resnet_dist.data.augment.codes import FACTORS, Code, Row, finish
from resnet_dist.data.batch import Operations

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

_WORDS_EACH = 4  # of an operation: which, how strong, its sign, whether at all


def sample_operations(
    augment: AugmentConfig,
    num: int,
    *,
    seed: int,
    epoch: int,
    start: int,
    size: int,
    mean: tuple[int, int, int] = (0, 0, 0),
) -> Operations | None:
    """The operations on the `size` x `size` images at [start, start + num) of an epoch's order;
    None if there are none by the settings. `mean`: the data's mean colour, 0 to 255."""
    if not augment.has_operations:
        return None
    draw = rng.Draw(seed, epoch, start, num)
    parts: list[Row] = []
    slots = augment.ra_num_ops if augment.auto_augment in ("ra", "ra_timm") else 2
    uniform = draw.uniform(rng.Stream.OPERATIONS, _WORDS_EACH * (slots + 2))
    strengths = uniform[:, : slots * _WORDS_EACH].reshape(num, slots, _WORDS_EACH)
    chains = None
    match augment.auto_augment:
        case "ra":
            parts.append(_rand_augment(strengths, int(augment.ra_magnitude), size))
        case "ra_timm":
            parts.append(timm_augment.rand_augment(strengths, draw, augment, size))
        case "ta_wide":
            parts.append(_trivial_augment_wide(strengths[:, :1]))
        case "imagenet":
            parts.append(_auto_augment(strengths, size))
        case "augmix":
            row, chains = augmix.sample(draw, size)
            parts.append(row)
    if any(augment.color_jitter):
        parts.append(colour.jitter(uniform[:, slots * _WORDS_EACH :], augment.color_jitter))
    if augment.lighting:
        parts.append(colour.lighting(draw, augment.lighting))
    return Operations(
        codes=np.concatenate([codes for codes, _ in parts], axis=1),
        magnitudes=np.concatenate([magnitudes for _, magnitudes in parts], axis=1),
        fill=mean if augment.auto_augment == "ra_timm" else (0, 0, 0),
        chains=chains,
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
    table[sorted(FACTORS)] = np.linspace(0.0, 0.9, bins)
    table[Code.POSTERIZE] = 8 - np.arange(bins) / ((bins - 1) / 4)
    table[Code.SOLARIZE] = np.linspace(1.0, 0.0, bins)
    return _stored(table)


def trivial_augment_table() -> NDArray[np.float64]:
    """`[codes, 31]` strengths of TrivialAugmentWide, before their sign, as in torchvision."""
    table = np.zeros((len(Code), _BINS))
    table[[Code.SHEAR_X, Code.SHEAR_Y]] = np.linspace(0.0, 0.99, _BINS)
    table[[Code.TRANSLATE_X, Code.TRANSLATE_Y]] = np.linspace(0.0, 32.0, _BINS)
    table[Code.ROTATE] = np.linspace(0.0, 135.0, _BINS)
    table[sorted(FACTORS)] = np.linspace(0.0, 0.99, _BINS)
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


def _choose(uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray(_CHOICES)[(uniform * len(_CHOICES)).astype(np.int64)]


def _rand_augment(uniform: NDArray[np.float64], magnitude: int, size: int) -> Row:
    codes = _choose(uniform[..., 0])
    strengths = rand_augment_table(size, _BINS)[codes, magnitude]
    return finish(codes, strengths, uniform[..., 2] < 0.5)


def _trivial_augment_wide(uniform: NDArray[np.float64]) -> Row:
    codes = _choose(uniform[..., 0])
    strengths = trivial_augment_table()[codes, (uniform[..., 1] * _BINS).astype(np.int64)]
    return finish(codes, strengths, uniform[..., 2] < 0.5)


def _auto_augment(uniform: NDArray[np.float64], size: int) -> Row:
    """The sub-policy is chosen once for both operations."""
    chosen = (uniform[:, 0, 0] * len(_POLICY)).astype(np.int64)
    policy = np.array(_POLICY, dtype=np.float64)[chosen]  # [n, 2, 3]
    codes, bins = policy[..., 0].astype(np.int64), policy[..., 2].astype(np.int64)
    codes = np.where(uniform[..., 3] < policy[..., 1], codes, Code.IDENTITY)
    strengths = rand_augment_table(size, 10)[codes, bins]
    return finish(codes, strengths, uniform[..., 2] < 0.5)
