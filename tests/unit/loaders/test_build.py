"""Which backend a config stands for, and the one that needs no data."""

from __future__ import annotations

import pytest
import torch

from resnet_dist.config import DataConfig
from resnet_dist.data.loaders import choice
from resnet_dist.data.micro_batches import BatchSplit
from resnet_dist.errors import UserError
from resnet_dist.run import dali_package
from tests.loading import CPU, change, eval_loader, train_batches


def test_synthetic_needs_no_data() -> None:
    config = change(loader="synthetic", train_size=16, eval_size=16)
    batches = list(train_batches(config, None, BatchSplit(10, 3, 2), (3, 5), rank=1))
    sizes = [(batch.step, len(batch.labels)) for batch in batches]
    assert sizes == [(3, 2), (3, 2), (4, 2), (4, 2)]
    assert torch.equal(batches[0].images, batches[3].images)
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    assert abs(batches[0].images.mean().item()) < 0.5
    evaluation = eval_loader(config, None, 30_000, rank=1, world_size=2)
    assert evaluation.num_batches == 2
    (batch,) = evaluation.batches()
    assert (batch.step, len(batch.labels)) == (1, 20_000)


def test_choice_of_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.choose_loader(DataConfig(), CPU) == "torch"
    assert choice.choose_loader(DataConfig(loader="synthetic"), CPU) == "synthetic"
    assert choice.choose_loader(DataConfig(loader="memory"), CPU) == "memory"
    monkeypatch.setattr(dali_package, "installed", lambda: None)
    message = r"NVIDIA DALI is not installed; pip install 'resnet_dist\[dali-cuda13\]'"
    with pytest.raises(UserError, match=message):
        choice.choose_loader(DataConfig(loader="dali"), CPU)
    with pytest.raises(UserError, match=message):
        choice.choose_loader(DataConfig(), torch.device("cuda", 0))
