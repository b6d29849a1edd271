"""Which samples form a batch, and what is done to each: pure functions of integers.

Owns the order of an epoch and puts it together with `resnet_dist.data.augment` into jobs. Reads
the index's columns and nothing else; any step is as quick to ask for as the first.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_dist.config import DataConfig
from resnet_dist.data import augment
from resnet_dist.data.blocked import Blocks, blocks_of
from resnet_dist.data.jobs import Job
from resnet_dist.data.shared_order import shared_permutation
from resnet_dist.errors import UserError
from resnet_dist.plan import BatchPlan


class SampleTable(Protocol):
    """The columns that a job is made from (see `Index`)."""

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
    blocks: Blocks | None = None,
) -> NDArray[np.int64]:
    """The samples of a step's global batch over all ranks, `[global_batch_size]` int64; `blocks`
    as `blocks_of` gives them for the run's data."""
    epoch, start = epoch_and_position(step, num_samples, global_batch_size)
    order = _epoch_order(seed, epoch, num_samples, blocks)
    return order[start : start + global_batch_size].astype(np.int64)


def train_job(
    data: DataConfig,
    index: SampleTable,
    *,
    plan: BatchPlan,
    seed: int,
    rank: int,
    step: int,
    micro: int,
) -> Job:
    """What `rank` computes in micro-batch `micro` of a training step."""
    epoch, start = epoch_and_position(step, len(index), plan.global_batch_size)
    low, high = plan.micro_slice(rank, micro)
    order = _epoch_order(seed, epoch, len(index), blocks_of(data, index))
    sample_ids = order[start + low : start + high].astype(np.int64)
    sizes = np.stack([index.heights[sample_ids], index.widths[sample_ids]], axis=1)
    plan_of_augmentation = augment.draw(data, sizes, seed=seed, epoch=epoch, start=start + low)
    return Job(
        step=step,
        sample_ids=sample_ids,
        labels=np.asarray(index.labels[sample_ids]),
        crops=np.zeros((len(sample_ids), 2), dtype=np.int32),
        resized=np.full((len(sample_ids), 2), data.train_size, dtype=np.int32),
        size=data.train_size,
        windows=plan_of_augmentation.windows,
        shifts=plan_of_augmentation.shifts,
        flips=plan_of_augmentation.flips,
    )


def digest_of_step(
    data: DataConfig, index: SampleTable, *, global_batch_size: int, seed: int, step: int
) -> str:
    """SHA-256 over the samples of a step's global batch and what is done to each (hexadecimal).

    The same for any number of ranks. Two processes with the same digest train on the same pixels.
    """
    whole = BatchPlan(global_batch_size, 1, 1)
    job = train_job(data, index, plan=whole, seed=seed, rank=0, step=step, micro=0)
    digest = hashlib.sha256(f"{job.step} {job.size}".encode())
    for array in (
        job.sample_ids,
        job.labels,
        job.windows,
        job.resized,
        job.crops,
        job.shifts if job.shifts is not None else np.zeros(0),
        job.flips,
    ):
        digest.update(np.ascontiguousarray(array).astype(np.int64).tobytes())
    return digest.hexdigest()


def num_eval_batches(num_samples: int, batch_size: int) -> int:
    """Evaluation batches over all ranks; the last may be smaller."""
    return -(-num_samples // batch_size)


def sample_ids_of_eval_batch(num_samples: int, batch_size: int, batch: int) -> NDArray[np.int64]:
    """The samples of an evaluation batch, `[n]` int64, in index order."""
    return np.arange(batch * batch_size, min((batch + 1) * batch_size, num_samples))


def eval_job(data: DataConfig, index: SampleTable, *, batch_size: int, batch: int) -> Job:
    """Evaluation batch number `batch`: the samples [batch * batch_size, ...) in index order."""
    sample_ids = sample_ids_of_eval_batch(len(index), batch_size, batch)
    sizes = np.stack([index.heights[sample_ids], index.widths[sample_ids]], axis=1)
    resized, crops = augment.centre_crops(sizes, data.eval_resize_size, data.eval_size)
    return Job(
        step=batch,
        sample_ids=sample_ids,
        labels=np.asarray(index.labels[sample_ids]),
        windows=augment.whole_images(sizes),
        resized=resized,
        crops=crops,
        shifts=None,
        flips=np.zeros(len(sample_ids), dtype=np.bool_),
        size=data.eval_size,
    )
