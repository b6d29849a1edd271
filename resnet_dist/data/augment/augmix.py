"""AugMix (Hendrycks et al. 2019, arXiv:1912.02781): which operations, how strong, in what mixture.

Owns torchvision's definition and its defaults (transforms.v2.AugMix: severity 3, three chains of
one to three operations, alpha 1, all operations), as a pure function of random numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.data.augment.codes import FACTORS, Code, Row, finish

CHAINS = 3
DEPTH = 3
_SEVERITY = 3
_BINS = 10
_WORDS_EACH = 4
_CHOICES = np.array(
    [
        Code.SHEAR_X,
        Code.SHEAR_Y,
        Code.TRANSLATE_X,
        Code.TRANSLATE_Y,
        Code.ROTATE,
        Code.POSTERIZE,
        Code.SOLARIZE,
        Code.AUTO_CONTRAST,
        Code.EQUALIZE,
        Code.BRIGHTNESS,
        Code.COLOR,
        Code.CONTRAST,
        Code.SHARPNESS,
    ]
)


def sample(draw: rng.Draw, size: int) -> tuple[Row, NDArray[np.float32]]:
    """`CHAINS * DEPTH` operations for each image, chain after chain, and `[n, 1 + CHAINS]` weights
    of the image itself and of each chain."""
    each = CHAINS * DEPTH * _WORDS_EACH
    uniform = draw.uniform(rng.Stream.AUGMIX, each + 8)
    of_operations = uniform[:, :each].reshape(len(uniform), CHAINS * DEPTH, _WORDS_EACH)
    codes = _CHOICES[(of_operations[..., 0] * len(_CHOICES)).astype(np.int64)]
    bins = (of_operations[..., 1] * _SEVERITY).astype(np.int64)
    depths = 1 + (uniform[:, each : each + CHAINS] * DEPTH).astype(np.int64)
    is_done = np.tile(np.arange(DEPTH), CHAINS) < np.repeat(depths, DEPTH, axis=1)
    row_codes, magnitudes = finish(codes, _table(size)[codes, bins], of_operations[..., 2] < 0.5)
    codes = np.where(is_done, row_codes, Code.IDENTITY)
    return (codes.astype(np.int8), magnitudes), _weights(uniform[:, each + CHAINS :])


def _weights(uniform: NDArray[np.float64]) -> NDArray[np.float32]:
    """Beta(1, 1) for the image against the chains, Dirichlet(1, 1, 1) among the chains: `[n, 4]`
    from `[n, 5]`. The two are what is left over when [0, 1) is cut at random places."""
    of_chains = uniform[:, :1]
    cuts = np.sort(uniform[:, 1:CHAINS], axis=1)
    zero, one = np.zeros_like(of_chains), np.ones_like(of_chains)
    shares = np.diff(np.concatenate([zero, cuts, one], axis=1), axis=1)
    return np.concatenate([1.0 - of_chains, of_chains * shares], axis=1).astype(np.float32)


def _table(size: int) -> NDArray[np.float64]:
    """`[codes, 10]` strengths before their sign, as in torchvision's `_AUGMENTATION_SPACE`."""
    table = np.zeros((len(Code), _BINS))
    table[[Code.SHEAR_X, Code.SHEAR_Y]] = np.linspace(0.0, 0.3, _BINS)
    table[[Code.TRANSLATE_X, Code.TRANSLATE_Y]] = np.linspace(0.0, size / 3.0, _BINS)
    table[Code.ROTATE] = np.linspace(0.0, 30.0, _BINS)
    table[Code.POSTERIZE] = 4 - np.rint(np.arange(_BINS) / ((_BINS - 1) / 4))
    table[Code.SOLARIZE] = 255.0 * np.linspace(1.0, 0.0, _BINS)
    table[sorted(FACTORS)] = np.linspace(0.0, 0.9, _BINS)
    return table
