"""Networks of others and images that they cannot take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_dist.config import ModelConfig
from resnet_dist.errors import UserError
from resnet_dist.models.build import build_model
from resnet_dist.models.foreign import check_images


def test_images_that_are_too_small_are_one_sentence() -> None:
    config = ModelConfig(name="timm:convnext_atto")
    model = build_model(config, num_classes=5, seed=0)
    with pytest.raises(UserError, match=r"data\.train_size \(24\): timm:convnext_atto cannot"):
        check_images(model, config, setting="data.train_size", size=24, num_classes=5)
    before = torch.random.get_rng_state()
    check_images(model, config, setting="data.train_size", size=64, num_classes=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training


def test_what_is_no_classifier_is_named() -> None:
    config = ModelConfig(name="a.module:features")
    with pytest.raises(UserError, match=r"gives \[2, 16, 62, 62\] for two images, not \[2, 5\]"):
        check_images(nn.Conv2d(3, 16, 3), config, setting="data.eval_size", size=64, num_classes=5)
