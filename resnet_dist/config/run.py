"""Which run it is, and when it evaluates, saves and logs: sections `run`, `eval`, `checkpoint` and
`log`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.setting import check_section, setting

RESUME_WORDS = ("auto", "never", "required", "last", "best")
"""What `run.resume` may say; all else is a file."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Which run this is, where it lives, and how it starts."""

    name: str = setting("quickstart", free=True)
    """Name of the run; its folder is `runs/<name>` unless `run.dir` is set."""
    dir: str | None = setting(None, free=True)
    """Run folder: resolved config, versions, logs, checkpoints, curves.png."""
    resume: str = setting("auto", free=True)
    """auto: resume in the run folder if it holds a checkpoint; never: start from step 0 in an empty
    folder; required or last: fail if there is no checkpoint; best: go back to best.pt; PATH: start
    from that checkpoint file. Going back to a checkpoint of the run folder quarantines the
    later ones."""
    evaluate_only: bool = setting(False, free=True)
    """Evaluate the checkpoint that `run.resume` names (auto: the newest); train and write
    nothing."""
    allow_config_change: bool = setting(False, free=True)
    """Resume although settings that change the mathematics differ from the checkpoint's."""

    def __post_init__(self) -> None:
        check_section(self, "run").enforce()


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on the validation split."""

    batch_size: int = setting(256, ge=1, hint="give a count > 0", free=True)
    """Samples of one forward pass in evaluation. Whole batches go to the ranks in turn."""
    every_epochs: int = setting(1, ge=1, hint="give a count > 0", free=True)
    """Epochs between evaluations; the last epoch is always evaluated."""
    first_epoch: int | None = setting(None, ge=1, hint="leave it out for every_epochs", free=True)
    """Epochs done at the first evaluation, from which every_epochs counts: MLPerf's period 4 and
    offset 2 (of epochs counted from 0) are every_epochs=4 and first_epoch=3. null: every_epochs."""
    at_start: bool = setting(False, free=True)
    """Also evaluate before the first step: the first point of the curve."""
    flip: bool = setting(False)
    """Evaluate each image and its mirror image, and take the mean of the logits (ffcv's test-time
    augmentation). Twice the work."""

    def __post_init__(self) -> None:
        check_section(self, "eval").enforce()


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep."""

    every_steps: int | None = setting(
        None, ge=1, hint="null saves at the end of epochs only", free=True
    )
    """Steps between saves, besides those at the end of epochs."""
    every_epochs: int = setting(1, ge=1, hint="1 or more", free=True)
    """Epochs between saves; the last step is always saved."""
    keep_last: int = setting(3, ge=1, hint="1 or more", free=True)
    """Newest checkpoints to keep."""
    keep_best: bool = setting(True, free=True)
    """Also keep the checkpoint of the best validation top-1, as best.pt."""
    max_failures: int = setting(10, ge=1, hint="1 or more", free=True)
    """Saves that may fail one after another (a full disk) before the run ends."""

    def __post_init__(self) -> None:
        check_section(self, "checkpoint").enforce()

    @property
    def most_files(self) -> int:
        """Checkpoints that are there at a time, with best.pt and the one that is written."""
        return self.keep_last + 2


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is shown and recorded."""

    every_steps: int = setting(50, ge=1, hint="50", free=True)
    """Steps between records; the device is read only then."""
    tensorboard: bool = setting(True, free=True)
    """Write TensorBoard events to the run folder."""
    price_per_hour: float | None = setting(None, ge=0, hint="such as 2.5", free=True)
    """Price of one rank (a GPU) per hour, in any currency: the receipt then names the cost."""
    progress: Literal["auto", "bar", "lines"] = setting("auto", free=True)
    """auto: a bar on a terminal, one line per record otherwise."""

    def __post_init__(self) -> None:
        check_section(self, "log").enforce()
