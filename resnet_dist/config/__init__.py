"""The configuration of a run: one frozen dataclass a YAML section.

Owns the names, types, defaults, units and rules of every setting. Does not read files (see
`resnet_dist.config.load`), never imports torch, and never holds a derived value.

Settings that are `free` do not change the mathematics of a run: a run may be resumed with
another value of them. All others are part of "training is a pure function of (config, seed, step)".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args, get_type_hints

from resnet_dist.config.augment import AugmentConfig
from resnet_dist.config.dali import DaliConfig
from resnet_dist.config.data import CORES_PER_GPU, DataConfig
from resnet_dist.config.dist import DistConfig, FaultsConfig
from resnet_dist.config.model import LossConfig, ModelConfig
from resnet_dist.config.optim import OptimConfig, ScheduleConfig
from resnet_dist.config.performance import PerformanceConfig
from resnet_dist.config.profile import ProfileConfig
from resnet_dist.config.run import CheckpointConfig, EvalConfig, LogConfig, RunConfig
from resnet_dist.config.setting import Rules, check_section, setting
from resnet_dist.config.train import TrainConfig

__all__ = [
    "CORES_PER_GPU",
    "SECTIONS",
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "DaliConfig",
    "DataConfig",
    "DistConfig",
    "EvalConfig",
    "FaultsConfig",
    "LogConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "PerformanceConfig",
    "ProfileConfig",
    "RunConfig",
    "ScheduleConfig",
    "TrainConfig",
    "field_paths",
    "is_optional",
    "is_text",
    "type_hints",
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    seed: int = setting(0, ge=0, le=2**63 - 1, hint="0 is fine")
    """Everything random is a function of it and the position (see `resnet_dist.rng`)."""
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    dali: DaliConfig = field(default_factory=DaliConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    dist: DistConfig = field(default_factory=DistConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)

    def __post_init__(self) -> None:
        rules = check_section(self, "")
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
        self._check_performance(rules)
        channels = 1 if self.data.grayscale else 3
        rules.require(
            self.model.in_channels == channels,
            "model.in_channels",
            self.model.in_channels,
            f"must be {channels} with data.grayscale={str(self.data.grayscale).lower()}",
            f"set model.in_channels={channels}",
        )
        rules.enforce()

    def _check_performance(self, rules: Rules) -> None:
        """Add the rules that tie section `performance` to others."""
        rules.require(
            self.train.channels_last or not self.performance.may_use("fused_norm"),
            "performance.fused_norm",
            True,
            "needs train.channels_last=true",
            "the kernels read channels-last memory",
        )
        rules.require(
            self.model.is_standard or not self.performance.may_use("fused_norm"),
            "performance.fused_norm",
            True,
            "needs a network of this package, nothing frozen, with standard layers",
            "set performance.preset=plain",
        )
        rules.require(
            not self.model.is_foreign or not self.performance.may_use("cuda_graph"),
            "performance.cuda_graph",
            True,
            f"does not go with model.name={self.model.name}, which may draw random numbers",
            "set performance.preset=plain",
        )
        rules.require(
            self.train.sam_rho is None
            or not any(map(self.performance.may_use, ("cuda_graph", "fused_norm"))),
            "train.sam_rho",
            self.train.sam_rho,
            "does not go with performance.cuda_graph or fused_norm",
            "set performance.preset=plain",
        )
        rules.require(
            not self.performance.recompute
            or not (self.model.is_foreign or self.model.name == "resnet9"),
            "performance.recompute",
            True,
            f"does not go with model.name={self.model.name}, which has no blocks of this package",
            "leave it out, or lower train.max_micro_batch_size",
        )


SECTIONS: dict[str, type[Any]] = {
    name: kind
    for name, kind in get_type_hints(Config).items()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}
"""Name -> dataclass of every section."""


def field_paths() -> dict[str, dataclasses.Field[Any]]:
    """Every setting: dotted path -> dataclass field."""
    paths: dict[str, dataclasses.Field[Any]] = {}
    for item in dataclasses.fields(Config):
        if item.name in SECTIONS:
            for leaf in dataclasses.fields(SECTIONS[item.name]):
                paths[f"{item.name}.{leaf.name}"] = leaf
        else:
            paths[item.name] = item
    return paths


@cache
def type_hints() -> dict[str, Any]:
    """Every setting: dotted path -> type."""
    hints: dict[str, Any] = {}
    for name, kind in get_type_hints(Config).items():
        if name in SECTIONS:
            hints |= {f"{name}.{leaf}": hint for leaf, hint in get_type_hints(kind).items()}
        else:
            hints[name] = kind
    return hints


def is_optional(hint: Any) -> bool:
    """Whether a setting of this type may be null."""
    return type(None) in get_args(hint)


def is_text(hint: Any) -> bool:
    """Whether a setting of this type takes any text."""
    return hint is str or str in get_args(hint)
