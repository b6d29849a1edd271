"""Stochastic depth, BlurPool, initial values and blocks that are computed twice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resnet_dist.config import ModelConfig
from resnet_dist.data.specs import drop_rates
from resnet_dist.errors import UserError
from resnet_dist.models.blur import BlurConv2d, BlurMaxPool2d, blur
from resnet_dist.models.build import build_model
from resnet_dist.models.statistics import recomputed_statistics


def _build(**settings: Any) -> nn.Module:
    config = ModelConfig(**{"name": "resnet18", "width": 8, **settings})
    return build_model(config, num_classes=5, seed=0)


def _images(count: int = 4, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_drop_rates_rise_as_timms_do() -> None:
    """timm's resnet.py: drop_path_rate * block_index / (number of blocks - 1)."""
    rates = drop_rates(ModelConfig(name="resnet50", stochastic_depth=0.05))
    np.testing.assert_allclose(rates, np.linspace(0, 0.05, 16))
    assert drop_rates(ModelConfig(name="resnet50")) == ()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_kept_branches_change_nothing_and_dropped_ones_are_left_out(name: str) -> None:
    model = _build(name=name, stochastic_depth=0.2, zero_init_last_gamma=False).eval()
    blocks = len(drop_rates(ModelConfig(name=name, stochastic_depth=0.2)))
    images = _images()
    with torch.inference_mode():
        plain = model(images)
        assert torch.equal(model(images, torch.ones(4, blocks)), plain)
        kept = torch.ones(4, blocks)
        kept[1] = 0.0
        found = model(images, kept)
        assert torch.equal(found[[0, 2, 3]], plain[[0, 2, 3]])
        assert not torch.equal(found[1], plain[1])
        for module in model.modules():
            if hasattr(module, "last_norm"):
                nn.init.zeros_(module.last_norm.weight)  # type: ignore[arg-type]
                nn.init.zeros_(module.last_norm.bias)  # type: ignore[arg-type]
        torch.testing.assert_close(model(images)[1], found[1])


@pytest.mark.parametrize("settings", [{"name": "resnet9"}, {"name": "timm:resnet10t", "width": 64}])
def test_networks_without_blocks_refuse_it(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model\.stochastic_depth"):
        ModelConfig(stochastic_depth=0.1, **settings)


def test_the_blur_is_binomial() -> None:
    spike = torch.zeros(1, 2, 5, 5)
    spike[0, 1, 2, 2] = 16.0
    line = torch.tensor([1.0, 2.0, 1.0])
    found = blur(spike)
    assert torch.equal(found[0, 1, 1:4, 1:4], torch.outer(line, line))
    assert not found[0, 0].any()
    assert torch.equal(blur(spike, stride=2), found[:, :, ::2, ::2])


@pytest.mark.parametrize(("kind", "pools"), [("none", 0), ("conv", 0), ("conv_maxpool", 1)])
def test_what_is_blurred(kind: str, pools: int) -> None:
    """Convolutions with a stride and 16 channels or more: not the first."""
    plain, model = _build(width=16), _build(width=16, blur_pool=kind)
    assert list(plain.state_dict()) == list(model.state_dict())
    model.load_state_dict(plain.state_dict())
    blurred = [name for name, part in model.named_modules() if isinstance(part, BlurConv2d)]
    strided = [
        name
        for name, part in plain.named_modules()
        if isinstance(part, nn.Conv2d) and part.stride == (2, 2) and part.in_channels >= 16
    ]
    assert blurred == ([] if kind == "none" else strided)
    assert sum(isinstance(part, BlurMaxPool2d) for part in model.modules()) == pools
    with torch.inference_mode():
        same = torch.equal(model.eval()(_images()), plain.eval()(_images()))
    assert same == (kind == "none")


def test_initial_bias_and_scales_are_composers() -> None:
    model = _build(fc_bias="minus_log_classes", gamma_init="uniform", zero_init_last_gamma=False)
    assert model.get_parameter("fc.bias").tolist() == pytest.approx([-math.log(5)] * 5)
    scales = torch.cat(
        [m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    )
    assert 0 <= float(scales.min()) < 0.05
    assert 0.95 < float(scales.max()) <= 1
    assert float(scales.mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("with_kept", [False, True])
def test_blocks_computed_twice_give_the_same_bits(with_kept: bool) -> None:
    """Gradients and running statistics, which are not recorded twice."""
    states = []
    for recomputes in (False, True):
        model = _build(name="resnet50")
        model.recomputes = recomputes
        generator = torch.Generator().manual_seed(3)
        kept = torch.rand(4, 16, generator=generator).round() if with_kept else None
        for _ in range(2):
            model(_images(), kept).square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        states.append((gradients, dict(model.named_buffers())))
    for first, second in zip(*states, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            assert torch.equal(first[name], second[name]), name  # type: ignore[arg-type]


def test_less_is_held_for_the_backward_pass() -> None:
    sizes = []
    for recomputes in (False, True):
        model = _build(name="resnet50")
        model.recomputes = recomputes
        held = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal held
            held += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(_images(size=128))
        sizes.append(held)
    assert sizes[1] < 0.5 * sizes[0]


def test_statistics_are_the_means_over_the_batches() -> None:
    model = _build().eval()
    norm = model.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    batches = [_images(size=64), _images(8, 64).flip(0)[:6], _images(3, 64) + 1]
    with torch.no_grad():
        maps = [model.get_submodule("conv1")(images) for images in batches]
    count_before = int(norm.num_batches_tracked or 0)
    with recomputed_statistics(model) as count, torch.no_grad():
        for images in batches:
            count()
            model(images)
    assert norm.momentum == 0.1
    assert int(norm.num_batches_tracked or 0) == count_before
    assert not model.training
    means = torch.stack([one.mean(dim=(0, 2, 3)) for one in maps]).mean(0)
    variances = torch.stack([one.var(dim=(0, 2, 3)) for one in maps]).mean(0)
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variances, rtol=1e-4, atol=1e-5)
