"""Which samples form a batch, and what is done to each: pure functions of integers.

Owns the order of an epoch and puts it together with `resnet_dist.data.augment.crop` into specs.
Reads the index's columns and nothing else; any step is as quick to ask for as the first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_dist.config import DataConfig
from resnet_dist.data.augment import auto_augment, crop, mixing
from resnet_dist.data.batch import BatchSpec
from resnet_dist.data.blocked_order import Blocks, blocks_of
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.shared_order import shared_permutation
from resnet_dist.errors import UserError


class SampleTable(Protocol):
    """The columns that a spec is made from (see `Index`)."""

    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def heights(self) -> NDArray[np.int32]: ...
    @property
    def widths(self) -> NDArray[np.int32]: ...
    def __len__(self) -> int: ...


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Whole global batches in the data; the tail, smaller than one, is dropped for the epoch.

    Raises UserError if there is not even one.
    """
    if num_samples < global_batch_size:
        raise UserError(
            f"train.global_batch_size ({global_batch_size}): exceeds the {num_samples} training "
            f"samples; set train.global_batch_size={num_samples} or less"
        )
    return num_samples // global_batch_size


def epoch_and_position(step: int, num_samples: int, global_batch_size: int) -> tuple[int, int]:
    """The epoch of a step, and where in that epoch's order its global batch begins."""
    epoch, index = divmod(step, steps_per_epoch(num_samples, global_batch_size))
    return epoch, index * global_batch_size


@lru_cache(maxsize=1)  # the current epoch: once a process, not once a step
def _epoch_order(
    seed: int, epoch: int, num_samples: int, blocks: Blocks | None
) -> NDArray[np.integer]:
    return shared_permutation(seed, epoch, num_samples, blocks)


