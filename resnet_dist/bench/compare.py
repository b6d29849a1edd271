"""Which performance mode makes the step fastest here?"""

from __future__ import annotations

import gc
import statistics
import sys
from contextlib import closing
from itertools import cycle

import torch

from resnet_dist.bench.step import Timed, sync_build_timed
from resnet_dist.config import Config
from resnet_dist.config.command_line import Arguments
from resnet_dist.config.load import load_config
from resnet_dist.errors import UserError
from resnet_dist.performance.modes import Mode, modes_for
from resnet_dist.world import World, sync_broadcast_object

ROUNDS = 5
SECONDS = 2.0
"""Least time of one round."""
WARM_UP = 14
"""Steps until everything is compiled, chosen and captured."""


def sync_compare_modes(arguments: Arguments, config: Config, world: World) -> str:
    """Time the step of a config in every mode on a batch in memory. Returns the table, and the
    settings of the fastest. All ranks must call it."""
    rates: dict[Mode, list[float]] = {}
    lines = [f"{config.model.name}, {world.size} rank(s) on {world.device.type}, step alone:"]
    precision = config.train.precision
    for mode in modes_for(precision):
        settings = ["data.loader=synthetic", *mode.settings]
        try:
            own = load_config(arguments.files, [*arguments.overrides, *settings]).config
            with closing(sync_build_timed(own, world)) as timed:
                rates[mode] = _sync_rates(timed)
        except (UserError, RuntimeError, NotImplementedError) as error:
            lines.append(f"  {mode.name:<24} not possible: {str(error).splitlines()[0][:120]}")
            if world.size > 1 and not isinstance(error, UserError):
                raise  # the other ranks may wait in a collective
        else:
            values = rates[mode]
            lines.append(
                f"  {mode.name:<24}{statistics.median(values):>10.1f} images/s   "
                f"({min(values):.0f} to {max(values):.0f} in {len(values)} rounds)"
            )
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
        if world.is_main:
            print(lines[-1], file=sys.stderr, flush=True)
    best = max(rates, key=lambda mode: statistics.median(rates[mode]))
    lines.append(f"fastest: {best.name}; {' '.join(best.settings)}")
    return "\n".join(lines)


def _sync_rates(timed: Timed) -> list[float]:
    """Images/s over all ranks, one figure per round."""
    batches = cycle(timed.fixed_batches())

    def step() -> None:
        timed.step(batches, 0)

    timed.seconds(step, WARM_UP if timed.world.device.type == "cuda" else 1)
    first = sync_broadcast_object(timed.seconds(step, 1), timed.world)
    steps = max(1, int(SECONDS / max(first, 1e-4)))
    size = timed.config.train.global_batch_size
    return [steps * size / timed.seconds(step, steps) for _ in range(ROUNDS)]
