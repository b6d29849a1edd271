"""Detection of ranks that are slow on their own, before they wait for the others.

In data-parallel training all ranks take as long as the slowest, so step times do not distinguish
them. The time from the beginning of a step to its first collective does. On GPUs it is measured by
events on the stream, read at log steps only: no step waits for the device.

A limit: with synchronised batch norm the first collective comes after the first convolution, so
that a rank that computes slowly shows by a small part of its forward pass alone.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from resnet_dist.faults.hosts import describe_ranks, sync_host_names
from resnet_dist.world import World

MAX_SAMPLES = 256
"""Steps of a log interval that are timed, the latest ones: one event per step must not add up."""

LEAST_EXCESS_MS = 5.0
"""A rank that exceeds the median by less is not reported."""

LEAST_SHARE = 0.1
"""Nor one whose excess is a smaller share of the step."""

PERSISTENT = 3
"""Log intervals in a row in which the same rank must be slow before it is named."""

REPEAT_AFTER = 20
"""Reports in a row of the same rank until it is named again."""

FirstSync = nn.Module | nn.Parameter
"""What marks a step's first collective: a module that runs it in training mode, or the parameter
whose gradient is ready first."""


@dataclass(frozen=True)
class RankTimes:
    """One rank's means over a log interval, milliseconds per step."""

    first_sync_ms: float
    """Time from the beginning of the step to its first collective, waiting for data included."""
    data_wait_ms: float


class Stragglers:
    """Times this rank's steps and compares the ranks at log steps."""

    def __init__(
        self, world: World, *, hosts: tuple[str, ...], factor: float, first_sync: FirstSync
    ) -> None:
        """`factor`: how many times the median a slow rank takes."""
        self._world = world
        self._hosts = hosts
        self._factor = factor
        self._clock: _Clock = _DeviceClock() if world.device.type == "cuda" else _HostClock()
        self._begin: Any = None
        self._end: Any = None
        self._samples: deque[tuple[Any, Any]] = deque(maxlen=MAX_SAMPLES)
        self._suspect: int | None = None
        self._num_slow = 0
        self._has_begun = False
        if isinstance(first_sync, nn.Parameter):
            first_sync.register_post_accumulate_grad_hook(self._on_gradient)  # type: ignore[no-untyped-call]
        else:
            first_sync.register_forward_pre_hook(self._on_forward)

    def begin_step(self) -> None:
        """Mark the beginning of a step."""
        self._close_step()
        self._begin = self._clock.mark()

    def _close_step(self) -> None:
        if self._begin is not None and self._end is not None:
            self._samples.append((self._begin, self._end))
        self._begin = self._end = None

    def _on_forward(self, module: nn.Module, _inputs: object) -> None:
        """The first micro-batch's forward pass communicates already; evaluation does not."""
        if module.training and self._begin is not None and self._end is None:
            self._end = self._clock.mark()

    def _on_gradient(self, _parameter: torch.Tensor) -> None:
        """Only the last micro-batch's backward pass communicates, so the last mark stays."""
        if self._begin is not None:
            self._end = self._clock.mark()

    def sync_read_and_reset(
        self, data_wait_ms: float, step_time_ms: float, tell: Callable[[str], None]
    ) -> dict[str, float]:
        """Compare the ranks' times since the last call, in which a step took `step_time_ms` and
        this rank waited `data_wait_ms` per step for data. All ranks must call it; the events must
        be over.

        Returns scalars by tag, the same on all ranks. `tell` takes a line about a slow rank.
        """
        self._close_step()
        taken = [self._clock.elapsed_ms(begin, end) for begin, end in self._samples]
        self._samples.clear()
        mine = torch.tensor(
            [statistics.fmean(taken) if taken else 0.0, data_wait_ms], dtype=torch.float64
        )
        everyone = [torch.empty_like(mine) for _ in range(self._world.size)]
        dist.all_gather(everyone, mine)  # CPU tensors: gloo's, also beside NCCL
        times = [RankTimes(*rank.tolist()) for rank in everyone]
        if self._has_begun:  # before that, loaders start and kernels are chosen
            self._report(times, step_time_ms, tell)
        self._has_begun = True
        return scalars_of(times)

    def _report(
        self, times: list[RankTimes], step_time_ms: float, tell: Callable[[str], None]
    ) -> None:
        slowest = slowest_rank(times)
        if not is_slow(times, self._factor, step_time_ms):
            self._suspect, self._num_slow = None, 0
            return
        if slowest != self._suspect:
            self._suspect, self._num_slow = slowest, 0
        self._num_slow += 1
        if self._num_slow % REPEAT_AFTER == PERSISTENT:
            tell(describe(times, self._hosts))


