"""The diagnosis of a run that diverged: where its latest row of skipped steps began."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from resnet_dist.faults.non_finite import SkipCounts
from resnet_dist.world import World, sync_gather_objects

_MAX_NAMED_IDS = 16


def sync_diagnose(
    counts: SkipCounts,
    *,
    samples_of: Callable[[int, int], Sequence[int]],
    losses: Sequence[float],
    precision: str,
    loss_scale: float,
    world: World,
) -> str:
    """Step, ranks, samples and loss scale where the latest row of skipped steps began, in words.

    `samples_of(rank, step)`: ids of the samples that a rank computes in a step. `losses`: the
    latest recorded ones. All ranks must call it.
    """
    found = sync_gather_objects((counts, socket.gethostname()), world)
    step = counts.first_step
    lines = [
        f"{counts.longest} steps in a row were skipped, from step {step + 1} "
        f"on: their loss or gradients were not finite"
    ]
    lines += [
        f"rank {rank} ({host}): its loss was not finite in step {own.own_loss_step + 1}, "
        f"{_describe_samples(samples_of(rank, own.own_loss_step))}"
        for rank, (own, host) in enumerate(found)
        if own.own_loss_step >= 0
    ]
    if len(lines) == 1:
        lines.append("the loss of every rank was finite: it is the backward pass that overflowed")
    lines.append(
        f"precision {precision}, loss scale {loss_scale:g}, "
        f"last losses {', '.join(f'{loss:.4g}' for loss in losses[-5:])}"
    )
    return "\n".join(lines)


def _describe_samples(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - _MAX_NAMED_IDS} more" if len(ids) > _MAX_NAMED_IDS else ""
    return f"samples {', '.join(map(str, ids[:_MAX_NAMED_IDS]))}{more}"
