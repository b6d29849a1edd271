"""One optimisation step, and how many of them: section `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import Rules, free
from resnet_dist.config.speed import SpeedFields


@dataclass(frozen=True, kw_only=True)
class TrainConfig(SpeedFields):
    """One optimisation step, and how many of them. More are in `resnet_dist.config.speed`."""

    global_batch_size: int = 256
    """Samples of one step over all ranks. Local and micro-batches follow from it."""
    epochs: int = 90
    """Passes over the training data; the schedules span them."""
    max_steps: int | None = free(None)
    """Stop after this many steps without changing the schedules; None: all epochs."""
    max_micro_batch_size: int | None = free(None)
    """Most samples in one forward pass of a rank (memory); None: no limit."""
    accumulation_steps: int | None = None
    """Micro-batches a step. None: the fewest that `max_micro_batch_size` allows. Pin it to keep
    the groups of batch norm the same for every world size."""
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Autocast type of the forward pass; float16 adds loss scaling. Weights stay float32."""
    channels_last: bool = True
    """NHWC memory format."""
    sync_batch_norm: bool = True
    """Batch statistics over all ranks: the world size does not change the loss curve."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes (Szegedy et al. 2016)."""
    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    """Of the training; the validation loss is always the cross-entropy. binary_cross_entropy: one
    yes-or-no question a class (Wightman et al. 2021, section 2)."""
    bce_sum_classes: bool = False
    """Add up the binary cross-entropies of a sample's classes (timm's --bce-sum, composer) instead
    of taking their mean (timm's default)."""
    bce_target_threshold: float | None = None
    """Binary cross-entropy: targets above it count as 1, others as 0 (timm's --bce-target-thresh;
    0.2 in the recipes A1 to A3). null: targets as they are."""
    clip_grad_norm: float | None = None
    """Largest L2 norm of the whole gradient."""
    clip_grad_value: float | None = None
    """Largest absolute value of a gradient element."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, evaluated too. None: none is kept."""
    ema_every_steps: int = 1
    """Steps between updates of the average."""
    num_threads: int | None = free(None)
    """CPU threads of each rank's tensor operations. None: cores / ranks of the node (1 for networks
    narrower than 16 channels)."""
    deterministic: bool = free(False)
    """Deterministic GPU kernels: bit for bit equal runs, slower. CPU runs always are."""

    def __post_init__(self) -> None:
        rules = Rules()
        for name in ("global_batch_size", "epochs", "ema_every_steps"):
            value = getattr(self, name)
            rules.require(
                value >= 1, f"train.{name}", value, "must be at least 1", "give a count > 0"
            )
        for name in ("max_steps", "max_micro_batch_size", "accumulation_steps", "num_threads"):
            value = getattr(self, name)
            rules.require(
                value is None or value >= 1,
                f"train.{name}",
                value,
                "must be at least 1",
                "leave it out for the default",
            )
        rules.require(
            0 <= self.label_smoothing < 1,
            "train.label_smoothing",
            self.label_smoothing,
            "must lie in [0, 1)",
            "0.1 is usual",
        )
        for name in ("bce_sum_classes", "bce_target_threshold"):
            value = getattr(self, name)
            rules.require(
                self.loss == "binary_cross_entropy" or not value,
                f"train.{name}",
                value,
                "needs train.loss=binary_cross_entropy",
                "leave it out, or set that loss",
            )
        rules.require(
            self.bce_target_threshold is None or 0 <= self.bce_target_threshold < 1,
            "train.bce_target_threshold",
            self.bce_target_threshold,
            "must lie in [0, 1)",
            "0.2 is usual",
        )
        rules.require(
            self.clip_grad_norm is None or self.clip_grad_value is None,
            "train.clip_grad_norm",
            self.clip_grad_norm,
            "excludes train.clip_grad_value",
            "set one of the two to null",
        )
        for name in ("clip_grad_norm", "clip_grad_value"):
            value = getattr(self, name)
            rules.require(
                value is None or value > 0,
                f"train.{name}",
                value,
                "must be positive",
                "null turns clipping off",
            )
        rules.require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "train.ema_decay",
            self.ema_decay,
            "must lie in (0, 1)",
            "null turns the average off",
        )
        self.check_speed(rules, channels_last=self.channels_last, precision=self.precision)
        rules.enforce()
