"""One flipped bit on one rank ends the run before it is saved."""

from __future__ import annotations

from pathlib import Path

from resnet_dist.errors import GuardError
from tests.launch import newest_checkpoint, records, train


def test_a_flipped_bit_ends_a_run_before_it_is_saved(run_root: Path, tmp_path: Path) -> None:
    """In step 6, compared at the end of the epoch, step 8: all leave with the guards' code."""
    run_dir = tmp_path / "run"
    environment = {"RESNET_DIST_FAILPOINT": "step.parameters@6:1=damage"}
    ended = train(3, run_root, run_dir, environment=environment, check=False)
    assert ended.codes == [GuardError.exit_code] * 3, ended.output
    assert ended.output.count("error: replicas (step 8): rank 1 ") == 1
    assert newest_checkpoint(run_dir)["step"] == 4
    train(3, run_root, run_dir, "train.max_steps=8")  # goes on from there
    assert records(run_dir)[-1]["step"] == 8


def test_replicas_are_compared_at_the_interval_that_is_set(run_root: Path, tmp_path: Path) -> None:
    every = "faults.replica_check_every_steps=3"
    environment = {"RESNET_DIST_FAILPOINT": "step.parameters@6:1=damage"}
    ended = train(3, run_root, tmp_path / "run", every, environment=environment, check=False)
    assert "error: replicas (step 6): rank 1 " in ended.output
