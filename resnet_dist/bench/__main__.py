"""`python -m resnet_dist.bench [--config C] [key=value ...]`: what limits the speed here?

Measures the loader alone, the training step alone (on a fixed batch in memory), and both together,
in turn for several rounds, and says in words which of them is the bottleneck. Runs under torchrun
too; then it gives the sum over the ranks as rank 0 sees it.

With --modes: which performance settings make the step fastest here (`resnet_dist/modes.py`)?
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice

import torch

from resnet_dist.bench.step import compare_modes
from resnet_dist.build import build_state, train_loader
from resnet_dist.config import Config
from resnet_dist.config.load import load_config, parse_arguments
from resnet_dist.data.batch import Batch
from resnet_dist.data.datasets import sync_open_datasets
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.errors import UserError
from resnet_dist.performance.build import sync_build_step
from resnet_dist.trainer import configure_torch
from resnet_dist.world import World, start_process_group, stop_process_group, sync_broadcast_object

ROUNDS = 3
SECONDS = 6.0
"""Least time of one measurement, after one step that is not counted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table. Returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    compares = "--modes" in given
    given = [argument for argument in given if argument != "--modes"]
    arguments = parse_arguments(given, prog="resnet_dist.bench", description=__doc__ or "")
    try:
        config = load_config(arguments.files, arguments.overrides).config
        world = start_process_group(config.dist)
        table = (
            compare_modes(arguments, config, world)
            if compares
            else report(config, world, measure(config, world))
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if world.is_main:
        print(table)
    stop_process_group(world)
    return 0


def measure(config: Config, world: World) -> dict[str, list[float]]:
    """Images/s over all ranks of each part, one figure a round."""
    configure_torch(config, world)
    datasets = sync_open_datasets(config, world)
    batch_split = choose_batch_split(config.train, world.size)
    state = build_state(config, datasets, world)
    taken = sync_build_step(config, state, batch_split, world=world)
    loader = train_loader(config, datasets, batch_split, world)

    def skip(batches: Iterator[Batch]) -> None:
        for _ in islice(batches, batch_split.accumulation_steps):
            pass

    def step(batches: Iterator[Batch]) -> None:
        taken(batches, step=0)

    with closing(loader.batches(0, batch_split.accumulation_steps)) as batches:
        fixed = list(islice(batches, batch_split.accumulation_steps))
    rates: dict[str, list[float]] = {"loader": [], "step": [], "both": []}
    for _ in range(ROUNDS):
        for name, function in (("loader", skip), ("both", step)):
            with closing(loader.batches(0, 10**9)) as batches:
                rates[name].append(_rate(config, world, function, batches))
        rates["step"].append(_rate(config, world, step, _repeat(fixed)))
    taken.close()
    return rates


def _repeat(batches: list[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches


def _rate(
    config: Config,
    world: World,
    function: Callable[[Iterator[Batch]], None],
    batches: Iterator[Batch],
) -> float:
    """Images/s over all ranks: enough steps for `SECONDS`, the same number on every rank."""

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            function(batches)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    run(1)  # starts workers and fills their queues
    first = sync_broadcast_object(run(1), world)
    steps = max(2, int(SECONDS / max(first, 1e-4)))
    return steps * config.train.global_batch_size / run(steps)


def report(config: Config, world: World, rates: dict[str, list[float]]) -> str:
    """The table and the verdict."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    lines = [f"{config.model.name}, {world.size} rank(s) on {world.device.type}, images/s:"]
    for name, values in rates.items():
        spread = f"{min(values):.0f} to {max(values):.0f} in {len(values)} rounds"
        lines.append(f"  {name:<7}{medians[name]:>10.1f}   ({spread})")
    share = medians["both"] / medians["step"]
    if medians["loader"] < medians["step"]:
        remedy = "more data.num_workers, data.loader=dali, or smaller images"
        verdict = f"the loader is the bottleneck: {remedy}"
    elif share < 0.95:
        verdict = "loader and step share the same cores: the step loses time to the loader"
    else:
        verdict = "the step is the bottleneck, and the loader keeps up"
    lines.append(f"together {share:.0%} of the step alone; {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
