"""What is decided about a micro-batch before anything is read or decoded.

A `BatchSlice` says which samples are in a micro-batch, a `BatchSpec` what is done to each. The spec
is the border between the pure part of the data path (order, augmentation parameters) and the
loaders, which only read, decode and transform what it says. A `Batch` is what they yield.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class Done(IntEnum):
    """What has been done to the images of a spec; each value includes those before it."""

    CROPPED = 0
    """Decoded, resized and cropped: uint8."""
    FLIPPED = 1
    """Mirrored as the spec says, but not yet moved by its `crop_offsets`."""
    AUGMENTED = 2
    """Everything that is done to uint8 images: also moved, and the operations applied."""
    NORMALISED = 3
    """Now float32."""


@dataclass(frozen=True)
class BatchSlice:
    """The samples of a micro-batch, and where they lie in the order of their epoch."""

    step: int
    """Training step, or number of the evaluation batch."""
    epoch: int
    start: int
    """Position in the epoch's order at which the global batch begins."""
    bounds: tuple[int, int]
    """Positions `[low, high)` in the global batch that are this micro-batch's own."""
    low: int
    """Position in the global batch of the first of `sample_ids`: one before its own where that
    sample is only there to be mixed in."""
    sample_ids: NDArray[np.int64]
    """`[n]` positions in the index."""

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True)
class Operations:
    """Operations on uint8 images, k for each of n, one after the other."""

    codes: NDArray[np.int8]
    """`[n, k]` values of `resnet_dist.data.augment.codes.Code`."""
    magnitudes: NDArray[np.float64]
    """`[n, k]` what torchvision's functional of that operation takes."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """The colour that comes in at the borders."""
    chains: NDArray[np.float32] | None = None
    """AugMix: `[n, 4]` weights of the image and of three chains, which are the first nine
    operations. Those after them are done to the mixture. None: all are one after the other."""


@dataclass(frozen=True)
class Mix:
    """Which rows of a spec are mixed, and how.

    Row i becomes image_i * lam_i + image_paired(i) * (1 - lam_i), or, where `is_cut`, image_i with
    the pixels of the paired image in the box.
    """

    own: slice
    """Rows that the batch keeps. The spec has at most one more at each end: the one that a sample
    at the edge of the micro-batch is paired with, which is another rank's or another
    micro-batch's."""
    paired: NDArray[np.int64]
    """`[n]` row that each is paired with; a row that is paired with itself stays as it is."""
    lams: NDArray[np.float32]
    """`[n]` weight of the own label; that of the paired row's label is 1 - lam."""
    boxes: NDArray[np.int32]
    """`[n, 4]` top, left, height, width, pixels; zeros where nothing is cut."""
    is_cut: NDArray[np.bool_]
    """`[n]`"""


@dataclass(frozen=True)
class BatchSpec:
    """One micro-batch of n samples, decided but not yet decoded.

    For each sample: decode, take the crop box, resize it (antialiased), cut a `size` x `size` crop
    out of the result, move it over reflected borders (where `crop_offsets` is given), flip it,
    apply the operations, normalise, erase; then mix them."""

    step: int
    """Training step, or number of the evaluation batch."""
    sample_ids: NDArray[np.int64]
    """`[n]` positions in the index."""
    labels: NDArray[np.int64]
    """`[n]`"""
    crop_boxes: NDArray[np.int32]
    """`[n, 4]` top, left, height, width in the decoded image, pixels."""
    resized: NDArray[np.int32]
    """`[n, 2]` height, width of the resized crop box, pixels."""
    crops: NDArray[np.int32]
    """`[n, 2]` top, left of the crop in the resized crop box, pixels."""
    crop_offsets: NDArray[np.int32] | None
    """`[n, 2]` rows, columns by which the crop moves over a reflected border; None: it stays."""
    flips: NDArray[np.bool_]
    """`[n]` whether to mirror left and right."""
    size: int
    """Side of the result, pixels."""
    operations: Operations | None = None
    """None: none."""
    erased: NDArray[np.int32] | None = None
    """`[n, 4]` top, left, height, width of the erased rectangle, zeros where there is none."""
    mix: Mix | None = None
    """None: nothing is mixed, and all rows are the micro-batch's own."""
    kept: NDArray[np.float32] | None = None
    """`[n, blocks]` as `Batch.kept`, of all rows."""
    lines: NDArray[np.int64] | None = None
    """ColOut: `[n, 2, kept]` rows and columns of each image that are kept. None: all."""

    @property
    def own(self) -> slice:
        """The rows that are this micro-batch's; others are only there to be mixed in."""
        return self.mix.own if self.mix is not None else slice(0, len(self))

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True)
class MixedLabels:
    """The second label of each image of a batch, on the device."""

    paired: torch.Tensor
    """`[n]` int64 labels of what was mixed in."""
    lam: torch.Tensor
    """`[n]` float32 weight of the first label; the second's is 1 - lam."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device."""

    step: int
    """Training step, or number of the evaluation batch."""
    images: torch.Tensor
    """`[n, 3, size, size]` float32, normalised, channels-last memory format; smaller with
    ColOut."""
    labels: torch.Tensor
    """`[n]` int64"""
    sample_ids: NDArray[np.int64]
    """`[n]` positions in the index, on the host."""
    mixed: MixedLabels | None = None
    """None: every image has one label."""
    kept: torch.Tensor | None = None
    """Stochastic depth: `[n, blocks]` float32, what the residual branch of each block is multiplied
    by: 0, or 1 / (1 - probability of 0). None: there is none."""
