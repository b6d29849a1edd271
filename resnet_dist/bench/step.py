"""The training step as a thing to be timed, and the comparison of the performance modes.

`build_timed` is the one place that builds what the benchmarks time: the real step, with guard and
meters, on one batch that stays on the device or on a loader's.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from resnet_dist.build import build_state, train_loader
from resnet_dist.config import Config
from resnet_dist.config.load import Arguments, load_config
from resnet_dist.data.batch import Batch
from resnet_dist.data.datasets import Datasets, sync_open_datasets
from resnet_dist.data.micro_batches import BatchSplit, choose_batch_split
from resnet_dist.errors import UserError
from resnet_dist.performance.build import sync_build_step
from resnet_dist.performance.modes import modes_for
from resnet_dist.state import TrainState
from resnet_dist.step import Step
from resnet_dist.trainer import configure_torch
from resnet_dist.world import World, sync_broadcast_object

ROUNDS = 5
SECONDS = 2.0
"""Of a round."""
WARM_UP = 8
"""Steps until everything is compiled, chosen and captured."""


@dataclass
class Timed:
    """All that a measurement needs."""

    config: Config
    world: World
    datasets: Datasets
    batch_split: BatchSplit
    state: TrainState
    taken: Step
    """How a step is taken."""

    def step(self, batches: Iterator[Batch], number: int) -> Tensor:
        """Take the micro-batches of step `number`; returns the gradient's norm."""
        return self.taken(batches, step=number)

    def close(self) -> None:
        """Give up the memory of graphs."""
        self.taken.close()

    def fixed_batches(self) -> list[Batch]:
        """The micro-batches of the loader's first step."""
        loader = train_loader(self.config, self.datasets, self.batch_split, self.world)
        with closing(loader.batches(0, 1)) as batches:
            return list(islice(batches, self.batch_split.accumulation_steps))

    def read(self) -> float:
        """What the loop does at a log step: read the meters, which waits for the device. Returns
        the mean loss."""
        values = self.state.meter.read_and_reset(lambda tensor: tensor)
        self.state.guard.read()
        return values["loss"]


def build_timed(config: Config, world: World) -> Timed:
    """Everything for a step, built as `resnet_dist.train` does. All ranks must call it."""
    configure_torch(config, world)
    datasets = sync_open_datasets(config, world)
    batch_split = choose_batch_split(config.train, world.size)
    state = build_state(config, datasets, world)
    taken = sync_build_step(config, state, batch_split, world=world)
    return Timed(config, world, datasets, batch_split, state, taken)


def compare_modes(arguments: Arguments, config: Config, world: World) -> str:
    """Time the step of a config in every mode on a batch in memory. Returns the table, and the
    settings of the fastest. All ranks must call it."""
    rates: dict[str, list[float]] = {}
    lines = [f"{config.model.name}, {world.size} rank(s) on {world.device.type}, step alone:"]
    modes = modes_for(config.train.precision)
    for mode in modes:
        settings = ["data.loader=synthetic", *mode.overrides(config.train.precision)]
        try:
            own = load_config(arguments.files, [*arguments.overrides, *settings]).config
            with closing(build_timed(own, world)) as timed:
                rates[mode.name] = _rates(timed)
        except (UserError, RuntimeError, NotImplementedError) as error:
            lines.append(f"  {mode.name:<24} not possible: {str(error).splitlines()[0][:120]}")
            if world.size > 1 and not isinstance(error, UserError):
                raise  # the other ranks may wait in a collective
        else:
            values = rates[mode.name]
            lines.append(
                f"  {mode.name:<24}{statistics.median(values):>10.1f} images/s   "
                f"({min(values):.0f} to {max(values):.0f} in {len(values)} rounds)"
            )
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
        if world.is_main:
            print(lines[-1], file=sys.stderr, flush=True)
    best = max(rates, key=lambda name: statistics.median(rates[name]))
    found = next(mode for mode in modes if mode.name == best)
    found_settings = found.overrides(config.train.precision)
    lines.append(f"fastest: {best}; {' '.join(found_settings)}")
    return "\n".join(lines)


def _rates(timed: Timed) -> list[float]:
    """Images/s over all ranks, a figure a round."""
    batches = cycle(timed.fixed_batches())

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            timed.step(batches, 0)
        if timed.world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    run(WARM_UP if timed.world.device.type == "cuda" else 1)
    first = sync_broadcast_object(run(1), timed.world)
    steps = max(1, int(SECONDS / max(first, 1e-4)))
    size = timed.config.train.global_batch_size
    return [steps * size / run(steps) for _ in range(ROUNDS)]
