"""Which samples form a batch: pure functions of (seed, step).

Owns the order of each epoch, its slices, and the digest that tells whether two processes train on
the same pixels. The order lives in the process that cuts batches, two epochs of it at most; readers
are sent the samples of their micro-batches. Any step is as quick to ask for as the first."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from resnet_dist import rng
from resnet_dist.data.batch import BatchSlice, BatchSpec
from resnet_dist.data.blocked_order import Blocks, blocked_order
from resnet_dist.errors import UserError

_FEWEST_PREPARED = 100_000
"""Samples from which on a permutation is made in the background; fewer take a few milliseconds."""
_MOST_KEPT = 2
"""Epochs: the current one, and the next, which is prepared while the current one is used."""


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


def epoch_permutation(
    seed: int, epoch: int, num_samples: int, blocks: Blocks | None = None
) -> NDArray[np.integer]:
    """The order of an epoch, `[num_samples]` int32 (int64 from 2**31 on), read-only."""
    if blocks is None:
        permutation = rng.permutation(seed, epoch, num_samples)
    else:
        permutation = blocked_order(seed, epoch, blocks)
    dtype = np.int32 if num_samples < 2**31 else np.int64
    order: NDArray[np.integer] = permutation.astype(dtype, copy=False)
    order.setflags(write=False)
    return order


class SampleOrder:
    """The samples of every step's global batch, over all ranks.

    With `ra_reps` an epoch is the first of its samples, each so many times in a row (the last may
    be cut off), and a batch is the next `global_batch_size` of that sequence, as in torchvision's
    RASampler. Within the batch first occurrences come first, then second ones, and so on:
    repetitions lie on different ranks, and pairs (positions 2k and 2k + 1) are different samples.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        *,
        seed: int,
        ra_reps: int = 1,
        blocks: Blocks | None = None,
    ) -> None:
        """`blocks` as `blocks_of` gives them for the run's data. Raises UserError if the samples
        are fewer than one global batch."""
        self.steps_per_epoch = steps_per_epoch(num_samples, global_batch_size)
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.ra_reps = ra_reps
        self._blocks = blocks
        self._lock = threading.Lock()  # the saver's thread asks for digests
        self._permutations: dict[int, Future[NDArray[np.integer]]] = {}

    def sample_ids(self, step: int) -> NDArray[np.int64]:
        """The samples of a step's global batch, `[global_batch_size]` int64."""
        epoch, start = self._epoch_and_start(step)
        permutation = self.prepare(epoch).result()
        if self.ra_reps == 1:
            return permutation[start : start + self.global_batch_size].astype(np.int64)
        positions = start + np.arange(self.global_batch_size)
        positions = positions[np.argsort(positions % self.ra_reps, kind="stable")]
        return permutation[positions // self.ra_reps].astype(np.int64)

    def slice(
        self, step: int, bounds: tuple[int, int], *, with_paired: tuple[int, int] | None = None
    ) -> BatchSlice:
        """The samples at `bounds` of a step's global batch; `with_paired`: the bounds with those
        that the samples at its ends are paired with."""
        low, high = with_paired or bounds
        epoch, start = self._epoch_and_start(step)
        return BatchSlice(step, epoch, start, bounds, low, self.sample_ids(step)[low:high])

    def prepare(self, epoch: int) -> Future[NDArray[np.integer]]:
        """Begin to make an epoch's permutation, so that its first step need not wait for it."""
        with self._lock:
            future = self._permutations.get(epoch)
            if future is None:
                future = self._permutations[epoch] = self._begin(epoch)
                if len(self._permutations) > _MOST_KEPT:
                    farthest = max(self._permutations, key=lambda other: abs(other - epoch))
                    del self._permutations[farthest]
        return future

    def _begin(self, epoch: int) -> Future[NDArray[np.integer]]:
        """In a thread that ends after it: the allocator keeps what is freed there for the next."""
        arguments = (self.seed, epoch, self.num_samples, self._blocks)
        if self.num_samples < _FEWEST_PREPARED:
            future: Future[NDArray[np.integer]] = Future()
            future.set_result(epoch_permutation(*arguments))
            return future
        pool = ThreadPoolExecutor(1, thread_name_prefix="order")
        future = pool.submit(epoch_permutation, *arguments)
        pool.shutdown(wait=False)
        return future

    def _epoch_and_start(self, step: int) -> tuple[int, int]:
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch, index * self.global_batch_size


def digest_of_spec(spec: BatchSpec) -> str:
    """SHA-256 over the samples of a spec and what is done to each (hexadecimal)."""
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
    """What only some settings put into a spec. The names are part of the digest: they stay."""
    if spec.operations is not None:
        yield "codes", spec.operations.codes
        yield "magnitudes", spec.operations.magnitudes
        if spec.operations.chains is not None:
            yield "chains", spec.operations.chains
    if spec.erased is not None:
        yield "erased", spec.erased
    if spec.mix is not None:
        yield "shares", spec.mix.lams
        yield "boxes", spec.mix.boxes
        yield "is_cut", spec.mix.is_cut
    if spec.kept is not None:
        yield "kept", spec.kept
    if spec.lines is not None:
        yield "lines", spec.lines


def num_eval_batches(num_samples: int, batch_size: int) -> int:
    """Evaluation batches over all ranks; the last may be smaller."""
    return -(-num_samples // batch_size)


def eval_slice(num_samples: int, batch_size: int, batch: int) -> BatchSlice:
    """Evaluation batch number `batch`: samples [batch * batch_size, ...) in index order."""
    start = batch * batch_size
    sample_ids = np.arange(start, min(start + batch_size, num_samples))
    return BatchSlice(batch, 0, start, (0, len(sample_ids)), 0, sample_ids)
