"""Images of one pixel's width cost no more than others, and give the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resnet_dist.config import DataConfig
from resnet_dist.data.loaders import torch_backend
from resnet_dist.data.loaders.torch_backend import crop_and_flip
from resnet_dist.data.order import eval_slice
from resnet_dist.data.specs import EvalSpecs


class Table:
    """One image."""

    def __init__(self, height: int, width: int) -> None:
        self.labels = np.zeros(1, np.int64)
        self.heights = np.array([height], np.int32)
        self.widths = np.array([width], np.int32)

    def __len__(self) -> int:
        return 1


def crop(height: int, width: int, mode: str) -> torch.Tensor:
    noise = np.random.default_rng(0).integers(0, 256, (3, height, width), np.uint8)
    spec = EvalSpecs(DataConfig(), Table(height, width))(eval_slice(1, 1, 0))
    return crop_and_flip(torch.from_numpy(noise), spec, 0, mode=mode)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 3), (3, 61), (7, 333), (1030, 17), (2000, 500), (1, 90)])
def test_the_window_alone_has_the_pixels_of_the_whole(
    size: tuple[int, int], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_backend, "_MOST_BEYOND_THE_CROP", 10**9)
    whole = crop(*size, mode)
    monkeypatch.setattr(torch_backend, "_MOST_BEYOND_THE_CROP", 0)
    window = crop(*size, mode)
    assert window.shape == whole.shape == (224, 224, 3)
    difference = (window.int() - whole.int()).abs()
    # Weights are rounded otherwise; torch's bicubic is further from Pillow's where it overshoots.
    assert difference.float().mean() < 0.5
    assert difference.max() <= (1 if mode == "bilinear" else 20)


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (2, 60_000), (60_000, 3)])
def test_nothing_large_is_made(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> torch.Tensor:
        raise AssertionError("the whole image was resized")

    monkeypatch.setattr(torch_backend.F, "interpolate", refuse)
    assert crop(*size, "bilinear").shape == (224, 224, 3)
