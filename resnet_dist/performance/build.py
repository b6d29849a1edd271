"""How a training step is executed here: the network is wrapped, the step captured if need be."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from resnet_dist.config import Config
from resnet_dist.config.performance import FASTEST
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.errors import UserError
from resnet_dist.models.foreign import seed_forward
from resnet_dist.models.resnet import ResNet
from resnet_dist.optim.sam import Sharpness
from resnet_dist.optim.schedules import build_momentum_schedule
from resnet_dist.performance.cuda_graph import (
    WARM_UP_STEPS,
    WARM_UP_STEPS_DDP,
    CudaGraphs,
    GraphedGradients,
    GraphedStep,
)
from resnet_dist.performance.faulty_step import FaultyStep
from resnet_dist.performance.fused_network import CHANNELS
from resnet_dist.performance.wrap import warm_up_buckets, wrap_model
from resnet_dist.state import TrainState
from resnet_dist.step import AUTOCAST_DTYPES, EagerStep, Step, StepSettings
from resnet_dist.system.failpoints import is_armed
from resnet_dist.weights.teacher import Teacher
from resnet_dist.world import World

MUON_NOTE = (
    "optim.name=muon in a CUDA graph is not safe yet: two of five runs ended by a fault of the GPU"
)
"""Both had filters of 512 x 512 x 3 x 3; not explained (docs/benchmarks/gpu_h200_202611.md)."""


def sync_build_step(
    config: Config,
    state: TrainState,
    batch_split: BatchSplit,
    *,
    world: World,
    teacher: Teacher | None = None,
) -> Step:
    """How a training step is taken: wraps the model, and captures it if that is asked for. All
    ranks must call it."""
    train = config.train
    check_device(config, world.device)
    speed = config.performance.speed_on(world.device.type)
    graphs = CudaGraphs(world.device) if speed.cuda_graph else None
    if isinstance(state.model, ResNet):
        state.model.recomputes = config.performance.recompute
    low, high = batch_split.micro_batch_slice(world.rank, 0)
    with graphs.side_stream() if graphs else nullcontext():
        network = wrap_model(state.model, train=train, dist=config.dist, world=world, speed=speed)
        warm_up_buckets(
            network,
            train=train,
            size=config.data.train_size,
            device=world.device,
            batch_size=max(high - low, 1) if speed.compile else 2,
            channels=config.model.in_channels,
        )
    eager = (FaultyStep if is_armed() else EagerStep)(
        network=network,
        optimizer=state.optimizer,
        scaler=state.scaler,
        settings=step_settings(config, batch_split),
        on_logits=state.meter.update,
        guard=state.guard,
        teacher=teacher,
        sharpness=None
        if train.sam_rho is None
        else Sharpness(train.sam_rho, every_steps=train.sam_every_steps),
        seed_forward=partial(seed_forward, config.seed, world.rank)
        if config.model.is_foreign
        else None,
    )
    if graphs is None:
        return eager
    warm_up_steps = WARM_UP_STEPS if world.size == 1 else WARM_UP_STEPS_DDP
    momentum_of = build_momentum_schedule(config.schedule, num_steps=1)
    kind = GraphedStep if momentum_of is None else GraphedGradients
    return kind(eager, graphs, warm_up_steps=warm_up_steps)


def choose_preset(config: Config, world: World) -> tuple[Config, list[str]]:
    """`config` with `performance.preset=auto` decided for this run, and what there is to say.

    auto is `graphed` where that was measured, on one GPU, and where its kernels work. Raises
    UserError if the device cannot train as it is asked to.
    """
    if config.performance.preset != "auto":
        check_device(config, world.device)
        is_captured = config.performance.speed_on(world.device.type).cuda_graph
        return config, [MUON_NOTE] if is_captured and config.optim.name == "muon" else []
    lines = []
    preset = "plain"
    # ResNet-D's first layers have half the width.
    suits = config.performance.is_open and config.train.channels_last and config.model.is_standard
    if world.device.type == "cuda" and suits and config.model.width % (2 * CHANNELS) == 0:
        preset = FASTEST["cuda"]
    if preset != "plain" and world.size > 1:
        lines = [
            f"performance.preset=auto is plain on several GPUs, where {preset} was not measured "
            f"yet; it is 1.7 times as fast on one (docs/performance.md)"
        ]
        preset = "plain"
    if preset != "plain" and config.optim.name == "muon":
        lines, preset = [f"performance.preset=auto is plain here: {MUON_NOTE}"], "plain"
    chosen = _with_preset(config, preset)
    try:
        check_device(chosen, world.device)
    except UserError as error:
        if preset == "plain":
            raise
        lines = [f"performance.preset=auto is plain here: {error}"]
        chosen = _with_preset(config, "plain")
    return chosen, lines


def _with_preset(config: Config, preset: Any) -> Config:
    return replace(config, performance=replace(config.performance, preset=preset))


def check_device(config: Config, device: torch.device) -> None:
    """Raises UserError if the device cannot train as it is asked to."""
    speed = config.performance.speed_on(device.type)
    if speed.cuda_graph and device.type != "cuda":
        raise UserError(
            "performance.cuda_graph (True): needs a GPU, and this run is on CPUs; set "
            "performance.cuda_graph=false, or another performance.preset if that is graphed (a run "
            "may be resumed with another value of both)"
        )
    if speed.fused_norm and device.type == "cuda":
        wrong = _wrong_with_kernels(device, config.train.precision)
        if wrong:
            raise UserError(
                f"performance.fused_norm (True): the kernels do not work on {device} "
                f"({torch.cuda.get_device_name(device)}): {wrong}; set "
                f"performance.preset=plain (a run may be resumed with the other value)"
            )


def _wrong_with_kernels(device: torch.device, precision: str) -> str | None:
    """Compared with their reference implementation in the type that they are used with."""
    from resnet_dist.performance.kernels.verify import verify_kernels  # only where it is wanted

    try:
        return verify_kernels(device, AUTOCAST_DTYPES[precision] or torch.float32)
    except Exception as error:  # whatever a compiler says
        return f"they do not run: {type(error).__name__}: {error}"


def step_settings(config: Config, batch_split: BatchSplit) -> StepSettings:
    """What a step computes."""
    train = config.train
    return StepSettings(
        accumulation_steps=batch_split.accumulation_steps,
        gradient_scale=batch_split.world_size / train.global_batch_size,
        autocast_dtype=AUTOCAST_DTYPES[train.precision],
        loss=config.loss,
        clip_grad_norm=train.clip_grad_norm,
        clip_grad_value=train.clip_grad_value,
    )
