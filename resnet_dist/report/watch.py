"""A run in the terminal while it trains: read from its folder, drawn again every two seconds."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from resnet_dist.report.facts import RunFacts, read_run
from resnet_dist.report.table import duration

_EVERY_S = 2.0
_BLOCKS = "▁▂▃▄▅▆▇█"
_CLEAR = "\x1b[H\x1b[2J"
_SILENT_S = 120.0
"""A run that has recorded nothing for so long may be dead."""


def watch(folder: Path, *, every_s: float = _EVERY_S) -> None:
    """Draw until the run ends, or Ctrl-C. Without a terminal it is drawn once. Raises UserError for
    a folder without records."""
    is_live = sys.stdout.isatty()
    while is_live and folder.is_dir() and not _has_records(folder):
        print(f"{_CLEAR}{folder}: waiting for the first record", flush=True)
        if not _paused(every_s):
            return
    while True:
        run = read_run(folder)
        width = min(80, shutil.get_terminal_size().columns)
        text = "\n".join(view(run, width=width, now=time.time()))
        if not is_live:
            print(text)
            return
        print(f"{_CLEAR}{text}\n(Ctrl-C ends this view, not the training)", flush=True)
        if run.outcome not in ("running, or killed", "unknown"):
            return
        if not _paused(every_s):
            return


def _has_records(folder: Path) -> bool:
    path = folder / "metrics.jsonl"
    return path.is_file() and b"\n" in path.read_bytes()


def _paused(seconds: float) -> bool:
    """Wait; False if Ctrl-C was pressed meanwhile."""
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        print()
        return False
    return True


def view(run: RunFacts, *, width: int, now: float) -> list[str]:
    """What there is to see, in lines of `width` columns at most. `now`: seconds since 1970."""
    step = int(run.records[-1]["step"])
    total = run.starts[-1].get("num_steps") if run.starts else None
    lines = [_head(run, now)]
    if isinstance(total, int) and total > 0:
        lines.append(_progress(run, step, total, width))
    lines += [_training(run), _validation(run)]
    for tag, name, scale in (
        ("train/loss", "train loss", 1.0),
        ("val/loss", "val loss", 1.0),
        ("train/top1", "train top-1", 100.0),
        ("val/top1", "val top-1", 100.0),
        ("train/images_per_second", "images/s", 1.0),
    ):
        values = [float(r[tag]) * scale for r in run.records if tag in r]
        if len(values) > 1:
            lines.append(_curve(name, values, width))
    return [line[:width] for line in lines if line]


def _head(run: RunFacts, now: float) -> str:
    words = [run.name]
    if run.config is not None:
        words.append(run.config.model.name)
    if run.world_size is not None:
        words.append(f"{run.world_size} rank(s)")
    outcome = run.outcome
    silent = now - max((float(r["time"]) for r in run.records if "time" in r), default=now)
    if outcome == "running, or killed":
        outcome = "running" if silent < _SILENT_S else f"silent for {duration(silent)}"
    return "  ".join([*words, outcome, f"{run.restarts} restart(s)"])


def _progress(run: RunFacts, step: int, total: int, width: int) -> str:
    share = min(1.0, step / total)
    milliseconds = run.last("train/step_time_ms") or math.nan
    left = duration((total - step) * milliseconds / 1e3)
    words = f"epoch {run.records[-1]['epoch']:.2f}  step {step}/{total}  {share:.0%}  eta {left}"
    room = max(4, width - len(words) - 4)
    filled = round(room * share)
    return f"{words}  |{'█' * filled}{' ' * (room - filled)}|"


def _training(run: RunFacts) -> str:
    if run.last("train/loss") is None:
        return ""
    words = [f"train  loss {run.last('train/loss'):.4f}"]
    for tag, form in (
        ("train/top1", "top-1 {:.2%}"),
        ("train/lr", "lr {:.4g}"),
        ("train/images_per_second", "{:,.0f} img/s"),
        ("train/data_wait_share", "wait for data {:.0%}"),
    ):
        value = run.last(tag)
        if value is not None:
            words.append(form.format(value))
    return "  ".join(words)


def _validation(run: RunFacts) -> str:
    top1, best = run.last("val/top1"), run.best("val/top1")
    if top1 is None or best is None:
        return "val    not yet"
    loss = run.last("val/loss")
    words = f"val    loss {loss:.4f}  " if loss is not None else "val    "
    return f"{words}top-1 {top1:.2%}  best {best:.2%}"


def _curve(name: str, values: Sequence[float], width: int) -> str:
    """First value, a line of blocks, last value."""
    head, tail = f"{name:<12}{values[0]:>9.4g} ", f" {values[-1]:.4g}"
    room = max(8, width - len(head) - len(tail))
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    columns = min(room, len(values))
    marks = ""
    for number in range(columns):
        part = values[number * len(values) // columns : (number + 1) * len(values) // columns]
        kept = [value for value in part if math.isfinite(value)]
        if not kept:
            marks += "!"  # nothing finite there
            continue
        height = (sum(kept) / len(kept) - low) / (high - low) if high > low else 0.0
        marks += _BLOCKS[min(len(_BLOCKS) - 1, int(height * len(_BLOCKS)))]
    return head + marks + tail
