"""Schedules are torch's where torch has them, and what the docstring says elsewhere."""

from __future__ import annotations

import math

import pytest
import torch

from resnet_dist.config import ScheduleConfig
from resnet_dist.errors import UserError
from resnet_dist.optim.schedules import apply_schedule, build_momentum_schedule, build_schedule

LR = 0.4
STEPS_PER_EPOCH = 7
NUM_STEPS = 91


def _rates(config: ScheduleConfig) -> list[float]:
    schedule = build_schedule(config, lr=LR, steps_per_epoch=STEPS_PER_EPOCH, num_steps=NUM_STEPS)
    return [schedule(step) for step in range(NUM_STEPS)]


def _torch_rates(make: type, **settings: object) -> tuple[list[float], list[float]]:
    """Learning rate and beta1 that a torch scheduler gives to each update of Adam."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer, **settings)
    rates, momenta = [], []
    for _ in range(NUM_STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        if len(rates) < NUM_STEPS:
            scheduler.step()
    return rates, momenta


@pytest.mark.parametrize("peak_share", [0.3, 0.5, 1 / NUM_STEPS])
def test_one_cycle_is_torchs_with_its_momentum(peak_share: float) -> None:
    if peak_share * NUM_STEPS == 1.0:
        # torch divides by zero here: the peak is the first step.
        config = ScheduleConfig(name="one_cycle", peak_share=peak_share)
        assert _rates(config)[0] == LR
        return
    config = ScheduleConfig(
        name="one_cycle", peak_share=peak_share, start_divisor=20.0, final_divisor=1e3
    )
    rates, momenta = _torch_rates(
        torch.optim.lr_scheduler.OneCycleLR,
        max_lr=LR,
        total_steps=NUM_STEPS,
        pct_start=peak_share,
        div_factor=20.0,
        final_div_factor=1e3,
    )
    assert _rates(config) == pytest.approx(rates, rel=1e-12, abs=1e-15)
    momentum = build_momentum_schedule(config, num_steps=NUM_STEPS)
    assert momentum is not None
    assert [momentum(step) for step in range(NUM_STEPS)] == pytest.approx(momenta, rel=1e-12)


def test_momentum_stays_unless_one_cycle_moves_it() -> None:
    still = ScheduleConfig(name="one_cycle", cycle_momentum=False)
    assert build_momentum_schedule(still, num_steps=NUM_STEPS) is None
    assert build_momentum_schedule(ScheduleConfig(), num_steps=NUM_STEPS) is None


def test_cosine_is_torchs_closed_form() -> None:
    rates, _ = _torch_rates(
        torch.optim.lr_scheduler.CosineAnnealingLR, T_max=NUM_STEPS, eta_min=0.01
    )
    assert _rates(ScheduleConfig(name="cosine", final_lr=0.01)) == pytest.approx(rates, rel=1e-9)


def test_step_is_torchs_multi_step() -> None:
    rates, _ = _torch_rates(
        torch.optim.lr_scheduler.MultiStepLR, milestones=[3 * 7, 6 * 7], gamma=0.2
    )
    config = ScheduleConfig(name="step", milestones=(3.0, 6.0), step_factor=0.2)
    assert _rates(config) == pytest.approx(rates, rel=1e-12)


def test_polynomial_and_constant() -> None:
    rates = _rates(ScheduleConfig(name="polynomial", power=2.0, final_lr=0.1))
    assert rates == pytest.approx(
        [0.1 + 0.3 * (1 - step / NUM_STEPS) ** 2 for step in range(NUM_STEPS)], rel=1e-12
    )
    assert _rates(ScheduleConfig(name="constant")) == [LR] * NUM_STEPS


@pytest.mark.parametrize("name", ["cosine", "step", "polynomial", "constant"])
def test_warmup_is_linear_and_counts_inside_the_epochs(name: str) -> None:
    config = ScheduleConfig(
        name=name,  # type: ignore[arg-type]
        warmup_epochs=2.0,
        warmup_start_factor=0.25,
        milestones=(5.0,),
    )
    rates = _rates(config)
    warmup = 2 * STEPS_PER_EPOCH
    assert rates[:warmup] == pytest.approx(
        [LR * (0.25 + 0.75 * step / warmup) for step in range(warmup)], rel=1e-12
    )
    assert rates[warmup] == pytest.approx(LR, rel=1e-12)
    if name == "cosine":
        middle = warmup + (NUM_STEPS - warmup + 1) // 2
        share = (middle - warmup) / (NUM_STEPS - warmup)
        assert rates[middle] == pytest.approx(LR * (1 + math.cos(math.pi * share)) / 2)
        # The rate would reach final_lr one step after the last update.
        assert rates[-1] > 0.0
    if name == "step":
        assert rates[5 * STEPS_PER_EPOCH - 1] == LR
        assert rates[5 * STEPS_PER_EPOCH] == pytest.approx(LR * 0.1)


def test_a_step_needs_no_step_before_it() -> None:
    """Asked in any order, and beyond the end, a schedule says the same."""
    for name in ("cosine", "one_cycle", "polynomial"):
        config = ScheduleConfig(name=name)  # type: ignore[arg-type]
        schedule = build_schedule(
            config, lr=LR, steps_per_epoch=STEPS_PER_EPOCH, num_steps=NUM_STEPS
        )
        backwards = [schedule(step) for step in reversed(range(NUM_STEPS))]
        assert backwards[::-1] == _rates(config)
        assert 0.0 <= schedule(NUM_STEPS + 5) <= LR


@pytest.mark.parametrize("warmup_epochs", [13.0, 20.0])
def test_warmup_as_long_as_the_run_is_refused(warmup_epochs: float) -> None:
    with pytest.raises(UserError, match=r"schedule.warmup_epochs .* not shorter than the run"):
        _rates(ScheduleConfig(warmup_epochs=warmup_epochs))


def test_milestone_inside_the_warmup_is_refused() -> None:
    with pytest.raises(UserError, match=r"schedule.milestones .* before the end"):
        _rates(ScheduleConfig(name="step", warmup_epochs=5.0, milestones=(3.0, 8.0)))


def test_momentum_range_is_checked() -> None:
    with pytest.raises(UserError, match=r"schedule.base_momentum"):
        ScheduleConfig(base_momentum=0.95, max_momentum=0.85)


def test_apply_sets_all_groups() -> None:
    def groups() -> list[dict[str, list[torch.nn.Parameter]]]:
        return [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]

    adam = torch.optim.Adam(groups(), lr=1.0, betas=(0.9, 0.99))
    sgd = torch.optim.SGD(groups(), lr=1.0, momentum=0.5)
    for optimizer in (adam, sgd):
        apply_schedule(optimizer, lr=0.125, momentum=None)
        assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
    assert adam.param_groups[1]["betas"] == (0.9, 0.99)
    assert sgd.param_groups[1]["momentum"] == 0.5
    apply_schedule(adam, lr=0.25, momentum=0.75)
    apply_schedule(sgd, lr=0.25, momentum=0.75)
    assert [group["betas"] for group in adam.param_groups] == [(0.75, 0.99)] * 2
    assert [group["momentum"] for group in sgd.param_groups] == [0.75, 0.75]
