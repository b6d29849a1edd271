"""The guards of a run, in the form in which the loop uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from resnet_dist.config import Config
from resnet_dist.faults.replica_check import sync_check_replicas
from resnet_dist.faults.stragglers import FirstSync, Stragglers, sync_build_stragglers
from resnet_dist.faults.watchdog import Phase, Watchdog
from resnet_dist.world import World


@dataclass(frozen=True)
class Guards:
    """What watches over a running training."""

    watchdog: Watchdog
    stragglers: Stragglers
    check_replicas: Callable[..., None]
    """`sync_check_replicas` with everything but the step."""

    def begin_step(self, step: int) -> None:
        """Note that the step after `step` completed ones begins."""
        self.watchdog.beat(step, Phase.BEGIN)
        self.stragglers.begin_step()

    def sync_check_replicas(self, step: int) -> None:
        """Raise ReplicaError if the ranks' weights differ. All ranks must call it."""
        self.watchdog.beat(step, Phase.CHECK)
        self.check_replicas(step=step)


def sync_build_guards(
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    world: World,
    watchdog: Watchdog,
    first_sync: FirstSync | None,
) -> Guards:
    """The guards around a watchdog that runs already. All ranks must call it.

    `model` is the plain one, and `first_sync` what marks the first collective of a step;
    None: nothing does, and the ranks' times are not compared.
    """
    factor = config.faults.straggler_factor
    return Guards(
        watchdog=watchdog,
        stragglers=sync_build_stragglers(factor, world, first_sync=first_sync),
        check_replicas=partial(
            sync_check_replicas,
            model,
            optimizer,
            world,
            with_buffers=config.train.norm_spans_all,
        ),
    )
