"""From the samples of a micro-batch to everything that is done to them: pure, no pixel is touched.

Owns putting the parts of `resnet_dist.data.augment` together into a `BatchSpec`. Reads the index's
columns and nothing else. `TrainSpecs` and `EvalSpecs` are small and can be sent to readers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.config import AugmentConfig, DataConfig, ModelConfig
from resnet_dist.config.model import DEPTHS
from resnet_dist.data.augment import auto_augment, crop, erasing, mixing, progressive
from resnet_dist.data.augment.colout import sample_lines
from resnet_dist.data.batch import BatchSlice, BatchSpec
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder, digest_of_spec


def drop_rates(model: ModelConfig) -> tuple[float, ...]:
    """The probability that each block is left out; empty without stochastic depth."""
    if not model.stochastic_depth:
        return ()
    blocks = sum(DEPTHS[model.name])
    return tuple(model.stochastic_depth * block / (blocks - 1) for block in range(blocks))


class SampleTable(Protocol):
    """The columns that a spec is made from (see `Index`)."""

    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def heights(self) -> NDArray[np.int32]: ...
    @property
    def widths(self) -> NDArray[np.int32]: ...
    def __len__(self) -> int: ...


class Specs(Protocol):
    """What a loader is told about a split."""

    @property
    def data(self) -> DataConfig:
        """The section that the split was opened with."""
        ...

    @property
    def seed(self) -> int:
        """Seed of what is random."""
        ...

    @property
    def largest_size(self) -> int:
        """Side of the largest images of any spec, pixels."""
        ...

    @property
    def side_setting(self) -> str:
        """The setting that an image's side must agree with where nothing is resized."""
        ...

    @property
    def changes_uint8(self) -> bool:
        """Whether anything is done to images between the flip and the normalisation."""
        ...

    @property
    def shards_ahead(self) -> int:
        """How many shards are in use at a time, and read whole; 0: any."""
        ...

    def size_of_epoch(self, epoch: int) -> int:
        """Side of an epoch's images, pixels."""
        ...

    def kept_paths(self, batch: BatchSlice) -> NDArray[np.float32] | None:
        """Stochastic depth: `[n, blocks]`, see `Batch.kept`."""
        ...

    def __call__(self, batch: BatchSlice) -> BatchSpec:
        """What is done to the samples of a micro-batch."""
        ...