class NullStragglers(Stragglers):
    """Compares nothing, and registers no hooks."""

    def __init__(self) -> None: ...

    def begin_step(self) -> None: ...

    def sync_read_and_reset(
        self, data_wait_ms: float, step_time_ms: float, tell: Callable[[str], None]
    ) -> dict[str, float]:
        del data_wait_ms, step_time_ms, tell
        return {}


def sync_build_stragglers(
    factor: float, world: World, *, first_sync: FirstSync | None
) -> Stragglers:
    """The comparison of the ranks; with one rank, or without anything that marks the first
    collective, one that does nothing. All ranks must call it."""
    if world.size == 1 or first_sync is None:
        return NullStragglers()
    hosts = sync_host_names(world)
    return Stragglers(world, hosts=hosts, factor=factor, first_sync=first_sync)


def slowest_rank(times: list[RankTimes]) -> int:
    """The rank that needs longest until the first collective."""
    return max(range(len(times)), key=lambda rank: times[rank].first_sync_ms)


def median_of(times: list[RankTimes]) -> RankTimes:
    """Each number's median over the ranks; the lower one of two, so that of two ranks the faster
    is the measure."""
    return RankTimes(
        statistics.median_low(rank.first_sync_ms for rank in times),
        statistics.median_low(rank.data_wait_ms for rank in times),
    )


def is_slow(times: list[RankTimes], factor: float, step_time_ms: float) -> bool:
    """Whether the slowest rank costs the run something."""
    slowest = times[slowest_rank(times)].first_sync_ms
    median = median_of(times).first_sync_ms
    least = max(LEAST_EXCESS_MS, LEAST_SHARE * step_time_ms)
    return slowest > factor * median and slowest > median + least


def scalars_of(times: list[RankTimes]) -> dict[str, float]:
    """Scalars to record, by tag."""
    return {
        "stragglers/slowest_rank": slowest_rank(times),
        "stragglers/first_sync_ms_max": max(rank.first_sync_ms for rank in times),
        "stragglers/first_sync_ms_median": median_of(times).first_sync_ms,
        "stragglers/data_wait_ms_max": max(rank.data_wait_ms for rank in times),
    }


def describe(times: list[RankTimes], hosts: tuple[str, ...]) -> str:
    """A line that names the slowest rank, and whether its data or its computation is slow."""
    rank, median = slowest_rank(times), median_of(times)
    slow = times[rank]
    excess_ms = slow.first_sync_ms - median.first_sync_ms
    waits = slow.data_wait_ms - median.data_wait_ms > excess_ms / 2
    what = "waiting for data" if waits else "computation"
    return (
        f"slow: {describe_ranks([rank], hosts)} takes {slow.first_sync_ms:.0f} ms per step until "
        f"it first meets the others, the median rank {median.first_sync_ms:.0f} ms; the cause is "
        f"{what} (data: {slow.data_wait_ms:.0f} ms, median {median.data_wait_ms:.0f} ms)"
    )


class _Clock(Protocol):
    def mark(self) -> Any: ...

    def elapsed_ms(self, begin: Any, end: Any) -> float: ...


class _HostClock:
    """The clock for CPUs, whose work is complete when the host continues."""

    def mark(self) -> Any:
        """The time now."""
        return time.perf_counter()

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """Milliseconds between two marks."""
        return 1e3 * float(end - begin)


class _DeviceClock:
    """The clock for GPUs: the time at which the current stream reaches the mark."""

    def mark(self) -> Any:
        """An event at this place of the stream. Does not wait."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """Milliseconds between two marks; waits until the second is reached."""
        end.synchronize()
        return float(begin.elapsed_time(end))
