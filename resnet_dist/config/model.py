"""The network, and the loss that trains it: sections `model` and `loss`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import check_section, setting

MODEL_NAMES = ("resnet9", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""The keys of `resnet_dist.models.build.MODELS`, known without importing torch."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: str = setting("resnet50", choices=MODEL_NAMES)
    """Which ResNet; resnet9 is for 32x32 images."""
    num_classes: int | None = setting(
        None, ge=2, hint="leave it out to use the number of class folders"
    )
    """Outputs. null: the number of classes of the data."""
    width: int = setting(64, ge=8, hint="64 is standard")
    """Channels of the first stage; 64 is the published network."""
    stride: Literal["v1", "v1.5"] = setting("v1.5")
    """Where a bottleneck downsamples: v1 in its first 1x1, v1.5 in its 3x3 convolution."""
    stem: Literal["standard", "d", "cifar"] = setting("standard")
    """standard: 7x7/2 + max-pool; d: ResNet-D (three 3x3, average-pool shortcuts); cifar: 3x3/1."""
    zero_init_last_gamma: bool = setting(True)
    """Start every residual branch at zero (Goyal et al. 2017, section 5.1)."""
    batch_norm_momentum: float = setting(0.1, ge=0, le=1, hint="0.1 is usual")
    """Weight of the newest batch in the running statistics (PyTorch's convention)."""
    batch_norm_eps: float = setting(1e-5, gt=0, hint="1e-5 is usual")
    """Added to the variance of batch norm."""

    def __post_init__(self) -> None:
        rules = check_section(self, "model")
        rules.require(
            self.stem != "d" or self.width % 2 == 0,
            "model.width",
            self.width,
            "must be even for model.stem=d, whose first two convolutions have half of it",
            "64 is standard",
        )
        for name, standard in (("stem", "standard"), ("stride", "v1.5")):
            value = getattr(self, name)
            rules.require(
                self.name != "resnet9" or value == standard,
                f"model.{name}",
                value,
                "does not go with model.name=resnet9, whose layers are fixed",
                "leave it out, or take resnet18 with model.stem=cifar for small images",
            )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss of the training; the validation loss is always the cross-entropy."""

    name: Literal["cross_entropy", "binary_cross_entropy"] = setting("cross_entropy")
    """binary_cross_entropy: one yes-or-no question per class (Wightman et al. 2021, section 2)."""
    label_smoothing: float = setting(0.0, ge=0, lt=1, hint="0.1 is usual")
    """Share of the target spread evenly over all classes (Szegedy et al. 2016)."""
    bce_sum_classes: bool = setting(False)
    """Add up the binary cross-entropies of a sample's classes (timm's --bce-sum, composer) instead
    of taking their mean (timm's default)."""
    bce_target_threshold: float | None = setting(None, ge=0, lt=1, hint="0.2 is usual")
    """Binary cross-entropy: targets above it count as 1, others as 0 (timm's --bce-target-thresh;
    0.2 in the recipes A1 to A3). null: targets as they are."""

    def __post_init__(self) -> None:
        rules = check_section(self, "loss")
        for name in ("bce_sum_classes", "bce_target_threshold"):
            value = getattr(self, name)
            rules.require(
                self.name == "binary_cross_entropy" or not value,
                f"loss.{name}",
                value,
                "needs loss.name=binary_cross_entropy",
                "leave it out, or set that loss",
            )
        rules.enforce()
