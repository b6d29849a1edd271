"""What happens in one step: the loss of each sample, and the gradient of each layer."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_dist.build import build_state, sync_begin, sync_teacher, train_loader
from resnet_dist.checkpoint.files import decode_checkpoint, read_verified
from resnet_dist.config import Config, PerformanceConfig
from resnet_dist.data.augment.device_stage import to_uint8
from resnet_dist.data.batch import Batch, MixedLabels
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.inspect.grid import make_grid
from resnet_dist.loss import loss_sum
from resnet_dist.metrics.pictures import captioned
from resnet_dist.performance.build import sync_build_step
from resnet_dist.replay.uses import Use, describe_uses
from resnet_dist.state import TrainState
from resnet_dist.step import EagerStep
from resnet_dist.trainer import configure_torch
from resnet_dist.world import World

MOST_PICTURES = 36


@dataclass(frozen=True)
class Sample:
    """One sample of the step."""

    use: Use
    label: str
    loss: float
    prediction: str


@dataclass(frozen=True)
class Anatomy:
    """The step, taken apart. The gradient is that of the loss, before loss scale and clipping."""

    samples: list[Sample]
    """The largest loss first; those that are not finite before them."""
    gradient_norms: dict[str, float]
    """L2 norm of each parameter's gradient."""
    pictures: Tensor
    """`[n, 3, size, size]` uint8: the augmented images of the first samples."""

    @property
    def gradient_norm(self) -> float:
        """L2 norm of the whole gradient."""
        return math.hypot(*self.gradient_norms.values())

    def by_part(self) -> dict[str, float]:
        """Gradient norms of the network's parts, in their order."""
        squares: dict[str, float] = {}
        for name, norm in self.gradient_norms.items():
            part = name.split(".")[0]
            squares[part] = squares.get(part, 0.0) + norm**2
        return {part: math.sqrt(square) for part, square in squares.items()}

    def as_json(self) -> dict[str, Any]:
        """All of it but the pictures."""
        samples = [
            {**vars(one.use), "label": one.label, "loss": one.loss, "prediction": one.prediction}
            for one in self.samples
        ]
        return {"samples": samples, "gradient_norms": self.gradient_norms}

    def write_pictures(self, path: Path) -> None:
        """The samples with the largest losses, and below each what it is and its loss."""
        words = [
            f"{each.label}\nloss {each.loss:.3f}\nseen as {each.prediction}"
            for each in self.samples[: len(self.pictures)]
        ]
        grid = captioned(self.pictures, words)
        make_grid(grid.permute(0, 2, 3, 1).numpy()).save(path, "PNG")


def take_apart(
    config: Config, datasets: Datasets, step: int, before: Path | None, world: World
) -> Anatomy:
    """Compute the step that starts from the checkpoint `before` (None: from the beginning) once
    more, in this process alone, and update nothing."""
    payload = None if before is None else decode_checkpoint(read_verified(before), before)
    if payload is not None:
        # The groups of batch norm are then the run's, whatever its number of ranks.
        parts = int(payload["batch_split"]["accumulation_steps"])
        config = replace(config, train=replace(config.train, accumulation_steps=parts))
    configure_torch(config, world)
    state = build_state(config, datasets, world)
    sync_begin(config, state, datasets, world, is_new=payload is None)
    if payload is not None:
        state.load_state_dict(payload, is_main=True)
    losses, logits, images = _passes(config, datasets, state, step, world)
    uses = describe_uses(datasets, step - 1)
    classes = datasets.train.classes
    samples = [
        Sample(use, use.label_in_words(classes), loss, classes[int(row.argmax())])
        for use, loss, row in zip(uses, losses, logits, strict=True)
    ]
    order = sorted(range(len(samples)), key=lambda i: _rank_of(losses[i]))
    return Anatomy(
        samples=[samples[i] for i in order],
        gradient_norms=_gradient_norms(state.model),
        pictures=to_uint8(images[order[:MOST_PICTURES]], datasets.data),
    )


def _rank_of(loss: float) -> tuple[bool, float]:
    is_finite = abs(loss) < float("inf")  # also false for NaN
    return is_finite, -loss if is_finite else 0.0


def _passes(
    config: Config, datasets: Datasets, state: TrainState, step: int, world: World
) -> tuple[list[float], Tensor, Tensor]:
    """Losses of the samples, logits and images of a step; leaves the gradient in the model."""
    plain = replace(config, performance=PerformanceConfig(preset="plain"))
    split = choose_batch_split(config.train, world.size)
    teacher = sync_teacher(config, datasets, world)
    eager = sync_build_step(plain, state, split, world=world, teacher=teacher)
    assert isinstance(eager, EagerStep)
    logits: list[Tensor] = []
    unscaled = torch.amp.GradScaler(world.device.type, enabled=False)
    eager = replace(eager, scaler=unscaled, on_logits=lambda _, found, __: logits.append(found))
    with closing(train_loader(config, datasets, split, world).batches(step - 1, step)) as batches:
        # A loader may use its memory again.
        held = [replace(batch, images=batch.images.clone()) for batch in batches]
    if eager.seed_forward is not None:
        eager.seed_forward(step - 1)
    state.model.train()
    state.guard.begin()
    eager.add_gradients(iter(held))
    losses = [
        loss
        for found, batch in zip(logits, held, strict=True)
        for loss in _each_loss(found, batch, config)
    ]
    return losses, torch.cat(logits).cpu(), torch.cat([batch.images for batch in held]).cpu()


def _each_loss(logits: Tensor, batch: Batch, config: Config) -> list[float]:
    found = []
    for row in range(len(logits)):
        one = slice(row, row + 1)
        mixed = batch.mixed
        if mixed is not None:
            mixed = MixedLabels(mixed.paired[one], mixed.lam[one])
        found.append(float(loss_sum(logits[one], batch.labels[one], mixed, config.loss)))
    return found


def _gradient_norms(model: nn.Module) -> dict[str, float]:
    return {
        name: float(parameter.grad.norm())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
