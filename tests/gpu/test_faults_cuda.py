"""Snapshots and skipped steps on a GPU: nothing waits for the device, nothing is torn."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from resnet_dist.checkpoint.saver import Snapshots
from resnet_dist.config import LossConfig, ModelConfig, OptimConfig
from resnet_dist.data.batch import Batch
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.models.build import build_model
from resnet_dist.optim.build import build_optimizer
from resnet_dist.step import EagerStep, StepSettings
from tests.gpu.waits import no_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_snapshot_is_of_one_moment() -> None:
    """The tensors change right behind it on the current stream."""
    device = torch.device("cuda")
    snapshots = Snapshots(device)
    tensors = {str(i): torch.zeros(1_000_000, device=device) for i in range(50)}
    snapshots.take(tensors)
    for value in range(1, 20):
        taken = snapshots.take(tensors)
        for tensor in tensors.values():
            tensor.add_(1)
        snapshots.wait()
        assert all(float(copy.min()) == float(copy.max()) == value - 1 for copy in taken.values())


def test_a_step_is_held_up_for_ten_milliseconds_at_most() -> None:
    device = torch.device("cuda")
    model = build_model(ModelConfig(name="resnet50"), num_classes=1000, seed=0).to(device)
    optimizer = build_optimizer(OptimConfig(), model)
    tree = {
        "model": model.state_dict(),
        "average": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
    snapshots = Snapshots(device)
    snapshots.take(tree)  # allocates
    snapshots.wait()
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        snapshots.take(tree)
        torch.cuda.current_stream().synchronize()  # the current stream waits for the copies
        times.append(1e3 * (time.perf_counter() - start))
    assert sorted(times)[len(times) // 2] <= 10.0, times


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_a_step_is_skipped_on_the_device(precision: torch.dtype | None) -> None:
    """And no call in it makes the host wait: such a call is an error while it runs."""
    device = torch.device("cuda")
    config = ModelConfig(name="resnet18", width=16, stem="cifar")
    model = build_model(config, num_classes=10, seed=0).to(device)
    optimizer = build_optimizer(OptimConfig(lr=0.01), model)
    guard = NonFiniteGuard(model)
    scaler = torch.amp.GradScaler("cuda", enabled=precision is torch.float16, init_scale=1024.0)
    images = torch.randn(8, 3, 32, 32, device=device)
    labels = torch.arange(8, device=device)
    bad = images.clone()
    bad[3, 1, 4, 4] = float("nan")
    settings = StepSettings(1, 1 / 8, precision, LossConfig(), None, None)

    taken = EagerStep(
        network=model,
        optimizer=optimizer,
        scaler=scaler,
        settings=settings,
        on_logits=lambda *_: None,
        guard=guard,
    )

    def step(number: int, values: torch.Tensor) -> None:
        batch = Batch(step=number, images=values, labels=labels, sample_ids=np.arange(8))
        taken(iter([batch]), step=number)

    for number in range(3):
        step(number, images)
    with no_waits():
        before = [tensor.clone() for tensor in model.state_dict().values()]
        step(3, bad)
        after = [tensor.clone() for tensor in model.state_dict().values()]
        step(4, images)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    counts = guard.read()
    assert (counts.total, counts.in_a_row, counts.first_step) == (1, 0, 3)
