"""Which batches a rank is given, whatever makes them.

Owns the cut of steps and evaluations into slices of this rank. A `Backend` makes the batches, and
is the only thing that stands between a loader and its consumer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.batch import Batch, BatchSlice
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder, eval_slice, num_eval_batches
from resnet_dist.data.specs import train_slice


class Backend(Protocol):
    """Reads, decodes and augments samples, and puts them on the device."""

    def batches(self, slices: Iterable[BatchSlice]) -> Generator[Batch, None, None]:
        """A batch for each slice, in order. Starts at the first `next`; closing the generator ends
        all processes and threads.

        Raises UserError, naming the file, for one that is damaged, changed or gone.
        """
        ...


class TrainLoader:
    """This rank's micro-batches of any range of steps."""

    def __init__(
        self,
        backend: Backend,
        order: SampleOrder,
        *,
        batch_split: BatchSplit,
        rank: int,
        is_mixing: bool,
    ) -> None:
        self._backend = backend
        self._order = order
        self._batch_split = batch_split
        self._rank = rank
        self._is_mixing = is_mixing

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """Steps [start_step, stop_step) in order, each step's micro-batches in order. Starts
        anywhere at once. Closing the generator ends the backend's processes and threads."""
        return self._backend.batches(self._slices(start_step, stop_step))

    def _slices(self, start_step: int, stop_step: int) -> Iterator[BatchSlice]:
        steps_per_epoch = self._order.steps_per_epoch
        for step in range(start_step, stop_step):
            for micro_batch in range(self._batch_split.accumulation_steps):
                yield train_slice(
                    self._order,
                    self._batch_split,
                    rank=self._rank,
                    step=step,
                    micro_batch=micro_batch,
                    is_mixing=self._is_mixing,
                )
            epoch, index = divmod(step, steps_per_epoch)
            is_first = step == start_step or index == 0
            if is_first and (epoch + 1) * steps_per_epoch < stop_step:
                self._order.prepare(epoch + 1)


class EvalLoader:
    """This rank's batches of one evaluation."""

    def __init__(
        self, backend: Backend, *, num_samples: int, batch_size: int, rank: int, world_size: int
    ) -> None:
        self.num_batches = num_eval_batches(num_samples, batch_size)
        """Batches over all ranks."""
        self.largest_batch = min(batch_size, num_samples)
        self._backend = backend
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._numbers = range(rank, self.num_batches, world_size)

    def batches(self) -> Generator[Batch, None, None]:
        """Batch k goes to rank k % world_size, whole, so that results do not depend on the world
        size; `Batch.step` is k. Every sample is in one batch of one rank."""
        return self._backend.batches(
            eval_slice(self._num_samples, self._batch_size, number) for number in self._numbers
        )

    def samples(self, sample_ids: NDArray[np.int64]) -> Batch:
        """Any samples, at most as many as a batch has, as an evaluation sees them."""
        bounds = (0, len(sample_ids))
        wanted = BatchSlice(step=0, epoch=0, start=0, bounds=bounds, low=0, sample_ids=sample_ids)
        with closing(self._backend.batches([wanted])) as batches:
            return next(batches)
