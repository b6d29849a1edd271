"""The fewest micro-batches with which a step fits into the memory of every rank's GPU:
`train.auto_micro_batch`.

Found once, by trying the forward and backward pass of the largest micro-batch, agreed by all ranks,
and kept in the run folder: a restart takes what was found, or another GPU's free memory would
change which images share batch statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnet_dist.config import Config
from resnet_dist.data.augment.progressive import train_size
from resnet_dist.data.micro_batches import choose_batch_split
from resnet_dist.errors import AgreedError
from resnet_dist.step import AUTOCAST_DTYPES, autocast
from resnet_dist.system.json_files import read_json, write_json
from resnet_dist.world import World, sync_broadcast_object, sync_gather_objects

FILE = "micro_batches.json"
RESERVED = 0.08
"""Share of the GPU's memory that stays free in the trial: for batches in flight, NCCL, DALI."""

Trial = Callable[[int], bool]
"""Whether a micro-batch of so many images fits."""


def sync_find_accumulation_steps(
    config: Config, model: nn.Module, folder: Path, world: World, trial: Trial | None = None
) -> tuple[int, str]:
    """Micro-batches per step, the same on all ranks, and what to say. All ranks must call it.

    Raises AgreedError if one image is too much.
    """
    key = _key(config, world)
    kept = sync_broadcast_object(_read(folder, key) if world.is_main else None, world)
    if kept is not None:
        return kept, f"train.auto_micro_batch: {kept} micro-batch(es) per step, as found before"
    if trial is None:
        trial = _trial_of(config, model, world.device)
    split = choose_batch_split(config.train, world.size)
    steps, last = split.accumulation_steps, config.train.global_batch_size // world.size
    while True:
        size = replace(split, accumulation_steps=steps).largest_micro_batch
        if all(sync_gather_objects(trial(size), world)):
            break
        if steps >= last:
            raise AgreedError(
                f"train.auto_micro_batch: not even {size} image(s) of this size fit into the "
                f"memory of every GPU; lower data.train_size, or set performance.recompute=true"
            )
        steps = min(2 * steps, last)
    return steps, f"train.auto_micro_batch: {steps} micro-batch(es) of at most {size} per rank"


def write(folder: Path, config: Config, world: World, steps: int) -> None:
    """Keep what was found, for restarts."""
    write_json(folder / FILE, {**_key(config, world), "accumulation_steps": steps})


def _key(config: Config, world: World) -> dict[str, Any]:
    """What the finding depends on, but for the GPU."""
    return {
        "model": config.model.name,
        "train_size": config.data.train_size,
        "precision": config.train.precision,
        "global_batch_size": config.train.global_batch_size,
        "world_size": world.size,
    }


def _read(folder: Path, key: dict[str, Any]) -> int | None:
    content = read_json(folder / FILE) or {}
    is_this = all(content.get(name) == value for name, value in key.items())
    return int(content["accumulation_steps"]) if is_this else None


def _trial_of(config: Config, model: nn.Module, device: torch.device) -> Trial:
    size = train_size(config.augment, config.data.train_size, config.train.epochs)
    channels = config.model.in_channels

    def attempt(images: int) -> bool:
        if device.type != "cuda":
            return True
        saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            total = torch.cuda.get_device_properties(device).total_memory
            reserved = torch.empty(int(RESERVED * total), dtype=torch.uint8, device=device)
            batch = torch.zeros(images, channels, size, size, device=device)
            batch = batch.contiguous(memory_format=torch.channels_last)
            with autocast(device, AUTOCAST_DTYPES[config.train.precision]):
                logits = model(batch)
            logits.float().sum().backward()
            del reserved
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            with torch.no_grad():
                for buffer, value in saved:
                    buffer.copy_(value)
        return True

    return attempt
