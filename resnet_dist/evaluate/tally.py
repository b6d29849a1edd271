"""What an evaluation counts, exactly and for any number of ranks.

Everything is a sum of integers over samples, but for the loss, whose batch sums are added in the
order of the batches, and the mistakes, which are sorted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_dist.data.batch import Batch
from resnet_dist.evaluate.mistakes import Mistake, mistakes_of, most_confident
from resnet_dist.loss import PLAIN, loss_sum
from resnet_dist.metrics.meters import EvalMeter
from resnet_dist.world import World, sync_gather_objects, sync_sum_

NUM_BINS = 15
"""Bins of confidence for the calibration error (Guo et al. 2017, arXiv:1706.04599)."""
_ONE = 2**30
"""A confidence of 1 as an integer: sums of integers do not depend on their order."""


@dataclass(frozen=True)
class Tally:
    """What one evaluation found."""

    loss: float
    top1: float
    top5: float
    """Shares of 1."""
    samples: int
    confusion: NDArray[np.int64]
    """`[classes, classes]`: rows are labels, columns predictions."""
    top5_by_class: NDArray[np.int64]
    """`[classes]` samples whose label is among the first five predictions."""
    bins: NDArray[np.int64]
    """`[NUM_BINS, 3]`: samples, correct ones, sum of confidences in units of 2**-30."""
    mistakes: list[Mistake]
    """The most confident ones first."""

    @property
    def num_correct(self) -> int:
        """Samples whose first prediction is the label."""
        return int(np.trace(self.confusion))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: by how much confidence and accuracy differ, on average."""
        count, correct, confidence = self.bins.T.astype(np.float64)
        return float(np.abs(correct - confidence / _ONE).sum() / max(count.sum(), 1.0))

    def confusions(self, most: int) -> list[tuple[int, int, int]]:
        """The most frequent (label, prediction, count) that differ."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
        found = [(int(row), int(column), int(wrong[row, column])) for row, column in pairs]
        return [one for one in found if one[2] > 0]


class Counter:
    """Adds up the batches of this rank."""

    def __init__(self, num_batches: int, num_classes: int, device: torch.device) -> None:
        self._meter = EvalMeter(num_batches, device)
        self._num_classes = num_classes
        self._confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64)
        self._top5 = torch.zeros(num_classes, dtype=torch.int64)
        self._bins = torch.zeros(NUM_BINS, 3, dtype=torch.int64)
        self._mistakes: list[Mistake] = []

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Add a batch; `logits` `[n, classes]`."""
        loss = loss_sum(logits, batch.labels, None, PLAIN)
        self._meter.update(batch.step, loss, logits, batch.labels)
        logits, labels = logits.float().cpu(), batch.labels.cpu()
        confidence, predicted = logits.softmax(1).max(1)
        five = logits.topk(min(5, self._num_classes), dim=1).indices
        is_correct = predicted == labels
        self._confusion += torch.bincount(
            labels * self._num_classes + predicted, minlength=len(self._confusion)
        )
        is_in_five = (five == labels[:, None]).any(1)
        self._top5 += torch.bincount(labels[is_in_five], minlength=self._num_classes)
        number = (confidence * NUM_BINS).long().clamp_(0, NUM_BINS - 1)
        units = (confidence.double() * _ONE).round().long()
        values = torch.stack([torch.ones_like(units), is_correct.long(), units], 1)
        self._bins.index_add_(0, number, values)
        found = mistakes_of(batch.sample_ids.tolist(), logits, labels)
        self._mistakes = most_confident([*self._mistakes, *found])

    def sync_result(self, world: World) -> Tally:
        """The sums over all ranks; all must call it."""
        means = self._meter.result(lambda tensor: sync_sum_(tensor, world))
        for tensor in (self._confusion, self._top5, self._bins):
            sync_sum_(tensor, world)
        found = sync_gather_objects(self._mistakes, world)
        n = self._num_classes
        return Tally(
            loss=means["loss"],
            top1=means["top1"],
            top5=means["top5"],
            samples=int(means["samples"]),
            confusion=self._confusion.view(n, n).numpy(),
            top5_by_class=self._top5.numpy(),
            bins=self._bins.numpy(),
            mistakes=most_confident(one for each in found for one in each),
        )
