"""Every loader against Pillow and torchvision, which the published accuracies were reached with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as tvf

from resnet_dist.config import DataConfig
from resnet_dist.data.loaders import build
from resnet_dist.data.loaders.build import Batch, Index, open_index, train_spec
from resnet_dist.data.micro_batches import BatchSplit

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

CPU = torch.device("cpu")
BOUND = 0.2  # mean absolute difference, of 255
# Pillow rounds and clips to 8 bits between its two passes, DALI does not. A cubic amplifies that.
CUBIC_BOUND = 0.22
CUBIC_CROP_BOUND = 0.22
LOADERS: tuple[Any, ...] = ("dali", "torch")
WriteImage = Callable[..., None]


@pytest.fixture(scope="module", params=["generated", "imagenet"])
def data(
    request: pytest.FixtureRequest, image_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> DataConfig:
    """Small generated images always; real ones where RESNET_DIST_TEST_IMAGENET names a folder."""
    cache = tmp_path_factory.mktemp("parity")
    if request.param == "generated":
        return DataConfig(
            root=str(image_root),
            cache_dir=str(cache),
            train_size=32,
            eval_size=48,
            eval_resize_size=56,
        )
    folder = os.environ.get("RESNET_DIST_TEST_IMAGENET")
    if not folder:
        pytest.skip("RESNET_DIST_TEST_IMAGENET does not name a folder of class folders")
    for split in ("train", "val"):
        (cache / split).symlink_to(folder)
    return DataConfig(root=str(cache), cache_dir=str(cache / "cache"))


def open_split(data: DataConfig, split: str) -> Index:
    return open_index(data, split, build=True, show_progress=False)


def denormalise(data: DataConfig, images: torch.Tensor) -> torch.Tensor:
    """Back to 0 to 255, float32."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    return (images * std + mean) * 255


def evaluate(data: DataConfig, index: Index) -> list[Batch]:
    loader = build.build_eval_loader(
        data, index, batch_size=50, rank=0, world_size=1, device=CPU, num_workers=1
    )
    assert loader.name == data.loader
    return list(loader.batches())


def train(data: DataConfig, index: Index, batch_split: BatchSplit, num_steps: int) -> list[Batch]:
    loader = build.build_train_loader(
        data, index, batch_split=batch_split, seed=3, rank=0, device=CPU, num_workers=1
    )
    return list(loader.batches(0, num_steps))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("loader", LOADERS)
def test_evaluation_equals_pillow(data: DataConfig, loader: Any, interpolation: Any) -> None:
    data = replace(data, loader=loader, interpolation=interpolation)
    index = open_split(data, "val")
    reference = transforms.Compose(
        [
            transforms.Resize(
                data.eval_resize_size, transforms.InterpolationMode(interpolation), antialias=True
            ),
            transforms.CenterCrop(data.eval_size),
            transforms.PILToTensor(),
        ]
    )
    differences = []
    for batch in evaluate(data, index):
        for i, image in zip(batch.sample_ids, denormalise(data, batch.images), strict=True):
            with Image.open(index.path(i)) as file:
                expected = reference(file.convert("RGB")).float()
            differences.append((image - expected).abs().mean().item())
    assert len(differences) == len(index)
    assert np.mean(differences) <= (BOUND if interpolation == "bilinear" else CUBIC_BOUND)
    assert max(differences) < 2 * BOUND


