"""Evaluation of mirror images."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from resnet_dist.data.batch import Batch
from resnet_dist.evaluate.forward import sync_evaluate
from resnet_dist.metrics.meters import count_correct
from resnet_dist.world import World

CPU = torch.device("cpu")


class _Loader:
    name = "fixed"
    num_batches = 3

    def batches(self) -> Generator[Batch, None, None]:
        generator = torch.Generator().manual_seed(1)
        for number in range(3):
            images = torch.randn(8, 3, 6, 6, generator=generator)
            labels = torch.randint(0, 7, (8,), generator=generator)
            yield Batch(number, images, labels, np.arange(8))


@pytest.mark.parametrize("flip", [False, True])
def test_flip_takes_the_mean_of_the_logits(flip: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 7))
    result = sync_evaluate(
        model, _Loader(), world=World(0, 1, 0, 1, CPU), autocast_dtype=None, flip=flip
    )
    images = torch.cat([batch.images for batch in _Loader().batches()])
    labels = torch.cat([batch.labels for batch in _Loader().batches()])
    with torch.no_grad():
        logits = model(images)
        mirrored = model(images.flip(3))
    if flip:
        logits = (logits + mirrored) / 2
    assert result["top1"] == count_correct(logits, labels)[0] / 24
    # The sum of the logits, as ffcv takes it, gives the same accuracy.
    assert not flip or result["top1"] == count_correct(2 * logits, labels)[0] / 24
    assert result["loss"] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
