"""Which tiles make the fused batch norm kernels fastest? All layers of a network, on a GPU.

    python benchmarks/kernel_tiles.py [--model resnet50] [--batch 256] [--size 224] [--repeats 20]

For each kernel and each tiling of `resnet_dist.performance.kernels.batch_norm_triton`: milliseconds
for all its launches of one training step in bfloat16, and the bandwidth of what it must read and
write, beside that of a plain copy. Every result is compared with the reference's once. A tiling
that does not compile or is wrong costs a line. Prints the best of each kernel and the lines to
write into that file.

Without a GPU, as a test of this script: TRITON_INTERPRET=1 ... --device cpu --batch 1 --size 32
--width 8 --repeats 1 --limit 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from resnet_dist.config import ModelConfig
from resnet_dist.models.build import build_model
from resnet_dist.performance.kernels import batch_norm_reference as reference
from resnet_dist.performance.kernels import batch_norm_triton as launchers
from resnet_dist.performance.kernels.batch_norm_triton import Tiling

Shape = tuple[int, ...]
REDUCTIONS = ("moments", "backward_sums", "backward_sums_pool")
"""Operators whose programs go through many tiles each."""
CACHE_BYTES = 256 << 20
"""Written between launches, so that no input lies in the level-2 cache."""


@dataclass
class Layer:
    """The tensors of one batch norm."""

    x: Tensor
    other: Tensor
    statistics: Tensor
    weight: Tensor
    bias: Tensor
    signs: Tensor
    sums: Tensor
    pooled: Tensor | None
    winners: Tensor | None

    def arguments(self, kernel: str) -> tuple[Any, ...]:
        """Those of a kernel, for the case with everything: a branch added, a ReLU, a kept sum."""
        return {
            "moments": (self.x,),
            "apply": (self.x, self.statistics, self.weight, self.bias, self.other, True),
            "backward_sums": (self.other, self.x, self.signs, self.x, self.statistics, True),
            "backward_apply": (
                self.other,
                self.signs,
                self.x,
                self.statistics,
                self.weight,
                self.sums,
            ),
            "apply_pool": (self.x, self.statistics, self.weight, self.bias),
            "backward_sums_pool": (self.pooled, self.winners, self.x, self.statistics),
            "backward_apply_pool": (
                self.pooled,
                self.winners,
                self.x,
                self.statistics,
                self.weight,
                self.sums,
            ),
        }[kernel]


def layers_of(args: argparse.Namespace) -> list[tuple[Shape, int, bool]]:
    """(shape, number, whether a pool follows) of the network's batch norms."""
    config = ModelConfig(name=args.model, width=args.width)
    model = build_model(config, num_classes=10, seed=0).to("meta")
    shapes: Counter[tuple[Shape, bool]] = Counter()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        shapes[(args.batch, *inputs[0].shape[1:]), module is model.bn1] += 1

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(note)
    model(torch.empty(2, 3, args.size, args.size, device="meta"))
    return [(shape, number, pools) for (shape, pools), number in shapes.items()]


def make_layer(shape: Shape, pools: bool, device: str) -> Layer:
    """Random tensors, with the reference' intermediate results."""
    channels = shape[1]

    def images(*size: int) -> Tensor:
        x = torch.randn(size, device=device).bfloat16()
        return x.contiguous(memory_format=torch.channels_last)

    x, other = images(*shape), images(*shape)
    weight, bias = (torch.randn(channels, device=device) for _ in range(2))
    running = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    statistics = reference.finish(reference.moments(x), *running, 0.1, 1e-5)
    signs = reference.apply(x, statistics, weight, bias, other, True)[1]
    sums = torch.randn(2 * channels, device=device)
    pooled = winners = None
    if pools:
        y, winners = reference.apply_pool(x, statistics, weight, bias)
        pooled = images(*y.shape)
    return Layer(x, other, statistics, weight, bias, signs, sums, pooled, winners)


def tensors_of(values: Any) -> list[Tensor]:
    """The tensors among arguments or results."""
    values = values if isinstance(values, tuple) else (values,)
    return [value for value in values if isinstance(value, Tensor)]


def error_of(given: Any, expected: Any) -> float:
    """Largest relative error among the floating-point results."""
    errors = [0.0]
    for one, two in zip(tensors_of(given), tensors_of(expected), strict=True):
        if one.is_floating_point() and one.numel():
            norm = two.double().norm().clamp(min=1e-30)
            errors.append(float((one.double() - two.double()).norm() / norm))
    return max(errors)