@pytest.mark.parametrize("crop", ["random_resized", "pad_reflect"])
def test_training_is_the_same_in_both_loaders(data: DataConfig, crop: Any) -> None:
    data = replace(data, crop=crop)
    index = open_split(data, "train")
    batch_split = BatchSplit(min(len(index), 64), 1, 1)
    dali, torch_ = (train(replace(data, loader=name), index, batch_split, 2) for name in LOADERS)
    for left, right in zip(dali, torch_, strict=True):
        assert left.step == right.step
        np.testing.assert_array_equal(left.sample_ids, right.sample_ids)
        assert torch.equal(left.labels, right.labels)
        difference = (denormalise(data, left.images) - denormalise(data, right.images)).abs()
        assert difference.mean() <= BOUND
        assert difference.mean(dim=(1, 2, 3)).max() < 2 * BOUND


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("loader", LOADERS)
def test_training_crops_equal_pillow(data: DataConfig, loader: Any, interpolation: Any) -> None:
    data = replace(data, loader=loader, interpolation=interpolation)
    mode = transforms.InterpolationMode(interpolation)
    index = open_split(data, "train")
    batch_split = BatchSplit(min(len(index), 64), 1, 1)
    (batch,) = train(data, index, batch_split, 1)
    spec = train_spec(data, index, batch_split=batch_split, seed=3, rank=0, step=0, micro_batch=0)
    differences = []
    for row, image in enumerate(denormalise(data, batch.images)):
        with Image.open(index.path(spec.sample_ids[row])) as file:
            crop = tvf.resized_crop(
                file.convert("RGB"), *spec.crop_boxes[row].tolist(), [data.train_size] * 2, mode
            )
        expected = tvf.pil_to_tensor(tvf.hflip(crop) if spec.flips[row] else crop).float()
        differences.append((image - expected).abs().mean().item())
    assert 0 < spec.flips.sum() < len(spec)
    assert np.mean(differences) <= (BOUND if interpolation == "bilinear" else CUBIC_CROP_BOUND)


def write_odd_images(folder: Path, write_image: WriteImage) -> int:
    """48 x 48 images of every kind that decoders are known to treat differently."""
    names = ["cmyk.JPEG", "gray.jpg", "palette.png", "alpha.png", "plain.png"]
    for name, mode in zip(names, ("CMYK", "L", "P", "RGBA", "RGB"), strict=True):
        write_image(folder / name, 48, 48, seed=3, mode=mode)
    (folder / "plain.png").rename(folder / "png_inside.JPEG")  # ImageNet has one of these
    write_image(folder / "plain.jpg", 48, 48, seed=4)
    with Image.open(folder / "plain.jpg") as plain:
        exif = Image.Exif()
        exif[0x112] = 6  # rotated by 90 degrees
        plain.save(folder / "rotated.jpg", exif=exif)
        plain.save(folder / "progressive.jpg", progressive=True)
        plain.save(folder / "full_chroma.jpg", subsampling=0)
    adobe = (folder / "cmyk.JPEG").read_bytes()
    transform_at = adobe.index(b"Adobe") + 11
    ycck = adobe[:transform_at] + b"\x02" + adobe[transform_at + 1 :]
    (folder / "ycck.JPEG").write_bytes(ycck)
    marker_at = adobe.index(b"\xff\xee")
    (folder / "unmarked_cmyk.JPEG").write_bytes(adobe[:marker_at] + adobe[marker_at + 16 :])
    (folder / "bytes_after_end.jpg").write_bytes((folder / "plain.jpg").read_bytes() + b"\0" * 40)
    return len(list(folder.iterdir()))


@pytest.mark.parametrize("loader", LOADERS)
def test_odd_images_equal_pillow(tmp_path: Path, write_image: WriteImage, loader: Any) -> None:
    num_images = write_odd_images(tmp_path / "val/a", write_image)
    data = DataConfig(
        root=str(tmp_path),
        cache_dir=str(tmp_path / "cache"),
        loader=loader,
        eval_size=48,
        eval_resize_size=48,
    )
    index = open_split(data, "val")
    (batch,) = evaluate(data, index)
    images = denormalise(data, batch.images).round().to(torch.uint8)
    assert len(images) == num_images
    for i, image in enumerate(images):
        with Image.open(index.path(i)) as file:
            assert torch.equal(image, tvf.pil_to_tensor(file.convert("RGB"))), index.path(i)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_png_of_16_bits_keeps_its_upper_8(tmp_path: Path, loader: Any) -> None:
    pixels = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28
    (tmp_path / "val/a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "val/a/x.png")
    data = DataConfig(
        root=str(tmp_path),
        cache_dir=str(tmp_path / "cache"),
        loader=loader,
        eval_size=48,
        eval_resize_size=48,
    )
    (batch,) = evaluate(data, open_split(data, "val"))
    image = denormalise(data, batch.images)[0].round().to(torch.uint8)
    assert (image.numpy() == pixels >> 8).all()
