"""The most confident mistakes of an evaluation: found on all ranks, shown by the main one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from resnet_dist.data.augment.device_stage import to_uint8
from resnet_dist.data.batch import Batch
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.loaders.loader import EvalLoader
from resnet_dist.errors import UserError
from resnet_dist.metrics.pictures import captioned
from resnet_dist.metrics.recorder import Recorder
from resnet_dist.world import World, sync_gather_objects

NUM_MISTAKES = 20
"""How many are kept."""
_SHOWN = 16
TAG = "val/most_confident_mistakes"


@dataclass(frozen=True)
class Mistake:
    """A sample that was taken for another class."""

    confidence: float
    sample_id: int
    label: int
    predicted: int


def mistakes_of(sample_ids: Sequence[int], logits: Tensor, labels: Tensor) -> list[Mistake]:
    """Those of a batch, the most confident ones first. logits `[n, classes]` float32, labels `[n]`,
    both on the CPU."""
    confidence, predicted = logits.softmax(1).max(1)
    return most_confident(
        Mistake(float(confidence[row]), int(sample_ids[row]), int(labels[row]), int(predicted[row]))
        for row in (predicted != labels).nonzero()[:, 0].tolist()
    )


def most_confident(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """The first `NUM_MISTAKES`, in an order that does not depend on the ranks."""
    return sorted(mistakes, key=lambda one: (-one.confidence, one.sample_id))[:NUM_MISTAKES]


@dataclass(frozen=True)
class MistakePictures:
    """Shows mistakes with the names of their classes."""

    loader: EvalLoader
    datasets: Datasets

    def sync_record(
        self, found: Sequence[Mistake], step: int, recorder: Recorder, world: World
    ) -> None:
        """Record the pictures of all ranks' most confident ones. All ranks must call it."""
        gathered = sync_gather_objects(list(found), world)
        most = min(_SHOWN, self.loader.largest_batch)
        shown = most_confident(one for each in gathered for one in each)[:most]
        if not shown or not world.is_main:
            return
        try:
            batch = self.loader.samples(np.array([one.sample_id for one in shown]))
        except UserError as error:  # a file that has gone by now must not cost the training
            recorder.message(f"note: no pictures of mistakes: {error}")
            return
        captions = [f"{self._name(one.predicted)}\nis {self._name(one.label)}" for one in shown]
        recorder.images(step, TAG, captioned(self._pictures(batch.images), captions))

    def of(self, batch: Batch, most: int) -> Tensor:
        """A batch's first images with their classes, `[n, 3, H, W]` uint8 on the CPU."""
        captions = [self._name(label) for label in batch.labels[:most].tolist()]
        return captioned(self._pictures(batch.images[:most]), captions)

    def _pictures(self, images: Tensor) -> Tensor:
        return to_uint8(images, self.datasets.data)

    def _name(self, label: int) -> str:
        return self.datasets.train.classes[label]
