"""Loss or gradients that are not finite: the step is skipped on the device, and counted.

Promises that such a step leaves weights, optimizer state and batch norm's running statistics as
they were, on every rank alike, without the host waiting for the device: the decision is a tensor
that the fused optimizers take (`found_inf`). The loop decides what happens after many of them.

A loss that is not finite spoils the gradient on purpose: through the all-reduce every rank then
learns of it and skips the same step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SkipCounts:
    """What happened so far; the same on every rank but for `own_loss_step`."""

    total: int
    """Skipped steps of the run."""
    in_a_row: int
    """Skipped steps up to now without a good one between them."""
    longest: int
    """Most skipped steps in a row in this interval."""
    first_step: int
    """First step of the latest row of skipped ones, counted from 0; -1: none."""
    own_loss_step: int
    """First step of that row in which this rank's own loss (or running statistics) was not finite,
    before any all-reduce; -1: none."""


class NonFiniteGuard:
    """Watches every step of one model. All tensors are on the model's device."""

    def __init__(self, model: nn.Module) -> None:
        """`model` is the plain model in its final place: its floating buffers (batch norm's
        statistics) become views of one tensor here, so that two kernels save and restore them."""
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        others = [buffer for buffer in model.buffers() if not buffer.is_floating_point()]
        self._flat = [_flatten(group) for group in (buffers, others) if group]
        self._saved = [flat.clone() for flat in self._flat]
        device = next(model.parameters()).device
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)  # total, in a row, longest
        self._firsts = torch.full((2,), -1, dtype=torch.int64, device=device)
        self._own_loss_is_bad = torch.zeros((), dtype=torch.bool, device=device)

    @property
    def buffers(self) -> list[Tensor]:
        """All buffers of the model in two tensors at most, to be sent in two pieces."""
        return self._flat

    def begin(self) -> None:
        """Save the buffers before the step's first forward pass."""
        for saved, flat in zip(self._saved, self._flat, strict=True):
            saved.copy_(flat)
        self._own_loss_is_bad.zero_()

    def check_loss(self, loss: Tensor) -> Tensor:
        """The loss of a micro-batch (scalar), with a gradient of NaNs if it is not finite, or if
        the running statistics no longer are (batch norm hides huge activations from the loss)."""
        is_finite = loss.detach().isfinite()
        for flat in self._flat:
            if flat.is_floating_point():
                is_finite = is_finite & flat.isfinite().all()
        self._own_loss_is_bad |= ~is_finite
        return loss * torch.where(is_finite, 1.0, float("nan"))

    def decide(self, grad_norm: Tensor, *, step: int | Tensor) -> Tensor:
        """Whether step `step` (completed ones before it) is skipped: 1.0 or 0.0, float32 scalar.

        `grad_norm`: L2 norm of the whole gradient after the all-reduce, equal on all ranks. `step`
        as a tensor (int64 scalar, on the device) is read when the device comes to it.
        Restores the buffers if so, and counts.
        """
        is_bad = ~grad_norm.isfinite()
        for saved, flat in zip(self._saved, self._flat, strict=True):
            torch.where(is_bad, saved, flat, out=flat)
        in_a_row = (self._counts[1] + 1) * is_bad
        self._counts[0] += is_bad
        self._counts[1] = in_a_row
        self._counts[2] = torch.maximum(self._counts[2], in_a_row)
        self._firsts[0] = torch.where(in_a_row == 1, step, self._firsts[0])
        is_own = is_bad & self._own_loss_is_bad
        own = torch.where(in_a_row == 1, -1, self._firsts[1])
        self._firsts[1] = torch.where(is_own & (own < 0), step, own)
        return is_bad.float()

    def read(self) -> SkipCounts:
        """The counts; waits for the device."""
        total, in_a_row, longest, first, own = torch.cat([self._counts, self._firsts]).tolist()
        return SkipCounts(total, in_a_row, longest, first, own)

    def begin_interval(self) -> None:
        """Restart `longest`, at the current row of skipped steps."""
        self._counts[2] = self._counts[1]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: equal on all ranks."""
        return {"counts": self._counts, "first_step": self._firsts[0]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict`."""
        self._counts.copy_(state["counts"])
        self._firsts[0] = state["first_step"]
        self._firsts[1] = -1


def _flatten(tensors: list[Tensor]) -> Tensor:
    """One tensor with all elements; the given ones become views of it, bit for bit equal."""
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.data = piece.view(tensor.shape)
    return flat
