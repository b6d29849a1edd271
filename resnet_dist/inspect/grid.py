"""The first augmented images of a run as one picture."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from resnet_dist.config import Config
from resnet_dist.data.augment.device_stage import to_uint8
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.loaders.build import build_train_loader
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.errors import UserError

_GRID_SIDE = 6
_GAP = 2  # pixels between images


def write_grid(config: Config, datasets: Datasets, path: Path) -> None:
    """Write the first images of the first step, augmented as in training. Raises UserError."""
    batch_size = config.train.global_batch_size
    num_micro_batches = math.ceil(batch_size / _GRID_SIDE**2)
    loader = build_train_loader(
        datasets,
        config.dali,
        batch_split=BatchSplit(batch_size, 1, num_micro_batches),
        rank=0,
        device=torch.device("cpu"),
        num_workers=0,
    )
    with closing(loader.batches(0, 1)) as batches:
        images = next(batches).images
    pictures = to_uint8(images, datasets.data)
    try:
        make_grid(pictures.permute(0, 2, 3, 1).numpy()).save(path, "PNG")
    except OSError as error:
        raise UserError(
            f"--grid ({path}): cannot be written ({error.strerror or error}); give another file"
        ) from None


def make_grid(images: np.ndarray) -> Image.Image:
    """`[n, height, width, 3]` uint8 in rows of nearly the same number."""
    n, height, width = images.shape[:3]
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    down, across = height + _GAP, width + _GAP
    canvas = np.full((rows * down - _GAP, columns * across - _GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * down, i % columns * across
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas)
