"""Images of one size: decoded every epoch (torch) or once (memory). In turn, in one process.

    python benchmarks/data/memory_loader.py --root CIFAR10_FOLDER [--rounds 7] [key=value]

With the settings of configs/cifar10_resnet9.yaml. Prints images/s (median, range) of both loaders
on the device that `dist.device` gives, and the time that memory takes to be filled.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import closing

import torch
from numpy import __version__ as numpy_version

from resnet_dist.build import train_loader
from resnet_dist.config.load import load_config
from resnet_dist.data.datasets import sync_open_datasets
from resnet_dist.data.loaders.loader import TrainLoader
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.trainer import configure_torch
from resnet_dist.world import start_process_group, stop_process_group

WARM_UP = 3
"""Batches that are not counted."""


def rate(loader: TrainLoader, seconds: float) -> float:
    """Images/s of a loader alone."""
    with closing(loader.batches(0, 10**9)) as batches:
        for _ in range(WARM_UP):
            next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            count += next(batches).images.shape[0]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return count / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    loaders: dict[str, TrainLoader] = {}
    for name in ("torch", "memory"):
        overrides = [f"data.root={args.root}", f"data.loader={name}", *args.overrides]
        config = load_config(["cifar10_resnet9"], overrides).config
        world = start_process_group(config.dist)
        configure_torch(config, world)
        datasets = sync_open_datasets(config, world)
        start = time.perf_counter()
        loaders[name] = train_loader(
            config, datasets, choose_batch_split(config.train, world.size), world
        )
        filled = time.perf_counter() - start
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(args.rounds):
        for name, loader in loaders.items():
            rates[name].append(rate(loader, args.seconds))
    print(f"torch {torch.__version__}, numpy {numpy_version}, {world.device.type}")
    print(f"batch {config.train.global_batch_size}, {args.rounds} rounds of {args.seconds:g} s")
    for name, values in rates.items():
        low, high = min(values), max(values)
        print(f"{name}: {statistics.median(values):,.0f} images/s ({low:,.0f} to {high:,.0f})")
    ratio = statistics.median(rates["memory"]) / statistics.median(rates["torch"])
    print(f"memory / torch: {ratio:.2f}; filled in {filled:.1f} s")
    stop_process_group(world)


if __name__ == "__main__":
    main()
