"""Reading TensorBoard event files in tests, with TensorBoard's own readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader


def raw_events(folder: Path) -> list[Any]:
    """All events of all files, in the order in which TensorBoard reads them."""
    files = sorted(folder.glob("*tfevents*"))
    return [event for path in files for event in LegacyEventFileLoader(str(path)).Load()]


def raw_steps(folder: Path) -> dict[str, list[int]]:
    """The steps of each tag as they lie in the files."""
    steps: dict[str, list[int]] = {}
    for event in raw_events(folder):
        for value in event.summary.value:
            steps.setdefault(value.tag, []).append(event.step)
    return steps


def open_accumulator(folder: Path) -> Any:
    """What a running TensorBoard holds of a folder; `Reload()` reads on."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def accumulated_steps(source: Path | Any) -> dict[str, list[int]]:
    """The steps of each scalar as TensorBoard shows them."""
    accumulator = open_accumulator(source) if isinstance(source, Path) else source
    tags = accumulator.Tags()["scalars"]
    return {tag: [point.step for point in accumulator.Scalars(tag)] for tag in tags}
