"""Triton kernels for batch norm, addition and ReLU on channels-last activations.

An activation is a matrix of M = N * H * W rows of C channels. All kernels are limited by memory, so
what counts is that every value is read once a pass in accesses of 16 bytes (8 neighbouring channels
a thread), with several of them in flight. The order of summation is fixed, without atomics: results
are the are the same bit for bit from run to run on one kind of GPU. Sums are float32.

Programs that run at once work on neighbouring tiles. Passes that only read go through the rows from
the last to the first: what was written just before, by a convolution or another pass, is still in
the level-2 cache at its end, and what they read last is there for the pass behind them.

What is read and written is described in `batch_norm_twins`, whose results these must have.
"""

import triton
import triton.language as tl


@triton.jit
def my_place(C, BLOCK_C: tl.constexpr):
    """Which part of the rows (of how many), and which channels, are this program's."""
    blocks = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    block = program % blocks
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    return program // blocks, tl.num_programs(0) // blocks, block, channel


@triton.jit
def batch_norm_moments_kernel(
    x_ptr,
    parts_ptr,
    num_rows,
    C,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One part's moments of one block of channels: sums of what is left after subtracting the mean
    of its first tile, so that little cancels (Chan, Golub and LeVeque 1983, shifted data)."""
    part, parts, block, channel = my_place(C, BLOCK_C)
    lane = tl.arange(0, BLOCK_M)
    is_channel = channel < C
    tiles = tl.cdiv(num_rows, BLOCK_M)
    row = tl.maximum(tiles - 1 - part, 0) * BLOCK_M + lane
    inside = (row < num_rows)[:, None] & is_channel[None, :]
    at = row.to(tl.int64)[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    rows_seen = tl.sum((row < num_rows).to(tl.float32), axis=0)
    shift = (tl.sum(x, axis=0) / tl.maximum(rows_seen, 1.0))[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    total = 0.0
    for tile in range(part, tiles, parts):
        first = (tiles - 1 - tile) * BLOCK_M
        row = first + lane
        inside = (row < num_rows)[:, None] & is_channel[None, :]
        at = row.to(tl.int64)[:, None] * C + channel[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        moved = tl.where(inside, x - shift, 0.0)
        sums += moved
        squares += moved * moved
        total += tl.minimum(num_rows - first, BLOCK_M).to(tl.float32)
    sum_moved = tl.sum(sums, axis=0)
    mean_moved = sum_moved / tl.maximum(total, 1.0)
    deviation = tl.sum(squares, axis=0) - sum_moved * mean_moved
    deviation = tl.where(deviation < 0.0, 0.0, deviation)  # a NaN stays one
    out = parts_ptr + part * (2 * C + 1)
    mean = tl.sum(shift, axis=0) + mean_moved
    tl.store(out + channel, mean, mask=is_channel)
    tl.store(out + C + channel, deviation, mask=is_channel)
    if block == 0:
        tl.store(out + 2 * C, total)


@triton.jit
def batch_norm_merge_kernel(
    parts_ptr,
    result_ptr,
    running_mean_ptr,
    running_var_ptr,
    num_parts,
    C,
    momentum,
    eps,
    FINISHES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The moments of all parts together, or the statistics that follow from them."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < C
    mean = tl.zeros((BLOCK_C,), tl.float32)
    deviation = tl.zeros((BLOCK_C,), tl.float32)
    total = 0.0
    for begin in range(0, num_parts, BLOCK_S):
        part = begin + tl.arange(0, BLOCK_S)
        is_part = part < num_parts
        inside = is_part[:, None] & is_channel[None, :]
        at = parts_ptr + part[:, None] * (2 * C + 1) + channel[None, :]
        means = tl.load(at, mask=inside, other=0.0)
        deviations = tl.load(at + C, mask=inside, other=0.0)
        counts = tl.load(parts_ptr + part * (2 * C + 1) + 2 * C, mask=is_part, other=0.0)
        block_total = tl.sum(counts, axis=0)
        shares = counts / tl.maximum(block_total, 1.0)
        block_mean = tl.sum(means * shares[:, None], axis=0)
        apart = means - block_mean[None, :]
        block_deviation = tl.sum(deviations + apart * apart * counts[:, None], axis=0)
        new_total = total + block_total
        share = block_total / tl.maximum(new_total, 1.0)
        delta = block_mean - mean
        mean += delta * share
        deviation += block_deviation + delta * delta * share * total
        total = new_total
    tl.store(result_ptr + channel, mean, mask=is_channel)
    if FINISHES:
        scale = tl.rsqrt(deviation / total + eps)
        tl.store(result_ptr + C + channel, scale, mask=is_channel)
        old = tl.load(running_mean_ptr + channel, mask=is_channel, other=0.0)
        tl.store(running_mean_ptr + channel, old + momentum * (mean - old), mask=is_channel)
        old = tl.load(running_var_ptr + channel, mask=is_channel, other=0.0)
        new = deviation / (total - 1.0)
        tl.store(running_var_ptr + channel, old + momentum * (new - old), mask=is_channel)
    else:
        tl.store(result_ptr + C + channel, deviation, mask=is_channel)
    if tl.program_id(0) == 0:
        tl.store(result_ptr + 2 * C, total)


@triton.jit
def batch_norm_apply_kernel(
    x_ptr,
    residual_ptr,
    result_ptr,
    signs_ptr,
    statistics_ptr,
    weight_ptr,
    bias_ptr,
    num_rows,
    C,
    ADDS: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Normalise, add, ReLU and note which values passed."""
    tile, _, block, channel = my_place(C, BLOCK_C)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_channel = channel < C
    inside = (row < num_rows)[:, None] & is_channel[None, :]
    at = row.to(tl.int64)[:, None] * C + channel[None, :]
    # Read for the last time before the backward pass: leave the cache to the result.
    x = tl.load(x_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    mean = tl.load(statistics_ptr + channel, mask=is_channel, other=0.0)
    scale = tl.load(statistics_ptr + C + channel, mask=is_channel, other=0.0)
    scale *= tl.load(weight_ptr + channel, mask=is_channel, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=is_channel, other=0.0)
    y = (x - mean[None, :]) * scale[None, :] + bias[None, :]
    if ADDS:
        residual = tl.load(residual_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
        y += residual.to(tl.float32)
    if RELU:
        passed = (y <= 0.0) == 0  # a NaN passes, as it does in PyTorch's ReLU
        y = tl.where(passed, y, 0.0)
        bits = tl.reshape(passed.to(tl.int32), (BLOCK_M, BLOCK_C // 8, 8))
        signs = tl.sum(bits << tl.arange(0, 8)[None, None, :], axis=2)
        byte = block * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
        byte_at = row.to(tl.int64)[:, None] * (C // 8) + byte[None, :]
        is_byte = (row < num_rows)[:, None] & (byte < C // 8)[None, :]
        tl.store(signs_ptr + byte_at, signs.to(tl.uint8), mask=is_byte)
    tl.store(result_ptr + at, y.to(result_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _passed(signs_ptr, row, num_rows, block, C, BLOCK_C: tl.constexpr):
    """Which values of a tile the ReLU let pass, `[rows, BLOCK_C]`."""
    BLOCK_M: tl.constexpr = row.shape[0]
    byte = block * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
    is_byte = (row < num_rows)[:, None] & (byte < C // 8)[None, :]
    at = row.to(tl.int64)[:, None] * (C // 8) + byte[None, :]
    signs = tl.load(signs_ptr + at, mask=is_byte, other=0).to(tl.int32)
    bits = (signs[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, (BLOCK_M, BLOCK_C)) != 0


@triton.jit
def store_sums(sums_ptr, sum_grad, sum_product, statistics_ptr, part, channel, C):
    """Write one part's sums over the rows of a tile; the products still lack the scale."""
    is_channel = channel < C
    scale = tl.load(statistics_ptr + C + channel, mask=is_channel, other=0.0)
    out = sums_ptr + part * (2 * C)
    tl.store(out + channel, tl.sum(sum_grad, axis=0), mask=is_channel)
    tl.store(out + C + channel, tl.sum(sum_product, axis=0) * scale, mask=is_channel)


@triton.jit
def input_gradient(g, x, statistics_ptr, weight_ptr, sums_ptr, channel, C):
    """The gradient of batch norm's input for a tile, from that of its result."""
    is_channel = channel < C
    mean = tl.load(statistics_ptr + channel, mask=is_channel, other=0.0)
    scale = tl.load(statistics_ptr + C + channel, mask=is_channel, other=0.0)
    weight = tl.load(weight_ptr + channel, mask=is_channel, other=0.0)
    share = 1.0 / tl.load(statistics_ptr + 2 * C)
    mean_grad = tl.load(sums_ptr + channel, mask=is_channel, other=0.0) * share
    mean_product = tl.load(sums_ptr + C + channel, mask=is_channel, other=0.0) * share
    normalised = (x - mean[None, :]) * scale[None, :]
    return (g - mean_grad[None, :] - normalised * mean_product[None, :]) * (scale * weight)[None, :]


@triton.jit
def batch_norm_backward_sums_kernel(
    grad_ptr,
    other_ptr,
    signs_ptr,
    x_ptr,
    statistics_ptr,
    kept_ptr,
    sums_ptr,
    num_rows,
    C,
    ADDS: tl.constexpr,
    RELU: tl.constexpr,
    KEEPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One part's sums of one block of channels; writes the gradient before batch norm."""
    part, parts, block, channel = my_place(C, BLOCK_C)
    lane = tl.arange(0, BLOCK_M)
    is_channel = channel < C
    tiles = tl.cdiv(num_rows, BLOCK_M)
    mean = tl.load(statistics_ptr + channel, mask=is_channel, other=0.0)
    sum_grad = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_product = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for tile in range(part, tiles, parts):
        row = (tiles - 1 - tile) * BLOCK_M + lane
        inside = (row < num_rows)[:, None] & is_channel[None, :]
        at = row.to(tl.int64)[:, None] * C + channel[None, :]
        g = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if ADDS:
            g += tl.load(other_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            g = tl.where(_passed(signs_ptr, row, num_rows, block, C, BLOCK_C), g, 0.0)
        if KEEPS:
            tl.store(kept_ptr + at, g.to(kept_ptr.dtype.element_ty), mask=inside)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        sum_grad += g
        sum_product += g * (x - mean[None, :])
    store_sums(sums_ptr, sum_grad, sum_product, statistics_ptr, part, channel, C)


@triton.jit
def batch_norm_backward_apply_kernel(
    grad_ptr,
    signs_ptr,
    x_ptr,
    statistics_ptr,
    weight_ptr,
    sums_ptr,
    result_ptr,
    num_rows,
    C,
    RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of batch norm's input."""
    tile, _, block, channel = my_place(C, BLOCK_C)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_channel = channel < C
    inside = (row < num_rows)[:, None] & is_channel[None, :]
    at = row.to(tl.int64)[:, None] * C + channel[None, :]
    # Nobody reads them again: leave the cache to the result.
    g = tl.load(grad_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
    g = g.to(tl.float32)
    if RELU:
        g = tl.where(_passed(signs_ptr, row, num_rows, block, C, BLOCK_C), g, 0.0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    dx = input_gradient(g, x, statistics_ptr, weight_ptr, sums_ptr, channel, C)
    tl.store(result_ptr + at, dx.to(result_ptr.dtype.element_ty), mask=inside)
