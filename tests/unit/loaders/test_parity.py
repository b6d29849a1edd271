"""Every loader against Pillow and torchvision, which the published accuracies were reached with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as tvf

from resnet_dist.config import Config, DataConfig
from resnet_dist.data.batch import Batch
from resnet_dist.data.micro_batches import BatchSplit
from tests.loading import (
    change,
    denormalise,
    eval_loader,
    link_splits,
    open_split,
    train_batches,
    train_spec,
)

BOUND = 0.2  # mean absolute difference, of 255
# Pillow rounds and clips to 8 bits between its two passes, DALI does not. A cubic amplifies that.
CUBIC_BOUND = {"dali": 0.22, "torch": 0.2}
CUBIC_CROP_BOUND = 0.22
LOADERS: tuple[Any, ...] = ("dali", "torch")
WriteImage = Callable[..., None]


@pytest.fixture(autouse=True)
def dali_is_there(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params.get("loader") != "torch":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")


@pytest.fixture(scope="module", params=["generated", "photographs"])
def config(
    request: pytest.FixtureRequest,
    image_root: Path,
    real_images: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Config:
    """Small generated images, and photographs."""
    folder = tmp_path_factory.mktemp("parity")
    small = change(cache_dir=str(folder / "cache"))
    if request.param == "generated":
        small = change(small, root=str(image_root), train_size=32)
        return change(small, eval_size=48, eval_resize_size=56)
    return change(small, root=str(link_splits(folder, real_images)))


def evaluate(config: Config) -> list[Batch]:
    return list(eval_loader(config, open_split(config, "val"), 50, num_workers=1).batches())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("loader", LOADERS)
def test_evaluation_equals_pillow(config: Config, loader: Any, interpolation: Any) -> None:
    config = change(config, loader=loader, interpolation=interpolation)
    data, index = config.data, open_split(config, "val")
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
    for batch in evaluate(config):
        for i, image in zip(batch.sample_ids, denormalise(data, batch.images), strict=True):
            with Image.open(index.path(i)) as file:
                expected = reference(file.convert("RGB")).float()
            differences.append((image - expected).abs().mean().item())
    assert len(differences) == len(index)
    assert np.mean(differences) <= (BOUND if interpolation == "bilinear" else CUBIC_BOUND[loader])
    assert max(differences) < 2 * BOUND


@pytest.mark.parametrize("crop", ["random_resized", "pad_reflect"])
def test_training_is_the_same_in_both_loaders(config: Config, crop: Any) -> None:
    config = change(config, crop=crop)
    index = open_split(config)
    split = BatchSplit(min(len(index), 64), 1, 1)
    dali, torch_ = (
        train_batches(change(config, loader=name), index, split, (0, 2), num_workers=1)
        for name in LOADERS
    )
    for left, right in zip(dali, torch_, strict=True):
        assert left.step == right.step
        np.testing.assert_array_equal(left.sample_ids, right.sample_ids)
        assert torch.equal(left.labels, right.labels)
        one, other = (denormalise(config.data, batch.images) for batch in (left, right))
        difference = (one - other).abs()
        assert difference.mean() <= BOUND
        assert difference.mean(dim=(1, 2, 3)).max() < 2 * BOUND


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("loader", LOADERS)
def test_training_crops_equal_pillow(config: Config, loader: Any, interpolation: Any) -> None:
    config = change(config, loader=loader, interpolation=interpolation)
    mode = transforms.InterpolationMode(interpolation)
    index = open_split(config)
    split = BatchSplit(min(len(index), 64), 1, 1)
    (batch,) = train_batches(config, index, split, (0, 1), num_workers=1, seed=3)
    spec = train_spec(config, index, split, step=0, seed=3)
    differences = []
    for row, image in enumerate(denormalise(config.data, batch.images)):
        with Image.open(index.path(spec.sample_ids[row])) as file:
            size = [config.data.train_size] * 2
            crop = tvf.resized_crop(file.convert("RGB"), *spec.crop_boxes[row].tolist(), size, mode)
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


def config_of(root: Path, loader: Any) -> Config:
    """Nothing is resized or cut off."""
    data = DataConfig(root=str(root), cache_dir=str(root / "cache"), loader=loader)
    return change(Config(data=data), eval_size=48, eval_resize_size=48)


@pytest.mark.parametrize("loader", LOADERS)
def test_odd_images_equal_pillow(tmp_path: Path, write_image: WriteImage, loader: Any) -> None:
    num_images = write_odd_images(tmp_path / "val/a", write_image)
    config = config_of(tmp_path, loader)
    index = open_split(config, "val")
    (batch,) = evaluate(config)
    images = denormalise(config.data, batch.images).round().to(torch.uint8)
    assert len(images) == num_images
    for i, image in enumerate(images):
        with Image.open(index.path(i)) as file:
            assert torch.equal(image, tvf.pil_to_tensor(file.convert("RGB"))), index.path(i)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_png_of_16_bits_keeps_its_upper_8(tmp_path: Path, loader: Any) -> None:
    pixels = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28
    (tmp_path / "val/a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "val/a/x.png")
    config = config_of(tmp_path, loader)
    (batch,) = evaluate(config)
    image = denormalise(config.data, batch.images)[0].round().to(torch.uint8)
    assert (image.numpy() == pixels >> 8).all()
