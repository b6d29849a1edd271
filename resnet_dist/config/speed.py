"""Settings of how a training step is executed: a part of section `train`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from resnet_dist.config.setting import Rules, free

_WITH_OWN_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes in which the compiler makes CUDA graphs of its own."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How a step is executed, decided. None of it changes the mathematics but for rounding."""

    fused_norm: bool = False
    space_to_depth: bool = False
    cuda_graph: bool = False
    compile: bool = False


PRESETS = {
    "plain": Speed(),
    "fused": Speed(fused_norm=True),
    "graphed": Speed(fused_norm=True, cuda_graph=True),
    "compiled": Speed(compile=True),
}
"""What the names of `train.performance` stand for."""

FASTEST = {"cpu": "plain", "cuda": "plain"}
"""What `auto` stands for on each kind of device: the fastest that was measured there. On GPUs none
of the others was measured yet."""


@dataclass(frozen=True, kw_only=True)
class SpeedFields:
    """What is captured, how the compiler works, how float16 losses are scaled."""

    performance: Literal["auto", "plain", "fused", "graphed", "compiled"] = free("auto")
    """A preset for the four settings that follow, which go before it where they are given. plain:
    PyTorch's operators one by one; fused: train.fused_norm; graphed: that and train.cuda_graph;
    compiled: train.compile; auto: the fastest that was measured on this kind of device, which is
    plain until a GPU has been measured. `python -m resnet_dist.bench --modes` measures yours."""
    fused_norm: bool | None = free(None)
    """Batch norm, addition and ReLU in one pass over memory, by kernels written for GPUs (equal up
    to rounding). Slower on a CPU. null: as train.performance says."""
    space_to_depth: bool | None = free(None)
    """Convolve 2 x 2 blocks of pixels in a first layer that strides (equal up to rounding). null:
    as train.performance says."""
    cuda_graph: bool | None = free(None)
    """Capture the whole step (forward, loss, backward, clip, update, meters) as a CUDA graph, one a
    shape of batch, and replay it: the host launches one thing a step. Needs a GPU. Equal up to the
    rounding of the learning rate to float32. Takes memory for a copy of the batch, and keeps what a
    step needs from evaluation. With schedule.cycle_momentum clipping and update are not captured.
    null: as train.performance says."""
    compile: bool | None = free(None)
    """torch.compile the model (equal up to rounding; pays little on CPU). null: as
    train.performance says."""
    compile_mode: Literal[
        "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
    ] = free("default")
    """Of torch.compile (with train.compile). reduce-overhead and max-autotune make CUDA graphs of
    their own, so they exclude train.cuda_graph."""
    loss_scale: float | None = None
    """float16 only: a loss scale that never changes, such as 128 (MLPerf's ResNets). null: dynamic,
    halved after each step that overflows and doubled after 2000 that did not. Not free to change:
    it decides which gradients are flushed to zero, and which steps are skipped."""

    def speed_on(self, device_type: str) -> Speed:
        """How a step is executed on "cuda" or "cpu"."""
        name = FASTEST[device_type] if self.performance == "auto" else self.performance
        given = {field.name: getattr(self, field.name) for field in fields(Speed)}
        chosen = {key: value for key, value in given.items() if value is not None}
        return replace(PRESETS[name], **chosen)

    def check_speed(self, rules: Rules, *, channels_last: bool, precision: str) -> None:
        """Add the rules of these fields."""
        # A preset that is named is the same everywhere; auto must do on both.
        fused, compiles, graphs = (
            any(getattr(self.speed_on(device_type), name) for device_type in FASTEST)
            for name in ("fused_norm", "compile", "cuda_graph")
        )
        rules.require(
            not fused or channels_last,
            "train.fused_norm",
            fused,
            "needs train.channels_last=true",
            "the kernels read channels-last memory",
        )
        rules.require(
            not fused or not compiles,
            "train.fused_norm",
            fused,
            "excludes train.compile",
            "the compiler fuses batch norm in its own way: choose one",
        )
        rules.require(
            compiles or self.compile_mode == "default",
            "train.compile_mode",
            self.compile_mode,
            "needs train.compile=true",
            "leave it out, or set that",
        )
        rules.require(
            not graphs or self.compile_mode not in _WITH_OWN_GRAPHS,
            "train.compile_mode",
            self.compile_mode,
            "makes CUDA graphs of its own, which train.cuda_graph excludes",
            "take max-autotune-no-cudagraphs, or set train.cuda_graph=false",
        )
        rules.require(
            self.loss_scale is None or precision == "float16",
            "train.loss_scale",
            self.loss_scale,
            "needs train.precision=float16",
            "leave it out: other types need no loss scale",
        )
        rules.require(
            self.loss_scale is None or (self.loss_scale > 0 and math.isfinite(self.loss_scale)),
            "train.loss_scale",
            self.loss_scale,
            "must be positive",
            "128 is usual, a power of two does not round; null is the dynamic scale",
        )
