"""The status of runs, and errors, as text for people; the status also as JSON for programs."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from launch.reports.run_status import AttemptRow, RunStatus, run_status
from resnet_dist.errors import UserError, printable

COLUMNS = ("run", "job", "state", "tries", "step", "loss", "top1", "img/s", "left", "why")
_MAX_REASON = 100


def print_error(error: UserError) -> int:
    """Print an error, one rule per line. Returns the exit code."""
    lines = printable(str(error), keeps="\n\t").splitlines()
    print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
    return error.exit_code


def table(folders: Sequence[Path]) -> str:
    """One line per run."""
    rows = [COLUMNS, *(_cells(run_status(folder), folders) for folder in folders)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cells(status: RunStatus, folders: Sequence[Path]) -> tuple[str, ...]:
    done = status.progress
    total = f"/{done.num_steps}" if done.num_steps is not None else ""
    has_names = len({folder.name for folder in folders}) == len(folders)
    tries = str(len(status.attempts))
    if status.num_restarts:
        tries += f"+{status.num_restarts}"
    why = status.reason
    if not why and len(status.attempts) > 1 and status.state != "FINISHED":
        why = next((row.reason for row in reversed(status.attempts) if row.reason), "")
    return (
        status.run_dir.name if has_names else str(status.run_dir),
        status.job_id or "-",
        status.state,
        tries,
        f"{done.step}{total}",
        f"{done.loss:.4f}" if done.loss is not None else "-",
        f"{done.top1:.2%}" if done.top1 is not None else "-",
        f"{done.images_per_second:.0f}" if done.images_per_second is not None else "-",
        _duration(done.left_s) if status.state == "RUNNING" else "-",
        why[:_MAX_REASON],
    )


def details(folder: Path, *, now: float | None = None) -> str:
    """One run with its attempts. `now`: seconds since 1970, from the clock if None."""
    status = run_status(folder)
    lines = _run_lines(status, time.time() if now is None else now)
    for row in status.attempts:
        lines += _attempt_lines(row)
    return "\n".join(lines)


def _run_lines(status: RunStatus, now: float) -> list[str]:
    done = status.progress
    reason = f" ({status.reason})" if status.reason else ""
    lines = [
        f"run       {status.run_dir}",
        f"job       {status.job_id or '-'}  {status.state}{reason}",
    ]
    if status.nodes:
        lines.append(f"nodes     {status.nodes}  (time limit in {status.time_left})")
    total = f" of {done.num_steps}" if done.num_steps is not None else ""
    epoch = f"  epoch {done.epoch:g}" if done.epoch else ""
    lines.append(f"step      {done.step}{total}{epoch}")
    if done.loss is not None:
        lines.append(f"loss      {done.loss:.4f}")
    if done.top1 is not None:
        lines.append(f"top1      {done.top1:.2%}")
    if done.images_per_second is not None:
        age = f", {_duration(now - done.time)} ago" if done.time else ""
        lines.append(f"speed     {done.images_per_second:.0f} images/s{age}")
    if status.state == "RUNNING" and done.left_s is not None:
        lines.append(f"left      {_duration(done.left_s)} at this speed")
    lines.append(f"attempts  {len(status.attempts)}, restarts of workers {status.num_restarts}")
    return lines


def _attempt_lines(row: AttemptRow) -> list[str]:
    began = time.strftime("%m-%d %H:%M:%S", time.localtime(row.began)) if row.began else "-"
    step = f" at step {row.step}" if row.step is not None else ""
    what = f"{row.outcome}{step}"
    if row.reason and row.reason != what:
        what += f": {row.reason}"
    lines = [f"  {row.name}  {began}  {','.join(row.hosts)}  {what}"]
    lines += [f"           torchrun: {text}" for text in row.restart_reasons]
    if row.excluded:
        lines.append(f"           left out from then on: {','.join(row.excluded)}")
    return lines


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))


def as_json(folder: Path) -> dict[str, Any]:
    """One run for programs."""
    status = run_status(folder)
    content = dataclasses.asdict(status)
    content["run_dir"] = str(status.run_dir)
    progress = {**content["progress"], "left_s": status.progress.left_s}
    content["progress"] = {  # JSON has no NaN
        key: str(value) if value is not None and not math.isfinite(value) else value
        for key, value in progress.items()
    }
    content["num_restarts"] = status.num_restarts
    return content
