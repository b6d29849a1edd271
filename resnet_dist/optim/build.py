"""From an optim section to a torch optimizer. A new one is one `case`."""

from __future__ import annotations

import torch
from torch import nn

from resnet_dist.config import OptimConfig
from resnet_dist.optim.groups import parameter_groups

# One kernel for all parameters, and under loss scaling the decision to skip stays on the device.
_FUSED_DEVICES = frozenset({"cpu", "cuda"})


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the model's trainable parameters, at the peak learning rate.

    Build it after the model is on its device and in its memory format: the kernels are chosen by
    the device, and the optimizer's state takes the layout of the parameters. The learning rate of
    every step comes from `apply_schedule`.
    """
    groups = parameter_groups(
        model,
        weight_decay=config.weight_decay,
        decay_norm_and_bias=config.decay_norm_and_bias,
    )
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = devices <= _FUSED_DEVICES
    match config.name:
        case "sgd":
            return torch.optim.SGD(
                groups,
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                fused=fused,
            )
        case "adam":
            return torch.optim.Adam(
                groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused
            )
        case "adamw":
            return torch.optim.AdamW(
                groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused
            )
