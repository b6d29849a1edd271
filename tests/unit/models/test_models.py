"""Every network: torchvision's weights both ways, all gradients, layouts, and initial weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_dist.config import ModelConfig
from resnet_dist.config.model import MODEL_NAMES
from resnet_dist.errors import UserError
from resnet_dist.models.build import MODELS, build_model
from resnet_dist.models.resnet import BasicBlock, Bottleneck


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors as small as these are slower on several threads, which wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


DEPTHS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def _images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def _build(num_classes: int = 10, seed: int = 0, **settings: Any) -> nn.Module:
    return build_model(ModelConfig(**settings), num_classes=num_classes, seed=seed)


def _randomised(model: nn.Module) -> dict[str, Tensor]:
    """A state of the model in which no scale and no statistic is at its neutral value."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in model.state_dict().items():
        state[name] = tensor.clone()
        if tensor.is_floating_point() and tensor.ndim == 1:
            state[name] = torch.rand(tensor.shape, generator=generator) * 0.5
        if name.endswith("running_var"):
            state[name] += 0.75
    return state


def _torchvision(name: str, state: dict[str, Tensor]) -> nn.Module:
    with torch.device("meta"):  # Spares it the drawing of weights that are replaced at once.
        model: nn.Module = getattr(torchvision.models, name)(num_classes=10)
    model.load_state_dict(state, assign=True)
    return model


@pytest.mark.parametrize("name", DEPTHS)
def test_state_dict_goes_both_ways_with_equal_logits(name: str) -> None:
    ours = _build(name=name).eval()
    theirs = _torchvision(name, _randomised(ours)).eval()
    images = _images(64, count=1)
    with torch.no_grad():
        expected = theirs(images)
        assert not torch.allclose(ours(images), expected)
        ours.load_state_dict(theirs.state_dict())
        assert torch.equal(ours(images), expected)
        ours.get_parameter("fc.weight").mul_(0.5)
        theirs.load_state_dict(ours.state_dict())
        halved = theirs(images)
        assert torch.equal(ours(images), halved)
        assert not torch.equal(halved, expected)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_training_equals_torchvision(name: str) -> None:
    """Gradients too: the blocks add and activate in place."""
    ours = _build(name=name)
    state = _randomised(ours)
    ours.load_state_dict(state)
    theirs = _torchvision(name, state)
    gradients = []
    for model in (ours, theirs):
        model(_images(32)).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for parameter, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][parameter]), parameter


VARIANTS: list[dict[str, Any]] = [
    *({"name": name} for name in MODELS),
    {"name": "resnet50", "stride": "v1"},
    {"name": "resnet18", "stem": "d"},
    {"name": "resnet50", "stem": "d"},
    {"name": "resnet18", "stem": "cifar"},
    {"name": "resnet50", "stem": "cifar"},
]


def _label(settings: dict[str, Any]) -> str:
    return "-".join(settings.values())


@pytest.mark.parametrize("settings", VARIANTS, ids=_label)
def test_forward_and_backward_reach_every_parameter(settings: dict[str, Any]) -> None:
    """In channels-last under bfloat16 autocast, as training runs."""
    model = _build(num_classes=7, width=8, zero_init_last_gamma=False, **settings)
    model = model.to(memory_format=torch.channels_last)
    images = _images(32).contiguous(memory_format=torch.channels_last)
    layouts = []
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for module in convolutions:
        module.register_forward_hook(
            lambda _module, _inputs, output: layouts.append(
                output.is_contiguous(memory_format=torch.channels_last)
            )
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, torch.tensor([1, 2]))
    loss.backward()
    assert logits.shape == (2, 7)
    assert len(layouts) == len(convolutions)
    assert all(layouts)
    for name, parameter in model.named_parameters():
        assert parameter.dtype is torch.float32, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("settings", VARIANTS, ids=_label)
def test_width_64_is_the_published_network_and_width_scales_it(settings: dict[str, Any]) -> None:
    millions = {
        "resnet9": 6.57,
        "resnet18": 11.69,
        "resnet34": 21.80,
        "resnet50": 25.56,
        "resnet101": 44.55,
        "resnet152": 60.19,
    }[settings["name"]]
    num_classes = 10 if settings["name"] == "resnet9" else 1000
    sizes = {}
    for width in (32, 64):
        with torch.device("meta"):  # Sizes without memory.
            config = ModelConfig(width=width, **settings)
            model = MODELS[config.name](config, num_classes)
        sizes[width] = sum(parameter.numel() for parameter in model.parameters())
    assert sizes[64] / 1e6 == pytest.approx(millions, abs=0.025)
    assert sizes[32] < 0.35 * sizes[64]


