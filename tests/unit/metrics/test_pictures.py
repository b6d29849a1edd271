"""Pictures with words below."""

from __future__ import annotations

import torch

from resnet_dist.metrics.pictures import captioned


def test_small_images_are_enlarged_and_words_stand_below() -> None:
    images = torch.randint(256, (3, 3, 32, 40), dtype=torch.uint8)
    pictures = captioned(images, ["cat\nis dog", "Ünsinn 🐕", ""])
    assert pictures.shape == (3, 3, 96 + 28, 120)
    assert pictures.dtype == torch.uint8
    assert torch.equal(pictures[:, :, :96:3, ::3], images)
    strips = pictures[:, :, 96:]
    assert strips[0].min() < 100
    assert strips[1].min() < 100
    assert strips[2].min() == 255


def test_large_images_keep_their_pixels_and_long_words_are_cut() -> None:
    images = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    pictures = captioned(images, ["a very long name of a class, " * 10])
    assert pictures.shape == (1, 3, 224 + 14, 224)
    assert pictures[0, :, 224:, -2:].min() == 255
