"""`python -m launch.status [RUN ...]`: what became of runs, from Slurm and from their folders.

Without arguments: all runs below `runs/`. One run is shown with its attempts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from launch import epilogue, runs, slurm
from launch.attempt import (
    AttemptName,
    attempts,
    events,
    is_cancelled,
    newest_attempt,
    notes,
    read_json,
    read_lines,
)
from resnet_dist.errors import UserError


@dataclass(frozen=True)
class AttemptRow:
    """One attempt."""

    name: str
    began: float | None
    """Seconds since 1970."""
    hosts: list[str]
    outcome: str
    """finished, stopped, cancelled, failed, refused; lost: it left no word; running; unknown: no
    word yet, and Slurm could not be asked."""
    reason: str
    restarts: int
    """Of the workers by torchrun."""
    restart_reasons: list[str]
    excluded: list[str]
    """Nodes that were left out from then on."""
    step: int | None
    """Of the newest checkpoint when it ended."""


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    run_dir: Path
    job_id: str | None
    state: str
    """Slurm's word while the job is queued or runs, else FINISHED, CANCELLED, FAILED ..."""
    reason: str
    nodes: str
    time_left: str
    """Of this attempt, as Slurm writes it."""
    progress: runs.Progress
    attempts: list[AttemptRow]

    @property
    def num_restarts(self) -> int:
        """Of the workers by torchrun, over all attempts."""
        return sum(row.restarts for row in self.attempts)


def run_status(run_dir: Path) -> RunStatus:
    """Ask Slurm, if it is here, and read the folder."""
    submitted = runs.submissions(run_dir)
    last = submitted[-1] if submitted else None
    job, remark = None, ""
    if last is not None and last.job_id is not None and shutil.which("squeue"):
        try:
            job = slurm.states([last.job_id])[last.job_id]
        except slurm.SlurmError as error:  # the folder still tells what happened in it
            remark = f"; Slurm could not be asked: {error}"
    rows = attempt_rows(run_dir, submitted, job)
    state, reason = _state(run_dir, job, rows)
    return RunStatus(
        run_dir=run_dir,
        job_id=last.job_id if last else None,
        state=state,
        reason=(reason + remark).removeprefix("; "),
        nodes=job.nodes if job is not None and job.is_active else "",
        time_left=job.time_left if job is not None and job.is_active else "",
        progress=runs.progress(run_dir),
        attempts=rows,
    )


def _state(
    run_dir: Path, job: slurm.JobState | None, rows: Sequence[AttemptRow]
) -> tuple[str, str]:
    """The state of a run in one word, and why."""
    if job is not None and job.is_active:
        return job.state, job.reason
    if job is None and (owner := runs.lock_owner(run_dir)) is not None:
        return "RUNNING", owner
    outcome = runs.last_outcome(run_dir)
    if outcome in ("finished", "limited"):
        return "FINISHED", "train.max_steps is reached" if outcome == "limited" else ""
    if is_cancelled(run_dir):
        return "CANCELLED", "launch.cancel"
    if rows and rows[-1].outcome in ("failed", "refused"):
        return rows[-1].outcome.upper(), rows[-1].reason
    if job is not None and job.state != "UNKNOWN":
        return job.state, job.reason or (rows[-1].reason if rows else "")
    return (rows[-1].outcome.upper(), rows[-1].reason) if rows else ("UNKNOWN", "")


