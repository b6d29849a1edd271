"""From a config to everything that the loop works with: one function per component.

Owns the translation of settings into constructor arguments; the order in which things are built is
`resnet_dist.trainer`'s.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.checkpoint.saver import BackgroundSaver, NullSaver, Saver
from resnet_dist.config import Config
from resnet_dist.config.load import to_flat
from resnet_dist.data.augment.progressive import train_size
from resnet_dist.data.batch import Batch
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.loaders.build import build_eval_loader, build_train_loader
from resnet_dist.data.loaders.loader import EvalLoader, TrainLoader
from resnet_dist.data.micro_batches import BatchSplit, choose_batch_split
from resnet_dist.errors import UserError
from resnet_dist.evaluate.mistakes import MistakePictures
from resnet_dist.evaluate.norms import NormRecomputation
from resnet_dist.faults.guards import sync_build_guards
from resnet_dist.faults.loss_history import LossHistory
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.faults.preemption import StopSignal
from resnet_dist.faults.watchdog import Watchdog
from resnet_dist.loop import Components
from resnet_dist.metrics.energy import EnergyMeter
from resnet_dist.metrics.meters import TrainMeter
from resnet_dist.metrics.profiler import Profiler
from resnet_dist.metrics.recorder import Recorder, build_recorder
from resnet_dist.metrics.throughput import Throughput
from resnet_dist.models.build import build_model, smallest_map
from resnet_dist.models.foreign import check_images, draws_random_numbers
from resnet_dist.models.freeze import freeze
from resnet_dist.models.head import find_head
from resnet_dist.optim.build import build_optimizer
from resnet_dist.optim.ema import EmaSchedule, ModelEma
from resnet_dist.optim.scaling import build_scaler
from resnet_dist.optim.schedules import build_momentum_schedule, build_schedule, peak_lr
from resnet_dist.performance.build import sync_build_step
from resnet_dist.performance.wrap import first_synchronised
from resnet_dist.run.cadence import cadence_of
from resnet_dist.run.folder import run_folder
from resnet_dist.run.versions import versions
from resnet_dist.state import TrainState
from resnet_dist.step import AUTOCAST_DTYPES
from resnet_dist.weights.start import sync_start_from_weights, sync_whiten
from resnet_dist.weights.teacher import Teacher, sync_open_teacher
from resnet_dist.world import World, threads_per_rank


def build_state(config: Config, datasets: Datasets, world: World) -> TrainState:
    """A run at step 0, on the device."""
    check_batch_norm(config, world)
    model = build_model(config.model, num_classes=datasets.num_classes, seed=config.seed)
    if config.model.is_foreign:
        first = train_size(config.augment, config.data.train_size, 0)
        for name, size in (("train_size", first), ("eval_size", config.data.eval_size)):
            key, outputs = f"data.{name}", datasets.num_classes
            check_images(model, config.model, setting=key, size=size, num_classes=outputs)
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model = model.to(world.device, memory_format=memory_format)  # type: ignore[call-overload]
    head = find_head(model, datasets.num_classes).module
    freeze(model, config.model.freeze, head=head)
    decay = config.train.ema_decay
    average = ModelEma(model, decay) if decay is not None else None
    return TrainState(
        model=model,
        optimizer=build_optimizer(config.optim, model, head=head, peak_lr=peak_lr(config)),
        scaler=build_scaler(
            world.device, precision=config.train.precision, loss_scale=config.train.loss_scale
        ),
        average=average,
        meter=TrainMeter(world.device),
        guard=NonFiniteGuard(model),
        losses=LossHistory(),
    )


def check_batch_norm(config: Config, world: World) -> None:
    """Raise UserError where a batch norm would see a single value per channel."""
    split = choose_batch_split(config.train, world.size)
    smallest = split.smallest_micro_batch
    if config.train.norm_spans_all:
        smallest = config.train.global_batch_size // split.accumulation_steps
    elif config.train.sync_batch_norm:
        smallest *= config.train.sync_batch_norm_ranks or 1
    size = train_size(config.augment, config.data.train_size, 0)
    is_ours = not config.model.is_foreign and config.model.freeze in ("none", "stage1")
    if is_ours and smallest == 1 and smallest_map(config.model, size) == 1:
        raise UserError(
            f"train.global_batch_size ({config.train.global_batch_size}): leaves one image of "
            f"{size} px at a time, of which the last batch norm sees one value; raise it, or "
            f"data.train_size"
        )


def sync_begin(
    config: Config, state: TrainState, datasets: Datasets, world: World, *, is_new: bool
) -> list[str]:
    """Give a new run its `model.weights` and filters. Returns what there is to say about the
    network. All ranks must call it."""
    notes = []
    if is_new:
        classes = datasets.train.classes
        notes = sync_start_from_weights(
            state.model, state.average, config.model, classes=classes, world=world
        )
        if config.model.weights is None:  # a file has filters of its own
            sync_whiten(
                state.model, state.average, partial(first_batches, config, datasets, world), world
            )
    if config.model.freeze != "none":
        parts = [parameter.requires_grad for parameter in state.model.parameters()]
        notes.append(
            f"model.freeze={config.model.freeze}: {sum(parts)} of {len(parts)} tensors are trained"
        )
    if config.model.is_foreign and draws_random_numbers(state.model):
        notes.append(
            f"{config.model.name} draws random numbers: a resumed run draws the same, but another "
            f"number of ranks gives another curve"
        )
    return notes


def build_components(
    config: Config,
    state: TrainState,
    datasets: Datasets,
    checkpoints: CheckpointManager,
    watchdog: Watchdog,
    *,
    world: World,
    fingerprint: dict[str, Any],
) -> Components:
    """Everything that the loop works with. All ranks must call it."""
    train = config.train
    batch_split = choose_batch_split(train, world.size)
    cadence = cadence_of(config, len(datasets.train))
    teacher = sync_teacher(config, datasets, world)
    step = sync_build_step(config, state, batch_split, world=world, teacher=teacher)
    first = first_synchronised(step.network, speed=config.performance.speed_on(world.device.type))
    recorder, saver = build_records(config, state, datasets, checkpoints, world)
    evaluated = eval_loader(config, datasets, world)
    return Components(
        step=step,
        train_loader=train_loader(config, datasets, batch_split, world),
        eval_loader=watchdog.watch_evaluation(evaluated),
        autocast_dtype=AUTOCAST_DTYPES[train.precision],
        cadence=cadence,
        lr_of=build_schedule(
            config.schedule,
            lr=peak_lr(config),
            steps_per_epoch=cadence.steps_per_epoch,
            num_steps=cadence.num_steps,
        ),
        momentum_of=build_momentum_schedule(config.schedule, num_steps=cadence.num_steps),
        ema_decay_of=EmaSchedule.of(train, cadence.steps_per_epoch).decay_at,
        recompute_norms=norm_recomputation(config, datasets, batch_split, world),
        recorder=recorder,
        saver=saver,
        throughput=Throughput(world.device, global_batch_size=train.global_batch_size),
        energy=EnergyMeter(world),
        profiler=Profiler(config.profile, run_folder(config.run), world, recorder.message),
        stop=StopSignal(world),
        guards=sync_build_guards(
            config, state.model, state.optimizer, world=world, watchdog=watchdog, first_sync=first
        ),
        world=world,
        fingerprint=fingerprint,
        step_is_one_batch=batch_split.accumulation_steps == 1,
        pictures=MistakePictures(evaluated, datasets),
    )


def fingerprint_of(config: Config, datasets: Datasets, batch_split: BatchSplit) -> dict[str, Any]:
    """What a checkpoint says about its run besides the state."""
    return {
        "config": to_flat(config),
        "data": {"train": datasets.train.fingerprint, "val": datasets.val.fingerprint},
        "classes": list(datasets.train.classes),
        "num_classes": datasets.num_classes,
        "batch_split": {
            "world_size": batch_split.world_size,
            "accumulation_steps": batch_split.accumulation_steps,
        },
        "versions": versions(),
    }


def build_records(
    config: Config,
    state: TrainState,
    datasets: Datasets,
    checkpoints: CheckpointManager,
    world: World,
) -> tuple[Recorder, Saver]:
    """What writes into the run folder from `state.step` on; nothing on ranks but the main one."""
    cadence = cadence_of(config, len(datasets.train))
    recorder = build_recorder(
        config.log,
        run_dir=run_folder(config.run),
        is_main=world.is_main,
        resume_step=state.step,
        num_steps=cadence.num_steps,
        steps_per_epoch=cadence.steps_per_epoch,
    )
    if not world.is_main:
        return recorder, NullSaver()
    saver = BackgroundSaver(
        checkpoints,
        device=world.device,
        max_failures=config.checkpoint.max_failures,
        flush_records=recorder.flush,
        describe_next_batch=datasets.describe_next_batch,
        tell=recorder.message,
    )
    return recorder, saver


def sync_teacher(config: Config, datasets: Datasets, world: World) -> Teacher | None:
    """The network of `loss.teacher`; None: there is none. All ranks must call it."""
    return sync_open_teacher(
        config.loss,
        datasets.data,
        classes=datasets.train.classes,
        num_classes=datasets.num_classes,
        world=world,
    )


def norm_recomputation(
    config: Config, datasets: Datasets, batch_split: BatchSplit, world: World
) -> NormRecomputation | None:
    """What computes the average's batch norm, if that is asked for; it reads data on its own."""
    train = config.train
    if train.ema_norm_steps is None:
        return None
    return NormRecomputation(
        loader=train_loader(config, datasets, batch_split, world),
        num_steps=train.ema_norm_steps,
        autocast_dtype=AUTOCAST_DTYPES[train.precision],
        is_synchronised=train.sync_batch_norm and world.size > 1,
    )


def train_loader(
    config: Config, datasets: Datasets, batch_split: BatchSplit, world: World
) -> TrainLoader:
    """The loader of the training split."""
    return build_train_loader(
        datasets,
        config.dali,
        batch_split=batch_split,
        rank=world.rank,
        device=world.device,
        num_workers=num_workers(config, world),
    )


def first_batches(config: Config, datasets: Datasets, world: World) -> Generator[Batch, None, None]:
    """This rank's micro-batches of step 0, without a start of DALI or decoding the whole data."""
    if datasets.data.loader != "synthetic":
        datasets = replace(datasets, data=replace(datasets.data, loader="torch"))
    split = choose_batch_split(config.train, world.size)
    return train_loader(config, datasets, split, world).batches(0, 1)


def eval_loader(config: Config, datasets: Datasets, world: World) -> EvalLoader:
    """The loader of the validation split."""
    return build_eval_loader(
        datasets.data,
        datasets.val,
        config.dali,
        batch_size=config.eval.batch_size,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        num_workers=num_workers(config, world),
    )


def num_workers(config: Config, world: World) -> int:
    """Loader workers of this rank."""
    return config.data.num_workers or threads_per_rank(world.local_size)
