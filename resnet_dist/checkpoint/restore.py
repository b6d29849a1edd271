"""Going on from a checkpoint: what identifies a run, and what must not differ from it."""

from __future__ import annotations

import socket
from typing import Any

from resnet_dist.checkpoint.manager import CheckpointManager, Loaded, sync_load
from resnet_dist.config import Config
from resnet_dist.config.load import exact_differences, to_flat
from resnet_dist.data.datasets import Datasets
from resnet_dist.data.index.index import Index
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.data.specs import digest_of_step
from resnet_dist.errors import AgreedError, UserError
from resnet_dist.run.folder import versions
from resnet_dist.state import TrainState
from resnet_dist.system.failpoints import failpoint
from resnet_dist.world import World, sync_attempt


def fingerprint_of_run(
    config: Config, datasets: Datasets, batch_split: BatchSplit
) -> dict[str, Any]:
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


def describe_next_batch(datasets: Datasets, step: int) -> dict[str, Any]:
    """What a checkpoint of `step` says about the batch after it: the digest of its samples and
    augmentations, a pure function of (config, data, step) that is computed anew at a resume."""
    digest = "synthetic"
    if isinstance(datasets.train, Index):
        digest = digest_of_step(datasets.train_specs, datasets.order, step)
    if failpoint("checkpoint.digest"):
        digest = "damaged"
    return {"next_batch": digest}


def sync_restore(
    state: TrainState,
    checkpoints: CheckpointManager,
    *,
    config: Config,
    datasets: Datasets,
    current: dict[str, Any],
    world: World,
) -> Loaded | None:
    """Load the checkpoint that `run.resume` asks for into `state`. All ranks must call it.

    Returns None for a new run. Raises UserError if the checkpoint is of another run.
    """
    failpoint("resume.before_load")
    run = config.run
    needs_checkpoint = run.evaluate_only and run.resume == "auto"
    loaded = sync_load(checkpoints, "required" if needs_checkpoint else run.resume, world)
    if loaded is None:
        return None
    check_fingerprint(loaded, config, current)
    sync_attempt(world, lambda: check_next_batch(loaded, config, datasets))
    state.load_state_dict(loaded.payload, is_main=world.is_main)
    loaded.notes.extend(_batch_split_notes(loaded.payload["batch_split"], current["batch_split"]))
    failpoint("resume.after_load")
    return loaded


def check_fingerprint(loaded: Loaded, config: Config, current: dict[str, Any]) -> None:
    """Refuse what would change the mathematics, unless `run.allow_config_change` is set.

    The same words on every rank, since all have the same bytes.
    """
    saved = loaded.payload
    if saved["num_classes"] != current["num_classes"]:
        raise AgreedError(
            f"checkpoint ({loaded.path}): its model has {saved['num_classes']} classes, the data "
            f"{current['num_classes']}; give data.root the data it was trained on"
        )
    differences = _architecture(saved["config"], config)
    if differences:
        raise AgreedError(_refusal(loaded, differences, "give run.dir a new folder"))
    if config.run.allow_config_change or config.run.evaluate_only:
        return
    differences = exact_differences(saved["config"], config)
    if saved["data"]["train"] != current["data"]["train"]:
        differences.append("data.root: the training samples are not those of the checkpoint")
    if differences:
        remedy = "undo that, give run.dir a new folder, or set run.allow_config_change=true"
        raise AgreedError(_refusal(loaded, differences, remedy))


def check_next_batch(loaded: Loaded, config: Config, datasets: Datasets) -> None:
    """Refuse to go on with other samples or crops than the run would have had.

    The settings and the data are the checkpoint's (see `check_fingerprint`), so what differs is
    code: this package's, or NumPy's. Every rank looks for itself: nodes may differ."""
    if config.run.allow_config_change or config.run.evaluate_only:
        return
    saved, step = loaded.payload, loaded.payload["step"]
    if saved["next_batch"] == describe_next_batch(datasets, step)["next_batch"]:
        return
    now = versions()
    changed = [
        f"{name} {old} -> {now.get(name)}"
        for name, old in saved["versions"].items()
        if old != now.get(name)
    ]
    raise UserError(
        f"checkpoint ({loaded.path}): the samples or augmentations of step {step + 1} are not "
        f"those that the run would have had (host {socket.gethostname()}; changed since: "
        f"{', '.join(changed) or 'no version'}); use the versions that made it, or set "
        f"run.allow_config_change=true"
    )


def _architecture(saved: dict[str, Any], config: Config) -> list[str]:
    """Differences that no setting can allow: the tensors would not fit."""
    names = ("model.name", "model.width", "model.stem", "optim.name")
    relevant = names[:-1] if config.run.evaluate_only else names
    return [text for text in exact_differences(saved, config) if text.split(":")[0] in relevant]


def _refusal(loaded: Loaded, differences: list[str], remedy: str) -> str:
    lines = "\n  ".join(differences)
    return f"checkpoint ({loaded.path}): was made with other settings; {remedy}:\n  {lines}"


def _batch_split_notes(saved: dict[str, int], current: dict[str, int]) -> list[str]:
    before, now = saved["accumulation_steps"], current["accumulation_steps"]
    if before == now:
        return []
    return [
        f"the step is now cut into {now} micro-batches instead of {before}, so batch norm sees "
        f"groups of another size; train.accumulation_steps={before} would keep them"
    ]
