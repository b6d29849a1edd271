"""The training step with the faults that a test, or the self-test, injects into it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from resnet_dist.data.batch import Batch
from resnet_dist.faults.replica_check import flip_a_bit
from resnet_dist.step import EagerStep
from resnet_dist.system.failpoints import failpoint


class FaultyStep(EagerStep):
    """An `EagerStep` that passes failpoints. Built only where one is armed."""

    def add_gradients(self, batches: Iterator[Batch], *, is_counted: bool = True) -> None:
        failpoint("step.begin")
        super().add_gradients(batches, is_counted=is_counted)

    def loss_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss = super().loss_of(logits, batch)
        return loss * float("nan") if failpoint("step.loss") else loss

    def update(self, *, step: int | torch.Tensor) -> torch.Tensor:
        failpoint("step.before_optimizer")
        grad_norm = super().update(step=step)
        failpoint("step.after_optimizer")
        if failpoint("step.parameters"):
            flip_a_bit(self.network)
        return grad_norm
