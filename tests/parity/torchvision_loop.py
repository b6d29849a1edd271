"""A trainer made of torchvision's parts, as references/classification/train.py puts them together.

As published it differs from ours on purpose in three places: the rate changes once an epoch, the
bias of the last layer is decayed where batch norm is not, and the moving average counts its steps
within an epoch and is the model itself during the warm-up. `as_published=False` does what we do.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms.v2 import CutMix, MixUp

from resnet_dist.config import Config
from tests.parity.recipes import NUM_CLASSES, STEPS_PER_EPOCH, RawBatch, State, initial_state


class GivenMixUp(MixUp):
    """torchvision's MixUp with a share that is given, not drawn."""

    given: dict[str, Any]

    def make_params(self, _flat_inputs: list[Any]) -> dict[str, Any]:
        return self.given


class GivenCutMix(CutMix):
    """torchvision's CutMix with a box that is given, not drawn."""

    given: dict[str, Any]

    def make_params(self, _flat_inputs: list[Any]) -> dict[str, Any]:
        return self.given


class Average(AveragedModel):
    """ExponentialMovingAverage of references/classification/utils.py."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(
            model, avg_fn=lambda a, p, _n: decay * a + (1 - decay) * p, use_buffers=True
        )


def mix(batch: RawBatch) -> tuple[Tensor, Tensor]:
    """Images and soft targets, pair by pair: a pair is a batch of two, which rolled by one are
    swapped."""
    assert batch.mixing is not None
    mixup, cutmix = GivenMixUp(num_classes=NUM_CLASSES), GivenCutMix(num_classes=NUM_CLASSES)
    mixing, pairs = batch.mixing, []
    for k, (top, left, height, width) in enumerate(mixing.boxes.tolist()):
        rows, lam = slice(2 * k, 2 * k + 2), float(mixing.lam[k])
        mixup.given = {"lam": lam}
        cutmix.given = {"box": (left, top, left + width, top + height), "lam_adjusted": lam}
        chosen = cutmix if mixing.is_cut[k] else mixup
        pairs.append(chosen(batch.images[rows], batch.labels[rows]))
    images, targets = zip(*pairs, strict=True)
    return torch.cat(images), torch.cat(targets)


def train_torchvision(
    config: Config, batches: list[RawBatch], *, as_published: bool
) -> tuple[State, State | None]:
    """The weights after all batches, and their moving average, in torch's default dtype."""
    model = torchvision.models.resnet50(weights=None, num_classes=NUM_CLASSES)
    model.load_state_dict(initial_state(config))
    dtype = torch.get_default_dtype()
    model = model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(config, model, as_published=as_published)
    unit = 1 if as_published else STEPS_PER_EPOCH
    scheduler = _scheduler(config, optimizer, unit)
    average = _average(config, model)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.loss.label_smoothing)
    for step, batch in enumerate(batches):
        images, targets = batch.images, one_hot(batch.labels, NUM_CLASSES).float()
        if batch.mixing is not None:
            images, targets = mix(batch)
        optimizer.zero_grad()
        criterion(model(images.to(dtype)), targets.to(dtype)).backward()
        optimizer.step()
        if average is not None:
            _update_average(average, model, step, config, as_published=as_published)
        if (step + 1) % (STEPS_PER_EPOCH // unit) == 0:
            scheduler.step()
    return model.state_dict(), None if average is None else average.module.state_dict()


def _optimizer(config: Config, model: nn.Module, *, as_published: bool) -> torch.optim.Optimizer:
    """Groups as utils.set_weight_decay makes them, with --norm-weight-decay 0 or without it."""
    optim = config.optim
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    without = [parameter for norm in norms for parameter in norm.parameters()]
    if not as_published:
        without.append(model.fc.bias)
    if optim.decay_norm_and_bias:
        without = []
    ids = {id(parameter) for parameter in without}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in ids]},
        {"params": without, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
    )


def _scheduler(config: Config, optimizer: torch.optim.Optimizer, unit: int) -> LRScheduler:
    schedule = config.schedule
    if schedule.name == "step":
        return StepLR(optimizer, int(schedule.milestones[0]) * unit, schedule.step_factor)
    warmup = int(schedule.warmup_epochs) * unit
    rise = LinearLR(optimizer, schedule.warmup_start_factor, total_iters=warmup)
    fall = CosineAnnealingLR(optimizer, config.train.epochs * unit - warmup, schedule.final_lr)
    return SequentialLR(optimizer, [rise, fall], milestones=[warmup])


def _average(config: Config, model: nn.Module) -> Average | None:
    """With --model-ema-decay such that torchvision's adjustment gives our decay."""
    train = config.train
    if train.ema_decay is None:
        return None
    adjust = train.global_batch_size * train.ema_every_steps / train.epochs
    model_ema_decay = 1.0 - (1.0 - train.ema_decay) / adjust
    return Average(model, 1.0 - min(1.0, (1.0 - model_ema_decay) * adjust))


def _update_average(
    average: Average, model: nn.Module, step: int, config: Config, *, as_published: bool
) -> None:
    every = config.train.ema_every_steps
    epoch, index = divmod(step, STEPS_PER_EPOCH)
    if as_published:
        if index % every == 0:
            average.update_parameters(model)
            if epoch < config.schedule.warmup_epochs:
                average.n_averaged.fill_(0)
    elif (step + 1) % every == 0:
        average.n_averaged.fill_(1)  # the copy it was made from is the first value, as ours is
        average.update_parameters(model)
