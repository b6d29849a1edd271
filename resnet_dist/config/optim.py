"""The optimizer and its learning rate: sections `optim` and `schedule`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import check_section, setting


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer."""

    name: Literal["sgd", "sgdw", "adam", "adamw", "lars", "lamb", "muon"] = setting("sgd")
    """sgd couples weight decay to the gradient, and so does adam; sgdw and adamw decouple it. lars
    and lamb are sgd and adamw with a learning rate of its own for each layer, for large batches.
    muon: orthogonal updates of convolutions (Jordan 2024), Nesterov's sgd for the rest."""
    lr: float = setting(0.1, gt=0, hint="0.1 per 256 is usual")
    """Peak learning rate for `train.global_batch_size`."""
    lr_batch_size: int | None = setting(None, ge=1, hint="256 is usual, or leave it out")
    """Global batch size that `optim.lr` is for; the rate is scaled to `train.global_batch_size` in
    proportion (Goyal et al. 2017). null: it is for `train.global_batch_size`."""
    head_lr_factor: float = setting(1.0, gt=0, hint="1, or 10 for fine-tuning")
    """Learning rate of the last layer, as a multiple of the others' (fine-tuning: 10)."""
    momentum: float = setting(0.9, ge=0, lt=1, hint="0.9 is usual")
    """Momentum of sgd, sgdw, lars and muon."""
    other_lr_factor: float = setting(1.0, gt=0, hint="1 is the default")
    """muon only: learning rate of all but convolutions, as a multiple of theirs."""
    nesterov: bool = setting(False)
    """Nesterov's momentum; sgd and sgdw only."""
    betas: tuple[float, float] = setting((0.9, 0.999), ge=0, lt=1, hint="[0.9, 0.999] is usual")
    """Decay rates of the two moments; adam, adamw and lamb only."""
    eps: float = setting(1e-8, ge=0, hint="1e-8 is usual")
    """Added to the root of the second moment; adam, adamw and lamb only."""
    trust_coefficient: float = setting(0.001, gt=0, hint="0.001 is usual")
    """lars only: a layer's update as a share of its weights, by norm, at learning rate 1."""
    momentum_correction: bool = setting(False)
    """lars only: a new learning rate also applies to what the momentum holds (MXNet's and timm's
    LARS). false: to new gradients only (MLPerf's reference in TensorFlow)."""
    weight_decay: float = setting(1e-4, ge=0, hint="0 turns it off")
    """Weight decay of convolution and linear weights. With sgdw weights shrink by this share at the
    peak of the schedule, whatever the learning rate."""
    decay_norm_and_bias: bool = setting(False)
    """Also decay batch norm's parameters and biases (torchvision's first recipes did)."""

    def __post_init__(self) -> None:
        rules = check_section(self, "optim")
        rules.require(
            self.name not in ("lars", "lamb") or not self.decay_norm_and_bias,
            "optim.decay_norm_and_bias",
            self.decay_norm_and_bias,
            f"does not go with optim.name={self.name}, which scales what is decayed",
            "leave it out: neither scales batch norm and biases in the published recipes",
        )
        rules.require(
            self.name != "lars" or self.weight_decay != 0,
            "optim.weight_decay",
            self.weight_decay,
            "must be positive for optim.name=lars, which scales decayed weights only",
            "5e-5 is usual, or set optim.name=sgd",
        )
        rules.require(
            self.name == "lars" or not self.momentum_correction,
            "optim.momentum_correction",
            self.momentum_correction,
            f"does not go with optim.name={self.name}",
            "leave it out, or set optim.name=lars",
        )
        rules.require(
            self.name == "muon" or self.other_lr_factor == 1,
            "optim.other_lr_factor",
            self.other_lr_factor,
            f"does not go with optim.name={self.name}",
            "leave it out, or set optim.name=muon",
        )
        rules.require(
            not self.nesterov or self.momentum != 0,
            "optim.nesterov",
            self.nesterov,
            "needs optim.momentum > 0",
            "set optim.momentum=0.9",
        )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate as a function of the step."""

    name: Literal["cosine", "step", "polynomial", "triangular", "one_cycle", "constant"] = setting(
        "cosine"
    )
    """The shape after the warm-up. triangular: straight down to `final_lr` (ffcv)."""
    warmup_epochs: float = setting(0.0, ge=0, hint="0 turns the warm-up off")
    """Length of the linear warm-up, epochs (fractions allowed). Not for one_cycle."""
    warmup_start_factor: float = setting(0.0, ge=0, hint="0.01 is torchvision's")
    """Learning rate at step 0 as a share of the peak."""
    final_lr: float = setting(0.0, ge=0, hint="0 is usual")
    """Learning rate after the last step (cosine, polynomial, triangular)."""
    milestones: tuple[float, ...] = setting((30.0, 60.0, 80.0), ge=0, hint="[30, 60, 80]")
    """Epochs at which the step schedule multiplies by `step_factor`."""
    step_factor: float = setting(0.1, gt=0, hint="0.1 is usual")
    """Factor of the step schedule at each milestone."""
    power: float = setting(2.0, gt=0, hint="2 is MLPerf's")
    """Exponent of the polynomial schedule."""
    peak_share: float = setting(0.3, gt=0, lt=1, hint="0.3 is usual")
    """Share of the steps before one_cycle's peak (`pct_start`)."""
    start_divisor: float = setting(25.0, gt=0, hint="leave it out for the default")
    """one_cycle starts at lr / start_divisor (`div_factor`)."""
    final_divisor: float = setting(1e4, gt=0, hint="leave it out for the default")
    """one_cycle ends at lr / start_divisor / final_divisor (`final_div_factor`)."""
    cycle_momentum: bool = setting(True)
    """one_cycle also moves the momentum (Adam's beta1), against the learning rate, in place of
    `optim.momentum` and `optim.betas[0]`: OneCycleLR's default."""
    base_momentum: float = setting(0.85, ge=0, lt=1, hint="0.85 is usual")
    """Momentum at one_cycle's peak."""
    max_momentum: float = setting(0.95, ge=0, lt=1, hint="0.95 is usual")
    """Momentum at one_cycle's start and end."""

    def __post_init__(self) -> None:
        rules = check_section(self, "schedule")
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
            self.base_momentum <= self.max_momentum,
            "schedule.base_momentum",
            self.base_momentum,
            f"must not exceed schedule.max_momentum ({self.max_momentum!r})",
            "0.85 and 0.95 are usual",
        )
        rules.enforce()
