"""Everything that a checkpoint holds about a run's progress, and nothing else.

There is no random state and no position of a loader: both are functions of `step`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from resnet_dist.faults.loss_history import LossHistory
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.metrics.meters import TrainMeter
from resnet_dist.optim.ema import ModelEma
from resnet_dist.optim.lars import LARS
from resnet_dist.optim.muon import Muon
from resnet_dist.optim.sgdw import SGDW


@dataclass
class TrainState:
    """A run between two steps."""

    model: nn.Module
    """The plain model, without DDP or compile around it."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: ModelEma | None
    meter: TrainMeter
    """Sums of the log interval that the step lies in."""
    guard: NonFiniteGuard
    """Counts of skipped steps."""
    losses: LossHistory
    """The latest recorded losses."""
    step: int = 0
    """Completed optimizer updates."""
    best_top1: float = -1.0
    best_step: int = -1

    @property
    def num_bytes(self) -> int:
        """About what a checkpoint takes, bytes, the optimizer's state included."""
        model: int = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        moments = 1 if isinstance(self.optimizer, torch.optim.SGD | LARS | SGDW | Muon) else 2
        return model * (1 + moments + (self.average is not None))

    def state_dict(self) -> dict[str, Any]:
        """As `sync_state_dict`, with the sums of this rank alone."""
        return self.sync_state_dict(lambda tensor: tensor)

    def sync_state_dict(self, sync_sum_: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
        """The state as tensors and plain containers. All ranks must call it (the meter's sums)."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "meter": self.meter.state(sync_sum_),
            "guard": self.guard.state_dict(),
            "losses": self.losses.state_dict(),
            "best": {"top1": self.best_top1, "step": self.best_step},
        }

    def load_state_dict(self, saved: dict[str, Any], *, is_main: bool) -> None:
        """Take over a checkpoint. The saved sums of the log interval go to rank 0 alone.

        Settings that the checkpoint's optimizer holds copies of stay those of the config. A moving
        average that the checkpoint lacks begins at its weights.
        """
        self.step = saved["step"]
        self.model.load_state_dict(saved["model"])
        settings = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(saved["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        if self.scaler.is_enabled() and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"] or saved["model"])
        self.meter.load_state(saved["meter"] if is_main else None)
        self.guard.load_state_dict(saved["guard"])
        self.losses.load_state_dict(saved["losses"])
        self.best_top1, self.best_step = saved["best"]["top1"], saved["best"]["step"]

    def forget_best(self) -> None:
        """The best evaluation was another run's, in whose folder its checkpoint lies."""
        self.best_top1, self.best_step = -1.0, -1
