"""Batch norm over the batches of all ranks, on CPUs and on GPUs.

Promises the values, gradients and running statistics of `nn.BatchNorm2d` on the concatenation of
all ranks' batches, uneven and empty ones included, up to floating-point summation order, with one
collective forward and one backward. `torch.nn.SyncBatchNorm` rejects CPU tensors (still in 2.15),
and on GPUs makes the host wait in every layer, to leave out ranks without samples; so there is an
autograd function of ours for each. The one for GPUs calls torch's kernels, and never waits.

Names and buffers are those of `nn.BatchNorm2d`: state dicts go both ways. Parameter gradients are
the local sums, because DDP (or whoever trains) adds them up over the ranks.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnet_dist.models.freeze import FrozenBatchNorm2d

Norm = TypeVar("Norm", bound=nn.BatchNorm2d)


def _synchronised(x: Tensor, norm: SyncBatchNorm2d, group: Any) -> Tensor:
    state = (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, norm.momentum)
    function = _SyncBatchNormCuda if x.is_cuda else _SyncBatchNormCpu
    result: Tensor = function.apply(x, *state, group, dist.get_world_size(group))
    return result


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the batches of all ranks of `process_group` (None: of the world).

    `[N, C, H, W]` to the same; N may differ between ranks. In training every rank must call it,
    forward and backward; in evaluation, or without a process group, it is plain batch norm.
    """

    process_group: dist.ProcessGroup | None = None
    _function = staticmethod(_synchronised)

    def hide_from_compiler(self) -> None:
        """Let torch.compile leave the collectives out of its graphs, without trying them first.

        Not a decorator on the function: it would load the compiler into every run (seconds).
        """
        self._function = torch.compiler.disable(_synchronised)  # type: ignore[no-untyped-call]

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        group = self.process_group or dist.group.WORLD
        if dist.get_world_size(group) == 1:
            return super().forward(input)
        self._check_input_dim(input)
        if self.num_batches_tracked is not None:  # None: see `kept_statistics`
            self.num_batches_tracked.add_(1)
        output: Tensor = self._function(input, self, group)
        return output


class _SyncBatchNormCpu(torch.autograd.Function):
    """The function for CPU tensors: statistics in float32 (float64 for float64 inputs).

    All passes over `x` are torch's vectorised batch norm kernels, which know channels-last and
    bfloat16 inputs with float32 parameters. Generic reductions (`var_mean`) over channels-last
    are 10 to 20 times slower, and arithmetic that mixes the two types 30 times.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
        group: dist.ProcessGroup,
        world_size: int,
    ) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        count, mean, var = _sync_moments(x, (running_mean, running_var), group, world_size)
        if count < 2:
            raise ValueError(
                f"batch norm needs more than one value per channel over all ranks, got {count} "
                f"from inputs like {list(x.shape)}; raise the batch or the image size"
            )
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)), momentum)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.count, ctx.group = eps, count, group
        return _normalise(x, weight, bias, eps, (mean, var))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight and bias.

        With g = weight / sqrt(var + eps), xhat the normalised input and N the global count

            dx = g * (dy - sum(dy) / N - xhat * sum(dy * xhat) / N)

        (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3); both sums are over all ranks.
        """
        x, weight, mean, var = ctx.saved_tensors
        grad = grad.contiguous(memory_format=_layout(x))
        if x.numel():
            # Evaluation mode: the given statistics are constants, so that these are plain sums.
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
            )
        else:
            grad_weight, grad_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        total = torch.cat([grad_bias, grad_weight])
        dist.all_reduce(total, group=ctx.group)
        sum_grad, sum_grad_xhat = total.chunk(2)
        scale = (var + ctx.eps).rsqrt_().mul_(weight)
        share = scale / -ctx.count
        grad_x = _normalise(x, share * sum_grad_xhat, share * sum_grad, ctx.eps, (mean, var))
        if grad.dtype is scale.dtype:
            grad_x.addcmul_(grad, scale.view(1, -1, 1, 1))
        else:
            zeros = torch.zeros_like(mean)
            grad_x += _normalise(grad, weight, zeros, ctx.eps, (zeros, var))
        return grad_x, grad_weight, grad_bias, None, None, None, None, None, None


