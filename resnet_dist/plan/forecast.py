"""From measured or given figures to hours, cost, energy and room: arithmetic, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_dist.config import Config
from resnet_dist.data.augment.progressive import train_size
from resnet_dist.report.table import duration
from resnet_dist.run.cadence import cadence_of

_FORWARD_SHARE = 1 / 3
"""Share of a training step's time, where the evaluation was not measured: forward alone."""


@dataclass(frozen=True)
class Figures:
    """What one rank does per second, and takes."""

    images_per_s: float
    """Loader and step together, at the size of the first epoch."""
    step_images_per_s: float | None = None
    """The step alone; None: not measured."""
    loader_images_per_s: float | None = None
    """The loader alone; None: not measured."""
    eval_images_per_s: float | None = None
    watts: float | None = None
    """None: no counter."""
    memory_gib: float | None = None
    checkpoint_bytes: int | None = None


@dataclass(frozen=True)
class Forecast:
    """A run from its first step to its last."""

    steps: int
    images: int
    train_s: float
    eval_s: float
    ranks: int

    @property
    def seconds(self) -> float:
        """Training and evaluations; start-up is left out."""
        return self.train_s + self.eval_s

    @property
    def rank_hours(self) -> float:
        """Hours times ranks."""
        return self.seconds * self.ranks / 3600.0


def forecast(
    config: Config, figures: Figures, *, ranks: int, num_train: int, num_val: int
) -> Forecast:
    """The run of a config. Communication between ranks is counted as far as the figures hold it."""
    cadence = cadence_of(config, num_train)
    images = cadence.stop_step * config.train.global_batch_size
    train_s = images * _relative_pixels(config) / (figures.images_per_s * ranks)
    ends = range(cadence.steps_per_epoch, cadence.stop_step + 1, cadence.steps_per_epoch)
    passes = sum(cadence.evaluates(step) for step in ends) + config.eval.at_start
    passes *= (1 + (config.train.ema_decay is not None)) * (1 + config.eval.flip)
    rate = figures.eval_images_per_s or figures.images_per_s / _FORWARD_SHARE
    return Forecast(
        steps=cadence.stop_step,
        images=images,
        train_s=train_s,
        eval_s=passes * num_val / (rate * ranks),
        ranks=ranks,
    )


def _relative_pixels(config: Config) -> float:
    """Pixels of an image, mean over all epochs, relative to the first (progressive resizing)."""
    epochs = range(config.train.epochs)
    sizes = [train_size(config.augment, config.data.train_size, epoch) for epoch in epochs]
    return sum(size * size for size in sizes) / (len(sizes) * sizes[0] ** 2)


def lines(config: Config, figures: Figures, run: Forecast, *, price: float | None) -> list[str]:
    """The forecast in words, within 80 columns."""
    rows = [
        (
            "steps",
            f"{run.steps:,} of {config.train.global_batch_size} images, {config.train.epochs} "
            f"epochs",
        ),
        ("images", f"{run.images:,}"),
        ("speed", f"{figures.images_per_s * run.ranks:,.0f} images/s on {run.ranks} rank(s)"),
        (
            "time",
            f"{duration(run.seconds)}: training {duration(run.train_s)}, evaluation "
            f"{duration(run.eval_s)}",
        ),
        ("rank hours", f"{run.rank_hours:,.4g}"),
    ]
    if price is not None:
        rows.append(("cost", f"{run.rank_hours * price:,.2f}"))
    if figures.watts is not None:
        kwh = figures.watts * run.rank_hours / 1e3
        rows.append(("energy", f"{kwh:,.4g} kWh ({figures.watts:.0f} W per rank)"))
    if figures.checkpoint_bytes is not None:
        kept = figures.checkpoint_bytes * config.checkpoint.most_files
        one = figures.checkpoint_bytes / 2**20
        rows.append(("disk", f"{kept / 2**30:.2f} GiB: checkpoints of {one:,.0f} MiB"))
    if figures.memory_gib is not None:
        rows.append(("memory", f"{figures.memory_gib:.1f} GiB per rank"))
    rows.append(("limit", limit(figures)))
    return [f"{name:<11}{text}" for name, text in rows]


def limit(figures: Figures) -> str:
    """What keeps the run from being faster."""
    step, loader = figures.step_images_per_s, figures.loader_images_per_s
    if step is None or loader is None:
        return "not measured"
    if loader < step:
        return f"the loader: {loader:,.0f} images/s per rank, the step could take {step:,.0f}"
    if figures.images_per_s < 0.95 * step:
        return "loader and step share the same cores"
    return f"the step: {step:,.0f} images/s per rank; the loader gives {loader:,.0f}"
