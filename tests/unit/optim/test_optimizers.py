"""Parameter groups, optimizers against their formulas, and the weight average."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from resnet_dist.config import ModelConfig, OptimConfig
from resnet_dist.models.build import build_model
from resnet_dist.optim.build import build_optimizer
from resnet_dist.optim.ema import ModelEma
from resnet_dist.optim.groups import parameter_groups
from tests.unit.optim.small import set_gradients


def _small_model(seed: int = 0) -> nn.Module:
    model = build_model(ModelConfig(name="resnet9", width=8), num_classes=4, seed=seed)
    return model.to(memory_format=torch.channels_last)


def test_resnet50_decays_54_tensors_and_leaves_107() -> None:
    model = build_model(ModelConfig(name="resnet50", width=8), num_classes=10, seed=0)
    decayed, others = parameter_groups(model, weight_decay=0.25, decay_norm_and_bias=False)
    assert (len(decayed["params"]), len(others["params"])) == (54, 107)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.25, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = {names[id(parameter)] for parameter in others["params"]}
    # The layers that a search for "bn" in the name misses.
    assert {f"layer{stage}.0.downsample.1.weight" for stage in (1, 2, 3, 4)} <= kept
    assert {names[id(parameter)] for parameter in decayed["params"]} | kept == set(names.values())


def test_norm_and_bias_are_decayed_on_request_and_frozen_parameters_left_out() -> None:
    model = _small_model()
    model.get_parameter("fc.bias").requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.25, decay_norm_and_bias=True)
    assert [group["weight_decay"] for group in groups] == [0.25, 0.25]
    given = sum(len(group["params"]) for group in groups)
    assert given == len(list(model.parameters())) - 1


def _reference_sgd(weight: Tensor, grads: list[Tensor], decay: float, nesterov: bool) -> Tensor:
    velocity = torch.zeros_like(weight)
    for grad in grads:
        grad = grad.double() + decay * weight
        velocity = 0.9 * velocity + grad
        weight = weight - 0.1 * (grad + 0.9 * velocity if nesterov else velocity)
    return weight


def _reference_adam(weight: Tensor, grads: list[Tensor], decay: float, decoupled: bool) -> Tensor:
    """Kingma and Ba 2014, algorithm 1; Loshchilov and Hutter 2017, algorithm 2."""
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for count, raw in enumerate(grads, start=1):
        grad = raw.double() + (0.0 if decoupled else decay) * weight
        first = 0.9 * first + 0.1 * grad
        second = 0.99 * second + 0.01 * grad**2
        update = (first / (1 - 0.9**count)) / ((second / (1 - 0.99**count)).sqrt() + 1e-8)
        weight = weight - 0.1 * (update + (decay if decoupled else 0.0) * weight)
    return weight


OPTIMIZERS = {
    "sgd": OptimConfig(name="sgd", weight_decay=0.02),
    "nesterov": OptimConfig(name="sgd", nesterov=True, weight_decay=0.02),
    "adam": OptimConfig(name="adam", betas=(0.9, 0.99), weight_decay=0.02),
    "adamw": OptimConfig(name="adamw", betas=(0.9, 0.99), weight_decay=0.02),
}


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_steps_equal_the_formulas_and_are_reproducible(kind: str) -> None:
    """To 1e-6 of a float64 reference, and bit for bit when repeated, resumed or not."""
    models = [_small_model(), _small_model()]
    start = {name: p.detach().double() for name, p in models[0].named_parameters()}
    grads: dict[str, list[Tensor]] = {name: [] for name in start}
    optimizers = [build_optimizer(OPTIMIZERS[kind], model) for model in models]
    for step in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            set_gradients(model, step)
            optimizer.step()
        for name, parameter in models[0].named_parameters():
            assert parameter.grad is not None
            grads[name].append(parameter.grad)
        if step == 1:
            restored = build_optimizer(OPTIMIZERS[kind], models[1])
            restored.load_state_dict(optimizers[1].state_dict())
            optimizers[1] = restored
    for name, parameter in models[0].named_parameters():
        assert torch.equal(parameter, models[1].get_parameter(name))
        decay = 0.02 if parameter.ndim > 1 else 0.0
        if kind in ("sgd", "nesterov"):
            expected = _reference_sgd(start[name], grads[name], decay, kind == "nesterov")
        else:
            expected = _reference_adam(start[name], grads[name], decay, kind == "adamw")
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-6, atol=1e-6)


def test_a_gradient_in_another_layout_is_not_applied_in_the_wrong_order() -> None:
    model = _small_model()
    optimizer = build_optimizer(OptimConfig(), model)
    set_gradients(model, 0)
    optimizer.step()
    weight = model.get_parameter("conv1.0.weight")
    assert weight.grad is not None
    weight.grad = weight.grad.contiguous(memory_format=torch.contiguous_format)
    with pytest.raises(AssertionError, match="layout"):
        optimizer.step()


def test_average_of_parameters_and_running_statistics() -> None:
    model = _small_model()
    average = ModelEma(model, decay=0.75)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0 + step)
        model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step)))
        average.update(model)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = 0.75 * expected[name] + 0.25 * tensor
            else:
                expected[name] = tensor
    state = average.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name])
    assert int(state["conv1.1.num_batches_tracked"]) == 3


def test_average_is_ready_for_evaluation_and_restorable() -> None:
    model = _small_model()
    average = ModelEma(model, decay=0.5)
    assert not average.module.training
    assert model.training
    images = torch.ones(2, 3, 8, 8)
    assert not average.module(images).requires_grad
    other = ModelEma(_small_model(seed=1), decay=0.5)
    assert not torch.equal(other.module(images), average.module(images))
    other.load_state_dict(average.state_dict())
    assert torch.equal(other.module(images), average.module(images))
