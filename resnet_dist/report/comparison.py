"""Several runs side by side, in words: a table, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from resnet_dist.config.load import to_flat
from resnet_dist.report.facts import RunFacts, named_apart
from resnet_dist.report.table import duration

_UNINTERESTING = ("run.", "log.", "data.cache_dir", "data.local_cache")
_NARROW = 80
_NAME_WIDTH = 22


def rows(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """What is compared, and each run's value in words."""
    columns: list[tuple[str, Callable[[RunFacts], str]]] = [
        ("outcome", lambda run: run.outcome),
        ("final top-1", lambda run: _percent(run.last("val/top1"))),
        ("best top-1", lambda run: _percent(run.best("val/top1"))),
        ("final top-1, average", lambda run: _percent(run.last("val/ema_top1"))),
        ("final validation loss", lambda run: _number(run.last("val/loss"))),
        ("epochs", lambda run: _number(run.records[-1].get("epoch"))),
        ("steps", lambda run: str(int(run.records[-1]["step"]))),
        ("ranks", lambda run: "-" if run.world_size is None else str(run.world_size)),
        ("images/s, median", lambda run: _number(run.median("train/images_per_second"))),
        ("wait for data", lambda run: _percent(run.median("train/data_wait_share"))),
        ("time in all", lambda run: duration(run.times.total)),
        ("in steps (goodput)", lambda run: _percent(run.times.goodput)),
        ("images trained", lambda run: "-" if run.images is None else f"{run.images:,}"),
        ("energy, kWh", lambda run: _number(run.energy_kwh)),
        ("cost", lambda run: "-" if run.cost is None else f"{run.cost:.2f}"),
        ("restarts", lambda run: str(run.restarts)),
        ("stopped or repeated", lambda run: duration(run.times.stopped)),
        ("a save held a step, ms", lambda run: _number(run.median("checkpoint/blocked_ms"))),
        ("a save took, s", lambda run: _number(run.median("checkpoint/write_s"))),
        ("skipped steps", lambda run: _number(run.last("train/skipped_steps"))),
    ]
    found = [(title, [value_of(run) for run in runs]) for title, value_of in columns]
    return [(title, values) for title, values in found if set(values) != {"-"}]


def differing_settings(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, and each run's value; "?" where a run's folder
    does not say."""
    flat: list[dict[str, Any]] = [{} if run.config is None else to_flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    result = []
    for key in keys:
        if key.startswith(_UNINTERESTING):
            continue
        values = [str(settings[key]) if key in settings else "?" for settings in flat]
        if len(set(values) - {"?"}) > 1:
            result.append((key, values))
    return result


def comparison_lines(runs: Sequence[RunFacts]) -> list[str]:
    """Both tables, a block of runs under the other where they do not fit into 80 columns."""
    names = named_apart(runs)
    facts, settings = rows(runs), differing_settings(runs)
    left = max(len(title) for title, _ in [*facts, *settings, ("", [])])
    each = min(_NAME_WIDTH, max(12, *(len(name) for name in names)))
    per_block = max(1, (_NARROW - left) // (each + 1))
    lines: list[str] = []
    for first in range(0, len(runs), per_block):
        block = slice(first, first + per_block)
        lines.append(_line("", [_short(name, each) for name in names[block]], left, each))
        for title, values in [*facts, ("", []), *settings]:
            cells = [_short(value, each) for value in values[block]]
            lines.append(_line(title, cells, left, each))
        lines.append("")
    if not settings:
        lines.append("no setting differs")
    return lines


def _line(title: str, cells: Sequence[str], left: int, each: int) -> str:
    return " ".join([title.ljust(left), *(cell.rjust(each) for cell in cells)]).rstrip()


def _short(text: str, width: int) -> str:
    """Its end where it is too long: names of runs differ there."""
    return text if len(text) <= width else "..." + text[3 - width :]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | int) else "-"
