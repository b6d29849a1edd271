"""The one place that says when to train, log, evaluate, save and stop.

`fit` is a function over an explicit `TrainState`. Everything due at a step happens in one order,
log, evaluate, save, so that a checkpoint of step s has everything recorded up to s before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn

from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.config import CheckpointConfig, EvalConfig, LogConfig
from resnet_dist.data.build import EvalLoader, TrainLoader
from resnet_dist.data.jobs import Batch
from resnet_dist.dist import World, sync_broadcast_, sync_sum_
from resnet_dist.evaluate import sync_evaluate
from resnet_dist.faults.stop import StopSignal
from resnet_dist.metrics.recorder import Recorder
from resnet_dist.metrics.throughput import Throughput
from resnet_dist.optim.schedules import apply_schedule
from resnet_dist.state import TrainState
from resnet_dist.step import StepSettings, train_step

LARGEST_GRID = 64
"""Most images in the grid of the first batch."""


class Outcome(Enum):
    """How a run ended."""

    FINISHED = "finished"
    """All epochs are done."""
    LIMITED = "limited"
    """`train.max_steps` is reached; more steps would go on exactly."""
    STOPPED = "stopped"
    """A signal stopped it; started again it goes on exactly."""


@dataclass(frozen=True)
class Cadence:
    """What is due after which step: pure functions of the number of completed steps."""

    steps_per_epoch: int
    num_steps: int
    """Steps of all epochs."""
    stop_step: int
    """The last step to do now."""
    ema_every_steps: int
    log: LogConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig

    def logs(self, step: int) -> bool:
        """Every `log.every_steps`, and at the end of each epoch."""
        return step % self.log.every_steps == 0 or step % self.steps_per_epoch == 0

    def averages(self, step: int) -> bool:
        """Every `train.ema_every_steps`."""
        return step % self.ema_every_steps == 0

    def evaluates(self, step: int) -> bool:
        """Every `eval.every_epochs`, and after the last step."""
        return self._ends_epochs(step, self.eval.every_epochs)

    def saves(self, step: int) -> bool:
        """Every `checkpoint.every_steps`, every `checkpoint.every_epochs`, and at the end."""
        every = self.checkpoint.every_steps
        return (
            step == self.stop_step
            or (every is not None and step % every == 0)
            or self._ends_epochs(step, self.checkpoint.every_epochs)
        )

    def _ends_epochs(self, step: int, epochs: int) -> bool:
        return step % (epochs * self.steps_per_epoch) == 0 or step == self.num_steps


@dataclass(frozen=True)
class Parts:
    """What the loop works with; all built by the entry point."""

    network: nn.Module
    """The model as it is called in training: with compile and DDP around it."""
    train_loader: TrainLoader
    eval_loader: EvalLoader
    settings: StepSettings
    cadence: Cadence
    lr_of: Callable[[int], float]
    momentum_of: Callable[[int], float] | None
    recorder: Recorder
    checkpoints: CheckpointManager
    throughput: Throughput
    stop: StopSignal
    world: World
    identity: dict[str, Any]
    """What a checkpoint holds besides the state: config, data, versions."""
    to_picture: Callable[[torch.Tensor], torch.Tensor]
    """From network input to uint8 images, for people to look at."""


def fit(state: TrainState, parts: Parts) -> Outcome:
    """Train from `state.step` on until the last step, `train.max_steps`, or a signal."""
    cadence = parts.cadence
    with closing(parts.train_loader.batches(state.step, cadence.stop_step)) as loaded:
        batches = parts.throughput.watch(_show_first(loaded, state, parts))
        while state.step < cadence.stop_step:
            lr = parts.lr_of(state.step)
            momentum = parts.momentum_of(state.step) if parts.momentum_of else None
            apply_schedule(state.optimizer, lr=lr, momentum=momentum)
            is_logged = cadence.logs(state.step + 1)
            grad_norm = train_step(
                parts.network,
                batches,
                optimizer=state.optimizer,
                scaler=state.scaler,
                settings=parts.settings,
                on_logits=state.meter.update,
                wants_grad_norm=is_logged,
            )
            state.step += 1
            parts.throughput.count_step()
            if state.average is not None and cadence.averages(state.step):
                state.average.update(state.model)

            if is_logged:
                assert grad_norm is not None
                _sync_log(state, parts, {"train/lr": lr, "train/grad_norm": float(grad_norm)})
            is_best = cadence.evaluates(state.step) and _sync_evaluate(state, parts)
            is_saved = cadence.saves(state.step) or is_best
            if is_saved:
                sync_save(state, parts, is_best=is_best)
            if state.step < cadence.stop_step and parts.stop.sync_requested(state.step):
                if not is_saved:
                    sync_save(state, parts, is_best=False)
                return Outcome.STOPPED
    return Outcome.FINISHED if state.step == cadence.num_steps else Outcome.LIMITED


def _show_first(batches: Iterator[Batch], state: TrainState, parts: Parts) -> Iterator[Batch]:
    """Pass batches on, and record the first of a new run as a grid of images."""
    is_new = state.step == 0
    for batch in batches:
        if is_new and parts.world.is_main:
            pictures = parts.to_picture(batch.images[:LARGEST_GRID])
            parts.recorder.images(0, "train/first_batch", pictures)
        is_new = False
        yield batch


def sync_save(state: TrainState, parts: Parts, *, is_best: bool) -> None:
    """Write a checkpoint of this step. All ranks must call it; rank 0 writes.

    The records go to the disk first: a checkpoint never promises more than they hold.
    """
    sync_broadcast_(list(state.model.buffers()), parts.world)
    saved = state.sync_state_dict(lambda tensor: sync_sum_(tensor, parts.world))
    if not parts.world.is_main:
        return
    parts.recorder.flush()
    parts.checkpoints.save({**saved, **parts.identity}, step=state.step, is_best=is_best)


def _sync_log(state: TrainState, parts: Parts, extra: dict[str, float]) -> None:
    """Read the meters, the only host synchronisation between evaluations, and record them."""
    measured = state.meter.read_and_reset(lambda tensor: sync_sum_(tensor, parts.world))
    del measured["samples"]
    values = {f"train/{name}": value for name, value in measured.items()}
    speeds = parts.throughput.read_and_reset()
    values |= {f"train/{name}": value for name, value in speeds.items()}
    parts.recorder.scalars(
        state.step, {"epoch": state.step / parts.cadence.steps_per_epoch, **values, **extra}
    )


def _sync_evaluate(state: TrainState, parts: Parts) -> bool:
    """Evaluate and record; whether this is the best model so far."""
    with parts.throughput.paused():
        values = _evaluate(state.model, parts, "val/")
        if state.average is not None:
            values |= _evaluate(state.average.module, parts, "val/ema_")
    epoch = state.step / parts.cadence.steps_per_epoch
    parts.recorder.scalars(state.step, {"epoch": epoch, **values})
    top1 = max(values["val/top1"], values.get("val/ema_top1", 0.0))
    is_best = top1 > state.best_top1
    if is_best:
        state.best_top1, state.best_step = top1, state.step
    return is_best and parts.cadence.checkpoint.keep_best


def _evaluate(model: nn.Module, parts: Parts, prefix: str) -> dict[str, float]:
    result = sync_evaluate(
        model,
        parts.eval_loader,
        world=parts.world,
        autocast_dtype=parts.settings.autocast_dtype,
    )
    return {f"{prefix}{name}": value for name, value in result.items() if name != "samples"}
