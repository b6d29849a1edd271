"""SGD with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from resnet_dist.optim.skippable import SkippableOptimizer


class SGDW(SkippableOptimizer):
    """Weights shrink by a share of the weight decay, apart from the gradient's momentum:

        w = w * (1 - weight_decay * lr / peak_lr)
        v = momentum * v + g
        w = w - lr * v                      (Nesterov: lr * (g + momentum * v))

    as Composer's DecoupledSGDW, where the published recipes come from. Weight decay is not
    multiplied by the rate, only by the schedule.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        peak_lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "peak_lr": peak_lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)
        self.start_state("momentum_buffer")

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        taken = self.if_taken(1.0, 0.0, params[0])
        rate = taken * group["lr"]
        if group["weight_decay"]:
            shrunk = 1.0 - rate * (group["weight_decay"] / group["peak_lr"])
            torch._foreach_mul_(params, shrunk)
        buffers = self.add_to_momentum(group, params, grads)
        changes: Any = buffers
        if group["nesterov"]:
            changes = torch._foreach_mul(buffers, group["momentum"])
            torch._foreach_add_(changes, grads)
        torch._foreach_sub_(params, torch._foreach_mul(changes, rate))
