"""One field's rule: bounds, choices, what is never accepted, and the words of the message."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import pytest

from resnet_dist.config.setting import check_section, is_free, rule_of, setting
from resnet_dist.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section with every kind of bound."""

    share: float = setting(0.5, ge=0, lt=1, hint="0.1 is usual")
    rate: float = setting(0.1, gt=0, hint="0.1 per 256 is usual")
    factor: float = setting(1.5, gt=1)
    count: int = setting(3, ge=1, free=True)
    limit: int | None = setting(None, ge=1, le=8)
    decay: float = setting(0.0, ge=0)
    at_most: float = setting(0.0, le=2)
    below: float = setting(0.0, lt=2)
    pair: tuple[float, float] = setting((0.9, 0.999), ge=0, lt=1)
    any_number: float = setting(0.0)
    word: str = setting("red", choices=("red", "green", "blue"), hint="look it up")
    is_on: bool = setting(False)

    def __post_init__(self) -> None:
        check_section(self, "part").enforce()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("share", 1.0, "part.share (1.0): must lie in [0, 1); 0.1 is usual"),
        ("share", -0.1, "part.share (-0.1): must lie in [0, 1); 0.1 is usual"),
        ("share", math.nan, "part.share (nan): must lie in [0, 1) and finite; 0.1 is usual"),
        ("rate", 0, "part.rate (0): must be positive; 0.1 per 256 is usual"),
        ("rate", math.inf, "part.rate (inf): must be positive and finite; 0.1 per 256 is usual"),
        ("factor", 1.0, "part.factor (1.0): must exceed 1; the default is 1.5"),
        ("count", 0, "part.count (0): must be at least 1; the default is 3"),
        ("count", 2**63, f"part.count ({2**63}): must be at most {2**31 - 1}; the default is 3"),
        ("limit", 9, "part.limit (9): must lie in [1, 8]; the default is None"),
        ("decay", -1.0, "part.decay (-1.0): must not be negative; the default is 0.0"),
        ("at_most", 2.5, "part.at_most (2.5): must be at most 2; the default is 0.0"),
        ("below", 2.0, "part.below (2.0): must be less than 2; the default is 0.0"),
        ("pair", (0.9, 1.0), "part.pair ((0.9, 1.0)): must lie in [0, 1); the default is"),
        ("any_number", math.nan, "part.any_number (nan): must be finite; the default is 0.0"),
        ("word", "gren", "must be one of red, green, blue; did you mean green?"),
        ("word", "xxxx", "must be one of red, green, blue; look it up"),
    ],
)
def test_each_kind_of_rule_and_its_words(name: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Section(**{name: value})  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_what_is_allowed_passes() -> None:
    Section(share=0.0, limit=8, rate=1e-30, at_most=2, is_on=True, word="blue", pair=(0, 0))


def test_all_broken_rules_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Section(rate=0, count=0)
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == [
        "part.rate",
        "part.count",
    ]


def test_the_root_has_no_prefix() -> None:
    section = object.__new__(Section)
    for item in fields(Section):
        object.__setattr__(section, item.name, item.default)
    object.__setattr__(section, "count", 0)
    assert check_section(section, "").broken[0].startswith("count (0)")


def test_ranges_in_short() -> None:
    ranges = {item.name: rule_of(item).range() for item in fields(Section)}
    assert ranges["share"] == "[0, 1)"
    assert ranges["rate"] == "> 0"
    assert ranges["count"] == ">= 1"
    assert ranges["at_most"] == "<= 2"
    assert ranges["word"] == "red, green or blue"
    assert ranges["any_number"] == ""
    assert [item.name for item in fields(Section) if is_free(item)] == ["count"]
