"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resnet_dist.config import TrainConfig


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@dataclass(frozen=True)
class EmaSchedule:
    """When the average is updated, and by what decay: pure functions of the step."""

    decay: float
    every_steps: int
    start_step: int
    """Up to this step the average is a copy."""
    ramp: bool

    @classmethod
    def of(cls, train: TrainConfig, steps_per_epoch: int) -> EmaSchedule:
        """The schedule that the settings say."""
        start = round(train.ema_start_epoch * steps_per_epoch)
        return cls(train.ema_decay or 0.0, train.ema_every_steps, start, train.ema_ramp)

    def decay_at(self, step: int) -> float | None:
        """The decay of the update after `step` steps; None if there is none."""
        if step % self.every_steps:
            return None
        if step <= self.start_step:
            return 0.0
        if not self.ramp:
            return self.decay
        updates = step // self.every_steps - self.start_step // self.every_steps
        return min(self.decay, (1 + updates) / (10 + updates))


class ModelEma:
    """average = decay * average + (1 - decay) * weights, starting from the weights it is given.

    Parameters and floating-point buffers (batch norm's running statistics) are averaged, integer
    buffers are copied. `module` is a copy of the model in evaluation mode, without gradients.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """`model` is the plain model, not DDP's wrapper, on its device; 0 < decay < 1."""
        assert 0.0 < decay < 1.0
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float | None = None) -> None:
        """Move towards the weights of `model`, which has the architecture it was made with, by
        another `decay` if one is given; 0 copies them.

        Two kernels for all tensors, and no wait for the device.
        """
        decay = self.decay if decay is None else decay
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        others = [pair for pair in pairs if not pair[0].is_floating_point()]
        averages, weights = [pair[0] for pair in floats], [pair[1] for pair in floats]
        torch._foreach_lerp_(averages, weights, 1.0 - decay)
        if others:
            torch._foreach_copy_([pair[0] for pair in others], [pair[1] for pair in others])

    def state_dict(self) -> dict[str, Any]:
        """The averaged tensors under the model's names."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the averages from a `state_dict`. Raises RuntimeError if names or shapes differ."""
        self.module.load_state_dict(state)
