"""Entry point: `torchrun --nproc_per_node N -m resnet_dist.train [--config C] [key=value ...]`.

Builds everything in the order of the data flow, config -> index -> loaders -> model -> state ->
loop, and then calls `fit`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch

from resnet_dist import dist, summary
from resnet_dist.checkpoint.lock import sync_own_run_folder
from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.config import Config, TrainConfig
from resnet_dist.config_load import Resolved, load_config, parse_arguments
from resnet_dist.data.build import (
    EvalLoader,
    TrainLoader,
    build_eval_loader,
    build_train_loader,
    start_loader_server,
)
from resnet_dist.data.transforms import to_uint8
from resnet_dist.dist import World
from resnet_dist.errors import AgreedError, UserError
from resnet_dist.evaluate import sync_evaluate
from resnet_dist.faults.stop import STOPPED_EXIT_CODE, StopSignal
from resnet_dist.inputs import Inputs, sync_open_inputs
from resnet_dist.loop import Cadence, Outcome, Parts, fit
from resnet_dist.metrics.meters import TrainMeter
from resnet_dist.metrics.recorder import build_recorder
from resnet_dist.metrics.throughput import Throughput
from resnet_dist.models.build import build_model
from resnet_dist.models.wrap import warm_up_buckets, wrap_model
from resnet_dist.optim.build import build_optimizer
from resnet_dist.optim.ema import WeightAverage
from resnet_dist.optim.schedules import build_momentum_schedule, build_schedule
from resnet_dist.plan import BatchPlan, plan_batches
from resnet_dist.resume import identity_of, sync_restore
from resnet_dist.run_folder import prepare_run_folder, run_folder, versions, write_facts
from resnet_dist.state import TrainState
from resnet_dist.step import StepSettings

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: Sequence[str] | None = None) -> int:
    """Run. Returns 0: finished, 2: bad input (a sentence on stderr), 75: stopped by a signal."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        arguments = parse_arguments(argv, prog="resnet_dist.train", description="Train a ResNet.")
        resolved = load_config(arguments.files, arguments.overrides)
        if arguments.print_config:
            return summary.print_config(resolved) if rank == 0 else 0
        world = dist.start(resolved.config.dist)
    except UserError as error:  # the same on every rank, so one speaks
        return _report(error, speaks=rank == 0)
    try:
        code = run(resolved, world)
    except UserError as error:
        return _report(error, speaks=rank == 0 or not isinstance(error, AgreedError))
    # The agent ends all ranks as soon as one exits with a code: let rank 0 finish its report.
    dist.sync_barrier(world)
    if code == STOPPED_EXIT_CODE:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    dist.stop(world)
    return code


def run(resolved: Resolved, world: World) -> int:
    """Build everything, then train or only evaluate. Returns the exit code."""
    config = resolved.config
    configure_torch(config.train, world)
    start_loader_server(config.data, world.device)
    inputs = sync_open_inputs(config, world)
    plan = dist.sync_attempt(world, lambda: plan_of(config, world))
    state = dist.sync_attempt(world, lambda: build_state(config, inputs, world))
    identity = identity_of(config, inputs, plan)
    checkpoints = CheckpointManager(run_folder(config.run) / "checkpoints", config.checkpoint)
    if config.run.evaluate_only:
        sync_restore(state, checkpoints, config=config, current=identity, world=world)
        return evaluate_only(config, state, inputs, world)
    with sync_own_run_folder(run_folder(config.run), world):
        loaded = sync_restore(state, checkpoints, config=config, current=identity, world=world)
        dist.sync_attempt(world, lambda: prepare_run(resolved, state, checkpoints, world))
        if world.is_main:
            opening = summary.opening_lines(config, inputs, loaded, world)
            print("\n".join(opening), flush=True)
        parts = build_parts(config, state, inputs, plan, world=world, identity=identity)
        return train(resolved, state, parts)


def train(resolved: Resolved, state: TrainState, parts: Parts) -> int:
    """Fit and report. Returns the exit code."""
    if state.step == 0:
        parts.recorder.text(0, "config", summary.as_markdown(resolved))
    with closing(parts.recorder), parts.stop:
        outcome = fit(state, parts)
    if parts.world.is_main:
        folder = run_folder(resolved.config.run)
        summary.closing_report(resolved.config, folder, outcome, state.step)
    return STOPPED_EXIT_CODE if outcome is Outcome.STOPPED else 0


def prepare_run(
    resolved: Resolved, state: TrainState, checkpoints: CheckpointManager, world: World
) -> None:
    """On rank 0: see that the run folder has room; write what is known before the first step."""
    if not world.is_main:
        return
    folder, keep_last = run_folder(resolved.config.run), resolved.config.checkpoint.keep_last
    prepare_run_folder(folder, needed_bytes=state.num_bytes * (keep_last + 1))
    checkpoints.open()
    facts = {"world_size": world.size, "step": state.step, "versions": versions()}
    write_facts(folder, resolved, facts)


