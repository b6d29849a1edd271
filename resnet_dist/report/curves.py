"""The curves of a run as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_dist.metrics.jsonl import Record
from resnet_dist.report.epochs import epoch_rows
from resnet_dist.system.files import replace_file

if TYPE_CHECKING:  # matplotlib takes seconds to import, and training needs it at its end only
    from matplotlib.axes import Axes

TRAIN_COLOR, VAL_COLOR, EMA_COLOR = "#1f77b4", "#d95f02", "#1b9e77"


def write_curves(records: Sequence[Record], path: Path, *, title: str) -> None:
    """Plot loss, accuracy and learning rate over epochs into a PNG, replaced at once."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # never asks for a display
    figure.suptitle(title, fontsize=13, fontweight="bold")
    loss, accuracy, rate = figure.subplots(1, 3)
    _plot_pair(loss, records, "loss", scale=1)
    loss.set(title="Loss", ylabel="cross-entropy")
    _plot_pair(accuracy, records, "top1", scale=100)
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


def _plot_pair(axes: Axes, records: Sequence[Record], name: str, *, scale: float) -> None:
    """Training as it was recorded (faint) and by epoch, and evaluations."""
    recorded = _series(records, f"train/{name}", scale)
    axes.plot(*recorded, color=TRAIN_COLOR, linewidth=0.8, alpha=0.35)
    rows = [row for row in epoch_rows(records) if row.train]
    # At the middle of its epoch, where the mean belongs.
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
