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

from resnet_dist.checkpoint.saver import Saver
from resnet_dist.config import CheckpointConfig, EvalConfig, FaultsConfig, LogConfig
from resnet_dist.data.batch import Batch
from resnet_dist.data.loaders.loader import TrainLoader
from resnet_dist.evaluate import sync_evaluate
from resnet_dist.faults.guards import Guards
from resnet_dist.faults.non_finite import SkipCounts
from resnet_dist.faults.preemption import StopSignal
from resnet_dist.faults.watchdog import BatchSource, Phase
from resnet_dist.metrics.recorder import Recorder
from resnet_dist.metrics.throughput import Throughput
from resnet_dist.optim.schedules import apply_schedule
from resnet_dist.state import TrainState
from resnet_dist.step import Step
from resnet_dist.world import World, sync_attempt, sync_broadcast_, sync_sum_

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
    DIVERGED = "diverged"
    """Too many steps in a row had a loss or gradients that are not finite."""


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
    faults: FaultsConfig

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

    def checks_replicas(self, step: int) -> bool:
        """Every `faults.replica_check_every_steps`, and before the save at the end of an epoch."""
        every = self.faults.replica_check_every_steps
        return every is not None and (step % every == 0 or self._ends_epochs(step, 1))

    def _ends_epochs(self, step: int, epochs: int) -> bool:
        return step % (epochs * self.steps_per_epoch) == 0 or step == self.num_steps


@dataclass(frozen=True)
class Parts:
    """What the loop works with; all built by the entry point."""

    step: Step
    """Takes a training step: one after the other, or captured and replayed."""
    train_loader: TrainLoader
    eval_loader: BatchSource[Batch]
    autocast_dtype: torch.dtype | None
    """Of evaluation; None: float32."""
    cadence: Cadence
    lr_of: Callable[[int], float]
    momentum_of: Callable[[int], float] | None
    recorder: Recorder
    saver: Saver
    throughput: Throughput
    stop: StopSignal
    guards: Guards
    world: World
    fingerprint: dict[str, Any]
    """What a checkpoint holds besides the state: config, data, versions."""
    to_picture: Callable[[torch.Tensor], torch.Tensor]
    """From network input to uint8 images, for people to look at."""


def fit(state: TrainState, parts: Parts) -> Outcome:
    """Train from `state.step` on until the last step, `train.max_steps`, or a signal.

    When it returns, the last checkpoint is durable. Raises UserError, the same on all ranks, if it
    cannot be written.
    """
    cadence = parts.cadence
    with closing(parts.train_loader.batches(state.step, cadence.stop_step)) as loaded:
        watched = parts.throughput.watch(_show_first(loaded, state, parts))
        batches = parts.guards.watchdog.watch(watched)
        outcome = None
        while outcome is None and state.step < cadence.stop_step:
            outcome = _sync_step(state, parts, batches)
    if outcome is None:
        outcome = Outcome.FINISHED if state.step == cadence.num_steps else Outcome.LIMITED
    parts.guards.watchdog.beat(state.step, Phase.CHECKPOINT)
    if outcome is not Outcome.DIVERGED:
        sync_attempt(parts.world, parts.saver.finish)
    if outcome is Outcome.STOPPED:
        parts.recorder.message(parts.stop.durable_line())
    return outcome


def _sync_step(state: TrainState, parts: Parts, batches: Iterator[Batch]) -> Outcome | None:
    """One step and all that is due after it; the outcome if it was the last."""
    cadence = parts.cadence
    parts.guards.begin_step(state.step)
    lr = parts.lr_of(state.step)
    momentum = parts.momentum_of(state.step) if parts.momentum_of else None
    apply_schedule(state.optimizer, lr=lr, momentum=momentum)
    grad_norm = parts.step(batches, step=state.step)
    state.step += 1
    parts.throughput.count_step()
    if state.average is not None and cadence.averages(state.step):
        state.average.update(state.model)

    if cadence.logs(state.step):
        skipped = _sync_log(state, parts, {"train/lr": lr, "train/grad_norm": float(grad_norm)})
        if skipped.longest >= cadence.faults.max_skipped_steps:
            return Outcome.DIVERGED
        state.guard.begin_interval()
    if cadence.checks_replicas(state.step):
        parts.guards.sync_check_replicas(state.step)
    is_best = cadence.evaluates(state.step) and _sync_evaluate(state, parts)
    is_saved = cadence.saves(state.step) or is_best
    if is_saved:
        sync_save(state, parts, is_best=is_best)
    parts.saver.poll()
    if parts.saver.has_given_up:
        parts.stop.request()
    if state.step < cadence.stop_step and parts.stop.sync_requested(state.step):
        if not is_saved:
            sync_save(state, parts, is_best=False)
        return Outcome.STOPPED
    return None


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
    """Begin to save this step. All ranks must call it; rank 0 writes, in the background."""
    parts.guards.watchdog.beat(state.step, Phase.CHECKPOINT)
    sync_broadcast_(state.guard.buffers, parts.world)
    saved = state.sync_state_dict(lambda tensor: sync_sum_(tensor, parts.world))
    parts.saver.save({**saved, **parts.fingerprint}, step=state.step, is_best=is_best)


def _sync_log(state: TrainState, parts: Parts, extra: dict[str, float]) -> SkipCounts:
    """Read the meters, the only host synchronisation between evaluations, and record them."""
    parts.guards.watchdog.beat(state.step, Phase.LOG)
    measured = state.meter.read_and_reset(lambda tensor: sync_sum_(tensor, parts.world))
    del measured["samples"]
    skipped = state.guard.read()
    measured["skipped_steps"] = skipped.total
    values = {f"train/{name}": value for name, value in measured.items()}
    speeds = parts.throughput.read_and_reset()
    values |= {f"train/{name}": value for name, value in speeds.items()}
    data_wait_ms = speeds["data_wait_share"] * speeds["step_time_ms"]
    values |= parts.guards.stragglers.sync_read_and_reset(data_wait_ms, parts.recorder.message)
    values |= {f"checkpoint/{name}": value for name, value in parts.saver.read_times().items()}
    parts.recorder.scalars(
        state.step, {"epoch": state.step / parts.cadence.steps_per_epoch, **values, **extra}
    )
    suspicion = state.losses.add(measured["loss"])
    if suspicion is not None:
        parts.recorder.message(suspicion)
    return skipped


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
        autocast_dtype=parts.autocast_dtype,
        flip=parts.cadence.eval.flip,
    )
    return {f"{prefix}{name}": value for name, value in result.items() if name != "samples"}
