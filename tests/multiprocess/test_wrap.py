"""DDP's buckets have their final layout before the first step, so that a resumed run is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_dist.config import DistConfig, ModelConfig, TrainConfig
from resnet_dist.models.build import build_model
from resnet_dist.models.sync_batch_norm import SyncBatchNorm2d
from resnet_dist.performance.wrap import warm_up_buckets, wrap_model
from resnet_dist.world import World
from tests.multiprocess.ranks import run_ranks

SIZE = 32
TRAIN = TrainConfig(precision="float32")
Result = dict[str, bool]


def _wrapped(rank: int, world_size: int) -> DistributedDataParallel:
    world = World(rank, world_size, rank, world_size, torch.device("cpu"))
    # A seed of its own for each rank: DDP must give all of them rank 0's weights.
    model = build_model(ModelConfig(name="resnet18", width=8), num_classes=7, seed=rank)
    wrapped = wrap_model(model, train=TRAIN, dist=DistConfig(bucket_cap_mb=0.1), world=world)
    assert isinstance(wrapped, DistributedDataParallel)
    return wrapped


def _gradients(wrapped: nn.Module, rank: int, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    images = torch.randn(2 + rank, 3, SIZE, SIZE, generator=generator)
    wrapped(images.contiguous(memory_format=torch.channels_last)).square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in wrapped.parameters()]  # type: ignore[union-attr]
    wrapped.zero_grad(set_to_none=True)
    return gradients


def _first_equals_later(wrapped: nn.Module, rank: int) -> bool:
    """Whether a step gives the same bits as the first one of a process and as its third."""
    first = _gradients(wrapped, rank, 0)
    _gradients(wrapped, rank, 1)
    later = _gradients(wrapped, rank, 0)
    return all(torch.equal(a, b) for a, b in zip(first, later, strict=True))


def _rank(rank: int, world_size: int) -> tuple[Result, list[Tensor]]:
    cold = _wrapped(rank, world_size)
    without = _first_equals_later(cold, rank)

    warm = _wrapped(rank, world_size)
    before = [tensor.clone() for tensor in warm.state_dict().values()]
    random_state = torch.get_rng_state()
    warm_up_buckets(warm, train=TRAIN, size=SIZE, device=torch.device("cpu"))
    checks = {
        "equal without warm-up": without,
        "all batch norms synchronised": all(
            isinstance(module, SyncBatchNorm2d)
            for module in warm.modules()
            if isinstance(module, nn.BatchNorm2d)
        ),
        "state restored": all(
            torch.equal(a, b) for a, b in zip(before, warm.state_dict().values(), strict=True)
        ),
        "no gradients left": all(parameter.grad is None for parameter in warm.parameters()),
        "random state kept": torch.equal(random_state, torch.get_rng_state()),
        "channels last": warm.module.layer1[0].conv1.weight.is_contiguous(
            memory_format=torch.channels_last
        ),
        "equal with warm-up": _first_equals_later(warm, rank),
    }
    return checks, [parameter.detach() for parameter in warm.parameters()]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Result, list[Tensor]]]:
    return run_ranks(_rank, 3, tmp_path_factory.mktemp("ranks"))


def test_first_step_after_warm_up_has_the_bits_of_a_later_one(
    ranks: list[tuple[Result, list[Tensor]]],
) -> None:
    for checks, _ in ranks:
        failed = [name for name, holds in checks.items() if not holds]
        # If the bits agreed without the warm-up, this test could not see that it works.
        assert failed == ["equal without warm-up"]


def test_all_ranks_start_from_the_weights_of_rank_0(
    ranks: list[tuple[Result, list[Tensor]]],
) -> None:
    expected = build_model(ModelConfig(name="resnet18", width=8), num_classes=7, seed=0)
    for _, weights in ranks:
        for given, parameter in zip(weights, expected.parameters(), strict=True):
            assert torch.equal(given, parameter)


def test_one_process_is_not_wrapped(tmp_path: Path) -> None:
    assert not list(tmp_path.iterdir())
    world = World(0, 1, 0, 1, torch.device("cpu"))
    model = build_model(ModelConfig(name="resnet9", width=8), num_classes=7, seed=0)
    wrapped = wrap_model(model, train=TRAIN, dist=DistConfig(), world=world)
    assert wrapped is model
    warm_up_buckets(wrapped, train=TRAIN, size=SIZE, device=world.device)
    assert all(int(buffer.sum()) == 0 for name, buffer in model.named_buffers() if "num_" in name)
