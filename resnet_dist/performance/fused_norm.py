"""Batch norm + addition + ReLU as one function, alone or together with the convolution after it.

Owns the autograd functions over the operators of `resnet_dist.performance.kernels`. In training
only; in evaluation, batch norm is a multiplication and belongs to the modules.

With a process group the statistics are those of all ranks' batches, uneven and empty ones
included, at the price of one collective forward and one backward, and without a wait of the host.
The backward one runs while the weight gradient of the following convolution is computed, which
needs nothing from it: that is why the two are one function. Parameter gradients are the local
sums, as DDP expects.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnet_dist.performance.kernels import ops  # noqa: F401, registers the operators

_ops = torch.ops.resnet_dist


def norm_relu(
    norm: nn.BatchNorm2d,
    x: Tensor,
    residual: Tensor | None = None,
    *,
    relu: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """relu(norm(x) + residual), `[N, C, H, W]` to the same, in the type of x.

    Moves the running statistics of `norm`, but not its `num_batches_tracked`. With `relu=False`
    there is no ReLU. `group`: statistics over its ranks, all of which must call this; None: over
    this batch. Raises ValueError if there is only one value a channel.
    """
    _check(norm, x, group)
    state = (norm.running_mean, norm.running_var, norm.momentum, norm.eps)
    result: Tensor = _NormRelu.apply(x, residual, norm.weight, norm.bias, *state, relu, group)
    return result


def norm_relu_pool(
    norm: nn.BatchNorm2d, x: Tensor, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """max_pool2d(relu(norm(x)), 3, stride=2, padding=1), as in `norm_relu`.

    `[N, C, H, W]` to `[N, C, (H + 1) / 2, (W + 1) / 2]`.
    """
    _check(norm, x, group)
    state = (norm.running_mean, norm.running_var, norm.momentum, norm.eps)
    result: Tensor = _NormReluPool.apply(x, norm.weight, norm.bias, *state, group)
    return result


def norm_relu_convolution(
    norm: nn.BatchNorm2d,
    convolution: nn.Conv2d,
    x: Tensor,
    residual: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """With y = relu(norm(x) + residual), as in `norm_relu`: convolution(y), and y.

    Gradients that come back through both results are added inside the pass that needs the sum.
    `convolution` has no bias; its weights are converted to the type of x.
    """
    _check(norm, x, group)
    assert convolution.bias is None
    state = (norm.running_mean, norm.running_var, norm.momentum, norm.eps)
    geometry = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    weight = convolution.weight.to(x.dtype)
    z, y = _NormReluConvolution.apply(
        x, residual, norm.weight, norm.bias, weight, *state, geometry, group
    )
    return z, y


def _check(norm: nn.BatchNorm2d, x: Tensor, group: dist.ProcessGroup | None) -> None:
    assert norm.affine
    assert norm.track_running_stats
    assert norm.momentum is not None  # None would mean a cumulative average
    if group is None:
        _check_count(x.numel() // x.shape[1], x)


def _check_count(count: float, x: Tensor) -> None:
    if count < 2:
        raise ValueError(
            f"batch norm needs more than one value per channel, got {count:g} from inputs like "
            f"{list(x.shape)}; raise the batch or the image size"
        )


def _statistics(
    x: Tensor,
    running: tuple[Tensor, Tensor],
    numbers: tuple[float, float],
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Statistics of x over all ranks of the group; moves the running ones."""
    parts = _ops.batch_norm_moments(x)
    if group is not None:
        own = _ops.batch_norm_merge(parts)
        parts = own.new_empty(dist.get_world_size(group), own.shape[1])
        dist.all_gather_into_tensor(parts, own, group=group)
    statistics: Tensor = _ops.batch_norm_finish(parts, *running, *numbers)
    if group is not None and x.device.type == "cpu":  # elsewhere the host would have to wait
        _check_count(float(statistics[-1]), x)
    return statistics


