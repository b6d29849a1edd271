"""What is read, by which loader, and the size and type of images: section `data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import check_section, setting

_PIXELS = "give pixels > 0"

CORES_PER_GPU = 8
"""Fewer feed no fast GPU with JPEGs."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, by which loader, and the size and type of images."""

    root: str | None = setting(None, free=True)
    """Folder with one folder per split, each with one folder per class or packed by
    resnet_dist.prepare. None: the embedded data set."""
    num_train_samples: int | None = setting(None, ge=1, hint="ImageNet-1k has 1281167", free=True)
    """Number of training samples, for --print-config without the data being there; where the data
    is indexed, its count is taken. null: it is counted."""
    train_split: str = setting("train", free=True)
    """Name of the training folder below `data.root`."""
    val_split: str = setting("val", free=True)
    """Name of the validation folder below `data.root`."""
    loader: Literal["auto", "dali", "torch", "memory", "synthetic"] = setting("auto", free=True)
    """auto: dali on a GPU, torch on CPU (as fast there, and closer to Pillow: docs/benchmarks).
    memory: everything decoded once and held on the device, for images of one small size.
    synthetic: noise, which needs no data."""
    order: Literal["shuffled", "blocked"] = "shuffled"
    """shuffled: any sample may follow any other; blocked: only a few shards are in use at a time
    and are read whole, for cold network storage (needs what resnet_dist.prepare writes)."""
    blocked_window: int = setting(16, ge=1, lt=2**16, hint="16 is the default")
    """Shards in use at a time (blocked only): of 1024 samples each, as thorough as a shuffle buffer
    of 16 times as many."""
    train_size: int = setting(224, ge=1, le=8192, hint=_PIXELS)
    """Side of a training crop, pixels."""
    eval_size: int = setting(224, ge=1, le=8192, hint=_PIXELS)
    """Side of the centre crop for evaluation, pixels."""
    eval_resize_size: int = setting(256, ge=1, le=8192, hint=_PIXELS)
    """Length of the shorter side before the centre crop, pixels."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of every resize; always antialiased."""
    grayscale: bool = setting(False)
    """Turn images grey, to one channel (Pillow's L); mean and std are then those of R. Needs
    model.in_channels=1."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of R, G, B on a scale of 0 to 1."""
    std: tuple[float, float, float] = setting(
        (0.229, 0.224, 0.225), gt=0, hint="use the data set's std"
    )
    """Standard deviation of R, G, B on a scale of 0 to 1."""
    num_workers: int | None = setting(
        None, ge=1, hint="leave it out to use cores / ranks of the node", free=True
    )
    """Loader processes (torch; memory, while it is filled) or threads (dali) of each rank. None:
    cores / ranks of the node."""
    prefetch_batches: int = setting(2, ge=1, hint="2 is the default", free=True)
    """Batches in flight for each rank (dali) or each worker (torch)."""
    memory_limit_gib: float = setting(
        16.0, gt=0, hint="leave out data.loader=memory to hold nothing", free=True
    )
    """memory: most that the decoded images of one split may take on each rank's device, GiB: 3
    bytes per pixel (CIFAR-10: 0.14). On the CPU each rank of a node takes it for itself."""
    cache_dir: str | None = setting(None, free=True)
    """Where indexes and the embedded data set are kept. None: ~/.cache/resnet_dist."""
    local_cache_dir: str | None = setting(None, free=True)
    """Folder on a disk of the node: what was read once from shards on shared storage is read from
    there afterwards, also by later runs. None: nothing is kept."""
    local_cache_gib: float = setting(
        100.0, gt=0, hint="leave out data.local_cache_dir to keep nothing", free=True
    )
    """Most that is kept there of each split, GiB: its first shards."""

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """`mean` on a scale of 0 to 255."""
        red, green, blue = (min(max(round(255 * value), 0), 255) for value in self.mean)
        return red, green, blue

    def __post_init__(self) -> None:
        rules = check_section(self, "data")
        rules.require(
            self.eval_size <= self.eval_resize_size,
            "data.eval_size",
            self.eval_size,
            f"must not exceed data.eval_resize_size ({self.eval_resize_size})",
            "the centre crop is cut from the resized image",
        )
        rules.enforce()