def sample_ids_of_step(
    seed: int,
    step: int,
    num_samples: int,
    global_batch_size: int,
    *,
    repeats: int = 1,
    blocks: Blocks | None = None,
) -> NDArray[np.int64]:
    """The samples of a step's global batch over all ranks, `[global_batch_size]` int64; `blocks`
    as `blocks_of` gives them for the run's data.

    With `repeats` an epoch is the first of its samples, each so many times in a row (the last may
    be cut off), and a batch is the next `global_batch_size` of that sequence, as in torchvision's
    RASampler. Within the batch first occurrences come first, then second ones, and so on: repeats
    lie on different ranks, and partners (positions 2k and 2k + 1) are different samples.
    """
    epoch, start = epoch_and_position(step, num_samples, global_batch_size)
    order = _epoch_order(seed, epoch, num_samples, blocks)
    if repeats == 1:
        return order[start : start + global_batch_size].astype(np.int64)
    positions = start + np.arange(global_batch_size)
    positions = positions[np.argsort(positions % repeats, kind="stable")]
    return order[positions // repeats].astype(np.int64)


def largest_spec(data: DataConfig, batch_split: BatchSplit) -> int:
    """Most samples in one spec of any rank."""
    return batch_split.largest_micro_batch + (2 if data.is_mixing else 0)


def train_spec(
    data: DataConfig,
    index: SampleTable,
    *,
    batch_split: BatchSplit,
    seed: int,
    rank: int,
    step: int,
    micro_batch: int,
) -> BatchSpec:
    """What `rank` computes in micro-batch `micro_batch` of a training step, with the samples that
    are only mixed in (`BatchSpec.own`)."""
    batch_size = batch_split.global_batch_size
    epoch, start = epoch_and_position(step, len(index), batch_size)
    bounds = batch_split.micro_batch_slice(rank, micro_batch)
    low, high = mixing.span(*bounds, batch_size) if data.is_mixing else bounds
    sample_ids = sample_ids_of_step(
        seed,
        step,
        len(index),
        batch_size,
        repeats=data.repeats,
        blocks=blocks_of(data, index),
    )[low:high]
    sizes = np.stack([index.heights[sample_ids], index.widths[sample_ids]], axis=1)
    where = {"seed": seed, "epoch": epoch}
    drawn = crop.draw(data, sizes, start=start + low, **where)
    size, n = crop.train_size(data, epoch), high - low
    mix = None
    if data.is_mixing:
        numbers = {"batch": start // batch_size, "global_batch_size": batch_size}
        mix = mixing.draw(data, bounds=bounds, size=size, **where, **numbers)
    return BatchSpec(
        step=step,
        sample_ids=sample_ids,
        labels=np.asarray(index.labels[sample_ids]),
        crops=np.zeros((n, 2), dtype=np.int32),
        resized=np.full((n, 2), size, dtype=np.int32),
        size=size,
        crop_boxes=drawn.crop_boxes,
        crop_offsets=drawn.crop_offsets,
        flips=drawn.flips,
        operations=auto_augment.draw(data, n, start=start + low, size=size, **where),
        erased=crop.sample_erased_boxes(data, n, start=start + low, size=size, **where),
        mix=mix,
    )


def digest_of_step(
    data: DataConfig, index: SampleTable, *, global_batch_size: int, seed: int, step: int
) -> str:
    """SHA-256 over the samples of a step's global batch and what is done to each (hexadecimal).

    The same for any number of ranks. Two processes with the same digest train on the same pixels.
    """
    whole = BatchSplit(global_batch_size, 1, 1)
    spec = train_spec(data, index, batch_split=whole, seed=seed, rank=0, step=step, micro_batch=0)
    digest = hashlib.sha256(f"{spec.step} {spec.size}".encode())
    for array in (
        spec.sample_ids,
        spec.labels,
        spec.crop_boxes,
        spec.resized,
        spec.crops,
        spec.crop_offsets if spec.crop_offsets is not None else np.zeros(0),
        spec.flips,
    ):
        digest.update(np.ascontiguousarray(array).astype(np.int64).tobytes())
    for name, part in _optional_parts(spec):
        fixed = np.rint(part.astype(np.float64) * 2**20).astype(np.int64)
        digest.update(name.encode() + fixed.tobytes())
    return digest.hexdigest()


def _optional_parts(spec: BatchSpec) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """What only some settings put into a spec: without it a digest is that of older versions."""
    if spec.operations is not None:
        yield "codes", spec.operations.codes
        yield "magnitudes", spec.operations.magnitudes
    if spec.erased is not None:
        yield "erased", spec.erased
    if spec.mix is not None:
        yield "shares", spec.mix.shares
        yield "boxes", spec.mix.boxes
        yield "is_cut", spec.mix.is_cut


def num_eval_batches(num_samples: int, batch_size: int) -> int:
    """Evaluation batches over all ranks; the last may be smaller."""
    return -(-num_samples // batch_size)


def sample_ids_of_eval_batch(num_samples: int, batch_size: int, batch: int) -> NDArray[np.int64]:
    """The samples of an evaluation batch, `[n]` int64, in index order."""
    return np.arange(batch * batch_size, min((batch + 1) * batch_size, num_samples))


def eval_spec(data: DataConfig, index: SampleTable, *, batch_size: int, batch: int) -> BatchSpec:
    """Evaluation batch number `batch`: the samples [batch * batch_size, ...) in index order."""
    sample_ids = sample_ids_of_eval_batch(len(index), batch_size, batch)
    sizes = np.stack([index.heights[sample_ids], index.widths[sample_ids]], axis=1)
    resized, crops = crop.centre_crops(sizes, data.eval_resize_size, data.eval_size)
    return BatchSpec(
        step=batch,
        sample_ids=sample_ids,
        labels=np.asarray(index.labels[sample_ids]),
        crop_boxes=crop.whole_images(sizes),
        resized=resized,
        crops=crops,
        crop_offsets=None,
        flips=np.zeros(len(sample_ids), dtype=np.bool_),
        size=data.eval_size,
    )
