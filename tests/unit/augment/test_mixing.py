"""Mixup and cutmix: lam, boxes, pairs, pixels and labels, against torchvision's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms import v2

from resnet_dist.config import AugmentConfig, Config
from resnet_dist.data.augment import mixing
from resnet_dist.data.batch import Batch, Mix
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.order import SampleOrder
from resnet_dist.data.read.buffers import HostBuffers
from resnet_dist.data.specs import TrainSpecs, digest_of_step
from tests.loading import CPU, change, open_split, train_batches, train_spec

BOTH = AugmentConfig(mixup_alpha=0.2, cutmix_alpha=1.0)


@pytest.mark.parametrize(
    ("alpha", "quantile"),
    [
        (0.5, lambda u: np.sin(np.pi * u / 2) ** 2),  # the arcsine distribution
        (1.0, lambda u: u),
        (2.0, lambda u: 0.5 - np.sin(np.arcsin(1 - 2 * u) / 3)),  # 3 x^2 - 2 x^3 = u
    ],
)
def test_beta_quantiles_of_known_distributions(
    alpha: float, quantile: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> None:
    uniform = np.linspace(0, 1, 1001)[:-1]
    ours = mixing.beta_quantile(uniform, alpha)
    np.testing.assert_allclose(ours, quantile(uniform), atol=2e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 5.0])
def test_beta_quantiles_are_those_of_samples(alpha: float) -> None:
    samples = np.sort(np.random.default_rng(0).beta(alpha, alpha, 40_000))
    probabilities = (np.arange(40_000) + 0.5) / 40_000
    ours = mixing.beta_quantile(probabilities, alpha)
    inner = (ours > 1e-9) & (ours < 1 - 1e-9)  # beyond, floats have no room between themselves
    ranks = np.searchsorted(samples, ours) / 40_000
    assert np.abs(ranks - probabilities)[inner].max() < 0.01
    assert np.abs(ours - samples).mean() < 0.005


def test_boxes_equal_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    lams, centres = rng.random(300), rng.random((300, 2))
    lams[:3] = [0.0, 1.0, 0.9999]
    ours = mixing.cut_boxes(lams, centres, 37)
    theirs = v2.CutMix(alpha=1.0, num_classes=2)
    image = torch.zeros(2, 3, 37, 37)
    for lam, (row, column), box in zip(lams, centres.tolist(), ours.tolist(), strict=True):
        given = iter([column, row])  # torchvision samples x first
        monkeypatch.setattr(
            torch, "randint", lambda high, given=given, **_: torch.tensor(int(next(given) * high))
        )
        theirs._dist = SimpleNamespace(sample=lambda _, lam=lam: torch.tensor(lam))
        params = theirs.make_params([image])
        x1, y1, x2, y2 = params["box"]
        assert box == [y1, x1, y2 - y1, x2 - x1]
        assert params["lam_adjusted"] == 1 - box[2] * box[3] / 37**2


def sample(augment: AugmentConfig, bounds: tuple[int, int], *, total: int, batch: int = 3) -> Mix:
    return mixing.sample_mix(
        augment, seed=5, epoch=2, batch=batch, bounds=bounds, global_batch_size=total, size=24
    )


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_split_does_not_change_who_is_mixed_how(draws: st.DataObject) -> None:
    total = draws.draw(st.integers(1, 23))
    world = draws.draw(st.integers(1, min(5, total)))
    batch_split = BatchSplit(total, world, draws.draw(st.integers(1, total // world)))
    augment = replace(
        BOTH,
        mix_mode=draws.draw(st.sampled_from(["pair", "batch"])),
        mix_probability=draws.draw(st.sampled_from([0.5, 1.0])),
    )
    whole = sample(augment, (0, total), total=total)
    positions = []
    for micro_batch in range(batch_split.accumulation_steps):
        for rank in range(world):
            low, high = batch_split.micro_batch_slice(rank, micro_batch)
            part = sample(augment, (low, high), total=total)
            first, last = mixing.paired_bounds(low, high, total)
            assert (part.own.start, part.own.stop) == (low - first, high - first)
            assert last - first == len(part.paired) <= high - low + 2
            for name in ("lams", "boxes", "is_cut"):
                np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[first:last])
            np.testing.assert_array_equal(part.paired + first, whole.paired[first:last])
            positions += range(low, high)
    assert sorted(positions) == list(range(total))
    expected = [min(i ^ 1, total - 1) for i in range(total)]
    assert whole.paired.tolist() == expected
    if total % 2:
        assert (whole.lams[-1], whole.is_cut[-1]) == (1.0, False)


def test_modes_probabilities_and_lam() -> None:
    def sampled(**changes: Any) -> Mix:
        return sample(replace(BOTH, **changes), (0, 4000), total=4000)

    both = sampled()
    assert 0.45 < both.is_cut.mean() < 0.55
    assert np.array_equal(both.lams[::2], both.lams[1::2])
    assert (both.boxes[~both.is_cut] == 0).all()
    cut = both.is_cut
    area = both.boxes[cut, 2] * both.boxes[cut, 3]
    np.testing.assert_allclose(both.lams[cut], 1 - area / 24**2, atol=1e-7)
    mixup = both.lams[~cut]
    assert (mixup * 2**16 == np.rint(mixup * 2**16)).all()
    assert abs(mixup.mean() - 0.5) < 0.03
    assert abs(mixup.std() - math.sqrt(1 / (4 * 1.4))) < 0.01  # of Beta(0.2, 0.2)
    assert sampled(mix_switch_probability=1.0).is_cut.all()
    assert not sampled(cutmix_alpha=0.0).is_cut.any()
    assert sampled(mixup_alpha=0.0).is_cut.all()
    sometimes = sampled(mix_probability=0.3, cutmix_alpha=0.0)
    assert 0.65 < (sometimes.lams == 1).mean() < 0.75
    one = sampled(mix_mode="batch", cutmix_alpha=0.0)
    assert len(np.unique(one.lams)) == 1
    other = sample(replace(BOTH, mix_mode="batch", cutmix_alpha=0.0), (0, 8), total=4000, batch=4)
    assert other.lams[0] != one.lams[0]


def reference(images: torch.Tensor, labels: torch.Tensor, mix: Mix) -> list[torch.Tensor]:
    """torchvision's MixUp and CutMix on each pair, and the labels as `[n, 7]` floats."""
    outputs: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for first in range(0, len(images), 2):
        pair, own = images[first : first + 2], labels[first : first + 2]
        if len(pair) == 1:
            results = [pair, torch.nn.functional.one_hot(own, 7).float()]
        else:
            top, left, height, width = mix.boxes[first].tolist()
            lam = float(mix.lams[first])
            chosen = v2.CutMix if mix.is_cut[first] else v2.MixUp
            transform = chosen(num_classes=7)
            params = {
                "labels": own,
                "batch_size": 2,
                "lam": lam,
                "box": (left, top, left + width, top + height),
                "lam_adjusted": lam,
            }
            results = [transform.transform(value, params) for value in (pair, own)]
        for output, result in zip(outputs, results, strict=True):
            output.append(result)
    return [torch.cat(output) for output in outputs]


