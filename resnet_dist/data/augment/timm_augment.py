"""timm's RandAugment, `rand-mM-mstdS-inc1`: which operations, how strong.

Owns the definitions of timm 1.0 (data/auto_augment.py: its "increasing" operations, of which each
is applied with a probability, and a magnitude that varies from image to image). What comes in at
the borders has the data's mean colour, as there. Different here: bilinear, where timm chooses
between bilinear and bicubic; moves by whole pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.config import AugmentConfig
from resnet_dist.data.augment.codes import FACTORS, Code, Row, finish

_CHOICES = np.array(
    [
        Code.AUTO_CONTRAST,
        Code.EQUALIZE,
        Code.INVERT,
        Code.ROTATE,
        Code.POSTERIZE,
        Code.SOLARIZE,
        Code.SOLARIZE_ADD,
        Code.COLOR,
        Code.CONTRAST,
        Code.BRIGHTNESS,
        Code.SHARPNESS,
        Code.SHEAR_X,
        Code.SHEAR_Y,
        Code.TRANSLATE_X,
        Code.TRANSLATE_Y,
    ]
)
_STRONGEST = 10.0
_LEAST_FACTOR = 0.1


def rand_augment(
    uniform: NDArray[np.float64], draw: rng.Draw, augment: AugmentConfig, size: int
) -> Row:
    """`ra_num_ops` operations for each image, `uniform` `[n, k, 4]`."""
    codes = _CHOICES[(uniform[..., 0] * len(_CHOICES)).astype(np.int64)]
    levels = np.full(codes.shape, float(augment.ra_magnitude))
    if augment.ra_magnitude_std:
        levels += augment.ra_magnitude_std * draw.normal(rng.Stream.SPREAD, codes.shape[1])
    share = np.clip(levels, 0.0, _STRONGEST) / _STRONGEST
    magnitudes = _magnitudes(codes, share, uniform[..., 2] < 0.5, size)
    is_applied = uniform[..., 3] < augment.ra_probability
    return np.where(is_applied, codes, Code.IDENTITY).astype(np.int8), magnitudes


def _magnitudes(
    codes: NDArray[np.int64], share: NDArray[np.float64], is_negative: NDArray[np.bool_], size: int
) -> NDArray[np.float64]:
    """What each operation takes at `share` of the strongest."""
    strengths = np.zeros(share.shape)
    for code, strongest in (
        (Code.ROTATE, 30.0),
        (Code.SHEAR_X, 0.3),
        (Code.SHEAR_Y, 0.3),
        (Code.TRANSLATE_X, 0.45 * size),
        (Code.TRANSLATE_Y, 0.45 * size),
        *((factor, 0.9) for factor in FACTORS),
    ):
        strengths = np.where(codes == code, share * strongest, strengths)
    moves = np.isin(codes, [Code.TRANSLATE_X, Code.TRANSLATE_Y])
    strengths = np.where(moves, np.rint(strengths), strengths)
    _, signed = finish(codes, strengths, is_negative)
    is_factor = np.isin(codes, list(FACTORS))
    signed = np.where(is_factor, np.maximum(_LEAST_FACTOR, signed), signed)
    for code, values in (
        (Code.POSTERIZE, 4.0 - np.trunc(share * 4.0)),
        (Code.SOLARIZE, 256.0 - np.trunc(share * 256.0)),
        (Code.SOLARIZE_ADD, np.trunc(share * 110.0)),
    ):
        signed = np.where(codes == code, values, signed)
    return signed
