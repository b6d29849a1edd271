"""LARS and LAMB against their formulas in float64; skipped steps; nothing waits for the device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_dist.config import OptimConfig
from resnet_dist.optim.build import build_optimizer
from resnet_dist.optim.lamb import LAMB
from resnet_dist.optim.lars import LARS
from resnet_dist.optim.schedules import apply_schedule
from tests.unit.optim.small import set_gradients, small_model

CONFIGS = {
    "lars": OptimConfig(name="lars", lr=2.0, weight_decay=0.01, trust_coefficient=0.02),
    "lamb": OptimConfig(name="lamb", lr=0.01, weight_decay=0.02, eps=1e-6, betas=(0.8, 0.95)),
}


def _model() -> nn.Module:
    """With a weight that is zero."""
    model = small_model()
    nn.init.zeros_(model[3].weight)  # type: ignore[arg-type, index]
    return model


def _lars(w: Tensor, grads: list[Tensor], lrs: list[float], config: OptimConfig) -> Tensor:
    v = torch.zeros_like(w)
    decay = config.weight_decay if w.ndim > 1 else 0.0
    for g, lr in zip(grads, lrs, strict=True):
        ratio = 1.0
        if decay and w.norm() > 0 and g.norm() > 0:
            ratio = float(config.trust_coefficient * w.norm() / (g.norm() + decay * w.norm()))
        v = config.momentum * v + lr * ratio * (g + decay * w)
        w = w - v
    return w


def _lamb(w: Tensor, grads: list[Tensor], lrs: list[float], config: OptimConfig) -> Tensor:
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    beta1, beta2 = config.betas
    decay = config.weight_decay if w.ndim > 1 else 0.0
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        u = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + config.eps) + decay * w
        ratio = float(w.norm() / u.norm()) if decay and w.norm() > 0 and u.norm() > 0 else 1.0
        w = w - lr * ratio * u
    return w


REFERENCES = {"lars": _lars, "lamb": _lamb}


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_updates_equal_the_formulas(name: str, on_device: bool) -> None:
    """With a learning rate that changes, as a number or as a tensor."""
    model, config = _model(), CONFIGS[name]
    start = [parameter.detach().double() for parameter in model.parameters()]
    optimizer = build_optimizer(config, model)
    lrs = [config.lr * factor for factor in (0.5, 1.0, 0.7, 0.2)]
    gradients: list[list[Tensor]] = [[] for _ in start]
    for step, lr in enumerate(lrs):
        set_gradients(model, step)
        for kept, parameter in zip(gradients, model.parameters(), strict=True):
            assert parameter.grad is not None
            kept.append(parameter.grad.double())
        apply_schedule(optimizer, lr=lr, momentum=None)
        if on_device:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(lr)
        optimizer.step()
    for parameter, weight, kept in zip(model.parameters(), start, gradients, strict=True):
        expected = REFERENCES[name](weight, kept, lrs, config)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(parameter.detach().double(), weight)


@pytest.mark.parametrize("beta2", [0.0, 0.999])
def test_the_first_update_of_lamb_has_no_scale(beta2: float) -> None:
    """With both corrections it is the gradient's sign, to float32's last digits."""
    weight = nn.Parameter(torch.zeros(1000))
    groups = [{"params": [weight], "weight_decay": 0.0}]
    optimizer = LAMB(groups, lr=1.0, eps=0.0, betas=(0.9, beta2))
    weight.grad = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    torch.testing.assert_close(weight.detach(), -weight.grad.sign(), rtol=1e-6, atol=0.0)


def _everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = [value for values in optimizer.state.values() for value in values.values()]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *state)]


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_skipped_step_changes_nothing(name: str, first: int) -> None:
    """Whatever the gradients hold, also as the very first step."""
    model = _model()
    optimizer: Any = build_optimizer(CONFIGS[name], model)
    for step in range(first):
        set_gradients(model, step)
        optimizer.found_inf = torch.zeros(())
        optimizer.step()
    before = _everything(model, optimizer)
    for value in (float("inf"), float("nan")):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.found_inf = torch.ones(())
        optimizer.step()
    for one, other in zip(before, _everything(model, optimizer), strict=True):
        assert torch.equal(one, other)
    assert len(before) > len(list(model.parameters()))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_gradient_scaler_passes_its_scale_and_its_decision(name: str) -> None:
    plain, scaled = _model(), _model()
    one, other = (build_optimizer(CONFIGS[name], model) for model in (plain, scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        set_gradients(scaled, step)
        scaler.scale(torch.zeros(()))  # makes the scale, as that of a loss does
        for parameter in scaled.parameters():
            assert parameter.grad is not None
            parameter.grad *= scaler.get_scale()
            if step == 2:
                parameter.grad[...] = float("inf")
        scaler.step(other)
        scaler.update()
        if step != 2:
            set_gradients(plain, step)
            one.step()
    assert scaler.get_scale() == 512.0
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


class _NoWait(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "the host would wait for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_nothing_waits_for_the_device(name: str) -> None:
    model = _model()
    optimizer: Any = build_optimizer(CONFIGS[name], model)
    set_gradients(model, 0)
    optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.ones(())
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.1)
    with _NoWait():
        optimizer.step()
    with pytest.raises(AssertionError, match="would wait"), _NoWait():
        torch.ones(()).item()


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_state_survives_a_checkpoint(name: str) -> None:
    model = _model()
    optimizer = build_optimizer(CONFIGS[name], model)
    for step in range(3):
        set_gradients(model, step)
        optimizer.step()
    again = copy.deepcopy(model)
    other = build_optimizer(CONFIGS[name], again)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, opt in ((model, optimizer), (again, other)):
        set_gradients(network, 3)
        opt.step()
    for one, two in zip(_everything(model, optimizer), _everything(again, other), strict=True):
        assert torch.equal(one, two)


def test_only_weights_that_decay_are_scaled() -> None:
    """Batch norm and biases take plain steps of momentum, as MLPerf's rules want."""
    scale = nn.Parameter(torch.ones(3))
    optimizer = LARS([{"params": [scale], "weight_decay": 0.0}], lr=0.5)
    scale.grad = torch.full((3,), 2.0)
    optimizer.step()
    assert torch.equal(scale.detach(), torch.zeros(3))
    assert isinstance(build_optimizer(CONFIGS["lamb"], _model()), LAMB)
