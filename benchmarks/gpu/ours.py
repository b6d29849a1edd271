"""Our training step with whatever settings, for the benchmarks of one process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resnet_dist.bench.step import Timed, sync_build_timed
from resnet_dist.config.load import load_config
from resnet_dist.world import start_process_group

Ours = Timed


def build_ours(overrides: Sequence[str]) -> Ours:
    """Everything for a step. Raises UserError for unknown or wrong settings."""
    # A shipped config with plain settings, all of which the overrides may change.
    config = load_config(["resnet50"], overrides).config
    return sync_build_timed(config, start_process_group(config.dist))


def restart(ours: Ours, start: dict[str, Tensor]) -> None:
    """Back to the weights `start`, in place: captured graphs know the tensors by address."""
    with torch.no_grad():
        for name, tensor in ours.state.model.state_dict().items():
            tensor.copy_(start[name])
        for values in ours.state.optimizer.state.values():
            for value in values.values():
                if isinstance(value, Tensor):
                    value.zero_()
