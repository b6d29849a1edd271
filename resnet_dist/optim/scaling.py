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


class DynamicScaler(torch.amp.GradScaler):
    """A GradScaler whose state is tensors on the device: to save it waits for nothing."""

    def state_dict(self) -> dict[str, Any]:
        """As the base class's, but with tensors for what changes."""
        if not self.is_enabled() or self._scale is None:  # no step was taken yet
            return super().state_dict()
        return {
            "scale": self._scale,
            "growth_factor": self.get_growth_factor(),
            "backoff_factor": self.get_backoff_factor(),
            "growth_interval": self.get_growth_interval(),
            "_growth_tracker": self._growth_tracker,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, with tensors or numbers."""
        numbers = {
            name: value.item() if isinstance(value, torch.Tensor) else value
            for name, value in state_dict.items()
        }
        super().load_state_dict(numbers)


def build_scaler(
    device: torch.device, *, precision: str, loss_scale: float | None
) -> torch.amp.GradScaler:
    """The loss scaler of `train.precision`; one that does nothing unless that is float16."""
    if loss_scale is not None:
        return StaticScaler(device.type, loss_scale)
    return DynamicScaler(device.type, enabled=precision == "float16")
