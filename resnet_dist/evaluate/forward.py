"""Evaluation: every sample exactly once, whatever the number of ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from resnet_dist.data.batch import Batch
from resnet_dist.evaluate.mistakes import Mistake, mistakes_of, most_confident
from resnet_dist.faults.watchdog import BatchSource
from resnet_dist.loss import PLAIN, loss_sum
from resnet_dist.metrics.meters import EvalMeter
from resnet_dist.step import autocast
from resnet_dist.system.failpoints import failpoint
from resnet_dist.world import World, sync_broadcast_, sync_sum_


def sync_evaluate(
    model: nn.Module,
    loader: BatchSource[Batch],
    *,
    world: World,
    autocast_dtype: torch.dtype | None,
    flip: bool,
    mistakes: list[Mistake] | None = None,
) -> dict[str, float]:
    """Evaluate the plain model: loss, top1, top5 (shares of 1), samples, images_per_second.

    All ranks must call it. The ranks may have different numbers of batches, since the forward pass
    has no collective. With `flip` the logits are the mean of those of an image and of its mirror
    image, which gives the same accuracy as their sum (ffcv-imagenet). Buffers are rank 0's first,
    as in a checkpoint. The counts are integers, and which samples share a batch does not depend on
    the number of ranks. This rank's most confident mistakes are added to `mistakes`, if given.
    """
    meter = EvalMeter(loader.num_batches, world.device)

    def take(batch: Batch, logits: torch.Tensor) -> None:
        meter.update(batch.step, loss_sum(logits, batch.labels, None, PLAIN), logits, batch.labels)
        if mistakes is not None:
            own = mistakes_of(batch.sample_ids.tolist(), logits.float().cpu(), batch.labels.cpu())
            mistakes[:] = most_confident([*mistakes, *own])
        failpoint("evaluate.mid")

    start = time.perf_counter()
    sync_forward(model, loader, world=world, autocast_dtype=autocast_dtype, flip=flip, take=take)
    result = meter.result(lambda tensor: sync_sum_(tensor, world))
    result["images_per_second"] = result["samples"] / (time.perf_counter() - start)
    return result


def sync_forward(
    model: nn.Module,
    loader: BatchSource[Batch],
    *,
    world: World,
    autocast_dtype: torch.dtype | None,
    flip: bool,
    take: Callable[[Batch, torch.Tensor], None],
) -> None:
    """Give `take` each of this rank's batches with its logits. See `sync_evaluate`."""
    sync_broadcast_(list(model.buffers()), world)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in loader.batches():
            with autocast(world.device, autocast_dtype):
                logits = model(batch.images)
                if flip:
                    logits = (logits.float() + model(batch.images.flip(3)).float()) / 2
            take(batch, logits)
    model.train(was_training)
