"""The hand-over of batches to the consumer, on a GPU one batch ahead of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import torch

from resnet_dist.data.batch import Batch

_T = TypeVar("_T")


def one_ahead(
    items: Iterable[_T], finish: Callable[[_T], Batch], device: torch.device
) -> Generator[Batch, None, None]:
    """Finish items in order; on a GPU, on a stream of their own while the last one is consumed."""
    if device.type != "cuda":
        for item in items:
            yield finish(item)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ready: tuple[Batch, torch.cuda.Event] | None = None
    for item in items:
        with torch.cuda.stream(stream):
            following = (finish(item), stream.record_event())
        if ready is not None:
            yield _claim(*ready)
        ready = following
    if ready is not None:
        yield _claim(*ready)


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
