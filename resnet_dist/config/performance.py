"""How a training step is executed: section `performance`. None of it changes the mathematics but
for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from resnet_dist.config.setting import check_section, setting

_WITH_OWN_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes in which the compiler makes CUDA graphs of its own."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How a step is executed, decided for one kind of device."""

    fused_norm: bool = False
    space_to_depth: bool = False
    cuda_graph: bool = False
    compile: bool = False
    compile_mode: str = "default"


PLAIN = Speed()
"""PyTorch's operators one by one."""

PRESETS = {
    "plain": PLAIN,
    "fused": Speed(fused_norm=True, space_to_depth=True),
    "graphed": Speed(fused_norm=True, space_to_depth=True, cuda_graph=True),
    "compiled": Speed(compile=True),
}
"""What the names of `performance.preset` stand for."""

FASTEST = {"cpu": "plain", "cuda": "graphed"}
"""The fastest that was measured on each kind of device, with one rank (docs/performance.md)."""


@dataclass(frozen=True, kw_only=True)
class PerformanceConfig:
    """How a training step is executed."""

    preset: Literal["auto", "plain", "fused", "graphed", "compiled"] = setting("auto", free=True)
    """A name for the four settings that follow, which override it where they are given. plain:
    PyTorch's operators one by one; fused: fused_norm and space_to_depth; graphed: those and
    cuda_graph; compiled: compile; auto: graphed on one GPU where it works, else plain: what was
    measured. `python -m resnet_dist.bench --modes` compares them on your machine."""
    fused_norm: bool | None = setting(None, free=True)
    """Batch norm, addition and ReLU in one pass over memory, by kernels written for GPUs (equal up
    to rounding). Slower on a CPU. null: as the preset says."""
    space_to_depth: bool | None = setting(None, free=True)
    """Convolve 2 x 2 blocks of pixels in a first layer that strides (equal up to rounding). null:
    as the preset says."""
    cuda_graph: bool | None = setting(None, free=True)
    """Capture the whole step (forward, loss, backward, clip, update, meters) as a CUDA graph, one
    per shape of batch, and replay it: the host launches one thing per step. Needs a GPU. Equal up
    to the rounding of the learning rate to float32. Takes memory for a copy of the batch, and keeps
    what a step needs from evaluation. With schedule.cycle_momentum clipping and update are not
    captured. null: as the preset says."""
    compile: bool | None = setting(None, free=True)
    """torch.compile the model (equal up to rounding; pays little on CPU). null: as the preset
    says."""
    compile_mode: Literal[
        "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
    ] = setting("default", free=True)
    """Mode of torch.compile (with performance.compile). reduce-overhead and max-autotune make CUDA
    graphs of their own, so they exclude performance.cuda_graph."""
    recompute: bool = setting(False, free=True)
    """Compute the inside of each residual block a second time in the backward pass instead of
    holding it: larger batches fit, and a step takes about a third longer. The same bits."""
    num_threads: int | None = setting(None, ge=1, hint="leave it out for the default", free=True)
    """CPU threads of each rank's tensor operations. null: cores / ranks of the node (1 for networks
    narrower than 16 channels)."""
    deterministic: bool = setting(False, free=True)
    """Deterministic GPU kernels: bit for bit equal runs, slower. CPU runs always are."""

    def __post_init__(self) -> None:
        rules = check_section(self, "performance")
        compiles, graphs = self.may_use("compile"), self.may_use("cuda_graph")
        rules.require(
            not self.may_use("fused_norm") or not compiles,
            "performance.fused_norm",
            True,
            "excludes performance.compile",
            "the compiler fuses batch norm in its own way: choose one",
        )
        rules.require(
            not self.recompute or not (compiles or self.may_use("fused_norm")),
            "performance.recompute",
            True,
            "does not go with performance.compile or fused_norm",
            "set performance.preset=plain",
        )
        rules.require(
            compiles or self.compile_mode == "default",
            "performance.compile_mode",
            self.compile_mode,
            "needs performance.compile=true",
            "leave it out, or set that",
        )
        rules.require(
            not graphs or self.compile_mode not in _WITH_OWN_GRAPHS,
            "performance.compile_mode",
            self.compile_mode,
            "makes CUDA graphs of its own, which performance.cuda_graph excludes",
            "take max-autotune-no-cudagraphs, or set performance.cuda_graph=false",
        )
        rules.enforce()

    def speed_on(self, device_type: str) -> Speed:
        """How a step is executed on "cuda" or "cpu" by one rank."""
        return self._speed(FASTEST[device_type] if self.is_open else self._named)

    def may_use(self, name: str) -> bool:
        """Whether a part of `Speed` is asked for; auto asks for none that would not do."""
        return bool(getattr(self._speed(self._named), name))

    @property
    def is_open(self) -> bool:
        """Whether how a step is executed is left to what was measured."""
        parts = [getattr(self, field.name) for field in fields(Speed) if field.type == "bool"]
        is_free = parts == [None] * len(parts) and not self.recompute
        return self.preset == "auto" and is_free

    @property
    def _named(self) -> str:
        return "plain" if self.preset == "auto" else self.preset

    def _speed(self, preset: str) -> Speed:
        given = {field.name: getattr(self, field.name) for field in fields(Speed)}
        chosen = {key: value for key, value in given.items() if value is not None}
        return replace(PRESETS[preset], **chosen)
