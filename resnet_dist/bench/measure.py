"""The loader, the step, the exchange of gradients, each alone, and all together."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle, islice

import torch

from resnet_dist.bench.step import Timed, sync_build_timed
from resnet_dist.bench.verdict import Measured, RankTime, table, verdict
from resnet_dist.config import Config
from resnet_dist.data.batch import Batch
from resnet_dist.metrics.profiler import by_family, torch_profile
from resnet_dist.world import (
    World,
    sync_barrier,
    sync_broadcast_object,
    sync_gather_objects,
    sync_sum_,
)

ROUNDS = 3
SECONDS = 6.0
"""Least time of one measurement, after one step that is not counted."""
_EXCHANGES = 3
"""Sums of all gradients per round."""


def sync_measure(config: Config, world: World) -> Measured:
    """Every part in turn, for several rounds; says on stderr how far it is. All ranks must call
    it."""
    timed = sync_build_timed(config, world)
    loader = timed.build_loader()

    def skip(batches: Iterator[Batch]) -> None:
        for _ in islice(batches, timed.batch_split.accumulation_steps):
            pass

    def step(batches: Iterator[Batch]) -> None:
        timed.step(batches, 0)

    fixed = timed.fixed_batches()
    rates: dict[str, list[float]] = {"loader": [], "step": [], "both": []}
    exchange_ms: list[float] = []
    buckets = _buckets(timed)
    for number in range(1, ROUNDS + 1):
        for name, function in (("loader", skip), ("both", step)):
            with closing(loader.batches(0, 10**9)) as batches:
                rates[name].append(_sync_rate(timed, function, batches))
        rates["step"].append(_sync_rate(timed, step, cycle(fixed)))
        if world.size > 1:
            exchange_ms.append(_sync_exchange_ms(buckets, world))
        if world.is_main:
            words = ", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items())
            print(f"round {number} of {ROUNDS}: {words} images/s", file=sys.stderr, flush=True)
    ranks = sync_gather_objects(_own_time(timed, fixed[0]), world)
    families = _families(timed, fixed)
    timed.close()
    return Measured(
        rates=rates,
        images_per_step=config.train.global_batch_size,
        exchange_ms=exchange_ms,
        exchange_bytes=sum(bucket.nbytes for bucket in buckets) if world.size > 1 else 0,
        ranks=ranks,
        families=families,
    )


def _buckets(timed: Timed) -> list[torch.Tensor]:
    """Tensors of the sizes in which gradients travel."""
    dist = timed.config.dist
    dtype = torch.bfloat16 if dist.gradient_dtype == "bfloat16" else torch.float32
    parameters = [each for each in timed.state.model.parameters() if each.requires_grad]
    left = sum(each.numel() for each in parameters)
    most = max(1, int(dist.bucket_cap_mb * 2**20) // 4)
    sizes = []
    while left > 0:
        sizes.append(min(left, most))
        left -= sizes[-1]
    return [torch.zeros(size, dtype=dtype, device=timed.world.device) for size in sizes]


def _sync_exchange_ms(buckets: list[torch.Tensor], world: World) -> float:
    """Milliseconds of one sum of all buckets, those of the slowest rank."""
    for bucket in buckets:
        sync_sum_(bucket, world)
    _wait(world)
    sync_barrier(world)
    start = time.perf_counter()
    for _ in range(_EXCHANGES):
        for bucket in buckets:
            sync_sum_(bucket, world)
    _wait(world)
    own = (time.perf_counter() - start) / _EXCHANGES
    return 1e3 * max(sync_gather_objects(own, world))


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def _own_time(timed: Timed, batch: Batch) -> RankTime:
    """A forward pass without the others, at its best of several."""
    images = batch.images[: timed.batch_split.global_batch_size // timed.world.size]
    model = timed.state.model.eval()
    with torch.inference_mode():
        times = [timed.seconds(lambda: model(images), 1) for _ in range(6)]
    model.train()
    return RankTime(timed.world.rank, socket.gethostname(), 1e3 * min(times[1:]))


def _families(timed: Timed, fixed: list[Batch]) -> list[tuple[str, float]]:
    """What a step's time goes into, on this rank; all ranks take the step."""
    on_gpu = timed.world.device.type == "cuda"
    with torch_profile(timed.world.device) as traced:
        timed.seconds(lambda: timed.step(cycle(fixed), 0), 2)
    shares = by_family(traced.key_averages(), on_gpu=on_gpu)
    total = sum(shares.values()) or 1.0
    return sorted(((name, ms / total) for name, ms in shares.items()), key=lambda each: -each[1])


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


def report(config: Config, world: World, measured: Measured) -> str:
    """The table and the verdict."""
    head = f"{config.model.name}, {world.size} rank(s) on {world.device.type}:"
    return "\n".join([head, *table(measured), *verdict(measured)])
