"""The loss scale of float16: dynamic, or a number that stays."""

from __future__ import annotations

from typing import Any

import torch


class StaticScaler(torch.amp.GradScaler):
    """A scaler whose scale never changes; it still finds out which steps overflow, and skips them.

    The scale is a setting, not a state: nothing of it is saved or restored.
    """

    def __init__(self, device: str, scale: float) -> None:
        """`device`: type of the device that trains."""
        super().__init__(device, init_scale=scale)
        self.set_growth_factor(1.0)
        self.set_backoff_factor(1.0)

    def state_dict(self) -> dict[str, Any]:
        """An empty state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state, such as a dynamic scale."""


def build_scaler(
    device: torch.device, *, precision: str, loss_scale: float | None
) -> torch.amp.GradScaler:
    """The loss scaler of `train.precision`; one that does nothing unless that is float16."""
    if loss_scale is not None:
        return StaticScaler(device.type, loss_scale)
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")
