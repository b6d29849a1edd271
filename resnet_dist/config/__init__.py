"""The configuration of a run: one frozen dataclass a YAML section.

Owns the names, types, defaults, units and rules of every setting. Does not read files (see
`resnet_dist.config.load`), never imports torch, and never holds a derived value.

Fields marked with `exact=False` do not change the mathematics of a run: a run may be resumed with
another value of them. All others are part of "training is a pure function of (config, seed, step)".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from resnet_dist.config.augment import AugmentConfig
from resnet_dist.config.dali import DaliConfig
from resnet_dist.config.data import DataConfig
from resnet_dist.config.dist import DistConfig, FaultsConfig
from resnet_dist.config.model import ModelConfig
from resnet_dist.config.optim import OptimConfig, ScheduleConfig
from resnet_dist.config.run import CheckpointConfig, EvalConfig, LogConfig, RunConfig
from resnet_dist.config.setting import Rules
from resnet_dist.config.train import TrainConfig

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "DaliConfig",
    "DataConfig",
    "DistConfig",
    "EvalConfig",
    "FaultsConfig",
    "LogConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "ScheduleConfig",
    "TrainConfig",
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    seed: int = 0
    """Everything random is a function of it and the position (see `resnet_dist.rng`)."""
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    dali: DaliConfig = field(default_factory=DaliConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    dist: DistConfig = field(default_factory=DistConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            0 <= self.seed < 2**63, "seed", self.seed, "must lie in [0, 2**63)", "0 is fine"
        )
        rules.require(
            self.schedule.warmup_epochs < self.train.epochs,
            "schedule.warmup_epochs",
            self.schedule.warmup_epochs,
            f"must be less than train.epochs ({self.train.epochs})",
            "shorten the warm-up or train longer",
        )
        rules.require(
            self.augment.ra_reps == 1 or 2 * self.augment.ra_reps <= self.train.global_batch_size,
            "augment.ra_reps",
            self.augment.ra_reps,
            f"must be at most half of train.global_batch_size ({self.train.global_batch_size})",
            "3 or 4 is usual",
        )
        self.augment.check_sizes(rules, train_size=self.data.train_size, loader=self.data.loader)
        rules.require(
            self.data.image_dtype in ("float32", self.train.precision),
            "data.image_dtype",
            self.data.image_dtype,
            f"must be float32 or train.precision ({self.train.precision})",
            "another type would be rounded twice",
        )
        rules.require(
            not self.data.pad_channels or self.model.name != "resnet9",
            "data.pad_channels",
            self.data.pad_channels,
            "does not go with model.name=resnet9, which takes three channels",
            "leave it out",
        )
        rules.enforce()
