"""What is done to training images between decoding and the network: section `augment`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import Rules, check_section, setting


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation, in torchvision's order: crop and resize, flip, auto_augment, color_jitter,
    normalise, erase, mix."""

    crop: Literal["random_resized", "pad_reflect"] = "random_resized"
    """random_resized: torchvision's RandomResizedCrop; pad_reflect: move the image by up to
    `crop_padding` pixels over reflected borders (CIFAR)."""
    crop_scale: tuple[float, float] = setting(
        (0.08, 1.0), gt=0, le=1, hint="ImageNet's standard is [0.08, 1.0]"
    )
    """Range of the crop's area relative to the image's."""
    crop_ratio: tuple[float, float] = setting(
        (0.75, 1.3333333333333333), gt=0, hint="ImageNet's standard is [0.75, 1.3333]"
    )
    """Range of the crop's width / height, sampled on a log scale."""
    crop_padding: int = setting(4, ge=0, hint="CIFAR's standard is 4")
    """Padding of `pad_reflect` on each side, pixels."""
    flip: Literal["random", "alternating"] = "random"
    """Horizontal flips. random: by `flip_probability`; alternating: each image and its mirror image
    take turns from epoch to epoch, for half of the images the mirror image first (Jordan 2024)."""
    flip_probability: float = setting(0.5, ge=0, le=1, hint="0.5 is the standard")
    """Probability of a horizontal flip (flip=random)."""
    auto_augment: Literal["none", "ra", "ra_timm", "ta_wide", "imagenet", "augmix"] = "none"
    """torchvision's --auto-augment: ra: RandAugment (Cubuk et al. 2019); ta_wide:
    TrivialAugmentWide (Mueller and Hutter 2021); imagenet: AutoAugment's policy for ImageNet (Cubuk
    et al. 2018); augmix: AugMix (Hendrycks et al. 2019) with torchvision's defaults. ra_timm:
    timm's RandAugment (its rand-m7-mstd0.5-inc1, say). Bilinear; what comes in at the borders is
    black, with ra_timm the colour `data.mean`."""
    ra_num_ops: int = setting(2, ge=1, hint="2 is usual")
    """RandAugment: operations per image."""
    ra_magnitude: float = setting(9.0, ge=0, le=30, hint="9 is torchvision's default")
    """RandAugment: strength; for ra a whole number, 0 to 30, for ra_timm 0 to 10."""
    ra_magnitude_std: float = setting(0.0, ge=0, le=100, hint="0.5 is usual")
    """ra_timm: deviation of the strength from image to image (timm's mstd)."""
    ra_probability: float = setting(0.5, ge=0, le=1, hint="0.5 is timm's")
    """ra_timm: probability of each operation (timm's p)."""
    color_jitter: tuple[float, float, float, float] = setting(
        (0.0, 0.0, 0.0, 0.0), ge=0, hint="[0.4, 0.4, 0.4, 0] is usual"
    )
    """Brightness, contrast, saturation, hue, as in torchvision's ColorJitter, in random order. The
    hue is at most 0.5."""
    lighting: float = setting(0.0, ge=0, le=10, hint="0.1 is usual")
    """Deviation of the noise along the principal components of ImageNet's colours (Krizhevsky et
    al. 2012; MXNet's --max-random-pca-noise). 0: none."""
    erase_probability: float = setting(0.0, ge=0, le=1, hint="0.1 is torchvision's recipe")
    """Probability of random erasing (Zhong et al. 2017); the rectangle becomes 0 after
    normalisation, the mean colour, as in torchvision's references."""
    erase_scale: tuple[float, float] = setting(
        (0.02, 0.33), gt=0, le=1, hint="[0.02, 0.33] is usual"
    )
    """Range of the erased area relative to the image's."""
    erase_ratio: tuple[float, float] = setting((0.3, 3.3), gt=0, hint="[0.3, 3.3] is usual")
    """Range of the erased rectangle's height / width, sampled on a log scale."""
    mixup_alpha: float = setting(0.0, ge=0, le=100, hint="0 turns it off")
    """Mixup (Zhang et al. 2017): lam, the weight of an image, is sampled from Beta(alpha, alpha);
    0: no mixup. Positions 2k and 2k+1 of the global batch are mixed with each other."""
    cutmix_alpha: float = setting(0.0, ge=0, le=100, hint="0 turns it off")
    """Cutmix (Yun et al. 2019): as mixup_alpha, where lam is the area kept; 0: no cutmix."""
    mix_probability: float = setting(1.0, ge=0, le=1, hint="it is a probability")
    """Probability that a pair is mixed at all, by mixup or cutmix (timm's --mixup-prob)."""
    mix_switch_probability: float = setting(0.5, ge=0, le=1, hint="it is a probability")
    """Probability of cutmix where both are on (timm's --mixup-switch-prob)."""
    mix_mode: Literal["pair", "batch"] = "pair"
    """pair: every pair has its own lam and box; batch: one for the whole global batch. The
    published recipes sample once per GPU, which would make the world size part of the
    mathematics."""
    colout: float = setting(0.0, ge=0, lt=1, hint="0.05 and 0.15 are usual")
    """ColOut (Composer): leave out this share of the rows and of the columns, chosen again for each
    global batch, so that images become smaller. 0: none."""
    ra_reps: int = setting(1, ge=1, hint="1 turns it off")
    """Repeated augmentation (Hoffer et al. 2019; torchvision's --ra-reps): how often each chosen
    sample occurs in an epoch, augmented differently each time. The epoch keeps its length, so it
    has as many times fewer samples."""
    progressive_start_size: int | None = setting(
        None, ge=1, hint="null turns progressive resizing off"
    )
    """Side of a training crop in the first epochs, pixels, rising to `data.train_size`. null: it is
    `data.train_size` from the start."""
    progressive_epochs: tuple[int, int] = setting(
        (0, 0), ge=0, hint="for example [11, 13] for 16 epochs"
    )
    """The side is the start's up to the first of these epochs and `data.train_size` from the second
    on, counted from 0; between them it rises linearly, constant within an epoch (ffcv's ramp)."""
    progressive_multiple: int = setting(32, ge=1, hint="32 is ffcv's")
    """The side between start and end is rounded to a multiple of this, pixels."""

    def __post_init__(self) -> None:
        rules = check_section(self, "augment")
        for name, example in (
            ("crop_scale", "ImageNet's standard is [0.08, 1.0]"),
            ("crop_ratio", "ImageNet's standard is [0.75, 1.3333]"),
            ("erase_scale", "[0.02, 0.33] is usual"),
            ("erase_ratio", "[0.3, 3.3] is usual"),
            ("progressive_epochs", "for example [11, 13] for 16 epochs"),
        ):
            low, high = getattr(self, name)
            rules.require(low <= high, f"augment.{name}", (low, high), "needs low <= high", example)
        for name, standard in (("flip_probability", 0.5), ("ra_reps", 1)):
            value = getattr(self, name)
            rules.require(
                self.flip == "random" or value == standard,
                f"augment.{name}",
                value,
                "does not go with augment.flip=alternating",
                "leave one of the two out",
            )
        rules.require(
            self.color_jitter[3] <= 0.5,
            "augment.color_jitter",
            self.color_jitter,
            "must not have a hue above 0.5",
            "[0.4, 0.4, 0.4, 0] is usual",
        )
        rules.require(
            self.auto_augment != "ra" or self.ra_magnitude == int(self.ra_magnitude),
            "augment.ra_magnitude",
            self.ra_magnitude,
            "must be a whole number for augment.auto_augment=ra",
            "9 is torchvision's default",
        )
        rules.require(
            self.auto_augment != "ra_timm" or self.ra_magnitude <= 10,
            "augment.ra_magnitude",
            self.ra_magnitude,
            "must be at most 10 for augment.auto_augment=ra_timm",
            "6, 7 and 9 are usual",
        )
        rules.require(
            self.progressive_start_size is None or self.progressive_epochs[1] > 0,
            "augment.progressive_epochs",
            self.progressive_epochs,
            "must end after epoch 0 where augment.progressive_start_size is set",
            "for example [11, 13] for 16 epochs",
        )
        rules.enforce()

    @property
    def is_mixing(self) -> bool:
        """Whether images of a pair are mixed."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @property
    def has_operations(self) -> bool:
        """Whether uint8 images are changed after the flip."""
        return self.auto_augment != "none" or any(self.color_jitter) or self.lighting > 0

    def check_sizes(self, rules: Rules, *, train_size: int, loader: str) -> None:
        """Add the rules that tie this section to section `data`."""
        start = self.progressive_start_size
        rules.require(
            start is None or start <= train_size,
            "augment.progressive_start_size",
            start,
            f"must lie in [1, data.train_size ({train_size})]",
            "null turns progressive resizing off",
        )
        smallest, name = train_size, "data.train_size"
        if start is not None and start < smallest:
            smallest, name = start, "augment.progressive_start_size"
        rules.require(
            self.crop != "pad_reflect" or self.crop_padding < smallest,
            "augment.crop_padding",
            self.crop_padding,
            f"must be less than {name} ({smallest}), a reflection's most",
            "CIFAR's standard is 4",
        )
        rules.require(
            loader != "memory" or self.crop == "pad_reflect",
            "augment.crop",
            self.crop,
            "needs a resize, which data.loader=memory does not do",
            "set augment.crop=pad_reflect, or data.loader=auto",
        )
        rules.require(
            loader != "memory" or start is None,
            "augment.progressive_start_size",
            start,
            "needs a resize, which data.loader=memory does not do",
            "leave it out, or set data.loader=auto",
        )
