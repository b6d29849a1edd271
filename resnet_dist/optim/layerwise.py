"""LARS and LAMB: a learning rate of its own for each layer, for large global batches.

Both scale a tensor's update so that its norm is a share of the weights' norm. Tensors of a group
without weight decay (batch norm's parameters and biases, see `groups`) are not scaled, as in the
published recipes.

As torch's fused optimizers do, they read `found_inf` and `grad_scale` (device scalars that the step
or a GradScaler sets): with `found_inf` = 1 nothing changes. The learning rate of a group may be a
number or a device scalar. Nothing waits for the device, and all state is there from the start, so
that a step can be captured as a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Rate = float | Tensor


class _Layerwise(torch.optim.Optimizer):
    """What the two have in common: who gets an update, and when it is skipped."""

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
                self._update(group, params, self._gradients(params))

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

    def _if_taken(self, taken: float, skipped: float, like: Tensor) -> Tensor:
        """A device scalar: the first number, or the second if the step is skipped."""
        number = torch.full((), taken, dtype=like.dtype, device=like.device)
        is_skipped = self._is_skipped
        return number if is_skipped is None else torch.where(is_skipped, skipped, number)

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        raise NotImplementedError


class LARS(_Layerwise):
    """You, Gitman and Ginsburg 2017 (arXiv:1708.03888), as in MLPerf's reference for ResNet-50: the
    learning rate enters the momentum,

        ratio = trust_coefficient * |w| / (|g| + weight_decay * |w| + eps), or 1 if |w| or |g| is 0
        v = momentum * v + lr * ratio * (g + weight_decay * w)
        w = w - v

    with ratio = 1 in groups without weight decay.
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
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        decay, lr = group["weight_decay"], group["lr"]
        taken = self._if_taken(1.0, 0.0, params[0])
        rates = [taken * lr] * len(params)
        if decay:
            weights, slopes = _norms(params), _norms(grads)
            ratios = group["trust_coefficient"] * weights
            ratios = ratios / (slopes + decay * weights + group["eps"])
            ratios = torch.where((weights > 0) & (slopes > 0), ratios, 1.0)
            rates = list((ratios * (taken * lr)).unbind())
            grads = list(torch._foreach_add(grads, params, alpha=decay))
        changes = torch._foreach_mul(grads, rates)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in params]
        torch._foreach_mul_(buffers, self._if_taken(group["momentum"], 1.0, params[0]))
        torch._foreach_add_(buffers, changes)
        torch._foreach_sub_(params, torch._foreach_mul(buffers, taken))


class LAMB(_Layerwise):
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
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
            # Not "step": torch would leave a number of that name where the checkpoint was read.
            for parameter in group["params"][:1]:
                self.state[parameter]["num_updates"] = parameter.new_zeros(())

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        decay, (beta1, beta2) = group["weight_decay"], group["betas"]
        taken = self._if_taken(1.0, 0.0, params[0])
        count = self.state[group["params"][0]]["num_updates"]
        count += taken
        means = [self.state[parameter]["exp_avg"] for parameter in params]
        squares = [self.state[parameter]["exp_avg_sq"] for parameter in params]
        torch._foreach_mul_(means, self._if_taken(beta1, 1.0, params[0]))
        torch._foreach_add_(means, grads, alpha=1.0 - beta1)
        torch._foreach_mul_(squares, self._if_taken(beta2, 1.0, params[0]))
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
            weights, lengths = _norms(params), _norms(updates)
            ratios = torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0)
            rates = list((ratios * (taken * group["lr"])).unbind())
        torch._foreach_sub_(params, torch._foreach_mul(updates, rates))


def _correction(beta: float, age: Tensor) -> Tensor:
    """1 - beta ** age on the device. As it is written it would lose half of float32's digits to
    cancellation with beta = 0.999; this way it loses none."""
    if beta == 0.0:
        return torch.ones_like(age)
    return -torch.expm1(age * math.log(beta))


def _norms(tensors: list[Tensor]) -> Tensor:
    """L2 norms, one each, on the device."""
    return torch.stack(torch._foreach_norm(tensors))
