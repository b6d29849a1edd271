"""One training step: forward, loss, backward, clip, update. Only tensors.

Reads no rank, file, logger or config; synchronises nothing with the host. Faults that tests inject
are `resnet_dist.performance.faulty_step`'s, CUDA graphs `resnet_dist.performance.cuda_graph`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import nn

from resnet_dist.config import LossConfig
from resnet_dist.data.batch import Batch
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.loss import distillation_sum, loss_sum, main_labels
from resnet_dist.models.statistics import kept_statistics
from resnet_dist.optim.sam import Sharpness
from resnet_dist.weights.teacher import Teacher

AUTOCAST_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Autocast type of each `train.precision`; None: none."""

OnLogits = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Called with the summed loss (scalar), logits `[n, classes]` and main labels `[n]`, detached."""


@dataclass(frozen=True)
class StepSettings:
    """What a step computes, in numbers."""

    accumulation_steps: int
    """Micro-batches per step."""
    gradient_scale: float
    """world_size / global_batch_size: turns a sum over samples into this rank's share of the mean
    over the global batch, given that DDP averages over the ranks. Local sizes may differ."""
    autocast_dtype: torch.dtype | None
    """None: float32."""
    loss: LossConfig
    clip_grad_norm: float | None
    clip_grad_value: float | None


class Step(Protocol):
    """How the loop takes a step: eagerly, or as a CUDA graph."""

    @property
    def network(self) -> nn.Module:
        """The model as it is called in training: with compile and DDP around it."""

    def __call__(self, batches: Iterator[Batch], *, step: int) -> torch.Tensor:
        """Take the micro-batches of step `step` from `batches` and update the parameters.

        Returns the L2 norm of the whole gradient before clipping (scalar, on the device). If that
        is not finite, nothing but the counts of the guard has changed.
        """

    def close(self) -> None:
        """Give up what is held on the device besides the state; may be called again after."""


@dataclass(frozen=True)
class EagerStep:
    """A step whose operations are launched one after the other."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: StepSettings
    on_logits: OnLogits
    guard: NonFiniteGuard
    teacher: Teacher | None = None
    """A network that this one learns from; None: none."""
    sharpness: Sharpness | None = None
    """Sharpness-aware minimisation; None: none."""
    seed_forward: Callable[[int], None] | None = None
    """Seeds torch's generators for a step, by its number: for networks that draw random numbers."""

    @cached_property
    def _parameters(self) -> list[nn.Parameter]:
        """Those of the network: walking its modules in every step takes a third of a
        millisecond."""
        return list(self.network.parameters())

    def __call__(self, batches: Iterator[Batch], *, step: int | torch.Tensor) -> torch.Tensor:
        if self.seed_forward is not None:
            assert isinstance(step, int)
            self.seed_forward(step)
        self.guard.begin()
        if self.sharpness is not None and isinstance(step, int) and self.sharpness.is_due(step):
            held = [_own(next(batches)) for _ in range(self.settings.accumulation_steps)]
            self.add_gradients(iter(held))
            with self.sharpness.uphill(self._parameters), kept_statistics(self.network):
                self.add_gradients(iter(held), is_counted=False)
        else:
            self.add_gradients(batches)
        return self.update(step=step)

    def add_gradients(self, batches: Iterator[Batch], *, is_counted: bool = True) -> None:
        """The forward and backward passes of a step's micro-batches. `is_counted`: tell
        `on_logits`."""
        for micro_batch in range(self.settings.accumulation_steps):
            batch = next(batches)
            is_last = micro_batch == self.settings.accumulation_steps - 1
            with _gradient_sync(self.network, is_last):
                with autocast(batch.images.device, self.settings.autocast_dtype):
                    logits = self._forward(batch)
                loss = self.loss_of(logits, batch)
                checked = self.guard.check_loss(loss)
                self.scaler.scale(checked * self.settings.gradient_scale).backward()  # type: ignore[no-untyped-call]
            if is_counted:
                self.on_logits(loss.detach(), logits.detach(), main_labels(batch))

    def _forward(self, batch: Batch) -> torch.Tensor:
        """`[n, classes]` logits."""
        if batch.kept is None:
            return self.network(batch.images)  # type: ignore[no-any-return]
        return self.network(batch.images, batch.kept)  # type: ignore[no-any-return]

    def loss_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss summed over the micro-batch, float32 scalar."""
        own = loss_sum(logits, batch.labels, batch.mixed, self.settings.loss)
        if self.teacher is None:
            return own
        with autocast(batch.images.device, self.settings.autocast_dtype):
            wanted = self.teacher.logits(batch.images)
        share = self.teacher.weight
        taught = distillation_sum(logits, wanted, self.teacher.temperature)
        return (1.0 - share) * own + share * taught

    def update(self, *, step: int | torch.Tensor) -> torch.Tensor:
        """Clip, and update the parameters, of which then none has a gradient. Returns the norm."""
        self.scaler.unscale_(self.optimizer)
        grad_norm = _total_norm(self._parameters)
        is_skipped = self.guard.decide(grad_norm, step=step)
        _clip(self._parameters, grad_norm, self.settings)
        _update(self.optimizer, self.scaler, is_skipped)
        return grad_norm

    def close(self) -> None:
        """Nothing is held."""


def _own(batch: Batch) -> Batch:
    """With images in memory of its own: a loader may use its memory again."""
    return replace(batch, images=batch.images.clone())


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Mixed precision for the forward pass; nothing for float32."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _gradient_sync(network: nn.Module, is_last: bool) -> AbstractContextManager[object]:
    """Only the last micro-batch of a step starts DDP's all-reduce."""
    if is_last or not isinstance(network, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


def _total_norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    """L2 norm of the whole gradient, scalar on the device."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _clip(parameters: list[nn.Parameter], grad_norm: torch.Tensor, settings: StepSettings) -> None:
    if settings.clip_grad_norm:
        nn.utils.clip_grads_with_norm_(parameters, settings.clip_grad_norm, grad_norm)
    if settings.clip_grad_value:
        nn.utils.clip_grad_value_(parameters, settings.clip_grad_value)


def _update(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, is_skipped: torch.Tensor
) -> None:
    """Update the parameters, or not, as `is_skipped` (0.0 or 1.0, on the device) says.

    A loss scaler finds out for itself, and passes the same flag on. Without one it is set here:
    the fused kernels read it on the device.
    """
    if scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.grad_scale, optimizer.found_inf = None, is_skipped  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    optimizer.zero_grad(set_to_none=True)
