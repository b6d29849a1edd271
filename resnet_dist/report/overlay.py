"""The curves of several runs in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from resnet_dist.report.facts import RunFacts

if TYPE_CHECKING:  # it takes seconds to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WINDOWS = 50
"""A smoothed value is the mean over about this part of a curve, to each side."""
_MOST_MARKERS = 40


def draw(runs: Sequence[RunFacts], names: Sequence[str]) -> Figure:
    """Accuracy, losses and speed. A training loss has axes of its own for each way to compute it:
    with and without label smoothing, say, losses cannot be compared."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(loss_kind(run) for run in runs))
    columns = 3
    lines = math.ceil((3 + len(kinds)) / columns)
    height = 4.4 * lines + 0.35 * math.ceil(len(runs) / 3)
    figure = Figure(figsize=(15, height), layout="constrained")
    FigureCanvasAgg(figure)  # never asks for a display
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    top1, loss, speed, *training = grid[: 3 + len(kinds)]
    for axes in grid[3 + len(kinds) :]:
        axes.set_visible(False)
    palette = colormaps["tab10"]
    unit, seconds = _unit(runs)
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        color = palette(number % 10)
        _evaluations(top1, run, "top1", name, color, scale=100.0)
        _evaluations(loss, run, "loss", name, color)
        _speed(speed, run, color, seconds)
        _training(training[kinds.index(loss_kind(run))], run, color)
    top1.set(title="Validation top-1", ylabel="%")
    loss.set(title="Validation loss", ylabel="cross-entropy")
    speed.set(title="Speed", ylabel="images/s", xlabel=f"{unit} since the first record")
    speed.set_ylim(bottom=0)
    for axes, kind in zip(training, kinds, strict=True):
        axes.set(title=f"Training loss ({kind})", ylabel="smoothed; faint: as recorded")
    for axes in (top1, loss, *training):
        axes.set(xlabel="epoch")
    for axes in grid[: 3 + len(kinds)]:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02)
    handles, labels = top1.get_legend_handles_labels()
    if not handles:
        handles, labels = training[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def loss_kind(run: RunFacts) -> str:
    """How a run's training loss is computed; losses of different kinds cannot be compared."""
    if run.config is None:
        return "kind not known"
    loss, augment = run.config.loss, run.config.augment
    words = [loss.name.replace("_", " ")]
    if loss.bce_sum_classes:
        words.append("summed over classes")
    if loss.label_smoothing:
        words.append(f"smoothing {loss.label_smoothing:g}")
    if augment.is_mixing:
        words.append("mixed images")
    if loss.teacher is not None:
        words.append("with a teacher")
    return ", ".join(words)


def _evaluations(
    axes: Axes, run: RunFacts, name: str, label: str, color: Any, *, scale: float = 1.0
) -> None:
    for tag, line, more in (("val/", "-", ""), ("val/ema_", "--", ", moving average")):
        found = [record for record in run.records if f"{tag}{name}" in record]
        if found:
            axes.plot(
                [record["epoch"] for record in found],
                [record[f"{tag}{name}"] * scale for record in found],
                line,
                color=color,
                label=f"{label}{more}",
                marker="o" if len(found) <= _MOST_MARKERS else None,
                markersize=3.5,
                linewidth=1.8,
            )


def _training(axes: Axes, run: RunFacts, color: Any) -> None:
    found = [record for record in run.records if "train/loss" in record]
    epochs = [record["epoch"] for record in found]
    values = [float(record["train/loss"]) for record in found]
    axes.plot(epochs, values, color=color, linewidth=0.8, alpha=0.3)
    axes.plot(epochs, _smoothed(values), color=color, linewidth=1.8, label=run.name)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Means over a window around each value, which do not lag behind it."""
    reach = max(1, len(values) // _WINDOWS)
    result = []
    for number in range(len(values)):
        around = values[max(0, number - reach) : number + reach + 1]
        finite = [value for value in around if math.isfinite(value)]
        result.append(sum(finite) / len(finite) if finite else math.nan)
    return result


def _unit(runs: Sequence[RunFacts]) -> tuple[str, float]:
    """In what time is counted, and its seconds."""
    longest = max(run.times.total for run in runs)
    return ("hours", 3600.0) if longest > 5400 else ("minutes", 60.0)


def _speed(axes: Axes, run: RunFacts, color: Any, seconds: float) -> None:
    found = [r for r in run.records if "train/images_per_second" in r and "time" in r]
    if found:
        first = float(found[0]["time"])
        times = [(float(record["time"]) - first) / seconds for record in found]
        axes.plot(times, [r["train/images_per_second"] for r in found], color=color, linewidth=1.2)