def attempt_rows(
    run_dir: Path, submitted: Sequence[runs.Submission], job: slurm.JobState | None
) -> list[AttemptRow]:
    """All attempts, oldest first."""
    names = attempts(run_dir)
    current, newest = _current(run_dir, submitted, job), newest_attempt(run_dir)
    job_ids = {submission.number: submission.job_id for submission in submitted}
    histories: dict[str, list[slurm.JobState]] = {}
    rows = []
    for name in names:
        starts = events(run_dir, name, "start")
        end = read_json(run_dir / "attempts" / str(name) / "end.json")
        is_open = name == newest and current != "lost"
        if end is None:
            end = {"outcome": current, "reason": ""} if is_open else _without_end(run_dir, name)
        outcome, reason = str(end["outcome"]), str(end["reason"])
        if outcome == "lost" or "SIGTERM" in reason:
            words = _word_of_slurm(job_ids.get(name.submission), name, histories)
            reason += f" (Slurm: {words})" if words else ""
        num_starts, why = _restarts(run_dir, name, starts)
        rows.append(
            AttemptRow(
                name=str(name),
                began=float(starts[0]["time"]) if starts else None,
                hosts=list(starts[0]["hosts"]) if starts else [],
                outcome=outcome,
                reason=reason,
                restarts=max(0, num_starts - 1),
                restart_reasons=why,
                excluded=list(end.get("excluded", [])),
                step=end.get("step"),
            )
        )
    return rows


def _without_end(run_dir: Path, name: AttemptName) -> dict[str, Any]:
    """What `end.json` would say of an attempt whose batch script was killed before it could judge,
    from what the nodes and the training itself wrote down."""
    ends = epilogue.ends_of(run_dir, name)
    if ends:
        end = ends[-1]
        reason = f"{end.get('reason') or end['outcome']}; killed before it could say more"
        return {"outcome": end["outcome"], "reason": reason, "step": end["step"]}
    told: list[str] = []
    silent: list[str] = []
    for node, lines in notes(run_dir, name).items():
        is_told = any(line["event"] in ("signal", "end") for line in lines)
        hosts = [str(line["host"]) for line in lines[:1]] or [f"node {node}"]
        (told if is_told else silent).extend(hosts)
    if told and silent:
        reason = f"{', '.join(silent)} left no word, and was lost or killed"
        return {"outcome": "lost", "reason": reason}
    kinds = sorted({str(line["signal"]) for line in events(run_dir, name, "signal")})
    if kinds:
        reason = f"{', '.join(kinds)}, and killed before it could say how it ended"
        return {"outcome": "stopped", "reason": reason}
    return {"outcome": "lost", "reason": "left no word; its nodes or its batch script were killed"}


def _current(
    run_dir: Path, submitted: Sequence[runs.Submission], job: slurm.JobState | None
) -> str:
    """What the newest attempt does if it has not said how it ended."""
    if job is not None:
        return "running" if job.state in ("RUNNING", "COMPLETING", "SUSPENDED") else "lost"
    if runs.lock_owner(run_dir) is not None:
        return "running"
    return "unknown" if submitted and submitted[-1].job_id is not None else "lost"


def _word_of_slurm(
    job_id: str | None, name: AttemptName, histories: dict[str, list[slurm.JobState]]
) -> str:
    """The state in which the accounting closed an attempt."""
    if job_id is None or not shutil.which("sacct"):
        return ""
    if job_id not in histories:
        histories[job_id] = slurm.history(job_id)
    rows = histories[job_id]
    return rows[name.restart].state if name.restart < len(rows) else ""


def _restarts(
    run_dir: Path, name: AttemptName, starts: Sequence[dict[str, Any]]
) -> tuple[int, list[str]]:
    """How often training was started within an attempt, and what torchrun said in between."""
    if not starts:
        return 0, []
    launch = name.launch_id(starts[0]["job_id"])
    lines = read_lines(run_dir / "starts.jsonl")
    count = sum(line.get("launch") == launch for line in lines)
    said = [f"{line['host']}: {line['text']}" for line in events(run_dir, name, "worker")]
    return count, list(dict.fromkeys(said))


_COLUMNS = ("run", "job", "state", "tries", "step", "loss", "top1", "img/s", "left", "why")


