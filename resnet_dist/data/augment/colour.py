"""Colour jitter, and the lighting noise of AlexNet: pure functions of random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.data.augment.codes import Code, Row

_EIGENVALUES = np.array([55.46, 4.794, 1.148])
_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
"""Principal components of ImageNet's colours, 0 to 255, as MXNet's RandomLighting has them."""

_JITTERED = (Code.BRIGHTNESS, Code.CONTRAST, Code.COLOR, Code.HUE)


def jitter(uniform: NDArray[np.float64], ranges: Sequence[float]) -> Row:
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


def lighting(draw: rng.Draw, std: float) -> Row:
    """What is added to red, green and blue: the principal components of ImageNet's colours, each
    times its eigenvalue and a normal number of deviation `std` (Krizhevsky et al. 2012)."""
    alphas = std * draw.normal(rng.Stream.LIGHTING, 3)
    added = (alphas * _EIGENVALUES) @ _EIGENVECTORS.T
    codes = np.broadcast_to([Code.ADD_RED, Code.ADD_GREEN, Code.ADD_BLUE], added.shape)
    return codes.astype(np.int8), np.rint(added)
