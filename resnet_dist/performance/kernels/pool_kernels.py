"""Triton kernels for batch norm, ReLU and a 3 x 3 max-pool with stride 2 and padding 1, as in the
stem of ResNet, on channels-last activations.

The activation before the pool, the largest of the network, is read but never written: forward only
the pooled values and, in a byte each, where they come from; backward every value looks at the up to
four crop_boxes that it lies in. Neighbours read the same values again, which caches serve.

What is read and written is described in `batch_norm_twins`, whose results these must have.
"""

import triton
import triton.language as tl

from resnet_dist.performance.kernels.batch_norm_kernels import input_gradient, my_place, store_sums


@triton.jit
def batch_norm_apply_pool_kernel(
    x_ptr,
    result_ptr,
    winners_ptr,
    statistics_ptr,
    weight_ptr,
    bias_ptr,
    num_rows,
    height,
    width,
    pooled_height,
    pooled_width,
    C,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Normalise, ReLU, pool, and note which input won."""
    tile, _, _, channel = my_place(C, BLOCK_C)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_channel = channel < C
    is_row = row < num_rows
    pooled_column = row % pooled_width
    pooled_row = (row // pooled_width) % pooled_height
    image = row // (pooled_width * pooled_height)
    mean = tl.load(statistics_ptr + channel, mask=is_channel, other=0.0)[None, :]
    scale = tl.load(statistics_ptr + C + channel, mask=is_channel, other=0.0)
    scale = (scale * tl.load(weight_ptr + channel, mask=is_channel, other=0.0))[None, :]
    bias = tl.load(bias_ptr + channel, mask=is_channel, other=0.0)[None, :]
    best = tl.full((BLOCK_M, BLOCK_C), float("-inf"), tl.float32)
    winner = tl.full((BLOCK_M, BLOCK_C), 9, tl.int32)
    for place in tl.static_range(9):
        h = 2 * pooled_row - 1 + place // 3
        w = 2 * pooled_column - 1 + place % 3
        is_pixel = is_row & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        inside = is_pixel[:, None] & is_channel[None, :]
        at = ((image.to(tl.int64) * height + h) * width + w)[:, None] * C + channel[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.where(inside, (x - mean) * scale + bias, float("-inf"))
        # The first of equals wins, and a NaN wins for good, as in PyTorch.
        wins = (y > best) | (y != y)
        best = tl.where(wins, y, best)
        winner = tl.where(wins, place, winner)
    passed = (best <= 0.0) == 0
    best = tl.where(passed, best, 0.0)
    winner = tl.where(passed, winner, 9)
    inside = is_row[:, None] & is_channel[None, :]
    at = row.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(result_ptr + at, best.to(result_ptr.dtype.element_ty), mask=inside)
    tl.store(winners_ptr + at, winner.to(tl.uint8), mask=inside)


@triton.jit
def _unpooled(
    grad_ptr,
    winners_ptr,
    row,
    channel,
    inside,
    height,
    width,
    pooled_height,
    pooled_width,
    C,
):
    """The gradient of a tile of the pool's input: the sum over the crop_boxes that it won."""
    w = row % width
    h = (row // width) % height
    image = (row // (width * height)).to(tl.int64)
    g = tl.zeros((row.shape[0], channel.shape[0]), tl.float32)
    for i in tl.static_range(2):
        # Row h lies in window (h + 1) / 2, and if h is odd in the one before it too.
        pooled_row = (h + 1) // 2 - i
        place_row = h + 1 - 2 * pooled_row
        is_in_rows = (place_row <= 2) & (pooled_row >= 0) & (pooled_row < pooled_height)
        for j in tl.static_range(2):
            pooled_column = (w + 1) // 2 - j
            place_column = w + 1 - 2 * pooled_column
            is_in = (place_column <= 2) & (pooled_column >= 0) & (pooled_column < pooled_width)
            mask = inside & (is_in & is_in_rows)[:, None]
            pixel = (image * pooled_height + pooled_row) * pooled_width + pooled_column
            at = pixel[:, None] * C + channel[None, :]
            winner = tl.load(winners_ptr + at, mask=mask, other=9).to(tl.int32)
            mine = winner == (3 * place_row + place_column)[:, None]
            grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
            g += tl.where(mine, grad, 0.0)
    return g


@triton.jit
def batch_norm_backward_sums_pool_kernel(
    grad_ptr,
    winners_ptr,
    x_ptr,
    statistics_ptr,
    sums_ptr,
    num_rows,
    height,
    width,
    pooled_height,
    pooled_width,
    C,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One part's sums of one block of channels."""
    part, parts, _, channel = my_place(C, BLOCK_C)
    is_channel = channel < C
    tiles = tl.cdiv(num_rows, BLOCK_M)
    mean = tl.load(statistics_ptr + channel, mask=is_channel, other=0.0)
    sum_grad = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_product = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for tile in range(part, tiles, parts):
        row = (tiles - 1 - tile) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = (row < num_rows)[:, None] & is_channel[None, :]
        g = _unpooled(
            grad_ptr,
            winners_ptr,
            row,
            channel,
            inside,
            height,
            width,
            pooled_height,
            pooled_width,
            C,
        )
        at = row.to(tl.int64)[:, None] * C + channel[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        sum_grad += g
        sum_product += g * (x - mean[None, :])
    store_sums(sums_ptr, sum_grad, sum_product, statistics_ptr, part, channel, C)


@triton.jit
def batch_norm_backward_apply_pool_kernel(
    grad_ptr,
    winners_ptr,
    x_ptr,
    statistics_ptr,
    weight_ptr,
    sums_ptr,
    result_ptr,
    num_rows,
    height,
    width,
    pooled_height,
    pooled_width,
    C,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of batch norm's input."""
    tile, _, _, channel = my_place(C, BLOCK_C)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_channel = channel < C
    inside = (row < num_rows)[:, None] & is_channel[None, :]
    g = _unpooled(
        grad_ptr,
        winners_ptr,
        row,
        channel,
        inside,
        height,
        width,
        pooled_height,
        pooled_width,
        C,
    )
    at = row.to(tl.int64)[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dx = input_gradient(g, x, statistics_ptr, weight_ptr, sums_ptr, channel, C)
    tl.store(result_ptr + at, dx.to(result_ptr.dtype.element_ty), mask=inside)
