"""The operators on NVIDIA GPUs: how the kernels of `batch_norm_kernels` are launched.

Same functions, shapes and meaning as in `batch_norm_twins`. Reductions over the M = N * H * W rows
take two launches: programs side by side reduce parts of the rows, then `merge`, `finish` or a sum
puts the parts together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from resnet_dist.performance.kernels import batch_norm_kernels as kernels
from resnet_dist.performance.kernels import pool_kernels


@dataclass(frozen=True)
class Tiling:
    """How a pass over an activation is cut up. Found by thought, not yet by measurement."""

    rows: int = 32
    """Rows of a tile (a power of 2)."""
    channels: int = 128
    """Most channels of a tile (a power of 2); 64 are one memory line of 16-bit values."""
    warps: int = 4
    """Warps of a program: with 4 a thread has 32 values of each tensor, four reads of 16 bytes."""
    programs: int = 2
    """Programs for each multiprocessor in a reduction: each adds a row for `merge` to read."""


MAP = Tiling()
"""For passes that write a result for each value."""
REDUCE = Tiling(rows=64, channels=64, warps=8)
"""For passes that sum over rows. 64 lines of memory in flight, and fewer than 100 registers."""

POOL = Tiling(rows=16, channels=64)
"""For passes over the max-pool, whose inputs are read more than once, mostly from caches."""


def moments(x: Tensor) -> Tensor:
    """Moments of each part of the batch, one row for each."""
    rows, channels = _size(x)
    tile, parts, rows_each = _cut(x, REDUCE)
    result = x.new_empty(parts, 2 * channels + 1, dtype=torch.float32)
    grid = (parts, triton.cdiv(channels, tile.channels))
    kernels.batch_norm_moments_kernel[grid](
        x, result, rows, channels, rows_each, tile.rows, tile.channels, num_warps=tile.warps
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
        parts, result, *running, parts.shape[0], channels, *numbers, finishes, 64, block
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
    tile = _fit(MAP, channels)
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
        num_warps=tile.warps,
    )
    return result, signs


def backward_sums(
    grad: Tensor, other: Tensor | None, signs: Tensor, x: Tensor, statistics: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """Sums of the backward pass over the batch."""
    rows, channels = _size(x)
    tile, parts, rows_each = _cut(x, REDUCE)
    kept = torch.empty_like(x) if keep else x.new_empty(0)
    sums = x.new_empty(parts, 2 * channels, dtype=torch.float32)
    grid = (parts, triton.cdiv(channels, tile.channels))
    kernels.batch_norm_backward_sums_kernel[grid](
        grad,
        grad if other is None else other,
        signs,
        x,
        statistics,
        kept,
        sums,
        rows,
        channels,
        rows_each,
        other is not None,
        signs.numel() > 0,
        keep,
        tile.rows,
        tile.channels,
        num_warps=tile.warps,
    )
    return sums.sum(dim=0), kept


def backward_apply(
    grad: Tensor, signs: Tensor, x: Tensor, statistics: Tensor, weight: Tensor, sums: Tensor
) -> Tensor:
    """Gradient of batch norm's input."""
    rows, channels = _size(x)
    tile = _fit(MAP, channels)
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
        num_warps=tile.warps,
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
    tile = _fit(POOL, channels)
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
        num_warps=tile.warps,
    )
    return result, winners


def backward_sums_pool(grad: Tensor, winners: Tensor, x: Tensor, statistics: Tensor) -> Tensor:
    """Sums of the backward pass, through the pool."""
    rows, channels = _size(x)
    tile, parts, rows_each = _cut(x, POOL)
    sums = x.new_empty(parts, 2 * channels, dtype=torch.float32)
    pool_kernels.batch_norm_backward_sums_pool_kernel[
        (parts, triton.cdiv(channels, tile.channels))
    ](
        grad,
        winners,
        x,
        statistics,
        sums,
        rows,
        rows_each,
        *x.shape[2:],
        *grad.shape[2:],
        channels,
        tile.rows,
        tile.channels,
        num_warps=tile.warps,
    )
    return sums.sum(dim=0)


def backward_apply_pool(
    grad: Tensor, winners: Tensor, x: Tensor, statistics: Tensor, weight: Tensor, sums: Tensor
) -> Tensor:
    """Gradient of batch norm's input, through the pool."""
    rows, channels = _size(x)
    tile = _fit(POOL, channels)
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
        num_warps=tile.warps,
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


def _tiles(rows: int, channels: int, tile: Tiling) -> tuple[int, int]:
    return max(triton.cdiv(rows, tile.rows), 1), triton.cdiv(channels, tile.channels)


def _cut(x: Tensor, tiling: Tiling) -> tuple[Tiling, int, int]:
    """Tile, number of parts, and rows of each part (a multiple of the tile's) of a reduction."""
    rows, channels = _size(x)
    tile = _fit(tiling, channels)
    wanted = tile.programs * _multiprocessors(x) // triton.cdiv(channels, tile.channels)
    tiles = max(triton.cdiv(rows, tile.rows), 1)
    each = triton.cdiv(tiles, max(wanted, 1))
    return tile, triton.cdiv(tiles, each), each * tile.rows


def _multiprocessors(x: Tensor) -> int:
    if not x.is_cuda:
        return 1  # under Triton's interpreter
    return torch.cuda.get_device_properties(x.device).multi_processor_count
