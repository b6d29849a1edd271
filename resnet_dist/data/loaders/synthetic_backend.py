"""A fixed batch on the device: what the rest of a step costs when data are free.

Owns images and labels that are noise by design; nothing is augmented or mixed, only the size
follows the settings. Needs no data on disk.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable

import numpy as np
import torch

from resnet_dist import rng
from resnet_dist.data.augment.device_stage import DeviceStage
from resnet_dist.data.batch import Batch, BatchSlice
from resnet_dist.data.read.buffers import to_device
from resnet_dist.data.specs import Specs


class SyntheticBackend:
    """The same images again and again, in the numbers and sizes of real batches."""

    def __init__(self, specs: Specs, num_classes: int, *, most: int, device: torch.device) -> None:
        """Batches have `most` samples at most."""
        self._specs = specs
        self._images, self._labels = _noise(
            specs, num_classes, num=most, size=specs.largest_size, device=device
        )

    def batches(self, slices: Iterable[BatchSlice]) -> Generator[Batch, None, None]:
        """The batches of the slices, in their order."""
        images = self._images
        for one in slices:
            size = self._specs.size_of_epoch(one.epoch)
            if size != images.shape[-1]:
                images = self._images[:, :, :size, :size]
                images = images.contiguous(memory_format=torch.channels_last)
            low, high = one.bounds
            n = high - low
            ids = one.sample_ids[low - one.low : high - one.low]
            kept = self._specs.kept_paths(one)
            own = None if kept is None else kept[low - one.low : high - one.low]
            yield Batch(
                one.step,
                images[:n],
                self._labels[:n],
                ids,
                kept=None if own is None else to_device(own, images.device),
            )


def _noise(
    specs: Specs, num_classes: int, *, num: int, size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels that every batch is cut from."""
    words_each = rng.WORDS_PER_BLOCK * -(-size * size * 3 // (8 * rng.WORDS_PER_BLOCK))
    words = rng.random_words(
        specs.seed,
        rng.Stream.SYNTHETIC,
        0,
        start=0,
        count=num,
        words=words_each + rng.WORDS_PER_BLOCK,
    )
    pixels = np.ascontiguousarray(words[:, rng.WORDS_PER_BLOCK :]).view(np.uint8)
    images = torch.from_numpy(pixels[:, : size * size * 3].reshape(num, size, size, 3))
    labels = torch.from_numpy((words[:, 0] % np.uint64(num_classes)).astype(np.int64))
    stage = DeviceStage(specs.data, device)
    return stage.normalise(images.to(device)), labels.to(device)
