"""Several specs as one, and the batches that come of it.

What is done to an image depends on nothing but its own row of the spec (and the row that it is
paired with), so several specs can be finished on a device as one: a GPU then has a tenth of the
copies and launches, and every batch is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from resnet_dist.data.batch import Batch, BatchSpec, Mix, MixedLabels, Operations

_Value = TypeVar("_Value", bound=np.generic)


def join(specs: Sequence[BatchSpec]) -> BatchSpec:
    """All rows of some specs of one loader, one after the other; a single spec as it is.

    Rows that are only there to be mixed in are among the joined spec's own, so that its rows are
    also its batch's; `part` leaves them out.
    """
    if len(specs) == 1:
        return specs[0]
    first = specs[0]
    assert all(spec.size == first.size for spec in specs)
    return BatchSpec(
        step=first.step,
        sample_ids=np.concatenate([spec.sample_ids for spec in specs]),
        labels=np.concatenate([spec.labels for spec in specs]),
        crop_boxes=np.concatenate([spec.crop_boxes for spec in specs]),
        resized=np.concatenate([spec.resized for spec in specs]),
        crops=np.concatenate([spec.crops for spec in specs]),
        crop_offsets=_concatenate([spec.crop_offsets for spec in specs]),
        flips=np.concatenate([spec.flips for spec in specs]),
        size=first.size,
        operations=_join_operations([spec.operations for spec in specs]),
        erased=_concatenate([spec.erased for spec in specs]),
        mix=_join_mixes(specs),
        kept=_concatenate([spec.kept for spec in specs]),
        lines=_concatenate([spec.lines for spec in specs]),
    )


def part(batch: Batch, specs: Sequence[BatchSpec]) -> Iterator[Batch]:
    """The batch of each of some specs, from that of the joined one. Copies no pixel."""
    if len(specs) == 1:
        yield batch
        return
    start = 0
    for spec in specs:
        rows = slice(start + spec.own.start, start + spec.own.stop)
        start += len(spec)
        mixed = batch.mixed
        yield Batch(
            step=spec.step,
            images=batch.images[rows],
            labels=batch.labels[rows],
            sample_ids=spec.sample_ids[spec.own],
            mixed=MixedLabels(mixed.paired[rows], mixed.lam[rows]) if mixed else None,
            kept=None if batch.kept is None else batch.kept[rows],
        )


def _concatenate(arrays: Sequence[NDArray[_Value] | None]) -> NDArray[_Value] | None:
    """None if there are none: by the settings all specs have them, or no spec does."""
    there = [array for array in arrays if array is not None]
    assert len(there) in (0, len(arrays))
    return np.concatenate(there) if there else None


def _join_operations(operations: Sequence[Operations | None]) -> Operations | None:
    codes = _concatenate([one.codes if one else None for one in operations])
    magnitudes = _concatenate([one.magnitudes if one else None for one in operations])
    chains = _concatenate([one.chains if one else None for one in operations])
    first = operations[0]
    if first is None or codes is None or magnitudes is None:
        return None
    return Operations(codes, magnitudes, fill=first.fill, chains=chains)


def _join_mixes(specs: Sequence[BatchSpec]) -> Mix | None:
    mixes = [spec.mix for spec in specs if spec.mix is not None]
    if not mixes:
        return None
    starts = np.cumsum([0, *map(len, specs)])
    return Mix(
        own=slice(0, int(starts[-1])),
        paired=np.concatenate(
            [mix.paired + start for mix, start in zip(mixes, starts[:-1], strict=True)]
        ),
        lams=np.concatenate([mix.lams for mix in mixes]),
        boxes=np.concatenate([mix.boxes for mix in mixes]),
        is_cut=np.concatenate([mix.is_cut for mix in mixes]),
    )