def milliseconds(function: Callable[[], Any], device: str, repeats: int) -> float:
    """Median of some calls with a cold cache."""
    function()
    times = []
    flush = torch.empty(CACHE_BYTES if device == "cuda" else 1, dtype=torch.int8, device=device)
    for _ in range(repeats):
        flush.zero_()
        if device == "cuda":
            begin, end = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(float(begin.elapsed_time(end)))
        else:
            start = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def tilings(kernel: str) -> Iterator[Tiling]:
    """Those worth trying, today's first."""
    yield launchers.TILINGS[kernel]
    programs = (2, 4, 8, 16) if kernel in REDUCTIONS else (1,)
    for each, rows, channels, warps in product(
        programs, (8, 16, 32, 64, 128), (64, 128, 256), (4, 8)
    ):
        values_a_thread = rows * channels / (32 * warps)
        if 8 <= values_a_thread <= 32 and each * warps <= 64:
            yield Tiling(rows, channels, warps, each)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--kernels", default=",".join(launchers.TILINGS))
    parser.add_argument("--limit", type=int, help="tilings of each kernel")
    parser.add_argument("--budget-s", type=float, default=480.0)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    deadline = time.monotonic() + args.budget_s
    torch.manual_seed(0)
    source = torch.empty(
        1 << (30 if args.device == "cuda" else 20), dtype=torch.int8, device=args.device
    )
    copy_ms = milliseconds(lambda: source.clone(), args.device, args.repeats)
    print(f"copy: {2e-6 * source.numel() / copy_ms:,.0f} GB/s")
    layers = layers_of(args)
    for kernel in args.kernels.split(","):
        best = tune(kernel, layers, args, deadline)
        if best is not None:
            print(f'best:    "{kernel}": {best},', flush=True)


def tune(
    kernel: str,
    layers: list[tuple[Shape, int, bool]],
    args: argparse.Namespace,
    deadline: float,
) -> Tiling | None:
    """Time a kernel with all tilings; the fastest that is right."""
    today = launchers.TILINGS[kernel]
    # The stem's moments are taken like all others; what follows is done with its pool.
    mine = [layer for layer in layers if kernel == "moments" or layer[2] == ("pool" in kernel)]
    total: dict[Tiling, float] = {}
    moved = 0.0
    for shape, number, pools in mine:
        layer = make_layer(shape, pools, args.device)
        arguments = layer.arguments(kernel)
        expected = getattr(reference, kernel)(*arguments)
        moved += number * sum(t.nbytes for t in tensors_of(arguments) + tensors_of(expected))
        for tiling in list(dict.fromkeys(tilings(kernel)))[: args.limit]:
            if time.monotonic() > deadline or total.get(tiling) == float("inf"):
                continue
            launchers.TILINGS[kernel] = tiling
            try:
                result = getattr(launchers, kernel)(*arguments)
                if kernel == "moments":
                    result, truth = reference.merge(result), reference.merge(expected)
                else:
                    truth = expected
                if error_of(result, truth) > 1e-2:
                    raise ValueError(f"wrong by {error_of(result, truth):.3g}")
                call = lambda: getattr(launchers, kernel)(*arguments)  # noqa: E731, B023
                ms = number * milliseconds(call, args.device, args.repeats)
                total[tiling] = total.get(tiling, 0.0) + ms
            except Exception as error:
                print(f"{kernel} {tiling} {shape}: {str(error).splitlines()[0][:100]}", flush=True)
                total[tiling] = float("inf")
            finally:
                launchers.TILINGS[kernel] = today
    ranked = sorted((ms, index, tiling) for index, (tiling, ms) in enumerate(total.items()))
    shown = ranked[:5] + [entry for entry in ranked[5:] if entry[2] == today]
    for ms, _, tiling in shown:
        mark = " (today's)" if tiling == today else ""
        print(
            f"{kernel}: {ms:.3f} ms a step, {1e-6 * moved / ms:,.0f} GB/s, {tiling}{mark}",
            flush=True,
        )
    return ranked[0][2] if ranked and ranked[0][0] < float("inf") else None


if __name__ == "__main__":
    main()
