"""The split of a global batch among micro-batches and ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_dist.config import TrainConfig
from resnet_dist.data.micro_batches import BatchSplit, choose_batch_split
from resnet_dist.errors import UserError


def split_of(global_batch_size: int, world_size: int, **settings: int | None) -> BatchSplit:
    train = TrainConfig(global_batch_size=global_batch_size, **settings)  # type: ignore[arg-type]
    return choose_batch_split(train, world_size)


@given(
    batch=st.integers(1, 300),
    world=st.integers(1, 40),
    limit=st.none() | st.integers(1, 64),
    pinned=st.none() | st.integers(1, 8),
)
def test_every_sample_once_and_never_too_many(
    batch: int, world: int, limit: int | None, pinned: int | None
) -> None:
    try:
        batch_split = split_of(batch, world, max_micro_batch_size=limit, accumulation_steps=pinned)
    except UserError:  # refused; which splits are is tested below
        return
    seen: list[int] = []
    for micro_batch in range(batch_split.accumulation_steps):
        sizes = []
        for rank in range(world):
            low, high = batch_split.micro_batch_slice(rank, micro_batch)
            seen.extend(range(low, high))
            sizes.append(high - low)
        assert max(sizes) - min(sizes) <= 1
        assert batch_split.smallest_micro_batch <= min(sizes)
        assert max(sizes) <= batch_split.largest_micro_batch <= (limit or batch)
        assert min(sizes) >= 1
    assert seen == list(range(batch))
    assert sum(batch_split.local_batch_size(rank) for rank in range(world)) == batch


def test_without_accumulation_a_rank_takes_the_slice_of_the_design() -> None:
    batch_split = split_of(10, 3)
    assert [batch_split.micro_batch_slice(rank, 0) for rank in range(3)] == [
        (0, 3),
        (3, 6),
        (6, 10),
    ]


def test_pinned_accumulation_keeps_the_groups_for_every_world_size() -> None:
    for world in (1, 2, 3, 4):
        batch_split = split_of(26, world, accumulation_steps=2)
        bounds = [
            (batch_split.micro_batch_slice(0, m)[0], batch_split.micro_batch_slice(world - 1, m)[1])
            for m in (0, 1)
        ]
        assert bounds == [(0, 13), (13, 26)]


def test_fewest_micro_batches_within_the_limit() -> None:
    assert split_of(256, 2, max_micro_batch_size=128).accumulation_steps == 1
    assert split_of(256, 2, max_micro_batch_size=127).accumulation_steps == 2
    assert split_of(256, 1, max_micro_batch_size=64).accumulation_steps == 4


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"global_batch_size": 4, "world_size": 5}, "smaller than the 5 ranks"),
        (
            {"global_batch_size": 3, "world_size": 2, "max_micro_batch_size": 1},
            "leave a rank without a sample",
        ),
        (
            {
                "global_batch_size": 64,
                "world_size": 2,
                "max_micro_batch_size": 8,
                "accumulation_steps": 2,
            },
            "above train.max_micro_batch_size",
        ),
    ],
)
def test_impossible_splits_are_refused(arguments: dict[str, int], part: str) -> None:
    with pytest.raises(UserError, match=part):
        split_of(**arguments)  # type: ignore[arg-type]
