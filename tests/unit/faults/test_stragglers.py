"""Which rank is slow on its own: how it is measured, judged, and reported."""

from __future__ import annotations

import torch
from torch import nn

from resnet_dist.faults.stragglers import (
    MAX_SAMPLES,
    PERSISTENT,
    REPEAT_AFTER,
    NullStragglers,
    RankTimes,
    Stragglers,
    describe,
    is_slow,
    scalars_of,
    sync_build_stragglers,
)
from resnet_dist.world import World

HOSTS = ("a", "b", "c")


def times(*pairs: tuple[float, float]) -> list[RankTimes]:
    return [RankTimes(*pair) for pair in pairs]


def test_a_rank_is_slow_by_the_factor_and_by_five_milliseconds() -> None:
    assert is_slow(times((20, 1), (50, 1), (22, 1)), 1.5, 60)
    assert not is_slow(times((20, 1), (30, 1), (22, 1)), 1.5, 60)
    assert not is_slow(times((2, 0), (6, 0), (2, 0)), 1.5, 10)  # less than 5 ms more
    assert is_slow(times((200, 1), (20, 1)), 1.5, 220)  # of two, the faster is the measure
    assert not is_slow(times((20, 1), (50, 1), (22, 1)), 1.5, 300)  # less than a tenth of the step


def test_the_line_says_whether_data_or_computation_is_slow() -> None:
    text = describe(times((20, 1), (90, 60), (22, 1)), HOSTS)
    assert "rank 1 (host b) takes 90 ms" in text
    assert "median rank 22 ms" in text
    assert "the cause is waiting for data (data: 60 ms, median 1 ms)" in text
    assert "the cause is computation" in describe(times((20, 1), (90, 3), (22, 1)), HOSTS)


def test_the_slowest_rank_and_the_median_are_recorded() -> None:
    assert scalars_of(times((20, 1), (90, 3), (22, 5))) == {
        "stragglers/slowest_rank": 1,
        "stragglers/first_sync_ms_max": 90,
        "stragglers/first_sync_ms_median": 22,
        "stragglers/data_wait_ms_max": 5,
    }


def test_a_rank_is_named_again_rarely_or_when_it_is_another() -> None:
    world = World(0, 3, 0, 3, torch.device("cpu"))
    watch = Stragglers(world, hosts=HOSTS, factor=1.5, first_sync=nn.Identity())
    slow_1, slow_2 = times((20, 1), (90, 1), (22, 1)), times((20, 1), (21, 1), (90, 1))
    none = times((20, 1), (21, 1), (22, 1))
    said: list[str] = []
    for number in range(1, REPEAT_AFTER + PERSISTENT + 1):
        watch._report(slow_1, 100, said.append)
        assert len(said) == (number >= PERSISTENT) + (number >= PERSISTENT + REPEAT_AFTER)
    assert [line.split()[2] for line in said] == ["1", "1"]
    for interval in (slow_2, slow_2, slow_1, slow_1, none, *[slow_1] * PERSISTENT):
        watch._report(interval, 100, said.append)
    assert [line.split()[2] for line in said[2:]] == ["1"]  # once is noise, and twice


def test_the_first_module_or_the_last_gradient_ends_the_measurement() -> None:
    world = World(0, 2, 0, 2, torch.device("cpu"))
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    by_module = Stragglers(world, hosts=HOSTS, factor=1.5, first_sync=model[0])
    by_gradient = Stragglers(world, hosts=HOSTS, factor=1.5, first_sync=model[1].bias)
    model(torch.ones(1, 2)).sum().backward()  # before the first step, as the warm-up
    model.train()
    for _ in range(MAX_SAMPLES + 3):
        ends = []
        for watch in (by_module, by_gradient):
            watch.begin_step()
        for _ in range(2):  # micro-batches: the first forward and the last backward count
            model(torch.ones(1, 2)).sum().backward()
            ends.append((by_module._end, by_gradient._end))
        assert ends[0][0] == ends[1][0] < ends[0][1] < ends[1][1]
    for watch in (by_module, by_gradient):
        watch._close_step()
        assert len(watch._samples) == MAX_SAMPLES
    model.eval()
    by_module.begin_step()
    model(torch.ones(1, 2))
    assert by_module._end is None


def test_one_rank_has_nothing_to_compare() -> None:
    world = World(0, 1, 0, 1, torch.device("cpu"))
    watch = sync_build_stragglers(1.5, world, first_sync=nn.Identity())
    assert isinstance(watch, NullStragglers)
    watch.begin_step()
    assert watch.sync_read_and_reset(1.0, 10.0, print) == {}
