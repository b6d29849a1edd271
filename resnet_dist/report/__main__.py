"""`python -m resnet_dist.report RUN_DIR`: the table of epochs and the curves of a run.

Reads metrics.jsonl alone, so it works on a run that is going on, or was copied from elsewhere.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_dist.errors import UserError
from resnet_dist.metrics import jsonl
from resnet_dist.metrics.jsonl import Record
from resnet_dist.system.files import replace_file

if TYPE_CHECKING:  # matplotlib takes seconds to import, and training needs it at its end only
    from matplotlib.axes import Axes

TRAIN_COLOR, VAL_COLOR, EMA_COLOR = "#1f77b4", "#d95f02", "#1b9e77"


def read_records(path: Path) -> list[Record]:
    """The records of a metrics.jsonl in order. Raises UserError if there is none."""
    try:
        return jsonl.read_records(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the folder of a run, such as "
            f"runs/quickstart"
        ) from error


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
        # The log interval starts anew with each epoch, since its last step is always recorded.
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


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if math.isfinite(seconds) else "?"


_COLUMNS: tuple[tuple[str, Callable[[EpochRow], float | None], Callable[[float], str]], ...] = (
    ("epoch", lambda row: row.epoch, "{:.4g}".format),
    ("steps", lambda row: row.step, "{:.0f}".format),
    ("train loss", lambda row: row.train.get("loss"), "{:.4f}".format),
    ("train top1", lambda row: row.train.get("top1"), _percent),
    ("val loss", lambda row: row.val.get("loss"), "{:.4f}".format),
    ("val top1", lambda row: row.val.get("top1"), _percent),
    ("val top5", lambda row: row.val.get("top5"), _percent),
    ("ema top1", lambda row: row.val.get("ema_top1"), _percent),
    ("lr", lambda row: row.train.get("lr"), "{:.4g}".format),
    ("img/s", lambda row: row.train.get("images_per_second"), "{:.0f}".format),
    ("time", lambda row: row.train.get("time_s"), _duration),
)


def epoch_table(records: Sequence[Record]) -> str:
    """A row an epoch: steps so far, means of training, the evaluation, training time (h:mm:ss)."""
    rows = epoch_rows(records)
    has_average = any("ema_top1" in row.val for row in rows)
    columns = [column for column in _COLUMNS if column[0] != "ema top1" or has_average]
    cells = [[title for title, _, _ in columns]]
    for row in rows:
        cells.append([_cell(value_of(row), style) for _, value_of, style in columns])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: float | None, style: Callable[[float], str]) -> str:
    return "-" if value is None else style(value)


def final_lines(records: Sequence[Record]) -> list[str]:
    """The final and the best validation top-1, also of the moving average if there is one."""
    lines = []
    for tag, name in (("val/top1", "validation"), ("val/ema_top1", "moving average's validation")):
        found = [record for record in records if tag in record]
        if not found:
            continue
        best = max(found, key=lambda record: record[tag])
        for kind, record in (("final", found[-1]), ("best", best)):
            where = f"step {record['step']}, epoch {record['epoch']:.4g}"
            lines.append(f"{kind} {name} top-1: {record[tag]:.2%} ({where})")
    return lines or ["no validation yet"]


def write_curves(records: Sequence[Record], path: Path, *, title: str) -> None:
    """Draw loss, accuracy and learning rate over epochs into a PNG, replaced at once."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # never asks for a display
    figure.suptitle(title, fontsize=13, fontweight="bold")
    loss, accuracy, rate = figure.subplots(1, 3)
    _draw_pair(loss, records, "loss", scale=1)
    loss.set(title="Loss", ylabel="cross-entropy")
    _draw_pair(accuracy, records, "top1", scale=100)
    accuracy.set(title="Top-1 accuracy", ylabel="%")
    rate.plot(*_series(records, "train/lr"), color="#444444", linewidth=1.6)
    rate.set(title="Learning rate")
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy, rate):
        axes.set(xlabel="epoch")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    replace_file(path, lambda file: figure.savefig(file, format="png", dpi=120))


def _draw_pair(axes: Axes, records: Sequence[Record], name: str, *, scale: float) -> None:
    """Training as it was recorded (faint) and by epoch, and evaluations."""
    recorded = _series(records, f"train/{name}", scale)
    axes.plot(*recorded, color=TRAIN_COLOR, linewidth=0.8, alpha=0.35)
    rows = [row for row in epoch_rows(records) if row.train]
    # Drawn at the middle of its epoch, where the mean belongs.
    bounds = [math.ceil(rows[0].epoch) - 1.0 if rows else 0.0, *(row.epoch for row in rows)]
    middles = [(low + high) / 2 for low, high in pairwise(bounds)]
    means = [row.train[name] * scale for row in rows]
    for (epochs, values), label, color in (
        ((middles, means), "train (mean of epoch)", TRAIN_COLOR),
        (_series(records, f"val/{name}", scale), "validation", VAL_COLOR),
        (_series(records, f"val/ema_{name}", scale), "validation, moving average", EMA_COLOR),
    ):
        if epochs:
            marker = "o" if len(epochs) <= 40 else None
            style: dict[str, Any] = {"marker": marker, "markersize": 3.5, "linewidth": 1.8}
            axes.plot(epochs, values, color=color, label=label, **style)


def _series(
    records: Sequence[Record], tag: str, scale: float = 1
) -> tuple[list[float], list[float]]:
    """Epochs and values of a tag, for plotting."""
    found = [record for record in records if tag in record]
    return [float(r["epoch"]) for r in found], [r[tag] * scale for r in found]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write curves.png. Returns 0, or 2 for a folder without metrics."""
    parser = argparse.ArgumentParser(prog="resnet_dist.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a run, such as runs/quickstart")
    run_dir = parser.parse_args(argv).run_dir
    try:
        records = read_records(run_dir / "metrics.jsonl")
        if not records:
            raise UserError(f"{run_dir / 'metrics.jsonl'}: holds no record yet; try again later")
        curves = run_dir / "curves.png"
        write_curves(records, curves, title=run_dir.resolve().name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(epoch_table(records))
    print("\n".join(final_lines(records)))
    print(f"curves: {curves}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
