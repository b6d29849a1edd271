"""A run folder that is written event by event, for the tests of what reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch.records.attempt import Attempt, AttemptName
from launch.records.ending import Cause, Ending, Outcome, write_ending
from launch.records.submissions import Submission, submission_folder

NOW = 1_700_000_000.0
"""The time at which all of it is looked at."""


class MadeUp:
    """A run folder that is written event by event."""

    def __init__(self, run_dir: Path, job_id: str | None = "7") -> None:
        run_dir.mkdir(parents=True)
        self.run_dir, self.job_id = run_dir, job_id
        self.submit(1)

    def submit(self, number: int) -> None:
        folder = submission_folder(self.run_dir, number)
        folder.mkdir(parents=True)
        cluster: dict[str, Any] = {}
        Submission(
            self.run_dir, number, self.job_id, folder, "resnet_dist.train", folder, cluster, 1.0
        ).write()

    def begin(self, name: str, *hosts: str, starts: int = 1) -> Attempt:
        """An attempt whose trainer was started so often."""
        attempt = Attempt(self.run_dir, AttemptName.parse(name), 0)
        attempt.enter(0, {})
        attempt.note("start", job_id=self.job_id or "local", hosts=list(hosts or ("node1",)))
        line = {"launch": f"{self.job_id or 'local'}.{name}", "num_steps": 1000}
        with (self.run_dir / "starts.jsonl").open("a") as file:
            file.write((json.dumps(line) + "\n") * starts)
        return attempt

    def end(
        self,
        name: str,
        outcome: str,
        reason: str,
        *exclude: str,
        cause: Cause = Cause.UNKNOWN,
        step: int = 0,
    ) -> None:
        ending = Ending(
            outcome=Outcome(outcome),
            cause=cause,
            reason=reason,
            is_requeued=outcome in ("failed", "stopped"),
            exclude=exclude,
        )
        write_ending(self.run_dir, AttemptName.parse(name), ending, step=step)

    def says(self, outcome: str, **facts: Any) -> None:
        """The training ends by itself."""
        line = {"outcome": outcome, **facts}
        (self.run_dir / "ends.jsonl").write_text(json.dumps(line) + "\n")

    def record(self, step: int, **values: Any) -> None:
        named = {key.replace("__", "/"): value for key, value in values.items()}
        line = {"step": step, "epoch": step / 100, **named, "time": NOW - 30}
        with (self.run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
