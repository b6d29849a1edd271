"""The data path on a GPU: the same pixels as on the CPU, and nothing waits for the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet_dist.config import AugmentConfig, Config
from resnet_dist.data.augment import mixing, pixel_ops
from resnet_dist.data.augment.codes import Code
from resnet_dist.data.augment.device_stage import DeviceStage
from resnet_dist.data.batch import Batch, Done, Operations
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.read.buffers import HostBuffers
from tests.gpu.waits import no_waits
from tests.loading import CPU, change, open_split, train_batches, train_spec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = torch.device("cuda")
SPLIT = BatchSplit(9, 1, 1)


@pytest.fixture
def config(image_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return change(
        root=str(image_root),
        cache_dir=str(tmp_path_factory.getbasetemp() / "cache"),
        train_size=32,
        progressive_start_size=16,
        progressive_epochs=(0, 2),
        progressive_multiple=8,
        mixup_alpha=0.5,
        cutmix_alpha=1.0,
        erase_probability=0.5,
        auto_augment="ra",
        color_jitter=(0.3, 0.3, 0.3, 0.1),
    )


def batches(config: Config, device: torch.device) -> list[Batch]:
    steps = train_batches(config, open_split(config), SPLIT, (0, 9), device=device, num_workers=2)
    return list(steps)


@pytest.mark.parametrize("loader", ["dali", "torch"])
@pytest.mark.parametrize("crop", ["random_resized", "pad_reflect"])
def test_every_augmentation_is_that_of_the_cpu(config: Config, loader: Any, crop: Any) -> None:
    config = change(config, loader=loader, crop=crop)
    on_gpu, on_cpu = batches(config, GPU), batches(change(config, loader="torch"), CPU)
    assert [batch.images.shape[-1] for batch in on_gpu] == [16] * 3 + [24] * 3 + [32] * 3
    for one, other in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_array_equal(one.sample_ids, other.sample_ids)
        assert torch.equal(one.labels.cpu(), other.labels)
        assert one.mixed is not None
        assert other.mixed is not None
        assert torch.equal(one.mixed.paired.cpu(), other.mixed.paired)
        assert torch.equal(one.mixed.lam.cpu(), other.mixed.lam)
        difference = (one.images.cpu() - other.images).abs() * 255 * min(config.data.std)
        # nvJPEG rounds its own way, which equalize and the like amplify.
        assert difference.mean() < (3.0 if loader == "dali" else 0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"hw_decoder_load": 0.0},
        {"hw_decoder_load": 1.0, "set_affinity": False},
        {"max_preallocated_side": 0},
        {"prefetch_batches": 4},
    ],
)
def test_settings_of_dali_change_no_sample(config: Config, settings: dict[str, Any]) -> None:
    config = change(config, loader="dali")
    for one, other in zip(
        batches(config, GPU), batches(change(config, **settings), GPU), strict=True
    ):
        np.testing.assert_array_equal(one.sample_ids, other.sample_ids)
        # The decoding engine and the multiprocessors may round differently.
        assert (one.images - other.images).abs().mean() < 0.05


@pytest.mark.parametrize("code", list(Code))
def test_operations_are_those_of_the_cpu(code: Code) -> None:
    images = torch.randint(0, 256, (8, 40, 40, 3), dtype=torch.uint8)
    magnitude = {Code.POSTERIZE: 3.0, Code.SOLARIZE: 99.0, Code.HUE: 0.3}.get(code, 0.7)
    chosen = Operations(np.full((8, 1), code, np.int8), np.full((8, 1), magnitude))
    expected = pixel_ops.apply_batched(images, chosen).int()
    difference = (pixel_ops.apply_batched(images.cuda(), chosen).cpu().int() - expected).abs()
    assert difference.max() <= 1
    assert difference.float().mean() <= 0.02


def test_mixing_is_that_of_the_cpu() -> None:
    augment = AugmentConfig(mixup_alpha=0.5, cutmix_alpha=1.0)
    mix = mixing.sample_mix(
        augment, seed=1, epoch=0, batch=0, bounds=(3, 20), global_batch_size=24, size=32
    )
    images = torch.randn(18, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    on_gpu = mixing.apply_mix(images.cuda(), mix, HostBuffers())
    torch.testing.assert_close(on_gpu.cpu(), mixing.apply_mix(images, mix, HostBuffers()))
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)


def test_the_last_stage_never_waits_for_the_device(config: Config) -> None:
    """A call that makes the host wait is an error here; also with deterministic kernels."""
    config = change(config, auto_augment="ta_wide")
    index = open_split(config)
    stage = DeviceStage(config.data, GPU)
    host = torch.randint(0, 256, (9, 16, 16, 3), dtype=torch.uint8).pin_memory()
    specs = [train_spec(config, index, SPLIT, step=0, seed=seed) for seed in range(8)]
    stage(host, specs[0], Done.CROPPED)
    torch.cuda.synchronize()
    torch.use_deterministic_algorithms(True)
    try:
        with no_waits():
            for spec in specs:
                stage(host, spec, Done.CROPPED)
    finally:
        torch.use_deterministic_algorithms(False)
