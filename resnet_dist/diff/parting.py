"""What is found out about two runs, and the first record in which they differ; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resnet_dist.metrics.jsonl import Record
from resnet_dist.metrics.null import depends_on_clock

_OF_AN_INTERVAL = ("train/loss", "train/top1", "train/top5")
"""Means since the record before: not to be compared where the intervals differ."""
_SAYS_MOST = ("train/lr", "train/loss", "train/grad_norm", "val/loss")
"""Which tag is named where several differ at a step."""
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

    @property
    def size(self) -> str:
        """How large it is, in words."""
        words = "as rounding makes it" if self.may_be_rounding else "more than rounding"
        return f"relative difference {self.relative:.2g}: {words}"


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
    left_out = _OF_AN_INTERVAL if intervals_differ else ()
    equal_until = 0
    for step in common:
        a, b = one[step], two[step]
        different = [
            tag for tag in a if tag in b and tag not in left_out and _differ(a[tag], b[tag])
        ]
        if different:
            tag = next((each for each in _SAYS_MOST if each in different), different[0])
            parting = Parting(step, tag, float(a[tag]), float(b[tag]))
            return Compared(len(common), equal_until, parting, intervals_differ)
        equal_until = step
    return Compared(len(common), equal_until, None, intervals_differ)


def _by_step(records: Iterable[Record]) -> dict[int, Record]:
    found: dict[int, Record] = {}
    for record in records:
        kept = {tag: value for tag, value in record.items() if _is_compared(tag)}
        found.setdefault(int(record["step"]), {}).update(kept)
    return found


def _is_compared(tag: str) -> bool:
    return tag.startswith(("train/", "val/")) and not depends_on_clock(tag)


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
