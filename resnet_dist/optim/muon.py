"""Muon (Jordan 2024): orthogonal updates of convolutions, SGD for everything else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from resnet_dist.optim.skippable import SkippableOptimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_LEAST_NORM = 1e-7


def orthogonalised(update: Tensor) -> Tensor:
    """About U V^T of a matrix U S V^T, `[m, n]` to the same in bfloat16, by five steps of a
    Newton-Schulz iteration whose singular values end between 0.5 and 1.5."""
    a, b, c = _COEFFICIENTS
    is_tall = update.shape[0] > update.shape[1]
    x = update.to(torch.bfloat16, copy=True)
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=_LEAST_NORM)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class Muon(SkippableOptimizer):
    """In groups with `is_matrix`, whose parameters are filters `[out, ...]` taken as matrices,

        v = momentum * v + g
        w = w - lr * sqrt(max(1, rows / columns)) * orthogonalised(g + momentum * v)

    as in torch.optim.Muon, which takes matrices only; in others w = w - lr * (g + momentum * v).
    Both after w = w * (1 - lr * weight_decay).
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "is_matrix": False,
        }
        super().__init__(params, defaults)
        self.start_state("momentum_buffer")

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        rate = self.if_taken(1.0, 0.0, params[0]) * group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1.0 - rate * group["weight_decay"])
        buffers = self.add_to_momentum(group, params, grads)
        changes = torch._foreach_mul(buffers, group["momentum"])
        torch._foreach_add_(changes, grads)
        if group["is_matrix"]:
            changes = tuple(map(_filters, changes))
        torch._foreach_sub_(params, torch._foreach_mul(changes, rate))


def _filters(change: Tensor) -> Tensor:
    """The orthogonal update of one tensor of filters, in its type and layout."""
    matrix = change.reshape(change.shape[0], -1)
    scale = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
    result = (orthogonalised(matrix).to(change.dtype) * scale).view(change.shape)
    return torch.empty_like(change).copy_(result)
