"""When a sample is used, and what is done to it then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from resnet_dist.data.batch import BatchSpec
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.index.index import Index
from resnet_dist.errors import UserError


@dataclass(frozen=True)
class Use:
    """One sample in one step."""

    step: int
    """Counted from 1, as in records."""
    epoch: int
    """Counted from 1."""
    position: int
    """In the global batch."""
    sample_id: int
    path: str
    labels: tuple[int, ...]
    """Its label; where it is mixed with another sample, also that one's."""
    share: float
    """The share of its own label."""
    crop: tuple[int, int, int, int]
    """Top, left, height, width in the image, pixels."""
    moved: tuple[int, int]
    """Rows, columns by which it is moved over reflected borders."""
    flipped: bool
    erased: bool

    def label_in_words(self, classes: Sequence[str]) -> str:
        """Names of the classes, with their shares where there are two."""
        names = [classes[label] for label in self.labels]
        if len(names) == 1:
            return names[0]
        return f"{names[0]} {self.share:.0%}, {names[1]}"

    def in_words(self) -> str:
        """What is done to the image."""
        top, left, height, width = self.crop
        words = [f"crop {height} x {width} at row {top}, column {left}"]
        if any(self.moved):
            words.append(f"moved by {self.moved[0]}, {self.moved[1]}")
        words += ["flipped"] * self.flipped + ["part erased"] * self.erased
        if len(self.labels) > 1:
            words.append(f"mixed, {self.share:.0%} of it")
        return ", ".join(words)


def describe_uses(datasets: Datasets, step: int) -> list[Use]:
    """All uses of a step, counted from 0, by their positions in the global batch."""
    size = datasets.order.global_batch_size
    chosen = datasets.order.slice(step, (0, size))
    spec = datasets.train_specs(chosen)
    return [_use(datasets, spec, row) for row in range(size)]


def uses_of(datasets: Datasets, sample_id: int, epochs: int) -> Iterator[Use]:
    """Each time that a sample is used in so many epochs, in order."""
    per_epoch = datasets.order.steps_per_epoch
    for step in range(epochs * per_epoch):
        for position in np.flatnonzero(datasets.order.sample_ids(step) == sample_id).tolist():
            yield describe_uses(datasets, step)[position]


def find_sample(datasets: Datasets, text: str) -> int:
    """The id of a sample that is named by its number or by the end of its path. Raises UserError
    if none or several are."""
    index = datasets.train
    if text.isdigit() and int(text) < len(index):
        return int(text)
    found = []
    if isinstance(index, Index) and not text.isdigit():
        found = [i for i in range(len(index)) if index.path(i).endswith(text)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} training images end so" if found else "no training image is that"
    raise UserError(
        f"--sample ({text}): {what}; give a number below {len(index)}, or so much of the path that "
        f"one file ends so"
    )


def _use(datasets: Datasets, spec: BatchSpec, row: int) -> Use:
    sample_id = int(spec.sample_ids[row])
    labels, share = [int(spec.labels[row])], 1.0
    if spec.mix is not None and int(spec.mix.paired[row]) != row:
        labels.append(int(spec.labels[spec.mix.paired[row]]))
        share = float(spec.mix.lams[row])
    moved = (0, 0) if spec.crop_offsets is None else tuple(spec.crop_offsets[row].tolist())
    index = datasets.train
    return Use(
        step=spec.step + 1,
        epoch=spec.step // datasets.order.steps_per_epoch + 1,
        position=row,
        sample_id=sample_id,
        path=index.path(sample_id) if isinstance(index, Index) else f"synthetic {sample_id}",
        labels=tuple(labels),
        share=share,
        crop=tuple(spec.crop_boxes[row].tolist()),
        moved=moved,
        flipped=bool(spec.flips[row]),
        erased=spec.erased is not None and bool(spec.erased[row, 2:].all()),
    )
