"""The one place that says in which order a model is wrapped, and DDP's warm-up.

The order, and why:

1. sync batch norm replaces modules, so it comes before anything that captures them; with
   `performance.fused_norm` it replaces none: the fused pass around the model synchronises itself;
2. device and channels-last come before DDP, whose buckets take the layout of the parameters;
3. torch.compile works in place (`module.compile()`): names and state dict stay plain, and inside
   DDP's forward the compiler still splits its graph at the bucket bounds, so that communication
   overlaps with the backward pass;
4. DDP comes last. It broadcasts no buffers: with sync batch norm they are equal anyway, and
   without it the one who evaluates or saves must synchronise them once, not every step.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup, group, new_group
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from resnet_dist.config import DistConfig, TrainConfig
from resnet_dist.config.performance import PLAIN, Speed
from resnet_dist.errors import UserError
from resnet_dist.models.resnet import FirstConvolution
from resnet_dist.models.sync_batch_norm import SyncBatchNorm2d, convert_sync_batch_norm
from resnet_dist.performance.fused_network import FusedNetwork
from resnet_dist.world import World

# Torch 2.15 renamed it, and warns of the old name.
_BUFFER_SETTING = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


def wrap_model(
    model: nn.Module,
    *,
    train: TrainConfig,
    dist: DistConfig,
    world: World,
    speed: Speed = PLAIN,
) -> nn.Module:
    """The module to call in training: the model itself, or what is put around it.

    Changes `model` in place, which stays the one to evaluate, average and save. With more than one
    rank all must call it: DDP broadcasts rank 0's parameters. Raises UserError if the model has no
    fused form but `performance.fused_norm` asks for it.
    """
    is_synchronised = train.sync_batch_norm and world.size > 1
    sharing = _group_of(train.sync_batch_norm_ranks, world) if is_synchronised else None
    if is_synchronised and not speed.fused_norm:
        try:
            model = convert_sync_batch_norm(model, sharing)
        except ValueError as error:  # a network of others
            raise UserError(
                f"train.sync_batch_norm (True): {error}; set train.sync_batch_norm=false"
            ) from None
    model.to(world.device)
    if train.channels_last:
        model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, FirstConvolution):
            module.space_to_depth = speed.space_to_depth
    if speed.compile:
        for module in model.modules():
            if isinstance(module, SyncBatchNorm2d):
                module.hide_from_compiler()
        model.compile(mode=speed.compile_mode)
    if speed.fused_norm:
        model = FusedNetwork(model, (sharing or group.WORLD) if is_synchronised else None)
    if world.size == 1:
        return model
    settings: dict[str, Any] = {_BUFFER_SETTING: False}
    wrapped = DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        bucket_cap_mb=dist.bucket_cap_mb,
        static_graph=dist.static_graph,
        **settings,
    )
    if dist.gradient_dtype == "bfloat16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def _group_of(ranks: int | None, world: World) -> ProcessGroup | None:
    """The ranks that share batch statistics with this one; None: all. All ranks must call it.
    Raises UserError if the ranks cannot be shared out."""
    if ranks is None:
        return None
    if world.size % ranks:
        raise UserError(
            f"train.sync_batch_norm_ranks ({ranks}): does not divide the {world.size} ranks; give "
            f"a divisor, or leave it out for statistics over all"
        )
    groups = [new_group(list(range(low, low + ranks))) for low in range(0, world.size, ranks)]
    own = groups[world.rank // ranks]
    assert isinstance(own, ProcessGroup)
    return own


def first_synchronised(network: nn.Module, *, speed: Speed) -> nn.Module | nn.Parameter | None:
    """What marks the first collective of a training step of what `wrap_model` gave.

    The first synchronised batch norm, else the parameter whose gradient comes first, about when
    DDP sends off its first bucket. The compiler ignores hooks that modules get later, so with
    `performance.compile` it is the parameter, although batch norm may communicate before. None with
    `performance.cuda_graph`: a step that is replayed calls no hook.
    """
    if speed.cuda_graph:
        return None
    if not speed.compile:
        for module in network.modules():
            if isinstance(module, FusedNetwork) and module.is_synchronised:
                return module.before_first_norm
            if isinstance(module, SyncBatchNorm2d):
                return module
    return [parameter for parameter in network.parameters() if parameter.requires_grad][-1]


def warm_up_buckets(
    wrapped: nn.Module,
    *,
    train: TrainConfig,
    size: int,
    device: torch.device,
    batch_size: int = 2,
    channels: int = 3,
) -> None:
    """Bring DDP's gradient buckets into their final layout before the first real step.

    DDP rebuilds its buckets once, in the second forward pass, by the order in which the gradients
    of the first backward pass arrived (torch/csrc/distributed/c10d/reducer.cpp, `rebuild_buckets`).
    Where an element lies in its bucket decides the order in which a ring all-reduce of three and
    more ranks adds it up. Without this, the first step after a resume would be summed in another
    order than the same step of an uninterrupted run.

    Runs two forward and backward passes on black images `[batch_size, channels, size, size]`, then
    restores all buffers bit for bit and drops the gradients. The random state of torch is not
    touched. All ranks must call it; without DDP it returns at once. With `performance.compile` pass
    the size of the real micro-batches, or the model is compiled for this one.
    """
    if not isinstance(wrapped, DistributedDataParallel):
        return
    was_training = wrapped.training
    saved = [(buffer, buffer.clone()) for buffer in wrapped.buffers()]
    images = torch.zeros(batch_size, channels, size, size, device=device)
    if train.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    precision = getattr(torch, train.precision)
    wrapped.train()  # type: ignore[no-untyped-call]
    for _ in range(2):
        with torch.autocast(device.type, dtype=precision, enabled=precision is not torch.float32):
            logits = wrapped(images)
        logits.float().sum().backward()
        wrapped.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, value in saved:
            buffer.copy_(value)
    wrapped.train(was_training)  # type: ignore[no-untyped-call]
