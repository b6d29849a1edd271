"""Comparison of the kernels with their reference implementation, once before a run trains on them.

A compiler for a GPU that nobody tried may refuse a kernel, or get it wrong; neither may show as a
worse accuracy after a night.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from resnet_dist.performance.kernels import batch_norm_reference as reference
from resnet_dist.performance.kernels import ops  # noqa: F401, registers the operators

_ops = torch.ops.resnet_dist

SHAPE = (4, 128, 15, 13)
"""Rows that do not fill the last tile, channels that do, and odd sides for the pool."""
MOST_ERROR = 2e-2
"""Relative, in the norm: a few units in the last place of bfloat16; a wrong kernel is off by 1."""


def verify_kernels(device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with the kernels for activations of a type on a device; None: nothing.

    Waits for the device. Leaves torch's random state alone.
    """
    generator = torch.Generator().manual_seed(0)

    def images(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator).to(device, dtype)
        return x.contiguous(memory_format=torch.channels_last)

    channels = SHAPE[1]
    x, other, grad = images(*SHAPE), images(*SHAPE), images(*SHAPE)
    weight, bias = (torch.randn(channels, generator=generator).to(device) for _ in range(2))
    running, expected_running = (
        (torch.zeros(channels, device=device), torch.ones(channels, device=device))
        for _ in range(2)
    )
    moments = reference.moments(x)
    statistics = reference.finish(moments, *expected_running, 0.1, 1e-5)
    y, signs = reference.apply(x, statistics, weight, bias, other, True)
    sums, kept = reference.backward_sums(grad, other, signs, x, statistics, True)
    pooled, winners = reference.apply_pool(x, statistics, weight, bias)
    pooled_grad = images(*pooled.shape)
    pooled_sums = reference.backward_sums_pool(pooled_grad, winners, x, statistics)
    back = (x, statistics, weight)
    parts = _ops.batch_norm_moments(x)
    pairs = {
        "moments": (_ops.batch_norm_merge(parts), moments),
        "finish": (_ops.batch_norm_finish(parts, *running, 0.1, 1e-5), statistics),
        "running mean": (running[0], expected_running[0]),
        "running variance": (running[1], expected_running[1]),
        "apply": (_ops.batch_norm_apply(x, statistics, weight, bias, other, True)[0], y),
        "sums": (_ops.batch_norm_backward_sums(grad, other, signs, x, statistics, True)[0], sums),
        "kept": (_ops.batch_norm_backward_sums(grad, other, signs, x, statistics, True)[1], kept),
        "gradient": (
            _ops.batch_norm_backward_apply(grad, signs, *back, sums),
            reference.backward_apply(grad, signs, *back, sums),
        ),
        "pool": (_ops.batch_norm_apply_pool(x, statistics, weight, bias)[0], pooled),
        "sums of the pool": (
            _ops.batch_norm_backward_sums_pool(pooled_grad, winners, x, statistics),
            pooled_sums,
        ),
        "gradient of the pool": (
            _ops.batch_norm_backward_apply_pool(pooled_grad, winners, *back, pooled_sums),
            reference.backward_apply_pool(pooled_grad, winners, *back, pooled_sums),
        ),
    }
    for name, (given, expected) in pairs.items():
        error = (given.double() - expected.double()).norm() / expected.double().norm()
        if not float(error) <= MOST_ERROR:
            return f"{name} is off by {float(error):.2g} of its norm"
    return None


def main() -> int:
    """Check the kernels on this machine's GPU in each type; returns how many types fail."""
    failed = 0
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        wrong = verify_kernels(torch.device("cuda"), dtype)
        print(f"{dtype}: {wrong or 'right'}")
        failed += wrong is not None
    return failed


if __name__ == "__main__":
    sys.exit(main())
