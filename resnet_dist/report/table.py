"""The table of epochs, and the final and best accuracy in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import timedelta

from resnet_dist.metrics.jsonl import Record
from resnet_dist.report.epochs import EpochRow, epoch_rows


def _percent(value: float) -> str:
    return f"{value:.2%}"


def duration(seconds: float) -> str:
    """h:mm:ss, or ? for what is not finite."""
    return str(timedelta(seconds=round(seconds))) if math.isfinite(seconds) else "?"


_Column = tuple[str, str, Callable[[EpochRow], float | None], Callable[[float], str]]
_COLUMNS: tuple[_Column, ...] = (
    ("", "epoch", lambda row: row.epoch, "{:.4g}".format),
    ("", "steps", lambda row: row.step, "{:.0f}".format),
    ("train", "loss", lambda row: row.train.get("loss"), "{:.4f}".format),
    ("train", "top1", lambda row: row.train.get("top1"), _percent),
    ("val", "loss", lambda row: row.val.get("loss"), "{:.4f}".format),
    ("val", "top1", lambda row: row.val.get("top1"), _percent),
    ("val", "top5", lambda row: row.val.get("top5"), _percent),
    ("ema", "top1", lambda row: row.val.get("ema_top1"), _percent),
    ("", "lr", lambda row: row.train.get("lr"), "{:.3g}".format),
    ("", "img/s", lambda row: row.train.get("images_per_second"), "{:.0f}".format),
    ("", "time", lambda row: row.train.get("time_s"), duration),
)


def epoch_table(records: Sequence[Record]) -> str:
    """One row per epoch: steps so far, means of training, evaluation, training time (h:mm:ss).

    80 columns wide at most, for runs of less than a million steps and 100 hours.
    """
    rows = epoch_rows(records)
    has_average = any("ema_top1" in row.val for row in rows)
    columns = [column for column in _COLUMNS if column[0] != "ema" or has_average]
    cells = [[group for group, _, _, _ in columns], [title for _, title, _, _ in columns]]
    for row in rows:
        cells.append([_cell(value_of(row), style) for _, _, value_of, style in columns])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [" ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([*lines[:2], "-" * len(lines[1]), *lines[2:]])


def _cell(value: float | None, style: Callable[[float], str]) -> str:
    return "-" if value is None else style(value)


def final_lines(records: Sequence[Record], *, is_finished: bool = True) -> list[str]:
    """The final and the best validation top-1, or those so far, also of the moving average."""
    lines = []
    for tag, name in (("val/top1", "validation"), ("val/ema_top1", "moving average's validation")):
        found = [record for record in records if tag in record]
        if not found:
            continue
        best = max(found, key=lambda record: record[tag])
        for kind, record in (("final", found[-1]), ("best", best)):
            where = f"step {record['step']}, epoch {record['epoch']:.4g}"
            so_far = "" if is_finished else " so far"
            kind = kind if is_finished or kind == "best" else "latest"
            lines.append(f"{kind} {name} top-1{so_far}: {record[tag]:.2%} ({where})")
    return lines or ["no validation yet"]
