"""A fixed batch on the device: what the rest of a step costs when data are free.

Owns images and labels that are noise by design; nothing is augmented or mixed, only the size
follows the settings. Needs no data on disk.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import torch

from resnet_dist import rng
from resnet_dist.config import DataConfig
from resnet_dist.data import order
from resnet_dist.data.augment import crop
from resnet_dist.data.augment.device_stage import DeviceStage
from resnet_dist.data.batch import Batch
from resnet_dist.data.micro_batches import BatchSplit


@dataclass(frozen=True)
class SyntheticIndex:
    """Stands for an index where there is none; by default as large as ImageNet's."""

    num_samples: int
    num_classes: int = 1000
    fingerprint: str = "synthetic"
    classes: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", [f"class{i:04d}" for i in range(self.num_classes)])

    def __len__(self) -> int:
        return self.num_samples


SYNTHETIC_TRAIN = SyntheticIndex(1_281_167)
SYNTHETIC_VAL = SyntheticIndex(50_000)


@dataclass(frozen=True)
class _Pool:
    """Images and labels that every batch is cut from."""

    images: torch.Tensor
    labels: torch.Tensor

    def cut(self, size: int) -> _Pool:
        """A pool of smaller images."""
        if size == self.images.shape[-1]:
            return self
        images = self.images[:, :, :size, :size].contiguous(memory_format=torch.channels_last)
        return _Pool(images, self.labels)

    def batch(self, step: int, first: int, last: int) -> Batch:
        """The samples [first, last) of the data set in the pool's first rows."""
        n = last - first
        return Batch(step, self.images[:n], self.labels[:n], np.arange(first, last))


def _make_pool(
    data: DataConfig, num_classes: int, *, seed: int, num: int, size: int, device: torch.device
) -> _Pool:
    words_each = rng.WORDS_PER_BLOCK * -(-size * size * 3 // (8 * rng.WORDS_PER_BLOCK))
    words = rng.random_words(
        seed, rng.Stream.SYNTHETIC, 0, start=0, count=num, words=words_each + rng.WORDS_PER_BLOCK
    )
    pixels = np.ascontiguousarray(words[:, rng.WORDS_PER_BLOCK :]).view(np.uint8)
    images = torch.from_numpy(pixels[:, : size * size * 3].reshape(num, size, size, 3))
    labels = torch.from_numpy((words[:, 0] % np.uint64(num_classes)).astype(np.int64))
    stage = DeviceStage(data, device)
    return _Pool(stage.shape(stage.normalise(images.to(device))), labels.to(device))


class SyntheticTrainLoader:
    """The same batch at every step."""

    name = "synthetic"

    def __init__(
        self,
        data: DataConfig,
        index: SyntheticIndex,
        *,
        batch_split: BatchSplit,
        seed: int,
        rank: int,
        device: torch.device,
    ) -> None:
        self.steps_per_epoch = order.steps_per_epoch(len(index), batch_split.global_batch_size)
        self._data = data
        self._num_samples = len(index)
        self._batch_split = batch_split
        self._rank = rank
        self._pool = _make_pool(
            data,
            len(index.classes),
            seed=seed,
            num=batch_split.largest_micro_batch,
            size=data.train_size,
            device=device,
        )

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """Micro-batches of steps [start_step, stop_step)."""
        batch_size = self._batch_split.global_batch_size
        pool = self._pool
        for step in range(start_step, stop_step):
            epoch, start = order.epoch_and_position(step, self._num_samples, batch_size)
            size = crop.train_size(self._data, epoch)
            if size != pool.images.shape[-1]:
                pool = self._pool.cut(size)
            for micro_batch in range(self._batch_split.accumulation_steps):
                low, high = self._batch_split.micro_batch_slice(self._rank, micro_batch)
                yield pool.batch(step, start + low, start + high)


class SyntheticEvalLoader:
    """The same batch again and again, in the numbers of a real evaluation."""

    name = "synthetic"

    def __init__(
        self,
        data: DataConfig,
        index: SyntheticIndex,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self.num_batches = order.num_eval_batches(len(index), batch_size)
        self._num_samples = len(index)
        self._batch_size = batch_size
        self._mine = range(rank, self.num_batches, world_size)
        self._pool = _make_pool(
            data,
            len(index.classes),
            seed=0,
            num=min(batch_size, len(index)),
            size=data.eval_size,
            device=device,
        )

    def batches(self) -> Generator[Batch, None, None]:
        """Batches rank, rank + world_size, ..."""
        for batch in self._mine:
            start = batch * self._batch_size
            stop = min(start + self._batch_size, self._num_samples)
            yield self._pool.batch(batch, start, stop)
