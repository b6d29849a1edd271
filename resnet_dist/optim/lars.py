"""LARS: a learning rate of its own for each layer, for large global batches.

A tensor's update is scaled so that its norm is a share of the weights' norm. Tensors of a group
without weight decay (batch norm's parameters and biases, see `groups`) are not scaled, as in the
published recipes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from resnet_dist.optim.skippable import SkippableOptimizer, l2_norms


class LARS(SkippableOptimizer):
    """You, Gitman and Ginsburg 2017 (arXiv:1708.03888), as in MLPerf's reference for ResNet-50: the
    learning rate enters the momentum,

        ratio = trust_coefficient * |w| / (|g| + weight_decay * |w| + eps), or 1 if |w| or |g| is 0
        v = momentum * v + lr * ratio * (g + weight_decay * w)
        w = w - v

    with ratio = 1 in groups without weight decay. With `momentum_correction`, as in MXNet (where
    NVIDIA's submissions to MLPerf ran) and timm, a new rate also applies to what the momentum
    holds: v = momentum * v + ratio * (g + weight_decay * w), w = w - lr * v.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        momentum_correction: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "momentum_correction": momentum_correction,
        }
        super().__init__(params, defaults)
        self.start_state("momentum_buffer")

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        decay, lr = group["weight_decay"], group["lr"]
        taken = self.if_taken(1.0, 0.0, params[0])
        inside, outside = (1.0, lr) if group["momentum_correction"] else (lr, 1.0)
        rates = [taken * inside] * len(params)
        if decay:
            weights, slopes = l2_norms(params), l2_norms(grads)
            ratios = group["trust_coefficient"] * weights
            ratios = ratios / (slopes + decay * weights + group["eps"])
            ratios = torch.where((weights > 0) & (slopes > 0), ratios, 1.0)
            rates = list((ratios * (taken * inside)).unbind())
            grads = list(torch._foreach_add(grads, params, alpha=decay))
        changes = torch._foreach_mul(grads, rates)
        buffers = self.add_to_momentum(group, params, list(changes))
        torch._foreach_sub_(params, torch._foreach_mul(buffers, taken * outside))
