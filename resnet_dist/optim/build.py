"""Construction of the optimizer from its config section. A new one is one `case`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from resnet_dist.config import OptimConfig
from resnet_dist.optim.groups import filters_apart, parameter_groups
from resnet_dist.optim.lamb import LAMB
from resnet_dist.optim.lars import LARS
from resnet_dist.optim.muon import Muon
from resnet_dist.optim.sgdw import SGDW

# One kernel for all parameters, and under loss scaling the decision to skip stays on the device.
_FUSED_DEVICES = frozenset({"cpu", "cuda"})


def build_optimizer(
    config: OptimConfig,
    model: nn.Module,
    *,
    head: nn.Module | None = None,
    peak_lr: float | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of the model's trainable parameters, at the peak learning rate.

    Build it after the model is on its device and in its memory format: the kernels are chosen by
    the device, and the optimizer's state takes the layout of the parameters. The learning rate of
    every step comes from `apply_schedule`. `head`: the last layer, for `optim.head_lr_factor`;
    `peak_lr`: the schedule's peak, if it is not `optim.lr`.
    """
    peak_lr = config.lr if peak_lr is None else peak_lr
    groups = parameter_groups(
        model,
        weight_decay=config.weight_decay,
        decay_norm_and_bias=config.decay_norm_and_bias,
        head=head,
        head_lr_factor=config.head_lr_factor,
    )
    if config.name == "muon":
        groups = filters_apart(groups, config.other_lr_factor)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = devices <= _FUSED_DEVICES
    optimizer = _build(config, groups, lr=peak_lr, fused=fused)
    _start_momentum(optimizer)
    if devices == {"cpu"}:
        optimizer.register_step_pre_hook(_check_layouts)
    return optimizer


def _build(
    config: OptimConfig, groups: list[dict[str, Any]], *, lr: float, fused: bool
) -> torch.optim.Optimizer:
    match config.name:
        case "sgd":
            return torch.optim.SGD(
                groups,
                lr=lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                fused=fused,
            )
        case "sgdw":
            return SGDW(
                groups,
                lr=lr,
                peak_lr=lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
            )
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=config.betas, eps=config.eps, fused=fused)
        case "lars":
            return LARS(
                groups,
                lr=lr,
                momentum=config.momentum,
                trust_coefficient=config.trust_coefficient,
                momentum_correction=config.momentum_correction,
            )
        case "muon":
            return Muon(groups, lr=lr, momentum=config.momentum)
        case "lamb":
            return LAMB(groups, lr=lr, betas=config.betas, eps=config.eps)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=fused)


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD its momentum buffers, as zeros: the first step then makes them the gradient.

    Left to itself fused SGD allocates them in the first step without setting them, and if that
    step is skipped (`found_inf`), continues with whatever was in that memory.
    """
    for group in optimizer.param_groups:
        if group.get("momentum"):
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _strides(tensor: Tensor) -> list[int]:
    """Strides that matter: those of dimensions with more than one element."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _check_layouts(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    """Every gradient lies in memory as its parameter does.

    Autograd and DDP ensure that. The fused kernels rely on it, walking both in memory order: on
    GPUs they check it, on CPUs (2.15) they would apply a gradient's elements to other weights.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is None or grad.stride() == parameter.stride():
                continue
            assert _strides(grad) == _strides(parameter), (
                f"a gradient of shape {list(grad.shape)} has another memory layout "
                f"({grad.stride()}) than its parameter ({parameter.stride()})"
            )
