"""How the weights of convolutions and of the last layer begin: `model.init` and `model.fc_init`."""

from __future__ import annotations

import math

from torch import nn

from resnet_dist.config import ModelConfig

_STANDARD_FC = 0.01
"""Standard deviation of Goyal et al. 2017 (arXiv:1706.02677), section 5.1."""


def initialise(model: nn.Module, config: ModelConfig) -> None:
    """Draw the weights of a network's convolutions and of `fc` as the settings say. With
    `torch` what PyTorch's layers drew stays."""
    how = config.init
    if how == "auto":
        how = "torch" if config.name == "resnet9" else "kaiming_fan_out"
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _initialise_convolution(module, how)
        elif isinstance(module, nn.BatchNorm2d) and config.gamma_init == "uniform":
            nn.init.uniform_(module.weight)
    fc = getattr(model, "fc", None)
    if isinstance(fc, nn.Linear):
        _initialise_fc(fc, config.fc_init)
        if config.fc_bias == "minus_log_classes":
            nn.init.constant_(fc.bias, -math.log(fc.out_features))


def _initialise_convolution(layer: nn.Conv2d, how: str) -> None:
    match how:
        case "kaiming_fan_out":
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        case "kaiming_fan_in":  # Paddle's KaimingNormal
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        case "xavier":
            nn.init.xavier_uniform_(layer.weight)
        case _:
            return
    if layer.bias is not None and how != "kaiming_fan_out":
        nn.init.zeros_(layer.bias)


def _initialise_fc(layer: nn.Linear, how: str) -> None:
    match how:
        case "normal":
            nn.init.normal_(layer.weight, std=_STANDARD_FC)
            nn.init.zeros_(layer.bias)
        case "xavier":
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        case "uniform_fan_in":  # Paddle's models: U(-1/sqrt(n), 1/sqrt(n)), and no more
            bound = 1.0 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