def configure_torch(train: TrainConfig, world: World) -> None:
    """Process-wide settings of torch."""
    torch.set_num_threads(train.num_threads or dist.threads_per_rank(world.local_size))
    torch.backends.cudnn.benchmark = not train.deterministic
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def plan_of(config: Config, world: World) -> BatchPlan:
    """The split of the global batch among the ranks."""
    return plan_batches(
        config.train.global_batch_size,
        world.size,
        max_micro_batch_size=config.train.max_micro_batch_size,
        accumulation_steps=config.train.accumulation_steps,
    )


def build_state(config: Config, inputs: Inputs, world: World) -> TrainState:
    """A run at step 0, on the device."""
    model = build_model(config.model, num_classes=inputs.num_classes, seed=config.seed)
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model = model.to(world.device, memory_format=memory_format)  # type: ignore[call-overload]
    decay = config.train.ema_decay
    return TrainState(
        model=model,
        optimizer=build_optimizer(config.optim, model),
        scaler=torch.amp.GradScaler(world.device.type, enabled=config.train.precision == "float16"),
        average=WeightAverage(model, decay) if decay is not None else None,
        meter=TrainMeter(world.device),
    )


def build_parts(
    config: Config,
    state: TrainState,
    inputs: Inputs,
    plan: BatchPlan,
    *,
    world: World,
    identity: dict[str, Any],
) -> Parts:
    """Everything that the loop works with."""
    train, folder = config.train, run_folder(config.run)
    cadence = cadence_of(config, len(inputs.train))
    network = wrap_model(state.model, train=train, dist=config.dist, world=world)
    warm_up_buckets(network, train=train, size=config.data.train_size, device=world.device)
    return Parts(
        network=network,
        train_loader=train_loader(config, inputs, plan, world),
        eval_loader=eval_loader(config, inputs, world),
        settings=step_settings(train, plan),
        cadence=cadence,
        lr_of=build_schedule(
            config.schedule,
            lr=config.optim.lr,
            steps_per_epoch=cadence.steps_per_epoch,
            num_steps=cadence.num_steps,
        ),
        momentum_of=build_momentum_schedule(config.schedule, num_steps=cadence.num_steps),
        recorder=build_recorder(
            config.log,
            run_dir=folder,
            is_main=world.is_main,
            resume_step=state.step,
            num_steps=cadence.num_steps,
            steps_per_epoch=cadence.steps_per_epoch,
        ),
        checkpoints=CheckpointManager(folder / "checkpoints", config.checkpoint),
        throughput=Throughput(world.device, global_batch_size=train.global_batch_size),
        stop=StopSignal(world),
        world=world,
        identity=identity,
        to_picture=partial(to_uint8, data=inputs.data),
    )


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
    )


def step_settings(train: TrainConfig, plan: BatchPlan) -> StepSettings:
    """What a step computes."""
    return StepSettings(
        accumulation_steps=plan.accumulation_steps,
        gradient_scale=plan.world_size / train.global_batch_size,
        autocast_dtype=AUTOCAST[train.precision],
        label_smoothing=train.label_smoothing,
        clip_grad_norm=train.clip_grad_norm,
        clip_grad_value=train.clip_grad_value,
    )


def train_loader(config: Config, inputs: Inputs, plan: BatchPlan, world: World) -> TrainLoader:
    """The loader of the training split."""
    return build_train_loader(
        inputs.data,
        inputs.train,
        plan=plan,
        seed=config.seed,
        rank=world.rank,
        device=world.device,
        num_workers=num_workers(config, world),
    )


def eval_loader(config: Config, inputs: Inputs, world: World) -> EvalLoader:
    """The loader of the validation split."""
    return build_eval_loader(
        inputs.data,
        inputs.val,
        batch_size=config.eval.batch_size,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        num_workers=num_workers(config, world),
    )


def num_workers(config: Config, world: World) -> int:
    """Loader workers of this rank."""
    return config.data.num_workers or dist.threads_per_rank(world.local_size)


def evaluate_only(config: Config, state: TrainState, inputs: Inputs, world: World) -> int:
    """Evaluate the restored model, and its moving average if it has one. Writes no file."""
    models = {"val/": state.model}
    if state.average is not None:
        models["val/ema_"] = state.average.module
    loader = eval_loader(config, inputs, world)
    dtype = AUTOCAST[config.train.precision]
    for prefix, model in models.items():
        result = sync_evaluate(model, loader, world=world, autocast_dtype=dtype)
        if world.is_main:
            print(summary.evaluation_line(prefix, state.step, result), flush=True)
    return 0


def _report(error: UserError, *, speaks: bool) -> int:
    if speaks:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.stderr.flush()
    return 2


if __name__ == "__main__":
    sys.exit(main())
