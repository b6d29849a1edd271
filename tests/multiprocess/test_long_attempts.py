"""Work of one rank that takes longer than a collective of the others waits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from resnet_dist.errors import AgreedError, UserError
from resnet_dist.world import World, sync_attempt, sync_attempt_long
from tests.multiprocess.ranks import run_ranks

LIMIT_S = 2.0
WORK_S = 5.0


def _attempt(rank: int, size: int, is_long: bool, fails: bool) -> str:
    world = World(rank, size, rank, size, torch.device("cpu"))

    def work() -> str:
        if rank == 0:
            time.sleep(WORK_S)
            if fails:
                raise UserError("data.root (x): holds nothing")
        return f"rank {rank}"

    try:
        return (sync_attempt_long if is_long else sync_attempt)(world, work)
    except AgreedError as error:
        return str(error)


def test_the_others_wait_while_it_lives(tmp_path: Path) -> None:
    assert run_ranks(_attempt, 3, tmp_path, True, False, timeout_s=LIMIT_S) == [
        "rank 0",
        "rank 1",
        "rank 2",
    ]


def test_an_error_after_a_long_time_is_everybodys(tmp_path: Path) -> None:
    assert (
        run_ranks(_attempt, 2, tmp_path, True, True, timeout_s=LIMIT_S)
        == ["data.root (x): holds nothing"] * 2
    )


@pytest.mark.slow
def test_a_collective_alone_would_not_wait(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"(?i)tim(e|ed) ?out"):
        run_ranks(_attempt, 2, tmp_path, False, False, timeout_s=LIMIT_S)
