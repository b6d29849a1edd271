"""One start that only evaluates: a checkpoint on a validation split. Writes no file.

Needs neither a training split nor the settings of training: the checkpoint holds its classes, and
the data's classes are matched with them by name.
"""

from __future__ import annotations

from typing import Any

import torch

from resnet_dist.build import num_workers
from resnet_dist.checkpoint.choice import Loaded, sync_load
from resnet_dist.checkpoint.files import check_content
from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.checkpoint.restore import reject_architecture
from resnet_dist.config import Config
from resnet_dist.data.datasets import sync_open_validation
from resnet_dist.data.loaders.build import build_eval_loader
from resnet_dist.errors import AgreedError
from resnet_dist.evaluate.forward import sync_evaluate
from resnet_dist.models.build import build_model
from resnet_dist.report import run_summary
from resnet_dist.run.folder import run_folder
from resnet_dist.step import AUTOCAST_DTYPES
from resnet_dist.system.failpoints import failpoint
from resnet_dist.world import World, sync_attempt


def sync_evaluate_checkpoint(config: Config, world: World) -> int:
    """Evaluate what `run.resume` names, and its moving average if `train.ema_decay` is set. All
    ranks must call it. Returns the exit code. Raises UserError."""
    failpoint("resume.before_load")
    resume = "required" if config.run.resume == "auto" else config.run.resume
    checkpoints = CheckpointManager(run_folder(config.run), config.checkpoint)
    loaded = sync_load(checkpoints, resume, world, may_write=False)
    if loaded is None:
        raise AgreedError(f"run.resume ({resume}): names no checkpoint to evaluate")
    sync_attempt(world, check_content, loaded.payload, loaded.path)
    reject_architecture(loaded, config)
    weights = _weights_of(loaded, config)
    failpoint("resume.after_load")
    data, val = sync_open_validation(config, world, classes=list(loaded.payload["classes"]))
    loader = build_eval_loader(
        data,
        val,
        config.dali,
        batch_size=config.eval.batch_size,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        num_workers=num_workers(config, world),
    )
    if world.is_main:
        lines = [f"note: {note}" for note in loaded.notes]
        lines.append(f"evaluating {loaded.path} on {len(val)} images of {data.root}")
        print("\n".join(lines), flush=True)
    num_classes = loaded.payload["num_classes"]
    model = build_model(config.model, num_classes=num_classes, seed=config.seed)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model = model.to(world.device, memory_format=layout)  # type: ignore[call-overload]
    for prefix, tensors in weights.items():
        model.load_state_dict(tensors)
        result = sync_evaluate(
            model,
            loader,
            world=world,
            autocast_dtype=AUTOCAST_DTYPES[config.train.precision],
            flip=config.eval.flip,
        )
        if world.is_main:
            step = loaded.payload["step"]
            print(run_summary.evaluation_line(prefix, step, result), flush=True)
    return 0


def _weights_of(loaded: Loaded, config: Config) -> dict[str, dict[str, Any]]:
    """What is evaluated, by the prefix of its tags."""
    weights = {"val/": loaded.payload["model"]}
    average = loaded.payload["average"]
    if config.train.ema_decay is not None:
        if average is None:
            raise AgreedError(
                f"train.ema_decay ({config.train.ema_decay}): {loaded.path} holds no moving "
                f"average to evaluate; leave it out"
            )
        weights["val/ema_"] = average
    elif average is not None:
        loaded.notes.append(
            f"the checkpoint also holds a moving average; train.ema_decay="
            f"{loaded.payload['config']['train.ema_decay']} evaluates it too"
        )
    return weights
