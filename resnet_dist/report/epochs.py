"""A run's records by epoch: means of training, the last evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from resnet_dist.metrics.jsonl import Record


@dataclass(frozen=True)
class EpochRow:
    """One epoch, as far as it was trained."""

    epoch: float
    """Completed epochs at the last record of it."""
    step: int
    train: Record
    """Means over the epoch by the name after `train/`; `time_s`: seconds of its steps."""
    val: Record
    """The last evaluation in it, by the name after `val/`; empty if there was none."""


def epoch_rows(records: Sequence[Record]) -> list[EpochRow]:
    """Group records by epoch. Training figures are means over steps, images/s over time; the
    learning rate is the last one, and `time_s` leaves out evaluations and pauses between starts."""
    groups: dict[int, list[Record]] = {}
    for record in records:
        # A record at the end of an epoch belongs to it, not to the next one.
        groups.setdefault(math.ceil(float(record["epoch"]) - 1e-9), []).append(record)
    rows = []
    for number in sorted(groups):
        group = groups[number]
        trained = [record for record in group if "train/loss" in record]
        evaluated = [record for record in group if "val/loss" in record]
        # The log interval starts again with each epoch, since its last step is always recorded.
        first_step = round((number - 1) * group[-1]["step"] / (group[-1]["epoch"] or 1.0))
        rows.append(
            EpochRow(
                epoch=group[-1]["epoch"],
                step=int(group[-1]["step"]),
                train=_mean_training(trained, max(0, first_step)),
                val=_strip(evaluated[-1], "val/") if evaluated else {},
            )
        )
    return rows


def _mean_training(records: Sequence[Record], first_step: int) -> Record:
    """Weigh each record with the steps since the one before it."""
    if not records:
        return {}
    bounds = [first_step, *(int(record["step"]) for record in records)]
    steps = [after - before for before, after in pairwise(bounds)]
    result: Record = {}
    for name in ("loss", "top1"):
        total = sum(
            r.get(f"train/{name}", math.nan) * n for r, n in zip(records, steps, strict=True)
        )
        result[name] = total / max(1, sum(steps))
    seconds = [
        r.get("train/step_time_ms", math.nan) * n / 1e3 for r, n in zip(records, steps, strict=True)
    ]
    images = sum(
        r.get("train/images_per_second", math.nan) * s
        for r, s in zip(records, seconds, strict=True)
    )
    result["time_s"] = sum(seconds)
    result["images_per_second"] = images / sum(seconds) if sum(seconds) else math.nan
    result["lr"] = records[-1].get("train/lr", math.nan)
    return result


def _strip(record: Record, prefix: str) -> Record:
    return {tag.removeprefix(prefix): v for tag, v in record.items() if tag.startswith(prefix)}
