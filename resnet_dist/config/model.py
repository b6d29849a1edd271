"""The network: section `model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import Rules


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: str = "resnet50"
    """resnet18, resnet34, resnet50, resnet101, resnet152 or resnet9 (32x32 images)."""
    num_classes: int | None = None
    """Outputs. None: the number of classes of the data."""
    width: int = 64
    """Channels of the first stage; 64 is the published network."""
    stride: Literal["v1", "v1.5"] = "v1.5"
    """Where a bottleneck downsamples: v1 in its first 1x1, v1.5 in its 3x3 convolution."""
    stem: Literal["standard", "d", "cifar"] = "standard"
    """standard: 7x7/2 + max-pool; d: ResNet-D (three 3x3, average-pool shortcuts); cifar: 3x3/1."""
    zero_init_last_gamma: bool = True
    """Start every residual branch at zero (Goyal et al. 2017, section 5.1)."""
    batch_norm_momentum: float = 0.1
    """Weight of the newest batch in the running statistics (PyTorch's convention)."""
    batch_norm_eps: float = 1e-5
    """Added to the variance."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.num_classes is None or self.num_classes >= 2,
            "model.num_classes",
            self.num_classes,
            "must be at least 2",
            "leave it out to use the number of class folders",
        )
        rules.require(
            self.width >= 8, "model.width", self.width, "must be at least 8", "64 is standard"
        )
        rules.enforce()
