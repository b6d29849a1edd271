"""Evaluation: every sample exactly once, whatever the number of ranks."""

from __future__ import annotations

import time

import torch
from torch import nn

from resnet_dist.data.batch import Batch
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
) -> dict[str, float]:
    """Evaluate the plain model: loss, top1, top5 (shares of 1), samples, images_per_second.

    All ranks must call it. The ranks may have different numbers of batches, since the forward pass
    has no collective. With `flip` the logits are the mean of those of an image and of its mirror
    image, which gives the same accuracy as their sum (ffcv-imagenet). Buffers are rank 0's first,
    as in a checkpoint. The counts are integers, and which samples share a batch does not depend on
    the number of ranks.
    """
    sync_broadcast_(list(model.buffers()), world)
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    meter = EvalMeter(loader.num_batches, world.device)
    with torch.inference_mode():
        for batch in loader.batches():
            with autocast(world.device, autocast_dtype):
                logits = model(batch.images)
                if flip:
                    logits = (logits.float() + model(batch.images.flip(3)).float()) / 2
            loss = loss_sum(logits, batch.labels, None, PLAIN)
            meter.update(batch.step, loss, logits, batch.labels)
            failpoint("evaluate.mid")
    result = meter.result(lambda tensor: sync_sum_(tensor, world))
    result["images_per_second"] = result["samples"] / (time.perf_counter() - start)
    model.train(was_training)
    return result