@pytest.mark.parametrize("total", [40, 41])
def test_pixels_and_labels_equal_torchvision_exactly(total: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(total, 3, 24, 24).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(7, (total,))
    mix = sample(replace(BOTH, mix_probability=0.9), (0, total), total=total)
    assert mix.is_cut.any()
    assert not mix.is_cut.all()
    expected_images, expected_labels = reference(images, labels, mix)
    ours = mixing.apply_mix(images.clone(), mix, HostBuffers())
    assert torch.equal(ours, expected_images)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    by_mask = mixing.apply_mix_by_mask(images.permute(0, 2, 3, 1), mix)  # what a GPU runs
    assert torch.equal(by_mask.permute(0, 3, 1, 2), expected_images)
    mixed = mixing.mixed_labels(labels.numpy(), mix, CPU)
    one_hot = torch.nn.functional.one_hot(torch.stack([labels, mixed.paired]), 7)
    weights = torch.stack([mixed.lam, 1 - mixed.lam])[..., None]
    torch.testing.assert_close((one_hot * weights).sum(0), expected_labels)


@pytest.fixture
def config(image_root: Any, tmp_path_factory: pytest.TempPathFactory) -> Config:
    cache = tmp_path_factory.getbasetemp() / "cache"
    return change(
        root=str(image_root),
        cache_dir=str(cache),
        train_size=32,
        erase_probability=0.5,
        mixup_alpha=0.5,
        cutmix_alpha=1.0,
    )


def first_step(
    config: Config, batch_split: BatchSplit, rank: int = 0, num_workers: int = 0
) -> list[Batch]:
    where = {"rank": rank, "num_workers": num_workers}
    return list(train_batches(config, open_split(config), batch_split, (1, 2), **where))


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_loaders_mix_across_ranks_and_micro_batches(config: Config, loader: Any) -> None:
    """13 samples: an odd batch, whose slices begin and end in the middle of pairs."""
    config = change(config, loader=loader)
    one_rank = BatchSplit(13, 1, 1)
    (whole,) = first_step(config, one_rank)
    spec = train_spec(config, open_split(config), one_rank, step=1)
    (plain,) = first_step(change(config, mixup_alpha=0.0, cutmix_alpha=0.0), one_rank)
    assert spec.mix is not None
    assert torch.equal(whole.images, reference(plain.images, plain.labels, spec.mix)[0])
    assert torch.equal(whole.labels, plain.labels)
    by_rank = [first_step(config, BatchSplit(13, 3, 2), rank, int(rank == 1)) for rank in range(3)]
    parts = [by_rank[rank][micro_batch] for micro_batch in range(2) for rank in range(3)]
    assert [len(part.labels) for part in parts] == [2, 2, 2, 2, 2, 3]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert np.concatenate([p.sample_ids for p in parts]).tolist() == whole.sample_ids.tolist()
    assert whole.mixed is not None
    assert torch.equal(whole.labels[:12].view(6, 2).flip(1).flatten(), whole.mixed.paired[:12])
    for name in ("paired", "lam"):
        assert torch.equal(
            torch.cat([getattr(part.mixed, name) for part in parts]), getattr(whole.mixed, name)
        )


def test_the_digest_covers_what_is_sampled_and_is_the_old_one_where_all_is_off() -> None:
    fixed = {"labels": np.arange(20) % 3, "heights": np.full(20, 50), "widths": np.full(20, 60)}
    table = type("Table", (), {**fixed, "__len__": lambda _: 20})()

    def digest(**changes: Any) -> str:
        config = change(**changes)
        order = SampleOrder(20, 8, seed=1, ra_reps=config.augment.ra_reps)
        return digest_of_step(TrainSpecs(config.data, config.augment, table, 1, 8), order, 2)

    settings: list[dict[str, Any]] = [
        {},
        {"mixup_alpha": 0.2},
        {"mixup_alpha": 0.3},
        {"mixup_alpha": 0.2, "mix_mode": "batch"},
        {"cutmix_alpha": 0.2},
        {"erase_probability": 1.0},
        {"auto_augment": "ra"},
        {"auto_augment": "ra", "ra_magnitude": 8},
        {"auto_augment": "ta_wide"},
        {"color_jitter": (0.1, 0.0, 0.0, 0.0)},
        {"ra_reps": 2},
        {"progressive_start_size": 16, "progressive_epochs": (3, 5)},
    ]
    digests = [digest(**chosen) for chosen in settings]
    assert len(set(digests)) == len(settings)
    assert digest() == "178c400778a47900d881662d12bfe0f7753d0d5d2c0a28cdf932806838db13d1"
