"""What do saves cost? Steps with a save in flight against steps without one, in turn, in one run.

    torchrun --nproc_per_node 2 benchmarks/save_stall.py [--pairs 3] [--every 20] [key=value ...]

ResNet-50 with momentum and moving average, on data that are free (`data.loader=synthetic`). Of
every two intervals of `--every` steps the first begins with a save, the second has none: an
interval with a save holds all of its cost, the snapshot and the background writing. Prints the
total times, the step times at the median and the 99th percentile, and how long the snapshots held
up the step.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import torch
from run_parts import build_run

from resnet_dist.config import Config
from resnet_dist.config.load import load_config
from resnet_dist.data.batch import Batch
from resnet_dist.data.loaders.loader import TrainLoader
from resnet_dist.loop import Cadence, fit
from resnet_dist.metrics.jsonl import read_records
from resnet_dist.run.folder import run_folder
from resnet_dist.system.ranks import launched_ranks
from resnet_dist.world import stop_process_group

SETTINGS = [
    "data.loader=synthetic",
    "train.precision=float32",
    "train.global_batch_size=32",
    "train.ema_decay=0.999",
    "log.every_steps=10",
]


@dataclasses.dataclass(frozen=True)
class InTurn(Cadence):
    """Saves at the begin of every other interval, and nothing else."""

    every: int = 20

    def saves(self, step: int) -> bool:
        """At step 0 (counted after the warm-up interval), 2 * every, ..."""
        return step % (2 * self.every) == 0

    def evaluates(self, step: int) -> bool:
        """Never."""
        del step
        return False


class Timed:
    """A loader that notes when each batch is asked for."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader
        self.asked: list[float] = []

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """The loader's batches."""
        with closing(self._loader.batches(start_step, stop_step)) as batches:
            for batch in batches:
                self.asked.append(time.perf_counter())
                yield batch
        self.asked.append(time.perf_counter())


def measure(config: Config, *, pairs: int, every: int) -> tuple[list[float], list[float]]:
    """(seconds of each step after the first two intervals, snapshots' ms), on this rank."""
    built = build_run(config)
    state, use = built.state, built.use
    fields = {field.name: getattr(use.cadence, field.name) for field in dataclasses.fields(Cadence)}
    stop = 2 * every * (pairs + 1) + 1
    cadence = InTurn(**fields | {"num_steps": 10**9, "stop_step": stop}, every=every)
    loader = Timed(use.train_loader)
    use = dataclasses.replace(use, train_loader=loader, cadence=cadence)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        built.watchdog,
        closing(use.recorder),
        closing(use.saver),
    ):
        use.saver.probe(state.state_dict())
        fit(state, use)
    seconds = [
        after - before for before, after in zip(loader.asked, loader.asked[1:], strict=False)
    ]
    blocked = []
    if built.world.is_main:
        records = read_records(run_folder(config.run) / "metrics.jsonl")
        blocked = [r["checkpoint/blocked_ms"] for r in records if "checkpoint/blocked_ms" in r]
    stop_process_group(built.world)
    # The snapshot of a step is taken before the batch of the next one is asked for.
    return seconds[2 * every - 1 :], blocked


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    rank, size, *_ = launched_ranks()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        config = load_config(
            ["resnet50"], [*SETTINGS, f"run.dir={run_dir}", *args.overrides]
        ).config
        seconds, blocked = measure(config, pairs=args.pairs, every=args.every)
    if rank:
        sys.exit()
    intervals = [
        seconds[start : start + args.every] for start in range(0, len(seconds), args.every)
    ][: 2 * args.pairs]
    print(
        f"torch {torch.__version__}, {size} ranks, {config.model.name}, {config.train.precision}, "
    )
    print(f"global batch {config.train.global_batch_size}, {config.data.train_size} px")
    print(f"\n| interval of {args.every} steps | total s | median step s | 99th percentile s |")
    print("|---|---:|---:|---:|")
    groups = {"with a save": intervals[0::2], "without": intervals[1::2]}
    for name, group in groups.items():
        steps = sorted(value for interval in group for value in interval)
        totals = ", ".join(f"{sum(interval):.1f}" for interval in group)
        high = steps[min(len(steps) - 1, int(0.99 * len(steps)))]
        print(f"| {name} | {totals} | {statistics.median(steps):.3f} | {high:.3f} |")
    with_save, without = (sum(map(sum, group)) for group in groups.values())
    print(f"\ntotal with saves / without: {with_save / without:.4f}")
    pairs = [sum(a) / sum(b) for a, b in zip(*groups.values(), strict=True)]
    print(f"median of the pairs: {statistics.median(pairs):.4f}")
    for name, group in groups.items():
        by_place = [statistics.median(steps) for steps in zip(*group, strict=True)]
        print(f"median step by its place, {name}: {' '.join(f'{x:.2f}' for x in by_place)}")
    print(f"step held up by the snapshot, ms: {', '.join(f'{value:.0f}' for value in blocked)}")


if __name__ == "__main__":
    main()
