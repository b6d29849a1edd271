"""SGDW, LARS with momentum correction, SAM and when the moving average is updated."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from timm.optim.lars import Lars
from torch import Tensor, nn

from resnet_dist.config import Config, OptimConfig, ScheduleConfig, TrainConfig
from resnet_dist.errors import UserError
from resnet_dist.optim.build import build_optimizer
from resnet_dist.optim.ema import EmaSchedule
from resnet_dist.optim.muon import orthogonalised
from resnet_dist.optim.sam import Sharpness
from resnet_dist.optim.schedules import apply_schedule, build_schedule, peak_lr
from tests.unit.optim.small import set_gradients, small_model

RATES = [0.5, 2.0, 1.4, 0.4]


def _sgdw(w: Tensor, grads: list[Tensor], *, decay: float, nesterov: bool) -> Tensor:
    v = torch.zeros_like(w)
    for g, lr in zip(grads, RATES, strict=True):
        w = w * (1 - decay * lr / 2.0)
        v = 0.9 * v + g
        w = w - lr * (g + 0.9 * v if nesterov else v)
    return w


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgdw_is_composers(nesterov: bool) -> None:
    """mosaicml/composer, optim/decoupled_weight_decay.py: the decay follows lr / initial lr."""
    model = small_model()
    start = [parameter.detach().double() for parameter in model.parameters()]
    config = OptimConfig(name="sgdw", lr=2.0, nesterov=nesterov, weight_decay=5e-2)
    optimizer = build_optimizer(config, model)
    gradients: list[list[Tensor]] = [[] for _ in start]
    for step, lr in enumerate(RATES):
        set_gradients(model, step)
        for kept, parameter in zip(gradients, model.parameters(), strict=True):
            assert parameter.grad is not None
            kept.append(parameter.grad.double())
        apply_schedule(optimizer, lr=lr, momentum=None)
        optimizer.step()
    for parameter, weight, kept in zip(model.parameters(), start, gradients, strict=True):
        decay = 5e-2 if weight.ndim > 1 else 0.0
        expected = _sgdw(weight, kept, decay=decay, nesterov=nesterov)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-5)


def test_lars_with_momentum_correction_is_timms() -> None:
    ours, theirs = small_model(), small_model()
    config = OptimConfig(
        name="lars", lr=2.0, weight_decay=0.01, trust_coefficient=0.02, momentum_correction=True
    )
    optimizer = build_optimizer(config, ours)
    plain = [parameter for parameter in theirs.parameters() if parameter.ndim < 2]
    decayed = [parameter for parameter in theirs.parameters() if parameter.ndim >= 2]
    groups = [
        {"params": decayed, "weight_decay": 0.01},
        {"params": plain, "weight_decay": 0.0},
    ]
    reference = Lars(groups, lr=2.0, momentum=0.9, trust_coeff=0.02, eps=0.0)
    for step, lr in enumerate(RATES):
        for model in (ours, theirs):
            set_gradients(model, step)
        apply_schedule(optimizer, lr=lr, momentum=None)
        apply_schedule(reference, lr=lr, momentum=None)
        optimizer.step()
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_momentum_correction_matters_only_while_the_rate_changes() -> None:
    found = []
    for corrected in (False, True):
        model = small_model()
        config = OptimConfig(name="lars", lr=1.0, momentum_correction=corrected)
        optimizer = build_optimizer(config, model)
        for step in range(4):
            set_gradients(model, step)
            apply_schedule(optimizer, lr=1.0, momentum=None)
            optimizer.step()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)


def test_muon_is_torchs_on_filters_taken_as_matrices() -> None:
    model = small_model()
    filters = model[0].weight  # type: ignore[index]
    assert isinstance(filters, nn.Parameter)
    matrix = nn.Parameter(filters.detach().reshape(4, -1).clone())
    config = OptimConfig(name="muon", lr=2.0, weight_decay=0.01, other_lr_factor=0.1)
    optimizer = build_optimizer(config, model)
    theirs = torch.optim.Muon([matrix], lr=2.0, weight_decay=0.01, momentum=0.9)
    start = model[3].weight.detach().clone()  # type: ignore[index, union-attr]
    expected, velocity = start.double(), torch.zeros_like(start).double()
    for step, lr in enumerate(RATES):
        set_gradients(model, step)
        assert filters.grad is not None
        matrix.grad = filters.grad.reshape(4, -1).clone()
        apply_schedule(optimizer, lr=lr, momentum=None)
        apply_schedule(theirs, lr=lr, momentum=None)
        optimizer.step()
        theirs.step()
        gradient = model[3].weight.grad.double()  # type: ignore[index, union-attr]
        velocity = 0.9 * velocity + gradient
        expected = expected * (1 - 0.1 * lr * 0.01) - 0.1 * lr * (gradient + 0.9 * velocity)
    # In bfloat16, over rates that add up to 4.3.
    torch.testing.assert_close(filters.detach().reshape(4, -1), matrix.detach(), rtol=0, atol=0.06)
    torch.testing.assert_close(model[3].weight.detach().double(), expected, rtol=1e-5, atol=1e-5)  # type: ignore[index, union-attr]


def test_an_orthogonal_update_has_singular_values_near_one() -> None:
    for shape in ((8, 30), (30, 8)):
        found = orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        values = torch.linalg.svdvals(found.float())
        assert 0.3 < float(values.min()) < float(values.max()) < 1.4


@pytest.mark.parametrize("name", ["sgdw", "lars", "muon"])
def test_a_skipped_step_changes_nothing(name: str) -> None:
    model = small_model()
    optimizer = build_optimizer(
        OptimConfig(name=name, nesterov=name == "sgdw", momentum_correction=name == "lars"),  # type: ignore[arg-type]
        model,
    )
    set_gradients(model, 0)
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)


def test_uphill_is_rho_along_the_gradient_and_back_again() -> None:
    model = small_model()
    set_gradients(model, 0)
    parameters = list(model.parameters())
    gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    before = torch.cat([p.detach().flatten() for p in parameters])
    with Sharpness(0.3, every_steps=1).uphill(parameters):
        assert all(parameter.grad is None for parameter in parameters)
        moved = torch.cat([p.detach().flatten() for p in parameters]) - before
    torch.testing.assert_close(moved, 0.3 * gradient / gradient.norm(), rtol=1e-4, atol=1e-6)
    assert torch.equal(torch.cat([p.detach().flatten() for p in parameters]), before)


def test_uphill_stays_where_a_gradient_is_not_finite() -> None:
    model = small_model()
    set_gradients(model, 0)
    parameters = list(model.parameters())
    assert parameters[0].grad is not None
    parameters[0].grad[0] = math.inf
    before = [parameter.detach().clone() for parameter in parameters]
    with Sharpness(0.3, every_steps=1).uphill(parameters):
        assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_sam_is_due_every_so_many_steps() -> None:
    sharpness = Sharpness(0.5, every_steps=10)
    assert [step for step in range(25) if sharpness.is_due(step)] == [0, 10, 20]


def test_the_average_begins_as_a_copy_and_its_decay_rises() -> None:
    plain = EmaSchedule(decay=0.99, every_steps=2, start_step=0, ramp=False)
    assert [plain.decay_at(step) for step in (1, 2, 3, 4)] == [None, 0.99, None, 0.99]
    late = EmaSchedule(decay=0.99, every_steps=1, start_step=3, ramp=True)
    assert [late.decay_at(step) for step in (1, 3, 4, 5)] == [0.0, 0.0, 2 / 11, 3 / 12]
    assert late.decay_at(3 + 10**6) == 0.99


def _config(**changes: object) -> Config:
    return Config(
        optim=OptimConfig(lr=0.1, **changes),  # type: ignore[arg-type]
        train=TrainConfig(global_batch_size=1024),
    )


def test_the_rate_is_scaled_from_a_reference_batch_on_request() -> None:
    assert peak_lr(_config()) == 0.1
    assert peak_lr(_config(lr_batch_size=256)) == pytest.approx(0.4)


def ffcv(epoch: float, peak: float, peak_epoch: int, epochs: int) -> float:
    """np.interp([epoch], [0, peak_epoch, epochs], [0, 1, 0]) of ffcv-imagenet."""
    rise, fall = epoch / peak_epoch, (epochs - epoch) / (epochs - peak_epoch)
    return peak * min(rise, fall)


def test_triangular_is_ffcvs() -> None:
    config = ScheduleConfig(name="triangular", warmup_epochs=2)
    lr_of: Callable[[int], float] = build_schedule(
        config, lr=1.7, steps_per_epoch=50, num_steps=800
    )
    for step in (0, 30, 99, 100, 101, 450, 799):
        assert lr_of(step) == pytest.approx(ffcv(step / 50, 1.7, 2, 16))


def test_momentum_correction_is_for_lars_only() -> None:
    with pytest.raises(UserError, match=r"optim\.momentum_correction"):
        OptimConfig(momentum_correction=True)
