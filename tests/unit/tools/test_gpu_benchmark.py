"""The benchmark for GPUs in miniature on a CPU: names to groups, idle share, counts, tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gpu.groups import group_of_kernel  # noqa: E402
from gpu.kernel_time import Event, record, summarise  # noqa: E402
from gpu.results import Results, tables  # noqa: E402
from gpu.traffic import count, extrapolate  # noqa: E402

from resnet_dist.bench.__main__ import main as bench  # noqa: E402
from resnet_dist.performance.modes import MODES, modes_for  # noqa: E402

KERNELS = {
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64": (
        "convolution"
    ),
    "sm80_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc": "convolution",
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized>": "convolution",
    "_5x_cudnn_ampere_scudnn_128x64_relu_xregs_large_nn_v1": "convolution",
    "void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16, float>": "layout",
    "void cudnn::bn_fw_tr_1C11_kernel_NCHW<__half, float, 512>": "batch norm",
    "void cudnn::batchnorm_bwtr_nhwc_semiPersist<__half>": "batch norm",
    "void at::native::batch_norm_collect_statistics_channels_last_kernel<float>": "batch norm",
    "batch_norm_backward_sums_kernel": "batch norm",
    "triton_red_fused__native_batch_norm_legit_functional_add_relu_12": "batch norm",
    "triton_poi_fused_add_threshold_backward_3": "elementwise",
    "void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor<float>>": (
        "elementwise"
    ),
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>": "elementwise",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedSgdMathFunctor>": (
        "optimizer"
    ),
    "nvjet_hsh_256x128_64x4_2x1_v_bz_coopA_NTN": "matrix product",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "matrix product",
    "Memcpy DtoD (Device -> Device)": "memcpy",
    "Memset (Device)": "memcpy",
    "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage)": "communication",
    "void at::native::(anonymous namespace)::max_pool_forward_nhwc<c10::BFloat16>": "other",
    "a_kernel_nobody_knows": "other",
}


@pytest.mark.parametrize("name", KERNELS)
def test_real_kernel_names_have_their_group(name: str) -> None:
    assert group_of_kernel(name) == KERNELS[name]


def test_shares_and_idleness_of_a_made_up_time_line() -> None:
    events = [
        Event("a", 0.0, 40.0, "convolution"),
        Event("b", 30.0, 50.0, "batch norm"),  # 10 us at the same time as a
        Event("a", 70.0, 100.0, "convolution"),
    ]
    summary = summarise(events, 2)
    assert summary.shares["convolution"] == pytest.approx(0.7)
    assert summary.shares["batch norm"] == pytest.approx(0.2)
    assert summary.idle == pytest.approx(0.2)
    assert summary.ms == pytest.approx(0.05)
    assert summary.longest[0] == ("convolution", "a", pytest.approx(0.7))


def test_the_profiler_finds_convolutions() -> None:
    images, weights = torch.randn(4, 8, 16, 16), torch.randn(8, 8, 3, 3)
    events = record(lambda: torch.conv2d(images, weights).relu_(), 2, torch.device("cpu"))
    assert [event.group for event in events] == ["convolution", "elementwise"] * 2
    assert 0 <= summarise(events, 2).idle < 1


def test_bytes_of_a_convolution_batch_norm_and_relu_by_hand() -> None:
    """16-bit activations of E bytes; the norm reads twice; views are free."""

    def step(n: int) -> object:
        x = torch.zeros(n, 8, 10, 10, dtype=torch.bfloat16)
        weight = torch.zeros(8, 8, 1, 1, dtype=torch.bfloat16)
        one, zero = torch.ones(8), torch.zeros(8)

        def run() -> None:
            y = torch.conv2d(x, weight)
            z = torch.batch_norm(y, one, zero, zero, one, True, 0.1, 1e-5, False)
            z.view(-1).relu_()

        return run

    counts = [count(step(n)) for n in (2, 4)]  # type: ignore[arg-type]
    found = extrapolate(counts[0], counts[1], (2, 4), 256)
    e = 256 * 8 * 100 * 2
    assert found.bytes["convolution"] == 2 * e + 8 * 8 * 2
    assert found.bytes["batch norm"] == pytest.approx(3 * e, abs=500)
    assert found.bytes["elementwise"] == 2 * e
    assert found.flops == 2 * 256 * 100 * 8 * 8


@pytest.mark.slow
def test_a_table_in_miniature_and_a_failing_variant_that_costs_a_line(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    command = [sys.executable, str(BENCHMARKS / "gpu_step.py"), "--device=cpu", f"--out={out}"]
    command += ["--models=resnet18", "--width=8", "--batches=2", "--sizes=32", "--dtypes=bfloat16"]
    command += ["--modes=plain,fused,graphed,static_scale", "--steps=1", "--rounds=2"]
    command += ["--check-steps=12", "--budget-s=1e6", "--variant-s=1e6"]  # no clock decides
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("| variant |")[2]
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if "| " in line}
    for name in ("plain", "torchvision", "fused"):
        assert float(rows[name].split("|")[2].replace(",", "")) > 0
    assert "(float32 " in rows["fused"]
    assert "error: " in rows["graphed"]  # there is no GPU to capture anything
    assert "static_scale" not in rows  # for float16 only
    # Nothing is left to do, and the same table is printed again.
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.stdout.partition("| variant |")[2] == table


def test_what_is_cut_off_is_done_later_and_what_crashed_is_not(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    for name in ("a", "b", "c"):
        results.add("begin", "case", name)
    results.add("end", "case", "a")
    assert results.unfinished() == [("case", "b"), ("case", "c")]
    results.add("cut", "case", "b")
    results.add("crash", "case", "c")
    results.add("error", "case", "c", message="the process ended with code -11")
    assert results.unfinished() == []
    assert results.begun() == {("case", "a"), ("case", "c")}
    assert "| c | error: the process ended with code -11 |" in tables(results.read())
    with results.path.open("a") as file:
        file.write('{"kind": "begin", "ca')  # a kill in the middle of a line
    assert results.begun() == {("case", "a"), ("case", "c")}


def test_modes_are_arguments_for_a_precision() -> None:
    names = {p: [mode.name for mode in modes_for(p)] for p in ("float32", "bfloat16", "float16")}
    assert all(of[0] == "plain" for of in names.values())
    assert "static_scale" in names["float16"]
    assert "static_scale" not in names["bfloat16"]


def test_bench_compares_modes_and_names_the_fastest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = [mode for mode in MODES if mode.name in ("plain", "fused", "graphed")]
    monkeypatch.setattr("resnet_dist.performance.modes.MODES", some)
    monkeypatch.setattr("resnet_dist.bench.compare.SECONDS", 0.02)
    settings = f"performance.num_threads={torch.get_num_threads()} train.precision=bfloat16 "
    settings += "dist.device=cpu model.width=16 data.train_size=32 train.global_batch_size=4"
    assert bench(["--modes", *settings.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["plain", "graphed", "fused"]
    assert "not possible" in lines[2]
    assert lines[-1].startswith(("fastest: plain; performance.", "fastest: fused; performance."))