def _sum_begin(sums: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, dist.Work | None]:
    """A tensor that will hold the sums over the ranks, and what to wait for."""
    if group is None:
        return sums, None
    total = sums.clone()
    return total, dist.all_reduce(total, group=group, async_op=True)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        relu: bool,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        x = _channels_last(x)
        residual = None if residual is None else _channels_last(residual)
        statistics = _statistics(x, (running_mean, running_var), (momentum, eps), group)
        y, signs = _ops.batch_norm_apply(x, statistics, weight, bias, residual, relu)
        ctx.save_for_backward(x, signs, statistics, weight)
        ctx.group, ctx.adds = group, residual is not None
        result: Tensor = y
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, signs, statistics, weight = ctx.saved_tensors
        grad = _channels_last(grad)
        keeps = ctx.adds and signs.numel() > 0
        sums, kept = _ops.batch_norm_backward_sums(grad, None, signs, x, statistics, keeps)
        if keeps:
            grad, signs = kept, signs.new_empty(0)
        total, work = _sum_begin(sums, ctx.group)
        if work is not None:
            work.wait()
        grad_x = _ops.batch_norm_backward_apply(grad, signs, x, statistics, weight, total)
        grad_bias, grad_weight = sums.chunk(2)
        return (grad_x, grad if ctx.adds else None, grad_weight, grad_bias, *[None] * 6)


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        x = _channels_last(x)
        statistics = _statistics(x, (running_mean, running_var), (momentum, eps), group)
        y, winners = _ops.batch_norm_apply_pool(x, statistics, weight, bias)
        ctx.save_for_backward(x, winners, statistics, weight)
        ctx.group = group
        result: Tensor = y
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, winners, statistics, weight = ctx.saved_tensors
        grad = _channels_last(grad)
        sums = _ops.batch_norm_backward_sums_pool(grad, winners, x, statistics)
        total, work = _sum_begin(sums, ctx.group)
        if work is not None:
            work.wait()
        grad_x = _ops.batch_norm_backward_apply_pool(grad, winners, x, statistics, weight, total)
        grad_bias, grad_weight = sums.chunk(2)
        return (grad_x, grad_weight, grad_bias, *[None] * 5)


class _NormReluConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        kernel: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        geometry: tuple[Any, Any, Any, int],
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        x = _channels_last(x)
        residual = None if residual is None else _channels_last(residual)
        statistics = _statistics(x, (running_mean, running_var), (momentum, eps), group)
        y, signs = _ops.batch_norm_apply(x, statistics, weight, bias, residual, True)
        stride, padding, dilation, groups = geometry
        z = torch.conv2d(y, kernel, None, stride, padding, dilation, groups)
        ctx.save_for_backward(x, signs, statistics, weight, y, kernel)
        ctx.geometry, ctx.group, ctx.adds = geometry, group, residual is not None
        return z, y

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_z: Tensor | None, grad_y: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, signs, statistics, weight, y, kernel = ctx.saved_tensors
        assert grad_z is not None, "the convolution's result was not used"
        grad_z = _channels_last(grad_z)
        other = None if grad_y is None else _channels_last(grad_y)
        grad_kernel = None
        if ctx.group is None:  # no collective to hide: what follows finds its input in the cache
            _, grad_kernel = _convolution_backward(grad_z, y, kernel, ctx.geometry, (False, True))
        grad, _ = _convolution_backward(grad_z, y, kernel, ctx.geometry, (True, False))
        # Kept: as the residual's gradient, and to add and mask it once only.
        keeps = ctx.adds or other is not None
        grad = _channels_last(grad)
        sums, kept = _ops.batch_norm_backward_sums(grad, other, signs, x, statistics, keeps)
        if keeps:
            grad, signs = kept, signs.new_empty(0)
        total, work = _sum_begin(sums, ctx.group)
        if grad_kernel is None:
            _, grad_kernel = _convolution_backward(grad_z, y, kernel, ctx.geometry, (False, True))
        if work is not None:
            work.wait()
        grad_x = _ops.batch_norm_backward_apply(grad, signs, x, statistics, weight, total)
        grad_bias, grad_weight = sums.chunk(2)
        return (
            grad_x,
            grad if ctx.adds else None,
            grad_weight,
            grad_bias,
            grad_kernel,
            *[None] * 6,
        )


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Tensor,
    geometry: tuple[Any, Any, Any, int],
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of a convolution's input and weights, those that are wanted."""
    stride, padding, dilation, groups = geometry
    grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
        grad, x, kernel, None, stride, padding, dilation, False, [0, 0], groups, [*wanted, False]
    )
    return grad_x, grad_kernel
