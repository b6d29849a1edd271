"""The comparison of the ranks' weights: every bit counts, and the rank and the tensor are named."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from resnet_dist.faults import replica_check
from resnet_dist.faults.replica_check import (
    ReplicaError,
    find_odd,
    flip_a_bit,
    hash_tensors,
    named_tensors,
    sync_check_replicas,
)
from resnet_dist.world import World
from tests.multiprocess.ranks import run_ranks

CPU = torch.device("cpu")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def trained(kind: type[torch.optim.Optimizer]) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = make_model()
    optimizer = kind(
        model.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {})
    )  # type: ignore[arg-type,call-arg]
    model(torch.ones(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_every_single_bit_counts(dtype: torch.dtype) -> None:
    tensor = torch.arange(-3, 4).to(dtype)
    before = hash_tensors([tensor], CPU)
    raw = tensor.view(torch.uint8)
    for byte in range(raw.numel()):
        for bit in range(8):
            raw[byte] ^= 1 << bit
            assert hash_tensors([tensor], CPU) != before
            raw[byte] ^= 1 << bit
    assert hash_tensors([tensor], CPU) == before


def test_the_layout_in_memory_does_not_count() -> None:
    images = torch.randn(2, 3, 4, 5)
    other = images.to(memory_format=torch.channels_last)
    assert hash_tensors([images], CPU) == hash_tensors([other], CPU)


def test_parameters_optimizer_and_buffers_are_compared() -> None:
    model, optimizer = trained(torch.optim.SGD)
    names = named_tensors(model, optimizer, with_buffers=True)
    assert {"0.weight", "momentum_buffer of 3.bias", "1.running_var"} <= names.keys()
    assert "1.num_batches_tracked" not in names
    assert "1.running_var" not in named_tensors(model, optimizer, with_buffers=False)
    adam = named_tensors(*trained(torch.optim.Adam), with_buffers=False)
    assert {"exp_avg of 0.weight", "exp_avg_sq of 0.weight", "step of 0.weight"} <= adam.keys()


def test_the_majority_is_right_else_rank_0() -> None:
    good, bad, worse = {"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 0, "b": 3}
    assert find_odd([bad, good, good]) == replica_check.Finding([0], True, "b", 1)
    assert find_odd([good, worse, good, bad, good]) == replica_check.Finding([1, 3], True, "a", 2)
    assert find_odd([good, bad]) == replica_check.Finding([1], False, "b", 1)
    assert find_odd([bad, bad, good, good]) == replica_check.Finding([2, 3], False, "b", 1)
    assert find_odd([good, {"a": 1}]) == replica_check.Finding([1], False, "b", 1)  # has no b


def check(rank: int, world_size: int, what: str) -> str | None:
    """Spoil something on rank 1 and compare."""
    model, optimizer = trained(torch.optim.SGD)
    world = World(rank, world_size, rank, world_size, CPU)
    if rank == 1:
        if what == "parameter":
            flip_a_bit(model)
        elif what == "momentum":
            optimizer.state[model[3].bias]["momentum_buffer"][1] += 1  # type: ignore[index]
        elif what == "no momentum":
            optimizer.state.clear()
        elif what == "buffer":
            model[1].running_mean += 1  # type: ignore[index,operator]
    try:
        sync_check_replicas(model, optimizer, world, step=7, with_buffers=what == "buffer")
    except ReplicaError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("what", "tensor"),
    [
        ("nothing", None),
        ("parameter", "0.weight"),
        ("momentum", "momentum_buffer of 3.bias"),
        ("no momentum", "momentum_buffer of 0.weight"),
        ("buffer", "1.running_mean"),
    ],
)
def test_all_ranks_say_the_same(what: str, tensor: str | None, tmp_path: Path) -> None:
    said = run_ranks(check, 3, tmp_path, what)
    assert said[0] == said[1] == said[2]
    if tensor is None:
        assert said[0] is None
    else:
        culprit = f"replicas (step 7): rank 1 (host {socket.gethostname()}) against the other ranks"
        assert said[0].startswith(culprit)
        assert f"the first is {tensor};" in said[0]
