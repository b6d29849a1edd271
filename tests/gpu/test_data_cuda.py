"""The data path on a GPU: the same pixels as on the CPU, and nothing waits for the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet_dist.config import DataConfig
from resnet_dist.data.augment import blending, mixing, pixel_ops
from resnet_dist.data.augment.auto_augment import Code
from resnet_dist.data.augment.device_stage import DeviceStage
from resnet_dist.data.batch import Operations
from resnet_dist.data.loaders import build
from resnet_dist.data.loaders.build import Batch, open_index, train_spec
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.read.buffers import HostBuffers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU, CPU = torch.device("cuda"), torch.device("cpu")
PLAN = BatchSplit(9, 1, 1)


@pytest.fixture
def data(image_root: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return DataConfig(
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


def batches(data: DataConfig, device: torch.device) -> list[Batch]:
    index = open_index(data, "train", build=True, show_progress=False)
    loader = build.build_train_loader(
        data, index, batch_split=PLAN, seed=7, rank=0, device=device, num_workers=2
    )
    return list(loader.batches(0, 9))


@pytest.mark.parametrize("loader", ["dali", "torch"])
@pytest.mark.parametrize("crop", ["random_resized", "pad_reflect"])
def test_every_augmentation_is_that_of_the_cpu(data: DataConfig, loader: Any, crop: Any) -> None:
    data = replace(data, loader=loader, crop=crop)
    on_gpu, on_cpu = batches(data, GPU), batches(replace(data, loader="torch"), CPU)
    assert [batch.images.shape[-1] for batch in on_gpu] == [16] * 3 + [24] * 3 + [32] * 3
    for one, other in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_array_equal(one.sample_ids, other.sample_ids)
        assert torch.equal(one.labels.cpu(), other.labels)
        assert one.mixed is not None
        assert other.mixed is not None
        assert torch.equal(one.mixed.partners.cpu(), other.mixed.partners)
        assert torch.equal(one.mixed.shares.cpu(), other.mixed.shares)
        difference = (one.images.cpu() - other.images).abs() * 255 * min(data.std)
        # nvJPEG rounds its own way, which equalize and the like amplify.
        assert difference.mean() < (3.0 if loader == "dali" else 0.1)


@pytest.mark.parametrize("loader", ["dali", "torch"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_batches_are_channels_last(
    data: DataConfig, loader: Any, dtype: Any
) -> None:
    whole = batches(replace(data, loader=loader), GPU)
    for batch, rounded in zip(
        whole, batches(replace(data, loader=loader, image_dtype=dtype), GPU), strict=True
    ):
        assert rounded.images.dtype == getattr(torch, dtype)
        assert rounded.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.images.to(rounded.images.dtype), rounded.images)
    padded = batches(replace(data, loader=loader, image_dtype=dtype, pad_channels=True), GPU)[0]
    assert padded.images.shape[1] == 4
    assert padded.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(padded.images[:, :3], whole[0].images.to(padded.images.dtype))


@pytest.mark.parametrize(
    "settings",
    [
        {"hw_decoder_load": 0.0},
        {"hw_decoder_load": 1.0, "set_affinity": False},
        {"max_preallocated_side": 0},
        {"prefetch_batches": 4},
    ],
)
def test_settings_of_dali_change_no_sample(data: DataConfig, settings: dict[str, Any]) -> None:
    data = replace(data, loader="dali")
    for one, other in zip(batches(data, GPU), batches(replace(data, **settings), GPU), strict=True):
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
    data = DataConfig(mixup_alpha=0.5, cutmix_alpha=1.0)
    recipe = mixing.draw(
        data, seed=1, epoch=0, batch=0, bounds=(3, 20), global_batch_size=24, size=32
    )
    images = torch.randn(18, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    on_gpu = blending.mix(images.cuda(), recipe, HostBuffers())
    torch.testing.assert_close(on_gpu.cpu(), blending.mix(images, recipe, HostBuffers()))
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)


def test_the_last_stage_never_waits_for_the_device(data: DataConfig) -> None:
    """A call that makes the host wait is an error here; also with deterministic kernels."""
    data = replace(data, image_dtype="bfloat16", auto_augment="ta_wide")
    index = open_index(data, "train", build=True, show_progress=False)
    stage = DeviceStage(data, GPU)
    host = torch.randint(0, 256, (9, 16, 16, 3), dtype=torch.uint8).pin_memory()
    specs = [
        train_spec(data, index, batch_split=PLAN, seed=seed, rank=0, step=0, micro_batch=0)
        for seed in range(8)
    ]
    stage(host, specs[0], is_flipped=False)
    torch.cuda.synchronize()
    torch.use_deterministic_algorithms(True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for spec in specs:
            stage(host, spec, is_flipped=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)
