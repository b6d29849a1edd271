"""Where the time of a step goes on the GPU: shares of groups of kernels, and of idleness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from gpu.groups import GROUPS, group_of_kernel, group_of_operator
from torch.profiler import ProfilerActivity, profile

NOT_KERNELS = ("ProfilerStep", "Optimizer.", "## ", "Torch-Compiled", "DistributedDataParallel")
"""Ranges that the profiler draws on the device's time line."""


@dataclass(frozen=True)
class Event:
    """One kernel, copy or fill."""

    name: str
    start_us: float
    end_us: float
    group: str


@dataclass(frozen=True)
class Summary:
    """Shares of the time from the first event's start to the last one's end."""

    shares: dict[str, float]
    idle: float
    """Share in which no kernel ran."""
    ms: float
    """Of one step."""
    longest: list[tuple[str, str, float]]
    """(group, name, share) of the kernels that took most time."""


def summarise(events: Sequence[Event], steps: int, *, longest: int = 12) -> Summary:
    """Shares of the groups; kernels that run at once each count, so they may exceed the whole."""
    if not events:
        raise ValueError("the profiler saw no kernel")
    whole = max(e.end_us for e in events) - min(e.start_us for e in events)
    busy, end = 0.0, float("-inf")
    for event in sorted(events, key=lambda one: one.start_us):
        busy += max(0.0, event.end_us - max(end, event.start_us))
        end = max(end, event.end_us)
    shares = dict.fromkeys(GROUPS, 0.0)
    names: dict[tuple[str, str], float] = {}
    for event in events:
        share = (event.end_us - event.start_us) / whole
        shares[event.group] += share
        key = event.group, event.name
        names[key] = names.get(key, 0.0) + share
    top = sorted(names.items(), key=lambda item: -item[1])[:longest]
    return Summary(
        shares, 1.0 - busy / whole, whole / steps / 1e3, [(*key, share) for key, share in top]
    )


def record(step: Callable[[], object], steps: int, device: torch.device) -> list[Event]:
    """Events of some steps. On a CPU, where there are no kernels, the outermost operators: that
    only shows that the plumbing works."""
    is_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_gpu
    if is_gpu:
        torch.cuda.synchronize()
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(steps):
            step()
        if is_gpu:
            torch.cuda.synchronize()
    events = []
    for event in profiler.events() or []:
        if is_gpu:
            is_kernel = event.device_type.name == "CUDA"
            is_kernel &= not getattr(event, "is_user_annotation", False)
            is_kernel &= not event.name.startswith(NOT_KERNELS)
        else:
            parent = event.cpu_parent.name if event.cpu_parent is not None else ""
            is_kernel = event.name.startswith("aten::") and not parent.startswith("aten::")
        if is_kernel:
            span = event.time_range
            group = (group_of_kernel if is_gpu else group_of_operator)(event.name)
            events.append(Event(event.name, span.start, span.end, group))
    return events
