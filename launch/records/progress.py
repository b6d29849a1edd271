"""The progress of a run, from the records of the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_dist.run.outcome import Outcome
from resnet_dist.system.json_files import read_lines

_TAIL_BYTES = 1 << 20
"""More than the records of an epoch, so that the last evaluation is among them."""


DONE = (Outcome.FINISHED, Outcome.LIMITED, Outcome.REACHED)
"""Outcomes in ends.jsonl after which nothing is left to train; the others: stopped, diverged."""


@dataclass(frozen=True)
class Progress:
    """Numbers of the last records."""

    step: int = 0
    num_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    """Training loss at the last record."""
    top1: float | None = None
    """Accuracy at the last evaluation, 0 to 1."""
    images_per_second: float | None = None
    step_time_s: float | None = None
    time: float | None = None
    """Time of the last record, seconds since 1970."""

    @property
    def left_s(self) -> float | None:
        """Seconds of training until the end at the last speed, without evaluations."""
        if self.num_steps is None or self.step_time_s is None:
            return None
        return max(0, self.num_steps - self.step) * self.step_time_s


def read_progress(run_dir: Path) -> Progress:
    """Read the end of the records, whatever is there."""
    last: dict[str, Any] = {}
    for line in read_lines(run_dir / "metrics.jsonl", last_bytes=_TAIL_BYTES):
        last.update(line)
    starts = read_lines(run_dir / "starts.jsonl")

    def number(tag: str) -> float | None:
        return float(last[tag]) if tag in last else None  # what JSON has not is a text: "NaN"

    time_ms = number("train/step_time_ms")
    return Progress(
        step=int(last.get("step", 0)),
        num_steps=starts[-1].get("num_steps") if starts else None,
        epoch=number("epoch"),
        loss=number("train/loss"),
        top1=number("val/top1"),
        images_per_second=number("train/images_per_second"),
        step_time_s=time_ms / 1000 if time_ms is not None else None,
        time=number("time"),
    )


def last_outcome(run_dir: Path) -> Outcome | None:
    """Outcome of the last start of the training that ended by itself."""
    ends = read_lines(run_dir / "ends.jsonl")
    return Outcome(ends[-1]["outcome"]) if ends else None
