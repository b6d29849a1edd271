"""The rank that is slow on its own is named, though all ranks take equally long for a step."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.launch import records, train


@pytest.mark.parametrize("sync", ["true", "false"])
def test_a_slow_rank_of_a_run_is_named(run_root: Path, tmp_path: Path, sync: str) -> None:
    run_dir = tmp_path / "run"
    ended = train(
        3,
        run_root,
        run_dir,
        f"train.sync_batch_norm={sync}",
        "train.max_steps=8",
        "log.every_steps=2",
        environment={"RESNET_DIST_FAILPOINT": "step.begin@1-:2=sleep:0.5"},
    )
    lines = [line for line in ended.output.splitlines() if line.startswith("slow: ")]
    assert lines, ended.output
    assert len(lines) < 3  # intervals
    assert all(f"rank 2 (host {socket.gethostname()})" in line for line in lines)
    assert "the cause is computation" in lines[-1]
    # In the first interval starting the readers takes longest.
    measured = [record for record in records(run_dir) if "train/loss" in record][1:]
    assert [record["stragglers/slowest_rank"] for record in measured] == [2, 2, 2]
    for record in measured:
        longest = record["stragglers/first_sync_ms_max"]
        assert longest > 500
        assert record["stragglers/first_sync_ms_median"] < longest / 1.5
