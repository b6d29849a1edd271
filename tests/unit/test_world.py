"""A rank's share of its node."""

from __future__ import annotations

import os

import pytest

from resnet_dist.errors import UserError
from resnet_dist.world import check_master_address, threads_per_rank


@pytest.mark.parametrize(
    ("own", "agents", "ranks", "threads"),
    [
        (192, 192, 8, 24),  # nothing is bound
        (24, 192, 8, 24),  # torchrun --numa-binding=exclusive
        (96, 192, 8, 24),  # --numa-binding=node: two nodes of four ranks
        (2, 2, 4, 1),
    ],
)
def test_threads_of_bound_ranks_are_divided_once(
    monkeypatch: pytest.MonkeyPatch, own: int, agents: int, ranks: int, threads: int
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(agents if pid else own)))
    assert threads_per_rank(ranks) == threads


def test_without_torchrun_the_cores_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64 if pid else 16)))
    assert threads_per_rank(1) == 16


def test_a_master_address_that_is_no_hosts_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    check_master_address()
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(UserError, match=r"MASTER_ADDR='no-such-host.invalid'\): no host"):
        check_master_address()
