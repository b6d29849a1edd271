"""What single ingredients are worth: a recipe with one thing changed, several seeds each.

    python benchmarks/ablation.py [--config quickstart] [--seeds 5] [--nproc 2] [--only NAME ...]

Each seed with every variant, each a run of its own. Prints the final top-1 of the weights, and of
their moving average where one is kept: mean, standard deviation, and the mean of the differences
from the first variant, seed by seed. --out keeps the numbers as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from seeds import run_recipe

VARIANTS = {
    "as shipped": "",
    "no label smoothing": "loss.label_smoothing=0",
    "mixup 0.2": "augment.mixup_alpha=0.2",
    "stochastic depth 0.1": "model.stochastic_depth=0.1",
    "EMA 0.98": "train.ema_decay=0.98",
    "EMA 0.98, statistics recomputed": "train.ema_decay=0.98 train.ema_norm_steps=20",
    "batch 16": "train.global_batch_size=16 optim.lr=0.05",
    "batch 512, SGD": "train.global_batch_size=512 optim.lr=1.6 schedule.warmup_epochs=2",
    "batch 512, LARS": "train.global_batch_size=512 optim.name=lars optim.nesterov=false "
    "optim.lr=8 optim.weight_decay=5e-4 schedule.warmup_epochs=2",
}
TAGS = ("val/top1", "val/ema_top1")


def show(results: dict[str, list[dict[str, float]]]) -> None:
    """Print the table of what has been measured."""
    width = max(map(len, results)) + 10
    first = next(iter(results.values()))
    print(f"\n{'variant':<{width}}  n     mean  std.dev.  against the first (std.err.)")
    for name, runs in results.items():
        for tag in TAGS:
            values = [run[tag] for run in runs if tag in run]
            if not values:
                continue
            pairs = [value - base[TAGS[0]] for value, base in zip(values, first, strict=False)]
            many = len(values) > 1
            spread = statistics.stdev(values) if many else 0.0
            error = statistics.stdev(pairs) / len(pairs) ** 0.5 if many else 0.0
            label = name if tag == TAGS[0] else f"{name}: average"
            print(
                f"{label:<{width}} {len(values):>2} {statistics.fmean(values):>8.2%} {spread:>9.2%}"
                f"  {100 * statistics.fmean(pairs):+.2f} ({100 * error:.2f}) points",
                flush=True,
            )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path, help="append each run's numbers, as JSON lines")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in args.only}
    for seed in range(args.seeds):
        for name, runs in results.items():
            settings = [*args.overrides, *VARIANTS[name].split(), f"seed={seed}"]
            with tempfile.TemporaryDirectory() as folder:
                records = run_recipe(args.config, settings, Path(folder), args.nproc)
            last = [record for record in records if TAGS[0] in record][-1]
            runs.append({tag: float(last[tag]) for tag in TAGS if tag in last})
            line = json.dumps({"variant": name, "seed": seed, **runs[-1]})
            print(line, flush=True)
            if args.out is not None:
                with args.out.open("a") as file:
                    file.write(line + "\n")
    show(results)


if __name__ == "__main__":
    main()
