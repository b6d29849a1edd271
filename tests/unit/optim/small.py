"""A small network with what optimizers tell apart, and gradients for it."""

from __future__ import annotations

import torch
from torch import nn


def small_model() -> nn.Module:
    """A convolution, a scale and a bias, and a linear layer, channels-last."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def set_gradients(model: nn.Module, step: int) -> None:
    """Random ones that follow from the step, in the layout of the parameters, as autograd and DDP
    leave them."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(torch.randn(parameter.shape, generator=generator))
