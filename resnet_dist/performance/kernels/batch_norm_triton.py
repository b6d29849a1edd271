"""The operators on NVIDIA GPUs: how the kernels of `batch_norm_kernels` are launched.

Same functions, shapes and meaning as in `batch_norm_twins`. Reductions over the M = N * H * W rows
take two launches: programs side by side reduce parts of the rows, then `merge`, `finish` or a sum
puts the parts together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from resnet_dist.performance.kernels import batch_norm_kernels as kernels
from resnet_dist.performance.kernels import pool_kernels


@dataclass(frozen=True)
class Tiling:
    """How a pass over an activation is cut up."""

    rows: int
    """Rows of a tile (a power of 2)."""
    channels: int
    """Most channels of a tile (a power of 2); 64 are one memory line of 16-bit values."""
    warps: int
    """Warps of a program."""
    programs: int = 1
    """Programs for each multiprocessor in a reduction: each adds a row for `merge` to read."""


TILINGS = {
    "moments": Tiling(32, 128, warps=4, programs=4),
    "apply": Tiling(16, 128, warps=4),
    "backward_sums": Tiling(32, 64, warps=8, programs=4),
    "backward_apply": Tiling(16, 128, warps=4),
    "apply_pool": Tiling(16, 64, warps=4),
    "backward_sums_pool": Tiling(128, 64, warps=8),
    "backward_apply_pool": Tiling(8, 256, warps=4),
}
"""The fastest of each operator on an H200 for ResNet-50 in bfloat16, by
`benchmarks/kernel_tiles.py`."""

PARTS_AT_ONCE = 256
"""Rows of parts that `merge` and `finish` read at once."""


def moments(x: Tensor) -> Tensor:
    """Moments of each part of the batch, one row for each."""
    rows, channels = _size(x)
    tile, parts = _cut(x, TILINGS["moments"])
    result = x.new_empty(parts, 2 * channels + 1, dtype=torch.float32)
    kernels.batch_norm_moments_kernel[_grid(parts, channels, tile)](
        x, result, rows, channels, tile.rows, tile.channels, **_options(tile)
    )
    return result


def merge(parts: Tensor) -> Tensor:
    """Moments of all parts together."""
    channels = parts.shape[1] // 2
    result = parts.new_empty(1, 2 * channels + 1)
    # No running statistics and no eps: the pointers are not used.
    _launch_merge(parts, result, (result, result), (0.0, 0.0), finishes=False)
    return result


def finish(
    parts: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> Tensor:
    """Statistics from moments; moves the running ones."""
    result = parts.new_empty(parts.shape[1])
    _launch_merge(parts, result, (running_mean, running_var), (momentum, eps), finishes=True)
    return result


def _launch_merge(
    parts: Tensor,
    result: Tensor,
    running: tuple[Tensor, Tensor],
    numbers: tuple[float, float],
    *,
    finishes: bool,
) -> None:
    channels = parts.shape[1] // 2
    block = min(16, triton.next_power_of_2(channels))
    kernels.batch_norm_merge_kernel[(triton.cdiv(channels, block),)](
        parts,
        result,
        *running,
        parts.shape[0],
        channels,
        *numbers,
        finishes,
        PARTS_AT_ONCE,
        block,
        enable_fp_fusion=True,
    )


def apply(
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """Normalise, add, ReLU, and pack which values passed."""
    rows, channels = _size(x)
    tile = _fit(TILINGS["apply"], channels)
    result = torch.empty_like(x)
    signs = x.new_empty((rows, channels // 8) if relu else (0,), dtype=torch.uint8)
    kernels.batch_norm_apply_kernel[_tiles(rows, channels, tile)](
        x,
        x if residual is None else residual,
        result,
        signs,
        statistics,
        weight,
        bias,
        rows,
        channels,
        residual is not None,
        relu,
        tile.rows,
        tile.channels,
        **_options(tile),
    )
    return result, signs


def backward_sums(
    grad: Tensor, other: Tensor | None, signs: Tensor, x: Tensor, statistics: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """Sums of the backward pass over the batch."""
    rows, channels = _size(x)
    tile, parts = _cut(x, TILINGS["backward_sums"])
    kept = torch.empty_like(x) if keep else x.new_empty(0)
    sums = x.new_empty(parts, 2 * channels, dtype=torch.float32)
    kernels.batch_norm_backward_sums_kernel[_grid(parts, channels, tile)](
        grad,
        grad if other is None else other,
        signs,
        x,
        statistics,
        kept,
        sums,
        rows,
        channels,
        other is not None,
        signs.numel() > 0,
        keep,
        tile.rows,
        tile.channels,
        **_options(tile),
    )
    return sums.sum(dim=0), kept


def backward_apply(
    grad: Tensor, signs: Tensor, x: Tensor, statistics: Tensor, weight: Tensor, sums: Tensor
) -> Tensor:
    """Gradient of batch norm's input."""
    rows, channels = _size(x)
    tile = _fit(TILINGS["backward_apply"], channels)
    result = torch.empty_like(x)
    kernels.batch_norm_backward_apply_kernel[_tiles(rows, channels, tile)](
        grad,
        signs,
        x,
        statistics,
        weight,
        sums,
        result,
        rows,
        channels,
        signs.numel() > 0,
        tile.rows,
        tile.channels,
        **_options(tile),
    )
    return result


