"""A network with fused batch norm is the plain network, up to the order of rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_dist.config import Config, DistConfig, ModelConfig, PerformanceConfig, TrainConfig
from resnet_dist.config.performance import PRESETS
from resnet_dist.errors import UserError
from resnet_dist.models.build import build_model
from resnet_dist.performance.fused_network import FusedNetwork
from resnet_dist.performance.wrap import first_synchronised, wrap_model
from resnet_dist.world import World

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"name": "resnet18"},
    "resnet50": {"name": "resnet50"},
    "resnet50 v1": {"name": "resnet50", "stride": "v1"},
    "resnet50 d": {"name": "resnet50", "stem": "d"},
    "resnet18 cifar": {"name": "resnet18", "stem": "cifar"},
    "resnet9": {"name": "resnet9"},
    "resnet9 whiten": {"name": "resnet9", "stem": "whiten"},
}


def _build(**settings: Any) -> nn.Module:
    # Without zeros in the last scales, so that every branch has a gradient.
    config = ModelConfig(width=16, zero_init_last_gamma=False, **settings)
    model = build_model(config, num_classes=10, seed=1)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _images(size: int = 40) -> Tensor:
    images = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def _loss(network: nn.Module, images: Tensor) -> Tensor:
    labels = torch.arange(images.shape[0])
    return nn.functional.cross_entropy(network(images).float(), labels)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_loss_gradients_and_statistics_are_those_of_the_plain_network(name: str) -> None:
    plain = _build(**NETWORKS[name]).double()
    model = copy.deepcopy(plain)
    images = _images().double()
    for network in (plain, FusedNetwork(model)):
        for _ in range(2):
            labels = torch.arange(6)
            nn.functional.cross_entropy(network(images), labels).backward()
    for (key, given), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        if not expected.requires_grad:
            assert given.grad is None
            continue
        assert given.grad is not None
        assert expected.grad is not None
        torch.testing.assert_close(given.grad, expected.grad, rtol=1e-9, atol=1e-9, msg=key)
        assert given.grad.stride() == given.stride()
    for (key, given), expected in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-10, msg=key)


def test_in_bfloat16_it_is_nearer_to_float32_than_the_plain_network() -> None:
    """It rounds less often; the bound leaves room for chance."""
    exact = _build(name="resnet50")
    plain, fused = copy.deepcopy(exact), copy.deepcopy(exact)
    images = _images(64)
    _loss(exact, images).backward()
    errors = []
    for network, model in ((plain, plain), (FusedNetwork(fused), fused)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = _loss(network, images)
        loss.backward()
        pairs = zip(model.parameters(), exact.parameters(), strict=True)
        errors.append([float((a.grad - b.grad).norm() / b.grad.norm()) for a, b in pairs])  # type: ignore[operator, union-attr]
    of_plain, of_fused = (sum(values) / len(values) for values in errors)
    assert of_fused < 1.1 * of_plain


def test_in_evaluation_it_is_the_model_itself() -> None:
    model = _build(name="resnet18").eval()
    images = _images()
    with torch.no_grad():
        assert torch.equal(FusedNetwork(model)(images), model(images))


def test_wrapped_it_shares_the_models_tensors() -> None:
    world = World(0, 1, 0, 1, torch.device("cpu"))
    model = _build(name="resnet18")
    train, fused = TrainConfig(precision="float32"), PRESETS["fused"]
    network = wrap_model(model, train=train, dist=DistConfig(), world=world, speed=fused)
    assert isinstance(network, FusedNetwork)
    assert not network.is_synchronised
    assert [p.data_ptr() for p in network.parameters()] == [
        p.data_ptr() for p in model.parameters()
    ]
    assert isinstance(first_synchronised(network, speed=fused), nn.Parameter)


def test_channels_that_do_not_fill_bytes_are_refused() -> None:
    model = build_model(ModelConfig(width=12), num_classes=10, seed=0)
    with pytest.raises(UserError, match=r"multiples of 8.*model\.width.*12"):
        FusedNetwork(model)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"performance\.fused_norm"):
        PerformanceConfig(fused_norm=True, compile=True)
    with pytest.raises(ValueError, match=r"performance\.fused_norm"):
        Config(
            performance=PerformanceConfig(fused_norm=True), train=TrainConfig(channels_last=False)
        )
