"""The operators in plain PyTorch: what they mean, for CPUs, and for tests of the kernels.

Shapes: x, residual and gradients are `[N, C, H, W]` in channels-last memory, C a multiple of 8.
With M = N * H * W:

- moments `[S, 2 C + 1]`: S rows of (mean of C channels, sum of squared deviations from that mean of
  C channels, number of values a channel), of S parts of the batch. A part may be empty.
- statistics `[2 C + 1]`: mean, 1 / sqrt(variance + eps), number of values a channel.
- signs `[M, C / 8]` uint8: bit i of byte j says that channel 8 j + i passed the ReLU; `[0]` if
  there is none.
- winners `[N * H' * W', C]` uint8, of a 3 x 3 max-pool with stride 2 and padding 1 to H' x W':
  which of its nine inputs, in rows, an output comes from; 9 (`NONE`) if the ReLU let none pass.
- sums `[2 C]`: of the gradient, and of the gradient times the normalised input.

Moments, statistics and sums are float32 (float64 for float64 inputs); so is all arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 8
NONE = 9


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The type of sums over `x`."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def moments(x: Tensor) -> Tensor:
    """`[1, 2 C + 1]`: the moments of a batch; zeros if it is empty."""
    rows = _rows(x)
    count, channels = rows.shape
    if count == 0:
        return x.new_zeros(1, 2 * channels + 1, dtype=accumulation_dtype(x))
    variance, mean = torch.var_mean(rows, dim=0, correction=0)
    return torch.cat([mean, variance * count, mean.new_full((1,), count)])[None]


def merge(parts: Tensor) -> Tensor:
    """`[S, 2 C + 1]` to `[1, 2 C + 1]`: the moments of all parts together (Chan et al. 1979)."""
    channels = parts.shape[1] // 2
    means, deviations, counts = torch.split(parts, [channels, channels, 1], dim=1)
    total = counts.sum(dim=0)
    shares = counts / total.clamp(min=1)
    mean = (shares * means).sum(dim=0)
    deviation = (deviations + counts * (means - mean).square()).sum(dim=0)
    return torch.cat([mean, deviation, total])[None]


def finish(
    parts: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> Tensor:
    """The statistics `[2 C + 1]` of all parts together; moves the running ones `[C]` in place.

    The running variance is the unbiased one, as in PyTorch.
    """
    merged = merge(parts)[0]
    channels = running_mean.shape[0]
    mean, deviation, count = torch.split(merged, [channels, channels, 1])
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_((deviation / (count - 1)).to(running_var.dtype), momentum)
    return torch.cat([mean, (deviation / count + eps).rsqrt(), count])


def apply(
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """relu(normalised x * weight + bias + residual) in the type of x, and the signs."""
    mean, scale, _ = _split(statistics)
    rows = (_rows(x) - mean) * (scale * weight) + bias
    if residual is not None:
        rows = rows + _rows(residual)
    if not relu:
        return _images(rows, x), x.new_empty(0, dtype=torch.uint8)
    passed = ~(rows <= 0)  # so that a NaN passes, as it does in PyTorch's ReLU
    return _images(torch.where(passed, rows, 0.0), x), pack(passed)


def apply_pool(
    x: Tensor, statistics: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The 3 x 3 max-pool of relu(normalised x * weight + bias), and the winners."""
    mean, scale, _ = _split(statistics)
    n, channels, height, width = x.shape
    rows = (_rows(x) - mean) * (scale * weight) + bias
    images = rows.reshape(n, height, width, channels).permute(0, 3, 1, 2)
    pooled, places = torch.nn.functional.max_pool2d(
        images, 3, stride=2, padding=1, return_indices=True
    )
    first_row = 2 * torch.arange(pooled.shape[2], device=x.device)[:, None] - 1
    first_column = 2 * torch.arange(pooled.shape[3], device=x.device) - 1
    winners = 3 * (places // width - first_row) + places % width - first_column
    winners = torch.where(pooled <= 0, NONE, winners).to(torch.uint8)
    winners = winners.permute(0, 2, 3, 1).reshape(-1, channels)
    return _channels_last(pooled.relu().to(x.dtype)), winners


def backward_sums_pool(grad: Tensor, winners: Tensor, x: Tensor, statistics: Tensor) -> Tensor:
    """The sums `[2 C]` for the gradient `[N, C, H', W']` of `apply_pool`'s result."""
    g = _images(_unpooled(grad, winners, x), x.to(accumulation_dtype(x)))
    return backward_sums(g, None, winners.new_empty(0), x, statistics, False)[0]


def backward_apply_pool(
    grad: Tensor, winners: Tensor, x: Tensor, statistics: Tensor, weight: Tensor, sums: Tensor
) -> Tensor:
    """The gradient of x, as in `backward_apply`."""
    g = _images(_unpooled(grad, winners, x), x.to(accumulation_dtype(x)))
    return backward_apply(g, winners.new_empty(0), x, statistics, weight, sums)


def _unpooled(grad: Tensor, winners: Tensor, x: Tensor) -> Tensor:
    """The gradient `[M, C]` of a pool's input: what won more than once gets the sum."""
    n, channels, height, width = x.shape
    pooled_height, pooled_width = grad.shape[2:]
    winner = winners.reshape(n, pooled_height, pooled_width, channels).to(torch.int64)
    row = 2 * torch.arange(pooled_height, device=x.device)[:, None, None] - 1 + winner // 3
    column = 2 * torch.arange(pooled_width, device=x.device)[:, None] - 1 + winner % 3
    image = torch.arange(n, device=x.device)[:, None, None, None]
    has_won = winner != NONE
    at = torch.where(has_won, (image * height + row) * width + column, 0)
    g = torch.where(has_won, grad.permute(0, 2, 3, 1).to(accumulation_dtype(x)), 0.0)
    result = g.new_zeros(n * height * width, channels)
    return result.scatter_add_(0, at.reshape(-1, channels), g.reshape(-1, channels))


def backward_sums(
    grad: Tensor, other: Tensor | None, signs: Tensor, x: Tensor, statistics: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """The sums `[2 C]` over g = (grad + other) where the ReLU let pass, and g itself if `keep`.

    g is in the type of x, and the sums are those of g before it is rounded to it.
    """
    mean, scale, _ = _split(statistics)
    g = _masked(grad, other, signs)
    normalised = (_rows(x) - mean) * scale
    sums = torch.cat([g.sum(dim=0), (g * normalised).sum(dim=0)])
    return sums, _images(g, x) if keep else x.new_empty(0)


def backward_apply(
    grad: Tensor, signs: Tensor, x: Tensor, statistics: Tensor, weight: Tensor, sums: Tensor
) -> Tensor:
    """The gradient of x: with g = grad where the ReLU let pass, and N the number of values,

        weight * scale * (g - sum(g) / N - normalised x * sum(g * normalised x) / N)

    (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3).
    """
    mean, scale, count = _split(statistics)
    sum_grad, sum_product = (sums / count).chunk(2)
    g = _masked(grad, None, signs)
    normalised = (_rows(x) - mean) * scale
    return _images((g - sum_grad - normalised * sum_product) * (scale * weight), x)


def pack(passed: Tensor) -> Tensor:
    """`[M, C]` bool to `[M, C / 8]` uint8, the first channel in the lowest bit."""
    weights = 2 ** torch.arange(BITS, dtype=torch.uint8, device=passed.device)
    grouped = passed.reshape(passed.shape[0], passed.shape[1] // BITS, BITS)
    return torch.sum(grouped * weights, dim=2, dtype=torch.uint8)


def unpack(signs: Tensor) -> Tensor:
    """The inverse of `pack`."""
    weights = 2 ** torch.arange(BITS, dtype=torch.uint8, device=signs.device)
    return (signs[:, :, None] & weights).bool().flatten(1)


def _masked(grad: Tensor, other: Tensor | None, signs: Tensor) -> Tensor:
    g = _rows(grad)
    if other is not None:
        g = g + _rows(other)
    return torch.where(unpack(signs), g, 0.0) if signs.numel() else g


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _split(statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    channels = statistics.shape[0] // 2
    mean, scale, count = torch.split(statistics, [channels, channels, 1])
    return mean, scale, count


def _rows(x: Tensor) -> Tensor:
    """`[N, C, H, W]` in channels-last memory as `[M, C]` in the type of sums."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).to(accumulation_dtype(x))


def _images(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_rows`, in the type of `like`."""
    n, channels, height, width = like.shape
    return rows.to(like.dtype).reshape(n, height, width, channels).permute(0, 3, 1, 2)
