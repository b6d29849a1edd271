"""Batch norm's statistics at weights that no step was taken with, such as a moving average."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import nn

from resnet_dist.data.loaders.loader import TrainLoader
from resnet_dist.models.statistics import recomputed_statistics
from resnet_dist.models.sync_batch_norm import convert_sync_batch_norm, revert_sync_batch_norm
from resnet_dist.step import autocast


@dataclass(frozen=True)
class NormRecomputation:
    """Computes the statistics from the batches of the latest steps, as they were trained on."""

    loader: TrainLoader
    """Apart from the one that trains."""
    num_steps: int
    autocast_dtype: torch.dtype | None
    is_synchronised: bool
    """Over the batches of all ranks, or else of each rank (an evaluation takes rank 0's)."""

    def sync_apply(self, module: nn.Module, step: int, beat: Callable[[], None]) -> None:
        """Give `module` the statistics at the end of step `step`. All ranks must call it. `beat` is
        called before each batch."""
        if self.is_synchronised:
            convert_sync_batch_norm(module)
        first = max(0, step - self.num_steps)
        with (
            recomputed_statistics(module) as count,
            closing(self.loader.batches(first, step)) as batches,
            torch.no_grad(),
        ):
            for batch in batches:
                beat()
                count()
                with autocast(batch.images.device, self.autocast_dtype):
                    module(batch.images)
        if self.is_synchronised:
            revert_sync_batch_norm(module)
