"""Flips that alternate."""

from __future__ import annotations

import numpy as np
import pytest

from resnet_dist.config import AugmentConfig
from resnet_dist.data.augment.crop import alternating_flips
from resnet_dist.data.index.synthetic import SYNTHETIC_TRAIN
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.errors import UserError
from tests.loading import change, train_spec


def test_each_image_and_its_mirror_image_take_turns() -> None:
    ids = np.arange(1000)
    epochs = [alternating_flips(ids, seed=3, epoch=epoch, num_samples=1000) for epoch in range(4)]
    assert (epochs[0] != epochs[1]).all()
    assert (epochs[0] == epochs[2]).all()
    assert (epochs[1] == epochs[3]).all()
    assert 400 < epochs[0].sum() < 600
    assert (alternating_flips(ids, seed=4, epoch=0, num_samples=1000) != epochs[0]).any()
    some = np.array([7, 3, 999])
    assert (alternating_flips(some, seed=3, epoch=1, num_samples=1000) == epochs[1][some]).all()


def test_a_step_is_flipped_so() -> None:
    table = SYNTHETIC_TRAIN
    config = change(flip="alternating")
    split = BatchSplit(len(table), 1, 1)  # a step is an epoch
    first, second = (train_spec(config, table, split, step=step) for step in (0, 1))
    flipped = np.zeros((2, len(table)), bool)
    for row, spec in zip(flipped, (first, second), strict=True):
        row[spec.sample_ids] = spec.flips
    assert (flipped[0] != flipped[1]).all()


@pytest.mark.parametrize("key", ["flip_probability", "ra_reps"])
def test_what_does_not_go_with_it(key: str) -> None:
    with pytest.raises(UserError, match=rf"augment\.{key} \(0|augment\.{key} \(2"):
        AugmentConfig(flip="alternating", **{key: 0.0 if key == "flip_probability" else 2})
