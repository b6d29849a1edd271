"""The one place that says when to train, log, evaluate, save and stop.

`fit` is a function over an explicit `TrainState`. Everything due at a step happens in one order,
log, evaluate, save, so that a checkpoint of step s has everything recorded up to s before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from resnet_dist.checkpoint.saver import Saver
from resnet_dist.data.batch import Batch
from resnet_dist.data.loaders.loader import TrainLoader
from resnet_dist.errors import LoaderError
from resnet_dist.evaluate.forward import sync_evaluate
from resnet_dist.evaluate.mistakes import Mistake, MistakePictures
from resnet_dist.evaluate.norms import NormRecomputation
from resnet_dist.faults.guards import Guards
from resnet_dist.faults.preemption import StopSignal
from resnet_dist.faults.watchdog import BatchSource, Phase
from resnet_dist.metrics.energy import EnergyMeter
from resnet_dist.metrics.null import PARTIAL
from resnet_dist.metrics.profiler import Profiler
from resnet_dist.metrics.recorder import Recorder
from resnet_dist.metrics.throughput import Throughput
from resnet_dist.optim.schedules import apply_schedule
from resnet_dist.run.cadence import Cadence
from resnet_dist.run.outcome import Outcome
from resnet_dist.state import TrainState
from resnet_dist.step import Step
from resnet_dist.world import World, sync_attempt, sync_broadcast_, sync_sum_

MAX_GRID_IMAGES = 64
"""Most images in the grid of the first batch."""


@dataclass(frozen=True)
class Components:
    """What the loop works with; all built by `resnet_dist.build`."""

    step: Step
    """Takes a training step: eagerly, or captured and replayed."""
    train_loader: TrainLoader
    eval_loader: BatchSource[Batch]
    autocast_dtype: torch.dtype | None
    """Autocast type of the evaluation's forward pass; None means float32."""
    cadence: Cadence
    lr_of: Callable[[int], float]
    momentum_of: Callable[[int], float] | None
    ema_decay_of: Callable[[int], float | None]
    """Decay of the moving average after so many steps; None: no update."""
    recompute_norms: NormRecomputation | None
    """Before the average is evaluated; None: its statistics are averages too."""
    recorder: Recorder
    saver: Saver
    throughput: Throughput
    energy: EnergyMeter
    profiler: Profiler
    stop: StopSignal
    guards: Guards
    world: World
    fingerprint: dict[str, Any]
    """What a checkpoint holds besides the state: config, data, versions."""
    step_is_one_batch: bool
    """Whether a step has one micro-batch only."""
    pictures: MistakePictures
    """For people to look at: images with the names of their classes."""


def fit(state: TrainState, use: Components) -> Outcome:
    """Train from `state.step` on until the last step, `train.max_steps`, or a signal.

    When it returns, the last checkpoint is durable. Raises UserError, the same on all ranks, if it
    cannot be written.
    """
    due, guards = use.cadence, use.guards
    with closing(use.train_loader.batches(state.step, due.stop_step)) as loaded:
        batches, begun_at = _watch(loaded, state, use), state.step
        if state.step == 0 and due.eval.at_start:
            _sync_evaluate(state, use)
        while state.step < due.stop_step and not due.is_reached(state.best_top1):
            guards.begin_step(state.step)
            use.profiler.begin_step(state.step)
            lr = _set_rates(state, use)
            grad_norm = _take_step(state, use, batches)
            state.step += 1
            use.throughput.count_step()
            use.recorder.advance(state.step)
            _average(state, use.ema_decay_of)

            if due.logs(state.step) and _sync_log(state, use, lr, grad_norm):
                outcome = Outcome.DIVERGED
                break
            if due.checks_replicas(state.step):
                guards.sync_check_replicas(state.step)
            is_best = due.evaluates(state.step) and _sync_evaluate(state, use)
            is_saved = due.saves(state.step) or is_best or due.is_reached(state.best_top1)
            if is_saved:
                sync_save(state, use, is_best=is_best)

            use.saver.poll()
            if use.saver.has_given_up:
                use.stop.request()
            if state.step < due.stop_step and use.stop.sync_requested(state.step):
                outcome = Outcome.STOPPED
                if not is_saved:
                    sync_save(state, use, is_best=False)
                break
        else:
            outcome = due.end_of(state.step)
    guards.watchdog.beat(state.step, Phase.CHECKPOINT)
    if outcome is not Outcome.DIVERGED:
        sync_attempt(use.world, use.saver.finish)
    if outcome is Outcome.STOPPED:
        use.recorder.message(use.stop.durable_line())
    if outcome is Outcome.LIMITED and state.step > begun_at and not due.logs(state.step):
        # After the save, so that a run that is resumed there records the whole interval.
        _sync_log(state, use, lr, grad_norm, is_partial=True)
    return outcome


def _average(state: TrainState, decay_of: Callable[[int], float | None]) -> None:
    """Update the moving average if that is due."""
    if state.average is not None and (decay := decay_of(state.step)) is not None:
        state.average.update(state.model, decay)


def _take_step(state: TrainState, use: Components, batches: Iterator[Batch]) -> torch.Tensor:
    """One step; see `Step`. Saves before it ends for want of a batch."""
    try:
        return use.step(batches, step=state.step)
    except LoaderError:
        _save_if_alone(state, use)
        raise


