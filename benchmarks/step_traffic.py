"""A prediction, not a measurement: how fast can a step be, given the memory it moves?

    python benchmarks/step_traffic.py [--models resnet50,resnet101] [--modes eager,fused]
        [--batch 256] [--size 224] [--bandwidth-tb-s 4.8] [--tflops 990]

Needs no GPU: see `gpu/traffic.py` for what is counted. The bound is the batch over the sum of the
groups' times, each the larger of bytes / bandwidth and (convolutions, matrix products) operations /
rate. Bandwidth and rate default to an H200's data sheet; a real copy reaches about nine tenths.
"""

from __future__ import annotations

import argparse
import platform
from itertools import repeat

import torch
from gpu.groups import GROUPS
from gpu.ours import build_ours
from gpu.traffic import Count, count, extrapolate

from resnet_dist.errors import UserError
from resnet_dist.performance.modes import MODES, Mode

SMALL = (2, 4)
"""Batches that are run."""


def predict(model: str, mode: Mode, args: argparse.Namespace) -> Count:
    """The count of one step at `args.batch`."""
    counts = []
    for batch in SMALL:
        ours = build_ours(
            [
                f"model.name={model}",
                f"model.width={args.width}",
                f"data.train_size={args.size}",
                f"train.global_batch_size={batch}",
                f"train.precision={args.dtype}",
                "data.loader=synthetic",
                "dist.device=cpu",
                *mode.settings,
            ]
        )
        fixed = repeat(ours.fixed_batches()[0])
        ours.step(fixed, 0)  # what only a first step does
        counts.append(count(lambda ours=ours, fixed=fixed: ours.step(fixed, 1)))  # type: ignore[misc]
    return extrapolate(counts[0], counts[1], SMALL, args.batch)


def row(name: str, one: Count, args: argparse.Namespace) -> str:
    """A line of the table."""
    seconds = one.total / (args.bandwidth_tb_s * 1e12)
    compute = one.flops / (args.tflops * 1e12)
    cells = [
        f"{one.bytes.get(group, 0.0) / 1e9:.1f}" for group in GROUPS if group != "communication"
    ]
    return (
        f"| {name} | {' | '.join(cells)} | **{one.total / 1e9:.1f}** | {1e3 * seconds:.1f} "
        f"| {args.batch / seconds:,.0f} | {one.flops / args.batch / 1e9:.1f} "
        f"| {args.batch / compute:,.0f} |"
    )


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="resnet50,resnet101,resnet152")
    parser.add_argument("--modes", default=",".join(mode.name for mode in MODES))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--bandwidth-tb-s", type=float, default=4.8)
    parser.add_argument("--tflops", "--flops", type=float, default=990.0)
    parser.add_argument("--operators", type=int, default=0, help="list the largest operators")
    args = parser.parse_args()
    print(f"prediction; torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{args.size} px, {args.dtype}, batch {args.batch}; GB a step by group\n")
    groups = [group for group in GROUPS if group != "communication"]
    head = [
        "model, mode",
        *groups,
        "sum",
        "ms",
        "images/s by memory",
        "GFLOP an image",
        "images/s by arithmetic",
    ]
    print(f"| {' | '.join(head)} |\n|---|{'---:|' * (len(head) - 1)}")
    notes = []
    chosen = args.modes.split(",")
    for model in args.models.split(","):
        for mode in (mode for mode in MODES if mode.name in chosen):
            try:
                one = predict(model, mode, args)
            except (UserError, RuntimeError, NotImplementedError) as error:
                notes.append(f"{model}, {mode.name}: {str(error).splitlines()[0]}")
                continue
            print(row(f"{model}, {mode.name}", one, args), flush=True)
            top = sorted(one.operators.items(), key=lambda item: -item[1])[: args.operators]
            notes += [f"{model}, {mode.name}: {name} {moved / 1e9:.2f} GB" for name, moved in top]
    print("\n" + "\n".join(["Not predicted, and details:", *notes] if notes else []))


if __name__ == "__main__":
    main()
