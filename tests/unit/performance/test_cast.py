"""Weights that are converted together: the bits of autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from resnet_dist.config import ModelConfig
from resnet_dist.models.build import build_model
from resnet_dist.performance.cast import WeightCast


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(name="resnet50", width=8),
        ModelConfig(name="resnet18", width=8, stem="d"),
        ModelConfig(name="resnet9", width=8, stem="whiten", conv_bias=True),
    ],
    ids=lambda config: config.name,
)
def test_bits_are_those_of_autocast(config: ModelConfig) -> None:
    model = build_model(config, num_classes=5, seed=0)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other = copy.deepcopy(model)
    images = torch.randn(4, 3, 40, 40).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images)
        weights = WeightCast(other)(other, torch.bfloat16)
        found = functional_call(other, weights, (images,))
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == sum(len(list(layer.parameters(recurse=False))) for layer in layers)
    for logits in (expected, found):
        logits.float().square().sum().backward()
    assert torch.equal(found, expected)
    for one, two in zip(other.parameters(), model.parameters(), strict=True):
        assert one.requires_grad == two.requires_grad
        if two.grad is None:
            assert one.grad is None
            continue
        assert one.grad is not None
        assert torch.equal(one.grad, two.grad)
        assert one.grad.stride() == one.stride()
