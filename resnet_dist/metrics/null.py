"""The recorder that takes nothing: what the other ranks get, and what a sink starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reading metrics.jsonl does not need torch
    from torch import Tensor


class NullRecorder:
    """Drops everything. A sink derives from it and overrides what it takes."""

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """See `Recorder.scalars`."""

    def images(self, step: int, tag: str, images: Tensor) -> None:
        """See `Recorder.images`."""

    def text(self, step: int, tag: str, text: str) -> None:
        """See `Recorder.text`."""

    def message(self, text: str) -> None:
        """See `Recorder.message`."""

    def flush(self) -> None:
        """See `Recorder.flush`."""

    def close(self) -> None:
        """See `Recorder.close`."""
