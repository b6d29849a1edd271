"""Checks that several ranks make together: sums, devices, versions, clocks, bandwidth, speed."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from resnet_dist.doctor.finding import Finding, fail, ok, warn
from resnet_dist.faults.preflight import sync_problems
from resnet_dist.world import World, sync_barrier, sync_gather_objects, sync_sum_

SIZES = (4 << 10, 256 << 10, 4 << 20, 25 << 20)
"""Bytes that are summed over the ranks; the last is a bucket of DDP."""
_SECONDS_PER_SIZE = 2.0
_SECONDS_OF_CONVOLUTION = 2.0
_SLOW = 0.8
"""A rank below this share of the median is named."""
_SKEW_S = 1.0


@dataclass(frozen=True)
class Measured:
    """The figures of one rank."""

    rank: int
    host: str
    flops: float
    """Operations of a convolution, per second."""
    clock: float
    """Seconds by which the clock is ahead of rank 0's."""
    sees_probe: bool


def sync_rank_findings(world: World, probe: Path) -> list[Finding]:
    """All checks of the ranks together. `probe`: a folder that rank 0 has made. All ranks must call
    it; the result is the same on all."""
    found = []
    problems = sync_problems(world)
    found += [fail("ranks", each) for each in problems]
    if not problems:
        hosts = sync_gather_objects(socket.gethostname(), world)
        kind = world.device.type
        found.append(ok("ranks", f"{world.size} on {len(set(hosts))} host(s), {kind}"))
    own = Measured(
        rank=world.rank,
        host=socket.gethostname(),
        flops=convolution_flops(world.device),
        clock=_sync_clock(world),
        sees_probe=probe.is_dir(),
    )
    found += judge(sync_gather_objects(own, world))
    if world.size > 1:
        found.append(_sync_bandwidth(world))
    return found


def judge(measured: Sequence[Measured]) -> list[Finding]:
    """What the figures of all ranks say."""
    return [*_speeds(measured), *_clocks(measured), *_shared(measured)]


def _speeds(measured: Sequence[Measured]) -> list[Finding]:
    median = statistics.median(each.flops for each in measured)
    slow = [each for each in measured if each.flops < _SLOW * median]
    lowest = min(each.flops for each in measured)
    highest = max(each.flops for each in measured)
    what = f"{lowest / 1e12:.3g} to {highest / 1e12:.3g} TFLOP/s in a convolution"
    if not slow:
        return [ok("speed", what)]
    return [
        warn(
            "speed",
            f"rank {each.rank} on {each.host} has {each.flops / median:.0%} of the median rank's "
            f"speed in a convolution",
            "look at its clocks, temperature and other work, or leave the host out",
        )
        for each in slow
    ]


def _clocks(measured: Sequence[Measured]) -> list[Finding]:
    wrong = {each.host: each.clock for each in measured if abs(each.clock) > _SKEW_S}
    if len(measured) > 1 and not wrong:
        widest = max(abs(each.clock) for each in measured)
        return [ok("clocks", f"at most {1e3 * widest:.0f} ms apart")]
    return [
        warn(
            "clocks",
            f"{host} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} rank 0's host",
            "set the clocks by NTP: records and logs are ordered by them",
        )
        for host, skew in wrong.items()
    ]


def _shared(measured: Sequence[Measured]) -> list[Finding]:
    blind = list(dict.fromkeys(each.host for each in measured if not each.sees_probe))
    if len(measured) > 1 and not blind:
        return [ok("run folder", "every rank sees it")]
    return [
        fail("run folder", f"{host} does not see that of rank 0", "set run.dir on a shared disk")
        for host in blind
    ]


def convolution_flops(device: torch.device) -> float:
    """Floating-point operations per second of a 3x3 convolution of a ResNet's middle, forward, over
    about two seconds."""
    is_gpu = device.type == "cuda"
    dtype, batch = (torch.bfloat16, 64) if is_gpu else (torch.float32, 2)
    images = torch.ones(batch, 256, 28, 28, device=device, dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    weights = torch.ones(256, 256, 3, 3, device=device, dtype=dtype)
    weights = weights.contiguous(memory_format=torch.channels_last)

    def convolve() -> None:
        F.conv2d(images, weights, padding=1)

    seconds = _seconds_per_call(convolve, device, _SECONDS_OF_CONVOLUTION)
    return 2.0 * batch * 256 * 256 * 9 * 28 * 28 / seconds


def _seconds_per_call(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    def timed(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with torch.inference_mode():
        timed(3)
        count = max(1, int(seconds / 2 / max(timed(2) / 2, 1e-6)))
        return min(timed(count) for _ in range(2)) / count


def _sync_clock(world: World) -> float:
    """Seconds by which this rank's clock is ahead of rank 0's, as well as barriers can say."""
    best = float("inf")
    for _ in range(5):
        sync_barrier(world)
        times = sync_gather_objects(time.time(), world)
        best = min(best, times[world.rank] - times[0], key=abs)
    return best


def _sync_bandwidth(world: World) -> Finding:
    """Time a sum over all ranks by size."""
    words = []
    for size in SIZES:
        tensor = torch.ones(size // 4, device=world.device)
        sync_sum_(tensor, world)
        first = _sync_seconds(tensor, world, 1)
        count = max(1, min(200, int(_SECONDS_PER_SIZE / max(first, 1e-6))))
        seconds = _sync_seconds(tensor, world, count)
        moved = 2 * (world.size - 1) / world.size * size
        words.append(f"{_size(size)} {1e3 * seconds:.3g} ms ({moved / seconds / 1e9:.2g} GB/s)")
    return ok("all-reduce", ", ".join(words))


def _sync_seconds(tensor: torch.Tensor, world: World, count: int) -> float:
    """Seconds per sum, those of the slowest rank."""
    sync_barrier(world)
    start = time.perf_counter()
    for _ in range(count):
        sync_sum_(tensor.fill_(1.0), world)
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return max(sync_gather_objects((time.perf_counter() - start) / count, world))


def _size(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes >= 1 << 20 else f"{num_bytes >> 10} KiB"
