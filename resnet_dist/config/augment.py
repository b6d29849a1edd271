"""Settings of what is done to training images besides crop and flip: a part of section `data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import Rules


@dataclass(frozen=True, kw_only=True)
class AugmentFields:
    """Applied in torchvision's order: crop and resize, flip, auto_augment, color_jitter, normalise,
    erase, mix."""

    mixup_alpha: float = 0.0
    """Of Beta(alpha, alpha), from which the share of each of two mixed images is drawn (Zhang et
    al. 2017); 0: no mixup. Partners are positions 2k and 2k+1 of the global batch."""
    cutmix_alpha: float = 0.0
    """The same for cutmix (Yun et al. 2019), where the share is that of the area kept; 0: none."""
    mix_probability: float = 1.0
    """Probability that a pair is mixed at all, by mixup or cutmix (timm's --mixup-prob)."""
    mix_switch_probability: float = 0.5
    """Probability of cutmix where both are on (timm's --mixup-switch-prob)."""
    mix_mode: Literal["pair", "batch"] = "pair"
    """pair: every pair draws its own share and box; batch: one draw for the whole global batch. The
    published recipes draw once a GPU, which would make the world size part of the mathematics."""
    erase_probability: float = 0.0
    """Probability of random erasing (Zhong et al. 2017); the rectangle becomes 0 after
    normalisation, the mean colour, as in torchvision's references."""
    erase_scale: tuple[float, float] = (0.02, 0.33)
    """Range of the erased share of the image's area."""
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    """Range of the erased rectangle's height / width, drawn on a log scale."""
    auto_augment: Literal["none", "ra", "ta_wide", "imagenet"] = "none"
    """torchvision's --auto-augment: ra: RandAugment (Cubuk et al. 2019); ta_wide:
    TrivialAugmentWide (Mueller and Hutter 2021); imagenet: AutoAugment's policy for ImageNet (Cubuk
    et al. 2018). Bilinear, what comes in at the borders is black."""
    ra_num_ops: int = 2
    """RandAugment: operations an image."""
    ra_magnitude: int = 9
    """RandAugment: strength, 0 to 30."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Brightness, contrast, saturation, hue, as in torchvision's ColorJitter, in random order."""
    repeats: int = 1
    """How often each chosen sample occurs in an epoch, augmented anew each time (Hoffer et al.
    2019). The epoch keeps its length, so it has as many times fewer samples (torchvision's
    RASampler)."""
    progressive_start_size: int | None = None
    """Side of a training crop in the first epochs, pixels, rising to `train_size`. null: it is
    `train_size` from the start."""
    progressive_epochs: tuple[int, int] = (0, 0)
    """The side is the start's up to the first of these epochs and `train_size` from the second on,
    counted from 0; between them it rises linearly, constant within an epoch (ffcv's ramp)."""
    progressive_multiple: int = 32
    """The side between start and end is rounded to a multiple of this, pixels."""

    @property
    def is_mixing(self) -> bool:
        """Whether images of a pair are mixed."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @property
    def has_operations(self) -> bool:
        """Whether uint8 images are changed after the flip."""
        return self.auto_augment != "none" or any(self.color_jitter)

    def check_augmentation(self, rules: Rules, *, train_size: int) -> None:
        """Add the rules of these fields."""
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            rules.require(
                0 <= value <= 100, f"data.{name}", value, "must lie in [0, 100]", "0 turns it off"
            )
        for name in ("mix_probability", "mix_switch_probability", "erase_probability"):
            value = getattr(self, name)
            rules.require(
                0 <= value <= 1, f"data.{name}", value, "must lie in [0, 1]", "it is a probability"
            )
        low, high = self.erase_scale
        rules.require(
            0 < low <= high <= 1,
            "data.erase_scale",
            self.erase_scale,
            "needs 0 < low <= high <= 1",
            "[0.02, 0.33] is usual",
        )
        low, high = self.erase_ratio
        rules.require(
            0 < low <= high,
            "data.erase_ratio",
            self.erase_ratio,
            "needs 0 < low <= high",
            "[0.3, 3.3] is usual",
        )
        rules.require(
            self.ra_num_ops >= 1, "data.ra_num_ops", self.ra_num_ops, "must be at least 1", "2"
        )
        rules.require(
            0 <= self.ra_magnitude <= 30,
            "data.ra_magnitude",
            self.ra_magnitude,
            "must lie in [0, 30]",
            "9 is torchvision's default",
        )
        rules.require(
            min(self.color_jitter) >= 0 and self.color_jitter[3] <= 0.5,
            "data.color_jitter",
            self.color_jitter,
            "must not be negative, nor the hue above 0.5",
            "[0.4, 0.4, 0.4, 0] is usual",
        )
        rules.require(
            self.repeats >= 1,
            "data.repeats",
            self.repeats,
            "must be at least 1",
            "1 is the default",
        )
        self._check_progressive(rules, train_size)

    def _check_progressive(self, rules: Rules, train_size: int) -> None:
        start = self.progressive_start_size
        rules.require(
            start is None or 1 <= start <= train_size,
            "data.progressive_start_size",
            start,
            f"must lie in [1, data.train_size ({train_size})]",
            "null turns progressive resizing off",
        )
        first, last = self.progressive_epochs
        rules.require(
            0 <= first <= last,
            "data.progressive_epochs",
            self.progressive_epochs,
            "needs 0 <= first <= last",
            "for example [11, 13] for 16 epochs",
        )
        rules.require(
            start is None or last > 0,
            "data.progressive_epochs",
            self.progressive_epochs,
            "must end after epoch 0 where data.progressive_start_size is set",
            "for example [11, 13] for 16 epochs",
        )
        rules.require(
            self.progressive_multiple >= 1,
            "data.progressive_multiple",
            self.progressive_multiple,
            "must be at least 1",
            "32 is ffcv's",
        )
