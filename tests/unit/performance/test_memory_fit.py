"""Micro-batches that fit into memory; what fits is a mock here, where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from resnet_dist.config import Config, TrainConfig
from resnet_dist.errors import AgreedError, UserError
from resnet_dist.performance import memory_fit
from resnet_dist.world import World
from tests.multiprocess.ranks import run_ranks

WORLD = World(0, 1, 0, 1, torch.device("cpu"))


def config_of(batch: int, **changes: Any) -> Config:
    return Config(train=TrainConfig(global_batch_size=batch, auto_micro_batch=True, **changes))


def find(batch: int, most: int, folder: Path) -> int:
    asked: list[int] = []

    def trial(size: int) -> bool:
        asked.append(size)
        return size <= most

    steps, line = memory_fit.sync_find_accumulation_steps(
        config_of(batch), nn.Identity(), folder, WORLD, trial
    )
    assert asked[-1] <= most
    assert f"at most {asked[-1]} per rank" in line
    return steps


def test_the_fewest_of_doubled_numbers_that_fit(tmp_path: Path) -> None:
    assert find(256, 1000, tmp_path) == 1
    assert find(256, 100, tmp_path) == 4
    assert find(100, 30, tmp_path) == 4


def test_one_image_that_is_too_much_is_answered(tmp_path: Path) -> None:
    with pytest.raises(AgreedError, match="not even 1 image"):
        find(8, 0, tmp_path)


def test_a_restart_takes_what_was_found(tmp_path: Path) -> None:
    config = config_of(256)
    memory_fit.write(tmp_path, config, WORLD, 4)
    steps, line = memory_fit.sync_find_accumulation_steps(
        config, nn.Identity(), tmp_path, WORLD, lambda _: True
    )
    assert steps == 4
    assert "as found before" in line
    other, _ = memory_fit.sync_find_accumulation_steps(
        config_of(128), nn.Identity(), tmp_path, WORLD, lambda _: True
    )
    assert other == 1


def _on_a_rank(rank: int, size: int, folder: Path) -> int:
    world = World(rank, size, rank, size, torch.device("cpu"))
    most = 100 if rank else 20  # rank 0's GPU is the smaller one
    return memory_fit.sync_find_accumulation_steps(
        config_of(64), nn.Identity(), folder, world, lambda images: images <= most
    )[0]


def test_all_ranks_agree_on_what_the_smallest_takes(tmp_path: Path) -> None:
    assert run_ranks(_on_a_rank, 2, tmp_path, tmp_path) == [2, 2]


def test_it_excludes_a_given_number() -> None:
    with pytest.raises(UserError, match=r"train\.auto_micro_batch"):
        config_of(8, accumulation_steps=2)
