"""A run that was submitted with `python -m launch.submit`, as its user and its cluster see it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults import traced
from tests.faults.hosts import wait_until
from tests.faults.traced import samples_by_step
from tests.launch import TINY, assert_same_run, losses, records, records_so_far
from tests.slurm.cluster import Cluster

NUM_STEPS = 20
SETTINGS = [
    *TINY,
    # Low, so that rounding, which depends on the number of ranks, stays rounding.
    "optim.lr=0.005",
    "performance.num_threads=1",
    "data.num_workers=1",
    "data.loader=torch",
    "checkpoint.every_steps=2",
    "dist.timeout_s=20",
]
"""A run of 20 steps in 5 epochs, with `tests.conftest.run_root`."""

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


@dataclass
class Submitted:
    """One run and the job that it became."""

    slurm: Cluster
    run_dir: Path
    job_id: str

    def step(self) -> int:
        """The last step recorded."""
        return max((record["step"] for record in records_so_far(self.run_dir)), default=0)

    def wait_for_step(self, step: int, *, timeout_s: float = 120) -> None:
        """Wait until the run has recorded a step."""
        self._wait(lambda: self.step() >= step, f"step {step}", timeout_s)

    def wait_for_restart(self, count: int, *, timeout_s: float = 90) -> None:
        """Wait until Slurm has put the job into the queue again `count` times."""
        what = f"requeued {count} times"
        self._wait(lambda: self.slurm.restarts(self.job_id) >= count, what, timeout_s)

    def wait_for_end(self, state: str = "COMPLETED", *, timeout_s: float = 200) -> None:
        """Wait until the job has ended, in that state."""
        what = f"job {self.job_id} ends"
        self._wait(lambda: self.slurm.state(self.job_id) in ENDED, what, timeout_s)
        assert self.slurm.state(self.job_id) == state, self.report()

    def _wait(self, is_so: Any, what: str, timeout_s: float) -> None:
        try:
            wait_until(is_so, what=what, timeout_s=timeout_s)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.report()}") from None

    def status(self) -> dict[str, Any]:
        """What `launch.status --json` says."""
        text = self.slurm.launch("status", self.run_dir, "--json").stdout
        return dict(json.loads(text)[0])

    def reasons(self) -> list[str]:
        """Outcome and reason of each attempt."""
        return [f"{row['outcome']}: {row['reason']}" for row in self.status()["attempts"]]

    def hosts(self) -> list[list[str]]:
        """The nodes of each attempt."""
        return [row["hosts"] for row in self.status()["attempts"]]

    def report(self) -> str:
        """For the message of a test that fails."""
        logs = sorted(self.run_dir.glob("submissions/*/slurm/*_log.out"))
        parts = [self.slurm.launch("status", self.run_dir, check=False).stdout]
        parts += [f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}" for log in logs]
        return "\n".join(parts)


def submit(
    slurm: Cluster, run_dir: Path, root: Path, *arguments: str, slow_s: float = 0.0
) -> Submitted:
    """Submit the small run. `slow_s`: how long to sleep in each step, so that things can happen in
    the middle of it. What its steps consume is noted below `run_dir`."""
    (run_dir / "trace").mkdir(parents=True, exist_ok=True)
    environment = [f"--env={traced.VARIABLE}={run_dir / 'trace'}"]
    if slow_s:
        environment.append(f"--env=RESNET_DIST_FAILPOINT=step.begin@1-=sleep:{slow_s}")
    said = slurm.launch(
        "submit",
        "--module=tests.faults.traced",
        *environment,
        *arguments,
        *SETTINGS,
        f"data.root={root}",
        f"run.dir={run_dir}",
    ).stdout
    return Submitted(slurm, run_dir, job_id_of(said))


def job_id_of(said: str) -> str:
    """The number of the job that `launch.submit` or `launch.resume` says."""
    found = re.search(r"^submitted job (\d+);", said, re.MULTILINE)
    assert found is not None, said
    return found[1]


def assert_same_samples_and_losses(run: Submitted, reference: Path) -> None:
    """Step by step those of the reference, whatever happened in between."""
    steps = [record["step"] for record in records(run.run_dir) if "train/loss" in record]
    assert steps == list(range(1, NUM_STEPS + 1))
    assert losses(run.run_dir) == pytest.approx(losses(reference), rel=1e-4)
    assert samples_by_step(run.run_dir) == samples_by_step(reference)


def assert_bit_for_bit(run: Submitted, reference: Path) -> None:
    """The same weights, optimizer and records as the reference; the same samples."""
    assert_same_run(reference, run.run_dir)
    assert samples_by_step(run.run_dir) == samples_by_step(reference)
