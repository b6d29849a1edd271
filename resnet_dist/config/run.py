"""Which run it is, and when it evaluates, saves and logs: sections `run`, `eval`, `checkpoint` and
`log`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import Rules, free


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Which run this is, where it lives, and how it starts."""

    name: str = free("quickstart")
    """Name of the run; its folder is `runs/<name>` unless `run.dir` is set."""
    dir: str | None = free(None)
    """Run folder: resolved config, versions, logs, checkpoints, curves.png."""
    resume: str = free("auto")
    """auto: go on in the run folder if it holds a checkpoint; never: start anew in an empty folder;
    required: fail if there is no checkpoint; PATH: start from that checkpoint file."""
    evaluate_only: bool = free(False)
    """Evaluate the checkpoint that `run.resume` names, train nothing."""
    allow_config_change: bool = free(False)
    """Resume although settings that change the mathematics differ from the checkpoint's."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation."""

    batch_size: int = free(256)
    """Samples of one forward pass. Whole batches go to the ranks in turn."""
    every_epochs: int = free(1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    flip: bool = False
    """Evaluate each image and its mirror image, and take the mean of the logits (ffcv's test-time
    augmentation). Twice the work."""

    def __post_init__(self) -> None:
        rules = Rules()
        for name in ("batch_size", "every_epochs"):
            value = getattr(self, name)
            rules.require(
                value >= 1, f"eval.{name}", value, "must be at least 1", "give a count > 0"
            )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep."""

    every_steps: int | None = free(None)
    """Steps between saves, besides those at the end of epochs."""
    every_epochs: int = free(1)
    """Epochs between saves; the last step is always saved."""
    keep_last: int = free(3)
    """Newest checkpoints to keep."""
    keep_best: bool = free(True)
    """Also keep the checkpoint of the best validation top-1, as best.pt."""
    max_failures: int = free(10)
    """Saves that may fail one after another (a full disk) before the run ends."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.every_steps is None or self.every_steps >= 1,
            "checkpoint.every_steps",
            self.every_steps,
            "must be at least 1",
            "null saves at the end of epochs only",
        )
        for name in ("every_epochs", "keep_last", "max_failures"):
            value = getattr(self, name)
            rules.require(
                value >= 1, f"checkpoint.{name}", value, "must be at least 1", "1 or more"
            )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is shown and recorded."""

    every_steps: int = free(50)
    """Steps between records; the device is read only then."""
    tensorboard: bool = free(True)
    """Write TensorBoard events to the run folder."""
    progress: Literal["auto", "bar", "lines"] = free("auto")
    """auto: a bar on a terminal, a line a record otherwise."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.every_steps >= 1, "log.every_steps", self.every_steps, "must be at least 1", "50"
        )
        rules.enforce()
