"""From a config to everything that the loop works with: one function a part.

Owns the translation of settings into constructor arguments; the order in which things are built is
`train.py`'s.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.checkpoint.restore import describe_next_batch
from resnet_dist.checkpoint.saver import BackgroundSaver, NullSaver, Saver
from resnet_dist.config import Config, TrainConfig
from resnet_dist.data.augment.device_stage import to_uint8
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.loaders.build import build_eval_loader, build_train_loader
from resnet_dist.data.loaders.loader import EvalLoader, TrainLoader
from resnet_dist.data.micro_batches import BatchSplit, choose_batch_split
from resnet_dist.errors import UserError
from resnet_dist.faults.guards import sync_build_guards
from resnet_dist.faults.loss_history import LossHistory
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.faults.preemption import StopSignal
from resnet_dist.faults.watchdog import Watchdog
from resnet_dist.loop import Cadence, Parts
from resnet_dist.loss import LossSettings
from resnet_dist.metrics.meters import TrainMeter
from resnet_dist.metrics.recorder import Recorder, build_recorder
from resnet_dist.metrics.throughput import Throughput
from resnet_dist.models.build import build_model
from resnet_dist.optim.build import build_optimizer
from resnet_dist.optim.ema import ModelEma
from resnet_dist.optim.scaling import build_scaler
from resnet_dist.optim.schedules import build_momentum_schedule, build_schedule
from resnet_dist.performance.cuda_graph import (
    WARM_UP_STEPS,
    WARM_UP_STEPS_DDP,
    CudaGraphs,
    GraphedGradients,
    GraphedStep,
)
from resnet_dist.performance.wrap import first_synchronised, warm_up_buckets, wrap_model
from resnet_dist.run.folder import run_folder
from resnet_dist.state import TrainState
from resnet_dist.step import EagerStep, Step, StepSettings
from resnet_dist.world import World, threads_per_rank

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def batch_split_of(config: Config, world: World) -> BatchSplit:
    """The split of the global batch among the ranks."""
    return choose_batch_split(
        config.train.global_batch_size,
        world.size,
        max_micro_batch_size=config.train.max_micro_batch_size,
        accumulation_steps=config.train.accumulation_steps,
    )


def build_state(config: Config, datasets: Datasets, world: World) -> TrainState:
    """A run at step 0, on the device."""
    model = build_model(config.model, num_classes=datasets.num_classes, seed=config.seed)
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model = model.to(world.device, memory_format=memory_format)  # type: ignore[call-overload]
    decay = config.train.ema_decay
    average = ModelEma(model, decay) if decay is not None else None
    return TrainState(
        model=model,
        optimizer=build_optimizer(config.optim, model),
        scaler=build_scaler(
            world.device, precision=config.train.precision, loss_scale=config.train.loss_scale
        ),
        average=average,
        meter=TrainMeter(world.device),
        guard=NonFiniteGuard(model),
        losses=LossHistory(),
    )


def build_components(
    config: Config,
    state: TrainState,
    datasets: Datasets,
    batch_split: BatchSplit,
    watchdog: Watchdog,
    *,
    world: World,
    fingerprint: dict[str, Any],
) -> Parts:
    """Everything that the loop works with."""
    train = config.train
    cadence = cadence_of(config, len(datasets.train))
    step = sync_build_step(config, state, batch_split, world=world)
    first = first_synchronised(step.network, train=train)
    recorder, saver = build_records(config, state, datasets, world)
    return Parts(
        step=step,
        train_loader=train_loader(config, datasets, batch_split, world),
        eval_loader=watchdog.watch_evaluation(eval_loader(config, datasets, world)),
        autocast_dtype=AUTOCAST[train.precision],
        cadence=cadence,
        lr_of=build_schedule(
            config.schedule,
            lr=config.optim.lr,
            steps_per_epoch=cadence.steps_per_epoch,
            num_steps=cadence.num_steps,
        ),
        momentum_of=build_momentum_schedule(config.schedule, num_steps=cadence.num_steps),
        recorder=recorder,
        saver=saver,
        throughput=Throughput(world.device, global_batch_size=train.global_batch_size),
        stop=StopSignal(world),
        guards=sync_build_guards(
            config, state.model, state.optimizer, world=world, watchdog=watchdog, first_sync=first
        ),
        world=world,
        fingerprint=fingerprint,
        to_picture=partial(to_uint8, data=datasets.data),
    )


def check_device(train: TrainConfig, device: torch.device) -> None:
    """Raises UserError if the device cannot train as it is asked to."""
    speed = train.speed_on(device.type)
    if speed.cuda_graph and device.type != "cuda":
        raise UserError(
            "train.cuda_graph (True): needs a GPU, and this run is on CPUs; set "
            "train.cuda_graph=false, or another train.performance if that is graphed (a run may be "
            "resumed with another value of both)"
        )
    if speed.fused_norm and device.type == "cuda":
        from resnet_dist.performance.kernels.verify import verify_kernels  # only where it is wanted

        try:
            wrong = verify_kernels(device, AUTOCAST[train.precision] or torch.float32)
        except Exception as error:  # whatever a compiler says
            wrong = f"they do not run: {type(error).__name__}: {error}"
        if wrong:
            raise UserError(
                f"train.fused_norm (True): the kernels do not work on {device} "
                f"({torch.cuda.get_device_name(device)}): {wrong}; set train.fused_norm=false (a "
                f"run may be resumed with the other value)"
            )


def sync_build_step(
    config: Config, state: TrainState, batch_split: BatchSplit, *, world: World
) -> Step:
    """How a training step is taken: wraps the model, and captures it if that is asked for. All
    ranks must call it."""
    train = config.train
    check_device(train, world.device)
    speed = train.speed_on(world.device.type)
    graphs = CudaGraphs(world.device) if speed.cuda_graph else None
    low, high = batch_split.micro_batch_slice(world.rank, 0)
    with graphs.side_stream() if graphs else nullcontext():
        network = wrap_model(state.model, train=train, dist=config.dist, world=world)
        warm_up_buckets(
            network,
            train=train,
            size=config.data.train_size,
            device=world.device,
            batch_size=max(high - low, 1) if speed.compile else 2,
        )
    eager = EagerStep(
        network=network,
        optimizer=state.optimizer,
        scaler=state.scaler,
        settings=step_settings(train, batch_split),
        on_logits=state.meter.update,
        guard=state.guard,
    )
    if graphs is None:
        return eager
    warm_up_steps = WARM_UP_STEPS if world.size == 1 else WARM_UP_STEPS_DDP
    momentum_of = build_momentum_schedule(config.schedule, num_steps=1)
    kind = GraphedStep if momentum_of is None else GraphedGradients
    return kind(eager, graphs, warm_up_steps=warm_up_steps)


def build_records(
    config: Config, state: TrainState, datasets: Datasets, world: World
) -> tuple[Recorder, Saver]:
    """What writes into the run folder from `state.step` on; nothing on ranks but the main one."""
    folder = run_folder(config.run)
    cadence = cadence_of(config, len(datasets.train))
    recorder = build_recorder(
        config.log,
        run_dir=folder,
        is_main=world.is_main,
        resume_step=state.step,
        num_steps=cadence.num_steps,
        steps_per_epoch=cadence.steps_per_epoch,
    )
    if not world.is_main:
        return recorder, NullSaver()
    saver = BackgroundSaver(
        CheckpointManager(folder / "checkpoints", config.checkpoint),
        device=world.device,
        max_failures=config.checkpoint.max_failures,
        flush_records=recorder.flush,
        describe_next_batch=partial(describe_next_batch, datasets),
        tell=recorder.message,
    )
    return recorder, saver


def cadence_of(config: Config, num_samples: int) -> Cadence:
    """What is due when."""
    steps_per_epoch = num_samples // config.train.global_batch_size
    num_steps = steps_per_epoch * config.train.epochs
    return Cadence(
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        stop_step=min(num_steps, config.train.max_steps or num_steps),
        ema_every_steps=config.train.ema_every_steps,
        log=config.log,
        eval=config.eval,
        checkpoint=config.checkpoint,
        faults=config.faults,
    )


def step_settings(train: TrainConfig, batch_split: BatchSplit) -> StepSettings:
    """What a step computes."""
    return StepSettings(
        accumulation_steps=batch_split.accumulation_steps,
        gradient_scale=batch_split.world_size / train.global_batch_size,
        autocast_dtype=AUTOCAST[train.precision],
        loss=LossSettings(
            name=train.loss,
            label_smoothing=train.label_smoothing,
            sums_classes=train.bce_sum_classes,
            target_threshold=train.bce_target_threshold,
        ),
        clip_grad_norm=train.clip_grad_norm,
        clip_grad_value=train.clip_grad_value,
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


def eval_loader(config: Config, datasets: Datasets, world: World) -> EvalLoader:
    """The loader of the validation split."""
    return build_eval_loader(
        datasets,
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
