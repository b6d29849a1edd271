"""A trained network that another one learns from: `loss.teacher` (Hinton et al. 2015,
arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_dist.config import DataConfig, LossConfig
from resnet_dist.errors import UserError
from resnet_dist.weights.subject import Subject, open_subject
from resnet_dist.world import World, sync_attempt


@dataclass(frozen=True)
class Teacher:
    """Gives each image the outputs that the training network should have."""

    network: nn.Module
    """On the device, in evaluation mode."""
    columns: Tensor | None
    """`[classes]` its output for each of the data's classes; None: they are the same."""
    weight: float
    """Share of its part in the loss."""
    temperature: float

    def logits(self, images: Tensor) -> Tensor:
        """`[n, 3, H, W]` to `[n, classes]`, without gradients."""
        with torch.no_grad():
            found: Tensor = self.network(images)
        return found if self.columns is None else found[:, self.columns]


def sync_open_teacher(
    loss: LossConfig, data: DataConfig, *, classes: Sequence[str], num_classes: int, world: World
) -> Teacher | None:
    """The network of `loss.teacher`, by its moving average if the file holds one; None: there is
    none. All ranks must call it. Raises UserError, the same on all ranks."""
    if loss.teacher is None:
        return None
    return sync_attempt(
        world, _open, loss, data, classes=classes, num_classes=num_classes, device=world.device
    )


def _open(
    loss: LossConfig,
    data: DataConfig,
    *,
    classes: Sequence[str],
    num_classes: int,
    device: torch.device,
) -> Teacher:
    assert loss.teacher is not None
    try:
        subject = open_subject(loss.teacher)
        network = subject.network(average=subject.has_average)
    except UserError as error:
        raise UserError(f"loss.teacher ({loss.teacher}): {error}") from None
    _check_pixels(loss.teacher, subject, data)
    columns = _columns(loss.teacher, subject, classes, num_classes)
    network.requires_grad_(False)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(
        network.eval(),
        None if columns is None else torch.tensor(columns, device=device),
        loss.teacher_weight,
        loss.teacher_temperature,
    )


def _check_pixels(name: str, subject: Subject, data: DataConfig) -> None:
    """Raise UserError if the teacher was given other numbers for the same pixels."""
    its = subject.config.data
    for key in ("mean", "std", "grayscale"):
        if getattr(its, key) != getattr(data, key):
            raise UserError(
                f"data.{key} ({getattr(data, key)}): loss.teacher ({name}) was trained with "
                f"{getattr(its, key)}; set that, for both see the same images"
            )


def _columns(
    name: str, subject: Subject, classes: Sequence[str], num_classes: int
) -> list[int] | None:
    """The teacher's output for each class of the data, matched by name."""
    if subject.classes is None or len(classes) != num_classes:
        if subject.num_classes != num_classes:
            raise UserError(
                f"loss.teacher ({name}): has {subject.num_classes} outputs, and this run has "
                f"{num_classes}; take a teacher for these classes"
            )
        return None
    lacking = [each for each in classes if each not in subject.classes]
    if lacking:
        raise UserError(
            f"loss.teacher ({name}): does not know {len(lacking)} of the {len(classes)} classes, "
            f"such as {lacking[0]}; take a teacher for these classes"
        )
    columns = [subject.classes.index(each) for each in classes]
    return None if columns == list(range(subject.num_classes)) else columns
