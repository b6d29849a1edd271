"""What is read, and how it becomes a batch: section `data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.augment import AugmentFields
from resnet_dist.config.dali import DaliFields
from resnet_dist.config.memory import MemoryFields
from resnet_dist.config.setting import Rules, free, setting


@dataclass(frozen=True, kw_only=True)
class DataConfig(AugmentFields, DaliFields, MemoryFields):
    """What is read, and how it becomes a batch. More fields are in `resnet_dist.config.augment`,
    `resnet_dist.config.dali` and `resnet_dist.config.memory`."""

    root: str | None = free(None)
    """Folder with one folder a split, each with one folder a class or packed by
    resnet_dist.prepare. None: the embedded data set."""
    num_train_samples: int | None = setting(None, ge=1, hint="ImageNet-1k has 1281167", free=True)
    """Number of training samples, for --print-config without the data being there; where the data
    is indexed, its count is taken. null: it is counted."""
    train_split: str = free("train")
    """Name of the training folder below `data.root`."""
    val_split: str = free("val")
    """Name of the validation folder below `data.root`."""
    order: Literal["shuffled", "blocked"] = "shuffled"
    """shuffled: any sample may follow any other; blocked: only a few shards are in use at a time
    and are read whole, for cold network storage (needs what resnet_dist.prepare writes)."""
    blocked_window: int = 16
    """Shards in use at a time (blocked only): of 1024 samples each, as thorough as a shuffle buffer
    of 16 times as many."""
    loader: Literal["auto", "dali", "torch", "memory", "synthetic"] = free("auto")
    """auto: dali on a GPU, torch on CPU (as fast there, and closer to Pillow: docs/benchmarks).
    memory: everything decoded once and held on the device, for images of one small size."""
    train_size: int = 224
    """Side of a training crop, pixels."""
    eval_size: int = 224
    """Side of the centre crop for evaluation, pixels."""
    eval_resize_size: int = 256
    """Length of the shorter side before the centre crop, pixels."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of every resize; always antialiased."""
    crop: Literal["random_resized", "pad_reflect"] = "random_resized"
    """random_resized: torchvision's RandomResizedCrop; pad_reflect: shift by up to `crop_padding`
    pixels with reflected borders (CIFAR)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image's area."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Range of the crop's width / height, drawn on a log scale."""
    crop_padding: int = 4
    """Padding of `pad_reflect` on each side, pixels."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of R, G, B on a scale of 0 to 1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of R, G, B on a scale of 0 to 1."""
    num_workers: int | None = free(None)
    """Loader processes (torch; memory, while it is filled) or threads (dali) of each rank. None:
    cores / ranks of the node."""
    prefetch_batches: int = free(2)
    """Batches in flight for each rank (dali) or each worker (torch)."""
    cache_dir: str | None = free(None)
    """Where indexes and the embedded data set are kept. None: ~/.cache/resnet_dist."""
    local_cache_dir: str | None = free(None)
    """Folder on a disk of the node: what was read once from shards on shared storage is read from
    there afterwards, also by later runs. None: nothing is kept."""
    local_cache_gib: float = free(100.0)
    """Most that is kept there of each split, GiB: its first shards."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.local_cache_gib > 0,
            "data.local_cache_gib",
            self.local_cache_gib,
            "must be positive",
            "leave out data.local_cache_dir to keep nothing",
        )
        rules.require(
            1 <= self.blocked_window < 2**16,
            "data.blocked_window",
            self.blocked_window,
            "must lie in [1, 65535]",
            "16 is the default",
        )
        for name in ("train_size", "eval_size", "eval_resize_size", "prefetch_batches"):
            value = getattr(self, name)
            rules.require(
                value >= 1, f"data.{name}", value, "must be at least 1", "give pixels > 0"
            )
        rules.require(
            self.eval_size <= self.eval_resize_size,
            "data.eval_size",
            self.eval_size,
            f"must not exceed data.eval_resize_size ({self.eval_resize_size})",
            "the centre crop is cut from the resized image",
        )
        low, high = self.crop_scale
        rules.require(
            0 < low <= high <= 1,
            "data.crop_scale",
            self.crop_scale,
            "needs 0 < low <= high <= 1",
            "ImageNet's standard is [0.08, 1.0]",
        )
        low, high = self.crop_ratio
        rules.require(
            0 < low <= high,
            "data.crop_ratio",
            self.crop_ratio,
            "needs 0 < low <= high",
            "ImageNet's standard is [0.75, 1.3333]",
        )
        rules.require(
            0 <= self.flip_probability <= 1,
            "data.flip_probability",
            self.flip_probability,
            "must lie in [0, 1]",
            "0.5 is the standard",
        )
        rules.require(
            min(self.std) > 0, "data.std", self.std, "must be positive", "use the data set's std"
        )
        rules.require(
            self.num_workers is None or self.num_workers >= 1,
            "data.num_workers",
            self.num_workers,
            "must be at least 1",
            "leave it out to use cores / ranks of the node",
        )
        rules.require(
            self.crop_padding >= 0,
            "data.crop_padding",
            self.crop_padding,
            "must not be negative",
            "CIFAR's standard is 4",
        )
        smallest, name = self.train_size, "data.train_size"
        if self.progressive_start_size is not None and self.progressive_start_size < smallest:
            smallest, name = self.progressive_start_size, "data.progressive_start_size"
        rules.require(
            self.crop != "pad_reflect" or self.crop_padding < smallest,
            "data.crop_padding",
            self.crop_padding,
            f"must be less than {name} ({smallest}), a reflection's most",
            "CIFAR's standard is 4",
        )
        self.check_augmentation(rules, train_size=self.train_size)
        self.check_dali(rules)
        self.check_memory(
            rules,
            loader=self.loader,
            crop=self.crop,
            progressive_start_size=self.progressive_start_size,
        )
        rules.enforce()
