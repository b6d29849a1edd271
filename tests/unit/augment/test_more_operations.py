"""timm's RandAugment, AugMix, lighting and ColOut: choices and pixels against their sources."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_augment
from torchvision.transforms import v2

from resnet_dist.config import AugmentConfig, DataConfig
from resnet_dist.data.augment import augmix, auto_augment, colout, pixel_ops
from resnet_dist.data.augment.codes import FACTORS, Code
from resnet_dist.data.batch import Operations
from resnet_dist.errors import UserError

MEAN = (124, 116, 104)
TIMM = {
    Code.AUTO_CONTRAST: "AutoContrast",
    Code.EQUALIZE: "Equalize",
    Code.INVERT: "Invert",
    Code.ROTATE: "Rotate",
    Code.POSTERIZE: "PosterizeIncreasing",
    Code.SOLARIZE: "SolarizeIncreasing",
    Code.SOLARIZE_ADD: "SolarizeAdd",
    Code.COLOR: "ColorIncreasing",
    Code.CONTRAST: "ContrastIncreasing",
    Code.BRIGHTNESS: "BrightnessIncreasing",
    Code.SHARPNESS: "SharpnessIncreasing",
    Code.SHEAR_X: "ShearX",
    Code.SHEAR_Y: "ShearY",
    Code.TRANSLATE_X: "TranslateXRel",
    Code.TRANSLATE_Y: "TranslateYRel",
}
GEOMETRIC = range(Code.SHEAR_X, Code.ROTATE + 1)


def sample(num: int = 4000, start: int = 0, size: int = 160, **changes: Any) -> Operations:
    augment = AugmentConfig(**changes)
    found = auto_augment.sample_operations(
        augment, num, seed=5, epoch=2, start=start, size=size, mean=MEAN
    )
    assert found is not None
    return found


def timm(**changes: Any) -> dict[str, Any]:
    return {"auto_augment": "ra_timm", "ra_magnitude": 6, "ra_magnitude_std": 0.5, **changes}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """`[40, 96, 96, 3]` uint8: smooth coloured noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(40, 3, 12, 12, generator=generator)
    smooth = torch.nn.functional.interpolate(noise, (96, 96), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def test_the_list_is_timms_increasing_one() -> None:
    assert set(TIMM.values()) == set(timm_augment._RAND_INCREASING_TRANSFORMS)
    found = sample(**timm(ra_probability=1.0))
    assert {Code(code) for code in np.unique(found.codes)} == set(TIMM)


@pytest.mark.parametrize("magnitude", [0, 3, 6, 7, 9, 10])
def test_strengths_are_timms(magnitude: int) -> None:
    found = sample(**timm(ra_probability=1.0, ra_magnitude_std=0.0, ra_magnitude=magnitude))
    for code, name in TIMM.items():
        mine = np.unique(found.magnitudes[found.codes == code])
        level_of = timm_augment.LEVEL_TO_ARG[name]
        if level_of is None:
            continue
        theirs = np.unique([level_of(magnitude, {})[0] for _ in range(40)])
        if code in (Code.TRANSLATE_X, Code.TRANSLATE_Y):
            theirs = np.unique(np.rint(theirs * 160))
        np.testing.assert_allclose(np.unique(np.abs(mine)), np.unique(np.abs(theirs)), atol=1e-12)
        if code in FACTORS or code in GEOMETRIC:
            np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_how_often_and_how_much_they_vary() -> None:
    found = sample(20000, **timm())
    assert np.mean(found.codes != Code.IDENTITY) == pytest.approx(0.5, abs=0.01)
    untouched = np.mean((found.codes == Code.IDENTITY).all(axis=1))
    assert untouched == pytest.approx(0.25, abs=0.01)
    angles = np.abs(found.magnitudes[found.codes == Code.ROTATE]) / 3.0
    assert angles.mean() == pytest.approx(6.0, abs=0.05)
    assert angles.std() == pytest.approx(0.5, abs=0.03)


def test_images_change_as_much_as_timm_changes_them(images: torch.Tensor) -> None:
    theirs = timm_augment.rand_augment_transform(
        "rand-m6-mstd0.5-inc1", {"img_mean": MEAN, "translate_pct": 0.45}
    )
    random.seed(1)
    np.random.seed(1)
    many = images.repeat(25, 1, 1, 1)
    changed = [np.asarray(theirs(Image.fromarray(image.numpy()))) for image in many]
    expected = (torch.from_numpy(np.stack(changed)).int() - many.int()).abs().float()
    found = many.clone()
    pixel_ops.apply_each(found, sample(len(many), size=96, **timm()))
    mine = (found.int() - many.int()).abs().float()
    assert float(mine.mean()) == pytest.approx(float(expected.mean()), rel=0.08)
    share = [float((one.flatten(1).amax(1) == 0).float().mean()) for one in (mine, expected)]
    assert share[0] == pytest.approx(share[1], abs=0.05)


@pytest.mark.parametrize("code", list(TIMM))
def test_pixels_are_timms_but_for_interpolation(images: torch.Tensor, code: Code) -> None:
    strong = sample(4000, size=96, **timm(ra_probability=1.0, ra_magnitude_std=0.0))
    magnitude = float(strong.magnitudes[strong.codes == code][0])
    shape = (len(images), 1)
    chosen = Operations(np.full(shape, code, np.int8), np.full(shape, magnitude), fill=MEAN)
    mine = images.clone()
    pixel_ops.apply_each(mine, chosen)
    operation = timm_augment.NAME_TO_OP[TIMM[code]]
    given = magnitude / 96 if code in (Code.TRANSLATE_X, Code.TRANSLATE_Y) else magnitude
    given = -given if code in (Code.TRANSLATE_X, Code.TRANSLATE_Y) else given
    argument = int(given) if code in (Code.POSTERIZE, Code.SOLARIZE, Code.SOLARIZE_ADD) else given
    kwargs: dict[str, Any] = {"fillcolor": MEAN, "resample": Image.Resampling.BILINEAR}
    plain = timm_augment.LEVEL_TO_ARG[TIMM[code]] is None
    theirs = torch.stack(
        [
            torch.from_numpy(
                np.array(
                    operation(
                        Image.fromarray(one.numpy()), *([] if plain else [argument]), **kwargs
                    )
                )
            )
            for one in images
        ]
    )
    difference = (mine.int() - theirs.int()).abs().float()
    # Half a pixel at the borders and in the shears (theirs go from pixels' corners), and rounding.
    assert float(difference.mean()) < (3.0 if code in GEOMETRIC else 0.6)
    batched = (pixel_ops.apply_batched(images, chosen).int() - mine.int()).abs().float()
    assert float(batched.mean()) <= 0.02


def test_augmix_is_torchvisions(images: torch.Tensor) -> None:
    found = sample(3000, size=96, auto_augment="augmix")
    assert found.chains is not None
    np.testing.assert_allclose(found.chains.sum(axis=1), 1.0, atol=1e-6)
    # Dirichlet(1, 1, 1) times Beta(1, 1): the image itself has half of the weight on average.
    np.testing.assert_allclose(found.chains.mean(axis=0), [0.5, *[1 / 6] * 3], atol=0.02)
    lengths = (found.codes != Code.IDENTITY).reshape(-1, augmix.CHAINS, augmix.DEPTH).sum(2)
    np.testing.assert_allclose(np.bincount(lengths.ravel())[1:], 3000, rtol=0.1)
    theirs = v2.AugMix(interpolation=v2.InterpolationMode.BILINEAR)
    torch.manual_seed(0)
    many = images.repeat(10, 1, 1, 1)
    changed = torch.stack([theirs(one.permute(2, 0, 1)).permute(1, 2, 0) for one in many])
    expected = (changed.int() - many.int()).abs().float().mean()
    mine = many.clone()
    pixel_ops.apply_each(mine, sample(len(many), size=96, auto_augment="augmix"))
    assert float((mine.int() - many.int()).abs().float().mean()) == pytest.approx(
        float(expected), rel=0.1
    )


@pytest.mark.parametrize(
    "changes",
    [
        timm(),
        {"auto_augment": "augmix"},
        {"lighting": 0.1},
        {"auto_augment": "augmix", "lighting": 0.1, "color_jitter": (0.4, 0.4, 0.4, 0.0)},
    ],
)
def test_a_gpu_does_the_same(images: torch.Tensor, changes: dict[str, Any]) -> None:
    chosen = sample(len(images), size=96, **changes)
    each = images.clone()
    pixel_ops.apply_each(each, chosen)
    difference = (pixel_ops.apply_batched(images, chosen).int() - each.int()).abs().float()
    assert float(difference.mean()) <= 0.1


@pytest.mark.parametrize("changes", [timm(), {"auto_augment": "augmix"}, {"lighting": 0.1}])
def test_only_the_position_decides(changes: dict[str, Any]) -> None:
    whole, part = sample(50, **changes), sample(20, start=30, **changes)
    assert np.array_equal(whole.codes[30:], part.codes)
    assert np.array_equal(whole.magnitudes[30:], part.magnitudes)
    if whole.chains is not None and part.chains is not None:
        assert np.array_equal(whole.chains[30:], part.chains)


def test_lighting_has_the_deviation_of_its_source() -> None:
    found = sample(20000, lighting=0.1)
    assert found.codes.shape[1] == 3
    values = np.array([55.46, 4.794, 1.148])
    vectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    expected = 0.1 * np.sqrt(((vectors * values) ** 2).sum(axis=1))
    np.testing.assert_allclose(found.magnitudes.std(axis=0), expected, rtol=0.05)


def test_colout_keeps_lines_in_order(images: torch.Tensor) -> None:
    where = {"seed": 1, "epoch": 0, "size": 96}
    assert colout.sample_lines(0.0, batch=0, **where) is None
    lines = colout.sample_lines(0.15, batch=3, **where)
    assert lines is not None
    assert lines.shape == (2, 81)
    assert (np.diff(lines, axis=1) > 0).all()
    other = colout.sample_lines(0.15, batch=4, **where)
    assert not np.array_equal(lines, other)
    tensors = images.permute(0, 3, 1, 2).float()
    found = colout.keep_lines(tensors, np.broadcast_to(lines, (len(images), 2, 81)))
    rows, columns = torch.from_numpy(lines)
    assert torch.equal(found, tensors[:, :, rows][:, :, :, columns])
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_augment": "ra", "ra_magnitude": 9.5},
        {"auto_augment": "ra_timm", "ra_magnitude": 18},
    ],
)
def test_strengths_of_the_other_scale_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"augment\.ra_magnitude"):
        AugmentConfig(**changes)


def test_the_mean_colour_is_whole() -> None:
    assert DataConfig().mean_colour == MEAN
