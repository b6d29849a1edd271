"""The hand-over of batches to the consumer, on a GPU one batch ahead of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import cache
from typing import TypeVar

import torch

from resnet_dist.data.batch import Batch

_T = TypeVar("_T")

IN_FLIGHT = 2
"""Batches that the device has not consumed yet when the next is made: a replayed step costs the
host so little that it would else run ahead as far as memory reaches."""


def one_ahead(
    items: Iterable[_T], finish: Callable[[_T], Batch], device: torch.device
) -> Generator[Batch, None, None]:
    """Finish items in order; on a GPU, on a stream of their own while the last one is consumed,
    and waiting for the device where it is more than `IN_FLIGHT` batches behind."""
    if device.type != "cuda":
        for item in items:
            yield finish(item)
        return
    stream = _side_stream(device)
    ready: tuple[Batch, torch.cuda.Event] | None = None
    consumed: deque[torch.cuda.Event] = deque()
    for item in items:
        with torch.cuda.stream(stream):
            following = (finish(item), stream.record_event())
        if ready is not None:
            yield _claim(*ready)
            # Asking for the next, the consumer has launched all that it does with this one.
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            consumed.append(event)
            if len(consumed) > IN_FLIGHT:
                consumed.popleft().synchronize()
        ready = following
    if ready is not None:
        yield _claim(*ready)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all loaders of a device: memory that torch keeps for one stream no other may use."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _claim(batch: Batch, done: torch.cuda.Event) -> Batch:
    """Let the consumer's stream wait for a batch (the host does not) and own its memory."""
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(done)
    batch.images.record_stream(current)
    batch.labels.record_stream(current)
    if batch.mixed is not None:
        batch.mixed.paired.record_stream(current)
        batch.mixed.lam.record_stream(current)
    return batch