def table(folders: Sequence[Path]) -> str:
    """One line a run."""
    rows = [_COLUMNS, *(_cells(run_status(folder), folders) for folder in folders)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cells(status: RunStatus, folders: Sequence[Path]) -> tuple[str, ...]:
    done = status.progress
    total = f"/{done.num_steps}" if done.num_steps is not None else ""
    is_alike = len({folder.name for folder in folders}) == len(folders)
    tries = str(len(status.attempts))
    if status.num_restarts:
        tries += f"+{status.num_restarts}"
    why = status.reason
    if not why and len(status.attempts) > 1 and status.state != "FINISHED":
        why = next((row.reason for row in reversed(status.attempts) if row.reason), "")
    return (
        status.run_dir.name if is_alike else str(status.run_dir),
        status.job_id or "-",
        status.state,
        tries,
        f"{done.step}{total}",
        f"{done.loss:.4f}" if done.loss is not None else "-",
        f"{done.top1:.2%}" if done.top1 is not None else "-",
        f"{done.images_per_second:.0f}" if done.images_per_second is not None else "-",
        _duration(done.left_s) if status.state == "RUNNING" else "-",
        why[:100],
    )


def details(folder: Path) -> str:
    """One run with its attempts."""
    status = run_status(folder)
    done = status.progress
    lines = [
        f"run       {folder}",
        f"job       {status.job_id or '-'}  {status.state}"
        + (f" ({status.reason})" if status.reason else ""),
    ]
    if status.nodes:
        lines.append(f"nodes     {status.nodes}  (time limit in {status.time_left})")
    total = f" of {done.num_steps}" if done.num_steps is not None else ""
    lines.append(
        f"step      {done.step}{total}" + (f"  epoch {done.epoch:g}" if done.epoch else "")
    )
    if done.loss is not None:
        lines.append(f"loss      {done.loss:.4f}")
    if done.top1 is not None:
        lines.append(f"top1      {done.top1:.2%}")
    if done.images_per_second is not None:
        age = f", {_duration(time.time() - done.time)} ago" if done.time else ""
        lines.append(f"speed     {done.images_per_second:.0f} images/s{age}")
    if status.state == "RUNNING" and done.left_s is not None:
        lines.append(f"left      {_duration(done.left_s)} at this speed")
    lines.append(f"attempts  {len(status.attempts)}, restarts of workers {status.num_restarts}")
    for row in status.attempts:
        began = time.strftime("%m-%d %H:%M:%S", time.localtime(row.began)) if row.began else "-"
        where = ",".join(row.hosts)
        step = f" at step {row.step}" if row.step is not None else ""
        what = f"{row.outcome}{step}"
        if row.reason and row.reason != what:
            what += f": {row.reason}"
        lines.append(f"  {row.name}  {began}  {where}  {what}")
        lines += [f"           torchrun: {text}" for text in row.restart_reasons]
        if row.excluded:
            lines.append(f"           left out from then on: {','.join(row.excluded)}")
    return "\n".join(lines)


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))


def as_json(folder: Path) -> dict[str, Any]:
    """For programs."""
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


def find_runs(arguments: Sequence[str]) -> list[Path]:
    """The run folders that are named, or all below `runs/`. Raises UserError."""
    if arguments:
        return [path for name in arguments for path in runs.expand(Path(name).expanduser())]
    found = sorted(path.parent for path in Path("runs").glob("*/submissions"))
    if not found:
        raise UserError("runs/: holds no submitted run; give a run folder")
    return list(dict.fromkeys(path for folder in found for path in runs.expand(folder)))


def main(argv: Sequence[str] | None = None) -> int:
    """Show runs. Returns 0, or 2 if a folder is none."""
    parser = argparse.ArgumentParser(prog="launch.status", description="State of submitted runs.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders (default: runs/*)")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=10.0, metavar="SECONDS", help="show again and again"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args(argv)
    try:
        while True:
            folders = find_runs(arguments.runs)
            if arguments.json:
                print(json.dumps([as_json(folder) for folder in folders], indent=1))
            else:
                text = details(folders[0]) if len(folders) == 1 else table(folders)
                if arguments.watch:
                    print("\033[2J\033[H" if sys.stdout.isatty() else "", end="")
                    text = f"{time.strftime('%H:%M:%S')}\n{text}"
                print(text, flush=True)
            if arguments.watch is None:
                return 0
            time.sleep(arguments.watch)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
