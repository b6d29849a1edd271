"""The fused kernels, run by Triton's interpreter and compiled for GPUs, against their reference;
and the reference against PyTorch's batch norm. On a real GPU: tests/gpu/test_kernels_cuda.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_dist.performance.fused_norm import norm_relu, norm_relu_convolution, norm_relu_pool
from resnet_dist.performance.kernels import batch_norm_reference as reference
from resnet_dist.performance.kernels import ops  # noqa: F401, registers the operators
from resnet_dist.performance.kernels.verify import verify_kernels

OPS = torch.ops.resnet_dist


def _run_cases(*arguments: str, **environment: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.unit.performance.kernel_cases", *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def _interpreter_works() -> bool:
    """Triton's up to 3.6 takes one-element arrays for numbers, which NumPy 2.4 refuses."""

    def release(package: str) -> tuple[int, int]:
        major, minor = version(package).split(".")[:2]
        return int(major), int(minor)

    return release("triton") >= (3, 7) or release("numpy") < (2, 4)


@pytest.mark.slow
@pytest.mark.skipif(not _interpreter_works(), reason="this Triton's interpreter needs numpy<2.4")
def test_interpreted_kernels_equal_their_twins() -> None:
    cases = _run_cases("interpret", TRITON_INTERPRET="1")
    assert len(cases) == 9
    assert {case["errors"].pop("parts") > 1 for case in cases} == {True, False}
    for case in cases:
        # The interpreter rounds to bfloat16 by cutting off: up to one unit in the last place.
        rounding = 2**-7 if case["dtype"] == "torch.bfloat16" else 5e-6
        for name, error in case["errors"].items():
            exact = name.split()[0] not in ("apply", "kept", "grad", "apply_pool", "grad_pool")
            assert error <= (5e-6 if exact else rounding), (case, name)


@pytest.mark.skipif(not _interpreter_works(), reason="this Triton's interpreter needs numpy<2.4")
def test_the_benchmark_of_tiles_runs_interpreted() -> None:
    script = Path(__file__).parents[3] / "benchmarks" / "kernel_tiles.py"
    command = [sys.executable, str(script), "--device", "cpu", "--model", "resnet18"]
    command += ["--width", "8", "--batch", "1", "--size", "32", "--repeats", "1", "--limit", "2"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    best = [line for line in result.stdout.splitlines() if line.startswith("best: ")]
    assert len(best) == 7, result.stdout


@pytest.mark.parametrize("arch", [80, 90])
def test_compiled_kernels_do_not_spill_and_read_16_bytes_at_once(arch: int) -> None:
    """For A100 and H100/H200; the compiler needs no GPU."""
    cases = _run_cases("compile", str(arch))
    assert len(cases) == 8
    for case in cases:
        assert case["spilled_bytes"] == 0, case
        assert case["registers"] <= 240, case
        is_merge = "merge" in case["kernel"]  # a few kilobytes of float32
        assert (case["wide_loads"] > 0) is not is_merge, case
        writes = case["kernel"].removesuffix("_kernel") not in (
            "batch_norm_moments",
            "batch_norm_merge",
            "batch_norm_backward_sums_pool",
        )
        assert (case["wide_stores"] > 0) is writes, case


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(channels) + 0.5)
        norm.bias.copy_(torch.randn(channels))
    return norm


def _copy(module: Any) -> Any:
    import copy

    return copy.deepcopy(module)


