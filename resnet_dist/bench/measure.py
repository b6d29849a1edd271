"""The loader alone, the step alone, and both together: which of them is the bottleneck?"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle, islice

from resnet_dist.bench.step import Timed, sync_build_timed
from resnet_dist.config import Config
from resnet_dist.data.batch import Batch
from resnet_dist.world import World, sync_broadcast_object

ROUNDS = 3
SECONDS = 6.0
"""Least time of one measurement, after one step that is not counted."""


def sync_measure(config: Config, world: World) -> dict[str, list[float]]:
    """Images/s over all ranks of each part, one figure per round. All ranks must call it."""
    timed = sync_build_timed(config, world)
    loader = timed.build_loader()

    def skip(batches: Iterator[Batch]) -> None:
        for _ in islice(batches, timed.batch_split.accumulation_steps):
            pass

    def step(batches: Iterator[Batch]) -> None:
        timed.step(batches, 0)

    fixed = timed.fixed_batches()
    rates: dict[str, list[float]] = {"loader": [], "step": [], "both": []}
    for _ in range(ROUNDS):
        for name, function in (("loader", skip), ("both", step)):
            with closing(loader.batches(0, 10**9)) as batches:
                rates[name].append(_sync_rate(timed, function, batches))
        rates["step"].append(_sync_rate(timed, step, cycle(fixed)))
    timed.close()
    return rates


def _sync_rate(
    timed: Timed, function: Callable[[Iterator[Batch]], None], batches: Iterator[Batch]
) -> float:
    """Images/s over all ranks: enough steps for `SECONDS`, the same number on every rank."""

    def call() -> None:
        function(batches)

    timed.seconds(call, 1)  # starts workers and fills their queues
    first = sync_broadcast_object(timed.seconds(call, 1), timed.world)
    steps = max(2, int(SECONDS / max(first, 1e-4)))
    return steps * timed.config.train.global_batch_size / timed.seconds(call, steps)


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
