"""The first layer that whitens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_dist.config import ModelConfig
from resnet_dist.errors import UserError
from resnet_dist.models.build import build_model
from resnet_dist.models.whitening import WhiteningConvolution, find_whitening
from resnet_dist.weights.architecture import guess_model


def _images(count: int = 100) -> Tensor:
    noise = torch.randn(count, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(noise, 3, 1)  # neighbours resemble each other, as in photographs


def _whitened(images: Tensor) -> WhiteningConvolution:
    layer = WhiteningConvolution(3)
    layer.whiten(layer.second_moments(images))
    return layer


def test_patches_come_out_uncorrelated() -> None:
    images = _images()
    found = F.conv2d(images, _whitened(images).weight)
    assert torch.equal(found[:, :12], -found[:, 12:])
    values = found[:, :12].transpose(0, 1).flatten(1).double()
    moments = values @ values.T / values.shape[1]
    torch.testing.assert_close(moments, moments.diagonal().diag(), atol=1e-5, rtol=0)
    # 1 but for what is added to the variances.
    assert 0.9 < float(moments.diagonal().min()) <= float(moments.diagonal().max()) < 1


def test_ranks_add_up_what_they_see() -> None:
    images = _images()
    layer = WhiteningConvolution(3)
    parts = sum(layer.second_moments(part) for part in images.split([1, 70, 29]))
    assert isinstance(parts, Tensor)
    whole = layer.second_moments(images)
    assert int(whole[-1, -1]) == 100 * 11 * 11
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    layer.whiten(parts)
    torch.testing.assert_close(layer.weight, _whitened(images).weight, rtol=1e-5, atol=1e-6)


def test_only_its_bias_is_trained_and_its_file_tells_what_it_is() -> None:
    model = build_model(ModelConfig(name="resnet9", width=16, stem="whiten"), num_classes=4, seed=0)
    layer = find_whitening(model)
    assert layer is not None
    model(_images(4)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is not None
    guess = guess_model(model.state_dict())
    assert guess is not None
    assert (guess["model.stem"], guess["model.width"]) == ("whiten", 16)
    assert guess["model.conv_bias"] is False
    other = build_model(ModelConfig(name="resnet9", width=16), num_classes=4, seed=0)
    assert find_whitening(other) is None
    guess = guess_model(other.state_dict())
    assert guess is not None
    assert (guess["model.stem"], guess["model.width"]) == ("standard", 16)


def test_networks_with_blocks_refuse_it() -> None:
    with pytest.raises(UserError, match=r"model\.stem \('whiten'\).*resnet9"):
        ModelConfig(name="resnet18", stem="whiten")
