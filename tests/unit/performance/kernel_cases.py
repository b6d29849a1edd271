"""Run by test_kernels.py in processes of its own, since Triton is interpreted, or not, for good.

    TRITON_INTERPRET=1 python -m tests.unit.performance.kernel_cases interpret
    python -m tests.unit.performance.kernel_cases compile

`interpret` runs the kernels on the CPU and compares them with their reference; `compile` builds
them for a GPU that need not be there, and reads the machine code. Both print lines of JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from resnet_dist.performance.kernels import batch_norm_kernels as kernels
from resnet_dist.performance.kernels import batch_norm_reference as reference
from resnet_dist.performance.kernels import batch_norm_triton as launchers
from resnet_dist.performance.kernels import pool_kernels

SHAPES = [(2, 16, 9, 7), (3, 200, 3, 5), (1, 8, 1, 2)]
"""Rows and channels that fill tiles and that do not, and a part with fewer rows than a tile."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS, MOMENTUM = 1e-3, 0.3
KERNELS = [
    "batch_norm_moments_kernel",
    "batch_norm_merge_kernel",
    "batch_norm_apply_kernel",
    "batch_norm_backward_sums_kernel",
    "batch_norm_backward_apply_kernel",
    "batch_norm_apply_pool_kernel",
    "batch_norm_backward_sums_pool_kernel",
    "batch_norm_backward_apply_pool_kernel",
]


def _images(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> Tensor:
    return (torch.randn(shape) + mean).to(dtype).contiguous(memory_format=torch.channels_last)


def _error(given: Tensor, expected: Tensor) -> float:
    if given.shape != expected.shape or given.dtype != expected.dtype:
        return float("inf")
    if given.stride() != expected.stride():
        return float("inf")
    norm = expected.double().norm().item()
    return (given.double() - expected.double()).norm().item() / max(norm, 1e-30)


def interpret() -> Iterator[dict[str, Any]]:
    """Relative errors of every kernel for every combination of its options."""
    torch.manual_seed(0)
    # Small tiles and several parts, so that small inputs go through every branch.
    small = launchers.Tiling(rows=8, channels=64, warps=4, programs=3)
    launchers.TILINGS.update(dict.fromkeys(launchers.TILINGS, small))
    for dtype, shape in product(DTYPES, SHAPES):
        channels = shape[1]
        # A mean that is large against the deviation: sums of squares would cancel.
        x, residual = _images(shape, dtype, mean=50.0), _images(shape, dtype)
        grad, other = _images(shape, dtype), _images(shape, dtype)
        weight, bias = torch.randn(channels), torch.randn(channels)
        running = [torch.randn(channels), torch.rand(channels)]
        expected_running = [tensor.clone() for tensor in running]
        parts = launchers.moments(x)
        given = {"parts": float(parts.shape[0])}
        given["merge"] = _error(launchers.merge(parts), reference.moments(x))
        statistics = reference.finish(reference.moments(x), *expected_running, MOMENTUM, EPS)
        finished = launchers.finish(parts, *running, MOMENTUM, EPS)
        given["statistics"] = _error(finished, statistics)
        given["running_mean"] = _error(running[0], expected_running[0])
        given["running_var"] = _error(running[1], expected_running[1])
        for adds, relu in product((False, True), (False, True)):
            key = f"{adds=} {relu=}"
            inputs = (x, statistics, weight, bias, residual if adds else None, relu)
            (y, signs), (expected_y, expected_signs) = (
                launchers.apply(*inputs),
                reference.apply(*inputs),
            )
            given[f"apply {key}"] = _error(y, expected_y)
            given[f"signs {key}"] = float((signs != expected_signs).sum())
            for keep in (False, True):
                inputs = (grad, other if adds else None, expected_signs, x, statistics, keep)
                sums, kept = launchers.backward_sums(*inputs)
                expected_sums, expected_kept = reference.backward_sums(*inputs)
                given[f"sums {key} {keep=}"] = _error(sums, expected_sums)
                given[f"kept {key} {keep=}"] = _error(kept, expected_kept)
            inputs = (grad, expected_signs, x, statistics, weight, expected_sums)
            given[f"grad {key}"] = _error(
                launchers.backward_apply(*inputs), reference.backward_apply(*inputs)
            )
        given |= _pool_errors(x, statistics, weight, bias)
        yield {"dtype": str(dtype), "shape": shape, "errors": given}


def _pool_errors(x: Tensor, statistics: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
    inputs = (x, statistics, weight, bias)
    (y, winners), (expected_y, expected) = (
        launchers.apply_pool(*inputs),
        reference.apply_pool(*inputs),
    )
    grad = _images(tuple(y.shape), x.dtype)
    sums = reference.backward_sums_pool(grad, expected, x, statistics)
    backward = (grad, expected, x, statistics, weight, sums)
    return {
        "apply_pool": _error(y, _images_like(expected_y, y)),
        "winners": float((winners != expected).sum()),
        "sums_pool": _error(launchers.backward_sums_pool(*backward[:4]), sums),
        "grad_pool": _error(
            launchers.backward_apply_pool(*backward), reference.backward_apply_pool(*backward)
        ),
    }


def _images_like(images: Tensor, like: Tensor) -> Tensor:
    """The same with the strides of `like`: with one pixel, layouts cannot be told apart."""
    return (
        images
        if images.numel() != images.shape[1]
        else images.as_strided_(like.shape, like.stride())
    )


def compile_for(arch: int) -> Iterator[dict[str, Any]]:
    """Registers, spills and widths of memory accesses of each kernel as it is launched."""
    both = {"ADDS": True, "RELU": True, "KEEPS": True, "FINISHES": True}
    for name in KERNELS:
        kernel = getattr(pool_kernels if "pool" in name else kernels, name)
        operator = name.removeprefix("batch_norm_").removesuffix("_kernel")
        tiling = launchers.TILINGS.get(operator, launchers.Tiling(16, 16, warps=4))
        constants = {"BLOCK_M": tiling.rows, "BLOCK_C": tiling.channels, **both}
        warps = tiling.warps
        if "BLOCK_S" in kernel.arg_names:
            constants, warps = {**constants, "BLOCK_S": launchers.PARTS_AT_ONCE}, 4
        yield {"kernel": name, **_compiled(kernel, constants, arch=arch, warps=warps)}


def _compiled(kernel: Any, constants: dict[str, Any], *, arch: int, warps: int) -> dict[str, Any]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    activations = {"x_ptr", "residual_ptr", "result_ptr", "grad_ptr", "other_ptr", "kept_ptr"}
    is_merge = "BLOCK_S" in kernel.arg_names
    signature, aligned = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            wide = "*bf16" if name in activations and not is_merge else "*fp32"
            signature[name] = "*u8" if name in ("signs_ptr", "winners_ptr") else wide
            aligned[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in ("momentum", "eps") else "i32"
            if name == "C":  # any multiple of 16
                aligned[(position,)] = [["tt.divisibility", 16]]
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "enable_fp_fusion": True},
    )
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, local = (int(number) for number in found.groups())
    lines = compiled.asm["ptx"].splitlines()
    return {
        "registers": registers,
        "spilled_bytes": stack + local,
        "wide_loads": sum("ld.global" in line and ".v4.b32" in line for line in lines),
        "wide_stores": sum("st.global" in line and ".v4.b32" in line for line in lines),
    }


if __name__ == "__main__":
    for case in interpret() if sys.argv[1] == "interpret" else compile_for(int(sys.argv[2])):
        print(json.dumps(case), flush=True)
