"""The order of samples and the augmentation parameters."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms import transforms as tv
from torchvision.transforms.functional import _compute_resized_output_size

from resnet_dist import rng
from resnet_dist.config import AugmentConfig, DataConfig
from resnet_dist.data import order
from resnet_dist.data.augment import crop
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder
from resnet_dist.data.specs import EvalSpecs
from resnet_dist.errors import UserError
from tests.loading import change, train_spec


@dataclass
class Table:
    labels: NDArray[np.int64]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.labels)


def make_table(n: int) -> Table:
    rng = np.random.default_rng(n)
    sizes = rng.integers(1, 700, (2, n), dtype=np.int32)
    return Table(np.arange(n) % 7, sizes[0], sizes[1])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_sample_at_most_once_an_epoch_and_ranks_complete(data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 24))
    world = data.draw(st.integers(1, min(batch, 5)))
    num_micro_batches = data.draw(st.integers(1, batch // world))
    n = data.draw(st.integers(batch, 120))
    batch_split = BatchSplit(batch, world, num_micro_batches)
    table = make_table(n)
    samples = SampleOrder(n, batch, seed=5)
    steps = samples.steps_per_epoch
    for epoch in (0, 3):
        seen: list[int] = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            ids: list[int] = []
            for micro_batch in range(num_micro_batches):
                for rank in range(world):
                    spec = train_spec(
                        change(),
                        table,
                        batch_split,
                        seed=5,
                        rank=rank,
                        step=step,
                        micro_batch=micro_batch,
                    )
                    assert len(spec) >= 1
                    assert spec.step == step
                    np.testing.assert_array_equal(spec.labels, table.labels[spec.sample_ids])
                    ids += spec.sample_ids.tolist()
            assert ids == samples.sample_ids(step).tolist()
            seen += ids
        assert len(seen) == len(set(seen)) == steps * batch > n - batch
        assert set(seen) <= set(range(n))


@pytest.mark.parametrize("crop", ["random_resized", "pad_reflect"])
def test_augmentation_does_not_depend_on_the_split(crop: str) -> None:
    config, table = change(crop=crop), make_table(50)
    whole = train_spec(config, table, BatchSplit(12, 1, 1), step=7)
    parts = [
        train_spec(config, table, BatchSplit(12, 3, 2), step=7, rank=rank, micro_batch=micro_batch)
        for micro_batch in range(2)
        for rank in range(3)
    ]
    for name in ("sample_ids", "crop_boxes", "flips", "crop_offsets"):
        columns = [getattr(part, name) for part in parts]
        if getattr(whole, name) is None:
            assert columns == [None] * 6
        else:
            np.testing.assert_array_equal(np.concatenate(columns), getattr(whole, name))


def test_epochs_and_seeds_differ() -> None:
    first = SampleOrder(1000, 100, seed=0).sample_ids(0)
    assert (first != SampleOrder(1000, 100, seed=0).sample_ids(10)).any()  # epoch 1
    assert (first != SampleOrder(1000, 100, seed=1).sample_ids(0)).any()


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.integers(0, 63))
def test_stable_order_is_numpys(keys: list[int], shift: int) -> None:
    """Also with many equal keys, and with keys that differ in their lowest bits only."""
    for array in (np.array(keys, np.uint64), np.array(keys, np.uint64) >> np.uint64(shift)):
        np.testing.assert_array_equal(rng.stable_order(array), np.argsort(array, kind="stable"))


def test_the_order_is_the_one_it_always_was() -> None:
    """Golden values: a change would change every run that is resumed."""
    assert order.epoch_permutation(0, 0, 10).tolist() == GOLDEN_10
    assert order.epoch_permutation(7, 3, 100_000)[:5].tolist() == GOLDEN_100K
    keys = rng.random_words(7, rng.Stream.ORDER, 3, start=0, count=25_000, words=4).reshape(-1)
    np.testing.assert_array_equal(rng.permutation(7, 3, 100_000), np.argsort(keys, kind="stable"))


GOLDEN_10 = [0, 8, 6, 9, 5, 2, 3, 1, 7, 4]
GOLDEN_100K = [72580, 85313, 26763, 19889, 825]


def test_the_next_epoch_is_prepared_while_this_one_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    real = order.epoch_permutation

    def permutation(seed: int, epoch: int, *rest: Any) -> NDArray[np.integer]:
        assert threading.current_thread() is not threading.main_thread()
        made.append(epoch)
        return real(seed, epoch, *rest)

    monkeypatch.setattr(order, "epoch_permutation", permutation)
    samples = SampleOrder(150_000, 50_000, seed=2)
    steps = range(4, 14)  # from epoch 1 on, three steps each
    for step in steps:
        expected = real(2, step // 3, 150_000)[step % 3 * 50_000 :][:50_000]
        np.testing.assert_array_equal(samples.sample_ids(step), expected)
        samples.prepare(step // 3 + 1)
    samples.sample_ids(15)  # waits for what was begun last
    assert made == [1, 2, 3, 4, 5]
    assert set(samples._permutations) == {4, 5}
    samples.sample_ids(0)  # back to the beginning, as after a checkpoint
    assert made[-1] == 0
    monkeypatch.undo()
    small = SampleOrder(1000, 100, seed=2)
    before = threading.active_count()
    assert small.prepare(1).done()
    assert threading.active_count() == before


def test_what_fails_in_the_background_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> NDArray[np.integer]:
        raise MemoryError("no room")

    samples = SampleOrder(150_000, 50_000, seed=2)
    monkeypatch.setattr(order, "epoch_permutation", fails)
    samples.prepare(0)
    with pytest.raises(MemoryError, match="no room"):
        samples.sample_ids(0)


def test_too_few_samples_for_a_batch() -> None:
    with pytest.raises(UserError, match=r"train.global_batch_size \(8\).*7 training samples.*=7"):
        order.steps_per_epoch(7, 8)


class _GivenUniforms:
    """torch as RandomResizedCrop.get_params uses it, sampling from given float64 numbers."""

    def __init__(self, uniforms: NDArray[np.float64]) -> None:
        self.attempts = iter(uniforms[:20].tolist())
        self.anchors = iter(uniforms[20:22].tolist())

    def tensor(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    def log(self, values: torch.Tensor) -> torch.Tensor:
        return torch.log(values)

    def exp(self, values: torch.Tensor) -> torch.Tensor:
        return torch.exp(values)

    def empty(self, _: int) -> SimpleNamespace:
        def uniform(low: float, high: float) -> torch.Tensor:
            value = float(low) + (float(high) - float(low)) * next(self.attempts)
            return torch.tensor(value, dtype=torch.float64)

        return SimpleNamespace(uniform_=uniform)

    def randint(self, low: int, high: int, size: tuple[int]) -> torch.Tensor:
        assert low == 0
        assert size == (1,)
        return torch.tensor(math.floor(next(self.anchors) * high))


def test_crop_boxes_equal_torchvision_given_the_same_uniforms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 600, (800, 2), dtype=np.int32)
    sizes[:9] = [[1, 1], [1, 500], [500, 1], [3, 2], [500, 375], [7, 7], [2, 900], [9, 8], [40, 1]]
    uniform = rng.random((len(sizes), 24))
    ours = crop.random_resized_crops(sizes, (0.08, 1.0), (3 / 4, 4 / 3), uniform)
    fallbacks = 0
    for i, (height, width) in enumerate(sizes.tolist()):
        given_uniforms = _GivenUniforms(uniform[i])
        monkeypatch.setattr(tv, "torch", given_uniforms)
        image = torch.empty(3, height, width)
        theirs = tv.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        assert tuple(ours[i].tolist()) == theirs, (height, width)
        fallbacks += next(given_uniforms.anchors, None) == uniform[i, 20]
    assert 20 < fallbacks < 700  # both branches were compared


def test_crop_boxes_lie_in_the_image_and_reach_its_edges() -> None:
    sizes = np.full((20_000, 2), (50, 70), dtype=np.int32)
    uniform = np.random.default_rng(1).random((len(sizes), 24))
    top, left, h, w = crop.random_resized_crops(sizes, (0.3, 0.5), (0.75, 1.3), uniform).T
    assert top.min() == left.min() == 0
    assert (top + h).max() == 50
    assert (left + w).max() == 70
    share = (h * w / 3500.0).mean()
    assert abs(share - 0.4) < 0.01


def test_pad_reflect_offsets_cover_the_range_evenly() -> None:
    augment = AugmentConfig(crop="pad_reflect", crop_padding=2)
    crops = crop.sample_crops(
        augment, np.full((10_000, 2), 32, np.int32), seed=3, epoch=1, start=40
    )
    assert crops.offsets is not None
    for column in crops.offsets.T:
        values, counts = np.unique(column, return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert counts.min() > 1800
    assert abs(crops.flips.mean() - 0.5) < 0.02
    assert crops.boxes[5].tolist() == [0, 0, 32, 32]


def test_padding_beyond_a_reflection_is_refused() -> None:
    change(crop="pad_reflect", train_size=8, crop_padding=7)
    with pytest.raises(
        UserError, match=r"augment.crop_padding \(8\): must be less than .*size \(8\)"
    ):
        change(crop="pad_reflect", train_size=8, crop_padding=8)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_flip_probability_limits(probability: float) -> None:
    augment = AugmentConfig(flip_probability=probability)
    crops = crop.sample_crops(augment, np.full((500, 2), 32, np.int32), seed=0, epoch=0, start=0)
    assert crops.flips.mean() == probability


def test_centre_crops_equal_torchvision() -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 800, (500, 2), dtype=np.int32)
    sizes[:4] = [[256, 256], [1, 3000], [3000, 1], [375, 500]]
    resized, anchors = crop.centre_crops(sizes, 256, 224)
    for i, size in enumerate(sizes.tolist()):
        expected = _compute_resized_output_size(tuple(size), [256])
        assert resized[i].tolist() == expected
        assert anchors[i].tolist() == [round((side - 224) / 2.0) for side in expected]


@pytest.mark.parametrize(("n", "batch", "world"), [(10, 4, 1), (10, 4, 3), (3, 8, 4), (8, 4, 2)])
def test_evaluation_covers_every_sample_once(n: int, batch: int, world: int) -> None:
    count = order.num_eval_batches(n, batch)
    shares = [range(rank, count, world) for rank in range(world)]
    specs = [
        EvalSpecs(DataConfig(), make_table(n))(order.eval_slice(n, batch, k))
        for share in shares
        for k in share
    ]
    assert sorted(i for spec in specs for i in spec.sample_ids.tolist()) == list(range(n))
    assert all(len(spec) == batch for spec in specs if spec.step < count - 1)
