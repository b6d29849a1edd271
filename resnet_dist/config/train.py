"""One optimisation step, and how many of them: section `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import check_section, setting


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One optimisation step, and how many of them."""

    global_batch_size: int = setting(256, ge=1, hint="give a count > 0")
    """Samples of one step over all ranks. Local and micro-batches follow from it."""
    epochs: int = setting(90, ge=1, hint="give a count > 0")
    """Passes over the training data; the schedules span them."""
    max_steps: int | None = setting(None, ge=1, hint="leave it out for the default", free=True)
    """Stop after this many steps without changing the schedules; null: all epochs."""
    stop_at_top1: float | None = setting(
        None, gt=0, le=1, hint="0.759 is MLPerf's target, of 1", free=True
    )
    """Stop after the evaluation (of the weights or of their moving average) that reaches this share
    of correct answers; null: train to the end."""
    max_micro_batch_size: int | None = setting(
        None, ge=1, hint="leave it out for the default", free=True
    )
    """Most samples in one forward pass of a rank (memory); null: no limit."""
    auto_micro_batch: bool = setting(False)
    """On GPUs: find the fewest micro-batches that fit into memory, once, the same for all ranks;
    kept in the run folder (micro_batches.json) for restarts."""
    accumulation_steps: int | None = setting(None, ge=1, hint="leave it out for the default")
    """Micro-batches per step. null: the fewest that `max_micro_batch_size` allows. Pin it to keep
    the groups of batch norm the same for every world size."""
    precision: Literal["float32", "bfloat16", "float16"] = setting("bfloat16")
    """Autocast type of the forward pass; float16 adds loss scaling. Weights stay float32."""
    loss_scale: float | None = setting(
        None, gt=0, hint="128 is usual, a power of two does not round; null is the dynamic scale"
    )
    """float16 only: a loss scale that never changes, such as 128 (MLPerf's ResNets). null: dynamic,
    halved after each step that overflows and doubled after 2000 that did not. A resumed run may not
    change it: it decides which gradients are flushed to zero, and which steps are skipped."""
    channels_last: bool = setting(True)
    """NHWC memory format."""
    sync_batch_norm: bool = setting(True)
    """Batch statistics over all ranks: the world size does not change the loss curve."""
    clip_grad_norm: float | None = setting(None, gt=0, hint="null turns clipping off")
    """Largest L2 norm of the whole gradient."""
    clip_grad_value: float | None = setting(None, gt=0, hint="null turns clipping off")
    """Largest absolute value of a gradient element."""
    sam_rho: float | None = setting(None, gt=0, hint="0.05 and 0.5 are usual")
    """Sharpness-aware minimisation (Foret et al. 2020): take the gradient this far uphill, by L2
    norm over all weights. Such a step costs two. null: off."""
    sam_every_steps: int = setting(1, ge=1, hint="10 is Composer's")
    """Steps between those that do; the others are usual ones."""
    sync_batch_norm_ranks: int | None = setting(None, ge=2, hint="leave it out for all ranks")
    """Batch statistics over groups of so many ranks instead (MLPerf's large batches). The number of
    ranks is then part of the mathematics. null: over all."""
    ema_decay: float | None = setting(None, gt=0, lt=1, hint="null turns the average off")
    """Decay of an exponential moving average of the weights, evaluated too. null: none is kept."""
    ema_every_steps: int = setting(1, ge=1, hint="give a count > 0")
    """Steps between updates of the moving average."""
    ema_start_epoch: float = setting(0.0, ge=0, hint="0 averages from the start")
    """Until this epoch the moving average is a copy of the weights (torchvision's references:
    until the end of the warm-up)."""
    ema_norm_steps: int | None = setting(None, ge=1, hint="20 or more, or leave it out")
    """Before each evaluation compute batch norm's statistics again at the averaged weights, from
    the batches of so many steps (the last ones). null: they are averaged, like the weights."""
    ema_ramp: bool = setting(False)
    """Lower the decay at first: after n updates it is at most (1 + n) / (10 + n)."""

    @property
    def norm_spans_all(self) -> bool:
        """Whether batch norm's statistics are those of the whole batch, and equal on all ranks."""
        return self.sync_batch_norm and self.sync_batch_norm_ranks is None

    def __post_init__(self) -> None:
        rules = check_section(self, "train")
        rules.require(
            self.clip_grad_norm is None or self.clip_grad_value is None,
            "train.clip_grad_norm",
            self.clip_grad_norm,
            "excludes train.clip_grad_value",
            "set one of the two to null",
        )
        for name, value in (
            ("start_epoch", self.ema_start_epoch),
            ("ramp", self.ema_ramp),
            ("norm_steps", self.ema_norm_steps),
        ):
            rules.require(
                self.ema_decay is not None or not value,
                f"train.ema_{name}",
                value,
                "needs train.ema_decay",
                "leave it out, or set train.ema_decay=0.9999",
            )
        rules.require(
            not self.auto_micro_batch or self.accumulation_steps is None,
            "train.auto_micro_batch",
            True,
            "excludes train.accumulation_steps",
            "leave one of the two out",
        )
        rules.require(
            self.sync_batch_norm or self.sync_batch_norm_ranks is None,
            "train.sync_batch_norm_ranks",
            self.sync_batch_norm_ranks,
            "needs train.sync_batch_norm=true",
            "leave it out",
        )
        rules.require(
            self.loss_scale is None or self.precision == "float16",
            "train.loss_scale",
            self.loss_scale,
            "needs train.precision=float16",
            "leave it out: other types need no loss scale",
        )
        rules.enforce()
