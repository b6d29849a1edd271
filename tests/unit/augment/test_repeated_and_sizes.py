"""Repeated augmentation and progressive resizing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_dist.config import AugmentConfig, Config
from resnet_dist.config.load import load_config
from resnet_dist.data.augment.progressive import train_size
from resnet_dist.data.index.synthetic import SyntheticIndex
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder
from resnet_dist.errors import UserError
from resnet_dist.report.preview import derived_lines
from tests.loading import change, open_split, train_batches, train_spec


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_each_chosen_sample_occurs_as_often_as_asked(draws: st.DataObject) -> None:
    reps = draws.draw(st.integers(1, 5))
    batch = draws.draw(st.integers(2 * reps, 30))
    n = draws.draw(st.integers(batch, 150))
    epoch = draws.draw(st.integers(0, 3))
    order, single = (SampleOrder(n, batch, seed=4, ra_reps=count) for count in (reps, 1))
    steps = order.steps_per_epoch
    batches = [order.sample_ids(epoch * steps + i) for i in range(steps)]
    counts = Counter(np.concatenate(batches).tolist())
    assert sum(counts.values()) == steps * batch  # the epoch keeps its length
    whole, rest = divmod(steps * batch, reps)
    assert sorted(counts.values(), reverse=True) == [reps] * whole + [rest] * (rest > 0)
    # In order of the permutation: an epoch's samples are its first ones.
    plain = [single.sample_ids(epoch * steps + i) for i in range(steps)]
    assert set(counts) == set(np.concatenate(plain)[: whole + (rest > 0)].tolist())
    for ids in batches:
        pairs = ids[: batch // 2 * 2].reshape(-1, 2)
        assert (pairs[:, 0] != pairs[:, 1]).all()  # mixup never mixes a sample with itself
    if reps == 1:
        assert all((a == b).all() for a, b in zip(batches, plain, strict=True))


class Table:
    labels = np.arange(40) % 3
    heights = np.full(40, 50, np.int32)
    widths = np.full(40, 60, np.int32)

    def __len__(self) -> int:
        return 40


def test_repetitions_are_augmented_differently_and_do_not_depend_on_the_ranks() -> None:
    config = change(ra_reps=3)
    whole = train_spec(config, Table(), BatchSplit(12, 1, 1), step=4)
    parts = [
        train_spec(
            config, Table(), BatchSplit(12, 3, 2), step=4, rank=rank, micro_batch=micro_batch
        )
        for micro_batch in range(2)
        for rank in range(3)
    ]
    for name in ("sample_ids", "crop_boxes", "flips", "labels"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))
    assert len(np.unique(whole.crop_boxes, axis=0)) == 12
    assert len(np.unique(whole.sample_ids)) < 12


def test_too_many_repetitions_are_refused() -> None:
    with pytest.raises(UserError, match=r"augment.ra_reps \(5\): must be at most half of .* \(8\)"):
        load_config([], ["augment.ra_reps=5", "train.global_batch_size=8"])


def ffcv_resolution(epoch: int, low: int, high: int, end: int, start: int) -> int:
    """The ramp of ffcv-imagenet's ResNet-50 recipes."""
    if epoch <= start:
        return low
    if epoch >= end:
        return high
    side = np.interp([epoch], [start, end], [low, high])
    return int(np.round(side[0] / 32)) * 32


@pytest.mark.parametrize(("first", "last"), [(11, 13), (65, 76), (0, 5), (7, 7)])
def test_the_ramp_is_ffcvs(first: int, last: int) -> None:
    augment = AugmentConfig(progressive_start_size=160, progressive_epochs=(first, last))
    for epoch in range(90):
        if epoch == first == last:
            continue  # ffcv would still start low there
        assert train_size(augment, 192, epoch) == ffcv_resolution(epoch, 160, 192, last, first)


def test_sizes_lie_between_start_and_end() -> None:
    augment = AugmentConfig(
        progressive_start_size=88, progressive_epochs=(10, 30), progressive_multiple=4
    )
    sizes = [train_size(augment, 176, epoch) for epoch in range(40)]
    assert sizes == sorted(sizes)
    assert (sizes[10], sizes[30], sizes[39]) == (88, 176, 176)
    assert set(sizes) == {88 + 4 * round(88 * i / 20 / 4) for i in range(21)}
    assert train_size(AugmentConfig(), 224, 3) == 224
    with pytest.raises(UserError, match=r"augment.progressive_start_size \(300\): must lie in"):
        change(progressive_start_size=300, progressive_epochs=(1, 2))
    with pytest.raises(UserError, match=r"augment.progressive_epochs .*: must end after epoch"):
        change(progressive_start_size=100)
    with pytest.raises(UserError, match=r"less than augment.progressive_start_size \(4\)"):
        change(
            progressive_start_size=4,
            progressive_epochs=(1, 2),
            crop="pad_reflect",
            crop_padding=4,
        )


@pytest.mark.parametrize("loader", ["torch", "dali", "synthetic"])
def test_loaders_change_the_size_without_a_new_start(
    image_root: Path, tmp_path_factory: pytest.TempPathFactory, loader: Any
) -> None:
    config = change(
        root=str(image_root),
        cache_dir=str(tmp_path_factory.getbasetemp() / "cache"),
        loader=loader,
        train_size=32,
        progressive_start_size=16,
        progressive_epochs=(0, 2),
        progressive_multiple=8,
    )
    index = SyntheticIndex(27, 3) if loader == "synthetic" else open_split(config)

    def batches(chosen: Config) -> list[torch.Tensor]:
        steps = train_batches(chosen, index, BatchSplit(9, 1, 1), (0, 9), num_workers=1)
        return [batch.images.clone() for batch in steps]

    images = batches(config)
    assert [batch.shape[-1] for batch in images] == [16] * 3 + [24] * 3 + [32] * 3
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in images)
    if loader != "synthetic":
        fixed = batches(change(config, progressive_start_size=None))
        assert torch.equal(torch.cat(images[6:]), torch.cat(fixed[6:]))


def test_a_run_says_what_is_unusual_about_its_images() -> None:
    config = load_config(
        ["resnet50"],
        [
            "augment.ra_reps=4",
            "data.train_size=192",
            "augment.progressive_start_size=160",
            "augment.progressive_epochs=[11,13]",
        ],
    ).config
    lines = derived_lines(config, 1_281_167, 8)
    assert "repeated augmentation: 320256 different samples per epoch, 4 times each" in lines
    assert "image size, px: 160 from epoch 0, 192 from epoch 12" in lines
    plain = derived_lines(load_config(["resnet50"]).config, 1_281_167, 8)
    assert not any("repeated" in line or "image size" in line for line in plain)
