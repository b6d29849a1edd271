"""Fused batch norm over several ranks equals one big batch, and communicates while it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_dist.performance.fused_norm import norm_relu, norm_relu_convolution
from tests.multiprocess.ranks import run_ranks

SPLITS = {"uneven": (1, 4, 2), "empty": (3, 0, 2)}
WORLD = 3


def _parts() -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    generator = torch.Generator().manual_seed(1)
    norm = nn.BatchNorm2d(8, eps=1e-3, momentum=0.3, dtype=torch.float64)
    convolution = nn.Conv2d(8, 8, 3, padding=1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, convolution.weight):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return norm, convolution


def _data(total: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(total, 8, 4, 3, generator=generator, dtype=torch.float64) + 5.0
    return x.contiguous(memory_format=torch.channels_last)


def _train(rows: slice, total: int, group: Any) -> dict[str, Tensor]:
    norm, convolution = _parts()
    x = _data(total)[rows].detach().requires_grad_(True)
    z, y = norm_relu_convolution(norm, convolution, x, x, group=group)
    out = norm_relu(norm, z, y, group=group)
    out.sin().sum().backward()
    grads = {"norm": norm.weight.grad, "bias": norm.bias.grad, "conv": convolution.weight.grad}
    state = {"mean": norm.running_mean, "var": norm.running_var}
    return {"out": out.detach(), "x": x.grad, **grads, **state}  # type: ignore[dict-item]


class _Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("aten.convolution_backward"):
            name += f" {args[-1]}"
        self.names.append(name)
        return func(*args, **(kwargs or {}))


def _order_of_backward() -> list[str]:
    norm, convolution = _parts()
    x = _data(2).requires_grad_(True)
    z, _ = norm_relu_convolution(norm, convolution, x, group=dist.group.WORLD)
    with _Names() as recorded:
        z.sum().backward()
    wanted = ("c10d", "aten.convolution_backward", "resnet_dist.batch_norm")
    return [name for name in recorded.names if name.startswith(wanted)]


def _rank(rank: int, _world_size: int) -> dict[str, Any]:
    results: dict[str, Any] = {"order": _order_of_backward()}
    for name, split in SPLITS.items():
        rows = slice(sum(split[:rank]), sum(split[: rank + 1]))
        results[name] = _train(rows, sum(split), dist.group.WORLD)
    with pytest.raises(ValueError, match="more than one value per channel"):
        norm_relu(_parts()[0], _data(1)[: 1 - rank, :, :1, :1], group=dist.group.WORLD)
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(_rank, WORLD, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("split", list(SPLITS))
def test_equals_one_big_batch(ranks: list[dict[str, Any]], split: str) -> None:
    expected = _train(slice(None), sum(SPLITS[split]), None)
    given = [rank[split] for rank in ranks]
    close = {"rtol": 1e-10, "atol": 1e-10}
    for name in ("out", "x"):
        torch.testing.assert_close(torch.cat([one[name] for one in given]), expected[name], **close)
    for name in ("norm", "bias", "conv"):
        torch.testing.assert_close(sum(one[name] for one in given), expected[name], **close)
    for name in ("mean", "var"):
        for one in given:
            torch.testing.assert_close(one[name], expected[name], **close)
            # Not nearly: ranks whose buffers drift apart would evaluate differently.
            assert torch.equal(one[name], given[0][name])


def test_one_collective_that_begins_before_the_weight_gradient(ranks: list[dict[str, Any]]) -> None:
    assert [name.split(".default")[0] for name in ranks[0]["order"]] == [
        "aten.convolution_backward",
        "resnet_dist.batch_norm_backward_sums",
        "c10d.allreduce_",
        "aten.convolution_backward",
        "resnet_dist.batch_norm_backward_apply",
    ]
    first, second = (name for name in ranks[0]["order"] if "convolution" in name)
    assert first.endswith("[True, False, False]")
    assert second.endswith("[False, True, False]")
