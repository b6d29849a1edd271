"""Evaluation: every sample exactly once, whatever the number of ranks."""

from __future__ import annotations

import time

import torch
from torch import nn

from resnet_dist.data.build import EvalLoader
from resnet_dist.dist import World, sync_broadcast_, sync_sum_
from resnet_dist.failpoints import failpoint
from resnet_dist.metrics.meters import EvalMeter
from resnet_dist.step import autocast, loss_sum


def sync_evaluate(
    model: nn.Module, loader: EvalLoader, *, world: World, autocast_dtype: torch.dtype | None
) -> dict[str, float]:
    """Evaluate the plain model: loss, top1, top5 (shares of 1), samples, images_per_second.

    All ranks must call it. The ranks may have different numbers of batches, since the forward pass
    has no collective. Buffers are rank 0's first, as in a checkpoint. The counts are integers, and
    which samples share a batch does not depend on the number of ranks.
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
            loss = loss_sum(logits, batch.labels, label_smoothing=0.0)
            meter.update(batch.step, loss, logits, batch.labels)
            failpoint("evaluate.mid")
    result = meter.result(lambda tensor: sync_sum_(tensor, world))
    result["images_per_second"] = result["samples"] / (time.perf_counter() - start)
    model.train(was_training)
    return result
