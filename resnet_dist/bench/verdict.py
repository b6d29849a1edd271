"""What the measured parts say, in words: arithmetic, no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

_SLOW_RANK = 1.5
"""A rank that takes so many times the median's time by itself is named."""
_MUCH_EXCHANGE = 0.5
"""From this share of a step on, the exchange of gradients is what limits it."""
_SHARED = 0.95
"""Loader and step together reach less than this share of the step: they disturb each other."""


@dataclass(frozen=True)
class RankTime:
    """A forward pass of one rank by itself."""

    rank: int
    host: str
    milliseconds: float


@dataclass(frozen=True)
class Measured:
    """All parts, one figure per round."""

    rates: dict[str, list[float]]
    """Images/s over all ranks: "loader", "step", "both"."""
    images_per_step: int
    exchange_ms: list[float] = field(default_factory=list)
    """The sum of all gradients over the ranks alone; none with one rank."""
    exchange_bytes: int = 0
    ranks: list[RankTime] = field(default_factory=list)
    families: list[tuple[str, float]] = field(default_factory=list)
    """What the operators of a step belong to, and their share of its time, of 1."""

    def median(self, part: str) -> float:
        """Images/s."""
        return statistics.median(self.rates[part])

    @property
    def step_ms(self) -> float:
        """Time of a step alone."""
        return 1e3 * self.images_per_step / self.median("step")


def table(measured: Measured) -> list[str]:
    """The figures, with their spread."""
    lines = []
    for name, values in measured.rates.items():
        spread = f"{min(values):.0f} to {max(values):.0f} in {len(values)} rounds"
        lines.append(f"  {name:<12}{measured.median(name):>10.1f} images/s   ({spread})")
    if measured.exchange_ms:
        median = statistics.median(measured.exchange_ms)
        spread = f"{min(measured.exchange_ms):.1f} to {max(measured.exchange_ms):.1f}"
        lines.append(
            f"  {'all-reduce':<12}{median:>10.1f} ms   ({spread}; "
            f"{measured.exchange_bytes / 2**20:.1f} MiB, a step takes {measured.step_ms:.1f} ms)"
        )
    if measured.families:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in measured.families[:4])
        lines.append(f"  the step: {shares}")
    return lines


def verdict(measured: Measured) -> list[str]:
    """What limits the speed, and what to do; what matters most comes first."""
    said = [_slow_rank(measured.ranks)] if len(measured.ranks) > 1 else []
    loader, step = measured.rates["loader"], measured.rates["step"]
    exchange = statistics.median(measured.exchange_ms) if measured.exchange_ms else 0.0
    share = measured.median("both") / measured.median("step")
    together = f"together {share:.0%} of the step alone"
    if max(loader) < min(step):
        said.append(
            "the loader is the bottleneck: more data.num_workers, data.loader=dali, or smaller "
            "images"
        )
    elif exchange > _MUCH_EXCHANGE * measured.step_ms:
        said.append(
            f"the network is the bottleneck: summing the gradients takes "
            f"{exchange / measured.step_ms:.0%} of a step's time by itself; faster links, "
            f"dist.gradient_dtype=bfloat16, or a larger batch per rank"
        )
    elif min(loader) <= max(step):
        said.append("a draw: the ranges of loader and step overlap; both limit it")
    elif share < _SHARED:
        said.append("loader and step share the same cores: the step loses time to the loader")
    else:
        said.append("the step is the bottleneck, and the loader keeps up")
    return [*filter(None, said), together]


def _slow_rank(ranks: Sequence[RankTime]) -> str:
    median = statistics.median(each.milliseconds for each in ranks)
    fastest = min(each.milliseconds for each in ranks)
    usual = median if len(ranks) > 2 else fastest
    slow = [each for each in ranks if each.milliseconds > _SLOW_RANK * usual]
    if not slow:
        return ""
    worst = max(slow, key=lambda each: each.milliseconds)
    return (
        f"rank {worst.rank} on {worst.host} is slow: {worst.milliseconds / usual:.1f} times the "
        f"others' time for the same work, and all wait for it; look at its clocks and other work"
    )
