"""Sharpness-aware minimisation (Foret et al. 2020, arXiv:2010.01412): gradients from uphill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sharpness:
    """How far uphill, and how often."""

    rho: float
    """Length of the way uphill, L2 norm over all weights."""
    every_steps: int
    """Steps that take the gradient there: every so many, from step 0 on."""

    def is_due(self, step: int) -> bool:
        """Whether a step takes the gradient uphill."""
        return step % self.every_steps == 0

    @contextmanager
    def uphill(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Move the weights along their gradients, which are dropped; on leaving put them back, bit
        for bit. A gradient that is not finite moves nothing."""
        moved: list[Tensor] = [one for one in parameters if one.grad is not None]
        grads = [one.grad for one in moved if one.grad is not None]
        with torch.no_grad():
            norm: Tensor = nn.utils.get_total_norm(grads)
            ways = torch._foreach_mul(grads, self.rho / (norm + _TINY))
            ways = tuple(torch.where(norm.isfinite(), way, 0.0) for way in ways)
            places = [parameter.detach().clone() for parameter in moved]
            torch._foreach_add_(moved, list(ways))
        for parameter in moved:
            parameter.grad = None
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(moved, places)


_TINY = 1e-12
"""Added to the norm, as in the paper's code."""