def _save_if_alone(state: TrainState, use: Components) -> None:
    """Save before a run ends for want of a batch. Several ranks cannot: the others wait for this
    one's gradients. No parameter has changed in a step that lacks a batch, and batch norms only if
    another micro-batch of it came before."""
    if use.world.size == 1 and state.step > 0 and use.step_is_one_batch:
        sync_save(state, use, is_best=False)
        use.saver.finish()


def _watch(batches: Iterator[Batch], state: TrainState, use: Components) -> Iterator[Batch]:
    """All that stands between loader and step: measures the wait for each batch, tells the watchdog
    what this rank does, and records the first batch of a new run as a grid of images."""
    watchdog, throughput = use.guards.watchdog, use.throughput
    is_shown = state.step > 0 or not use.world.is_main
    throughput.begin()
    while True:
        watchdog.begin_wait()
        with throughput.waiting():
            batch = next(batches, None)
        if batch is None:
            return
        watchdog.end_wait()
        if not is_shown:
            use.recorder.images(0, "train/first_batch", use.pictures.of(batch, MAX_GRID_IMAGES))
            is_shown = True
        yield batch


def _set_rates(state: TrainState, use: Components) -> float:
    """Give the optimizer the rates of the step that begins. Returns its learning rate."""
    lr = use.lr_of(state.step)
    momentum = use.momentum_of(state.step) if use.momentum_of else None
    apply_schedule(state.optimizer, lr=lr, momentum=momentum)
    return lr


def sync_save(state: TrainState, use: Components, *, is_best: bool) -> None:
    """Begin to save this step. All ranks must call it; rank 0 writes, in the background."""
    use.guards.watchdog.beat(state.step, Phase.CHECKPOINT)
    sync_broadcast_(state.guard.buffers, use.world)
    saved = state.sync_state_dict(lambda tensor: sync_sum_(tensor, use.world))
    use.saver.save({**saved, **use.fingerprint}, step=state.step, is_best=is_best)


def _sync_log(
    state: TrainState,
    use: Components,
    lr: float,
    grad_norm: torch.Tensor,
    *,
    is_partial: bool = False,
) -> bool:
    """Read the meters, the only host synchronisation between evaluations, and record them. Returns
    whether too many steps in a row were skipped."""
    use.guards.watchdog.beat(state.step, Phase.LOG)
    measured = state.meter.read_and_reset(lambda tensor: sync_sum_(tensor, use.world))
    del measured["samples"]
    skipped = state.guard.read()
    speeds = use.throughput.read_and_reset()
    data_wait_ms = speeds["data_wait_share"] * speeds["step_time_ms"]
    measured |= speeds | use.energy.sync_read_kj()
    values = {f"train/{name}": value for name, value in measured.items()}
    values["train/skipped_steps"] = skipped.total
    values |= use.guards.stragglers.sync_read_and_reset(
        data_wait_ms, speeds["step_time_ms"], use.recorder.message
    )
    values |= {f"checkpoint/{name}": value for name, value in use.saver.read_times().items()}
    values |= {"train/lr": lr, "train/grad_norm": float(grad_norm)}
    if is_partial:
        values[PARTIAL] = 1
    _record(state, use, values)
    suspicion = state.losses.add(measured["loss"])
    if suspicion is not None:
        use.recorder.message(suspicion)
    if skipped.longest >= use.cadence.faults.max_skipped_steps:
        return True
    state.guard.begin_interval()
    return False


def _sync_evaluate(state: TrainState, use: Components) -> bool:
    """Evaluate and record; whether this is the best model so far, and is to be kept."""
    with use.throughput.paused():
        mistakes: list[Mistake] | None = [] if state.step >= use.cadence.stop_step else None
        values = _evaluate(state.model, use, "val/", mistakes)
        if state.average is not None:
            if use.recompute_norms is not None:
                beat = partial(use.guards.watchdog.beat, state.step, Phase.EVALUATION)
                use.recompute_norms.sync_apply(state.average.module, state.step, beat)
            values |= _evaluate(state.average.module, use, "val/ema_")
        if mistakes is not None:
            use.pictures.sync_record(mistakes, state.step, use.recorder, use.world)
    _record(state, use, values)
    top1 = max(values["val/top1"], values.get("val/ema_top1", 0.0))
    is_best = top1 > state.best_top1
    if is_best:
        state.best_top1, state.best_step = top1, state.step
    return is_best and use.cadence.checkpoint.keep_best


def _evaluate(
    model: nn.Module, use: Components, prefix: str, mistakes: list[Mistake] | None = None
) -> dict[str, float]:
    result = sync_evaluate(
        model,
        use.eval_loader,
        world=use.world,
        autocast_dtype=use.autocast_dtype,
        flip=use.cadence.eval.flip,
        mistakes=mistakes,
    )
    return {f"{prefix}{name}": value for name, value in result.items() if name != "samples"}


def _record(state: TrainState, use: Components, values: dict[str, float]) -> None:
    epoch = state.step / use.cadence.steps_per_epoch
    use.recorder.scalars(state.step, {"epoch": epoch, **values})
