"""A network of a user's own, for `model.name=tests.user_networks:small`."""

from __future__ import annotations

import timm
from torch import nn


def small(num_classes: int) -> nn.Module:
    """Draws random numbers in training."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout2d(0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8, num_classes),
    )


def none(num_classes: int) -> str:
    """No network."""
    return f"{num_classes} classes"


def timm_with_dropout(num_classes: int) -> nn.Module:
    """A network of timm's that draws random numbers in training."""
    model: nn.Module = timm.create_model("resnet10t", num_classes=num_classes, drop_rate=0.3)
    return model