def apply_pool(
    x: Tensor, statistics: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Normalise, ReLU, pool, and which input won."""
    n, channels, height, width = x.shape
    pooled_height, pooled_width = (height + 1) // 2, (width + 1) // 2
    result = torch.empty(
        (n, channels, pooled_height, pooled_width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    rows, _ = _size(result)
    winners = x.new_empty((rows, channels), dtype=torch.uint8)
    tile = _fit(TILINGS["apply_pool"], channels)
    pool_kernels.batch_norm_apply_pool_kernel[_tiles(rows, channels, tile)](
        x,
        result,
        winners,
        statistics,
        weight,
        bias,
        rows,
        height,
        width,
        pooled_height,
        pooled_width,
        channels,
        tile.rows,
        tile.channels,
        **_options(tile),
    )
    return result, winners


def backward_sums_pool(grad: Tensor, winners: Tensor, x: Tensor, statistics: Tensor) -> Tensor:
    """Sums of the backward pass, through the pool."""
    rows, channels = _size(x)
    tile, parts = _cut(x, TILINGS["backward_sums_pool"])
    sums = x.new_empty(parts, 2 * channels, dtype=torch.float32)
    pool_kernels.batch_norm_backward_sums_pool_kernel[_grid(parts, channels, tile)](
        grad,
        winners,
        x,
        statistics,
        sums,
        rows,
        *x.shape[2:],
        *grad.shape[2:],
        channels,
        tile.rows,
        tile.channels,
        **_options(tile),
    )
    return sums.sum(dim=0)


def backward_apply_pool(
    grad: Tensor, winners: Tensor, x: Tensor, statistics: Tensor, weight: Tensor, sums: Tensor
) -> Tensor:
    """Gradient of batch norm's input, through the pool."""
    rows, channels = _size(x)
    tile = _fit(TILINGS["backward_apply_pool"], channels)
    result = torch.empty_like(x)
    pool_kernels.batch_norm_backward_apply_pool_kernel[_tiles(rows, channels, tile)](
        grad,
        winners,
        x,
        statistics,
        weight,
        sums,
        result,
        rows,
        *x.shape[2:],
        *grad.shape[2:],
        channels,
        tile.rows,
        tile.channels,
        **_options(tile),
    )
    return result


def _size(x: Tensor) -> tuple[int, int]:
    """Rows and channels of an activation."""
    assert x.is_contiguous(memory_format=torch.channels_last), (x.shape, x.stride())
    channels = x.shape[1]
    return x.numel() // channels, channels


def _fit(tiling: Tiling, channels: int) -> Tiling:
    """The same number of values in a tile, but no more channels than there are."""
    width = min(tiling.channels, triton.next_power_of_2(channels))
    return Tiling(tiling.rows * tiling.channels // width, width, tiling.warps, tiling.programs)


def _tiles(rows: int, channels: int, tile: Tiling) -> tuple[int]:
    """A program for each tile."""
    return _grid(max(triton.cdiv(rows, tile.rows), 1), channels, tile)


def _grid(parts: int, channels: int, tile: Tiling) -> tuple[int]:
    """In one dimension, channels first: neighbours in memory are worked on at once."""
    return (parts * triton.cdiv(channels, tile.channels),)


def _options(tile: Tiling) -> dict[str, Any]:
    """Fused multiply-add is asked for by name: its default differs between versions of Triton."""
    return {"num_warps": tile.warps, "enable_fp_fusion": True}


def _cut(x: Tensor, tiling: Tiling) -> tuple[Tiling, int]:
    """Tile, and number of parts, of a reduction."""
    rows, channels = _size(x)
    tile = _fit(tiling, channels)
    wanted = tile.programs * _multiprocessors(x) // triton.cdiv(channels, tile.channels)
    return tile, min(max(wanted, 1), max(triton.cdiv(rows, tile.rows), 1))


def _multiprocessors(x: Tensor) -> int:
    if not x.is_cuda:
        return 1  # under Triton's interpreter
    return torch.cuda.get_device_properties(x.device).multi_processor_count