def test_where_the_bottleneck_strides() -> None:
    for stride, expected in (("v1", (2, 1)), ("v1.5", (1, 2))):
        block = _build(name="resnet50", width=8, stride=stride).get_submodule("layer2.0")
        assert isinstance(block, Bottleneck)
        assert (block.conv1.stride[0], block.conv2.stride[0]) == expected


def test_resolutions_of_the_stems() -> None:
    for stem, expected in (("standard", 16), ("d", 16), ("cifar", 64)):
        model = _build(name="resnet18", width=8, stem=stem)
        shapes: list[torch.Size] = []
        model.get_submodule("layer1").register_forward_hook(
            lambda _module, _inputs, output, shapes=shapes: shapes.append(output.shape)
        )
        model(_images(64))
        assert shapes == [torch.Size([2, 8, expected, expected])]


def test_resnet_d_takes_odd_sizes() -> None:
    assert _build(name="resnet18", width=8, stem="d")(_images(49)).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_init_makes_every_residual_branch_start_at_zero(name: str) -> None:
    for is_zero in (True, False):
        model = _build(name=name, width=8, zero_init_last_gamma=is_zero)
        blocks = [m for m in model.modules() if isinstance(m, BasicBlock | Bottleneck)]
        assert len(blocks) in (8, 16)
        for block in blocks:
            assert bool(block.last_norm.weight.any()) is not is_zero


def test_resnet9_learns_whatever_zero_init_says() -> None:
    model = _build(name="resnet9", width=8, zero_init_last_gamma=True)
    model(_images(32)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["resnet9", "resnet18", "resnet50"])
def test_batch_norm_settings_reach_every_layer(name: str) -> None:
    model = _build(name=name, width=8, batch_norm_momentum=0.02, batch_norm_eps=1e-3)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.02, 1e-3)}


def test_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = _build(name="resnet18", width=8).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    again = _build(name="resnet18", width=8).state_dict()
    other = _build(name="resnet18", width=8, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_initial_spread_is_he_fan_out() -> None:
    weight = _build(name="resnet18").get_parameter("layer4.1.conv1.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_the_configuration_knows_the_names_without_torch() -> None:
    assert tuple(MODELS) == MODEL_NAMES


def test_unknown_name_is_refused_with_the_near_one() -> None:
    with pytest.raises(UserError, match=r"'ResNet-50'.*resnet152.*did you mean resnet50"):
        _build(name="ResNet-50")
    with pytest.raises(UserError, match=r"model.name \('vit'\): must be one of resnet9, "):
        _build(name="vit")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"name": "resnet9", "stem": "cifar"}, "model.stem .* layers are fixed"),
        ({"name": "resnet9", "stride": "v1"}, "model.stride .* layers are fixed"),
        ({"name": "resnet18", "stem": "d", "width": 9}, "model.width .* must be even"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        _build(**settings)


@pytest.mark.parametrize("stem", ["standard", "d"])
def test_space_to_depth_is_the_same_first_layer(stem: str) -> None:
    model = _build(stem=stem, width=16, name="resnet18")
    first = model.conv1[0] if stem == "d" else model.conv1  # type: ignore[index]
    first = first.double()
    images = torch.randn(2, 3, 20, 14, dtype=torch.float64)
    outputs = []
    for first.space_to_depth in (False, True):
        y = first(images.contiguous(memory_format=torch.channels_last))
        (gradient,) = torch.autograd.grad(y.sin().sum(), first.weight)
        outputs.append((y, gradient))
    for plain, on_blocks in zip(*outputs, strict=True):
        torch.testing.assert_close(on_blocks, plain, rtol=1e-12, atol=1e-12)
    assert not torch.equal(outputs[0][0], outputs[1][0]), "both went the same way"
    assert outputs[1][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("on_blocks", [True, False])
def test_images_with_other_channels_are_refused(channels: int, on_blocks: bool) -> None:
    model = _build(name="resnet18", width=16)
    model.conv1.space_to_depth = on_blocks  # type: ignore[assignment]
    with pytest.raises(ValueError, match=f"images with {channels} channels; 3 are taken"):
        model(torch.randn(1, channels, 32, 32))


def test_space_to_depth_leaves_odd_images_alone() -> None:
    first = _build(name="resnet18", width=16).conv1
    images = torch.randn(1, 3, 15, 14)
    expected = first(images)
    first.space_to_depth = True
    assert torch.equal(first(images), expected)
