"""The network, and the loss that trains it: sections `model` and `loss`."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import check_section, setting

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
"""Blocks in each stage of a ResNet."""

MODEL_NAMES = ("resnet9", *DEPTHS)
"""The keys of `resnet_dist.models.build.MODELS`, known without importing torch."""

FREEZES = ("none", "bn", "stage1", "stage2", "stage3", "stage4", "backbone")
"""What `model.freeze` may be."""

_FOREIGN = re.compile(r"(torchvision|timm):[\w.]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: str = setting("resnet50")
    """resnet9 (for 32x32 images), resnet18, resnet34, resnet50, resnet101, resnet152; or any
    classifier: torchvision:NAME, timm:NAME, or MODULE:FUNCTION of your own, which is called with
    num_classes=N and returns a module."""
    weights: str | None = setting(None, free=True)
    """Start a new run from these weights, at step 0: a file (a checkpoint of ours, a state dict of
    torchvision or timm; .pt, .pth, .safetensors), or torchvision:IMAGENET1K_V2. Other classes get
    a new last layer. Not read when a run is resumed. null: start from `seed`."""
    weights_average: bool = setting(False, free=True)
    """Take the moving average in that file instead of the weights."""
    freeze: str = setting("none", choices=FREEZES)
    """What is not trained: bn (all batch norms), stage1 to stage4 (everything up to that stage), or
    backbone (all but the last layer). Frozen batch norms keep their statistics."""
    num_classes: int | None = setting(
        None, ge=2, hint="leave it out to use the number of class folders"
    )
    """Outputs. null: the number of classes of the data."""
    in_channels: int = setting(3, ge=1, le=64, hint="3, or 1 for grey images")
    """Channels of the images: 3, or 1 with data.grayscale=true."""
    width: int = setting(64, ge=8, hint="64 is standard")
    """Channels of the first stage; 64 is the published network."""
    stride: Literal["v1", "v1.5"] = setting("v1.5")
    """Where a bottleneck downsamples: v1 in its first 1x1, v1.5 in its 3x3 convolution."""
    stem: Literal["standard", "d", "cifar", "whiten"] = setting("standard")
    """standard: 7x7/2 + max-pool; d: ResNet-D (three 3x3, average-pool shortcuts); cifar: 3x3/1;
    whiten: resnet9 only, a 2x2/1 that whitens the images of the first step and is not trained (Page
    2019; Jordan 2024)."""
    conv_bias: bool = setting(False)
    """Give convolutions a bias, though batch norm subtracts it again (as textbooks do)."""
    shortcut_norm: bool = setting(True)
    """Batch norm after the 1x1 convolution of a shortcut; false: none (as textbooks have it)."""
    init: Literal["auto", "kaiming_fan_out", "kaiming_fan_in", "xavier", "torch"] = setting("auto")
    """Initial weights of convolutions. auto: kaiming_fan_out (torchvision's), for resnet9 torch,
    which is what PyTorch's layers draw by themselves. kaiming_fan_in: NVIDIA's and Paddle's."""
    fc_init: Literal["torch", "normal", "xavier", "uniform_fan_in"] = setting("torch")
    """Initial weights of the last layer. normal: standard deviation 0.01 (Goyal et al. 2017);
    uniform_fan_in: Paddle's, within 1/sqrt(inputs). All but torch start its bias at 0."""
    fc_bias: Literal["auto", "minus_log_classes"] = setting("auto")
    """Initial bias of the last layer. minus_log_classes: -log(number of classes), for
    binary_cross_entropy (Composer); auto: as `fc_init` says."""
    gamma_init: Literal["one", "uniform"] = setting("one")
    """Initial scales of batch norm. uniform: between 0 and 1 (Composer)."""
    blur_pool: Literal["none", "conv", "conv_maxpool"] = setting("none")
    """Blur before striding (Zhang 2019, arXiv:1904.11486): conv: in convolutions with a stride and
    at least 16 input channels (ffcv); conv_maxpool: also in the max-pool (Composer)."""
    zero_init_last_gamma: bool = setting(True)
    """Start every residual branch at zero (Goyal et al. 2017, section 5.1)."""
    stochastic_depth: float = setting(0.0, ge=0, lt=1, hint="0.05 and 0.1 are usual")
    """Probability that the last block is left out for an image in training; it rises linearly from
    0 at the first block (Huang et al. 2016, arXiv:1603.09382; timm's --drop-path). 0: none."""
    batch_norm_momentum: float = setting(0.1, ge=0, le=1, hint="0.1 is usual")
    """Weight of the newest batch in the running statistics (PyTorch's convention)."""
    batch_norm_eps: float = setting(1e-5, gt=0, hint="1e-5 is usual")
    """Added to the variance of batch norm."""

    def __post_init__(self) -> None:
        rules = check_section(self, "model")
        rules.require(
            self.weights is not None or not self.weights_average,
            "model.weights_average",
            True,
            "needs model.weights",
            "name the file, or leave it out",
        )
        near = difflib.get_close_matches(self.name.lower(), MODEL_NAMES, n=1)
        rules.require(
            self.name in MODEL_NAMES or _FOREIGN.fullmatch(self.name) is not None,
            "model.name",
            self.name,
            f"must be one of {', '.join(MODEL_NAMES)}, torchvision:NAME, timm:NAME or "
            f"MODULE:FUNCTION",
            f"did you mean {near[0]}?" if near else "the default is 'resnet50'",
        )
        for key, default in _OURS_ONLY.items():
            value = getattr(self, key)
            rules.require(
                not self.is_foreign or value == default,
                f"model.{key}",
                value,
                f"does not go with model.name={self.name}, which is not of this package",
                "leave it out, or take a config without it, such as finetune",
            )
        rules.require(
            self.stem != "d" or self.width % 2 == 0,
            "model.width",
            self.width,
            "must be even for model.stem=d, whose first two convolutions have half of it",
            "64 is standard",
        )
        rules.require(
            self.name == "resnet9" or self.stem != "whiten",
            "model.stem",
            self.stem,
            f"does not go with model.name={self.name}",
            "it is a first layer for resnet9; for small images take cifar",
        )
        for name, standard in (
            ("stem", ("standard", "whiten")),
            ("stride", ("v1.5",)),
            ("stochastic_depth", (0.0,)),
            ("blur_pool", ("none",)),
        ):
            value = getattr(self, name)
            rules.require(
                self.name != "resnet9" or value in standard,
                f"model.{name}",
                value,
                "does not go with model.name=resnet9, whose layers are fixed",
                "leave it out, or take resnet18 with model.stem=cifar for small images",
            )
        rules.enforce()

    @property
    def is_standard(self) -> bool:
        """Whether the fused kernels know the network: ours, all of it trained, no odd layers."""
        is_odd = self.conv_bias or not self.shortcut_norm or self.in_channels != 3
        is_odd = is_odd or self.stochastic_depth > 0 or self.blur_pool != "none"
        return not self.is_foreign and self.freeze == "none" and not is_odd

    @property
    def is_foreign(self) -> bool:
        """Whether the network is torchvision's, timm's or the user's."""
        return ":" in self.name


_OURS_ONLY = {
    "width": 64,
    "stride": "v1.5",
    "stem": "standard",
    "conv_bias": False,
    "shortcut_norm": True,
    "init": "auto",
    "fc_init": "torch",
    "stochastic_depth": 0.0,
    "fc_bias": "auto",
    "gamma_init": "one",
    "blur_pool": "none",
}
"""Settings that describe our networks, with their defaults."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss of the training; the validation loss is always the cross-entropy."""

    name: Literal["cross_entropy", "binary_cross_entropy"] = setting("cross_entropy")
    """binary_cross_entropy: one yes-or-no question per class (Wightman et al. 2021, section 2)."""
    label_smoothing: float = setting(0.0, ge=0, lt=1, hint="0.1 is usual")
    """Share of the target spread evenly over all classes (Szegedy et al. 2016)."""
    teacher: str | None = setting(None)
    """Learn from a trained network as well (Hinton et al. 2015): any file that `model.weights`
    takes, or a run folder. It sees the same augmented images. null: none."""
    teacher_weight: float = setting(0.5, gt=0, le=1, hint="0.5 is the default")
    """Share of the teacher's part in the loss, the divergence from its outputs."""
    teacher_temperature: float = setting(1.0, gt=0, hint="1 to 4 are usual")
    """What both networks' logits are divided by there. Its gradients are scaled by the square."""
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
