"""Several jobs as one, and the batches that come of it.

What is done to an image depends on nothing but its own row of the job (and its partner's), so
several jobs can be finished on a device as one: a GPU then has a tenth of the copies and launches,
and every batch is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.jobs import Batch, Job, Mix, MixedLabels, Operations

_Value = TypeVar("_Value", bound=np.generic)


def join(jobs: Sequence[Job]) -> Job:
    """All rows of some jobs of one loader, one after the other; a single job as it is.

    Rows that are only there to be mixed in are among the joined job's own, so that its rows are
    also its batch's; `part` leaves them out.
    """
    if len(jobs) == 1:
        return jobs[0]
    first = jobs[0]
    assert all(job.size == first.size for job in jobs)
    return Job(
        step=first.step,
        sample_ids=np.concatenate([job.sample_ids for job in jobs]),
        labels=np.concatenate([job.labels for job in jobs]),
        windows=np.concatenate([job.windows for job in jobs]),
        resized=np.concatenate([job.resized for job in jobs]),
        crops=np.concatenate([job.crops for job in jobs]),
        shifts=_concatenate([job.shifts for job in jobs]),
        flips=np.concatenate([job.flips for job in jobs]),
        size=first.size,
        operations=_join_operations([job.operations for job in jobs]),
        erased=_concatenate([job.erased for job in jobs]),
        mix=_join_mixes(jobs),
    )


def part(batch: Batch, jobs: Sequence[Job]) -> Iterator[Batch]:
    """The batch of each of some jobs, from that of the joined one. Copies no pixel."""
    if len(jobs) == 1:
        yield batch
        return
    start = 0
    for job in jobs:
        rows = slice(start + job.own.start, start + job.own.stop)
        start += len(job)
        mixed = batch.mixed
        yield Batch(
            step=job.step,
            images=batch.images[rows],
            labels=batch.labels[rows],
            sample_ids=job.sample_ids[job.own],
            mixed=MixedLabels(mixed.partners[rows], mixed.shares[rows]) if mixed else None,
        )


def _concatenate(arrays: Sequence[NDArray[_Value] | None]) -> NDArray[_Value] | None:
    """None if there are none: by the settings all jobs have them, or no job does."""
    there = [array for array in arrays if array is not None]
    assert len(there) in (0, len(arrays))
    return np.concatenate(there) if there else None


def _join_operations(operations: Sequence[Operations | None]) -> Operations | None:
    codes = _concatenate([one.codes if one else None for one in operations])
    magnitudes = _concatenate([one.magnitudes if one else None for one in operations])
    if codes is None or magnitudes is None:
        return None
    return Operations(codes, magnitudes)


def _join_mixes(jobs: Sequence[Job]) -> Mix | None:
    mixes = [job.mix for job in jobs if job.mix is not None]
    if not mixes:
        return None
    starts = np.cumsum([0, *map(len, jobs)])
    return Mix(
        own=slice(0, int(starts[-1])),
        partners=np.concatenate(
            [mix.partners + start for mix, start in zip(mixes, starts[:-1], strict=True)]
        ),
        shares=np.concatenate([mix.shares for mix in mixes]),
        boxes=np.concatenate([mix.boxes for mix in mixes]),
        is_cut=np.concatenate([mix.is_cut for mix in mixes]),
    )
