"""A run with a past."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.launch.reports.made_up_run import MadeUp


@pytest.fixture
def eventful(tmp_path: Path) -> MadeUp:
    """Restarts of workers, a bad node, a lost node, and now it runs."""
    made = MadeUp(tmp_path / "eventful")
    attempt = made.begin("001.000", "node1", "node2", starts=3)
    attempt.note("worker", text="failed (exitcode: -9) local_rank: 1", host="node1")
    attempt.note("worker", text="failed (exitcode: -9) local_rank: 1", host="node1")
    made.end("001.000", "failed", "preflight: node2: no room", "node2", step=100)
    made.begin("001.001", "node1", "node3")
    made.begin("001.002", "node4", "node5")
    made.record(400, val__top1=0.5)
    made.record(500, train__loss=1.25, train__images_per_second=800.0, train__step_time_ms=2000.0)
    return made
