"""The dynamic loss scale: its state waits for no device, and goes both ways."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from resnet_dist.optim.scaling import build_scaler

CPU = torch.device("cpu")


def _scaler() -> torch.amp.GradScaler:
    return build_scaler(CPU, precision="float16", loss_scale=None)


def _step(scaler: torch.amp.GradScaler, *, overflows: bool = False) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler.scale(weight.sum() * (float("inf") if overflows else 1.0)).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()


def test_a_state_is_read_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = _scaler()
    _step(scaler)

    def item(_: torch.Tensor) -> Any:
        raise AssertionError("waits for the device")

    monkeypatch.setattr(torch.Tensor, "item", item)
    state = scaler.state_dict()
    assert isinstance(state["scale"], torch.Tensor)


@pytest.mark.parametrize("begins", [False, True])
def test_a_state_is_restored(begins: bool) -> None:
    """Into a scaler that has taken a step, and one that has not; then both go on alike."""
    first, second = _scaler(), _scaler()
    for overflows in (False, True, False):
        _step(first, overflows=overflows)
    if begins:
        _step(second)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    _step(first)
    _step(second)
    assert first.get_scale() == second.get_scale() == 2.0**15
    assert torch.equal(
        first.state_dict()["_growth_tracker"], second.state_dict()["_growth_tracker"]
    )


def test_before_the_first_step_and_without_float16() -> None:
    assert _scaler().state_dict()["scale"] == 2.0**16
    assert build_scaler(CPU, precision="bfloat16", loss_scale=None).state_dict() == {}
