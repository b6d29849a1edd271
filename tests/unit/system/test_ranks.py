"""What torchrun's variables say, and what is said of those that say nothing."""

from __future__ import annotations

import pytest

from resnet_dist.errors import UserError
from resnet_dist.system.ranks import launched_ranks


@pytest.mark.parametrize("value", ["", "x", "-1", "1.0"])
def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RANK", value)
    with pytest.raises(UserError, match=r"environment \(RANK="):
        launched_ranks()


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_tasks_that_know_nothing_of_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    assert launched_ranks().size == 1
    monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match="started 2 tasks without torchrun, each of which would"):
        launched_ranks()
