"""Whether a run lies where runs of its recipe lie: bands of several seeds, in `configs/bands/`.

A band is a JSON file named after the recipe, so that anybody can add one (`benchmarks/seeds.py
--band FILE` writes it):

    {"recipe": "quickstart", "num_train_samples": 4000, "made_with": {...},
     "epochs": [1, 2], "val/top1": [[0.29, 0.62], ...one list per seed]}
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_dist.config import Config
from resnet_dist.config.load import Difference, exact_differences, load_config, to_flat
from resnet_dist.errors import UserError
from resnet_dist.metrics.jsonl import Record

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "bands"
TAG = "val/top1"
_MOST_DIFFERENCES = 12
"""A run with more settings that differ is not of that recipe."""
_OF_NO_RECIPE = ("seed", "loss.teacher")
_QUANTILES = {2: 9.925, 3: 5.841, 4: 4.604, 5: 4.032, 6: 3.707, 7: 3.499, 8: 3.355, 9: 3.250}
"""Student's t at 99.5 %, by degrees of freedom: one run of 100 lies outside of an epoch's range."""


@dataclass(frozen=True)
class Band:
    """Validation accuracy of several seeds, by epoch."""

    recipe: str
    num_train_samples: int
    epochs: list[int]
    runs: list[list[float]]
    """Top-1 of each seed after each of the epochs, of 1."""

    def range_at(self, epoch: int) -> tuple[float, float] | None:
        """Where one more run lies at the end of an epoch, 99 times of 100; None: not known."""
        if epoch not in self.epochs or len(self.runs) < 3:
            return None
        values = [run[self.epochs.index(epoch)] for run in self.runs]
        freedom = len(values) - 1
        reach = _QUANTILES.get(freedom, 3.0) * statistics.stdev(values)
        reach *= math.sqrt(1.0 + 1.0 / len(values))
        middle = statistics.fmean(values)
        return max(0.0, middle - reach), min(1.0, middle + reach)


def read_band(path: Path) -> Band:
    """One file. Raises UserError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        band = Band(
            recipe=content["recipe"],
            num_train_samples=int(content["num_train_samples"]),
            epochs=[int(epoch) for epoch in content["epochs"]],
            runs=[[float(value) for value in run] for run in content[TAG]],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"band ({path}): cannot be read: {type(error).__name__} {error}") from None
    if any(len(run) != len(band.epochs) for run in band.runs):
        raise UserError(f"band ({path}): needs a value per epoch in each run")
    return band


def bands() -> list[Band]:
    """All shipped ones."""
    return [read_band(path) for path in sorted(FOLDER.glob("*.json"))]


def band_of(config: Config, num_train_samples: int) -> tuple[Band, list[Difference]] | None:
    """The band of the recipe that a run's settings are nearest to, and what differs; None if the
    run is of none of them, or on other data."""
    found: list[tuple[Band, list[Difference]]] = []
    for band in bands():
        recipe = load_config([band.recipe]).config
        differences = [
            each
            for each in exact_differences(to_flat(recipe), config)
            if each.key not in _OF_NO_RECIPE
        ]
        same_network = recipe.model.name == config.model.name
        if (
            band.num_train_samples == num_train_samples
            and same_network
            and len(differences) <= _MOST_DIFFERENCES
        ):
            found.append((band, differences))
    return min(found, key=lambda each: len(each[1]), default=None)


def verdict(records: Sequence[Record], band: Band, differences: Sequence[Difference]) -> list[str]:
    """What to say about a run: whether it lies in the band, and if not what may be the reason."""
    outside: list[str] = []
    latest: tuple[int, float, tuple[float, float]] | None = None
    for record in records:
        epoch = round(float(record.get("epoch", -1.0)), 6)
        limits = band.range_at(int(epoch)) if epoch == int(epoch) else None
        if TAG not in record or limits is None:
            continue
        latest = int(epoch), float(record[TAG]), limits
        if not limits[0] <= float(record[TAG]) <= limits[1]:
            outside.append(f"{int(epoch)} ({'below' if record[TAG] < limits[0] else 'above'})")
    head = f"{len(band.runs)} seeds of {band.recipe}"
    if latest is None:
        return [f"band of {head}: no epoch to compare yet"]
    epoch, value, (low, high) = latest
    where = f"epoch {epoch}: top-1 {value:.2%}, band {low:.2%} to {high:.2%}"
    if not outside:
        return [f"within the band of {head} ({where})"]
    lines = [f"outside the band of {head} at epochs {', '.join(outside)} ({where})"]
    if not differences:
        return [*lines, "  no setting differs from the recipe: look at data, versions, hardware"]
    lines.append("  settings that differ from the recipe:")
    return [
        *lines,
        *(f"    {each.key}: {each.before!r} there, {each.now!r} here" for each in differences),
    ]
