"""The optimizer and its learning rate: sections `optim` and `schedule`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import Rules


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer."""

    name: Literal["sgd", "adam", "adamw", "lars", "lamb"] = "sgd"
    """sgd couples weight decay to the gradient, and so does adam; adamw decouples it. lars and lamb
    are sgd and adamw with a learning rate of its own for each layer, for large batches."""
    lr: float = 0.1
    """Peak learning rate for `train.global_batch_size`."""
    momentum: float = 0.9
    """sgd and lars only."""
    nesterov: bool = False
    """sgd only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """adam, adamw and lamb only."""
    eps: float = 1e-8
    """adam, adamw and lamb only."""
    trust_coefficient: float = 0.001
    """lars only: a layer's update as a share of its weights, by norm, at learning rate 1."""
    weight_decay: float = 1e-4
    """On convolution and linear weights."""
    decay_norm_and_bias: bool = False
    """Also decay batch norm's parameters and biases (torchvision's first recipes did)."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(self.lr > 0, "optim.lr", self.lr, "must be positive", "0.1 per 256 is usual")
        rules.require(
            self.weight_decay >= 0,
            "optim.weight_decay",
            self.weight_decay,
            "must not be negative",
            "0 turns it off",
        )
        rules.require(
            0 <= self.momentum < 1,
            "optim.momentum",
            self.momentum,
            "must lie in [0, 1)",
            "0.9 is usual",
        )
        rules.require(
            self.name not in ("lars", "lamb") or not self.decay_norm_and_bias,
            "optim.decay_norm_and_bias",
            self.decay_norm_and_bias,
            f"does not go with optim.name={self.name}, which scales what is decayed",
            "leave it out: neither scales batch norm and biases in the published recipes",
        )
        rules.require(
            self.trust_coefficient > 0,
            "optim.trust_coefficient",
            self.trust_coefficient,
            "must be positive",
            "0.001 is usual",
        )
        rules.require(
            self.name != "lars" or self.weight_decay > 0,
            "optim.weight_decay",
            self.weight_decay,
            "must be positive for optim.name=lars, which scales decayed weights only",
            "5e-5 is usual, or set optim.name=sgd",
        )
        rules.require(
            not self.nesterov or self.momentum > 0,
            "optim.nesterov",
            self.nesterov,
            "needs optim.momentum > 0",
            "set optim.momentum=0.9",
        )
        rules.require(
            all(0 <= beta < 1 for beta in self.betas),
            "optim.betas",
            self.betas,
            "must lie in [0, 1)",
            "[0.9, 0.999] is usual",
        )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate as a function of the step."""

    name: Literal["cosine", "step", "polynomial", "one_cycle", "constant"] = "cosine"
    """The shape after the warm-up."""
    warmup_epochs: float = 0.0
    """Length of the linear warm-up, epochs (fractions allowed). Not for one_cycle."""
    warmup_start_factor: float = 0.0
    """Learning rate at step 0 as a share of the peak."""
    final_lr: float = 0.0
    """Learning rate after the last step (cosine, polynomial)."""
    milestones: tuple[float, ...] = (30.0, 60.0, 80.0)
    """Epochs at which the step schedule multiplies by `step_factor`."""
    step_factor: float = 0.1
    """Factor of the step schedule."""
    power: float = 2.0
    """Exponent of the polynomial schedule."""
    peak_share: float = 0.3
    """Share of the steps before one_cycle's peak (`pct_start`)."""
    start_divisor: float = 25.0
    """one_cycle starts at lr / start_divisor (`div_factor`)."""
    final_divisor: float = 1e4
    """one_cycle ends at lr / start_divisor / final_divisor (`final_div_factor`)."""
    cycle_momentum: bool = True
    """one_cycle also moves the momentum (Adam's beta1), against the learning rate, in place of
    `optim.momentum` and `optim.betas[0]`: OneCycleLR's default."""
    base_momentum: float = 0.85
    """Momentum at one_cycle's peak."""
    max_momentum: float = 0.95
    """Momentum at one_cycle's start and end."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.warmup_epochs >= 0,
            "schedule.warmup_epochs",
            self.warmup_epochs,
            "must not be negative",
            "0 turns the warm-up off",
        )
        rules.require(
            self.name != "one_cycle" or self.warmup_epochs == 0,
            "schedule.warmup_epochs",
            self.warmup_epochs,
            "does not go with schedule.name=one_cycle",
            "one_cycle has its own rise: set schedule.peak_share",
        )
        rules.require(
            list(self.milestones) == sorted(self.milestones),
            "schedule.milestones",
            self.milestones,
            "must rise",
            "for example [30, 60, 80]",
        )
        rules.require(
            0 < self.peak_share < 1,
            "schedule.peak_share",
            self.peak_share,
            "must lie in (0, 1)",
            "0.3 is usual",
        )
        rules.require(
            0 <= self.base_momentum <= self.max_momentum < 1,
            "schedule.base_momentum",
            self.base_momentum,
            f"needs 0 <= base_momentum <= max_momentum ({self.max_momentum!r}) < 1",
            "0.85 and 0.95 are usual",
        )
        for name in ("start_divisor", "final_divisor"):
            value = getattr(self, name)
            rules.require(
                value > 0, f"schedule.{name}", value, "must be positive", "leave out the default"
            )
        rules.enforce()
