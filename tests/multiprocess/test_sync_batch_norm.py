"""Sync batch norm on CPU ranks equals one big batch; checked in float64 to 1e-10."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from resnet_dist.models.sync_batch_norm import (
    SyncBatchNorm2d,
    convert_sync_batch_norm,
    revert_sync_batch_norm,
)
from tests.multiprocess.ranks import run_ranks

CHANNELS = 5
WORLD = 4
# Local batch sizes of the ranks: even, uneven, one empty, fewer ranks than the world.
SPLITS = {"even": (2, 2, 2, 2), "uneven": (1, 4, 2, 3), "empty": (3, 0, 2, 0), "three": (2, 1, 4)}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
STEPS = 2


def _norm(dtype: torch.dtype) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(1)
    norm = nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.3, dtype=dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(CHANNELS, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(CHANNELS, generator=generator))
    return norm


def _data(total: int, step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images with a mean that is large against the deviation, and gradients of the output."""
    generator = torch.Generator().manual_seed(step)
    shape = (total, CHANNELS, 3, 4)
    images = torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0 + 1000.0
    grads = torch.randn(shape, generator=generator, dtype=torch.float64)
    return images.to(dtype), grads.to(dtype)


def _train(norm: nn.Module, total: int, rows: slice, *, layout: str, dtype: torch.dtype) -> Any:
    """A few forward and backward passes; everything that they gave."""
    given: dict[str, list[Tensor]] = {"output": [], "grad_input": []}
    for step in range(STEPS):
        images, grads = (tensor[rows] for tensor in _data(total, step, dtype))
        x = images.contiguous(memory_format=LAYOUTS[layout]).requires_grad_(True)
        y = norm(x)
        y.backward(grads)
        assert y.dtype == dtype
        assert x.grad is not None
        given["output"].append(y.detach())
        given["grad_input"].append(x.grad)
    grads = {name: parameter.grad for name, parameter in norm.named_parameters()}
    return {**given, "grads": grads, "state": norm.state_dict()}


def _rank_cases(rank: int, _world_size: int) -> dict[str, Any]:
    groups = {len(split): dist.new_group(range(len(split))) for split in SPLITS.values()}
    results = {}
    for name, split in SPLITS.items():
        if rank >= len(split):
            continue
        rows = slice(sum(split[:rank]), sum(split[: rank + 1]))
        group = groups[len(split)] if len(split) < WORLD else None
        for layout in LAYOUTS:
            for dtype in (torch.float64, torch.float32):
                norm = convert_sync_batch_norm(_norm(dtype), group)
                results[name, layout, dtype] = _train(
                    norm, sum(split), rows, layout=layout, dtype=dtype
                )
    results["bfloat16"] = _rank_bfloat16(rank)
    results["evaluation"] = _rank_evaluation()
    results["too few values"] = _rank_too_few_values()
    return results


def _rank_bfloat16(rank: int) -> tuple[Tensor, Tensor]:
    """bfloat16 activations with float32 parameters, as under autocast."""
    norm = convert_sync_batch_norm(_norm(torch.float32))
    x = _mixed_input()[2 * rank : 2 * rank + 2].requires_grad_(True)
    y = norm(x)
    y.backward(x.detach().flip(0))
    assert x.grad is not None
    return y.detach(), x.grad


def _mixed_input() -> Tensor:
    x = torch.randn(2 * WORLD, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(3))
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


def _rank_evaluation() -> bool:
    plain = _norm(torch.float64).eval()
    images, _ = _data(2, 0, torch.float64)
    expected = plain(images)
    return torch.equal(convert_sync_batch_norm(plain).eval()(images), expected)


def _rank_too_few_values() -> str:
    norm = convert_sync_batch_norm(_norm(torch.float64))
    rows = 1 if dist.get_rank() == 0 else 0
    with pytest.raises(ValueError) as caught:
        norm(torch.ones(rows, CHANNELS, 1, 1, dtype=torch.float64))
    return str(caught.value)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run_ranks(_rank_cases, WORLD, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("split", list(SPLITS))
def test_equals_one_big_batch(
    ranks: list[dict[Any, Any]], split: str, layout: str, dtype: torch.dtype
) -> None:
    sizes = SPLITS[split]
    total = sum(sizes)
    expected = _train(_norm(torch.float64), total, slice(None), layout=layout, dtype=torch.float64)
    given = [ranks[rank][split, layout, dtype] for rank in range(len(sizes))]
    # float32 holds 1000 +- 2 to 1e-4, so that is what its inputs are known to.
    tolerance = {"rtol": 0.0, "atol": 1e-10 if dtype is torch.float64 else 2e-3}
    for step in range(STEPS):
        for part in ("output", "grad_input"):
            whole = torch.cat([result[part][step] for result in given]).double()
            torch.testing.assert_close(whole, expected[part][step], **tolerance)
    for name, grad in expected["grads"].items():
        summed = sum(result["grads"][name].double() for result in given)
        torch.testing.assert_close(summed, grad, **tolerance)
    for result in given:
        assert result["state"].keys() == expected["state"].keys()
        assert result["state"]["num_batches_tracked"] == STEPS
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(
                result["state"][name].double(), expected["state"][name], **tolerance
            )
            # Not nearly: ranks whose buffers drift apart would evaluate differently.
            assert torch.equal(result["state"][name], given[0]["state"][name])


def test_bfloat16_is_as_exact_as_plain_batch_norm(ranks: list[dict[Any, Any]]) -> None:
    x = _mixed_input().requires_grad_(True)
    y = _norm(torch.float32)(x)
    pairs = [part.flip(0) for part in x.detach().split(2)]
    y.backward(torch.cat(pairs))
    assert x.grad is not None
    output = torch.cat([rank["bfloat16"][0] for rank in ranks])
    grad = torch.cat([rank["bfloat16"][1] for rank in ranks])
    assert output.dtype == grad.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, y.detach(), rtol=2**-7, atol=1e-3)
    torch.testing.assert_close(grad, x.grad, rtol=2**-6, atol=0.02)


def test_evaluation_is_plain_batch_norm(ranks: list[dict[Any, Any]]) -> None:
    assert all(rank["evaluation"] for rank in ranks)


def test_one_value_per_channel_is_refused_on_all_ranks(ranks: list[dict[Any, Any]]) -> None:
    assert all("more than one value per channel" in rank["too few values"] for rank in ranks)


def test_conversion_keeps_tensors_names_and_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())).eval()
    tensors = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    assert convert_sync_batch_norm(model) is model
    assert isinstance(model[1][0], SyncBatchNorm2d)
    assert not model[1][0].training
    assert {n: t.data_ptr() for n, t in model.state_dict().items()} == tensors
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert revert_sync_batch_norm(model) is model
    assert type(model[1][0]) is nn.BatchNorm2d
    assert {n: t.data_ptr() for n, t in model.state_dict().items()} == tensors


def test_a_batch_norm_that_would_stay_local_is_refused() -> None:
    with pytest.raises(ValueError, match="BatchNorm1d"):
        convert_sync_batch_norm(nn.Sequential(nn.BatchNorm1d(4)))
    with pytest.raises(ValueError, match="affine"):
        convert_sync_batch_norm(nn.BatchNorm2d(4, affine=False))


def test_without_a_process_group_it_is_plain_batch_norm(tmp_path: Path) -> None:
    images, _ = _data(4, 0, torch.float64)
    assert not list(tmp_path.iterdir())
    converted = convert_sync_batch_norm(_norm(torch.float64))
    assert torch.equal(converted(images), _norm(torch.float64)(images))
