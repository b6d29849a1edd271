"""Operations on decoded images: what RandAugment and its kin do to uint8 pixels.

`apply_each` calls torchvision's functionals image by image, for processors. `apply_batched` does
the same to a whole batch with a few kernels for each kind of operation, for GPUs, where a launch
costs more than the arithmetic; it never waits for the device. Geometric operations are bilinear.
Choices are made elsewhere: see `resnet_dist.data.augment.auto_augment`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from resnet_dist.data.augment.augmix import CHAINS, DEPTH
from resnet_dist.data.augment.codes import Code, inverse_matrices
from resnet_dist.data.batch import Operations
from resnet_dist.data.read.buffers import to_device

_GRAY = (0.2989, 0.587, 0.114)  # torchvision's weights of R, G, B
_SOLARIZE_ADD_BELOW = 128


def apply_each(images: Tensor, operations: Operations) -> None:
    """Apply to `[n, S, S, 3]` uint8 in place, one image after the other."""
    fill = list(operations.fill) if any(operations.fill) else None
    for row, (image, codes, magnitudes) in enumerate(
        zip(images, operations.codes.tolist(), operations.magnitudes.tolist(), strict=True)
    ):
        if not any(codes):
            continue
        result, slots = image.permute(2, 0, 1), list(zip(codes, magnitudes, strict=True))
        if operations.chains is not None:
            result = _mix_chains(result, slots, operations.chains[row].tolist())
            slots = slots[CHAINS * DEPTH :]
        for code, magnitude in slots:
            result = apply_one(result, code, magnitude, fill)
        image.copy_(result.permute(1, 2, 0))


def _mix_chains(image: Tensor, slots: list[tuple[int, float]], weights: list[float]) -> Tensor:
    """AugMix: the image and the end of each chain of operations on it, added up by weight."""
    mixed = image * weights[0]
    for chain, weight in enumerate(weights[1:]):
        result = image
        for code, magnitude in slots[chain * DEPTH : (chain + 1) * DEPTH]:
            result = apply_one(result, code, magnitude)
        mixed += result * weight
    return _to_uint8(mixed)


def apply_one(image: Tensor, code: int, magnitude: float, fill: list[int] | None = None) -> Tensor:
    """`[3, S, S]` uint8 as torchvision's own transforms change it. `fill`: the colour that comes in
    at the borders; None: black."""
    match code:
        case Code.SHEAR_X | Code.SHEAR_Y | Code.TRANSLATE_X | Code.TRANSLATE_Y:
            degrees = math.degrees(math.atan(magnitude))
            is_shear = code in (Code.SHEAR_X, Code.SHEAR_Y)
            is_x = code in (Code.SHEAR_X, Code.TRANSLATE_X)
            by = degrees if is_shear else int(magnitude)
            along = [by, 0] if is_x else [0, by]
            return tvf.affine(  # type: ignore[no-any-return]
                image,
                angle=0.0,
                translate=[0, 0] if is_shear else along,
                scale=1.0,
                shear=along if is_shear else [0.0, 0.0],
                interpolation=InterpolationMode.BILINEAR,
                fill=fill,
                center=[0, 0] if is_shear else None,
            )
        case Code.ROTATE:
            return tvf.rotate(  # type: ignore[no-any-return]
                image, angle=magnitude, interpolation=InterpolationMode.BILINEAR, fill=fill
            )
        case Code.POSTERIZE:
            return tvf.posterize(image, bits=int(magnitude))  # type: ignore[no-any-return]
        case Code.IDENTITY:
            return image
        case Code.SHARPNESS:  # the same to the bit; torchvision's grouped convolution: 15 times
            return _sharpness(image[None], _NO_CODES, np.array([magnitude]))[0]
        case Code.AUTO_CONTRAST:  # packed: torch finds the extremes five times as fast
            return tvf.autocontrast(image.contiguous())  # type: ignore[no-any-return]
        case Code.SOLARIZE_ADD:
            return _solarize_add(image[None], _NO_CODES, np.array([magnitude]))[0]
        case Code.ADD_RED | Code.ADD_GREEN | Code.ADD_BLUE:
            return _add_to_channel(image[None], np.array([code]), np.array([magnitude]))[0]
        case _ if code in _PLAIN:
            return _PLAIN[code](image)
        case _:
            return _WITH_FACTOR[code](image, magnitude)


_NO_CODES: NDArray[np.int8] = np.zeros(0, dtype=np.int8)
_PLAIN: dict[int, Callable[[Tensor], Tensor]] = {
    Code.EQUALIZE: tvf.equalize,
    Code.INVERT: tvf.invert,
}
_WITH_FACTOR: dict[int, Callable[[Tensor, float], Tensor]] = {
    Code.BRIGHTNESS: tvf.adjust_brightness,
    Code.COLOR: tvf.adjust_saturation,
    Code.CONTRAST: tvf.adjust_contrast,
    Code.SOLARIZE: tvf.solarize,
    Code.HUE: tvf.adjust_hue,
}


def apply_batched(images: Tensor, operations: Operations) -> Tensor:
    """Apply to `[n, S, S, 3]` uint8 on any device; returns the same shape, not the same memory."""
    slots = list(zip(operations.codes.T, operations.magnitudes.T, strict=True))
    if operations.chains is None:
        images = images.clone()
    else:
        images = _mix_chains_batched(images, slots, operations.chains)
        slots = slots[CHAINS * DEPTH :]
    for codes, magnitudes in slots:
        _apply_slot(images, codes, magnitudes, operations.fill)
    return images


Slot = tuple[NDArray[np.int8], NDArray[np.float64]]


def _mix_chains_batched(images: Tensor, slots: list[Slot], chains: NDArray[np.float32]) -> Tensor:
    weights = to_device(chains, images.device)[:, :, None, None, None]
    mixed = images * weights[:, 0]
    for chain in range(CHAINS):
        result = images.clone()
        for codes, magnitudes in slots[chain * DEPTH : (chain + 1) * DEPTH]:
            _apply_slot(result, codes, magnitudes, (0, 0, 0))
        mixed += result * weights[:, chain + 1]
    return _to_uint8(mixed)


def _apply_slot(
    images: Tensor,
    codes: NDArray[np.int8],
    magnitudes: NDArray[np.float64],
    fill: tuple[int, int, int],
) -> None:
    """One operation per image, `codes` and `magnitudes` `[n]`, in place."""
    is_geometric = (codes >= Code.SHEAR_X) & (codes <= Code.ROTATE)
    groups: list[tuple[Kernel, NDArray[np.bool_]]] = [(partial(_warp, fill=fill), is_geometric)]
    groups += [(kernel, codes == code) for code, kernel in _KERNELS.items()]
    groups.append((_add_to_channel, (codes >= Code.ADD_RED) & (codes <= Code.ADD_BLUE)))
    for kernel, is_member in groups:
        rows = np.flatnonzero(is_member)
        if len(rows):
            at = to_device(rows, images.device)
            before = images[at].permute(0, 3, 1, 2)
            after = kernel(before, codes[rows], magnitudes[rows])
            images[at] = after.permute(0, 2, 3, 1)


Kernel = Callable[[Tensor, NDArray[np.int8], NDArray[np.float64]], Tensor]
"""`[m, 3, S, S]` uint8, codes `[m]`, magnitudes `[m]` to `[m, 3, S, S]` uint8."""


def _column(values: NDArray[np.float64], device: torch.device) -> Tensor:
    return to_device(values.astype(np.float32), device)[:, None, None, None]


def _to_uint8(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _blend(images: Tensor, others: Tensor, factors: NDArray[np.float64]) -> Tensor:
    """images * factor + others * (1 - factor), `factors` `[m]`."""
    device = images.device
    mixed = images * _column(factors, device) + others * _column(1.0 - factors, device)
    return _to_uint8(mixed)


def _warp(
    images: Tensor,
    codes: NDArray[np.int8],
    magnitudes: NDArray[np.float64],
    *,
    fill: tuple[int, int, int],
) -> Tensor:
    size = images.shape[-1]
    device = images.device
    theta = to_device(inverse_matrices(codes, magnitudes, size).astype(np.float32), device)
    offsets = torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2
    x, y = offsets[None, None, :], offsets[None, :, None]
    # Sums of products, not a matrix product: TF32 would move the samples by a tenth of a pixel.
    sources = [
        theta[:, axis, 0, None, None] * x
        + theta[:, axis, 1, None, None] * y
        + theta[:, axis, 2, None, None]
        for axis in (0, 1)
    ]
    grid = torch.stack(sources, dim=-1) / (0.5 * size)
    warped = _sample(images.float(), grid)
    if any(fill):  # as torchvision blends it in
        inside = _sample(torch.ones_like(images[:, :1], dtype=torch.float32), grid)
        colour = to_device(np.array(fill, np.float32), device)[:, None, None]
        warped = (warped - colour) * inside + colour
    return _to_uint8(warped.round_())


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def _gray(images: Tensor) -> Tensor:
    """`[m, 1, S, S]` float32, whole numbers."""
    red, green, blue = images.float().unbind(dim=1)
    return (red * _GRAY[0] + green * _GRAY[1] + blue * _GRAY[2]).floor_()[:, None]


def _brightness(images: Tensor, _: NDArray[np.int8], factors: NDArray[np.float64]) -> Tensor:
    return _to_uint8(images * _column(factors, images.device))


def _saturation(images: Tensor, _: NDArray[np.int8], factors: NDArray[np.float64]) -> Tensor:
    return _blend(images, _gray(images), factors)


def _contrast(images: Tensor, _: NDArray[np.int8], factors: NDArray[np.float64]) -> Tensor:
    return _blend(images, _gray(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def _sharpness(images: Tensor, _: NDArray[np.int8], factors: NDArray[np.float64]) -> Tensor:
    """Blend with a blurred image (3x3: ones around a five), but for the border."""
    if images.shape[-1] <= 2:
        return images
    sharp = images.float()
    rows = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = sharp[..., 1:-1, 1:-1]
    blurred = ((sums + 4 * inner) / 13).round_()
    inner += (blurred - inner) * _column(1.0 - factors, images.device)
    return _to_uint8(sharp)


def _posterize(images: Tensor, _: NDArray[np.int8], bits: NDArray[np.float64]) -> Tensor:
    masks = (255 << (8 - bits.astype(np.int64)) & 255).astype(np.uint8)
    return images & to_device(masks, images.device)[:, None, None, None]


def _solarize(images: Tensor, _: NDArray[np.int8], thresholds: NDArray[np.float64]) -> Tensor:
    return torch.where(images >= _column(thresholds, images.device), ~images, images)


def _solarize_add(images: Tensor, _: NDArray[np.int8], added: NDArray[np.float64]) -> Tensor:
    brighter = _to_uint8(images + _column(added, images.device))
    return torch.where(images < _SOLARIZE_ADD_BELOW, brighter, images)


def _add_to_channel(images: Tensor, codes: NDArray[np.int8], added: NDArray[np.float64]) -> Tensor:
    all_added = np.zeros((len(codes), 3), np.float32)
    all_added[np.arange(len(codes)), codes - Code.ADD_RED] = added
    return _to_uint8(images + to_device(all_added, images.device)[:, :, None, None])


def _auto_contrast(images: Tensor, _: NDArray[np.int8], __: NDArray[np.float64]) -> Tensor:
    values = images.float()
    low, high = values.amin(dim=(2, 3), keepdim=True), values.amax(dim=(2, 3), keepdim=True)
    is_flat = high == low
    scale = torch.where(is_flat, 1.0, (high - low) * (1.0 / 255))
    return _to_uint8((values - torch.where(is_flat, 0.0, low)) / scale)


def _equalize(images: Tensor, _: NDArray[np.int8], __: NDArray[np.float64]) -> Tensor:
    """Pillow's ImageOps.equalize. The cumulative histogram comes from a sort: no atomic additions,
    which torch's deterministic mode refuses on GPUs."""
    flat = images.flatten(start_dim=2).contiguous()
    ordered = flat.sort(dim=2).values
    levels = torch.arange(256, device=images.device, dtype=torch.uint8)
    levels = levels.expand(*flat.shape[:2], 256).contiguous()
    below = torch.searchsorted(ordered, levels)  # pixels darker than each level
    darker_than_brightest = torch.searchsorted(ordered, ordered[..., -1:].contiguous())
    step = darker_than_brightest // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255).to(torch.uint8)
    table = torch.where(step == 0, levels, table)
    return table.gather(2, flat.long()).view_as(images)


