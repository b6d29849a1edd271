"""Our trainer, twice: as a user runs it, in float32, and its pieces in this process.

In float64 rounding is too small to be mistaken for a difference in mathematics, but no run can be
asked for it. The pieces can; in float32 they end where the run ends.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from resnet_dist.config import Config
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.models.build import build_model
from resnet_dist.optim.build import build_optimizer
from resnet_dist.optim.ema import EmaSchedule, ModelEma
from resnet_dist.optim.scaling import build_scaler
from resnet_dist.optim.schedules import apply_schedule, build_schedule
from resnet_dist.performance.build import step_settings
from resnet_dist.run.cadence import cadence_of
from resnet_dist.step import EagerStep
from tests.launch import newest_checkpoint
from tests.parity.recipes import (
    NUM_CLASSES,
    NUM_STEPS,
    SETTINGS,
    STEPS_PER_EPOCH,
    RawBatch,
    State,
    batch_split,
)
from tests.small_runs import run


def train_by_command(recipe: str, folder: Path) -> tuple[State, State | None]:
    """The weights after all steps, and their moving average; `folder` is that of `prepare`."""
    run(recipe, folder / "data", folder / "run", SETTINGS[recipe])
    saved = newest_checkpoint(folder / "run")
    assert saved["step"] == NUM_STEPS
    return saved["model"], saved["average"]


def train_by_pieces(
    config: Config, batches: list[RawBatch], dtype: torch.dtype
) -> tuple[State, State | None]:
    """As `resnet_dist.build` and `resnet_dist.loop` do it, for one process."""
    model = build_model(config.model, num_classes=NUM_CLASSES, seed=config.seed)
    model = model.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    cadence = cadence_of(config, STEPS_PER_EPOCH * config.train.global_batch_size)
    assert cadence.num_steps == NUM_STEPS
    optim, decay = config.optim, config.train.ema_decay
    lr_of = build_schedule(
        config.schedule, lr=optim.lr, steps_per_epoch=STEPS_PER_EPOCH, num_steps=NUM_STEPS
    )
    averages = EmaSchedule.of(config.train, STEPS_PER_EPOCH)
    average = ModelEma(model, decay) if decay is not None else None
    take_step = EagerStep(
        network=model,
        optimizer=build_optimizer(optim, model),
        scaler=build_scaler(torch.device("cpu"), precision="float32", loss_scale=None),
        settings=step_settings(config, batch_split(config)),
        on_logits=lambda _loss, _logits, _labels: None,
        guard=NonFiniteGuard(model),
    )
    for step, batch in enumerate(batches):
        apply_schedule(take_step.optimizer, lr=lr_of(step), momentum=None)
        converted = replace(batch.ours, images=batch.ours.images.to(dtype))
        take_step(iter([converted]), step=step)
        decay = averages.decay_at(step + 1)
        if average is not None and decay is not None:
            average.update(model, decay)
    assert take_step.guard.read().total == 0
    return model.state_dict(), None if average is None else average.state_dict()
