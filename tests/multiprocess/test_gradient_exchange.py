"""DDP's options: gradients that travel as bfloat16, and a graph that is said to be static."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resnet_dist.config import DistConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from resnet_dist.data.batch import Batch
from resnet_dist.faults.non_finite import NonFiniteGuard
from resnet_dist.models.build import build_model
from resnet_dist.optim.build import build_optimizer
from resnet_dist.performance.wrap import warm_up_buckets, wrap_model
from resnet_dist.step import EagerStep, StepSettings
from resnet_dist.world import World
from tests.multiprocess.ranks import run_ranks

SIZE = 16
TRAIN = TrainConfig(precision="float32", sync_batch_norm=False)
PLAIN = DistConfig(bucket_cap_mb=0.1)
BFLOAT16 = replace(PLAIN, gradient_dtype="bfloat16")
STATIC = replace(PLAIN, static_graph=True)


def _batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(0, 7, (4,), generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(seed, images, labels, np.arange(4))


def _weights(rank: int, world_size: int, dist: DistConfig, num_micro_batches: int) -> list[Tensor]:
    """Of a network after four steps."""
    world = World(rank, world_size, rank, world_size, torch.device("cpu"))
    model = build_model(ModelConfig(name="resnet9", width=8), num_classes=7, seed=0)
    network = wrap_model(model, train=TRAIN, dist=dist, world=world)
    warm_up_buckets(network, train=TRAIN, size=SIZE, device=world.device)
    step = EagerStep(
        network=network,
        optimizer=build_optimizer(OptimConfig(lr=0.01), model),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        settings=StepSettings(
            num_micro_batches, 1 / (4 * num_micro_batches), None, LossConfig(), None, None
        ),
        on_logits=lambda *_: None,
        guard=NonFiniteGuard(model),
    )
    for number in range(4):
        seeds = range(100 * number + 10 * rank, 100 * number + 10 * rank + num_micro_batches)
        step(iter([_batch(seed) for seed in seeds]), step=number)
    return [parameter.detach().clone() for parameter in model.parameters()]


def _gradients(rank: int, world_size: int, dist: DistConfig) -> list[Tensor]:
    """After the exchange, of one backward pass."""
    world = World(rank, world_size, rank, world_size, torch.device("cpu"))
    model = build_model(ModelConfig(name="resnet9", width=8), num_classes=7, seed=0)
    network = wrap_model(model, train=TRAIN, dist=dist, world=world)
    network(_batch(rank).images).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]


def _rank(rank: int, world_size: int) -> dict[str, Any]:
    variants = {"plain": PLAIN, "bfloat16": BFLOAT16, "static": STATIC}
    return {
        "weights": {
            (name, num_micro_batches): _weights(rank, world_size, dist, num_micro_batches)
            for name, dist in variants.items()
            for num_micro_batches in (1, 2)
        },
        "gradients": {
            name: _gradients(rank, world_size, dist)
            for name, dist in (("plain", PLAIN), ("bfloat16", BFLOAT16))
        },
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(_rank, 2, tmp_path_factory.mktemp("ranks"))


def test_all_ranks_hold_the_same_weights(ranks: list[dict[str, Any]]) -> None:
    one, other = (rank["weights"] for rank in ranks)
    for variant, weights in one.items():
        assert all(map(torch.equal, weights, other[variant])), variant


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_a_static_graph_changes_no_bit(ranks: list[dict[str, Any]], num_micro_batches: int) -> None:
    weights = ranks[0]["weights"]
    assert all(
        map(torch.equal, weights["static", num_micro_batches], weights["plain", num_micro_batches])
    )


def test_gradients_travel_as_bfloat16(ranks: list[dict[str, Any]]) -> None:
    """What arrives has 8 significant bits, and is the mean within their rounding."""
    gradients = ranks[0]["gradients"]
    for exact, rounded in zip(gradients["plain"], gradients["bfloat16"], strict=True):
        assert torch.equal(rounded, rounded.bfloat16().float())
        scale = float(exact.abs().max())
        torch.testing.assert_close(rounded, exact, rtol=2**-6, atol=2**-7 * scale)
    assert not all(map(torch.equal, gradients["plain"], gradients["bfloat16"]))


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_rounded_gradients_train(ranks: list[dict[str, Any]], num_micro_batches: int) -> None:
    weights = ranks[0]["weights"]
    for exact, rounded in zip(
        weights["plain", num_micro_batches], weights["bfloat16", num_micro_batches], strict=True
    ):
        torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.01)


def test_one_process_has_no_gradients_to_send() -> None:
    world = World(0, 1, 0, 1, torch.device("cpu"))
    model = build_model(ModelConfig(name="resnet9", width=8), num_classes=7, seed=0)
    assert wrap_model(model, train=TRAIN, dist=replace(BFLOAT16, static_graph=True), world=world)
