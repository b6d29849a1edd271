"""Restoring a run from a checkpoint, and the rejection of one that belongs to another run."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from resnet_dist.checkpoint.choice import Loaded, sync_load
from resnet_dist.checkpoint.files import check_content
from resnet_dist.checkpoint.manager import CheckpointManager
from resnet_dist.config import Config
from resnet_dist.config.load import Difference, exact_differences
from resnet_dist.errors import AgreedError, UserError
from resnet_dist.run.versions import versions
from resnet_dist.system.failpoints import failpoint
from resnet_dist.world import World, sync_attempt

ARCHITECTURE = (
    "model.name",
    "model.width",
    "model.stem",
    "model.in_channels",
    "model.conv_bias",
    "model.shortcut_norm",
)
"""Settings that decide the shapes of the parameters; no other setting can allow a change."""


class Stateful(Protocol):
    """What a checkpoint restores."""

    step: int
    """Completed optimizer updates."""

    def load_state_dict(self, saved: dict[str, Any], *, is_main: bool) -> None:
        """Take over a checkpoint's content. `is_main`: this is rank 0."""

    def forget_best(self) -> None:
        """The best evaluation was another run's."""


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
    loaded = sync_load(checkpoints, config.run.resume, world)
    if loaded is None:
        return None
    sync_attempt(world, check_content, loaded.payload, loaded.path)
    check_fingerprint(loaded, config, fingerprint)
    sync_attempt(world, check_next_batch, loaded, config, describe_next_batch)
    try:
        state.load_state_dict(loaded.payload, is_main=world.is_main)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AgreedError(
            f"checkpoint ({loaded.path}): its content does not fit this run ({reason}); use "
            f"another one"
        ) from error
    if loaded.path.resolve().parent != checkpoints.folder.resolve():
        state.forget_best()
    loaded.notes.extend(_change_notes(loaded.payload, config, fingerprint))
    failpoint("resume.after_load")
    return loaded


def check_fingerprint(loaded: Loaded, config: Config, current: dict[str, Any]) -> None:
    """Reject what would change the mathematics, unless `run.allow_config_change` is set.

    Raises AgreedError with the same words on every rank, since all have the same bytes.
    """
    saved = loaded.payload
    reject_architecture(loaded, config, "optim.name")
    if saved["num_classes"] != current["num_classes"]:
        raise AgreedError(
            f"checkpoint ({loaded.path}): its model has {saved['num_classes']} classes, the data "
            f"{current['num_classes']}; give data.root the data it was trained on"
        )
    if list(saved["classes"]) != list(current["classes"]):
        raise AgreedError(_other_classes(loaded, list(current["classes"])))
    differences = exact_differences(saved["config"], config)
    if config.run.allow_config_change:
        return
    others = []
    if saved["data"]["train"] != current["data"]["train"]:
        others.append("data.root: the training samples are not those of the checkpoint")
    if differences or others:
        remedy = "undo that, give run.dir a new folder, or set run.allow_config_change=true"
        raise AgreedError(_rejection(loaded, [*differences, *others], remedy))


def reject_architecture(loaded: Loaded, config: Config, *also: str) -> None:
    """Raises AgreedError if the checkpoint's model is of another architecture, or another of the
    settings named in `also` differs, which nothing can allow."""
    differences = exact_differences(loaded.payload["config"], config)
    impossible = [each for each in differences if each.key in (*ARCHITECTURE, *also)]
    if impossible:
        raise AgreedError(_rejection(loaded, impossible, "give run.dir a new folder"))


def _other_classes(loaded: Loaded, now: list[str]) -> str:
    """What a model's outputs mean is not what the data's labels are."""
    before = list(loaded.payload["classes"])
    gone = [name for name in before if name not in set(now)]
    new = [name for name in now if name not in set(before)]
    what = "the same names in another order"
    if gone or new:
        what = f"missing: {', '.join(gone[:5]) or 'none'}; new: {', '.join(new[:5]) or 'none'}"
    return (
        f"checkpoint ({loaded.path}): its classes are not those of the data ({what}); give "
        f"data.root the data it was trained on, or start a new run"
    )


def check_next_batch(
    loaded: Loaded, config: Config, describe_next_batch: Callable[[int], dict[str, Any]]
) -> None:
    """Reject a resume with other samples or crops than the run would have had.

    The settings and the data are the checkpoint's (see `check_fingerprint`), so what differs is
    code: this package's, or NumPy's. Every rank looks for itself: nodes may differ.
    """
    if config.run.allow_config_change:
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


def _change_notes(saved: dict[str, Any], config: Config, current: dict[str, Any]) -> list[str]:
    """What differs from the run that made the checkpoint, and was allowed to."""
    notes = [f"changed: {each}" for each in exact_differences(saved["config"], config)]
    if saved["data"]["train"] != current["data"]["train"]:
        notes.append("changed: the training samples are not those of the checkpoint")
    if saved["data"]["val"] != current["data"]["val"]:
        notes.append(
            "changed: the validation samples are not those of the checkpoint, so accuracies before "
            "and after this are not comparable, and best.pt may be of the former"
        )
    if config.train.ema_decay is not None and saved["average"] is None:
        notes.append("the checkpoint has no moving average: it begins at the checkpoint's weights")
    before, now = saved["batch_split"], current["batch_split"]
    if before["accumulation_steps"] != now["accumulation_steps"]:
        notes.append(
            f"each step is now cut into {now['accumulation_steps']} micro-batches instead of "
            f"{before['accumulation_steps']}, so batch norm sees groups of another size; "
            f"train.accumulation_steps={before['accumulation_steps']} would keep them"
        )
    if before["world_size"] != now["world_size"] and not config.train.norm_spans_all:
        ranks = config.train.sync_batch_norm_ranks
        which = f"sync_batch_norm_ranks={ranks}" if ranks else "sync_batch_norm=false"
        notes.append(
            f"{now['world_size']} ranks instead of {before['world_size']} with "
            f"train.{which}: batch norm sees groups of another size"
        )
    return notes
