"""The figures of a forecast, measured on this machine in about a minute."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from dataclasses import replace

import torch

from resnet_dist.bench.measure import sync_measure
from resnet_dist.bench.step import Timed, sync_build_timed
from resnet_dist.config import Config
from resnet_dist.metrics.energy import EnergyMeter
from resnet_dist.metrics.throughput import peak_memory_gib
from resnet_dist.plan.forecast import Figures
from resnet_dist.world import World, sync_broadcast_object

_SECONDS_OF_EVALUATION = 3.0


def scaled(config: Config, *, ranks: int, probing: int) -> Config:
    """The settings with the batch that `probing` ranks have of a run on `ranks`."""
    images = max(probing, round(config.train.global_batch_size * probing / ranks))
    return replace(config, train=replace(config.train, global_batch_size=images))


def sync_probe(config: Config, world: World) -> tuple[Figures, int, int]:
    """The figures of one rank, and the sizes of both splits. All ranks must call it."""
    energy, start = EnergyMeter(world), time.perf_counter()
    rates = {
        name: statistics.median(values) / world.size
        for name, values in sync_measure(config, world).rates.items()
    }
    joules = energy.sync_read_kj().get("energy_kj")
    seconds = time.perf_counter() - start
    with closing(sync_build_timed(config, world)) as timed:
        eval_rate = _sync_eval_rate(timed)
        checkpoint_bytes = timed.state.num_bytes
        sizes = len(timed.datasets.train), len(timed.datasets.val)
    is_real = config.data.root is not None or timed.datasets.is_embedded
    figures = Figures(
        images_per_s=rates["both"],
        step_images_per_s=rates["step"],
        loader_images_per_s=rates["loader"] if is_real else None,
        eval_images_per_s=eval_rate,
        watts=None if joules is None else 1e3 * joules / seconds / world.size,
        memory_gib=peak_memory_gib(world.device),
        checkpoint_bytes=checkpoint_bytes,
    )
    return figures, *sizes


def _sync_eval_rate(timed: Timed) -> float:
    """Images/s of one rank's forward pass."""
    (batch, *_), model = timed.fixed_batches(), timed.state.model
    model.eval()

    def forward() -> None:
        model(batch.images)

    with torch.inference_mode():
        timed.seconds(forward, 2)
        first = sync_broadcast_object(timed.seconds(forward, 1), timed.world)
        count = max(2, int(_SECONDS_OF_EVALUATION / max(first, 1e-4)))
        return count * len(batch.images) / timed.seconds(forward, count)
