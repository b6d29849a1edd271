"""LAMB: Adam with a learning rate of its own for each layer, for large global batches.

A tensor's update is scaled to the weights' norm. Tensors of a group without weight decay (batch
norm's parameters and biases, see `groups`) are not scaled, as in the published recipes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from resnet_dist.optim.skippable import SkippableOptimizer, l2_norms


class LAMB(SkippableOptimizer):
    """You et al. 2019 (arXiv:1904.00962), as in timm's recipes A1 to A3: Adam's moments with bias
    correction, decoupled weight decay, and no limits on the ratio,

        u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * w
        w = w - lr * (|w| / |u|, or 1 if either is 0) * u

    with ratio = 1 in groups without weight decay. timm clips the gradient's global norm at 1 inside
    the optimizer; here that is `train.clip_grad_norm`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.start_state("exp_avg", "exp_avg_sq")
        for group in self.param_groups:
            # Not "step": torch would leave a number of that name where the checkpoint was read.
            for parameter in group["params"][:1]:
                self.state[parameter]["num_updates"] = parameter.new_zeros(())

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        decay, (beta1, beta2) = group["weight_decay"], group["betas"]
        taken = self.if_taken(1.0, 0.0, params[0])
        count = self.state[group["params"][0]]["num_updates"]
        count += taken
        means = [self.state[parameter]["exp_avg"] for parameter in params]
        squares = [self.state[parameter]["exp_avg_sq"] for parameter in params]
        torch._foreach_mul_(means, self.if_taken(beta1, 1.0, params[0]))
        torch._foreach_add_(means, grads, alpha=1.0 - beta1)
        torch._foreach_mul_(squares, self.if_taken(beta2, 1.0, params[0]))
        torch._foreach_addcmul_(squares, grads, grads, value=1.0 - beta2)
        # A skipped first step leaves count 0: the quotient 0 / 0 must not reach the weights.
        age = count.clamp(min=1.0)
        scales = list(torch._foreach_div(squares, _correction(beta2, age)))
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, group["eps"])
        updates = list(torch._foreach_div(means, scales))
        torch._foreach_div_(updates, _correction(beta1, age))
        rates = [taken * group["lr"]] * len(params)
        if decay:
            torch._foreach_add_(updates, params, alpha=decay)
            weights, lengths = l2_norms(params), l2_norms(updates)
            ratios = torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0)
            rates = list((ratios * (taken * group["lr"])).unbind())
        torch._foreach_sub_(params, torch._foreach_mul(updates, rates))


def _correction(beta: float, age: Tensor) -> Tensor:
    """1 - beta ** age on the device. As it is written it would lose half of float32's digits to
    cancellation with beta = 0.999; this way it loses none."""
    if beta == 0.0:
        return torch.ones_like(age)
    return -torch.expm1(age * math.log(beta))
