"""What is found out about two runs, and the first record in which they differ; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resnet_dist.metrics.jsonl import Record

_OF_THE_CLOCK = ("images_per_second", "_ms", "_s", "data_wait_share", "memory_gib", "energy_kj")
"""Ends of the names of what depends on the clock."""
_OF_AN_INTERVAL = ("train/loss", "train/top1", "train/top5")
"""Means since the record before: not to be compared where the intervals differ."""
_ROUNDING = 1e-5
"""A relative difference below it may come from sums in another order."""


@dataclass(frozen=True)
class Parting:
    """The first values that differ."""

    step: int
    tag: str
    first: float
    second: float

    @property
    def relative(self) -> float:
        """By how much, of the larger one."""
        largest = max(abs(self.first), abs(self.second))
        difference = abs(self.first - self.second)
        return difference / largest if largest > 0 and math.isfinite(difference) else math.inf

    @property
    def may_be_rounding(self) -> bool:
        """Whether it is as small as rounding makes it at first."""
        return self.relative < _ROUNDING


@dataclass(frozen=True)
class Compared:
    """What the records of two runs say."""

    steps: int
    """Steps with records of both."""
    equal_until: int
    """Last step before which all compared values are equal; 0: none."""
    parting: Parting | None
    """None: all that can be compared is equal."""
    intervals_differ: bool


@dataclass(frozen=True)
class Difference:
    """A value of a checkpoint."""

    where: str
    largest: float
    """Largest absolute difference of its elements; infinite where it is no tensor."""


@dataclass(frozen=True)
class Checkpoints:
    """What the checkpoints of two runs say."""

    equal: list[int]
    """Steps at which both hold the same state, bit for bit."""
    first_step: int | None
    """None: no common checkpoint differs."""
    differences: list[Difference]
    facts: tuple[dict[str, Any], dict[str, Any]]
    """What both say of data, samples and versions in the first that differs, else in the last."""

    @property
    def may_be_rounding(self) -> bool:
        """Whether all differences are as small as rounding makes them at first."""
        return all(each.largest < _ROUNDING for each in self.differences)


def compare(first: Sequence[Record], second: Sequence[Record]) -> Compared:
    """Compare what does not depend on the clock, step by step, bit for bit."""
    one, two = _by_step(first), _by_step(second)
    intervals = [[step for step in each if "train/loss" in each[step]] for each in (one, two)]
    shortest = min(map(len, intervals))
    intervals_differ = intervals[0][:shortest] != intervals[1][:shortest]
    common = sorted(one.keys() & two.keys())
    equal_until = 0
    for step in common:
        for tag in one[step].keys() & two[step].keys():
            if intervals_differ and tag in _OF_AN_INTERVAL:
                continue
            if _differ(one[step][tag], two[step][tag]):
                tags = _ordered(one[step], two[step], intervals_differ=intervals_differ)
                parting = Parting(step, tags, float(one[step][tags]), float(two[step][tags]))
                return Compared(len(common), equal_until, parting, intervals_differ)
        equal_until = step
    return Compared(len(common), equal_until, None, intervals_differ)


def _ordered(one: Record, two: Record, *, intervals_differ: bool) -> str:
    """The tag that says most, of those that differ at a step."""
    different = [
        tag
        for tag in one
        if tag in two
        and _differ(one[tag], two[tag])
        and not (intervals_differ and tag in _OF_AN_INTERVAL)
    ]
    for tag in ("train/lr", "train/loss", "train/grad_norm", "val/loss"):
        if tag in different:
            return tag
    return different[0]


def _by_step(records: Iterable[Record]) -> dict[int, Record]:
    found: dict[int, Record] = {}
    for record in records:
        kept = {tag: value for tag, value in record.items() if _is_compared(tag)}
        found.setdefault(int(record["step"]), {}).update(kept)
    return found


def _is_compared(tag: str) -> bool:
    if not tag.startswith(("train/", "val/")):
        return False
    return not tag.endswith(_OF_THE_CLOCK)


def _differ(one: float, two: float) -> bool:
    return one != two and not (math.isnan(one) and math.isnan(two))


def world_sizes(starts: Sequence[Mapping[str, object]], until: int) -> list[int]:
    """Ranks of the starts that lead up to a step, each number once."""
    sizes = []
    for start in starts:
        step, size = start.get("step"), start.get("world_size")
        if isinstance(step, int) and isinstance(size, int) and step < max(until, 1):
            sizes.append(size)
    return list(dict.fromkeys(sizes))
