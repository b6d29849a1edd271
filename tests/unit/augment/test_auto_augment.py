"""RandAugment and its kin: choices and pixels against torchvision's transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.transforms import InterpolationMode, v2

from resnet_dist.config import AugmentConfig, Config
from resnet_dist.data.augment import auto_augment, pixel_ops
from resnet_dist.data.augment.codes import SIGNED, Code
from resnet_dist.data.batch import Batch, Operations
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.read.decode import decode_rgb
from resnet_dist.data.read.store import FolderStore
from tests.loading import both_splits, change, open_split, train_batches

NAMES = {
    Code.IDENTITY: "Identity",
    Code.SHEAR_X: "ShearX",
    Code.SHEAR_Y: "ShearY",
    Code.TRANSLATE_X: "TranslateX",
    Code.TRANSLATE_Y: "TranslateY",
    Code.ROTATE: "Rotate",
    Code.BRIGHTNESS: "Brightness",
    Code.COLOR: "Color",
    Code.CONTRAST: "Contrast",
    Code.SHARPNESS: "Sharpness",
    Code.POSTERIZE: "Posterize",
    Code.SOLARIZE: "Solarize",
    Code.AUTO_CONTRAST: "AutoContrast",
    Code.EQUALIZE: "Equalize",
    Code.INVERT: "Invert",
}
BATCHED_BOUND = 0.02  # mean absolute difference of apply_batched, of 255
LOADERS_BOUND = 0.6  # of the two loaders, whose pixels differ by 0.16 before the operations


@pytest.fixture(scope="module", params=["generated", "photographs"])
def config(
    request: pytest.FixtureRequest,
    image_root: Path,
    real_images: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Config:
    """Small generated images, and photographs."""
    folder = tmp_path_factory.mktemp("operations")
    small = change(cache_dir=str(folder / "cache"))
    if request.param == "generated":
        return change(small, root=str(image_root), train_size=32)
    return change(small, root=str(both_splits(folder, real_images)), train_size=224)


@pytest.fixture(scope="module")
def images(config: Config) -> torch.Tensor:
    """`[13, S, S, 3]` uint8 of the data, and one of a single colour."""
    index = open_split(config)
    ids = np.linspace(0, len(index) - 1, 12).astype(np.int64)
    rows = []
    for sample_id, encoded in zip(ids.tolist(), FolderStore(index).read(ids), strict=True):
        image = decode_rgb(encoded, index, sample_id)[None]
        rows.append(functional.interpolate(image, [config.data.train_size] * 2, mode="bilinear"))
    flat = torch.full_like(rows[0], 77)
    return torch.cat([*rows, flat]).permute(0, 2, 3, 1).contiguous()


def same_for_all(images: torch.Tensor, code: int, magnitude: float) -> Operations:
    shape = (len(images), 1)
    return Operations(np.full(shape, code, np.int8), np.full(shape, magnitude))


def magnitudes_of(code: int) -> list[float]:
    """Gentle and strong ones of what is sampled."""
    wide = auto_augment.trivial_augment_table()[code]
    if code in (Code.BRIGHTNESS, Code.COLOR, Code.CONTRAST, Code.SHARPNESS):
        return [1 - wide[30], 1 - wide[7], 1.0, 1 + wide[30]]
    if Code.SHEAR_X <= code <= Code.ROTATE:
        return [
            float(sign * np.trunc(value) if "TRANSLATE" in Code(code).name else sign * value)
            for sign, value in ((1, wide[30]), (-1, wide[30]), (1, wide[9]))
        ] + [0.0]
    return [float(wide[30]), float(wide[0]), float(wide[11])]


@pytest.mark.parametrize("code", list(NAMES))
def test_each_operation_equals_torchvisions(images: torch.Tensor, code: Code) -> None:
    theirs = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    for magnitude in magnitudes_of(code):
        chosen = same_for_all(images, code, magnitude)
        each = images.clone()
        pixel_ops.apply_each(each, chosen)
        factor = code in (Code.BRIGHTNESS, Code.COLOR, Code.CONTRAST, Code.SHARPNESS)
        given = magnitude - 1.0 if factor else magnitude
        given = magnitude / 255.0 if code == Code.SOLARIZE else given
        expected = torch.stack(
            [
                theirs._apply_image_or_video_transform(
                    image,
                    NAMES[code],
                    given,
                    interpolation=theirs.interpolation,
                    fill=theirs._fill,
                ).permute(1, 2, 0)
                for image in images.permute(0, 3, 1, 2)
            ]
        )
        assert torch.equal(each, expected), magnitude
        batched = pixel_ops.apply_batched(images, chosen)  # what a GPU runs
        difference = (batched.int() - each.int()).abs()
        assert difference.float().mean() <= BATCHED_BOUND, magnitude
        assert difference.max() <= 1, magnitude


@pytest.mark.parametrize("turns", [-0.5, -0.17, 0.0, 0.3, 0.5])
def test_the_hue_equals_torchvisions(images: torch.Tensor, turns: float) -> None:
    chosen = same_for_all(images, Code.HUE, turns)
    each = images.clone()
    pixel_ops.apply_each(each, chosen)
    expected = v2.functional.adjust_hue(images.permute(0, 3, 1, 2), turns).permute(0, 2, 3, 1)
    assert torch.equal(each, expected)
    difference = (pixel_ops.apply_batched(images, chosen).int() - each.int()).abs()
    assert difference.float().mean() <= BATCHED_BOUND
    assert difference.max() <= 1


def test_mixed_slots_are_applied_in_order(images: torch.Tensor) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, len(Code), (len(images), 3)).astype(np.int8)
    values = np.array(
        [
            magnitudes_of(c)[i % 3] if c != Code.HUE else 0.2
            for i, c in enumerate(codes.flatten().tolist())
        ]
    ).reshape(codes.shape)
    before = images.clone()
    each = images.clone()
    pixel_ops.apply_each(each, Operations(codes, values))
    batched = pixel_ops.apply_batched(images, Operations(codes, values))
    assert torch.equal(images, before)
    assert (each.int() - batched.int()).abs().float().mean() < 0.05
    assert not torch.equal(each, images)


@pytest.mark.parametrize(("bins", "theirs"), [(31, v2.RandAugment), (10, v2.AutoAugment)])
@pytest.mark.parametrize("size", [32, 160, 224])
def test_tables_equal_torchvisions(bins: int, theirs: Any, size: int) -> None:
    check_table(auto_augment.rand_augment_table(size, bins), theirs, bins, size)


def test_the_wide_table_equals_torchvisions() -> None:
    check_table(auto_augment.trivial_augment_table(), v2.TrivialAugmentWide, 31, 224)


def check_table(ours: Any, theirs: Any, bins: int, size: int) -> None:
    space = theirs._AUGMENTATION_SPACE
    for code, name in NAMES.items():
        if name in space:
            values, is_signed = space[name]
            wanted = values(bins, size, size)
            expected = torch.zeros(bins) if wanted is None else wanted.double()
            scale = 255.0 if code == Code.SOLARIZE else 1.0
            np.testing.assert_allclose(ours[code], expected * scale, rtol=3e-7, atol=1e-9)
            assert is_signed == (code in SIGNED)
            if code in (Code.TRANSLATE_X, Code.TRANSLATE_Y):
                is_whole = np.abs(ours[code] - np.rint(ours[code])) < 1e-4  # 15.999999 or 16
                assert (np.trunc(ours[code]) == np.trunc(expected.numpy()))[~is_whole].all()
    chosen = {NAMES[Code(code)] for code in auto_augment._CHOICES}
    assert theirs is v2.AutoAugment or chosen == set(space)


def test_the_policy_is_torchvisions() -> None:
    expected = v2.AutoAugment()._policies
    ours = [
        tuple((NAMES[code], p, bin_) for code, p, bin_ in policy) for policy in auto_augment._POLICY
    ]
    theirs = [tuple((name, p, bin_ or 0) for name, p, bin_ in policy) for policy in expected]
    assert ours == theirs


def sample(num: int = 6000, start: int = 0, **changes: Any) -> Operations:
    augment = AugmentConfig(**changes)
    sampled = auto_augment.sample_operations(augment, num, seed=3, epoch=1, start=start, size=224)
    assert sampled is not None
    return sampled


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_augment": "ra", "ra_num_ops": 3},
        {"auto_augment": "ta_wide", "color_jitter": (0.4, 0.3, 0.2, 0.1)},
        {"auto_augment": "imagenet"},
    ],
)
def test_samples_depend_on_the_position_alone(changes: dict[str, Any]) -> None:
    whole, part = sample(60, **changes), sample(20, start=33, **changes)
    np.testing.assert_array_equal(part.codes, whole.codes[33:53])
    np.testing.assert_array_equal(part.magnitudes, whole.magnitudes[33:53])
    assert (
        auto_augment.sample_operations(AugmentConfig(), 5, seed=0, epoch=0, start=0, size=224)
        is None
    )


def test_choices_are_even() -> None:
    for sampled, slots in ((sample(auto_augment="ra"), 2), (sample(auto_augment="ta_wide"), 1)):
        assert sampled.codes.shape == (6000, slots)
        counts = np.bincount(sampled.codes.flatten(), minlength=len(Code)) / sampled.codes.size
        np.testing.assert_allclose(counts[:14], 1 / 14, atol=0.01)
        assert counts[14:].sum() == 0
    shears = sampled.magnitudes[sampled.codes == Code.SHEAR_X]
    assert abs((shears < 0).mean() - 0.5 * 30 / 31) < 0.1
    assert len(np.unique(np.abs(shears))) == 31
    ra = sample(auto_augment="ra", ra_magnitude=9)
    np.testing.assert_allclose(
        np.unique(ra.magnitudes[ra.codes == Code.CONTRAST]), [0.73, 1.27], atol=1e-6
    )
    policy = sample(auto_augment="imagenet")
    expected = 1 - np.mean([[p for _, p, _ in pair] for pair in auto_augment._POLICY])
    np.testing.assert_allclose(np.mean(policy.codes == Code.IDENTITY), expected, atol=0.02)


def test_color_jitter_is_torchvisions() -> None:
    sampled = sample(color_jitter=(0.4, 0.0, 1.5, 0.1))
    for code, low, high in ((Code.BRIGHTNESS, 0.6, 1.4), (Code.COLOR, 0.0, 2.5), (15, -0.1, 0.1)):
        values = sampled.magnitudes[sampled.codes == code]
        assert len(values) == 6000
        np.testing.assert_allclose([values.min(), values.max()], [low, high], atol=0.01)
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.03)
    assert (np.sort(sampled.codes, axis=1) == [0, Code.BRIGHTNESS, Code.COLOR, Code.HUE]).all()
    orders, counts = np.unique(sampled.codes, axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 180


def one_step(config: Config, loader: Any, *, num_workers: int = 0) -> Batch:
    config = change(config, loader=loader)
    index = open_split(config)
    split = BatchSplit(min(len(index), 24), 1, 1)
    (batch,) = train_batches(config, index, split, (0, 1), num_workers=num_workers, seed=3)
    return batch


@pytest.mark.parametrize("crop", ["random_resized", "pad_reflect"])
@pytest.mark.parametrize("changes", [{"auto_augment": "ra"}, {"color_jitter": (0.4,) * 4}])
def test_both_loaders_do_the_same(config: Config, crop: Any, changes: dict[str, Any]) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    plain = change(config, crop=crop)
    config = change(plain, **changes)
    dali, torch_ = one_step(config, "dali"), one_step(config, "torch")
    assert torch.equal(torch_.images, one_step(config, "torch", num_workers=1).images)
    scale = 255 * torch.tensor(config.data.std).view(3, 1, 1)
    difference = ((dali.images - torch_.images) * scale).abs()
    assert difference.mean() <= LOADERS_BOUND, difference.mean()
    assert ((one_step(plain, "torch").images - torch_.images) * scale).abs().mean() > 5
