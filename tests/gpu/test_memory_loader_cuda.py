"""The memory loader on a GPU: the torch loader's batches there, bit for bit, without a wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_dist.data.loaders.loader import TrainLoader
from resnet_dist.data.micro_batches import BatchSplit
from tests.gpu.waits import no_waits
from tests.loading import change, open_split, train_loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda")


def _loader(root: Path, cache: Path, name: str) -> TrainLoader:
    config = change(
        root=str(root),
        cache_dir=str(cache),
        crop="pad_reflect",
        train_size=32,
        mixup_alpha=0.5,
        cutmix_alpha=1.0,
        erase_probability=0.5,
    )
    config = change(config, loader=name)
    split = BatchSplit(13, 1, 1)
    return train_loader(config, open_split(config), split, device=GPU, num_workers=2)


def test_batches_are_those_of_the_torch_loader(
    tmp_path: Path, write_image: Callable[..., None]
) -> None:
    for i in range(40):
        write_image(tmp_path / "data/train" / "ab"[i % 2] / f"{i}.jpg", 32, 32, seed=i)
    memory, expected = (_loader(tmp_path / "data", tmp_path, name) for name in ("memory", "torch"))
    for one, other in zip(memory.batches(0, 30), expected.batches(0, 30), strict=True):
        np.testing.assert_array_equal(one.sample_ids, other.sample_ids)
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    with no_waits():
        assert len(list(memory.batches(0, 300))) == 300
