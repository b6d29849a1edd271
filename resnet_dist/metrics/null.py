"""The recorder of all ranks except the main one, and the base of the sinks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reading metrics.jsonl does not need torch
    from torch import Tensor


class NullRecorder:
    """Drops everything. A sink derives from it and overrides what it records."""

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None: ...

    def images(self, step: int, tag: str, images: Tensor) -> None: ...

    def text(self, step: int, tag: str, text: str) -> None: ...

    def settings(self, values: Mapping[str, bool | int | float | str]) -> None: ...

    def advance(self, step: int) -> None: ...

    def message(self, text: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


PARTIAL = "partial"
"""Tag of a record whose log interval was cut short; a run that is resumed there drops it, and
records the whole interval."""


_OF_THE_CLOCK = (
    "images_per_second",
    "_ms",
    "_s",
    "data_wait_share",
    "memory_gib",
    "energy_kj",
    "time",
)


def depends_on_clock(tag: str) -> bool:
    """Whether a tag's values differ between two runs that are equal in all that is promised."""
    return tag.endswith(_OF_THE_CLOCK) or tag.startswith(("stragglers/", "checkpoint/"))


def is_validation(values: Mapping[str, float | int]) -> bool:
    """Whether a record is that of an evaluation."""
    return any(tag.startswith("val/") for tag in values)
