"""What an operation on a uint8 image is called, and what its magnitude means."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


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
    SOLARIZE_ADD = 16
    """Added to values below 128."""
    ADD_RED = 17
    """Added to all values of a channel, 0 to 255, rounded; the same for green and blue."""
    ADD_GREEN = 18
    ADD_BLUE = 19


SIGNED = frozenset(range(Code.SHEAR_X, Code.SHARPNESS + 1))
"""Half of these get the opposite strength."""
FACTORS = frozenset({Code.BRIGHTNESS, Code.COLOR, Code.CONTRAST, Code.SHARPNESS})
"""The magnitude of these is 1 + strength."""

Row = tuple[NDArray[np.int8], NDArray[np.float64]]
"""Codes and magnitudes, `[n, k]` each."""


def finish(
    codes: NDArray[np.int64], strengths: NDArray[np.float64], is_negative: NDArray[np.bool_]
) -> Row:
    """Strengths to magnitudes: with a sign, whole pixels, factors around 1."""
    signed = np.where(is_negative & np.isin(codes, list(SIGNED)), -strengths, strengths)
    moves = np.isin(codes, [Code.TRANSLATE_X, Code.TRANSLATE_Y])
    magnitudes = np.where(moves, np.trunc(signed), signed)
    magnitudes = np.where(np.isin(codes, list(FACTORS)), 1.0 + magnitudes, magnitudes)
    return codes.astype(np.int8), magnitudes


def inverse_matrices(
    codes: NDArray[np.int8], magnitudes: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    """`[m, 2, 3]`: where each pixel of the result comes from, x and y from the centre, pixels.

    Shears keep the upper left corner, rotations the centre, as torchvision's
    `_get_inverse_affine_matrix` does.
    """
    matrices = np.zeros((len(codes), 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1.0
    for axis, shear, translate in (
        (0, Code.SHEAR_X, Code.TRANSLATE_X),
        (1, Code.SHEAR_Y, Code.TRANSLATE_Y),
    ):
        sheared = codes == shear
        matrices[sheared, axis, 1 - axis] = magnitudes[sheared]
        matrices[sheared, axis, 2] = magnitudes[sheared] * size / 2
        moved = codes == translate
        matrices[moved, axis, 2] = -magnitudes[moved]
    rotated = codes == Code.ROTATE
    angles = np.radians(magnitudes[rotated])
    matrices[rotated, 0, 0] = matrices[rotated, 1, 1] = np.cos(angles)
    matrices[rotated, 1, 0] = np.sin(angles)
    matrices[rotated, 0, 1] = -np.sin(angles)
    return matrices
