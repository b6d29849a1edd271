"""Settings of how a training step is executed: a part of section `train`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from resnet_dist.config.rules import Rules, free

_WITH_OWN_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes in which the compiler makes CUDA graphs of its own."""


@dataclass(frozen=True, kw_only=True)
class SpeedFields:
    """What is captured, how the compiler works, how float16 losses are scaled."""

    fused_norm: bool = free(False)
    """Batch norm, addition and ReLU in one pass over memory, by kernels written for GPUs (equal up
    to rounding). Slower on a CPU."""
    space_to_depth: bool = free(False)
    """Convolve 2 x 2 blocks of pixels in a first layer that strides (equal up to rounding)."""
    cuda_graph: bool = free(False)
    """Capture the whole step (forward, loss, backward, clip, update, meters) as a CUDA graph, one a
    shape of batch, and replay it: the host launches one thing a step. Needs a GPU. Equal up to the
    rounding of the learning rate to float32. Takes memory for a copy of the batch, and keeps what a
    step needs from evaluation. With schedule.cycle_momentum clipping and update are not captured.
    Off: not measured on a GPU yet."""
    compile_mode: Literal[
        "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
    ] = free("default")
    """Of torch.compile (with train.compile). reduce-overhead and max-autotune make CUDA graphs of
    their own, so they exclude train.cuda_graph."""
    loss_scale: float | None = None
    """float16 only: a loss scale that never changes, such as 128 (MLPerf's ResNets). null: dynamic,
    halved after each step that overflows and doubled after 2000 that did not. Not free to change:
    it decides which gradients are flushed to zero, and which steps are skipped."""

    def check_speed(
        self, rules: Rules, *, compiles: bool, channels_last: bool, precision: str
    ) -> None:
        """Add the rules of these fields."""
        rules.require(
            not self.fused_norm or channels_last,
            "train.fused_norm",
            self.fused_norm,
            "needs train.channels_last=true",
            "the kernels read channels-last memory",
        )
        rules.require(
            not self.fused_norm or not compiles,
            "train.fused_norm",
            self.fused_norm,
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
            not self.cuda_graph or self.compile_mode not in _WITH_OWN_GRAPHS,
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
