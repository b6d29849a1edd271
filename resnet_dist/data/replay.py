"""Which samples a run uses, counted: its order replayed for any ranks, with any restarts.

Owns the proof that an epoch uses no sample twice and leaves out fewer than one global batch. Asks
the same functions as the loaders (`SampleOrder.slice`, `BatchSplit.micro_batch_slice`), and decodes
nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder, eval_slice, num_eval_batches


@dataclass(frozen=True)
class Start:
    """A start of the run: from its `step` on, so many ranks take part.

    Steps that were computed after the checkpoint that a restart goes back to are not in the run:
    nothing of them is left in the weights.
    """

    step: int
    batch_split: BatchSplit


@dataclass(frozen=True)
class Counts:
    """How often the samples of a split were used in one epoch, or one evaluation."""

    never: int
    once: int
    more: int
    """Samples used twice or more often."""
    num_used: int
    """Uses in all."""
    most: int
    """Most uses of any one sample."""


def replay_epoch(order: SampleOrder, epoch: int, starts: Sequence[Start]) -> Counts:
    """Count what all ranks compute in all micro-batches of an epoch.

    `starts` is sorted by step, the first at 0; all have the order's global batch size.
    """
    assert starts[0].step == 0
    assert all(start.batch_split.global_batch_size == order.global_batch_size for start in starts)
    steps = order.steps_per_epoch
    used = np.zeros(order.num_samples, dtype=np.int32)
    for step in range(epoch * steps, (epoch + 1) * steps):
        batch_split = next(start.batch_split for start in reversed(starts) if start.step <= step)
        for micro_batch in range(batch_split.accumulation_steps):
            for rank in range(batch_split.world_size):
                bounds = batch_split.micro_batch_slice(rank, micro_batch)
                np.add.at(used, order.slice(step, bounds).sample_ids, 1)
    return _count(used)


def replay_evaluation(num_samples: int, *, batch_size: int, world_size: int) -> Counts:
    """Count what all ranks evaluate."""
    used = np.zeros(num_samples, dtype=np.int32)
    num_batches = num_eval_batches(num_samples, batch_size)
    for rank in range(world_size):
        for batch in range(rank, num_batches, world_size):
            np.add.at(used, eval_slice(num_samples, batch_size, batch).sample_ids, 1)
    return _count(used)


def _count(used: NDArray[np.int32]) -> Counts:
    return Counts(
        never=int((used == 0).sum()),
        once=int((used == 1).sum()),
        more=int((used > 1).sum()),
        num_used=int(used.sum()),
        most=int(used.max()),
    )
