"""Random erasing against torchvision's, and the same in both loaders."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from resnet_dist.config import AugmentConfig, Config
from resnet_dist.data.augment import erasing
from resnet_dist.data.micro_batches import BatchSplit
from tests.loading import change, open_split, train_batches, train_spec

SCALE, RATIO = (0.3, 1.0), (0.02, 50.0)


class _GivenUniforms:
    """torch as RandomErasing.make_params uses it, sampling from given float64 numbers."""

    def __init__(self, uniforms: NDArray[np.float64]) -> None:
        self.attempts = iter(uniforms[:20].tolist())
        self.anchors = iter(uniforms[20:22].tolist())
        self.float32 = torch.float32

    def exp(self, value: torch.Tensor) -> torch.Tensor:
        return torch.exp(value)

    def tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values)

    def empty(self, _: int) -> SimpleNamespace:
        def uniform(low: float, high: float) -> torch.Tensor:
            value = float(low) + (float(high) - float(low)) * next(self.attempts)
            return torch.tensor(value, dtype=torch.float64)

        return SimpleNamespace(uniform_=uniform)

    def randint(self, low: int, high: int, size: tuple[int]) -> torch.Tensor:
        assert low == 0
        assert size == (1,)
        return torch.tensor(math.floor(next(self.anchors) * high))


def test_rectangles_and_pixels_equal_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    uniform = np.random.default_rng(0).random((400, 24))
    images = torch.randn(400, 3, 23, 23).contiguous(memory_format=torch.channels_last)
    ours = erasing.erased_boxes(23, SCALE, RATIO, uniform)
    theirs = v2.RandomErasing(p=1.0, scale=SCALE, ratio=RATIO)
    theirs._log_ratio = torch.log(torch.tensor(RATIO, dtype=torch.float64))
    module = __import__(theirs.__module__, fromlist=["torch"])
    expected = []
    for image, box, row in zip(images, ours.tolist(), uniform, strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(module, "torch", _GivenUniforms(row))
            params = theirs.make_params([image])
        if params["v"] is None:  # nothing fits: nothing is erased
            params = dict.fromkeys("ijhw", 0) | {"v": None}
        assert box == [params[name] for name in "ijhw"]
        expected.append(theirs.transform(image, params))
    empty = (ours[:, 2] == 0).sum()
    assert 0 < empty < 200
    by_mask = images.clone()
    erasing.apply_erasing_(images, ours)
    assert torch.equal(images, torch.stack(expected))
    erasing.apply_erasing_by_mask_(by_mask, ours)  # what a GPU runs
    assert torch.equal(by_mask, images)


def test_probability_and_positions() -> None:
    augment = AugmentConfig(erase_probability=0.25)
    whole = erasing.sample_erased_boxes(augment, 8000, seed=1, epoch=2, start=0, size=224)
    assert whole is not None
    assert abs((whole[:, 2] > 0).mean() - 0.25) < 0.015
    part = erasing.sample_erased_boxes(augment, 30, seed=1, epoch=2, start=50, size=224)
    np.testing.assert_array_equal(part, whole[50:80])
    areas = (whole[:, 2] * whole[:, 3] / 224**2)[whole[:, 2] > 0]
    assert areas.min() > 0.019
    assert areas.max() < 0.34
    off = erasing.sample_erased_boxes(AugmentConfig(), 5, seed=1, epoch=0, start=0, size=224)
    assert off is None


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_loaders_erase_after_the_normalisation(
    image_root: Path, tmp_path_factory: pytest.TempPathFactory, loader: Any
) -> None:
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    plain = change(root=str(image_root), cache_dir=cache, train_size=32, loader=loader)
    config = change(plain, erase_probability=0.8)
    index, split = open_split(config), BatchSplit(20, 1, 1)

    def first(chosen: Config) -> torch.Tensor:
        return next(train_batches(chosen, index, split, (0, 1))).images

    expected = first(plain).clone()
    spec = train_spec(config, index, split, step=0)
    assert spec.erased is not None
    assert 0 < (spec.erased[:, 2] > 0).sum() < 20
    for image, (top, left, height, width) in zip(expected, spec.erased.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = 0
    assert torch.equal(first(config), expected)
