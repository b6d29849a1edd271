"""What a run cost: time, images, restarts, energy, money."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnet_dist.report.facts import RunFacts
from resnet_dist.report.table import duration
from resnet_dist.system.json_files import write_json

FILE_NAME = "receipt.json"


def receipt(run: RunFacts) -> dict[str, Any]:
    """The figures, as they are kept in the run folder. None: not known."""
    times = run.times
    return {
        "wall_s": round(times.total, 1),
        "steps_s": round(times.steps, 1),
        "data_wait_s": round(times.data, 1),
        "stopped_s": round(times.stopped, 1),
        "goodput": round(times.goodput, 4),
        "rank_hours": round(run.rank_hours, 4),
        "images": run.images,
        "restarts": run.restarts,
        "energy_kwh": None if run.energy_kwh is None else round(run.energy_kwh, 4),
        "cost": None if run.cost is None else round(run.cost, 2),
    }


def write_receipt(run: RunFacts) -> Path:
    """Keep it in the run folder."""
    path = run.folder / FILE_NAME
    write_json(path, receipt(run))
    return path


def receipt_lines(run: RunFacts) -> list[str]:
    """The same in words, within 80 columns; none for a copy of the records alone."""
    if not run.starts:
        return []
    times = run.times
    lines = [
        f"receipt: {duration(times.total)} in all, {times.goodput:.0%} of it in steps that count, "
        f"{run.rank_hours:.3g} rank hours"
    ]
    words = [] if run.images is None else [f"{run.images:,} images"]
    words.append(f"{run.restarts} restart(s)")
    if run.restarts:
        words.append(f"{duration(times.stopped)} stopped or repeated")
    if run.energy_kwh is not None:
        words.append(f"{run.energy_kwh:.3g} kWh")
    if run.cost is not None:
        words.append(f"cost {run.cost:.2f}")
    return [*lines, f"  {', '.join(words)}"]
