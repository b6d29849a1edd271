"""The training step as a thing to be timed.

`sync_build_timed` is the one place that builds what the benchmarks time: the real step, with guard
and meters, on one batch that stays on the device or on a loader's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from resnet_dist.build import build_state, train_loader
from resnet_dist.config import Config
from resnet_dist.data.batch import Batch
from resnet_dist.data.datasets import Datasets, sync_open_datasets
from resnet_dist.data.loaders.loader import TrainLoader
from resnet_dist.data.micro_batches import BatchSplit, choose_batch_split
from resnet_dist.performance.build import sync_build_step
from resnet_dist.state import TrainState
from resnet_dist.step import Step
from resnet_dist.trainer import configure_torch
from resnet_dist.world import World


@dataclass
class Timed:
    """All that a measurement needs."""

    config: Config
    world: World
    datasets: Datasets
    batch_split: BatchSplit
    state: TrainState
    taken: Step
    """Takes a step."""

    def step(self, batches: Iterator[Batch], number: int) -> Tensor:
        """Take the micro-batches of step `number`; returns the gradient's norm."""
        return self.taken(batches, step=number)

    def close(self) -> None:
        """Give up the memory of graphs."""
        self.taken.close()

    def build_loader(self) -> TrainLoader:
        """The loader that the trainer would use."""
        return train_loader(self.config, self.datasets, self.batch_split, self.world)

    def fixed_batches(self) -> list[Batch]:
        """The micro-batches of the loader's first step."""
        loader = self.build_loader()
        with closing(loader.batches(0, 1)) as batches:
            return list(islice(batches, self.batch_split.accumulation_steps))

    def seconds(self, call: Callable[[], object], count: int) -> float:
        """How long so many calls take, with the device's work."""
        start = time.perf_counter()
        for _ in range(count):
            call()
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def read(self) -> float:
        """What the loop does at a log step: read the meters, which waits for the device. Returns
        the mean loss."""
        values = self.state.meter.read_and_reset(lambda tensor: tensor)
        self.state.guard.read()
        return values["loss"]


def sync_build_timed(config: Config, world: World) -> Timed:
    """Everything for a step, built as `resnet_dist.train` does. All ranks must call it."""
    configure_torch(config, world)
    datasets = sync_open_datasets(config, world)
    batch_split = choose_batch_split(config.train, world.size)
    state = build_state(config, datasets, world)
    taken = sync_build_step(config, state, batch_split, world=world)
    return Timed(config, world, datasets, batch_split, state, taken)