def _invert(images: Tensor, _: NDArray[np.int8], __: NDArray[np.float64]) -> Tensor:
    return ~images


def _hue(images: Tensor, _: NDArray[np.int8], turns: NDArray[np.float64]) -> Tensor:
    """To HSV, turn, and back, as torchvision's `adjust_hue`."""
    red, green, blue = (images.float() / 255).unbind(dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    hue = torch.where(chroma == 0, 0.0, hue) + 6.0 * _column(turns, images.device)[:, 0]
    # Each channel is value - chroma * (a trapezium of the hue): Smith 1978, in closed form.
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (hue + offset).remainder(6.0)
        channels.append(value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0))
    return (torch.stack(channels, dim=1) * (256.0 - 1e-3)).to(torch.uint8)


_KERNELS: dict[Code, Kernel] = {
    Code.BRIGHTNESS: _brightness,
    Code.COLOR: _saturation,
    Code.CONTRAST: _contrast,
    Code.SHARPNESS: _sharpness,
    Code.POSTERIZE: _posterize,
    Code.SOLARIZE: _solarize,
    Code.SOLARIZE_ADD: _solarize_add,
    Code.AUTO_CONTRAST: _auto_contrast,
    Code.EQUALIZE: _equalize,
    Code.INVERT: _invert,
    Code.HUE: _hue,
}
