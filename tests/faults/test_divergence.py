"""NaNs in a run: skipped and counted, gone back from once, and stopped with a diagnosis."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_dist.data.order import SampleOrder
from resnet_dist.errors import GuardError
from tests.launch import assert_same_run, newest_checkpoint, records, train

SETTINGS = ["checkpoint.every_steps=2", "faults.max_skipped_steps=3", "checkpoint.keep_last=20"]


def damage(spec: str) -> dict[str, str]:
    return {"RESNET_DIST_FAILPOINT": spec}


def test_one_bad_step_on_one_rank_is_skipped_by_all_and_counted(
    run_root: Path, tmp_path: Path
) -> None:
    train(2, run_root, tmp_path / "run", *SETTINGS, environment=damage("step.loss@7:1=damage"))
    curve = {r["step"]: r for r in records(tmp_path / "run") if "train/loss" in r}
    assert math.isnan(float(curve[7]["train/loss"]))
    assert [r["train/skipped_steps"] for r in curve.values()] == [0] * 6 + [1] * 14
    assert all(type(r["train/loss"]) is float for step, r in curve.items() if step != 7)
    assert all(type(r.get("val/loss", 0.0)) is float for r in records(tmp_path / "run"))


def test_after_several_bad_steps_in_a_row_the_run_goes_back_once(
    uninterrupted: Callable[[int, str], Path], run_root: Path, tmp_path: Path
) -> None:
    """The cause does not come again: the run ends as if it had never been."""
    run_dir = tmp_path / "run"
    ended = train(2, run_root, run_dir, *SETTINGS, environment=damage("step.loss@10-12:1=damage"))
    assert "3 steps in a row were skipped, from step 10 on" in ended.output
    assert "rank 1" in ended.output
    assert "going back to" in ended.output
    assert "at step 8" in ended.output, "that of step 10 is in the middle of the skipped ones"
    assert_same_run(uninterrupted(2, "torch"), run_dir)


def test_a_cause_that_comes_again_stops_the_run_with_a_diagnosis(
    run_root: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    ended = train(
        3, run_root, run_dir, *SETTINGS, environment=damage("step.loss@5-:2=damage"), check=False
    )
    assert ended.codes == [GuardError.exit_code] * 3
    errors = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert "from step 5 on" in errors[0]
    ids = SampleOrder(108, 26, seed=0).sample_ids(4)[26 * 2 // 3 :]
    assert "rank 2" in errors[1]
    assert f"samples {', '.join(map(str, ids.tolist()))}" in errors[1]
    assert not any("rank 0 (" in line or "rank 1 (" in line for line in errors)
    assert "not chance" in errors[-1]
    assert newest_checkpoint(run_dir)["step"] == 4, "the last good one is the newest"


def test_without_a_checkpoint_several_bad_steps_end_the_run(run_root: Path, tmp_path: Path) -> None:
    ended = train(
        1,
        run_root,
        tmp_path / "run",
        "faults.max_skipped_steps=2",
        environment=damage("step.loss@1-=damage"),
        check=False,
    )
    assert ended.codes == [GuardError.exit_code]
    assert "no checkpoint to go back to" in ended.output


@pytest.mark.parametrize("allowed", [False, True])
def test_a_resume_whose_next_batch_differs_is_rejected(
    run_root: Path, tmp_path: Path, allowed: bool
) -> None:
    run_dir = tmp_path / "run"
    damaged = damage("checkpoint.digest@1-=damage")
    train(1, run_root, run_dir, "train.max_steps=3", environment=damaged)
    before = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    change = f"run.allow_config_change={str(allowed).lower()}"
    ended = train(1, run_root, run_dir, "train.max_steps=4", change, check=False)
    if allowed:
        assert ended.codes == [0]
    else:
        assert ended.codes == [2]
        assert "augmentations of step 4 are not those" in ended.output
        assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == before
