"""Optimizers whose steps can be skipped without the host waiting: the base of those of ours.

As torch's fused optimizers do, they read `found_inf` and `grad_scale` (device scalars that the step
or a GradScaler sets): with `found_inf` = 1 nothing changes. The learning rate of a group may be a
number or a device scalar. Nothing waits for the device, and all state is there from the start, so
that a step can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class SkippableOptimizer(torch.optim.Optimizer):
    """Decides which parameters get an update, and whether the step is taken at all."""

    _step_supports_amp_scaling = True  # a GradScaler then passes its decision on

    @property
    def _is_skipped(self) -> Tensor | None:
        """The decision, a device scalar. An attribute that is there during a step only."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        return None if found_inf is None else found_inf > 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient. Closures are not supported."""
        assert closure is None
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if params:
                self.update(group, params, self._gradients(params))

    def _gradients(self, params: list[Tensor]) -> list[Tensor]:
        """Unscaled, in float32 or better, and zeros where the step is skipped: what is not finite
        stays so whatever it is multiplied by."""
        grads = [parameter.grad for parameter in params if parameter.grad is not None]
        grad_scale = getattr(self, "grad_scale", None)
        if grad_scale is not None:
            grads = list(torch._foreach_div(grads, grad_scale))
        is_skipped = self._is_skipped
        if is_skipped is not None:
            zero = torch.zeros((), dtype=grads[0].dtype, device=grads[0].device)
            grads = [torch.where(is_skipped, zero, grad) for grad in grads]
        return grads

    def start_state(self, *names: str) -> None:
        """Give each parameter its state, as zeros in its layout."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] |= {name: torch.zeros_like(parameter) for name in names}

    def add_to_momentum(
        self, group: dict[str, Any], params: list[Tensor], added: list[Tensor]
    ) -> list[Tensor]:
        """v = momentum * v + added, or v if the step is skipped (`added` is zeros then); returns
        the v of all `params`."""
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in params]
        torch._foreach_mul_(buffers, self.if_taken(group["momentum"], 1.0, params[0]))
        torch._foreach_add_(buffers, added)
        return buffers

    def if_taken(self, taken: float, skipped: float, like: Tensor) -> Tensor:
        """A device scalar: the first number, or the second if the step is skipped."""
        number = torch.full((), taken, dtype=like.dtype, device=like.device)
        is_skipped = self._is_skipped
        return number if is_skipped is None else torch.where(is_skipped, skipped, number)

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        """Change `params` of one group and their state in place; `grads` are theirs."""
        raise NotImplementedError


def l2_norms(tensors: list[Tensor]) -> Tensor:
    """L2 norms, one per tensor, on the device."""
    return torch.stack(torch._foreach_norm(tensors))
