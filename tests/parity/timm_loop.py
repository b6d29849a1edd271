"""A trainer made of timm's parts: model, optimizer, scheduler, mixup, loss, moving average.

As published it differs from ours on purpose in four places: the rate changes once an epoch, its
cosine counts from the start of the run (not from the end of the warm-up), the moving average takes
every step, and LAMB clips without torch's 1e-6 beside the norm. `as_published=False` chooses
timm's own settings for what we do (clipping: torch's).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from timm.data import Mixup
from timm.data import mixup as timm_mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import (
    CosineLRScheduler,
    MultiStepLRScheduler,
    PolyLRScheduler,
    StepLRScheduler,
)
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from resnet_dist.config import Config
from tests.parity.recipes import (
    NUM_CLASSES,
    STEPS_PER_EPOCH,
    Mixing,
    RawBatch,
    State,
    initial_state,
)


class GivenPaths:
    """What stochastic depth keeps in a step."""

    kept: Tensor | None = None


class GivenDropPath(nn.Module):
    """timm's DropPath, with a choice that is given, not drawn."""

    def __init__(self, paths: GivenPaths, block: int) -> None:
        super().__init__()
        self._paths, self._block = paths, block

    def forward(self, x: Tensor) -> Tensor:
        assert self._paths.kept is not None
        return x * self._paths.kept[:, self._block].to(x.dtype)[:, None, None, None]


def _give_paths(model: nn.Module) -> GivenPaths:
    paths = GivenPaths()
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    for number, block in enumerate(part for stage in stages for part in stage):  # type: ignore[union-attr]
        if block.drop_path is not None:  # type: ignore[union-attr]
            block.drop_path = GivenDropPath(paths, number)  # type: ignore[union-attr]
    return paths


class GivenMixup(Mixup):
    """timm's Mixup by pairs, with parameters that are given, not drawn."""

    given: Mixing

    def _params_per_elem(self, batch_size: int) -> tuple[Any, Any]:
        assert batch_size == len(self.given.lam)
        return self.given.lam.copy(), self.given.is_cut

    def mix(self, batch: RawBatch) -> tuple[Tensor, Tensor]:
        """Images and soft targets. timm's partners are rows i and n - 1 - i, ours are neighbours;
        of its two sources of boxes the one is replaced."""
        assert batch.mixing is not None
        self.given = batch.mixing
        boxes = iter(self.given.boxes[self.given.is_cut & (self.given.lam != 1.0)].tolist())

        def box(_shape: Any, lam: float, **_settings: Any) -> tuple[Any, float]:
            top, left, height, width = next(boxes)
            return (top, top + height, left, left + width), lam

        order = np.arange(len(batch.labels))
        order = np.concatenate([order[::2], order[1::2][::-1]])
        original, timm_mixup.cutmix_bbox_and_lam = timm_mixup.cutmix_bbox_and_lam, box
        try:
            images, targets = self(batch.images[order].clone(), batch.labels[order])
        finally:
            timm_mixup.cutmix_bbox_and_lam = original
        back = np.argsort(order)
        return images[back], targets[back]


def train_timm(
    config: Config, batches: list[RawBatch], *, as_published: bool
) -> tuple[State, State | None]:
    """The weights after all batches, and their moving average, in torch's default dtype."""
    rate = config.model.stochastic_depth
    model = timm.create_model("resnet50", num_classes=NUM_CLASSES, drop_path_rate=rate)
    paths = _give_paths(model)
    model.load_state_dict(initial_state(config))
    dtype = torch.get_default_dtype()
    model = model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(config, model, as_published=as_published)
    scheduler = _scheduler(config, optimizer, as_published=as_published)
    average, decay, every = None, config.train.ema_decay, config.train.ema_every_steps
    if decay is not None:
        average = ModelEmaV3(model, decay=decay ** (1 / every) if as_published else decay)
    smoothing = config.loss.label_smoothing
    mixup = GivenMixup(mode="pair", label_smoothing=smoothing, num_classes=NUM_CLASSES)
    loss_of = _loss(config)
    for number, batch in enumerate(batches, start=1):
        images, targets = (batch.images, batch.labels)
        if batch.mixing is not None:
            images, targets = mixup.mix(batch)
        paths.kept = batch.ours.kept
        optimizer.zero_grad()
        loss_of(model(images.to(dtype)), targets).backward()
        if config.train.clip_grad_norm is not None and not as_published:
            nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_grad_norm)
        optimizer.step()
        if average is not None and as_published:
            average.update(model, step=number)
        elif average is not None and number % every == 0:
            average.update(model)
        scheduler.step_update(number)
        if number % STEPS_PER_EPOCH == 0:
            scheduler.step(number // STEPS_PER_EPOCH)
    return model.state_dict(), None if average is None else average.module.state_dict()


def _optimizer(config: Config, model: nn.Module, *, as_published: bool) -> torch.optim.Optimizer:
    optim = config.optim
    own: dict[str, Any] = {}
    if optim.name == "lamb":  # clips the gradient's norm itself
        limit = config.train.clip_grad_norm if as_published else None
        own = {"betas": optim.betas, "eps": optim.eps, "max_grad_norm": limit}
    if optim.name == "lars":
        own = {"trust_coeff": optim.trust_coefficient, "eps": 0.0}
    names = {"sgd": "nesterov" if optim.nesterov else "momentum"}
    return create_optimizer_v2(
        model,
        opt=names.get(optim.name, optim.name),
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        filter_bias_and_bn=not optim.decay_norm_and_bias,
        **own,
    )


def _scheduler(
    config: Config, optimizer: torch.optim.Optimizer, *, as_published: bool
) -> Scheduler:
    schedule, unit = config.schedule, 1 if as_published else STEPS_PER_EPOCH
    if schedule.name == "step" and schedule.warmup_epochs:
        return MultiStepLRScheduler(
            optimizer,
            decay_t=[int(epoch) * unit + 1 for epoch in schedule.milestones],  # it looks at t + 1
            decay_rate=schedule.step_factor,
            warmup_t=int(schedule.warmup_epochs) * unit,
            warmup_lr_init=config.optim.lr * schedule.warmup_start_factor,
            warmup_prefix=False,
            t_in_epochs=as_published,
        )
    if schedule.name == "step":
        return StepLRScheduler(
            optimizer,
            decay_t=int(schedule.milestones[0]) * unit,
            decay_rate=schedule.step_factor,
            t_in_epochs=as_published,
        )
    warmup = int(schedule.warmup_epochs) * unit
    kind = partial(PolyLRScheduler, power=schedule.power)
    return (kind if schedule.name == "polynomial" else CosineLRScheduler)(
        optimizer,
        t_initial=config.train.epochs * unit - (0 if as_published else warmup),
        lr_min=schedule.final_lr,
        warmup_t=warmup,
        warmup_lr_init=config.optim.lr * schedule.warmup_start_factor,
        warmup_prefix=not as_published,
        t_in_epochs=as_published,
    )


def _loss(config: Config) -> nn.Module:
    loss = config.loss
    if loss.name == "binary_cross_entropy":
        return BinaryCrossEntropy(loss.label_smoothing, loss.bce_target_threshold)
    if config.augment.mixup_alpha > 0:
        return SoftTargetCrossEntropy()
    if loss.label_smoothing:
        return LabelSmoothingCrossEntropy(loss.label_smoothing)
    return nn.CrossEntropyLoss()