class _SyncBatchNormCuda(torch.autograd.Function):
    """The function for tensors on GPUs, over the kernels that `torch.nn.SyncBatchNorm` calls.

    That one drops the rows of ranks without samples by a mask, whose result has a size that the
    host must wait for (pytorch issue 78549). Here they stay, with `ALMOST_NONE` for a count: the
    kernel that merges the rows would divide zero by zero if the first was empty.
    """

    ALMOST_NONE = 1e-20

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
        group: dist.ProcessGroup,
        world_size: int,
    ) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        channels = x.shape[1]
        if x.numel():
            mean, scale = torch.batch_norm_stats(x, eps)
            count = float(x.numel() // channels)
        else:
            mean, scale = torch.zeros_like(running_mean), torch.ones_like(running_mean)
            count = _SyncBatchNormCuda.ALMOST_NONE
        own = torch.cat([mean, scale, mean.new_full((1,), count)])
        everyone = own.new_empty(world_size, 2 * channels + 1)
        dist.all_gather_into_tensor(everyone, own[None], group=group)  # gloo wants equal ranks
        means, scales, counts = torch.split(everyone, [channels, channels, 1], dim=1)
        counts = counts.reshape(-1)
        mean, scale = torch.batch_norm_gather_stats_with_counts(
            x, means, scales, running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(x, weight, mean, scale, counts.to(torch.int32))
        ctx.group = group
        if not x.numel():
            return torch.empty_like(x)
        result: Tensor = torch.batch_norm_elemt(x, weight, bias, mean, scale, eps)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, counts = ctx.saved_tensors
        grad = grad.contiguous(memory_format=_layout(x))
        if x.numel():
            sum_grad, sum_product, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
                grad, x, mean, scale, weight, True, True, True
            )
            total = torch.cat([sum_grad, sum_product])
        else:
            grad_weight, grad_bias = torch.zeros_like(mean), torch.zeros_like(mean)
            total = mean.new_zeros(2 * mean.shape[0])
        dist.all_reduce(total, group=ctx.group)
        if not x.numel():
            return torch.empty_like(x), grad_weight, grad_bias, *[None] * 6
        sum_grad, sum_product = total.chunk(2)
        grad_x = torch.batch_norm_backward_elemt(
            grad, x, mean, scale, weight, sum_grad, sum_product, counts
        )
        return grad_x, grad_weight, grad_bias, *[None] * 6


def _layout(x: Tensor) -> torch.memory_format:
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, moments: tuple[Tensor, Tensor]
) -> Tensor:
    """weight * (x - mean) / sqrt(var + eps) + bias, in the type and layout of x."""
    if x.numel() == 0:
        return torch.empty_like(x)
    result: Tensor = torch.native_batch_norm(x, weight, bias, *moments, False, 0.0, eps)[0]
    return result


def _sync_moments(
    x: Tensor, running: tuple[Tensor, Tensor], group: dist.ProcessGroup, world_size: int
) -> tuple[int, Tensor, Tensor]:
    """Count of values per channel, mean `[C]` and biased variance `[C]` over all ranks.

    One collective. Ranks exchange (mean, variance, count) and combine them by Chan, Golub and
    LeVeque 1979 ("Updating formulae and a pairwise algorithm for computing sample variances"):
    sums of squares would cancel where the mean is large against the deviation. Every rank computes
    the same bits from the same numbers. The statistics have the type of the running ones.
    """
    channels = x.shape[1]
    count = x.numel() // channels
    dtype = running[0].dtype
    if count:
        # With momentum 0 the kernel leaves the running statistics alone, but takes their type.
        mean, var = torch.batch_norm_update_stats(x, *running, 0.0)
        # Float32 holds counts up to 2**24 exactly: 1,300 images of 112 x 112 per rank.
        local = torch.cat([mean, var, mean.new_full((1,), count)])
    else:
        local = torch.zeros(2 * channels + 1, dtype=dtype)
    everyone = local.new_empty(world_size, 2 * channels + 1)
    dist.all_gather(list(everyone.unbind()), local, group=group)
    # In float64, so that the count of all ranks is exact too.
    means, variances, counts = torch.split(everyone.double(), [channels, channels, 1], dim=1)
    total = int(counts.sum())
    shares = counts.squeeze(1) / max(total, 1)
    mean = shares @ means
    deviations = means - mean
    var = shares @ torch.addcmul(variances, deviations, deviations)
    return total, mean.to(dtype), var.to(dtype)


def convert_sync_batch_norm(
    module: nn.Module, process_group: dist.ProcessGroup | None = None
) -> nn.Module:
    """Replace every `nn.BatchNorm2d` inside `module`, sharing its parameters and buffers.

    Changes `module` in place and returns it (or its replacement, if it is itself a batch norm).
    Raises ValueError for a batch norm that cannot be synchronised, rather than leave it local.
    """
    if isinstance(module, FrozenBatchNorm2d):
        return module  # it has nothing to synchronise
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if type(module) not in (nn.BatchNorm2d, SyncBatchNorm2d):
            raise ValueError(f"{type(module).__name__} has no synchronised form; use BatchNorm2d")
        if not module.affine or not module.track_running_stats or module.momentum is None:
            raise ValueError(
                "synchronised batch norm needs affine=True, track_running_stats=True and a momentum"
            )
        assert isinstance(module, nn.BatchNorm2d)
        synchronised = _replace(module, SyncBatchNorm2d)
        synchronised.process_group = process_group
        return synchronised
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batch_norm(child, process_group))
    return module


def revert_sync_batch_norm(module: nn.Module) -> nn.Module:
    """The inverse of `convert_sync_batch_norm`: plain batch norms with the same tensors."""
    if isinstance(module, SyncBatchNorm2d):
        return _replace(module, nn.BatchNorm2d)
    for name, child in module.named_children():
        setattr(module, name, revert_sync_batch_norm(child))
    return module


def _replace(norm: nn.BatchNorm2d, kind: type[Norm]) -> Norm:
    """A batch norm of another class around the same tensors."""
    new = kind(norm.num_features, eps=norm.eps, momentum=norm.momentum, device="meta")
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    return new.train(norm.training)
