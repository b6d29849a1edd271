"""A run as `resnet_dist.trainer` builds it, for benchmarks that call `fit` themselves."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_dist.build import build_components, build_state, fingerprint_of
from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.config import Config
from resnet_dist.data.datasets import Datasets, sync_open_datasets
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.faults.watchdog import Watchdog, sync_build_watchdog
from resnet_dist.loop import Components
from resnet_dist.run.folder import run_folder
from resnet_dist.state import TrainState
from resnet_dist.trainer import configure_torch
from resnet_dist.world import World, start_process_group


@dataclass(frozen=True)
class BuiltRun:
    """All that `fit` needs, and the watchdog to enter before it."""

    world: World
    datasets: Datasets
    state: TrainState
    use: Components
    watchdog: Watchdog


def build_run(config: Config) -> BuiltRun:
    """A run at step 0 in `run.dir`. All ranks must call it."""
    world = start_process_group(config.dist)
    configure_torch(config, world)
    datasets = sync_open_datasets(config, world)
    batch_split = choose_batch_split(config.train, world.size)
    state = build_state(config, datasets, world)
    folder = run_folder(config.run)
    checkpoints = CheckpointManager(folder, config.checkpoint)
    checkpoints.open()
    watchdog = sync_build_watchdog(config.faults.watchdog_s, folder, world)
    fingerprint = fingerprint_of(config, datasets, batch_split)
    use = build_components(
        config, state, datasets, checkpoints, watchdog, world=world, fingerprint=fingerprint
    )
    return BuiltRun(world, datasets, state, use, watchdog)
