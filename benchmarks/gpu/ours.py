"""Our training step, built as `resnet_dist.train` builds it, with whatever settings.

`build_ours` is the one place that knows how; a way to train that replaces `train_step` belongs
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from resnet_dist import dist
from resnet_dist.config import Config
from resnet_dist.config_load import load_config
from resnet_dist.data.jobs import Batch
from resnet_dist.dist import World
from resnet_dist.inputs import Inputs, sync_open_inputs
from resnet_dist.models.wrap import wrap_model
from resnet_dist.parts import build_state, plan_of, step_settings, train_loader
from resnet_dist.plan import BatchPlan
from resnet_dist.state import TrainState
from resnet_dist.step import train_step
from resnet_dist.train import configure_torch

Step = Callable[[Iterator[Batch], int], Tensor]
"""Takes a step's micro-batches and the step's number; returns the gradient's norm."""


@dataclass
class Ours:
    """All that a measurement needs."""

    config: Config
    world: World
    inputs: Inputs
    plan: BatchPlan
    state: TrainState
    step: Step

    def fixed_batch(self) -> Batch:
        """The first batch of the loader, which stays on the device."""
        loader = train_loader(self.config, self.inputs, self.plan, self.world)
        with closing(loader.batches(0, 1)) as batches:
            (batch,) = islice(batches, 1)
        return batch

    def read(self) -> float:
        """What the loop does at a log step: read the meters, which waits for the device. Returns
        the mean loss."""
        values = self.state.meter.read_and_reset(lambda tensor: tensor)
        self.state.guard.read()
        return values["loss"]


def build_ours(overrides: Sequence[str]) -> Ours:
    """Everything for a step of one process. Raises UserError for unknown or wrong settings."""
    # A shipped config with plain settings, all of which the overrides may change.
    config = load_config(["resnet50"], overrides).config
    world = dist.start(config.dist)
    configure_torch(config, world)
    inputs = sync_open_inputs(config, world)
    plan = plan_of(config, world)
    state = build_state(config, inputs, world)
    network = wrap_model(state.model, train=config.train, dist=config.dist, world=world)
    settings = step_settings(config.train, plan)

    def step(batches: Iterator[Batch], number: int) -> Tensor:
        return train_step(
            network,
            batches,
            optimizer=state.optimizer,
            scaler=state.scaler,
            settings=settings,
            on_logits=state.meter.update,
            guard=state.guard,
            step=number,
        )

    return Ours(config, world, inputs, plan, state, step)


def restart(ours: Ours, start: dict[str, Tensor]) -> None:
    """Back to the weights `start`, in place: captured graphs know the tensors by address."""
    with torch.no_grad():
        for name, tensor in ours.state.model.state_dict().items():
            tensor.copy_(start[name])
        for values in ours.state.optimizer.state.values():
            for value in values.values():
                if isinstance(value, Tensor):
                    value.zero_()
