"""What is decided about a micro-batch before anything is read or decoded.

A `Job` is the border between the pure part of the data path (order, augmentation parameters) and
the loaders, which only read, decode and transform what it says. A `Batch` is what they yield.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Job:
    """One micro-batch of n samples, decided but not yet decoded.

    For each sample: decode, take the window, resize it (antialiased), cut a `size` x `size` crop
    out of the result, shift it with reflected borders (where `shifts` is given), flip it.
    """

    step: int
    """Training step, or number of the evaluation batch."""
    sample_ids: NDArray[np.int64]
    """`[n]` positions in the index."""
    labels: NDArray[np.int64]
    """`[n]`"""
    windows: NDArray[np.int32]
    """`[n, 4]` top, left, height, width in the decoded image, pixels."""
    resized: NDArray[np.int32]
    """`[n, 2]` height, width of the resized window, pixels."""
    crops: NDArray[np.int32]
    """`[n, 2]` top, left of the crop in the resized window, pixels."""
    shifts: NDArray[np.int32] | None
    """`[n, 2]` rows, columns by which the crop moves over a reflected border; None: it stays."""
    flips: NDArray[np.bool_]
    """`[n]` whether to mirror left and right."""
    size: int
    """Side of the result, pixels."""

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device."""

    step: int
    """Training step, or number of the evaluation batch."""
    images: torch.Tensor
    """`[n, 3, size, size]` float32, normalised, channels-last memory format."""
    labels: torch.Tensor
    """`[n]` int64"""
    sample_ids: NDArray[np.int64]
    """`[n]` positions in the index, on the host."""
