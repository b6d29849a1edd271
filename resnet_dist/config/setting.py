"""What the sections of the configuration are made of: fields that know their own rules.

Owns `setting`, the check of all fields of a section, and the collector that reports every broken
rule at once. Rules across fields stay in the `__post_init__` of their section:

    def __post_init__(self) -> None:
        rules = check_section(self, "optim")
        rules.require(not self.nesterov or self.momentum > 0, "optim.nesterov", ...)
        rules.enforce()
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnet_dist.errors import UserError

LARGEST_INTEGER = 2**31 - 1
"""No count is larger; what has a bound of its own may be."""


@dataclass(frozen=True)
class Rule:
    """What holds for one field by itself; lies in its metadata under "rule"."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[str, ...] | None = None
    hint: str = ""

    @property
    def has_bounds(self) -> bool:
        """Whether the value is bounded at all."""
        return any(bound is not None for bound in (self.ge, self.gt, self.le, self.lt))

    def range(self) -> str:
        """The allowed values in short: "[0, 1)", ">= 1", "a, b or c"; "" if all are allowed."""
        if self.choices is not None:
            return ", ".join(self.choices[:-1]) + f" or {self.choices[-1]}"
        low = self.ge if self.gt is None else self.gt
        high = self.le if self.lt is None else self.lt
        if low is not None and high is not None:
            return (
                f"{'[' if self.gt is None else '('}{_number(low)}, "
                f"{_number(high)}{']' if self.lt is None else ')'}"
            )
        if low is not None:
            return f"{'>=' if self.gt is None else '>'} {_number(low)}"
        return f"{'<=' if self.lt is None else '<'} {_number(high)}" if high is not None else ""

    def sentence(self) -> str:
        """The rule in words."""
        if self.choices is not None:
            return f"must be one of {', '.join(self.choices)}"
        low = self.ge if self.gt is None else self.gt
        high = self.le if self.lt is None else self.lt
        if low is not None and high is not None:
            return f"must lie in {self.range()}"
        if low is None:
            what = "be at most" if self.lt is None else "be less than"
            return f"must {what} {_number(high or 0)}"
        if low == 0:
            return "must not be negative" if self.gt is None else "must be positive"
        return f"must {'be at least' if self.gt is None else 'exceed'} {_number(low)}"

    def broken_by(self, value: object) -> str | None:
        """The sentence that one value (or element of a tuple) breaks, or None."""
        if self.choices is not None:
            return None if value in self.choices else self.sentence()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return f"{self.sentence()} and finite" if self.has_bounds else "must be finite"
        holds = (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )
        if not holds:
            return self.sentence()
        if isinstance(value, int) and value > LARGEST_INTEGER and self.le is None:
            return f"must be at most {LARGEST_INTEGER}"
        return None


def _number(value: float) -> str:
    """10 for 10.0, and no exponent where a reader expects digits."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def setting(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[str] | None = None,
    hint: str = "",
    free: bool = False,
) -> Any:
    """A field of a section.

    The bounds hold for the value, or for every element of a tuple; None passes where the type
    allows it; nan and infinity never pass. `choices` are for text that is not a Literal. `hint` is
    the remedy that an error message ends with. `free` settings do not change the mathematics of a
    run: a resumed run may change them.
    """
    rule = Rule(ge, gt, le, lt, None if choices is None else tuple(choices), hint)
    return dataclasses.field(default=default, metadata={"exact": not free, "rule": rule})


def rule_of(item: dataclasses.Field[Any]) -> Rule:
    """The rule of a field that `setting` made; one without bounds for another field."""
    rule = item.metadata.get("rule", Rule())
    assert isinstance(rule, Rule)
    return rule


def is_free(item: dataclasses.Field[Any]) -> bool:
    """Whether a resumed run may change it."""
    return not item.metadata.get("exact", True)


class Rules:
    """Collects every broken rule of a section, so that the user sees them all at once."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def require(self, holds: bool, path: str, value: object, rule: str, remedy: str) -> None:
        """Note the rule as broken unless it holds."""
        if not holds:
            self.broken.append(f"{path} ({value!r}): {rule}; {remedy}")

    def enforce(self) -> None:
        """Raises UserError, one line per broken rule, if there is any."""
        if self.broken:
            raise UserError("\n".join(self.broken))


def check_section(section: Any, prefix: str) -> Rules:
    """The collector, with what the fields of a section break by themselves.

    `prefix` is the section's key, "" for the root.
    """
    rules = Rules()
    for item in dataclasses.fields(section):
        value, rule = getattr(section, item.name), rule_of(item)
        if value is None or dataclasses.is_dataclass(value):
            continue
        elements = value if isinstance(value, (tuple, list)) else (value,)
        broken = next((text for text in map(rule.broken_by, elements) if text), None)
        if broken is not None:
            path = f"{prefix}.{item.name}" if prefix else item.name
            rules.require(False, path, value, broken, _remedy(rule, value, item.default))
    return rules


def _remedy(rule: Rule, value: object, default: object) -> str:
    near = difflib.get_close_matches(str(value).lower(), rule.choices or (), n=1)
    if near:
        return f"did you mean {near[0]}?"
    return rule.hint or f"the default is {default!r}"


def free(default: Any) -> Any:
    """A setting without a rule that a resumed run may change."""
    return setting(default, free=True)
