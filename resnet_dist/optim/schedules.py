"""The learning rate, and one-cycle's momentum, as pure functions of the step.

Convention: `schedule(step)` is what update number `step` uses, counted from 0; a run of `num_steps`
updates sees `schedule(0)` to `schedule(num_steps - 1)`. Nothing is saved, so nothing can be
restored wrongly.

The warm-up counts inside the epochs: `warmup_steps = round(warmup_epochs * steps_per_epoch)`,
the rate rises linearly from `warmup_start_factor * lr` at step 0 and reaches `lr` at step
`warmup_steps` (Goyal et al. 2017, arXiv:1706.02677, section 2.2). The others, but for steps, then
span the remaining `num_steps - warmup_steps` steps, and would reach `final_lr` at step `num_steps`,
one after the last update: with p = (step - warmup_steps) / (num_steps - warmup_steps)

    cosine      final_lr + (lr - final_lr) * (1 + cos(pi p)) / 2     (Loshchilov and Hutter 2016,
                arXiv:1608.03983, equation 5; torch's CosineAnnealingLR stepped once per update)
    polynomial  final_lr + (lr - final_lr) * (1 - p) ** power        (MLPerf's ResNet reference)
    triangular  final_lr + (lr - final_lr) * (1 - p)                 (ffcv-imagenet)

`step` multiplies by `step_factor` at each milestone, in epochs from the start of the run.
One-cycle (Smith and Topin 2017, arXiv:1708.07120) is torch's OneCycleLR with cosine annealing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from resnet_dist.config import Config, ScheduleConfig
from resnet_dist.errors import UserError

if TYPE_CHECKING:
    import torch  # a plan of a run is printed without importing it

Schedule = Callable[[int], float]


def peak_lr(config: Config) -> float:
    """The learning rate at the schedule's peak: `optim.lr`, scaled if `optim.lr_batch_size` is
    set."""
    batch_size = config.train.global_batch_size
    return config.optim.lr * batch_size / (config.optim.lr_batch_size or batch_size)


def build_schedule(
    config: ScheduleConfig, *, lr: float, steps_per_epoch: int, num_steps: int
) -> Schedule:
    """The learning rate of each update, a Python float.

    `lr` is the peak and `num_steps` the length of the whole schedule, of which a run may do fewer.
    Raises UserError if the warm-up does not end before the run or before the first milestone.
    """
    if config.name == "one_cycle":
        start = lr / config.start_divisor
        return partial(
            _one_cycle,
            values=(start, lr, start / config.final_divisor),
            peak_share=config.peak_share,
            num_steps=num_steps,
        )
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps and warmup_steps >= num_steps:
        raise UserError(
            f"schedule.warmup_epochs ({config.warmup_epochs:g}): the warm-up of {warmup_steps} "
            f"steps is not shorter than the run of {num_steps}; lower it or raise train.epochs"
        )
    shape = _shape(config, lr=lr, steps_per_epoch=steps_per_epoch, span=(warmup_steps, num_steps))
    start = lr * config.warmup_start_factor

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return start + (lr - start) * step / warmup_steps
        return shape(step)

    return schedule


def build_momentum_schedule(config: ScheduleConfig, *, num_steps: int) -> Schedule | None:
    """The momentum (Adam's beta1) of each update; None if it stays as the optimizer was built.

    One-cycle with `cycle_momentum` lowers it while the rate rises, and the reverse, as OneCycleLR
    does by default.
    """
    if config.name != "one_cycle" or not config.cycle_momentum:
        return None
    return partial(
        _one_cycle,
        values=(config.max_momentum, config.base_momentum, config.max_momentum),
        peak_share=config.peak_share,
        num_steps=num_steps,
    )


def apply_schedule(optimizer: torch.optim.Optimizer, *, lr: float, momentum: float | None) -> None:
    """Set the learning rate, and the momentum unless None, of all groups. Touches no tensor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def _shape(
    config: ScheduleConfig, *, lr: float, steps_per_epoch: int, span: tuple[int, int]
) -> Schedule:
    """The rate from the end of the warm-up, `span[0]`, to the end of the schedule, `span[1]`."""
    begin, end = span

    def progress(step: int) -> float:
        return min(1.0, (step - begin) / (end - begin))

    match config.name:
        case "cosine":
            return lambda step: _cosine(lr, config.final_lr, progress(step))
        case "polynomial" | "triangular":
            power = config.power if config.name == "polynomial" else 1.0
            return lambda step: (
                config.final_lr + (lr - config.final_lr) * (1.0 - progress(step)) ** power
            )
        case "step":
            milestones = [round(epoch * steps_per_epoch) for epoch in config.milestones]
            if milestones and milestones[0] < begin:
                raise UserError(
                    f"schedule.milestones ({list(config.milestones)}): the first comes before the "
                    f"end of schedule.warmup_epochs ({config.warmup_epochs:g}); shorten the warm-up"
                )
            return lambda step: lr * config.step_factor ** bisect_right(milestones, step)
        case "constant":
            return lambda _step: lr
        case "one_cycle":
            raise AssertionError("one_cycle has no warm-up of its own")


def _cosine(start: float, end: float, progress: float) -> float:
    """The value between start and end along half a cosine, as torch's schedulers write it."""
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * progress))


def _one_cycle(
    step: int, *, values: tuple[float, float, float], peak_share: float, num_steps: int
) -> float:
    """The value between values[0], values[1] at the peak, and values[2] at the last update.

    The peak lies at step `peak_share * num_steps - 1`, a fraction as a rule, as in OneCycleLR.
    """
    peak = peak_share * num_steps - 1.0
    last = num_steps - 1.0
    if step <= peak:
        # A peak at step 0 leaves no rise: begin there.
        return _cosine(values[0], values[1], step / peak if peak > 0.0 else 1.0)
    return _cosine(values[1], values[2], min(1.0, (step - peak) / (last - peak)))
