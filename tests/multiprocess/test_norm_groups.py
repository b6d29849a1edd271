"""Batch statistics over groups of ranks: `train.sync_batch_norm_ranks`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch import losses, train

SHORT = ["train.max_steps=6", "train.global_batch_size=16", "log.every_steps=1"]


@pytest.mark.slow
def test_two_groups_of_two_ranks_are_two_ranks(run_root: Path, tmp_path: Path) -> None:
    """Each group is given the half of the batch that one of two ranks has to itself."""
    train(2, run_root, tmp_path / "two", *SHORT, "train.sync_batch_norm=false")
    train(4, run_root, tmp_path / "four", *SHORT, "train.sync_batch_norm_ranks=2")
    train(2, run_root, tmp_path / "all", *SHORT)
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)
    assert losses(tmp_path / "four") != pytest.approx(losses(tmp_path / "all"), rel=1e-4)


def test_ranks_that_cannot_be_shared_out_are_refused(run_root: Path, tmp_path: Path) -> None:
    settings = [*SHORT, "train.sync_batch_norm_ranks=2"]
    ended = train(3, run_root, tmp_path / "run", *settings, check=False)
    assert ended.codes == [2, 2, 2]
    assert "train.sync_batch_norm_ranks (2): does not divide the 3 ranks" in ended.output