@dataclass(frozen=True)
class TrainSpecs:
    """The specs of a training."""

    data: DataConfig
    augment: AugmentConfig
    table: SampleTable
    seed: int
    global_batch_size: int
    drop_rates: tuple[float, ...] = ()
    """How often stochastic depth leaves out each block of the network."""
    side_setting: str = "train_size"

    @property
    def largest_size(self) -> int:
        """That of the last epochs."""
        return self.data.train_size

    @property
    def changes_uint8(self) -> bool:
        """Moved over reflected borders, or operated on."""
        is_moved = self.augment.crop == "pad_reflect"
        return is_moved or self.augment.has_operations or self.data.grayscale

    @property
    def shards_ahead(self) -> int:
        """Those of `data.order=blocked`."""
        return self.data.blocked_window if self.data.order == "blocked" else 0

    def size_of_epoch(self, epoch: int) -> int:
        """Progressive resizing."""
        return progressive.train_size(self.augment, self.data.train_size, epoch)

    def __call__(self, batch: BatchSlice) -> BatchSpec:
        """Crop, flip, operations, erasing and mixing, each from its own random stream."""
        augment, ids, n = self.augment, batch.sample_ids, len(batch)
        sizes = np.stack([self.table.heights[ids], self.table.widths[ids]], axis=1)
        size = self.size_of_epoch(batch.epoch)
        where = {"seed": self.seed, "epoch": batch.epoch}
        start = batch.start + batch.low
        crops = crop.sample_crops(augment, sizes, start=start, **where)
        flips = crops.flips
        if augment.flip == "alternating":
            flips = crop.alternating_flips(ids, num_samples=len(self.table), **where)
        mix, number = None, batch.start // self.global_batch_size
        lines = sample_lines(augment.colout, batch=number, size=size, **where)
        if augment.is_mixing:
            mix = mixing.sample_mix(
                augment,
                batch=number,
                bounds=batch.bounds,
                global_batch_size=self.global_batch_size,
                size=size,
                **where,
            )
        return BatchSpec(
            step=batch.step,
            sample_ids=ids,
            labels=np.asarray(self.table.labels[ids]),
            crop_boxes=crops.boxes,
            resized=np.full((n, 2), size, dtype=np.int32),
            crops=np.zeros((n, 2), dtype=np.int32),
            crop_offsets=crops.offsets,
            flips=flips,
            size=size,
            operations=auto_augment.sample_operations(
                augment, n, start=start, size=size, mean=self.data.mean_colour, **where
            ),
            erased=erasing.sample_erased_boxes(augment, n, start=start, size=size, **where),
            mix=mix,
            kept=self.kept_paths(batch),
            lines=None if lines is None else np.broadcast_to(lines, (n, *lines.shape)),
        )

    def kept_paths(self, batch: BatchSlice) -> NDArray[np.float32] | None:
        """Stochastic depth: `[n, blocks]`, see `Batch.kept`."""
        if not self.drop_rates:
            return None
        blocks, rates = len(self.drop_rates), np.asarray(self.drop_rates)
        draw = rng.Draw(self.seed, batch.epoch, batch.start + batch.low, len(batch))
        words = rng.WORDS_PER_BLOCK * -(-blocks // rng.WORDS_PER_BLOCK)
        uniform = draw.uniform(rng.Stream.DROP_PATH, words)[:, :blocks]
        return np.where(uniform < rates, 0.0, 1.0 / (1.0 - rates)).astype(np.float32)


@dataclass(frozen=True)
class EvalSpecs:
    """The specs of an evaluation: a centre crop, nothing random."""

    data: DataConfig
    table: SampleTable
    side_setting: str = "eval_resize_size"
    shards_ahead: int = 0
    seed: int = 0

    @property
    def changes_uint8(self) -> bool:
        """Only to grey."""
        return self.data.grayscale

    @property
    def largest_size(self) -> int:
        """The only one."""
        return self.data.eval_size

    def size_of_epoch(self, epoch: int) -> int:
        """Always the same."""
        del epoch
        return self.data.eval_size

    def kept_paths(self, batch: BatchSlice) -> None:
        """An evaluation leaves nothing out."""
        del batch

    def __call__(self, batch: BatchSlice) -> BatchSpec:
        """Resize and centre crop."""
        ids = batch.sample_ids
        sizes = np.stack([self.table.heights[ids], self.table.widths[ids]], axis=1)
        resized, crops = crop.centre_crops(sizes, self.data.eval_resize_size, self.data.eval_size)
        return BatchSpec(
            step=batch.step,
            sample_ids=ids,
            labels=np.asarray(self.table.labels[ids]),
            crop_boxes=crop.whole_images(sizes),
            resized=resized,
            crops=crops,
            crop_offsets=None,
            flips=np.zeros(len(ids), dtype=np.bool_),
            size=self.data.eval_size,
        )


def train_slice(
    order: SampleOrder,
    batch_split: BatchSplit,
    *,
    rank: int,
    step: int,
    micro_batch: int,
    is_mixing: bool,
) -> BatchSlice:
    """What `rank` computes in a micro-batch of a step, with the samples that are only mixed in."""
    bounds = batch_split.micro_batch_slice(rank, micro_batch)
    paired = mixing.paired_bounds(*bounds, order.global_batch_size) if is_mixing else None
    return order.slice(step, bounds, with_paired=paired)


def largest_batch(batch_split: BatchSplit, *, is_mixing: bool) -> int:
    """Most samples in one training spec of any rank."""
    return batch_split.largest_micro_batch + (2 if is_mixing else 0)


def digest_of_step(specs: TrainSpecs, order: SampleOrder, step: int) -> str:
    """SHA-256 over the samples of a step's global batch and what is done to each (hexadecimal).

    The same for any number of ranks. Two processes with the same digest train on the same pixels.
    """
    return digest_of_spec(specs(order.slice(step, (0, order.global_batch_size))))
