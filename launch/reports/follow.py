"""Following runs until they end."""

from __future__ import annotations

import codecs
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from launch.cluster import slurm
from launch.records.progress import DONE, last_outcome
from launch.records.submissions import Submission
from launch.reports.text import table

POLL_S = 2.0
_TABLE_S = 60.0
"""Time between tables of a sweep."""


class Tail:
    """Prints what is appended to a file, also when it appears later."""

    def __init__(self, path: Path, *, out: TextIO | None = None) -> None:
        self._path, self._position, self._out = path, 0, out or sys.stdout
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def skip_to_last(self, num_lines: int) -> None:
        """Start before the last lines."""
        try:
            content = self._path.read_bytes()
        except OSError:
            return
        lines = content.splitlines(keepends=True)
        self._position = sum(len(line) for line in lines[: max(0, len(lines) - num_lines)])

    def show_new(self) -> None:
        """Print what is new."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._position:  # it was replaced
                    self._position = 0
                file.seek(self._position)
                new = file.read()
        except OSError:
            return
        self._position += len(new)
        self._out.write(self._decoder.decode(new))
        self._out.flush()


def until_ended(submitted: Sequence[Submission]) -> int:
    """Show the log of one run, or the table of several, until none is queued or runs.

    Returns 0 if all finished. Ctrl-C stops the watching, not the runs.
    """
    job_ids = [submission.job_id for submission in submitted if submission.job_id]
    folders = [submission.run_dir for submission in submitted]
    tail = Tail(submitted[0].log()) if len(submitted) == 1 else None
    shown_at, quiet = 0.0, 0
    try:
        while quiet < 2:  # twice: for a moment a job that is requeued is in no list
            active = any(state.is_active for state in _states(job_ids))
            quiet = 0 if active else quiet + 1
            if tail is not None:
                tail.show_new()
            elif time.monotonic() - shown_at > _TABLE_S:
                shown_at = time.monotonic()
                print(table(folders), flush=True)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        print("\nno longer watching; the jobs keep running", file=sys.stderr)
        return 0
    if tail is not None:
        tail.show_new()
    print(table(folders), flush=True)
    done = [last_outcome(folder) in DONE for folder in folders]
    return 0 if all(done) else 1


def _states(job_ids: Sequence[str]) -> list[slurm.JobState]:
    try:
        return list(slurm.states(job_ids).values())
    except slurm.SlurmError as error:  # slurmctld is being restarted, perhaps
        print(f"warning: {error}", file=sys.stderr)
        return [slurm.JobState(job_id, "PENDING") for job_id in job_ids]