def _leaf(*shape: int) -> Tensor:
    x = torch.randn(*shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(True)


def _compare(given: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for one, two in zip(given, expected, strict=True):
        assert one is not None
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("adds", [True, False])
def test_norm_relu_equals_batch_norm_add_relu(adds: bool, relu: bool) -> None:
    torch.manual_seed(0)
    fused, plain = _norm(16), None
    plain = _copy(fused)
    x, residual, grad = _leaf(3, 16, 5, 4), _leaf(3, 16, 5, 4), torch.randn(3, 16, 5, 4).double()
    inputs = [x, residual] if adds else [x]

    y = norm_relu(fused, x, residual if adds else None, relu=relu)
    assert y.is_contiguous(memory_format=torch.channels_last)
    given = torch.autograd.grad(y, [*inputs, fused.weight, fused.bias], grad)

    expected_y = plain(x) + residual if adds else plain(x)
    expected_y = expected_y.relu() if relu else expected_y
    expected = torch.autograd.grad(expected_y, [*inputs, plain.weight, plain.bias], grad)
    _compare([y, *given], [expected_y, *expected])
    _compare([fused.running_mean, fused.running_var], [plain.running_mean, plain.running_var])


@pytest.mark.parametrize("uses_both", [True, False])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_norm_relu_convolution_equals_its_parts(stride: int, adds: bool, uses_both: bool) -> None:
    torch.manual_seed(0)
    fused, convolution = _norm(8), nn.Conv2d(8, 16, 3, stride, padding=1, bias=False).double()
    plain = _copy(fused)
    x, residual = _leaf(2, 8, 6, 6), _leaf(2, 8, 6, 6)
    inputs = [x, residual] if adds else [x]
    parameters = [convolution.weight, fused.weight, fused.bias]

    z, y = norm_relu_convolution(fused, convolution, x, residual if adds else None)
    total = z.sin().sum() + (y.cos().sum() if uses_both else 0.0)
    given = torch.autograd.grad(total, [*inputs, *parameters])

    expected_y = (plain(x) + residual if adds else plain(x)).relu()
    expected_z = convolution(expected_y)
    total = expected_z.sin().sum() + (expected_y.cos().sum() if uses_both else 0.0)
    parameters = [convolution.weight, plain.weight, plain.bias]
    expected = torch.autograd.grad(total, [*inputs, *parameters])
    _compare([z, y, *given], [expected_z, expected_y, *expected])


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 2)])
def test_norm_relu_pool_equals_its_parts(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    fused = _norm(8)
    plain = _copy(fused)
    x = _leaf(3, 8, *size)
    y = norm_relu_pool(fused, x)
    expected_y = nn.functional.max_pool2d(plain(x).relu(), 3, stride=2, padding=1)
    grad = torch.randn(y.shape).double()
    given = torch.autograd.grad(y, [x, fused.weight, fused.bias], grad)
    expected = torch.autograd.grad(expected_y, [x, plain.weight, plain.bias], grad)
    _compare([y, *given], [expected_y, *expected])
    _compare([fused.running_mean, fused.running_var], [plain.running_mean, plain.running_var])


def test_a_nan_is_not_hidden() -> None:
    """Comparisons with a NaN are false: a ReLU or a maximum made of them would swallow it."""
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    statistics = reference.finish(reference.moments(x), torch.zeros(8), torch.ones(8), 0.1, 1e-5)
    x[1, 3, 2, 2] = float("nan")
    y, _ = reference.apply(x, statistics, torch.ones(8), torch.zeros(8), None, True)
    assert y.isnan().sum() == 1
    y, _ = reference.apply_pool(x, statistics, torch.ones(8), torch.zeros(8))
    assert y.isnan().sum() == 1  # (2, 2) lies in one window only


def test_one_value_a_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one value per channel, got 1 "):
        norm_relu(_norm(8), _leaf(1, 8, 1, 1))


def test_moments_of_parts_are_those_of_the_whole() -> None:
    """Uneven and empty parts; a mean that is large against the deviation."""
    x = (torch.randn(7, 8, 3, 3) + 1000.0).contiguous(memory_format=torch.channels_last)
    pieces = [x[:2], x[2:2], x[2:3], x[3:]]
    parts = torch.cat([reference.moments(piece) for piece in pieces])
    torch.testing.assert_close(reference.merge(parts), reference.moments(x), rtol=1e-5, atol=1e-5)
    exact = reference.moments(x.double())[0]
    assert exact[-1] == x.numel() / 8
    torch.testing.assert_close(reference.merge(parts)[0].double(), exact, rtol=1e-5, atol=1e-5)


def test_signs_are_packed_without_loss() -> None:
    passed = torch.rand(11, 24) > 0.5
    packed = reference.pack(passed)
    assert packed.shape == (11, 3)
    assert packed.dtype == torch.uint8
    assert torch.equal(reference.unpack(packed), passed)
    assert packed[0, 0] == sum(int(bit) << i for i, bit in enumerate(passed[0, :8]))


def test_the_operators_do_what_their_schemas_say() -> None:
    """Which arguments change, what is a view of what, and shapes on tensors without data."""
    x = torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    running = (torch.zeros(8), torch.ones(8))
    parts = OPS.batch_norm_moments(x)
    statistics = OPS.batch_norm_finish(parts, *running, 0.1, 1e-5)
    weight, bias = torch.ones(8), torch.zeros(8)
    y, signs = OPS.batch_norm_apply(x, statistics, weight, bias, x, True)
    sums, _ = OPS.batch_norm_backward_sums(y, x, signs, x, statistics, True)
    pooled, winners = OPS.batch_norm_apply_pool(x, statistics, weight, bias)
    tests = ("test_schema", "test_faketensor")
    for name, inputs in {
        "moments": (x,),
        "merge": (parts,),
        "finish": (parts, *running, 0.1, 1e-5),
        "apply": (x, statistics, weight, bias, None, False),
        "backward_sums": (y, None, signs, x, statistics, True),
        "backward_apply": (y, signs, x, statistics, weight, sums),
        "apply_pool": (x, statistics, weight, bias),
        "backward_sums_pool": (pooled, winners, x, statistics),
        "backward_apply_pool": (pooled, winners, x, statistics, weight, sums),
    }.items():
        operator = getattr(OPS, f"batch_norm_{name}").default
        torch.library.opcheck(operator, inputs, test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_are_verified_before_they_are_trained_on(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    assert verify_kernels(cpu, dtype) is None

    def wrong(*arguments: Any) -> Tensor:
        return reference.backward_apply(*arguments) * 1.05

    monkeypatch.setattr(OPS, "batch_norm_backward_apply", wrong)
    assert (verify_kernels(cpu, dtype) or "").startswith("gradient is off by 0.05")
