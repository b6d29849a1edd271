"""Restoring a run from a checkpoint, and the rejection of one that belongs to another run."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from resnet_dist.checkpoint.manager import CheckpointManager, Loaded, sync_load
from resnet_dist.config import Config
from resnet_dist.config.load import Difference, exact_differences
from resnet_dist.errors import AgreedError, UserError
from resnet_dist.run.folder import versions
from resnet_dist.system.failpoints import failpoint
from resnet_dist.world import World, sync_attempt

ARCHITECTURE = ("model.name", "model.width", "model.stem")
"""Settings that decide the shapes of the parameters; no other setting can allow a change."""


class Stateful(Protocol):
    """What a checkpoint restores."""

    step: int
    """Completed optimizer updates."""

    def load_state_dict(self, saved: dict[str, Any], *, is_main: bool) -> None:
        """Take over a checkpoint's content. `is_main`: this is rank 0."""


def sync_restore(
    state: Stateful,
    checkpoints: CheckpointManager,
    *,
    config: Config,
    fingerprint: dict[str, Any],
    describe_next_batch: Callable[[int], dict[str, Any]],
    world: World,
) -> Loaded | None:
    """Load the checkpoint that `run.resume` asks for into `state`. All ranks must call it.

    `fingerprint`: what a checkpoint of the run as it is now would say about it.
    `describe_next_batch(step)`: what such a checkpoint would say about the batch after `step`.
    Returns None for a new run. Raises UserError if the checkpoint is of another run.
    """
    failpoint("resume.before_load")
    run = config.run
    needs_checkpoint = run.evaluate_only and run.resume == "auto"
    loaded = sync_load(checkpoints, "required" if needs_checkpoint else run.resume, world)
    if loaded is None:
        return None
    check_fingerprint(loaded, config, fingerprint)
    sync_attempt(world, check_next_batch, loaded, config, describe_next_batch)
    state.load_state_dict(loaded.payload, is_main=world.is_main)
    loaded.notes.extend(_batch_split_notes(loaded.payload, fingerprint))
    failpoint("resume.after_load")
    return loaded


def check_fingerprint(loaded: Loaded, config: Config, current: dict[str, Any]) -> None:
    """Reject what would change the mathematics, unless `run.allow_config_change` is set.

    Raises AgreedError with the same words on every rank, since all have the same bytes.
    """
    saved = loaded.payload
    if saved["num_classes"] != current["num_classes"]:
        raise AgreedError(
            f"checkpoint ({loaded.path}): its model has {saved['num_classes']} classes, the data "
            f"{current['num_classes']}; give data.root the data it was trained on"
        )
    differences = exact_differences(saved["config"], config)
    fixed = ARCHITECTURE if config.run.evaluate_only else (*ARCHITECTURE, "optim.name")
    impossible = [each for each in differences if each.key in fixed]
    if impossible:
        raise AgreedError(_rejection(loaded, impossible, "give run.dir a new folder"))
    if config.run.allow_config_change or config.run.evaluate_only:
        return
    others = []
    if saved["data"]["train"] != current["data"]["train"]:
        others.append("data.root: the training samples are not those of the checkpoint")
    if differences or others:
        remedy = "undo that, give run.dir a new folder, or set run.allow_config_change=true"
        raise AgreedError(_rejection(loaded, [*differences, *others], remedy))


def check_next_batch(
    loaded: Loaded, config: Config, describe_next_batch: Callable[[int], dict[str, Any]]
) -> None:
    """Reject a resume with other samples or crops than the run would have had.

    The settings and the data are the checkpoint's (see `check_fingerprint`), so what differs is
    code: this package's, or NumPy's. Every rank looks for itself: nodes may differ.
    """
    if config.run.allow_config_change or config.run.evaluate_only:
        return
    saved, step = loaded.payload, loaded.payload["step"]
    if saved["next_batch"] == describe_next_batch(step)["next_batch"]:
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


def _rejection(loaded: Loaded, differences: Sequence[Difference | str], remedy: str) -> str:
    lines = "\n  ".join(str(each) for each in differences)
    return f"checkpoint ({loaded.path}): was made with other settings; {remedy}:\n  {lines}"


def _batch_split_notes(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    before, now = (each["batch_split"]["accumulation_steps"] for each in (saved, current))
    if before == now:
        return []
    return [
        f"each step is now cut into {now} micro-batches instead of {before}, so batch norm sees "
        f"groups of another size; train.accumulation_steps={before} would keep them"
    ]
