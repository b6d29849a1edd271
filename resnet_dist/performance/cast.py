"""Weights in half precision, many at once: what autocast does for each layer, in few launches.

Same values and gradients as autocast's, bit for bit. Without it a step of ResNet-50 has 108 kernels
that convert one tensor each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class WeightCast:
    """Converts the weights of a network's convolutions and linear layers, those of each part of it
    together: their gradients come back together too, and DDP can send those of the last parts while
    the backward pass goes on."""

    def __init__(self, model: nn.Module, *, prefix: str = "") -> None:
        """`prefix`: what stands before the names in the module that it is called with."""
        self._parts = [
            [
                f"{prefix}{child}.{name}.{leaf}".replace("..", ".")
                for name, module in part.named_modules()
                if isinstance(module, nn.Conv2d | nn.Linear)
                for leaf, _ in module.named_parameters(recurse=False)
            ]
            for child, part in model.named_children()
        ]

    def __call__(self, model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        """The weights by name, in `dtype`."""
        found: dict[str, Tensor] = {}
        for names in self._parts:
            if names:
                tensors = [model.get_parameter(name) for name in names]
                found |= dict(zip(names, _Cast.apply(dtype, *tensors), strict=True))
        return found


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.like = [torch.empty_like(tensor, device="meta") for tensor in tensors]
        results = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(results, list(tensors))
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = [None] * len(grads)
        sources, targets = [], []
        for place, (grad, like) in enumerate(zip(grads, ctx.like, strict=True)):
            if grad is None:
                continue
            result = torch.empty_like(like, device=grad.device)
            results[place] = result
            targets.append(result)
            sources.append(_laid_out_as(grad, result))
        torch._foreach_copy_(targets, sources)
        return None, *results


def _laid_out_as(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor with the strides of another of its shape where only those of dimensions of size 1
    differ, or else as it is: one tensor of another layout would have all copied one by one."""
    if tensor.stride() == other.stride() or any(
        one != two and size > 1
        for one, two, size in zip(tensor.stride(), other.stride(), tensor.shape, strict=True)
    ):
        return tensor
    return tensor.as_strided(other.shape, other.stride())
